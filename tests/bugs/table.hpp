// The planted bugs and the correct kernels as implementations, to judge the judge with.
#pragma once

#include "oracle/harness/implementation.hpp"
#include "tests/bugs/kernel.hpp"

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tilewise::bugs {

/// One planted bug.
struct BugInfo {
  std::string_view name;      ///< "bug.rescale_missing"
  std::string_view sentence;  ///< what is wrong
  /// Problems on which it shows, as lines in f32: at_precision() puts another dtype in.
  std::vector<std::string_view> problems;
  /// What a verdict must complain of, among perhaps other things: the output that is wrong ("o",
  /// "lse", "dq", "dk", "dv"), or "guard" (wrote beside a tensor), "input" (changed an input),
  /// "unwritten" (left an output as it was), "repeat" (other bits at another call).
  std::string_view expected;
  Recipe recipe;  ///< recipe.bug is the bug
};

std::span<const BugInfo> bug_list();

/// The line with its word "f32" replaced by the name of `dtype`.
std::string at_precision(std::string_view line, DType dtype);

/// One implementation for every entry of bug_list(), in its order.
harness::Table planted_bugs();

/// The same kernel without any bug, in tilings and variants named good.*.
harness::Table correct_kernels();

}  // namespace tilewise::bugs
