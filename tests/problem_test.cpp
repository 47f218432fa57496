// The Problem line: what it means, that printing and parsing are inverse, and that each mistake is
// pointed at with a sentence.
#include "oracle/problem.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace tilewise {
namespace {

Problem parsed(std::string_view line) {
  const auto result = parse_problem(line);
  if (const auto* error = std::get_if<ParseError>(&result)) {
    ADD_FAILURE() << error->explain(line);
    return {};
  }
  return std::get<Problem>(result);
}

Problem parsed_onto(std::string_view line, const Problem& defaults) {
  const auto result = parse_problem(line, defaults);
  if (const auto* error = std::get_if<ParseError>(&result)) {
    ADD_FAILURE() << error->explain(line);
    return {};
  }
  return std::get<Problem>(result);
}

using Lengths = std::vector<std::int64_t>;

// --------------------------------------------------------------------------------------- reading

TEST(ProblemParsing, TheUsualLine) {
  const Problem p = parsed("fwd b2 sq250 sk1024 hq8 hk2 d64 bf16 causal window=127,0 seed=7");
  Problem expected;
  expected.batch = 2;
  expected.seqlens_q = {250};
  expected.seqlens_k = {1024};
  expected.nheads_q = 8;
  expected.nheads_k = 2;
  expected.dtype = DType::bf16;
  expected.causal = true;
  expected.window_left = 127;
  expected.window_right = 0;
  expected.seed = 7;
  EXPECT_EQ(p, expected);
}

TEST(ProblemParsing, EveryKeyInItsLongForm) {
  const Problem p = parsed(
      "pass=bwd batch=3 seqlen_q=1,2,3 seqlen_k=4,5,6 nheads_q=6 nheads_k=3 head_dim=8 "
      "head_dim_v=16 dtype=e4m3 layout=packed scale=0.25 causal=1 window=-1,3 chunk=9 softcap=30 "
      "alibi=1 bias=1,h,q,k mask=b,1,1,k blocks=64,128,0.25 sink=1 dropout=0.17 conv=flashinfer "
      "align=top_left empty_o=nan empty_lse=plus_inf "
      "lse_base=e window_left=keys_including_self default_scale=one score_order=softcap_bias_mask "
      "alibi_form=fa2 mask_and_causal=causal_replaces fill=outliers seed=18446744073709551615");
  Problem expected;
  expected.pass = Pass::backward;
  expected.batch = 3;
  expected.seqlens_q = {1, 2, 3};
  expected.seqlens_k = {4, 5, 6};
  expected.nheads_q = 6;
  expected.nheads_k = 3;
  expected.head_dim = 8;
  expected.head_dim_v = 16;
  expected.dtype = DType::e4m3;
  expected.layout = Layout::packed;
  expected.softmax_scale = 0.25;
  expected.causal = true;
  expected.window_right = 3;
  expected.softcap = 30;
  expected.alibi = true;
  expected.bias = Broadcast{false, true, true, true};
  expected.mask = Broadcast{true, false, false, true};
  expected.attention_chunk = 9;
  expected.blocks = BlockSparsity{64, 128, 0.25};
  expected.sink = true;
  expected.dropout_p = 0.17;
  expected.conventions = {Alignment::top_left,
                          EmptyRowOutput::nan,
                          EmptyRowLse::plus_inf,
                          LseBase::e,
                          WindowLeft::keys_including_self,
                          DefaultScale::one,
                          ScoreOrder::softcap_bias_mask,
                          Alibi::fa2,
                          MaskAndCausal::causal_replaces};
  expected.fill = Fill::outliers;
  expected.seed = std::numeric_limits<std::uint64_t>::max();
  EXPECT_EQ(p, expected);
}

TEST(ProblemParsing, AnEmptyLineIsTheDefault) {
  EXPECT_EQ(parsed(""), Problem{});
  EXPECT_EQ(parsed(" \t "), Problem{});
}

TEST(ProblemParsing, WhatIsLeftOutFollowsFromWhatIsSaid) {
  EXPECT_EQ(parsed("sq77").seqlens_k, Lengths{77});
  EXPECT_EQ(parsed("sk77").seqlens_q, Lengths{128});
  EXPECT_EQ(parsed("hq6").nheads_k, 6);
  EXPECT_EQ(parsed("d80").head_dim_v, 80);
  EXPECT_EQ(parsed("d80 dv48").head_dim_v, 48);
}

TEST(ProblemParsing, OneWordForTwoKeys) {
  EXPECT_EQ(parsed("s512"), parsed("sq512 sk512"));
  EXPECT_EQ(parsed("seqlen=4,5"), parsed("sq4,5 sk4,5"));
  EXPECT_EQ(parsed("h8"), parsed("hq8 hk8"));
  EXPECT_EQ(parsed("nheads=8"), parsed("hq8 hk8"));
}

TEST(ProblemParsing, SinkDropoutBlocksAndChunk) {
  const Problem p = parsed("sink dropout=0.5 blocks=1,2,1 chunk=3 seed=11");
  EXPECT_TRUE(p.sink);
  EXPECT_EQ(p.dropout_p, 0.5);
  EXPECT_EQ(p.blocks, (BlockSparsity{1, 2, 1}));
  EXPECT_EQ(p.attention_chunk, 3);
  EXPECT_EQ(parsed("sink=0 dropout=0 chunk=0"), Problem{});
  EXPECT_EQ(parsed("blocks=16,16,0").blocks->density, 0);

  Problem defaults = p;
  EXPECT_EQ(parsed_onto("", defaults), defaults);
  defaults.sink = false;
  EXPECT_EQ(parsed_onto("sink=0", p), defaults);
}

TEST(ProblemParsing, ShortNamesMayBeAssigned) {
  EXPECT_EQ(parsed("b=2 sq=5 sk=6 hq=4 hk=2 d=16 dv=8"), parsed("b2 sq5 sk6 hq4 hk2 d16 dv8"));
}

TEST(ProblemParsing, Lists) {
  const Problem p = parsed("sq3,5,0 packed");
  EXPECT_EQ(p.batch, 3);
  EXPECT_EQ(p.seqlens_q, (Lengths{3, 5, 0}));
  EXPECT_EQ(p.seqlens_k, p.seqlens_q);
  EXPECT_TRUE(p.varlen());
  EXPECT_EQ(p.total_q(), 8);
  EXPECT_EQ(p.max_seqlen_q(), 5);
  EXPECT_EQ(p.seqlen_q(2), 0);

  const Problem mixed = parsed("sq1 sk9,8,7,6");
  EXPECT_EQ(mixed.batch, 4);
  EXPECT_EQ(mixed.seqlen_q(3), 1);
  EXPECT_EQ(mixed.seqlen_k(3), 6);
  EXPECT_EQ(mixed.total_q(), 4);
  EXPECT_EQ(mixed.total_k(), 30);
  EXPECT_FALSE(parsed("b3 sq5").varlen());
}

TEST(ProblemParsing, OrderOfWordsDoesNotMatter) {
  EXPECT_EQ(parsed("seed=7 causal bf16 hk2 d64 hq8 sk1024 fwd window=127,0 b2 sq250"),
            parsed("fwd b2 sq250 sk1024 hq8 hk2 d64 bf16 causal window=127,0 seed=7"));
}

TEST(ProblemParsing, APresetComesBeforeItsOverridesWhereverItStands) {
  const Problem before = parsed("lse_base=2 conv=fa2"), after = parsed("conv=fa2 lse_base=2");
  EXPECT_EQ(before, after);
  EXPECT_EQ(after.conventions.lse_base, LseBase::two);
  EXPECT_EQ(after.conventions.empty_row_lse, EmptyRowLse::plus_inf);
}

TEST(ProblemParsing, EveryPresetByName) {
  for (const ConventionPreset& preset : convention_presets)
    EXPECT_EQ(parsed("scale=1 conv=" + std::string(preset.name)).conventions, preset.conventions);
}

TEST(ProblemParsing, OntoDefaultsWhatIsNotNamedStays) {
  Problem defaults;
  defaults.batch = 2;
  defaults.seqlens_q = {10, 20};
  defaults.seqlens_k = {30, 40};
  defaults.nheads_q = 6;
  defaults.nheads_k = 2;
  defaults.head_dim = 32;
  defaults.head_dim_v = 48;
  defaults.dtype = DType::f16;
  defaults.conventions = *conventions_from_name("torch_sdpa");
  EXPECT_EQ(parsed_onto("", defaults), defaults);

  Problem expected = defaults;
  expected.causal = true;
  expected.conventions.lse_base = LseBase::two;
  EXPECT_EQ(parsed_onto("causal lse_base=2", defaults), expected);
  EXPECT_EQ(parsed_onto("hq4", defaults).nheads_k, 2);
  EXPECT_EQ(parsed_onto("sq7", defaults).seqlens_k, (Lengths{30, 40}));
  EXPECT_EQ(parsed_onto("sq7", defaults).batch, 2);
  EXPECT_EQ(parsed_onto("d64", defaults).head_dim_v, 48);
}

// -------------------------------------------------------------------------------------- printing

TEST(ProblemPrinting, UsualKeysAlwaysOthersWhenTheyDiffer) {
  EXPECT_EQ(to_string(Problem{}), "fwd b1 sq128 sk128 hq1 hk1 d64 f32 seed=0");
  EXPECT_EQ(to_string(parsed("h2 sq3,4 bwd e5m2 dv8 packed causal alibi window=4,-1 softcap=0.1")),
            "bwd b2 sq3,4 sk3,4 hq2 hk2 d64 dv8 e5m2 packed causal window=4,-1 softcap=0.1 alibi "
            "seed=0");
  EXPECT_EQ(to_string(parsed("bias=1,1,1,1 mask=b,h,1,k scale=1e-3 fill=huge seed=9 bhsd")),
            "fwd b1 sq128 sk128 hq1 hk1 d64 f32 bhsd scale=0.001 bias=1,1,1,1 mask=b,h,1,k "
            "fill=huge seed=9");
  EXPECT_EQ(to_string(parsed("dropout=0.10 sink blocks=64,32,.5 chunk=7 causal mask=b,1,1,k")),
            "fwd b1 sq128 sk128 hq1 hk1 d64 f32 causal chunk=7 mask=b,1,1,k blocks=64,32,0.5 sink "
            "dropout=0.1 seed=0");
  EXPECT_EQ(to_string(parsed("layout=bshd fill=normal window=-1,-1 softcap=0 causal=0 alibi=0 "
                             "sink=0 dropout=0 chunk=0")),
            to_string(Problem{}));
}

TEST(ProblemPrinting, ConventionsAreAPresetAndItsOverrides) {
  const auto said = [](std::string_view line) {
    const std::string text = to_string(parsed(line));
    const std::size_t start = text.find("f32") + 4, end = text.find("seed=");
    return text.substr(start, end - start);
  };
  EXPECT_EQ(said("conv=fa3"), "");
  EXPECT_EQ(said("conv=fa2"), "conv=fa2 ");
  EXPECT_EQ(said("conv=torch_sdpa"), "conv=torch_sdpa ");
  EXPECT_EQ(said("align=top_left"), "align=top_left ");
  EXPECT_EQ(said("conv=flashinfer empty_o=nan"), "conv=flashinfer empty_o=nan ");
  EXPECT_EQ(said("conv=fa2 alibi_form=minus_distance"), "empty_lse=plus_inf ");
  EXPECT_EQ(said("conv=cudnn scale=2 lse_base=2"), "scale=2 conv=cudnn lse_base=2 ");
}

/// Anything that is consistent, likely and unlikely values alike.
class RandomProblems {
 public:
  explicit RandomProblems(std::uint64_t seed) : engine_(seed) {}

