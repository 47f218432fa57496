// Numbers as tensors store them, one at a time, to float: exact, but for i8 and q8_0, whose scale
// is multiplied in float. And back, rounded to nearest even.
#pragma once

#include "cuda/device/ptx/convert.hpp"
#include "cuda/kernels/sm80/general_problem.hpp"

#include <cstdint>
#include <type_traits>

namespace tilewise::cuda::sm80::inline TILEWISE_TARGET {
namespace general {

/// The f16 number of these bits.
__device__ __forceinline__ float of_f16_bits(std::uint32_t bits) {
  return device::unpack<device::f16>(bits).x;
}

/// An fp8 number of 4 bits of exponent: f16 has five, which is a factor of 2^8, and subnormal
/// numbers come out right by themselves. All ones is its only NaN.
__device__ __forceinline__ float of_e4m3_bits(std::uint32_t bits) {
  const float magnitude = of_f16_bits((bits & 0x7fu) << 7) * 256.0f;
  const float value = (bits & 0x7fu) == 0x7fu ? NAN : magnitude;
  return (bits & 0x80u) != 0 ? -value : value;
}

template <class T>
__device__ __forceinline__ T element_at(const void* data, std::int64_t offset) {
  return static_cast<const T*>(data)[offset];
}

/// Element `offset` of a tensor that does not store blocks.
__device__ __forceinline__ float read_number(const void* data, DType dtype, std::int64_t offset) {
  switch (dtype) {
    case DType::f16: return static_cast<float>(element_at<device::f16>(data, offset));
    case DType::bf16: return static_cast<float>(element_at<device::bf16>(data, offset));
    case DType::f32: return element_at<float>(data, offset);
    case DType::e4m3: return of_e4m3_bits(element_at<std::uint8_t>(data, offset));
    // Half of an f16: its upper byte.
    case DType::e5m2:
      return of_f16_bits(static_cast<std::uint32_t>(element_at<std::uint8_t>(data, offset)) << 8);
    case DType::i8: return static_cast<float>(element_at<std::int8_t>(data, offset));
    default: return NAN;
  }
}

/// Number `column` of the row that begins at element `offset`. An element of q8_0 is 34 bytes, an
/// f16 scale and 32 numbers: core/quantised.hpp.
__device__ __forceinline__ float read_column(const Tensor& tensor, std::int64_t offset,
                                             int column) {
  if (tensor.dtype != DType::q8_0)
    return read_number(tensor.data, tensor.dtype, offset + column * tensor.column);
  const char* const block =
      static_cast<const char*>(tensor.data) + (offset + column / 32 * tensor.column) * 34;
  return static_cast<float>(element_at<device::f16>(block, 0)) *
         static_cast<float>(element_at<std::int8_t>(block + 2, column % 32));
}

/// To f32, f16 or bf16.
__device__ __forceinline__ void write_number(void* data, DType dtype, std::int64_t offset,
                                             float value) {
  if (dtype == DType::f32)
    static_cast<float*>(data)[offset] = value;
  else if (dtype == DType::f16)
    static_cast<device::f16*>(data)[offset] = __float2half_rn(value);
  else
    static_cast<device::bf16*>(data)[offset] = __float2bfloat16_rn(value);
}

}  // namespace general
}  // namespace tilewise::cuda::sm80::inline TILEWISE_TARGET
