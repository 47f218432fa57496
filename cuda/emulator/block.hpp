// One block of a grid while it runs: its threads as fibers, their clocks, its shared memory and
// what has happened to it. A block runs on one thread of the host.
//
// Time is a vector clock (Lamport 1978; Mattern 1989; races as in FastTrack, Flanagan and Freund
// 2009): thread t's own number grows at every point where it hands something on; clock[u] is the
// last of u's numbers that t has been handed. An access (u, c) happened before what t does now if
// clock_t[u] >= c.
#pragma once

#include "access_sets.hpp"
#include "async_copies.hpp"
#include "emulator.hpp"
#include "lines.hpp"
#include "regions.hpp"
#include "requests.hpp"
#include "site.hpp"
#include "standstill.hpp"
#include "program.hpp"

#include <boost/context/fiber.hpp>

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

namespace tilewise::emulator {

/// What another block's threads had done when a thread of it let go of an atomic variable.
using Foreign = std::map<std::uint32_t, std::shared_ptr<const Clock>>;

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

enum class State : std::uint8_t { ready, waiting, finished };

struct Thread {
  boost::context::fiber self;
  State state = State::ready;
  Index index;
  std::uint16_t number = 0;
  Clock clock;
  Foreign foreign;
  std::shared_ptr<const Clock> fenced;  ///< the clock as it was at the last fence
  std::uintptr_t stack_begin = 0, stack_end = 0;
  AsyncCopies copies;
  std::int64_t ticks = 0;
  std::vector<TraceEvent> open;  ///< begun, not ended
  const char* waits_for = "";
  Where waits_at;
  unsigned waits_mask = 0;  ///< of a warp's lanes, or a barrier's number
  /// What it read last, or looked at atomically: in a loop that waits, what it waits for.
  std::uintptr_t looks_at = 0;
  Where looks_from;
  std::uint32_t looks = 0;  ///< plain ones in a row, from the same line

  unsigned lane() const { return number % 32u; }
  unsigned warp() const { return number / 32u; }
};

/// What lanes of a warp do together: the last to come does it for all.
using WarpFunction = void (*)(void* const operands[32], unsigned mask);

struct Meeting {
  const char* name = "";
  unsigned mask = 0, arrived = 0;
  Where where;
  void* operands[32] = {};
};

struct Warp {
  std::vector<Meeting> meetings;
  Requests requests;
};

struct Barrier {
  std::vector<std::uint16_t> waiting, only_arrived;
  std::int64_t expected = 0, arrived = 0;
  Where where;
  Clock joined;  ///< of all that have arrived
  Foreign foreign;
  std::int64_t ticks = 0;
};

/// Two bytes of shared memory, or one.
struct SharedCell {
  Where write_where;
  std::uint32_t write_clock = 0;  ///< of the last write that was not atomic; 0: there was none
  std::uint16_t write_thread = 0;
  bool written = false;
  bool in_flight = false;  ///< an asynchronous copy is on its way here
  bool split = false;      ///< single bytes have been accessed: this is the first of the two
  bool counted = false;    ///< of a static variable that has been used
  AccessSets::Held reads, changes;  ///< since then; `changes` are atomic
};

/// Shared memory: the dynamic part, or the static variables of a module.
struct SharedRange {
  std::uintptr_t begin = 0, end = 0;
  std::vector<SharedCell> cells;
  std::vector<SharedCell> second_bytes;  ///< of the cells that are split; empty if none is
};

/// Memory for the stacks of a block's threads, one block after another's.
class Stacks {
 public:
  static constexpr std::size_t bytes_each = std::size_t{192} << 10;
  /// Below the lowest: there an access still is a finding, and not the end of the program.
  static constexpr std::size_t slack = std::size_t{256} << 10;
  Stacks() = default;
  ~Stacks();
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;

  /// The lowest address of the first of `count`.
  char* take(std::size_t count);

 private:
  void* memory_ = nullptr;
  std::size_t bytes_ = 0;
};

/// What threads let go of at atomic variables, for those who come there next.
struct Variables {
  std::mutex mutex;
  std::unordered_map<const void*, Foreign> released;
};

/// While it lives, what runs is the emulator's work and not the kernel's own code, and the hooks
/// hear nothing. The linker keeps one copy of a function such as std::vector<unsigned>::resize, and
/// may keep the one that was compiled with a kernel: the emulator's own calls come by hooks, too.
class NotTheKernel {
 public:
  NotTheKernel();
  ~NotTheKernel();
  NotTheKernel(const NotTheKernel&) = delete;
  NotTheKernel& operator=(const NotTheKernel&) = delete;

 private:
  bool before_;
};

/// How often in a row a thread may do nothing but read one place before others get to run.
constexpr std::uint32_t same_read_in_a_row = 1024;

class Block {
 public:
  /// What blocks of a launch have in common.
  struct Common {
    const Launch& launch;
    const Options& options;
    Regions regions;
    std::uint32_t number = 0;  ///< of the launch
    mutable Variables variables;
    mutable Standstill standstill;
    mutable std::atomic<bool> stop = false;  ///< something was found: no block begins any more
  };

  Block(const Common& common, std::uint32_t number, Stacks& stacks);
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  /// To the end, or to a finding after which there is no going on.
  void run();

