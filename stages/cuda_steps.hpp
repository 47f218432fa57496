// The CUDA steps by name, each defined at the end of its own file: what stages/cuda_steps.cpp
// lists. Each exists twice, compiled for the emulator and for the GPU (cuda/device/platform.hpp).
#pragma once

#include "stages/cuda_stage.hpp"

namespace tilewise::stages {

#define TILEWISE_CUDA_STEPS                                                  \
  CudaStep thread_a_row();       /* 3_fa1_cuda/3a_thread_a_row.cu */         \
  CudaStep paper_loops();        /* 3_fa1_cuda/3b_paper_loops.cu */          \
  CudaStep warp_tiles();         /* 3_fa1_cuda/3c_warp_tiles.cu */           \
  CudaStep fa1_backward();       /* 3_fa1_cuda/3d_backward.cu */             \
  CudaStep swapped_loops();      /* 4_fa2_cuda/4a_swapped_loops.cu */        \
  CudaStep tensor_cores();       /* 4_fa2_cuda/4b_tensor_cores.cu */         \
  CudaStep split_queries();      /* 4_fa2_cuda/4c_split_queries.cu */        \
  CudaStep causal_blocks();      /* 4_fa2_cuda/4d_causal_blocks.cu */        \
  CudaStep split_keys();         /* 4_fa2_cuda/4e_split_keys.cu */           \
  CudaStep fa2_backward();       /* 4_fa2_cuda/4f_backward.cu */             \
  CudaStep tma_wgmma();          /* 5_fa3_hopper/5a_tma_wgmma.cu */          \
  CudaStep producer_consumers(); /* 5_fa3_hopper/5b_producer_consumers.cu */ \
  CudaStep ping_pong();          /* 5_fa3_hopper/5c_ping_pong.cu */          \
  CudaStep next_scores();        /* 5_fa3_hopper/5d_next_scores.cu */

namespace emulated {
TILEWISE_CUDA_STEPS
}
namespace gpu {
TILEWISE_CUDA_STEPS
}
#undef TILEWISE_CUDA_STEPS

}  // namespace tilewise::stages
