// A ring of buffers between who fills them and who empties them: for each stage an mbarrier that
// says "full" and one that says "empty".
//
//     producer                                  consumer
//       wait until the stage is empty             wait until the stage is full
//       announce the bytes, start the copies      compute with it
//       next stage                                say that it is empty, next stage
//
// Both walk the ring on their own, a Cursor each; stage and parity are all that either knows. At
// the beginning no stage is full, and all count as empty: a wait for the phase before the first
// returns at once, which is why the producer's parity is the consumer's turned over.
#pragma once

#include "cuda/device/platform.hpp"
#include "cuda/device/ptx/mbarrier.hpp"
#include "cuda/device/warp.hpp"

namespace tilewise::device::inline TILEWISE_TARGET {

template <int Stages>
struct Cursor {
  int stage = 0;
  unsigned parity = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == Stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

/// In shared memory.
template <int Stages>
struct Pipeline {
  Mbarrier full[Stages], empty[Stages];

  /// By one thread, before mbarrier_fence_init() and the block's meeting. `consumers`: how many say
  /// that a stage is empty.
  __device__ __forceinline__ void init(int consumers, Site site = Site::current()) {
    for (int n = 0; n < Stages; ++n) {
      mbarrier_init(full[n], 1, site);
      mbarrier_init(empty[n], consumers, site);
    }
  }
  /// The producer's side: the stage to fill, with as many bytes; its barrier, for the copies.
  __device__ __forceinline__ Mbarrier& begin_fill(const Cursor<Stages>& at, int bytes,
                                                  Site site = Site::current()) {
    mbarrier_wait(empty[at.stage], at.parity ^ 1, site);
    mbarrier_arrive_expect(full[at.stage], bytes, site);
    return full[at.stage];
  }
  __device__ __forceinline__ void wait_full(const Cursor<Stages>& at, Site site = Site::current()) {
    mbarrier_wait(full[at.stage], at.parity, site);
  }
  /// One arrival for the calling warp: all of its lanes are done with the stage.
  __device__ __forceinline__ void release(const Cursor<Stages>& at, Site site = Site::current()) {
    release_barrier(empty[at.stage], site);
  }
  static __device__ __forceinline__ void release_barrier(Mbarrier& barrier,
                                                         Site site = Site::current()) {
    __syncwarp();
    if (lane_index() == 0) mbarrier_arrive(barrier, site);
  }
};

}  // namespace tilewise::device::inline TILEWISE_TARGET
