#include "tools/device_calls.hpp"

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

}  // namespace tilewise::tools
