// The building blocks of cuda/device against plain loops and double, wherever their kernels run.
#include "device_kernels.hpp"

#include "core/dtype.hpp"
#include "cuda/device/fragment.hpp"
#include "cuda/device/mask.hpp"
#include "cuda/device/scheduler.hpp"
#include "cuda/device/swizzle.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <vector>

namespace tilewise::tests {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr Format all_formats[] = {Format::f16, Format::bf16, Format::tf32};

std::size_t index(int n) {
  return static_cast<std::size_t>(n);
}

int depth_of(Format format) {
  return format == Format::tf32 ? 8 : 16;
}

double rounded(Format format, float value) {
  if (format == Format::f16) return rounded_to(DType::f16, static_cast<double>(value));
  if (format == Format::bf16) return rounded_to(DType::bf16, static_cast<double>(value));
  return static_cast<double>(
      std::bit_cast<float>((std::bit_cast<std::uint32_t>(value) + 0x1000u) & 0xffffe000u));
}

Floats random_floats(std::size_t count, std::uint64_t seed, float scale = 1) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, scale);
  Floats values(count);
  for (float& value : values) value = normal(random);
  return values;
}

/// Small integers: every product and sum is exact in all formats.
Floats integers(std::size_t count, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  Floats values(count);
  for (float& value : values) value = static_cast<float>(static_cast<int>(random() % 17) - 8);
  return values;
}

// --------------------------------------------------------------------------------------- fragments

// Every element of A alone, against numbered rows of B: row i of D is row k of B.
TEST(CudaFragment, EveryElementOfAIsWhereTheMapSays) {
  for (const Format format : all_formats) {
    const int depth = depth_of(format);
    const auto count = index(16 * depth);
    Floats a(count * count), b(count * depth * 8), c(count * 128), d;
    for (std::size_t n = 0; n < count; ++n) {
      a[n * count + n] = 1;
      for (int element = 0; element < depth * 8; ++element)
        b[n * depth * 8 + element] = static_cast<float>(element + 1);
    }
    const Status status = products(format, a, b, c, d);
    ASSERT_TRUE(status.ok()) << status.reason;
    for (std::size_t n = 0; n < count; ++n)
      for (std::size_t row = 0; row < 16; ++row)
        for (std::size_t column = 0; column < 8; ++column) {
          const bool hit = row == n / depth;
          const float expected = hit ? static_cast<float>(n % index(depth) * 8 + column + 1) : 0;
          ASSERT_EQ(d[n * 128 + row * 8 + column], expected) << n << " " << row << " " << column;
        }
  }
}

// Every element of B alone, against a numbered A: column j of D is column k of A.
TEST(CudaFragment, EveryElementOfBIsWhereTheMapSays) {
  for (const Format format : all_formats) {
    const int depth = depth_of(format);
    const auto count = index(depth * 8);
    Floats a(count * 16 * depth), b(count * count), c(count * 128), d;
    for (std::size_t n = 0; n < count; ++n) {
      b[n * count + n] = 1;
      for (int element = 0; element < 16 * depth; ++element)
        a[n * 16 * depth + element] = static_cast<float>(element + 1);
    }
    const Status status = products(format, a, b, c, d);
    ASSERT_TRUE(status.ok()) << status.reason;
    for (std::size_t n = 0; n < count; ++n)
      for (std::size_t row = 0; row < 16; ++row)
        for (std::size_t column = 0; column < 8; ++column) {
          const std::size_t element = row * index(depth) + n / 8;
          const float expected = column == n % 8 ? static_cast<float>(element + 1) : 0;
          ASSERT_EQ(d[n * 128 + row * 8 + column], expected) << n << " " << row << " " << column;
        }
  }
}

