// malloc, mmap and their relatives, counted. Linked into an executable, these definitions take the
// place of the C library's for the whole process (operator new calls malloc), and hand every
// request on to it. While nothing is measured the cost is one test of a flag.
//
// How the meter finds them: a namespace-scope object below registers a table of functions as the
// program starts. No weak symbols, which not every linker treats alike; and an OBJECT library, so
// that the linker keeps this file although nobody refers to it by name.
//
// Only for the GNU C library, dynamically linked: it exports __libc_malloc and its like for this
// very purpose. Under a sanitizer malloc is the sanitizer's, and the meter says "not measured".
#include "oracle/harness/memory_meter.hpp"

#if !defined(TILEWISE_SANITIZED) && (defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__))
#define TILEWISE_SANITIZED 1
#endif
#if !defined(TILEWISE_SANITIZED) && defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
    __has_feature(memory_sanitizer)
#define TILEWISE_SANITIZED 1
#endif
#endif

#if defined(TILEWISE_SANITIZED)

namespace {
const tilewise::harness::MemoryHooks hooks = {"a sanitizer has taken malloc's place in this build",
                                              nullptr, nullptr};
}

#elif !defined(__GLIBC__) || !defined(__LP64__)

namespace {
const tilewise::harness::MemoryHooks hooks = {
    "malloc is only counted with the 64-bit GNU C library", nullptr, nullptr};
}

#else

#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include <dlfcn.h>
#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>

extern "C" {
void* __libc_malloc(std::size_t bytes);
void* __libc_calloc(std::size_t count, std::size_t bytes);
void* __libc_realloc(void* block, std::size_t bytes);
void* __libc_memalign(std::size_t alignment, std::size_t bytes);
void* __libc_valloc(std::size_t bytes);
void* __libc_pvalloc(std::size_t bytes);
void __libc_free(void* block);
}

namespace {

/// Live bytes since the start and their peak. Lock-free atomics only: any thread may come here from
/// anywhere, the inside of a signal handler included.
class Gauge {
 public:
  void reset() {
    live_.store(0, std::memory_order_relaxed);
    peak_.store(0, std::memory_order_relaxed);
  }
  void add(std::size_t bytes) {
    const auto change = static_cast<std::int64_t>(bytes);
    const std::int64_t live = live_.fetch_add(change, std::memory_order_relaxed) + change;
    std::int64_t peak = peak_.load(std::memory_order_relaxed);
    while (live > peak && !peak_.compare_exchange_weak(peak, live, std::memory_order_relaxed)) {
    }
  }
  /// What was there before the start may go away too: `live` then falls below zero.
  void subtract(std::size_t bytes) {
    live_.fetch_sub(static_cast<std::int64_t>(bytes), std::memory_order_relaxed);
  }
  std::int64_t peak() const { return peak_.load(std::memory_order_relaxed); }

 private:
  std::atomic<std::int64_t> live_{0}, peak_{0};
};

constinit std::atomic<bool> counting{false};
constinit Gauge heap, mapped;
constinit std::atomic<std::size_t> page_bytes{4096};

bool on() {
  return counting.load(std::memory_order_relaxed);
}

/// A block counts as what malloc set aside for it, at the allocation and at free alike.
void* counted(void* block) {
  if (on() && block != nullptr) heap.add(malloc_usable_size(block));
  return block;
}

std::size_t whole_pages(std::size_t bytes) {
  const std::size_t page = page_bytes.load(std::memory_order_relaxed);
  return (bytes + page - 1) / page * page;
}

/// The C library's own function of that name. It calls its mmap by a private name, so looking one
/// up never comes back here.
template <class Function>
Function* libc_function(std::atomic<Function*>& known, const char* name) {
  Function* function = known.load(std::memory_order_relaxed);
  if (function == nullptr) {
    function = reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
    known.store(function, std::memory_order_relaxed);
  }
  return function;
}

using Mmap = void*(void*, std::size_t, int, int, int, off_t);
using Munmap = int(void*, std::size_t);
using Mremap = void*(void*, std::size_t, std::size_t, int, ...);
constinit std::atomic<Mmap*> libc_mmap{nullptr};
constinit std::atomic<Munmap*> libc_munmap{nullptr};
constinit std::atomic<Mremap*> libc_mremap{nullptr};

void start() {
  page_bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  heap.reset();
  mapped.reset();
  counting = true;
}

tilewise::harness::MemoryHooks::Peaks stop() {
  counting = false;
  return {heap.peak(), mapped.peak()};
}

const tilewise::harness::MemoryHooks hooks = {nullptr, start, stop};

}  // namespace

