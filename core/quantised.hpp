// Keys and values in fewer bits than they are computed in: whole numbers and the scales that turn
// them into real ones.
//
//   i8     8-bit whole numbers x; value = scale x, one float32 scale for each row (token and head)
//   q8_0   ggml's blocks: 32 numbers along a row share an f16 scale, which stands before them.
//          A tensor of q8_0 counts blocks: a row of head_dim numbers has head_dim / 32 elements.
//   e4m3, e5m2, and any other floating-point format: value = descale x, where there is one
#pragma once

#include "tensor.hpp"

#include <cmath>
#include <cstdint>
#include <cstring>

namespace tilewise {

/// One element of a q8_0 tensor: ggml's block_q8_0 (ggml-common.h).
struct BlockQ8 {
  static constexpr std::int64_t size = 32;
  std::uint16_t scale;  ///< f16
  std::int8_t x[size];
};
static_assert(sizeof(BlockQ8) == 34);

/// Numbers in one element of a tensor: 32 in q8_0, else 1.
constexpr std::int64_t numbers_in(DType dtype) {
  return dtype == DType::q8_0 ? BlockQ8::size : 1;
}

/// Number n of the row that starts at `offset` and whose elements are `stride` apart, as stored: a
/// q8_0 block's scale is multiplied in, scales that lie elsewhere are not.
inline double load_number(const TensorView& tensor, std::int64_t offset, std::int64_t stride,
                          std::int64_t n) {
  if (tensor.dtype != DType::q8_0) return load(tensor.dtype, tensor.at(offset + n * stride));
  BlockQ8 block;
  std::memcpy(&block, tensor.at(offset + n / BlockQ8::size * stride), sizeof block);
  return F16::decode(block.scale) * block.x[n % BlockQ8::size];
}

/// Rounds 32 numbers to a block: the largest becomes +-127, as ggml's quantize_row_q8_0 has it.
inline BlockQ8 quantise_block(const double* values) {
  double largest = 0;
  for (int n = 0; n < BlockQ8::size; ++n) largest = std::fmax(largest, std::fabs(values[n]));
  BlockQ8 block{static_cast<std::uint16_t>(F16::encode(largest / 127)), {}};
  for (int n = 0; n < BlockQ8::size; ++n)
    block.x[n] =
        static_cast<std::int8_t>(largest == 0 ? 0 : std::lround(values[n] * 127 / largest));
  return block;
}

}  // namespace tilewise
