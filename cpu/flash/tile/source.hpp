// Rows of K and V as they are stored, in any of three formats: a register at a time, or copied as
// floats.
#pragma once

#include "cpu/flash/tile/widen.hpp"

namespace tilewise::cpu::flash {
inline namespace TILEWISE_ISA {

/// A source's elements [at, at + L) as floats.
template <Element element>
TILEWISE_INLINE F widened(const void* row, std::int64_t at) {
  if constexpr (element == Element::f32) {
    return load<F>(static_cast<const float*>(row) + at);
  } else {
    const char* const codes = static_cast<const char*>(row) + 2 * at;
    return element == Element::f16 ? widen_f16_register(codes) : widen_bf16_register(codes);
  }
}

/// The last n < L of a row, and zeros.
template <Element element>
TILEWISE_INLINE F widened_tail(const void* row, std::int64_t at, std::int64_t n) {
  constexpr std::int64_t size = element == Element::f32 ? 4 : 2;
  alignas(64) char codes[L * size] = {};
  __builtin_memcpy(codes, static_cast<const char*>(row) + at * size,
                   static_cast<std::size_t>(n * size));
  return widened<element>(codes, 0);
}

template <Element element>
TILEWISE_INLINE const void* row_of(Source source, std::int64_t j) {
  constexpr std::int64_t size = element == Element::f32 ? 4 : 2;
  return static_cast<const char*>(source.data) + j * source.stride * size;
}

template <Element element>
TILEWISE_INLINE void read_rows_of(Source from, std::int64_t rows, std::int64_t width, bool more,
                                  float* to, std::int64_t to_row) {
  constexpr std::int64_t size = element == Element::f32 ? 4 : 2;
  for (std::int64_t r = 0; r < rows; ++r, to += to_row) {
    const void* const row = row_of<element>(from, r);
    std::int64_t c = 0;
    for (; c + L <= width; c += L) store(to + c, widened<element>(row, c));
    if (c < width) store_tail(to + c, widened_tail<element>(row, c, width - c), width - c);
    // The same row of the next tile: by the time it is wanted it will have come.
    const char* const next = static_cast<const char*>(row_of<element>(from, rows + r));
    for (std::int64_t x = 0; more && x < width * size; x += 64) __builtin_prefetch(next + x, 0, 2);
  }
}

static void read_rows(Source from, std::int64_t rows, std::int64_t width, bool more, float* to,
                      std::int64_t to_row) {
  switch (from.element) {
    case Element::f32: return read_rows_of<Element::f32>(from, rows, width, more, to, to_row);
    case Element::f16: return read_rows_of<Element::f16>(from, rows, width, more, to, to_row);
    case Element::bf16: return read_rows_of<Element::bf16>(from, rows, width, more, to, to_row);
  }
}

}  // namespace TILEWISE_ISA
}  // namespace tilewise::cpu::flash
