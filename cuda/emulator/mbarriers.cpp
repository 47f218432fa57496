#include "cuda/emulator/mbarriers.hpp"

#include "cuda/emulator/block.hpp"
#include "cuda/emulator/hopper.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

namespace tilewise::emulator {

void Block::refuse_mbarrier(Access what, Where where, std::uintptr_t address) {
  const Mbarrier& barrier = *mbarriers_.around(address);
  find(Kind::bad_mbarrier, where, barrier.made,
       fmt::format("thread {} {} {}, where an mbarrier lies that was made at {}", running_->number,
                   verb(what), named(address), line_of(barrier.made).text()));
  give_up();
}

std::string Block::missing(const Thread& thread) {
  const Mbarrier& barrier = *mbarriers_.at(thread.waits_mbarrier);
  return fmt::format(
      "the phase of parity {} of the mbarrier that is {} to end, of which {} of {} arrivals and {} "
      "bytes are missing",
      thread.waits_mask, named(barrier.address), barrier.pending, barrier.arrivals, barrier.bytes);
}

void Block::make_mbarrier(std::uintptr_t address, int arrivals, Where where) {
  if (options().device.compute_capability < 90) refuse_hopper("mbarriers and bulk copies", where);
  if (address % 8 != 0) {
    find(
        Kind::misaligned, where, Where(),
        fmt::format("an mbarrier at an address that is {} more than a multiple of 8", address % 8));
    give_up();
  }
  if (arrivals < 1 || arrivals > most_mbarrier_count) {
    find(Kind::bad_instruction, where, Where(),
         fmt::format("an mbarrier for {} arrivals: a phase takes 1 to {}", arrivals,
                     most_mbarrier_count));
    give_up();
  }
  SharedRange& range = shared_bytes(address, 8, Access::write, where);
  if (const Mbarrier* const before = mbarriers_.at(address)) {
    find(Kind::bad_mbarrier, where, before->made,
         fmt::format("thread {} makes an mbarrier where there is one, made at {}", running_->number,
                     line_of(before->made).text()));
    give_up();
  }
  const std::uint16_t agent = new_agent();
  Mbarrier& barrier = mbarriers_.add(address);
  for_cells(range, address, 8, [&](SharedCell& cell, std::uintptr_t at) {
    check_shared_cell(cell, Access::write, where, at);
    cell.mbarrier = true;
  });
  barrier.address = address;
  barrier.agent = agent;
  barrier.maker = running_->number;
  barrier.made_at = running_->clock[running_->number];
  barrier.made = where;
  barrier.arrivals = barrier.pending = arrivals;
  barrier.arrived.assign(running_->clock.size(), 0);
  barrier.completed = barrier.arrived;
  changed();
}

Mbarrier& Block::mbarrier(std::uintptr_t address, Where where) {
  Mbarrier* const barrier = mbarriers_.at(address);
  if (barrier == nullptr) {
    find(Kind::bad_mbarrier, where, Where(),
         fmt::format("thread {} uses {} as an mbarrier, and nobody has made one there",
                     running_->number, named(address)));
    give_up();
  }
  if (!ordered(barrier->maker, barrier->made_at)) {
    find(Kind::bad_mbarrier, where, barrier->made,
         fmt::format("thread {} uses an mbarrier that thread {} made at {}; nothing orders the two",
                     running_->number, barrier->maker, line_of(barrier->made).text()));
    give_up();
  }
  return *barrier;
}

void Block::check_seen_by_copies(const Mbarrier& barrier, Where where) {
  const Thread& maker = threads_[barrier.maker];
  const std::uint32_t known = running_->clock[barrier.maker];
  if (fenced(maker.init_fences, barrier.made_at, known) ||
      fenced(maker.proxy_fences, barrier.made_at, known))
    return;
  find(Kind::not_fenced, where, barrier.made,
       fmt::format("a copy counts for an mbarrier that thread {} made at {}; no "
                   "mbarrier_fence_init() of that thread stands between",
                   barrier.maker, line_of(barrier.made).text()));
  give_up();
}

void Block::check_announced(const Mbarrier& barrier) {
  if (barrier.pending > 0 || barrier.asked <= barrier.announced) return;
  find(Kind::bad_mbarrier, barrier.asked_last, barrier.announced_last,
       fmt::format("copies of {} bytes count for one phase of an mbarrier, for which {} were "
                   "announced: it may be over before they have come",
                   barrier.asked, barrier.announced));
  give_up();
}

void Block::advance(Mbarrier& barrier) {
  if (barrier.pending > 0 || barrier.bytes != 0) return;
  changed();
  ++barrier.phase;
  join(barrier.completed, barrier.arrived);
  barrier.foreign_completed = barrier.foreign_arrived;
  barrier.completed[barrier.agent] = static_cast<std::uint32_t>(barrier.phase);
  std::fill(barrier.arrived.begin(), barrier.arrived.end(), 0);
  barrier.ticks = barrier.arrived_ticks;
  barrier.pending = barrier.arrivals;
  barrier.asked -= barrier.announced;
  barrier.announced = 0;
  // Any warp may be the first to see it.
  std::vector<std::uint16_t>& waiting = barrier.waiting;
  if (!waiting.empty())
    std::rotate(waiting.begin(),
                waiting.begin() + static_cast<std::ptrdiff_t>(random_() % waiting.size() / 32 * 32),
                waiting.end());
  for (const std::uint16_t number : waiting) wake(number);
  waiting.clear();
}

void Block::arrive(std::uintptr_t address, std::int64_t bytes, Where where) {
  Mbarrier& barrier = mbarrier(address, where);
  Thread& thread = *running_;
  ++thread.ticks;
  changed();
  if (barrier.pending == 0) {
    find(Kind::bad_mbarrier, where, barrier.made,
         fmt::format("thread {} arrives at an mbarrier for {} arrivals, which have all come: {} "
                     "bytes are what this phase waits for",
                     thread.number, barrier.arrivals, barrier.bytes));
    give_up();
  }
  barrier.bytes += bytes;
  if (bytes < 0 || bytes > most_mbarrier_count || std::abs(barrier.bytes) > most_mbarrier_count) {
    find(Kind::bad_mbarrier, where, Where(),
         fmt::format("{} bytes announced to an mbarrier, {} in all: it counts to {}", bytes,
                     barrier.bytes, most_mbarrier_count));
    give_up();
  }
  --barrier.pending;
  if (bytes > 0) {
    barrier.announced += bytes;
    barrier.announced_last = where;
  }
  join(barrier.arrived, thread.clock);
  for (const auto& [block, clock] : thread.foreign) barrier.foreign_arrived[block] = clock;
  ++thread.clock[thread.number];
  barrier.arrived_ticks = std::max(barrier.arrived_ticks, thread.ticks);
  check_announced(barrier);
  advance(barrier);
  if (random_() % 4 == 0) let_others_go_on();
}

bool Block::try_mbarrier(Mbarrier& barrier, unsigned parity) {
  if (!barrier.over(parity)) return false;
  Thread& thread = *running_;
  join(thread.clock, barrier.completed);
  for (const auto& [block, clock] : barrier.foreign_completed) thread.foreign[block] = clock;
  thread.ticks = std::max(thread.ticks, barrier.ticks);
  barrier.seen = std::max(barrier.seen, barrier.phase);
  return true;
}

bool Block::wait_for_mbarrier(std::uintptr_t address, unsigned parity, bool only_tries,
                              Where where) {
  if (parity > 1) {
    find(Kind::bad_instruction, where, Where(),
         fmt::format("a phase has parity 0 or 1, not {}", parity));
    give_up();
  }
  // Between two looks anything may happen.
  if (only_tries || random_() % 4 == 0) let_others_go_on();
  Mbarrier& barrier = mbarrier(address, where);
  ++running_->ticks;
  if (only_tries) {
    const bool over = try_mbarrier(barrier, parity);
    if (!over) looked(reinterpret_cast<const void*>(address), where);
    return over;
  }
  while (!try_mbarrier(barrier, parity)) {
    barrier.waiting.push_back(running_->number);
    running_->waits_mbarrier = address;
    wait("an mbarrier", where, parity);
    running_->waits_mbarrier = 0;
  }
  return true;
}

void Block::refuse_hopper(const char* what, Where where) {
  find(Kind::bad_instruction, where, Where(),
       fmt::format("{} want compute capability 9.0; {} has {}.{}", what, options().device.name,
                   options().device.compute_capability / 10,
                   options().device.compute_capability % 10));
  give_up();
}

// -------------------------------------------------------------------------------- what kernels
// call

void mbarrier_init(void* barrier, int arrivals, Site site) {
  const NotTheKernel meanwhile;
  Block::current()->make_mbarrier(as_address(barrier), arrivals, Where(site));
}

void mbarrier_fence_init(Site) {
  const NotTheKernel meanwhile;
  Thread& thread = Block::current()->thread();
  ++thread.ticks;
  thread.init_fences.push_back(thread.clock[thread.number]++);
}

void mbarrier_arrive(void* barrier, int announced_bytes, Site site) {
  const NotTheKernel meanwhile;
  Block::current()->arrive(as_address(barrier), announced_bytes, Where(site));
}

bool mbarrier_try_wait(void* barrier, unsigned parity, Site site) {
  const NotTheKernel meanwhile;
  return Block::current()->wait_for_mbarrier(as_address(barrier), parity, true, Where(site));
}

void mbarrier_wait(void* barrier, unsigned parity, Site site) {
  const NotTheKernel meanwhile;
  Block::current()->wait_for_mbarrier(as_address(barrier), parity, false, Where(site));
}

}  // namespace tilewise::emulator
