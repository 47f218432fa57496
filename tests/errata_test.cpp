// Formulas that are printed wrong in the papers, run as printed and as corrected, against the
// oracle. docs/errata.md tells the story of each.
#include "oracle/attention.hpp"
#include "tests/random_problem.hpp"
#include "tests/rounding_bounds.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace tilewise::tests {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

enum class Formula { printed, corrected };

/// One query row: its scores, the values, and the oracle's output.
struct RowCase {
  std::vector<double> score;
  std::vector<std::vector<double>> v;
  std::vector<double> o, allowed;
};

RowCase random_row(std::uint64_t seed) {
  Problem problem;
  problem.seqlens_q = {1};
  problem.seqlens_k = {24};
  problem.head_dim = 8;
  problem.head_dim_v = 3;
  problem.dtype = DType::f64;
  problem.seed = seed;
  const SmallTensors tensors(problem);
  const oracle::Case problem_case(problem, tensors.views());
  const oracle::Row row =
      oracle::forward_row(problem_case, oracle::read_key_value_head(problem_case, 0, 0), 0, 0);
  RowCase result{row.score, {}, row.o, {}};
  for (std::int64_t j = 0; j < 24; ++j)
    result.v.push_back(problem_case.row(tensors.views().v, oracle::Side::key, 0, j, 0));
  // The tiled row and the oracle's each lie within the bound; every further tile costs a product
  // and a sum, fewer than the bound counts for its 24 terms.
  for (const Real bound : rounding_bounds(problem, tensors.views()).o)
    result.allowed.push_back(3 * static_cast<double>(bound));
  return result;
}

/// Keys in descending or ascending order of their scores: the same attention.
RowCase sorted(const RowCase& row, bool ascending) {
  std::vector<std::size_t> order(row.score.size());
  for (std::size_t j = 0; j < order.size(); ++j) order[j] = j;
  std::sort(order.begin(), order.end(), [&](std::size_t x, std::size_t y) {
    return ascending ? row.score[x] < row.score[y] : row.score[x] > row.score[y];
  });
  RowCase result{{}, {}, row.o, row.allowed};
  for (const std::size_t j : order) {
    result.score.push_back(row.score[j]);
    result.v.push_back(row.v[j]);
  }
  return result;
}

/// FlashAttention-2 (arXiv 2307.08691), Algorithm 1, lines 8 to 12, for one row and tiles of Bc
/// keys. `m` starts at -inf as line 5 says, or else with the maximum of the first tile.
std::vector<double> flash_attention_2(const RowCase& row, std::size_t Bc, Formula formula,
                                      bool start_at_minus_infinity) {
  std::vector<double> O(row.v[0].size(), 0.0);
  double m = start_at_minus_infinity
                 ? -infinity
                 : *std::max_element(row.score.begin(), row.score.begin() + static_cast<long>(Bc));
  double l = 0;
  for (std::size_t first = 0; first < row.score.size(); first += Bc) {
    const std::size_t end = std::min(first + Bc, row.score.size());
    double m_new = m;
    for (std::size_t j = first; j < end; ++j) m_new = std::max(m_new, row.score[j]);
    const double rescale = std::exp(m - m_new);
    l *= rescale;
    for (double& o : O) o *= formula == Formula::printed ? 1 / rescale : rescale;  // line 10
    for (std::size_t j = first; j < end; ++j) {
      const double P = std::exp(row.score[j] - m_new);
      l += P;
      for (std::size_t c = 0; c < O.size(); ++c) O[c] += P * row.v[j][c];
    }
    m = m_new;
  }
  for (double& o : O) o /= l;  // line 12
  return O;
}