TEST(CudaFragment, EveryElementHasOneOwner) {
  using device::Position;
  std::set<std::pair<int, int>> d, a, b, tf32_a, tf32_b, matrix, transposed;
  const auto put = [](std::set<std::pair<int, int>>& where, Position at) {
    EXPECT_TRUE(where.emplace(at.row, at.column).second) << at.row << " " << at.column;
  };
  for (int lane = 0; lane < 32; ++lane) {
    for (int n = 0; n < 4; ++n) {
      put(d, device::accumulator_at(lane, n));
      put(tf32_a, device::tf32_operand_a_at(lane, n));
      for (int half = 0; half < 2; ++half) put(a, device::operand_a_at(lane, n, half));
    }
    for (int n = 0; n < 2; ++n) {
      put(tf32_b, device::tf32_operand_b_at(lane, n));
      for (int half = 0; half < 2; ++half) put(b, device::operand_b_at(lane, n, half));
      put(matrix, device::matrix_at(lane, n));
      put(transposed, device::transposed_matrix_at(lane, n));
    }
  }
  const auto last = [](const std::set<std::pair<int, int>>& all) { return *all.rbegin(); };
  EXPECT_EQ(d.size(), 128u);
  EXPECT_EQ(last(d), std::pair(15, 7));
  EXPECT_EQ(a.size(), 256u);
  EXPECT_EQ(last(a), std::pair(15, 15));
  EXPECT_EQ(b.size(), 128u);
  EXPECT_EQ(last(b), std::pair(15, 7));
  EXPECT_EQ(tf32_a.size(), 128u);
  EXPECT_EQ(last(tf32_a), std::pair(15, 7));
  EXPECT_EQ(tf32_b.size(), 64u);
  EXPECT_EQ(last(tf32_b), std::pair(7, 7));
  EXPECT_EQ(matrix.size(), 64u);
  EXPECT_EQ(transposed.size(), 64u);
}

// What as_operand_a() relies on: two accumulators beside each other are an A.
TEST(CudaFragment, TwoAccumulatorsAreAnOperand) {
  for (int lane = 0; lane < 32; ++lane)
    for (int n = 0; n < 4; ++n)
      for (int half = 0; half < 2; ++half) {
        const device::Position d = device::accumulator_at(lane, 2 * (n % 2) + half);
        const device::Position a = device::operand_a_at(lane, n, half);
        EXPECT_EQ(a.row, d.row);
        EXPECT_EQ(a.column, d.column + 8 * (n / 2));
      }
}

TEST(CudaFragment, LdmatrixFillsRegistersAsTheMapSays) {
  for (const int matrices : {1, 2, 4})
    for (const bool transposed : {false, true}) {
      std::vector<std::uint16_t> rows(index(64 * matrices));
      for (std::size_t n = 0; n < rows.size(); ++n) rows[n] = static_cast<std::uint16_t>(n + 1);
      std::vector<std::uint32_t> registers;
      const Status status = loaded_matrices(matrices, transposed, rows, registers);
      ASSERT_TRUE(status.ok()) << status.reason;
      for (int lane = 0; lane < 32; ++lane)
        for (int n = 0; n < matrices; ++n)
          for (int half = 0; half < 2; ++half) {
            const device::Position at = transposed ? device::transposed_matrix_at(lane, half)
                                                   : device::matrix_at(lane, half);
            const std::uint32_t both = registers[index(lane * matrices + n)];
            EXPECT_EQ(both >> (16 * half) & 0xffff, rows[index(64 * n + 8 * at.row + at.column)])
                << matrices << " " << transposed << " " << lane << " " << n << " " << half;
          }
    }
}

TEST(CudaFragment, OperandsFromSwizzledTilesMultiply) {
  const std::tuple<Format, bool> cases[] = {{Format::f16, true},
                                            {Format::f16, false},
                                            {Format::bf16, true},
                                            {Format::bf16, false},
                                            {Format::tf32, true}};
  for (const auto& [format, b_transposed] : cases) {
    const Floats a = integers(16 * 32, 1), b = integers(32 * 16, 2);
    Floats d;
    const Status status = product_of_tiles(format, b_transposed, a, b, d);
    ASSERT_TRUE(status.ok()) << status.reason;
    for (std::size_t i = 0; i < 16; ++i)
      for (std::size_t j = 0; j < 16; ++j) {
        float sum = 0;
        for (std::size_t k = 0; k < 32; ++k)
          sum += a[i * 32 + k] * (b_transposed ? b[j * 32 + k] : b[k * 16 + j]);
        EXPECT_EQ(d[i * 16 + j], sum) << i << " " << j << " " << b_transposed;
      }
  }
}

