// Launches, and kernels, that a device refuses. There is no line of a kernel to name.
#include "on_device.hpp"

namespace tilewise::tests::inline TILEWISE_TARGET {
namespace {

__global__ void nothing(const float*, float*) {}

Ran launched(const Grid& good, const Grid& bad, bool buggy) {
  Ran ran;
  ran.status = device::launch("nothing", nothing, buggy ? bad : good, nullptr, nullptr);
  ran.right = ran.status.ok();
  return ran;
}

constexpr std::size_t KiB = 1024;

Ran run_1025_threads(bool buggy) {
  return launched({{1}, {1024}}, {{1}, {1025}}, buggy);
}
Ran run_33_by_32_threads(bool buggy) {
  return launched({{1}, {32, 32}}, {{1}, {33, 32}}, buggy);
}
Ran run_deep_block(bool buggy) {
  return launched({{1}, {1, 1, 64}}, {{1}, {1, 1, 65}}, buggy);
}
Ran run_no_blocks(bool buggy) {
  return launched({{1}, {32}}, {{0}, {32}}, buggy);
}
Ran run_no_threads(bool buggy) {
  return launched({{1}, {32}}, {{1}, {32, 0}}, buggy);
}
Ran run_high_grid(bool buggy) {
  return launched({{1, 2}, {1}}, {{1, 65536}, {1}}, buggy);
}
// For the device of which 227 KiB is the most: the H100. emulator_test.cpp sees to the others.
Ran run_shared(bool buggy) {
  return launched({{1}, {32}, 227 * KiB}, {{1}, {32}, 227 * KiB + 4}, buggy);
}

// Static shared memory is 48 KiB at most. One of a kernel's arrays is enough to know its size.
template <std::size_t bytes>
__global__ void one_array(const float* in, float* out) {
  __shared__ float tile[bytes / sizeof(float)];
  tile[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x ^ 1] + tile[threadIdx.x] - in[threadIdx.x ^ 1];
}

// nvcc itself refuses it.
constexpr std::size_t too_much = 48 * KiB + (TILEWISE_EMULATED ? 4 : 0);

Ran run_static(bool buggy) {
  return run("one_array", buggy ? one_array<too_much> : one_array<48 * KiB>, {{1}, {32}},
             counted(32), counted(32));
}
Ran run_static_and_dynamic(bool buggy) {
  return run("one_array", one_array<16 * KiB>, {{1}, {32}, 32 * KiB + (buggy ? 4u : 0u)},
             counted(32), counted(32));
}
Ran run_static_and_consented(bool buggy) {
  return run("one_array", one_array<16 * KiB>, {{1}, {32}, 211 * KiB + (buggy ? 4u : 0u)},
             counted(32), counted(32));
}

}  // namespace
}  // namespace tilewise::tests::inline TILEWISE_TARGET

namespace tilewise::tests {

std::vector<Planted> launch_bugs() {
  using emulator::Kind;
  const char* const file = "launches.cu";
  return {
      {"threads_1025", file, Kind::bad_launch, run_1025_threads},
      {"threads_33_by_32", file, Kind::bad_launch, run_33_by_32_threads},
      {"threads_65_deep", file, Kind::bad_launch, run_deep_block},
      {"no_blocks", file, Kind::bad_launch, run_no_blocks},
      {"no_threads", file, Kind::bad_launch, run_no_threads},
      {"grid_65536_high", file, Kind::bad_launch, run_high_grid},
      {"too_much_shared", file, Kind::bad_launch, run_shared},
      {"too_much_static", file, Kind::bad_launch, run_static},
      {"too_much_of_both", file, Kind::bad_launch, run_static_and_dynamic},
      {"too_much_of_both_consented", file, Kind::bad_launch, run_static_and_consented},
  };
}

}  // namespace tilewise::tests
