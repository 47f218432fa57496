// 2 to the x on the special function unit: 16 results a clock and multiprocessor, where there are
// 64 or 128 multiply-adds (CUDA C++ Programming Guide, "Arithmetic Instructions"), which is why
// attention kernels count their exponentials. PTX ISA, "ex2": a relative error of about 2^-22;
// .ftz makes subnormal numbers zero, before and after.
#pragma once

#include "cuda/device/platform.hpp"

namespace tilewise::device::inline TILEWISE_TARGET {

/// exp2(-inf) is 0, exp2(NaN) is NaN.
__device__ __forceinline__ float exp2_approx(float x) {
#if TILEWISE_EMULATED
  emulator::count_special_function();
  const float result = std::exp2(x);
  return result < 0x1p-126f ? 0.0f : result;
#else
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#endif
}

}  // namespace tilewise::device::inline TILEWISE_TARGET
