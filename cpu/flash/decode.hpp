// Forward for few queries: one key head's whole group of query heads at each read of K and V.
#pragma once

#include "cpu/call.hpp"
#include "cpu/flash/tile_kernels.hpp"

#include <cstddef>
#include <cstdint>

namespace tilewise::cpu::flash {

/// Whether sequence b has so few queries that a block of lanes would stay almost empty. It asks for
/// nothing else: whoever computes a row decides its bits.
bool is_short(const TileKernels& kernels, std::int64_t seqlen_q);

/// What a worker needs.
std::size_t decode_workspace(const Call& call);

/// What more the call can use, to split sequences among workers: grows with their length.
std::size_t decode_extra(const TileKernels& kernels, const Call& call);

/// All sequences of the call that are short, and no other. `extra` is decode_extra()'s memory, or
/// null.
void decode(const TileKernels& kernels, const Call& call, const Workers& workers, char* memory,
            std::size_t bytes_a_worker, char* extra);

}  // namespace tilewise::cpu::flash
