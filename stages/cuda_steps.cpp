// The course's order of CUDA steps, for the emulator; stages/gpu/gpu_steps.cpp has the GPU's.
#include "stages/cuda_steps.hpp"

namespace tilewise::stages {

std::span<const CudaStep> emulated_steps() {
  static const CudaStep all[] = {
      emulated::thread_a_row(),  emulated::paper_loops(),   emulated::warp_tiles(),
      emulated::fa1_backward(),  emulated::swapped_loops(), emulated::tensor_cores(),
      emulated::split_queries(), emulated::causal_blocks(), emulated::split_keys(),
      emulated::fa2_backward(),  emulated::tma_wgmma(),     emulated::producer_consumers(),
      emulated::ping_pong(),     emulated::next_scores()};
  return all;
}

}  // namespace tilewise::stages
