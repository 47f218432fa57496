// wgmma's operands: where in shared memory the numbers of a matrix lie, as a descriptor says, and
// the product itself. Nothing of the emulator's machinery: the tests hold it against tiles that
// they laid out themselves.
//
// A matrix is rows of 16-byte chunks, eight numbers of 16 bits each. Rows of k: a row is an m or an
// n, with the two chunks of an instruction's 16 numbers of k. Rows of n: a row is one of 16 k, with
// a chunk for every eight n. PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions: Shared
// Memory Matrix Layout", "Strides", "Swizzling Modes". With w = 8, 4, 2 chunks of a swizzle of 128,
// 64, 32 bytes, and none, chunk c of row r begins, in bytes after the descriptor's address, at
//
//                     rows of k                                rows of n
//     swizzled        (r % 8) 16 w + (r / 8) stride + 16 c     (r % 8) 16 w + (r / 8) stride
//                                                              + (c % w) 16 + (c / w) leading
//     none            (r % 8) 16 + (r / 8) stride              (r % 8) 16 + (r / 8) leading
//                     + c leading                              + c stride
//
// and then bits 4 to 6 of the address (4 and 5; 4) change by an exclusive or with bits 7 to 9 (7
// and 8; 7): of the address, not of r, so that a descriptor may be moved along a row.
#pragma once

#include "warp_instructions.hpp"

#include <cstdint>

namespace tilewise::emulator {

/// A matrix descriptor's fields. (The bits are in cuda/device/ptx/matrix_descriptor.hpp, which is
/// written for kernels; this is read by the one who is to judge it.)
struct MatrixPlace {
  std::uint32_t address, leading, stride;  ///< in bytes; the address as shared memory's count
  int base_offset;
  int chunks;  ///< of a swizzle's row: 8, 4, 2, or 1 for none
};
MatrixPlace place_of(std::uint64_t descriptor);

/// Whether its rows begin where the swizzle's pattern does. (Where they do not, the hardware has
/// the field `base_offset`, which nobody here uses.)
bool is_aligned(const MatrixPlace& place);

std::uint32_t chunk_address(const MatrixPlace& place, bool rows_of_n, int row, int chunk);

/// d, 64 x columns, becomes a b, plus d if `keep`: a 64 x 16, b 16 x columns, all with dense rows.
/// Products are exact, and each sum is rounded once.
void multiply(float* d, const double* a, const double* b, int columns, bool keep);

}  // namespace tilewise::emulator
