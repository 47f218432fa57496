// The two ways to shared memory. Ordinary loads and stores are one ("generic proxy"); the copy
// engine and wgmma go another ("async proxy"), past what orders the first. PTX ISA, "Memory
// Consistency Model: Proxies" and "membar, fence: fence.proxy.async".
//
// So what threads have stored is shown to wgmma or to a TMA store like this: every thread that
// stored fences, then they meet, then one issues. (The other way round, a completed mbarrier phase
// or a wait for wgmma is enough.)
#pragma once

#include "cuda/device/platform.hpp"

namespace tilewise::device::inline TILEWISE_TARGET {

/// What this thread has stored in shared memory is there for asynchronous readers that come to
/// know of it.
__device__ __forceinline__ void fence_proxy_async([[maybe_unused]] Site site = Site::current()) {
#if TILEWISE_EMULATED
  emulator::fence_proxy_async(site);
#else
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

}  // namespace tilewise::device::inline TILEWISE_TARGET
