// A write, or a plain access, that comes after the last of many accesses, but not after all of
// them.
#include "cuda/device/ptx/barrier.hpp"
#include "on_device.hpp"

namespace tilewise::tests::inline TILEWISE_TARGET {
namespace {

constexpr unsigned threads = 96;

// The usual run, with a number in global memory beside: 1, to begin with.
template <class T>
Ran run_beside(const char* name, void (*kernel)(const T*, T*, T*), unsigned blocks,
               const std::vector<T>& expected) {
  Memory<T> number;
  if (const Status status = uploaded(number, {T(1)}, "number"); !status.ok()) return {status};
  return run(name, kernel, {{blocks}, {threads}}, counted<T>(threads), expected, number.data());
}

// Whoever replaces the number that all have read reads it once more, and so is the last reader.
template <bool buggy>
__global__ void read_by_all(const float* in, float* out, float* number) {
  const unsigned t = threadIdx.x;
  const float factor = *number;  // meets: global_read_by_all
  if (!buggy) __syncthreads();
  if (t == 40) *number = factor + *number;  // bug: global_read_by_all
  out[t] = factor * in[t];
}

Ran run_read_by_all(bool buggy) {
  return run_beside("read_by_all", buggy ? read_by_all<true> : read_by_all<false>, 1,
                    counted(threads));
}

template <bool buggy>
__global__ void shared_read_by_all(const float* in, float* out) {
  __shared__ float number;
  const unsigned t = threadIdx.x;
  if (t == 0) number = 1;
  __syncthreads();
  const float factor = number;  // meets: shared_read_by_all
  if (!buggy) __syncthreads();
  if (t == 40) number = factor + number;  // bug: shared_read_by_all
  out[t] = factor * in[t];
}

Ran run_shared_read_by_all(bool buggy) {
  return run("shared_read_by_all", buggy ? shared_read_by_all<true> : shared_read_by_all<false>,
             {{1}, {threads}}, counted(threads), counted(threads));
}

// Three warps read; the last waits for the second, before it writes, and not for the first.
template <bool buggy>
__global__ void two_of_three(const float* in, float* out, float* number) {
  const unsigned t = threadIdx.x, warp = t / 32;
  const float factor = *number;  // meets: barrier_for_two_of_three
  if (!buggy || warp > 0) device::barrier_sync(1, buggy ? 64 : 96);
  if (t == 64) *number = 2;  // bug: barrier_for_two_of_three
  out[t] = factor * in[t];
}

Ran run_two_of_three(bool buggy) {
  return run_beside("two_of_three", buggy ? two_of_three<true> : two_of_three<false>, 1,
                    counted(threads));
}

// The same number again and again, each time a little later: no reader is lost among so many.
template <bool buggy>
__global__ void read_in_rounds(const float* in, float* out, float* number) {
  const unsigned t = threadIdx.x;
  float sum = 0;
  for (unsigned n = 0; n < 8; ++n) {
    sum += *number;  // meets: read_in_rounds
    __syncwarp();
  }
  if (!buggy) __syncthreads();
  if (t == 40) *number = 2;  // bug: read_in_rounds
  out[t] = sum / 8 * in[t];
}

Ran run_read_in_rounds(bool buggy) {
  return run_beside("read_in_rounds", buggy ? read_in_rounds<true> : read_in_rounds<false>, 1,
                    counted(threads));
}

// A warp rotates its own numbers in place.
template <bool buggy>
__global__ void rotate(const float* in, float* out, float* number) {
  const unsigned t = threadIdx.x, lane = t % 32, next = t - lane + (lane + 1) % 32;
  const float factor = *number;
  out[t] = in[t];
  __syncwarp();
  const float value = out[next] + 0 * out[t];  // meets: rotate_without_syncwarp
  if (!buggy) __syncwarp();
  out[t] = factor * value;  // bug: rotate_without_syncwarp
}

Ran run_rotate(bool buggy) {
  std::vector<float> expected(threads);
  for (unsigned t = 0; t < threads; ++t)
    expected[t] = static_cast<float>(t / 32 * 32 + (t + 1) % 32 + 1);
  return run_beside("rotate", buggy ? rotate<true> : rotate<false>, 1, expected);
}

// All blocks read a number that the last of them replaces, for the next launch.
template <bool buggy>
__global__ void last_replaces(const int* in, int* out, int* number, unsigned* finished) {
  const unsigned t = threadIdx.x;
  if (blockIdx.x == 0) out[t] = in[t];
  if (t != 0) return;
  const int value = *number;  // meets: read_in_other_blocks
  if (!buggy) __threadfence();
  if (atomicAdd(finished, 1u) == gridDim.x - 1) *number = value + 1;  // bug: read_in_other_blocks
}

Ran run_last_replaces(bool buggy) {
  Memory<int> number;
  Memory<unsigned> finished;
  Status status = uploaded(number, {1}, "number");
  if (status.ok()) status = uploaded(finished, {0u}, "finished");
  if (!status.ok()) return {status};
  Ran ran =
      run("last_replaces", buggy ? last_replaces<true> : last_replaces<false>, {{8}, {threads}},
          counted<int>(threads), counted<int>(threads), number.data(), finished.data());
  ran.right = ran.right && downloaded(number).front() == 2;
  return ran;
}

// ------------------------------------------------------------------------------------------------

// All count; one does so again, and then reads the count as if it were his own.
template <bool buggy>
__global__ void count_twice(const int* in, int* out) {
  __shared__ int count;
  const unsigned t = threadIdx.x;
  if (t == 0) count = in[0];
  __syncthreads();
  atomicAdd(&count, 1);  // meets: plain_read_by_a_counter
  if (!buggy) __syncthreads();
  if (t == 40) {
    atomicAdd(&count, 1);
    *out = count;  // bug: plain_read_by_a_counter
  }
}

Ran run_count_twice(bool buggy) {
  return run("count_twice", buggy ? count_twice<true> : count_twice<false>, {{1}, {threads}},
             counted<int>(1), std::vector<int>{threads + 2});
}

template <bool buggy>
__global__ void count_and_reset(const int* in, int* out, int* number) {
  const unsigned t = threadIdx.x;
  atomicAdd(number, 1);  // meets: plain_write_by_a_counter
  if (!buggy) __syncthreads();
  if (t == 40) {
    out[0] = atomicAdd(number, in[0]);
    *number = 0;  // bug: plain_write_by_a_counter
  }
}

Ran run_count_and_reset(bool buggy) {
  return run_beside("count_and_reset", buggy ? count_and_reset<true> : count_and_reset<false>, 1,
                    std::vector<int>{threads + 1});
}

// ------------------------------------------------------------------------------------------------

struct Row {
  float values[16];
};

// A struct is copied whole, which compilers do in several ways.
template <bool buggy>
__global__ void hand_over(const float* in, float* out) {
  __shared__ Row rows[threads];
  const unsigned t = threadIdx.x;
  Row row;
  for (unsigned n = 0; n < 16; ++n) row.values[n] = in[t];
  rows[t] = row;  // meets: struct_without_barrier
  if (!buggy) __syncthreads();
  const Row other = rows[threads - 1 - t];  // bug: struct_without_barrier
  float sum = 0;
  for (unsigned n = 0; n < 16; ++n) sum += other.values[n];
  out[t] = sum / 16;
}

Ran run_hand_over(bool buggy) {
  const std::vector<float> values = counted(threads);
  return run("hand_over", buggy ? hand_over<true> : hand_over<false>, {{1}, {threads}}, values,
             {values.rbegin(), values.rend()});
}

template <bool buggy>
__global__ void copied(const float* in, float* out, unsigned bytes) {
  __shared__ float tile[threads];
  const unsigned t = threadIdx.x;
  std::memcpy(&tile[t], &in[t], bytes);  // meets: memcpy_without_barrier
  if (!buggy) __syncthreads();
  out[t] = tile[threads - 1 - t];  // bug: memcpy_without_barrier
}

Ran run_copied(bool buggy) {
  const std::vector<float> values = counted(threads);
  return run("copied", buggy ? copied<true> : copied<false>, {{1}, {threads}}, values,
             {values.rbegin(), values.rend()}, 4u);
}

}  // namespace
}  // namespace tilewise::tests::inline TILEWISE_TARGET

namespace tilewise::tests {

std::vector<Planted> reader_bugs() {
  using emulator::Kind;
  const char* const file = "readers.cu";
  return {
      {"global_read_by_all", file, Kind::race, run_read_by_all},
      {"shared_read_by_all", file, Kind::race, run_shared_read_by_all},
      {"barrier_for_two_of_three", file, Kind::race, run_two_of_three},
      {"read_in_rounds", file, Kind::race, run_read_in_rounds},
      {"rotate_without_syncwarp", file, Kind::race, run_rotate},
      {"read_in_other_blocks", file, Kind::race, run_last_replaces},
      {"plain_read_by_a_counter", file, Kind::race, run_count_twice},
      {"plain_write_by_a_counter", file, Kind::race, run_count_and_reset},
      {"struct_without_barrier", file, Kind::race, run_hand_over},
      {"memcpy_without_barrier", file, Kind::race, run_copied},
  };
}

}  // namespace tilewise::tests
