// The memory meter against allocations of known size. This executable links tilewise::memory_hooks;
// under a sanitizer the meter cannot work, and says so.
#include "oracle/harness/memory_meter.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#if defined(__unix__)
#include <sys/mman.h>
#endif

namespace tilewise::harness {
namespace {

constexpr std::int64_t kib = 1024, mib = 1024 * kib;
/// What malloc may add to a request: its own header, rounding, and a page for large blocks.
constexpr std::int64_t block_slack = 2 * 4096;

/// Keeps the compiler from leaving an allocation or a store out.
void use(void* memory) {
  asm volatile("" : : "g"(memory) : "memory");
}

void* allocate(std::int64_t bytes) {
  void* block = std::malloc(static_cast<std::size_t>(bytes));
  use(block);
  return block;
}

class MemoryMeter : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const char* why = memory_meter_unavailable()) GTEST_SKIP() << why;
  }

  static MemoryReport measure(const std::function<void()>& call, void* workspace = nullptr,
                              std::size_t workspace_bytes = 0) {
    MemoryReport report = measure_memory(workspace, workspace_bytes, call);
    EXPECT_TRUE(report.measured) << report.why;
    return report;
  }

  static void expect_between(std::int64_t value, std::int64_t low, std::int64_t high) {
    EXPECT_GE(value, low);
    EXPECT_LE(value, high);
  }
};

TEST(MemoryMeterAvailability, SaysWhyWhereItCannotMeasure) {
  const char* why = memory_meter_unavailable();
  bool ran = false;
  const MemoryReport report = measure_memory(nullptr, 0, [&] { ran = true; });
  EXPECT_EQ(report.measured, why == nullptr);
  EXPECT_EQ(report.why, why == nullptr ? "" : why);
  EXPECT_EQ(ran, why == nullptr);
  EXPECT_FALSE(why != nullptr && *why == '\0');
}

TEST_F(MemoryMeter, NothingAllocatedIsNothing) {
  volatile int sink = 0;
  const MemoryReport report = measure([&] { sink = sink + 1; });
  EXPECT_EQ(report.heap_peak, 0);
  EXPECT_EQ(report.mapped_peak, 0);
  EXPECT_EQ(report.workspace_touched, 0);
  EXPECT_LE(report.stack, kib);
}

TEST_F(MemoryMeter, CallsTwice) {
  int calls = 0;
  measure([&] { ++calls; });
  EXPECT_EQ(calls, 2);
}

TEST_F(MemoryMeter, VectorsOfKnownSize) {
  for (const std::int64_t bytes : {100, 10'000, 1'000'000, 50'000'000}) {
    SCOPED_TRACE(bytes);
    const MemoryReport report = measure([&] {
      std::vector<char> block(static_cast<std::size_t>(bytes));
      use(block.data());
    });
    expect_between(report.heap_peak, bytes, bytes + block_slack);
    EXPECT_EQ(report.mapped_peak, 0);
  }
}

TEST_F(MemoryMeter, NestedBlocksAddUp) {
  const MemoryReport report = measure([] {
    const auto outer = std::make_unique<char[]>(3 * mib);
    use(outer.get());
    const auto inner = std::make_unique<char[]>(2 * mib);
    use(inner.get());
  });
  expect_between(report.heap_peak, 5 * mib, 5 * mib + 2 * block_slack);
}

TEST_F(MemoryMeter, BlocksOneAfterTheOtherCountOnce) {
  const MemoryReport report = measure([] {
    for (int i = 0; i < 100; ++i) std::free(allocate(mib));
  });
  expect_between(report.heap_peak, mib, mib + block_slack);
}

TEST_F(MemoryMeter, WhatTheWarmUpKeptIsNotCounted) {
  std::vector<char> cache;
  const MemoryReport report = measure([&] {
    cache.resize(static_cast<std::size_t>(4 * mib));
    use(cache.data());
  });
  EXPECT_EQ(report.heap_peak, 0);
}

TEST_F(MemoryMeter, FreeingOldMemoryMakesRoom) {
  void* kept = allocate(8 * mib);
  int calls = 0;
  const MemoryReport report = measure([&] {
    if (++calls == 1) return;
    std::free(kept);
    kept = allocate(2 * mib);
  });
  EXPECT_EQ(report.heap_peak, 0);
  std::free(kept);
}

TEST_F(MemoryMeter, LeaksCount) {
  std::vector<void*> leaked;
  leaked.reserve(2);
  const MemoryReport report = measure([&] { leaked.push_back(allocate(mib)); });
  expect_between(report.heap_peak, mib, mib + block_slack);
  for (void* block : leaked) std::free(block);
}

TEST_F(MemoryMeter, EveryWayToAllocate) {
  const auto n = static_cast<std::size_t>(mib);
  const auto peak = [](auto make, auto free) {
    return measure([&] {
             void* const block = make();
             use(block);
             free(block);
           })
        .heap_peak;
  };
  const auto posix = [=] {
    void* block = nullptr;
    EXPECT_EQ(posix_memalign(&block, 256, n), 0);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(block) % 256, 0u);
    return block;
  };
  const auto over_aligned = [=] { return ::operator new (n, std::align_val_t{128}); };
  const auto free_over_aligned = [](void* p) { ::operator delete (p, std::align_val_t{128}); };
  const auto array = [=] { return static_cast<void*>(new char[n]); };
  const auto free_array = [](void* p) { delete[] static_cast<char*>(p); };
  expect_between(peak([=] { return std::malloc(n); }, std::free), mib, mib + block_slack);
  expect_between(peak([=] { return std::calloc(n / 8, 8); }, std::free), mib, mib + block_slack);
  expect_between(peak([=] { return std::realloc(nullptr, n); }, std::free), mib, mib + block_slack);
  expect_between(peak([=] { return std::aligned_alloc(64, n); }, std::free), mib,
                 mib + block_slack);
  expect_between(peak(posix, std::free), mib, mib + block_slack);
  expect_between(peak(over_aligned, free_over_aligned), mib, mib + block_slack);
  expect_between(peak(array, free_array), mib, mib + block_slack);
}

