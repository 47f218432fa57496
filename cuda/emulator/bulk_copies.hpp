// Copies of the copy engine: what they move, and how far they are. PTX ISA, "cp.async.bulk",
// "cp.async.bulk.tensor", "cp.reduce.async.bulk", "cp.async.bulk.wait_group".
#pragma once

#include "async_proxy.hpp"
#include "site.hpp"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace tilewise::emulator {

/// A row of a box: neighbours in global memory, and but for the swizzle in shared memory.
struct CopiedRow {
  std::uintptr_t global = 0;       ///< of the first byte that lies inside
  std::size_t begin = 0, end = 0;  ///< the bytes of the row that lie inside of the tensor
};

struct BulkCopy {
  std::uintptr_t shared = 0;
  std::size_t row_bytes = 0;
  int swizzle = 0;
  std::vector<CopiedRow> rows;
  Where where;
  std::uint16_t thread = 0;

  std::size_t bytes() const { return rows.size() * row_bytes; }
  /// With what a swizzle may change places with.
  ByteRange range() const {
    const std::size_t span = std::size_t{16} << swizzle;
    return {shared, (bytes() + span - 1) / span * span};
  }
};

/// To shared memory; an mbarrier counts its bytes.
struct BulkLoad {
  BulkCopy copy;
  std::uintptr_t mbarrier = 0;
  std::size_t rows_done = 0;
  bool last = false;                 ///< not before nothing else can happen
  std::vector<std::uint32_t> knows;  ///< the clock of who asked
};

/// From shared memory.
struct BulkStore {
  BulkCopy copy;
  bool add = false;
  std::uint32_t time = 0;         ///< of the thread's agent
  AsyncAccesses::Id reading = 0;  ///< 0: its thread has waited until it has read
  bool has_read = false, has_written = false;
  std::vector<char> bytes;  ///< as they were when it read
};

/// A thread's.
struct BulkStores {
  std::uint16_t agent = 0;  ///< 0: it has stored nothing yet
  std::uint32_t time = 0;
  std::vector<BulkStore> open;                 ///< since the last commit
  std::vector<std::vector<BulkStore>> groups;  ///< the oldest first
};

}  // namespace tilewise::emulator
