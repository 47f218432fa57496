// The accesses of a warp's lanes, put together again. On a GPU the 32 lanes ask at once, and the
// memory sees one request; here one lane runs after the other. The k-th time that a lane comes by
// an instruction since the warp's last meeting belongs together with the other lanes' k-th time.
#pragma once

#include "report.hpp"
#include "site.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>

namespace tilewise::emulator {

struct Region;

struct Request {
  std::uint32_t lanes = 0;
  std::uint64_t address[32] = {};
};

/// Passes over the banks that a request takes, and how many its bytes need: accesses of 8 bytes go
/// in two halves of the warp, of 16 bytes in four quarters.
Banks banks_of(const Request& request, std::size_t bytes);
/// Different sectors of 32 bytes.
std::int64_t sectors_of(const Request& request, std::size_t bytes);

class Requests {
 public:
  enum class Memory : std::uint8_t { shared, loads, stores };

  /// What a request is of.
  struct Kind {
    Where where;
    Memory memory{};
    const Region* region = nullptr;
    std::size_t bytes = 0;
    friend bool operator==(const Kind&, const Kind&) = default;
  };
  struct Added {
    const Request* whole;  ///< if this lane was the last of `all_lanes`; until the next call
    std::size_t ahead;     ///< of the slowest lane at this instruction, in requests
  };
  Added add(const Kind& kind, unsigned lane, std::uint64_t address, std::uint32_t all_lanes);

  /// No more lanes will come by what is open: count(request, kind).
  template <class Count>
  void flush(const Count& count) {
    for (Instruction& instruction : instructions_) {
      for (const Request& request : instruction.open)
        if (request.lanes != 0) count(request, instruction.kind);
      instruction.open.clear();
      instruction.first = 0;
      std::fill_n(instruction.next, 32, 0u);
    }
  }

 private:
  struct Instruction {
    Kind kind;
    std::uint32_t first = 0;  ///< number of the first open request
    std::uint32_t next[32] = {};
    std::deque<Request> open;
  };
  Instruction& instruction_of(const Kind& kind);

  std::deque<Instruction> instructions_;
  Instruction* recent_[64] = {};  ///< by a hash
  Request whole_;
};

}  // namespace tilewise::emulator
