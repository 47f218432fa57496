// Runs a call on a painted stack with a poisoned workspace while memory_hooks.cpp counts, then
// reads off what it left behind.
#include "oracle/harness/memory_meter.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <mutex>

#if defined(__unix__) || defined(__APPLE__)
#define TILEWISE_POSIX 1
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace tilewise::harness {

namespace {

// Constant-initialised, so that registering works however early in the program's start it comes.
constinit std::atomic<const MemoryHooks*> registered_hooks{nullptr};

}  // namespace

void register_memory_hooks(const MemoryHooks& hooks) {
  registered_hooks = &hooks;
}

const char* memory_meter_unavailable() {
#if !defined(TILEWISE_POSIX)
  return "measuring needs POSIX threads and memory mapping";
#else
  const MemoryHooks* hooks = registered_hooks;
  if (hooks == nullptr) return "this program does not link tilewise::memory_hooks";
  return hooks->unavailable;
#endif
}

#if !defined(TILEWISE_POSIX)

MemoryReport measure_memory(void*, std::size_t workspace_bytes, const std::function<void()>&) {
  MemoryReport report;
  report.why = memory_meter_unavailable();
  report.workspace_declared = static_cast<std::int64_t>(workspace_bytes);
  return report;
}

#else

namespace {

// A pattern that no computation produces by chance: word i of the workspace or the stack holds
// pattern(i), the output function of SplitMix64 (Steele, Lea and Flood 2014, figure 15).
std::uint64_t pattern(std::uint64_t i) {
  std::uint64_t z = (i + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// ---- workspace -------------------------------------------------------------------------------

constexpr std::size_t line_bytes = 64;

/// What line `index` of a poisoned workspace holds.
struct Line {
  std::uint64_t words[line_bytes / sizeof(std::uint64_t)];

  explicit Line(std::size_t index) {
    std::uint64_t i = index * std::size(words);
    for (std::uint64_t& word : words) word = pattern(i++);
  }
};

/// Calls f(line index, its first byte, how many of its bytes exist) for every line.
template <class F>
void for_each_line(void* workspace, std::size_t bytes, F f) {
  for (std::size_t begin = 0, index = 0; begin < bytes; begin += line_bytes, ++index)
    f(index, static_cast<char*>(workspace) + begin, std::min(line_bytes, bytes - begin));
}

void poison_workspace(void* workspace, std::size_t bytes) {
  for_each_line(workspace, bytes, [](std::size_t index, char* begin, std::size_t count) {
    std::memcpy(begin, Line(index).words, count);
  });
}

std::int64_t workspace_touched(void* workspace, std::size_t bytes) {
  std::size_t touched = 0;
  for_each_line(workspace, bytes, [&](std::size_t index, const char* begin, std::size_t count) {
    if (std::memcmp(begin, Line(index).words, count) != 0) touched += count;
  });
  return static_cast<std::int64_t>(touched);
}

// ---- stack -----------------------------------------------------------------------------------

/// Twice what Linux gives a program's first thread: whatever fits there fits here.
constexpr std::size_t stack_bytes = std::size_t{16} << 20;
/// Left unpainted below the frame that paints, for the painter's own frame. A call that stays
/// within it counts as no stack at all.
constexpr std::uintptr_t painter_bytes = 512;

/// A thread's stack from the system, above a page that nobody may touch.
class Stack {
 public:
  Stack() : guard_bytes_(static_cast<std::size_t>(sysconf(_SC_PAGESIZE))) {
    void* const mapping = mmap(nullptr, guard_bytes_ + stack_bytes, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) return;
    mapping_ = static_cast<char*>(mapping);
    mprotect(mapping_, guard_bytes_, PROT_NONE);
  }
  ~Stack() {
    if (mapping_ != nullptr) munmap(mapping_, guard_bytes_ + stack_bytes);
  }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  bool exists() const { return mapping_ != nullptr; }
  char* lowest() const { return mapping_ + guard_bytes_; }

 private:
  std::size_t guard_bytes_;
  char* mapping_ = nullptr;
};

// Stacks grow downwards on every machine this runs on. The words are volatile because the compiler
// knows of no object there.
using Word = volatile std::uint64_t;

[[gnu::noinline]] void paint(std::uintptr_t low, std::uintptr_t high) {
  for (std::uintptr_t at = low; at + sizeof(Word) <= high; at += sizeof(Word))
    *reinterpret_cast<Word*>(at) = pattern(at);
}

/// The lowest painted word that changed; `high` if none did.
[[gnu::noinline]] std::uintptr_t deepest_change(std::uintptr_t low, std::uintptr_t high) {
  for (std::uintptr_t at = low; at + sizeof(Word) <= high; at += sizeof(Word))
    if (*reinterpret_cast<Word*>(at) != pattern(at)) return at;
  return high;
}

// ---- one measurement -------------------------------------------------------------------------

struct Measurement {
  const MemoryHooks& hooks;
  const std::function<void()>& call;
  void* workspace;
  std::size_t workspace_bytes;
  std::uintptr_t stack_lowest;
  MemoryReport report;
};

MemoryHooks::Peaks run_counted(const Measurement& m) {
  m.hooks.start();
  try {
    m.call();
  } catch (...) {
    m.hooks.stop();
    throw;
  }
  return m.hooks.stop();
}

void run_measured(Measurement& m) {
  run_counted(m);  // the warm-up is counted too, so that counting itself is warm

  poison_workspace(m.workspace, m.workspace_bytes);
  const auto entry = reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0));
  const std::uintptr_t painted = (entry - painter_bytes) / sizeof(Word) * sizeof(Word);
  paint(m.stack_lowest, painted);

  const MemoryHooks::Peaks peaks = run_counted(m);

  const std::uintptr_t deepest = deepest_change(m.stack_lowest, painted);
  m.report.stack = deepest < painted ? static_cast<std::int64_t>(entry - deepest) : 0;
  m.report.heap_peak = peaks.heap;
  m.report.mapped_peak = peaks.mapped;
  m.report.workspace_touched = workspace_touched(m.workspace, m.workspace_bytes);
  m.report.measured = true;
}

void* thread_main(void* argument) {
  auto& m = *static_cast<Measurement*>(argument);
  try {
    run_measured(m);
  } catch (const std::exception& error) {
    m.report.why = std::string("the call threw: ") + error.what();
  } catch (...) {
    m.report.why = "the call threw";
  }
  return nullptr;
}

}  // namespace

MemoryReport measure_memory(void* workspace, std::size_t workspace_bytes,
                            const std::function<void()>& call) {
  if (workspace == nullptr) workspace_bytes = 0;
  MemoryReport report;
  report.workspace_declared = static_cast<std::int64_t>(workspace_bytes);
  if (const char* why = memory_meter_unavailable()) {
    report.why = why;
    return report;
  }

  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  const Stack stack;
  if (!stack.exists()) {
    report.why = "no memory for the measuring thread's stack";
    return report;
  }
  Measurement measurement{*registered_hooks.load(),
                          call,
                          workspace,
                          workspace_bytes,
                          reinterpret_cast<std::uintptr_t>(stack.lowest()),
                          report};
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstack(&attributes, stack.lowest(), stack_bytes);
  pthread_t thread{};
  const bool started = pthread_create(&thread, &attributes, thread_main, &measurement) == 0;
  pthread_attr_destroy(&attributes);
  if (!started) {
    report.why = "the measuring thread could not be started";
    return report;
  }
  pthread_join(thread, nullptr);
  return measurement.report;
}

#endif

}  // namespace tilewise::harness
