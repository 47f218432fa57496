// The numbers that 16-bit and 8-bit codes stand for, as floats: every one of them is a float.
// Minifloat::decode (core/minifloat.hpp) says the same in real arithmetic, a branch at a time; what
// is here is for loops.
//
// fp8: a table of all 256. f16, bf16: arithmetic on bits in which every code goes the same way, so
// that a compiler can put it into vector registers. A code and its float have the same layout but
// for widths and the exponent's bias:
//
//   normal     s  eeeee           mmmmmmmmmm                  f16, bias 15
//              s  eeeee + 127-15  mmmmmmmmmm 0000000000000    float, bias 127
//   subnormal  m 2^-24: a whole number times a power of two, converted as such
#pragma once

#include "core/dtype.hpp"

#include <array>
#include <bit>
#include <cstdint>

namespace tilewise::cpu::portable {

/// Without a branch, which some compilers would keep.
inline std::uint32_t select(bool which, std::uint32_t yes, std::uint32_t no) {
  const std::uint32_t ones = 0u - static_cast<std::uint32_t>(which);
  return (yes & ones) | (no & ~ones);
}

/// Of F16 and BF16.
template <class Format>
inline float widen(std::uint32_t code) {
  constexpr int mantissa_bits = std::popcount(Format::mantissa_ones);
  constexpr std::uint32_t float_infinity = 0x7f800000, float_nan = 0x7fc00000;
  const std::uint32_t magnitude = code & (Format::sign_bit - 1);
  const std::uint32_t sign = (code & Format::sign_bit) << std::countl_zero(Format::sign_bit);
  std::uint32_t bits = (magnitude << (23 - mantissa_bits)) + ((127u - Format::bias) << 23);
  if constexpr (Format::bias != 127) {  // bf16's exponents are float's, and so are its subnormals
    constexpr float unit = std::bit_cast<float>((128u - Format::bias - mantissa_bits) << 23);
    const float subnormal = static_cast<float>(static_cast<std::int32_t>(magnitude)) * unit;
    bits =
        select(magnitude <= Format::mantissa_ones, std::bit_cast<std::uint32_t>(subnormal), bits);
    bits = select(magnitude >= Format::infinity_bits, float_infinity, bits);
  }
  return std::bit_cast<float>(select(magnitude > Format::infinity_bits, float_nan, bits | sign));
}

template <class Format>
inline constexpr std::array<float, 256> fp8_table = [] {
  std::array<float, 256> numbers{};
  for (std::uint32_t code = 0; code < 256; ++code)
    numbers[code] = static_cast<float>(Format::decode(code));
  return numbers;
}();

}  // namespace tilewise::cpu::portable
