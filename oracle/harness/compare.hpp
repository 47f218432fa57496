// Holds outputs against the oracle, element by element: |got - expected| <= bound, or it fails.
#pragma once

#include "../attention.hpp"
#include "../sampling.hpp"
#include "harness.hpp"
#include "verdict.hpp"

#include <string>
#include <vector>

namespace tilewise::harness {

struct Comparison {
  std::vector<OutputReport> outputs;  ///< one for each output that the problem has, present or not
  std::vector<std::string> reasons;   ///< why it fails; empty if it does not
  std::vector<std::string> not_checked;
  std::string coverage;
};

/// Compares every output that exists in `tensors`; reports the others as not checked.
/// `poisoned`: outputs were poisoned before the run, so that an element which still holds the
/// poison was never written.
Comparison compare(const Problem& problem, const AttentionTensors& tensors, const Options& options,
                   bool poisoned);

}  // namespace tilewise::harness
