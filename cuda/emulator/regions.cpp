#include "cuda/emulator/regions.hpp"

#include "cuda/emulator/emulator.hpp"

#include <algorithm>
#include <bit>
#include <mutex>

namespace tilewise::emulator {
namespace {

std::mutex registry_mutex;
Regions all;  // by address

Regions::iterator after(std::uintptr_t address) {
  return std::upper_bound(
      all.begin(), all.end(), address,
      [](std::uintptr_t at, const std::shared_ptr<Region>& region) { return at < region->begin; });
}

}  // namespace

void register_memory(const void* memory, std::size_t bytes, const std::string& name,
                     std::size_t element, bool written) {
  auto region = std::make_shared<Region>();
  region->begin = reinterpret_cast<std::uintptr_t>(memory);
  region->end = region->begin + bytes;
  region->name = name;
  region->shift = static_cast<unsigned>(
      std::countr_zero(std::bit_floor(std::clamp<std::size_t>(element, 1, 8))));
  const std::size_t count = (bytes >> region->shift) + 1;
  region->cells = std::make_unique<GlobalCell[]>(count);
  region->locks = std::make_unique<SpinLock[]>(Region::lock_count);
  if (written)
    for (std::size_t n = 0; n < count; ++n) region->cells[n].written = true;
  const std::lock_guard<std::mutex> guard(registry_mutex);
  all.insert(after(region->begin), std::move(region));
}

void forget_memory(const void* memory) {
  const std::lock_guard<std::mutex> guard(registry_mutex);
  std::erase_if(all, [&](const std::shared_ptr<Region>& region) {
    return region->begin == reinterpret_cast<std::uintptr_t>(memory);
  });
}

void memory_is_written(const void* memory, std::size_t bytes) {
  const auto begin = reinterpret_cast<std::uintptr_t>(memory);
  const std::lock_guard<std::mutex> guard(registry_mutex);
  for (const std::shared_ptr<Region>& region : all) {
    const std::uintptr_t from = std::max(begin, region->begin);
    const std::uintptr_t to = std::min(begin + bytes, region->end);
    if (from >= to) continue;
    const std::size_t last = (to - 1 - region->begin) >> region->shift;
    for (std::size_t n = (from - region->begin) >> region->shift; n <= last; ++n)
      region->cells[n].written = true;
  }
}

Regions current_regions() {
  const std::lock_guard<std::mutex> guard(registry_mutex);
  return all;
}

}  // namespace tilewise::emulator
