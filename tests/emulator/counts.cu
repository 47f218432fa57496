// Kernels whose every count can be worked out by hand (emulator_test.cpp does).
#include "cuda/device/ptx/cp_async.hpp"
#include "cuda/device/ptx/mma.hpp"
#include "cuda/device/shared.hpp"
#include "cuda/device/trace.hpp"
#include "measured.hpp"
#include "on_device.hpp"

namespace tilewise::tests::inline TILEWISE_TARGET {
namespace {

struct Shared {
  alignas(16) float copied[32];
  float values[64];
};

__global__ void everything(const float* near, const float* far, const float* one, float* out,
                           int* counter) {
  Shared& shared = device::shared_memory<Shared>();
  const unsigned t = threadIdx.x, n = blockIdx.x * 64 + t;
  if (t < 8) device::cp_async<16>(&shared.copied[4 * t], far + 4 * t);  // 128 bytes a block
  device::cp_async_commit();
  device::cp_async_wait<0>();
  __syncthreads();

  float value = near[n];  // 4 sectors a warp
  value += far[n * 8];    // 32: each lane has its own
  value += one[0];        // 1
  shared.values[t] = value + shared.copied[t % 32];
  __syncwarp();
  value = shared.values[t ^ 1];
  __syncthreads();
  shared.values[t] = __expf(value - value);
  __syncthreads();

  const std::uint32_t a[4] = {}, b[2] = {};
  float c[4] = {1, 1, 1, 1};
  device::mma_m16n8k16<device::f16>(c, a, b);
  out[n] = shared.values[63 - t] + c[0];
  atomicAdd(counter, 1);
}

__global__ void tiles(const float* in, float* out) {
  __shared__ float tile[64];
  const unsigned t = threadIdx.x;
  float sum = 0;
  for (int n = 0; n < 4; ++n) {
    {
      const device::Trace trace("load", n);
      tile[t] = in[n * 64 + static_cast<int>(t)];
    }
    __syncthreads();
    {
      const device::Trace trace("sum", n);
      for (unsigned j = 0; j < 64; ++j) sum += tile[j];
    }
    __syncthreads();
  }
  out[t] = sum;
}

/// Two spans of which the second is begun before the first has ended.
__global__ void spans(float* out) {
  device::TraceSpan first, second;
  first.begin("issued", 0);
  out[threadIdx.x] = 1;
  second.begin("issued", 1);
  {
    const device::Trace trace("meanwhile", 0);
    out[threadIdx.x] += 1;
  }
  first.end();
  out[threadIdx.x] += 1;
  second.end();
  device::trace_point("done", 1);
}

/// x is what counts fastest, in the grid and in the block; 32 of a block are a warp.
__global__ void number_all(int* out) {
  const int block =
      static_cast<int>((blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x);
  const int thread =
      static_cast<int>((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x);
  const int fifth = __shfl_sync(~0u, thread, 5);
  out[block * 64 + thread] = block * 1000 + fifth;
}

__global__ void who_comes_first(int* next, int* order) {
  if (threadIdx.x % 32 == 0) order[atomicAdd(next, 1)] = static_cast<int>(threadIdx.x / 32);
}

}  // namespace
}  // namespace tilewise::tests::inline TILEWISE_TARGET

namespace tilewise::tests {

Ran a_little_of_everything() {
  Memory<float> near, far, one, out;
  Memory<int> counter;
  Ran ran;
  ran.status = uploaded(near, counted(128), "near");
  if (ran.status.ok()) ran.status = uploaded(far, counted(128 * 8), "far");
  if (ran.status.ok()) ran.status = uploaded(one, counted(1), "one");
  if (ran.status.ok()) ran.status = uploaded(counter, {0}, "counter");
  if (ran.status.ok()) ran.status = out.allocate(128, "out");
  if (ran.status.ok())
    ran.status = device::launch("everything", everything, {{2}, {64}, sizeof(Shared)}, near.data(),
                                far.data(), one.data(), out.data(), counter.data());
  ran.right = ran.status.ok() && downloaded(out) == std::vector<float>(128, 2) &&
              downloaded(counter).front() == 128;
  return ran;
}

Ran traced_tiles() {
  return run("tiles", tiles, {{1}, {64}}, counted(4 * 64), std::vector<float>(64, 256 * 257 / 2));
}

Ran traced_spans() {
  Memory<float> out;
  Ran ran;
  ran.status = out.allocate(32, "out");
  if (ran.status.ok()) ran.status = device::launch("spans", spans, {{1}, {32}}, out.data());
  ran.right = ran.status.ok() && downloaded(out) == std::vector<float>(32, 3);
  return ran;
}

Status numbers_of_threads(std::vector<int>& numbers) {
  Memory<int> memory;
  Status status = memory.allocate(12 * 64, "numbers");
  if (status.ok())
    status = device::launch("number_all", number_all, {{2, 3, 2}, {4, 2, 8}}, memory.data());
  if (status.ok()) numbers = downloaded(memory);
  return status;
}

Status order_of_warps(std::vector<int>& order) {
  Memory<int> next, memory;
  Status status = uploaded(next, {0}, "next");
  if (status.ok()) status = memory.allocate(4, "order");
  if (status.ok())
    status = device::launch("who_comes_first", who_comes_first, {{1}, {128}}, next.data(),
                            memory.data());
  if (status.ok()) order = downloaded(memory);
  return status;
}

}  // namespace tilewise::tests
