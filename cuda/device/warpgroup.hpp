// A warpgroup: four neighbouring warps, which issue wgmma together. Each warp has 16 of its 64
// rows, spread over the lanes as mma's results are (fragment.hpp), so that softmax, masks and
// epilogues are those of a warp.
#pragma once

#include "cuda/device/fragment.hpp"
#include "cuda/device/platform.hpp"
#include "cuda/device/ptx/wgmma.hpp"

#include <cstdint>

namespace tilewise::device::inline TILEWISE_TARGET {

inline constexpr int warpgroup_threads = 128;

/// A number that is the same in all lanes, and from here on the compiler knows: it comes from lane
/// 0. Then what depends on it, loops and addresses, may live in registers that a warp has once
/// ("uniform"); wgmma takes its descriptors from there, and others have to be moved before each,
/// which cost one kernel 5 to 10 %.
__device__ __forceinline__ int uniform(int number) {
  return __shfl_sync(~0u, number, 0);
}
__device__ __forceinline__ MatrixDescriptor uniform(MatrixDescriptor matrix) {
  const auto low = static_cast<std::uint32_t>(uniform(static_cast<int>(matrix.bits)));
  return {(matrix.bits & 0xffffffff00000000u) | low};
}

/// The number of the thread's warpgroup.
__device__ __forceinline__ int warpgroup_index() {
  return uniform(static_cast<int>(threadIdx.x / warpgroup_threads));
}

/// A warp's 16 rows of a product's result, as wgmma names them.
template <int Columns>
__device__ __forceinline__ float (&registers_of(WarpTile<Columns>& tile))[Columns / 2] {
  return reinterpret_cast<float(&)[Columns / 2]>(tile.piece);
}

/// wgmma_arrived() of a result, or of operands.
template <int Columns>
__device__ __forceinline__ void arrived(WarpTile<Columns>& tile) {
  wgmma_arrived(registers_of(tile));
}
template <int Count>
__device__ __forceinline__ void arrived(OperandA (&operands)[Count]) {
  TILEWISE_UNROLL
  for (OperandA& operand : operands) wgmma_arrived(operand.value);
}

/// P as the operand A of P V: two neighbouring pieces of S's registers are one of 16 columns.
template <class T, int Columns>
__device__ __forceinline__ void as_operands(OperandA (&p)[Columns / 16],
                                            const WarpTile<Columns>& s) {
  TILEWISE_UNROLL
  for (int n = 0; n < Columns / 16; ++n) p[n] = as_operand_a<T>(s.piece[2 * n], s.piece[2 * n + 1]);
}

}  // namespace tilewise::device::inline TILEWISE_TARGET
