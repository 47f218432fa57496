// The shipped CUDA kernels before the judge, under the emulator: emulated.sm80 and emulated.sm90.
#pragma once

#include "cuda/emulator/emulator.hpp"
#include "oracle/harness/implementation.hpp"

#include <cstdint>
#include <memory>

namespace tilewise::tools {

/// Those for sm_80 and later alone, on any device; or, on an H100, Hopper's own.
enum class Kernels : std::uint8_t { sm80, sm90 };

std::unique_ptr<harness::Implementation> emulated_kernels(Kernels kernels,
                                                          const emulator::Options& options = {});
/// Of sm_80.
std::unique_ptr<harness::Implementation> emulated_kernels(const emulator::Options& options = {});

}  // namespace tilewise::tools
