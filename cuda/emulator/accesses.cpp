// Every access of a kernel to memory that threads share: is it there, has it been written, and does
// something order it after what others did there before?
#include "cuda/emulator/block.hpp"

#include <fmt/format.h>

#include <link.h>

#include <algorithm>
#include <iterator>
#include <mutex>
#include <tuple>
#include <utility>

namespace tilewise::emulator {
namespace {

const char* verb(Block::Access what) {
  switch (what) {
    case Block::Access::read: return "reads";
    case Block::Access::write: return "writes";
    case Block::Access::atomic: return "atomically changes";
  }
  return "";
}

using AddressRange = std::pair<std::uintptr_t, std::uintptr_t>;

/// The part of the program, of one of its libraries, in which the address is; empty if in none.
/// `of_segment`(info, segment) says where a segment lies.
template <class OfSegment>
AddressRange part_around(std::uintptr_t address, const OfSegment& of_segment) {
  struct Search {
    std::uintptr_t address;
    const OfSegment& of_segment;
    AddressRange found;
  } search{address, of_segment, {}};
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* data) {
        auto& wanted = *static_cast<Search*>(data);
        for (int n = 0; n < info->dlpi_phnum; ++n) {
          const AddressRange range = wanted.of_segment(*info, info->dlpi_phdr[n]);
          if (wanted.address >= range.first && wanted.address < range.second) wanted.found = range;
        }
        return 0;
      },
      &search);
  return search.found;
}

/// A module's static variables of this thread of the host: static shared memory.
AddressRange thread_statics_around(std::uintptr_t address) {
  return part_around(address, [](const dl_phdr_info& info, const ElfW(Phdr) & segment) {
    const auto begin = reinterpret_cast<std::uintptr_t>(info.dlpi_tls_data);
    return segment.p_type == PT_TLS && begin != 0 ? AddressRange{begin, begin + segment.p_memsz}
                                                  : AddressRange{};
  });
}

/// Code and constants.
AddressRange segment_around(std::uintptr_t address) {
  return part_around(address, [](const dl_phdr_info& info, const ElfW(Phdr) & segment) {
    const std::uintptr_t begin = info.dlpi_addr + segment.p_vaddr;
    return segment.p_type == PT_LOAD ? AddressRange{begin, begin + segment.p_memsz}
                                     : AddressRange{};
  });
}

}  // namespace

void Block::access(const void* memory, std::size_t bytes, Access what, Where where) {
  const NotTheKernel meanwhile;
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  Thread& thread = *running_;
  if (address >= thread.stack_begin && address < thread.stack_end) return;
  ++thread.ticks;
  if (bytes > 1 && address % bytes != 0) {
    find(Kind::misaligned, where, Where(),
         fmt::format("thread {} {} {} bytes at an address that is {} more than a multiple of {}",
                     thread.number, verb(what), bytes, address % bytes, bytes));
    give_up();
  }
  if (SharedRange* const range = shared_range(address)) {
    access_shared(*range, address, bytes, what, where);
  } else if (Region* const region = region_of(address)) {
    access_global(*region, address, bytes, what, where);
  } else if (find_statics(address)) {
    access_shared(statics_, address, bytes, what, where);
  } else if (what != Access::read || !is_readable(address, bytes)) {
    refuse_outside(address, bytes, what, where);
  }
}

Region* Block::region_of(std::uintptr_t address) {
  if (last_region_ != nullptr && address >= last_region_->begin && address < last_region_->end)
    return last_region_;
  const Regions& all = common_.regions;
  const auto after = std::upper_bound(
      all.begin(), all.end(), address,
      [](std::uintptr_t at, const std::shared_ptr<Region>& region) { return at < region->begin; });
  if (after == all.begin() || address >= (*std::prev(after))->end) return nullptr;
  return last_region_ = std::prev(after)->get();
}

/// A kernel's arguments, and constants of the program.
bool Block::is_readable(std::uintptr_t address, std::size_t bytes) {
  const auto parameters = reinterpret_cast<std::uintptr_t>(launch().parameters);
  if (address >= parameters && address + bytes <= parameters + launch().parameter_bytes)
    return true;
  if (address < program_begin_ || address >= program_end_)
    std::tie(program_begin_, program_end_) = segment_around(address);
  return program_end_ != 0;
}

