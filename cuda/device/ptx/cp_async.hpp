// cp.async: copies from global to shared memory that run on while the thread goes on. PTX ISA,
// "Data Movement and Conversion Instructions: cp.async"; sm_80 and later.
//
// A thread issues copies, closes them into a group (commit) and later waits until all but its N
// youngest groups have arrived. Waiting shows a thread its own copies only: a barrier shows it the
// others'. On sm_75 the copy is an ordinary one, done at once, and groups mean nothing.
#pragma once

#include "cuda/device/platform.hpp"
#include "cuda/device/ptx/shared_address.hpp"

#include <cstdint>

namespace tilewise::device::inline TILEWISE_TARGET {

/// 4, 8 or 16 bytes, at multiples of as many; zeros if not `inside`, and nothing is read then.
/// 16 bytes pass by the L1 cache (.cg), where nobody would look for them again; fewer cannot.
template <int Bytes>
__device__ __forceinline__ void cp_async(void* to_shared, const void* from_global,
                                         bool inside = true,
                                         [[maybe_unused]] Site site = Site::current()) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "what the instruction has");
#if TILEWISE_EMULATED
  emulator::copy_async(to_shared, from_global, Bytes, inside ? Bytes : 0, site);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  struct alignas(Bytes) Words {
    std::uint32_t word[Bytes / 4];
  };
  *static_cast<Words*>(to_shared) = inside ? *static_cast<const Words*>(from_global) : Words{};
#else
  // The operand after the size says how many bytes are read; the others become zero.
  const std::uint32_t to = shared_address(to_shared);
  const int read = inside ? Bytes : 0;
  if constexpr (Bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(to), "l"(from_global), "r"(read)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                 :
                 : "r"(to), "l"(from_global), "n"(Bytes), "r"(read)
                 : "memory");
#endif
}

/// The thread's copies since the last commit are a group; an empty group is one, too.
__device__ __forceinline__ void cp_async_commit() {
#if TILEWISE_EMULATED
  emulator::commit_async_copies();
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/// Until at most the `Groups` youngest of the thread's groups are still under way.
template <int Groups>
__device__ __forceinline__ void cp_async_wait() {
#if TILEWISE_EMULATED
  emulator::wait_for_async_copies(Groups);
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(Groups) : "memory");
#endif
}

}  // namespace tilewise::device::inline TILEWISE_TARGET
