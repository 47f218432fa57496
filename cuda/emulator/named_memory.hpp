// Host memory as global memory that kernels may touch, by name, for as long as this lives.
#pragma once

#include "cuda/emulator/emulator.hpp"

#include <cstddef>
#include <vector>

namespace tilewise::emulator {

class NamedMemory {
 public:
  NamedMemory() = default;
  NamedMemory(const NamedMemory&) = delete;
  NamedMemory& operator=(const NamedMemory&) = delete;
  ~NamedMemory() {
    for (const void* const memory : all_) forget_memory(memory);
  }

  /// As register_memory(); nothing, where there is no memory.
  void add(const char* name, const void* memory, std::size_t bytes, std::size_t element,
           bool written) {
    if (memory == nullptr || bytes == 0) return;
    register_memory(memory, bytes, name, element, written);
    all_.push_back(memory);
  }

 private:
  std::vector<const void*> all_;
};

}  // namespace tilewise::emulator
