// Where threads wait for each other: barriers of a block, and meetings of a warp's lanes.
#include "cuda/emulator/block.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <string_view>
#include <utility>

namespace tilewise::emulator {

void Block::join(Clock& to, const Clock& from) const {
  // One that was kept may be from before the newest agent (async_proxy.hpp).
  const std::size_t known = std::min(to.size(), from.size());
  for (std::size_t n = 0; n < known; ++n) to[n] = std::max(to[n], from[n]);
}

void Block::barrier(unsigned id, std::int64_t expected, bool waits, Where where) {
  const NotTheKernel meanwhile;
  Thread& thread = *running_;
  Barrier& barrier = barriers_[id];
  ++thread.ticks;
  if (barrier.arrived == 0) {
    barrier.expected = expected;
    barrier.where = where;
    barrier.joined.assign(thread.clock.size(), 0);
    barrier.ticks = 0;
  } else if (barrier.expected != expected) {
    find(Kind::bad_instruction, where, barrier.where,
         fmt::format("barrier {} is for {} threads here, and for {} at {}", id, expected,
                     barrier.expected, line_of(barrier.where).text()));
    give_up();
  } else if (id == 0 && !same_line(barrier.where, where)) {
    find(Kind::divergent_barrier, where, barrier.where,
         fmt::format("thread {} comes to __syncthreads() here, others at {}: all threads of a "
                     "block must come to the same one",
                     thread.number, line_of(barrier.where).text()));
    give_up();
  }
  join(barrier.joined, thread.clock);
  for (const auto& [block, clock] : thread.foreign) barrier.foreign[block] = clock;
  barrier.ticks = std::max(barrier.ticks, thread.ticks);
  ++barrier.arrived;
  (waits ? barrier.waiting : barrier.only_arrived).push_back(thread.number);
  const bool complete = barrier.arrived == barrier.expected;
  if (!complete) {
    if (waits)
      wait(id == 0 && expected == size() ? "__syncthreads()" : "a named barrier", where, id);
    else
      ++thread.clock[thread.number];
    return;
  }

  ++report.counts.barriers;
  if (expected == size()) {
    if (barrier.only_arrived.empty()) all_have_met();
    for (Warp& warp : warps_) flush(warp);
  }
  const Clock joined = barrier.joined;
  const Foreign foreign = std::move(barrier.foreign);
  for (const std::uint16_t number : barrier.waiting) {
    Thread& other = threads_[number];
    other.clock = joined;
    ++other.clock[number];
    for (const auto& [block, clock] : foreign) other.foreign[block] = clock;
    other.ticks = barrier.ticks;
  }
  if (!waits) ++thread.clock[thread.number];
  std::vector<std::uint16_t> waiting = std::move(barrier.waiting);
  barrier = Barrier{};
  std::erase(waiting, thread.number);
  // Warps go on in any order; the lanes of one, together.
  std::rotate(waiting.begin(),
              waiting.begin() + static_cast<std::ptrdiff_t>(
                                    waiting.empty() ? 0 : random_() % waiting.size() / 32 * 32),
              waiting.end());
  for (const std::uint16_t number : waiting) wake(number);
  if (waits) let_others_go_on();
}

void Block::meet(const char* name, unsigned mask, void* operand, WarpFunction function,
                 Where where) {
  const NotTheKernel meanwhile;
  Thread& thread = *running_;
  ++thread.ticks;
  const unsigned lane_bit = 1u << thread.lane();
  const auto present =
      static_cast<unsigned>(std::min<std::int64_t>(size() - thread.warp() * 32, 32));
  const unsigned lanes = present == 32 ? ~0u : (1u << present) - 1;
  if ((mask & lane_bit) == 0) {
    find(Kind::divergent_warp, where, Where(),
         fmt::format("lane {} calls {} with a mask, {:#010x}, that lacks it", thread.lane(), name,
                     mask));
    give_up();
  }
  // A full mask names the lanes that the warp does not have, where a block is no multiple of 32.
  mask &= lanes;
  std::vector<Meeting>& meetings = warp().meetings;
  auto meeting = std::find_if(meetings.begin(), meetings.end(),
                              [&](const Meeting& open) { return (open.mask & lane_bit) != 0; });
  if (meeting == meetings.end()) {
    meetings.push_back({name, mask, 0, where, {}});
    meeting = meetings.end() - 1;
  } else if (meeting->mask != mask || std::string_view(meeting->name) != name) {
    find(Kind::divergent_warp, where, meeting->where,
         fmt::format("lane {} calls {} with mask {:#010x}; lanes of that mask are in {} with mask "
                     "{:#010x} at {}",
                     thread.lane(), name, mask, meeting->name, meeting->mask,
                     line_of(meeting->where).text()));
    give_up();
  }
  meeting->arrived |= lane_bit;
  meeting->operands[thread.lane()] = operand;
  if (meeting->arrived != mask) {
    wait(name, where, mask);
    return;
  }
  const Meeting complete = *meeting;
  meetings.erase(meeting);
  function(complete.operands, mask);
  std::int64_t ticks = 0;
  const unsigned first = thread.warp() * 32;
  for (unsigned lanes_left = mask; lanes_left != 0; lanes_left &= lanes_left - 1)
    ticks = std::max(ticks, threads_[first + std::countr_zero(lanes_left)].ticks);
  for (unsigned left = mask; left != 0; left &= left - 1) {
    Thread& other = threads_[first + static_cast<unsigned>(std::countr_zero(left))];
    other.ticks = ticks;
    if (&other != &thread) wake(other.number);
  }
  if (mask == lanes) flush(warp());
  let_others_go_on();
}

void Block::sync_warp(unsigned mask, Where where) {
  meet(
      "__syncwarp()", mask, running_,
      [](void* const operands[32], unsigned lanes) {
        Clock joined;
        for (unsigned left = lanes; left != 0; left &= left - 1) {
          const auto& thread = *static_cast<const Thread*>(operands[std::countr_zero(left)]);
          if (joined.empty())
            joined = thread.clock;
          else
            for (std::size_t n = 0; n < joined.size(); ++n)
              joined[n] = std::max(joined[n], thread.clock[n]);
        }
        for (unsigned left = lanes; left != 0; left &= left - 1) {
          auto& thread = *static_cast<Thread*>(operands[std::countr_zero(left)]);
          thread.clock = joined;
          ++thread.clock[thread.number];
        }
        Block& block = *Block::current();
        ++block.report.counts.warp_syncs;
        if (std::popcount(lanes) == block.size()) block.all_have_met();
      },
      where);
}

}  // namespace tilewise::emulator
