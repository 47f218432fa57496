// The two matrix products of attention on one tile: S = K Qt, and Ot = alpha Ot + V^T P. Both are
// register tiles of R numbers, broadcast, times V registers of lanes:
//
//                      V registers of Qt (or P)
//   R numbers of       [......][......][......][......]    a step: V loads, R broadcasts, R V fmas
//   K (or V):   [.]    [ sum  ][ sum  ][ sum  ][ sum  ]
//               [.]    [ sum  ][ sum  ][ sum  ][ sum  ]    4 x 4 with the 32 registers of AVX-512
//               [.]    [ sum  ][ sum  ][ sum  ][ sum  ]    and NEON, 4 x 3 with AVX2's and SSE2's
//               [.]    [ sum  ][ sum  ][ sum  ][ sum  ]    16
//
// Sums start at zero in each tile, and Ot takes a tile's sum as one number: a sum over 128k keys
// has two levels, and its rounding error grows with 64 + N / 64 rather than N.
#pragma once

#include "cpu/flash/tile/block.hpp"

namespace tilewise::cpu::flash {
inline namespace TILEWISE_ISA {

// [snippet score_rows]
/// S[r][lanes of registers From and above] = sum over c of K[r][c] Qt[c], for R keys.
template <int R, int From>
TILEWISE_INLINE void score_rows(const float* Qt, std::int64_t head_dim, Rows k, float* S, F* top) {
  constexpr int N = V - From;
  F sum[R][N];
  unroll<R>([&](auto r) TILEWISE_LAMBDA_INLINE {
    unroll<N>([&](auto v) TILEWISE_LAMBDA_INLINE { sum[r][v] = F(0.0f); });
  });
  for (std::int64_t c = 0; c < head_dim; ++c) {
    F q[N];
    unroll<N>([&](auto v)
                  TILEWISE_LAMBDA_INLINE { q[v] = load<F>(Qt + c * queries + (From + v) * L); });
    unroll<R>([&](auto r) TILEWISE_LAMBDA_INLINE {
      const F number(k.data[r * k.stride + c]);
      unroll<N>([&](auto v) TILEWISE_LAMBDA_INLINE { sum[r][v] = fma(number, q[v], sum[r][v]); });
    });
  }
  unroll<R>([&](auto r) TILEWISE_LAMBDA_INLINE {
    unroll<N>([&](auto v) TILEWISE_LAMBDA_INLINE {
      store(S + r * queries + (From + v) * L, sum[r][v]);
      top[From + v] = max(sum[r][v], top[From + v]);
    });
  });
}
// [end score_rows]

/// The first register in which a lane sees key j.
TILEWISE_INLINE int first_register(std::int64_t j, std::int64_t diagonal) {
  const std::int64_t from = j <= diagonal ? 0 : (j - diagonal) / L;
  return static_cast<int>(from < V ? from : V - 1);
}

template <int R>
TILEWISE_INLINE void score_rows_from(int from, const float* Qt, std::int64_t head_dim, Rows k,
                                     float* S, F* top) {
  unroll<V>([&](auto v) TILEWISE_LAMBDA_INLINE {
    if (from == v) score_rows<R, v>(Qt, head_dim, k, S, top);
  });
}

static void scores(const float* Qt, std::int64_t head_dim, Rows k, std::int64_t keys,
                   std::int64_t diagonal, float* S, float* top) {
  F most[V];
  unroll<V>([&](auto v) TILEWISE_LAMBDA_INLINE { most[v] = F(minus_infinity); });
  std::int64_t j = 0;
  for (; j + R <= keys; j += R)
    score_rows_from<R>(first_register(j, diagonal), Qt, head_dim, {k.data + j * k.stride, k.stride},
                       S + j * queries, most);
  for (; j < keys; ++j)
    score_rows<1, 0>(Qt, head_dim, {k.data + j * k.stride, k.stride}, S + j * queries, most);
  unroll<V>([&](auto v) TILEWISE_LAMBDA_INLINE { store(top + v * L, most[v]); });
}

/// Adds keys [begin, end) to the sums of registers From and above.
template <int R, int From>
TILEWISE_INLINE void add_values(const float* P, std::int64_t begin, std::int64_t end, Rows v,
                                F (&sum)[R][V]) {
  for (std::int64_t j = begin; j < end; ++j) {
    F p[V];
    unroll<V>([&](auto x) TILEWISE_LAMBDA_INLINE {
      if constexpr (x >= From) p[x] = load<F>(P + j * queries + x * L);
    });
    unroll<R>([&](auto r) TILEWISE_LAMBDA_INLINE {
      const F number(v.data[j * v.stride + r]);
      unroll<V>([&](auto x) TILEWISE_LAMBDA_INLINE {
        if constexpr (x >= From) sum[r][x] = fma(number, p[x], sum[r][x]);
      });
    });
  }
}

/// R rows of Ot.
template <int R>
TILEWISE_INLINE void value_rows(const float* P, std::int64_t keys, std::int64_t diagonal, Rows v,
                                const F* alpha, float* Ot) {
  F sum[R][V];
  unroll<R>([&](auto r) TILEWISE_LAMBDA_INLINE {
    unroll<V>([&](auto x) TILEWISE_LAMBDA_INLINE { sum[r][x] = F(0.0f); });
  });
  // [snippet diagonal]
  // Keys up to diagonal + L are seen in register 0, the next L in register 1 and above, ...
  std::int64_t begin = 0;
  unroll<V>([&](auto x) TILEWISE_LAMBDA_INLINE {
    const std::int64_t seen = diagonal + (x + 1) * L;
    const std::int64_t end = x == V - 1 || seen > keys ? keys : seen;
    if (begin < end) {
      add_values<R, x>(P, begin, end, v, sum);
      begin = end;
    }
  });
  // [end diagonal]
  unroll<R>([&](auto r) TILEWISE_LAMBDA_INLINE {
    unroll<V>([&](auto x) TILEWISE_LAMBDA_INLINE {
      float* const o = Ot + r * queries + x * L;
      store(o, fma(load<F>(o), alpha[x], sum[r][x]));
    });
  });
}

static void values(const float* P, std::int64_t keys, std::int64_t diagonal, Rows v,
                   std::int64_t head_dim_v, const float* alpha, float* Ot) {
  F factor[V];
  unroll<V>([&](auto x) TILEWISE_LAMBDA_INLINE { factor[x] = load<F>(alpha + x * L); });
  std::int64_t c = 0;
  for (; c + R <= head_dim_v; c += R)
    value_rows<R>(P, keys, diagonal, {v.data + c, v.stride}, factor, Ot + c * queries);
  for (; c < head_dim_v; ++c)
    value_rows<1>(P, keys, diagonal, {v.data + c, v.stride}, factor, Ot + c * queries);
}

}  // namespace TILEWISE_ISA
}  // namespace tilewise::cpu::flash
