// Which keys a query row looks at, where a window says so too: from begin_of(i) to end_of(i) - 1.
// Positions are from the bottom right, as Mask's (mask.hpp), which knows the two cases that fast
// kernels are compiled for; this is for the others.
//
//     seqlen_q = seqlen_k = 6, left 2, right 0         left 1, right 1
//
//         x . . . . .                                      x x . . . .
//         x x . . . .                                      x x x . . .
//         x x x . . .                                      . x x x . .
//         . x x x . .                                      . . x x x .
//         . . x x x .                                      . . . x x x
//         . . . x x x                                      . . . . x x
//
// Both ends grow with the row: of a tile's keys the first row has the least end, and the last row
// the greatest begin.
#pragma once

#include "cuda/device/fragment.hpp"
#include "cuda/device/platform.hpp"
#include "cuda/device/warp.hpp"

#include <cmath>

namespace tilewise::device::inline TILEWISE_TARGET {

struct Band {
  int seqlen_q, seqlen_k;
  int left, right;  ///< keys before and behind a row's position; at most 2^30

  __host__ __device__ constexpr int begin_of(int row) const {
    const int begin = row + seqlen_k - seqlen_q - left;
    return begin < 0 ? 0 : begin;
  }
  __host__ __device__ constexpr int end_of(int row) const {
    const int end = row + seqlen_k - seqlen_q + right + 1;
    return end < 0 ? 0 : end > seqlen_k ? seqlen_k : end;
  }
  /// The first tile of `tile` keys that rows from `first_row` on look into.
  __host__ __device__ constexpr int first_tile_of(int first_row, int tile) const {
    return begin_of(first_row) / tile;
  }
  /// How many tiles from there on rows from `first_row` on, `rows` of them, look into.
  __host__ __device__ constexpr int tiles_of(int first_row, int rows, int tile) const {
    const int behind = first_row + rows < seqlen_q ? first_row + rows : seqlen_q;
    if (behind <= first_row) return 0;
    const int tiles = (end_of(behind - 1) + tile - 1) / tile - first_tile_of(first_row, tile);
    return tiles < 0 ? 0 : tiles;
  }
  /// Whether one of sixteen rows does not look at all of the tile.
  __host__ __device__ constexpr bool cuts(int first_row, int first_key, int tile) const {
    return first_key + tile > end_of(first_row) || first_key < begin_of(first_row + 15);
  }

  /// Scores of a warp's 16 rows from `first_row` on and of keys from `first_key` on: -inf where the
  /// row does not look.
  template <int Columns>
  __device__ __forceinline__ void apply(WarpTile<Columns>& s, int first_row, int first_key) const {
    const Position mine = accumulator_at(lane_index(), 0);
    TILEWISE_UNROLL
    for (int row = 0; row < 2; ++row) {
      const int i = first_row + mine.row + 8 * row, from = first_key + mine.column;
      const int begin = begin_of(i) - from, end = end_of(i) - from;
      TILEWISE_UNROLL
      for (int piece = 0; piece < s.pieces; ++piece)
        for (int n = 0; n < 2; ++n)
          if (8 * piece + n >= end || 8 * piece + n < begin)
            s.piece[piece].of_row(row, n) = -INFINITY;
    }
  }
};

}  // namespace tilewise::device::inline TILEWISE_TARGET
