// Accesses of the asynchronous proxy to shared memory: of the copy engine, and of wgmma. Each has a
// beginning, where a thread asked for it, and an end, where a thread has waited for it; in between
// it may happen at any moment. PTX ISA, "Memory Consistency Model: Proxies".
//
// To begin one: Block::begin_async_read(), which is the beginning's check (is there something, does
// its writing come before, and was it fenced?) and marks the bytes, so that a write from there to
// the end is a race. The end, Block::end_async_read(), is a read by the thread that has waited.
// What is written goes by begin_async_write() and end_async_write().
//
// A write by the copy engine is not one of a thread's: who waits for it is not who asked. So clocks
// have numbers for more than threads. An agent is somebody who does one thing after the other, as a
// thread does, and whose time is handed on like a thread's: the copies that an mbarrier counts are
// one (its time is the number of phases), a thread's bulk stores to global memory are another.
#pragma once

#include "site.hpp"

#include <cstddef>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

namespace tilewise::emulator {

inline std::uintptr_t as_address(const void* pointer) {
  return reinterpret_cast<std::uintptr_t>(pointer);
}

struct ByteRange {
  std::uintptr_t begin = 0;
  std::size_t bytes = 0;
};

/// Those that are under way.
class AsyncAccesses {
 public:
  using Id = std::uint32_t;

  struct Access {
    const char* name = "";  ///< "wgmma", "the TMA store": with an article or none
    Where where;
    std::uint16_t thread = 0;  ///< that asked for it
    std::vector<ByteRange> ranges;
  };

  Id add(Access access) {
    under_way_.emplace(++last_, std::move(access));
    return last_;
  }
  const Access& operator[](Id id) const { return under_way_.at(id); }
  void remove(Id id) { under_way_.erase(id); }

  /// One that has this byte; null: none.
  const Access* at(std::uintptr_t address) const {
    for (const auto& [id, access] : under_way_)
      for (const ByteRange& range : access.ranges)
        if (address >= range.begin && address - range.begin < range.bytes) return &access;
    return nullptr;
  }

 private:
  std::map<Id, Access> under_way_;
  Id last_ = 0;
};

}  // namespace tilewise::emulator
