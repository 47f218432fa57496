// The rounding errors that the bounds of forward and backward pass share: of dot products, of
// scores, of storing, and which errors are equal. Inside the oracle only, not installed.
// docs/error-bounds.md, sections 2 to 4.
#pragma once

#include "bounds.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

namespace tilewise::oracle {

/// Six standard deviations of a rounding error that is uniform on +-1.
inline const double six_sigma = 6 / std::sqrt(3.0);
/// A uniform error's standard deviation, as a part of its maximum.
inline const double uniform_sigma = 1 / std::sqrt(3.0);

inline double square(double x) {
  return x * x;
}

/// x . y, with the sum of squared products beside it: the magnitudes that rounding errors scale
/// with.
struct Dot {
  double value = 0, squares = 0, largest = 0;  ///< largest: of the partial sums' magnitudes
};
inline Dot dot(const double* x, const double* y, std::int64_t n) {
  Dot result;
  for (std::int64_t t = 0; t < n; ++t) {
    const double product = x[t] * y[t];
    result.value += product;
    result.squares += product * product;
    result.largest = std::max(result.largest, std::abs(result.value));
  }
  return result;
}

/// Standard deviation of a dot product summed term by term in precision u: n additions, each off by
/// up to u times a partial sum. A partial sum is on its way to the result, and wanders by the
/// terms.
inline double dot_sigma(double u, std::int64_t n, double value, double squares) {
  return uniform_sigma * u * std::sqrt(static_cast<double>(n + 2) * (value * value + squares));
}

/// Standard deviation of the scaled product scale * q . k.
inline double raw_sigma(const AttentionParams& params, double u, std::int64_t head_dim,
                        const Dot& qk) {
  const double scale = params.softmax_scale;
  return dot_sigma(u, head_dim, scale * qk.largest, square(scale) * qk.squares);
}

/// Standard deviation of the finished score of one (query, key) pair.
inline double score_sigma(const AttentionParams& params, double u, std::int64_t head_dim,
                          const Dot& qk, double raw, double score, double added, double max) {
  double sigma = raw_sigma(params, u, head_dim, qk);
  if (params.softcap != 0) {
    // The error of the argument passes with the slope; tanh and the products add their own.
    sigma =
        sigma * softcap_slope(params, raw, added) + 4 * u * std::min(params.softcap, std::abs(raw));
  }
  // Bias and ALiBi are added, the maximum is subtracted, log2(e) may be multiplied in.
  return sigma +
         uniform_sigma * u * (2 * std::abs(added) + std::abs(score) + std::abs(score - max));
}

/// Standard deviation of a scaled product whose q and k were rounded to their format after rotary
/// embedding or decoding, which a kernel may do before it multiplies. Turning a pair takes a few
/// operations whose errors go with the pair's length, not with what comes out.
inline double conversion_sigma(const Case& problem_case, const double* q, const double* k,
                               const Dot& qk, const Recipe& recipe) {
  double variance = 2 * square(recipe.input) / 3 * qk.squares;
  const KvCache& cache = problem_case.tensors().cache;
  if (cache.rotates()) {
    const std::int64_t pairs = cache.rotary_cos.shape[1];
    for (std::int64_t pair = 0; pair < pairs; ++pair) {
      const std::int64_t first = cache.rotary_interleaved ? 2 * pair : pair;
      const std::int64_t second = cache.rotary_interleaved ? first + 1 : pair + pairs;
      variance += 6 * square(recipe.accumulate) * (square(q[first]) + square(q[second])) *
                  (square(k[first]) + square(k[second]));
    }
  }
  return std::abs(problem_case.params().softmax_scale) * std::sqrt(variance);
}

/// exp is good to a few units in the last place in every library we judge.
inline constexpr double exp_units = 3;

/// The bound of a stored value: the error of computing it, and the rounding of what was computed.
inline double stored_bound(double value, double computed, const Recipe& recipe) {
  return computed + recipe.output * (std::abs(value) + computed) + recipe.output_eta;
}

/// NaN compares with nothing, and a sort needs an order: last.
inline double sortable(double x) {
  return std::isnan(x) ? INFINITY : x;
}

/// Elements whose rounding errors are equal because they are: rows of P with equal scores. Sorted
/// by score and cut into cells much finer than a rounding step.
inline std::vector<std::vector<std::size_t>> equal_scores(const std::vector<double>& scores,
                                                          double cell) {
  std::vector<std::size_t> order(scores.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return sortable(scores[a]) < sortable(scores[b]);
  });
  std::vector<std::vector<std::size_t>> groups;
  double first = 0;
  for (std::size_t n : order) {
    if (groups.empty() || !(scores[n] - first <= cell)) {
      groups.emplace_back();
      first = scores[n];
    }
    groups.back().push_back(n);
  }
  return groups;
}

/// What p = exp(s - m) / l may lose where exp(s - m) is a subnormal number, or so small that exp
/// flushes it: all of it, or half the smallest number. Worst case.
inline double subnormal_error(double p, double l, const Recipe& recipe) {
  if (p * l >= std::max(recipe.probability_min, recipe.exp_eta)) return 0;
  return std::min(p, std::max(recipe.probability_eta, recipe.exp_eta) / l);
}

}  // namespace tilewise::oracle
