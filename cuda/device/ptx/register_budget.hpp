// setmaxnreg: a warpgroup hands registers back or asks for more, while it runs. A kernel is
// launched with as many for every thread; a producer that only issues copies needs few, and who
// keeps accumulators needs all it can get. PTX ISA, "setmaxnreg"; sm_90a.
//
//     launched:   3 warpgroups x 128 threads x 168 registers   = 64512 of the 65536
//     afterwards: producer 24, two consumers 240 each: 504 x 128 = 64512
//
// All warps of a warpgroup say the same number, a multiple of 8 from 24 to 256. Asking waits until
// there are as many.
#pragma once

#include "cuda/device/platform.hpp"

namespace tilewise::device::inline TILEWISE_TARGET {

template <int Registers>
__device__ __forceinline__ void keep_registers([[maybe_unused]] Site site = Site::current()) {
  static_assert(Registers >= 24 && Registers <= 256 && Registers % 8 == 0, "setmaxnreg's range");
#if TILEWISE_EMULATED
  emulator::set_registers(Registers, false, site);
#else
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
#endif
}

template <int Registers>
__device__ __forceinline__ void ask_for_registers([[maybe_unused]] Site site = Site::current()) {
  static_assert(Registers >= 24 && Registers <= 256 && Registers % 8 == 0, "setmaxnreg's range");
#if TILEWISE_EMULATED
  emulator::set_registers(Registers, true, site);
#else
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
#endif
}

}  // namespace tilewise::device::inline TILEWISE_TARGET
