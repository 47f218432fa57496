// Global memory, known by ranges, and its shadow: for each element who wrote and who read it last.
#pragma once

#include "site.hpp"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace tilewise::emulator {

/// A launch, a block of it, and a thread of that at a point of its own time.
struct Stamp {
  std::uint32_t launch = 0;  ///< 0: nobody, or the host
  std::uint32_t block = 0;
  std::uint32_t clock = 0;
  std::uint16_t thread = 0;
  /// How many times all of the block had met: what orders reads of which only the last is known.
  std::uint32_t meetings = 0;
};

struct GlobalCell {
  Stamp write, read;
  Stamp plain;  ///< the last write that was not atomic
  Where write_where, read_where, plain_where;
  bool written = false;       ///< by anybody, so that it can be read
  bool atomically = false;    ///< the last write was an atomic operation
  bool many_threads = false;  ///< of the reading block have read it since the write
  bool many_blocks = false;   ///< have read it in this launch since the write
};

/// A few cells of a region share a lock.
class SpinLock {
 public:
  void lock() {
    while (flag_.test_and_set(std::memory_order_acquire)) {
    }
  }
  void unlock() { flag_.clear(std::memory_order_release); }

 private:
  std::atomic_flag flag_;
};

struct Region {
  std::uintptr_t begin = 0, end = 0;
  std::string name;
  unsigned shift = 2;  ///< log2 of an element's bytes
  std::unique_ptr<GlobalCell[]> cells;
  std::unique_ptr<SpinLock[]> locks;
  static constexpr std::size_t lock_count = 256;

  SpinLock& lock_of(std::size_t cell) const { return locks[cell / 16 % lock_count]; }
};

/// Ranges by address. A launch looks at the ones that there were as it began.
using Regions = std::vector<std::shared_ptr<Region>>;
Regions current_regions();

}  // namespace tilewise::emulator
