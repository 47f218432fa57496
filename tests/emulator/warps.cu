// What the lanes of a warp do together, and what they may not.
#include "on_device.hpp"

namespace tilewise::tests::inline TILEWISE_TARGET {
namespace {

constexpr unsigned all = ~0u;
constexpr float total = 32 * 33 / 2;

// Lanes hand something over in shared memory. That they run in step is not said anywhere.
template <bool buggy>
__global__ void swap_lanes(const float* in, float* out) {
  __shared__ float values[32];
  const unsigned lane = threadIdx.x;
  values[lane] = in[lane];  // meets: missing_syncwarp
  if (!buggy) __syncwarp();
  out[lane] = values[lane ^ 1];  // bug: missing_syncwarp
}

Ran run_swap_lanes(bool buggy) {
  std::vector<float> expected = counted(32);
  for (std::size_t n = 0; n < 32; n += 2) std::swap(expected[n], expected[n + 1]);
  return run("swap_lanes", buggy ? swap_lanes<true> : swap_lanes<false>, {{1}, {32}}, counted(32),
             expected);
}

// A shuffle moves a value; it orders no memory.
template <bool buggy>
__global__ void shuffle_as_barrier(const float* in, float* out) {
  __shared__ float values[32];
  const unsigned lane = threadIdx.x;
  values[lane] = in[lane];  // meets: shuffle_is_no_barrier
  const float first = __shfl_sync(all, in[lane], 0);
  if (!buggy) __syncwarp();
  out[lane] = values[31 - lane] * first;  // bug: shuffle_is_no_barrier
}

Ran run_shuffle_as_barrier(bool buggy) {
  const std::vector<float> in = counted(32);
  return run("shuffle_as_barrier", buggy ? shuffle_as_barrier<true> : shuffle_as_barrier<false>,
             {{1}, {32}}, in, {in.rbegin(), in.rend()});
}

// ------------------------------------------------------------------------------------------------

// Half a warp sums, and takes what the other half has.
template <bool buggy>
__global__ void half_a_warp(const float* in, float* out) {
  const unsigned lane = threadIdx.x;
  float sum = in[lane];
  if (lane < 16) {
    for (int with = buggy ? 16 : 8; with > 0; with /= 2)
      sum += __shfl_xor_sync(0xffffu, sum, with);  // bug: shuffle_from_outside
    out[lane] = sum;
  } else {
    out[lane] = sum;
  }
}

Ran run_half_a_warp(bool buggy) {
  std::vector<float> expected = counted(32);
  for (std::size_t n = 0; n < 16; ++n) expected[n] = 16 * 17 / 2;
  return run("half_a_warp", buggy ? half_a_warp<true> : half_a_warp<false>, {{1}, {32}},
             counted(32), expected);
}

__device__ float warp_sum(float value, unsigned mask) {
  for (int with = 16; with > 0; with /= 2)
    value += __shfl_xor_sync(mask, value, with);  // bug: mask_lacks_caller bug: half_in_a_branch
  return value;
}

// The mask of a ballot names who has something; the sum is everybody's.
template <bool buggy>
__global__ void mask_of_some(const float* in, float* out) {
  const unsigned lane = threadIdx.x;
  const unsigned mask = __ballot_sync(all, lane < 31);
  out[lane] = warp_sum(in[lane], buggy ? mask : all);
}

Ran run_mask_of_some(bool buggy) {
  return run("mask_of_some", buggy ? mask_of_some<true> : mask_of_some<false>, {{1}, {32}},
             counted(32), std::vector<float>(32, total));
}

// A full mask, in a branch that half of the lanes take.
template <bool buggy>
__global__ void in_a_branch(const float* in, float* out) {
  const unsigned lane = threadIdx.x;
  float sum = in[lane];
  if (!buggy || lane < 16) sum = warp_sum(sum, all);
  out[lane] = sum;
}

Ran run_in_a_branch(bool buggy) {
  return run("in_a_branch", buggy ? in_a_branch<true> : in_a_branch<false>, {{1}, {32}},
             counted(32), std::vector<float>(32, total));
}

// One mask, two instructions.
template <bool buggy>
__global__ void two_instructions(const float* in, float* out) {
  const unsigned lane = threadIdx.x;
  float value = in[lane];
  if (!buggy || lane < 16)
    value = __shfl_sync(all, value, 3);  // meets: different_collectives
  else
    value = static_cast<float>(__ballot_sync(all, value > 2));  // bug: different_collectives
  out[lane] = value;
}

Ran run_two_instructions(bool buggy) {
  return run("two_instructions", buggy ? two_instructions<true> : two_instructions<false>,
             {{1}, {32}}, counted(32), std::vector<float>(32, 4));
}

// A third of a warp.
template <int width>
__global__ void parts(const float* in, float* out) {
  out[threadIdx.x] = __shfl_sync(all, in[threadIdx.x], 0, width);  // bug: width_of_12
}

Ran run_parts(bool buggy) {
  std::vector<float> expected(32);
  for (unsigned n = 0; n < 32; ++n) expected[n] = static_cast<float>(n / 8 * 8 + 1);
  return run("parts", buggy ? parts<12> : parts<8>, {{1}, {32}}, counted(32), expected);
}

}  // namespace
}  // namespace tilewise::tests::inline TILEWISE_TARGET

namespace tilewise::tests {

std::vector<Planted> warp_bugs() {
  using emulator::Kind;
  const char* const file = "warps.cu";
  return {
      {"missing_syncwarp", file, Kind::race, run_swap_lanes},
      {"shuffle_is_no_barrier", file, Kind::race, run_shuffle_as_barrier},
      {"shuffle_from_outside", file, Kind::divergent_warp, run_half_a_warp},
      {"mask_lacks_caller", file, Kind::divergent_warp, run_mask_of_some},
      {"half_in_a_branch", file, Kind::deadlock, run_in_a_branch},
      {"different_collectives", file, Kind::divergent_warp, run_two_instructions},
      {"width_of_12", file, Kind::bad_instruction, run_parts},
  };
}

}  // namespace tilewise::tests
