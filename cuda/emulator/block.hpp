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
#include "async_proxy.hpp"
#include "bulk_copies.hpp"
#include "emulator.hpp"
#include "lines.hpp"
#include "mbarriers.hpp"
#include "regions.hpp"
#include "register_budget.hpp"
#include "requests.hpp"
#include "site.hpp"
#include "standstill.hpp"
#include "program.hpp"
#include "warpgroup_products.hpp"

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
  ProductsOfThread products;
  std::int64_t ticks = 0;
  std::vector<TraceEvent> open;  ///< begun, not ended
  const char* waits_for = "";
  Where waits_at;
  unsigned waits_mask = 0;                  ///< of a warp's lanes, or a barrier's number
  std::uintptr_t waits_mbarrier = 0;        ///< 0: for something else
  std::vector<std::uint32_t> proxy_fences;  ///< its own time at each fence.proxy.async
  std::vector<std::uint32_t> init_fences;   ///< and at each mbarrier_fence_init()
  BulkStores stores;
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
  bool in_flight = false;         ///< an asynchronous copy is on its way here
  bool split = false;             ///< single bytes have been accessed: this is the first of the two
  bool counted = false;           ///< of a static variable that has been used
  bool mbarrier = false;          ///< an mbarrier lies here
  std::uint16_t async_reads = 0;  ///< reads of the asynchronous proxy under way
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

  // async_proxy.cpp
  /// The running thread asks for a read; or somebody for several threads, who know this much. What
  /// is wrong with the bytes is found here. `name`: "wgmma", "the TMA store".
  AsyncAccesses::Id begin_async_read(const char* name, std::vector<ByteRange> ranges, Where where,
                                     const Clock* knows = nullptr);
  /// The running thread has waited for it.
  void end_async_read(AsyncAccesses::Id id);
  /// It counts as a read by this agent: whoever knows of the agent's time in the clock has waited.
  void end_async_read(AsyncAccesses::Id id, std::uint16_t agent, const Clock& clock);
  /// The running thread asks for a write of bytes; nobody may look at them.
  void begin_async_write(ByteRange range, Where where);
  /// They are there, for whoever knows of this time of the agent.
  void end_async_write(ByteRange range, std::uint16_t agent, std::uint32_t time);
  void fence_proxy_async();
  /// Whether a fence of the list stands between what `writer` did at its time and what `knows`.
  static bool fenced(const std::vector<std::uint32_t>& fences, std::uint32_t time,
                     std::uint32_t known);
  /// A number in clocks beside the threads'.
  std::uint16_t new_agent();
  /// "thread 7", "the copy"
  std::string who(std::uint16_t thread) const;
  /// Shared memory with all of these bytes, or a finding, after which there is no going on.
  SharedRange& shared_bytes(std::uintptr_t address, std::size_t bytes, Access what, Where where);
  /// As 32-bit addresses count: dynamic ones from 0, the static variables behind them.
  std::uint32_t shared_offset(std::uintptr_t address);
  std::uintptr_t shared_address(std::uint32_t offset) const;  ///< 0: there is no such byte
  void fence();

  // warpgroup_products.cpp
  void multiply(const ProductOperands& mine, Where where);
  void fence_products();
  void commit_products();
  void wait_for_products(int groups_that_may_stay, Where where);

  // register_budget.cpp
  void set_registers(int registers, bool more, Where where);

  // mbarriers.cpp
  void make_mbarrier(std::uintptr_t address, int arrivals, Where where);
  void arrive(std::uintptr_t address, std::int64_t bytes, Where where);
  bool wait_for_mbarrier(std::uintptr_t address, unsigned parity, bool only_tries, Where where);
  [[noreturn]] void refuse_hopper(const char* what, Where where);

  // tensor_copies.cpp
  void check_copy(const char* name, std::uintptr_t shared, std::uintptr_t global,
                  std::size_t shared_multiple, Where where);
  void load(BulkCopy copy, std::uintptr_t address, Where where);
  void store(BulkCopy copy, bool add, Where where);
  void wait_for_stores(int groups_that_may_stay, bool only_the_source);

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
  // mbarriers.cpp
  Mbarrier& mbarrier(std::uintptr_t address, Where where);
  void check_seen_by_copies(const Mbarrier& barrier, Where where);
  void check_announced(const Mbarrier& barrier);
  void advance(Mbarrier& barrier);  ///< to the next phase, if this one is over
  bool try_mbarrier(Mbarrier& barrier, unsigned parity);
  std::string missing(const Thread& thread);
  // tensor_copies.cpp
  void copy_global(const BulkCopy& copy, Access what, std::uint16_t agent, std::uint32_t time);
  bool bring_some(BulkLoad& load);
  bool bring_any(bool also_last);  ///< a piece of a load; false: none is under way
  static void read_source(BulkStore& store);
  void write_target(BulkStore& store);
  void copies_of_thread_end();
  void copies_of_block_end();
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
  void check_extent(SharedRange& range, std::uintptr_t address, std::size_t bytes, Access what,
                    Where where);
  void check_shared_cell(SharedCell& cell, Access what, Where where, std::uintptr_t address);
  void refuse_mbarrier(Access what, Where where, std::uintptr_t address);
  void race_with_async_read(Access what, Where where, std::uintptr_t address);
  void check_global_cell(const Region& region, std::size_t n, Access what, Where where);
  bool ordered(std::uint16_t thread, std::uint32_t clock) const {
    return running_->clock[thread] >= clock;
  }
  void check_fenced(const SharedCell& cell, const std::string& does, Where where,
                    std::uintptr_t address, const Clock& knows);
  // product_registers.cpp
  void touch_registers(std::uintptr_t address, std::size_t bytes, Access what, Where where);
  void check_registers(const Warpgroup& group, unsigned first, Where where);
  // warpgroup_products.cpp, register_budget.cpp
  std::vector<const char*> operand_at(const char* name, std::uint64_t descriptor, bool rows_of_n,
                                      int height, int chunks, Where where);
  Clock known_to_all(unsigned first, unsigned count) const;
  void issue(Warpgroup& group, unsigned first, Where where);
  std::shared_ptr<Accumulators> accumulators(Warpgroup& group, unsigned first, Where where,
                                             std::uint64_t number);
  void end_products();
  std::string products_text() const;
  void end_budget();
  std::string budget_text() const;
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
  AccessSets sets_;  ///< of accesses since all of the block met
  AsyncAccesses async_;
  std::vector<Warpgroup> warpgroups_;
  RegisterBudget budget_;
  std::uint16_t agents_ = 0;
  Mbarriers mbarriers_;
  std::vector<BulkLoad> loads_;  ///< under way
  std::vector<char> shared_;     ///< with room to align it
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

/// function(cell, address) for each: two bytes, or one of two that are told apart.
template <class Function>
void Block::for_cells(SharedRange& range, std::uintptr_t address, std::size_t bytes,
                      const Function& function) {
  const std::uintptr_t end = address + bytes;
  for (std::uintptr_t at = address; at < end; at = at / 2 * 2 + 2) {
    const std::size_t n = (at - range.begin) / 2;
    SharedCell& cell = range.cells[n];
    if (bytes == 1 && !cell.split) {
      if (range.second_bytes.empty()) range.second_bytes.resize(range.cells.size());
      range.second_bytes[n] = cell;
      cell.split = true;
    }
    if (at % 2 == 0) function(cell, at);
    if (cell.split && (at % 2 == 1 || bytes > 1)) function(range.second_bytes[n], at | 1);
  }
}

const char* verb(Block::Access what);  ///< "reads"

}  // namespace tilewise::emulator