/// FlashAttention (arXiv 2205.14135), Algorithm 1, lines 10 to 13, for one row and tiles of Bc
/// keys.
std::vector<double> flash_attention_1(const RowCase& row, std::size_t Bc) {
  std::vector<double> O(row.v[0].size(), 0.0);
  double m = -infinity, l = 0;
  for (std::size_t first = 0; first < row.score.size(); first += Bc) {
    const std::size_t end = std::min(first + Bc, row.score.size());
    double m_tile = -infinity, l_tile = 0;
    for (std::size_t j = first; j < end; ++j) m_tile = std::max(m_tile, row.score[j]);
    std::vector<double> PV(O.size(), 0.0);
    for (std::size_t j = first; j < end; ++j) {
      const double P = std::exp(row.score[j] - m_tile);
      l_tile += P;
      for (std::size_t c = 0; c < O.size(); ++c) PV[c] += P * row.v[j][c];
    }
    const double m_new = std::max(m, m_tile);
    const double l_new = std::exp(m - m_new) * l + std::exp(m_tile - m_new) * l_tile;  // line 11
    for (std::size_t c = 0; c < O.size(); ++c)                                         // line 12
      O[c] = (l * std::exp(m - m_new) * O[c] + std::exp(m_tile - m_new) * PV[c]) / l_new;
    m = m_new;
    l = l_new;
  }
  return O;
}

struct OutputAndLse {
  std::vector<double> o;
  double lse = 0;
};

/// FlashAttention-3 (arXiv 2407.08608), Algorithm 1: what a consumer does with a tile.
OutputAndLse flash_attention_3(const RowCase& row, std::size_t Bc, Formula formula) {
  std::vector<double> O(row.v[0].size(), 0.0);
  double m = -infinity, l = 0;
  for (std::size_t first = 0; first < row.score.size(); first += Bc) {
    const std::size_t end = std::min(first + Bc, row.score.size());
    const double m_old = m;
    for (std::size_t j = first; j < end; ++j) m = std::max(m, row.score[j]);
    const double rescale = std::exp(m_old - m);
    std::vector<double> P;
    for (std::size_t j = first; j < end; ++j) P.push_back(std::exp(row.score[j] - m));
    l *= rescale;
    for (const double p : P) l += p;
    for (std::size_t c = 0; c < O.size(); ++c) {  // line 21
      O[c] *= formula == Formula::printed ? 1 / rescale : rescale;
      for (std::size_t j = first; j < end; ++j) O[c] += P[j - first] * row.v[j][c];
    }
  }
  for (double& o : O) o /= l;
  return {O, m + std::log(l)};
}

double largest_error(const std::vector<double>& got, const std::vector<double>& expected) {
  double largest = 0;
  for (std::size_t c = 0; c < got.size(); ++c) {
    const double error = std::abs(got[c] - expected[c]);
    if (!(error <= largest)) largest = error;
  }
  return largest;
}
bool within(const std::vector<double>& got, const RowCase& row) {
  for (std::size_t c = 0; c < got.size(); ++c)
    if (!(std::abs(got[c] - row.o[c]) <= row.allowed[c])) return false;
  return true;
}

TEST(Errata, FlashAttention2RescalesByTheFactorNotByItsInverse) {
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    const RowCase row = random_row(seed);
    for (const std::size_t Bc : {1, 4, 7}) {
      EXPECT_TRUE(within(flash_attention_2(row, Bc, Formula::corrected, true), row));
      EXPECT_TRUE(within(flash_attention_2(sorted(row, true), Bc, Formula::corrected, true), row));

      // As printed: the first tile divides by exp(-inf), and 0 / 0 stays.
      for (const double o : flash_attention_2(row, Bc, Formula::printed, true))
        EXPECT_TRUE(std::isnan(o));

      // Past that, every rise of the maximum multiplies what it should divide.
      const RowCase rising = sorted(row, true);
      EXPECT_GT(largest_error(flash_attention_2(rising, Bc, Formula::printed, false), row.o), 0.1);
    }
  }
}

TEST(Errata, FlashAttention3RescalesByTheFactorNotByItsInverse) {
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    const RowCase row = random_row(seed);
    double l = 0;
    for (const double s : row.score) l += std::exp(s);
    for (const std::size_t Bc : {1, 4, 7}) {
      const OutputAndLse corrected = flash_attention_3(row, Bc, Formula::corrected);
      EXPECT_TRUE(within(corrected.o, row));
      EXPECT_NEAR(corrected.lse, std::log(l), 1e-12);

      // m starts at -inf here too, and the inverse of exp(-inf) is infinite. The LSE has no inverse
      // and comes out right: a test that looks at it alone sees nothing.
      const OutputAndLse printed = flash_attention_3(row, Bc, Formula::printed);
      for (const double o : printed.o) EXPECT_TRUE(std::isnan(o));
      EXPECT_NEAR(printed.lse, std::log(l), 1e-12);
    }
  }
}

