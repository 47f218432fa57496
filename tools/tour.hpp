// What a tour found out: the terminal's tables, report.html and tour.json are views of this record.
#pragma once

#include "oracle/harness/verdict.hpp"
#include "tools/machine.hpp"

#include <cstdint>
#include <string>
#include <vector>

namespace tilewise::tools {

/// Extra memory measured at one size. `vary` is "q", "k" or "both": which length n is; the other is
/// Tour::memory_base.
struct MemoryPoint {
  std::int64_t n = 0;
  std::string vary;
  std::int64_t bytes = 0;
};

/// A small problem of another kind, judged beside the main one.
struct TourFeature {
  std::string name, problem;
  harness::State state = harness::State::error;
  std::string why;  ///< the reason when it is unsupported or wrong
};

struct TourRun {
  std::string implementation, idea;
  std::string tensors;  ///< "normal" or "real"
  harness::Verdict verdict;
  std::vector<MemoryPoint> memory_curve;
  double slope_q = 0, slope_k = 0, slope_both = 0;
  double peak_gflops = 0;  ///< the ceiling measured beside this run
  double fraction_of_peak = 0;
  std::vector<TourFeature> features;
};

struct NotRun {
  std::string implementation, idea, why;
};

struct Tour {
  bool quick = false;
  Machine machine;
  std::string memory_problem;  ///< what the memory curve was measured on
  std::int64_t memory_base = 0;
  std::vector<TourRun> runs;
  std::vector<NotRun> not_run;
  double seconds = 0;
};

/// Slope of log(bytes) over log(n) by least squares: 0 for what is constant, 1 linear, 2 quadratic.
/// Less than a cache line (64 bytes) counts as 64: the logarithm of nothing would be no number.
double log_slope(const std::vector<MemoryPoint>& curve, const std::string& vary);

/// The self-contained page.
std::string report_html(const Tour& tour);

}  // namespace tilewise::tools
