// Both oracles against cases worked out by hand: two oracles may share a misunderstanding, paper
// and pencil do not. Most cases have head dimension 1, scale 1 and q = 1, so that a key is its
// logit; and equal logits with v = 1, 2, 4, 8, so that an output names the keys it saw.
#include "oracle/attention.hpp"
#include "tests/random_problem.hpp"
#include "tests/second_oracle.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

namespace tilewise::tests {
namespace {

using Values = std::vector<double>;

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();
const double e = std::exp(1.0), ln2 = std::log(2.0), ln3 = std::log(3.0);
const double a = std::exp(-0.5), b = std::exp(-1.0);  // ALiBi's weights for slope 1/2

/// The four lists of a block mask for every sequence and head, [query blocks (, key blocks)].
struct Blocks {
  std::vector<std::int32_t> kv_num_blocks{}, kv_indices{};
  std::vector<std::int32_t> full_kv_num_blocks{}, full_kv_indices{};
};

struct HandCase {
  const char* name;
  const char* line;
  Values q, k, v;  ///< in the order of the view's dimensions; a single number is meant for all
  Values o, lse;   ///< dense [batch][head][row][column]
  Values dout{}, dq{}, dk{}, dv{};
  Values bias{}, mask{}, slopes{};
  Values sinks{}, dbias{}, dsinks{};
  Blocks blocks{};
};

void PrintTo(const HandCase& hand_case, std::ostream* out) {
  *out << hand_case.name << ": " << hand_case.line;
}

void write(const TensorView& view, const Values& values) {
  ASSERT_TRUE(view.exists());
  ASSERT_TRUE(values.size() == 1 || static_cast<std::int64_t>(values.size()) == view.elements());
  for (std::int64_t n = 0; n < view.elements(); ++n) {
    std::int64_t rest = n, offset = 0;
    for (int dim = view.ndim - 1; dim >= 0; --dim) {
      offset += rest % view.shape[dim] * view.strides[dim];
      rest /= view.shape[dim];
    }
    store(view.dtype, view.at(offset),
          values[values.size() == 1 ? 0 : static_cast<std::size_t>(n)]);
  }
}

BlockMask block_mask(const BlockSparsity& size, Blocks& lists) {
  const auto rows = static_cast<std::int64_t>(lists.kv_num_blocks.size());
  const std::int64_t columns = static_cast<std::int64_t>(lists.kv_indices.size()) / rows, one = 1;
  const auto counts = [&](std::vector<std::int32_t>& list) {
    return list.empty() ? TensorView{} : contiguous(list.data(), DType::i32, one, one, rows);
  };
  const auto indices = [&](std::vector<std::int32_t>& list) {
    return list.empty() ? TensorView{}
                        : contiguous(list.data(), DType::i32, one, one, rows, columns);
  };
  return {size.block_q,
          size.block_k,
          counts(lists.kv_num_blocks),
          indices(lists.kv_indices),
          counts(lists.full_kv_num_blocks),
          indices(lists.full_kv_indices)};
}

/// A handful of roundings of numbers of about this size.
template <class Number>
void expect_values(const char* who, const char* what, const std::vector<Number>& got,
                   const Values& expected) {
  ASSERT_EQ(got.size(), expected.size()) << who << ": " << what;
  for (std::size_t n = 0; n < expected.size(); ++n) {
    const auto value = static_cast<double>(got[n]);
    if (std::isnan(expected[n]))
      EXPECT_TRUE(std::isnan(value)) << who << ": " << what << "[" << n << "]";
    else if (std::isinf(expected[n]))
      EXPECT_EQ(value, expected[n]) << who << ": " << what << "[" << n << "]";
    else
      EXPECT_NEAR(value, expected[n], 16 * 0x1p-53 * (1 + std::abs(expected[n])))
          << who << ": " << what << "[" << n << "]";
  }
}

template <class Everything>
void expect_answers(const char* who, const Everything& all, const HandCase& hand_case) {
  expect_values(who, "o", all.o, hand_case.o);
  expect_values(who, "lse", all.lse, hand_case.lse);
  expect_values(who, "dq", all.dq, hand_case.dq);
  expect_values(who, "dk", all.dk, hand_case.dk);
  expect_values(who, "dv", all.dv, hand_case.dv);
  if (!hand_case.dv.empty()) {
    if (!hand_case.bias.empty()) expect_values(who, "dbias", all.dbias, hand_case.dbias);
    if (!hand_case.sinks.empty()) expect_values(who, "dsinks", all.dsinks, hand_case.dsinks);
  }
}

class ByHand : public testing::TestWithParam<HandCase> {};

TEST_P(ByHand, BothOraclesAgree) {
  const HandCase& hand_case = GetParam();
  const auto parsed = parse_problem(std::string(hand_case.line) + " f64");
  ASSERT_TRUE(std::holds_alternative<Problem>(parsed))
      << std::get<ParseError>(parsed).explain(hand_case.line);
  const auto& problem = std::get<Problem>(parsed);
  ASSERT_EQ(inconsistency(problem), "");
  const SmallTensors tensors(problem);
  AttentionTensors views = tensors.views();
  write(views.q, hand_case.q);
  write(views.k, hand_case.k);
  write(views.v, hand_case.v);
  if (problem.pass == Pass::backward) write(views.dout, hand_case.dout);
  if (problem.bias) write(views.bias, hand_case.bias);
  if (problem.mask) write(views.mask, hand_case.mask);
  if (problem.alibi) write(views.alibi_slopes, hand_case.slopes);
  if (problem.sink) write(views.sinks, hand_case.sinks);
  Blocks lists = hand_case.blocks;
  if (problem.blocks) views.block_mask = block_mask(*problem.blocks, lists);
  expect_answers("oracle", oracle::attention(oracle::Case(problem, views)), hand_case);
  expect_answers("second oracle", second_attention(problem, views), hand_case);
}

// clang-format off
const HandCase softmax_cases[] = {
    {"OneKey", "fwd sq1 sk1 d1 scale=1", {2}, {5}, {7}, {7}, {10}},
    {"WeightsOneAndThree", "fwd sq1 sk2 d1 scale=1", {1}, {0, ln3}, {8, -4}, {-1}, {2 * ln2}},
    {"HugeLogits", "fwd sq1 sk2 d1 scale=1", {1}, {10000, 10000 + 8}, {0, 1},
     {1 / (1 + std::exp(-8.0))}, {10008 + std::log1p(std::exp(-8.0))}},
    {"DefaultScaleOfFourIsOneHalf", "fwd sq1 sk2 d4 dv1", {1},
     {0, 0, 0, 0, ln3 / 2, ln3 / 2, ln3 / 2, ln3 / 2}, {8, -4}, {-1}, {2 * ln2}},
    {"DefaultScaleOfCudnnIsOne", "fwd sq1 sk2 d4 dv1 conv=cudnn", {1},
     {0, 0, 0, 0, ln3 / 4, ln3 / 4, ln3 / 4, ln3 / 4}, {8, -4}, {-1}, {2 * ln2}},
    // A NaN is no row without keys, wherever it stands.
    {"OneKeyThatIsNotANumber", "fwd sq1 sk1 d1 scale=1", {1}, {not_a_number}, {1}, {not_a_number},
     {not_a_number}},
    {"LastKeyThatIsNotANumber", "fwd sq1 sk2 d1 scale=1", {1}, {0, not_a_number}, {1, 2},
     {not_a_number}, {not_a_number}},
    {"NotANumberBesideASink", "fwd sq1 sk1 d1 scale=1 sink", {1}, {not_a_number}, {1},
     {not_a_number}, {not_a_number}, {}, {}, {}, {}, {}, {}, {}, {0}},
    {"ValuesOfAnotherWidth", "fwd sq1 sk2 d1 dv2 scale=1", {1}, {0}, {1, 2, 3, 4}, {2, 3}, {ln2}},
    {"LseInBaseTwo", "fwd sq1 sk2 d1 scale=1 lse_base=2", {1}, {0, ln3}, {8, -4}, {-1}, {2}},
    {"GroupedHeads", "fwd sq1 sk1 hq4 hk2 d1 scale=1", {1}, {0}, {3, 5}, {3, 3, 5, 5},
     {0, 0, 0, 0}},
    {"HeadsBeforeRowsInMemory", "fwd sq2 sk2 hq2 hk2 d1 scale=1 causal bhsd", {1}, {0},
     {1, 10, 2, 20}, {1, 1.5, 10, 15}, {0, ln2, 0, ln2}},
};

const HandCase mask_cases[] = {
    {"CausalBottomRightTwoByThree", "fwd sq2 sk3 d1 scale=1 causal", {1}, {0}, {1, 2, 4},
     {1.5, 7.0 / 3}, {ln2, ln3}},
    {"CausalTopLeftTwoByThree", "fwd sq2 sk3 d1 scale=1 causal align=top_left", {1}, {0},
     {1, 2, 4}, {1, 1.5}, {0, ln2}},
    {"CausalBottomRightThreeByTwo", "fwd sq3 sk2 d1 scale=1 causal", {1}, {0}, {1, 2},
     {0, 1, 1.5}, {-infinity, 0, ln2}},
    {"CausalTopLeftThreeByTwo", "fwd sq3 sk2 d1 scale=1 causal align=top_left", {1}, {0}, {1, 2},
     {1, 1.5, 1.5}, {0, ln2, ln2}},
    {"EmptyRowOfFlashAttention2", "fwd sq3 sk2 d1 scale=1 causal conv=fa2", {1}, {0}, {1, 2},
     {0, 1, 1.5}, {infinity, 0, ln2}},
    {"EmptyRowNan", "fwd sq3 sk2 d1 scale=1 causal empty_o=nan", {1}, {0}, {1, 2},
     {not_a_number, 1, 1.5}, {-infinity, 0, ln2}},
    {"EmptyRowMeanOfValues", "fwd sq3 sk2 d1 scale=1 causal empty_o=mean_v", {1}, {0}, {1, 2},
     {1.5, 1, 1.5}, {-infinity, 0, ln2}},
    {"WindowOfOneKeyBefore", "fwd sq4 sk4 d1 scale=1 window=1,0", {1}, {0}, {1, 2, 4, 8},
     {1, 1.5, 3, 6}, {0, ln2, ln2, ln2}},
    {"WindowOfTwoKeysIncludingSelf",
     "fwd sq4 sk4 d1 scale=1 window=2,0 window_left=keys_including_self", {1}, {0}, {1, 2, 4, 8},
     {1, 1.5, 3, 6}, {0, ln2, ln2, ln2}},
    {"WindowOfOneKeyIncludingSelf",
     "fwd sq4 sk4 d1 scale=1 window=1,0 window_left=keys_including_self", {1}, {0}, {1, 2, 4, 8},
     {1, 2, 4, 8}, {0, 0, 0, 0}},
    {"WindowToTheRight", "fwd sq2 sk4 d1 scale=1 window=0,1", {1}, {0}, {1, 2, 4, 8}, {6, 8},
     {ln2, 0}},
    {"WindowFromTheTopLeft", "fwd sq2 sk4 d1 scale=1 window=1,1 align=top_left", {1}, {0},
     {1, 2, 4, 8}, {1.5, 7.0 / 3}, {ln2, ln3}},
    {"WindowWithoutALeftEnd", "fwd sq2 sk4 d1 scale=1 window=-1,0", {1}, {0}, {1, 2, 4, 8},
     {7.0 / 3, 15.0 / 4}, {ln3, 2 * ln2}},
    {"MaskTrueMeansMayLook", "fwd sq2 sk2 d1 scale=1 mask=1,1,q,k", {1}, {0}, {1, 2}, {1, 0},
     {0, -infinity}, {}, {}, {}, {}, {}, {1, 0, 0, 0}},
    {"MaskForAllQueriesOfAHead", "fwd sq2 sk2 hq2 hk1 d1 scale=1 mask=1,h,1,k", {1}, {0}, {1, 2},
     {1, 1, 2, 2}, {0, 0, 0, 0}, {}, {}, {}, {}, {}, {1, 0, 0, 1}},
    {"MaskAndCausalIntersect", "fwd sq2 sk2 d1 scale=1 causal mask=1,1,q,k", {1}, {0}, {1, 2},
     {0, 1.5}, {-infinity, ln2}, {}, {}, {}, {}, {}, {0, 1, 1, 1}},
    {"MaskReplacesCausal", "fwd sq2 sk2 d1 scale=1 causal mask=1,1,q,k mask_and_causal=mask_replaces",
     {1}, {0}, {1, 2}, {2, 1.5}, {0, ln2}, {}, {}, {}, {}, {}, {0, 1, 1, 1}},
    {"CausalReplacesMask",
     "fwd sq2 sk2 d1 scale=1 causal mask=1,1,q,k mask_and_causal=causal_replaces", {1}, {0}, {1, 2},
     {1, 1.5}, {0, ln2}, {}, {}, {}, {}, {}, {0, 1, 1, 1}},
    {"PackedSequences", "fwd b2 sq1,2 sk1,2 d1 scale=1 causal packed", {1}, {0}, {3, 1, 2},
     {3, 0, 1, 1.5}, {0, 0, 0, ln2}},
    {"PaddedSequences", "fwd b2 sq1,2 sk1,2 d1 scale=1 causal", {1, 99, 1, 1}, {0, 99, 0, 0},
     {3, 99, 1, 2}, {3, 0, 1, 1.5}, {0, 0, 0, ln2}},
};

const HandCase score_cases[] = {
    // Row 0 stands at key 1: distances 1, 0, 1. Row 1 stands at key 2: distances 2, 1, 0.
    {"AlibiDistance", "fwd sq2 sk3 d1 scale=1 alibi", {1}, {0}, {1, 2, 4},
     {(a + 2 + 4 * a) / (1 + 2 * a), (b + 2 * a + 4) / (1 + a + b)},
     {std::log(1 + 2 * a), std::log(1 + a + b)}, {}, {}, {}, {}, {}, {}, {0.5}},
    // slope j: the weights of before times e^{slope p}, which only the LSE shows.
    {"AlibiOfFlashAttention2UnderCausal", "fwd sq2 sk3 d1 scale=1 alibi causal conv=fa2", {1}, {0},
     {1, 2, 4}, {(a + 2) / (1 + a), (b + 2 * a + 4) / (1 + a + b)},
     {std::log(1 + 1 / a), std::log(1 + 1 / a + 1 / b)}, {}, {}, {}, {}, {}, {}, {0.5}},
    // slope (j - i): row 0 has 0, 1, 2 and row 1 has -1, 0, 1.
    {"AlibiSigned", "fwd sq2 sk3 d1 scale=1 alibi alibi_form=signed_distance", {1}, {0}, {1, 2, 4},
     {(b + 2 * a + 4) / (1 + a + b), (b + 2 * a + 4) / (1 + a + b)},
     {std::log(1 + 1 / a + 1 / b), std::log(a + 1 + 1 / a)}, {}, {}, {}, {}, {}, {}, {0.5}},
    {"AlibiOfEachHead", "fwd sq1 sk2 hq2 hk1 d1 scale=1 alibi", {1}, {0}, {0, 1},
     {1 / (1 + a), 1 / (1 + b)}, {std::log(1 + a), std::log(1 + b)}, {}, {}, {}, {}, {}, {},
     {0.5, 1}},
    // tanh(ln(3) / 2) = (3 - 1) / (3 + 1) = 1/2, so that 2 tanh(ln(3) / 2) = 1.
    {"Softcap", "fwd sq1 sk2 d1 scale=1 softcap=2", {1}, {0, ln3}, {8, -4},
     {(8 - 4 * e) / (1 + e)}, {std::log(1 + e)}},
    {"SoftcapThenBias", "fwd sq1 sk2 d1 scale=1 softcap=2 bias=1,1,q,k", {1}, {0}, {8, -4}, {-1},
     {2 * ln2}, {}, {}, {}, {}, {0, ln3}},
    {"BiasThenSoftcap",
     "fwd sq1 sk2 d1 scale=1 softcap=2 bias=1,1,q,k score_order=bias_softcap_mask", {1}, {0},
     {8, -4}, {(8 - 4 * e) / (1 + e)}, {std::log(1 + e)}, {}, {}, {}, {}, {0, ln3}},
    {"BiasOfEachHead", "fwd sq1 sk2 hq2 hk1 d1 scale=1 bias=1,h,1,1", {1}, {0}, {1, 2}, {1.5, 1.5},
     {1 + ln2, 2 + ln2}, {}, {}, {}, {}, {1, 2}},
    {"BiasOfMinusInfinityHides", "fwd sq2 sk2 d1 scale=1 bias=1,1,q,k", {1}, {0}, {1, 2}, {1, 0},
     {0, -infinity}, {}, {}, {}, {}, {0, -infinity, -infinity, -infinity}},
};

const double w = e / ((1 + e) * (1 + e));  // p_0 p_1 for logits 0 and 1
const HandCase gradient_cases[] = {
    {"OneKey", "bwd sq1 sk1 d1 scale=1", {2}, {5}, {7}, {7}, {10}, {3}, {0}, {0}, {3}},
    // o = -1: ds = (1/4 (8 + 1), 3/4 (-4 + 1)) = (9/4, -9/4).
    {"WeightsOneAndThree", "bwd sq1 sk2 d1 scale=1", {1}, {0, ln3}, {8, -4}, {-1}, {2 * ln2},
     {1}, {-2.25 * ln3}, {2.25, -2.25}, {0.25, 0.75}},
    {"Scale", "bwd sq1 sk2 d1 scale=2", {1}, {0, ln3 / 2}, {8, -4}, {-1}, {2 * ln2},
     {1}, {-2.25 * ln3}, {4.5, -4.5}, {0.25, 0.75}},
    // p_0 p_1 (v_0 - v_1) = 12 w; the slope of the softcap is 1 at 0 and 1 - 1/4 at ln 3.
    {"Softcap", "bwd sq1 sk2 d1 scale=1 softcap=2", {1}, {0, ln3}, {8, -4},
     {(8 - 4 * e) / (1 + e)}, {std::log(1 + e)}, {1}, {-9 * w * ln3}, {12 * w, -9 * w},
     {1 / (1 + e), e / (1 + e)}},
    // Row 0 sees one key; row 1 has p = 1/2, o = 2, ds = 1/2 7 (1 - 2), 1/2 7 (3 - 2).
    {"Causal", "bwd sq2 sk2 d1 scale=1 causal", {1, 2}, {0}, {1, 3}, {1, 2}, {0, ln2}, {5, 7},
     {0, 0}, {-7, 7}, {8.5, 3.5}},
    {"GroupedHeadsAdd", "bwd sq1 sk1 hq2 hk1 d1 scale=1", {1}, {0}, {3}, {3, 3}, {0, 0}, {5, 7},
     {0, 0}, {0}, {12}},
    {"EmptyRowPassesNothingOn", "bwd sq2 sk1 d1 scale=1 causal", {1}, {0}, {3}, {0, 3},
     {-infinity, 0}, {100, 7}, {0, 0}, {0}, {7}},
    {"EmptyRowOfMeanPassesItsMean", "bwd sq3 sk2 d1 scale=1 causal empty_o=mean_v", {1}, {0},
     {4, 4}, {4, 4, 4}, {-infinity, 0, ln2}, {100, 7, 2}, {0, 0, 0}, {0, 0}, {58, 51}},
    // p = 1/2, o = 2: a row adds dO / 2 (1 - 2) and dO / 2 (3 - 2), and the bias serves both rows.
    {.name = "BiasSharedByQueries", .line = "bwd sq2 sk2 d1 scale=1 bias=1,1,1,k", .q = {1},
     .k = {0}, .v = {1, 3}, .o = {2, 2}, .lse = {ln2, ln2}, .dout = {5, 7}, .dq = {0, 0},
     .dk = {-6, 6}, .dv = {6, 6}, .bias = {0}, .dbias = {-6, 6}},
    {.name = "BiasOfEachHead", .line = "bwd sq1 sk2 hq2 hk1 d1 scale=1 bias=1,h,1,k", .q = {1},
     .k = {0}, .v = {1, 3}, .o = {2, 2}, .lse = {ln2, ln2}, .dout = {5, 7}, .dq = {0, 0},
     .dk = {-6, 6}, .dv = {6, 6}, .bias = {0}, .dbias = {-2.5, 2.5, -3.5, 3.5}},
    {.name = "BiasSharedByHeadsAndSequences",
     .line = "bwd b2 sq1 sk2 hq2 hk1 d1 scale=1 bias=1,1,q,k", .q = {1}, .k = {0},
     .v = {1, 3, 1, 3}, .o = {2, 2, 2, 2}, .lse = {ln2, ln2, ln2, ln2}, .dout = {5, 7, 1, 2},
     .dq = {0, 0, 0, 0}, .dk = {-6, 6, -1.5, 1.5}, .dv = {6, 6, 1.5, 1.5}, .bias = {0},
     .dbias = {-7.5, 7.5}},
    {.name = "BiasForAllKeysHasNoGradient", .line = "bwd sq1 sk2 d1 scale=1 bias=1,1,1,1",
     .q = {1}, .k = {0}, .v = {1, 3}, .o = {2}, .lse = {1 + ln2}, .dout = {5}, .dq = {0},
     .dk = {-2.5, 2.5}, .dv = {2.5, 2.5}, .bias = {1}, .dbias = {0}},
    {.name = "BiasBesideASoftcap", .line = "bwd sq1 sk2 d1 scale=1 softcap=2 bias=1,1,q,k",
     .q = {1}, .k = {0, ln3}, .v = {8, -4}, .o = {(8 - 4 * e) / (1 + e)}, .lse = {std::log(1 + e)},
     .dout = {1}, .dq = {-9 * w * ln3}, .dk = {12 * w, -9 * w}, .dv = {1 / (1 + e), e / (1 + e)},
     .bias = {0}, .dbias = {12 * w, -12 * w}},
    {.name = "BiasInsideASoftcap",
     .line = "bwd sq1 sk2 d1 scale=1 softcap=2 bias=1,1,q,k score_order=bias_softcap_mask",
     .q = {1}, .k = {0, ln3}, .v = {8, -4}, .o = {(8 - 4 * e) / (1 + e)}, .lse = {std::log(1 + e)},
     .dout = {1}, .dq = {-9 * w * ln3}, .dk = {12 * w, -9 * w}, .dv = {1 / (1 + e), e / (1 + e)},
     .bias = {0}, .dbias = {12 * w, -9 * w}},
};

const double e3 = std::exp(3.0), e5 = std::exp(5.0);
const HandCase sink_cases[] = {
    {.name = "AsLikelyAsTheKey", .line = "fwd sq1 sk1 d1 scale=1 sink", .q = {1}, .k = {0},
     .v = {8}, .o = {4}, .lse = {ln2}, .sinks = {0}},
    {.name = "AThirdOfTheKey", .line = "fwd sq1 sk1 d1 scale=1 sink", .q = {1}, .k = {ln3},
     .v = {8}, .o = {6}, .lse = {2 * ln2}, .sinks = {0}},
    {.name = "InBaseTwo", .line = "fwd sq1 sk1 d1 scale=1 sink lse_base=2", .q = {1}, .k = {0},
     .v = {8}, .o = {4}, .lse = {1}, .sinks = {0}},
    {.name = "NeitherScaledNorCapped", .line = "fwd sq1 sk1 d1 scale=0.5 softcap=2 sink",
     .q = {1}, .k = {0}, .v = {8}, .o = {8 / (1 + e3)}, .lse = {std::log(1 + e3)}, .sinks = {3}},
    {.name = "OfEachHead", .line = "fwd sq1 sk1 hq2 hk1 d1 scale=1 sink", .q = {1}, .k = {0},
     .v = {8}, .o = {4, 8 / (1 + e5)}, .lse = {ln2, std::log(1 + e5)}, .sinks = {0, 5}},
    {.name = "LargerThanAnyScore", .line = "fwd sq1 sk1 d1 scale=1 sink", .q = {1}, .k = {0},
     .v = {8}, .o = {0}, .lse = {10000}, .sinks = {10000}},
    // No key, but a sink: the row is not empty, whatever the conventions say of empty rows.
    {.name = "Alone", .line = "fwd sq2 sk1 d1 scale=1 sink causal empty_o=nan empty_lse=plus_inf",
     .q = {1}, .k = {2}, .v = {8}, .o = {0, 4}, .lse = {2, 2 + ln2}, .sinks = {2}},
    {.name = "WithoutAnyKey", .line = "fwd sq1 sk0 d1 scale=1 sink empty_o=mean_v", .q = {1},
     .k = {0}, .v = {0}, .o = {0}, .lse = {-3}, .sinks = {-3}},
    // p = 1/2 each, dp = 8 and 0, D = 4.
    {.name = "Gradient", .line = "bwd sq1 sk1 d1 scale=1 sink bias=1,1,1,1", .q = {1}, .k = {0},
     .v = {8}, .o = {4}, .lse = {ln2}, .dout = {1}, .dq = {0}, .dk = {2}, .dv = {0.5},
     .bias = {0}, .sinks = {0}, .dbias = {2}, .dsinks = {-2}},
    {.name = "GradientOfARowWithoutKeys", .line = "bwd sq2 sk1 d1 scale=1 sink causal", .q = {1},
     .k = {0}, .v = {8}, .o = {0, 4}, .lse = {0, ln2}, .dout = {100, 1}, .dq = {0, 0}, .dk = {2},
     .dv = {0.5}, .sinks = {0}, .dsinks = {-2}},
    {.name = "GradientSumsOverSequences", .line = "bwd b2 sq1 sk1 hq2 hk1 d1 scale=1 sink",
     .q = {1}, .k = {0}, .v = {8, 16}, .o = {4, 4, 8, 8}, .lse = {ln2, ln2, ln2, ln2},
     .dout = {1, 2, 3, 4}, .dq = {0, 0, 0, 0}, .dk = {6, 28}, .dv = {1.5, 3.5}, .sinks = {0},
     .dsinks = {-14, -20}},
};

const HandCase chunk_cases[] = {
    {"OfTwo", "fwd sq4 sk4 d1 scale=1 chunk=2", {1}, {0}, {1, 2, 4, 8}, {1.5, 1.5, 6, 6},
     {ln2, ln2, ln2, ln2}},
    {"OfTwoCausal", "fwd sq4 sk4 d1 scale=1 chunk=2 causal", {1}, {0}, {1, 2, 4, 8},
     {1, 1.5, 4, 6}, {0, ln2, 0, ln2}},
    {"OfOne", "fwd sq4 sk4 d1 scale=1 chunk=1", {1}, {0}, {1, 2, 4, 8}, {1, 2, 4, 8},
     {0, 0, 0, 0}},
    {"OfThreeWithWindow", "fwd sq4 sk4 d1 scale=1 chunk=3 window=1,0", {1}, {0}, {1, 2, 4, 8},
     {1, 1.5, 3, 8}, {0, ln2, ln2, 0}},
    {"LongerThanTheSequence", "fwd sq1 sk4 d1 scale=1 chunk=5", {1}, {0}, {1, 2, 4, 8},
     {15.0 / 4}, {2 * ln2}},
    // Queries stand at keys 2 and 3, or at 0 and 1.
    {"OfThreeBottomRight", "fwd sq2 sk4 d1 scale=1 chunk=3", {1}, {0}, {1, 2, 4, 8}, {7.0 / 3, 8},
     {ln3, 0}},
    {"OfThreeTopLeft", "fwd sq2 sk4 d1 scale=1 chunk=3 align=top_left", {1}, {0}, {1, 2, 4, 8},
     {7.0 / 3, 7.0 / 3}, {ln3, ln3}},
    // Positions -3, -2, -1 stand in chunks -2, -1, -1, which have no keys.
    {"BeforeTheFirstKey", "fwd sq5 sk2 d1 scale=1 chunk=2", {1}, {0}, {1, 2}, {0, 0, 0, 1.5, 1.5},
     {-infinity, -infinity, -infinity, ln2, ln2}},
    {"OfEachSequence", "fwd b2 sq1,2 sk3,2 d1 scale=1 chunk=2 packed", {1}, {0}, {1, 2, 4, 8, 16},
     {4, 0, 12, 12}, {0, 0, ln2, ln2}},
};

const HandCase block_cases[] = {
    // Behind a count stands what would change the answer.
    {.name = "DiagonalUnderCausal", .line = "fwd sq4 sk4 d1 scale=1 causal blocks=2,2,0.5",
     .q = {1}, .k = {0}, .v = {1, 2, 4, 8}, .o = {1, 1.5, 4, 6}, .lse = {0, ln2, 0, ln2},
     .blocks = {{1, 1}, {0, 1, 1, 0}}},
    {.name = "FullBlocksIgnoreCausal", .line = "fwd sq4 sk4 d1 scale=1 causal blocks=2,2,0.5",
     .q = {1}, .k = {0}, .v = {1, 2, 4, 8}, .o = {6, 6, 7.0 / 3, 15.0 / 4},
     .lse = {ln2, ln2, ln3, 2 * ln2}, .blocks = {{0, 1}, {0, 1, 1, 0}, {1, 1}, {1, 0, 0, 1}}},
    {.name = "FullBlocksIgnoreEveryOtherMask",
     .line = "fwd sq2 sk4 d1 scale=1 causal window=0,0 chunk=1 mask=1,1,1,k blocks=2,4,0.5",
     .q = {1}, .k = {0}, .v = {1, 2, 4, 8}, .o = {15.0 / 4, 15.0 / 4}, .lse = {2 * ln2, 2 * ln2},
     .mask = {0}, .blocks = {{0}, {0}, {1}, {0}}},
    {.name = "PartialBlocksHeedThem",
     .line = "fwd sq2 sk4 d1 scale=1 causal window=1,0 mask=1,1,1,k blocks=2,4,0.5", .q = {1},
     .k = {0}, .v = {1, 2, 4, 8}, .o = {4, 6}, .lse = {0, ln2}, .mask = {1, 0, 1, 1},
     .blocks = {{1}, {0}, {0}, {0}}},
    {.name = "RowsWithoutABlock", .line = "fwd sq4 sk4 d1 scale=1 blocks=2,2,0.5", .q = {1},
     .k = {0}, .v = {1, 2, 4, 8}, .o = {0, 0, 15.0 / 4, 15.0 / 4},
     .lse = {-infinity, -infinity, 2 * ln2, 2 * ln2}, .blocks = {{0, 2}, {0, 1, 1, 0}}},
    {.name = "BlocksThatDoNotDivide", .line = "fwd sq4 sk4 d1 scale=1 blocks=3,3,0.5", .q = {1},
     .k = {0}, .v = {1, 2, 4, 8}, .o = {8, 8, 8, 15.0 / 4}, .lse = {0, 0, 0, 2 * ln2},
     .blocks = {{1, 2}, {1, 0, 0, 1}}},
    {.name = "BiasCountsInAFullBlock",
     .line = "fwd sq1 sk2 d1 scale=1 bias=1,1,q,k blocks=1,2,0.5", .q = {1}, .k = {0},
     .v = {8, -4}, .o = {-1}, .lse = {2 * ln2}, .bias = {0, ln3}, .blocks = {{0}, {0}, {1}, {0}}},
};

// Seed 0, head 0, lane 0 of the first block: Philox gives 5f6fb709 0d893f64 ..., so the byte of key
// 0 is 0x09 = 9 and that of key 1 is 0xb7 = 183. Kept is what is at most 255 (1 - p) rounded down.
const HandCase dropout_cases[] = {
    {"OfOneHalf", "fwd sq1 sk2 d1 scale=1 dropout=0.5 seed=0", {1}, {0}, {8, -4}, {8}, {ln2}},
    {"OfThreeQuarters", "fwd sq1 sk2 d1 scale=1 dropout=0.75 seed=0", {1}, {0}, {8, -4}, {16},
     {ln2}},
    {"OfZeroKeepsAll", "fwd sq1 sk2 d1 scale=1 dropout=0 seed=0", {1}, {0}, {8, -4}, {2}, {ln2}},
    // 255 / 32 = 7.97: both are dropped, and the LSE does not notice.
    {"OfNearlyAll", "fwd sq1 sk2 d1 scale=1 dropout=0.96875 seed=0", {1}, {0}, {8, -4}, {0},
     {ln2}},
    // dp = 16 and 0, D = 8.
    {"Gradient", "bwd sq1 sk2 d1 scale=1 dropout=0.5 seed=0", {1}, {0}, {8, -4}, {8}, {ln2}, {1},
     {0}, {4, -4}, {1, 0}},
    // p = 1/3 each, dp = 16, 0 and 0, D = 16/3.
    {.name = "GradientBesideASink", .line = "bwd sq1 sk2 d1 scale=1 dropout=0.5 sink seed=0",
     .q = {1}, .k = {0}, .v = {8, -4}, .o = {16.0 / 3}, .lse = {ln3}, .dout = {1}, .dq = {0},
     .dk = {32.0 / 9, -16.0 / 9}, .dv = {2.0 / 3, 0}, .sinks = {0}, .dsinks = {-16.0 / 9}},
};
// clang-format on

std::string name_of_case(const testing::TestParamInfo<HandCase>& info) {
  return info.param.name;
}
INSTANTIATE_TEST_SUITE_P(Softmax, ByHand, testing::ValuesIn(softmax_cases), name_of_case);
INSTANTIATE_TEST_SUITE_P(Masks, ByHand, testing::ValuesIn(mask_cases), name_of_case);
INSTANTIATE_TEST_SUITE_P(Scores, ByHand, testing::ValuesIn(score_cases), name_of_case);
INSTANTIATE_TEST_SUITE_P(Gradients, ByHand, testing::ValuesIn(gradient_cases), name_of_case);
INSTANTIATE_TEST_SUITE_P(Sinks, ByHand, testing::ValuesIn(sink_cases), name_of_case);
INSTANTIATE_TEST_SUITE_P(Chunks, ByHand, testing::ValuesIn(chunk_cases), name_of_case);
INSTANTIATE_TEST_SUITE_P(Blocks, ByHand, testing::ValuesIn(block_cases), name_of_case);
INSTANTIATE_TEST_SUITE_P(Dropout, ByHand, testing::ValuesIn(dropout_cases), name_of_case);

}  // namespace
}  // namespace tilewise::tests
