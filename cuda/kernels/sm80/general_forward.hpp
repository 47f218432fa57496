// The general forward kernel's launch. Each instantiation is a file: cuda/kernels/CMakeLists.txt
// has the list.
#pragma once

#include "cuda/device/launch.hpp"
#include "cuda/kernels/sm80/general_problem.hpp"

namespace tilewise::cuda::sm80::inline TILEWISE_TARGET {

/// Starts general_forward_kernel.hpp's. Neither head_dim nor head_dim_v is more than D.
template <class T, int D>
Status launch_general_forward(const general::Problem& problem, device::StreamHandle stream);

}  // namespace tilewise::cuda::sm80::inline TILEWISE_TARGET