// ---------------------------------------------------------------------------------------- products

// Within the bound that a tensor core keeps, which drops low bits of aligned sums.
TEST(CudaMma, AgreesWithDouble) {
  for (const Format format : all_formats)
    for (const float scale : {1e-2f, 1.0f, 50.0f}) {
      const int depth = depth_of(format);
      constexpr std::size_t count = 20;
      const Floats a = random_floats(count * 16 * depth, 3, scale);
      const Floats b = random_floats(count * depth * 8, 4);
      const Floats c = random_floats(count * 128, 5, scale);
      Floats d;
      const Status status = products(format, a, b, c, d);
      ASSERT_TRUE(status.ok()) << status.reason;
      for (std::size_t n = 0; n < count; ++n)
        for (std::size_t i = 0; i < 16; ++i)
          for (std::size_t j = 0; j < 8; ++j) {
            double sum = static_cast<double>(c[n * 128 + i * 8 + j]), magnitude = std::abs(sum);
            for (std::size_t k = 0; k < index(depth); ++k) {
              const double product = rounded(format, a[(n * 16 + i) * depth + k]) *
                                     rounded(format, b[(n * depth + k) * 8 + j]);
              sum += product;
              magnitude += std::abs(product);
            }
            const double error = std::abs(static_cast<double>(d[n * 128 + i * 8 + j]) - sum);
            EXPECT_TRUE(error <= magnitude * 0x1p-20) << error << " of " << magnitude;
          }
    }
}

TEST(CudaMma, NotANumberAndInfinityPass) {
  Floats a(256), b(128), c(128), d;
  a[0] = std::numeric_limits<float>::quiet_NaN();
  a[16] = infinity;
  for (float& value : b) value = 1;
  for (const Format format : {Format::f16, Format::bf16}) {
    ASSERT_TRUE(products(format, a, b, c, d).ok());
    EXPECT_TRUE(std::isnan(d[0]));
    EXPECT_EQ(d[8], infinity);
    EXPECT_EQ(d[16], 0);
  }
}

// ----------------------------------------------------------------------------------------- swizzle

template <int Chunks>
void expect_bijection() {
  for (int row = 0; row < 64; ++row) {
    std::set<int> places;
    for (int chunk = 0; chunk < Chunks; ++chunk) {
      const int place = device::swizzled<Chunks>(row, chunk);
      EXPECT_TRUE(place >= 0 && place < Chunks) << Chunks << " " << row << " " << chunk;
      EXPECT_EQ(device::unswizzled<Chunks>(row, place), chunk);
      places.insert(place);
    }
    EXPECT_EQ(places.size(), index(Chunks));
  }
  // One chunk each of eight rows, the first a multiple of eight: eight places of 128 bytes.
  for (int first = 0; first < 64; first += 8)
    for (int chunk = 0; chunk < Chunks; ++chunk) {
      std::set<int> groups;
      for (int row = first; row < first + 8; ++row)
        groups.insert((row * Chunks + device::swizzled<Chunks>(row, chunk)) % 8);
      EXPECT_EQ(groups.size(), 8u) << Chunks << " chunks, row " << first << ", chunk " << chunk;
    }
}

TEST(CudaSwizzle, IsABijectionWithoutConflictsForRowsOfAnyWidth) {
  expect_bijection<1>();
  expect_bijection<2>();
  expect_bijection<3>();
  expect_bijection<4>();
  expect_bijection<5>();
  expect_bijection<6>();
  expect_bijection<8>();
  expect_bijection<10>();
  expect_bijection<12>();
  expect_bijection<16>();
  expect_bijection<20>();
  expect_bijection<24>();
  expect_bijection<32>();
}

