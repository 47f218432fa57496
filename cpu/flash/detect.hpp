// Which tile kernels may run here: what this build has, what the processor has, and what the
// operating system saves when it switches threads. Compiled without flags for any processor.
#pragma once

#include "cpu/flash/tile_kernels.hpp"

#include <cstdint>

namespace tilewise::cpu::flash {

/// What the environment's TILEWISE_ISA names (portable, sse2, avx2, avx512, neon), or without it
/// the best there is. Null: the portable backend. Decided once a process.
const TileKernels* best_kernels();

/// TILEWISE_ISA, where it names what cannot run here or is nothing that there is; else null.
const char* refused_isa();

/// Those of TILEWISE_ISA_AVX2 and its like; null where they cannot run, or are not in this build.
const TileKernels* kernels_of(std::int32_t isa);

}  // namespace tilewise::cpu::flash
