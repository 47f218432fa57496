// The memory meter: how much memory one call needs beside its inputs and outputs, measured.
//
//   heap        peak of malloc's live bytes above the level at the start, all threads together
//   mapped      the same for mmap
//   stack       depth of the calling thread's stack, by painting it first
//   workspace   bytes of the 64-byte lines of the given scratch memory that the call changed
//
// Heap and mapped memory are seen by interposing malloc and mmap, which a library must not force on
// every program that links it. The interposing functions are therefore a target of their own:
// an executable that wants to measure links tilewise::memory_hooks too (memory_hooks.cpp); in one
// that does not, measure_memory answers "not measured" and says what to link.
#pragma once

#include "verdict.hpp"

#include <cstddef>
#include <cstdint>
#include <functional>

namespace tilewise::harness {

/// Runs `call` twice on a thread of its own: once to warm up (thread pools, lazily bound symbols,
/// caches that stay), once measured. `workspace` may be null; its contents are lost.
///
/// Both runs share the thread because an OpenMP pool belongs to the thread that opened the parallel
/// region (libgomp keeps it in thread-local storage): on a second thread the measured run would pay
/// for a second pool.
///
/// What is not seen: the stacks of threads that the call starts (the C library maps them behind
/// mmap's public name, and OpenMP's workers keep theirs), memory from brk or raw system calls, and
/// device memory. What is counted too: whatever other threads of the process allocate meanwhile.
/// One measurement runs at a time. If `measured` is false, `why` says why and `call` may not have
/// run.
MemoryReport measure_memory(void* workspace, std::size_t workspace_bytes,
                            const std::function<void()>& call);

/// What the interposing functions offer the meter.
struct MemoryHooks {
  struct Peaks {
    std::int64_t heap = 0, mapped = 0;  ///< bytes above the level at `start`, never negative
  };
  const char* unavailable;  ///< null, or why nothing is interposed in this build
  void (*start)();
  Peaks (*stop)();
};

/// Called by memory_hooks.cpp as the program starts. `hooks` must outlive the program's last
/// measurement.
void register_memory_hooks(const MemoryHooks& hooks);

/// Null where measure_memory can measure, else why it cannot.
const char* memory_meter_unavailable();

}  // namespace tilewise::harness