TEST(CudaSwizzle, IsAConstantOfTheCompiler) {
  static_assert(device::swizzled<8>(3, 1) == 2 && device::swizzled<4>(2, 0) == 1 &&
                device::swizzled<4>(1, 0) == 0);
}

// ----------------------------------------------------------------------------------------- softmax

/// Sums of probabilities by key % 8, and LSE, of one row.
struct Row {
  double o[8] = {};
  double lse = -std::numeric_limits<double>::infinity();
};
Row softmax_of(const float* scores, int keys, double scale) {
  Row row;
  double most = row.lse, sum = 0;
  for (int j = 0; j < keys; ++j) most = std::max(most, static_cast<double>(scores[j]) * scale);
  for (int j = 0; j < keys; ++j)
    if (most > row.lse) {
      const double p = std::exp(static_cast<double>(scores[j]) * scale - most);
      sum += p;
      row.o[j % 8] += p;
    }
  if (sum > 0) {
    for (double& each : row.o) each /= sum;
    row.lse = most + std::log(sum);
  }
  return row;
}

void expect_softmax(const Floats& scores, const std::vector<int>& keys, float scale) {
  Floats o, lse;
  const Status status = softmax(scores, keys, scale, o, lse);
  ASSERT_TRUE(status.ok()) << status.reason;
  const std::size_t width = scores.size() / 16;
  for (std::size_t i = 0; i < 16; ++i) {
    const Row row = softmax_of(&scores[i * width], keys[i], static_cast<double>(scale));
    // LSE is a float beside the largest score, and the scale's log2(e) is one. O knows differences
    // of scores alone, and an exponential falls faster than its exponent's error grows.
    double largest = 1;
    for (int j = 0; j < keys[i]; ++j)
      if (const double score = std::abs(static_cast<double>(scores[i * width + j] * scale));
          std::isfinite(score))
        largest = std::max(largest, score);
    const double bound = 2e-6, bound_of_lse = bound + largest * 2e-7;
    if (std::isinf(row.lse))
      EXPECT_EQ(lse[i], -infinity) << "row " << i;
    else
      EXPECT_TRUE(std::abs(static_cast<double>(lse[i]) - row.lse) <= bound_of_lse)
          << "row " << i << ": " << lse[i] << " for " << row.lse;
    for (std::size_t c = 0; c < 8; ++c)
      EXPECT_TRUE(std::abs(static_cast<double>(o[i * 8 + c]) - row.o[c]) <= bound)
          << "row " << i << ", " << c << ": " << o[i * 8 + c] << " for " << row.o[c];
  }
}

TEST(CudaSoftmax, AgreesWithDouble) {
  for (const int width : {1, 31, 32, 33, 200})
    for (const float scale : {0.125f, 1.0f, 3.0f}) {
      const Floats scores = random_floats(index(16 * width), 6, 4);
      expect_softmax(scores, std::vector<int>(16, width), scale);
    }
}

TEST(CudaSoftmax, MaskedKeysTilesAndRowsCountForNothing) {
  const Floats scores = random_floats(16 * 100, 7);
  // No key, one, parts of tiles, whole tiles: a row that has no key in a tile, and one without any.
  expect_softmax(scores, {0, 1, 2, 31, 32, 33, 63, 64, 65, 96, 97, 99, 100, 0, 5, 0}, 0.5f);
  expect_softmax(scores, std::vector<int>(16, 0), 0.5f);
}

