// The one explicit, ordered table of every implementation that this build knows.
#pragma once

#include "oracle/harness/implementation.hpp"

#include <string>
#include <string_view>
#include <vector>

namespace tilewise::tools {

/// The course's steps, in the course's order. Shipped kernels follow them.
harness::Table implementations();

/// The same, and where a name says "emulated", the CUDA steps under the emulator; "cuda", the
/// kernels for a GPU also where this build has none, to say so; "bug." or "good.", the judge's
/// planted bugs and correct kernels (tests/bugs): so that every verdict's reproduction line runs.
/// "all" does not mean those.
harness::Table implementations_for(const std::string& names);

/// A kind of problem, with one small example of it: `list` asks who supports it, the tour has it
/// judged.
struct Feature {
  std::string_view name;
  std::string_view problem;
};
const std::vector<Feature>& features();

/// Whether `text` means this implementation: its name, or the beginning of it, with or without the
/// part before the dot: "stage.2c_simd", "2c", "stage.2" and "mine" all name something.
bool is_named(const harness::Implementation& implementation, std::string_view text);

/// The implementations that a comma-separated list names, in the table's order; "all" is
/// everything. Throws BadInput for a name that means nothing.
std::vector<const harness::Implementation*> select(const harness::Table& table,
                                                   const std::string& names);

/// The one implementation that `name` means; throws BadInput when there is none, or more than one.
const harness::Implementation& select_one(const harness::Table& table, const std::string& name);

/// A problem of these sizes as an implementation wants it: backward where there is that (a step
/// that can do both passes is there for its sake), in float32, or float16 where only tensor cores
/// are.
Problem problem_for(const harness::Implementation& implementation, const std::string& sizes);

}  // namespace tilewise::tools
