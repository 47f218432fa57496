// The marks of trace.hpp on a GPU: the multiprocessor's clock at which each warp began and ended
// what. In files that are compiled with TILEWISE_CLOCK_TRACE alone; tests/gpu/timeline.cu reads
// them, and tools/draw_timeline.py draws them.
//
// A mark costs its warp some forty instructions, and disturbs others as little as it can: each warp
// writes to a place of its own, counted in shared memory, with no atomic operation; and all but
// its first mark is predicated, not branched over. `clock64` is exact and the same for all warps of
// a multiprocessor; each warp's first mark in a block also notes `globaltimer`, nanoseconds of the
// whole GPU in coarse steps, by which blocks are laid beside each other. PTX ISA, "Special
// Registers".
//
// The clock is read where the mark stands, as far as instructions with effects of their own go;
// arithmetic between registers ptxas may move across it.
#pragma once

#include "core/status.hpp"
#include "cuda/device/launch.hpp"
#include "cuda/device/platform.hpp"

#include <cstdint>

namespace tilewise::device::inline TILEWISE_TARGET {

/// The first of a warp's marks says where and when: name is the globaltimer, begin the clock at
/// that time, tile the multiprocessor. In all others name is the address of the text on the device.
struct alignas(32) ClockMark {
  std::uint64_t name, begin, end;
  int tile;
};

/// Where marks go: of `blocks` blocks from `first_block` on, `warps` warps each, `marks` of a warp.
struct ClockTrace {
  ClockMark* memory = nullptr;
  unsigned first_block = 0, blocks = 0, warps = 0, marks = 0;
  unsigned launch = 0;  ///< another number each time
};

/// Nothing is traced until the host says where to.
static __constant__ ClockTrace clock_trace;

/// Kernels of this file that are launched from now on write there.
[[maybe_unused]] static Status trace_clocks(const ClockTrace& trace) {
  return status_of(cudaMemcpyToSymbol(clock_trace, &trace, sizeof trace), "where marks go");
}

namespace detail {

__device__ __forceinline__ std::uint64_t clock_now() {
  std::uint64_t now;
  asm volatile("mov.u64 %0, %%clock64;" : "=l"(now)::"memory");
  return now;
}

__device__ __forceinline__ void store_begin_if(bool really, ClockMark* to, const char* name,
                                               std::uint64_t begin, int tile) {
  asm volatile(
      "{\n"
      ".reg .pred really;\n"
      "setp.ne.b32 really, %0, 0;\n"
      "@really st.global.v2.u64 [%1], {%2, %3};\n"
      "@really st.global.s32 [%1 + 24], %4;\n"
      "}" ::"r"(really ? 1 : 0),
      "l"(to), "l"(name), "l"(begin), "r"(tile)
      : "memory");
}
__device__ __forceinline__ void store_end_if(bool really, ClockMark* to, std::uint64_t end) {
  asm volatile(
      "{\n"
      ".reg .pred really;\n"
      "setp.ne.b32 really, %0, 0;\n"
      "@really st.global.u64 [%1 + 16], %2;\n"
      "}" ::"r"(really ? 1 : 0),
      "l"(to), "l"(end)
      : "memory");
}

/// Says where and when.
__device__ __forceinline__ void store_place(ClockMark* to) {
  asm volatile(
      "{\n"
      ".reg .u64 nanoseconds, clock;\n"
      ".reg .u32 multiprocessor;\n"
      "mov.u64 nanoseconds, %%globaltimer;\n"
      "mov.u64 clock, %%clock64;\n"
      "mov.u32 multiprocessor, %%smid;\n"
      "st.global.v2.u64 [%0], {nanoseconds, clock};\n"
      "st.global.u32 [%0 + 24], multiprocessor;\n"
      "}" ::"l"(to)
      : "memory");
}

}  // namespace detail

/// A mark that was begun: a register, by which its end finds it.
class ClockSpan {
 public:
  __device__ __forceinline__ void begin(const char* name, int tile) {
    // How many marks the warp has made, with which block's and launch's they are: what an earlier
    // block left in this memory is of another.
    __shared__ volatile std::uint64_t made[32];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const unsigned mine = (clock_trace.launch << 20) + block + 1;
    const bool marks = lane == static_cast<unsigned>(__ffs(static_cast<int>(__activemask()))) - 1;
    const std::uint64_t before = made[warp];
    const bool first = static_cast<unsigned>(before >> 32) != mine;
    const unsigned number = first ? 1 : static_cast<unsigned>(before);
    if (marks) made[warp] = std::uint64_t{mine} << 32 | (number + 1);
    const unsigned traced = block - clock_trace.first_block;
    const bool writes = marks && traced < clock_trace.blocks && warp < clock_trace.warps &&
                        number < clock_trace.marks;
    const unsigned of_warp = (traced * clock_trace.warps + warp) * clock_trace.marks;
    number_ = writes ? of_warp + number : 0;
    if (writes && first) detail::store_place(clock_trace.memory + of_warp);  // the one branch
    detail::store_begin_if(writes, clock_trace.memory + number_, name, detail::clock_now(), tile);
  }

  __device__ __forceinline__ void end() {
    const std::uint64_t now = detail::clock_now();
    detail::store_end_if(number_ != 0, clock_trace.memory + number_, now);
  }

 private:
  unsigned number_ = 0;  ///< in the memory; 0, where no mark is, for none
};

}  // namespace tilewise::device::inline TILEWISE_TARGET
