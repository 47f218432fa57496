// The shipped CUDA kernels, by the vocabulary of core/: what they serve, and the calls.
//
// Nothing here allocates, synchronises or looks at device memory: a call puts work into a stream
// and can be captured in a graph. Every function of kernels exists twice, for the GPU and for the
// emulator (cuda/device/platform.hpp).
#pragma once

#include "core/attention.hpp"
#include "core/status.hpp"

namespace tilewise::cuda {

/// ok, if the forward pass of these parameters and tensors is computed here; else what of it is
/// not, by name. Looks at shapes, strides, dtypes and addresses, never at memory. Tensors have been
/// checked to fit together.
Status serves_forward(const AttentionParams& params, const AttentionTensors& tensors);

#define TILEWISE_CUDA_CALLS                                                            \
  /* O, and LSE where it is present. `stream` is a cudaStream_t; the status is that */ \
  /* of the launch (cuda/device/launch.hpp). */                                        \
  Status forward(const AttentionParams& params, const AttentionTensors& tensors, void* stream);

namespace emulated {
TILEWISE_CUDA_CALLS
}
namespace gpu {
TILEWISE_CUDA_CALLS
}
#undef TILEWISE_CUDA_CALLS

}  // namespace tilewise::cuda
