// What Hopper's forward kernel is given, one problem, checked by the host, its tensors in the
// device's memory; its tiles; and its launch.
#pragma once

#include "cuda/device/launch.hpp"
#include "cuda/kernels/sm80/forward.hpp"

#include <cstdint>

namespace tilewise::cuda::sm90::inline TILEWISE_TARGET {

using sm80::Layout;

struct ForwardProblem {
  const void *q, *k, *v;  ///< f16 or bf16
  void* o;                ///< the same
  float* lse;             ///< [batch, nheads_q, seqlen_q]; null where it is not wanted
  Layout q_layout, k_layout, v_layout, o_layout;
  int batch, nheads_q, nheads_k;
  int seqlen_q, seqlen_k;
  float softmax_scale;
  float lse_unit;      ///< LSE times this is what is stored: 1, or log2(e) for logarithms to base 2
  const float* sinks;  ///< a score for each query head, `sink_stride` apart; null: none
  std::int64_t sink_stride;
  // Of Looks::band:
  int left, right;  ///< the window, from the bottom right; at most 2^30
  float softcap;    ///< 0: none
};

/// Which keys rows look at. Full and causal know no softcap.
enum class Looks : std::uint8_t { full, causal, band };

/// How the work is spread over a grid of as many blocks as there are multiprocessors.
struct Spread {
  int multiprocessors;
  /// In the workspace: how many pieces of work have been handed out beyond the first of each block,
  /// 0 at the beginning. Null: block b computes b, b + blocks, and so on.
  unsigned* next;
};

/// Consumers: warpgroups of 64 rows each. Registers of a thread: S takes Bc / 2, P Bc / 4 and O
/// head_dim_v / 2; with two consumers there are 232, with three 160. O goes out by the copy engine
/// where there is room for it in shared memory.
///
///     head_dim     64          64, short rows   128         192, values 128   256
///     consumers    3           2                2           2                 2
///     Bc           128         128              128         128               80
///     registers    64+32+32    64+32+32         64+32+64    64+32+64          40+20+128
///     shared       168 KiB     176 KiB          192 KiB     208 KiB           224 KiB
struct Forward64 {
  static constexpr int head_dim = 64, head_dim_v = 64, consumers = 3, Bc = 128, stages = 3;
  static constexpr int q_stages = 2;
  static constexpr bool stages_o = true;
};
struct Forward64Short {
  static constexpr int head_dim = 64, head_dim_v = 64, consumers = 2, Bc = 128, stages = 4;
  static constexpr int q_stages = 2;
  static constexpr bool stages_o = true;
};
struct Forward128 {
  static constexpr int head_dim = 128, head_dim_v = 128, consumers = 2, Bc = 128, stages = 2;
  static constexpr int q_stages = 1;
  static constexpr bool stages_o = true;
};
/// Queries and keys wider than values: DeepSeek's (DeepSeek-V2, arXiv 2405.04434, section 2.1).
struct Forward192 {
  static constexpr int head_dim = 192, head_dim_v = 128, consumers = 2, Bc = 128, stages = 2;
  static constexpr int q_stages = 1;
  static constexpr bool stages_o = false;
};
struct Forward256 {
  static constexpr int head_dim = 256, head_dim_v = 256, consumers = 2, Bc = 80, stages = 2;
  static constexpr int q_stages = 1;
  static constexpr bool stages_o = false;
};

/// Starts forward_kernel.hpp's. Each instantiation is a file: cuda/kernels/CMakeLists.txt has the
/// list.
template <class T, class Tile, Looks looks>
Status launch_forward(const ForwardProblem& problem, const Spread& spread,
                      device::StreamHandle stream);

}  // namespace tilewise::cuda::sm90::inline TILEWISE_TARGET
