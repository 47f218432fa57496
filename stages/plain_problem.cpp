#include "stages/plain_problem.hpp"

namespace tilewise::stages {

const char* reason_against(const Problem& problem, const Features& can) {
  const Conventions& conventions = problem.conventions;
  if (problem.layout != Layout::bshd) return "the steps know one layout, bshd";
  if (problem.varlen()) return "the steps take sequences of one length";
  if (problem.window_left >= 0 || problem.window_right >= 0) return "no window in these steps";
  if (problem.softcap != 0) return "no softcap in these steps";
  if (problem.alibi) return "no ALiBi in these steps";
  if (problem.bias) return "no additive bias in these steps";
  if (problem.mask) return "no boolean mask in these steps";
  if (problem.blocks) return "no block mask in these steps";
  if (problem.sink) return "no sink in these steps";
  if (problem.dropout_p > 0) return "no dropout in these steps";
  if (problem.cached()) return "no cache of keys in these steps";
  if (problem.kv || problem.descale) return "no keys with scales in these steps";
  if (problem.splits > 0) return "no splits in these steps";
  if (problem.attention_chunk > 0) return "no chunks in these steps";
  if (problem.pass == Pass::backward && !can.backward) return "this step is forward only";
  if (problem.causal && !can.causal) return "this step has no causal mask yet";
  if (problem.nheads_q != problem.nheads_k && !can.grouped_heads)
    return "this step has as many key heads as query heads";
  if (!can.causal && problem.max_seqlen_k() == 0)
    return "this step does not know rows without keys yet";

  const bool lengths_differ = problem.max_seqlen_q() != problem.max_seqlen_k();
  if (problem.causal && lengths_differ && conventions.alignment != Alignment::bottom_right)
    return "causal here is aligned bottom-right, as flash-attn's is";
  const bool empty_rows = problem.max_seqlen_k() == 0 ||
                          (problem.causal && problem.max_seqlen_q() > problem.max_seqlen_k());
  if (empty_rows && conventions.empty_row_output != EmptyRowOutput::zero)
    return "rows without keys give O = 0 here";
  if (can.lse && conventions.lse_base != LseBase::e) return "LSE is a natural logarithm here";
  if (can.lse && empty_rows && conventions.empty_row_lse == EmptyRowLse::plus_inf)
    return "rows without keys give LSE = -inf here";
  return nullptr;
}

bool plain(const TensorView& view, DType dtype, std::int64_t batch, std::int64_t seqlen,
           std::int64_t nheads, std::int64_t width) {
  const TensorView wanted = contiguous(view.data, dtype, batch, seqlen, nheads, width);
  if (view.ndim != 4 || view.dtype != dtype) return false;
  for (int dim = 0; dim < 4; ++dim) {
    if (view.shape[dim] != wanted.shape[dim]) return false;
    if (view.shape[dim] > 1 && view.strides[dim] != wanted.strides[dim]) return false;
  }
  return true;
}

bool plain_lse(const TensorView& lse, std::int64_t batch, std::int64_t nheads_q,
               std::int64_t seqlen_q) {
  if (!lse.exists() || lse.ndim != 3 || lse.dtype != DType::f32) return false;
  const std::int64_t shape[] = {batch, nheads_q, seqlen_q};
  std::int64_t stride = 1;
  for (int dim = 2; dim >= 0; --dim) {
    if (lse.shape[dim] != shape[dim]) return false;
    if (shape[dim] > 1 && lse.strides[dim] != stride) return false;
    stride *= shape[dim];
  }
  return true;
}

}  // namespace tilewise::stages
