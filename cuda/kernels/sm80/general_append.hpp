// What runs before a general kernel.
#pragma once

#include "cuda/device/launch.hpp"
#include "cuda/kernels/sm80/general_problem.hpp"

namespace tilewise::cuda::sm80::inline TILEWISE_TARGET {
namespace general {

/// Sets problem.error to 0, and writes new keys and values into their cache; each if there is one.
Status launch_before(const Problem& problem, device::StreamHandle stream);

}  // namespace general
}  // namespace tilewise::cuda::sm80::inline TILEWISE_TARGET
