// From a tile in shared memory into the operands of mma, by ldmatrix: four 8x8 matrices at once,
// and which lane brings the address of which row. `Tile` is a SwizzledTile. ldmatrix moves chunks
// of 16 bytes and does not ask what is in them: of tf32, one matrix is 8x4 floats, and the same
// addresses serve. 16 rows of the tile, two chunks wide, are these matrices:
//
//     A from Q      B from K              B from V, transposed
//
//     m0 m2         m0 m1   b[0]          m0 m2
//     m1 m3         m2 m3   b[1]          m1 m3
//                                        b[0] b[1]
//
// S = Q K^T takes A from Q and B from K: a row of K is a column of K^T. O = P V takes B from V,
// whose rows are B's rows already, and mma wants them by columns: hence the transposing load.
#pragma once

#include "cuda/device/fragment.hpp"
#include "cuda/device/platform.hpp"
#include "cuda/device/ptx/ldmatrix.hpp"
#include "cuda/device/warp.hpp"

#include <cstdint>

namespace tilewise::device::inline TILEWISE_TARGET {

/// Rows `row` to `row` + 15, two chunks from `chunk` on: 16 columns of 16-bit numbers, 8 of tf32.
template <class Tile>
__device__ __forceinline__ OperandA load_operand_a(Tile& tile, int row, int chunk,
                                                   Site site = Site::current()) {
  const int lane = lane_index();
  OperandA a;
  ldmatrix(a.value, tile.chunk(row + lane % 16, chunk + lane / 16), site);
  return a;
}

/// Two operands beside each other: b[0] multiplies with rows `row` to `row` + 7 of the tile, b[1]
/// with the next eight, over two chunks from `chunk` on.
template <class Tile>
__device__ __forceinline__ void load_operands_b(OperandB (&b)[2], Tile& tile, int row, int chunk,
                                                Site site = Site::current()) {
  const int lane = lane_index();
  std::uint32_t four[4];
  ldmatrix(four, tile.chunk(row + lane % 8 + lane / 16 * 8, chunk + lane / 8 % 2), site);
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
  ldmatrix_transposed(four, tile.chunk(row + lane % 16, chunk + lane / 16), site);
  b[0] = {{four[0], four[1]}};
  b[1] = {{four[2], four[3]}};
}

}  // namespace tilewise::device::inline TILEWISE_TARGET
