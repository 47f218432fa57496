// Dropout's random bits and what they do on average: known answers of Philox with seven rounds,
// how often an element is kept, that no two heads share a mask, and that O is right in the mean.
#include "core/dropout.hpp"

#include "oracle/attention.hpp"
#include "tests/random_problem.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

namespace tilewise::tests {
namespace {

using Words = std::array<std::uint32_t, 4>;

// The known answers that come with Random123 (tests/kat_vectors, philox4x32 with 7 rounds).
TEST(Dropout, PhiloxOfSevenRoundsGivesTheKnownAnswers) {
  constexpr std::uint64_t ones = ~std::uint64_t{0};
  EXPECT_EQ(philox<7>(0, 0, 0), (Words{0x5f6fb709, 0x0d893f64, 0x4f121f81, 0x4f730a48}));
  EXPECT_EQ(philox<7>(ones, ones, ones), (Words{0x5207ddc2, 0x45165e59, 0x4d8ee751, 0x8c52f662}));
  EXPECT_EQ(philox<7>(0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88),
            (Words{0x4dfccaba, 0x190a87f0, 0xc47362ba, 0xb6b5242a}));
}

/// The probability that a byte is at most 255 (1 - p) rounded down: not quite 1 - p.
double kept_share(double p) {
  return (std::floor(255 * static_cast<double>(1.0f - static_cast<float>(p))) + 1) / 256;
}

TEST(Dropout, KeepsItsShareOfTheElements) {
  for (const double p : {0.0, 0.1, 0.17, 0.5, 0.9, 0.999}) {
    const Dropout dropout(p, 42, 7, 3);
    std::int64_t kept = 0, all = 0;
    for (std::int64_t b = 0; b < 2; ++b)
      for (std::int64_t h = 0; h < 3; ++h)
        for (std::int64_t i = 0; i < 129; ++i)
          for (std::int64_t j = 0; j < 130; ++j, ++all) kept += dropout.keeps(b, h, i, j);
    const double share = kept_share(p), n = static_cast<double>(all);
    EXPECT_LE(std::abs(static_cast<double>(kept) - share * n),
              6 * std::sqrt(share * (1 - share) * n))
        << p;
    EXPECT_LE(std::abs(share - (1 - p)), 1.0 / 256) << p;
  }
}

TEST(Dropout, ScalesByTheInverseOfWhatIsKept) {
  EXPECT_EQ(Dropout(0, 1, 0, 1).scale(), 1);
  EXPECT_EQ(Dropout(0.5, 1, 0, 1).scale(), 2);
  EXPECT_EQ(Dropout(0.75, 1, 0, 1).scale(), 4);
  EXPECT_NEAR(Dropout(0.1, 1, 0, 1).scale(), 1 / 0.9, 0x1p-22);
  // 1 - 0.6 is a little less than 0.4 in float32, so that 255 times it is less than 102.
  std::int64_t below = 0, border = 0;
  const Dropout dropout(0.6f, 3, 0, 1);
  for (std::int64_t i = 0; i < 256; ++i)
    for (std::int64_t j = 0; j < 256; ++j) below += dropout.keeps(0, 0, i, j);
  const Dropout next(0.5999, 3, 0, 1);  // 102.03 keeps the byte 102 as well
  for (std::int64_t i = 0; i < 256; ++i)
    for (std::int64_t j = 0; j < 256; ++j) border += next.keeps(0, 0, i, j);
  EXPECT_LT(below, border);
}

TEST(Dropout, EveryHeadSequenceSeedAndOffsetHasItsOwnMask) {
  const auto mask = [](std::uint64_t seed, std::uint64_t offset, std::int64_t b, std::int64_t h) {
    const Dropout dropout(0.5, seed, offset, 4);
    std::vector<bool> kept;
    for (std::int64_t i = 0; i < 64; ++i)
      for (std::int64_t j = 0; j < 64; ++j) kept.push_back(dropout.keeps(b, h, i, j));
    return kept;
  };
  const std::vector<bool> one = mask(1, 0, 0, 0);
  for (const std::vector<bool>& other :
       {mask(2, 0, 0, 0), mask(std::uint64_t{1} << 32, 0, 0, 0), mask(1, 1 << 20, 0, 0),
        mask(1, std::uint64_t{1} << 40, 0, 0), mask(1, 0, 1, 0), mask(1, 0, 0, 1)}) {
    int alike = 0;
    for (std::size_t n = 0; n < one.size(); ++n) alike += one[n] == other[n];
    EXPECT_LE(std::abs(alike - 2048), 6 * 32);  // sigma = sqrt(4096) / 2
  }
  // A sequence is the next nheads heads; an offset of 32 is the next head.
  EXPECT_EQ(mask(1, 0, 1, 0), mask(1, 4 * 32, 0, 0));
  EXPECT_EQ(mask(1, 0, 0, 1), mask(1, 32, 0, 0));
}

TEST(Dropout, OutputsAreThoseWithoutItInTheMean) {
  Problem problem;
  problem.seqlens_q = {3};
  problem.seqlens_k = {40};
  problem.head_dim = problem.head_dim_v = 2;
  problem.nheads_q = 2;
  problem.dtype = DType::f64;
  problem.sink = true;
  const SmallTensors tensors(problem);
  const oracle::Case plain(problem, tensors.views());
  const std::vector<double> o = oracle::attention(plain).o;

  constexpr int seeds = 2000;
  problem.dropout_p = 0.3;
  std::vector<double> mean(o.size());
  for (int n = 0; n < seeds; ++n) {
    problem.seed = 1000 + static_cast<std::uint64_t>(n);
    const oracle::Everything all = oracle::attention(oracle::Case(problem, tensors.views()));
    for (std::size_t at = 0; at < o.size(); ++at) mean[at] += all.o[at] / seeds;
  }
  const double share = kept_share(problem.dropout_p), factor = 1 / (1 - problem.dropout_p);
  for (std::int64_t h = 0; h < 2; ++h) {
    const oracle::KeyValueHead head = oracle::read_key_value_head(plain, 0, 0);
    for (std::int64_t i = 0; i < 3; ++i) {
      const oracle::Row row = oracle::forward_row(plain, head, h, i);
      for (std::int64_t c = 0; c < 2; ++c) {
        double variance = 0;  // of one seed: each key is kept or not, for itself
        for (std::size_t j = 0; j < row.p.size(); ++j) {
          const double term = row.p[j] * head.v[j * 2 + static_cast<std::size_t>(c)];
          variance += factor * factor * share * (1 - share) * term * term;
        }
        const auto at = static_cast<std::size_t>((h * 3 + i) * 2 + c);
        EXPECT_LE(std::abs(mean[at] - share * factor * o[at]), 6 * std::sqrt(variance / seeds));
      }
    }
  }
}

}  // namespace
}  // namespace tilewise::tests
