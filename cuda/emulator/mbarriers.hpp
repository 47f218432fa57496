// mbarriers of a block: what phase each is in, what that phase still waits for, and what its end
// hands on. PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier".
//
// The object's own bytes are the hardware's, so that nothing is kept there: an ordinary access to
// them is a finding.
#pragma once

#include "access_sets.hpp"
#include "site.hpp"

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

namespace tilewise::emulator {

/// What another block's threads had done when a thread of it let go of an atomic variable.
using Foreign = std::map<std::uint32_t, std::shared_ptr<const Clock>>;

/// What the count of arrivals and that of bytes hold: 20 bits, and a sign.
constexpr std::int64_t most_mbarrier_count = (std::int64_t{1} << 20) - 1;

struct Mbarrier {
  std::uintptr_t address = 0;
  std::uint16_t agent = 0;  ///< who has copied the bytes that it counts; its time is `phase`
  std::uint16_t maker = 0;  ///< the thread
  std::uint32_t made_at = 0;
  Where made;

  std::int64_t arrivals = 0;  ///< that a phase takes
  std::int64_t pending = 0;   ///< of this phase, to come
  std::int64_t bytes = 0;     ///< announced, less those copied
  std::uint64_t phase = 0;    ///< phases that are over

  /// Bytes of this phase that were announced, and asked to be copied: more of these, where nobody
  /// can announce any more, end the phase before its copies do.
  std::int64_t announced = 0, asked = 0;
  Where announced_last, asked_last;
  /// The newest phase with a copy, counted from 1, and the newest that somebody has seen over.
  std::uint64_t copied = 0, seen = 0;

  Clock arrived;    ///< what those knew who have come in this phase
  Clock completed;  ///< and in those before
  Foreign foreign_arrived, foreign_completed;
  std::int64_t arrived_ticks = 0, ticks = 0;
  std::vector<std::uint16_t> waiting;

  bool over(unsigned parity) const { return (phase & 1) != parity; }
};

class Mbarriers {
 public:
  Mbarrier* at(std::uintptr_t address) {
    const auto found = all_.find(address);
    return found != all_.end() ? &found->second : nullptr;
  }
  /// The one that has this byte.
  const Mbarrier* around(std::uintptr_t address) const {
    const auto found = all_.find(address / 8 * 8);
    return found != all_.end() ? &found->second : nullptr;
  }
  Mbarrier& add(std::uintptr_t address) { return all_[address]; }
  const std::map<std::uintptr_t, Mbarrier>& all() const { return all_; }

  /// Clocks have become longer.
  void new_agent() {
    for (auto& [address, one] : all_) {
      one.arrived.push_back(0);
      one.completed.push_back(0);
    }
  }

 private:
  std::map<std::uintptr_t, Mbarrier> all_;
};

}  // namespace tilewise::emulator
