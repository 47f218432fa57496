// A tile in shared memory as the copy engine writes it and wgmma reads it: slabs of 64 columns of
// 16 bits, 128 bytes a row, one slab behind the other, each swizzled by 128 bytes.
//
//     SlabTile<T, 128, 128>      slab 0: columns 0 to 63      slab 1: columns 64 to 127
//
//         row 0      |  128 bytes, chunks 0 1 2 3 4 5 6 7  |   the same, 128 x 128 bytes further on
//         row 1      |              chunks 1 0 3 2 5 4 7 6  |
//          ...       |                                      |
//
// One box of a tensor map has one slab's columns; boxes of fewer rows lie below each other.
#pragma once

#include "cuda/device/fragment.hpp"
#include "cuda/device/platform.hpp"
#include "cuda/device/ptx/mbarrier.hpp"
#include "cuda/device/ptx/tma.hpp"
#include "cuda/device/ptx/wgmma.hpp"
#include "cuda/device/swizzle.hpp"
#include "cuda/device/warpgroup.hpp"

#include <cstdint>

namespace tilewise::device::inline TILEWISE_TARGET {

template <class T, int Rows_, int Columns_>
struct alignas(1024) SlabTile {
  static constexpr int rows = Rows_, columns = Columns_, slabs = Columns_ / 64;
  static constexpr int slab_bytes = rows * 128, bytes = slabs * slab_bytes;
  static_assert(sizeof(T) == 2 && columns % 64 == 0 && rows % 8 == 0, "whole slabs");

  T element[rows * columns];

  /// The first element of a row in a slab.
  __device__ __forceinline__ T* row(int slab, int number) {
    return element + (slab * rows + number) * 64;
  }
  /// The first element of a chunk of 16 bytes; `chunk` counts from the slab's first column.
  __device__ __forceinline__ T* chunk(int slab, int number, int chunk) {
    return row(slab, number) + swizzled<8>(number, chunk) * 8;
  }
  /// For wgmma, from a row on that eight divides.
  __device__ __forceinline__ MatrixDescriptor describe(int first_row = 0) {
    return describe_matrix(row(0, first_row), rows);
  }
};

/// Where a box begins: rows of a head of a sequence.
struct Box {
  int row, head, batch;
};

/// As many rows as the map's box has, all slabs, from row `to_row` of the tile on. Announces no
/// bytes: the caller has.
template <class T, int Rows, int Columns>
__device__ __forceinline__ void load_box(SlabTile<T, Rows, Columns>& to, int to_row,
                                         const TensorMap& map, const Box& from, Mbarrier& full,
                                         Site site = Site::current()) {
  TILEWISE_UNROLL
  for (int slab = 0; slab < Columns / 64; ++slab)
    tma_load(to.row(slab, to_row), map, {64 * slab, from.row, from.head, from.batch}, full, site);
}

/// The other way; the caller has fenced, and commits.
template <class T, int Rows, int Columns>
__device__ __forceinline__ void store_box(SlabTile<T, Rows, Columns>& from, int from_row,
                                          const TensorMap& map, const Box& to,
                                          Site site = Site::current()) {
  TILEWISE_UNROLL
  for (int slab = 0; slab < Columns / 64; ++slab)
    tma_store(map, {64 * slab, to.row, to.head, to.batch}, from.row(slab, from_row), site);
}

/// Issues S = Q K^T: a warpgroup's 64 rows of Q, from a tile of `QRows` rows; all rows of K.
template <class T, int QRows, int D, int Bc>
__device__ __forceinline__ void issue_scores(WarpTile<Bc>& s, MatrixDescriptor q,
                                             MatrixDescriptor k, Site site = Site::current()) {
  TILEWISE_UNROLL
  for (int n = 0; n < D / 16; ++n) {
    const int slab = n / 4, within = n % 4 * 32;
    wgmma_shared<T>(registers_of(s), q.advanced(slab * QRows * 128 + within),
                    k.advanced(slab * Bc * 128 + within), n > 0, site);
  }
}

/// Issues O += P V.
template <class T, int Bc, int Dv>
__device__ __forceinline__ void issue_values(WarpTile<Dv>& o, const OperandA (&p)[Bc / 16],
                                             MatrixDescriptor v, Site site = Site::current()) {
  TILEWISE_UNROLL
  for (int n = 0; n < Bc / 16; ++n)
    wgmma_registers<T, Major::n>(registers_of(o), p[n].value, v.advanced(n * 2048), true, site);
}

}  // namespace tilewise::device::inline TILEWISE_TARGET
