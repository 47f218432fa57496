// Attention over disjoint sets of keys, joined.
#pragma once

#include "call.hpp"

#include <cstdint>
#include <initializer_list>

namespace tilewise {
inline namespace TILEWISE_CPP {

/// How LSEs are written, for merge_states.
struct MergeArgs {
  std::int32_t lse_base = TILEWISE_LSE_BASE_E;
  std::int32_t empty_row_lse = TILEWISE_EMPTY_LSE_MINUS_INF;
};

/// Joins attention over disjoint sets of keys by LSE. outs[i] [batch, seqlen, nheads, head_dim_v]
/// beside lses[i] [batch, nheads, seqlen], or packed; a part with an infinite LSE counts nothing.
/// `lse` may be {}.
inline Result merge_states(Context& context, std::initializer_list<Tensor> outs,
                           std::initializer_list<Tensor> lses, const Tensor& out, const Tensor& lse,
                           const MergeArgs& args = {}) {
  if (outs.size() != lses.size())
    return Result::failure(TILEWISE_BAD_ARGUMENT, "outs and lses differ in number");
  tilewise_error error = TILEWISE_ERROR_INIT;
  (void)tilewise_merge_states(context.get(), static_cast<std::int64_t>(outs.size()), outs.begin(),
                              lses.begin(), &out, &lse, args.lse_base, args.empty_row_lse, nullptr,
                              &error);
  return Result(error);
}

}  // namespace TILEWISE_CPP
}  // namespace tilewise
