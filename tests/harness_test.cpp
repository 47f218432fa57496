// The harness around the comparison: what it fills tensors with, which rows it looks at, and what
// it notices beside wrong numbers.
#include "oracle/attention.hpp"
#include "oracle/harness/buffers.hpp"
#include "oracle/harness/fill.hpp"
#include "oracle/harness/function_implementation.hpp"
#include "oracle/harness/harness.hpp"
#include "oracle/sampling.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <set>
#include <string>

namespace tilewise {
namespace {

using harness::Call;
using harness::Outputs;
using harness::ProblemBuffers;
using harness::State;
using harness::Verdict;

Problem parsed(const std::string& line) {
  const auto result = parse_problem(line);
  if (const auto* error = std::get_if<ParseError>(&result)) ADD_FAILURE() << error->explain(line);
  return std::get<Problem>(result);
}

/// A problem's inputs, filled.
struct Filled {
  explicit Filled(const std::string& line) : problem(parsed(line)) {
    EXPECT_TRUE(buffers.allocate(problem, Outputs::none()).ok());
    const Status status = harness::fill_inputs(problem, buffers.tensors());
    EXPECT_TRUE(status.ok()) << status.reason;
  }
  oracle::Case as_case() const { return {problem, buffers.tensors()}; }

  Problem problem;
  ProblemBuffers buffers;
};

/// A correct kernel by the simplest way: the oracle itself, rounded to the outputs' formats.
Status oracle_kernel(const Call& call) {
  const oracle::Case problem_case(call.problem, call.tensors);
  for (std::int64_t b = 0; b < call.problem.batch; ++b)
    for (std::int64_t h = 0; h < call.problem.nheads_q; ++h) {
      const auto head = oracle::read_key_value_head(problem_case, b, h / call.problem.group());
      for (std::int64_t i = 0; i < call.problem.seqlen_q(b); ++i) {
        const oracle::Row row = oracle::forward_row(problem_case, head, h, i);
        const TensorView& o = call.tensors.o;
        const std::int64_t at = problem_case.offset(o, oracle::Side::query, b, i, h);
        for (std::int64_t t = 0; t < call.problem.head_dim_v; ++t)
          store(o.dtype, o.at(at + t * o.strides[o.ndim - 1]), row.o[static_cast<std::size_t>(t)]);
        const TensorView& lse = call.tensors.lse;
        if (lse.exists())
          store(lse.dtype, lse.at(problem_case.lse_offset(lse, b, h, i)),
                oracle::expected_lse(call.params.conventions, row));
      }
    }
  return {};
}

/// The oracle's kernel, and then something else.
auto spoiled(std::function<void(const Call&)> deed, harness::FunctionTraits traits = {}) {
  return harness::make_implementation(
      "spoiled",
      [deed = std::move(deed)](const Call& call) {
        Status status = oracle_kernel(call);
        deed(call);
        return status;
      },
      std::move(traits));
}

bool mentions(const Verdict& verdict, const std::string& text) {
  return std::any_of(
      verdict.reasons.begin(), verdict.reasons.end(),
      [&](const std::string& reason) { return reason.find(text) != std::string::npos; });
}

// --- Fill ---------------------------------------------------------------------------------------

TEST(Fill, DependsOnTheSeedAndThePlaceAloneNotOnTheLayout) {
  const Filled bshd("fwd b2 sq7 sk5 h3 d6 f32 bshd seed=4"),
      bhsd("fwd b2 sq7 sk5 h3 d6 f32 bhsd seed=4"),
      packed("fwd b2 sq7 sk5 h3 d6 f32 packed seed=4"),
      other("fwd b2 sq7 sk5 h3 d6 f32 bshd seed=5");
  for (std::int64_t b = 0; b < 2; ++b)
    for (std::int64_t h = 0; h < 3; ++h) {
      const auto keys = [&](const Filled& filled) {
        return filled.as_case().head(filled.buffers.tensors().k, oracle::Side::key, b, h);
      };
      EXPECT_EQ(keys(bshd), keys(bhsd));
      EXPECT_EQ(keys(bshd), keys(packed));
      EXPECT_NE(keys(bshd), keys(other));
    }
}

TEST(Fill, NormalIsNormal) {
  const Filled filled("fwd sq64 sk4096 d64 f64");
  const std::vector<double> v =
      filled.as_case().head(filled.buffers.tensors().v, oracle::Side::key, 0, 0);
  double mean = 0, square = 0, fourth = 0;
  for (const double x : v) {
    mean += x;
    square += x * x;
    fourth += x * x * x * x;
  }
  const auto n = static_cast<double>(v.size());
  EXPECT_NEAR(mean / n, 0, 5 / std::sqrt(n));
  EXPECT_NEAR(square / n, 1, 5 * std::sqrt(2 / n));
  EXPECT_NEAR(fourth / n, 3, 5 * std::sqrt(96 / n));
}

TEST(Fill, AscendingMovesTheMaximumAtAlmostEveryKey) {
  const Filled filled("fwd sq4 sk200 d64 f32 fill=ascending");
  const oracle::Case problem_case = filled.as_case();
  const auto head = oracle::read_key_value_head(problem_case, 0, 0);
  const oracle::Row row = oracle::forward_row(problem_case, head, 0, 3);
  EXPECT_TRUE(std::is_sorted(row.score.begin(), row.score.end()));
}

TEST(Fill, OnehotPutsAllWeightOnOneKey) {
  const Filled filled("fwd sq16 sk100 d64 bf16 fill=onehot");
  const oracle::Case problem_case = filled.as_case();
  const auto head = oracle::read_key_value_head(problem_case, 0, 0);
  std::set<std::size_t> chosen;
  for (std::int64_t i = 0; i < 16; ++i) {
    const oracle::Row row = oracle::forward_row(problem_case, head, 0, i);
    const auto top = std::max_element(row.p.begin(), row.p.end());
    EXPECT_GT(*top, 1 - 1e-9);
    chosen.insert(static_cast<std::size_t>(top - row.p.begin()));
  }
  EXPECT_GT(chosen.size(), 8u) << "different rows look at different keys";
}

TEST(Fill, ConstantGivesUniformAttention) {
  const Filled filled("fwd sq3 sk50 d32 f32 fill=constant");
  const oracle::Case problem_case = filled.as_case();
  const oracle::Row row =
      oracle::forward_row(problem_case, oracle::read_key_value_head(problem_case, 0, 0), 0, 2);
  for (const double p : row.p) EXPECT_DOUBLE_EQ(p, 0.02);
}

TEST(Fill, HugeOverflowsExpWithoutTheMaximum) {
  const Filled filled("fwd sq8 sk100 d64 f16 fill=huge");
  const oracle::Case problem_case = filled.as_case();
  double largest = 0;
  for (std::int64_t i = 0; i < 8; ++i)
    largest = std::max(
        largest,
        oracle::forward_row(problem_case, oracle::read_key_value_head(problem_case, 0, 0), 0, i)
            .max);
  EXPECT_GT(largest, 1000);
  EXPECT_TRUE(std::isinf(std::exp(static_cast<float>(largest))));
}

TEST(Fill, DenormalStaysBelowTheSmallestNormalNumber) {
  for (const char* dtype : {"f64", "f32", "f16", "bf16"}) {
    const Filled filled(std::string("fwd sq4 sk40 d32 fill=denormal ") + dtype);
    const DTypeInfo& format = info(filled.problem.dtype);
    const double smallest_normal =
        std::ldexp(1.0, format.smallest_exponent + format.significand - 1);
    double largest = 0;
    for (const double x :
         filled.as_case().head(filled.buffers.tensors().v, oracle::Side::key, 0, 0))
      largest = std::max(largest, std::abs(x));
    EXPECT_GT(largest, 0) << dtype;
    EXPECT_LT(largest, 2 * smallest_normal) << dtype;
  }
}

TEST(Fill, PaddingIsPoisonAndIsNotLookedAt) {
  const Filled filled("fwd b2 sq3,5 sk2,9 h1 d4 f32");
  const TensorView& k = filled.buffers.tensors().k;
  EXPECT_TRUE(std::isnan(load(k.dtype, k.at(2 * k.strides[1])))) << "row 2 of the sequence of 2";
  const Verdict verdict = harness::check(spoiled([](const Call&) {}), filled.problem);
  EXPECT_TRUE(verdict.passed()) << to_text(verdict);
}

TEST(Fill, RealTensorsComeFromTheCaptureAndOtherShapesAreRefusedWithAReason) {
  const Filled filled("fwd b3 sq64 sk64 h12 d32 f32 fill=real");
  const Verdict verdict = harness::check(spoiled([](const Call&) {}), filled.problem);
  EXPECT_TRUE(verdict.passed()) << to_text(verdict);
  const Verdict refused =
      harness::check(spoiled([](const Call&) {}), "fwd sq64 sk64 h12 d64 f32 fill=real");
  EXPECT_EQ(refused.state, State::error);
  EXPECT_TRUE(mentions(refused, "head_dim 32"));
}

TEST(Fill, AMissingCaptureIsAnErrorThatNamesTheFile) {
  harness::Options options;
  options.data_directory = "/nowhere/at/all";
  const Verdict verdict =
      harness::check(spoiled([](const Call&) {}), "fwd sq8 h12 d32 f32 fill=real", options);
  EXPECT_EQ(verdict.state, State::error);
  EXPECT_TRUE(mentions(verdict, "/nowhere/at/all")) << to_text(verdict);
}

// --- Sampling -----------------------------------------------------------------------------------

TEST(Sampling, TakesEverythingWhereThatIsCheap) {
  const oracle::Sampling sampling(parsed("fwd b2 sq300 sk300 h4 d64"), false);
  EXPECT_TRUE(sampling.everything());
  EXPECT_TRUE(sampling.rows(1, 3).complete());
  EXPECT_EQ(sampling.coverage(), "every row");
}

TEST(Sampling, TakesTheEndsTileBordersAndSeededRowsWhereItIsNot) {
  const Problem problem = parsed("fwd sq16384 sk16384 h16 d128 bf16");
  const oracle::Sampling sampling(problem, false);
  EXPECT_FALSE(sampling.everything());
  std::set<std::int64_t> seen;
  for (std::int64_t h = 0; h < 16; ++h) {
    const oracle::Sample sample = sampling.rows(0, h);
    EXPECT_TRUE(std::is_sorted(sample.positions.begin(), sample.positions.end()));
    EXPECT_EQ(sample.positions.front(), 0);
    EXPECT_EQ(sample.positions.back(), 16383);
    EXPECT_LT(sample.positions.size(), 64u) << "else ten seconds would not do";
    seen.insert(sample.positions.begin(), sample.positions.end());
  }
  for (const std::int64_t border : {63, 64, 127, 128}) EXPECT_TRUE(seen.contains(border)) << border;
  EXPECT_GT(seen.size(), 80u) << "heads look at different rows";
  EXPECT_NE(sampling.coverage().find("of 262144 rows"), std::string::npos) << sampling.coverage();
  EXPECT_TRUE(oracle::Sampling(problem, true).everything());
}

TEST(Sampling, DependsOnTheSeed) {
  const oracle::Sampling one(parsed("fwd sq16384 h16 d128 seed=1"), false),
      two(parsed("fwd sq16384 h16 d128 seed=2"), false);
  EXPECT_NE(one.rows(0, 0).positions, two.rows(0, 0).positions);
}

TEST(Sampling, FindsABugBesideATileBorderOfALongProblem) {
  // All keys alike: every row is the mean of V, so that this kernel is quick. Row 128 is wrong.
  const auto mean = harness::make_implementation(
      "mean",
      [](const Call& call) -> Status {
        const oracle::Case problem_case(call.problem, call.tensors);
        const TensorView& o = call.tensors.o;
        for (std::int64_t h = 0; h < call.problem.nheads_q; ++h) {
          const auto head = oracle::read_key_value_head(problem_case, 0, h);
          const oracle::Row row = oracle::forward_row(problem_case, head, h, 0);
          for (std::int64_t i = 0; i < call.problem.seqlen_q(0); ++i)
            for (std::int64_t t = 0; t < call.problem.head_dim_v; ++t)
              store(o.dtype, o.at(i * o.strides[1] + h * o.strides[2] + t),
                    i == 128 ? 9 : row.o[static_cast<std::size_t>(t)]);
        }
        return {};
      },
      {.writes = {.o = true}});
  harness::Options options;
  options.repeats = 0;
  options.budget = 1e8;
  const Verdict verdict =
      harness::check(mean, "fwd sq2000 sk2000 h8 d16 f32 fill=constant", options);
  EXPECT_EQ(verdict.state, State::fail);
  EXPECT_NE(verdict.coverage.find("beside tile borders"), std::string::npos) << verdict.coverage;
  EXPECT_EQ(verdict.outputs.at(0).worst.row, 128);
}

// --- What is noticed beside wrong numbers
// ---------------------------------------------------------

constexpr const char* small = "fwd b2 sq10 sk12 hq4 hk2 d8 f32";

TEST(Harness, PassesACorrectKernelInEveryPrecision) {
  for (const char* dtype : {"f64", "f32", "f16", "bf16", "e4m3", "e5m2"}) {
    const Verdict verdict = harness::check(spoiled([](const Call&) {}),
                                           std::string("fwd sq10 sk12 h2 d8 causal ") + dtype);
    EXPECT_TRUE(verdict.passed()) << to_text(verdict);
    EXPECT_EQ(verdict.coverage, "every row");
    EXPECT_EQ(verdict.repeats, 2);
  }
}

TEST(Harness, NoticesAWritePastTheEnd) {
  const Verdict verdict =
      harness::check(spoiled([](const Call& call) {
                       store(DType::f32, call.tensors.o.at(call.tensors.o.elements()), 1.0);
                     }),
                     small);
  EXPECT_EQ(verdict.state, State::fail);
  EXPECT_TRUE(mentions(verdict, "guard: wrote past the end of o")) << to_text(verdict);
}

TEST(Harness, NoticesAWriteOutsideTheWorkspace) {
  harness::FunctionTraits traits;
  traits.workspace_bytes = [](const Problem&) { return std::size_t{100}; };
  const Verdict verdict = harness::check(
      spoiled([](const Call& call) { static_cast<char*>(call.workspace)[100] = 1; }, traits),
      small);
  EXPECT_TRUE(mentions(verdict, "outside its workspace of 100 bytes")) << to_text(verdict);
}

TEST(Harness, NoticesAWriteToAnInputAndStillComparesWithTheInputsThatWereGiven) {
  const Verdict verdict = harness::check(
      spoiled([](const Call& call) { store(DType::f32, call.tensors.k.at(3), 100.0); }), small);
  EXPECT_EQ(verdict.state, State::fail);
  EXPECT_TRUE(mentions(verdict, "input: k was written to, first at byte 12")) << to_text(verdict);
  EXPECT_EQ(verdict.reasons.size(), 1u) << "the outputs themselves are right";
}

TEST(Harness, NoticesWhatWasNeverWritten) {
  const Verdict verdict = harness::check(
      spoiled([](const Call& call) { std::memset(call.tensors.lse.data, 0xff, 4); }), small);
  EXPECT_TRUE(mentions(verdict, "lse: 1 of 80 elements are unwritten")) << to_text(verdict);
}

TEST(Harness, NoticesOtherBitsWhereRepeatabilityWasPromisedAndOnlyThere) {
  std::atomic<int> calls{0};
  const auto jitter = [&](const Call& call) {
    // One unit in the last place, another one at every call: correct each time.
    const TensorView& o = call.tensors.o;
    const auto value = static_cast<float>(load(o.dtype, o.at(0)));
    store(o.dtype, o.at(0),
          calls++ % 2 == 0 ? value : static_cast<double>(std::nextafter(value, 2 * value)));
  };
  const Verdict broken = harness::check(spoiled(jitter), small);
  EXPECT_EQ(broken.state, State::fail);
  EXPECT_TRUE(mentions(broken, "repeat: o has other bits")) << to_text(broken);
  harness::FunctionTraits honest;
  honest.repeatable = Outputs::none();
  const Verdict fine = harness::check(spoiled(jitter, honest), small);
  EXPECT_TRUE(fine.passed()) << to_text(fine);
}

TEST(Harness, JudgesEveryRunOfAKernelThatIsNotRepeatable) {
  std::atomic<int> calls{0};
  harness::FunctionTraits honest;
  honest.repeatable = Outputs::none();
  const Verdict verdict = harness::check(spoiled(
                                             [&](const Call& call) {
                                               if (calls++ == 1)
                                                 store(DType::f32, call.tensors.o.at(0), 50.0);
                                             },
                                             honest),
                                         small);
  EXPECT_EQ(verdict.state, State::fail);
  EXPECT_TRUE(mentions(verdict, "repeat 1: o:")) << to_text(verdict);
}

TEST(Harness, PassesOnWhyRunFailed) {
  const auto failing = harness::make_implementation(
      "failing", [](const Call&) { return failure(Code::no_memory, "wanted %d bytes", 77); });
  const Verdict verdict = harness::check(failing, small);
  EXPECT_EQ(verdict.state, State::fail);
  EXPECT_TRUE(mentions(verdict, "no memory: wanted 77 bytes")) << to_text(verdict);
}

TEST(Harness, SaysWhyAProblemIsNotServed) {
  harness::FunctionTraits traits;
  traits.supports = [](const Problem&) { return harness::Support::no("only on Sundays"); };
  const Verdict verdict = harness::check(spoiled([](const Call&) {}, traits), small);
  EXPECT_EQ(verdict.state, State::unsupported);
  EXPECT_TRUE(mentions(verdict, "only on Sundays"));
}

TEST(Harness, SaysWhatIsWrongWithALine) {
  const Verdict verdict = harness::check(spoiled([](const Call&) {}), "fwd sq10 casual");
  EXPECT_EQ(verdict.state, State::error);
  EXPECT_TRUE(mentions(verdict, "causal")) << to_text(verdict);
}

TEST(Harness, SaysThatLseWasNotChecked) {
  harness::FunctionTraits traits;
  traits.writes = {.o = true};
  const Verdict verdict = harness::check(spoiled([](const Call&) {}, traits), small);
  EXPECT_TRUE(verdict.passed()) << to_text(verdict);
  EXPECT_EQ(verdict.not_checked, std::vector<std::string>{"lse: not given"});
}

TEST(Harness, TellsWhereTheWorstElementIs) {
  const Verdict verdict = harness::check(
      spoiled([](const Call& call) {
        const TensorView& o = call.tensors.o;
        store(o.dtype, o.at(o.strides[0] + 7 * o.strides[1] + 2 * o.strides[2] + 5), -7.5);
      }),
      small);
  const harness::OutputReport& o = verdict.outputs.at(0);
  EXPECT_EQ(o.worst.batch, 1);
  EXPECT_EQ(o.worst.row, 7);
  EXPECT_EQ(o.worst.head, 2);
  EXPECT_EQ(o.worst.column, 5);
  EXPECT_EQ(o.got, -7.5);
  EXPECT_FALSE(o.map.empty());
}

TEST(Harness, FindsARowThatIsOffByHalfAPercentInBf16) {
  // Hardly more than bf16's own rounding of one element, 0.4 %, but all elements go the same way.
  const Verdict verdict = harness::check(
      spoiled([](const Call& call) {
        const oracle::Case problem_case(call.problem, call.tensors);
        const auto head = oracle::read_key_value_head(problem_case, 0, 0);
        const oracle::Row row = oracle::forward_row(problem_case, head, 0, 7);
        const TensorView& o = call.tensors.o;
        for (std::int64_t t = 0; t < call.problem.head_dim_v; ++t)
          store(o.dtype, o.at(7 * o.strides[1] + t), 1.005 * row.o[static_cast<std::size_t>(t)]);
      }),
      "fwd sq16 sk400 d128 bf16 scale=0.03");
  EXPECT_EQ(verdict.state, State::fail);
  EXPECT_TRUE(mentions(verdict, "off by a factor")) << to_text(verdict);
  EXPECT_TRUE(mentions(verdict, "row 7")) << to_text(verdict);
}

TEST(Judge, JudgesGivenOutputsAndSaysWhatIsAbsent) {
  const Problem problem = parsed("fwd sq20 sk30 h2 d16 f32 causal");
  ProblemBuffers buffers;
  ASSERT_TRUE(buffers.allocate(problem, Outputs{.o = true}).ok());
  ASSERT_TRUE(harness::fill_inputs(problem, buffers.tensors()).ok());
  ASSERT_TRUE(oracle_kernel({problem, problem.params(), buffers.tensors()}).ok());
  const Verdict good = harness::judge(problem, buffers.tensors());
  EXPECT_TRUE(good.passed()) << to_text(good);
  EXPECT_EQ(good.not_checked, std::vector<std::string>{"lse: not given"});
  store(DType::f32, buffers.tensors().o.at(11), NAN);
  const Verdict bad = harness::judge(problem, buffers.tensors());
  EXPECT_EQ(bad.state, State::fail);
  EXPECT_TRUE(mentions(bad, "1 of 640 elements are NaN")) << to_text(bad);
}

TEST(Judge, EndsOnGradientsWhoseLseIsNotANumber) {
  // So long that columns are judged given the kernel's own LSE: here that is NaN everywhere.
  const Problem problem = parsed("bwd sq900 sk900 h1 d64 f32");
  harness::Options options;
  options.budget = 1e8;
  ASSERT_FALSE(oracle::Sampling(problem, false, options.budget).everything());
  ProblemBuffers buffers;
  ASSERT_TRUE(buffers.allocate(problem, Outputs::all()).ok());
  ASSERT_TRUE(harness::fill_inputs(problem, buffers.tensors()).ok());
  const Verdict verdict =
      harness::judge(problem, buffers.tensors(), options);  // outputs are still poison
  EXPECT_EQ(verdict.state, State::fail);
  EXPECT_TRUE(mentions(verdict, "dk: ")) << to_text(verdict);
}

TEST(Judge, TellsProgressFromNothingToAll) {
  std::vector<double> seen;
  harness::Options options;
  options.repeats = 0;
  options.progress = [&](double part) { seen.push_back(part); };
  static_cast<void>(harness::check(spoiled([](const Call&) {}), "fwd sq100 sk50 h4 d8", options));
  ASSERT_GT(seen.size(), 3u);
  EXPECT_TRUE(std::is_sorted(seen.begin(), seen.end()));
  EXPECT_NEAR(seen.back(), 1, 1e-9);
}

TEST(Harness, TimesWhenAskedTo) {
  harness::Options options;
  options.time_seconds = 1e-3;
  const Verdict verdict = harness::check(spoiled([](const Call&) {}), small, options);
  EXPECT_GE(verdict.time.repetitions, 3);
  EXPECT_GT(verdict.time.fastest, 0);
  EXPECT_LE(verdict.time.fastest, verdict.time.median);
  EXPECT_LE(verdict.time.median, verdict.time.slowest);
}

}  // namespace
}  // namespace tilewise
