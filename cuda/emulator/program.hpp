// Parts of the running program, as its file says.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tilewise::emulator {

/// Code and constants; empty if the address is in none.
struct Part {
  std::uintptr_t begin = 0, end = 0;
};
Part segment_around(std::uintptr_t address);

/// A static variable, by its place among them: __shared__ ones are thread_local here.
struct StaticVariable {
  std::uintptr_t begin = 0, end = 0;
  std::string name;  ///< without scopes
};
using StaticVariables = std::vector<StaticVariable>;

/// The static variables that this thread of the host has of the program or of one of its libraries.
struct Statics {
  std::uintptr_t begin = 0, end = 0;
  const StaticVariables* variables = nullptr;  ///< by place; null where the file has no symbols
};
Statics statics_around(std::uintptr_t address);

}  // namespace tilewise::emulator