TEST(CudaSoftmax, ExtremeScores) {
  Floats scores = random_floats(16 * 64, 8);
  for (std::size_t j = 0; j < 64; ++j) {
    scores[0 * 64 + j] = 1e4f * static_cast<float>(j);       // grows in every tile: l shrinks to 0
    scores[1 * 64 + j] = -1e4f * static_cast<float>(j);      // far below the first
    scores[2 * 64 + j] = 3e4f;                               // equal and large
    scores[3 * 64 + j] = j == 40 ? 6e4f : -6e4f;             // one-hot
    scores[4 * 64 + j] = j < 32 ? -infinity : 1.0f;          // a first tile of -inf
    scores[5 * 64 + j] = -infinity;                          // keys, all of them at -inf
    scores[6 * 64 + j] = 1e-30f * static_cast<float>(j);     // as good as equal
    scores[7 * 64 + j] = -3e4f + static_cast<float>(j % 2);  // all far below 0
  }
  expect_softmax(scores, std::vector<int>(16, 64), 1.0f);
}

// Equal or one-hot logits leave no room for rounding: the same bits everywhere.
TEST(CudaSoftmax, ExactInputsGiveExactBits) {
  Floats scores(16 * 64), o, lse;
  for (std::size_t i = 0; i < 8; ++i)
    for (std::size_t j = 0; j < 64; ++j) scores[i * 64 + j] = j == 8 * i + 3 ? 0.0f : -1e4f;
  ASSERT_TRUE(softmax(scores, std::vector<int>(16, 64), 1.0f, o, lse).ok());
  for (std::size_t i = 0; i < 16; ++i)
    for (std::size_t c = 0; c < 8; ++c)
      EXPECT_EQ(o[i * 8 + c], i >= 8 ? 0.125f : c == 3 ? 1.0f : 0.0f) << i << " " << c;
  for (std::size_t i = 0; i < 8; ++i) EXPECT_EQ(lse[i], 0.0f);
}

// NaN is seen, not hidden by a maximum that leaves it out; rows beside it are as they were.
TEST(CudaSoftmax, NotANumberPasses) {
  Floats scores = random_floats(16 * 64, 9), o, lse;
  scores[3 * 64 + 40] = std::numeric_limits<float>::quiet_NaN();
  ASSERT_TRUE(softmax(scores, std::vector<int>(16, 64), 1.0f, o, lse).ok());
  for (std::size_t i = 0; i < 16; ++i) {
    EXPECT_EQ(std::isnan(lse[i]), i == 3);
    EXPECT_EQ(std::isnan(o[i * 8]), i == 3);
  }
}

// A scale of 0: all keys count alike, and masked ones still not.
TEST(CudaSoftmax, ZeroScale) {
  const Floats scores = random_floats(16 * 64, 10, 100);
  std::vector<int> keys(16, 64);
  keys[2] = 8;
  keys[3] = 0;
  expect_softmax(scores, keys, 0.0f);
}

// -------------------------------------------------------------------------------------- everything

struct Expected {
  std::vector<double> o, magnitude, lse;
};
Expected attention_of(Format format, const Attention& p, const Floats& q, const Floats& k,
                      const Floats& v) {
  Expected expected;
  expected.o.assign(q.size(), 0);
  expected.magnitude.assign(q.size(), 0);
  for (int b = 0; b < p.batch; ++b)
    for (int h = 0; h < p.nheads_q; ++h)
      for (int i = 0; i < p.seqlen_q; ++i) {
        const int hk = h / (p.nheads_q / p.nheads_k);
        const auto of_q = index(((b * p.seqlen_q + i) * p.nheads_q + h) * p.head_dim);
        std::vector<double> scores;
        for (int j = 0; j < p.seqlen_k; ++j) {
          if (p.causal && j > i + p.seqlen_k - p.seqlen_q) break;
          const auto of_k = index(((b * p.seqlen_k + j) * p.nheads_k + hk) * p.head_dim);
          double score = 0;
          for (std::size_t c = 0; c < index(p.head_dim); ++c)
            score += rounded(format, q[of_q + c]) * rounded(format, k[of_k + c]);
          scores.push_back(score * static_cast<double>(p.softmax_scale));
        }
        double most = -std::numeric_limits<double>::infinity(), sum = 0;
        for (const double score : scores) most = std::max(most, score);
        for (double& score : scores) sum += score = std::exp(score - most);
        expected.lse.push_back(sum > 0 ? most + std::log(sum)
                                       : -std::numeric_limits<double>::infinity());
        for (std::size_t j = 0; j < scores.size(); ++j) {
          const std::size_t of_v =
              ((index(b * p.seqlen_k) + j) * p.nheads_k + index(hk)) * p.head_dim;
          for (std::size_t c = 0; c < index(p.head_dim); ++c) {
            const double each = scores[j] / sum * rounded(format, v[of_v + c]);
            expected.o[of_q + c] += each;
            expected.magnitude[of_q + c] += std::abs(each);
          }
        }
      }
  return expected;
}

