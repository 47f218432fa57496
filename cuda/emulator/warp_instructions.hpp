// What the lanes of a warp do together: shuffles, votes, matrices from shared memory into registers
// and their products. PTX ISA: "shfl.sync", "vote.sync", "ldmatrix", "mma.sync".
#pragma once

#include "site.hpp"

#include <cstddef>
#include <cstdint>

namespace tilewise::emulator {

enum class Shuffle : std::uint8_t { index, up, down, exclusive_or };

/// `value`, of 4 or 8 bytes, becomes the other lane's. Of a lane that is not in the mask nobody
/// knows what comes: a finding.
void shuffle(Shuffle how, unsigned mask, void* value, std::size_t bytes, unsigned argument,
             int width, Site site);

/// A bit for each lane of the mask whose predicate holds.
unsigned ballot(unsigned mask, bool predicate, Site site);

/// 8x8 matrices of 16-bit numbers: lane 8 i + r has the address of row r of matrix i, 16 bytes. Of
/// each, lane l receives elements 2 (l % 4) and the next of row l / 4; transposed, rows 2 (l % 4)
/// and the next of column l / 4.
///
///            columns 0 1   2 3   4 5   6 7
///     row 0        l0    l1    l2    l3
///     row 1        l4    l5    l6    l7
///      ...
///     row 7        l28   l29   l30   l31
void load_matrices(std::uint32_t* registers, int matrices, bool transposed, const void* row,
                   Site site);

enum class Operand : std::uint8_t { f16, bf16, tf32 };

/// d = a b + c, 16 x 8 numbers of float; a is 16 x k and b k x 8, k = 16, of tf32 8. Which element
/// a lane has, with g = lane / 4 and t = lane % 4:
///
///     c, d:  (g, 2t) (g, 2t + 1) (g + 8, 2t) (g + 8, 2t + 1)
///     a:     (g, 2t..) (g + 8, 2t..) (g, 2t + 8..) (g + 8, 2t + 8..)     two numbers a register
///     b:     (2t.., g) (2t + 8.., g)
///     tf32:  a: (g, t) (g + 8, t) (g, t + 4) (g + 8, t + 4)    b: (t, g) (t + 4, g)
///
/// Products are exact, and rounded once with c: a tensor core drops low bits of its sums, so that
/// results agree within an error bound and not to the bit, but where all sums are exact.
void multiply_accumulate(float* d, const std::uint32_t* a, const std::uint32_t* b, const float* c,
                         Operand operand, Site site);

[[gnu::const]] float float_of_f16(std::uint16_t bits);
[[gnu::const]] float float_of_bf16(std::uint16_t bits);
[[gnu::const]] std::uint16_t f16_of_float(float value);
[[gnu::const]] std::uint16_t bf16_of_float(float value);
/// The nearest number with 10 bits behind the point, ties away from zero: cvt.rna.tf32.f32.
[[gnu::const]] std::uint32_t tf32_of_float(float value);

}  // namespace tilewise::emulator
