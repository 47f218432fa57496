// What Hopper's forward kernel is given, one problem, checked by the host, its tensors in the
// device's memory; its tiles; and its launch.
#pragma once

#include "cuda/device/launch.hpp"
#include "cuda/kernels/sm80/forward.hpp"

#include <cstdint>

namespace tilewise::cuda::sm90::inline TILEWISE_TARGET {

using sm80::ForwardProblem;
using sm80::Layout;

/// How the work is spread over a grid of as many blocks as there are multiprocessors.
struct Spread {
  int multiprocessors;
  /// In the workspace: how many pieces of work have been handed out beyond the first of each block,
  /// 0 at the beginning. Null: block b computes b, b + blocks, and so on.
  unsigned* next;
};

/// Consumers: warpgroups of 64 rows each. Registers of a thread: S takes Bc / 2, P Bc / 4 and O
/// head_dim / 2; with two consumers there are 232, with three 160.
///
///     head_dim     64          64, short rows   128         256
///     consumers    3           2                2           2
///     Bc           128         128              128         80
///     registers    64+32+32    64+32+32         64+32+64    40+20+128
///     shared       168 KiB     176 KiB          192 KiB     224 KiB
struct Forward64 {
  static constexpr int head_dim = 64, consumers = 3, Bc = 128, stages = 3, q_stages = 2;
};
struct Forward64Short {
  static constexpr int head_dim = 64, consumers = 2, Bc = 128, stages = 4, q_stages = 2;
};
struct Forward128 {
  static constexpr int head_dim = 128, consumers = 2, Bc = 128, stages = 2, q_stages = 1;
};
struct Forward256 {
  static constexpr int head_dim = 256, consumers = 2, Bc = 80, stages = 2, q_stages = 1;
};

/// Starts forward_kernel.hpp's. Each instantiation is a file: cuda/kernels/CMakeLists.txt has the
/// list.
template <class T, class Tile, bool Causal>
Status launch_forward(const ForwardProblem& problem, const Spread& spread,
                      device::StreamHandle stream);

}  // namespace tilewise::cuda::sm90::inline TILEWISE_TARGET
