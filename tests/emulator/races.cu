// Blocks, and threads of one, that share global memory.
#include "on_device.hpp"

namespace tilewise::tests::inline TILEWISE_TARGET {
namespace {

constexpr unsigned threads = 64;

template <class T>
T first_of(const Memory<T>& memory) {
  return downloaded(memory).front();
}

// ------------------------------------------------------------------------------------------------

template <bool buggy>
__global__ void blocks_write(const float* in, float* out) {
  const unsigned n = blockIdx.x * blockDim.x + threadIdx.x;
  out[buggy ? threadIdx.x : n] = in[n];  // bug: blocks_write_one_element
}

Ran run_blocks_write(bool buggy) {
  return run("blocks_write", buggy ? blocks_write<true> : blocks_write<false>, {{4}, {threads}},
             counted(4 * threads), counted(4 * threads));
}

// A sum over blocks.
template <bool buggy>
__global__ void sum_of_blocks(const int* in, int* sum) {
  const int value = in[blockIdx.x * blockDim.x + threadIdx.x];
  if (buggy)
    *sum += value;  // bug: sum_without_atomics
  else
    atomicAdd(sum, value);
}

Ran run_sum_of_blocks(bool buggy) {
  Memory<int> in, sum;
  Ran ran;
  ran.status = uploaded(in, counted<int>(4 * threads), "in");
  if (ran.status.ok()) ran.status = uploaded(sum, {0}, "sum");
  if (ran.status.ok())
    ran.status = device::launch("sum_of_blocks", buggy ? sum_of_blocks<true> : sum_of_blocks<false>,
                                {{4}, {threads}}, in.data(), sum.data());
  ran.right = ran.status.ok() && first_of(sum) == 4 * threads * (4 * threads + 1) / 2;
  return ran;
}

// The same in shared memory: bins of a histogram.
template <bool buggy>
__global__ void histogram(const int* in, int* out) {
  __shared__ int bins[4];
  const unsigned t = threadIdx.x;
  if (t < 4) bins[t] = 0;
  __syncthreads();
  const int bin = in[t] % 4;
  if (buggy)
    bins[bin] += 1;  // bug: histogram_without_atomics
  else
    atomicAdd(&bins[bin], 1);
  __syncthreads();
  if (t < 4) out[t] = bins[t];
}

Ran run_histogram(bool buggy) {
  return run("histogram", buggy ? histogram<true> : histogram<false>, {{1}, {threads}},
             counted<int>(threads), std::vector<int>(4, threads / 4));
}

// The last thread makes the counter zero. Has it, when the others count?
template <bool buggy>
__global__ void count_from_zero(const int* in, int* out) {
  __shared__ int count;
  if (threadIdx.x == threads - 1) count = 0;  // meets: atomic_before_zero
  if (!buggy) __syncthreads();
  atomicAdd(&count, in[threadIdx.x]);  // bug: atomic_before_zero
  __syncthreads();
  out[threadIdx.x] = count;
}

Ran run_count_from_zero(bool buggy) {
  const int sum = static_cast<int>(threads * (threads + 1) / 2);
  return run("count_from_zero", buggy ? count_from_zero<true> : count_from_zero<false>,
             {{1}, {threads}}, counted<int>(threads), std::vector<int>(threads, sum));
}

// The first thread does, which is also the first to count: what it wrote plainly stays a race.
template <bool buggy>
__global__ void count_from_the_first(const int* in, int* out) {
  __shared__ int count;
  if (threadIdx.x == 0) count = 0;  // meets: atomic_after_zero
  if (!buggy) __syncthreads();
  atomicAdd(&count, in[threadIdx.x]);  // bug: atomic_after_zero
  __syncthreads();
  out[threadIdx.x] = count;
}

Ran run_count_from_the_first(bool buggy) {
  const int sum = static_cast<int>(threads * (threads + 1) / 2);
  return run("count_from_the_first",
             buggy ? count_from_the_first<true> : count_from_the_first<false>, {{1}, {threads}},
             counted<int>(threads), std::vector<int>(threads, sum));
}

// One warp waits in a loop for a flag that the other one sets, and takes what was written before.
template <bool buggy>
__global__ void wait_for_flag(const int* in, int* out) {
  __shared__ int flag, value;
  if (threadIdx.x == 0) flag = 0;
  __syncthreads();
  if (threadIdx.x == 0) {
    value = in[7];  // meets: flag_without_fence
    if (!buggy) __threadfence_block();
    atomicExch(&flag, 1);
  }
  if (threadIdx.x == 32) {
    while (atomicAdd(&flag, 0) == 0) {
    }
    __threadfence_block();
    *out = value;  // bug: flag_without_fence
  }
}

Ran run_wait_for_flag(bool buggy) {
  return run("wait_for_flag", buggy ? wait_for_flag<true> : wait_for_flag<false>, {{1}, {threads}},
             counted<int>(threads), std::vector<int>{8});
}

// All count, then one reads the count as if it were his own.
template <bool buggy>
__global__ void count_and_read(int* counter, int* out) {
  __shared__ int count;
  if (threadIdx.x == 0) count = *counter;
  __syncthreads();
  atomicAdd(&count, 1);  // meets: plain_read_of_atomic
  if (!buggy) __syncthreads();
  if (threadIdx.x == 33) *out = count;  // bug: plain_read_of_atomic
}

Ran run_count_and_read(bool buggy) {
  Memory<int> counter, out;
  Ran ran;
  ran.status = uploaded(counter, {0}, "counter");
  if (ran.status.ok()) ran.status = out.allocate(1, "out");
  if (ran.status.ok())
    ran.status =
        device::launch("count_and_read", buggy ? count_and_read<true> : count_and_read<false>,
                       {{1}, {threads}}, counter.data(), out.data());
  ran.right = ran.status.ok() && first_of(out) == static_cast<int>(threads);
  return ran;
}

// ------------------------------------------------------------------------------------------------

// Threads of one block hand something over in global memory.
template <bool buggy>
__global__ void through_global(const float* in, float* out, float* scratch) {
  const unsigned t = threadIdx.x;
  scratch[t] = in[t];  // meets: global_without_barrier
  if (!buggy) __syncthreads();
  out[t] = scratch[threads - 1 - t];  // bug: global_without_barrier
}

Ran run_through_global(bool buggy) {
  Memory<float> scratch;
  // Uploaded: what comes too early is not also uninitialised.
  if (const Status status = uploaded(scratch, counted(threads), "scratch"); !status.ok())
    return {status};
  const std::vector<float> values = counted(threads);
  return run("through_global", buggy ? through_global<true> : through_global<false>,
             {{1}, {threads}}, values, {values.rbegin(), values.rend()}, scratch.data());
}

// A block reads what its neighbour writes: nothing says that the neighbour has run.
__global__ void halves(const float* in, float* half) {
  const unsigned n = blockIdx.x * blockDim.x + threadIdx.x;
  half[n] = in[n] / 2;
}
template <bool buggy>
__global__ void neighbours(const float* in, float* out, float* half) {
  const unsigned n = blockIdx.x * blockDim.x + threadIdx.x;
  if (buggy) half[n] = in[n] / 2;                // meets: neighbour_block
  out[n] = half[(n + threads) % (2 * threads)];  // bug: neighbour_block
}

Ran run_neighbours(bool buggy) {
  Memory<float> half;
  if (const Status status = uploaded(half, counted(2 * threads), "half"); !status.ok())
    return {status};
  std::vector<float> in = counted(2 * threads), expected = in;
  for (std::size_t n = 0; n < in.size(); ++n) expected[n] = in[(n + threads) % in.size()] / 2;
  if (!buggy) {
    Memory<float> from;
    Status status = uploaded(from, in, "in");
    if (status.ok())
      status = device::launch("halves", halves, {{2}, {threads}}, from.data(), half.data());
    if (!status.ok()) return {status};
  }
  return run("neighbours", buggy ? neighbours<true> : neighbours<false>, {{2}, {threads}}, in,
             expected, half.data());
}

// The last block to finish sums what all blocks have left (threadFenceReduction in NVIDIA's
// samples). Without the fence the count may be seen before what it counts.
template <bool buggy>
__global__ void last_block(const float* in, float* out, float* parts, unsigned* finished) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    parts[blockIdx.x] = in[blockIdx.x];  // meets: semaphore_without_fence
    if (!buggy) __threadfence();
    last = atomicAdd(finished, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    float sum = 0;
    for (unsigned n = 0; n < gridDim.x; ++n) sum += parts[n];  // bug: semaphore_without_fence
    *out = sum;
  }
}

Ran run_last_block(bool buggy) {
  Memory<float> parts;
  Memory<unsigned> finished;
  Status status = uploaded(parts, counted(8), "parts");
  if (status.ok()) status = uploaded(finished, {0u}, "finished");
  if (!status.ok()) return {status};
  return run("last_block", buggy ? last_block<true> : last_block<false>, {{8}, {threads}},
             counted(8), {36.0f}, parts.data(), finished.data());
}

}  // namespace
}  // namespace tilewise::tests::inline TILEWISE_TARGET

namespace tilewise::tests {

std::vector<Planted> race_bugs() {
  using emulator::Kind;
  const char* const file = "races.cu";
  return {
      {"blocks_write_one_element", file, Kind::race, run_blocks_write},
      {"sum_without_atomics", file, Kind::race, run_sum_of_blocks},
      {"histogram_without_atomics", file, Kind::race, run_histogram},
      {"atomic_before_zero", file, Kind::race, run_count_from_zero},
      {"atomic_after_zero", file, Kind::race, run_count_from_the_first},
      {"flag_without_fence", file, Kind::race, run_wait_for_flag},
      {"plain_read_of_atomic", file, Kind::race, run_count_and_read},
      {"global_without_barrier", file, Kind::race, run_through_global},
      {"neighbour_block", file, Kind::race, run_neighbours},
      {"semaphore_without_fence", file, Kind::race, run_last_block},
  };
}

}  // namespace tilewise::tests
