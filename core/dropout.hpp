// Dropout's mask, bit for bit flash-attn 2's: a function of seed, offset and position alone, so
// that any tiling, and the backward pass, finds the same zeros without storing them.
//
// One Philox call of seven rounds serves sixteen elements of a block of 16 rows by 32 columns: four
// rows apart by 8 and columns in pairs, as the lanes of mma.sync hold them (csrc/flash_attn/src/
// dropout.h and philox.cuh in Dao-AILab/flash-attention). Each element has one byte of the answer.
#pragma once

#include "philox.hpp"

#include <cstddef>
#include <cstdint>

namespace tilewise {

class Dropout {
 public:
  /// Nothing is dropped for p = 0. `nheads` is the number of query heads.
  constexpr Dropout(double p, std::uint64_t seed, std::uint64_t offset, std::int64_t nheads)
      : seed_(seed),
        offset_(offset),
        nheads_(nheads),
        // In float32 as there: 1.f - 0.6f is a little less than 0.4, and 255 times that less than
        // 102.
        threshold_(static_cast<int>(static_cast<double>(1.0f - static_cast<float>(p)) * 255.0)),
        scale_(static_cast<double>(1.0f / (1.0f - static_cast<float>(p)))) {}

  /// Is element (i, j) of P kept? i and j count within sequence b; h is a query head.
  constexpr bool keeps(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
    const std::int64_t row = i % 16, column = j % 32;
    const std::int64_t lane = row % 8 * 4 + column % 8 / 2;
    const std::uint64_t index = offset_ + static_cast<std::uint64_t>((b * nheads_ + h) * 32 + lane);
    const std::uint64_t block = static_cast<std::uint64_t>(i / 16) & 0xffffffffu;
    const std::uint64_t stream = block | static_cast<std::uint64_t>(j / 32) << 32;
    const auto words = philox<7>(seed_, stream, index);
    const std::int64_t byte =
        column / 16 * 8 + column % 16 / 8 * 4 + (row >= 8 ? 2 : 0) + (column & 1);
    const std::uint32_t word = words[static_cast<std::size_t>(byte / 4)];
    return static_cast<int>(word >> (8 * (byte % 4)) & 0xff) <= threshold_;
  }

  /// What kept elements are multiplied by: 1 / (1 - p).
  constexpr double scale() const { return scale_; }

 private:
  std::uint64_t seed_, offset_;
  std::int64_t nheads_;
  int threshold_;  // an element is kept if its byte is at most this
  double scale_;
};

}  // namespace tilewise