void expect_attention(Format format, const Attention& p) {
  SCOPED_TRACE(testing::Message() << "batch " << p.batch << " heads " << p.nheads_q << "/"
                                  << p.nheads_k << " seqlen " << p.seqlen_q << "/" << p.seqlen_k
                                  << " d " << p.head_dim << " causal " << p.causal << " scale "
                                  << p.softmax_scale);
  const auto q_rows = index(p.batch) * p.seqlen_q * p.nheads_q;
  const auto k_rows = index(p.batch) * p.seqlen_k * p.nheads_k;
  const Floats q = random_floats(q_rows * p.head_dim, 11),
               k = random_floats(k_rows * p.head_dim, 12),
               v = random_floats(k_rows * p.head_dim, 13);
  Floats o, lse;
  const Status status = attention(format, p, q, k, v, o, lse);
  ASSERT_TRUE(status.ok()) << status.reason;
  const Expected expected = attention_of(format, p, q, k, v);
  // P is rounded to the format, half a unit of its last place; so is O.
  const double unit = format == Format::f16 ? 0x1p-11 : 0x1p-8;
  for (std::size_t n = 0; n < lse.size(); ++n)
    if (std::isinf(expected.lse[n]))
      EXPECT_EQ(lse[n], -infinity) << n;
    else
      EXPECT_TRUE(std::abs(static_cast<double>(lse[n]) - expected.lse[n]) <= 1e-5)
          << n << ": " << lse[n] << " for " << expected.lse[n];
  for (std::size_t n = 0; n < o.size(); ++n) {
    const double bound = 1.1 * unit * expected.magnitude[n] + 1e-5 * expected.magnitude[n] +
                         (p.rounded ? 1.1 * unit * std::abs(expected.o[n]) : 0) +
                         (format == Format::f16 ? 1e-7 : 0);  // P's subnormal numbers
    EXPECT_TRUE(std::abs(static_cast<double>(o[n]) - expected.o[n]) <= bound)
        << n << ": " << o[n] << " for " << expected.o[n] << " within " << bound;
  }
}

TEST(CudaBlocks, TogetherTheyAreAttention) {
  for (const Format format : {Format::f16, Format::bf16}) {
    expect_attention(format, {1, 1, 1, 32, 32, 64, false, 0.125f, false});
    expect_attention(format, {2, 4, 2, 33, 70, 64, false, 0.125f, true});
    expect_attention(format, {1, 3, 1, 65, 65, 96, true, 0.1f, true});
    expect_attention(format, {1, 2, 2, 40, 100, 40, true, 0.2f, false});
    // More rows than keys: the first rows have none. A single row, and a single key.
    expect_attention(format, {1, 2, 1, 100, 40, 8, true, 0.3f, false});
    expect_attention(format, {1, 2, 1, 1, 90, 80, true, 0.1f, true});
    expect_attention(format, {1, 1, 1, 50, 1, 64, true, 0.125f, false});
  }
}

TEST(CudaBlocks, AnyScaleIsServed) {
  for (const float scale : {-0.2f, 0.0f, 2.0f})
    expect_attention(Format::f16, {1, 2, 1, 40, 70, 32, true, scale, false});
}

// --------------------------------------------------------------------------------- mask, scheduler

