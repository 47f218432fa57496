// The fields that are no tensors.
#include "cpu/validate/check.hpp"
#include "cpu/validate/words.hpp"

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstring>

namespace tilewise::cpu {
namespace {

static_assert(static_cast<int>(Alignment::top_left) == TILEWISE_ALIGN_TOP_LEFT);
static_assert(static_cast<int>(EmptyRowOutput::nan) == TILEWISE_EMPTY_OUTPUT_NAN);
static_assert(static_cast<int>(EmptyRowOutput::mean_v) == TILEWISE_EMPTY_OUTPUT_MEAN_V);
static_assert(static_cast<int>(EmptyRowLse::plus_inf) == TILEWISE_EMPTY_LSE_PLUS_INF);
static_assert(static_cast<int>(EmptyRowLse::unspecified) == TILEWISE_EMPTY_LSE_UNSPECIFIED);
static_assert(static_cast<int>(LseBase::two) == TILEWISE_LSE_BASE_2);
static_assert(static_cast<int>(WindowLeft::keys_including_self) ==
              TILEWISE_WINDOW_KEYS_INCLUDING_SELF);
static_assert(static_cast<int>(DefaultScale::one) == TILEWISE_SCALE_ONE);
static_assert(static_cast<int>(DefaultScale::required) == TILEWISE_SCALE_REQUIRED);
static_assert(static_cast<int>(ScoreOrder::bias_softcap_mask) == TILEWISE_ORDER_BIAS_SOFTCAP_MASK);
static_assert(static_cast<int>(Alibi::fa2) == TILEWISE_ALIBI_FA2);
static_assert(static_cast<int>(Alibi::signed_distance) == TILEWISE_ALIBI_SIGNED_DISTANCE);
static_assert(static_cast<int>(MaskAndCausal::mask_replaces) ==
              TILEWISE_MASK_AND_CAUSAL_MASK_REPLACES);
static_assert(static_cast<int>(MaskAndCausal::causal_replaces) ==
              TILEWISE_MASK_AND_CAUSAL_CAUSAL_REPLACES);
static_assert(static_cast<int>(MaskAndCausal::refuse) == TILEWISE_MASK_AND_CAUSAL_REFUSE);

struct Named {
  const char* name;
  std::int64_t value;
};

}  // namespace

Status check_choices(Check& check) {
  const tilewise_attention& given = check.given;
  const struct {
    const char* name;
    std::int32_t value, count;
  } fields[] = {
      {"causal", given.causal, 2},
      {"deterministic", given.deterministic, 2},
      {"alignment", given.alignment, 2},
      {"empty_row_output", given.empty_row_output, 3},
      {"empty_row_lse", given.empty_row_lse, 3},
      {"lse_base", given.lse_base, 2},
      {"window_left_counts", given.window_left_counts, 2},
      {"default_scale", given.default_scale, 3},
      {"score_order", given.score_order, 2},
      {"alibi", given.alibi, 3},
      {"mask_and_causal", given.mask_and_causal, 4},
      {"softcap_and_dropout", given.softcap_and_dropout, 2},
      {"rotary_interleaved", given.rotary_interleaved, 2},
  };
  for (const auto& field : fields)
    if (Status status = check_choice(field.name, field.value, field.count); !status.ok())
      return status;
  if (given.reserved != 0)
    return bad("reserved is %d; expected 0", static_cast<int>(given.reserved));
  check.call.deterministic = given.deterministic != 0;
  check.call.tensors.cache.rotary_interleaved = given.rotary_interleaved != 0;
  check.call.params.causal = given.causal != 0;
  check.call.params.conventions = {static_cast<Alignment>(given.alignment),
                                   static_cast<EmptyRowOutput>(given.empty_row_output),
                                   static_cast<EmptyRowLse>(given.empty_row_lse),
                                   static_cast<LseBase>(given.lse_base),
                                   static_cast<WindowLeft>(given.window_left_counts),
                                   static_cast<DefaultScale>(given.default_scale),
                                   static_cast<ScoreOrder>(given.score_order),
                                   static_cast<Alibi>(given.alibi),
                                   static_cast<MaskAndCausal>(given.mask_and_causal)};
  return {};
}

Status check_numbers(Check& check) {
  const tilewise_attention& given = check.given;
  AttentionParams& params = check.call.params;
  if (std::isinf(given.softmax_scale))
    return bad("softmax_scale is infinite; expected a finite number, or NaN for the default");
  if (!(std::isfinite(given.softcap) && given.softcap >= 0))
    return bad("softcap is %g; expected a finite number, 0 for none", given.softcap);
  // As a float, because that is what dropout computes with (core/dropout.hpp).
  if (!(given.dropout_p >= 0 && static_cast<float>(given.dropout_p) < 1))
    return bad("dropout_p is %g; expected a probability in [0, 1)", given.dropout_p);
  for (const auto& [name, keys] :
       {Named{"window_left", given.window_left}, Named{"window_right", given.window_right}})
    if (keys < -1)
      return bad("%s is %" PRId64 "; expected a number of keys, or -1 for no bound", name, keys);
  if (given.attention_chunk < 0)
    return bad("attention_chunk is %" PRId64 "; expected a number of keys, 0 for none",
               given.attention_chunk);
  for (const auto& [name, length] :
       {Named{"max_seqlen_q", given.max_seqlen_q}, Named{"max_seqlen_k", given.max_seqlen_k}})
    if (length < 0 || length > largest_dimension)
      return bad("%s is %" PRId64 "; expected a length, or 0 where it is not known", name, length);
  if (given.num_splits < 0)
    return bad("num_splits is %d; expected 0 (the library's choice) or more",
               static_cast<int>(given.num_splits));
  check.call.num_splits = std::max(given.num_splits, 1);
  params.window_left = given.window_left;
  params.window_right = given.window_right;
  params.attention_chunk = given.attention_chunk;
  params.softcap = given.softcap;
  params.dropout_p = given.dropout_p;
  params.philox_seed = given.philox_seed;
  params.philox_offset = given.philox_offset;
  if (check.scope.depth == Depth::memory) {
    if (given.philox_seed_pointer != nullptr)
      std::memcpy(&params.philox_seed, given.philox_seed_pointer, sizeof(std::uint64_t));
    if (given.philox_offset_pointer != nullptr)
      std::memcpy(&params.philox_offset, given.philox_offset_pointer, sizeof(std::uint64_t));
  }
  return {};
}

Status check_combinations(Check& check) {
  const AttentionParams& params = check.call.params;
  if (params.causal && check.call.tensors.mask.exists() &&
      params.conventions.mask_and_causal == MaskAndCausal::refuse)
    return bad("mask and causal are both given, which these conventions refuse");
  if (params.softcap > 0 && params.dropout_p > 0 &&
      check.given.softcap_and_dropout == TILEWISE_SOFTCAP_AND_DROPOUT_REFUSE)
    return bad("softcap and dropout_p are both set, which these conventions refuse");
  return {};
}

Status choose_scale(Check& check) {
  AttentionParams& params = check.call.params;
  params.softmax_scale = check.given.softmax_scale;
  if (!std::isnan(check.given.softmax_scale)) return {};
  switch (params.conventions.default_scale) {
    case DefaultScale::inverse_sqrt_head_dim:
      params.softmax_scale = 1 / std::sqrt(static_cast<double>(check.head_dim));
      return {};
    case DefaultScale::one: params.softmax_scale = 1; return {};
    case DefaultScale::required: break;
  }
  return bad("softmax_scale is not set, and these conventions have no default");
}

/// What reaches beyond every position is brought near, so that no sum of positions overflows. A
/// window stays one, however long: rotary embedding asks whether there is any.
Status bound_positions(Check& check) {
  AttentionParams& params = check.call.params;
  const TensorView& q = check.call.tensors.q;
  const std::int64_t beyond = q.shape[check.packed_q ? 0 : 1] + check.capacity + 1;
  params.window_left = std::min(params.window_left, beyond);
  params.window_right = std::min(params.window_right, beyond);
  params.attention_chunk = std::min(params.attention_chunk, beyond);
  return {};
}

}  // namespace tilewise::cpu
