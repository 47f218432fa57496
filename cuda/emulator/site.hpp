// Where in a kernel something happened: the line of a wrapper's call, or an instruction.
#pragma once

#include <cstdint>

namespace tilewise::emulator {

/// The line that calls a function of which this is the last argument, by default: a wrapper of an
/// instruction says `Site site = Site::current()`, and whoever calls it is named.
struct Site {
  const char* file = nullptr;
  int line = 0;

  static constexpr Site current(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

/// A Site, or the address of an instruction, in eight bytes: what a shadow cell remembers.
class Where {
 public:
  Where() = default;
  explicit Where(const void* instruction)
      : bits_(reinterpret_cast<std::uintptr_t>(instruction) & address) {}
  explicit Where(Site site)
      : bits_((reinterpret_cast<std::uintptr_t>(site.file) & address) |
              static_cast<std::uint64_t>(site.line & 0x7fff) << 48 | is_site) {}

  static Where from_bits(std::uint64_t bits) {
    Where where;
    where.bits_ = bits;
    return where;
  }

  bool known() const { return (bits_ & address) != 0; }
  bool has_site() const { return (bits_ & is_site) != 0; }
  const void* instruction() const { return reinterpret_cast<const void*>(bits_ & address); }
  Site site() const {
    return {reinterpret_cast<const char*>(bits_ & address), static_cast<int>(bits_ >> 48 & 0x7fff)};
  }
  std::uint64_t bits() const { return bits_; }
  friend bool operator==(Where, Where) = default;

 private:
  // Addresses of programs have 47 bits, on every 64-bit system that this runs on.
  static constexpr std::uint64_t address = (std::uint64_t{1} << 48) - 1;
  static constexpr std::uint64_t is_site = std::uint64_t{1} << 63;
  std::uint64_t bits_ = 0;
};

}  // namespace tilewise::emulator
