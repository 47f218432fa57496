// The oracle against the second oracle, over thousands of random small problems, within the bounds
// of tests/rounding_bounds.hpp.
#include "core/dropout.hpp"
#include "oracle/attention.hpp"
#include "tests/random_problem.hpp"
#include "tests/rounding_bounds.hpp"
#include "tests/second_oracle.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <iomanip>
#include <iostream>
#include <limits>
#include <sstream>
#include <string>

namespace tilewise::tests {
namespace {

constexpr std::array<const char*, 7> outputs{"o", "lse", "dq", "dk", "dv", "dbias", "dsinks"};

std::array<const std::vector<double>*, 7> arrays(const oracle::Everything& all) {
  return {&all.o, &all.lse, &all.dq, &all.dk, &all.dv, &all.dbias, &all.dsinks};
}
std::array<const std::vector<Real>*, 7> arrays(const SecondEverything& all) {
  return {&all.o, &all.lse, &all.dq, &all.dk, &all.dv, &all.dbias, &all.dsinks};
}

/// Difference over bound, the largest of each output, and which element broke its bound first.
struct Comparison {
  std::array<Real, 7> ratio{};
  std::string broken;

  Real largest() const { return *std::max_element(ratio.begin(), ratio.end()); }
};

/// `answer` is the oracle's to `problem`, or to another one to see whether that is noticed.
Comparison compare(const oracle::Everything& answer, const Problem& problem,
                   const AttentionTensors& tensors) {
  const SecondEverything second = second_attention(problem, tensors);
  const SecondEverything allowed = rounding_bounds(problem, tensors);
  Comparison result;
  for (std::size_t output = 0; output < outputs.size(); ++output) {
    if (arrays(answer)[output]->size() != arrays(second)[output]->size()) {
      result.ratio[output] = std::numeric_limits<Real>::infinity();
      result.broken = std::string(outputs[output]) + " has another number of elements";
      continue;
    }
    for (std::size_t n = 0; n < arrays(second)[output]->size(); ++n) {
      const Real expected = arrays(second)[output]->at(n), bound = arrays(allowed)[output]->at(n);
      const auto got = static_cast<Real>(arrays(answer)[output]->at(n));
      // An LSE that is NaN here is unspecified: nobody claims anything. Another NaN must be that of
      // an empty row, and the oracle's too: elsewhere it would make any two answers agree.
      Real ratio = 0;
      if (std::isnan(expected)) {
        const bool may =
            output == 1 || (output == 0 && !std::isfinite(second.lse.at(n / problem.head_dim_v)));
        if (!may || (output == 0 && !std::isnan(got)))
          ratio = std::numeric_limits<Real>::infinity();
      } else if (got != expected) {
        ratio = std::abs(got - expected) / bound;
        if (std::isnan(ratio)) ratio = std::numeric_limits<Real>::infinity();
      }
      if (ratio > 1 && result.broken.empty()) {
        std::ostringstream text;
        text << outputs[output] << "[" << n << "] is " << std::setprecision(19) << got
             << " against " << expected << ", which may differ by " << bound;
        result.broken = text.str();
      }
      result.ratio[output] = std::max(result.ratio[output], ratio);
    }
  }
  return result;
}

TEST(SecondOracle, AgreesWithTheOracleOnRandomProblems) {
  constexpr std::uint64_t problems = 6000;
  std::array<Real, 7> largest{};
  std::uint64_t backward = 0, sinks = 0, dropout = 0, blocks = 0, chunks = 0;
  for (std::uint64_t seed = 0; seed < problems; ++seed) {
    RandomLimits limits;
    limits.min_seqlen = seed % 4 == 0 ? 0 : 1;
    const Problem problem = random_problem(seed, limits);
    ASSERT_EQ(inconsistency(problem), "") << to_string(problem);
    const SmallTensors tensors(problem);
    const Comparison comparison = compare(oracle::attention(oracle::Case(problem, tensors.views())),
                                          problem, tensors.views());
    ASSERT_LE(comparison.largest(), 1)
        << "random_problem(" << seed << "): " << to_string(problem) << "\n"
        << comparison.broken;
    for (std::size_t n = 0; n < largest.size(); ++n)
      largest[n] = std::max(largest[n], comparison.ratio[n]);
    backward += problem.pass == Pass::backward;
    sinks += problem.sink;
    dropout += problem.dropout_p > 0;
    blocks += problem.blocks.has_value();
    chunks += problem.attention_chunk > 0;
  }
  for (const std::uint64_t count : {sinks, dropout, blocks, chunks}) EXPECT_GE(count, problems / 5);
  std::cout << std::setprecision(2) << problems << " problems, " << backward
            << " of them backward; largest difference over its bound: o " << largest[0] << ", lse "
            << largest[1] << ", dq " << largest[2] << ", dk " << largest[3] << ", dv " << largest[4]
            << ", dbias " << largest[5] << ", dsinks " << largest[6] << "\n";
  // A bound that nothing ever comes near would prove little.
  for (const Real ratio : largest) EXPECT_GE(ratio, 0.05L);
}

/// Random problems that `suits`, answered as if they were what `change` makes of them.
void expect_noticed(const char* what, const std::function<bool(const Problem&)>& suits,
                    const std::function<void(Problem&)>& change, double at_least) {
  RandomLimits limits;
  limits.dtypes = {DType::f64};
  int asked = 0, noticed = 0;
  for (std::uint64_t seed = 100000; seed < 101500 && asked < 40; ++seed) {
    Problem problem = random_problem(seed, limits);
    problem.fill = Fill::normal;
    if (!suits(problem)) continue;
    const SmallTensors tensors(problem);
    Problem changed = problem;
    change(changed);
    ++asked;
    // The oracle takes a sink or a block mask that is there for one that counts.
    AttentionTensors given = tensors.views();
    if (!changed.sink) given.sinks = {};
    if (!changed.blocks) given.block_mask = {};
    const oracle::Everything answer = oracle::attention(oracle::Case(changed, given));
    noticed += compare(answer, problem, tensors.views()).largest() > 1;
  }
  EXPECT_GE(asked, 20) << what;
  EXPECT_GE(noticed, at_least * asked) << what << ": noticed in " << noticed << " of " << asked;
}

// The oracle asks core/dropout.hpp element by element; the second oracle makes whole masks another
// way.
TEST(SecondOracle, DropsTheSameElements) {
  Random random(7);
  for (int n = 0; n < 40; ++n) {
    const double p = n == 0 ? 0 : random.uniform();
    const std::uint64_t seed = random.bits(), offset = n % 2 == 0 ? 0 : random.bits();
    const std::int64_t nheads = random.between(1, 9), b = random.below(5), h = random.below(nheads);
    const std::int64_t rows = random.between(1, 130), columns = random.between(1, 200);
    const Dropout dropout(p, seed, offset, nheads);
    const BoolMatrix keep = second_dropout(p, seed, offset, nheads, b, h, rows, columns);
    for (std::int64_t i = 0; i < rows; ++i)
      for (std::int64_t j = 0; j < columns; ++j)
        ASSERT_EQ(dropout.keeps(b, h, i, j), keep(i, j))
            << "p " << p << ", seed " << seed << ", (" << i << ", " << j << ")";
  }
}

TEST(SecondOracle, TheComparisonNoticesEveryChangeOfMeaning) {
  // Some changes do not matter to a problem (a window wider than its keys, one key only, a row that
  // is not empty): hence shares, not all.
  expect_noticed(
      "scale off by 1e-12", [](const Problem& p) { return p.max_seqlen_k() > 2; },
      [](Problem& p) { p.softmax_scale = p.scale() * (1 + 1e-12); }, 0.8);
  expect_noticed(
      "causal left out", [](const Problem& p) { return p.causal && !p.mask; },
      [](Problem& p) { p.causal = false; }, 0.5);
  expect_noticed(
      "window off by one", [](const Problem& p) { return p.window_left >= 0; },
      [](Problem& p) { p.window_left += 1; }, 0.5);
  expect_noticed(
      "window counted otherwise", [](const Problem& p) { return p.window_left > 0; },
      [](Problem& p) {
        p.conventions.window_left = p.conventions.window_left == WindowLeft::keys_before
                                        ? WindowLeft::keys_including_self
                                        : WindowLeft::keys_before;
      },
      0.5);
  expect_noticed(
      "other alignment",
      [](const Problem& p) { return p.causal && p.seqlens_q != p.seqlens_k && !p.mask; },
      [](Problem& p) {
        p.conventions.alignment = p.conventions.alignment == Alignment::bottom_right
                                      ? Alignment::top_left
                                      : Alignment::bottom_right;
      },
      0.6);
  expect_noticed(
      "softcap off by 1e-10", [](const Problem& p) { return p.softcap > 0; },
      [](Problem& p) { p.softcap *= 1 + 1e-10; }, 0.6);
  expect_noticed(
      "softcap on the other side of the bias",
      [](const Problem& p) { return p.softcap > 0 && (p.bias || p.alibi); },
      [](Problem& p) {
        p.conventions.score_order = p.conventions.score_order == ScoreOrder::softcap_bias_mask
                                        ? ScoreOrder::bias_softcap_mask
                                        : ScoreOrder::softcap_bias_mask;
      },
      0.6);
  expect_noticed(
      "signed ALiBi",
      [](const Problem& p) {
        return p.alibi && p.conventions.alibi == Alibi::minus_distance && p.max_seqlen_k() > 2;
      },
      [](Problem& p) { p.conventions.alibi = Alibi::signed_distance; }, 0.5);
  expect_noticed(
      "sink left out", [](const Problem& p) { return p.sink; }, [](Problem& p) { p.sink = false; },
      0.9);
  expect_noticed(
      "block mask left out", [](const Problem& p) { return p.blocks && p.blocks->density < 1; },
      [](Problem& p) { p.blocks.reset(); }, 0.7);
  expect_noticed(
      "dropout left out",
      [](const Problem& p) { return p.dropout_p > 0.1 && p.max_seqlen_k() > 2; },
      [](Problem& p) { p.dropout_p = 0; }, 0.8);
  expect_noticed(
      "another element dropped", [](const Problem& p) { return p.dropout_p > 0.05; },
      [](Problem& p) { p.seed ^= 1; }, 0.6);
  expect_noticed(
      "dropout's probability off by 1e-6",
      [](const Problem& p) { return p.dropout_p > 0 && p.dropout_p < 0.9; },
      [](Problem& p) { p.dropout_p += 1e-6; }, 0.6);
  expect_noticed(
      "chunk longer by one",
      [](const Problem& p) {
        return p.attention_chunk > 0 && p.attention_chunk < p.max_seqlen_k() && !p.blocks;
      },
      [](Problem& p) { p.attention_chunk += 1; }, 0.5);
  expect_noticed(
      "other base of the LSE", [](const Problem&) { return true; },
      [](Problem& p) {
        p.conventions.lse_base = p.conventions.lse_base == LseBase::e ? LseBase::two : LseBase::e;
      },
      0.8);
}

}  // namespace
}  // namespace tilewise::tests
