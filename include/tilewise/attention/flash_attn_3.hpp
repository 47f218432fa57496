// flash-attn 3 (hopper/flash_attn_interface.py). Its functions have the names of flash-attn 2's and
// other arguments: no dropout and no ALiBi; chunks, lengths in use, and factors of fp8 tensors. A
// row without keys has LSE -inf.
//
// pack_gqa, sm_margin and scheduler_metadata, which tune a GPU kernel and change no result, are no
// arguments here.
#pragma once

#include "cache.hpp"

#include <array>
#include <cstdint>
#include <optional>

namespace tilewise {
inline namespace TILEWISE_CPP {

namespace attention_detail {

/// The keyword arguments that both structs of flash-attn 3 have.
template <class Args>
void set_flash_attn_3(Description& description, const Args& args) {
  tilewise_attention& attention = description.attention;
  attention.causal = args.causal;
  attention.q_descale = args.q_descale;
  attention.k_descale = args.k_descale;
  attention.v_descale = args.v_descale;
  attention.window_left = args.window_size[0];
  attention.window_right = args.window_size[1];
  attention.attention_chunk = args.attention_chunk;
  attention.softcap = args.softcap;
  attention.num_splits = args.num_splits;
  set_scale(description, args.softmax_scale);
  if (is_given(args.qv))
    description = not_served(description, "qv is given; scores of a second query are not served");
}
}  // namespace attention_detail

namespace fa3 {

/// The keyword arguments of flash_attn_func and its like.
struct FlashAttnArgs {
  Tensor seqused_q = {};  ///< i32 [batch], of the varlen function: rows in use of each sequence
  Tensor seqused_k = {};
  std::optional<double> softmax_scale = {};  ///< none: 1 / sqrt(head_dim)
  bool causal = false;                       ///< bottom-right
  Tensor qv = {};                            ///< not served
  /// f32 [batch, nheads_k]: what the numbers of q (of all heads in a group), k and v are
  /// multiplied by.
  Tensor q_descale = {}, k_descale = {}, v_descale = {};
  std::array<std::int64_t, 2> window_size = {-1, -1};
  std::int64_t attention_chunk = 0;
  double softcap = 0.0;
  std::int32_t num_splits = 1;
  bool deterministic = false;
};

/// The keyword arguments of flash_attn_with_kvcache.
struct FlashAttnWithKvcacheArgs {
  Tensor k = {}, v = {};  ///< [batch, seqlen_new, nheads_k, width]: appended to the cache
  Tensor qv = {};         ///< not served
  Tensor rotary_cos = {}, rotary_sin = {};  ///< [positions, pairs], q's dtype or f32
  CacheSeqlens cache_seqlens = {};          ///< rows of the cache that count before the call
  Tensor cache_batch_idx = {};              ///< i32 [batch]
  Tensor cache_leftpad = {};                ///< i32 [batch]
  Tensor page_table = {};                   ///< i32 [batch, pages of a sequence], any page size
  Tensor cu_seqlens_q = {};                 ///< q and out are packed, [total_q, nheads_q, width]
  Tensor cu_seqlens_k_new = {};             ///< not served: k and v are not packed
  std::int64_t max_seqlen_q = 0;
  Tensor rotary_seqlens = {};  ///< not served: positions are those of the cache
  Tensor q_descale = {}, k_descale = {}, v_descale = {};
  std::optional<double> softmax_scale = {};
  bool causal = false;
  std::array<std::int64_t, 2> window_size = {-1, -1};
  std::int64_t attention_chunk = 0;
  double softcap = 0.0;
  bool rotary_interleaved = true;
  std::int32_t num_splits = 0;
  bool return_softmax_lse =
      false;  ///< refuses a call without softmax_lse, which is written if given
};

namespace describe {

inline Description flash_attn_func(const Tensor& q, const Tensor& k, const Tensor& v,
                                   const Tensor& out, const Tensor& softmax_lse,
                                   const FlashAttnArgs& args = {}) {
  Description description = attention_detail::begin("fa3", TILEWISE_FORWARD);
  attention_detail::set_forward(description.attention, q, k, v, out, softmax_lse);
  attention_detail::set_flash_attn_3(description, args);
  description.attention.deterministic = args.deterministic;
  description.attention.seqlens_q = args.seqused_q;
  description.attention.seqlens_k = args.seqused_k;
  return description;
}

inline Description flash_attn_varlen_func(const Tensor& q, const Tensor& k, const Tensor& v,
                                          const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k,
                                          std::int64_t max_seqlen_q, std::int64_t max_seqlen_k,
                                          const Tensor& out, const Tensor& softmax_lse,
                                          const FlashAttnArgs& args = {}) {
  Description description = flash_attn_func(q, k, v, out, softmax_lse, args);
  attention_detail::set_varlen(description, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
                               {});
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
  Description description = flash_attn_backward(dout, q, k, v, out, softmax_lse, dq, dk, dv, args);
  attention_detail::set_varlen(description, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
                               {});
  return description;
}

inline Description flash_attn_with_kvcache(const Tensor& q, const Tensor& k_cache,
                                           const Tensor& v_cache, const Tensor& out,
                                           const Tensor& softmax_lse,
                                           const FlashAttnWithKvcacheArgs& args = {}) {
  Description description = attention_detail::begin("fa3", TILEWISE_FORWARD);
  attention_detail::set_forward(description.attention, q, k_cache, v_cache, out, softmax_lse);
  const bool packed = is_given(args.cu_seqlens_q);
  attention_detail::set_cache(description, packed ? args.cu_seqlens_q.shape[0] - 1 : q.shape[0],
                              args.page_table, args);
  attention_detail::set_flash_attn_3(description, args);
  description.attention.cu_seqlens_q = args.cu_seqlens_q;
  description.attention.max_seqlen_q = args.max_seqlen_q;
  if (is_given(args.cu_seqlens_k_new))
    return attention_detail::not_served(
        description, "cu_seqlens_k_new is given; new keys are served as [batch, seqlen_new, ..]");
  if (is_given(args.rotary_seqlens))
    return attention_detail::not_served(
        description, "rotary_seqlens is given; positions are served from cache_seqlens alone");
  if (args.return_softmax_lse && !is_given(softmax_lse))
    return attention_detail::refused(description,
                                     "return_softmax_lse is set and softmax_lse is absent");
  return description;
}

}  // namespace describe

/// q, out [batch, seqlen_q, nheads_q, ..], k, v [batch, seqlen_k, nheads_k, ..]; softmax_lse f32
/// [batch, nheads_q, seqlen_q], or {} if not wanted. Of fp8 tensors, out is bf16 (or f32).
inline Result flash_attn_func(Context& context, const Tensor& q, const Tensor& k, const Tensor& v,
                              const Tensor& out, const Tensor& softmax_lse,
                              const FlashAttnArgs& args = {}) {
  return run(context, describe::flash_attn_func(q, k, v, out, softmax_lse, args));
}

/// The same on packed sequences.
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

/// Appends k and v, turned by their positions, to the cache, and attends to it all; as flash-attn
/// 2's function of that name, with queries that may be packed.
inline Result flash_attn_with_kvcache(Context& context, const Tensor& q, const Tensor& k_cache,
                                      const Tensor& v_cache, const Tensor& out,
                                      const Tensor& softmax_lse,
                                      const FlashAttnWithKvcacheArgs& args = {}) {
  return run(context,
             describe::flash_attn_with_kvcache(q, k_cache, v_cache, out, softmax_lse, args));
}

}  // namespace fa3
}  // namespace TILEWISE_CPP
}  // namespace tilewise
