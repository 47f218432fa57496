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

// The C library's own names for them, reserved as they are: there are no others.
// NOLINTBEGIN(readability-identifier-naming)
extern "C" {
void* __libc_malloc(std::size_t bytes);
void* __libc_calloc(std::size_t count, std::size_t bytes);
void* __libc_realloc(void* block, std::size_t bytes);
void* __libc_memalign(std::size_t alignment, std::size_t bytes);
void* __libc_valloc(std::size_t bytes);
void* __libc_pvalloc(std::size_t bytes);
void __libc_free(void* block);
}
// NOLINTEND(readability-identifier-naming)

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

// The parameters have the names of the manual pages.
extern "C" {

void* malloc(std::size_t size) noexcept {
  return counted(__libc_malloc(size));
}

void* calloc(std::size_t nmemb, std::size_t size) noexcept {
  return counted(__libc_calloc(nmemb, size));
}

void free(void* ptr) noexcept {
  if (on() && ptr != nullptr) heap.subtract(malloc_usable_size(ptr));
  __libc_free(ptr);
}

// A block that has moved was there twice while it was copied, so both count. (Very large blocks are
// moved by remapping their pages; for them this is too much, never too little.)
void* realloc(void* ptr, std::size_t size) noexcept {
  if (!on()) return __libc_realloc(ptr, size);
  const std::size_t before = ptr == nullptr ? 0 : malloc_usable_size(ptr);
  void* const after = __libc_realloc(ptr, size);
  if (after == nullptr) {
    if (size == 0) heap.subtract(before);  // freed
    return nullptr;
  }
  if (after == ptr) heap.subtract(before);
  heap.add(malloc_usable_size(after));
  if (after != ptr) heap.subtract(before);
  return after;
}

void* memalign(std::size_t alignment, std::size_t size) noexcept {
  return counted(__libc_memalign(alignment, size));
}

void* aligned_alloc(std::size_t alignment, std::size_t size) noexcept {
  return counted(__libc_memalign(alignment, size));
}

int posix_memalign(void** memptr, std::size_t alignment, std::size_t size) noexcept {
  const bool power_of_two = alignment != 0 && (alignment & (alignment - 1)) == 0;
  if (!power_of_two || alignment % sizeof(void*) != 0) return EINVAL;
  const int saved = errno;  // POSIX: the error is returned, errno stays
  void* const result = counted(__libc_memalign(alignment, size));
  errno = saved;
  if (result == nullptr) return ENOMEM;
  *memptr = result;
  return 0;
}

void* valloc(std::size_t size) noexcept {
  return counted(__libc_valloc(size));
}

void* pvalloc(std::size_t size) noexcept {
  return counted(__libc_pvalloc(size));
}

// Mappings count in whole pages, whatever they map. One that MAP_FIXED lays over another counts
// beside it.
void* mmap(void* addr, std::size_t len, int prot, int flags, int fd, off_t offset) noexcept {
  void* const result = libc_function(libc_mmap, "mmap")(addr, len, prot, flags, fd, offset);
  if (on() && result != MAP_FAILED) mapped.add(whole_pages(len));
  return result;
}

void* mmap64(void* addr, std::size_t len, int prot, int flags, int fd, off64_t offset) noexcept {
  return mmap(addr, len, prot, flags, fd, offset);
}

int munmap(void* addr, std::size_t len) noexcept {
  const int result = libc_function(libc_munmap, "munmap")(addr, len);
  if (on() && result == 0) mapped.subtract(whole_pages(len));
  return result;
}

void* mremap(void* addr, std::size_t old_len, std::size_t new_len, int flags, ...) noexcept {
  void* destination = nullptr;
  if ((flags & MREMAP_FIXED) != 0) {
    va_list arguments;
    va_start(arguments, flags);
    destination = va_arg(arguments, void*);
    va_end(arguments);
  }
  void* const result =
      libc_function(libc_mremap, "mremap")(addr, old_len, new_len, flags, destination);
  if (on() && result != MAP_FAILED) {
    mapped.subtract(whole_pages(old_len));
    mapped.add(whole_pages(new_len));
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
