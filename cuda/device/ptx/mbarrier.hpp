// mbarrier: a barrier that lies in shared memory, and that counts arrivals of threads and bytes of
// asynchronous copies alike. PTX ISA, "Parallel Synchronization and Communication Instructions:
// mbarrier"; sm_90 for what is used here.
//
// It goes through phases. A phase is over when as many arrivals as it was made for have come and
// as many bytes as were announced have been copied; the next one begins by itself. Whoever waits
// names the phase by its parity: 0 for the first, 1 for the second, 0 again. A wait for parity 1 on
// a barrier that has just been made returns at once, since the phase before the first counts as
// over; by this a producer finds all stages of a new ring empty (pipeline.hpp).
#pragma once

#include "cuda/device/platform.hpp"
#include "cuda/device/ptx/shared_address.hpp"

#include <cstdint>

namespace tilewise::device::inline TILEWISE_TARGET {

/// In shared memory; its bits are the hardware's.
struct alignas(8) Mbarrier {
  std::uint64_t bits;
};

/// A phase is over after `arrivals`. One thread does this once, then mbarrier_fence_init(), and the
/// block meets before anybody uses it.
__device__ __forceinline__ void mbarrier_init(Mbarrier& barrier, int arrivals,
                                              [[maybe_unused]] Site site = Site::current()) {
#if TILEWISE_EMULATED
  emulator::mbarrier_init(&barrier, arrivals, site);
#else
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)),
               "r"(arrivals)
               : "memory");
#endif
}

/// The copy engine sees barriers made by this thread.
__device__ __forceinline__ void mbarrier_fence_init([[maybe_unused]] Site site = Site::current()) {
#if TILEWISE_EMULATED
  emulator::mbarrier_fence_init(site);
#else
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

/// One arrival. What this thread did to memory before is seen by who waits for the phase.
__device__ __forceinline__ void mbarrier_arrive(Mbarrier& barrier,
                                                [[maybe_unused]] Site site = Site::current()) {
#if TILEWISE_EMULATED
  emulator::mbarrier_arrive(&barrier, 0, site);
#else
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier))
               : "memory");
#endif
}

/// One arrival, and the phase is not over before `bytes` more have been copied.
__device__ __forceinline__ void mbarrier_arrive_expect(
    Mbarrier& barrier, int bytes, [[maybe_unused]] Site site = Site::current()) {
#if TILEWISE_EMULATED
  emulator::mbarrier_arrive(&barrier, bytes, site);
#else
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)),
      "r"(bytes)
      : "memory");
#endif
}

/// Whether the phase of this parity is over; the hardware may let the thread sleep for a while
/// before it says no.
__device__ __forceinline__ bool mbarrier_try_wait(Mbarrier& barrier, unsigned parity,
                                                  [[maybe_unused]] Site site = Site::current()) {
#if TILEWISE_EMULATED
  return emulator::mbarrier_try_wait(&barrier, parity, site);
#else
  std::uint32_t over;
  asm volatile(
      "{\n"
      ".reg .pred over;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
      "selp.u32 %0, 1, 0, over;\n"
      "}"
      : "=r"(over)
      : "r"(shared_address(&barrier)), "r"(parity)
      : "memory");
  return over != 0;
#endif
}

/// Until the phase of this parity is over.
__device__ __forceinline__ void mbarrier_wait(Mbarrier& barrier, unsigned parity,
                                              [[maybe_unused]] Site site = Site::current()) {
#if TILEWISE_EMULATED
  emulator::mbarrier_wait(&barrier, parity, site);
#else
  while (!mbarrier_try_wait(barrier, parity)) {
  }
#endif
}

}  // namespace tilewise::device::inline TILEWISE_TARGET
