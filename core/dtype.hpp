// The number formats tensors come in, and how to read and write one element as a double.
#pragma once

#include "minifloat.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <string_view>

namespace tilewise {

/// i8 and q8_0 are numbers with a scale beside them: core/quantised.hpp reads those.
enum class DType : std::uint8_t { f64, f32, f16, bf16, e4m3, e5m2, i64, i32, boolean, i8, q8_0 };

using F16 = Minifloat<5, 10>;
using BF16 = Minifloat<8, 7>;
using E4M3 = Minifloat<4, 3, Family::finite>;
using E5M2 = Minifloat<5, 2>;

/// Everything said of a format elsewhere is derived from this row.
struct DTypeInfo {
  DType dtype;
  std::string_view name;
  std::size_t size;       ///< bytes of one element (of q8_0: of one block of 32 numbers)
  int significand;        ///< bits of the significand, the hidden one included; 0: not floating
  int smallest_exponent;  ///< exponent e of the smallest positive subnormal number 2^e
};

inline constexpr DTypeInfo dtype_table[] = {
    {DType::f64, "f64", 8, 53, -1074}, {DType::f32, "f32", 4, 24, -149},
    {DType::f16, "f16", 2, 11, -24},   {DType::bf16, "bf16", 2, 8, -133},
    {DType::e4m3, "e4m3", 1, 4, -9},   {DType::e5m2, "e5m2", 1, 3, -16},
    {DType::i64, "i64", 8, 0, 0},      {DType::i32, "i32", 4, 0, 0},
    {DType::boolean, "bool", 1, 0, 0}, {DType::i8, "i8", 1, 0, 0},
    {DType::q8_0, "q8_0", 34, 0, 0},
};

constexpr const DTypeInfo& info(DType dtype) {
  return dtype_table[static_cast<int>(dtype)];
}
constexpr std::string_view name_of(DType dtype) {
  return info(dtype).name;
}
constexpr std::size_t size_of(DType dtype) {
  return info(dtype).size;
}
constexpr bool is_floating(DType dtype) {
  return info(dtype).significand != 0;
}
/// What an address of this dtype must be a multiple of.
constexpr std::size_t alignment_of(DType dtype) {
  return dtype == DType::q8_0 ? 2 : size_of(dtype);
}

constexpr std::optional<DType> dtype_from_name(std::string_view name) {
  for (const DTypeInfo& row : dtype_table)
    if (row.name == name) return row.dtype;
  return std::nullopt;
}

constexpr double power_of_two(int exponent) {
  double result = 1;
  for (; exponent > 0; --exponent) result *= 2;
  for (; exponent < 0; ++exponent) result /= 2;
  return result;
}

/// u = 2^-p for a significand of p bits: rounding to nearest changes a normal x by at most u |x|
/// (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 2.1).
constexpr double unit_roundoff(DType dtype) {
  return power_of_two(-info(dtype).significand);
}

/// Rounding to nearest changes a subnormal number by at most half the smallest positive number (of
/// f64, whose half is no double: by that number).
constexpr double subnormal_roundoff(DType dtype) {
  const double smallest = power_of_two(info(dtype).smallest_exponent);
  return dtype == DType::f64 ? smallest : smallest / 2;
}

/// The largest finite number of a floating-point format.
constexpr double largest_finite(DType dtype) {
  switch (dtype) {
    case DType::f32: return static_cast<double>(std::numeric_limits<float>::max());
    case DType::f16: return F16::decode(F16::max_bits);
    case DType::bf16: return BF16::decode(BF16::max_bits);
    case DType::e4m3: return E4M3::decode(E4M3::max_bits);
    case DType::e5m2: return E5M2::decode(E5M2::max_bits);
    default: return std::numeric_limits<double>::max();
  }
}

namespace detail {
template <class T>
double load_as(const void* element) {
  T value;
  std::memcpy(&value, element, sizeof value);
  return static_cast<double>(value);
}
template <class T>
void store_as(void* element, T value) {
  std::memcpy(element, &value, sizeof value);
}
template <class Bits>
std::uint32_t load_bits(const void* element) {
  Bits bits;
  std::memcpy(&bits, element, sizeof bits);
  return bits;
}
}  // namespace detail

/// One element, exactly (i64 beyond 2^53 excepted).
inline double load(DType dtype, const void* element) {
  switch (dtype) {
    case DType::f64: return detail::load_as<double>(element);
    case DType::f32: return static_cast<double>(detail::load_as<float>(element));
    case DType::f16: return F16::decode(detail::load_bits<std::uint16_t>(element));
    case DType::bf16: return BF16::decode(detail::load_bits<std::uint16_t>(element));
    case DType::e4m3: return E4M3::decode(detail::load_bits<std::uint8_t>(element));
    case DType::e5m2: return E5M2::decode(detail::load_bits<std::uint8_t>(element));
    case DType::i64: return detail::load_as<std::int64_t>(element);
    case DType::i32: return detail::load_as<std::int32_t>(element);
    case DType::boolean: return detail::load_bits<std::uint8_t>(element) != 0 ? 1.0 : 0.0;
    case DType::i8: return detail::load_as<std::int8_t>(element);
    case DType::q8_0: break;  // a block is no number: load_number() of quantised.hpp
  }
  return std::numeric_limits<double>::quiet_NaN();
}

/// One element, rounded to nearest even.
inline void store(DType dtype, void* element, double value) {
  using detail::store_as;
  switch (dtype) {
    case DType::f64: return store_as<double>(element, value);
    case DType::f32: return store_as<float>(element, static_cast<float>(value));
    case DType::f16: return store_as(element, static_cast<std::uint16_t>(F16::encode(value)));
    case DType::bf16: return store_as(element, static_cast<std::uint16_t>(BF16::encode(value)));
    case DType::e4m3: return store_as(element, static_cast<std::uint8_t>(E4M3::encode(value)));
    case DType::e5m2: return store_as(element, static_cast<std::uint8_t>(E5M2::encode(value)));
    case DType::i64: return store_as(element, static_cast<std::int64_t>(value));
    case DType::i32: return store_as(element, static_cast<std::int32_t>(value));
    case DType::boolean: return store_as(element, static_cast<std::uint8_t>(value != 0));
    case DType::i8: return store_as(element, static_cast<std::int8_t>(value));
    case DType::q8_0: return;
  }
}

/// What `value` becomes when it is stored in `dtype` and read back.
inline double rounded_to(DType dtype, double value) {
  unsigned char element[8];
  store(dtype, element, value);
  return load(dtype, element);
}

}  // namespace tilewise
