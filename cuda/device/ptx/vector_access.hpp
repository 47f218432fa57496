// Loads and stores of 4, 8 and 16 bytes at once, of global or shared memory, at multiples of as
// many: 16 bytes a lane is the widest request that a warp can make. PTX ISA, "ld" and "st" (.v2,
// .v4); CUDA C++ Programming Guide, "Device Memory Accesses".
//
// By these names and not through a pointer to float4, because the emulator would see such an access
// as several narrow ones; and because a pointer to float4 may not look at an array of f16.
#pragma once

#include "cuda/device/platform.hpp"

#include <cstddef>
#include <cstring>
#include <type_traits>

namespace tilewise::device::inline TILEWISE_TARGET {

namespace detail {

template <class Vector>
constexpr bool is_vector = std::is_trivially_copyable_v<Vector> &&
                           (sizeof(Vector) == 4 || sizeof(Vector) == 8 || sizeof(Vector) == 16);

#if TILEWISE_EMULATED
/// The bytes alone: the emulator has been told of the access, and is not to see it again.
template <std::size_t Bytes>
[[gnu::noinline, gnu::no_sanitize_thread]] void copy_unseen(void* to, const void* from) {
  std::memcpy(to, from, Bytes);
}
#endif

}  // namespace detail

/// A Vector (float2, float4, uint4, uint32_t ...) of what lies at `from`, whatever its type there.
template <class Vector>
__device__ __forceinline__ Vector load_vector(const void* from,
                                              [[maybe_unused]] Site site = Site::current()) {
  static_assert(detail::is_vector<Vector>, "4, 8 or 16 bytes");
#if TILEWISE_EMULATED
  Vector vector;
  emulator::note_read(from, sizeof(Vector), site);
  detail::copy_unseen<sizeof(Vector)>(&vector, from);
  return vector;
#else
  return *static_cast<const Vector*>(from);
#endif
}

template <class Vector>
__device__ __forceinline__ void store_vector(void* to, const Vector& vector,
                                             [[maybe_unused]] Site site = Site::current()) {
  static_assert(detail::is_vector<Vector>, "4, 8 or 16 bytes");
#if TILEWISE_EMULATED
  emulator::note_write(to, sizeof(Vector), site);
  detail::copy_unseen<sizeof(Vector)>(to, &vector);
#else
  *static_cast<Vector*>(to) = vector;
#endif
}

/// Zeros, and nothing is read, if not `inside`: rows behind a tensor's end.
template <class Vector>
__device__ __forceinline__ Vector load_vector_if(bool inside, const void* from,
                                                 [[maybe_unused]] Site site = Site::current()) {
  return inside ? load_vector<Vector>(from, site) : Vector{};
}

template <class Vector>
__device__ __forceinline__ void store_vector_if(bool inside, void* to, const Vector& vector,
                                                [[maybe_unused]] Site site = Site::current()) {
  if (inside) store_vector(to, vector, site);
}

}  // namespace tilewise::device::inline TILEWISE_TARGET
