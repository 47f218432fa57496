// How Hopper's forward kernel finds its work, as the host sees it.
#pragma once

#include "core/device_backend.hpp"

#include <cstddef>
#include <cstdint>

namespace tilewise::cuda::sm90 {

/// Where in the workspace the number of the next piece of work is.
constexpr std::size_t counter_at = workspace_head_bytes;

/// Rows of a tile, which is a piece of work. Short sequences of width 64 have smaller ones if
/// causal: in a tile of 192 rows and 128 keys on the diagonal more is masked than not.
constexpr int rows_of_tile(std::int64_t head_dim, bool causal, std::int64_t seqlen_q) {
  return head_dim == 64 && !(causal && seqlen_q <= 1536) ? 192 : 128;
}

/// Causal work is of different lengths. Where there is more of it than multiprocessors, blocks ask
/// for the next piece when they are done with one; for that they share a counter.
inline bool hands_out_work(const DeviceCall& call, const DeviceLimits& limits) {
  if (!call.params.causal) return false;
  const TensorView& q = call.tensors.q;
  const int rows = rows_of_tile(q.shape[3], true, q.shape[1]);
  return q.shape[0] * q.shape[2] * ((q.shape[1] + rows - 1) / rows) > limits.multiprocessors;
}

}  // namespace tilewise::cuda::sm90
