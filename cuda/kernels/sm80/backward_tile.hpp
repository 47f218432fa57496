// The backward kernel's tiles, for the host, which chooses one, and for the kernel.
#pragma once

#include "core/device_backend.hpp"

#include <cstddef>
#include <cstdint>

namespace tilewise::cuda::sm80 {

/// How a block and its warps divide the work on a tile of Br queries and Bc keys of a head.
///
///   S^T, dP^T   Bc x Br: KeyWarps x QueryWarps warps, in slices of so many queries at a time
///   dV, dK      Bc x D:  as many, QueryWarps of them beside each other
///   dQ          Br x D:  32 rows a warp
///
/// Shared memory's wires, 128 bytes a clock, are what there is least of: one ldmatrix of 512 bytes
/// takes four clocks, in which an H100's four tensor cores do about two and a half mma. So a tile
/// is what its loads for each mma are, which ldmatrix_a_warp() and mma_a_warp() count.
template <int D_, int Br_, int Bc_, int KeyWarps, int QueryWarps, int Slice, int Stages,
          int dSTiles, int Blocks>
struct BackwardTile {
  static constexpr int D = D_, Br = Br_, Bc = Bc_;
  static constexpr int key_warps = KeyWarps, query_warps = QueryWarps;
  static constexpr int warps = KeyWarps * QueryWarps, threads = 32 * warps;
  static constexpr int heights = Bc / KeyWarps / 16;        ///< of mma, of a warp's keys
  static constexpr int warp_keys = 16 * heights;            ///< of S^T, dV and dK
  static constexpr int warp_queries = Br / QueryWarps;      ///< of S^T
  static constexpr int warp_columns = D / QueryWarps;       ///< of dV and dK
  static constexpr int slice = Slice;                       ///< of warp_queries, at a time
  static constexpr int dq_columns = Br * D / (32 * warps);  ///< of dQ
  static constexpr int stages = Stages;                     ///< tiles of Q and dO in shared memory
  static constexpr int ds_tiles = dSTiles;  ///< 2: one is written while the other is still read
  static constexpr int blocks = Blocks;     ///< a multiprocessor is to have room for

  static_assert(Bc % (16 * KeyWarps) == 0 && Br % (QueryWarps * Slice) == 0, "whole parts");
  static_assert(Slice % 16 == 0, "a step of dV and dK is 16 queries");
  static_assert(dq_columns % 16 == 0 && D % dq_columns == 0, "dQ is 32 rows a warp");
  static_assert(ds_tiles == 1 || stages == 2, "the next tile has come before dQ of this one");
  /// What stays in registers, dV and dK, and what is there at the same time: S^T and dP^T of a
  /// slice; then dQ. The rest of 255 is operands and addresses.
  static constexpr int sums = 2 * heights * warp_columns / 2;
  static constexpr int meanwhile = 2 * heights * slice / 2;
  static_assert(sums + meanwhile <= 192 && sums + dq_columns <= 192, "registers");

  /// For a tile of queries. An A of K or V serves a slice, a B of Q or dO the warp's heights.
  static constexpr int ldmatrix_a_warp() {
    const int scores = warp_queries / slice * (D / 16) * (heights + slice / 16);
    const int columns = Br / 16 * (warp_columns / 16);  // B; A is in registers, but others' is not
    const int others = (Br - warp_queries) / 16 * heights;
    return 2 * scores + 2 * (columns + others) + Bc / 16 * (2 + dq_columns / 16);
  }
  static constexpr int mma_a_warp() { return 5 * (Br / 16) * (Bc / 16) * (D / 8) / warps; }

  static constexpr std::size_t shared_bytes =  ///< of K, V, Q, dO, P, dS, and LSE and D
      std::size_t{2} *
          (2 * Bc * D + 2 * stages * Br * D + (ds_tiles + (QueryWarps > 1 ? 1 : 0)) * Bc * Br) +
      std::size_t{8} * stages * Br;
};

/// The workspace begins with this, in a line of 128 bytes of its own ...
struct BackwardHead {
  WorkspaceHead head;
  std::uint32_t next;  ///< the number of the next block that asks for work
};
constexpr std::size_t backward_head_bytes = 128;

/// ... and goes on with what is kept of each tile of queries: whole lines, linear in seqlen_q.
template <class Tile>
struct BackwardQueries {
  float rows[2 * Tile::Br];        ///< LSE to base 2, and behind all of them D
  float dQ[Tile::Br * Tile::D];    ///< without scale, in the order in which warps have it
  std::uint32_t done, unused[31];  ///< how many blocks have added to dQ, if deterministic
};

/// 64: two blocks a multiprocessor, each a warp to a scheduler: where one waits, the other works.
using Backward64 = BackwardTile<64, 64, 128, 4, 1, 32, 2, 1, 2>;
/// 128: dV and dK of 128 keys are half of all registers, so that there is one block, and its warps
/// must wait for each other as rarely as they can: dS twice.
using Backward128 = BackwardTile<128, 64, 128, 4, 2, 32, 2, 2, 1>;
/// 128 where shared memory is not enough for that: on an A100 two blocks, on an RTX 3090 one.
using Backward128Small = BackwardTile<128, 64, 64, 2, 2, 32, 1, 1, 2>;
/// 256: dV and dK of 64 keys are half of all registers. An RTX 3090 has not the shared memory for K
/// and V of so many and a tile of Q and dO.
using Backward256 = BackwardTile<256, 64, 64, 4, 2, 32, 2, 2, 1>;
/// The same on an A100: one tile of Q and dO, and dS once.
using Backward256Small = BackwardTile<256, 64, 64, 4, 2, 32, 1, 1, 1>;

static_assert(5 * Backward64::ldmatrix_a_warp() == 2 * Backward64::mma_a_warp());
static_assert(Backward128::ldmatrix_a_warp() == 136 && Backward128::mma_a_warp() == 320);
static_assert(5 * Backward128Small::ldmatrix_a_warp() == 2 * Backward128Small::mma_a_warp());

static_assert(2 * (Backward64::shared_bytes + 1024) <= 164 * 1024, "two blocks on an A100");
static_assert(Backward64::shared_bytes <= 99 * 1024, "one on an RTX 3090");
static_assert(Backward128::shared_bytes <= 227 * 1024, "one on an H100");
static_assert(2 * (Backward128Small::shared_bytes + 1024) <= 164 * 1024, "two on an A100");
static_assert(Backward128Small::shared_bytes <= 99 * 1024, "one on an RTX 3090");
static_assert(Backward256::shared_bytes <= 227 * 1024, "one on an H100");
static_assert(Backward256Small::shared_bytes <= 163 * 1024, "one on an A100");

}  // namespace tilewise::cuda::sm80
