// The same three steps for few queries, when a block of lanes would stay almost empty: here the
// lanes are numbers of a row of K or V. Each row is read, and widened, once for up to four queries;
// with few queries it is memory that limits, and these queries are all that a row is read for.
//
//   dots         S[r][j] = q[r] . k[j]: a register tile of queries times keys; lanes are added up
//                at its end, sixteen sums (eight with 16 registers) at a time
//   weigh        P, m, l, alpha of each query, as in softmax.hpp
//   add_values   O[r] = alpha[r] O[r] + sum over j of P[r][j] v[j]: queries times registers of v
//
// A sum's order does not depend on how many queries there are: whoever shares a row of K gets the
// same bits as alone.
#pragma once

#include "cpu/flash/tile/softmax.hpp"
#include "cpu/flash/tile/source.hpp"

namespace tilewise::cpu::flash {
inline namespace TILEWISE_ISA {

constexpr int sums = V == 4 ? 16 : 8;  ///< registers of them, a multiple of L

/// Asks for a row's numbers [at, at + n) some rows before they are wanted: memory is what limits,
/// and its own prefetcher starts anew with each tile of K or V. What is past the end is asked in
/// vain.
template <Element element>
TILEWISE_INLINE void ask_for(Source source, std::int64_t j, std::int64_t at, std::int64_t n) {
  constexpr std::int64_t ahead = 64, size = element == Element::f32 ? 4 : 2;
  const char* const row = static_cast<const char*>(row_of<element>(source, j + ahead)) + at * size;
  for (std::int64_t x = 0; x < n * size; x += 64) __builtin_prefetch(row + x, 0, 2);
}

/// Rq queries times J keys, of which the first `count` are there: the last of them stands in for
/// the others.
template <Element element, int Rq, int J>
TILEWISE_INLINE void dot_tile(Rows q, std::int64_t head_dim, Source k, std::int64_t count, float* S,
                              std::int64_t S_row) {
  static_assert(Rq * J == sums);
  const void* row[J];
  unroll<J>([&](auto j) TILEWISE_LAMBDA_INLINE {
    row[j] = row_of<element>(k, j < count ? static_cast<std::int64_t>(j) : count - 1);
  });
  F sum[sums];
  unroll<sums>([&](auto n) TILEWISE_LAMBDA_INLINE { sum[n] = F(0.0f); });
  const auto add = [&](const auto& query_of, const auto& key_of) TILEWISE_LAMBDA_INLINE {
    F key[J];
    unroll<J>([&](auto j) TILEWISE_LAMBDA_INLINE { key[j] = key_of(row[j]); });
    unroll<Rq>([&](auto r) TILEWISE_LAMBDA_INLINE {
      const F query = query_of(q.data + r * q.stride);
      unroll<J>([&](auto j) TILEWISE_LAMBDA_INLINE {
        sum[r * J + j] = fma(query, key[j], sum[r * J + j]);
      });
    });
  };
  std::int64_t c = 0;
  for (; c + L <= head_dim; c += L)
    add([&](const float* at) TILEWISE_LAMBDA_INLINE { return load<F>(at + c); },
        [&](const void* at) TILEWISE_LAMBDA_INLINE { return widened<element>(at, c); });
  if (const std::int64_t n = head_dim - c; n > 0)
    add([&](const float* at) TILEWISE_LAMBDA_INLINE { return load_tail<F>(at + c, n); },
        [&](const void* at) TILEWISE_LAMBDA_INLINE { return widened_tail<element>(at, c, n); });
  float total[sums];
  unroll<sums / L>([&](auto n) TILEWISE_LAMBDA_INLINE {
    store(total + n * L, simd::TILEWISE_ISA::add_lanes(sum + n * L));
  });
  for (int r = 0; r < Rq; ++r)
    if (count == J)
      __builtin_memcpy(S + r * S_row, total + r * J, J * sizeof(float));
    else
      for (std::int64_t j = 0; j < count; ++j) S[r * S_row + j] = total[r * J + j];
}

template <Element element, int Rq>
TILEWISE_INLINE void dot_rows(Rows q, std::int64_t head_dim, Source k, std::int64_t keys, float* S,
                              std::int64_t S_row) {
  constexpr int J = sums / Rq;
  for (std::int64_t j = 0; j < keys; j += J) {
    for (int n = 0; n < J; ++n) ask_for<element>(k, j + n, 0, head_dim);
    const std::int64_t count = keys - j < J ? keys - j : J;
    dot_tile<element, Rq, J>(q, head_dim, {row_of<element>(k, j), k.stride, element}, count, S + j,
                             S_row);
  }
}

template <Element element>
TILEWISE_INLINE void dots_of(Rows q, std::int64_t rows, std::int64_t head_dim, Source k,
                             std::int64_t keys, float* S, std::int64_t S_row) {
  std::int64_t r = 0;
  for (; r + 4 <= rows; r += 4)
    dot_rows<element, 4>({q.data + r * q.stride, q.stride}, head_dim, k, keys, S + r * S_row,
                         S_row);
  for (; r < rows; ++r)
    dot_rows<element, 1>({q.data + r * q.stride, q.stride}, head_dim, k, keys, S + r * S_row,
                         S_row);
}

static void dots(Rows q, std::int64_t rows, std::int64_t head_dim, Source k, std::int64_t keys,
                 float* S, std::int64_t S_row) {
  switch (k.element) {
    case Element::f32: return dots_of<Element::f32>(q, rows, head_dim, k, keys, S, S_row);
    case Element::f16: return dots_of<Element::f16>(q, rows, head_dim, k, keys, S, S_row);
    case Element::bf16: return dots_of<Element::bf16>(q, rows, head_dim, k, keys, S, S_row);
  }
}

static void weigh(float* S, std::int64_t S_row, std::int64_t rows, std::int64_t keys,
                  const Softmax& softmax) {
  using simd::TILEWISE_ISA::exp2_of_nonpositive;
  const std::int64_t whole = (keys + L - 1) / L * L;
  for (std::int64_t r = 0; r < rows; ++r) {
    float* const s = S + r * S_row;
    for (std::int64_t j = keys; j < whole; ++j) s[j] = minus_infinity;
    F most(minus_infinity);
    for (std::int64_t j = 0; j < whole; j += L) most = max(load<F>(s + j), most);
    const float top = simd::TILEWISE_ISA::reduce_max(most), before = softmax.m[r];
    const float m = top > before ? top : before;
    const float shift = m == minus_infinity ? 0 : m;
    const F factor(softmax.factor);
    F sum(0.0f);
    for (std::int64_t j = 0; j < whole; j += L) {
      const F p = exp2_of_nonpositive((load<F>(s + j) - F(shift)) * factor);
      sum = sum + p;
      store(s + j, p);
    }
    float alpha[L];
    store(alpha, exp2_of_nonpositive(F(before - shift) * factor));
    softmax.l[r] = softmax.l[r] * alpha[0] + simd::TILEWISE_ISA::reduce_add(sum);
    softmax.m[r] = m;
    softmax.alpha[r] = alpha[0];
  }
}

// [snippet value_tile]
/// Rq queries, C registers of each one's O.
template <Element element, int Rq, int C>
TILEWISE_INLINE void value_tile(const float* P, std::int64_t P_row, std::int64_t keys, Source v,
                                std::int64_t c, const float* alpha, float* O, std::int64_t O_row) {
  F sum[Rq][C];
  unroll<Rq>([&](auto r) TILEWISE_LAMBDA_INLINE {
    unroll<C>([&](auto x) TILEWISE_LAMBDA_INLINE { sum[r][x] = F(0.0f); });
  });
  for (std::int64_t j = 0; j < keys; ++j) {
    const void* const row = row_of<element>(v, j);
    ask_for<element>(v, j, c, C * L);
    F value[C];
    unroll<C>([&](auto x) TILEWISE_LAMBDA_INLINE { value[x] = widened<element>(row, c + x * L); });
    unroll<Rq>([&](auto r) TILEWISE_LAMBDA_INLINE {
      const F p(P[r * P_row + j]);
      unroll<C>([&](auto x) TILEWISE_LAMBDA_INLINE { sum[r][x] = fma(p, value[x], sum[r][x]); });
    });
  }
  unroll<Rq>([&](auto r) TILEWISE_LAMBDA_INLINE {
    unroll<C>([&](auto x) TILEWISE_LAMBDA_INLINE {
      float* const o = O + r * O_row + c + x * L;
      store(o, fma(load<F>(o), F(alpha[r]), sum[r][x]));
    });
  });
}
// [end value_tile]

template <Element element, int Rq>
TILEWISE_INLINE void value_rows_of(const float* P, std::int64_t P_row, std::int64_t keys, Source v,
                                   std::int64_t head_dim_v, const float* alpha, float* O,
                                   std::int64_t O_row) {
  constexpr int C = sums / Rq < 4 ? sums / Rq : 4;
  std::int64_t c = 0;
  for (; c + C * L <= head_dim_v; c += C * L)
    value_tile<element, Rq, C>(P, P_row, keys, v, c, alpha, O, O_row);
  for (; c + L <= head_dim_v; c += L)
    value_tile<element, Rq, 1>(P, P_row, keys, v, c, alpha, O, O_row);
  const std::int64_t n = head_dim_v - c;
  if (n == 0) return;
  F sum[Rq];
  unroll<Rq>([&](auto r) TILEWISE_LAMBDA_INLINE { sum[r] = F(0.0f); });
  for (std::int64_t j = 0; j < keys; ++j) {
    const F value = widened_tail<element>(row_of<element>(v, j), c, n);
    unroll<Rq>([&](auto r)
                   TILEWISE_LAMBDA_INLINE { sum[r] = fma(F(P[r * P_row + j]), value, sum[r]); });
  }
  unroll<Rq>([&](auto r) TILEWISE_LAMBDA_INLINE {
    float* const o = O + r * O_row + c;
    store_tail(o, fma(load_tail<F>(o, n), F(alpha[r]), sum[r]), n);
  });
}

template <Element element>
TILEWISE_INLINE void add_values_of(const float* P, std::int64_t P_row, std::int64_t rows,
                                   std::int64_t keys, Source v, std::int64_t head_dim_v,
                                   const float* alpha, float* O, std::int64_t O_row) {
  std::int64_t r = 0;
  for (; r + 4 <= rows; r += 4)
    value_rows_of<element, 4>(P + r * P_row, P_row, keys, v, head_dim_v, alpha + r, O + r * O_row,
                              O_row);
  for (; r < rows; ++r)
    value_rows_of<element, 1>(P + r * P_row, P_row, keys, v, head_dim_v, alpha + r, O + r * O_row,
                              O_row);
}

static void add_values(const float* P, std::int64_t P_row, std::int64_t rows, std::int64_t keys,
                       Source v, std::int64_t head_dim_v, const float* alpha, float* O,
                       std::int64_t O_row) {
  switch (v.element) {
    case Element::f32:
      return add_values_of<Element::f32>(P, P_row, rows, keys, v, head_dim_v, alpha, O, O_row);
    case Element::f16:
      return add_values_of<Element::f16>(P, P_row, rows, keys, v, head_dim_v, alpha, O, O_row);
    case Element::bf16:
      return add_values_of<Element::bf16>(P, P_row, rows, keys, v, head_dim_v, alpha, O, O_row);
  }
}

}  // namespace TILEWISE_ISA
}  // namespace tilewise::cpu::flash
