// Attention on a GPU, the smallest program: docs/embed.md shows it.
// [snippet attend]
#include <tilewise/attention.hpp>
#include <tilewise/cuda.h>

#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <vector>

int main() {
  tilewise::ContextOptions options;
  options.backend = tilewise_cuda_backend();
  options.device_type = TILEWISE_CUDA;
  tilewise::Context context(options);
  const auto on_gpu = [&](std::int64_t rows, std::int64_t heads, std::uint16_t number) {
    const std::vector<std::uint16_t> host(static_cast<std::size_t>(rows * heads * 64), number);
    void* const memory = tilewise_allocate(context.get(), 2 * host.size());
    cudaMemcpy(memory, host.data(), 2 * host.size(), cudaMemcpyHostToDevice);
    return tilewise_on_cuda(tilewise::tensor(memory, TILEWISE_F16, {1, rows, heads, 64}), 0);
  };
  const tilewise::Tensor q = on_gpu(2, 8, 0x3c00), k = on_gpu(100, 2, 0x3c00),  // 1 in f16
      v = on_gpu(100, 2, 0x4200), o = on_gpu(2, 8, 0);                          // 3
  const tilewise::Result done =
      tilewise::flash_attn_func(context, q, k, v, o, {}, {.causal = true});
  std::uint16_t first = 0;
  cudaMemcpy(&first, o.data, sizeof first, cudaMemcpyDeviceToHost);
  const char* const said = context ? done.message() : context.result().message();
  std::printf("%s %#x\n", done ? "ok" : said, first);
  return done ? 0 : 1;
}
// [end attend]
