// What each preset of conventions says, written out by hand field by field, what that means for
// which keys a row sees and how its scores are scaled, and the numbers that it gives on small
// problems. docs/conventions.md names the sources.
#include "core/attention.hpp"
#include "core/conventions.hpp"
#include "include/tilewise/tilewise.h"
#include "oracle/attention.hpp"
#include "oracle/harness/buffers.hpp"
#include "oracle/problem.hpp"
#include "tools/capi_implementation.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstring>
#include <iterator>
#include <limits>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

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
    {"mlx",             {bottom_right, zero,         unspecified, natural,  before,    required, cap_first,  distance,    refuse}},
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

// ------------------------------------------------------------------- disagreements, in numbers
//
// Small problems worked out by hand, with the numbers that each system's rules give. The oracle has
// to find them, and cpu.portable through the C interface, started with nothing but the preset's
// name.
//
// One head. Where nothing else is said, q is 0: then all scores are 0, a row is the mean of the
// values it sees, and its LSE is the logarithm of how many they are. V = 1, 2, 4 or, for two keys,
// 1, 3; its means are 7/3 and 2.

const double ln2 = std::log(2.0), ln3 = std::log(3.0), ln4 = std::log(4.0), e = std::exp(1.0);

/// A row of the answer: O, and LSE in natural units. `none`: the row sees no key.
struct Answer {
  double o, lse;
  bool empty = false;
};
const Answer none{0, 0, true};
using Answers = std::vector<Answer>;

// Causal, 2 queries and 3 keys.
const Answers wide_bottom_right{{1.5, ln2}, {7 / 3.0, ln3}};  // 110, 111
const Answers wide_top_left{{1, 0}, {1.5, ln2}};              // 100, 110

// Causal, 3 queries and 2 keys.
const Answers tall_bottom_right{none, {1, 0}, {2, ln2}};  // 00, 10, 11
const Answers tall_top_left{{1, 0}, {2, ln2}, {2, ln2}};  // 10, 11, 11

// A mask of 000 and 011.
const Answers masked{none, {3, ln2}};

// window=1,0 of 3 queries and 3 keys.
const Answers window_and_self{{1, 0}, {1.5, ln2}, {3, ln2}};  // 100, 110, 011
const Answers window_of_self{{1, 0}, {2, 0}, {4, 0}};         // 100, 010, 001

// No scale given; head_dim 4, q . k = 2 ln 3 and 0, V = 0, 4.
//   1 / sqrt(4): scores ln 3, 0; weights 3 and 1 of 4.      1: scores ln 9, 0; weights 9 and 1
//   of 10.
const Answers scaled_by_half{{1, ln4}};
const Answers not_scaled{{0.4, std::log(10.0)}};
const Answers refused{};

// softcap=2, a bias of ln 3 and 0, V = 0, 4. A capped 0 is 0; a capped ln 3 is
// 2 tanh(ln 3 / 2) = 2 (3 - 1) / (3 + 1) = 1.
//   softcap first: scores ln 3, 0, as above.      bias first: scores 1, 0; weights e and 1.
const Answers capped_then_biased{{1, ln4}};
const Answers biased_then_capped{{4 / (1 + e), std::log(1 + e)}};

// ALiBi with slope ln 2, 2 queries and 3 keys: a step is a factor of 2.
//   -slope |i + 1 - j|: weights 1/2 1 1/2 of 2; 1/4 1/2 1 of 7/4.
//   -slope |i - j|:     weights 1 1/2 1/4 of 7/4; 1/2 1 1/2 of 2.
//   slope (j - i):      weights 1 2 4 of 7; 1/2 1 2 of 7/2.
const Answers near_bottom_right{{2.25, ln2}, {3, std::log(1.75)}};
const Answers near_top_left{{12 / 7.0, std::log(1.75)}, {2.25, ln2}};
const Answers rising{{3, std::log(7.0)}, {3, std::log(3.5)}};

// The same under causal.
//   bottom-right, -slope |i + 1 - j|: weights 1/2 1 of 3/2; 1/4 1/2 1 of 7/4.
//   flash-attn 2, slope j:            weights 1 2 of 3; 1 2 4 of 7: the same O.
//   bottom-right, slope (j - i):      weights 1 2 of 3; 1/2 1 2 of 7/2.
//   top-left, by either form:         weight 1 of 1; 1/2 1 of 3/2.
const Answers causal_near{{5 / 3.0, std::log(1.5)}, {3, std::log(1.75)}};
const Answers causal_fa2{{5 / 3.0, ln3}, {3, std::log(7.0)}};
const Answers causal_rising{{5 / 3.0, ln3}, {3, std::log(3.5)}};
const Answers causal_top_left{{1, 0}, {5 / 3.0, std::log(1.5)}};

