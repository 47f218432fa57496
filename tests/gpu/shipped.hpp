// The shipped kernels in the form of the course's steps, for the programs that time and measure
// both.
#pragma once

#include "cuda/kernels/attention.hpp"
#include "stages/cuda_stage.hpp"
#include "stages/gpu/gpu.hpp"

#include <algorithm>
#include <cstddef>
#include <vector>

namespace tilewise::gpu_tests {

inline DeviceLimits limits_of_gpu() {
  const stages::Gpu& gpu = stages::this_gpu();
  return {gpu.compute_capability, 80, gpu.multiprocessors, gpu.shared_bytes_a_block};
}

/// The forward call and, where gradients are asked for, the backward call.
inline std::vector<DeviceCall> calls_of(const stages::CudaArgs& args) {
  const auto rows = [&](const void* data, std::int64_t n, std::int64_t heads) {
    TensorView view =
        contiguous(const_cast<void*>(data), args.dtype, args.batch, n, heads, args.head_dim);
    view.device = {DeviceType::cuda, 0};
    return view;
  };
  DeviceCall call;
  call.params.softmax_scale = static_cast<double>(args.softmax_scale);
  call.params.causal = args.causal;
  call.max_seqlen_q = args.seqlen_q;
  call.max_seqlen_k = args.seqlen_k;
  AttentionTensors& t = call.tensors;
  t.q = rows(args.q, args.seqlen_q, args.nheads_q);
  t.k = rows(args.k, args.seqlen_k, args.nheads_k);
  t.v = rows(args.v, args.seqlen_k, args.nheads_k);
  t.o = rows(args.o, args.seqlen_q, args.nheads_q);
  t.lse = contiguous(args.lse, DType::f32, args.batch, args.nheads_q, args.seqlen_q);
  if (!args.backward) return {call};
  DeviceCall backward = call;
  backward.backward = true;
  backward.tensors.dout = rows(args.dout, args.seqlen_q, args.nheads_q);
  backward.tensors.dq = rows(args.dq, args.seqlen_q, args.nheads_q);
  backward.tensors.dk = rows(args.dk, args.seqlen_k, args.nheads_k);
  backward.tensors.dv = rows(args.dv, args.seqlen_k, args.nheads_k);
  return {call, backward};
}

inline Status run_shipped(const stages::CudaArgs& args) {
  Status status;
  for (const DeviceCall& call : calls_of(args))
    if (status.ok())
      status = cuda::gpu::compute(call, limits_of_gpu(), args.workspace, args.stream);
  return status;
}

inline std::size_t shipped_workspace_bytes(const stages::CudaArgs& args) {
  std::size_t most = 0;
  for (const DeviceCall& call : calls_of(args))
    most = std::max(most, cuda::workspace_bytes(call, limits_of_gpu()));
  return most;
}

/// cuda.sm80 as a step of 16-bit numbers.
inline stages::CudaStep shipped(std::string_view name, bool backward) {
  stages::CudaStep step{};
  step.name = name;
  step.features.backward = backward;
  step.features.f16 = step.features.bf16 = true;
  step.features.compute_capability = 80;
  step.run = run_shipped;
  step.workspace_bytes = shipped_workspace_bytes;
  return step;
}

}  // namespace tilewise::gpu_tests
