// What the forward kernel is given, one problem, checked by the host, its tensors in the device's
// memory; and its launch.
#pragma once

#include "cuda/device/launch.hpp"

#include <cstdint>

namespace tilewise::cuda::sm80::inline TILEWISE_TARGET {

/// Where number c of row i of head h of sequence b lies: b batch + i row + h head + c.
struct Layout {
  std::int64_t batch, row,
      head;  ///< in numbers; all multiples of 8, so that rows begin at 16 bytes
};

struct ForwardProblem {
  const void *q, *k, *v;  ///< f16 or bf16
  void* o;                ///< the same
  float* lse;             ///< [batch, nheads_q, seqlen_q]; null where it is not wanted
  Layout q_layout, k_layout, v_layout, o_layout;
  int batch, nheads_q, nheads_k;
  int seqlen_q, seqlen_k;
  float softmax_scale;
  float lse_unit;  ///< LSE times this is what is stored: 1, or log2(e) for logarithms to base 2
};

/// Starts forward_kernel.hpp's. Each instantiation is a file: cuda/kernels/CMakeLists.txt has the
/// list.
template <class T, int D, bool Causal>
Status launch_forward(const ForwardProblem& problem, device::StreamHandle stream);

}  // namespace tilewise::cuda::sm80::inline TILEWISE_TARGET
