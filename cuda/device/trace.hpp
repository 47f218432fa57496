// Who loads, computes and stores which tile when: marks in a kernel, drawn by the tour's report.
//
// Under the emulator a mark's time is its warp's own count of instructions. On the GPU these marks
// are nothing: a kernel that is timed does nothing else. But a file that is compiled with
// TILEWISE_CLOCK_TRACE has clocks there (clock_trace.hpp), for tests/gpu/timeline.cu to draw.
//
// One lane of a warp marks for all of it: under the emulator lane 0, on the GPU the first that
// comes.
#pragma once

#include "cuda/device/platform.hpp"

#if !TILEWISE_EMULATED && defined(TILEWISE_CLOCK_TRACE)
#include "cuda/device/clock_trace.hpp"
#endif

namespace tilewise::device::inline TILEWISE_TARGET {

/// What begins at one place and ends at another: a wgmma is issued here, and waited for there.
class TraceSpan {
 public:
  __device__ __forceinline__ void begin([[maybe_unused]] const char* name,
                                        [[maybe_unused]] int tile) {
#if TILEWISE_EMULATED
    name_ = name;
    tile_ = tile;
    emulator::trace_begin(name, tile);
#elif defined(TILEWISE_CLOCK_TRACE)
    mark_.begin(name, tile);
#endif
  }
  __device__ __forceinline__ void end() {
#if TILEWISE_EMULATED
    emulator::trace_end(name_, tile_);
#elif defined(TILEWISE_CLOCK_TRACE)
    mark_.end();
#endif
  }

#if TILEWISE_EMULATED
 private:
  const char* name_ = "";
  int tile_ = 0;
#elif defined(TILEWISE_CLOCK_TRACE)
 private:
  ClockSpan mark_;
#endif
};

/// From here to the end of its scope the calling warp does `name` with tile `tile`.
class Trace {
 public:
  __device__ __forceinline__ Trace(const char* name, int tile) { span_.begin(name, tile); }
  __device__ __forceinline__ ~Trace() { span_.end(); }
  Trace(const Trace&) = delete;
  Trace& operator=(const Trace&) = delete;

 private:
  TraceSpan span_;
};

/// A point in time: `name` happens.
__device__ __forceinline__ void trace_point(const char* name, int tile) {
  TraceSpan point;
  point.begin(name, tile);
  point.end();
}

}  // namespace tilewise::device::inline TILEWISE_TARGET
