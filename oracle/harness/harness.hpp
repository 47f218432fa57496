// The harness: runs one implementation on one problem and judges what it wrote.
//
//   guard bands and poison -> fill -> run -> guards, inputs, unwritten outputs -> oracle and bounds
//   -> repeats -> memory -> time -> Verdict
#pragma once

#include "../sampling.hpp"
#include "implementation.hpp"
#include "verdict.hpp"

#include <cstdint>
#include <functional>
#include <string>

namespace tilewise::harness {

/// Told how far a long judgement has come: 0 to 1.
using Progress = std::function<void(double)>;

struct Options {
  bool every_row = false;                  ///< judge every row, however long it takes
  double budget = oracle::default_budget;  ///< else as many as this allows (oracle/sampling.hpp)
  int repeats = 2;                         ///< further runs, compared with the first
  bool measure_memory = false;
  double time_seconds = 0;     ///< at least this long spent timing; 0: do not time
  int threads = 0;             ///< handed to the implementation; 0: all of the machine's
  std::string data_directory;  ///< where fill=real finds its tensors; empty: see fill.hpp
  Progress progress;
};

/// Runs and judges. Never throws for what the implementation does; a crash of it is a crash here.
Verdict check(const Implementation& implementation, const Problem& problem,
              const Options& options = {});

/// The same with the problem as text; a line that does not parse gives State::error.
Verdict check(const Implementation& implementation, std::string_view problem,
              const Options& options = {});

/// Judges outputs that somebody else computed from given inputs.
Verdict judge(const Problem& problem, const AttentionTensors& tensors, const Options& options = {});

}  // namespace tilewise::harness
