// A thread's cp.async copies: issued, gathered into groups, waited for. PTX ISA, "cp.async",
// "cp.async.commit_group", "cp.async.wait_group".
#pragma once

#include "site.hpp"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace tilewise::emulator {

struct AsyncCopy {
  char* to = nullptr;
  const char* from = nullptr;
  std::size_t bytes = 0;  ///< read; the rest up to `total` becomes zero
  std::size_t total = 0;
  Where where;
  bool done = false;  ///< the bytes are there already; nobody may rely on it
};

struct AsyncCopies {
  std::vector<AsyncCopy> open;                 ///< since the last commit
  std::vector<std::vector<AsyncCopy>> groups;  ///< the oldest first
};

}  // namespace tilewise::emulator