/// The nearest tensor says most about what went wrong.
void Block::refuse_outside(std::uintptr_t address, std::size_t bytes, Access what, Where where) {
  std::string beside = "no tensor is near";
  std::uintptr_t nearest = std::uintptr_t{1} << 20;
  for (const std::shared_ptr<Region>& other : common_.regions) {
    if (address >= other->end && address - other->end < nearest) {
      nearest = address - other->end;
      beside = fmt::format("{} bytes after the end of {}", nearest, other->name);
    } else if (address < other->begin && other->begin - address < nearest) {
      nearest = other->begin - address;
      beside = fmt::format("{} bytes before the beginning of {}", nearest, other->name);
    }
  }
  if (address >= dynamic_.end && address - dynamic_.end < nearest)
    beside = fmt::format("{} bytes after the end of shared memory", address - dynamic_.end);
  const Thread& thread = *running_;
  if (address < thread.stack_begin && thread.stack_begin - address < nearest)
    beside = "below its stack, of which a kernel has 192 KiB here";
  find(Kind::out_of_bounds, where, Where(),
       fmt::format("thread {} of block {} {} {} bytes outside of all memory: {}", thread.number,
                   number_, verb(what), bytes, beside));
  give_up();
}

// ----------------------------------------------------------------------------------------- shared

SharedRange* Block::shared_range(std::uintptr_t address) {
  if (address >= dynamic_.begin && address < dynamic_.end) return &dynamic_;
  if (address >= statics_.begin && address < statics_.end) return &statics_;
  return nullptr;
}

/// Static shared variables are found when the first of them is used.
bool Block::find_statics(std::uintptr_t address) {
  if (statics_.end != 0) return false;
  const auto [begin, end] = thread_statics_around(address);
  if (end == 0) return false;
  statics_.begin = begin / 16 * 16;
  statics_.end = end;
  statics_.cells.resize((statics_.end - statics_.begin) / 2 + 1);
  return true;
}

void Block::access_shared(SharedRange& range, std::uintptr_t address, std::size_t bytes,
                          Access what, Where where) {
  if (address + bytes > range.end) {
    find(Kind::out_of_bounds, where, Where(),
         fmt::format("thread {} {} {} bytes of shared memory at offset {}; there are {}",
                     running_->number, verb(what), bytes, address - range.begin,
                     range.end - range.begin));
    give_up();
  }
  count_request(where, Requests::Memory::shared, nullptr, address - range.begin, bytes);
  const std::size_t first = (address - range.begin) / 2;
  const std::size_t last = (address + bytes - 1 - range.begin) / 2;
  for (std::size_t n = first; n <= last; ++n) check_shared_cell(range.cells[n], what, where, n * 2);
}

void Block::check_shared_cell(SharedCell& cell, Access what, Where where, std::uintptr_t offset) {
  const Thread& thread = *running_;
  const std::uint32_t now = thread.clock[thread.number];
  if (cell.in_flight)
    find_once(Kind::not_waited_for, where, cell.write_where, [&] {
      return fmt::format(
          "thread {} {} shared memory at offset {}, where the copy that thread {} began "
          "at {} has not been waited for",
          thread.number, verb(what), offset, cell.write_thread, line_of(cell.write_where).text());
    });
  else if (what != Access::write && !cell.written)
    find_once(Kind::uninitialised, where, Where(), [&] {
      return fmt::format("thread {} {} shared memory at offset {}, which nobody has written",
                         thread.number, verb(what), offset);
    });
  else if (cell.written && !ordered(cell.write_thread, cell.write_clock) &&
           !(what == Access::atomic && cell.atomically))
    find_once(Kind::race, where, cell.write_where, [&] {
      return fmt::format(
          "thread {} {} shared memory at offset {}, which thread {} wrote at {}; nothing "
          "orders the two",
          thread.number, verb(what), offset, cell.write_thread, line_of(cell.write_where).text());
    });
  else if (what == Access::atomic && cell.plain_clock > 0 &&
           !ordered(cell.plain_thread, cell.plain_clock))
    find_once(Kind::race, where, cell.plain_where, [&] {
      return fmt::format(
          "thread {} {} shared memory at offset {}, which thread {} wrote at {}, not atomically; "
          "nothing orders the two",
          thread.number, verb(what), offset, cell.plain_thread, line_of(cell.plain_where).text());
    });

  if (what == Access::read) {
    const bool alone = !cell.read || cell.read_thread == thread.number ||
                       ordered(cell.read_thread, cell.read_clock);
    if (cell.readers == 0 && !alone) {
      readers_.resize(readers_.size() + threads_.size());
      cell.readers = static_cast<std::uint32_t>(readers_.size() / threads_.size());
      readers_of(cell)[cell.read_thread] = cell.read_clock;
    }
    if (cell.readers != 0) readers_of(cell)[thread.number] = now;
    cell.read = true;
    cell.read_thread = thread.number;
    cell.read_clock = now;
    cell.read_where = where;
    return;
  }

  if (cell.read) {
    std::uint16_t racing = cell.read_thread;
    bool race = !ordered(cell.read_thread, cell.read_clock);
    if (!race && cell.readers != 0) {
      const std::uint32_t* const readers = readers_of(cell);
      for (std::size_t n = 0; n < threads_.size() && !race; ++n)
        if (readers[n] > thread.clock[n]) {
          race = true;
          racing = static_cast<std::uint16_t>(n);
        }
    }
    if (race)
      find_once(Kind::race, where, cell.read_where, [&] {
        return fmt::format(
            "thread {} {} shared memory at offset {}, which thread {} reads at {}; "
            "nothing orders the two",
            thread.number, verb(what), offset, racing, line_of(cell.read_where).text());
      });
  }
  cell.read = false;
  if (cell.readers != 0) std::fill_n(readers_of(cell), threads_.size(), 0u);
  cell.written = true;
  cell.atomically = what == Access::atomic;
  cell.write_thread = thread.number;
  cell.write_clock = now;
  cell.write_where = where;
  if (what == Access::atomic) return;
  cell.plain_thread = thread.number;
  cell.plain_clock = now;
  cell.plain_where = where;
}

