// Which elements of P are kept: core/dropout.hpp's bits, on the device, where a lane wants the
// sixteen of one call at once. The judge compares every bit of it with core/.
#pragma once

#include "cuda/device/ptx/vector_access.hpp"
#include "cuda/kernels/sm80/general_problem.hpp"

#include <cstdint>

namespace tilewise::cuda::sm80::inline TILEWISE_TARGET {
namespace general {

/// Sixteen bytes of random bits.
struct DropoutWords {
  std::uint32_t word[4];

  /// A lane's elements of 32 columns that begin at a multiple of 32, as its accumulators of 16 rows
  /// have them (cuda/device/fragment.hpp): number 0 or 1 of its row 0 or 1 in piece 0 to 3.
  __device__ __forceinline__ int byte_of(int piece, int row, int number) const {
    return static_cast<int>(word[piece] >> (8 * (2 * row + number)) & 0xffu);
  }
};

/// Of one query head.
class Dropout {
 public:
  __device__ Dropout(const Problem& problem, int b, int h)
      : seed_(value_of(problem.philox_seed_pointer, problem.philox_seed)),
        first_(value_of(problem.philox_offset_pointer, problem.philox_offset) +
               (static_cast<std::uint64_t>(b) * static_cast<std::uint64_t>(problem.nheads_q) +
                static_cast<std::uint64_t>(h)) *
                   32),
        threshold_(problem.keep_threshold) {}

  /// For rows 16 row_block and on, columns 32 column_block and on: the lane's, if its accumulators
  /// lie so.
  __device__ DropoutWords words(int row_block, int column_block, int lane) const {
    // Philox of seven rounds: core/philox.hpp.
    const std::uint64_t index = first_ + static_cast<std::uint64_t>(lane);
    std::uint32_t x[4] = {
        static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32),
        static_cast<std::uint32_t>(row_block), static_cast<std::uint32_t>(column_block)};
    auto key0 = static_cast<std::uint32_t>(seed_), key1 = static_cast<std::uint32_t>(seed_ >> 32);
    TILEWISE_UNROLL
    for (int round = 0; round < 7; ++round) {
      const std::uint64_t product0 = std::uint64_t{0xD2511F53} * x[0];
      const std::uint64_t product1 = std::uint64_t{0xCD9E8D57} * x[2];
      x[0] = static_cast<std::uint32_t>(product1 >> 32) ^ x[1] ^ key0;
      x[1] = static_cast<std::uint32_t>(product1);
      x[2] = static_cast<std::uint32_t>(product0 >> 32) ^ x[3] ^ key1;
      x[3] = static_cast<std::uint32_t>(product0);
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    return {{x[0], x[1], x[2], x[3]}};
  }

  __device__ bool keeps(const DropoutWords& words, int piece, int row, int number) const {
    return words.byte_of(piece, row, number) <= threshold_;
  }

  /// One element, wherever it lies: sixteen times the work of words().
  __device__ bool keeps(int i, int j) const {
    const int row = i % 16, column = j % 32;
    const DropoutWords all = words(i / 16, j / 32, row % 8 * 4 + column % 8 / 2);
    return keeps(all, column / 8, row / 8, column % 2);
  }

 private:
  __device__ static std::uint64_t value_of(const std::uint64_t* pointer, std::uint64_t value) {
    if (pointer == nullptr) return value;
    const auto both = device::load_vector<uint2>(pointer);
    return both.x | static_cast<std::uint64_t>(both.y) << 32;
  }

  std::uint64_t seed_, first_;
  int threshold_;
};

}  // namespace general
}  // namespace tilewise::cuda::sm80::inline TILEWISE_TARGET
