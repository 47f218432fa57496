// ldmatrix: a warp loads one, two or four 8x8 matrices of 16-bit numbers from shared memory, spread
// over its lanes as mma wants its operands. PTX ISA, "ldmatrix"; sm_75 and later.
//
// Lane 8 i + r brings the address of row r of matrix i, 16 bytes at a multiple of 16. Eight rows
// are read at once: without bank conflicts if they lie in different 16 bytes of 128 (swizzle.hpp).
// What a lane receives is matrix_at() and transposed_matrix_at() of fragment.hpp.
#pragma once

#include "cuda/device/platform.hpp"
#include "cuda/device/ptx/shared_address.hpp"

#include <cstdint>

namespace tilewise::device::inline TILEWISE_TARGET {

/// A register for each of 1, 2 or 4 matrices. Of fewer than four, the addresses of lanes 8 Matrices
/// and above are not used.
template <int Matrices>
__device__ __forceinline__ void ldmatrix(std::uint32_t (&to)[Matrices], const void* row,
                                         [[maybe_unused]] Site site = Site::current()) {
  static_assert(Matrices == 1 || Matrices == 2 || Matrices == 4, "what the instruction has");
#if TILEWISE_EMULATED
  emulator::load_matrices(to, Matrices, false, row, site);
#else
  const std::uint32_t address = shared_address(row);
  if constexpr (Matrices == 1)
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(to[0])
                 : "r"(address)
                 : "memory");
  else if constexpr (Matrices == 2)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
#endif
}

/// The same, and each matrix comes transposed.
template <int Matrices>
__device__ __forceinline__ void ldmatrix_transposed(std::uint32_t (&to)[Matrices], const void* row,
                                                    [[maybe_unused]] Site site = Site::current()) {
  static_assert(Matrices == 1 || Matrices == 2 || Matrices == 4, "what the instruction has");
#if TILEWISE_EMULATED
  emulator::load_matrices(to, Matrices, true, row, site);
#else
  const std::uint32_t address = shared_address(row);
  if constexpr (Matrices == 1)
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(to[0])
                 : "r"(address)
                 : "memory");
  else if constexpr (Matrices == 2)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
#endif
}

}  // namespace tilewise::device::inline TILEWISE_TARGET
