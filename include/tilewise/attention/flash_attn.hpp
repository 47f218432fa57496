// flash-attn 2 (flash_attn/flash_attn_interface.py).
#pragma once

#include "cache.hpp"

#include <array>
#include <cstdint>
#include <optional>

namespace tilewise {
inline namespace TILEWISE_CPP {

/// The keyword arguments of flash_attn_func and its like.
struct FlashAttnArgs {
  double dropout_p = 0.0;
  std::optional<double> softmax_scale = {};  ///< none: 1 / sqrt(head_dim)
  bool causal = false;                       ///< bottom-right
  /// Keys before and after the query's own position; -1: unbounded.
  std::array<std::int64_t, 2> window_size = {-1, -1};
  double softcap = 0.0;      ///< not together with dropout, as there
  Tensor alibi_slopes = {};  ///< f32 [nheads_q]
  bool deterministic = false;
  bool return_attn_probs = false;  ///< refused where set: nothing here stores P
  /// i32 [batch, pages], of flash_attn_varlen_func: k and v are pages, [pages, page size, nheads_k,
  /// head_dim], and cu_seqlens_k says how much of them each sequence has. Forward alone.
  Tensor block_table = {};
  Philox rng_state = {};  ///< of dropout; the backward pass wants the forward pass's
};

/// The keyword arguments of flash_attn_with_kvcache.
struct FlashAttnWithKvcacheArgs {
  Tensor k = {}, v = {};  ///< [batch, seqlen_new, nheads_k, head_dim]: appended to the cache
  Tensor rotary_cos = {}, rotary_sin = {};  ///< [positions, pairs], q's dtype or f32
  CacheSeqlens cache_seqlens = {};          ///< rows of the cache that count before the call
  Tensor cache_batch_idx = {};              ///< i32 [batch]
  Tensor cache_leftpad = {};                ///< i32 [batch]
  Tensor block_table = {};                  ///< i32 [batch, pages of a sequence]
  std::optional<double> softmax_scale = {};
  bool causal = false;
  std::array<std::int64_t, 2> window_size = {-1, -1};
  double softcap = 0.0;
  bool rotary_interleaved = true;  ///< pairs (2i, 2i + 1); else (i, i + pairs)
  Tensor alibi_slopes = {};
  std::int32_t num_splits = 0;
  bool return_softmax_lse =
      false;  ///< refuses a call without softmax_lse, which is written if given
};

namespace attention_detail {
inline void set_flash_attn(Description& description, const FlashAttnArgs& args) {
  tilewise_attention& attention = description.attention;
  set_dropout(attention, args.dropout_p, args.rng_state);
  attention.causal = args.causal;
  attention.window_left = args.window_size[0];
  attention.window_right = args.window_size[1];
  attention.softcap = args.softcap;
  attention.alibi_slopes = args.alibi_slopes;
  attention.deterministic = args.deterministic;
  set_scale(description, args.softmax_scale);
  if (args.return_attn_probs)
    description = not_served(description, "return_attn_probs is set; nothing here stores P");
}

inline Description flash_attn(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                              const Tensor& softmax_lse, const FlashAttnArgs& args) {
  Description description = begin("fa2", TILEWISE_FORWARD);
  set_forward(description.attention, q, k, v, out, softmax_lse);
  set_flash_attn(description, args);
  return description;
}
}  // namespace attention_detail

namespace describe {

inline Description flash_attn_func(const Tensor& q, const Tensor& k, const Tensor& v,
                                   const Tensor& out, const Tensor& softmax_lse,
                                   const FlashAttnArgs& args = {}) {
  if (is_given(args.block_table))
    return attention_detail::refused(
        attention_detail::flash_attn(q, k, v, out, softmax_lse, args),
        "block_table is given; it is an argument of flash_attn_varlen_func");
  return attention_detail::flash_attn(q, k, v, out, softmax_lse, args);
}

inline Description flash_attn_varlen_func(const Tensor& q, const Tensor& k, const Tensor& v,
                                          const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k,
                                          std::int64_t max_seqlen_q, std::int64_t max_seqlen_k,
                                          const Tensor& out, const Tensor& softmax_lse,
                                          const FlashAttnArgs& args = {}) {
  Description description = attention_detail::flash_attn(q, k, v, out, softmax_lse, args);
  attention_detail::set_varlen(description, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
                               args.block_table);
  return description;
}

inline Description flash_attn_backward(const Tensor& dout, const Tensor& q, const Tensor& k,
                                       const Tensor& v, const Tensor& out,
                                       const Tensor& softmax_lse, const Tensor& dq,
                                       const Tensor& dk, const Tensor& dv,
                                       const FlashAttnArgs& args = {}) {
  Description description = flash_attn_func(q, k, v, out, softmax_lse, args);
  description.pass = TILEWISE_BACKWARD;
  attention_detail::set_gradients(description.attention, dout, dq, dk, dv);
  return description;
}

inline Description flash_attn_varlen_backward(
    const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
    const Tensor& softmax_lse, const Tensor& dq, const Tensor& dk, const Tensor& dv,
    const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k, std::int64_t max_seqlen_q,
    std::int64_t max_seqlen_k, const FlashAttnArgs& args = {}) {
  Description description = flash_attn_varlen_func(
      q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, out, softmax_lse, args);
  description.pass = TILEWISE_BACKWARD;
  attention_detail::set_gradients(description.attention, dout, dq, dk, dv);
  return description;
}

inline Description flash_attn_with_kvcache(const Tensor& q, const Tensor& k_cache,
                                           const Tensor& v_cache, const Tensor& out,
                                           const Tensor& softmax_lse,
                                           const FlashAttnWithKvcacheArgs& args = {}) {
  Description description = attention_detail::begin("fa2", TILEWISE_FORWARD);
  tilewise_attention& attention = description.attention;
  attention_detail::set_forward(attention, q, k_cache, v_cache, out, softmax_lse);
  attention_detail::set_cache(description, q.shape[0], args.block_table, args);
  attention.causal = args.causal;
  attention.window_left = args.window_size[0];
  attention.window_right = args.window_size[1];
  attention.softcap = args.softcap;
  attention.alibi_slopes = args.alibi_slopes;
  attention.num_splits = args.num_splits;
  attention_detail::set_scale(description, args.softmax_scale);
  if (args.return_softmax_lse && !is_given(softmax_lse))
    return attention_detail::refused(description,
                                     "return_softmax_lse is set and softmax_lse is absent");
  return description;
}

}  // namespace describe

/// flash_attn_func of flash-attn 2. q, out [batch, seqlen_q, nheads_q, head_dim], k, v [batch,
/// seqlen_k, nheads_k, head_dim]; softmax_lse f32 [batch, nheads_q, seqlen_q], or {} if not
/// wanted. A row without keys: out 0, LSE +inf.
inline Result flash_attn_func(Context& context, const Tensor& q, const Tensor& k, const Tensor& v,
                              const Tensor& out, const Tensor& softmax_lse,
                              const FlashAttnArgs& args = {}) {
  return run(context, describe::flash_attn_func(q, k, v, out, softmax_lse, args));
}

/// The same on packed sequences: q, out [total_q, nheads_q, head_dim], k, v [total_k, nheads_k,
/// head_dim]; cu_seqlens i32 [batch + 1]; softmax_lse [nheads_q, total_q].
inline Result flash_attn_varlen_func(Context& context, const Tensor& q, const Tensor& k,
                                     const Tensor& v, const Tensor& cu_seqlens_q,
                                     const Tensor& cu_seqlens_k, std::int64_t max_seqlen_q,
                                     std::int64_t max_seqlen_k, const Tensor& out,
                                     const Tensor& softmax_lse, const FlashAttnArgs& args = {}) {
  return run(context,
             describe::flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
                                              max_seqlen_k, out, softmax_lse, args));
}

/// The backward pass of flash_attn_func, from its out and softmax_lse, with the same arguments.
inline Result flash_attn_backward(Context& context, const Tensor& dout, const Tensor& q,
                                  const Tensor& k, const Tensor& v, const Tensor& out,
                                  const Tensor& softmax_lse, const Tensor& dq, const Tensor& dk,
                                  const Tensor& dv, const FlashAttnArgs& args = {}) {
  return run(context,
             describe::flash_attn_backward(dout, q, k, v, out, softmax_lse, dq, dk, dv, args));
}

/// The backward pass of flash_attn_varlen_func.
inline Result flash_attn_varlen_backward(Context& context, const Tensor& dout, const Tensor& q,
                                         const Tensor& k, const Tensor& v, const Tensor& out,
                                         const Tensor& softmax_lse, const Tensor& dq,
                                         const Tensor& dk, const Tensor& dv,
                                         const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k,
                                         std::int64_t max_seqlen_q, std::int64_t max_seqlen_k,
                                         const FlashAttnArgs& args = {}) {
  return run(context, describe::flash_attn_varlen_backward(dout, q, k, v, out, softmax_lse, dq, dk,
                                                           dv, cu_seqlens_q, cu_seqlens_k,
                                                           max_seqlen_q, max_seqlen_k, args));
}

/// flash_attn_with_kvcache: appends k and v, turned by their positions, to the cache behind
/// cache_seqlens, and attends to it all. k_cache, v_cache [cache rows, capacity, nheads_k,
/// head_dim], or with a block_table [pages, page size, nheads_k, head_dim]; they are written.
/// Forward alone.
inline Result flash_attn_with_kvcache(Context& context, const Tensor& q, const Tensor& k_cache,
                                      const Tensor& v_cache, const Tensor& out,
                                      const Tensor& softmax_lse,
                                      const FlashAttnWithKvcacheArgs& args = {}) {
  return run(context,
             describe::flash_attn_with_kvcache(q, k_cache, v_cache, out, softmax_lse, args));
}

}  // namespace TILEWISE_CPP
}  // namespace tilewise
