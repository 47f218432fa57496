#include "cuda/emulator/standstill.hpp"

#include "cuda/emulator/block.hpp"

#include <algorithm>

namespace tilewise::emulator {

void Standstill::host_ends() {
  const std::lock_guard<std::mutex> guard(mutex_);
  --hosts_;
  ++changes_;
}

void Standstill::stuck(std::uint64_t changes) {
  const std::lock_guard<std::mutex> guard(mutex_);
  if (changes != changes_) return;
  if (stuck_since_ != changes) stuck_ = 0;
  stuck_since_ = changes;
  if (++stuck_ == hosts_) all_are_stuck_ = true;
}

void Block::looked(const void* memory, Where where) {
  const NotTheKernel meanwhile;
  running_->looks_at = reinterpret_cast<std::uintptr_t>(memory);
  running_->looks_from = where;
  if (has_changed_) return;
  // A round: everybody who can go on has looked once.
  const auto round = static_cast<std::int64_t>(ready_.size() - ready_first_ + 1);
  const std::int64_t most = round * std::max<std::int64_t>(options().patience, 2);
  // What loops look at may be a copy's to change.
  if (++looks_ >= 2 * round && bring_any(true)) return;
  if (looks_ < most / 2) return;
  // The other half of the rounds counts only while no other block changes anything.
  Standstill& all = common_.standstill;
  if (!watches_) all.watch();
  if (!watches_ || changes_seen_ != all.changes()) {
    watches_ = true;
    is_stuck_ = false;
    changes_seen_ = all.changes();
    looks_ = most / 2;
  }
  if (looks_ >= most && !is_stuck_) {
    is_stuck_ = true;
    all.stuck(changes_seen_);
  }
  if (!all.all_are_stuck()) return;
  // Another block's finding, and so its end, may be why nobody does what is waited for.
  if (!common_.stop) report_deadlock();
  give_up();
}

void Block::has_gone_on() {
  has_changed_ = false;
  looks_ = 0;
  Standstill& all = common_.standstill;
  if (all.watched()) all.changed();
  if (watches_) all.unwatch();
  watches_ = is_stuck_ = false;
}

}  // namespace tilewise::emulator
