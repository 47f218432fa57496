// How wgmma finds a matrix in shared memory: 64 bits that say where it begins, how it is swizzled,
// and how far apart its parts are. PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions:
// Matrix Descriptor Format".
//
//     bits  0-13   address / 16              bits 32-45   stride / 16
//     bits 16-29   leading distance / 16     bits 62-63   swizzle: 1 128 bytes, 2 64, 3 32, 0 none
//
// The parts are groups of eight rows of one swizzle's width, 128 bytes here, which is why a tile
// begins at a multiple of 1024 bytes. What a row is depends on the operand:
//
//   rows of k (Q and K, for Q K^T)             rows of n (V, for P V)
//     a row is one m or n, 64 numbers of k       a row is one k, 64 numbers of n
//     stride: from eight rows to the next        stride: from eight rows to the next
//     leading distance: not used, since one      leading distance: from 64 columns to the next
//     instruction takes 16 numbers of k          ("slab"), for instructions wider than 64
//     the next 16 of k: 32 bytes further         the next 16 of k: 16 rows, 2048 bytes further
//     the 65th of k: in the next slab
#pragma once

#include "cuda/device/platform.hpp"
#include "cuda/device/ptx/shared_address.hpp"

#include <cstdint>

namespace tilewise::device::inline TILEWISE_TARGET {

struct MatrixDescriptor {
  std::uint64_t bits;

  /// The same matrix, so many bytes further on, a multiple of 16. (The address has room for all of
  /// shared memory: nothing is carried out of the lower half.)
  __device__ __forceinline__ MatrixDescriptor advanced(int bytes) const {
    const auto low = static_cast<std::uint32_t>(bits) + static_cast<std::uint32_t>(bytes >> 4);
    return {(bits & 0xffffffff00000000u) | low};
  }
};

/// The fields, for who wants to read one.
struct MatrixFields {
  std::uint32_t address, leading_bytes, stride_bytes;
  int swizzle;

  friend __host__ __device__ constexpr bool operator==(const MatrixFields& a,
                                                       const MatrixFields& b) {
    return a.address == b.address && a.leading_bytes == b.leading_bytes &&
           a.stride_bytes == b.stride_bytes && a.swizzle == b.swizzle;
  }
};

__host__ __device__ constexpr MatrixDescriptor encoded(const MatrixFields& fields) {
  return {std::uint64_t{(fields.address & 0x3ffff) >> 4} |
          std::uint64_t{(fields.leading_bytes & 0x3ffff) >> 4} << 16 |
          std::uint64_t{(fields.stride_bytes & 0x3ffff) >> 4} << 32 |
          std::uint64_t(fields.swizzle) << 62};
}
__host__ __device__ constexpr MatrixFields decoded(MatrixDescriptor it) {
  return {static_cast<std::uint32_t>(it.bits & 0x3fff) << 4,
          static_cast<std::uint32_t>(it.bits >> 16 & 0x3fff) << 4,
          static_cast<std::uint32_t>(it.bits >> 32 & 0x3fff) << 4, static_cast<int>(it.bits >> 62)};
}

/// Of a tile in slabs of 64 columns of 16-bit numbers, swizzled by 128 bytes, `rows` high, each
/// slab behind the one before; from its first row and column.
__device__ __forceinline__ MatrixDescriptor describe_matrix(const void* tile, int rows) {
  return encoded({shared_address(tile), static_cast<std::uint32_t>(rows) * 128, 1024, 1});
}

}  // namespace tilewise::device::inline TILEWISE_TARGET
