// An address in shared memory as PTX instructions want it: 32 bits, counted from the beginning of
// the block's window. CUDA C++ Programming Guide, "Address Space Conversion Functions"; PTX ISA,
// "cvta". The emulator's wrappers take pointers, and need none.
#pragma once

#include "cuda/device/platform.hpp"

#if !TILEWISE_EMULATED

#include <cstdint>

namespace tilewise::device::inline TILEWISE_TARGET {

__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

}  // namespace tilewise::device::inline TILEWISE_TARGET

#endif
