// Who loads, computes and stores which tile when: marks in a kernel, drawn by the tour's report.
//
// Under the emulator a mark's time is its warp's own count of instructions. On the GPU these marks
// are nothing: a kernel that is timed does nothing else.
#pragma once

#include "cuda/device/platform.hpp"

namespace tilewise::device::inline TILEWISE_TARGET {

/// From here to the end of its scope the calling warp does `name` with tile `tile`.
class Trace {
 public:
  __device__ __forceinline__ Trace([[maybe_unused]] const char* name, [[maybe_unused]] int tile) {
#if TILEWISE_EMULATED
    emulator::trace_begin(name, tile);
#endif
  }
  __device__ __forceinline__ ~Trace() {
#if TILEWISE_EMULATED
    emulator::trace_end();
#endif
  }
  Trace(const Trace&) = delete;
  Trace& operator=(const Trace&) = delete;
};

}  // namespace tilewise::device::inline TILEWISE_TARGET
