// A tiled attention kernel written to be read, and one switch for every way we know to get it
// wrong.
//
// kernel.cpp is FlashAttention as a GPU does it, in plain loops: forward by online softmax over
// tiles of Br queries and Bc keys (Dao 2023, arXiv 2307.08691, algorithm 1), backward by
// recomputation from LSE (algorithm 2). It rounds where tensor cores make real kernels round: P and
// dS to the problem's dtype before they are multiplied, outputs when they are stored; S, the
// running maximum, the row sum and every accumulator stay in float32 (float64 in an f64 problem).
// A sink joins the row sum after the last tile; a block mask says which tiles are visited at all.
//
// With `Bug::none` it is correct for every Recipe. With any other it is the same kernel with one
// line wrong: what a judge must notice (docs/bugs.md).
#pragma once

#include "core/status.hpp"
#include "oracle/harness/implementation.hpp"

#include <cstdint>

namespace tilewise::bugs {

enum class Bug : std::uint8_t {
  none,

  // Which keys a row sees
  causal_one_more,
  causal_one_less,
  causal_tile_border,
  causal_top_left,
  window_left_off_by_one,
  window_right_off_by_one,
  window_top_left,
  mask_inverted,
  mask_batch_ignored,
  tail_unmasked,
  padded_keys_counted,
  padding_rows_counted,
  neighbour_keys,
  last_tile_dropped,
  partial_tile_dropped,
  first_tile_twice,
  kv_head_modulo,
  batch_stride_of_q,
  chunk_off_by_one,
  chunk_top_left,
  full_block_masked,
  full_blocks_forgotten,
  block_beyond_count,
  block_head_ignored,

  // The score
  scale_inverse_d,
  scale_of_head_dim_v,
  scale_missing,
  scale_head_dim_padded,
  scale_argument_ignored,
  s_low_precision,
  softcap_missing,
  softcap_after_mask,
  alibi_sign,
  alibi_next_head,
  bias_transposed,
  bias_head_ignored,
  sink_scaled,
  sink_head_zero,

  // Online softmax
  rescale_missing,
  rescale_inverted,
  rescale_first_row,
  stale_max,
  row_sum_not_rescaled,
  row_sum_half_updated,
  row_sum_rounded,
  exp2_without_log2e,
  o_low_precision,
  stale_v_tile,
  masked_tile_nan,
  split_average,
  sink_every_tile,
  sink_every_split,
  sink_not_in_lse,

  // Dropout
  dropout_scale_missing,
  dropout_head_zero,
  dropout_of_tile,
  dropout_ten_rounds,
  dropout_in_row_sum,
  dropout_forgotten_backward,
  dropout_not_in_dp,

  // The end of a row: normalising and storing
  lane_normaliser,
  late_rows,
  empty_row_nan,
  empty_row_lse_sign,
  lse_base_two,
  lse_unscaled,
  lse_without_max,
  lse_without_sum,
  head_dim_v_as_head_dim,
  row_unwritten,
  column_unwritten,
  lse_last_row_unwritten,
  write_past_end,
  write_before_start,
  input_scaled_in_place,
  not_repeatable,

  // Backward
  dout_ignored,
  d_missing,
  d_of_next_row,
  ds_without_scale,
  softcap_derivative_missing,
  dk_one_head,
  dv_unnormalised,
  p_from_max,
  dq_overwritten,
  dq_low_precision,
  dk_not_causal,
  empty_row_gradient_nan,
  dsink_sign,
  dsink_last_batch,
  dbias_not_summed,
  dbias_through_softcap,
};

enum class KeyOrder : std::uint8_t { ascending, descending };

/// One kernel out of the family.
struct Recipe {
  static constexpr std::int64_t whole_row = 0;

  std::int64_t Br = 16, Bc = 16;  ///< rows of a query tile, keys of a key tile or `whole_row`
  KeyOrder order = KeyOrder::ascending;
  std::int64_t splits = 1;  ///< split-KV: so many partial results a row, merged by their LSE
  bool row_sum_in_f64 = false;
  bool base_two = false;  ///< scores in units of log2(e), so that exp2 does for exp
  Bug bug = Bug::none;
};

/// Runs the kernel. `calls` counts how often, which only `not_repeatable` looks at.
Status run(const Recipe& recipe, const harness::Call& call, std::uint64_t calls);

}  // namespace tilewise::bugs
