// The GPU that implementations run on: which it is, and the ways in which the judge starts kernels.
#pragma once

#include "core/status.hpp"

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>
#include <string>

namespace tilewise::stages {

/// The first GPU of this machine, asked once.
struct Gpu {
  std::string name, why_not;
  int compute_capability = 0;  ///< 90 for 9.0
  int multiprocessors = 0;
  std::size_t shared_bytes_a_block = 0;  ///< with the kernel's own consent
};
const Gpu& this_gpu();

/// Puts an implementation's work into a stream.
using Launch = std::function<Status(cudaStream_t)>;

/// The next of three ways: on a stream of its own, as a graph that was captured, on the default
/// stream. Each must give the same bits. Done when it returns.
Status launch_in_turn(int turn, const Launch& launch);

/// A second launch by the device's clock: the first loads the module.
Status time_launch(const Launch& launch, double& seconds);

}  // namespace tilewise::stages
