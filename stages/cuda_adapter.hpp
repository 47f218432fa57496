// From a CUDA step of the course to an Implementation that the harness can judge: under the
// emulator, on any machine.
#pragma once

#include "cuda/emulator/emulator.hpp"
#include "oracle/harness/implementation.hpp"
#include "stages/cuda_stage.hpp"

#include <memory>
#include <vector>

namespace tilewise::stages {

/// Called "emulated." and the step's name. A kernel that the emulator finds fault with has failed,
/// whatever it computed.
class EmulatedImplementation : public harness::Implementation {
 public:
  /// What the emulator had to say of the last run. Not for several threads' runs at once.
  virtual const emulator::Report& report() const = 0;
};

std::unique_ptr<EmulatedImplementation> emulated_implementation_of(
    const CudaStep& step, const emulator::Options& options = {});

/// Every CUDA step of this build, in the course's order.
harness::Table emulated_implementations(const emulator::Options& options = {});

}  // namespace tilewise::stages
