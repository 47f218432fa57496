// From a CUDA step of the course to an Implementation that the harness can judge: under the
// emulator, on any machine.
#pragma once

#include "cuda/emulator/emulator.hpp"
#include "stages/cuda_implementation.hpp"

#include <memory>
#include <vector>

namespace tilewise::stages {

/// What the emulator had to say of the last run. Not for several threads' runs at once.
class Emulated {
 public:
  virtual ~Emulated() = default;
  virtual const emulator::Report& report() const = 0;
};

/// Called "emulated." and the step's name. A kernel that the emulator finds fault with has failed,
/// whatever it computed.
class EmulatedImplementation : public CudaImplementation, public Emulated {
 public:
  using CudaImplementation::CudaImplementation;
};

std::unique_ptr<EmulatedImplementation> emulated_implementation_of(
    const CudaStep& step, const emulator::Options& options = {});

/// Every CUDA step of this build, in the course's order.
harness::Table emulated_implementations(const emulator::Options& options = {});

}  // namespace tilewise::stages