  static Block* current();
  /// The same while the kernel's own code runs; null otherwise.
  static Block* of_kernel();
  Thread& thread() { return *running_; }
  Warp& warp() { return warps_[running_->warp()]; }
  std::int64_t size() const { return static_cast<std::int64_t>(threads_.size()); }
  const Launch& launch() const { return common_.launch; }
  const Options& options() const { return common_.options; }
  std::uint32_t number() const { return number_; }
  Index block_index() const { return block_index_; }
  void* shared_memory() { return reinterpret_cast<void*>(dynamic_.begin); }
  std::mt19937_64& random() { return random_; }

  // schedule.cpp
  void wait(const char* what, Where where, unsigned mask);
  void wake(unsigned number);
  void let_others_go_on();
  [[noreturn]] void give_up();  ///< the running thread cannot go on, so nor can the block

  // standstill.cpp
  /// The running thread has looked at memory that somebody may change, and changed nothing. If that
  /// is all that threads have done for too long, the block ends.
  void looked(const void* memory, Where where);
  /// Something was changed, which others may have waited for.
  void changed() { has_changed_ = true; }

  // barriers.cpp
  void barrier(unsigned id, std::int64_t expected, bool waits, Where where);
  void meet(const char* name, unsigned mask, void* operand, WarpFunction function, Where where);
  void sync_warp(unsigned mask, Where where);
  void all_have_met() { sets_.forget(); }

  // accesses.cpp, shared_accesses.cpp, global_accesses.cpp
  enum class Access : std::uint8_t { read, write, atomic };
  void access(const void* memory, std::size_t bytes, Access what, Where where);
  /// A read that says that others may write there, as of volatile memory: they get to run.
  void look(const void* memory, std::size_t bytes, Where where);
  /// The bytes are to come: nobody may look at them.
  void begin_flight(const void* memory, std::size_t bytes, Where where);
  void end_flight(const void* memory, std::size_t bytes);
  void acquire_and_release(const void* variable);
  void fence();

  // findings.cpp
  void find(Kind kind, Where where, Where other, const std::string& text);
  /// The same for what a loop may find a million times: the text is made at the first.
  template <class Text>
  void find_once(Kind kind, Where where, Where other, const Text& text) {
    if (!found_again(kind, where, other)) find(kind, where, other, text());
  }

  // counts.cpp
  void flush(Warp& warp);
  void count_request(Where where, Requests::Memory memory, const Region* region,
                     std::uint64_t address, std::size_t bytes);

  Report report;  ///< lines of `banks_by_line` are not yet known: banks_at
  std::unordered_map<std::uint64_t, Banks> banks_at;

 private:
  bool found_again(Kind kind, Where where, Where other);
  void finish();  ///< counts what is open
  void start_fibers(Stacks& stacks);
  void count(const Request& request, const Requests::Kind& kind);
  void report_deadlock();
  void has_gone_on();
  std::string named(std::uintptr_t address);
  void join(Clock& to, const Clock& from) const;
  SharedRange* shared_range(std::uintptr_t address);
  Region* region_of(std::uintptr_t address);
  bool find_statics(std::uintptr_t address);
  bool is_readable(std::uintptr_t address, std::size_t bytes);
  [[noreturn]] void refuse_outside(std::uintptr_t address, std::size_t bytes, Access what,
                                   Where where);
  const StaticVariable* variable_before(std::uintptr_t address) const;
  void use_static(std::uintptr_t address, Access what, Where where);
  void access_shared(SharedRange& range, std::uintptr_t address, std::size_t bytes, Access what,
                     Where where);
  void access_global(Region& region, std::uintptr_t address, std::size_t bytes, Access what,
                     Where where);
  template <class Function>
  void for_cells(SharedRange& range, std::uintptr_t address, std::size_t bytes,
                 const Function& function);
  void check_shared_cell(SharedCell& cell, Access what, Where where, std::uintptr_t address);
  void check_global_cell(const Region& region, std::size_t n, Access what, Where where);
  bool ordered(std::uint16_t thread, std::uint32_t clock) const {
    return running_->clock[thread] >= clock;
  }
  bool ordered(const Stamp& stamp) const;
  Stamp unordered(const Uses& uses) const;
  void add_to(Uses& uses, const Stamp& now);

  const Common& common_;
  std::uint32_t number_;
  Index block_index_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<std::uint16_t> ready_;  ///< a ring would do; a block's is short
  std::size_t ready_first_ = 0;
  std::int64_t unfinished_ = 0;
  bool given_up_ = false;
  boost::context::fiber scheduler_;
  Thread* running_ = nullptr;
  Barrier barriers_[16];
  AccessSets sets_;           ///< of accesses since all of the block met
  std::vector<char> shared_;  ///< with room to align it
  SharedRange dynamic_, statics_;
  Part program_;                                ///< constants that have been read
  const StaticVariables* variables_ = nullptr;  ///< in statics_; null: nobody knows
  std::uintptr_t variables_begin_ = 0;
  std::size_t static_bytes_ = 0;  ///< of those that have been used
  bool has_changed_ = false;      ///< something, the running thread
  std::int64_t looks_ = 0;        ///< of all threads, since somebody changed something
  bool watches_ = false, is_stuck_ = false;
  std::uint64_t changes_seen_ = 0;  ///< of all blocks
  Region* last_region_ = nullptr;
  struct Found {
    Kind kind;
    Where where, other;
    std::size_t finding;
  };
  std::vector<Found> found_;
  std::mt19937_64 random_;
};

const char* verb(Block::Access what);  ///< "reads"

}  // namespace tilewise::emulator
