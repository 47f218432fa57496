// cp.async: bytes arrive at once, or as late as the wait for their group. Both are allowed, so that
// a kernel which relies on either is wrong; a seed decides for each copy.
#include "cuda/emulator/services.hpp"

#include "cuda/emulator/block.hpp"

#include <fmt/format.h>

#include <cstring>

namespace tilewise::emulator {
namespace {

void deliver(AsyncCopy& copy) {
  if (copy.done) return;
  if (copy.bytes > 0) std::memcpy(copy.to, copy.from, copy.bytes);
  std::memset(copy.to + copy.bytes, 0, copy.total - copy.bytes);
  copy.done = true;
}

}  // namespace

void copy_async(void* to, const void* from, int total, int bytes, Site site) {
  const NotTheKernel meanwhile;
  Block& block = *Block::current();
  Thread& thread = block.thread();
  const Where where(site);
  if ((total != 4 && total != 8 && total != 16) || bytes < 0 || bytes > total) {
    block.find(Kind::bad_instruction, where, Where(),
               fmt::format("cp.async of {} bytes, {} of them from memory: it copies 4, 8 or 16",
                           total, bytes));
    block.give_up();
  }
  const auto width = static_cast<std::size_t>(total);
  for (const auto address :
       {reinterpret_cast<std::uintptr_t>(to), reinterpret_cast<std::uintptr_t>(from)})
    if (address % width != 0) {
      block.find(
          Kind::misaligned, where, Where(),
          fmt::format("cp.async of {} bytes at an address that is {} more than a multiple of "
                      "{}",
                      total, address % width, total));
      block.give_up();
    }
  if (bytes > 0) block.access(from, static_cast<std::size_t>(bytes), Block::Access::read, where);
  block.begin_flight(to, width, where);
  block.report.counts.async_bytes += bytes;
  AsyncCopy copy{static_cast<char*>(to),
                 static_cast<const char*>(from),
                 static_cast<std::size_t>(bytes),
                 width,
                 where,
                 false};
  const Arrival arrival = block.options().arrival;
  if (arrival == Arrival::early || (arrival == Arrival::seeded && (block.random()() & 1) != 0))
    deliver(copy);
  thread.copies.open.push_back(copy);
}

void commit_async_copies() {
  const NotTheKernel meanwhile;
  AsyncCopies& copies = Block::current()->thread().copies;
  copies.groups.push_back(std::move(copies.open));
  copies.open.clear();
}

void wait_for_async_copies(int groups_that_may_stay) {
  const NotTheKernel meanwhile;
  Block& block = *Block::current();
  AsyncCopies& copies = block.thread().copies;
  while (static_cast<int>(copies.groups.size()) > groups_that_may_stay) {
    for (AsyncCopy& copy : copies.groups.front()) {
      deliver(copy);
      block.end_flight(copy.to, copy.total);
    }
    copies.groups.erase(copies.groups.begin());
  }
}

}  // namespace tilewise::emulator
