// What must not compile: accumulators that go through a call that is not inlined, so that ptxas
// waits for every wgmma before the next (C7510). cmake/nvcc_launcher.sh makes that an error, and
// `./test.sh cuda` sees that it does.
#include "cuda/device/ptx/wgmma.hpp"
#include "cuda/device/shared.hpp"

namespace tilewise::gpu_tests::inline TILEWISE_TARGET {

struct Tiles {
  alignas(1024) device::f16 a[64 * 64], b[64 * 64];
};

__device__ __noinline__ void multiply(float (&d)[32], device::MatrixDescriptor a,
                                      device::MatrixDescriptor b) {
  device::wgmma_shared<device::f16>(d, a, b, true);
}

__global__ void __launch_bounds__(128) serialized(float* out) {
  auto& tiles = device::shared_memory<Tiles>();
  float d[32] = {};
  const auto a = device::describe_matrix(tiles.a, 64), b = device::describe_matrix(tiles.b, 64);
  device::wgmma_fence();
  multiply(d, a, b);
  multiply(d, a.advanced(32), b.advanced(32));
  device::wgmma_commit();
  device::wgmma_wait<0>();
  device::wgmma_arrived(d);
  for (int n = 0; n < 32; ++n) out[threadIdx.x * 32 + n] = d[n];
}

}  // namespace tilewise::gpu_tests::inline TILEWISE_TARGET
