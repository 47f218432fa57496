// Floats as operands of the tensor cores: two 16-bit numbers in a register, or one of tf32. PTX
// ISA, "cvt": cvt.rn.f16x2.f32 and cvt.rn.bf16x2.f32 (to nearest, ties to even), cvt.rna.tf32.f32
// (ties away from zero); what is too large for f16 becomes infinity.
#pragma once

#include "cuda/device/platform.hpp"

#include <cstdint>
#include <type_traits>

namespace tilewise::device::inline TILEWISE_TARGET {

/// `low` is the number in the lower 16 bits: the one of the lower address, and of the lower column
/// or row of a fragment.
template <class T>
__device__ __forceinline__ std::uint32_t pack(float low, float high) {
  static_assert(std::is_same_v<T, f16> || std::is_same_v<T, bf16>, "formats of 16 bits");
#if TILEWISE_EMULATED
  if constexpr (std::is_same_v<T, f16>)
    return emulator::f16_of_float(low) | std::uint32_t{emulator::f16_of_float(high)} << 16;
  else
    return emulator::bf16_of_float(low) | std::uint32_t{emulator::bf16_of_float(high)} << 16;
#else
  // CUDA's functions are the instruction from sm_80 on, and the same result before.
  if constexpr (std::is_same_v<T, f16>) {
    const __half2 both = __floats2half2_rn(low, high);
    return reinterpret_cast<const std::uint32_t&>(both);
  } else {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<const std::uint32_t&>(both);
  }
#endif
}

/// The two numbers, x the lower one: exact.
template <class T>
__device__ __forceinline__ float2 unpack(std::uint32_t both) {
  static_assert(std::is_same_v<T, f16> || std::is_same_v<T, bf16>, "formats of 16 bits");
  if constexpr (std::is_same_v<T, bf16>) {
    return make_float2(__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u));
  } else {
#if TILEWISE_EMULATED
    return make_float2(emulator::float_of_f16(static_cast<std::uint16_t>(both)),
                       emulator::float_of_f16(static_cast<std::uint16_t>(both >> 16)));
#else
    return __half22float2(reinterpret_cast<const __half2&>(both));
#endif
  }
}

/// The nearest number of 8 bits of exponent and 10 behind the point, as a float's bits.
__device__ __forceinline__ std::uint32_t to_tf32(float value) {
#if TILEWISE_EMULATED
  return emulator::tf32_of_float(value);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  return __float_as_uint(value);  // no tensor core takes it
#else
  std::uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
#endif
}

}  // namespace tilewise::device::inline TILEWISE_TARGET