// A mask of 011 and 101 beside causal, 2 queries and 3 keys.
const Answers both_bottom_right{{2, 0}, {2.5, ln2}};  // 010, 101
const Answers both_top_left{none, {1, 0}};            // 000, 100
const Answers mask_alone{{3, ln2}, {2.5, ln2}};       // 011, 101

/// What stands in a row that sees no key. `open`: its LSE is not promised.
enum class EmptyO { of_zero, of_mean };
enum class EmptyLse { minus, plus, open };
constexpr auto o_zero = EmptyO::of_zero, o_mean = EmptyO::of_mean;
constexpr auto lse_minus = EmptyLse::minus, lse_plus = EmptyLse::plus, lse_open = EmptyLse::open;

struct Disagreements {
  const char* preset;
  EmptyO empty_o;
  EmptyLse empty_lse;
  double lse_unit;  ///< what LSE counts: 1, or ln 2 for base 2
  const Answers &wide, &tall, &window, &scale, &order, &alibi, &causal_alibi, &mask_and_causal;
};

// clang-format off
const Disagreements disagreements[] = {
    {"fa3",             o_zero, lse_minus, 1,   wide_bottom_right, tall_bottom_right, window_and_self, scaled_by_half, capped_then_biased, near_bottom_right, causal_near,     both_bottom_right},
    {"fa2",             o_zero, lse_plus,  1,   wide_bottom_right, tall_bottom_right, window_and_self, scaled_by_half, capped_then_biased, near_bottom_right, causal_fa2,      both_bottom_right},
    {"torch_sdpa",      o_zero, lse_open,  1,   wide_top_left,     tall_top_left,     window_and_self, scaled_by_half, capped_then_biased, near_top_left,     causal_top_left, refused},
    {"xformers",        o_zero, lse_open,  1,   wide_top_left,     tall_top_left,     window_and_self, scaled_by_half, capped_then_biased, near_top_left,     causal_top_left, both_top_left},
    {"flashinfer",      o_zero, lse_minus, ln2, wide_bottom_right, tall_bottom_right, window_and_self, scaled_by_half, biased_then_capped, rising,            causal_rising,   mask_alone},
    {"vllm",            o_zero, lse_open,  1,   wide_bottom_right, tall_bottom_right, window_of_self,  refused,        capped_then_biased, near_bottom_right, causal_near,     both_bottom_right},
    {"onnx",            o_zero, lse_open,  1,   wide_top_left,     tall_top_left,     window_and_self, scaled_by_half, capped_then_biased, near_top_left,     causal_top_left, both_top_left},
    {"cudnn",           o_zero, lse_open,  1,   wide_top_left,     tall_top_left,     window_of_self,  not_scaled,     capped_then_biased, rising,            causal_top_left, both_top_left},
    {"ggml",            o_zero, lse_open,  1,   wide_bottom_right, tall_bottom_right, window_and_self, refused,        capped_then_biased, near_bottom_right, causal_near,     both_bottom_right},
    {"mlx",             o_zero, lse_open,  1,   wide_bottom_right, tall_bottom_right, window_and_self, refused,        capped_then_biased, near_bottom_right, causal_near,     refused},
    {"jax",             o_mean, lse_open,  1,   wide_top_left,     tall_top_left,     window_and_self, scaled_by_half, capped_then_biased, near_top_left,     causal_top_left, both_top_left},
    {"triton_tutorial", o_zero, lse_open,  ln2, wide_top_left,     tall_top_left,     window_and_self, refused,        capped_then_biased, near_top_left,     causal_top_left, both_top_left},
    {"hf_eager",        o_mean, lse_open,  1,   wide_bottom_right, tall_bottom_right, window_of_self,  scaled_by_half, capped_then_biased, near_bottom_right, causal_near,     both_bottom_right},
};
// clang-format on