  Problem next() {
    Problem p;
    p.pass = choice<Pass>(2);
    p.batch = between(1, 5);
    p.seqlens_q = lengths(p.batch);
    p.seqlens_k = lengths(p.batch);
    p.nheads_k = between(1, 4);
    p.nheads_q = p.nheads_k * between(1, 4);
    p.head_dim = between(1, 4096);
    p.head_dim_v = coin() ? p.head_dim : between(1, 4096);
    p.dtype = choice<DType>(6);
    p.layout = choice<Layout>(3);
    if (coin()) p.softmax_scale = finite();
    p.causal = coin();
    if (coin()) p.window_left = between(-1, 2000);
    if (coin()) p.window_right = between(-1, 2000);
    if (coin()) p.softcap = std::fabs(finite());
    p.alibi = coin();
    if (coin()) p.bias = Broadcast{coin(), coin(), coin(), coin()};
    if (coin()) p.mask = Broadcast{coin(), coin(), coin(), coin()};
    if (coin()) p.blocks = BlockSparsity{between(1, 300), between(1, 300), part()};
    p.sink = coin();
    if (coin()) p.dropout_p = part();
    if (coin()) p.attention_chunk = between(0, 5000);
    p.conventions = random_conventions();
    p.fill = choice<Fill>(10);
    p.seed = coin() ? engine_() : engine_() % 10;
    if (p.conventions.default_scale == DefaultScale::required) p.softmax_scale = 0.5;
    if (p.conventions.mask_and_causal == MaskAndCausal::refuse && p.mask) p.causal = false;
    return p;
  }