extern "C" {

void* malloc(std::size_t bytes) noexcept {
  return counted(__libc_malloc(bytes));
}

void* calloc(std::size_t count, std::size_t bytes) noexcept {
  return counted(__libc_calloc(count, bytes));
}

void free(void* block) noexcept {
  if (on() && block != nullptr) heap.subtract(malloc_usable_size(block));
  __libc_free(block);
}

// A block that has moved was there twice while it was copied, so both count. (Very large blocks are
// moved by remapping their pages; for them this is too much, never too little.)
void* realloc(void* block, std::size_t bytes) noexcept {
  if (!on()) return __libc_realloc(block, bytes);
  const std::size_t before = block == nullptr ? 0 : malloc_usable_size(block);
  void* const after = __libc_realloc(block, bytes);
  if (after == nullptr) {
    if (bytes == 0) heap.subtract(before);  // freed
    return nullptr;
  }
  if (after == block) heap.subtract(before);
  heap.add(malloc_usable_size(after));
  if (after != block) heap.subtract(before);
  return after;
}

void* memalign(std::size_t alignment, std::size_t bytes) noexcept {
  return counted(__libc_memalign(alignment, bytes));
}

void* aligned_alloc(std::size_t alignment, std::size_t bytes) noexcept {
  return counted(__libc_memalign(alignment, bytes));
}

int posix_memalign(void** block, std::size_t alignment, std::size_t bytes) noexcept {
  const bool power_of_two = alignment != 0 && (alignment & (alignment - 1)) == 0;
  if (!power_of_two || alignment % sizeof(void*) != 0) return EINVAL;
  const int saved = errno;  // POSIX: the error is returned, errno stays
  void* const result = counted(__libc_memalign(alignment, bytes));
  errno = saved;
  if (result == nullptr) return ENOMEM;
  *block = result;
  return 0;
}

void* valloc(std::size_t bytes) noexcept {
  return counted(__libc_valloc(bytes));
}

void* pvalloc(std::size_t bytes) noexcept {
  return counted(__libc_pvalloc(bytes));
}

// Mappings count in whole pages, whatever they map. One that MAP_FIXED lays over another counts
// beside it.
void* mmap(void* where, std::size_t bytes, int protection, int flags, int file,
           off_t offset) noexcept {
  void* const result =
      libc_function(libc_mmap, "mmap")(where, bytes, protection, flags, file, offset);
  if (on() && result != MAP_FAILED) mapped.add(whole_pages(bytes));
  return result;
}

void* mmap64(void* where, std::size_t bytes, int protection, int flags, int file,
             off64_t offset) noexcept {
  return mmap(where, bytes, protection, flags, file, offset);
}

int munmap(void* where, std::size_t bytes) noexcept {
  const int result = libc_function(libc_munmap, "munmap")(where, bytes);
  if (on() && result == 0) mapped.subtract(whole_pages(bytes));
  return result;
}

void* mremap(void* where, std::size_t before, std::size_t after, int flags, ...) noexcept {
  void* destination = nullptr;
  if ((flags & MREMAP_FIXED) != 0) {
    va_list arguments;
    va_start(arguments, flags);
    destination = va_arg(arguments, void*);
    va_end(arguments);
  }
  void* const result =
      libc_function(libc_mremap, "mremap")(where, before, after, flags, destination);
  if (on() && result != MAP_FAILED) {
    mapped.subtract(whole_pages(before));
    mapped.add(whole_pages(after));
  }
  return result;
}

}  // extern "C"

#endif

namespace {
const bool registered = [] {
  tilewise::harness::register_memory_hooks(hooks);
  return true;
}();
}  // namespace
