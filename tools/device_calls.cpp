#include "tools/device_calls.hpp"

#include "cuda/kernels/attention.hpp"
#include "oracle/harness/buffers.hpp"

#include <algorithm>

namespace tilewise::tools {

std::vector<DeviceCall> device_calls(const Problem& problem, const AttentionTensors& tensors) {
  DeviceCall call;
  call.params = problem.params();
  call.tensors = tensors;
  call.num_splits = problem.splits;
  call.max_seqlen_q = problem.max_seqlen_q();
  call.max_seqlen_k = problem.max_seqlen_k();
  // The judge expects the same bits of an implementation that declares them repeatable.
  call.deterministic = true;
  DeviceCall forward = call;
  AttentionTensors& t = forward.tensors;
  t.dout = t.dq = t.dk = t.dv = t.dbias = t.dsinks = {};
  if (problem.pass == Pass::forward) return {forward};
  call.backward = true;
  return {forward, call};
}

harness::Support kernels_support(const Problem& problem, const harness::Outputs& outputs,
                                 const DeviceLimits& limits) {
  for (const DeviceCall& call : device_calls(problem, harness::tensor_shapes(problem, outputs)))
    if (const DeviceChoice choice = cuda::choose(call, limits); !choice.status.ok())
      return harness::Support::no(choice.status.reason);
  return harness::Support::yes();
}

std::size_t kernels_workspace(const Problem& problem, const harness::Outputs& outputs,
                              const DeviceLimits& limits) {
  std::size_t most = 0;
  for (const DeviceCall& call : device_calls(problem, harness::tensor_shapes(problem, outputs)))
    most = std::max(most, cuda::workspace_bytes(call, limits));
  return most;
}

}  // namespace tilewise::tools