  bool coin() { return engine_() % 2 == 0; }
  std::int64_t between(std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(engine_() % static_cast<std::uint64_t>(high - low + 1));
  }

 private:
  template <class Enum>
  Enum choice(std::int64_t count) {
    return static_cast<Enum>(between(0, count - 1));
  }
  Lengths lengths(std::int64_t batch) {
    Lengths result(coin() ? 1 : static_cast<std::size_t>(batch));
    for (std::int64_t& length : result) length = between(0, 3) == 0 ? 0 : between(0, 100000);
    return result;
  }
  /// Any finite double, bit by bit.
  double finite() {
    for (;;)
      if (const double value = std::bit_cast<double>(engine_()); std::isfinite(value)) return value;
  }
  /// From 0 to less than 1.
  double part() { return between(0, 9) == 0 ? 0 : static_cast<double>(engine_() >> 11) * 0x1p-53; }
  Conventions random_conventions() {
    if (coin()) return convention_presets[engine_() % std::size(convention_presets)].conventions;
    Conventions conventions;
    auto& [alignment, output, lse, base, window, scale, order, alibi, mask] = conventions;
    alignment = choice<Alignment>(2);  // a tenth field does not compile: draw it here too
    output = choice<EmptyRowOutput>(3);
    lse = choice<EmptyRowLse>(3);
    base = choice<LseBase>(2);
    window = choice<WindowLeft>(2);
    scale = choice<DefaultScale>(3);
    order = choice<ScoreOrder>(2);
    alibi = choice<Alibi>(3);
    mask = choice<MaskAndCausal>(4);
    return conventions;
  }

