// From a tile in shared memory into the operands of mma, by ldmatrix: four 8x8 matrices at once,
// and which lane brings the address of which row. `Tile` is a SwizzledTile. ldmatrix moves chunks
// of 16 bytes and does not ask what is in them: of tf32, one matrix is 8x4 floats, and the same
// addresses serve. 16 rows of the tile, two chunks wide, are these matrices:
//
//     A from Q      B from K              B from V, transposed     A from dS^T, transposed
//
//     m0 m2         m0 m1   b[0]          m0 m2                    m0 m1
//     m1 m3         m2 m3   b[1]          m1 m3                    m2 m3
//                                        b[0] b[1]
//
// S = Q K^T takes A from Q and B from K: a row of K is a column of K^T. O = P V takes B from V,
// whose rows are B's rows already, and mma wants them by columns: hence the transposing load. In
// backward dQ = dS K takes A from a tile in which dS lies transposed.
#pragma once

#include "cuda/device/fragment.hpp"
#include "cuda/device/platform.hpp"
#include "cuda/device/ptx/ldmatrix.hpp"
#include "cuda/device/ptx/vector_access.hpp"
#include "cuda/device/warp.hpp"

#include <cstdint>

namespace tilewise::device::inline TILEWISE_TARGET {

/// Rows `row` to `row` + 15, two chunks from `chunk` on: 16 columns of 16-bit numbers, 8 of tf32.
template <class Tile>
__device__ __forceinline__ OperandA load_operand_a(Tile& tile, int row, int chunk,
                                                   Site site = Site::current()) {
  const int lane = lane_index();
  OperandA a;
  ldmatrix(a.value, tile.chunk_of_lane(row, chunk, lane % 16, lane / 16), site);
  return a;
}

/// Two operands beside each other: b[0] multiplies with rows `row` to `row` + 7 of the tile, b[1]
/// with the next eight, over two chunks from `chunk` on.
template <class Tile>
__device__ __forceinline__ void load_operands_b(OperandB (&b)[2], Tile& tile, int row, int chunk,
                                                Site site = Site::current()) {
  const int lane = lane_index();
  std::uint32_t four[4];
  ldmatrix(four, tile.chunk_of_lane(row, chunk, lane % 8 + lane / 16 * 8, lane / 8 % 2), site);
  b[0] = {{four[0], four[1]}};
  b[1] = {{four[2], four[3]}};
}

/// Two operands beside each other from rows `row` to `row` + 15, numbers of 16 bits: b[0] has the
/// eight columns of `chunk`, b[1] those of the next.
template <class Tile>
__device__ __forceinline__ void load_operands_b_transposed(OperandB (&b)[2], Tile& tile, int row,
                                                           int chunk, Site site = Site::current()) {
  static_assert(Tile::chunk_size == 8, "transposes numbers of 16 bits");
  const int lane = lane_index();
  std::uint32_t four[4];
  ldmatrix_transposed(four, tile.chunk_of_lane(row, chunk, lane % 16, lane / 16), site);
  b[0] = {{four[0], four[1]}};
  b[1] = {{four[2], four[3]}};
}

/// Of a tile that holds A's transpose, numbers of 16 bits: A's columns are rows `row` to `row` + 15
/// of the tile, and A's rows the columns of `chunk` and the next.
template <class Tile>
__device__ __forceinline__ OperandA load_operand_a_transposed(Tile& tile, int row, int chunk,
                                                              Site site = Site::current()) {
  static_assert(Tile::chunk_size == 8, "transposes numbers of 16 bits");
  const int lane = lane_index();
  OperandA a;
  ldmatrix_transposed(a.value,
                      tile.chunk_of_lane(row, chunk, lane % 8 + lane / 16 * 8, lane / 8 % 2), site);
  return a;
}

/// The inverse of load_operand_a, numbers of 16 bits: each register is two neighbours of a row, and
/// a quad's four are a chunk.
template <class Tile>
__device__ __forceinline__ void store_operand_a(const OperandA& a, Tile& tile, int row, int chunk,
                                                Site site = Site::current()) {
  static_assert(Tile::chunk_size == 8, "two numbers a register");
  const Position mine = operand_a_at(lane_index(), 0, 0);
  TILEWISE_UNROLL
  for (int number = 0; number < 4; ++number) {
    auto* const at = tile.chunk_of_lane(row + 8 * (number % 2), chunk, mine.row, number / 2);
    store_vector(at + mine.column, a.value[number], site);
  }
}

// ------------------------------------------------------------------- products of a warp with tiles

/// C += A X^T: M times 16 rows of the tile a, from `row` on, times rows of x, from `row_x` on.
template <class T, int M, int Columns, class TileA, class TileX>
__device__ __forceinline__ void multiply_rows(WarpTile<Columns> (&c)[M], TileA& a, int row,
                                              TileX& x, int row_x, Site site = Site::current()) {
  TILEWISE_UNROLL
  for (int chunk = 0; chunk < TileA::chunks; chunk += 2) {
    OperandA left[M];
    for (int m = 0; m < M; ++m) left[m] = load_operand_a(a, row + 16 * m, chunk, site);
    TILEWISE_UNROLL
    for (int n = 0; n < Columns / 8; n += 2) {
      OperandB b[2];
      load_operands_b(b, x, row_x + 8 * n, chunk, site);
      for (int m = 0; m < 2 * M; ++m)
        multiply<T>(c[m / 2].piece[n + m % 2], left[m / 2], b[m % 2], site);
    }
  }
}

/// C += A X: 16 columns of A, M times 16 rows, times 16 rows of the tile x, from `row` on; C's
/// columns are x's from `chunk` on.
template <class T, int M, int Columns, class Tile>
__device__ __forceinline__ void multiply_columns(WarpTile<Columns> (&c)[M], const OperandA (&a)[M],
                                                 Tile& x, int row, int chunk,
                                                 Site site = Site::current()) {
  TILEWISE_UNROLL
  for (int n = 0; n < Columns / 8; n += 2) {
    OperandB b[2];
    load_operands_b_transposed(b, x, row, chunk + n, site);
    for (int m = 0; m < 2 * M; ++m)
      multiply<T>(c[m / 2].piece[n + m % 2], a[m / 2], b[m % 2], site);
  }
}

}  // namespace tilewise::device::inline TILEWISE_TARGET
