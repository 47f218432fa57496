// What the tensor-core steps share besides stages/cuda_heads.hpp: for which 16-bit type and which
// tile width a kernel is compiled.
#pragma once

#include "cuda/device/platform.hpp"
#include "stages/cuda_heads.hpp"

namespace tilewise::stages::inline TILEWISE_TARGET {

/// What they serve, but for the backward pass.
inline constexpr CudaFeatures halves = {.causal = true,
                                        .grouped_heads = true,
                                        .f16 = true,
                                        .bf16 = true,
                                        .head_dim_multiple = 8,
                                        .compute_capability = 80};

/// `run` gets a number of the tensors' type and the tile width as a type: 64 or 128, of which the
/// columns past head_dim are zeros.
template <class Run>
Status with_halves(const CudaArgs& args, Run run) {
  const auto with_width = [&](auto number) {
    if (args.head_dim <= 64) return run(number, std::integral_constant<int, 64>{});
    return run(number, std::integral_constant<int, 128>{});
  };
  return args.dtype == DType::f16 ? with_width(device::f16{}) : with_width(device::bf16{});
}

}  // namespace tilewise::stages::inline TILEWISE_TARGET
