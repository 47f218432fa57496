// Steps that are compiled once more with TILEWISE_CLOCK_TRACE, each in a file of its own: the list
// is tilewise_timeline() of tests/gpu/CMakeLists.txt.
#pragma once

#include "stages/cuda_stage.hpp"

#include <cstddef>
#include <vector>

namespace tilewise::gpu_tests {

/// Of ClockTrace (cuda/device/clock_trace.hpp), which files without the macro do not know.
struct TraceTo {
  void* memory;
  unsigned first_block, blocks, warps, marks, launch;
};

struct TracedStep {
  stages::CudaStep step;
  Status (*trace_to)(const TraceTo&);
};

std::vector<TracedStep> traced_steps();

}  // namespace tilewise::gpu_tests
