// What the emulator does for the wrappers of Hopper's instructions in cuda/device/ptx. Called by a
// running thread only, but for describe_tensor, which is the host's.
#pragma once

#include "core/status.hpp"
#include "cuda/emulator/site.hpp"
#include "cuda/emulator/warp_instructions.hpp"

#include <cstddef>
#include <cstdint>

namespace tilewise::emulator {

/// Where in the block's window of shared memory, as descriptors count it; a finding for others.
std::uint32_t shared_offset(const void* pointer, Site site);

void mbarrier_init(void* barrier, int arrivals, Site site);
void mbarrier_fence_init(Site site);
void mbarrier_arrive(void* barrier, int announced_bytes, Site site);
bool mbarrier_try_wait(void* barrier, unsigned parity, Site site);
void mbarrier_wait(void* barrier, unsigned parity, Site site);

/// What this thread stored in shared memory may be read by the asynchronous proxy from here on.
void fence_proxy_async(Site site);

Status describe_tensor(void* map, const void* memory, std::size_t element, int dimensions,
                       const std::uint64_t (&size)[5], const std::uint64_t (&stride)[4],
                       const std::uint32_t (&box)[5], int swizzle);
void tma_load(void* to, const void* map, const int* at, int dimensions, void* full, Site site);
void tma_store(const void* map, const int* at, int dimensions, const void* from, bool add,
               Site site);
void bulk_load(void* to, const void* from, int bytes, void* full, Site site);
void bulk_store(void* to, const void* from, int bytes, bool add, Site site);
void tma_commit(Site site);
void tma_wait(int groups_that_may_stay, bool only_the_source, Site site);

/// `a`: registers, or null and a descriptor. `columns` of d, of which a thread has half as many.
void wgmma(float* d, int columns, const std::uint32_t* a, std::uint64_t a_descriptor,
           std::uint64_t b_descriptor, bool b_has_rows_of_n, bool keep, Operand operand, Site site);
void wgmma_fence(Site site);
void wgmma_commit(Site site);
void wgmma_wait(int groups_that_may_stay, Site site);

bool elect_one(Site site);
void set_registers(int registers, bool more, Site site);
void store_matrices(void* row, const std::uint32_t* registers, int matrices, Site site);

}  // namespace tilewise::emulator
