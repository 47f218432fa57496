// What the backward kernels are given, one problem, checked by the host, its tensors in the
// device's memory; their workspace; and their launch.
#pragma once

#include "core/device_backend.hpp"
#include "cuda/device/launch.hpp"
#include "cuda/kernels/sm80/backward_tile.hpp"
#include "cuda/kernels/sm80/forward.hpp"

#include <cstdint>

namespace tilewise::cuda::sm80::inline TILEWISE_TARGET {

struct BackwardProblem {
  const void *q, *k, *v, *o, *dout;  ///< f16 or bf16
  const float* lse;                  ///< [batch, nheads_q, seqlen_q]
  void *dq, *dk, *dv;
  void* workspace;
  Layout q_layout, k_layout, v_layout, o_layout, dout_layout, dq_layout, dk_layout, dv_layout;
  int batch, nheads_q, nheads_k;
  int seqlen_q, seqlen_k;
  float softmax_scale;
  float lse_unit;      ///< LSE times this is a logarithm to base 2
  bool deterministic;  ///< blocks add to dQ in turn
};

/// Starts backward_kernel.hpp's three. Each instantiation is a file: cuda/kernels/CMakeLists.txt
/// has the list.
template <class T, class Tile, bool Causal>
Status launch_backward(const BackwardProblem& problem, device::StreamHandle stream);

}  // namespace tilewise::cuda::sm80::inline TILEWISE_TARGET
