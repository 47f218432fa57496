#include "stages/cuda_steps.hpp"

namespace tilewise::stages {

std::span<const CudaStep> gpu_steps() {
  static const CudaStep all[] = {gpu::thread_a_row(),  gpu::paper_loops(),   gpu::warp_tiles(),
                                 gpu::fa1_backward(),  gpu::swapped_loops(), gpu::tensor_cores(),
                                 gpu::split_queries(), gpu::causal_blocks(), gpu::split_keys(),
                                 gpu::fa2_backward()};
  return all;
}

}  // namespace tilewise::stages
