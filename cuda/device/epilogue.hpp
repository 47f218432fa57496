// The end of a row block: O and LSE from a warp's registers to global memory, as far as there are
// rows and columns. A lane stores two neighbouring numbers at once, a quad 8 of them: 16 bytes of
// f16 or bf16, 32 of float, which is a whole sector.
#pragma once

#include "cuda/device/fragment.hpp"
#include "cuda/device/platform.hpp"
#include "cuda/device/ptx/convert.hpp"
#include "cuda/device/ptx/vector_access.hpp"
#include "cuda/device/softmax.hpp"
#include "cuda/device/warp.hpp"

#include <cstdint>
#include <type_traits>

namespace tilewise::device::inline TILEWISE_TARGET {

/// Row 0 of the warp's sixteen goes to `to`, the next `row_stride` elements further. Of them `rows`
/// are there (none, if it is negative), and `columns` of the columns, an even number. T: float,
/// f16, bf16.
template <class T, int Columns>
__device__ __forceinline__ void store_tile(const WarpTile<Columns>& o, T* to,
                                           std::int64_t row_stride, int rows, int columns,
                                           Site site = Site::current()) {
  const Position mine = accumulator_at(lane_index(), 0);
  TILEWISE_UNROLL
  for (int row = 0; row < 2; ++row) {
    if (mine.row + 8 * row >= rows) continue;
    T* const at = to + (mine.row + 8 * row) * row_stride + mine.column;
    TILEWISE_UNROLL
    for (int n = 0; n < o.pieces; ++n) {
      if (8 * n + mine.column >= columns) continue;
      const float left = o.piece[n].of_row(row, 0), right = o.piece[n].of_row(row, 1);
      if constexpr (std::is_same_v<T, float>)
        store_vector(at + 8 * n, make_float2(left, right), site);
      else
        store_vector(at + 8 * n, pack<T>(left, right), site);
    }
  }
}

/// As store_tile, all columns and 16 bits, in a quarter of the stores: of four neighbouring pieces
/// each lane of a quad gets one whole, its row's 16 bytes, by two exchanges with the other lanes.
template <class T, int Columns>
__device__ __forceinline__ void store_tile_in_chunks(const WarpTile<Columns>& o, T* to,
                                                     std::int64_t row_stride, int rows,
                                                     Site site = Site::current()) {
  static_assert(sizeof(T) == 2 && Columns % 32 == 0, "four pieces of eight columns");
  const int lane = lane_index() % 4, first = lane_index() / 4;
  // Words a and b: afterwards the lanes below have both a of theirs and their partner's.
  const auto exchange = [](std::uint32_t& a, std::uint32_t& b, bool above, int with) {
    const std::uint32_t theirs = __shfl_xor_sync(~0u, above ? a : b, with);
    a = above ? theirs : a;
    b = above ? b : theirs;
  };
  TILEWISE_UNROLL
  for (int row = 0; row < 2; ++row) {
    T* const at = to + (first + 8 * row) * row_stride + 8 * lane;
    TILEWISE_UNROLL
    for (int n = 0; n < o.pieces; n += 4) {
      std::uint32_t word[4];
      TILEWISE_UNROLL
      for (int j = 0; j < 4; ++j)
        word[j] = pack<T>(o.piece[n + j].of_row(row, 0), o.piece[n + j].of_row(row, 1));
      exchange(word[0], word[1], lane % 2 != 0, 1);
      exchange(word[2], word[3], lane % 2 != 0, 1);
      exchange(word[0], word[2], lane / 2 != 0, 2);
      exchange(word[1], word[3], lane / 2 != 0, 2);
      if (first + 8 * row < rows)
        store_vector(at + 8 * n, make_uint4(word[0], word[1], word[2], word[3]), site);
    }
  }
}

/// The first lane of a quad stores its rows' LSE.
__device__ __forceinline__ void store_lse(const OfRows& lse, float* to, int rows) {
  const Position mine = accumulator_at(lane_index(), 0);
  if (mine.column != 0) return;
  TILEWISE_UNROLL
  for (int row = 0; row < 2; ++row)
    if (mine.row + 8 * row < rows) to[mine.row + 8 * row] = lse.row[row];
}

/// rowsum(dO o O), which backward calls D: O in registers, row 0 of dO at `from`, even `columns`.
/// 0 for rows that are not there. All four lanes of a quad have it.
template <class T, int Columns>
__device__ __forceinline__ OfRows row_dots(const WarpTile<Columns>& o, const T* from,
                                           std::int64_t row_stride, int rows, int columns,
                                           Site site = Site::current()) {
  const Position mine = accumulator_at(lane_index(), 0);
  OfRows sums = {};
  TILEWISE_UNROLL
  for (int row = 0; row < 2; ++row) {
    const T* const at = from + (mine.row + 8 * row) * row_stride + mine.column;
    TILEWISE_UNROLL
    for (int n = 0; n < o.pieces; ++n) {
      const bool inside = mine.row + 8 * row < rows && 8 * n + mine.column < columns;
      const float2 two = unpack<T>(load_vector_if<std::uint32_t>(inside, at + 8 * n, site));
      sums.row[row] += two.x * o.piece[n].of_row(row, 0) + two.y * o.piece[n].of_row(row, 1);
    }
    sums.row[row] = quad_sum(sums.row[row]);
  }
  return sums;
}

}  // namespace tilewise::device::inline TILEWISE_TARGET
