// Guarded buffers, and the signal handler that lets a write to a protected one through.
#include "oracle/harness/protect.hpp"

#include <atomic>
#include <bit>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <mutex>
#include <new>
#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#define TILEWISE_POSIX 1
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace tilewise::harness {

namespace {

// ---- pages -----------------------------------------------------------------------------------

constexpr std::size_t band_bytes = 4096;

#if defined(TILEWISE_POSIX)

std::size_t page_bytes() {
  return static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}
std::byte* map_pages(std::size_t bytes) {
  void* const pages =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return pages == MAP_FAILED ? nullptr : static_cast<std::byte*>(pages);
}
void unmap_pages(std::byte* pages, std::size_t bytes) {
  munmap(pages, bytes);
}
bool make_read_only(std::byte* pages, std::size_t bytes) {
  return mprotect(pages, bytes, PROT_READ) == 0;
}
bool make_writable(void* pages, std::size_t bytes) {
  return mprotect(pages, bytes, PROT_READ | PROT_WRITE) == 0;
}

#else

std::size_t page_bytes() {
  return 4096;
}
std::byte* map_pages(std::size_t bytes) {
  return static_cast<std::byte*>(
      ::operator new (bytes, std::align_val_t{page_bytes()}, std::nothrow));
}
void unmap_pages(std::byte* pages, std::size_t) {
  ::operator delete (pages, std::align_val_t{page_bytes()});
}
bool make_read_only(std::byte*, std::size_t) {
  return false;
}
bool make_writable(void*, std::size_t) {
  return true;
}

#endif

// ---- the guard bands' pattern ----------------------------------------------------------------

// Every 16-bit word of a band is 0x7fff or 0xffff: read as f16, bf16, two e4m3 or two e5m2 that is
// NaN, and so is the f32 or f64 that has it on top. The signs are random and differ from buffer to
// buffer: NaNs that a kernel reads beyond its input and writes beyond its output are noticed, too.
class Pattern {
 public:
  explicit Pattern(std::uint64_t seed) : seed_(seed) {}

  /// The byte at `offset` from the start of the mapping. Offsets are asked for in ascending order.
  std::byte operator()(std::size_t offset) {
    const std::size_t word = offset / 2;
    if (word / 64 != block_) {
      block_ = word / 64;
      signs_ = mix(seed_ * 0x9e3779b97f4a7c15u + block_);
    }
    constexpr std::size_t top = std::endian::native == std::endian::little ? 1 : 0;
    if (offset % 2 != top) return std::byte{0xff};
    return (signs_ >> (word % 64) & 1) != 0 ? std::byte{0xff} : std::byte{0x7f};
  }

 private:
  // SplitMix64's output function (Steele, Lea and Flood 2014, figure 15).
  static std::uint64_t mix(std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  std::uint64_t seed_;
  std::size_t block_ = ~std::size_t{0};
  std::uint64_t signs_ = 0;
};

// ---- protected ranges ------------------------------------------------------------------------

/// What the signal handler looks into: atomics alone, and no memory of its own.
struct ProtectedRange {
  std::atomic<bool> taken{false};
  std::atomic<std::uintptr_t> begin{0}, end{0};
  std::atomic<std::uintptr_t> first_fault{0};  // 0: none
};
static_assert(std::atomic<std::uintptr_t>::is_always_lock_free);

constexpr int range_count = 128;
constinit ProtectedRange ranges[range_count];

/// A free entry, now taken, or -1.
int take_range() {
  for (int slot = 0; slot < range_count; ++slot)
    if (!ranges[slot].taken.exchange(true)) return slot;
  return -1;
}

void release_range(int slot) {
  ranges[slot].begin = 0;
  ranges[slot].end = 0;
  ranges[slot].taken = false;
}

}  // namespace

// ---- GuardedBuffer ---------------------------------------------------------------------------

std::optional<GuardedBuffer> GuardedBuffer::allocate(std::size_t bytes, std::size_t alignment) {
  static std::atomic<std::uint64_t> next_seed{1};
  const bool power_of_two = alignment != 0 && (alignment & (alignment - 1)) == 0;
  const std::size_t page = page_bytes();
  if (!power_of_two || alignment > band_bytes) return std::nullopt;
  if (bytes > PTRDIFF_MAX - 2 * band_bytes - page) return std::nullopt;

  GuardedBuffer buffer;
  buffer.mapping_bytes_ = (band_bytes + bytes + band_bytes + page - 1) / page * page;
  buffer.mapping_ = map_pages(buffer.mapping_bytes_);
  if (buffer.mapping_ == nullptr) return std::nullopt;
  buffer.data_ = buffer.mapping_ + band_bytes;
  buffer.size_ = bytes;
  buffer.seed_ = next_seed.fetch_add(1);
  buffer.poison();
  buffer.restore_guards();
  return buffer;
}

GuardedBuffer::GuardedBuffer(GuardedBuffer&& other) noexcept {
  *this = std::move(other);
}

GuardedBuffer& GuardedBuffer::operator=(GuardedBuffer&& other) noexcept {
  if (this == &other) return *this;
  release();
  mapping_ = std::exchange(other.mapping_, nullptr);
  mapping_bytes_ = std::exchange(other.mapping_bytes_, 0);
  data_ = std::exchange(other.data_, nullptr);
  size_ = std::exchange(other.size_, 0);
  seed_ = other.seed_;
  slot_ = std::exchange(other.slot_, -1);
  past_write_ = std::exchange(other.past_write_, std::nullopt);
  copy_ = std::move(other.copy_);
  other.copy_.clear();
  return *this;
}

GuardedBuffer::~GuardedBuffer() {
  release();
}

void GuardedBuffer::release() {
  if (mapping_ == nullptr) return;
  unprotect();
  unmap_pages(mapping_, mapping_bytes_);
  mapping_ = nullptr;
}

void GuardedBuffer::poison() {
  if (size_ != 0) std::memset(data_, 0xff, size_);
}

void GuardedBuffer::restore_guards() {
  if (mapping_ == nullptr) return;
  Pattern pattern(seed_);
  const std::size_t end = band_bytes + size_;
  for (std::size_t i = 0; i < band_bytes; ++i) mapping_[i] = pattern(i);
  for (std::size_t i = end; i < mapping_bytes_; ++i) mapping_[i] = pattern(i);
}

std::optional<std::ptrdiff_t> GuardedBuffer::first_broken() const {
  Pattern pattern(seed_);
  const std::size_t end = band_bytes + size_;
  for (std::size_t i = 0; i < mapping_bytes_; ++i) {
    if (i == band_bytes) i = end;
    if (mapping_[i] != pattern(i)) return mapping_ + i - data_;
  }
  return std::nullopt;
}

bool GuardedBuffer::write_protect() {
  unprotect();
  past_write_ = std::nullopt;
  if (mapping_ == nullptr) return false;
  const int slot = take_range();
  if (slot >= 0) {
    const auto begin = reinterpret_cast<std::uintptr_t>(mapping_);
    ranges[slot].first_fault = 0;
    ranges[slot].begin = begin;
    ranges[slot].end = begin + mapping_bytes_;
    if (make_read_only(mapping_, mapping_bytes_)) {
      slot_ = slot;
      return true;
    }
    release_range(slot);
  }
  copy_.assign(mapping_, mapping_ + mapping_bytes_);
  return false;
}

void GuardedBuffer::unprotect() {
  if (slot_ < 0 && copy_.empty()) return;
  past_write_ = first_write();
  if (slot_ >= 0) {
    make_writable(mapping_, mapping_bytes_);
    release_range(slot_);
    slot_ = -1;
  }
  copy_ = {};
}

std::optional<std::ptrdiff_t> GuardedBuffer::first_write() const {
  if (slot_ >= 0) {
    const std::uintptr_t fault = ranges[slot_].first_fault;
    if (fault == 0) return std::nullopt;
    return static_cast<std::ptrdiff_t>(fault - reinterpret_cast<std::uintptr_t>(data_));
  }
  for (std::size_t i = 0; i < copy_.size(); ++i)
    if (mapping_[i] != copy_[i]) return mapping_ + i - data_;
  return past_write_;
}

// ---- FaultGuard ------------------------------------------------------------------------------

#if defined(TILEWISE_POSIX)

namespace {

// Linux reports a write to a read-only page as SIGSEGV, macOS as SIGBUS.
constexpr int signals[] = {SIGSEGV, SIGBUS};
struct sigaction previous_actions[2];

/// Records the fault and lets the write through, if it hit a protected range.
bool serve_fault(const void* address) {
  const auto at = reinterpret_cast<std::uintptr_t>(address);
  for (ProtectedRange& range : ranges) {
    const std::uintptr_t begin = range.begin, end = range.end;
    if (at < begin || at >= end) continue;
    std::uintptr_t none = 0;
    range.first_fault.compare_exchange_strong(none, at);
    return make_writable(reinterpret_cast<void*>(begin), end - begin);
  }
  return false;
}

// mprotect is a bare system call on Linux and macOS, although POSIX does not list it among the
// functions that a signal handler may call.
void on_fault(int signal, siginfo_t* information, void* context) {
  const int saved = errno;
  const bool is_fault = information->si_code > 0;  // not kill() or raise()
  const bool served = is_fault && serve_fault(information->si_addr);
  errno = saved;
  if (served) return;

  const struct sigaction& previous = previous_actions[signal == signals[0] ? 0 : 1];
  if ((previous.sa_flags & SA_SIGINFO) != 0)
    return previous.sa_sigaction(signal, information, context);
  if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN)
    return previous.sa_handler(signal);
  // With the previous action back in place, the faulting instruction runs again and ends the
  // program the usual way. A signal that somebody sent has to be sent again.
  sigaction(signal, &previous, nullptr);
  if (!is_fault) raise(signal);
}

std::mutex guards_mutex;
int guards = 0;

}  // namespace

FaultGuard::FaultGuard() {
  const std::lock_guard lock(guards_mutex);
  if (guards++ > 0) return;
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  for (int i = 0; i < 2; ++i) sigaction(signals[i], &action, &previous_actions[i]);
}

FaultGuard::~FaultGuard() {
  const std::lock_guard lock(guards_mutex);
  if (--guards > 0) return;
  for (int i = 0; i < 2; ++i) sigaction(signals[i], &previous_actions[i], nullptr);
}

#else

FaultGuard::FaultGuard() = default;
FaultGuard::~FaultGuard() = default;

#endif

}  // namespace tilewise::harness