TEST_F(MemoryMeter, PosixMemalignRefusesBadAlignments) {
  void* block = nullptr;
  const volatile std::size_t bad[] = {0, 3, 4, 24};
  for (const std::size_t alignment : bad) EXPECT_NE(posix_memalign(&block, alignment, 64), 0);
  EXPECT_EQ(block, nullptr);
}

TEST_F(MemoryMeter, ReallocCountsTheGrowthAndAtMostOneCopy) {
  const MemoryReport report = measure([] {
    void* block = std::malloc(1000);
    for (std::size_t bytes = 1000; bytes <= (1u << 20); bytes *= 2) {
      block = std::realloc(block, bytes);
      use(block);
    }
    std::free(block);
  });
  expect_between(report.heap_peak, 1000 << 10, 2 * (1000 << 10));
}

TEST_F(MemoryMeter, ABlockThatReallocMovesIsGoneFromItsOldPlace) {
  int moved = 0;
  const MemoryReport report = measure([&] {
    for (int i = 0; i < 50; ++i) {
      void* block = allocate(20 * kib);
      void* const in_the_way = allocate(20 * kib);
      const auto before = reinterpret_cast<std::uintptr_t>(block);
      block = std::realloc(block, static_cast<std::size_t>(60 * kib));
      use(block);
      if (reinterpret_cast<std::uintptr_t>(block) != before) ++moved;
      block = std::realloc(block, 1000);
      use(block);
      std::free(block);
      std::free(in_the_way);
    }
  });
  EXPECT_GT(moved, 0);
  expect_between(report.heap_peak, 80 * kib, 100 * kib + 3 * block_slack);
}

TEST_F(MemoryMeter, OtherThreadsCount) {
  const MemoryReport report = measure([] {
    std::thread first([] { std::free(allocate(5 * mib)); });
    first.join();
    std::vector<std::thread> several;
    void* blocks[4] = {};
    for (void*& block : blocks) several.emplace_back([&block] { block = allocate(2 * mib); });
    for (std::thread& thread : several) thread.join();
    for (void* block : blocks) std::free(block);
  });
  expect_between(report.heap_peak, 8 * mib, 8 * mib + 64 * kib);
}

TEST_F(MemoryMeter, ManyThreadsAtOnceKeepTheBooks) {
  const MemoryReport report = measure([] {
    std::vector<std::thread> threads;
    for (int t = 0; t < 8; ++t)
      threads.emplace_back([] {
        for (int i = 0; i < 2000; ++i) std::free(allocate(64 * kib));
      });
    for (std::thread& thread : threads) thread.join();
  });
  expect_between(report.heap_peak, 64 * kib, 8 * (64 * kib + kib) + 64 * kib);
}

