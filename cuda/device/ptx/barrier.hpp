// Named barriers: a block has 16, numbered 0 to 15, and __syncthreads() is number 0. A part of the
// block meets at one; or some only arrive and go on, and others wait for them, which is how one
// warp hands data to another. PTX ISA, "barrier" (bar.sync, bar.arrive).
//
// `threads` counts all who come, those who wait and those who only arrive: a multiple of 32, since
// a warp comes as a whole.
#pragma once

#include "cuda/device/platform.hpp"

namespace tilewise::device::inline TILEWISE_TARGET {

/// Waits until `threads` have come. What they did to memory before is then seen.
__device__ __forceinline__ void barrier_sync(int id, int threads,
                                             [[maybe_unused]] Site site = Site::current()) {
#if TILEWISE_EMULATED
  emulator::barrier(static_cast<unsigned>(id), threads, true, site);
#else
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}

/// Says that this thread has come, and goes on.
__device__ __forceinline__ void barrier_arrive(int id, int threads,
                                               [[maybe_unused]] Site site = Site::current()) {
#if TILEWISE_EMULATED
  emulator::barrier(static_cast<unsigned>(id), threads, false, site);
#else
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}

}  // namespace tilewise::device::inline TILEWISE_TARGET
