// A block's threads copy a tile from global memory to swizzled shared memory, asynchronously: 16
// bytes a copy, neighbouring threads neighbouring chunks of a row, so that a warp's request is of
// whole sectors of 32 bytes. Ends with no commit: the caller's groups are the caller's.
#pragma once

#include "cuda/device/platform.hpp"
#include "cuda/device/ptx/cp_async.hpp"
#include "cuda/device/swizzle.hpp"

#include <cstdint>

namespace tilewise::device::inline TILEWISE_TARGET {

/// From row 0 and column 0 at `from`, rows `row_stride` elements apart, all at multiples of 16
/// bytes. `rows` and `columns` are what is there; the rest of the tile becomes zero. `columns` is
/// whole chunks.
template <int Threads, class T, int Rows, int Columns>
__device__ __forceinline__ void copy_tile_async(SwizzledTile<T, Rows, Columns>& to, const T* from,
                                                std::int64_t row_stride, int rows, int columns,
                                                Site site = Site::current()) {
  using Tile = SwizzledTile<T, Rows, Columns>;
  TILEWISE_UNROLL
  for (int first = 0; first < Rows * Tile::chunks; first += Threads) {
    const int number = first + static_cast<int>(threadIdx.x);
    if (Rows * Tile::chunks % Threads != 0 && number >= Rows * Tile::chunks) break;
    const int row = number / Tile::chunks, chunk = number % Tile::chunks;
    const bool inside = row < rows && chunk * Tile::chunk_size < columns;
    const T* const source = inside ? from + row * row_stride + chunk * Tile::chunk_size : from;
    cp_async<16>(to.chunk(row, chunk), source, inside, site);
  }
}

}  // namespace tilewise::device::inline TILEWISE_TARGET
