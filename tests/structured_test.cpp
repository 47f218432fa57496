// Correct kernels on tensors with structure: where rounding errors are alike, or magnitudes cancel,
// a bound that takes errors for independent would raise false alarms.
#include "oracle/harness/buffers.hpp"
#include "oracle/harness/fill.hpp"
#include "oracle/harness/harness.hpp"
#include "tests/bugs/table.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <random>
#include <string>

namespace tilewise {
namespace {

/// An element as a function of its place: batch, position, head and column; of a bias: batch, head,
/// query and key.
using Element = std::function<double(std::int64_t, std::int64_t, std::int64_t, std::int64_t)>;

double get(const TensorView& view, std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t d) {
  return load(view.dtype, view.at(a * view.strides[0] + b * view.strides[1] + c * view.strides[2] +
                                  d * view.strides[3]));
}

void set(const TensorView& view, const Element& element) {
  for (std::int64_t a = 0; a < view.shape[0]; ++a)
    for (std::int64_t b = 0; b < view.shape[1]; ++b)
      for (std::int64_t c = 0; c < view.shape[2]; ++c)
        for (std::int64_t d = 0; d < view.shape[3]; ++d)
          store(view.dtype,
                view.at(a * view.strides[0] + b * view.strides[1] + c * view.strides[2] +
                        d * view.strides[3]),
                element(a, b, c, d));
}

/// Every correct kernel on the line's problem after `edit`, judged.
void expect_accepted(const std::string& line,
                     const std::function<void(const Problem&, const AttentionTensors&)>& edit) {
  const Problem problem = std::get<Problem>(parse_problem(line));
  const bool backward = problem.pass == Pass::backward;
  harness::ProblemBuffers buffers;
  ASSERT_TRUE(
      buffers.allocate(problem, {true, true, backward, backward, backward, backward, backward})
          .ok());
  ASSERT_TRUE(harness::fill_inputs(problem, buffers.tensors()).ok());
  edit(problem, buffers.tensors());
  for (const auto& kernel : bugs::correct_kernels()) {
    buffers.poison_outputs();
    ASSERT_TRUE(kernel->run({problem, problem.params(), buffers.tensors()}).ok());
    const harness::Verdict verdict = harness::judge(problem, buffers.tensors());
    EXPECT_TRUE(verdict.passed()) << kernel->name() << "\n" << to_text(verdict);
  }
}

class Structured : public testing::TestWithParam<const char*> {
 protected:
  std::string dtype() const { return GetParam(); }
  double uniform() { return std::uniform_real_distribution<double>()(random_); }
  double normal() { return std::normal_distribution<double>()(random_); }

