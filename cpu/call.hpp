// One attention call inside the library, after it has been checked, and what runs it.
//
// Whoever builds a Call has seen to it that shapes, dtypes and strides fit together, that heads
// divide, that conventions are not contradictory (MaskAndCausal::refuse), that lengths, prefix
// sums, pages and rows of a cache and of rotary tables lie within their tensors, and that all of it
// can be read on the host. Bias and mask have four dimensions, each of which may be 1. Nothing here
// checks that again.
#pragma once

#include "core/attention.hpp"
#include "core/status.hpp"
#include "cpu/workers.hpp"

#include <cstddef>

namespace tilewise::cpu {

namespace flash {
struct TileKernels;
}

struct Call {
  AttentionParams params;
  AttentionTensors tensors;
  bool deterministic = false;  ///< the portable backend always is
  /// Above 1: into how many runs a block of rows cuts its tiles of keys, each computed apart and
  /// merged into the others. Of the forward pass alone.
  std::int64_t num_splits = 1;
  /// An instruction set's; null: the portable backend computes all.
  const flash::TileKernels* kernels = nullptr;
};

/// Who computes it, and if not the kernels above, why not.
struct Choice {
  const char* name;
  const char* reason;
  bool fast;
};
Choice choose(const Call& call, bool backward);

/// The workspace that `forward` wants for so many workers, in bytes, 64-byte aligned. It depends on
/// head_dim, head_dim_v and the dtype, not on the lengths.
std::size_t forward_workspace(const Call& call, int max_workers);

/// What it can use more of, also in the lengths that tensors have room for.
std::size_t forward_fast_workspace(const Call& call, int max_workers);

/// Writes k_new and v_new, if they exist, into k and v; then o, and lse if it exists. Rows past a
/// sequence's length are not written.
Status forward(const Call& call, const Workers& workers, void* workspace, std::size_t bytes);

/// What this build lacks, TILEWISE_FORWARD_ONLY, if a call wants it.
Status left_out(bool float64, bool backward);

/// Grows linearly in the number of query rows: two numbers for each and head.
std::size_t backward_workspace(const Call& call, int max_workers);

/// From q, k, v, o, lse and dout to those of dq, dk, dv, dbias and dsinks that exist. An infinite
/// lse says that the row saw no key, whatever the conventions call it. Gradients of rows past a
/// sequence's length are not written; every element of dbias and dsinks is.
Status backward(const Call& call, const Workers& workers, void* workspace, std::size_t bytes);

}  // namespace tilewise::cpu