  std::mt19937_64 engine_;
};

TEST(ProblemRoundTrip, ThousandsOfRandomProblems) {
  RandomProblems problems(20240711);
  for (int n = 0; n < 5000; ++n) {
    const Problem problem = problems.next();
    ASSERT_EQ(inconsistency(problem), "");
    const std::string line = to_string(problem);
    const auto result = parse_problem(line);
    if (const auto* error = std::get_if<ParseError>(&result)) FAIL() << error->explain(line);
    ASSERT_EQ(std::get<Problem>(result), problem) << line;
    ASSERT_EQ(to_string(std::get<Problem>(result)), line);
  }
}

// ---------------------------------------------------------------------------------------- errors

struct Mistake {
  std::string line;
  std::size_t column;
  std::string_view says;  ///< a part of the message
};

const Mistake mistakes[] = {
    // words nobody knows
    {"fwd b2 casual", 8, "unknown word \"casual\"; did you mean \"causal\"?"},
    {"forwards", 1, "expected one of fwd, bwd"},
    {"fp16", 1, "did you mean \"f16\"?"},
    {"  f61", 3, "unknown word \"f61\""},
    {"widow=1,2", 1, "did you mean \"window\"?"},
    {"sp250", 1, "did you mean \"sq\"?"},
    {"fwd =3", 5, "unknown word \"=3\""},
    {"fwd 12", 5, "unknown word \"12\""},
    {"Causal", 1, "unknown word \"Causal\""},
    {"head_dimv=3", 1, "did you mean \"head_dim"},
    // a key without its value, or in the wrong form
    {"fwd sk", 5, "\"sk\" has no value, expected one length or a list"},
    {"window", 1, "expected two whole numbers LEFT,RIGHT"},
    {"window=", 8, "window is \"\""},
    {"bias", 1, "expected four dimensions"},
    {"h", 1, "\"h\" has no value, expected a whole number from 1"},
    {"window127,0", 1, "expected \"window=127,0\""},
    {"batch2", 1, "expected \"batch=2\""},
    {"nheads4", 1, "expected \"nheads=4\""},
    // values out of range
    {"fwd b0", 6, "batch is \"0\", expected a whole number from 1 to 2147483647"},
    {"b-3", 2, "batch is \"-3\""},
    {"b2147483648", 2, "expected a whole number from 1 to 2147483647"},
    {"b99999999999999999999999", 2, "expected a whole number from 1 to 2147483647"},
    {"hq0", 3, "nheads_q is \"0\""},
    {"nheads=0", 8, "nheads_q is \"0\""},
    {"sq-1", 3, "seqlen_q is \"-1\""},
    {"sq2147483648", 3, "each from 0 to 2147483647"},
    {"d0", 2, "head_dim is \"0\", expected a whole number from 1 to 4096"},
    {"d4097", 2, "from 1 to 4096"},
    {"dv0", 3, "head_dim_v is \"0\""},
    {"d64.5", 2, "head_dim is \"64.5\""},
    {"d+64", 2, "head_dim is \"+64\""},
    {"d=+64", 3, "head_dim is \"+64\""},
    {"sq3,,5", 3, "seqlen_q is \"3,,5\""},
    {"sq3,5,", 3, "a list such as 3,5,0"},
    {"window=1", 8, "window is \"1\""},
    {"window=1,2,3", 8, "window is \"1,2,3\""},
    {"window=-2,0", 8, "from -1 (unbounded)"},
    {"softcap=-1", 9, "softcap is \"-1\", expected a finite number of at least 0"},
    {"softcap=inf", 9, "softcap is \"inf\""},
    {"chunk=-1", 7, "chunk is \"-1\""},
    {"chunk=x", 7, "chunk is \"x\", expected a whole number from 0 (none) to 2147483647"},
    {"chunk=2147483648", 7, "from 0 (none) to 2147483647"},
    {"chunk7", 1, "expected \"chunk=7\""},
    {"dropout=1", 9, "dropout is \"1\", expected a probability from 0 to less than 1"},
    {"dropout=-0.1", 9, "dropout is \"-0.1\""},
    {"dropout=nan", 9, "dropout is \"nan\""},
    {"dropuot=0.1", 1, "did you mean \"dropout\"?"},
    {"blocks=64,64", 8, "blocks is \"64,64\", expected BLOCK_Q,BLOCK_K,DENSITY"},
    {"blocks=0,64,0.5", 8, "two whole numbers from 1 to 2147483647"},
    {"blocks=64,-1,0.5", 8, "a part from 0 to 1"},
    {"blocks=64,64,1.5", 8, "blocks is \"64,64,1.5\""},
    {"blocks=64,64,nan", 8, "blocks is"},
    {"blocks", 1, "\"blocks\" has no value, expected BLOCK_Q,BLOCK_K,DENSITY"},
    {"fwd sink=2", 10, "sink is \"2\", expected one of 1, 0"},
    {"sink sink", 6, "sink is given twice"},
    {"sinks", 1, "did you mean \"sink\"?"},
    {"scale=nan", 7, "scale is \"nan\", expected a finite number"},
    {"scale=1e999", 7, "expected a finite number"},
    {"scale=0.1x", 7, "scale is \"0.1x\""},
    {"seed=-1", 6, "seed is \"-1\", expected a whole number from 0 to 2^64 - 1"},
    {"seed=18446744073709551616", 6, "from 0 to 2^64 - 1"},
    {"bias=h,1,q,k", 6, "each the letter in its place or 1"},
    {"mask=b,h,q", 6, "mask is \"b,h,q\""},
    {"mask=b,h,q,k,1", 6, "mask is"},
    {"causal=yes", 8, "causal is \"yes\", expected one of 1, 0"},
    {"fill=noraml", 6, "did you mean \"normal\"?"},
    {"dtype=f33", 7, "dtype is \"f33\", expected one of f64, f32"},
    {"dtype=i32", 7, "dtype is \"i32\""},
    {"layout=sbhd", 8, "layout is \"sbhd\", expected one of bshd, bhsd, packed"},
    {"conv=fa9", 6, "conv is \"fa9\", expected one of fa3, fa2"},
    {"conv=torch_spda", 6, "did you mean \"torch_sdpa\"?"},
    {"lse_base=10", 10, "lse_base is \"10\", expected one of e, 2"},
    {"align=bottom", 7, "expected one of bottom_right, top_left"},
    // twice
    {"d64 d128", 5, "head_dim is given twice, first at column 1"},
    {"fwd bwd", 5, "pass is given twice"},
    {"causal fwd causal=0", 12, "causal is given twice"},
    {"sq5 s6", 5, "seqlen_q is given twice"},
    {"h8 hk2", 4, "nheads_k is given twice"},
    {"b2 batch=2", 4, "batch is given twice"},
    // the leftmost of several
    {"b0 zzz d0", 2, "batch is \"0\""},
    {"zzz b0", 1, "unknown word"},
    {"window=x lse_base=x conv=x", 8, "window"},
    // fields that do not fit together
    {"sq3,4 b3", 1, "seqlen_q lists 2 lengths for batch 3, expected one length or 3"},
    {"b3 sk3,4", 4, "seqlen_k lists 2 lengths for batch 3"},
    {"sq3,4 sk1,2,3", 7, "seqlen_k lists 3 lengths for batch 2"},
    {"hq8 hk3", 5, "expected nheads_k to divide nheads_q"},
    {"fwd hk2", 5, "nheads_q is 1 and nheads_k is 2"},
    {"conv=torch_sdpa causal mask=b,1,1,k", 24, "refuse a mask together with causal"},
    {"fwd conv=triton_tutorial", 5, "no default scale, expected scale=NUMBER"},
    {"conv=fa2 default_scale=required", 10, "no default scale"},
    {"sq2147483647 b2147483647", 1, "expected at most 2^60"},
    {"b1024 h64 s200000000 packed", 22, "expected at most 2147483647"},
    {"b2048 h1024 s1048576 mask=b,h,q,k", 13, "expected at most 2^60"},
};

TEST(ProblemErrors, EachPointsAtItsColumnAndSaysWhatWasExpected) {
  for (const Mistake& mistake : mistakes) {
    const auto result = parse_problem(mistake.line);
    const auto* error = std::get_if<ParseError>(&result);
    ASSERT_NE(error, nullptr) << mistake.line << " was accepted";
    EXPECT_EQ(error->column, mistake.column) << error->explain(mistake.line);
    EXPECT_NE(error->message.find(mistake.says), std::string::npos)
        << error->explain(mistake.line) << "\n  should say: " << mistake.says;
    EXPECT_TRUE(error->message.find("expected") != std::string::npos ||
                error->message.find("did you mean") != std::string::npos)
        << error->message;
  }
}

TEST(ProblemErrors, AConflictWithADefaultPointsAtTheStart) {
  Problem defaults;
  defaults.seqlens_q = {1, 2, 3};
  defaults.batch = 2;
  const auto result = parse_problem("causal", defaults);
  ASSERT_TRUE(std::holds_alternative<ParseError>(result));
  EXPECT_EQ(std::get<ParseError>(result).column, 1u);

  defaults.batch = 3;
  const auto named = parse_problem("causal b7", defaults);
  ASSERT_TRUE(std::holds_alternative<ParseError>(named));
  EXPECT_EQ(std::get<ParseError>(named).column, 8u);
}

TEST(ProblemErrors, ExplainDrawsACaret) {
  const std::string_view line = "fwd b2 casual";
  const auto result = parse_problem(line);
  ASSERT_TRUE(std::holds_alternative<ParseError>(result));
  EXPECT_EQ(std::get<ParseError>(result).explain(line),
            "fwd b2 casual\n"
            "       ^\n"
            "unknown word \"casual\"; did you mean \"causal\"?");
  EXPECT_EQ((ParseError{"what", 5}.explain("a\tb\nc")), "a b c\n    ^\nwhat");
  EXPECT_EQ((ParseError{"what", 4}.explain("\xc3\xa9 x")), "\xc3\xa9 x\n  ^\nwhat");
  EXPECT_EQ((ParseError{"what", 99}.explain("ab")), "ab\n  ^\nwhat");
}

// ---------------------------------------------------------------------------------- inconsistency

TEST(ProblemInconsistency, FieldsSetFromCodeAreHeldToTheSameRanges) {
  const auto complaint = [](auto change) {
    Problem problem;
    change(problem);
    return inconsistency(problem);
  };
  EXPECT_EQ(inconsistency(Problem{}), "");
  EXPECT_NE(complaint([](Problem& p) { p.batch = 0; }), "");
  EXPECT_NE(complaint([](Problem& p) { p.batch = -1; }), "");
  EXPECT_NE(complaint([](Problem& p) { p.seqlens_q = {}; }), "");
  EXPECT_NE(complaint([](Problem& p) { p.seqlens_k = {-1}; }), "");
  EXPECT_NE(complaint([](Problem& p) { p.seqlens_k = {1, 2}; }), "");
  EXPECT_NE(complaint([](Problem& p) { p.nheads_k = 0; }), "");
  EXPECT_NE(complaint([](Problem& p) { p.nheads_k = 2; }), "");
  EXPECT_NE(complaint([](Problem& p) { p.head_dim = 0; }), "");
  EXPECT_NE(complaint([](Problem& p) { p.head_dim_v = 5000; }), "");
  EXPECT_NE(complaint([](Problem& p) { p.dtype = DType::i32; }), "");
  EXPECT_NE(complaint([](Problem& p) { p.layout = static_cast<Layout>(9); }), "");
  EXPECT_NE(complaint([](Problem& p) { p.softmax_scale = HUGE_VAL; }), "");
  EXPECT_NE(complaint([](Problem& p) { p.softmax_scale = std::nan(""); }), "");
  EXPECT_NE(complaint([](Problem& p) { p.softcap = -1; }), "");
  EXPECT_NE(complaint([](Problem& p) { p.softcap = std::nan(""); }), "");
  EXPECT_NE(complaint([](Problem& p) { p.window_left = -2; }), "");
  EXPECT_NE(complaint([](Problem& p) { p.attention_chunk = -1; }), "");
  EXPECT_NE(complaint([](Problem& p) { p.dropout_p = 1; }), "");
  EXPECT_NE(complaint([](Problem& p) { p.dropout_p = -0.5; }), "");
  EXPECT_NE(complaint([](Problem& p) { p.dropout_p = std::nan(""); }), "");
  EXPECT_NE(complaint([](Problem& p) { p.blocks = BlockSparsity{0, 64, 0.5}; }), "");
  EXPECT_NE(complaint([](Problem& p) { p.blocks = BlockSparsity{64, 0, 0.5}; }), "");
  EXPECT_NE(complaint([](Problem& p) { p.blocks = BlockSparsity{64, 64, 1.01}; }), "");
  EXPECT_NE(complaint([](Problem& p) { p.window_right = -2; }), "");
  EXPECT_NE(complaint([](Problem& p) { p.conventions.lse_base = static_cast<LseBase>(7); }), "");
  EXPECT_NE(complaint([](Problem& p) { p.conventions.default_scale = DefaultScale::required; }),
            "");

  EXPECT_EQ(complaint([](Problem& p) { p.seqlens_q = p.seqlens_k = {0}; }), "");
  EXPECT_EQ(complaint([](Problem& p) { p.dtype = DType::e5m2, p.layout = Layout::packed; }), "");
}

TEST(ProblemInconsistency, PrintingAnInconsistentProblemIsHarmless) {
  Problem problem;
  problem.seqlens_q = {};
  problem.dtype = DType::boolean;
  problem.layout = static_cast<Layout>(200);
  problem.softcap = std::nan("");
  problem.conventions.alibi = static_cast<Alibi>(77);
  EXPECT_FALSE(to_string(problem).empty());
  EXPECT_TRUE(std::holds_alternative<ParseError>(parse_problem(to_string(problem))));
}

// ----------------------------------------------------------------------------------------- garbage

TEST(ProblemGarbage, NeverCrashesAndAlwaysPointsIntoTheLine) {
  const std::string_view pieces[] = {"fwd",
                                     "sq",
                                     "sk3,",
                                     "=",
                                     ",",
                                     "window=",
                                     "-1",
                                     "b",
                                     "causal",
                                     "conv=",
                                     "fa2",
                                     "bias=1,",
                                     "h,q,k",
                                     " ",
                                     "  ",
                                     "\t",
                                     "\n",
                                     "9",
                                     "999999999999999999999",
                                     "1e400",
                                     "nan",
                                     "scale=",
                                     "\x80",
                                     "\xff",
                                     "\"",
                                     "seed=",
                                     "mask",
                                     "e4m3",
                                     "packed",
                                     "sq0",
                                     "d64",
                                     "{}",
                                     "%s",
                                     "--",
                                     "lse_base=2",
                                     "softcap=",
                                     "dropout=",
                                     "blocks=",
                                     "sink",
                                     "chunk=",
                                     "0.5",
                                     "alibi=1",
                                     "fill=real",
                                     "dtype=",
                                     "_",
                                     "h0"};
  RandomProblems random(99);
  int accepted = 0;
  for (int n = 0; n < 20000; ++n) {
    std::string line;
    for (std::int64_t count = random.between(0, 12); count > 0; --count) {
      if (random.between(0, 9) == 0)
        line += static_cast<char>(random.between(0, 255));
      else
        line += pieces[random.between(0, std::size(pieces) - 1)];
      if (random.coin()) line += ' ';
    }
    const auto result = parse_problem(line);
    if (const auto* error = std::get_if<ParseError>(&result)) {
      ASSERT_GE(error->column, 1u) << line;
      ASSERT_LE(error->column, line.size() + 1) << line;
      ASSERT_FALSE(error->message.empty()) << line;
      ASSERT_FALSE(error->explain(line).empty());
    } else {
      ++accepted;
      ASSERT_EQ(parsed(to_string(std::get<Problem>(result))), std::get<Problem>(result)) << line;
    }
  }
  EXPECT_GT(accepted, 100);
}

TEST(ProblemGarbage, MutatedGoodLines) {
  RandomProblems random(7);
  for (int n = 0; n < 5000; ++n) {
    std::string line = to_string(random.next());
    for (std::int64_t changes = random.between(1, 3); changes > 0; --changes) {
      const auto at =
          static_cast<std::size_t>(random.between(0, static_cast<std::int64_t>(line.size()) - 1));
      if (random.coin())
        line[at] = static_cast<char>(random.between(32, 126));
      else
        line.erase(at, 1);
    }
    const auto result = parse_problem(line);
    if (const auto* problem = std::get_if<Problem>(&result))
      ASSERT_EQ(parsed(to_string(*problem)), *problem) << line;
    else
      ASSERT_LE(std::get<ParseError>(result).column, line.size() + 1) << line;
  }
}

TEST(ProblemGarbage, AHugeWordGivesAShortMessage) {
  const auto result = parse_problem(std::string(1 << 20, 'x'));
  ASSERT_TRUE(std::holds_alternative<ParseError>(result));
  EXPECT_LT(std::get<ParseError>(result).message.size(), 1000u);
}

// ------------------------------------------------------------------------------------- arithmetic

TEST(ProblemArithmetic, Scale) {
  EXPECT_EQ(parsed("d64").scale(), 0.125);
  EXPECT_EQ(parsed("d64 scale=0.5").scale(), 0.5);
  EXPECT_EQ(parsed("d64 conv=cudnn").scale(), 1);
  EXPECT_EQ(parsed("d64 conv=ggml scale=0.3").scale(), 0.3);
  Problem unsaid;
  unsaid.conventions.default_scale = DefaultScale::required;
  EXPECT_TRUE(std::isnan(unsaid.scale()));
}

TEST(ProblemArithmetic, ParamsRepeatTheProblem) {
  const AttentionParams params =
      parsed("d16 causal window=3,4 softcap=5 conv=torch_sdpa lse_base=2").params();
  EXPECT_EQ(params.softmax_scale, 0.25);
  EXPECT_TRUE(params.causal);
  EXPECT_EQ(params.window_left, 3);
  EXPECT_EQ(params.window_right, 4);
  EXPECT_EQ(params.softcap, 5);
  EXPECT_EQ(params.attention_chunk, 0);
  EXPECT_EQ(params.dropout_p, 0);
  const AttentionParams more = parsed("chunk=9 dropout=0.25 seed=77").params();
  EXPECT_EQ(more.attention_chunk, 9);
  EXPECT_EQ(more.dropout_p, 0.25);
  EXPECT_EQ(more.philox_seed, 77u);
  EXPECT_EQ(more.philox_offset, 0u);
  EXPECT_EQ(params.conventions.alignment, Alignment::top_left);
  EXPECT_EQ(params.conventions.lse_base, LseBase::two);
}

TEST(ProblemArithmetic, FlopsWithoutMasks) {
  EXPECT_EQ(parsed("b2 s100 h3 d64").flops(), 4.0 * 64 * 2 * 3 * 100 * 100);
  EXPECT_EQ(parsed("b2 s100 h3 d64 bwd").flops(), 3.5 * 4.0 * 64 * 2 * 3 * 100 * 100);
  EXPECT_EQ(parsed("b2 s100 hq6 hk2 d64").flops(), 4.0 * 64 * 2 * 6 * 100 * 100);
}

TEST(ProblemArithmetic, FlopsWithTwoHeadDimensions) {
  // S and O forward; S, dQ, dK of width d and dP, dV of width dv backward.
  EXPECT_EQ(parsed("sq7 sk11 d24 dv16").flops(), 7 * 11 * 2.0 * (24 + 16));
  EXPECT_EQ(parsed("sq7 sk11 d24 dv16 bwd").flops(),
            7 * 11 * 2.0 * ((24 + 16) + (3 * 24 + 2 * 16)));
}

TEST(ProblemArithmetic, FlopsCountVisiblePairsOnly) {
  const double each = 4 * 64;
  EXPECT_EQ(parsed("s100 causal").flops(), each * 100 * 101 / 2);
  EXPECT_EQ(parsed("sq2 sk5 causal").flops(), each * (4 + 5));
  EXPECT_EQ(parsed("sq2 sk5 causal align=top_left").flops(), each * (1 + 2));
  EXPECT_EQ(parsed("sq5 sk2 causal").flops(), each * (0 + 0 + 0 + 1 + 2));
  EXPECT_EQ(parsed("s4 window=1,0").flops(), each * (1 + 2 + 2 + 2));
  EXPECT_EQ(parsed("s4 window=1,0 window_left=keys_including_self").flops(), each * 4);
  EXPECT_EQ(parsed("sq3,5,0 causal").flops(), each * (6 + 15));
  EXPECT_EQ(parsed("sq3 sk4,0,1").flops(), each * 3 * (4 + 0 + 1));
  EXPECT_EQ(parsed("s0").flops(), 0);
  EXPECT_EQ(parsed("s4 chunk=2").flops(), each * 8);
  EXPECT_EQ(parsed("s4 chunk=3 causal").flops(), each * (1 + 2 + 3 + 1));
  EXPECT_EQ(parsed("s4 blocks=2,2,0.25").flops(), each * 16 * 0.25);
}

TEST(ProblemArithmetic, FlopsTakeAMaskForVisible) {
  const double each = 4 * 64;
  EXPECT_EQ(parsed("s4 mask=b,h,q,k").flops(), each * 16);
  EXPECT_EQ(parsed("s4 causal mask=b,h,q,k").flops(), each * 10);
  EXPECT_EQ(parsed("s4 causal mask=b,h,q,k mask_and_causal=mask_replaces").flops(), each * 16);
}

TEST(ProblemArithmetic, HeadsInGroups) {
  EXPECT_EQ(parsed("hq12 hk3").group(), 4);
  EXPECT_EQ(parsed("h5").group(), 1);
}

}  // namespace
}  // namespace tilewise
