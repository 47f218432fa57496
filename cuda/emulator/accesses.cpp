// Every access of a kernel to memory that threads share: is it there, has it been written, and does
// something order it after what others did there before?
#include "cuda/emulator/block.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

namespace tilewise::emulator {

const char* verb(Block::Access what) {
  switch (what) {
    case Block::Access::read: return "reads";
    case Block::Access::write: return "writes";
    case Block::Access::atomic: return "atomically changes";
  }
  return "";
}

void Block::access(const void* memory, std::size_t bytes, Access what, Where where) {
  const NotTheKernel meanwhile;
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  Thread& thread = *running_;
  if (address >= thread.stack_begin && address < thread.stack_end) {
    if (thread.products.fences > 0) touch_registers(address, bytes, what, where);
    return;
  }
  ++thread.ticks;
  if (what == Access::read && thread.looks_at == address && thread.looks_from == where) {
    ++thread.looks;
  } else {
    thread.looks_at = address;
    thread.looks_from = where;
    thread.looks = 0;
  }
  if (what == Access::write) changed();
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
  // Nothing but the same read again and again: a loop that waits for another's write.
  if (thread.looks >= same_read_in_a_row && thread.looks % 8 == 0) {
    let_others_go_on();
    looked(memory, where);
  }
}

void Block::look(const void* memory, std::size_t bytes, Where where) {
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  if (address >= running_->stack_begin && address < running_->stack_end) return;
  let_others_go_on();
  access(memory, bytes, Access::read, where);
  looked(memory, where);
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

/// "K[17]", "shared memory at offset 8 of tile"
std::string Block::named(std::uintptr_t address) {
  if (address >= dynamic_.begin && address < dynamic_.end)
    return fmt::format("shared memory at offset {}", address - dynamic_.begin);
  if (const Region* const region = region_of(address))
    return fmt::format("{}[{}]", region->name, (address - region->begin) >> region->shift);
  if (const StaticVariable* const variable = variable_before(address))
    return fmt::format("shared memory at offset {} of {}",
                       address - variables_begin_ - variable->begin, variable->name);
  return "shared memory";
}

/// A kernel's arguments, and constants of the program.
bool Block::is_readable(std::uintptr_t address, std::size_t bytes) {
  const auto parameters = reinterpret_cast<std::uintptr_t>(launch().parameters);
  if (address >= parameters && address + bytes <= parameters + launch().parameter_bytes)
    return true;
  if (address < program_.begin || address >= program_.end) program_ = segment_around(address);
  return program_.end != 0;
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

}  // namespace tilewise::emulator