// The algorithm of the first paper is right as it stands; its proof is not (below).
TEST(Errata, FlashAttentionsAlgorithmOneIsRightAsPrinted) {
  for (std::uint64_t seed = 0; seed < 100; ++seed)
    for (const std::size_t Bc : {1, 4, 7, 24})
      for (const RowCase& row : {random_row(seed), sorted(random_row(seed), true)})
        EXPECT_TRUE(within(flash_attention_1(row, Bc), row));
}

// Why it can go unnoticed: while the maximum stands still the factor is exp(0) = 1 either way.
TEST(Errata, ThePrintedRescaleIsHarmlessWhereTheFirstTileHoldsTheMaximum) {
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    const RowCase row = sorted(random_row(seed), false);
    EXPECT_TRUE(within(flash_attention_2(row, 4, Formula::printed, false), row));
  }
}

// Two keys with logits 0 and ln 3 and values 8 and -4: the weights are 1/4 and 3/4, the output -1.
struct TwoKeys {
  double s0 = 0, s1 = std::log(3.0), v0 = 8, v1 = -4;
  double m1 = s0, m2 = s1;
  double l1 = 1;
  double l2 = std::exp(m1 - m2) * l1 + 1;  // 4/3
  double o1 = v0;  // the first block alone: O^(1) = diag(l1)^-1 e^{S - m1} V
};

TEST(Errata, TheTwoKeyExampleOfThePage) {
  const RowCase row{{0, std::log(3.0)}, {{8}, {-4}}, {-1}, {1e-15}};
  EXPECT_TRUE(within(flash_attention_2(row, 1, Formula::corrected, true), row));
  EXPECT_NEAR(flash_attention_2(row, 1, Formula::printed, false)[0], 15, 1e-14);
}

// FlashAttention-2's derivation of the online softmax with two blocks, O^(2) from O^(1).
TEST(Errata, TheTwoBlockDerivationLacksAFactorAndHasAnInverseTooMany) {
  const TwoKeys t;
  const double second_block = t.v1 / t.l2;
  EXPECT_NEAR(1 / (t.l1 / t.l2) * t.o1 + second_block, 23.0 / 3, 1e-14);              // printed
  EXPECT_NEAR(t.l1 / t.l2 * std::exp(t.m1 - t.m2) * t.o1 + second_block, -1, 1e-14);  // corrected
}

// FlashAttention (arXiv 2205.14135), proof of Theorem 1: P V = diag(l)^-1 exp(S - m) V.
TEST(Errata, TheProofOfTheoremOneLacksAnInverse) {
  const TwoKeys t;
  const double unscaled = std::exp(t.s0 - t.m2) * t.v0 + std::exp(t.s1 - t.m2) * t.v1;
  EXPECT_NEAR(t.l2 * unscaled, -16.0 / 9, 1e-14);  // printed
  EXPECT_NEAR(unscaled / t.l2, -1, 1e-14);         // corrected
}

// The same on rows of 24 keys: what the proof starts from differs from the output by l^2.
TEST(Errata, TheProofOfTheoremOneIsOffByTheSquareOfTheSum) {
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    const RowCase row = random_row(seed);
    const double m = *std::max_element(row.score.begin(), row.score.end());
    double l = 0;
    std::vector<double> printed(row.o.size(), 0.0), corrected;
    for (std::size_t j = 0; j < row.score.size(); ++j) {
      const double e = std::exp(row.score[j] - m);
      l += e;
      for (std::size_t c = 0; c < row.o.size(); ++c) printed[c] += e * row.v[j][c];
    }
    for (double& o : printed) {
      corrected.push_back(o / l);
      o *= l;
    }
    EXPECT_TRUE(within(corrected, row));
    EXPECT_FALSE(within(printed, row));
  }
}

}  // namespace
}  // namespace tilewise::tests
