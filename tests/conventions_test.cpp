// What each preset of conventions says, written out by hand field by field, and what that means for
// which keys a row sees and how its scores are scaled. docs/conventions.md names the sources.
#include "core/attention.hpp"
#include "core/conventions.hpp"
#include "oracle/problem.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <iterator>
#include <set>
#include <string_view>

namespace tilewise {
namespace {

using enum Alignment;
using enum EmptyRowLse;
using enum MaskAndCausal;
constexpr auto zero = EmptyRowOutput::zero, mean_v = EmptyRowOutput::mean_v;
constexpr auto natural = LseBase::e, base_two = LseBase::two;
constexpr auto before = WindowLeft::keys_before, with_self = WindowLeft::keys_including_self;
constexpr auto root_d = DefaultScale::inverse_sqrt_head_dim, one = DefaultScale::one,
               required = DefaultScale::required;
constexpr auto cap_first = ScoreOrder::softcap_bias_mask,
               bias_first = ScoreOrder::bias_softcap_mask;
constexpr auto distance = Alibi::minus_distance, fa2_form = Alibi::fa2,
               signed_form = Alibi::signed_distance;

struct Row {
  std::string_view preset;
  Conventions conventions;
};

// Where a system does not know a thing (no ALiBi, no mask, no window, ...), Tilewise's own default
// stands: bottom_right, zero, minus_inf, natural, before, root_d, cap_first, distance, intersect.
// clang-format off
const Row expected_rows[] = {
    // preset             causal        empty O       empty LSE    LSE base  window     scale     order       ALiBi        mask + causal
    {"fa3",             {bottom_right, zero,         minus_inf,   natural,  before,    root_d,   cap_first,  distance,    intersect}},
    {"fa2",             {bottom_right, zero,         plus_inf,    natural,  before,    root_d,   cap_first,  fa2_form,    intersect}},
    {"torch_sdpa",      {top_left,     zero,         unspecified, natural,  before,    root_d,   cap_first,  distance,    refuse}},
    {"xformers",        {top_left,     zero,         unspecified, natural,  before,    root_d,   cap_first,  distance,    intersect}},
    {"flashinfer",      {bottom_right, zero,         minus_inf,   base_two, before,    root_d,   bias_first, signed_form, mask_replaces}},
    {"vllm",            {bottom_right, zero,         unspecified, natural,  with_self, required, cap_first,  distance,    intersect}},
    {"onnx",            {top_left,     zero,         unspecified, natural,  before,    root_d,   cap_first,  distance,    intersect}},
    {"cudnn",           {top_left,     zero,         unspecified, natural,  with_self, one,      cap_first,  signed_form, intersect}},
    {"ggml",            {bottom_right, zero,         unspecified, natural,  before,    required, cap_first,  distance,    intersect}},
    {"mlx",             {bottom_right, zero,         unspecified, natural,  before,    required, cap_first,  distance,    intersect}},
    {"jax",             {top_left,     mean_v,       unspecified, natural,  before,    root_d,   cap_first,  distance,    intersect}},
    {"triton_tutorial", {top_left,     zero,         unspecified, base_two, before,    required, cap_first,  distance,    intersect}},
    {"hf_eager",        {bottom_right, mean_v,       unspecified, natural,  with_self, root_d,   cap_first,  distance,    intersect}},
};
// clang-format on

TEST(Conventions, EveryPresetSaysWhatItsSystemDoes) {
  for (const Row& row : expected_rows) {
    const auto found = conventions_from_name(row.preset);
    ASSERT_TRUE(found.has_value()) << row.preset;
    EXPECT_EQ(found->alignment, row.conventions.alignment) << row.preset;
    EXPECT_EQ(found->empty_row_output, row.conventions.empty_row_output) << row.preset;
    EXPECT_EQ(found->empty_row_lse, row.conventions.empty_row_lse) << row.preset;
    EXPECT_EQ(found->lse_base, row.conventions.lse_base) << row.preset;
    EXPECT_EQ(found->window_left, row.conventions.window_left) << row.preset;
    EXPECT_EQ(found->default_scale, row.conventions.default_scale) << row.preset;
    EXPECT_EQ(found->score_order, row.conventions.score_order) << row.preset;
    EXPECT_EQ(found->alibi, row.conventions.alibi) << row.preset;
    EXPECT_EQ(found->mask_and_causal, row.conventions.mask_and_causal) << row.preset;
    EXPECT_TRUE(*found == row.conventions)
        << row.preset << ": a field that this test does not know";
  }
}

TEST(Conventions, NoPresetIsMissingHere) {
  ASSERT_EQ(std::size(convention_presets), std::size(expected_rows));
  std::set<std::string_view> names;
  for (std::size_t i = 0; i < std::size(expected_rows); ++i) {
    EXPECT_EQ(convention_presets[i].name, expected_rows[i].preset);
    EXPECT_FALSE(convention_presets[i].system.empty()) << convention_presets[i].name;
    EXPECT_TRUE(names.insert(convention_presets[i].name).second) << "a name given twice";
  }
}

TEST(Conventions, TheDefaultIsFa3) {
  EXPECT_TRUE(Conventions{} == conventions_from_name("fa3"));
  EXPECT_TRUE(Problem{}.conventions == conventions_from_name("fa3"));
}

TEST(Conventions, UnknownNamesAreNotFound) {
  for (std::string_view name : {"", "fa", "FA3", "fa3 ", "torch"})
    EXPECT_FALSE(conventions_from_name(name).has_value()) << name;
}

// The same, as a user meets it.
struct Effect {
  std::string_view preset;
  int causal_keys;   ///< keys that the first of 2 queries sees among 5, under causal
  int window_keys;   ///< keys that the last of 9 queries sees among 9, under window=4,0
  double scale_d64;  ///< the scale at head_dim 64 when none is given; 0: none, one must be given
};

const Effect effects[] = {
    {"fa3", 4, 5, 0.125},      {"fa2", 4, 5, 0.125},        {"torch_sdpa", 1, 5, 0.125},
    {"xformers", 1, 5, 0.125}, {"flashinfer", 4, 5, 0.125}, {"vllm", 4, 4, 0},
    {"onnx", 1, 5, 0.125},     {"cudnn", 1, 4, 1},          {"ggml", 4, 5, 0},
    {"mlx", 4, 5, 0},          {"jax", 1, 5, 0.125},        {"triton_tutorial", 1, 5, 0},
    {"hf_eager", 4, 4, 0.125},
};

TEST(Conventions, WhatAPresetMeansForRowsAndScales) {
  ASSERT_EQ(std::size(effects), std::size(convention_presets));
  for (const Effect& effect : effects) {
    Problem problem;
    problem.conventions = *conventions_from_name(effect.preset);
    problem.causal = true;
    const KeyRange causal = visible_keys(problem.params(), 0, 2, 5);
    EXPECT_EQ(causal.end - causal.begin, effect.causal_keys) << effect.preset;

    problem.causal = false;
    problem.window_left = 4;
    problem.window_right = 0;
    const KeyRange window = visible_keys(problem.params(), 8, 9, 9);
    EXPECT_EQ(window.end - window.begin, effect.window_keys) << effect.preset;

    if (effect.scale_d64 != 0) {
      EXPECT_EQ(problem.scale(), effect.scale_d64) << effect.preset;
      EXPECT_EQ(inconsistency(problem), "") << effect.preset;
    } else {
      EXPECT_TRUE(std::isnan(problem.scale())) << effect.preset;
      EXPECT_NE(inconsistency(problem), "") << effect.preset;
      problem.softmax_scale = 0.125;
      EXPECT_EQ(inconsistency(problem), "") << effect.preset;
    }
  }
}

TEST(Conventions, OnlyTorchRefusesAMaskBesideCausal) {
  for (const ConventionPreset& preset : convention_presets) {
    Problem problem;
    problem.conventions = preset.conventions;
    problem.softmax_scale = 1;
    problem.causal = true;
    problem.mask = Broadcast{true, false, false, true};
    EXPECT_EQ(inconsistency(problem).empty(), preset.name != "torch_sdpa") << preset.name;
  }
}

}  // namespace
}  // namespace tilewise
