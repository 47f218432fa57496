// Who has read a place since it was last written; or changed it atomically. A write is a race with
// each of them that nothing has ordered before it, so that the last one alone is not enough.
//
// FastTrack (Flanagan and Freund 2009) has a vector clock a location for this. Here sets are kept
// once for all of a block: the elements of a tile are mostly accessed by the same threads in the
// same order, and a shadow cell has a number.
#pragma once

#include "site.hpp"

#include <cstdint>
#include <vector>

namespace tilewise::emulator {

using Clock = std::vector<std::uint32_t>;  ///< a number for each thread of the block

class AccessSets {
 public:
  using Id = std::uint32_t;
  static constexpr Id nobody = 0;

  struct Access {
    Where where;
    std::uint32_t clock = 0;
    Id others = nobody;  ///< the rest of the set, the newest first
    std::uint16_t thread = 0;
    /// So that a set is looked through by warps: the lanes of its newest accesses as long as they
    /// are one warp's, and the rest before those. And how many they all are.
    std::uint16_t count = 0;
    std::uint32_t lanes = 0;
    Id other_warps = nobody;
  };

  AccessSets();

  /// What a cell has: a set, as long as the block has not met since.
  struct Held {
    Id set = nobody;
    std::uint32_t epoch = 0;
  };

  bool empty(Held held) const { return set_of(held) == nobody; }

  /// The thread, which knows of others what `clock` says, is one more. Those that it comes after
  /// may be left out: whoever comes after it comes after them.
  void add(Held& held, std::uint16_t thread, const Clock& clock, Where where) {
    const Id others = set_of(held);
    const Step& step = step_of(others, thread);
    const bool known = step.others == others && step.thread == thread &&
                       step.clock == clock[thread] && step.where == where && step.epoch == epoch_;
    held = {known ? step.result : with(others, thread, clock, where), epoch_};
  }

  /// One that does not come before what a thread with this clock does; null: all do.
  const Access* unordered(Held held, const Clock& clock) const {
    for (Id id = set_of(held); id != nobody; id = accesses_[id].others)
      if (accesses_[id].clock > clock[accesses_[id].thread]) return &accesses_[id];
    return nullptr;
  }

  /// Whatever comes now comes after all of them: no cell has a set any more.
  void forget();

 private:
  /// From a set to the one with an access more: remembered, for the next cell.
  struct Step {
    Where where;
    std::uint32_t epoch = 0, clock = 0;
    Id others = nobody, result = nobody;
    std::uint16_t thread = 0;
    friend bool operator==(const Step&, const Step&) = default;
  };

  Id set_of(Held held) const { return held.epoch == epoch_ ? held.set : nobody; }
  Step& step_of(Id others, std::uint16_t thread) {
    return steps_[(others * 0x9e3779b1u + thread * 0x85ebca6bu) >> 22];
  }
  Id append(Id others, std::uint16_t thread, std::uint32_t clock, Where where);
  bool has(Id set, std::uint16_t thread, std::uint32_t clock) const;
  /// Without those that come before what a thread with this clock does, or that have come again.
  Id reduced(Id set, const Clock& clock);
  Id with(Id others, std::uint16_t thread, const Clock& clock, Where where);

  std::vector<Access> accesses_;
  std::vector<Step> steps_;
  std::uint32_t epoch_ = 1;
};

}  // namespace tilewise::emulator
