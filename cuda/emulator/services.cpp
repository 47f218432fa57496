#include "cuda/emulator/services.hpp"

#include "cuda/emulator/block.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

namespace tilewise::emulator {
namespace {

Coordinates of(Dim3 size) {
  return {size.x, size.y, size.z};
}

}  // namespace

Coordinates thread_index() {
  const Index index = Block::current()->thread().index;
  return {index.x, index.y, index.z};
}

Coordinates block_index() {
  const Index index = Block::current()->block_index();
  return {index.x, index.y, index.z};
}

Coordinates block_size() {
  return of(Block::current()->launch().block);
}

Coordinates grid_size() {
  return of(Block::current()->launch().grid);
}

void* shared_memory(std::size_t bytes, Site site) {
  const NotTheKernel meanwhile;
  Block& block = *Block::current();
  if (bytes > block.launch().shared_bytes) {
    block.find(Kind::out_of_bounds, Where(site), Where(),
               fmt::format("the kernel uses {} bytes of dynamic shared memory; the launch gave {}",
                           bytes, block.launch().shared_bytes));
    block.give_up();
  }
  return block.shared_memory();
}

void barrier(unsigned id, int threads, bool waits, Site site) {
  const NotTheKernel meanwhile;
  Block& block = *Block::current();
  if (id > 15 || threads % 32 != 0 || threads > block.size()) {
    block.find(Kind::bad_instruction, Where(site), Where(),
               fmt::format("barrier {} for {} threads: there are barriers 0 to 15, for a multiple "
                           "of 32 threads up to the block's {}",
                           id, threads, block.size()));
    block.give_up();
  }
  block.barrier(id, threads == 0 ? block.size() : threads, waits, Where(site));
}

void sync_warp(unsigned mask, Site site) {
  Block::current()->sync_warp(mask, Where(site));
}

void together(const char* name, unsigned mask, void* operand, LanesTogether function, Site site) {
  Block::current()->meet(name, mask, operand, function, Where(site));
}

void note_read(const void* address, std::size_t bytes, Site site) {
  if (Block* const block = Block::current())
    block->access(address, bytes, Block::Access::read, Where(site));
}

void note_write(const void* address, std::size_t bytes, Site site) {
  if (Block* const block = Block::current())
    block->access(address, bytes, Block::Access::write, Where(site));
}

void note_atomic(const void* address, std::size_t bytes, Site site) {
  Block& block = *Block::current();
  // Whoever waits in a loop for another's change has to let it come.
  block.let_others_go_on();
  block.acquire_and_release(address);
  block.access(address, bytes, Block::Access::atomic, Where(site));
}

void note_outcome(const void* address, bool changed, Site site) {
  Block& block = *Block::current();
  if (changed)
    block.changed();
  else
    block.looked(address, Where(site));
}

void fence(Site) {
  Block::current()->fence();
}

void count_mma(std::int64_t flops) {
  Counts& counts = Block::current()->report.counts;
  ++counts.mma;
  counts.mma_flops += flops;
}

void count_special_function() {
  ++Block::current()->report.counts.special_functions;
}

void trace_begin(const char* name, std::int64_t tile) {
  const NotTheKernel meanwhile;
  Block& block = *Block::current();
  Thread& thread = block.thread();
  if (!block.options().trace || thread.lane() != 0) return;
  thread.open.push_back({static_cast<int>(block.number()), static_cast<int>(thread.warp()), name,
                         tile, thread.ticks, 0});
}

void trace_end(const char* name, std::int64_t tile) {
  const NotTheKernel meanwhile;
  Block& block = *Block::current();
  Thread& thread = block.thread();
  if (!block.options().trace || thread.lane() != 0) return;
  const auto begun = std::find_if(
      thread.open.rbegin(), thread.open.rend(),
      [&](const TraceEvent& event) { return event.name == name && event.tile == tile; });
  if (begun == thread.open.rend()) return;
  begun->end = thread.ticks;
  block.report.trace.push_back(std::move(*begun));
  thread.open.erase(std::next(begun).base());
}

void refuse(const char* text, Site site) {
  const NotTheKernel meanwhile;
  Block& block = *Block::current();
  block.find(Kind::bad_instruction, Where(site), Where(), text);
  block.give_up();
}

}  // namespace tilewise::emulator