void Block::begin_flight(const void* memory, std::size_t bytes, Where where) {
  const NotTheKernel meanwhile;
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  SharedRange* const range = shared_range(address);
  for (std::size_t n = (address - range->begin) / 2; n < (address + bytes - range->begin) / 2;
       ++n) {
    check_shared_cell(range->cells[n], Access::write, where, n * 2);
    range->cells[n].in_flight = true;
  }
}

void Block::end_flight(const void* memory, std::size_t bytes) {
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  SharedRange* const range = shared_range(address);
  for (std::size_t n = (address - range->begin) / 2; n < (address + bytes - range->begin) / 2;
       ++n) {
    range->cells[n].in_flight = false;
    range->cells[n].write_thread = running_->number;
    range->cells[n].write_clock = running_->clock[running_->number];
  }
}

// ----------------------------------------------------------------------------------------- global

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

bool Block::ordered(const Stamp& stamp, bool many_threads) const {
  if (stamp.launch != common_.number) return true;  // one launch after the other
  if (stamp.block != number_) {
    const auto known = running_->foreign.find(stamp.block);
    return known != running_->foreign.end() && (*known->second)[stamp.thread] >= stamp.clock;
  }
  if (ordered(stamp.thread, stamp.clock) && !many_threads) return true;
  // Of many readers only the last is known. All of them read before the block met.
  return many_threads ? stamp.meetings < meetings_ || ordered(stamp.thread, stamp.clock) : false;
}

void Block::check_global_cell(const Region& region, std::size_t n, Access what, Where where) {
  GlobalCell& cell = region.cells[n];
  const Thread& thread = *running_;
  const auto stamped = [&](const Stamp& stamp) {
    return fmt::format("thread {} of block {}", stamp.thread, stamp.block);
  };
  if (what != Access::write && !cell.written)
    find_once(Kind::uninitialised, where, Where(), [&] {
      return fmt::format("thread {} of block {} {} {}[{}], which nobody has written", thread.number,
                         number_, verb(what), region.name, n);
    });
  if (!ordered(cell.write, false) && !(what == Access::atomic && cell.atomically))
    find_once(Kind::race, where, cell.write_where, [&] {
      return fmt::format(
          "thread {} of block {} {} {}[{}], which {} wrote at {}; nothing orders the two",
          thread.number, number_, verb(what), region.name, n, stamped(cell.write),
          line_of(cell.write_where).text());
    });
  else if (what == Access::atomic && !ordered(cell.plain, false))
    find_once(Kind::race, where, cell.plain_where, [&] {
      return fmt::format(
          "thread {} of block {} {} {}[{}], which {} wrote at {}, not atomically; nothing orders "
          "the "
          "two",
          thread.number, number_, verb(what), region.name, n, stamped(cell.plain),
          line_of(cell.plain_where).text());
    });
  const Stamp now{common_.number, number_, thread.clock[thread.number], thread.number, meetings_};
  if (what == Access::read) {
    const bool earlier = cell.read.launch == now.launch;
    if (!earlier) cell.many_blocks = cell.many_threads = false;
    if (earlier && cell.read.block != now.block) cell.many_blocks = true;
    if (earlier && cell.read.block == now.block && cell.read.thread != now.thread)
      cell.many_threads = true;
    cell.read = now;
    cell.read_where = where;
    return;
  }
  if (cell.read.launch == now.launch &&
      (!ordered(cell.read, cell.many_threads) || (cell.many_blocks && what == Access::write)))
    find_once(Kind::race, where, cell.read_where, [&] {
      return fmt::format(
          "thread {} of block {} {} {}[{}], which {} reads at {}; nothing orders the two",
          thread.number, number_, verb(what), region.name, n, stamped(cell.read),
          line_of(cell.read_where).text());
    });
  cell.read = {};
  cell.many_blocks = cell.many_threads = false;
  cell.written = true;
  cell.atomically = what == Access::atomic;
  cell.write = now;
  cell.write_where = where;
  if (what == Access::atomic) return;
  cell.plain = now;
  cell.plain_where = where;
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
