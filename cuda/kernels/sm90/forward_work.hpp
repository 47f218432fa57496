// How Hopper's forward kernel sees a call, and finds its work, on the host.
#pragma once

#include "core/device_backend.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace tilewise::cuda::sm90 {

/// Where in the workspace the number of the next piece of work is.
constexpr std::size_t counter_at = workspace_head_bytes;

/// Keys before and behind a row's position, from the bottom right; `unbounded` and more: all.
struct Window {
  static constexpr std::int64_t unbounded = std::int64_t{1} << 29;
  std::int64_t left = unbounded, right = unbounded;

  /// All keys, or all up to the diagonal: what has kernels of its own.
  bool is_full() const { return left >= unbounded && right >= unbounded; }
  bool is_causal() const { return left >= unbounded && right == 0; }
};

inline Window window_of(const AttentionParams& params) {
  const bool counts_self = params.conventions.window_left == WindowLeft::keys_including_self;
  Window window;
  if (params.window_left >= 0)
    window.left = std::min(params.window_left - (counts_self ? 1 : 0), Window::unbounded);
  if (params.window_right >= 0) window.right = std::min(params.window_right, Window::unbounded);
  if (params.causal) window.right = 0;
  return window;
}

/// Rows of a tile, which is a piece of work. Short sequences of width 64 have smaller ones where
/// not all keys are seen: in a tile of 192 rows and 128 keys on the diagonal more is masked than
/// not.
constexpr int rows_of_tile(std::int64_t head_dim, bool full, std::int64_t seqlen_q) {
  return head_dim == 64 && (full || seqlen_q > 1536) ? 192 : 128;
}

/// Causal work is of different lengths. Where there is more of it than multiprocessors, blocks ask
/// for the next piece when they are done with one; for that they share a counter.
inline bool hands_out_work(const DeviceCall& call, const DeviceLimits& limits) {
  if (!window_of(call.params).is_causal() || call.params.softcap > 0) return false;
  const TensorView& q = call.tensors.q;
  const int rows = rows_of_tile(q.shape[3], false, q.shape[1]);
  return q.shape[0] * q.shape[2] * ((q.shape[1] + rows - 1) / rows) > limits.multiprocessors;
}

}  // namespace tilewise::cuda::sm90
