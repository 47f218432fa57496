// Guarded memory: buffers whose surroundings are watched, and whose contents can be made read-only
// without a write to them ending the program.
//
//   mapping:  [ guard band | data | guard band ]      whole pages, from the system
//
// The bands are at least 4096 bytes each and touch the data on both sides. They are filled with
// NaNs, as every floating format of core/dtype.hpp reads them, so that a kernel which reads beyond
// its tensor sees its result turn NaN rather than stay right by luck.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace tilewise::harness {

class GuardedBuffer {
 public:
  GuardedBuffer() = default;
  GuardedBuffer(GuardedBuffer&& other) noexcept;
  GuardedBuffer& operator=(GuardedBuffer&& other) noexcept;
  ~GuardedBuffer();

  /// `bytes` of poisoned data between intact guard bands; nothing if the system has no memory.
  /// `alignment` is a power of two, at most 4096. The data starts on it, and the upper band follows
  /// the last byte directly, aligned or not.
  static std::optional<GuardedBuffer> allocate(std::size_t bytes, std::size_t alignment = 64);

  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }

  /// Fills the data with 0xFF bytes: a NaN in every floating format, e4m3 included.
  void poison();

  /// The lowest guard byte that was changed, as an offset from data(): negative below, size() or
  /// more above. Absent while the bands are intact.
  std::optional<std::ptrdiff_t> first_broken() const;
  bool guards_intact() const { return !first_broken(); }
  /// Mends the bands.
  void restore_guards();

  /// Makes data and bands read-only. While a FaultGuard lives, a write to them is recorded and then
  /// let through; without one it is the crash it would be anyway. Where pages cannot be protected,
  /// this keeps a copy to compare with and returns false: first_write() answers all the same.
  bool write_protect();
  void unprotect();

  /// The first byte written since write_protect(), as an offset from data(); it stays known after
  /// unprotect(). Absent if nothing was written.
  std::optional<std::ptrdiff_t> first_write() const;

 private:
  void release();

  std::byte* mapping_ = nullptr;
  std::size_t mapping_bytes_ = 0;
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  std::uint64_t seed_ = 0;                    // of the guard bands' pattern
  int slot_ = -1;                             // in the table of protected ranges, or -1
  std::optional<std::ptrdiff_t> past_write_;  // what first_write() said before unprotect()
  std::vector<std::byte> copy_;               // of the mapping, where it cannot be protected
};

/// While one lives, writes to write-protected buffers are recorded (GuardedBuffer::first_write) and
/// succeed, whichever thread makes them; every other fault goes to the handler that was there
/// before, so that real crashes still crash.
class FaultGuard {
 public:
  FaultGuard();
  ~FaultGuard();
  FaultGuard(const FaultGuard&) = delete;
  FaultGuard& operator=(const FaultGuard&) = delete;
};

}  // namespace tilewise::harness
