// Asynchronous copies (cp.async): not waited for, or by their own thread alone, or ill formed.
#include "cuda/device/ptx/cp_async.hpp"
#include "cuda/device/shared.hpp"
#include "on_device.hpp"

namespace tilewise::tests::inline TILEWISE_TARGET {
namespace {

constexpr unsigned threads = 64;
constexpr unsigned width = 4;  // floats a copy

struct Tiles {
  alignas(16) float tile[2][threads * width];
};

// Each thread sums the four numbers that thread threads - 1 - t has copied.
__device__ inline float sum_at(const float* tile, unsigned t) {
  const float* const four = tile + width * (threads - 1 - t);
  return four[0] + four[1] + four[2] + four[3];
}

std::vector<float> sums(unsigned tiles) {
  std::vector<float> expected(threads);
  for (unsigned t = 0; t < threads; ++t)
    for (unsigned tile = 0; tile < tiles; ++tile)
      expected[t] +=
          static_cast<float>(4 * (tile * threads * width + width * (threads - 1 - t)) + 10);
  return expected;
}

constexpr std::size_t shared_bytes = sizeof(Tiles);

// ------------------------------------------------------------------------------------------------

template <bool buggy>
__global__ void one_tile(const float* in, float* out) {
  Tiles& shared = device::shared_memory<Tiles>();
  const unsigned t = threadIdx.x;
  device::cp_async<16>(&shared.tile[0][width * t], in + width * t);  // meets: read_before_wait
  device::cp_async_commit();
  if (!buggy) device::cp_async_wait<0>();
  __syncthreads();
  float sum = 0;
  for (unsigned n = 0; n < width; ++n)
    sum += shared.tile[0][width * (threads - 1 - t) + n];  // bug: read_before_wait
  out[t] = sum;
}

Ran run_one_tile(bool buggy) {
  return run("one_tile", buggy ? one_tile<true> : one_tile<false>, {{1}, {threads}, shared_bytes},
             counted(threads * width), sums(1));
}

// The copies are never made a group, so that there is no group to wait for.
template <bool buggy>
__global__ void without_commit(const float* in, float* out) {
  Tiles& shared = device::shared_memory<Tiles>();
  const unsigned t = threadIdx.x;
  device::cp_async<16>(&shared.tile[0][width * t], in + width * t);  // meets: no_commit
  if (!buggy) device::cp_async_commit();
  device::cp_async_wait<0>();
  __syncthreads();
  float sum = 0;
  for (unsigned n = 0; n < width; ++n)
    sum += shared.tile[0][width * (threads - 1 - t) + n];  // bug: no_commit
  out[t] = sum;
}

Ran run_without_commit(bool buggy) {
  return run("without_commit", buggy ? without_commit<true> : without_commit<false>,
             {{1}, {threads}, shared_bytes}, counted(threads * width), sums(1));
}

// Two buffers. Behind the last tile nothing is on its way: wait for all then, not for all but one.
template <bool buggy>
__global__ void two_buffers(const float* in, float* out, unsigned tiles) {
  Tiles& shared = device::shared_memory<Tiles>();
  const unsigned t = threadIdx.x;
  const auto load = [&](unsigned tile) {
    device::cp_async<16>(&shared.tile[tile % 2][width * t],  // meets: wait_off_by_one
                         in + (tile * threads + t) * width);
    device::cp_async_commit();
  };
  load(0);
  float sum = 0;
  for (unsigned tile = 0; tile < tiles; ++tile) {
    if (tile + 1 < tiles) load(tile + 1);
    if (buggy || tile + 1 < tiles)
      device::cp_async_wait<1>();
    else
      device::cp_async_wait<0>();
    __syncthreads();
    for (unsigned n = 0; n < width; ++n)
      sum += shared.tile[tile % 2][width * (threads - 1 - t) + n];  // bug: wait_off_by_one
    __syncthreads();
  }
  out[t] = sum;
}

Ran run_two_buffers(bool buggy) {
  return run("two_buffers", buggy ? two_buffers<true> : two_buffers<false>,
             {{1}, {threads}, shared_bytes}, counted(3 * threads * width), sums(3), 3u);
}

// A wait is a thread's own: that the others' copies are there, a barrier says.
template <bool buggy>
__global__ void own_wait(const float* in, float* out) {
  Tiles& shared = device::shared_memory<Tiles>();
  const unsigned t = threadIdx.x;
  device::cp_async<16>(&shared.tile[0][width * t], in + width * t);  // meets: only_own_wait
  device::cp_async_commit();
  if (buggy) __syncthreads();
  device::cp_async_wait<0>();
  if (!buggy) __syncthreads();
  float sum = 0;
  for (unsigned n = 0; n < width; ++n)
    sum += shared.tile[0][width * (threads - 1 - t) + n];  // bug: only_own_wait
  out[t] = sum;
}

Ran run_own_wait(bool buggy) {
  return run("own_wait", buggy ? own_wait<true> : own_wait<false>, {{1}, {threads}, shared_bytes},
             counted(threads * width), sums(1));
}

// ------------------------------------------------------------------------------------------------

// The next tile is on its way into the buffer that others still read.
template <bool buggy>
__global__ void one_buffer(const float* in, float* out) {
  Tiles& shared = device::shared_memory<Tiles>();
  const unsigned t = threadIdx.x;
  float sum = 0;
  for (unsigned tile = 0; tile < 2; ++tile) {
    device::cp_async<16>(&shared.tile[0][width * t],  // bug: copied_over_readers
                         in + (tile * threads + t) * width);
    device::cp_async_commit();
    device::cp_async_wait<0>();
    __syncthreads();
    for (unsigned n = 0; n < width; ++n)
      sum += shared.tile[0][width * (threads - 1 - t) + n];  // meets: copied_over_readers
    if (!buggy) __syncthreads();
  }
  out[t] = sum;
}

Ran run_one_buffer(bool buggy) {
  return run("one_buffer", buggy ? one_buffer<true> : one_buffer<false>,
             {{1}, {threads}, shared_bytes}, counted(2 * threads * width), sums(2));
}

// What lies behind the tail becomes zero while the copy may still write there.
template <bool buggy>
__global__ void zeroed_tail(const float* in, float* out) {
  Tiles& shared = device::shared_memory<Tiles>();
  const unsigned t = threadIdx.x;
  float* const mine = &shared.tile[0][width * t];
  device::cp_async<16>(mine, in + width * t);  // meets: written_in_flight
  device::cp_async_commit();
  if (!buggy) device::cp_async_wait<0>();
  mine[3] = 0;  // bug: written_in_flight
  device::cp_async_wait<0>();
  __syncthreads();
  out[t] = sum_at(shared.tile[0], t);
}

Ran run_zeroed_tail(bool buggy) {
  std::vector<float> expected = sums(1);
  for (unsigned t = 0; t < threads; ++t) expected[t] -= static_cast<float>(4 * (threads - t));
  return run("zeroed_tail", buggy ? zeroed_tail<true> : zeroed_tail<false>,
             {{1}, {threads}, shared_bytes}, counted(threads * width), expected);
}

// ------------------------------------------------------------------------------------------------

// 12 bytes: 4, 8 and 16 there are, and ptxas refuses the rest.
template <bool buggy>
__global__ void three_floats(const float* in, float* out) {
  Tiles& shared = device::shared_memory<Tiles>();
  const unsigned t = threadIdx.x;
  float* const mine = &shared.tile[0][width * t];
#if TILEWISE_EMULATED
  // device::cp_async, like ptxas, does not compile with 12.
  if (buggy)
    emulator::copy_async(mine, in + width * t, 12, 12, Site::current());  // bug: copy_of_12
#endif
  device::cp_async<16>(mine, in + width * t);
  device::cp_async_commit();
  device::cp_async_wait<0>();
  __syncthreads();
  out[t] = sum_at(shared.tile[0], t);
}

Ran run_three_floats(bool buggy) {
  return run("three_floats", buggy ? three_floats<true> : three_floats<false>,
             {{1}, {threads}, shared_bytes}, counted(threads * width), sums(1));
}

// Rows of an odd number of floats: copies of 16 bytes need addresses of multiples of 16.
template <bool buggy>
__global__ void odd_rows(const float* in, float* out) {
  Tiles& shared = device::shared_memory<Tiles>();
  const unsigned t = threadIdx.x;
  const unsigned pitch = buggy ? width + 1 : width;
  device::cp_async<16>(&shared.tile[0][width * t], in + pitch * t);  // bug: misaligned_copy
  device::cp_async_commit();
  device::cp_async_wait<0>();
  __syncthreads();
  out[t] = sum_at(shared.tile[0], t);
}

Ran run_odd_rows(bool buggy) {
  return run("odd_rows", buggy ? odd_rows<true> : odd_rows<false>, {{1}, {threads}, shared_bytes},
             counted(threads * (width + 1)), sums(1));
}

// The tail of a tensor, copied whole.
template <bool buggy>
__global__ void whole_tail(const float* in, float* out, unsigned rows) {
  Tiles& shared = device::shared_memory<Tiles>();
  const unsigned t = threadIdx.x;
  for (unsigned n = 0; n < width; ++n) shared.tile[0][width * t + n] = 0;
  if (buggy || t < rows)
    device::cp_async<16>(&shared.tile[0][width * t], in + width * t);  // bug: copied_tail
  device::cp_async_commit();
  device::cp_async_wait<0>();
  __syncthreads();
  out[t] = sum_at(shared.tile[0], t);
}

Ran run_whole_tail(bool buggy) {
  std::vector<float> expected = sums(1);
  for (unsigned t = 0; t < threads - 50; ++t) expected[t] = 0;
  return run("whole_tail", buggy ? whole_tail<true> : whole_tail<false>,
             {{1}, {threads}, shared_bytes}, counted(50 * width), expected, 50u);
}

}  // namespace
}  // namespace tilewise::tests::inline TILEWISE_TARGET

namespace tilewise::tests {

std::vector<Planted> async_bugs() {
  using emulator::Kind;
  const char* const file = "async.cu";
  return {
      {"read_before_wait", file, Kind::not_waited_for, run_one_tile},
      {"no_commit", file, Kind::not_waited_for, run_without_commit},
      {"wait_off_by_one", file, Kind::not_waited_for, run_two_buffers},
      {"only_own_wait", file, Kind::race, run_own_wait},
      {"copied_over_readers", file, Kind::race, run_one_buffer},
      {"written_in_flight", file, Kind::not_waited_for, run_zeroed_tail},
      {"copy_of_12", file, Kind::bad_instruction, run_three_floats},
      {"misaligned_copy", file, Kind::misaligned, run_odd_rows},
      {"copied_tail", file, Kind::out_of_bounds, run_whole_tail},
  };
}

}  // namespace tilewise::tests
