// Additions to global memory whose result nobody asks for: red, which the second-level cache
// carries out. PTX ISA, "Parallel Synchronization and Communication Instructions: red"; four floats
// of a lane at once (.v4.f32) from sm_90 on.
//
// A warp's request should be of whole lines of 128 bytes. So the order in which a warp's sums lie
// is the instruction's, and whoever reads them asks load_sums().
#pragma once

#include "cuda/device/platform.hpp"
#include "cuda/device/ptx/vector_access.hpp"
#include "cuda/device/warp.hpp"

namespace tilewise::device::inline TILEWISE_TARGET {

/// Adds each lane's four numbers to the warp's 128 sums, which begin at a multiple of 16 bytes.
__device__ __forceinline__ void reduce_add(float* sums, const float (&value)[4],
                                           [[maybe_unused]] Site site = Site::current()) {
  const int lane = lane_index();
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(sums + 4 * lane), "f"(value[0]), "f"(value[1]), "f"(value[2]), "f"(value[3])
               : "memory");
#else
  TILEWISE_UNROLL
  for (int number = 0; number < 4; ++number) {
    float* const at = sums + 32 * number + lane;
#if TILEWISE_EMULATED
    atomicAdd(at, value[number], site);
#else
    atomicAdd(at, value[number]);
#endif
  }
#endif
}

/// What each lane has added there, and others to the same.
__device__ __forceinline__ void load_sums(float (&value)[4], const float* sums,
                                          [[maybe_unused]] Site site = Site::current()) {
  const int lane = lane_index();
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  const float4 all = load_vector<float4>(sums + 4 * lane);
  value[0] = all.x;
  value[1] = all.y;
  value[2] = all.z;
  value[3] = all.w;
#else
  TILEWISE_UNROLL
  for (int number = 0; number < 4; ++number)
    value[number] = load_vector<float>(sums + 32 * number + lane, site);
#endif
}

}  // namespace tilewise::device::inline TILEWISE_TARGET