 private:
  std::mt19937_64 random_{1};
};

TEST_P(Structured, ABiasOfMinusInfinityHidesAsAMaskDoes) {
  for (const char* pass : {"fwd", "bwd"})
    expect_accepted(std::string(pass) + " sq8 sk40 d32 bias=1,1,q,k " + dtype(),
                    [](const Problem&, const AttentionTensors& tensors) {
                      set(tensors.bias, [](auto, auto, auto q, auto k) {
                        return (k + q) % 3 == 0 ? -INFINITY : 0.5;
                      });
                    });
}

TEST_P(Structured, ADotProductMayRiseFarAndComeBack) {
  expect_accepted("fwd sq64 sk64 d256 " + dtype(), [&](const Problem&,
                                                       const AttentionTensors& tensors) {
    set(tensors.q, [&](auto...) { return 1 + uniform(); });
    set(tensors.k, [&](auto, auto, auto, auto c) { return (c < 128 ? 1 : -1) * (1 + uniform()); });
  });
}

TEST_P(Structured, ABiasMayCancelLargeScores) {
  expect_accepted("fwd sq2 sk2048 d16 bias=1,1,q,k scale=1.00000005 " + dtype(),
                  [&](const Problem& problem, const AttentionTensors& tensors) {
                    set(tensors.q, [&](auto...) { return 16 + uniform(); });
                    set(tensors.k, [&](auto...) { return 32 + uniform(); });
                    set(tensors.bias, [&](auto b, auto h, auto q, auto k) {
                      double s = 0;
                      for (int c = 0; c < 16; ++c)
                        s += get(tensors.q, b, q, h, c) * get(tensors.k, b, k, h, c);
                      return -problem.scale() * s;
                    });
                  });
}

TEST_P(Structured, EqualQueriesRoundTheirProbabilitiesAlike) {
  expect_accepted("bwd sq300 sk100 d64 " + dtype(),
                  [&](const Problem&, const AttentionTensors& tensors) {
                    set(tensors.q, [&](auto b, auto s, auto h, auto c) {
                      return s == 0 ? normal() : get(tensors.q, b, 0, h, c);
                    });
                    set(tensors.dout, [&](auto...) { return uniform(); });
                  });
}

TEST_P(Structured, RepeatedTokensErrAlikeEverywhere) {
  expect_accepted(
      "bwd sq200 sk200 d64 " + dtype(), [](const Problem&, const AttentionTensors& tensors) {
        for (const TensorView* view : {&tensors.q, &tensors.k, &tensors.v, &tensors.dout})
          set(*view, [&](auto b, auto s, auto h, auto c) { return get(*view, b, s % 4, h, c); });
      });
}

TEST_P(Structured, EqualColumnsOfVErrAlikeInD) {
  expect_accepted(
      "bwd sq200 sk8 d128 " + dtype(), [](const Problem&, const AttentionTensors& tensors) {
        set(tensors.v, [](auto, auto s, auto, auto) { return s % 2 == 1 ? 1 : 1 + 0x1p-7; });
        set(tensors.dout, [](auto...) { return 1.0; });
      });
}

TEST_P(Structured, ARankOneVMayPointAlongTheGradient) {
  expect_accepted("bwd sq100 sk60 d64 " + dtype(), [&](const Problem&,
                                                       const AttentionTensors& tensors) {
    std::vector<double> along(64), weight(60);
    for (double& x : along) x = normal();
    for (double& x : weight) x = normal();
    set(tensors.v, [&](auto, auto s, auto, auto c) {
      return weight[static_cast<std::size_t>(s)] * along[static_cast<std::size_t>(c)];
    });
    set(tensors.dout, [&](auto, auto, auto, auto c) { return along[static_cast<std::size_t>(c)]; });
  });
}

// Sums over rows: equal queries share the errors of one O, and of one D where dO is equal too.
TEST_P(Structured, EqualQueriesErrAlikeInTheGradientsOfBiasAndSinks) {
  for (const char* bias : {"bias=1,1,1,k", "bias=1,1,1,1", "bias=1,1,q,1 softcap=5"})
    for (const bool equal_dout : {true, false})
      expect_accepted("bwd b2 sq200 sk24 d32 sink " + std::string(bias) + " " + dtype(),
                      [&](const Problem&, const AttentionTensors& tensors) {
                        set(tensors.q, [&](auto b, auto s, auto h, auto c) {
                          return b + s < 2 ? normal() : get(tensors.q, 0, s % 2, h, c);
                        });
                        for (const TensorView* view : {&tensors.k, &tensors.v})
                          set(*view, [&](auto b, auto s, auto h, auto c) {
                            return b == 0 ? normal() : get(*view, 0, s, h, c);
                          });
                        set(tensors.dout, [&](auto b, auto s, auto h, auto c) {
                          return b + s < 2 || !equal_dout ? uniform()
                                                          : get(tensors.dout, 0, s % 2, h, c);
                        });
                      });
}

/// A contiguous output's elements, multiplied.
void scale(const TensorView& view, double factor) {
  for (std::int64_t n = 0; n < view.elements(); ++n)
    store(view.dtype, view.at(n), factor * load(view.dtype, view.at(n)));
}

// What equal rows are allowed, other rows are not.
TEST_P(Structured, AGradientOfBiasOrSinksThatIsOffByAPercentIsRejected) {
  const double percent = dtype() == "bf16" ? 0.05 : 0.01;
  const Problem problem = std::get<Problem>(
      parse_problem("bwd sq300 sk200 h2 d64 sink bias=1,h,1,k seed=5 " + dtype()));
  harness::ProblemBuffers buffers;
  ASSERT_TRUE(buffers.allocate(problem, harness::Outputs::all()).ok());
  ASSERT_TRUE(harness::fill_inputs(problem, buffers.tensors()).ok());
  const harness::Table kernels = bugs::correct_kernels();
  for (const char* output : {"dbias", "dsinks"}) {
    ASSERT_TRUE(kernels.front()->run({problem, problem.params(), buffers.tensors()}).ok());
    EXPECT_TRUE(harness::judge(problem, buffers.tensors()).passed());
    const AttentionTensors& tensors = buffers.tensors();
    scale(output == std::string("dbias") ? tensors.dbias : tensors.dsinks, 1 + percent);
    const harness::Verdict verdict = harness::judge(problem, buffers.tensors());
    EXPECT_FALSE(verdict.passed()) << to_text(verdict);
    ASSERT_EQ(verdict.reasons.size(), 1U) << to_text(verdict);
    EXPECT_EQ(verdict.reasons[0].find(output), 0U) << verdict.reasons[0];
  }
}

INSTANTIATE_TEST_SUITE_P(Precisions, Structured, testing::Values("f32", "f16", "bf16"),
                         [](const auto& parameter) { return std::string(parameter.param); });

}  // namespace
}  // namespace tilewise
