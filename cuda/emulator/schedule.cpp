// Who runs next. Threads of a block are fibers of one thread of the host: each runs until it has to
// wait for others. Any order of warps is legal, so that a seed chooses it.
#include "cuda/emulator/block.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <new>
#include <utility>

#include <sys/mman.h>

namespace tilewise::emulator {
namespace {

thread_local Block* current_block = nullptr;
thread_local bool kernel_runs = false;

constexpr std::size_t stack_bytes = Stacks::bytes_each;

/// A piece of memory that somebody else frees: a fiber that never ends is left as it is.
struct Piece {
  char* memory;
  boost::context::stack_context allocate() {
    boost::context::stack_context context;
    context.size = stack_bytes;
    context.sp = memory + stack_bytes;
    return context;
  }
  void deallocate(boost::context::stack_context&) {}
};

Where where_it_waits(const Thread& thread) {
  return thread.state == State::waiting ? thread.waits_at : thread.looks_from;
}

Index index_of(std::int64_t n, Dim3 of) {
  return {static_cast<unsigned>(n % of.x), static_cast<unsigned>(n / of.x % of.y),
          static_cast<unsigned>(n / of.x / of.y)};
}

}  // namespace

Stacks::~Stacks() {
  if (memory_ != nullptr) munmap(memory_, bytes_);
}

char* Stacks::take(std::size_t count) {
  if (bytes_ < count * bytes_each + slack) {
    if (memory_ != nullptr) munmap(memory_, bytes_);
    bytes_ = count * bytes_each + slack;
    // Pages that no thread reaches cost nothing.
    memory_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
  }
  return static_cast<char*>(memory_) + slack;
}

Block* Block::current() {
  return current_block;
}

Block* Block::of_kernel() {
  return kernel_runs ? current_block : nullptr;
}

NotTheKernel::NotTheKernel() : before_(std::exchange(kernel_runs, false)) {}

NotTheKernel::~NotTheKernel() {
  kernel_runs = before_;
}

Block::Block(const Common& common, std::uint32_t number, Stacks& stacks)
    : common_(common),
      number_(number),
      block_index_(index_of(number, common.launch.grid)),
      threads_(static_cast<std::size_t>(common.launch.block.count())),
      warps_((threads_.size() + 31) / 32),
      unfinished_(size()),
      warpgroups_((threads_.size() + 127) / 128),
      budget_(size()),
      shared_(common.launch.shared_bytes + 1024),
      random_(common.options.seed * 0x9e3779b97f4a7c15u + number) {
  // Dynamic shared memory is aligned as strictly as any instruction wants it: 1024 bytes.
  dynamic_.begin = (reinterpret_cast<std::uintptr_t>(shared_.data()) + 1023) / 1024 * 1024;
  dynamic_.end = dynamic_.begin + common.launch.shared_bytes;
  dynamic_.cells.resize(common.launch.shared_bytes / 2 + 1);
  std::fill(shared_.begin(), shared_.end(), '\xff');  // NaN, in every format
  start_fibers(stacks);
}

Block::~Block() {
  // Ending a fiber that has not returned would unwind it, through frames that are not made for it.
  if (given_up_)
    for (Thread& thread : threads_)
      if (thread.state != State::finished)
        new (std::nothrow) boost::context::fiber(std::move(thread.self));
}

void Block::start_fibers(Stacks& stacks) {
  char* const lowest = stacks.take(threads_.size());
  for (std::size_t n = 0; n < threads_.size(); ++n) {
    Thread& thread = threads_[n];
    thread.number = static_cast<std::uint16_t>(n);
    thread.index = index_of(static_cast<std::int64_t>(n), launch().block);
    thread.clock.assign(threads_.size(), 0);
    thread.clock[n] = 1;
    char* const stack = lowest + n * stack_bytes;
    thread.stack_begin = reinterpret_cast<std::uintptr_t>(stack);
    thread.stack_end = thread.stack_begin + stack_bytes;
    thread.self = boost::context::fiber(std::allocator_arg, Piece{stack},
                                        [this, &thread](boost::context::fiber&& scheduler) {
                                          scheduler_ = std::move(scheduler);
                                          kernel_runs = true;
                                          launch().kernel(launch().parameters);
                                          kernel_runs = false;
                                          copies_of_thread_end();
                                          end_products();
                                          if (unfinished_ == 1) end_budget();
                                          changed();
                                          thread.state = State::finished;
                                          --unfinished_;
                                          return std::move(scheduler_);
                                        });
  }
  // Warp by warp, in any order.
  std::vector<std::size_t> order(warps_.size());
  for (std::size_t n = 0; n < order.size(); ++n) order[n] = n;
  std::shuffle(order.begin(), order.end(), random_);
  for (const std::size_t warp : order)
    for (std::size_t n = warp * 32; n < std::min(warp * 32 + 32, threads_.size()); ++n)
      ready_.push_back(static_cast<std::uint16_t>(n));
}

void Block::run() {
  Block* const outer = std::exchange(current_block, this);
  common_.standstill.block_begins();
  while (unfinished_ > 0 && !given_up_) {
    // A copy comes at some time; when nobody can go on without one, at last.
    if (!loads_.empty() && random_() % 16 == 0) bring_any(false);
    if (ready_first_ == ready_.size()) {
      if (bring_any(true)) continue;
      given_up_ = true;
      report_deadlock();
      break;
    }
    running_ = &threads_[ready_[ready_first_++]];
    if (ready_first_ > 4096) {
      ready_.erase(ready_.begin(), ready_.begin() + static_cast<std::ptrdiff_t>(ready_first_));
      ready_first_ = 0;
    }
    running_->self = std::move(running_->self).resume();
    if (has_changed_) has_gone_on();
  }
  if (watches_) common_.standstill.unwatch();
  if (!given_up_) {
    given_up_ = true;  // nothing that is found now has a thread to end
    copies_of_block_end();
  }
  finish();
  current_block = outer;
}

void Block::wait(const char* what, Where where, unsigned mask) {
  const NotTheKernel meanwhile;
  Thread& thread = *running_;
  thread.state = State::waiting;
  thread.waits_for = what;
  thread.waits_at = where;
  thread.waits_mask = mask;
  scheduler_ = std::move(scheduler_).resume();
}

void Block::wake(unsigned number) {
  threads_[number].state = State::ready;
  ready_.push_back(static_cast<std::uint16_t>(number));
}

void Block::let_others_go_on() {
  const NotTheKernel meanwhile;
  ready_.push_back(running_->number);
  scheduler_ = std::move(scheduler_).resume();
}

void Block::give_up() {
  const NotTheKernel meanwhile;
  given_up_ = true;
  for (;;) scheduler_ = std::move(scheduler_).resume();
}

void Block::report_deadlock() {
  // What is waited for, by how many; an example of each.
  struct Crowd {
    const Thread* first = nullptr;
    std::int64_t count = 0;
  };
  std::map<std::pair<std::string, std::uint64_t>, Crowd> crowds;
  bool in_loops = false;
  for (const Thread& thread : threads_) {
    if (thread.state == State::finished) continue;
    // One that could go on does so in vain, in a loop.
    const bool waits = thread.state == State::waiting;
    in_loops = in_loops || !waits;
    const std::string what = thread.waits_mbarrier != 0 ? missing(thread) : thread.waits_for;
    Crowd& crowd = crowds[{waits ? what : "", where_it_waits(thread).bits()}];
    if (crowd.first == nullptr) crowd.first = &thread;
    ++crowd.count;
  }
  std::string text = "nobody can go on:";
  const Thread* first = nullptr;
  const Thread* second = nullptr;
  for (const auto& [key, crowd] : crowds) {
    const Thread& thread = *crowd.first;
    const std::string what = thread.state == State::waiting
                                 ? key.first
                                 : named(thread.looks_at) + " to change, in a loop";
    text += fmt::format(" {} threads (thread {} first) wait at {} for {};", crowd.count,
                        thread.number, line_of(where_it_waits(thread)).text(), what);
    (first == nullptr ? first : second) = crowd.first;
  }
  for (unsigned id = 0; id < 16; ++id)
    if (const Barrier& barrier = barriers_[id]; barrier.arrived > 0)
      text += fmt::format(" {} of {} threads have come to barrier {};", barrier.arrived,
                          barrier.expected, id);
  text += products_text() + budget_text();
  std::int64_t finished = 0;
  const Thread* gone = nullptr;
  for (const Thread& thread : threads_)
    if (thread.state == State::finished) {
      if (gone == nullptr) gone = &thread;
      ++finished;
    }
  if (gone != nullptr)
    text += fmt::format(" {} threads (thread {} first) have returned;", finished, gone->number);
  const std::int64_t missing = launch().grid.count() - common_.standstill.begun();
  if (in_loops && missing > 0)
    text +=
        fmt::format(" {} of the grid's {} blocks have not begun;", missing, launch().grid.count());
  text.back() = '.';
  find(Kind::deadlock, where_it_waits(*first),
       second != nullptr ? where_it_waits(*second) : Where(), text);
}

}  // namespace tilewise::emulator
