// How the extra memory of a call grows: measured at several lengths, each varied alone and both
// together, and the slopes of the curves on logarithmic axes.
#pragma once

#include "implementation.hpp"

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace tilewise::harness {

enum class Vary : std::uint8_t { q, k, both };
std::string_view name_of(Vary vary);

struct MemoryPoint {
  std::int64_t n = 0;  ///< the length that varies; the other is the base problem's
  Vary vary = Vary::both;
  std::int64_t bytes = 0;
};

struct MemoryCurve {
  std::vector<MemoryPoint> points;
  std::string why;  ///< why there are no points: nothing can be measured here
  double slope_q = 0, slope_k = 0, slope_both = 0;
};

/// Slope of log(bytes) over log(n) by least squares: 0 for what is constant, 1 linear, 2 quadratic.
/// Less than a cache line (64 bytes) counts as 64: the logarithm of nothing is no number.
double log_slope(std::span<const MemoryPoint> points, Vary vary);

/// Measures `implementation` on `base` with its lengths replaced. Every call is made twice: once to
/// warm up, once measured. It is told to use one thread: how many can be put to work grows with the
/// lengths, at first, and each has its own scratch.
MemoryCurve measure_scaling(const Implementation& implementation, const Problem& base,
                            std::span<const std::int64_t> lengths,
                            const std::string& data_directory = {});

}  // namespace tilewise::harness
