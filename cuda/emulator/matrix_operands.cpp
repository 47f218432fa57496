#include "matrix_operands.hpp"

namespace tilewise::emulator {

MatrixPlace place_of(std::uint64_t descriptor) {
  const auto bytes = [&](int first) {
    return static_cast<std::uint32_t>(descriptor >> first & 0x3fff) << 4;
  };
  static constexpr int chunks[] = {1, 8, 4, 2};
  return {bytes(0), bytes(16), bytes(32), static_cast<int>(descriptor >> 49 & 7),
          chunks[descriptor >> 62]};
}

bool is_aligned(const MatrixPlace& place) {
  const std::uint32_t width = 16u * static_cast<std::uint32_t>(place.chunks);
  return place.chunks == 1 || place.address % (8 * width) < width;
}

std::uint32_t chunk_address(const MatrixPlace& place, bool rows_of_n, int row, int chunk) {
  const auto r = static_cast<std::uint32_t>(row), c = static_cast<std::uint32_t>(chunk);
  const auto w = static_cast<std::uint32_t>(place.chunks);
  std::uint32_t address = place.address + r % 8 * 16 * w;
  if (w == 1)
    address += rows_of_n ? r / 8 * place.leading + c * place.stride
                         : r / 8 * place.stride + c * place.leading;
  else
    address += r / 8 * place.stride + (rows_of_n ? c % w * 16 + c / w * place.leading : c * 16);
  return address ^ (address >> 7 & (w - 1)) << 4;
}

void multiply(float* d, const double* a, const double* b, int columns, bool keep) {
  constexpr int rows = 64, depth = 16, width = 8;
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < columns; j += width) {
      double sum[width] = {};
      for (int k = 0; k < depth; ++k)
        for (int c = 0; c < width; ++c) sum[c] += a[i * depth + k] * b[k * columns + j + c];
      float* const to = d + i * columns + j;
      for (int c = 0; c < width; ++c)
        to[c] = static_cast<float>(sum[c] + (keep ? static_cast<double>(to[c]) : 0.0));
    }
}

}  // namespace tilewise::emulator
