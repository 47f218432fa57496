// A fuzzer's bytes as choices, and numbers that are worth choosing.
#pragma once

#include "include/tilewise/tilewise.h"

#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

namespace tilewise::fuzz {

/// Choices, read from the front; zeros where the bytes have come to an end.
class Bytes {
 public:
  Bytes(const std::uint8_t* data, std::size_t size) : data_(data), left_(size) {}

  bool empty() const { return left_ == 0; }
  std::uint8_t byte() {
    if (left_ == 0) return 0;
    --left_;
    return *data_++;
  }
  std::int64_t below(std::int64_t count) { return byte() % count; }
  bool one_in(std::int64_t n) { return byte() % n == n - 1; }
  template <class Number>
  Number raw() {
    Number number{};
    for (std::size_t i = 0; i < sizeof number; ++i) {
      const std::uint8_t one = byte();
      std::memcpy(reinterpret_cast<char*>(&number) + i, &one, 1);
    }
    return number;
  }
  template <class Number, std::size_t n>
  Number of(const Number (&numbers)[n]) {
    return numbers[below(static_cast<std::int64_t>(n))];
  }

 private:
  const std::uint8_t* data_;
  std::size_t left_;
};

/// Small numbers, and those at which arithmetic goes wrong.
inline std::int64_t odd_integer(Bytes& bytes) {
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
  constexpr std::int64_t numbers[] = {0,
                                      1,
                                      2,
                                      -1,
                                      -2,
                                      64,
                                      65,
                                      std::int64_t{1} << 31,
                                      std::int64_t{1} << 32,
                                      std::int64_t{1} << 47,
                                      (std::int64_t{1} << 48) + 1,
                                      std::int64_t{1} << 61,
                                      -(std::int64_t{1} << 61),
                                      most,
                                      -most - 1};
  const std::uint8_t choice = bytes.byte();
  if (choice >= 240) return bytes.raw<std::int64_t>();
  return choice < 128 ? choice % 16 : numbers[choice % std::size(numbers)];
}
inline std::int32_t odd_choice(Bytes& bytes) {
  const std::uint8_t choice = bytes.byte();
  if (choice >= 240) return bytes.raw<std::int32_t>();
  return choice % 14 - 1;
}
inline double odd_real(Bytes& bytes) {
  using limits = std::numeric_limits<double>;
  constexpr double numbers[] = {0,
                                -0.0,
                                1,
                                -1,
                                0.5,
                                1e-3,
                                50,
                                1 - 0x1p-54,
                                limits::denorm_min(),
                                limits::max(),
                                -limits::max(),
                                limits::infinity(),
                                -limits::infinity(),
                                limits::quiet_NaN()};
  return bytes.one_in(8) ? bytes.raw<double>() : bytes.of(numbers);
}

/// Mostly the size of today, now and then of older and newer headers, or nonsense. One that the
/// library may take for an older header's cuts no field in two: that would be another problem,
/// whose pointers nobody has made.
template <class Struct>
std::uint32_t odd_struct_size(Bytes& bytes) {
  constexpr auto now = static_cast<std::uint32_t>(sizeof(Struct));
  const std::uint8_t choice = bytes.byte();
  if (choice < 200) return now;
  if (choice < 215) return now + bytes.byte();
  if (choice < 245) return bytes.raw<std::uint16_t>() % now / 8 * 8;
  const auto any = bytes.raw<std::uint32_t>();
  return any < now ? any / 8 * 8 : any;
}

}  // namespace tilewise::fuzz
