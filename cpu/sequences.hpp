// Where the rows of each sequence lie: padded, padded with lengths, or packed with prefix sums.
//
// Every offset is 64 bits wide and counts elements from the tensor's first, as strides do.
#pragma once

#include "core/attention.hpp"

#include <cstdint>

namespace tilewise::cpu {

/// The sequences of one side of a call: those of the queries (q, o, lse, dout, dq), or those of the
/// keys (k, v, dk, dv).
class Sequences {
 public:
  static Sequences of_queries(const AttentionTensors& tensors) {
    return {tensors.q, tensors.cu_seqlens_q, tensors.seqlens_q};
  }
  static Sequences of_keys(const AttentionTensors& tensors) {
    return {tensors.k, tensors.cu_seqlens_k, tensors.seqlens_k};
  }

  std::int64_t batch() const {
    return cu_seqlens_.exists() ? cu_seqlens_.shape[0] - 1 : rows_.shape[0];
  }

  /// How many rows of sequence b count. Lengths given beside prefix sums say how much of each
  /// stretch is in use.
  std::int64_t length(std::int64_t b) const {
    if (seqlens_.exists()) return entry(seqlens_, b);
    return cu_seqlens_.exists() ? entry(cu_seqlens_, b + 1) - entry(cu_seqlens_, b)
                                : rows_.shape[1];
  }

  std::int64_t longest() const {
    std::int64_t most = 0;
    for (std::int64_t b = 0; b < batch(); ++b)
      if (length(b) > most) most = length(b);
    return most;
  }

  /// Row s of sequence b, head h, of a tensor of this side.
  std::int64_t offset(const TensorView& tensor, std::int64_t b, std::int64_t s,
                      std::int64_t h) const {
    if (cu_seqlens_.exists())  // [total, nheads, width]
      return (entry(cu_seqlens_, b) + s) * tensor.strides[0] + h * tensor.strides[1];
    return b * tensor.strides[0] + s * tensor.strides[1] + h * tensor.strides[2];
  }

  /// Element (b, h, i) of lse: [batch, nheads_q, seqlen_q], or packed [nheads_q, total_q].
  std::int64_t lse_offset(const TensorView& lse, std::int64_t b, std::int64_t h,
                          std::int64_t i) const {
    if (cu_seqlens_.exists())
      return h * lse.strides[0] + (entry(cu_seqlens_, b) + i) * lse.strides[1];
    return b * lse.strides[0] + h * lse.strides[1] + i * lse.strides[2];
  }

  /// The rows of all sequences that there is memory for, and the place of (b, s) among them.
  std::int64_t places() const {
    return cu_seqlens_.exists() ? rows_.shape[0] : rows_.shape[0] * rows_.shape[1];
  }
  std::int64_t place(std::int64_t b, std::int64_t s) const {
    return cu_seqlens_.exists() ? entry(cu_seqlens_, b) + s : b * rows_.shape[1] + s;
  }

 private:
  Sequences(const TensorView& rows, const TensorView& cu_seqlens, const TensorView& seqlens)
      : rows_(rows), cu_seqlens_(cu_seqlens), seqlens_(seqlens) {}

  static std::int64_t entry(const TensorView& vector, std::int64_t index) {
    return static_cast<std::int64_t>(load(vector.dtype, vector.at(index * vector.strides[0])));
  }

  TensorView rows_, cu_seqlens_, seqlens_;
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