#if defined(__unix__)
TEST_F(MemoryMeter, Mappings) {
  const auto map = [](std::int64_t bytes) {
    return mmap(nullptr, static_cast<std::size_t>(bytes), PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  };
  const MemoryReport report = measure([&] {
    for (int i = 0; i < 3; ++i) {
      void* const first = map(3 * mib);
      void* const second = map(mib - 5);  // counted in whole pages
      munmap(first, static_cast<std::size_t>(3 * mib));
      munmap(second, static_cast<std::size_t>(mib - 5));
    }
  });
  EXPECT_EQ(report.mapped_peak, 4 * mib);
  EXPECT_EQ(report.heap_peak, 0);
}

#if defined(MREMAP_MAYMOVE)
TEST_F(MemoryMeter, GrownMappings) {
  const auto bytes = static_cast<std::size_t>(mib);
  const MemoryReport report = measure([&] {
    void* block = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    block = mremap(block, bytes, 6 * bytes, MREMAP_MAYMOVE);
    ASSERT_NE(block, MAP_FAILED);
    munmap(block, 6 * bytes);
  });
  EXPECT_EQ(report.mapped_peak, 6 * mib);
}
#endif
#endif

/// A frame of at least `bytes`, all written, `depth` times over.
[[gnu::noinline]] void descend(int depth, std::size_t bytes) {
  char* const frame = static_cast<char*>(__builtin_alloca(bytes));
  std::memset(frame, depth & 1, bytes);  // zeros count too
  use(frame);
  if (depth > 1) descend(depth - 1, bytes);
  use(frame);
}

TEST_F(MemoryMeter, StackDepth) {
  for (const int depth : {1, 10, 1000}) {
    for (const std::int64_t bytes : {1000, 8000}) {
      SCOPED_TRACE(std::to_string(depth) + " frames of " + std::to_string(bytes));
      const MemoryReport report = measure([&] { descend(depth, static_cast<std::size_t>(bytes)); });
      expect_between(report.stack, depth * bytes, depth * (bytes + 160) + kib);
      EXPECT_EQ(report.heap_peak, 0);
    }
  }
}

TEST_F(MemoryMeter, AStackThatIsDeepInTheWarmUpAloneIsNotCounted) {
  int calls = 0;
  const MemoryReport report = measure([&] {
    if (++calls == 1) descend(1000, 4000);
  });
  EXPECT_LE(report.stack, kib);
}

TEST_F(MemoryMeter, WorkspaceLines) {
  struct alignas(64) Workspace {
    unsigned char bytes[10'000];
  };
  const auto workspace = std::make_unique<Workspace>();
  const auto touched = [&](const std::function<void(unsigned char*)>& touch) {
    const MemoryReport report = measure([&] { touch(workspace->bytes); }, workspace->bytes, 10'000);
    EXPECT_EQ(report.workspace_declared, 10'000);
    return report.workspace_touched;
  };
  EXPECT_EQ(touched([](unsigned char*) {}), 0);
  EXPECT_EQ(touched([](unsigned char* w) { w[130] ^= 1; }), 64);
  EXPECT_EQ(touched([](unsigned char* w) { w[63] ^= 1, w[64] ^= 1; }), 128);
  EXPECT_EQ(touched([](unsigned char* w) { std::memset(w, 0, 6400); }), 6400);
  EXPECT_EQ(touched([](unsigned char* w) { std::memset(w, 0xff, 10'000); }), 10'000);
  EXPECT_EQ(touched([](unsigned char* w) { w[9'999] ^= 1; }), 10'000 % 64);
}

TEST_F(MemoryMeter, TotalIsTheSumOfTheParts) {
  std::vector<std::uint64_t> workspace(1000);
  const MemoryReport report = measure(
      [&] {
        workspace[0] = 1;
        std::free(allocate(mib));
        descend(1, 100 * 1000);
      },
      workspace.data(), 8000);
  EXPECT_EQ(report.total(), report.heap_peak + report.mapped_peak + 64 + report.stack);
  expect_between(report.total(), mib + 100'000, mib + 100'000 + block_slack + 4 * kib);
}

TEST_F(MemoryMeter, ACallThatThrowsIsAnAnswer) {
  int calls = 0;
  MemoryReport report = measure_memory(nullptr, 0, [&] {
    if (++calls == 2) throw std::runtime_error("no luck");
  });
  EXPECT_FALSE(report.measured);
  EXPECT_EQ(report.why, "the call threw: no luck");
  report = measure([] { std::free(allocate(mib)); });
  expect_between(report.heap_peak, mib, mib + block_slack);
}

#if defined(_OPENMP)
TEST_F(MemoryMeter, AnOpenMpPoolIsPaidForInTheWarmUp) {
  const MemoryReport report = measure([] {
    std::atomic<int> total{0};
#pragma omp parallel num_threads(4)
    {
      void* const block = allocate(100 * kib);
#pragma omp barrier
      std::free(block);
      ++total;
    }
    if (total != 4) std::abort();
  });
  expect_between(report.heap_peak, 400 * kib, 400 * kib + 4 * block_slack);
}
#endif

}  // namespace
}  // namespace tilewise::harness
