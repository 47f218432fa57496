// What an attention call says beside its tensors, and the tensors' shapes by role.
//
//   S = scale Q K^T          scores          [seqlen_q, seqlen_k] per batch entry and query head
//   S' = bias, softcap, ALiBi and masks applied to S, in the order the conventions name
//   P = softmax(S')          row by row
//   O = P V                  LSE_i = log sum_j exp S'_ij
// With a sink, one more score a head that looks at nothing: it joins the sums of P and LSE, not of
// O. With dropout, P enters the product with V as P Z / (1 - p), Z being 0 or 1 (core/dropout.hpp).
// Query head h reads key/value head h / (nheads_q / nheads_k): grouped-query attention
// (Ainslie et al. 2023, arXiv 2305.13245), with MHA and MQA at its ends.
#pragma once

#include "conventions.hpp"
#include "tensor.hpp"

#include <cstdint>

namespace tilewise {

struct AttentionParams {
  double softmax_scale = 1;
  bool causal = false;
  std::int64_t window_left = -1;   ///< -1: unbounded; what W counts is a convention
  std::int64_t window_right = -1;  ///< -1: unbounded; keys after the query's own position
  /// 0: none; else keys are cut into chunks of this length, and a query sees its own position's
  /// chunk alone (the attention_chunk of flash-attn 3; Llama 4's local layers).
  std::int64_t attention_chunk = 0;
  double softcap = 0;    ///< 0: none; else S becomes softcap tanh(S / softcap)
  double dropout_p = 0;  ///< probability that an element of P is dropped
  std::uint64_t philox_seed = 0, philox_offset = 0;  ///< of dropout's random bits
  Conventions conventions{};
};

/// Which blocks of block_q queries by block_k keys are looked at, as PyTorch's BlockMask lists
/// them: for each row of blocks, how many and which. In a block of the first list every other mask
/// still holds; in a block of the `full` lists (both may be absent) none does. Indices beyond the
/// count are not read.
struct BlockMask {
  std::int64_t block_q = 0, block_k = 0;
  TensorView kv_num_blocks;       ///< i32 [batch or 1, nheads_q or 1, query blocks]
  TensorView kv_indices;          ///< i32 [batch or 1, nheads_q or 1, query blocks, key blocks]
  TensorView full_kv_num_blocks;  ///< the same shapes
  TensorView full_kv_indices;

  bool exists() const { return kv_num_blocks.exists(); }
};

/// Keys and values that are kept between calls, as flash_attn_with_kvcache and vLLM keep them: k
/// and v are the cache, and seqlens_k says how many of its rows count before this call.
///
///   plain   k, v [cache rows, capacity, nheads_k, width]; sequence b has cache row b, or the row
///           that cache_batch_idx names
///   paged   k, v [pages, page size, nheads_k, width] (NHD; HND is a matter of strides); row r of
///           sequence b is row r % page size of page block_table[b][r / page size]
///
/// The first leftpad[b] rows of a sequence's cache are padding, and seqlens_k counts them; no query
/// sees them, and positions count from the first row after them. k_new and v_new are written behind
/// the cache's rows before anything else, then attended to like the others.
///
/// Rotary embedding (Su et al. 2021, arXiv 2104.09864) turns pairs of the first 2 x pairs elements
/// of q and of k_new by the angles of their position in the cache, padding included: that of a new
/// key is where it is stored; queries stand at the same positions as the new keys, or without
/// causal and window all at the first of them. Keys that are in the cache have been turned before.
struct KvCache {
  TensorView block_table;      ///< i32 [batch, pages of a sequence]
  TensorView cache_batch_idx;  ///< i32 [batch]
  TensorView leftpad;          ///< i32 [batch]
  TensorView k_new, v_new;     ///< [batch, seqlen_new, nheads_k, width]
  TensorView rotary_cos;       ///< [positions, pairs], q's dtype or f32
  TensorView rotary_sin;
  bool rotary_interleaved = true;  ///< pairs (2i, 2i + 1), GPT-J's; else (i, i + pairs), GPT-NeoX's