/// The numbers of one tensor, in row-major order; others are 0.
void fill(const TensorView& view, const std::vector<double>& numbers) {
  ASSERT_TRUE(view.exists());
  ASSERT_EQ(view.elements(), static_cast<std::int64_t>(numbers.size()));
  for (std::int64_t n = 0; n < view.elements(); ++n)
    store(view.dtype, view.at(n), numbers[static_cast<std::size_t>(n)]);
}

/// One small problem under one preset.
class Disagreement {
 public:
  /// `words` on the problem line say the rest; `scale` is what is given, where one is.
  Disagreement(const Disagreements& row, const std::string& words, std::optional<double> scale = 1)
      : row_(row), scale_(scale) {
    const std::string line = "fwd " + words + " f64 conv=" + row.preset;
    const auto parsed = parse_problem(line + (scale ? " scale=1" : ""));
    consistent_ = std::holds_alternative<Problem>(parsed);
    if (!consistent_) return;
    problem_ = std::get<Problem>(parsed);
    EXPECT_TRUE(buffers_.allocate(problem_, {true, true}).ok()) << line;
    const AttentionTensors& all = buffers_.tensors();
    fill(all.q, std::vector<double>(static_cast<std::size_t>(all.q.elements())));
    fill(all.k, std::vector<double>(static_cast<std::size_t>(all.k.elements())));
    const bool three = problem_.max_seqlen_k() == 3;
    fill(all.v, three ? std::vector<double>{1, 2, 4} : std::vector<double>{1, 3});
    mean_v_ = three ? 7 / 3.0 : 2;
  }

  const AttentionTensors& tensors() const { return buffers_.tensors(); }

  void expect(const Answers& answers) {
    SCOPED_TRACE(row_.preset);
    if (&answers == &refused) return expect_refusal();
    ASSERT_TRUE(consistent_);
    ASSERT_EQ(static_cast<std::int64_t>(answers.size()), problem_.max_seqlen_q());
    const oracle::Case judged(problem_, tensors());
    const oracle::KeyValueHead head = oracle::read_key_value_head(judged, 0, 0);
    ASSERT_EQ(run_portable(), TILEWISE_OK) << error_.message;
    for (std::size_t i = 0; i < answers.size(); ++i) {
      const oracle::Row row = oracle::forward_row(judged, head, 0, static_cast<std::int64_t>(i));
      expect_row(answers[i], row.o[0], oracle::expected_lse(problem_.conventions, row), "oracle",
                 i);
      const auto n = static_cast<std::int64_t>(i);
      expect_row(answers[i], load(DType::f64, tensors().o.at(n)),
                 load(DType::f64, tensors().lse.at(n)), "cpu.portable", i);
    }
  }

 private:
  void expect_row(const Answer& answer, double o, double lse, const char* whose,
                  std::size_t i) const {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    // Slopes and biases may be stored as float32: theirs is the tolerance.
    const double expected = !answer.empty ? answer.o : row_.empty_o == o_mean ? mean_v_ : 0;
    EXPECT_NEAR(o, expected, 1e-6) << whose << ", O of row " << i;
    if (answer.empty && row_.empty_lse == lse_open) return;
    if (answer.empty)
      EXPECT_EQ(lse, row_.empty_lse == lse_plus ? infinity : -infinity) << whose << ", row " << i;
    else
      EXPECT_NEAR(lse * row_.lse_unit, answer.lse, 1e-6) << whose << ", LSE of row " << i;
  }

  /// The judge's vocabulary refuses it, and so does the library, which says why.
  void expect_refusal() {
    EXPECT_FALSE(consistent_);
    const char* const words = scale_ ? "fwd sq2 sk3 d1 f64 causal mask=1,1,q,k" : "fwd d1 f64";
    problem_ = std::get<Problem>(parse_problem(words));
    EXPECT_TRUE(buffers_.allocate(problem_, {true, true}).ok());
    EXPECT_EQ(run_portable(), TILEWISE_BAD_ARGUMENT);
    EXPECT_STREQ(error_.message,
                 scale_ ? "mask and causal are both given, which these conventions refuse"
                        : "softmax_scale is not set, and these conventions have no default");
  }

