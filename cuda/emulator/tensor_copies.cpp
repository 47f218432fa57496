// The copy engine: boxes of tensors, and pieces of plain memory, to and from shared memory. A copy
// is asked for, and happens at some time that is allowed: what it reads and writes is checked and
// marked when it is asked for, so that the bytes' true time matters to wrong kernels only.
#include "cuda/emulator/block.hpp"
#include "cuda/emulator/bulk_copies.hpp"
#include "cuda/emulator/hopper.hpp"
#include "cuda/emulator/tensor_maps.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

namespace tilewise::emulator {
namespace {

char* bytes_at(std::uintptr_t address) {
  return reinterpret_cast<char*>(address);
}

constexpr std::size_t chunk = 16;

/// Row by row; what lies outside has no address, and never gets one.
void find_rows(BulkCopy& copy, const TensorBox& box, const int* at) {
  copy.row_bytes = box.row_bytes();
  copy.swizzle = box.swizzle;
  std::int64_t index[5] = {};
  for (int n = 0; n < box.dimensions; ++n) index[n] = at[n];
  const auto clip = [&](std::int64_t place) {
    return static_cast<std::size_t>(std::clamp<std::int64_t>(place - index[0], 0, box.box[0])) *
           box.element;
  };
  const std::size_t begin = clip(0), end = clip(static_cast<std::int64_t>(box.size[0]));
  const auto inner = static_cast<std::uint64_t>(std::max<std::int64_t>(index[0], 0));
  copy.rows.resize(box.rows());
  for (std::size_t row = 0; row < copy.rows.size(); ++row) {
    std::size_t left = row;
    bool inside = begin < end;
    std::uint64_t offset = inner * box.element;
    for (int n = 1; n < 5; ++n) {
      const auto place = index[n] + static_cast<std::int64_t>(left % box.box[n]);
      left /= box.box[n];
      inside = inside && place >= 0 && static_cast<std::uint64_t>(place) < box.size[n];
      offset += static_cast<std::uint64_t>(place) * box.stride_bytes[n];
    }
    if (inside) copy.rows[row] = {box.memory + offset, begin, end};
  }
}

/// To shared memory: rows [first, last), with zeros for what lies outside.
void bring(const BulkCopy& copy, std::size_t first, std::size_t last) {
  std::vector<char> row(copy.row_bytes);
  for (std::size_t n = first; n < last; ++n) {
    const CopiedRow& from = copy.rows[n];
    std::fill(row.begin(), row.end(), '\0');
    if (from.end > from.begin)
      std::memcpy(row.data() + from.begin, bytes_at(from.global), from.end - from.begin);
    const std::uintptr_t to = copy.shared + n * copy.row_bytes;
    for (std::size_t at = 0; at < copy.row_bytes; at += chunk)
      std::memcpy(bytes_at(swizzled(to + at, copy.swizzle)), row.data() + at, chunk);
  }
}

/// From shared memory.
std::vector<char> taken(const BulkCopy& copy) {
  std::vector<char> bytes(copy.bytes());
  for (std::size_t at = 0; at < bytes.size(); at += chunk)
    std::memcpy(bytes.data() + at, bytes_at(swizzled(copy.shared + at, copy.swizzle)), chunk);
  return bytes;
}

void add_floats(std::uintptr_t to, const char* from, std::size_t bytes) {
  for (std::size_t at = 0; at < bytes; at += sizeof(float)) {
    float more = 0;
    std::memcpy(&more, from + at, sizeof more);
    std::atomic_ref<float> there(*reinterpret_cast<float*>(to + at));
    float before = there.load();
    while (!there.compare_exchange_weak(before, before + more)) {
    }
  }
}

}  // namespace

// -------------------------------------------------------------------------------------------
// checks

/// What global memory says to the rows, at a time of the agent's.
void Block::copy_global(const BulkCopy& copy, Access what, std::uint16_t agent,
                        std::uint32_t time) {
  Thread& asks = *running_;
  Thread acts;
  acts.number = agent;
  acts.clock = asks.clock;
  acts.clock[agent] = time;
  acts.foreign = asks.foreign;
  for (const CopiedRow& row : copy.rows) {
    const std::size_t bytes = row.end - row.begin;
    if (bytes == 0) continue;
    Region* const region = region_of(row.global);
    if (region == nullptr) refuse_outside(row.global, bytes, what, copy.where);
    if (row.global + bytes > region->end) {
      find(Kind::out_of_bounds, copy.where, Where(),
           fmt::format(
               "a copy that thread {} of block {} asks for {} {} bytes of which {} lie after "
               "the end of {}",
               asks.number, number_, verb(what), bytes, row.global + bytes - region->end,
               region->name));
      give_up();
    }
    Traffic& traffic = report.counts.traffic[region->name];
    const auto sectors =
        static_cast<std::int64_t>((row.global + bytes - 1) / 32 - row.global / 32 + 1);
    const auto moved = static_cast<std::int64_t>(bytes);
    if (what == Access::read) {
      traffic.bytes_loaded += moved;
      traffic.sectors_loaded += sectors;
      report.counts.async_bytes += moved;
    } else if (what == Access::write) {
      traffic.bytes_stored += moved;
      traffic.sectors_stored += sectors;
    } else {
      traffic.atomics += moved / static_cast<std::int64_t>(sizeof(float));
    }
    running_ = &acts;
    const std::size_t first = (row.global - region->begin) >> region->shift;
    const std::size_t last = (row.global + bytes - 1 - region->begin) >> region->shift;
    for (std::size_t n = first; n <= last; ++n) {
      const std::lock_guard<SpinLock> guard(region->lock_of(n));
      check_global_cell(*region, n, what, copy.where);
    }
    running_ = &asks;
  }
}

void Block::check_copy(const char* name, std::uintptr_t shared, std::uintptr_t global,
                       std::size_t shared_multiple, Where where) {
  if (options().device.compute_capability < 90) refuse_hopper("mbarriers and bulk copies", where);
  const auto check = [&](const char* what, std::uintptr_t address, std::size_t multiple) {
    if (address % multiple == 0) return;
    find(Kind::misaligned, where, Where(),
         fmt::format("{} {} {} that is {} more than a multiple of {}", name, what,
                     what[0] == 'o' ? "bytes" : "at an address", address % multiple, multiple));
    give_up();
  };
  check("in shared memory", shared, shared_multiple);
  check("in global memory", global, chunk);
}

// --------------------------------------------------------------------------------------------
// loads

void Block::load(BulkCopy copy, std::uintptr_t address, Where where) {
  Mbarrier& barrier = mbarrier(address, where);
  check_seen_by_copies(barrier, where);
  ++running_->ticks;
  changed();
  copy.where = where;
  copy.thread = running_->number;
  begin_async_write(copy.range(), where);
  copy_global(copy, Access::read, barrier.agent, static_cast<std::uint32_t>(barrier.phase) + 1);
  barrier.asked += static_cast<std::int64_t>(copy.bytes());
  barrier.asked_last = where;
  barrier.copied = std::max(barrier.copied, barrier.phase + 1);
  check_announced(barrier);
  std::memset(bytes_at(copy.shared), 0xff, copy.range().bytes);  // NaN, in every format
  BulkLoad load{std::move(copy), address, 0, false, running_->clock};
  const Arrival arrival = options().arrival;
  const bool seeded = arrival == Arrival::seeded;
  load.last = arrival == Arrival::late || (seeded && random_() % 4 == 0);
  ++running_->clock[running_->number];
  if (arrival == Arrival::early || (seeded && random_() % 4 == 0)) {
    while (!bring_some(load)) {
    }
  } else {
    loads_.push_back(std::move(load));
  }
}

/// A piece of it; true: that was the last.
bool Block::bring_some(BulkLoad& load) {
  const BulkCopy& copy = load.copy;
  Mbarrier& barrier = *mbarriers_.at(load.mbarrier);
  const std::size_t first = load.rows_done, left = copy.rows.size() - first;
  std::size_t count = left;
  if (left > 1 && random_() % 2 == 0) count = 1 + random_() % left;
  bring(copy, first, first + count);
  load.rows_done += count;
  changed();
  const bool last = load.rows_done == copy.rows.size();
  if (last) {
    end_async_write(copy.range(), barrier.agent, static_cast<std::uint32_t>(barrier.phase) + 1);
    join(barrier.arrived, load.knows);
  }
  barrier.bytes -= static_cast<std::int64_t>(count * copy.row_bytes);
  advance(barrier);
  return last;
}

bool Block::bring_any(bool also_last) {
  const NotTheKernel meanwhile;
  std::vector<std::size_t> may;
  for (std::size_t n = 0; n < loads_.size(); ++n)
    if (also_last || !loads_[n].last) may.push_back(n);
  if (may.empty()) return false;
  const std::size_t which = may[random_() % may.size()];
  if (bring_some(loads_[which])) loads_.erase(loads_.begin() + static_cast<std::ptrdiff_t>(which));
  return true;
}

// -------------------------------------------------------------------------------------------
// stores

void Block::store(BulkCopy copy, bool add, Where where) {
  Thread& thread = *running_;
  BulkStores& stores = thread.stores;
  ++thread.ticks;
  changed();
  copy.where = where;
  copy.thread = thread.number;
  if (stores.agent == 0) stores.agent = new_agent();
  BulkStore store;
  store.add = add;
  store.time = ++stores.time;
  store.reading = begin_async_read("the bulk store", {copy.range()}, where);
  copy_global(copy, add ? Access::atomic : Access::write, stores.agent, store.time);
  store.copy = std::move(copy);
  const Arrival arrival = options().arrival;
  const bool seeded = arrival == Arrival::seeded;
  if (arrival == Arrival::early || (seeded && random_() % 2 == 0)) read_source(store);
  if (store.has_read && (arrival == Arrival::early || random_() % 2 == 0)) write_target(store);
  stores.open.push_back(std::move(store));
}

void Block::read_source(BulkStore& store) {
  if (store.has_read) return;
  store.bytes = taken(store.copy);
  store.has_read = true;
}

void Block::write_target(BulkStore& store) {
  if (store.has_written) return;
  read_source(store);
  store.has_written = true;
  changed();
  for (std::size_t n = 0; n < store.copy.rows.size(); ++n) {
    const CopiedRow& row = store.copy.rows[n];
    const char* const from = store.bytes.data() + n * store.copy.row_bytes + row.begin;
    if (row.end == row.begin) continue;
    if (store.add)
      add_floats(row.global, from, row.end - row.begin);
    else
      std::memcpy(bytes_at(row.global), from, row.end - row.begin);
  }
}

void Block::wait_for_stores(int groups_that_may_stay, bool only_the_source) {
  Thread& thread = *running_;
  BulkStores& stores = thread.stores;
  ++thread.ticks;
  const std::size_t stay = static_cast<std::size_t>(std::max(groups_that_may_stay, 0));
  const std::size_t done = stores.groups.size() - std::min(stay, stores.groups.size());
  for (std::size_t n = 0; n < done; ++n)
    for (BulkStore& store : stores.groups[n]) {
      read_source(store);
      if (store.reading != 0) end_async_read(std::exchange(store.reading, 0));
      if (only_the_source) continue;
      write_target(store);
      std::uint32_t& known = thread.clock[stores.agent];
      known = std::max(known, store.time);
    }
  if (!only_the_source)
    stores.groups.erase(stores.groups.begin(),
                        stores.groups.begin() + static_cast<std::ptrdiff_t>(done));
}

// ----------------------------------------------------------------------------------------------
// ends

void Block::copies_of_thread_end() {
  const NotTheKernel meanwhile;
  BulkStores& stores = running_->stores;
  const auto check = [&](std::vector<BulkStore>& group, const char* why) {
    for (BulkStore& store : group) {
      if (store.reading == 0) continue;
      find(
          Kind::not_waited_for, store.copy.where, Where(),
          fmt::format("thread {} ends while a store that it began may still read shared memory: {}",
                      running_->number, why));
      end_async_read(std::exchange(store.reading, 0));
    }
  };
  check(stores.open, "it was not committed");
  for (std::vector<BulkStore>& group : stores.groups)
    check(group, "nobody has waited for it (tma_wait_read)");
}

void Block::copies_of_block_end() {
  const NotTheKernel meanwhile;
  for (Thread& thread : threads_) {
    for (BulkStore& store : thread.stores.open) write_target(store);
    for (std::vector<BulkStore>& group : thread.stores.groups)
      for (BulkStore& store : group) write_target(store);
  }
  for (const auto& [address, barrier] : mbarriers_.all()) {
    if (barrier.copied > barrier.seen)
      find(
          Kind::not_waited_for, barrier.asked_last, Where(),
          fmt::format("the block ends, and nobody has waited for the phase of an mbarrier (made at "
                      "{}) that counts this copy",
                      line_of(barrier.made).text()));
    else if (barrier.bytes > 0)
      find(Kind::bad_mbarrier, barrier.announced_last, barrier.made,
           fmt::format("the block ends, and of the bytes announced to an mbarrier {} were never "
                       "copied",
                       barrier.bytes));
  }
}

// -------------------------------------------------------------------------------- what kernels
// call

namespace {

/// A tensor's box at its place.
BulkCopy boxed(Block& block, const void* map, const int* at, int dimensions, std::uintptr_t shared,
               Where where, TensorBox& box) {
  const auto refuse = [&](const std::string& text) {
    block.find(Kind::bad_instruction, where, Where(), text);
    block.give_up();
  };
  if (!decode(map, box)) refuse("this tensor map was not made by describe_tensor()");
  if (box.dimensions != dimensions)
    refuse(fmt::format("{} coordinates for a tensor map of {} dimensions", dimensions,
                       box.dimensions));
  block.check_copy("a tensor copy", shared, box.memory, 128, where);
  BulkCopy copy;
  copy.shared = shared;
  find_rows(copy, box, at);
  return copy;
}

BulkCopy plain(Block& block, std::uintptr_t shared, const void* global, int bytes, Where where) {
  if (bytes < 0 || bytes % static_cast<int>(chunk) != 0) {
    block.find(Kind::misaligned, where, Where(),
               fmt::format("a bulk copy of {} bytes: it copies multiples of 16", bytes));
    block.give_up();
  }
  block.check_copy("a bulk copy", shared, as_address(global), chunk, where);
  BulkCopy copy;
  copy.shared = shared;
  copy.row_bytes = static_cast<std::size_t>(bytes);
  copy.rows = {{as_address(global), 0, copy.row_bytes}};
  return copy;
}

}  // namespace

void tma_load(void* to, const void* map, const int* at, int dimensions, void* full, Site site) {
  const NotTheKernel meanwhile;
  Block& block = *Block::current();
  const Where where(site);
  TensorBox box;
  block.load(boxed(block, map, at, dimensions, as_address(to), where, box), as_address(full),
             where);
}

void tma_store(const void* map, const int* at, int dimensions, const void* from, bool add,
               Site site) {
  const NotTheKernel meanwhile;
  Block& block = *Block::current();
  const Where where(site);
  TensorBox box;
  BulkCopy copy = boxed(block, map, at, dimensions, as_address(from), where, box);
  if (add && box.element != sizeof(float)) {
    block.find(Kind::bad_instruction, where, Where(),
               "a store that adds wants a tensor of floats here");
    block.give_up();
  }
  block.store(std::move(copy), add, where);
}

void bulk_load(void* to, const void* from, int bytes, void* full, Site site) {
  const NotTheKernel meanwhile;
  Block& block = *Block::current();
  const Where where(site);
  block.load(plain(block, as_address(to), from, bytes, where), as_address(full), where);
}

void bulk_store(void* to, const void* from, int bytes, bool add, Site site) {
  const NotTheKernel meanwhile;
  Block& block = *Block::current();
  const Where where(site);
  block.store(plain(block, as_address(from), to, bytes, where), add, where);
}

void tma_commit(Site) {
  const NotTheKernel meanwhile;
  BulkStores& stores = Block::current()->thread().stores;
  stores.groups.push_back(std::move(stores.open));
  stores.open.clear();
}

void tma_wait(int groups_that_may_stay, bool only_the_source, Site) {
  const NotTheKernel meanwhile;
  Block::current()->wait_for_stores(groups_that_may_stay, only_the_source);
}

}  // namespace tilewise::emulator
