// Barriers of a block: missing, in the wrong place, or not everybody's.
#include "cuda/device/ptx/barrier.hpp"
#include "cuda/device/shared.hpp"
#include "on_device.hpp"

namespace tilewise::tests::inline TILEWISE_TARGET {
namespace {

constexpr int threads = 64;

std::vector<float> reversed(int count) {
  std::vector<float> values = counted(static_cast<std::size_t>(count));
  return {values.rbegin(), values.rend()};
}

// ------------------------------------------------------------------------------------------------

template <bool buggy>
__global__ void before_read(const float* in, float* out) {
  __shared__ float tile[threads];
  const unsigned t = threadIdx.x;
  tile[t] = in[t];  // meets: barrier_before_read
  if (!buggy) __syncthreads();
  out[t] = tile[threads - 1 - t];  // bug: barrier_before_read
}

Ran run_before_read(bool buggy) {
  return run("before_read", buggy ? before_read<true> : before_read<false>, {{1}, {threads}},
             counted(threads), reversed(threads));
}

// A tile is loaded while others still read the one before.
template <bool buggy>
__global__ void before_overwrite(const float* in, float* out) {
  __shared__ float tile[threads];
  const unsigned t = threadIdx.x;
  float sum = 0;
  for (unsigned n = 0; n < 2; ++n) {
    tile[t] = in[n * threads + t];  // bug: barrier_before_overwrite
    __syncthreads();
    sum += tile[threads - 1 - t];  // meets: barrier_before_overwrite
    if (!buggy) __syncthreads();
  }
  out[t] = sum;
}

Ran run_before_overwrite(bool buggy) {
  std::vector<float> expected = reversed(threads);
  for (float& value : expected) value += value + threads;
  return run("before_overwrite", buggy ? before_overwrite<true> : before_overwrite<false>,
             {{1}, {threads}}, counted(2 * threads), expected);
}

// One number that all have read, replaced by one of them.
template <bool buggy>
__global__ void broadcast(const float* in, float* out) {
  __shared__ float shared;
  const unsigned t = threadIdx.x;
  if (t == 0) shared = in[0];
  __syncthreads();
  const float first = shared;  // meets: barrier_after_broadcast
  if (!buggy) __syncthreads();
  if (t == 40) shared = in[1];  // bug: barrier_after_broadcast
  __syncthreads();
  out[t] = 2 * first + shared;
}

Ran run_broadcast(bool buggy) {
  return run("broadcast", buggy ? broadcast<true> : broadcast<false>, {{1}, {threads}}, counted(2),
             std::vector<float>(threads, 4));
}

// ------------------------------------------------------------------------------------------------

template <bool buggy>
__global__ void two_barriers(const float* in, float* out) {
  __shared__ float tile[threads];
  const unsigned t = threadIdx.x;
  tile[t] = in[t];
  if (!buggy) {
    __syncthreads();
  } else if (t < 32) {
    __syncthreads();  // bug: divergent_barrier
  } else {
    __syncthreads();  // meets: divergent_barrier
  }
  out[t] = tile[threads - 1 - t];
}

Ran run_two_barriers(bool buggy) {
  return run("two_barriers", buggy ? two_barriers<true> : two_barriers<false>, {{1}, {threads}},
             counted(threads), reversed(threads));
}

// The guard of the tail is in front of the barrier.
template <bool buggy>
__global__ void early_return(const float* in, float* out, unsigned count) {
  __shared__ float tile[threads];
  const unsigned t = threadIdx.x;
  if (buggy && t >= count) return;
  if (t < count) tile[t] = in[t];
  __syncthreads();  // bug: early_return
  if (t < count) out[t] = tile[count - 1 - t];
}

Ran run_early_return(bool buggy) {
  return run("early_return", buggy ? early_return<true> : early_return<false>, {{1}, {threads}},
             counted(50), reversed(50), 50u);
}

// A warp does one more round than the other.
template <bool buggy>
__global__ void uneven_rounds(const float* in, float* out) {
  __shared__ float tile[threads];
  const unsigned t = threadIdx.x;
  const unsigned rounds = buggy && t < 32 ? 3 : 2;
  float sum = 0;
  for (unsigned n = 0; n < rounds; ++n) {
    tile[t] = in[t];
    __syncthreads();  // bug: uneven_rounds
    sum += tile[threads - 1 - t];
    __syncthreads();
  }
  out[t] = sum;
}

Ran run_uneven_rounds(bool buggy) {
  std::vector<float> expected = reversed(threads);
  for (float& value : expected) value *= 2;
  return run("uneven_rounds", buggy ? uneven_rounds<true> : uneven_rounds<false>, {{1}, {threads}},
             counted(threads), expected);
}

// ------------------------------------------------------------------------------------------------

// Each warp waits for the other one, at different barriers.
template <bool buggy>
__global__ void crossed(const float* in, float* out) {
  __shared__ float tile[threads];
  const unsigned t = threadIdx.x;
  tile[t] = in[t];
  if (buggy && t >= 32) {
    device::barrier_sync(2, threads);  // meets: crossed_barriers
    device::barrier_sync(1, threads);
  } else {
    device::barrier_sync(1, threads);  // bug: crossed_barriers
    device::barrier_sync(2, threads);
  }
  out[t] = tile[threads - 1 - t];
}

Ran run_crossed(bool buggy) {
  return run("crossed", buggy ? crossed<true> : crossed<false>, {{1}, {threads}}, counted(threads),
             reversed(threads));
}

// The producer goes on without saying that the tile is there.
template <bool buggy>
__global__ void no_arrival(const float* in, float* out) {
  __shared__ float tile[32];
  const unsigned t = threadIdx.x;
  if (t < 32) {
    tile[t] = in[t];
    if (!buggy) device::barrier_arrive(1, threads);
  } else {
    device::barrier_sync(1, threads);  // bug: no_arrival
    out[t - 32] = tile[63 - t];
  }
}

Ran run_no_arrival(bool buggy) {
  return run("no_arrival", buggy ? no_arrival<true> : no_arrival<false>, {{1}, {threads}},
             counted(32), reversed(32));
}

// Two tiles through one buffer: for the second, the loader only says that it has come to where the
// buffer is free, and does not wait for the others to be done with it.
template <bool buggy>
__global__ void full_and_empty(const float* in, float* out) {
  __shared__ float tile[32];
  const unsigned t = threadIdx.x;
  constexpr int full = 1, empty = 2;
  float first = 0;
  if (t < 32) {
    tile[t] = in[t];
    device::barrier_arrive(full, threads);
    if (buggy)
      device::barrier_arrive(empty, threads);
    else
      device::barrier_sync(empty, threads);
    tile[t] = in[32 + t];  // bug: arrives_only
  } else {
    device::barrier_sync(full, threads);
    first = tile[63 - t];  // meets: arrives_only
    if (buggy)
      device::barrier_sync(empty, threads);
    else
      device::barrier_arrive(empty, threads);
  }
  __syncthreads();
  if (t >= 32) out[t - 32] = first + tile[63 - t];
}

Ran run_full_and_empty(bool buggy) {
  std::vector<float> expected = reversed(32);
  for (float& value : expected) value += value + 32;
  return run("full_and_empty", buggy ? full_and_empty<true> : full_and_empty<false>,
             {{1}, {threads}}, counted(64), expected);
}

template <int count>
__global__ void of_count(const float* in, float* out) {
  __shared__ float tile[threads];
  const unsigned t = threadIdx.x;
  tile[t] = in[t];
  device::barrier_sync(1, count);  // bug: barrier_of_48
  out[t] = tile[threads - 1 - t];
}

Ran run_of_48(bool buggy) {
  return run("of_48", buggy ? of_count<48> : of_count<threads>, {{1}, {threads}}, counted(threads),
             reversed(threads));
}

// The warps do not agree on how many will come.
template <bool buggy>
__global__ void two_counts(const float* in, float* out) {
  __shared__ float tile[96];
  const unsigned t = threadIdx.x;
  tile[t] = in[t];
  if (t < 32) {
    device::barrier_sync(1, buggy ? 64 : 96);  // bug: barrier_of_two_counts
  } else {
    device::barrier_sync(1, 96);  // meets: barrier_of_two_counts
  }
  out[t] = tile[95 - t];
}

Ran run_two_counts(bool buggy) {
  return run("two_counts", buggy ? two_counts<true> : two_counts<false>, {{1}, {96}}, counted(96),
             reversed(96));
}

}  // namespace
}  // namespace tilewise::tests::inline TILEWISE_TARGET

namespace tilewise::tests {

std::vector<Planted> barrier_bugs() {
  using emulator::Kind;
  const char* const file = "barriers.cu";
  return {
      {"barrier_before_read", file, Kind::race, run_before_read},
      {"barrier_before_overwrite", file, Kind::race, run_before_overwrite},
      {"barrier_after_broadcast", file, Kind::race, run_broadcast},
      {"divergent_barrier", file, Kind::divergent_barrier, run_two_barriers},
      {"early_return", file, Kind::deadlock, run_early_return},
      {"uneven_rounds", file, Kind::deadlock, run_uneven_rounds},
      {"crossed_barriers", file, Kind::deadlock, run_crossed},
      {"no_arrival", file, Kind::deadlock, run_no_arrival},
      {"arrives_only", file, Kind::race, run_full_and_empty},
      {"barrier_of_48", file, Kind::bad_instruction, run_of_48},
      {"barrier_of_two_counts", file, Kind::bad_instruction, run_two_counts},
  };
}

}  // namespace tilewise::tests
