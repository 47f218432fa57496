// An address in shared memory as PTX instructions want it: 32 bits, counted from the beginning of
// the block's window. CUDA C++ Programming Guide, "Address Space Conversion Functions"; PTX ISA,
// "cvta". Of the emulator's wrappers most take pointers; a matrix descriptor has such an address.
#pragma once

#include "cuda/device/platform.hpp"

#include <cstdint>

namespace tilewise::device::inline TILEWISE_TARGET {

__device__ __forceinline__ std::uint32_t shared_address(
    const void* pointer, [[maybe_unused]] Site site = Site::current()) {
#if TILEWISE_EMULATED
  return emulator::shared_offset(pointer, site);
#else
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
#endif
}

}  // namespace tilewise::device::inline TILEWISE_TARGET