TEST(CudaMask, RangesAreWhatTheRuleSays) {
  for (const bool causal : {false, true})
    for (int seqlen_q = 1; seqlen_q <= 20; ++seqlen_q)
      for (int seqlen_k = 1; seqlen_k <= 20; ++seqlen_k) {
        const device::Mask mask{seqlen_q, seqlen_k, causal};
        const auto looks = [&](int i, int j) {
          return i < seqlen_q && j < seqlen_k && (!causal || j <= i + seqlen_k - seqlen_q);
        };
        for (int i = 0; i < seqlen_q; ++i)
          for (int j = 0; j < seqlen_k; ++j) {
            ASSERT_EQ(j < mask.keys_of(i), looks(i, j)) << seqlen_q << " " << seqlen_k;
            ASSERT_EQ(i >= mask.first_row_of(j), looks(i, j)) << seqlen_q << " " << seqlen_k;
          }
        for (const int Br : {1, 3, 8})
          for (const int Bc : {1, 4, 7})
            for (int first_row = 0; first_row < seqlen_q + Br; first_row += Br) {
              int tiles = 0;
              for (int first_key = 0; first_key < seqlen_k; first_key += Bc) {
                bool any = false, all = true;
                for (int i = first_row; i < first_row + Br; ++i)
                  for (int j = first_key; j < first_key + Bc; ++j)
                    if (looks(i, j))
                      any = true;
                    else if (i < seqlen_q)
                      all = false;
                if (any) tiles = first_key / Bc + 1;
                if (first_row < seqlen_q && any) {
                  ASSERT_EQ(mask.cuts(first_row, first_key, Bc), !all);
                }
              }
              ASSERT_EQ(mask.tiles_of(first_row, Br, Bc), tiles);
            }
      }
}

TEST(CudaSchedule, EveryRowBlockOfEveryHeadOnce) {
  for (const bool causal : {false, true}) {
    const device::Schedule schedule{3, 6, 2, 5, causal};
    std::set<std::tuple<int, int, int>> seen;
    for (unsigned n = 0; n < schedule.blocks(); ++n) {
      const device::Work work = schedule.work_of(n);
      EXPECT_EQ(work.head_k, work.head_q / 3);
      EXPECT_TRUE(work.batch < 3 && work.head_q < 6 && work.row_block < 5);
      seen.emplace(work.batch, work.head_q, work.row_block);
      // Longest first: the last rows of all heads before any others.
      if (causal) {
        EXPECT_EQ(work.row_block, 4 - static_cast<int>(n) / 18);
      }
    }
    EXPECT_EQ(seen.size(), 3u * 6 * 5);
  }
}

// ------------------------------------------------------------------------------------------ copies

TEST(CudaCopy, TileIsWhatIsThereAndZeros) {
  for (const int columns : {32, 40, 64, 96})
    for (const int rows : {-3, 0, 1, 17, 32, 40})
      for (const int there : {8, 24, columns}) {
        const int stride = 104;
        std::vector<std::uint16_t> tensor(index(std::max(rows, 1) * stride));
        for (std::size_t n = 0; n < tensor.size(); ++n)
          tensor[n] = static_cast<std::uint16_t>(n + 1);
        std::vector<std::uint16_t> tile;
        const Status status = copied_tile(columns, tensor, stride, rows, there, tile);
        ASSERT_TRUE(status.ok()) << status.reason;
        for (int row = 0; row < 32; ++row)
          for (int column = 0; column < columns; ++column) {
            const bool inside = row < rows && column < there;
            ASSERT_EQ(tile[index(row * columns + column)],
                      inside ? tensor[index(row * stride + column)] : 0)
                << columns << " " << rows << " " << row << " " << column;
          }
      }
}

TEST(CudaCopy, TwoTilesArriveOneAfterTheOther) {
  const Floats in = random_floats(2 * 32 * 32, 14);
  Floats out;
  const Status status = pipelined(true, in, out);
  ASSERT_TRUE(status.ok()) << status.reason;
  EXPECT_EQ(out, in);
}

