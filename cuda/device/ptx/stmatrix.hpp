// stmatrix: the way back of ldmatrix. A warp stores four 8x8 matrices of 16-bit numbers, spread
// over its lanes as products leave them, to rows in shared memory. PTX ISA, "stmatrix"; sm_90.
//
// Lane 8 i + r brings the address of row r of matrix i, 16 bytes at a multiple of 16.
#pragma once

#include "cuda/device/platform.hpp"
#include "cuda/device/ptx/shared_address.hpp"

#include <cstdint>

namespace tilewise::device::inline TILEWISE_TARGET {

__device__ __forceinline__ void stmatrix(void* row, const std::uint32_t (&from)[4],
                                         [[maybe_unused]] Site site = Site::current()) {
#if TILEWISE_EMULATED
  emulator::store_matrices(row, from, 4, site);
#else
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
      "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
      : "memory");
#endif
}

}  // namespace tilewise::device::inline TILEWISE_TARGET
