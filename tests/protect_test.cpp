// Guarded buffers: the bands notice stray writes, and write-protected memory survives a write and
// tells of it.
#include "oracle/harness/protect.hpp"

#include "core/dtype.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <set>
#include <thread>
#include <utility>
#include <vector>

namespace tilewise::harness {
namespace {

GuardedBuffer make(std::size_t bytes, std::size_t alignment = 64) {
  std::optional<GuardedBuffer> buffer = GuardedBuffer::allocate(bytes, alignment);
  if (!buffer) throw std::bad_alloc();
  return std::move(*buffer);
}

/// A store that the compiler neither leaves out nor checks against the size of anything.
template <class T>
void write_at(const GuardedBuffer& buffer, std::ptrdiff_t offset, T value) {
  const auto address = reinterpret_cast<std::uintptr_t>(buffer.data()) + offset;
  *reinterpret_cast<volatile T*>(address) = value;
}

constexpr std::size_t sizes[] = {0, 1, 2, 63, 64, 100, 4095, 4096, 4097, 12288, 1'000'003};

TEST(GuardedBuffer, IsAlignedPoisonedAndIntact) {
  for (const std::size_t bytes : sizes) {
    for (const std::size_t alignment : {1, 8, 64, 4096}) {
      const GuardedBuffer buffer = make(bytes, alignment);
      ASSERT_NE(buffer.data(), nullptr);
      EXPECT_EQ(buffer.size(), bytes);
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % alignment, 0u);
      EXPECT_TRUE(buffer.guards_intact());
      for (std::size_t i = 0; i < bytes; i += 97) ASSERT_EQ(buffer.data()[i], std::byte{0xff});
    }
  }
}

TEST(GuardedBuffer, RefusesWhatNoMachineHas) {
  EXPECT_FALSE(GuardedBuffer::allocate(SIZE_MAX));
  EXPECT_FALSE(GuardedBuffer::allocate(SIZE_MAX / 2 - 100));
  EXPECT_FALSE(GuardedBuffer::allocate(std::size_t{1} << 62));
  EXPECT_FALSE(GuardedBuffer::allocate(64, 0));
  EXPECT_FALSE(GuardedBuffer::allocate(64, 48));
  EXPECT_FALSE(GuardedBuffer::allocate(64, 8192));
}

TEST(GuardedBuffer, AnEmptyOneAnswersToo) {
  GuardedBuffer buffer;
  EXPECT_EQ(buffer.data(), nullptr);
  EXPECT_TRUE(buffer.guards_intact());
  EXPECT_FALSE(buffer.write_protect());
  EXPECT_FALSE(buffer.first_write());
  buffer.unprotect();
  buffer.poison();
  buffer.restore_guards();
}

TEST(GuardedBuffer, PoisonIsNotANumberInEveryFormat) {
  const GuardedBuffer buffer = make(64);
  for (const DTypeInfo& row : dtype_table)
    if (is_floating(row.dtype)) {
      EXPECT_TRUE(std::isnan(load(row.dtype, buffer.data()))) << row.name;
    }
}

TEST(GuardedBuffer, BandsAreNotNumbersInEveryFormat) {
  for (const std::size_t bytes : {64, 72}) {
    const GuardedBuffer buffer = make(bytes);
    for (const DTypeInfo& row : dtype_table) {
      if (!is_floating(row.dtype)) continue;
      for (std::size_t i = 0; i < 4096; i += row.size) {
        ASSERT_TRUE(std::isnan(load(row.dtype, buffer.data() + bytes + i))) << row.name;
        ASSERT_TRUE(std::isnan(load(row.dtype, buffer.data() - 4096 + i))) << row.name;
      }
    }
  }
}

TEST(GuardedBuffer, BandsDifferFromBufferToBuffer) {
  const GuardedBuffer first = make(256), second = make(256);
  // A row of NaNs that a kernel copies from beyond one buffer to beyond another is noticed.
  EXPECT_NE(std::memcmp(first.data() + 256, second.data() + 256, 32), 0);
  EXPECT_NE(std::memcmp(first.data() - 32, second.data() - 32, 32), 0);
  std::memcpy(second.data() + 256, first.data() + 256, 32);
  EXPECT_FALSE(second.guards_intact());
  EXPECT_TRUE(first.guards_intact());
}

TEST(GuardedBuffer, WritesInsideBreakNothing) {
  for (const std::size_t bytes : sizes) {
    const GuardedBuffer buffer = make(bytes);
    if (bytes != 0) std::memset(buffer.data(), 0, bytes);
    EXPECT_TRUE(buffer.guards_intact());
  }
}

TEST(GuardedBuffer, TheFirstByteOnEitherSideIsWatched) {
  for (const std::size_t bytes : sizes) {
    GuardedBuffer buffer = make(bytes);
    const auto end = static_cast<std::ptrdiff_t>(bytes);
    for (const std::ptrdiff_t offset :
         {end, end + 1, end + 4095, std::ptrdiff_t{-1}, std::ptrdiff_t{-4096}}) {
      write_at(buffer, offset, std::uint8_t{0});
      EXPECT_FALSE(buffer.guards_intact());
      EXPECT_EQ(buffer.first_broken(), offset);
      buffer.restore_guards();
      EXPECT_TRUE(buffer.guards_intact());
    }
  }
}

TEST(GuardedBuffer, TheLowestBrokenByteIsNamed) {
  const GuardedBuffer buffer = make(400);
  write_at(buffer, 408, 1.0f);
  EXPECT_EQ(buffer.first_broken(), 408);
  write_at(buffer, 400, 1.0f);
  EXPECT_EQ(buffer.first_broken(), 400);
  write_at(buffer, -8, 1.0f);
  EXPECT_EQ(buffer.first_broken(), -8);
}

TEST(GuardedBuffer, MovesWithItsState) {
  GuardedBuffer first = make(100);
  write_at(first, 100, std::uint8_t{0});
  std::byte* const data = first.data();
  GuardedBuffer second = std::move(first);
  EXPECT_EQ(second.data(), data);
  EXPECT_EQ(second.first_broken(), 100);
  second = make(10);
  EXPECT_TRUE(second.guards_intact());
  EXPECT_EQ(second.size(), 10u);
}

TEST(WriteProtection, ReadingLeavesNoTrace) {
  GuardedBuffer buffer = make(10'000);
  buffer.write_protect();
  const FaultGuard guard;
  volatile int sum = 0;
  for (std::size_t i = 0; i < buffer.size(); ++i)
    sum = sum + static_cast<int>(static_cast<volatile std::byte*>(buffer.data())[i]);
  EXPECT_EQ(sum, 255 * 10'000);
  EXPECT_FALSE(buffer.first_write());
  buffer.unprotect();
  EXPECT_FALSE(buffer.first_write());
}

TEST(WriteProtection, AWriteSucceedsAndIsTold) {
  GuardedBuffer buffer = make(100'000);
  buffer.write_protect();
  {
    const FaultGuard guard;
    write_at(buffer, 40'000, 1.5f);
    write_at(buffer, 80'000, 2.5f);
    write_at(buffer, 0, 0.5f);
  }
  EXPECT_EQ(buffer.first_write(), 40'000);
  buffer.unprotect();
  EXPECT_EQ(buffer.first_write(), 40'000);
  EXPECT_EQ(load(DType::f32, buffer.data() + 40'000), 1.5);
  EXPECT_EQ(load(DType::f32, buffer.data() + 80'000), 2.5);
  EXPECT_EQ(load(DType::f32, buffer.data()), 0.5);
  EXPECT_TRUE(buffer.guards_intact());
}

TEST(WriteProtection, WritesToTheBandsAreToldToo) {
  for (const std::ptrdiff_t offset : {-4, 1000}) {
    GuardedBuffer buffer = make(1000);
    buffer.write_protect();
    const FaultGuard guard;
    write_at(buffer, offset, 1.0f);
    EXPECT_EQ(buffer.first_write(), offset);
    EXPECT_EQ(buffer.first_broken(), offset);
  }
}

TEST(WriteProtection, StartsAfreshEachTime) {
  GuardedBuffer buffer = make(1000);
  const FaultGuard guard;
  for (int round = 0; round < 3; ++round) {
    buffer.write_protect();
    EXPECT_FALSE(buffer.first_write());
    write_at(buffer, 100 * round, std::uint8_t{7});
    EXPECT_EQ(buffer.first_write(), 100 * round);
    buffer.unprotect();
    write_at(buffer, 5, std::uint8_t{7});
    EXPECT_EQ(buffer.first_write(), 100 * round);
  }
}

TEST(WriteProtection, TellsBuffersApart) {
  GuardedBuffer q = make(5000), k = make(5000), v = make(5000);
  for (GuardedBuffer* buffer : {&q, &k, &v}) buffer->write_protect();
  const FaultGuard guard;
  write_at(k, 64, std::uint8_t{0});
  EXPECT_FALSE(q.first_write());
  EXPECT_EQ(k.first_write(), 64);
  EXPECT_FALSE(v.first_write());
}

TEST(WriteProtection, ServesEveryThread) {
  constexpr int thread_count = 4, buffers_each = 8;
  std::vector<GuardedBuffer> shared;
  for (int i = 0; i < buffers_each; ++i) {
    shared.push_back(make(4096));
    shared.back().write_protect();
  }
  {
    const FaultGuard guard;
    std::vector<std::thread> threads;
    for (int t = 0; t < thread_count; ++t)
      threads.emplace_back([&shared, t] {
        for (GuardedBuffer& buffer : shared) write_at(buffer, 8 * t, std::int64_t{t});
      });
    for (std::thread& thread : threads) thread.join();
  }
  for (const GuardedBuffer& buffer : shared) {
    ASSERT_TRUE(buffer.first_write());
    const std::set<std::ptrdiff_t> possible{0, 8, 16, 24};
    EXPECT_EQ(possible.count(*buffer.first_write()), 1u);
    for (int t = 0; t < thread_count; ++t)
      EXPECT_EQ(load(DType::i64, buffer.data() + 8 * t), static_cast<double>(t));
  }
}

TEST(WriteProtection, GuardsNest) {
  GuardedBuffer buffer = make(1000);
  buffer.write_protect();
  const FaultGuard outer;
  { const FaultGuard inner; }
  write_at(buffer, 12, std::uint8_t{0});
  EXPECT_EQ(buffer.first_write(), 12);
}

TEST(WriteProtection, BeyondTheTableACopyTells) {
  std::vector<GuardedBuffer> buffers;
  bool all_protected = true;
  for (int i = 0; i < 200; ++i) {
    buffers.push_back(make(100));
    all_protected = buffers.back().write_protect() && all_protected;
  }
  EXPECT_FALSE(all_protected);
  const FaultGuard guard;
  for (GuardedBuffer& buffer : buffers) {
    EXPECT_FALSE(buffer.first_write());
    write_at(buffer, 50, std::uint8_t{1});
    EXPECT_EQ(buffer.first_write(), 50);
    buffer.unprotect();
    EXPECT_EQ(buffer.first_write(), 50);
  }
  // Every entry came back.
  EXPECT_TRUE(buffers.back().write_protect());
}

#if defined(__unix__)

#if defined(__SANITIZE_THREAD__)
#define TILEWISE_DEATH_TESTS 0  // a process with threads cannot fork under ThreadSanitizer
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define TILEWISE_DEATH_TESTS 0
#endif
#endif
#if !defined(TILEWISE_DEATH_TESTS)
#define TILEWISE_DEATH_TESTS 1
#endif

#if TILEWISE_DEATH_TESTS
/// A write to the first page, which no program owns.
void write_nowhere() {
  const volatile std::uintptr_t address = 64;
  *reinterpret_cast<volatile int*>(address) = 1;
}

TEST(WriteProtectionDeathTest, WithoutAGuardAWriteCrashes) {
  GuardedBuffer buffer = make(1000);
  ASSERT_TRUE(buffer.write_protect());
  EXPECT_DEATH(write_at(buffer, 0, std::uint8_t{0}), "");
}

TEST(WriteProtectionDeathTest, OtherFaultsCrashAsEver) {
  GuardedBuffer buffer = make(1000);
  buffer.write_protect();
  const FaultGuard guard;
  EXPECT_DEATH(write_nowhere(), "");
  EXPECT_DEATH(std::raise(SIGSEGV), "");
}

TEST(WriteProtectionDeathTest, APreviousHandlerIsCalled) {
  EXPECT_EXIT(
      {
        std::signal(SIGSEGV, [](int) { std::_Exit(42); });
        const FaultGuard guard;
        write_nowhere();
      },
      ::testing::ExitedWithCode(42), "");
}
#endif

TEST(WriteProtection, ThePreviousHandlerComesBack) {
  struct sigaction before = {}, after = {};
  sigaction(SIGSEGV, nullptr, &before);
  { const FaultGuard guard; }
  sigaction(SIGSEGV, nullptr, &after);
  EXPECT_EQ(before.sa_sigaction, after.sa_sigaction);
  constexpr int restorer = 0x04000000;  // SA_RESTORER: the C library's own, set when it likes
  EXPECT_EQ(before.sa_flags & ~restorer, after.sa_flags & ~restorer);
}

#endif

}  // namespace
}  // namespace tilewise::harness
