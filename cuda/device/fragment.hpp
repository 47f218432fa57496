// Fragments: the operands and results of mma, spread over the registers of a warp's lanes. PTX ISA,
// "Matrix Fragments for mma.m16n8k16" and "... mma.m16n8k8"; "ldmatrix".
//
// Lane l is number t = l % 4 of quad g = l / 4. D and C, 16 rows x 8 columns of float, four a lane:
//
//     column    0 1   2 3   4 5   6 7
//     row  0     l0    l1    l2    l3     registers 0, 1: row g,     columns 2 t, 2 t + 1
//     row  1     l4    l5    l6    l7
//      ...
//     row  7    l28   l29   l30   l31
//     row  8     l0    l1    l2    l3     registers 2, 3: row g + 8, columns 2 t, 2 t + 1
//      ...
//     row 15    l28   l29   l30   l31
//
// A quad has whole rows, and a lane two of them: row g and row g + 8, here "row 0 and 1 of a lane".
//
// A, 16 x 16 numbers of 16 bits, two a register:    B, 16 x 8, two a register:
//
//               columns 0-7     columns 8-15                       column g
//     rows 0-7   register 0      register 2            rows 0-7    register 0: rows 2 t, 2 t + 1
//     rows 8-15  register 1      register 3            rows 8-15   register 1: rows 2 t + 8, 9
//
// Each 8 x 8 part of A lies over the lanes as D's rows 0 to 7 above; each of B as its transpose. So
// two neighbouring D are, number for number, an A: as_operand_a(). That is how P goes from S = Q
// K^T into P V without passing through shared memory.
//
// tf32, A 16 x 8 and B 8 x 8, one number a register: A (g, t) (g + 8, t) (g, t + 4) (g + 8, t + 4),
// B (t, g) (t + 4, g).
#pragma once

#include "cuda/device/platform.hpp"
#include "cuda/device/ptx/convert.hpp"
#include "cuda/device/ptx/mma.hpp"

#include <cstdint>
#include <type_traits>

namespace tilewise::device::inline TILEWISE_TARGET {

// ------------------------------------------------------------------------------------ who has what

struct Position {
  int row, column;
};

/// Of register 0 to 3 of D or C.
__host__ __device__ constexpr Position accumulator_at(int lane, int number) {
  return {lane / 4 + 8 * (number / 2), 2 * (lane % 4) + number % 2};
}
/// Of the lower (0) or upper (1) half of register 0 to 3 of A, 16 x 16.
__host__ __device__ constexpr Position operand_a_at(int lane, int number, int half) {
  return {lane / 4 + 8 * (number % 2), 2 * (lane % 4) + half + 8 * (number / 2)};
}
/// Of a half of register 0 or 1 of B, 16 x 8.
__host__ __device__ constexpr Position operand_b_at(int lane, int number, int half) {
  return {2 * (lane % 4) + half + 8 * number, lane / 4};
}
/// Of register 0 to 3 of A, 16 x 8, and 0 or 1 of B, 8 x 8, of tf32.
__host__ __device__ constexpr Position tf32_operand_a_at(int lane, int number) {
  return {lane / 4 + 8 * (number % 2), lane % 4 + 4 * (number / 2)};
}
__host__ __device__ constexpr Position tf32_operand_b_at(int lane, int number) {
  return {lane % 4 + 4 * number, lane / 4};
}
/// Of a half of a register that ldmatrix filled, in its 8 x 8 matrix.
__host__ __device__ constexpr Position matrix_at(int lane, int half) {
  return {lane / 4, 2 * (lane % 4) + half};
}
__host__ __device__ constexpr Position transposed_matrix_at(int lane, int half) {
  return {2 * (lane % 4) + half, lane / 4};
}

// ----------------------------------------------------------------------------------- the registers

struct Accumulator {
  float value[4];

  /// Number 0 or 1 of the lane's row 0 or 1.
  __device__ __forceinline__ float& of_row(int row, int number) { return value[2 * row + number]; }
  __device__ __forceinline__ float of_row(int row, int number) const {
    return value[2 * row + number];
  }
};
struct OperandA {
  std::uint32_t value[4];
};
struct OperandB {
  std::uint32_t value[2];
};

/// A warp's 16 rows of a wider result: accumulators side by side, 8 columns each.
template <int Columns>
struct WarpTile {
  static_assert(Columns % 8 == 0, "of whole accumulators");
  static constexpr int pieces = Columns / 8;
  Accumulator piece[pieces];

  __device__ __forceinline__ void clear() {
    TILEWISE_UNROLL
    for (int n = 0; n < pieces; ++n)
      for (float& value : piece[n].value) value = 0;
  }
};

/// d += a b; T is f16, bf16, or float for tf32.
template <class T>
__device__ __forceinline__ void multiply(Accumulator& d, const OperandA& a, const OperandB& b,
                                         Site site = Site::current()) {
  if constexpr (std::is_same_v<T, float>)
    mma_m16n8k8_tf32(d.value, a.value, b.value, site);
  else
    mma_m16n8k16<T>(d.value, a.value, b.value, site);
}

/// Columns 0 to 7 and 8 to 15 of A from two accumulators, rounded to T of 16 bits.
template <class T>
__device__ __forceinline__ OperandA as_operand_a(const Accumulator& left,
                                                 const Accumulator& right) {
  return {{pack<T>(left.value[0], left.value[1]), pack<T>(left.value[2], left.value[3]),
           pack<T>(right.value[0], right.value[1]), pack<T>(right.value[2], right.value[3])}};
}

/// -A, of 16-bit numbers: a negative softmax scale is the positive one of -Q.
__device__ __forceinline__ void negate(OperandA& a) {
  for (std::uint32_t& both : a.value) both ^= 0x80008000u;
}

}  // namespace tilewise::device::inline TILEWISE_TARGET
