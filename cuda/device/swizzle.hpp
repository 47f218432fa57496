// Swizzle: where in shared memory a tile's chunks of 16 bytes lie, so that a warp reads a row of
// them or a column of them without waiting.
//
// Shared memory has 32 banks of 4 bytes; what lies 128 bytes apart is in one bank, and different
// words of one bank are read one after the other (CUDA C++ Programming Guide, "Shared Memory"). 128
// bytes are eight chunks. ldmatrix reads one chunk each of eight rows: in rows of 128 bytes, one
// below the other, all eight would be in the same banks. So a row's chunks change places, by an
// exclusive or with the row's number. Rows of 128 bytes, and the place of each chunk:
//
//     row 0    0 1 2 3 4 5 6 7          rows of 64 bytes, two of which are 128:
//     row 1    1 0 3 2 5 4 7 6
//     row 2    2 3 0 1 6 7 4 5              rows 0, 1    0 1 2 3  0 1 2 3
//     row 3    3 2 1 0 7 6 5 4              rows 2, 3    1 0 3 2  1 0 3 2
//      ...                                  rows 4, 5    2 3 0 1  2 3 0 1
//     row 7    7 6 5 4 3 2 1 0              rows 6, 7    3 2 1 0  3 2 1 0
//
// In general a row has c chunks, and w is the largest power of two up to 8 that divides c. Eight
// rows without a swizzle begin at 8 / w different places, so chunk ^ (row / (8 / w)) % w makes them
// eight. It stays among the row's chunks since w divides c, and undoes itself: a bijection.
// (Of rows of 128, 64 and 32 bytes this is what TMA's modes of as many bytes do: PTX ISA,
// "Swizzling Modes".)
#pragma once

#include "cuda/device/platform.hpp"

namespace tilewise::device::inline TILEWISE_TARGET {

/// The place of a chunk in its row of `Chunks`.
template <int Chunks>
__host__ __device__ constexpr int swizzled(int row, int chunk) {
  constexpr int width = Chunks % 8 == 0 ? 8 : Chunks % 4 == 0 ? 4 : Chunks % 2 == 0 ? 2 : 1;
  return chunk ^ (row / (8 / width)) % width;
}
/// The chunk at a place: the inverse.
template <int Chunks>
__host__ __device__ constexpr int unswizzled(int row, int place) {
  return swizzled<Chunks>(row, place);
}

/// Rows x Columns of T in shared memory, swizzled.
template <class T, int Rows_, int Columns_>
struct alignas(128) SwizzledTile {
  static constexpr int rows = Rows_, columns = Columns_;
  static constexpr int chunk_size = 16 / static_cast<int>(sizeof(T));  ///< elements of a chunk
  static constexpr int chunks = columns / chunk_size;                  ///< of a row
  static_assert(columns % chunk_size == 0, "a row is whole chunks");

  T element[rows * columns];

  /// The first element of a chunk; its others follow.
  __device__ __forceinline__ T* chunk(int row, int number) {
    return element + row * columns + swizzled<chunks>(row, number) * chunk_size;
  }
  __device__ __forceinline__ T& at(int row, int column) {
    return chunk(row, column / chunk_size)[column % chunk_size];
  }
  /// chunk(row + lane_row, number + lane_number), for rows that eight divides, even numbers, and
  /// lane_number 0 or 1. Then the lane's share, a few instructions, is the same wherever it looks,
  /// and one exclusive or is left for each `number`: an unrolled loop computes it once. (Of 194
  /// such instructions in a forward kernel's loop, 130 were places of chunks.)
  __device__ __forceinline__ T* chunk_of_lane(int row, int number, int lane_row, int lane_number) {
    const int mine = swizzled<chunks>(lane_row, lane_number);
    const int far = number / 8 * 8;  // exclusive or changes the lowest three bits alone
    return element + lane_row * columns + (mine ^ (number - far)) * chunk_size + row * columns +
           far * chunk_size;
  }
};

/// The same without a swizzle: rows one below the other, as one would write them first. What asks a
/// SwizzledTile for chunks can ask this one, and waits where rows are whole multiples of 128 bytes.
template <class T, int Rows_, int Columns_>
struct alignas(16) PlainTile {
  static constexpr int rows = Rows_, columns = Columns_;
  static constexpr int chunk_size = 16 / static_cast<int>(sizeof(T));
  static constexpr int chunks = columns / chunk_size;
  static_assert(columns % chunk_size == 0, "a row is whole chunks");

  T element[rows * columns];

  __device__ __forceinline__ T* chunk(int row, int number) {
    return element + row * columns + number * chunk_size;
  }
  __device__ __forceinline__ T& at(int row, int column) { return element[row * columns + column]; }
  __device__ __forceinline__ T* chunk_of_lane(int row, int number, int lane_row, int lane_number) {
    return chunk(row + lane_row, number + lane_number);
  }
};

}  // namespace tilewise::device::inline TILEWISE_TARGET
