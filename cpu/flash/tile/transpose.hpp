// Between rows of queries, as tensors have them, and lanes, as blocks do.
#pragma once

#include "cpu/flash/tile/block.hpp"

namespace tilewise::cpu::flash {
inline namespace TILEWISE_ISA {

/// to[c][r] = from[r][c] factor[r or c], in squares of registers; rows of `from` past `rows` count
/// as zero, up to `room` (a multiple of L) of them. What is left of the columns goes one by one.
template <class Write>
TILEWISE_INLINE void transpose(Rows from, std::int64_t rows, std::int64_t room,
                               std::int64_t columns, const Write& write) {
  const std::int64_t whole = columns / L * L;
  for (std::int64_t r = 0; r < room; r += L)
    for (std::int64_t c = 0; c < whole; c += L) {
      F square[F::size];
      for (int i = 0; i < L; ++i)
        square[i] = r + i < rows ? load<F>(from.data + (r + i) * from.stride + c) : F(0.0f);
      simd::TILEWISE_ISA::transpose(square);
      for (int i = 0; i < L; ++i) write(c + i, r, square[i]);
    }
  for (std::int64_t c = whole; c < columns; ++c)
    for (std::int64_t r = 0; r < room; r += L) {
      float column[F::size];
      for (int i = 0; i < L; ++i)
        column[i] = r + i < rows ? from.data[(r + i) * from.stride + c] : 0.0f;
      write(c, r, load<F>(column));
    }
}

static void pack_queries(Rows q, std::int64_t count, std::int64_t head_dim, float* Qt) {
  transpose(q, count, queries, head_dim,
            [&](std::int64_t c, std::int64_t r, const F& lanes)
                TILEWISE_LAMBDA_INLINE { store(Qt + c * queries + r, lanes); });
}

static void unpack(const float* Ot, const float* l, std::int64_t count, std::int64_t head_dim_v,
                   float* o, std::int64_t stride) {
  float inverse[queries];
  for (std::int64_t r = 0; r < queries; r += L) store(inverse + r, F(1.0f) / load<F>(l + r));
  // Rows of Ot are numbers of O, and its columns rows.
  const std::int64_t room = (head_dim_v + L - 1) / L * L;
  transpose({Ot, queries}, head_dim_v, room, queries,
            [&](std::int64_t r, std::int64_t c, const F& numbers) TILEWISE_LAMBDA_INLINE {
              if (r >= count) return;
              const F scaled = numbers * F(inverse[r]);
              if (c + L <= head_dim_v)
                store(o + r * stride + c, scaled);
              else
                store_tail(o + r * stride + c, scaled, head_dim_v - c);
            });
}

static void to_rows(const float* S, std::int64_t keys, float* rows, std::int64_t row) {
  // Rows have room for 64 keys: what is past `keys` is zero.
  const std::int64_t room = (keys + L - 1) / L * L;
  transpose({S, queries}, keys, room, queries,
            [&](std::int64_t r, std::int64_t j, const F& scores)
                TILEWISE_LAMBDA_INLINE { store(rows + r * row + j, scores); });
}

static void from_rows(const float* rows, std::int64_t row, std::int64_t keys, float* S,
                      float* top) {
  transpose({rows, row}, queries, queries, keys,
            [&](std::int64_t j, std::int64_t r, const F& lanes)
                TILEWISE_LAMBDA_INLINE { store(S + j * queries + r, lanes); });
  for (int v = 0; v < V; ++v) {
    F most(minus_infinity);
    for (std::int64_t j = 0; j < keys; ++j) most = max(load<F>(S + j * queries + v * L), most);
    store(top + v * L, most);
  }
}

static bool finite(Rows rows, std::int64_t count, std::int64_t width) {
  F sum[4] = {F(0.0f), F(0.0f), F(0.0f), F(0.0f)};  // of zeros, unless a number is not
  for (std::int64_t r = 0; r < count; ++r) {
    const float* const row = rows.data + r * rows.stride;
    std::int64_t c = 0;
    for (; c + 4 * L <= width; c += 4 * L)
      unroll<4>([&](auto n) TILEWISE_LAMBDA_INLINE {
        sum[n] = fma(load<F>(row + c + n * L), F(0.0f), sum[n]);
      });
    for (; c + L <= width; c += L) sum[0] = fma(load<F>(row + c), F(0.0f), sum[0]);
    if (c < width) sum[0] = fma(load_tail<F>(row + c, width - c), F(0.0f), sum[0]);
  }
  return simd::TILEWISE_ISA::reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3])) == 0;
}

}  // namespace TILEWISE_ISA
}  // namespace tilewise::cpu::flash
