// Online softmax on fragments: FlashAttention-2 (arXiv 2307.08691), Algorithm 1, lines 9, 10, 12
// and 13, for the two rows that a lane has of its warp's sixteen.
//
// A row's scores S come tile by tile. m is the greatest so far, l the sum of exp(S - m); O is the
// sum of exp(S - m) V. When m grows, what was summed before shrinks by r = exp(m_old - m_new):
//
//     m_new = max(m, rowmax(S))      P = exp(S - m_new)      r = exp(m - m_new)
//     l = r l + rowsum(P)            O = r O + P V
//     at the end: O / l, and LSE = m + log(l)
//
// (Line 10 of the paper's algorithm prints diag(r)^-1 for O: the inverse is an erratum.)
//
// exp(scale S - scale m) is exp2(c S - c m) with c = scale log2(e): one multiply-add and one exp2
// for each score. m is kept as c m here, rounded once, and P, r and LSE are all taken from that
// float: no rounding error of it remains in O or LSE.
#pragma once

#include "cuda/device/fragment.hpp"
#include "cuda/device/platform.hpp"
#include "cuda/device/ptx/exp2.hpp"
#include "cuda/device/warp.hpp"

#include <cmath>

namespace tilewise::device::inline TILEWISE_TARGET {

/// scale log2(e), for OnlineSoftmax. Of a negative scale the positive one: negate() Q. Zero becomes
/// the smallest normal number, since 0 times the -inf of a masked score would be NaN.
__host__ __device__ inline float log2_scale_of(float softmax_scale) {
  return fmaxf(fabsf(softmax_scale) * 1.44269504f, 0x1p-126f);
}

/// S becomes cap tanh(scale S / cap). tanh(x) is 1 - 2 / (exp(2 x) + 1): an exponential and a
/// division of the special function unit, and what they are wrong by, some 2^-22, is so little
/// beside 1 that a score is wrong by 2^-22 of the cap.
template <int Columns>
__device__ __forceinline__ void cap(WarpTile<Columns>& s, float softmax_scale, float softcap) {
  const float twice = 2.0f * 1.44269504f * softmax_scale / softcap;
  TILEWISE_UNROLL
  for (Accumulator& piece : s.piece)
    for (float& score : piece.value) {
      const float e = exp2_approx(score * twice);
      score = softcap * fmaf(-2.0f, __fdividef(1.0f, e + 1.0f), 1.0f);
    }
}

/// A number for each row of a lane.
struct OfRows {
  float row[2];
};

/// O = r O.
template <int Columns>
__device__ __forceinline__ void rescale(WarpTile<Columns>& o, const OfRows& factor) {
  TILEWISE_UNROLL
  for (Accumulator& piece : o.piece)
    for (int row = 0; row < 2; ++row)
      for (int n = 0; n < 2; ++n) piece.of_row(row, n) *= factor.row[row];
}

/// The same where a factor is not 1. The maximum of most rows is met in their first tiles: after
/// these, most warps have nothing to multiply. The bits are the same: 1 x is x.
template <int Columns>
__device__ __forceinline__ void rescale_if_grown(WarpTile<Columns>& o, const OfRows& factor) {
  const bool grown = factor.row[0] != 1 || factor.row[1] != 1;
  if (__any_sync(~0u, grown)) rescale(o, factor);
}

struct OnlineSoftmax {
  float m[2] = {-INFINITY, -INFINITY};  ///< times c
  float l[2] = {0, 0};                  ///< of the lane's own columns: added up at the end, once

  /// A score that was seen before every key, of no value ("sink"): it is in the sum, of one lane of
  /// each quad. Natural logarithm.
  __device__ __forceinline__ void begin_with(float sink) {
    const bool counts = sink != -INFINITY && lane_index() % 4 == 0;
    m[0] = m[1] = sink * 1.44269504f;
    l[0] = l[1] = counts ? 1.0f : 0.0f;
  }

  /// The next tile: S becomes P, and r is returned. Masked scores are -inf. log2_scale is c.
  template <int Columns>
  __device__ __forceinline__ OfRows absorb(WarpTile<Columns>& s, float log2_scale) {
    OfRows factor;
    TILEWISE_UNROLL
    for (int row = 0; row < 2; ++row) {
      float most = -INFINITY;
      TILEWISE_UNROLL
      for (const Accumulator& piece : s.piece)
        most = fmaxf(most, fmaxf(piece.of_row(row, 0), piece.of_row(row, 1)));
      most = fmaxf(m[row], quad_max(most) * log2_scale);
      // A row that has seen no key: -inf - -inf would be NaN, and from 0 all of it becomes 0.
      const float base = most == -INFINITY ? 0.0f : most;
      factor.row[row] = exp2_approx(m[row] - base);
      m[row] = most;
      l[row] *= factor.row[row];
      TILEWISE_UNROLL
      for (Accumulator& piece : s.piece)
        for (int n = 0; n < 2; ++n) {
          float& score = piece.of_row(row, n);
          score = exp2_approx(fmaf(score, log2_scale, -base));
          l[row] += score;
        }
    }
    return factor;
  }

  /// The same where few warps share a scheduler, so that a chain of 32 maxima or sums would be
  /// waited for: four chains of either, both rows side by side. Sums are added in another order.
  template <int Columns>
  __device__ __forceinline__ OfRows absorb_in_chains(WarpTile<Columns>& s, float log2_scale) {
    constexpr int chains = 4;
    OfRows factor;
    float base[2];
    TILEWISE_UNROLL
    for (int row = 0; row < 2; ++row) {
      float part[chains] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
      TILEWISE_UNROLL
      for (int n = 0; n < s.pieces; ++n)
        part[n % chains] =
            fmaxf(part[n % chains], fmaxf(s.piece[n].of_row(row, 0), s.piece[n].of_row(row, 1)));
      const float most = fmaxf(
          m[row], quad_max(fmaxf(fmaxf(part[0], part[1]), fmaxf(part[2], part[3]))) * log2_scale);
      base[row] = most == -INFINITY ? 0.0f : most;
      factor.row[row] = exp2_approx(m[row] - base[row]);
      m[row] = most;
    }
    float sum[2][2] = {};
    TILEWISE_UNROLL
    for (int piece = 0; piece < s.pieces; ++piece)
      for (int row = 0; row < 2; ++row)
        for (int n = 0; n < 2; ++n) {
          float& score = s.piece[piece].of_row(row, n);
          score = exp2_approx(fmaf(score, log2_scale, -base[row]));
          sum[row][n] += score;
        }
    TILEWISE_UNROLL
    for (int row = 0; row < 2; ++row)
      l[row] = fmaf(l[row], factor.row[row], sum[row][0] + sum[row][1]);
    return factor;
  }

  /// O becomes O / l; returns LSE, natural logarithm. A row without keys: O = 0 and LSE = -inf.
  template <int Columns>
  __device__ __forceinline__ OfRows finish(WarpTile<Columns>& o) {
    OfRows lse, inverse;
    TILEWISE_UNROLL
    for (int row = 0; row < 2; ++row) {
      const float sum = quad_sum(l[row]);
      lse.row[row] = sum == 0 ? -INFINITY : fmaf(m[row], 0.69314718f, logf(sum));
      inverse.row[row] = sum == 0 ? 0.0f : 1.0f / sum;
    }
    rescale(o, inverse);
    return lse;
  }
};

}  // namespace tilewise::device::inline TILEWISE_TARGET
