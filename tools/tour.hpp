// What a tour found out: the terminal's tables, report.html and tour.json are views of this record.
#pragma once

#include "oracle/harness/scaling.hpp"
#include "oracle/harness/verdict.hpp"
#include "tools/machine.hpp"
#include "tools/tour_emulated.hpp"

#include <cstdint>
#include <string>
#include <vector>

namespace tilewise::tools {

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
  harness::MemoryCurve memory;  ///< the length that does not vary is Tour::memory_base
  double peak_gflops = 0;       ///< the ceiling measured beside this run
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
  std::vector<EmulatedRun> emulated;  ///< empty where this build has no emulator
  std::vector<NotRun> not_run;
  double seconds = 0;
};

/// The self-contained page.
std::string report_html(const Tour& tour);

}  // namespace tilewise::tools
