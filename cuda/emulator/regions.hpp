// Global memory, known by ranges, and its shadow: for each element who wrote it, and who has read
// it since.
#pragma once

#include "access_sets.hpp"
#include "site.hpp"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace tilewise::emulator {

/// A thread of a block of a launch, at a point of its own time.
struct Stamp {
  Where where;
  std::uint32_t launch = 0;  ///< 0: nobody, or the host
  std::uint32_t block = 0;
  std::uint32_t clock = 0;
  std::uint16_t thread = 0;
};

/// Reads of an element, or atomic operations, since it was last written. Of one block all are
/// known, as long as no other one comes between; of several blocks the last of two.
struct Uses {
  Stamp last;
  Stamp elsewhere;       ///< the last one that was of another block than `last`
  AccessSets::Held all;  ///< of last.block
};

struct GlobalCell {
  Stamp write;           ///< that was not atomic
  Uses reads, changes;   ///< since; `changes` are atomic
  bool written = false;  ///< by anybody, so that it can be read
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
