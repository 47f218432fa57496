// torch.nn.functional.scaled_dot_product_attention.
#pragma once

#include "call.hpp"

#include <optional>

namespace tilewise {
inline namespace TILEWISE_CPP {

/// The keyword arguments of torch.nn.functional.scaled_dot_product_attention.
struct ScaledDotProductAttentionArgs {
  Tensor attn_mask = {};   ///< bool (true: may look) or floating (added), broadcast to [N, H, L, S]
  double dropout_p = 0.0;  ///< applied whenever it is set: there is no training flag
  bool is_causal = false;  ///< top-left; not together with attn_mask
  std::optional<double> scale = {};  ///< none: 1 / sqrt(E)
  bool enable_gqa = false;           ///< without it, query and key have equally many heads
  Philox rng_state = {};             ///< in place of PyTorch's global generator
};

namespace attention_detail {

/// [N, H, L, E], [N, L, E] or [L, E] as [N, L, H, E].
inline bool heads_first(const Tensor& given, Tensor& view) {
  if (given.ndim < 2 || given.ndim > 4) return false;
  view = given;
  view.ndim = 4;
  for (int dim = 0; dim < 4; ++dim) view.shape[dim] = view.strides[dim] = 1;
  const int last = given.ndim - 1;
  view.shape[3] = given.shape[last];
  view.strides[3] = given.strides[last];
  view.shape[1] = given.shape[last - 1];
  view.strides[1] = given.strides[last - 1];
  if (given.ndim >= 3) {
    view.shape[0] = given.shape[0];
    view.strides[0] = given.strides[0];
  }
  if (given.ndim == 4) {
    view.shape[2] = given.shape[1];
    view.strides[2] = given.strides[1];
  }
  return true;
}

/// A mask broadcast against scores of `scores` dimensions, the last aligned: as [N, H, L, S].
inline bool broadcast_mask(const Tensor& given, int scores, Tensor& view) {
  if (given.ndim < 1 || given.ndim > scores) return false;
  view = given;
  view.ndim = 4;
  for (int dim = 0; dim < 4; ++dim) {
    view.shape[dim] = 1;
    view.strides[dim] = 1;
  }
  for (int dim = 0; dim < given.ndim; ++dim) {
    int place = 4 - given.ndim + dim;
    if (scores == 3 && place == 1) place = 0;  // [N, L, S]: there is no dimension of heads
    view.shape[place] = given.shape[dim];
    view.strides[place] = given.strides[dim];
  }
  return true;
}

}  // namespace attention_detail

namespace describe {

inline Description scaled_dot_product_attention(const Tensor& query, const Tensor& key,
                                                const Tensor& value, const Tensor& out,
                                                const ScaledDotProductAttentionArgs& args = {}) {
  Description description = attention_detail::begin("torch_sdpa", TILEWISE_FORWARD);
  tilewise_attention& attention = description.attention;
  if (query.ndim != key.ndim || query.ndim != value.ndim || query.ndim != out.ndim ||
      !attention_detail::heads_first(query, attention.q) ||
      !attention_detail::heads_first(key, attention.k) ||
      !attention_detail::heads_first(value, attention.v) ||
      !attention_detail::heads_first(out, attention.o))
    return attention_detail::refused(
        description,
        "query, key, value and out have other numbers of dimensions; expected "
        "4 of each, [N, H, L, E], or 3, or 2");
  if (args.is_causal && is_given(args.attn_mask))
    return attention_detail::refused(description,
                                     "attn_mask and is_causal are both given; expected one");
  if (!args.enable_gqa && attention.q.shape[2] != attention.k.shape[2])
    return attention_detail::refused(
        description,
        "query and key have different numbers of heads; expected the same without enable_gqa");
  attention.causal = args.is_causal;
  if (is_given(args.attn_mask)) {
    Tensor& mask = args.attn_mask.dtype == TILEWISE_BOOL ? attention.mask : attention.bias;
    if (!attention_detail::broadcast_mask(args.attn_mask, query.ndim, mask))
      return attention_detail::refused(description,
                                       "attn_mask has more dimensions than the scores, or none");
  }
  attention_detail::set_dropout(attention, args.dropout_p, args.rng_state);
  attention_detail::set_scale(description, args.scale);
  return description;
}

}  // namespace describe

/// torch.nn.functional.scaled_dot_product_attention: query, out [N, H, L, E], key, value
/// [N, H, S, E] (E of value and out may differ), or without H, or without N and H. A row without
/// keys gives 0.
inline Result scaled_dot_product_attention(Context& context, const Tensor& query, const Tensor& key,
                                           const Tensor& value, const Tensor& out,
                                           const ScaledDotProductAttentionArgs& args = {}) {
  return run(context, describe::scaled_dot_product_attention(query, key, value, out, args));
}

}  // namespace TILEWISE_CPP
}  // namespace tilewise
