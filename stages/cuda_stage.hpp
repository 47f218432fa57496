// What a CUDA step of the course is given: one attention problem whose tensors are in the device's
// memory, contiguous, [batch, seqlen, nheads, head_dim].
//
// The same file is compiled for the GPU by nvcc and for the emulator by the C++ compiler. The
// plumbing is stages/cuda_adapter.hpp's.
#pragma once

#include "core/dtype.hpp"
#include "core/status.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace tilewise::stages {

struct CudaArgs {
  std::int64_t batch, nheads_q, nheads_k;
  std::int64_t seqlen_q, seqlen_k;
  std::int64_t head_dim;  ///< of q, k, v and o
  float softmax_scale;
  bool causal;  ///< row i looks at keys j <= i + seqlen_k - seqlen_q (bottom-right)
  DType dtype;  ///< of all tensors but lse, which is float

  const void *q, *k, *v;
  void* o;
  float* lse;  ///< [batch, nheads_q, seqlen_q], natural logarithm; -inf for rows without keys

  bool backward = false;  ///< fill dq, dk, dv as well, from dout; o and lse on the way
  const void* dout;
  void *dq, *dk, *dv;

  void* workspace;  ///< of the device; as many bytes as the step asked for; contents arbitrary
  void* stream;     ///< a cudaStream_t
};

struct CudaFeatures {
  bool causal = false;
  bool grouped_heads = false;
  bool backward = false;
  bool f32 = false, f16 = false, bf16 = false;
  int most_head_dim = 128;  ///< served: multiples of `head_dim_multiple` up to this
  int head_dim_multiple = 1;
  int compute_capability = 75;  ///< the least
  bool exactly = false;         ///< and the only one: of an architecture's own instructions
};

struct CudaStep {
  std::string_view name;  ///< "3a_thread_a_row"; the table puts "stage." or "emulated." before it
  std::string_view idea;  ///< one sentence
  CudaFeatures features;
  Status (*run)(const CudaArgs&);
  std::size_t (*workspace_bytes)(const CudaArgs&);  ///< null: none
  /// Bytes between HBM and the chip, by the papers' own formula for these sizes; null: none worked
  /// out. The emulator counts them.
  double (*bytes_moved)(const CudaArgs&);
  /// Whether dq has the same bits in every run, as all other outputs have: not if blocks add to it
  /// in the order in which they come.
  bool repeatable_dq = true;
  const char* left_out = nullptr;  ///< why this build does not have it
};

/// Every CUDA step, in the course's order: of the emulator, and of the GPU where this build has it.
std::span<const CudaStep> emulated_steps();
std::span<const CudaStep> gpu_steps();

}  // namespace tilewise::stages
