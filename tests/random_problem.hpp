// Random small problems over every key of the Problem, and plain tensors for them, independent of
// the harness's own buffers and fills: what checks the judge must not be built from the judge.
//
// The same seed gives the same problem and the same tensors with every standard library: the
// generator is std::mt19937_64, whose numbers the standard fixes, and the distributions, which it
// does not, are written here.
#pragma once

#include "oracle/problem.hpp"

#include <cstdint>
#include <random>
#include <vector>

namespace tilewise::tests {

/// A stream of random numbers; `below`, `chance` and `pick` say what is drawn.
class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}

  std::uint64_t bits() { return engine_(); }
  /// 0 .. n - 1. The bias of the remainder, n / 2^64, does not matter here.
  std::int64_t below(std::int64_t n) {
    return static_cast<std::int64_t>(bits() % static_cast<std::uint64_t>(n));
  }
  std::int64_t between(std::int64_t first, std::int64_t last) {
    return first + below(last - first + 1);
  }
  /// In [0, 1).
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  bool chance(double probability) { return uniform() < probability; }
  /// Mean 0 and variance 1: twelve uniforms (Irwin and Hall), tails cut at 6.
  double normal() {
    double sum = -6;
    for (int n = 0; n < 12; ++n) sum += uniform();
    return sum;
  }
  template <class T>
  const T& pick(const std::vector<T>& choices) {
    return choices[static_cast<std::size_t>(below(static_cast<std::int64_t>(choices.size())))];
  }

 private:
  std::mt19937_64 engine_;
};

struct RandomLimits {
  std::int64_t max_batch = 3;
  std::int64_t min_seqlen = 1, max_seqlen = 14;  ///< from 0: sequences without queries or keys
  std::int64_t max_nheads_k = 2, max_group = 3;
  std::int64_t max_head_dim = 9;
  std::vector<DType> dtypes{DType::f64,  DType::f32,  DType::f16,
                            DType::bf16, DType::e4m3, DType::e5m2};
  bool mean_of_values = true;  ///< may an empty row's O be the mean of V or NaN, not only zero?
  /// May they appear? What else is drawn stays the same without them.
  bool sinks = true, dropout = true, blocks = true, chunks = true;
};

/// Each key is present or absent by its own coin, so that every pair of features meets. What comes
/// out is consistent (inconsistency() has nothing to say) and prints and parses like any problem.
Problem random_problem(std::uint64_t seed, const RandomLimits& limits = {});

/// Owns the input tensors of one problem (dout too, for a backward pass), filled as problem.fill
/// says. Rows may lie further apart than they must; the gaps and the rows past the end of a
/// sequence are NaN, so that whoever reads one shows it.
class SmallTensors {
 public:
  explicit SmallTensors(const Problem& problem);

  const AttentionTensors& views() const { return views_; }
  AttentionTensors& views() { return views_; }

 private:
  void* memory(std::int64_t bytes);
  /// A [batch, seqlen, nheads, width] tensor, or packed [total, nheads, width].
  TensorView sequences(const Problem& problem, bool of_queries, std::int64_t nheads,
                       std::int64_t width, Random& random);
  TensorView spread(const Problem& problem, const Broadcast& dims, DType dtype);
  /// Lists in no order, with other blocks' indices behind the counted ones.
  BlockMask block_lists(const Problem& problem, Random& random);
  TensorView prefix_sums(const Problem& problem, bool of_queries);
  TensorView lengths(const Problem& problem, bool of_queries);

  std::vector<std::vector<unsigned char>> storage_;
  AttentionTensors views_;
};

/// Element (b, s, h, column) of q, k, v, ...: where it lies, by the view's strides. Packed tensors
/// need the start of their sequence: the prefix sums.
void* element(const TensorView& tensor, const TensorView& prefix_sums, std::int64_t b,
              std::int64_t s, std::int64_t h, std::int64_t column);

}  // namespace tilewise::tests