  /// The struct starts from the preset's name, and is then given tensors, masks and lengths alone.
  tilewise_status run_portable() {
    tilewise_attention attention;
    EXPECT_EQ(tilewise_attention_init(&attention, row_.preset), TILEWISE_OK);
    const tilewise_attention given = tools::c_attention(problem_.params(), tensors());
    std::memcpy(&attention.q, &given.q, sizeof given - offsetof(tilewise_attention, q));
    attention.causal = given.causal;
    attention.window_left = given.window_left;
    attention.window_right = given.window_right;
    attention.softcap = given.softcap;
    if (scale_) attention.softmax_scale = *scale_;

    tilewise_context_options options;
    tilewise_context_options_init(&options);
    options.threading = TILEWISE_THREADING_SERIAL;
    tilewise_context* made = nullptr;
    EXPECT_EQ(tilewise_context_create(&options, &made, nullptr), TILEWISE_OK);
    const std::unique_ptr<tilewise_context, decltype(&tilewise_context_destroy)> context(
        made, &tilewise_context_destroy);
    std::size_t bytes = 0;
    static_cast<void>(
        tilewise_attention_workspace(made, &attention, TILEWISE_FORWARD, &bytes, nullptr, nullptr));
    void* const workspace = tilewise_allocate(made, bytes);
    const tilewise_status status =
        tilewise_attention_forward(made, &attention, workspace, bytes, nullptr, &error_);
    tilewise_free(made, workspace);
    return status;
  }

  const Disagreements& row_;
  std::optional<double> scale_;
  bool consistent_ = false;
  Problem problem_;
  harness::ProblemBuffers buffers_;
  double mean_v_ = 0;
  tilewise_error error_ = TILEWISE_ERROR_INIT;
};

TEST(Disagreements, EveryPresetHasARow) {
  ASSERT_EQ(std::size(disagreements), std::size(convention_presets));
  for (std::size_t n = 0; n < std::size(disagreements); ++n)
    EXPECT_EQ(disagreements[n].preset, convention_presets[n].name);
}

TEST(Disagreements, WhereTheCausalDiagonalStands) {
  for (const Disagreements& row : disagreements) {
    Disagreement(row, "sq2 sk3 d1 dv1 causal").expect(row.wide);
    Disagreement(row, "sq3 sk2 d1 dv1 causal").expect(row.tall);
  }
}

TEST(Disagreements, WhatARowThatSeesNoKeyHolds) {
  for (const Disagreements& row : disagreements) {
    Disagreement problem(row, "sq2 sk3 d1 dv1 mask=1,1,q,k");
    fill(problem.tensors().mask, {0, 0, 0, 0, 1, 1});
    problem.expect(masked);
  }
}

TEST(Disagreements, WhatAWindowCounts) {
  for (const Disagreements& row : disagreements)
    Disagreement(row, "s3 d1 dv1 window=1,0").expect(row.window);
}

TEST(Disagreements, WhatTheScaleIsWhereNoneIsGiven) {
  for (const Disagreements& row : disagreements) {
    Disagreement problem(row, "sq1 sk2 d4 dv1", std::nullopt);
    if (&row.scale != &refused) {
      fill(problem.tensors().q, {1, 0, 0, 0});
      fill(problem.tensors().k, {2 * ln3, 0, 0, 0, 0, 0, 0, 0});
      fill(problem.tensors().v, {0, 4});
    }
    problem.expect(row.scale);
  }
}

TEST(Disagreements, WhetherSoftcapOrBiasComesFirst) {
  for (const Disagreements& row : disagreements) {
    Disagreement problem(row, "sq1 sk2 d1 dv1 softcap=2 bias=1,1,1,k");
    fill(problem.tensors().bias, {ln3, 0});
    fill(problem.tensors().v, {0, 4});
    problem.expect(row.order);
  }
}

TEST(Disagreements, WhatAlibiAdds) {
  for (const Disagreements& row : disagreements)
    for (const bool causal : {false, true}) {
      Disagreement problem(row, std::string("sq2 sk3 d1 dv1 alibi") + (causal ? " causal" : ""));
      fill(problem.tensors().alibi_slopes, {ln2});
      problem.expect(causal ? row.causal_alibi : row.alibi);
    }
}

TEST(Disagreements, WhatAMaskBesideCausalDoes) {
  for (const Disagreements& row : disagreements) {
    Disagreement problem(row, "sq2 sk3 d1 dv1 causal mask=1,1,q,k");
    if (&row.mask_and_causal != &refused) fill(problem.tensors().mask, {0, 1, 1, 1, 0, 1});
    problem.expect(row.mask_and_causal);
  }
}

}  // namespace
}  // namespace tilewise
