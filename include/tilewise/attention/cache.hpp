// Keys and values in a cache, as both flash-attns' flash_attn_with_kvcache and paged varlen calls
// have them.
#pragma once

#include "call.hpp"

#include <cstdint>
#include <optional>

namespace tilewise {
inline namespace TILEWISE_CPP {

/// flash-attn's cache_seqlens: i32 [batch], or one length for every sequence; none: the whole
/// cache.
struct CacheSeqlens {
  CacheSeqlens() = default;
  CacheSeqlens(const Tensor& each) : lengths(each) {}        // NOLINT(google-explicit-constructor)
  CacheSeqlens(std::int32_t every) : every_length(every) {}  // NOLINT(google-explicit-constructor)

  Tensor lengths = {};
  std::optional<std::int32_t> every_length = {};
};

namespace attention_detail {

/// A tensor of lengths that run() gives memory to.
inline Tensor lengths_to_come(std::int64_t batch) {
  return tensor(nullptr, TILEWISE_I32, {batch});
}

/// The cache of `batch` sequences. `Args` are the keyword arguments of a flash_attn_with_kvcache.
template <class Args>
void set_cache(Description& description, std::int64_t batch, const Tensor& block_table,
               const Args& args) {
  tilewise_attention& attention = description.attention;
  attention.k_new = args.k;
  attention.v_new = args.v;
  attention.rotary_cos = args.rotary_cos;
  attention.rotary_sin = args.rotary_sin;
  attention.rotary_interleaved = args.rotary_interleaved;
  attention.seqlens_k = args.cache_seqlens.lengths;
  if (args.cache_seqlens.every_length) {
    attention.seqlens_k = lengths_to_come(batch);
    description.every_seqlen_k = args.cache_seqlens.every_length;
  }
  attention.cache_batch_idx = args.cache_batch_idx;
  attention.cache_leftpad = args.cache_leftpad;
  attention.block_table = block_table;
  // Without a list of them, the first rows of a cache that has more than there are sequences.
  if (!is_given(block_table) && !is_given(args.cache_batch_idx))
    for (Tensor* view : {&attention.k, &attention.v})
      if (view->ndim == 4 && view->shape[0] > batch) view->shape[0] = batch;
}

/// Packed sequences; or, beside a block table, packed queries alone: the prefix sums of k then say
/// how many rows of each sequence's pages count.
inline void set_varlen(Description& description, const Tensor& cu_seqlens_q,
                       const Tensor& cu_seqlens_k, std::int64_t max_seqlen_q,
                       std::int64_t max_seqlen_k, const Tensor& block_table) {
  tilewise_attention& attention = description.attention;
  attention.cu_seqlens_q = cu_seqlens_q;
  attention.max_seqlen_q = max_seqlen_q;
  attention.max_seqlen_k = max_seqlen_k;
  if (!is_given(block_table)) {
    attention.cu_seqlens_k = cu_seqlens_k;
    return;
  }
  attention.block_table = block_table;
  if (cu_seqlens_k.dtype != TILEWISE_I32 || cu_seqlens_k.device_type != TILEWISE_CPU ||
      cu_seqlens_k.ndim != 1 || cu_seqlens_k.shape[0] < 1) {
    description =
        refused(description, "cu_seqlens_k is not what it has to be, i32 [batch + 1] on the CPU");
    return;
  }
  attention.seqlens_k = lengths_to_come(cu_seqlens_k.shape[0] - 1);
  description.cu_seqlens_k_of_cache = cu_seqlens_k;
}

}  // namespace attention_detail

}  // namespace TILEWISE_CPP
}  // namespace tilewise
