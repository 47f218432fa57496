#include "cuda/emulator/async_proxy.hpp"

#include "cuda/emulator/block.hpp"
#include "cuda/emulator/hopper.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace tilewise::emulator {

std::string Block::who(std::uint16_t thread) const {
  if (thread < size()) return fmt::format("thread {}", thread);
  for (const Warpgroup& group : warpgroups_)
    if (group.has_agent && group.agent == thread) return "wgmma";
  return "the copy engine";
}

std::uint16_t Block::new_agent() {
  for (Thread& thread : threads_) thread.clock.push_back(0);
  for (Barrier& barrier : barriers_)
    if (barrier.arrived > 0) barrier.joined.push_back(0);
  mbarriers_.new_agent();
  return static_cast<std::uint16_t>(size() + agents_++);
}

bool Block::fenced(const std::vector<std::uint32_t>& fences, std::uint32_t time,
                   std::uint32_t known) {
  const auto next = std::lower_bound(fences.begin(), fences.end(), time);
  return next != fences.end() && *next < known;
}

void Block::fence_proxy_async() {
  Thread& thread = *running_;
  ++thread.ticks;
  thread.proxy_fences.push_back(thread.clock[thread.number]++);
}

// ---------------------------------------------------------------------------- where shared memory
// is

SharedRange& Block::shared_bytes(std::uintptr_t address, std::size_t bytes, Access what,
                                 Where where) {
  SharedRange* range = shared_range(address);
  if (range == nullptr && region_of(address) == nullptr && find_statics(address)) range = &statics_;
  if (range == nullptr) {
    find(Kind::out_of_bounds, where, Where(),
         fmt::format("thread {} {} {} bytes of shared memory at an address that is none of it: {}",
                     running_->number, verb(what), bytes,
                     address >= dynamic_.end && address - dynamic_.end < (1u << 20)
                         ? fmt::format("{} bytes after its end", address - dynamic_.end)
                         : named(address)));
    give_up();
  }
  check_extent(*range, address, bytes, what, where);
  return *range;
}

namespace {

constexpr std::size_t window = 1024;  ///< offsets agree with addresses in as many bytes

std::uint32_t up(std::size_t bytes) {
  return static_cast<std::uint32_t>((bytes + window - 1) / window * window);
}

}  // namespace

std::uint32_t Block::shared_offset(std::uintptr_t address) {
  if (address >= dynamic_.begin && address <= dynamic_.end)
    return static_cast<std::uint32_t>(address - dynamic_.begin);
  return up(dynamic_.end - dynamic_.begin) +
         static_cast<std::uint32_t>(address - statics_.begin / window * window);
}

std::uintptr_t Block::shared_address(std::uint32_t offset) const {
  const std::size_t dynamic = dynamic_.end - dynamic_.begin;
  if (offset < dynamic) return dynamic_.begin + offset;
  if (statics_.end == 0 || offset < up(dynamic)) return 0;
  const std::uintptr_t address = statics_.begin / window * window + (offset - up(dynamic));
  return address >= statics_.begin && address < statics_.end ? address : 0;
}

// ---------------------------------------------------------------------------------------- accesses

void Block::race_with_async_read(Access what, Where where, std::uintptr_t address) {
  const AsyncAccesses::Access* const reader = async_.at(address);
  const Where there = reader != nullptr ? reader->where : Where();
  find_once(Kind::race, where, there, [&] {
    return fmt::format(
        "thread {} {} {}, which {} that thread {} began at {} reads; nobody has waited until it "
        "has",
        running_->number, verb(what), named(address), reader != nullptr ? reader->name : "?",
        reader != nullptr ? reader->thread : 0, line_of(there).text());
  });
}

void Block::check_fenced(const SharedCell& cell, const std::string& does, Where where,
                         std::uintptr_t address, const Clock& knows) {
  const std::uint16_t writer = cell.write_thread;
  if (cell.write_clock == 0 || writer >= size()) return;
  if (fenced(threads_[writer].proxy_fences, cell.write_clock, knows[writer])) return;
  find_once(Kind::not_fenced, where, cell.write_where, [&] {
    return fmt::format(
        "{} {}, which thread {} wrote at {}; no fence_proxy_async() of that thread stands between",
        does, named(address), writer, line_of(cell.write_where).text());
  });
}

