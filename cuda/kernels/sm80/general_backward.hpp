// What the general backward kernels are given beside a general Problem, and their launch. Each
// instantiation is a file: cuda/kernels/CMakeLists.txt has the list.
#pragma once

#include "cuda/device/launch.hpp"
#include "cuda/kernels/sm80/general_problem.hpp"

#include <cstdint>

namespace tilewise::cuda::sm80::inline TILEWISE_TARGET {
namespace general {

struct BackwardProblem {
  Problem problem;
  /// D = rowsum(dO o O): [nheads_q, rows of q in memory], of the workspace.
  float* row_dots = nullptr;
  std::int64_t places = 0;  ///< rows of q in memory, of all sequences
  /// dbias's sizes; 1: summed over that dimension.
  int bias_batch = 0, bias_heads = 0, bias_rows = 0, bias_keys = 0;
};

}  // namespace general

/// Starts the kernels that compute those of dq, dk, dv, dbias and dsinks that are there. Neither
/// head_dim nor head_dim_v is more than D.
template <class T, int D>
Status launch_general_backward(const general::BackwardProblem& backward,
                               device::StreamHandle stream);

}  // namespace tilewise::cuda::sm80::inline TILEWISE_TARGET
