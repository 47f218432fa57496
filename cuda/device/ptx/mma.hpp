// mma.sync: a warp multiplies two small matrices on the tensor cores, D = A B + D, operands and
// result spread over its lanes' registers (fragment.hpp has the maps). PTX ISA, "Warp-level matrix
// instructions: mma"; the shapes used here are m16n8k16 and m16n8k8.
//
// Products of 16-bit numbers are exact in float; their sum is kept in a float, of which a tensor
// core truncates low bits, so that it agrees with other sums within a bound and not to the bit.
#pragma once

#include "cuda/device/platform.hpp"

#include <cstdint>
#include <type_traits>

namespace tilewise::device::inline TILEWISE_TARGET {

/// d, 16x8 of float, += a, 16x16 of T, times b, 16x8 of T. T: f16 (sm_75 and later, there as two
/// m16n8k8, which is what that processor has) or bf16 (sm_80 and later).
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4],
                                             const std::uint32_t (&b)[2],
                                             [[maybe_unused]] Site site = Site::current()) {
  static_assert(std::is_same_v<T, f16> || std::is_same_v<T, bf16>, "the formats of this shape");
#if TILEWISE_EMULATED
  constexpr auto operand =
      std::is_same_v<T, f16> ? emulator::Operand::f16 : emulator::Operand::bf16;
  emulator::multiply_accumulate(d, a, b, d, operand, site);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  if constexpr (std::is_same_v<T, f16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b[0]));
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[2]), "r"(a[3]), "r"(b[1]));
  } else {
    __trap();  // no tensor core for bf16: the host does not launch this here
  }
#else
  if constexpr (std::is_same_v<T, f16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

/// d, 16x8, += a, 16x8, times b, 8x8, of tf32: float with 10 bits behind the point, as to_tf32()
/// makes it. Of other floats the tensor core drops the low 13 bits. sm_80 and later.
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const std::uint32_t (&a)[4],
                                                 const std::uint32_t (&b)[2],
                                                 [[maybe_unused]] Site site = Site::current()) {
#if TILEWISE_EMULATED
  emulator::multiply_accumulate(d, a, b, d, emulator::Operand::tf32, site);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  __trap();  // no tensor core for tf32: the host does not launch this here
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

}  // namespace tilewise::device::inline TILEWISE_TARGET
