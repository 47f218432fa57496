// For the .cu files that multiply with wgmma: tiles of 16-bit numbers in shared memory as the copy
// engine would leave them, filled by ordinary stores.
#pragma once

#include "cuda/device/ptx/convert.hpp"
#include "cuda/device/ptx/proxy.hpp"
#include "cuda/device/ptx/wgmma.hpp"
#include "cuda/device/shared.hpp"
#include "cuda/device/swizzle.hpp"
#include "on_device.hpp"
#include "wgmma_expected.hpp"

#include <cstdint>

namespace tilewise::tests::inline TILEWISE_TARGET {

/// Slabs of 64 columns, swizzled by 128 bytes, one behind the other; two numbers a word.
template <int Rows, int Columns>
struct alignas(1024) Slabs {
  static constexpr int rows = Rows, columns = Columns, slabs = (Columns + 63) / 64;
  static_assert(Rows % 8 == 0, "whole repeats of the swizzle");
  std::uint32_t word[slabs * Rows * 32];

  __device__ std::uint32_t* at(int row, int column) {
    const int chunk = device::swizzled<8>(row, column % 64 / 8);
    return word + (column / 64 * Rows + row) * 32 + chunk * 4 + column % 8 / 2;
  }
};

/// By all of the block's threads, from rows of floats. Nothing is fenced.
template <class T, int Rows, int Columns>
__device__ void fill(Slabs<Rows, Columns>& tile, const float* from) {
  for (int n = static_cast<int>(threadIdx.x); n < Rows * Columns / 2;
       n += static_cast<int>(blockDim.x)) {
    const int row = n * 2 / Columns, column = n * 2 % Columns;
    const float* const two = from + n * 2;
    *tile.at(row, column) = device::pack<T>(two[0], two[1]);
  }
}

/// From a thread's accumulators to rows of floats.
template <int Count>
__device__ void store_accumulators(const float (&d)[Count], float* out) {
  const int thread = static_cast<int>(threadIdx.x) % 128, lane = thread % 32;
  for (int n = 0; n < Count; ++n) {
    const int row = thread / 32 * 16 + lane / 4 + n / 2 % 2 * 8;
    const int column = n / 4 * 8 + lane % 4 * 2 + n % 2;
    out[row * 2 * Count + column] = d[n];
  }
}

}  // namespace tilewise::tests::inline TILEWISE_TARGET
