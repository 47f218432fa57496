// Between tensors, in any dtype and with any strides, and tiles in the type computed in. A tile is
// converted once, when it is read; outputs are rounded once, when they are written.
#pragma once

#include "core/quantised.hpp"
#include "cpu/portable/head.hpp"
#include "cpu/portable/tile.hpp"

#include <cstdint>

namespace tilewise::cpu::portable {

/// n numbers as they are stored, in elements `stride` apart, from `offset` on. In q8_0 an element
/// is 32 of them and their scale, which is multiplied in; n is a multiple of 32.
template <class Real>
void read_numbers(const TensorView& tensor, std::int64_t offset, std::int64_t stride,
                  std::int64_t n, Real* to);
/// The same way back, to any dtype but q8_0.
template <class Real>
void write_numbers(const TensorView& tensor, std::int64_t offset, std::int64_t stride,
                   std::int64_t n, const Real* from);

/// Rows `span` of sequence b, head h, with zeros behind each up to the tile's stride.
template <class Real>
void read_tile(const Sequences& sequences, const TensorView& tensor, std::int64_t b, std::int64_t h,
               Span span, const Tile<Real>& tile) {
  const std::int64_t width = tensor.shape[tensor.ndim - 1] * numbers_in(tensor.dtype);
  for (std::int64_t r = 0; r < span.count; ++r) {
    read_numbers(tensor, sequences.offset(tensor, b, span.first + r, h),
                 tensor.strides[tensor.ndim - 1], width, tile.row(r));
    for (std::int64_t c = width; c < tile.stride; ++c) tile.row(r)[c] = 0;
  }
}

template <class Real>
void write_tile(const Sequences& sequences, const TensorView& tensor, std::int64_t b,
                std::int64_t h, Span span, const Tile<Real>& tile) {
  for (std::int64_t r = 0; r < span.count; ++r)
    write_numbers(tensor, sequences.offset(tensor, b, span.first + r, h),
                  tensor.strides[tensor.ndim - 1], tensor.shape[tensor.ndim - 1], tile.row(r));
}

/// Adds up the columns of some rows of a tile, and the sums to `sums`: two levels, as products.
template <class Real>
void add_rows(const Tile<Real>& tile, std::int64_t rows, std::int64_t columns, Real* sums) {
  for (std::int64_t c = 0; c < columns; ++c) {
    Real sum = 0;
    for (std::int64_t r = 0; r < rows; ++r) sum += tile.row(r)[c];
    sums[c] += sum;
  }
}

}  // namespace tilewise::cpu::portable
