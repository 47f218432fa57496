#include "tests/bugs/table.hpp"

#include <atomic>
#include <memory>
#include <utility>

namespace tilewise::bugs {
namespace {

class TiledKernel final : public harness::Implementation {
 public:
  TiledKernel(std::string_view name, std::string_view idea, const Recipe& recipe)
      : name_(name), idea_(idea), recipe_(recipe) {}

  std::string_view name() const override { return name_; }
  std::string_view idea() const override { return idea_; }
  harness::Support supports(const Problem& problem) const override {
    const bool together = problem.causal && problem.mask.has_value();
    if (together && problem.conventions.mask_and_causal == MaskAndCausal::refuse)
      return harness::Support::no("these conventions refuse a mask beside causal");
    if (problem.sink || problem.blocks || problem.dropout_p > 0 || problem.attention_chunk > 0)
      return harness::Support::no("this kernel has no sinks, block masks, dropout or chunks");
    return harness::Support::yes();
  }
  harness::Outputs writes(const Problem& problem) const override {
    harness::Outputs outputs = Implementation::writes(problem);
    outputs.dbias = false;
    return outputs;
  }
  Status run(const harness::Call& call) const override {
    return bugs::run(recipe_, call, calls_.fetch_add(1));
  }

 private:
  std::string_view name_, idea_;
  Recipe recipe_;
  mutable std::atomic<std::uint64_t> calls_{0};
};

struct GoodKernel {
  std::string_view name, idea;
  Recipe recipe;
};

constexpr GoodKernel good_kernels[] = {
    {"good.16x16", "Tiles of 16 queries and 16 keys.", {.Br = 16, .Bc = 16}},
    {"good.64x64", "Tiles of 64 queries and 64 keys.", {.Br = 64, .Bc = 64}},
    {"good.128x32", "Tiles of 128 queries and 32 keys.", {.Br = 128, .Bc = 32}},
    {"good.1x8", "One query at a time, eight keys at a time.", {.Br = 1, .Bc = 8}},
    {"good.whole_row", "Every key in one tile: safe softmax.", {.Br = 8, .Bc = Recipe::whole_row}},
    {"good.descending",
     "Key tiles from the last to the first.",
     {.Br = 16, .Bc = 32, .order = KeyOrder::descending}},
    {"good.split_kv",
     "Three ranges of keys for themselves, merged by their LSE.",
     {.Br = 16, .Bc = 16, .splits = 3}},
    {"good.row_sum_f64", "The row sum in float64.", {.Br = 32, .Bc = 16, .row_sum_in_f64 = true}},
    {"good.exp2",
     "exp2 for exp, with log2(e) folded into the scale.",
     {.Br = 32, .Bc = 64, .base_two = true}},
    {"good.split_kv_exp2",
     "Two ranges of keys, descending, in base 2.",
     {.Br = 64, .Bc = 8, .order = KeyOrder::descending, .splits = 2, .base_two = true}},
};

constexpr Recipe with(Bug bug) {
  return {.bug = bug};
}

// Lengths are such that tiles of 16 x 16 are met full and partial, and that the bug is more than
// rounding could be in every precision.
const std::vector<BugInfo>& list() {
  static const std::vector<BugInfo> bugs = {
      // ------------------------------------------------------------ which keys a row sees
      {"bug.causal_one_more",
       "Under causal a row also sees the key after its own.",
       {"fwd sq50 sk50 h2 d32 f32 causal", "fwd sq20 sk37 h1 d32 f32 causal seed=1"},
       "lse",
       with(Bug::causal_one_more)},
      {"bug.causal_one_less",
       "Under causal a row does not see its own key (< for <=).",
       {"fwd sq50 sk50 h2 d32 f32 causal"},
       "lse",
       with(Bug::causal_one_less)},
      {"bug.causal_tile_border",
       "The causal mask is off by one in the last row of every query tile only.",
       {"fwd sq50 sk50 h2 d32 f32 causal"},
       "o",
       with(Bug::causal_tile_border)},
      {"bug.causal_top_left",
       "Causal is anchored at the top left corner where bottom right is asked for.",
       {"fwd sq20 sk50 h1 d32 f32 causal", "fwd sq50 sk20 h1 d32 f32 causal"},
       "o",
       with(Bug::causal_top_left)},
      {"bug.window_left_off_by_one",
       "The window keeps one key too many on its left.",
       {"fwd sq50 sk50 h1 d32 f32 window=7,0", "fwd sq20 sk50 h1 d32 f32 causal window=20,-1"},
       "lse",
       with(Bug::window_left_off_by_one)},
      {"bug.window_right_off_by_one",
       "The window keeps one key too few on its right.",
       {"fwd sq50 sk50 h1 d32 f32 window=4,7"},
       "lse",
       with(Bug::window_right_off_by_one)},
      {"bug.window_top_left",
       "The window is anchored at the wrong corner.",
       {"fwd sq20 sk50 h1 d32 f32 window=7,7"},
       "o",
       with(Bug::window_top_left)},
      {"bug.mask_inverted",
       "The boolean mask is read as true = hidden.",
       {"fwd sq40 sk40 h1 d32 f32 mask=1,1,q,k"},
       "o",
       with(Bug::mask_inverted)},
      {"bug.mask_batch_ignored",
       "Every sequence is given the mask of the first.",
       {"fwd b2 sq40 sk40 h1 d32 f32 mask=b,1,q,k"},
       "o",
       with(Bug::mask_batch_ignored)},
      {"bug.tail_unmasked",
       "Keys past the end are not masked in the last tile: rows of the tile before count again.",
       {"fwd sq20 sk40 h1 d32 f32"},
       "o",
       with(Bug::tail_unmasked)},
      {"bug.padded_keys_counted",
       "The zeros that fill up the last key tile count as keys of score 0: weight exp(0 - m).",
       {"fwd sq20 sk40 h1 d32 f32", "fwd sq20 sk3 h1 d32 f32"},
       "lse",
       with(Bug::padded_keys_counted)},
      {"bug.padding_rows_counted",
       "The lengths of padded sequences are ignored: every sequence is as long as the longest.",
       {"fwd b2 sq20,20 sk37,18 h1 d32 f32"},
       "o",
       with(Bug::padding_rows_counted)},
      {"bug.neighbour_keys",
       "In a packed batch the last key tile runs on into the next sequence.",
       {"fwd b3 sq20,9,14 sk20,37,18 h2 d32 f32 packed"},
       "o",
       with(Bug::neighbour_keys)},
      {"bug.last_tile_dropped",
       "The loop over key tiles stops one too early.",
       {"fwd sq20 sk80 h1 d32 f32", "fwd sq50 sk50 h1 d32 f32 causal"},
       "lse",
       with(Bug::last_tile_dropped)},
      {"bug.partial_tile_dropped",
       "The number of key tiles is rounded down: keys of a partial last tile are lost.",
       {"fwd sq20 sk40 h1 d32 f32"},
       "lse",
       with(Bug::partial_tile_dropped)},
      {"bug.first_tile_twice",
       "The first key tile is visited twice.",
       {"fwd sq20 sk40 h1 d32 f32", "fwd sq50 sk50 h1 d32 f32 causal"},
       "lse",
       with(Bug::first_tile_twice)},
      {"bug.kv_head_modulo",
       "Query head h reads key head h % nheads_k instead of h / (nheads_q / nheads_k).",
       {"fwd sq20 sk20 hq4 hk2 d32 f32"},
       "o",
       with(Bug::kv_head_modulo)},
      {"bug.batch_stride_of_q",
       "K and V are walked with the batch stride of Q: right for the first sequence only.",
       {"fwd b2 sq20 sk40 h1 d32 f32"},
       "o",
       with(Bug::batch_stride_of_q)},

      // ------------------------------------------------------------ the score
      {"bug.scale_inverse_d",
       "Scores are scaled by 1/d instead of 1/sqrt(d).",
       {"fwd sq20 sk40 h1 d32 f32"},
       "lse",
       with(Bug::scale_inverse_d)},
      {"bug.scale_of_head_dim_v",
       "The scale is 1/sqrt(head_dim_v).",
       {"fwd sq20 sk40 h1 d32 dv48 f32"},
       "lse",
       with(Bug::scale_of_head_dim_v)},
      {"bug.scale_missing",
       "Scores are not scaled.",
       {"fwd sq20 sk40 h1 d32 f32"},
       "lse",
       with(Bug::scale_missing)},
      {"bug.scale_head_dim_padded",
       "The scale is that of the head dim rounded up to a multiple of 32.",
       {"fwd sq20 sk40 h1 d40 f32"},
       "lse",
       with(Bug::scale_head_dim_padded)},
      {"bug.scale_argument_ignored",
       "The caller's scale is ignored.",
       {"fwd sq20 sk40 h1 d32 f32 scale=0.25"},
       "lse",
       with(Bug::scale_argument_ignored)},
      {"bug.s_low_precision",
       "S is rounded to a 16-bit type before softmax.",
       {"fwd sq20 sk20 h1 d32 f32", "fwd sq20 sk40 h1 d32 f32 scale=1"},
       "lse",
       with(Bug::s_low_precision)},
      {"bug.softcap_missing",
       "softcap is ignored.",
       {"fwd sq20 sk40 h1 d32 f32 softcap=2"},
       "lse",
       with(Bug::softcap_missing)},
      {"bug.softcap_after_mask",
       "softcap is applied after the mask: a hidden key's -inf becomes -softcap and leaks.",
       {"fwd sq20 sk20 h1 d32 f32 causal softcap=2"},
       "lse",
       with(Bug::softcap_after_mask)},
      {"bug.alibi_sign",
       "ALiBi prefers distant keys.",
       {"fwd sq20 sk40 h2 d32 f32 causal alibi"},
       "o",
       with(Bug::alibi_sign)},
      {"bug.alibi_next_head",
       "Each head uses the ALiBi slope of the next.",
       {"fwd sq20 sk40 h4 d32 f32 alibi"},
       "o",
       with(Bug::alibi_next_head)},
      {"bug.bias_transposed",
       "The bias is read with query and key exchanged.",
       {"fwd sq40 sk40 h1 d32 f32 bias=1,1,q,k"},
       "o",
       with(Bug::bias_transposed)},
      {"bug.bias_head_ignored",
       "The bias of the first head is broadcast over all heads.",
       {"fwd sq20 sk20 h2 d32 f32 bias=1,h,q,k"},
       "o",
       with(Bug::bias_head_ignored)},

      // ------------------------------------------------------------ online softmax
      {"bug.rescale_missing",
       "O is not rescaled when the maximum grows.",
       {"fwd sq20 sk80 h1 d32 f32", "fwd sq20 sk80 h1 d32 f32 fill=ascending"},
       "o",
       with(Bug::rescale_missing)},
      {"bug.rescale_inverted",
       "O is rescaled by exp(m_new - m_old): line 10 of FlashAttention-2's algorithm 1 as printed.",
       {"fwd sq20 sk80 h1 d32 f32"},
       "o",
       with(Bug::rescale_inverted)},
      {"bug.rescale_first_row",
       "Every row of a query tile is rescaled by the factor of the tile's first row.",
       {"fwd sq20 sk80 h1 d32 f32"},
       "o",
       with(Bug::rescale_first_row)},
      {"bug.stale_max",
       "P is computed with the maximum from before the tile.",
       {"fwd sq20 sk80 h1 d32 f32"},
       "lse",
       with(Bug::stale_max)},
      {"bug.row_sum_not_rescaled",
       "The row sum is not rescaled when the maximum grows.",
       {"fwd sq20 sk80 h1 d32 f32"},
       "lse",
       with(Bug::row_sum_not_rescaled)},
      {"bug.row_sum_half_updated",
       "The tile's row sum is added before the old one is rescaled, so that both are.",
       {"fwd sq20 sk80 h1 d32 f32"},
       "lse",
       with(Bug::row_sum_half_updated)},
      {"bug.row_sum_rounded",
       "The row sum adds P after it was rounded for the product with V.",
       {"fwd sq200 sk3 h1 d32 f32", "fwd sq50 sk50 h1 d32 f32 causal"},
       "lse",
       with(Bug::row_sum_rounded)},
      {"bug.exp2_without_log2e",
       "exp2 stands for exp, but nothing was multiplied by log2(e).",
       {"fwd sq20 sk40 h1 d32 f32"},
       "o",
       with(Bug::exp2_without_log2e)},
      {"bug.o_low_precision",
       "O is accumulated in 16 bits.",
       {"fwd sq8 sk4096 h1 d32 f32 fill=constant"},
       "o",
       with(Bug::o_low_precision)},
      {"bug.stale_v_tile",
       "The last key tile is multiplied with the V of the tile before.",
       {"fwd sq20 sk80 h1 d32 f32"},
       "o",
       with(Bug::stale_v_tile)},
      {"bug.masked_tile_nan",
       "A row whose first tile is all masked computes exp(-inf - -inf) = NaN.",
       {"fwd sq40 sk40 h1 d32 f32 window=3,0", "fwd sq40 sk20 h1 d32 f32 causal"},
       "o",
       with(Bug::masked_tile_nan)},
      {"bug.split_average",
       "Partial results of split-KV are averaged, not weighted by their LSE.",
       {"fwd sq4 sk100 h1 d32 f32"},
       "o",
       {.splits = 2, .bug = Bug::split_average}},

      // ------------------------------------------------------------ the end of a row
      {"bug.lane_normaliser",
       "The normaliser is 0.1 % too large in one row of 32.",
       {"fwd sq64 sk40 h1 d32 f32"},
       "lse",
       with(Bug::lane_normaliser)},
      {"bug.late_rows",
       "The last quarter of the rows comes out 0.5 % too large.",
       {"fwd sq100 sk400 h1 d128 f32 scale=0.03"},
       "o",
       with(Bug::late_rows)},
      {"bug.empty_row_nan",
       "A row that sees no key divides 0 by 0.",
       {"fwd sq40 sk20 h1 d32 f32 causal", "fwd sq40 sk40 h1 d32 f32 mask=1,1,q,k"},
       "o",
       with(Bug::empty_row_nan)},
      {"bug.empty_row_lse_sign",
       "The LSE of a row that sees no key has the wrong sign.",
       {"fwd sq40 sk20 h1 d32 f32 causal", "fwd sq40 sk20 h1 d32 f32 causal conv=fa2"},
       "lse",
       with(Bug::empty_row_lse_sign)},
      {"bug.lse_base_two",
       "LSE is in base 2 where e is asked for, or the other way.",
       {"fwd sq20 sk40 h1 d32 f32", "fwd sq20 sk40 h1 d32 f32 conv=flashinfer"},
       "lse",
       with(Bug::lse_base_two)},
      {"bug.lse_unscaled",
       "LSE adds the maximum of the unscaled scores.",
       {"fwd sq20 sk40 h1 d32 f32"},
       "lse",
       with(Bug::lse_unscaled)},
      {"bug.lse_without_max",
       "LSE is log(l): the maximum is not added back.",
       {"fwd sq20 sk40 h1 d32 f32"},
       "lse",
       with(Bug::lse_without_max)},
      {"bug.lse_without_sum",
       "The maximum is stored for LSE.",
       {"fwd sq20 sk40 h1 d32 f32"},
       "lse",
       with(Bug::lse_without_sum)},
      {"bug.head_dim_v_as_head_dim",
       "O is taken to be head_dim wide where head_dim_v is more.",
       {"fwd sq20 sk40 h1 d32 dv48 f32"},
       "unwritten",
       with(Bug::head_dim_v_as_head_dim)},
      {"bug.row_unwritten",
       "One row of O is never written.",
       {"fwd sq50 sk40 h1 d32 f32"},
       "unwritten",
       with(Bug::row_unwritten)},
      {"bug.column_unwritten",
       "The last column of O is never written.",
       {"fwd sq50 sk40 h1 d33 f32"},
       "unwritten",
       with(Bug::column_unwritten)},
      {"bug.lse_last_row_unwritten",
       "The LSE of the last row is never written.",
       {"fwd sq49 sk40 h1 d32 f32"},
       "unwritten",
       with(Bug::lse_last_row_unwritten)},
      {"bug.write_past_end",
       "One element is written past the end of O.",
       {"fwd sq50 sk40 h1 d33 f32"},
       "guard",
       with(Bug::write_past_end)},
      {"bug.write_before_start",
       "One element is written before the start of O.",
       {"fwd sq50 sk40 h1 d32 f32"},
       "guard",
       with(Bug::write_before_start)},
      {"bug.input_scaled_in_place",
       "Q is multiplied by the scale where it lies.",
       {"fwd sq20 sk40 h1 d32 f32"},
       "input",
       with(Bug::input_scaled_in_place)},
      {"bug.not_repeatable",
       "One element differs in its last bits between calls, though all are declared repeatable.",
       {"fwd sq20 sk40 h1 d32 f32"},
       "repeat",
       with(Bug::not_repeatable)},

      // ------------------------------------------------------------ backward
      {"bug.dout_ignored",
       "dO is taken to be all ones.",
       {"bwd sq20 sk40 h1 d32 f32"},
       "dv",
       with(Bug::dout_ignored)},
      {"bug.d_missing",
       "dS = P dP: the row sum D = dO . O is not subtracted.",
       {"bwd sq20 sk40 h1 d32 f32"},
       "dq",
       with(Bug::d_missing)},
      {"bug.d_of_next_row",
       "D is that of the next row.",
       {"bwd sq20 sk40 h1 d32 f32"},
       "dq",
       with(Bug::d_of_next_row)},
      {"bug.ds_without_scale",
       "dQ and dK lack the softmax scale.",
       {"bwd sq20 sk40 h1 d32 f32"},
       "dk",
       with(Bug::ds_without_scale)},
      {"bug.softcap_derivative_missing",
       "The derivative of softcap, 1 - tanh^2, is left out.",
       {"bwd sq20 sk40 h1 d32 f32 softcap=2"},
       "dq",
       with(Bug::softcap_derivative_missing)},
      {"bug.dk_one_head",
       "dK holds the sum of one query head of the group only.",
       {"bwd sq20 sk40 hq4 hk2 d32 f32"},
       "dk",
       with(Bug::dk_one_head)},
      {"bug.dv_unnormalised",
       "dV is made with exp(S - m), not divided by the row sum.",
       {"bwd sq20 sk40 h1 d32 f32"},
       "dv",
       with(Bug::dv_unnormalised)},
      {"bug.p_from_max",
       "P is recomputed as exp(S - m), with the maximum in place of LSE.",
       {"bwd sq20 sk40 h1 d32 f32"},
       "dq",
       with(Bug::p_from_max)},
      {"bug.dq_overwritten",
       "Each key tile overwrites dQ instead of adding to it.",
       {"bwd sq20 sk40 h1 d32 f32"},
       "dq",
       with(Bug::dq_overwritten)},
      {"bug.dq_low_precision",
       "dQ is accumulated in 16 bits.",
       {"bwd sq8 sk2048 h1 d32 f32"},
       "dq",
       with(Bug::dq_low_precision)},
      {"bug.dk_not_causal",
       "dK forgets the causal mask.",
       {"bwd sq40 sk40 h1 d32 f32 causal"},
       "dk",
       with(Bug::dk_not_causal)},
      {"bug.empty_row_gradient_nan",
       "Backward, a row that sees no key computes exp(-inf - -inf) = NaN.",
       {"bwd sq40 sk20 h1 d32 f32 causal"},
       "dq",
       with(Bug::empty_row_gradient_nan)},
  };
  return bugs;
}

}  // namespace

std::span<const BugInfo> bug_list() {
  return list();
}

std::string at_precision(std::string_view line, DType dtype) {
  std::string result(line);
  const std::size_t at = result.find(" f32");
  if (at != std::string::npos) result.replace(at + 1, 3, name_of(dtype));
  return result;
}

harness::Table planted_bugs() {
  harness::Table table;
  for (const BugInfo& bug : bug_list())
    table.push_back(std::make_unique<TiledKernel>(bug.name, bug.sentence, bug.recipe));
  return table;
}

harness::Table correct_kernels() {
  harness::Table table;
  for (const GoodKernel& good : good_kernels)
    table.push_back(std::make_unique<TiledKernel>(good.name, good.idea, good.recipe));
  return table;
}

}  // namespace tilewise::bugs
