// A problem as a CUDA step sees it, wherever it runs.
#pragma once

#include "oracle/harness/implementation.hpp"
#include "stages/cuda_stage.hpp"

#include <string>
#include <string_view>

namespace tilewise::stages {

/// The sizes of a problem; no tensors yet.
CudaArgs sizes_of(const Problem& problem);

/// What of the problem a step with these features does not do; empty when it does all of it.
std::string reason_against(const Problem& problem, const CudaFeatures& can);

/// Why a step with these features cannot run on `device`, which has this compute capability
/// (90: 9.0); empty when it can.
std::string reason_against_device(const CudaFeatures& can, int compute_capability,
                                  std::string_view device);

/// Whether all tensors of a call are contiguous, [batch, seqlen, nheads, head_dim].
bool all_plain(const CudaArgs& args, const AttentionTensors& tensors);

}  // namespace tilewise::stages
