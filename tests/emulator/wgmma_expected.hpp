// Products of small integers, whose sums are exact in float.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace tilewise::tests {

/// From -2 to 2.
std::vector<float> small_integers(std::size_t count, unsigned seed);

/// a, rows x depth, times b, whose rows are columns of the result (n x depth) or of k (depth x n).
std::vector<float> product_of(const float* a, const float* b, int rows, int columns, int depth,
                              bool b_has_rows_of_n);

std::vector<std::uint16_t> as_f16(const std::vector<float>& values);
std::vector<float> from_f16(const std::vector<std::uint16_t>& bits);

}  // namespace tilewise::tests
