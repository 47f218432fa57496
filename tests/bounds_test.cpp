// The error bounds: wide enough for correct kernels is what judge_test shows over many seeds; here,
// that they are not wider than they must be, and that they grow with what they should grow with.
#include "oracle/bounds.hpp"
#include "oracle/harness/buffers.hpp"
#include "oracle/harness/fill.hpp"
#include "oracle/harness/harness.hpp"
#include "tests/bugs/table.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>

namespace tilewise {
namespace {

using harness::Outputs;
using harness::ProblemBuffers;

Problem parsed(const std::string& line) {
  const auto result = parse_problem(line);
  if (const auto* error = std::get_if<ParseError>(&result)) ADD_FAILURE() << error->explain(line);
  return std::get<Problem>(result);
}

/// The bound of one row, of a problem filled as it says, with v multiplied by `v_scale`.
struct RowBound {
  oracle::Row row;
  oracle::ForwardBound bound;
};
RowBound bound_of(const std::string& line, std::int64_t i, double v_scale = 1) {
  const Problem problem = parsed(line);
  ProblemBuffers buffers;
  EXPECT_TRUE(buffers.allocate(problem, Outputs::none()).ok());
  EXPECT_TRUE(harness::fill_inputs(problem, buffers.tensors()).ok());
  const TensorView& v = buffers.tensors().v;
  for (std::int64_t n = 0; n < v.elements(); ++n)
    store(v.dtype, v.at(n), load(v.dtype, v.at(n)) * v_scale);
  const oracle::Case problem_case(problem, buffers.tensors());
  const auto head = oracle::read_key_value_head(problem_case, 0, 0);
  RowBound result{oracle::forward_row(problem_case, head, 0, i), {}};
  result.bound =
      oracle::bound_forward(problem_case, head, result.row, 0, i, oracle::recipe_for(problem));
  return result;
}

double largest(const std::vector<double>& values) {
  double result = 0;
  for (const double x : values) result = std::max(result, x);
  return result;
}

TEST(Recipe, FollowsTheFormats) {
  const oracle::Recipe bf16 = oracle::recipe_for(parsed("fwd bf16"));
  EXPECT_EQ(bf16.accumulate, 0x1p-24);
  EXPECT_EQ(bf16.probability, 0x1p-8);
  EXPECT_EQ(bf16.output, 0x1p-8);
  EXPECT_EQ(bf16.lse, 0x1p-24);
  const oracle::Recipe f16 = oracle::recipe_for(parsed("fwd f16"));
  EXPECT_EQ(f16.probability, 0x1p-11);
  EXPECT_EQ(f16.probability_eta, 0x1p-25);
  EXPECT_EQ(f16.probability_min, 0x1p-14);
  const oracle::Recipe e4m3 = oracle::recipe_for(parsed("fwd e4m3"));
  EXPECT_EQ(e4m3.probability, 0x1p-4);
  EXPECT_EQ(e4m3.output, 0x1p-8) << "fp8 inputs, bf16 outputs";
  const oracle::Recipe f64 = oracle::recipe_for(parsed("fwd f64"));
  EXPECT_EQ(f64.accumulate, 0x1p-53);
  EXPECT_EQ(f64.lse, 0x1p-53);
}

TEST(ForwardBound, IsThreeRoundingsWhenThereIsOneKey) {
  // One key: p = 1, o = v. A kernel may round p, p v and o; there is nothing else to err.
  const RowBound one = bound_of("fwd sq1 sk1 d64 bf16", 0);
  for (std::size_t t = 0; t < one.row.o.size(); ++t) {
    const double o = std::abs(one.row.o[t]);
    EXPECT_GE(one.bound.o[t], 0x1p-8 * o);
    EXPECT_LE(one.bound.o[t], 3 * 0x1p-8 * o * 1.02 + 1e-6);
  }
}

TEST(ForwardBound, ScalesWithV) {
  for (const char* dtype : {"f32", "f16", "bf16"}) {
    const std::string line = std::string("fwd sq4 sk100 d32 ") + dtype;
    const RowBound once = bound_of(line, 3), eightfold = bound_of(line, 3, 8);
    EXPECT_NEAR(largest(eightfold.bound.o) / largest(once.bound.o), 8, 0.01) << dtype;
    EXPECT_EQ(once.bound.lse, eightfold.bound.lse) << "V has no part in LSE";
  }
}

TEST(ForwardBound, GrowsWithTheLogits) {
  const RowBound small = bound_of("fwd sq4 sk100 d32 f32 scale=0.01", 3);
  const RowBound large = bound_of("fwd sq4 sk100 d32 f32 scale=3", 3);
  EXPECT_GT(large.bound.lse, 4 * small.bound.lse);
}

TEST(ForwardBound, GrowsAsTheRootOfTheLengthWhereErrorsAreIndependent) {
  // Relative to |o|, which itself falls as 1/sqrt(n), a worst-case bound would grow 16-fold.
  const RowBound shorter = bound_of("fwd sq4 sk256 d64 f32", 3);
  const RowBound longer = bound_of("fwd sq4 sk65536 d64 f32", 3);
  EXPECT_LT(largest(longer.bound.o), 3 * largest(shorter.bound.o));
  EXPECT_LT(longer.bound.lse, 20 * shorter.bound.lse);
}

TEST(ForwardBound, AllowsEqualKeysTheirEqualErrors) {
  // All p alike: their rounding errors are one error, and the row sum drifts one way.
  const RowBound alike = bound_of("fwd sq4 sk1000 d64 f32 fill=constant", 3);
  const RowBound normal = bound_of("fwd sq4 sk1000 d64 f32", 3);
  EXPECT_GT(alike.bound.lse, 3 * normal.bound.lse);
}

TEST(ForwardBound, LeavesAnEmptyRowNoError) {
  const RowBound empty = bound_of("fwd sq9 sk4 d16 f32 causal", 0);
  ASSERT_TRUE(empty.row.empty);
  EXPECT_EQ(largest(empty.bound.o), 0);
}

TEST(ForwardBound, SeesAFactorThatEveryElementsBoundWouldHide) {
  // An element's bound allows it several roundings, 2^-8 each; all elements one way are allowed
  // one.
  const RowBound row = bound_of("fwd sq4 sk400 d128 bf16 scale=0.03", 3);
  EXPECT_LT(row.bound.scale, 0x1p-8 * 1.1);
}

/// The largest error of correct kernels, in units of the bound, must not be tiny: a bound that a
/// correct kernel never comes near would let wrong ones pass.
TEST(Bounds, AreWithinTwentyfoldOfWhatCorrectKernelsDo) {
  const harness::Table kernels = bugs::correct_kernels();
  std::map<std::string, double> nearest;
  for (const char* dtype : {"f64", "f32", "f16", "bf16"})
    for (int seed = 0; seed < 6; ++seed) {
      const std::string line =
          "bwd sq70 sk90 hq4 hk2 d48 " + std::string(dtype) + " seed=" + std::to_string(seed);
      harness::Options options;
      options.repeats = 0;
      const harness::Verdict verdict =
          harness::check(*kernels[static_cast<std::size_t>(seed) % kernels.size()], line, options);
      ASSERT_TRUE(verdict.passed()) << to_text(verdict);
      for (const harness::OutputReport& output : verdict.outputs) {
        double& ratio = nearest[std::string(dtype) + " " + output.name];
        ratio = std::max(ratio, output.max_ratio);
      }
    }
  ASSERT_EQ(nearest.size(), 20u);
  for (const auto& [what, ratio] : nearest) EXPECT_GE(ratio, 0.05) << what;
}

TEST(Bounds, OfColumnsDoNotDependOnHowTheRowsAreDealtOut) {
  // Judged whole and judged by the row, the expected values and bounds are the same numbers.
  const Problem problem = parsed("bwd sq20 sk30 hq2 hk1 d16 f32 causal");
  ProblemBuffers buffers;
  ASSERT_TRUE(buffers.allocate(problem, Outputs::none()).ok());
  ASSERT_TRUE(harness::fill_inputs(problem, buffers.tensors()).ok());
  const oracle::Case problem_case(problem, buffers.tensors());
  const oracle::Everything all = oracle::attention(problem_case);
  const oracle::Recipe recipe = oracle::recipe_for(problem);
  const auto head = oracle::read_key_value_head(problem_case, 0, 0);
  std::vector<oracle::QueryHead> group;
  for (std::int64_t h = 0; h < 2; ++h) {
    oracle::QueryHead queries{0,
                              h,
                              20,
                              problem_case.head(buffers.tensors().q, oracle::Side::query, 0, h),
                              problem_case.head(buffers.tensors().dout, oracle::Side::query, 0, h),
                              {}};
    for (std::int64_t i = 0; i < 20; ++i) {
      const oracle::Row row = oracle::forward_row(problem_case, head, h, i);
      queries.facts.push_back(
          oracle::facts_of(row, oracle::backward_row(problem_case, head, row, h, i),
                           oracle::bound_forward(problem_case, head, row, h, i, recipe),
                           problem_case.row(buffers.tensors().dout, oracle::Side::query, 0, i, h),
                           recipe, DType::f32));
    }
    group.push_back(std::move(queries));
  }
  for (std::int64_t j = 0; j < 30; ++j) {
    const oracle::Column column = oracle::backward_column(problem_case, group, 0, 0, j, recipe);
    for (std::int64_t t = 0; t < 16; ++t) {
      EXPECT_NEAR(column.dk[static_cast<std::size_t>(t)],
                  all.dk[static_cast<std::size_t>(j * 16 + t)],
                  1e-3 * column.dk_bound[static_cast<std::size_t>(t)]);
      EXPECT_NEAR(column.dv[static_cast<std::size_t>(t)],
                  all.dv[static_cast<std::size_t>(j * 16 + t)],
                  1e-3 * column.dv_bound[static_cast<std::size_t>(t)]);
    }
  }
}

}  // namespace
}  // namespace tilewise
