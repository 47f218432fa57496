// Planted bugs of kernels, and what the emulator must say of them.
//
// Each is a kernel template with one switch: `buggy` makes one line of it wrong. The line that the
// emulator must name ends in "// bug: NAME"; where a finding has two lines, the other ends in
// "// meets: NAME" (one mark if both are the same line). A bug of the launch has no line.
#pragma once

#include "core/status.hpp"
#include "cuda/emulator/report.hpp"

#include <vector>

namespace tilewise::tests {

/// A run of one of the twins.
struct Ran {
  Status status;
  bool right = false;  ///< every value is the expected one
};

/// How a bug shows: by itself; with more that goes wrong then, elsewhere; or in every run by
/// something, and mostly by itself, since the order decides what goes wrong.
enum class Shown { alone, with_consequences, mostly };

struct Planted {
  const char* name;
  const char* file;  ///< in tests/emulator
  emulator::Kind kind;
  Ran (*run)(bool buggy);
  bool silent = false;  ///< allowed to the hardware's eyes: only the values are wrong
  /// Of a kernel with many bugs: the lines end in "// line: ROLE" instead.
  const char* line = nullptr;
  const char* other = nullptr;
  Shown shown = Shown::alone;
  bool shares_its_twin = false;  ///< with more bugs of one large kernel: not run as often for each
};

std::vector<Planted> barrier_bugs();
std::vector<Planted> race_bugs();
std::vector<Planted> reader_bugs();
std::vector<Planted> byte_bugs();
std::vector<Planted> wait_bugs();
std::vector<Planted> bounds_bugs();
std::vector<Planted> async_bugs();
std::vector<Planted> warp_bugs();
std::vector<Planted> fragment_bugs();
std::vector<Planted> launch_bugs();
std::vector<Planted> mbarrier_bugs();
std::vector<Planted> tensor_copy_bugs();
std::vector<Planted> box_pipeline_bugs();
std::vector<Planted> warpgroup_bugs();
std::vector<Planted> pipeline_bugs();

}  // namespace tilewise::tests