  bool paged() const { return block_table.exists(); }
  bool appends() const { return k_new.exists(); }
  bool rotates() const { return rotary_cos.exists(); }
  /// Whether k and v are anything else than the tensors of a call without a cache.
  bool exists() const {
    return paged() || appends() || rotates() || cache_batch_idx.exists() || leftpad.exists();
  }
  std::int64_t seqlen_new() const { return appends() ? k_new.shape[1] : 0; }
};

/// What stored numbers are multiplied by to become values. Gradients are those of the values.
struct Scales {
  TensorView q_descale, k_descale, v_descale;  ///< f32 [batch, nheads_k], flash-attn 3's
  /// f32, one for each row of an i8 k or v: their shapes without the last dimension.
  TensorView k_scales, v_scales;
};

/// The tensors of one call, input and output. Absent ones do not exist().
///
///   q, o, dout, dq   [batch, seqlen_q, nheads_q, head_dim or head_dim_v], any strides
///   k, v, dk, dv     [batch, seqlen_k, nheads_k, head_dim or head_dim_v], any strides
///   lse              [batch, nheads_q, seqlen_q] f32 (f64 where the inputs are f64)
/// packed (varlen): the batch and seqlen dimensions become one, [total, nheads, head_dim], lse
/// [nheads_q, total_q], and cu_seqlens_q/_k (i32, batch + 1 prefix sums) say where sequences start.
/// Padded with lengths: seqlens_q/_k (i32, batch) say how many rows of each sequence count.
/// k and v may be of other dtypes than q, and of different ones: fp8, i8 or q8_0 (quantised.hpp).
struct AttentionTensors {
  TensorView q, k, v;
  TensorView alibi_slopes;  ///< f32 [nheads_q]
  TensorView bias;   ///< [batch or 1, nheads_q or 1, seqlen_q or 1, seqlen_k or 1], added to S
  TensorView mask;   ///< bool, same shapes; true = may look
  TensorView sinks;  ///< f32 [nheads_q]: a score, natural units, not scaled
  BlockMask block_mask;
  KvCache cache;
  Scales scales;
  TensorView cu_seqlens_q, cu_seqlens_k;
  TensorView seqlens_q, seqlens_k;
  TensorView o, lse;
  TensorView dout;
  TensorView dq, dk, dv;
  TensorView dbias;  ///< bias's shape: its gradient, summed over the dimensions that were broadcast
  TensorView dsinks;  ///< f32 [nheads_q]
};

/// Calls visit(name, view) for every tensor that a call can have, by the name that it has
/// everywhere: in files, messages and the C interface.
template <class Tensors, class Visit>
void for_each_tensor(Tensors& tensors, const Visit& visit) {
  visit("q", tensors.q);
  visit("k", tensors.k);
  visit("v", tensors.v);
  visit("alibi_slopes", tensors.alibi_slopes);
  visit("bias", tensors.bias);
  visit("mask", tensors.mask);
  visit("sinks", tensors.sinks);
  visit("kv_num_blocks", tensors.block_mask.kv_num_blocks);
  visit("kv_indices", tensors.block_mask.kv_indices);
  visit("full_kv_num_blocks", tensors.block_mask.full_kv_num_blocks);
  visit("full_kv_indices", tensors.block_mask.full_kv_indices);
  visit("block_table", tensors.cache.block_table);
  visit("cache_batch_idx", tensors.cache.cache_batch_idx);
  visit("cache_leftpad", tensors.cache.leftpad);
  visit("k_new", tensors.cache.k_new);
  visit("v_new", tensors.cache.v_new);
  visit("rotary_cos", tensors.cache.rotary_cos);
  visit("rotary_sin", tensors.cache.rotary_sin);
  visit("q_descale", tensors.scales.q_descale);
  visit("k_descale", tensors.scales.k_descale);
  visit("v_descale", tensors.scales.v_descale);
  visit("k_scales", tensors.scales.k_scales);
  visit("v_scales", tensors.scales.v_scales);
  visit("cu_seqlens_q", tensors.cu_seqlens_q);
  visit("cu_seqlens_k", tensors.cu_seqlens_k);
  visit("seqlens_q", tensors.seqlens_q);
  visit("seqlens_k", tensors.seqlens_k);
  visit("dout", tensors.dout);
  visit("o", tensors.o);
  visit("lse", tensors.lse);
  visit("dq", tensors.dq);
  visit("dk", tensors.dk);
  visit("dv", tensors.dv);
  visit("dbias", tensors.dbias);
  visit("dsinks", tensors.dsinks);
}

/// The keys that row i of a sequence may look at under causal, window and chunk: [begin, end),
/// perhaps empty. (A boolean mask or a block mask can take away more.)
struct KeyRange {
  std::int64_t begin = 0, end = 0;
};

inline KeyRange visible_keys(const AttentionParams& params, std::int64_t row, std::int64_t seqlen_q,
                             std::int64_t seqlen_k) {
  const Conventions& conventions = params.conventions;
  const std::int64_t shift =
      conventions.alignment == Alignment::bottom_right ? seqlen_k - seqlen_q : 0;
  const std::int64_t position = row + shift;
  KeyRange range{0, seqlen_k};
  if (params.window_left >= 0) {
    const bool counts_self = conventions.window_left == WindowLeft::keys_including_self;
    range.begin = position - params.window_left + (counts_self ? 1 : 0);
  }
  if (params.window_right >= 0) range.end = position + params.window_right + 1;
  if (params.causal && position + 1 < range.end) range.end = position + 1;
  if (params.attention_chunk > 0) {
    const std::int64_t size = params.attention_chunk;
    // Positions before the first key (more queries than keys) belong to chunks before the first.
    const std::int64_t chunk = position >= 0 ? position / size : -((size - 1 - position) / size);
    if (chunk * size > range.begin) range.begin = chunk * size;
    if ((chunk + 1) * size < range.end) range.end = (chunk + 1) * size;
  }
  if (range.begin < 0) range.begin = 0;
  if (range.end > seqlen_k) range.end = seqlen_k;
  if (range.end < range.begin) range.end = range.begin;
  return range;
}

}  // namespace tilewise
