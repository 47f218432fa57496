// What a problem asks of a device's kernels, as core/device_backend.hpp says it.
#pragma once

#include "core/device_backend.hpp"
#include "oracle/harness/implementation.hpp"
#include "oracle/problem.hpp"

#include <cstddef>
#include <vector>

namespace tilewise::tools {

/// The forward call and, for a backward problem, the backward call that follows it.
std::vector<DeviceCall> device_calls(const Problem& problem, const AttentionTensors& tensors);

/// Whether cuda/kernels/ serves them all.
harness::Support kernels_support(const Problem& problem, const harness::Outputs& outputs,
                                 const DeviceLimits& limits);

/// The largest workspace of them.
std::size_t kernels_workspace(const Problem& problem, const harness::Outputs& outputs,
                              const DeviceLimits& limits);

}  // namespace tilewise::tools
