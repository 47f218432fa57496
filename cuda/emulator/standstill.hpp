// Threads may wait in a loop for another's change. If all that runs only looks, and nobody changes
// anything any more, the loops have no end: a launch's blocks find that out together.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>

namespace tilewise::emulator {

class Standstill {
 public:
  /// Threads of the host run blocks, until there are none left.
  void begin(std::int64_t hosts) { hosts_ = hosts; }
  void host_ends();
  void block_begins() { ++begun_; }
  std::int64_t begun() const { return begun_; }

  /// A block that has looked in vain for a while wants to know of other blocks' changes: they say
  /// so as long as somebody does.
  void watch() { ++watchers_; }
  void unwatch() { --watchers_; }
  bool watched() const { return watchers_ != 0; }
  void changed() { ++changes_; }
  std::uint64_t changes() const { return changes_; }

  /// One more block has looked long enough, all of it since there were as many `changes`.
  void stuck(std::uint64_t changes);
  bool all_are_stuck() const { return all_are_stuck_; }

 private:
  std::atomic<std::int64_t> watchers_{0}, begun_{0};
  std::atomic<std::uint64_t> changes_{0};
  std::atomic<bool> all_are_stuck_{false};
  std::mutex mutex_;
  std::int64_t hosts_ = 0, stuck_ = 0;
  std::uint64_t stuck_since_ = 0;
};

}  // namespace tilewise::emulator
