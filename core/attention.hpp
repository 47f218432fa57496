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

#include <cmath>
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

/// The tensors of one call, input and output. Absent ones do not exist().
///
///   q, o, dout, dq   [batch, seqlen_q, nheads_q, head_dim or head_dim_v], any strides
///   k, v, dk, dv     [batch, seqlen_k, nheads_k, head_dim or head_dim_v], any strides
///   lse              [batch, nheads_q, seqlen_q] f32 (f64 where the inputs are f64)
/// packed (varlen): the batch and seqlen dimensions become one, [total, nheads, head_dim], lse
/// [nheads_q, total_q], and cu_seqlens_q/_k (i32, batch + 1 prefix sums) say where sequences start.
/// Padded with lengths: seqlens_q/_k (i32, batch) say how many rows of each sequence count.
struct AttentionTensors {
  TensorView q, k, v;
  TensorView alibi_slopes;  ///< f32 [nheads_q]
  TensorView bias;   ///< [batch or 1, nheads_q or 1, seqlen_q or 1, seqlen_k or 1], added to S
  TensorView mask;   ///< bool, same shapes; true = may look
  TensorView sinks;  ///< f32 [nheads_q]: a score, natural units, not scaled
  BlockMask block_mask;
  TensorView cu_seqlens_q, cu_seqlens_k;
  TensorView seqlens_q, seqlens_k;
  TensorView o, lse;
  TensorView dout;
  TensorView dq, dk, dv;
  TensorView dbias;  ///< bias's shape: its gradient, summed over the dimensions that were broadcast
  TensorView dsinks;  ///< f32 [nheads_q]
};

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
