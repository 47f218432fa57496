// xformers.ops.memory_efficient_attention and its masks (xformers/ops/fmha).
#pragma once

#include "call.hpp"

#include <cstdint>
#include <optional>

namespace tilewise {
inline namespace TILEWISE_CPP {

/// What xformers calls an attn_bias (xformers/ops/fmha/attn_bias.py). Made by the classes below,
/// which have its classes' names; or a plain tensor, added to the scores: [B, H, M, N], each of
/// which may be 1.
struct AttentionBias {
  AttentionBias() = default;
  AttentionBias(const Tensor& added) : bias(added) {}  // NOLINT(google-explicit-constructor)

  Tensor bias = {};
  bool causal = false, bottom_right = false;
  bool counts_self = false;  ///< window_left counts the query's own key
  std::int64_t window_left = -1, window_right = -1;
  Tensor cu_seqlens_q = {}, cu_seqlens_k = {}, seqlens_k = {};
  std::int64_t max_seqlen_q = 0, max_seqlen_k = 0;
  /// Keys lie in stretches of this length: those of a sequence each, or pages.
  std::int64_t padding = 0;
  Tensor block_table = {}, leftpad = {};  ///< of pages
};

/// Query i looks at keys j <= i: aligned top-left.
struct LowerTriangularMask : AttentionBias {
  LowerTriangularMask() { causal = true; }
};

struct LowerTriangularMaskWithTensorBias : LowerTriangularMask {
  explicit LowerTriangularMaskWithTensorBias(const Tensor& added) { bias = added; }
};

/// The last query looks at the last key.
struct LowerTriangularFromBottomRightMask : AttentionBias {
  LowerTriangularFromBottomRightMask() { causal = bottom_right = true; }
};

/// The same, of which each query looks at the last window_size keys, its own among them.
struct LowerTriangularFromBottomRightLocalAttentionMask : LowerTriangularFromBottomRightMask {
  explicit LowerTriangularFromBottomRightLocalAttentionMask(std::int64_t window_size) {
    window_left = window_size;
    counts_self = true;
  }
};

/// Keys from window_left before to window_right after the query's own, aligned bottom-right.
struct LocalAttentionFromBottomRightMask : AttentionBias {
  LocalAttentionFromBottomRightMask(std::int64_t left, std::int64_t right) {
    bottom_right = true;
    window_left = left;
    window_right = right;
  }
};

/// Sequences one after the other, each of which sees itself alone; query [1, total, H, K].
/// cu_seqlens i32 [batch + 1] (their seqstart), and the longest lengths, 0 if not known.
struct BlockDiagonalMask : AttentionBias {
  BlockDiagonalMask(const Tensor& cu_q, const Tensor& cu_k, std::int64_t max_q = 0,
                    std::int64_t max_k = 0) {
    cu_seqlens_q = cu_q;
    cu_seqlens_k = cu_k;
    max_seqlen_q = max_q;
    max_seqlen_k = max_k;
  }
};

/// Causal in each block, top-left.
struct BlockDiagonalCausalMask : BlockDiagonalMask {
  BlockDiagonalCausalMask(const Tensor& cu_q, const Tensor& cu_k, std::int64_t max_q = 0,
                          std::int64_t max_k = 0)
      : BlockDiagonalMask(cu_q, cu_k, max_q, max_k) {
    causal = true;
  }
};

/// Causal in each block, bottom-right.
struct BlockDiagonalCausalFromBottomRightMask : BlockDiagonalMask {
  BlockDiagonalCausalFromBottomRightMask(const Tensor& cu_q, const Tensor& cu_k,
                                         std::int64_t max_q = 0, std::int64_t max_k = 0)
      : BlockDiagonalMask(cu_q, cu_k, max_q, max_k) {
    causal = bottom_right = true;
  }
};

/// Causal in each block, top-left, and at most window_size keys back, the query's own among them.
struct BlockDiagonalCausalLocalAttentionMask : BlockDiagonalCausalMask {
  BlockDiagonalCausalLocalAttentionMask(const Tensor& cu_q, const Tensor& cu_k,
                                        std::int64_t window_size, std::int64_t max_q = 0,
                                        std::int64_t max_k = 0)
      : BlockDiagonalCausalMask(cu_q, cu_k, max_q, max_k) {
    window_left = window_size;
    counts_self = true;
  }
};

struct BlockDiagonalCausalLocalAttentionFromBottomRightMask
    : BlockDiagonalCausalFromBottomRightMask {
  BlockDiagonalCausalLocalAttentionFromBottomRightMask(const Tensor& cu_q, const Tensor& cu_k,
                                                       std::int64_t window_size,
                                                       std::int64_t max_q = 0,
                                                       std::int64_t max_k = 0)
      : BlockDiagonalCausalFromBottomRightMask(cu_q, cu_k, max_q, max_k) {
    window_left = window_size;
    counts_self = true;
  }
};

/// Packed queries beside keys in stretches of kv_padding, [1, batch * kv_padding, H, K], of which
/// the first kv_seqlen (i32 [batch]) are in use.
struct BlockDiagonalPaddedKeysMask : AttentionBias {
  BlockDiagonalPaddedKeysMask(const Tensor& cu_q, std::int64_t kv_padding, const Tensor& kv_seqlen,
                              std::int64_t max_q = 0) {
    cu_seqlens_q = cu_q;
    padding = kv_padding;
    seqlens_k = kv_seqlen;
    max_seqlen_q = max_q;
  }
};

/// The same, causal: the last query of a block looks at its last key in use.
struct BlockDiagonalCausalWithOffsetPaddedKeysMask : BlockDiagonalPaddedKeysMask {
  BlockDiagonalCausalWithOffsetPaddedKeysMask(const Tensor& cu_q, std::int64_t kv_padding,
                                              const Tensor& kv_seqlen, std::int64_t max_q = 0)
      : BlockDiagonalPaddedKeysMask(cu_q, kv_padding, kv_seqlen, max_q) {
    causal = bottom_right = true;
  }
};

struct BlockDiagonalLocalAttentionPaddedKeysMask : BlockDiagonalPaddedKeysMask {
  BlockDiagonalLocalAttentionPaddedKeysMask(const Tensor& cu_q, std::int64_t kv_padding,
                                            const Tensor& kv_seqlen, std::int64_t left,
                                            std::int64_t right, std::int64_t max_q = 0)
      : BlockDiagonalPaddedKeysMask(cu_q, kv_padding, kv_seqlen, max_q) {
    bottom_right = true;
    window_left = left;
    window_right = right;
  }
};

struct BlockDiagonalCausalLocalAttentionPaddedKeysMask
    : BlockDiagonalCausalWithOffsetPaddedKeysMask {
  BlockDiagonalCausalLocalAttentionPaddedKeysMask(const Tensor& cu_q, std::int64_t kv_padding,
                                                  const Tensor& kv_seqlen, std::int64_t window_size,
                                                  std::int64_t max_q = 0)
      : BlockDiagonalCausalWithOffsetPaddedKeysMask(cu_q, kv_padding, kv_seqlen, max_q) {
    window_left = window_size;
    counts_self = true;
  }
};

/// Packed queries and keys, of whose stretches the first kv_seqlen keys are in use.
struct BlockDiagonalGappyKeysMask : BlockDiagonalMask {
  BlockDiagonalGappyKeysMask(const Tensor& cu_q, const Tensor& kv_seqstarts,
                             const Tensor& kv_seqlen, std::int64_t max_q = 0)
      : BlockDiagonalMask(cu_q, kv_seqstarts, max_q) {
    seqlens_k = kv_seqlen;
  }
};

struct BlockDiagonalCausalWithOffsetGappyKeysMask : BlockDiagonalGappyKeysMask {
  BlockDiagonalCausalWithOffsetGappyKeysMask(const Tensor& cu_q, const Tensor& kv_seqstarts,
                                             const Tensor& kv_seqlen, std::int64_t max_q = 0)
      : BlockDiagonalGappyKeysMask(cu_q, kv_seqstarts, kv_seqlen, max_q) {
    causal = bottom_right = true;
  }
};

/// Packed queries beside keys in pages of page_size, [1, pages page_size, H, K]; block_tables i32
/// [batch, pages of a sequence] says which pages a sequence has, and its first kv_seqlen keys (i32
/// [batch]) are in use.
struct PagedBlockDiagonalPaddedKeysMask : AttentionBias {
  PagedBlockDiagonalPaddedKeysMask(const Tensor& cu_q, const Tensor& kv_seqlen,
                                   const Tensor& block_tables, std::int64_t page_size,
                                   std::int64_t max_q = 0) {
    cu_seqlens_q = cu_q;
    seqlens_k = kv_seqlen;
    block_table = block_tables;
    padding = page_size;
    max_seqlen_q = max_q;
  }
};

/// The same, causal: the last query of a block looks at its last key in use.
struct PagedBlockDiagonalCausalWithOffsetPaddedKeysMask : PagedBlockDiagonalPaddedKeysMask {
  PagedBlockDiagonalCausalWithOffsetPaddedKeysMask(const Tensor& cu_q, const Tensor& kv_seqlen,
                                                   const Tensor& block_tables,
                                                   std::int64_t page_size, std::int64_t max_q = 0)
      : PagedBlockDiagonalPaddedKeysMask(cu_q, kv_seqlen, block_tables, page_size, max_q) {
    causal = bottom_right = true;
  }
};

/// Pages of whose rows those from kv_seqstart on to before kv_seqend are in use (both i32 [batch],
/// counted from the sequence's first page): what xformers' k_seqinfo holds as seqstart and seqlen.
struct PagedBlockDiagonalGappyKeysMask : PagedBlockDiagonalPaddedKeysMask {
  PagedBlockDiagonalGappyKeysMask(const Tensor& cu_q, const Tensor& kv_seqstart,
                                  const Tensor& kv_seqend, const Tensor& block_tables,
                                  std::int64_t page_size, std::int64_t max_q = 0)
      : PagedBlockDiagonalPaddedKeysMask(cu_q, kv_seqend, block_tables, page_size, max_q) {
    leftpad = kv_seqstart;
  }
};

struct PagedBlockDiagonalCausalWithOffsetGappyKeysMask : PagedBlockDiagonalGappyKeysMask {
  PagedBlockDiagonalCausalWithOffsetGappyKeysMask(const Tensor& cu_q, const Tensor& kv_seqstart,
                                                  const Tensor& kv_seqend,
                                                  const Tensor& block_tables,
                                                  std::int64_t page_size, std::int64_t max_q = 0)
      : PagedBlockDiagonalGappyKeysMask(cu_q, kv_seqstart, kv_seqend, block_tables, page_size,
                                        max_q) {
    causal = bottom_right = true;
  }
};

/// The keyword arguments of xformers.ops.memory_efficient_attention. Its output_dtype is out's.
struct MemoryEfficientAttentionArgs {
  AttentionBias attn_bias = {};
  double p = 0.0;  ///< of dropout
  std::optional<double> scale = {};
  /// f32 [B, H, M], or [H, total] under a BlockDiagonal mask; what
  /// memory_efficient_attention_forward_requires_grad returns beside the output.
  Tensor lse = {};
  Philox rng_state = {};
};

namespace attention_detail {

/// [B, M, G, H, K] as [B, M, G H, K] for queries; for keys and values that are expanded over H
/// (stride 0), as xformers wants it of the caller, as [B, M, G, K].
inline bool four_dimensions(const Tensor& given, bool expanded, Tensor& view) {
  view = given;
  if (given.ndim == 4) return true;
  if (given.ndim != 5) return false;
  view.ndim = 4;
  view.shape[3] = given.shape[4];
  view.strides[3] = given.strides[4];
  view.shape[4] = view.strides[4] = 0;
  if (expanded && (given.strides[3] == 0 || given.shape[3] == 1)) return true;
  if (given.shape[3] != 1 && given.shape[2] != 1 &&
      given.strides[2] != given.shape[3] * given.strides[3])
    return false;
  view.shape[2] = given.shape[2] * given.shape[3];
  view.strides[2] = given.shape[3] == 1 ? given.strides[2] : given.strides[3];
  return true;
}

/// [1, total, H, K] as [total, H, K].
inline bool without_batch(Tensor& view) {
  if (view.shape[0] != 1) return false;
  for (int dim = 0; dim < 3; ++dim) {
    view.shape[dim] = view.shape[dim + 1];
    view.strides[dim] = view.strides[dim + 1];
  }
  view.ndim = 3;
  return true;
}

/// [1, batch * padding, H, K] as [batch, padding, H, K].
inline bool in_stretches(Tensor& view, std::int64_t padding) {
  if (padding < 1 || view.shape[0] != 1 || view.shape[1] % padding != 0) return false;
  view.shape[0] = view.shape[1] / padding;
  view.strides[0] = view.strides[1] * padding;
  view.shape[1] = padding;
  return true;
}

}  // namespace attention_detail

namespace describe {

inline Description memory_efficient_attention(const Tensor& query, const Tensor& key,
                                              const Tensor& value, const Tensor& out,
                                              const MemoryEfficientAttentionArgs& args = {}) {
  Description description = attention_detail::begin("xformers", TILEWISE_FORWARD);
  tilewise_attention& attention = description.attention;
  const AttentionBias& bias = args.attn_bias;
  if (!attention_detail::four_dimensions(query, false, attention.q) ||
      !attention_detail::four_dimensions(key, true, attention.k) ||
      !attention_detail::four_dimensions(value, true, attention.v) ||
      !attention_detail::four_dimensions(out, false, attention.o))
    return attention_detail::refused(
        description,
        "expected tensors [B, M, H, K], or [B, M, G, H, K] with G and H one "
        "dimension in memory and key and value expanded over H");
  if (is_given(bias.cu_seqlens_q)) {
    bool packed = attention_detail::without_batch(attention.q) &&
                  attention_detail::without_batch(attention.o);
    if (bias.padding != 0)
      packed = packed && attention_detail::in_stretches(attention.k, bias.padding) &&
               attention_detail::in_stretches(attention.v, bias.padding);
    else
      packed = packed && attention_detail::without_batch(attention.k) &&
               attention_detail::without_batch(attention.v);
    if (!packed)
      return attention_detail::refused(
          description,
          "a block-diagonal mask wants tensors [1, total, H, K], the total of "
          "padded keys a multiple of the padding, of paged ones of the page size");
    attention_detail::set_packed(attention, bias.cu_seqlens_q, bias.cu_seqlens_k, bias.max_seqlen_q,
                                 bias.max_seqlen_k);
    attention.seqlens_k = bias.seqlens_k;
    attention.block_table = bias.block_table;
    attention.cache_leftpad = bias.leftpad;
  }
  if (bias.counts_self && bias.window_left < 1)
    return attention_detail::refused(description,
                                     "window_size is not positive; expected at least 1");
  attention.bias = bias.bias;
  attention.causal = bias.causal;
  attention.alignment = bias.bottom_right ? TILEWISE_ALIGN_BOTTOM_RIGHT : TILEWISE_ALIGN_TOP_LEFT;
  attention.window_left = bias.window_left;
  attention.window_right = bias.window_right;
  attention.window_left_counts =
      bias.counts_self ? TILEWISE_WINDOW_KEYS_INCLUDING_SELF : TILEWISE_WINDOW_KEYS_BEFORE;
  attention.lse = args.lse;
  attention_detail::set_dropout(attention, args.p, args.rng_state);
  attention_detail::set_scale(description, args.scale);
  return description;
}

}  // namespace describe

/// xformers.ops.memory_efficient_attention: query, out [B, M, H, K], key, value [B, N, H, K].
/// Fewer heads of key and value than of query are grouped-query attention, expanded or not.
inline Result memory_efficient_attention(Context& context, const Tensor& query, const Tensor& key,
                                         const Tensor& value, const Tensor& out,
                                         const MemoryEfficientAttentionArgs& args = {}) {
  return run(context, describe::memory_efficient_attention(query, key, value, out, args));
}

}  // namespace TILEWISE_CPP
}  // namespace tilewise
