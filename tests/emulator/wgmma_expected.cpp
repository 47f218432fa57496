// What products are held against. Not in a .cu file, where every access is looked at.
#include "wgmma_expected.hpp"

#include "core/minifloat.hpp"

namespace tilewise::tests {

std::vector<float> small_integers(std::size_t count, unsigned seed) {
  std::vector<float> values(count);
  for (float& value : values) {
    seed = seed * 1664525 + 1013904223;
    value = static_cast<float>(static_cast<int>(seed >> 24) % 5 - 2);
  }
  return values;
}

std::vector<float> product_of(const float* a, const float* b, int rows, int columns, int depth,
                              bool b_has_rows_of_n) {
  std::vector<float> d;
  d.reserve(static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns));
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < columns; ++j) {
      float sum = 0;
      for (int k = 0; k < depth; ++k)
        sum += a[i * depth + k] * (b_has_rows_of_n ? b[k * columns + j] : b[j * depth + k]);
      d.push_back(sum);
    }
  return d;
}

std::vector<std::uint16_t> as_f16(const std::vector<float>& values) {
  std::vector<std::uint16_t> bits;
  for (const float value : values)
    bits.push_back(
        static_cast<std::uint16_t>(Minifloat<5, 10>::encode(static_cast<double>(value))));
  return bits;
}

std::vector<float> from_f16(const std::vector<std::uint16_t>& bits) {
  std::vector<float> values;
  for (const std::uint16_t one : bits)
    values.push_back(static_cast<float>(Minifloat<5, 10>::decode(one)));
  return values;
}

}  // namespace tilewise::tests
