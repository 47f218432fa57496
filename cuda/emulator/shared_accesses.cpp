// Accesses to shared memory, each byte of which remembers who wrote it, and who has read it since.
#include "cuda/emulator/block.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

namespace tilewise::emulator {

SharedRange* Block::shared_range(std::uintptr_t address) {
  if (address >= dynamic_.begin && address < dynamic_.end) return &dynamic_;
  if (address >= statics_.begin && address < statics_.end) return &statics_;
  return nullptr;
}

/// Static shared variables are found when the first of them is used.
bool Block::find_statics(std::uintptr_t address) {
  if (statics_.end != 0) return false;
  const Statics statics = statics_around(address);
  if (statics.end == 0) return false;
  variables_ = statics.variables;
  variables_begin_ = statics.begin;
  statics_.begin = statics.begin / 16 * 16;
  statics_.end = statics.end;
  statics_.cells.resize((statics_.end - statics_.begin) / 2 + 1);
  return true;
}

const StaticVariable* Block::variable_before(std::uintptr_t address) const {
  if (variables_ == nullptr) return nullptr;
  const auto after =
      std::upper_bound(variables_->begin(), variables_->end(), address - variables_begin_,
                       [](std::uintptr_t at, const StaticVariable& one) { return at < one.begin; });
  return after == variables_->begin() ? nullptr : &*std::prev(after);
}

/// A kernel's static shared memory is what it uses: the program has other kernels' beside it.
void Block::use_static(std::uintptr_t address, Access what, Where where) {
  const StaticVariable* const variable = variable_before(address);
  if (variable == nullptr) return;
  const std::uintptr_t begin = variables_begin_ + variable->begin;
  const std::uintptr_t end = variables_begin_ + variable->end;
  if (address >= end) {
    find(Kind::out_of_bounds, where, Where(),
         fmt::format("thread {} {} shared memory {} bytes after the end of {}", running_->number,
                     verb(what), address - end, variable->name));
    give_up();
  }
  for (std::uintptr_t at = begin; at < end; ++at)
    statics_.cells[(at - statics_.begin) / 2].counted = true;
  static_bytes_ += end - begin;
  const Device& device = options().device;
  const bool consented = launch().shared_consented > device.shared_bytes_without_consent;
  const std::size_t most =
      consented ? device.shared_bytes_a_block : device.shared_bytes_without_consent;
  if (static_bytes_ > device.shared_bytes_without_consent ||
      static_bytes_ + launch().shared_bytes > most) {
    find(Kind::bad_launch, Where(), Where(),
         fmt::format("{} bytes of static shared memory{} for a block: {} allows {} static ones, {} "
                     "in all{}",
                     static_bytes_,
                     launch().shared_bytes > 0
                         ? fmt::format(" and {} of dynamic", launch().shared_bytes)
                         : "",
                     device.name, device.shared_bytes_without_consent, most,
                     consented ? "" : " without the kernel's consent"));
    give_up();
  }
}

/// All of it is there, if the beginning is.
void Block::check_extent(SharedRange& range, std::uintptr_t address, std::size_t bytes, Access what,
                         Where where) {
  if (address + bytes > range.end) {
    find(Kind::out_of_bounds, where, Where(),
         fmt::format("thread {} {} {} bytes of shared memory at offset {}; there are {}",
                     running_->number, verb(what), bytes, address - range.begin,
                     range.end - range.begin));
    give_up();
  }
  if (&range == &statics_)
    for (const std::uintptr_t at : {address, address + bytes - 1})
      if (!range.cells[(at - range.begin) / 2].counted) use_static(at, what, where);
}

void Block::access_shared(SharedRange& range, std::uintptr_t address, std::size_t bytes,
                          Access what, Where where) {
  check_extent(range, address, bytes, what, where);
  count_request(where, Requests::Memory::shared, nullptr, address - range.begin, bytes);
  for_cells(range, address, bytes,
            [&](SharedCell& cell, std::uintptr_t at) { check_shared_cell(cell, what, where, at); });
}

void Block::check_shared_cell(SharedCell& cell, Access what, Where where, std::uintptr_t address) {
  const Thread& thread = *running_;
  const auto race = [&](std::uint16_t other, const char* did, Where there) {
    find_once(Kind::race, where, there, [&] {
      return fmt::format("thread {} {} {}, which {} {} at {}; nothing orders the two",
                         thread.number, verb(what), named(address), who(other), did,
                         line_of(there).text());
    });
  };
  if (cell.mbarrier) refuse_mbarrier(what, where, address);
  if (cell.async_reads > 0 && what != Access::read) race_with_async_read(what, where, address);
  if (cell.in_flight)
    find_once(Kind::not_waited_for, where, cell.write_where, [&] {
      return fmt::format(
          "thread {} {} {}, where the copy that thread {} began at {} has not been waited for",
          thread.number, verb(what), named(address), cell.write_thread,
          line_of(cell.write_where).text());
    });
  else if (what != Access::write && !cell.written)
    find_once(Kind::uninitialised, where, Where(), [&] {
      return fmt::format("thread {} {} {}, which nobody has written", thread.number, verb(what),
                         named(address));
    });
  else if (cell.write_clock > 0 && !ordered(cell.write_thread, cell.write_clock)) {
    if (cell.write_thread < size())
      race(cell.write_thread, "wrote", cell.write_where);
    else
      find_once(Kind::not_waited_for, where, cell.write_where, [&] {
        return fmt::format("thread {} {} {}, and has not waited for the copy that began at {}",
                           thread.number, verb(what), named(address),
                           line_of(cell.write_where).text());
      });
  }
  if (what != Access::atomic && !sets_.empty(cell.changes))
    if (const auto* const other = sets_.unordered(cell.changes, thread.clock))
      race(other->thread, "atomically changes", other->where);
  if (what == Access::read) {
    sets_.add(cell.reads, thread.number, thread.clock, where);
    return;
  }
  if (!sets_.empty(cell.reads))
    if (const auto* const other = sets_.unordered(cell.reads, thread.clock))
      race(other->thread, "reads", other->where);
  cell.written = true;
  cell.reads = {};
  if (what == Access::atomic) {
    sets_.add(cell.changes, thread.number, thread.clock, where);
    return;
  }
  cell.changes = {};
  cell.write_thread = thread.number;
  cell.write_clock = thread.clock[thread.number];
  cell.write_where = where;
}

void Block::begin_flight(const void* memory, std::size_t bytes, Where where) {
  const NotTheKernel meanwhile;
  changed();
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  SharedRange& range = *shared_range(address);
  for_cells(range, address, bytes, [&](SharedCell& cell, std::uintptr_t at) {
    check_shared_cell(cell, Access::write, where, at);
    cell.in_flight = true;
  });
}

void Block::end_flight(const void* memory, std::size_t bytes) {
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  for_cells(*shared_range(address), address, bytes, [&](SharedCell& cell, std::uintptr_t) {
    cell.in_flight = false;
    cell.write_thread = running_->number;
    cell.write_clock = running_->clock[running_->number];
  });
}

}  // namespace tilewise::emulator
