// Between rows of queries, as tensors have them, and lanes, as blocks do.
#pragma once

#include "cpu/flash/tile/block.hpp"

namespace tilewise::cpu::flash {
inline namespace TILEWISE_ISA {

/// to[c][r] = from[r][c]: squares of 4 x 4, which a compiler turns into shuffles, and what is left.
TILEWISE_INLINE void transpose(const float* from, std::int64_t from_row, std::int64_t rows,
                               std::int64_t columns, float* to, std::int64_t to_row) {
  const std::int64_t whole_rows = rows / 4 * 4, whole_columns = columns / 4 * 4;
  for (std::int64_t c = 0; c < whole_columns; c += 4)
    for (std::int64_t r = 0; r < whole_rows; r += 4) {
      float square[4][4];
      for (int y = 0; y < 4; ++y)
        for (int x = 0; x < 4; ++x) square[x][y] = from[(r + y) * from_row + c + x];
      for (int x = 0; x < 4; ++x)
        for (int y = 0; y < 4; ++y) to[(c + x) * to_row + r + y] = square[x][y];
    }
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = r < whole_rows ? whole_columns : 0; c < columns; ++c)
      to[c * to_row + r] = from[r * from_row + c];
}

void pack_queries(Rows q, std::int64_t count, std::int64_t head_dim, float* Qt) {
  transpose(q.data, q.stride, count, head_dim, Qt, queries);
  for (std::int64_t c = 0; c < head_dim && count < queries; ++c)
    for (std::int64_t r = count; r < queries; ++r) Qt[c * queries + r] = 0;
}

void unpack(const float* Ot, const float* l, std::int64_t count, std::int64_t head_dim_v, float* o,
            std::int64_t stride) {
  transpose(Ot, queries, head_dim_v, count, o, stride);
  for (std::int64_t r = 0; r < count; ++r)
    for (std::int64_t c = 0; c < head_dim_v; ++c) o[r * stride + c] /= l[r];
}

void to_rows(const float* S, std::int64_t keys, float* rows, std::int64_t row) {
  transpose(S, queries, keys, queries, rows, row);
}

void from_rows(const float* rows, std::int64_t row, std::int64_t keys, float* S, float* top) {
  transpose(rows, row, queries, keys, S, queries);
  for (int v = 0; v < V; ++v) {
    F most(minus_infinity);
    for (std::int64_t j = 0; j < keys; ++j) most = max(load<F>(S + j * queries + v * L), most);
    store(top + v * L, most);
  }
}

bool finite(Rows rows, std::int64_t count, std::int64_t width) {
  float sum = 0;  // of zeros, unless one of them is not
  for (std::int64_t r = 0; r < count; ++r)
    for (std::int64_t c = 0; c < width; ++c) sum += 0 * rows.data[r * rows.stride + c];
  return sum == 0;
}

}  // namespace TILEWISE_ISA
}  // namespace tilewise::cpu::flash
