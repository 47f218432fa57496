// Which keys a query row looks at: those that there are, and of them, if causal, as many as leave
// the last row all of them ("bottom-right": FlashAttention since version 2.1).
//
//     seqlen_q 3, seqlen_k 5        seqlen_q 5, seqlen_k 3: rows 0 and 1 have no keys
//
//         x x x . .                     . . .
//         x x x x .                     . . .
//         x x x x x                     x . .
//                                       x x .
//                                       x x x
//
// A row's keys are a range from 0: whole tiles can be left out, and most others need no mask.
// FlashAttention-2 (arXiv 2307.08691), section 3.1.1, "Causal masking".
#pragma once

#include "cuda/device/fragment.hpp"
#include "cuda/device/platform.hpp"
#include "cuda/device/warp.hpp"

#include <cmath>

namespace tilewise::device::inline TILEWISE_TARGET {

struct Mask {
  int seqlen_q, seqlen_k;
  bool causal;

  /// Row i looks at keys 0 to keys_of(i) - 1.
  __host__ __device__ constexpr int keys_of(int row) const {
    if (!causal) return seqlen_k;
    const int keys = row + 1 + seqlen_k - seqlen_q;
    return keys < 0 ? 0 : keys > seqlen_k ? seqlen_k : keys;
  }
  /// The first row that looks at a key: rows first_row_of(j) to seqlen_q - 1 do.
  __host__ __device__ constexpr int first_row_of(int key) const {
    const int row = causal ? key - (seqlen_k - seqlen_q) : 0;
    return row < 0 ? 0 : row;
  }
  /// All begin with key 0 (band.hpp has others).
  __host__ __device__ constexpr int first_tile_of(int, int) const { return 0; }
  /// How many tiles of `tile` keys the rows from `first_row` on, `rows` of them, look into.
  __host__ __device__ constexpr int tiles_of(int first_row, int rows, int tile) const {
    const int behind = first_row + rows < seqlen_q ? first_row + rows : seqlen_q;
    return behind <= first_row ? 0 : (keys_of(behind - 1) + tile - 1) / tile;
  }
  /// Whether a row of them does not look at all of the tile. The first one has the fewest keys.
  __host__ __device__ constexpr bool cuts(int first_row, int first_key, int tile) const {
    return first_key + tile > keys_of(first_row);
  }

  /// Scores of a warp's 16 rows from `first_row` on and of keys from `first_key` on: -inf where the
  /// row does not look.
  template <int Columns>
  __device__ __forceinline__ void apply(WarpTile<Columns>& s, int first_row, int first_key) const {
    const Position mine = accumulator_at(lane_index(), 0);
    TILEWISE_UNROLL
    for (int row = 0; row < 2; ++row) {
      const int keys = keys_of(first_row + mine.row + 8 * row) - first_key - mine.column;
      TILEWISE_UNROLL
      for (int piece = 0; piece < s.pieces; ++piece)
        for (int n = 0; n < 2; ++n)
          if (8 * piece + n >= keys) s.piece[piece].of_row(row, n) = -INFINITY;
    }
  }
};

}  // namespace tilewise::device::inline TILEWISE_TARGET
