// Softmax on a tile of scores, a register of lanes at a time (Milakov & Gimelshein 2018, arXiv
// 1805.02867, and Dao 2023, Algorithm 1):
//
//   m' = max(m, top)         P = 2^((S - m') factor)
//   l' = alpha l + sum P     alpha = 2^((m - m') factor)
//
// The difference comes first: the exponent of what counts is small then, and so is its rounding
// error, however large the scores are. (An fma, S factor - m' factor, would be an operation less.)
#pragma once

#include "cpu/flash/tile/block.hpp"

namespace tilewise::cpu::flash {
inline namespace TILEWISE_ISA {

static void hide(float* S, std::int64_t keys, const float* begin, const float* end, float* top) {
  for (int v = 0; v < V; ++v) {
    const F first = load<F>(begin + v * L), last = load<F>(end + v * L);
    F most(minus_infinity);
    for (std::int64_t j = 0; j < keys; ++j) {
      float* const s = S + j * queries + v * L;
      const F key(static_cast<float>(j));
      const F score =
          select(key < first, F(minus_infinity), select(key < last, load<F>(s), F(minus_infinity)));
      store(s, score);
      most = max(score, most);
    }
    store(top + v * L, most);
  }
}

/// What is subtracted: a row that has seen nothing yet has m = -inf, and -inf - -inf is NaN.
TILEWISE_INLINE F shift_of(F m) {
  return select(m == F(minus_infinity), F(0.0f), m);
}

// [snippet online_softmax]
static void online_softmax(float* S, std::int64_t keys, const Softmax& softmax) {
  const F factor(softmax.factor);
  F shift[V], sum[V], alpha[V];
  unroll<V>([&](auto v) TILEWISE_LAMBDA_INLINE {
    const F before = load<F>(softmax.m + v * L);
    const F m = max(load<F>(softmax.top + v * L), before);
    shift[v] = shift_of(m);
    alpha[v] = simd::TILEWISE_ISA::exp2_of_nonpositive((before - shift[v]) * factor);
    sum[v] = F(0.0f);
    store(softmax.m + v * L, m);
  });
  for (std::int64_t j = 0; j < keys; ++j)
    unroll<V>([&](auto v) TILEWISE_LAMBDA_INLINE {
      float* const s = S + j * queries + v * L;
      const F p = simd::TILEWISE_ISA::exp2_of_nonpositive((load<F>(s) - shift[v]) * factor);
      sum[v] = sum[v] + p;
      store(s, p);
    });
  unroll<V>([&](auto v) TILEWISE_LAMBDA_INLINE {
    float* const l = softmax.l + v * L;
    store(l, fma(load<F>(l), alpha[v], sum[v]));
    store(softmax.alpha + v * L, alpha[v]);
  });
}
// [end online_softmax]

}  // namespace TILEWISE_ISA
}  // namespace tilewise::cpu::flash