AsyncAccesses::Id Block::begin_async_read(const char* name, std::vector<ByteRange> ranges,
                                          Where where, const Clock* knows) {
  const NotTheKernel meanwhile;
  const Clock& clock = knows != nullptr ? *knows : running_->clock;
  const std::string reads = std::string(name) + " reads";
  const auto check = [&](const SharedCell& cell, std::uintptr_t at) {
    if (cell.mbarrier) refuse_mbarrier(Access::read, where, at);
    const bool unknown = cell.write_clock > 0 && clock[cell.write_thread] < cell.write_clock;
    if (cell.in_flight || (unknown && cell.write_thread >= size()))
      find_once(Kind::not_waited_for, where, cell.write_where, [&] {
        return fmt::format("{} reads {}, and the copy that began at {} has not been waited for",
                           name, named(at), line_of(cell.write_where).text());
      });
    else if (!cell.written)
      find_once(Kind::uninitialised, where, Where(), [&] {
        return fmt::format("{} reads {}, which nobody has written", name, named(at));
      });
    else if (unknown)
      find_once(Kind::race, where, cell.write_where, [&] {
        return fmt::format("{} reads {}, which thread {} wrote at {}; nothing orders the two", name,
                           named(at), cell.write_thread, line_of(cell.write_where).text());
      });
    else
      check_fenced(cell, reads, where, at, clock);
    if (!sets_.empty(cell.changes))
      if (const auto* const other = sets_.unordered(cell.changes, clock))
        find_once(Kind::race, where, other->where, [&] {
          return fmt::format(
              "{} reads {}, which thread {} atomically changes at {}; nothing orders the two", name,
              named(at), other->thread, line_of(other->where).text());
        });
  };
  for (const ByteRange& range : ranges) {
    SharedRange& shared = shared_bytes(range.begin, range.bytes, Access::read, where);
    for_cells(shared, range.begin, range.bytes, [&](SharedCell& cell, std::uintptr_t at) {
      check(cell, at);
      ++cell.async_reads;
    });
  }
  return async_.add({name, where, running_->number, std::move(ranges)});
}

void Block::end_async_read(AsyncAccesses::Id id) {
  end_async_read(id, running_->number, running_->clock);
}

void Block::end_async_read(AsyncAccesses::Id id, std::uint16_t agent, const Clock& clock) {
  const NotTheKernel meanwhile;
  const AsyncAccesses::Access& access = async_[id];
  for (const ByteRange& range : access.ranges)
    for_cells(*shared_range(range.begin), range.begin, range.bytes,
              [&](SharedCell& cell, std::uintptr_t) {
                --cell.async_reads;
                sets_.add(cell.reads, agent, clock, access.where);
              });
  async_.remove(id);
}

void Block::begin_async_write(ByteRange range, Where where) {
  SharedRange& shared = shared_bytes(range.begin, range.bytes, Access::write, where);
  for_cells(shared, range.begin, range.bytes, [&](SharedCell& cell, std::uintptr_t at) {
    if (!cell.mbarrier && !cell.in_flight && ordered(cell.write_thread, cell.write_clock))
      check_fenced(cell, "the copy writes", where, at, running_->clock);
  });
  begin_flight(reinterpret_cast<const void*>(range.begin), range.bytes, where);
}

void Block::end_async_write(ByteRange range, std::uint16_t agent, std::uint32_t time) {
  for_cells(*shared_range(range.begin), range.begin, range.bytes,
            [&](SharedCell& cell, std::uintptr_t) {
              cell.in_flight = false;
              cell.write_thread = agent;
              cell.write_clock = time;
            });
}

// -------------------------------------------------------------------------------- what kernels
// call

std::uint32_t shared_offset(const void* pointer, Site site) {
  const NotTheKernel meanwhile;
  Block& block = *Block::current();
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  block.shared_bytes(address, 1, Block::Access::read, Where(site));
  return block.shared_offset(address);
}

void fence_proxy_async(Site) {
  const NotTheKernel meanwhile;
  Block::current()->fence_proxy_async();
}

}  // namespace tilewise::emulator
