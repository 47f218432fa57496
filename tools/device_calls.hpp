// A problem as the calls that a backend is handed (core/device_backend.hpp), for tests that ask one
// family of kernels and not the C interface.
#pragma once

#include "core/device_backend.hpp"
#include "oracle/problem.hpp"

#include <vector>

namespace tilewise::tools {

/// The forward call and, for a backward problem, the backward call that follows it.
std::vector<DeviceCall> device_calls(const Problem& problem, const AttentionTensors& tensors);

}  // namespace tilewise::tools
