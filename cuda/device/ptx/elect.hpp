// elect.sync: one lane of a warp, whichever the hardware picks, always the same. PTX ISA, "elect";
// sm_90. Written `if (elect_one())` a branch is taken by one lane and the compiler knows so.
#pragma once

#include "cuda/device/platform.hpp"

#include <cstdint>

namespace tilewise::device::inline TILEWISE_TARGET {

/// True in one lane. The whole warp calls it.
__device__ __forceinline__ bool elect_one([[maybe_unused]] Site site = Site::current()) {
#if TILEWISE_EMULATED
  return emulator::elect_one(site);
#else
  std::uint32_t chosen;
  asm volatile(
      "{\n"
      ".reg .pred chosen;\n"
      "elect.sync _|chosen, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, chosen;\n"
      "}"
      : "=r"(chosen));
  return chosen != 0;
#endif
}

}  // namespace tilewise::device::inline TILEWISE_TARGET
