// Philox4x32-10, a counter-based random number generator: the n-th number is a function of the seed
// and n alone, so that any element of any tensor can be made, or made again, in any order.
//
// J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <array>
#include <cstdint>

namespace tilewise {

/// Four 32-bit words for counter `index` of stream `stream` under `seed`. Ten rounds is the paper's
/// choice; flash-attn's dropout uses seven.
template <int rounds = 10>
constexpr std::array<std::uint32_t, 4> philox(std::uint64_t seed, std::uint64_t stream,
                                              std::uint64_t index) {
  constexpr std::uint64_t multiplier0 = 0xD2511F53, multiplier1 = 0xCD9E8D57;
  constexpr std::uint32_t weyl0 = 0x9E3779B9, weyl1 = 0xBB67AE85;
  std::array<std::uint32_t, 4> x{
      static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32),
      static_cast<std::uint32_t>(stream), static_cast<std::uint32_t>(stream >> 32)};
  auto key0 = static_cast<std::uint32_t>(seed), key1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < rounds; ++round) {
    const std::uint64_t product0 = multiplier0 * x[0], product1 = multiplier1 * x[2];
    x = {static_cast<std::uint32_t>(product1 >> 32) ^ x[1] ^ key0,
         static_cast<std::uint32_t>(product1),
         static_cast<std::uint32_t>(product0 >> 32) ^ x[3] ^ key1,
         static_cast<std::uint32_t>(product0)};
    key0 += weyl0;
    key1 += weyl1;
  }
  return x;
}

/// 32 random bits as a number in (0, 1): never 0, never 1.
constexpr double unit_interval(std::uint32_t bits) {
  return (bits + 0.5) * 0x1p-32;
}

}  // namespace tilewise
