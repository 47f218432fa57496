// Where the rows of each sequence lie: padded, padded with lengths, packed with prefix sums, or in
// a cache of rows or pages.
//
// Every offset is 64 bits wide and counts elements from the tensor's first, as strides do.
#pragma once

#include "core/attention.hpp"

#include <cstdint>

namespace tilewise::cpu {

/// The sequences of one side of a call: those of the queries (q, o, lse, dout, dq), or those of the
/// keys (k, v, their scales, dk, dv). Refers to the tensors that it was made of.
class Sequences {
 public:
  static Sequences of_queries(const AttentionTensors& tensors) {
    return {tensors.q, tensors.cu_seqlens_q, tensors.seqlens_q, nullptr};
  }
  static Sequences of_keys(const AttentionTensors& tensors) {
    return {tensors.k, tensors.cu_seqlens_k, tensors.seqlens_k,
            tensors.cache.exists() ? &tensors.cache : nullptr};
  }

  std::int64_t batch() const {
    if (cu_seqlens_.exists()) return cu_seqlens_.shape[0] - 1;
    if (cache_ != nullptr && cache_->paged()) return cache_->block_table.shape[0];
    if (cache_ != nullptr && cache_->cache_batch_idx.exists())
      return cache_->cache_batch_idx.shape[0];
    return rows_.shape[0];
  }

  /// How many rows of sequence b count. Lengths given beside prefix sums say how much of each
  /// stretch is in use; those of a cache count its padding, and not the rows that this call
  /// appends.
  std::int64_t length(std::int64_t b) const {
    if (cache_ != nullptr) return length_before(b) + cache_->seqlen_new();
    return stated_length(b);
  }

  std::int64_t longest() const {
    std::int64_t most = 0;
    for (std::int64_t b = 0; b < batch(); ++b)
      if (length(b) > most) most = length(b);
    return most;
  }

  /// How many rows of sequence b the cache had before this call, padding not among them.
  std::int64_t length_before(std::int64_t b) const { return stated_length(b) - leftpad(b); }

  /// The row of the cache that row s of sequence b is: rotary embedding's position.
  std::int64_t cache_row(std::int64_t b, std::int64_t s) const { return leftpad(b) + s; }

  /// Row s of sequence b, head h, of a tensor of this side.
  std::int64_t offset(const TensorView& tensor, std::int64_t b, std::int64_t s,
                      std::int64_t h) const {
    if (cu_seqlens_.exists())  // [total, nheads, width]
      return (entry(cu_seqlens_, b) + s) * tensor.strides[0] + h * tensor.strides[1];
    std::int64_t block = b, row = s;
    if (cache_ != nullptr) {
      row = cache_row(b, s);
      if (cache_->paged()) {
        const std::int64_t page_size = rows_.shape[1];
        block = entry(cache_->block_table, b, row / page_size);
        row %= page_size;
      } else if (cache_->cache_batch_idx.exists()) {
        block = entry(cache_->cache_batch_idx, b);
      }
    }
    return block * tensor.strides[0] + row * tensor.strides[1] + h * tensor.strides[2];
  }

  /// Element (b, h, i) of lse: [batch, nheads_q, seqlen_q], or packed [nheads_q, total_q].
  std::int64_t lse_offset(const TensorView& lse, std::int64_t b, std::int64_t h,
                          std::int64_t i) const {
    if (cu_seqlens_.exists())
      return h * lse.strides[0] + (entry(cu_seqlens_, b) + i) * lse.strides[1];
    return b * lse.strides[0] + h * lse.strides[1] + i * lse.strides[2];
  }

  /// The rows of all sequences that there is memory for, and the place of (b, s) among them; not of
  /// a cache.
  std::int64_t places() const {
    return cu_seqlens_.exists() ? rows_.shape[0] : rows_.shape[0] * rows_.shape[1];
  }
  std::int64_t place(std::int64_t b, std::int64_t s) const {
    return cu_seqlens_.exists() ? entry(cu_seqlens_, b) + s : b * rows_.shape[1] + s;
  }

 private:
  Sequences(const TensorView& rows, const TensorView& cu_seqlens, const TensorView& seqlens,
            const KvCache* cache)
      : rows_(rows), cu_seqlens_(cu_seqlens), seqlens_(seqlens), cache_(cache) {}

  std::int64_t stated_length(std::int64_t b) const {
    if (seqlens_.exists()) return entry(seqlens_, b);
    return cu_seqlens_.exists() ? entry(cu_seqlens_, b + 1) - entry(cu_seqlens_, b)
                                : rows_.shape[1];
  }

  std::int64_t leftpad(std::int64_t b) const {
    return cache_ != nullptr && cache_->leftpad.exists() ? entry(cache_->leftpad, b) : 0;
  }

  static std::int64_t entry(const TensorView& indices, std::int64_t i, std::int64_t j = 0) {
    const std::int64_t offset =
        i * indices.strides[0] + (indices.ndim == 2 ? j * indices.strides[1] : 0);
    return static_cast<std::int64_t>(load(indices.dtype, indices.at(offset)));
  }

  const TensorView &rows_, &cu_seqlens_, &seqlens_;
  const KvCache* cache_;  ///< of keys in a cache alone
};

/// Element (b, h, i, j) of a tensor whose dimensions may be 1 instead: bias, mask and their like.
inline std::int64_t broadcast_offset(const TensorView& tensor, std::int64_t b, std::int64_t h,
                                     std::int64_t i, std::int64_t j) {
  const std::int64_t index[4] = {b, h, i, j};
  std::int64_t offset = 0;
  for (int dim = 0; dim < tensor.ndim; ++dim)
    if (tensor.shape[dim] != 1) offset += index[dim] * tensor.strides[dim];
  return offset;
}

}  // namespace tilewise::cpu
