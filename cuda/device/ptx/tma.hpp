// The copy engine (TMA): one thread asks for a whole box of a tensor, and the engine computes the
// addresses, swizzles, and fills with zeros what lies outside. PTX ISA, "cp.async.bulk.tensor",
// "cp.reduce.async.bulk.tensor", "cp.async.bulk"; sm_90.
//
// Loads announce themselves to an mbarrier: the thread first arrives there with the number of bytes
// (mbarrier_arrive_expect: of the whole box, what is outside included), and the engine counts them
// down. Stores go by groups, as cp.async does: commit, then wait until the source may be
// overwritten (tma_wait_read) or until memory has it (tma_wait).
//
// Which tensor, which box, which swizzle is in a TensorMap (tensor_map.hpp), a kernel's parameter.
// Coordinates are in elements, the innermost dimension first; a box may begin anywhere, also
// outside.
#pragma once

#include "cuda/device/platform.hpp"
#include "cuda/device/ptx/mbarrier.hpp"
#include "cuda/device/ptx/shared_address.hpp"
#include "cuda/device/tensor_map.hpp"

#include <cstdint>

namespace tilewise::device::inline TILEWISE_TARGET {

/// Fetches the description before it is needed.
__device__ __forceinline__ void tma_prefetch(const TensorMap& map) {
#if TILEWISE_EMULATED
  static_cast<void>(map);
#else
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
#endif
}

/// The box at `at` of the tensor comes to `to`; its bytes count for the barrier's phase.
template <int Dimensions>
__device__ __forceinline__ void tma_load(void* to, const TensorMap& map,
                                         const int (&at)[Dimensions], Mbarrier& full,
                                         [[maybe_unused]] Site site = Site::current()) {
  static_assert(Dimensions >= 2 && Dimensions <= 5, "of a tensor map");
#if TILEWISE_EMULATED
  emulator::tma_load(to, &map, at, Dimensions, &full, site);
#else
  const std::uint32_t place = shared_address(to), barrier = shared_address(&full);
  if constexpr (Dimensions == 2)
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4}], [%2];" ::"r"(place),
        "l"(&map), "r"(barrier), "r"(at[0]), "r"(at[1])
        : "memory");
  else if constexpr (Dimensions == 3)
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(place),
        "l"(&map), "r"(barrier), "r"(at[0]), "r"(at[1]), "r"(at[2])
        : "memory");
  else if constexpr (Dimensions == 4)
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(place),
        "l"(&map), "r"(barrier), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3])
        : "memory");
  else
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(place),
        "l"(&map), "r"(barrier), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4])
        : "memory");
#endif
}

/// The box in shared memory goes to the tensor; what lies outside is dropped.
template <int Dimensions>
__device__ __forceinline__ void tma_store(const TensorMap& map, const int (&at)[Dimensions],
                                          const void* from,
                                          [[maybe_unused]] Site site = Site::current()) {
  static_assert(Dimensions >= 2 && Dimensions <= 5, "of a tensor map");
#if TILEWISE_EMULATED
  emulator::tma_store(&map, at, Dimensions, from, false, site);
#else
  const std::uint32_t place = shared_address(from);
  if constexpr (Dimensions == 2)
    asm volatile(
        "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(
            &map),
        "r"(place), "r"(at[0]), "r"(at[1])
        : "memory");
  else if constexpr (Dimensions == 3)
    asm volatile(
        "cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], "
        "[%1];" ::"l"(&map),
        "r"(place), "r"(at[0]), "r"(at[1]), "r"(at[2])
        : "memory");
  else if constexpr (Dimensions == 4)
    asm volatile(
        "cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], "
        "[%1];" ::"l"(&map),
        "r"(place), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3])
        : "memory");
  else
    asm volatile(
        "cp.async.bulk.tensor.5d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5, %6}], "
        "[%1];" ::"l"(&map),
        "r"(place), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4])
        : "memory");
#endif
}

/// `bytes`, a multiple of 16, of neighbouring memory; both at multiples of 16.
__device__ __forceinline__ void bulk_load(void* to, const void* from, int bytes, Mbarrier& full,
                                          [[maybe_unused]] Site site = Site::current()) {
#if TILEWISE_EMULATED
  emulator::bulk_load(to, from, bytes, &full, site);
#else
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
      "[%3];" ::"r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(&full))
      : "memory");
#endif
}

/// The other way.
__device__ __forceinline__ void bulk_store(void* to, const void* from, int bytes,
                                           [[maybe_unused]] Site site = Site::current()) {
#if TILEWISE_EMULATED
  emulator::bulk_store(to, from, bytes, false, site);
#else
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to),
               "r"(shared_address(from)), "r"(bytes)
               : "memory");
#endif
}

/// Adds floats to what is there, in the second-level cache, each sum rounded by itself.
__device__ __forceinline__ void bulk_reduce_add(float* to, const float* from, int bytes,
                                                [[maybe_unused]] Site site = Site::current()) {
#if TILEWISE_EMULATED
  emulator::bulk_store(to, from, bytes, true, site);
#else
  asm volatile(
      "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to),
      "r"(shared_address(from)), "r"(bytes)
      : "memory");
#endif
}

/// The thread's stores since the last commit are a group.
__device__ __forceinline__ void tma_commit([[maybe_unused]] Site site = Site::current()) {
#if TILEWISE_EMULATED
  emulator::tma_commit(site);
#else
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#endif
}

/// Until at most the `Groups` youngest of the thread's groups have still to read their source.
template <int Groups>
__device__ __forceinline__ void tma_wait_read([[maybe_unused]] Site site = Site::current()) {
#if TILEWISE_EMULATED
  emulator::tma_wait(Groups, true, site);
#else
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(Groups) : "memory");
#endif
}

/// Until memory has all but the `Groups` youngest of them.
template <int Groups>
__device__ __forceinline__ void tma_wait([[maybe_unused]] Site site = Site::current()) {
#if TILEWISE_EMULATED
  emulator::tma_wait(Groups, false, site);
#else
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(Groups) : "memory");
#endif
}

}  // namespace tilewise::device::inline TILEWISE_TARGET
