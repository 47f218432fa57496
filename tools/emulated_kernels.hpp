// The shipped CUDA kernels before the judge, under the emulator: emulated.sm80.
#pragma once

#include "cuda/emulator/emulator.hpp"
#include "oracle/harness/implementation.hpp"

#include <memory>

namespace tilewise::tools {

std::unique_ptr<harness::Implementation> emulated_kernels(const emulator::Options& options = {});

}  // namespace tilewise::tools
