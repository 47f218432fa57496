// What the emulator has to say of the kernels that ran: what is wrong, with lines; what was moved,
// counted; who did what when.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace tilewise::emulator {

/// What is wrong with a kernel.
enum class Kind : std::uint8_t {
  race,               ///< two accesses, one of them a write, that nothing orders
  uninitialised,      ///< a read of memory that nobody has written
  out_of_bounds,      ///< an access outside of all memory that the kernel was given
  misaligned,         ///< an address that is no multiple of the access's size
  not_waited_for,     ///< memory that an asynchronous copy has not been waited for to write
  divergent_barrier,  ///< threads meet at one barrier from different lines
  deadlock,           ///< threads wait for what nobody will do
  divergent_warp,     ///< lanes of one mask call different instructions
  bad_launch,         ///< a grid, block or amount of shared memory that the device refuses
  bad_instruction,    ///< operands that the instruction does not have
  not_fenced,         ///< stored, and no fence before the asynchronous proxy reads it
  bad_mbarrier,       ///< an mbarrier that is none (yet), or gets more than it counts
};
const char* name_of(Kind kind);

/// A line of a kernel; of what was inlined there, the outermost function's line in `inlined_at`.
struct Line {
  std::string file;  ///< its name without folders
  int line = 0;
  std::string inlined_at;  ///< "file:line", or empty

  std::string text() const;
  friend auto operator<=>(const Line&, const Line&) = default;
};

struct Finding {
  Kind kind{};
  std::string kernel;
  std::string text;        ///< a sentence, with both lines where there are two
  Line line, other;        ///< `other`: the earlier access, or what the threads before called
  std::int64_t times = 1;  ///< the same kind at the same lines
};

/// Bytes of global memory, as threads ask for them and as they travel: in sectors of 32 bytes, each
/// of which counts once for each instruction of a warp.
struct Traffic {
  std::int64_t bytes_loaded = 0, bytes_stored = 0;
  std::int64_t sectors_loaded = 0, sectors_stored = 0;
  std::int64_t atomics = 0;

  Traffic& operator+=(const Traffic& more);
};

/// Requests of warps to shared memory, and how many passes over its 32 banks of 4 bytes they took.
struct Banks {
  std::int64_t requests = 0, passes = 0, least_passes = 0;

  Banks& operator+=(const Banks& more);
  /// 1: as few passes as the bytes need. 2: twice as many.
  double conflict() const {
    return least_passes > 0 ? static_cast<double>(passes) / static_cast<double>(least_passes) : 1;
  }
};

/// What a launch did, counted. Instructions count once for a warp, special functions for a thread.
struct Counts {
  std::map<std::string, Traffic> traffic;  ///< of each named tensor
  Banks banks;
  std::map<Line, Banks> banks_by_line;  ///< lines that access shared memory
  std::int64_t barriers = 0;            ///< of blocks
  std::int64_t warp_syncs = 0;
  std::int64_t mma = 0, wgmma = 0, mma_flops = 0;
  std::int64_t special_functions = 0;
  std::int64_t async_bytes = 0;
  std::int64_t blocks = 0, threads = 0, launches = 0;
  std::int64_t most_shared_bytes = 0;  ///< of a block

  Counts& operator+=(const Counts& more);
  Traffic total() const;
};

/// Something that a warp did, from a tick of its own clock to another. A tick is an instruction of
/// the warp that was counted; a barrier brings clocks together. No time: an order, and amounts.
struct TraceEvent {
  int block = 0, warp = 0;
  std::string name;  ///< "load K"
  std::int64_t tile = 0;
  std::int64_t begin = 0, end = 0;
};

struct Report {
  std::vector<Finding> findings;
  Counts counts;
  std::vector<TraceEvent> trace;

  bool clean() const { return findings.empty(); }
  /// All findings, a paragraph each.
  std::string text() const;
  Report& operator+=(Report more);
};

/// The report as JSON: findings, counts, trace (docs/emulator.md names the members).
std::string to_json(const Report& report);

}  // namespace tilewise::emulator
