// cpu.sse2, cpu.avx2, cpu.avx512, cpu.neon: the forward pass with an instruction set's tile
// kernels.
//
// What makes attention mean something, which keys a row sees, what is added to scores, where rows
// lie and what an empty one puts out, is the portable backend's: it is called here, tile by tile.
#pragma once

#include "cpu/call.hpp"
#include "cpu/flash/tile_kernels.hpp"

#include <cstddef>

namespace tilewise::cpu::flash {

/// Why this call is not for these kernels; null if it is.
const char* refuses(const Call& call);

std::size_t forward_workspace(const TileKernels& kernels, const Call& call, int max_workers);
/// The same, and room for what splits a long sequence with few queries among workers.
std::size_t forward_fast_workspace(const TileKernels& kernels, const Call& call, int max_workers);
void forward(const TileKernels& kernels, const Call& call, const Workers& workers, void* workspace,
             std::size_t bytes);

}  // namespace tilewise::cpu::flash
