// A kernel's files are compiled with -fsanitize=thread, which puts a call before each access to
// memory. The thread sanitizer's own library is not linked: these are the calls. So pointers in
// kernels stay plain pointers, and the return address says which line it was.
//
// What is not seen: accesses that a compiler makes registers of, and a memcpy or memset that g++
// makes moves of.
#include "cuda/emulator/block.hpp"

#include <cstring>

namespace {

using tilewise::emulator::Block;
using tilewise::emulator::Where;

inline void note(const void* address, std::size_t bytes, Block::Access what,
                 const void* instruction) {
  if (Block* const block = Block::of_kernel())
    block->access(address, bytes, what, Where(instruction));
}

/// Bytes without a type, as words: what a GPU would move at least, and mostly what they are of.
inline void note_bytes(const void* memory, std::size_t bytes, Block::Access what,
                       const void* instruction) {
  const auto begin = reinterpret_cast<std::uintptr_t>(memory);
  for (std::uintptr_t at = begin; at < begin + bytes;) {
    std::size_t width = 4;
    while (at % width != 0 || at + width > begin + bytes) width /= 2;
    note(reinterpret_cast<const void*>(at), width, what, instruction);
    at += width;
  }
}

inline void note_look(const void* address, std::size_t bytes, const void* instruction) {
  if (Block* const block = Block::of_kernel()) block->look(address, bytes, Where(instruction));
}

}  // namespace

// The names are the compilers', of what they call.
// NOLINTBEGIN(readability-identifier-naming,bugprone-reserved-identifier,bugprone-macro-parentheses)
extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

#define TILEWISE_HOOKS(bytes)                                                \
  void __tsan_read##bytes(void* address) {                                   \
    note(address, bytes, Block::Access::read, __builtin_return_address(0));  \
  }                                                                          \
  void __tsan_write##bytes(void* address) {                                  \
    note(address, bytes, Block::Access::write, __builtin_return_address(0)); \
  }                                                                          \
  void __tsan_unaligned_read##bytes(void* address) {                         \
    note(address, bytes, Block::Access::read, __builtin_return_address(0));  \
  }                                                                          \
  void __tsan_unaligned_write##bytes(void* address) {                        \
    note(address, bytes, Block::Access::write, __builtin_return_address(0)); \
  }                                                                          \
  void __tsan_volatile_read##bytes(void* address) {                          \
    note_look(address, bytes, __builtin_return_address(0));                  \
  }                                                                          \
  void __tsan_volatile_write##bytes(void* address) {                         \
    note(address, bytes, Block::Access::write, __builtin_return_address(0)); \
  }                                                                          \
  void __tsan_unaligned_volatile_read##bytes(void* address) {                \
    note_look(address, bytes, __builtin_return_address(0));                  \
  }                                                                          \
  void __tsan_unaligned_volatile_write##bytes(void* address) {               \
    note(address, bytes, Block::Access::write, __builtin_return_address(0)); \
  }                                                                          \
  void __tsan_read_write##bytes(void* address) {                             \
    note(address, bytes, Block::Access::read, __builtin_return_address(0));  \
    note(address, bytes, Block::Access::write, __builtin_return_address(0)); \
  }
TILEWISE_HOOKS(1)
TILEWISE_HOOKS(2)
TILEWISE_HOOKS(4)
TILEWISE_HOOKS(8)
TILEWISE_HOOKS(16)
#undef TILEWISE_HOOKS

void __tsan_read_range(void* address, std::size_t bytes) {
  note_bytes(address, bytes, Block::Access::read, __builtin_return_address(0));
}
void __tsan_write_range(void* address, std::size_t bytes) {
  note_bytes(address, bytes, Block::Access::write, __builtin_return_address(0));
}

// cuda.hpp sends the calls of memcpy and its like here.
void* __tsan_memcpy(void* to, const void* from, std::size_t bytes) {
  note_bytes(from, bytes, Block::Access::read, __builtin_return_address(0));
  note_bytes(to, bytes, Block::Access::write, __builtin_return_address(0));
  return std::memcpy(to, from, bytes);
}
void* __tsan_memmove(void* to, const void* from, std::size_t bytes) {
  note_bytes(from, bytes, Block::Access::read, __builtin_return_address(0));
  note_bytes(to, bytes, Block::Access::write, __builtin_return_address(0));
  return std::memmove(to, from, bytes);
}
void* __tsan_memset(void* to, int value, std::size_t bytes) {
  note_bytes(to, bytes, Block::Access::write, __builtin_return_address(0));
  return std::memset(to, value, bytes);
}

// Atomics of the host's code in the same file: static initialisation, reference counts.
#define TILEWISE_ATOMICS(bits, type)                                                               \
  type __tsan_atomic##bits##_load(const volatile type* at, int) {                                  \
    return __atomic_load_n(at, __ATOMIC_SEQ_CST);                                                  \
  }                                                                                                \
  void __tsan_atomic##bits##_store(volatile type* at, type value, int) {                           \
    __atomic_store_n(at, value, __ATOMIC_SEQ_CST);                                                 \
  }                                                                                                \
  type __tsan_atomic##bits##_exchange(volatile type* at, type value, int) {                        \
    return __atomic_exchange_n(at, value, __ATOMIC_SEQ_CST);                                       \
  }                                                                                                \
  type __tsan_atomic##bits##_fetch_add(volatile type* at, type value, int) {                       \
    return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST);                                        \
  }                                                                                                \
  type __tsan_atomic##bits##_fetch_sub(volatile type* at, type value, int) {                       \
    return __atomic_fetch_sub(at, value, __ATOMIC_SEQ_CST);                                        \
  }                                                                                                \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile type* at, type* expected, type value, \
                                                    int, int) {                                    \
    return __atomic_compare_exchange_n(at, expected, value, false, __ATOMIC_SEQ_CST,               \
                                       __ATOMIC_SEQ_CST);                                          \
  }                                                                                                \
  int __tsan_atomic##bits##_compare_exchange_weak(volatile type* at, type* expected, type value,   \
                                                  int, int) {                                      \
    return __atomic_compare_exchange_n(at, expected, value, false, __ATOMIC_SEQ_CST,               \
                                       __ATOMIC_SEQ_CST);                                          \
  }
TILEWISE_ATOMICS(8, std::uint8_t)
TILEWISE_ATOMICS(16, std::uint16_t)
TILEWISE_ATOMICS(32, std::uint32_t)
TILEWISE_ATOMICS(64, std::uint64_t)
#undef TILEWISE_ATOMICS
void __tsan_atomic_thread_fence(int) {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
}
// NOLINTEND(readability-identifier-naming,bugprone-reserved-identifier,bugprone-macro-parentheses)
