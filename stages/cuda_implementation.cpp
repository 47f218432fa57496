#include "stages/cuda_implementation.hpp"

#include "stages/cuda_problem.hpp"

#include <utility>
#include <vector>

namespace tilewise::stages {
namespace {

std::vector<CudaTensor> tensors_of(const AttentionTensors& t, bool backward) {
  using A = CudaArgs;
  std::vector<CudaTensor> all = {
      {"q", t.q, true, [](A& args, void* data) { args.q = data; }},
      {"k", t.k, true, [](A& args, void* data) { args.k = data; }},
      {"v", t.v, true, [](A& args, void* data) { args.v = data; }},
      {"o", t.o, false, [](A& args, void* data) { args.o = data; }},
      {"lse", t.lse, false, [](A& args, void* data) { args.lse = static_cast<float*>(data); }}};
  if (!backward) return all;
  all.push_back({"dout", t.dout, true, [](A& args, void* data) { args.dout = data; }});
  all.push_back({"dq", t.dq, false, [](A& args, void* data) { args.dq = data; }});
  all.push_back({"dk", t.dk, false, [](A& args, void* data) { args.dk = data; }});
  all.push_back({"dv", t.dv, false, [](A& args, void* data) { args.dv = data; }});
  return all;
}

}  // namespace

harness::Support CudaImplementation::supports(const Problem& problem) const {
  std::string why = reason_of_device();
  if (why.empty()) why = reason_against(problem, step_.features);
  return why.empty() ? harness::Support::yes() : harness::Support::no(std::move(why));
}

std::size_t CudaImplementation::workspace_bytes(const Problem& problem) const {
  return step_.workspace_bytes == nullptr ? 0 : step_.workspace_bytes(sizes_of(problem));
}

std::optional<double> CudaImplementation::bytes_moved(const Problem& problem) const {
  if (step_.bytes_moved == nullptr) return std::nullopt;
  return step_.bytes_moved(sizes_of(problem));
}

Status CudaImplementation::run(const harness::Call& call) const {
  const harness::Support support = supports(call.problem);
  if (!support.ok) return failure(Code::unsupported, "%s", support.reason.c_str());
  CudaArgs args = sizes_of(call.problem);
  args.softmax_scale = static_cast<float>(call.params.softmax_scale);
  if (!all_plain(args, call.tensors))
    return failure(Code::unsupported,
                   "the steps take contiguous tensors [batch, seqlen, nheads, head_dim]");
  return run_there(call, args, tensors_of(call.tensors, args.backward));
}

}  // namespace tilewise::stages
