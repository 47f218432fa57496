// A thread's place: its warp, and its lane there. And what the four lanes of a quad, which share
// the rows of an mma fragment, make of their numbers together by shuffles: from register to
// register within a warp. CUDA C++ Programming Guide, "Warp Shuffle Functions". Blocks are
// one-dimensional.
#pragma once

#include "cuda/device/platform.hpp"

namespace tilewise::device::inline TILEWISE_TARGET {

__device__ __forceinline__ int lane_index() {
  return static_cast<int>(threadIdx.x % 32u);
}
__device__ __forceinline__ int warp_index() {
  return static_cast<int>(threadIdx.x / 32u);
}

// Lanes 4 g to 4 g + 3 exchange with their neighbour, then with the pair beside: two steps, after
// which all four have the same. In the same order for each of the four: the same bits, too.

__device__ __forceinline__ float quad_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(~0u, value, 1));
  return fmaxf(value, __shfl_xor_sync(~0u, value, 2));
}
__device__ __forceinline__ float quad_sum(float value) {
  value += __shfl_xor_sync(~0u, value, 1);
  return value + __shfl_xor_sync(~0u, value, 2);
}

}  // namespace tilewise::device::inline TILEWISE_TARGET
