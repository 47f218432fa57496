// Launches that a device refuses. There is no line of a kernel to name.
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
  };
}

}  // namespace tilewise::tests
