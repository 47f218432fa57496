#include "stages/cuda_problem.hpp"

#include "stages/plain_problem.hpp"

#include <utility>

namespace tilewise::stages {

CudaArgs sizes_of(const Problem& problem) {
  CudaArgs args{};
  args.batch = problem.batch;
  args.nheads_q = problem.nheads_q;
  args.nheads_k = problem.nheads_k;
  args.seqlen_q = problem.max_seqlen_q();
  args.seqlen_k = problem.max_seqlen_k();
  args.head_dim = problem.head_dim;
  args.softmax_scale = static_cast<float>(problem.scale());
  args.causal = problem.causal;
  args.dtype = problem.dtype;
  args.backward = problem.pass == Pass::backward;
  return args;
}

std::string reason_against(const Problem& problem, const CudaFeatures& can) {
  const bool served = (problem.dtype == DType::f32 && can.f32) ||
                      (problem.dtype == DType::f16 && can.f16) ||
                      (problem.dtype == DType::bf16 && can.bf16);
  if (!served) {
    std::string dtypes;
    for (const auto& [name, has] :
         {std::pair{"f32", can.f32}, std::pair{"f16", can.f16}, std::pair{"bf16", can.bf16}})
      if (has) dtypes += (dtypes.empty() ? "" : " or ") + std::string(name);
    return "this step computes in " + dtypes + " only";
  }
  const Features features{can.causal, can.grouped_heads, true, can.backward};
  if (const char* why = reason_against(problem, features)) return why;
  if (problem.head_dim_v != problem.head_dim) return "q, k, v and o have one head_dim here";
  if (problem.head_dim > can.most_head_dim)
    return "head_dim is at most " + std::to_string(can.most_head_dim) + " here";
  if (problem.head_dim % can.head_dim_multiple != 0)
    return "head_dim is a multiple of " + std::to_string(can.head_dim_multiple) + " here";
  return {};
}

std::string reason_against_device(const CudaFeatures& can, int compute_capability,
                                  std::string_view device) {
  const int wanted = can.compute_capability;
  if (can.exactly ? wanted == compute_capability : wanted <= compute_capability) return {};
  std::string not_for = "not for " + std::string(device);
  if (!can.exactly) return not_for;
  return "for compute capability " + std::to_string(wanted / 10) + "." +
         std::to_string(wanted % 10) + " alone, " + not_for;
}

bool all_plain(const CudaArgs& args, const AttentionTensors& t) {
  const auto queries = [&](const TensorView& view) {
    return plain(view, args.dtype, args.batch, args.seqlen_q, args.nheads_q, args.head_dim);
  };
  const auto keys = [&](const TensorView& view) {
    return plain(view, args.dtype, args.batch, args.seqlen_k, args.nheads_k, args.head_dim);
  };
  if (!queries(t.q) || !keys(t.k) || !keys(t.v) || !queries(t.o)) return false;
  if (!plain_lse(t.lse, args.batch, args.nheads_q, args.seqlen_q)) return false;
  return !args.backward || (queries(t.dout) && queries(t.dq) && keys(t.dk) && keys(t.dv));
}

}  // namespace tilewise::stages
