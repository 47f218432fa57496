// Shared memory: on-chip memory of a block, up to 227 KiB of it on an H100 (CUDA C++ Programming
// Guide, "Shared Memory"). A kernel names all of its own as one struct, and asks for it once.
#pragma once

#include "cuda/device/platform.hpp"

namespace tilewise::device::inline TILEWISE_TARGET {

/// The block's dynamic shared memory as a `Layout`: launch with sizeof(Layout) bytes. Nothing is
/// constructed, and nothing is zero.
template <class Layout>
__device__ __forceinline__ Layout& shared_memory([[maybe_unused]] Site site = Site::current()) {
  static_assert(alignof(Layout) <= 1024, "no instruction wants more");
#if TILEWISE_EMULATED
  return *static_cast<Layout*>(emulator::shared_memory(sizeof(Layout), site));
#else
  extern __shared__ __align__(1024) unsigned char tilewise_dynamic_shared_memory[];
  return *reinterpret_cast<Layout*>(tilewise_dynamic_shared_memory);
#endif
}

}  // namespace tilewise::device::inline TILEWISE_TARGET
