#include "cuda/emulator/access_sets.hpp"

#include <cstddef>

namespace tilewise::emulator {
namespace {

/// Of one block that does not meet for very long, 32 MiB. Then what it had is forgotten.
constexpr std::size_t most_accesses = std::size_t{1} << 20;

}  // namespace

AccessSets::AccessSets() : accesses_(1), steps_(std::size_t{1} << 10) {}

AccessSets::Id AccessSets::append(Id others, std::uint16_t thread, std::uint32_t clock,
                                  Where where) {
  Step& step = step_of(others, thread);
  const Step wanted{where, epoch_, clock, others, step.result, thread};
  if (step == wanted) return step.result;
  const Access& newest = accesses_[others];
  const std::uint32_t lane = 1u << thread % 32;
  const bool same_warp = others != nobody && newest.thread / 32 == thread / 32;
  const Access access{where,
                      clock,
                      others,
                      thread,
                      static_cast<std::uint16_t>(newest.count + 1),
                      same_warp ? newest.lanes | lane : lane,
                      same_warp ? newest.other_warps : others};
  accesses_.push_back(access);
  step = wanted;
  return step.result = static_cast<Id>(accesses_.size() - 1);
}

bool AccessSets::has(Id set, std::uint16_t thread, std::uint32_t clock) const {
  for (Id warp = set; warp != nobody; warp = accesses_[warp].other_warps) {
    const Access& newest = accesses_[warp];
    if (newest.thread / 32 != thread / 32 || (newest.lanes >> thread % 32 & 1) == 0) continue;
    for (Id id = warp; id != newest.other_warps; id = accesses_[id].others)
      if (accesses_[id].thread == thread && accesses_[id].clock == clock) return true;
  }
  return false;
}

AccessSets::Id AccessSets::reduced(Id set, const Clock& clock) {
  std::vector<bool> has_come(clock.size());
  std::vector<Access> kept;
  for (Id id = set; id != nobody; id = accesses_[id].others) {
    const Access& access = accesses_[id];
    if (access.clock <= clock[access.thread] || has_come[access.thread]) continue;
    has_come[access.thread] = true;
    kept.push_back(access);
  }
  Id result = nobody;
  for (auto access = kept.rbegin(); access != kept.rend(); ++access)
    result = append(result, access->thread, access->clock, access->where);
  return result;
}

AccessSets::Id AccessSets::with(Id others, std::uint16_t thread, const Clock& clock, Where where) {
  if (accesses_.size() > most_accesses) {
    forget();
    others = nobody;
  }
  Id result = others;
  if (!has(others, thread, clock[thread])) {
    const Access& newest = accesses_[others];
    const bool ordered = newest.clock <= clock[newest.thread];
    if (others != nobody && (ordered || newest.count >= 2 * clock.size()))
      result = reduced(others, clock);
    result = append(result, thread, clock[thread], where);
  }
  step_of(others, thread) = {where, epoch_, clock[thread], others, result, thread};
  return result;
}

void AccessSets::forget() {
  accesses_.resize(1);
  ++epoch_;
}

}  // namespace tilewise::emulator
