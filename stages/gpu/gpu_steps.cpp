#include "stages/cuda_steps.hpp"

namespace tilewise::stages {

#ifndef TILEWISE_HAVE_SM90A
namespace gpu {
namespace {

/// A step that this build can name, and no more.
CudaStep left_out(std::string_view name) {
  return {.name = name,
          .idea = "A step for Hopper, of stages/5_fa3_hopper.",
          .features = {},
          .run = nullptr,
          .workspace_bytes = nullptr,
          .bytes_moved = nullptr,
          .left_out = "built without sm_90a: put 90a into CMAKE_CUDA_ARCHITECTURES"};
}

}  // namespace

CudaStep tma_wgmma() {
  return left_out("5a_tma_wgmma");
}
CudaStep producer_consumers() {
  return left_out("5b_producer_consumers");
}
CudaStep ping_pong() {
  return left_out("5c_ping_pong");
}
CudaStep next_scores() {
  return left_out("5d_next_scores");
}

}  // namespace gpu
#endif

std::span<const CudaStep> gpu_steps() {
  static const CudaStep all[] = {
      gpu::thread_a_row(),  gpu::paper_loops(),  gpu::warp_tiles(),    gpu::fa1_backward(),
      gpu::swapped_loops(), gpu::tensor_cores(), gpu::split_queries(), gpu::causal_blocks(),
      gpu::split_keys(),    gpu::fa2_backward(), gpu::tma_wgmma(),     gpu::producer_consumers(),
      gpu::ping_pong(),     gpu::next_scores()};
  return all;
}

}  // namespace tilewise::stages
