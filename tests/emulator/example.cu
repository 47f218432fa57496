// The example of docs/emulator.md: a kernel with a barrier too few, and what is said of it.
#include "cuda/device/launch.hpp"
#include "cuda/device/memory.hpp"
#include "cuda/emulator/emulator.hpp"

#include <cstdio>
#include <vector>

// [snippet kernel]
namespace my_kernels::inline TILEWISE_TARGET {

__global__ void reverse(const float* in, float* out) {
  __shared__ float tile[64];
  tile[threadIdx.x] = in[threadIdx.x];
  // __syncthreads() is missing here
  out[threadIdx.x] = tile[63 - threadIdx.x];
}

}  // namespace my_kernels::inline TILEWISE_TARGET
// [end kernel]

// [snippet session]
int main() {
  namespace device = tilewise::device;
  namespace emulator = tilewise::emulator;
  const std::vector<float> values(64, 1);
  device::Memory<float> in, out;
  if (!in.allocate(64, "in").ok() || !in.upload(values.data()).ok()) return 2;
  if (!out.allocate(64, "out").ok()) return 2;

  emulator::Options options;
  options.device = emulator::Device::a100();
  options.seed = 3;
  emulator::Session session(options);
  const tilewise::Status status =
      device::launch("reverse", my_kernels::reverse, {{1}, {64}}, in.data(), out.data());
  std::fputs(session.report().text().c_str(), stdout);
  return status.ok() ? 0 : 1;
}
// [end session]
