// One kernel source, two targets: the GPU, compiled by nvcc, and the emulator, compiled by any C++
// compiler (cuda/emulator/). What depends on the target is behind the headers of this folder.
//
// Everything here lies in an inline namespace named after the target, and so must kernels: a
// program may hold both, and two functions of one name would be one for the linker.
#pragma once

#if defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define TILEWISE_EMULATED 0
#define TILEWISE_TARGET gpu
/// Before a loop over registers: an array stays in registers only if its indices are constants.
#define TILEWISE_UNROLL _Pragma("unroll")

namespace tilewise::device::inline gpu {

/// Where a call stands: nothing on the GPU, where nobody asks.
struct Site {
  static __host__ __device__ constexpr Site current() { return {}; }
};

}  // namespace tilewise::device::inline gpu

#else

#include "cuda/emulator/cuda.hpp"

#define TILEWISE_EMULATED 1
#define TILEWISE_TARGET emulated
#define TILEWISE_UNROLL

namespace tilewise::device::inline emulated {

using emulator::Site;

}  // namespace tilewise::device::inline emulated

#endif

namespace tilewise::device::inline TILEWISE_TARGET {

using f16 = __half;
using bf16 = __nv_bfloat16;

}  // namespace tilewise::device::inline TILEWISE_TARGET
