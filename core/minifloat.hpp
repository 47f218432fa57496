// Small binary floating-point formats, encoded and decoded by one piece of code.
//
// A format has E exponent bits and M mantissa bits below the sign bit. Two families exist:
//   ieee    the top exponent means infinity (mantissa 0) or NaN, as IEEE 754 has it:
//           f16 = 5.10, bf16 = 8.7, e5m2 = 5.2
//   finite  no infinity: the top exponent holds ordinary numbers, all ones is the only NaN:
//           e4m3 = 4.3 (called E4M3 in OCP's OFP8 specification, "e4m3fn" elsewhere)
// Encoding rounds to nearest, ties to even. What is too large becomes infinity, or in the finite
// family NaN: OFP8's non-saturating conversion, which PyTorch and ml_dtypes use too.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

namespace tilewise {

enum class Family { ieee, finite };

template <int ExponentBits, int MantissaBits, Family family = Family::ieee>
struct Minifloat {
  static constexpr int bias = (1 << (ExponentBits - 1)) - 1;
  static constexpr int exponent_ones = (1 << ExponentBits) - 1;
  static constexpr std::uint32_t mantissa_ones = (1u << MantissaBits) - 1;
  static constexpr std::uint32_t sign_bit = 1u << (ExponentBits + MantissaBits);
  static constexpr std::uint32_t infinity_bits = static_cast<std::uint32_t>(exponent_ones)
                                                 << MantissaBits;
  static constexpr std::uint32_t nan_bits = family == Family::ieee
                                                ? infinity_bits | (1u << (MantissaBits - 1))
                                                : infinity_bits | mantissa_ones;
  /// The largest finite code; one step above it lies infinity or NaN in both families.
  static constexpr std::uint32_t max_bits =
      family == Family::ieee ? infinity_bits - 1 : nan_bits - 1;

  /// The nearest code to `value`. Going through double loses nothing: every float is a double, and
  /// no value of these formats needs more than double has.
  static constexpr std::uint32_t encode(double value) {
    const auto bits = std::bit_cast<std::uint64_t>(value);
    const std::uint32_t sign = (bits >> 63) != 0 ? sign_bit : 0;
    const int exponent = static_cast<int>((bits >> 52) & 0x7ff) - 1023;
    const std::uint64_t fraction = bits & 0xfffffffffffffull;
    if (exponent == 1024 && fraction != 0) return sign | nan_bits;
    const std::uint32_t overflow = family == Family::ieee ? infinity_bits : nan_bits;
    if (exponent > bias + 1) return sign | overflow;
    // Below the smallest normal the spacing stays constant: keep fewer bits of the significand.
    const bool normal = exponent >= 1 - bias;
    const int dropped = (52 - MantissaBits) + (normal ? 0 : 1 - bias - exponent);
    if (dropped > 53 || exponent == -1023)
      return sign;  // less than half the smallest code, or zero
    const std::uint64_t significand = (1ull << 52) | fraction;
    const std::uint64_t half = 1ull << (dropped - 1);
    const std::uint64_t rest = significand & ((half << 1) - 1);
    std::uint64_t kept = significand >> dropped;
    if (rest > half || (rest == half && (kept & 1) != 0)) ++kept;
    // Adding the kept significand to the exponent field lets a carry run into the exponent.
    const std::uint64_t code =
        normal ? (static_cast<std::uint64_t>(exponent + bias - 1) << MantissaBits) + kept : kept;
    return sign | (code > max_bits ? overflow : static_cast<std::uint32_t>(code));
  }

  static constexpr double decode(std::uint32_t code) {
    const double sign = (code & sign_bit) != 0 ? -1.0 : 1.0;
    const std::uint32_t magnitude = code & (sign_bit - 1);
    if (magnitude > max_bits)
      return family == Family::ieee && magnitude == infinity_bits
                 ? sign * std::numeric_limits<double>::infinity()
                 : std::numeric_limits<double>::quiet_NaN();
    const int exponent = static_cast<int>(magnitude >> MantissaBits);
    const std::uint32_t mantissa = magnitude & mantissa_ones;
    const double significand =
        static_cast<double>(exponent == 0 ? mantissa : mantissa | (1u << MantissaBits));
    const int power = (exponent == 0 ? 1 : exponent) - bias - MantissaBits;
    return sign * significand *
           std::bit_cast<double>(static_cast<std::uint64_t>(power + 1023) << 52);
  }
};

}  // namespace tilewise