TEST(CudaCopy, FourEightAndSixteenBytes) {
  for (const int bytes : {4, 8, 16}) {
    std::vector<std::uint32_t> in(index(8 * bytes)), out;
    for (std::size_t n = 0; n < in.size(); ++n) in[n] = static_cast<std::uint32_t>(n + 1);
    const Status status = copied_words(bytes, in, out);
    ASSERT_TRUE(status.ok()) << status.reason;
    for (std::size_t n = 0; n < in.size(); ++n)
      EXPECT_EQ(out[n], n / (index(bytes) / 4) % 3 == 0 ? 0 : in[n]);
  }
}

// ------------------------------------------------------------------------------------ instructions

TEST(CudaBarrier, OneWarpGivesToAnother) {
  const Floats in = random_floats(32, 15);
  Floats out;
  const Status status = handed_over(in, out);
  ASSERT_TRUE(status.ok()) << status.reason;
  EXPECT_EQ(out, Floats(in.rbegin(), in.rend()));
}

TEST(CudaExp2, WithinTwoUnitsAndExactAtTheEnds) {
  Floats in = random_floats(1000, 16, 20), out;
  const Floats special = {0.0f,    -0.0f,     1.0f,     -1.0f,   10.0f,
                          -126.0f, -infinity, infinity, -150.0f, 1e-40f};
  in.insert(in.end(), special.begin(), special.end());
  const Status status = exp2_of(in, out);
  ASSERT_TRUE(status.ok()) << status.reason;
  for (std::size_t n = 0; n < 1000; ++n) {
    const double expected = std::exp2(static_cast<double>(in[n]));
    EXPECT_TRUE(std::abs(static_cast<double>(out[n]) - expected) <= expected * 0x1p-22) << in[n];
  }
  const Floats results = {1, 1, 2, 0.5f, 1024, 0x1p-126f, 0, infinity, 0, 1};
  EXPECT_TRUE(std::equal(results.begin(), results.end(), out.end() - 10));
  Floats nan = {std::numeric_limits<float>::quiet_NaN()};
  ASSERT_TRUE(exp2_of(nan, out).ok());
  EXPECT_TRUE(std::isnan(out[0]));
}

TEST(CudaConvert, RoundsAsTheOracleDoes) {
  Floats in = random_floats(2000, 17, 100);
  for (const float special : {0.0f, -0.0f, 65504.0f, 65519.9f, 65520.0f, 1e-8f, 6e-8f, 1.0009765f,
                              1.00048828125f, 1.00146484375f, 3.4e38f, -infinity})
    in.push_back(special);
  std::vector<std::uint32_t> out;
  for (const Format format : {Format::f16, Format::bf16}) {
    ASSERT_TRUE(packed(format, in, out).ok());
    const auto code = [&](float value) {
      const auto exact = static_cast<double>(value);
      return format == Format::f16 ? F16::encode(exact) : BF16::encode(exact);
    };
    for (std::size_t n = 0; n < out.size(); ++n)
      EXPECT_EQ(out[n], code(in[2 * n]) | code(in[2 * n + 1]) << 16) << in[2 * n];
    Floats back;
    ASSERT_TRUE(unpacked(format, out, back).ok());
    for (std::size_t n = 0; n < in.size(); ++n)
      EXPECT_EQ(static_cast<double>(back[n]), rounded(format, in[n]));
  }
  in.resize(in.size() - 2);  // an infinity, and what rounds to one, are not numbers of tf32
  ASSERT_TRUE(packed(Format::tf32, in, out).ok());
  for (std::size_t n = 0; n < in.size(); ++n)
    EXPECT_EQ(static_cast<double>(std::bit_cast<float>(out[n])), rounded(Format::tf32, in[n]));
}

TEST(CudaVectors, MoveEightAndSixteenBytes) {
  const Floats in = random_floats(124, 18);
  Floats out;
  const Status status = reversed(in, 0, out);
  ASSERT_TRUE(status.ok()) << status.reason;
  for (std::size_t n = 0; n < 126; ++n) EXPECT_EQ(out[n], n < 4 ? 0 : in[127 - n]) << n;
}

}  // namespace
}  // namespace tilewise::tests
