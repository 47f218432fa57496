// Accesses to global memory, each element of which remembers who wrote it, and who has read it
// since; and what atomic operations order between blocks.
#include "cuda/emulator/block.hpp"

#include <fmt/format.h>

#include <mutex>

namespace tilewise::emulator {

void Block::access_global(Region& region, std::uintptr_t address, std::size_t bytes, Access what,
                          Where where) {
  if (address + bytes > region.end) {
    find(Kind::out_of_bounds, where, Where(),
         fmt::format("thread {} of block {} {} {} bytes of which {} lie after the end of {}",
                     running_->number, number_, verb(what), bytes, address + bytes - region.end,
                     region.name));
    give_up();
  }
  Traffic& traffic = report.counts.traffic[region.name];
  if (what == Access::atomic) {
    ++traffic.atomics;
  } else {
    (what == Access::read ? traffic.bytes_loaded : traffic.bytes_stored) +=
        static_cast<std::int64_t>(bytes);
    count_request(where, what == Access::read ? Requests::Memory::loads : Requests::Memory::stores,
                  &region, address, bytes);
  }
  const std::size_t first = (address - region.begin) >> region.shift;
  const std::size_t last = (address + bytes - 1 - region.begin) >> region.shift;
  for (std::size_t n = first; n <= last; ++n) {
    const std::lock_guard<SpinLock> guard(region.lock_of(n));
    check_global_cell(region, n, what, where);
  }
}

bool Block::ordered(const Stamp& stamp) const {
  if (stamp.launch != common_.number) return true;  // one launch after the other
  if (stamp.block == number_) return ordered(stamp.thread, stamp.clock);
  const auto known = running_->foreign.find(stamp.block);
  return known != running_->foreign.end() && stamp.thread < known->second->size() &&
         (*known->second)[stamp.thread] >= stamp.clock;
}

/// One that does not come before what the running thread does; of launch 0: all do.
Stamp Block::unordered(const Uses& uses) const {
  if (uses.last.launch != common_.number) return {};
  if (!ordered(uses.last)) return uses.last;
  if (!ordered(uses.elsewhere)) return uses.elsewhere;
  if (uses.last.block == number_)
    if (const auto* const other = sets_.unordered(uses.all, running_->clock))
      return {other->where, common_.number, number_, other->clock, other->thread};
  return {};
}

void Block::add_to(Uses& uses, const Stamp& now) {
  if (uses.last.launch != now.launch)
    uses = {};
  else if (uses.last.block != now.block) {
    uses.elsewhere = uses.last;
    uses.all = {};
  }
  uses.last = now;
  sets_.add(uses.all, now.thread, running_->clock, now.where);
}

void Block::check_global_cell(const Region& region, std::size_t n, Access what, Where where) {
  GlobalCell& cell = region.cells[n];
  const Thread& thread = *running_;
  const auto race = [&](const Stamp& other, const char* did) {
    find_once(Kind::race, where, other.where, [&] {
      return fmt::format(
          "{} of block {} {} {}[{}], which {} of block {} {} at {}; nothing orders the two",
          who(thread.number), number_, verb(what), region.name, n, who(other.thread), other.block,
          did, line_of(other.where).text());
    });
  };
  if (what != Access::write && !cell.written)
    find_once(Kind::uninitialised, where, Where(), [&] {
      return fmt::format("{} of block {} {} {}[{}], which nobody has written", who(thread.number),
                         number_, verb(what), region.name, n);
    });
  if (!ordered(cell.write)) race(cell.write, "wrote");
  if (what != Access::atomic)
    if (const Stamp other = unordered(cell.changes); other.launch != 0)
      race(other, "atomically changes");
  const Stamp now{where, common_.number, number_, thread.clock[thread.number], thread.number};
  if (what == Access::read) {
    add_to(cell.reads, now);
    return;
  }
  if (const Stamp other = unordered(cell.reads); other.launch != 0) race(other, "reads");
  cell.written = true;
  cell.reads = {};
  if (what == Access::atomic) {
    add_to(cell.changes, now);
    return;
  }
  cell.changes = {};
  cell.write = now;
}

// ------------------------------------------------------------------------- atomics between blocks

void Block::fence() {
  const NotTheKernel meanwhile;
  ++running_->ticks;
  running_->fenced = std::make_shared<const Clock>(running_->clock);
  ++running_->clock[running_->number];
}

void Block::acquire_and_release(const void* variable) {
  const NotTheKernel meanwhile;
  Thread& thread = *running_;
  const std::lock_guard<std::mutex> guard(common_.variables.mutex);
  Foreign& released = common_.variables.released[variable];
  // What others let go of before, is known from here on; of one's own block, too.
  for (const auto& [block, clock] : released) {
    if (block == number_)
      join(thread.clock, *clock);
    else
      thread.foreign[block] = clock;
  }
  // What this thread did before its last fence is for whoever comes next; and what it had learnt.
  if (thread.fenced == nullptr) return;
  for (const auto& [block, clock] : thread.foreign) released[block] = clock;
  released[number_] = thread.fenced;
}

}  // namespace tilewise::emulator
