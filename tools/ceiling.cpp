// The FMA loop, the STREAM triad and the reading loop: see ceiling.hpp.
//
// One multiply-add depends on the one before it in its accumulator only. Processors finish one
// after 4 or 5 cycles and start two a cycle, so that 12 independent accumulators keep the units
// busy.
//
// Reading goes along four streams at once, with eight sums: on the Xeon it was tried on, as fast as
// one stream where the caches hold everything, and up to 6 % faster for 134 MB.
#include "tools/ceiling.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tilewise::tools {

namespace {
using Clock = std::chrono::steady_clock;

constexpr int accumulators = 12;
constexpr int steps = 256;  // multiply-adds on each accumulator a call

/// x <- x * factor + term stays near 1, and never becomes subnormal, where some units are slow.
constexpr float factor = 0.999F, term = 0.001F;

/// Every accumulator starts elsewhere: compilers merge sums that are alike into one.
inline float start(float sink, int i) {
  return sink + 0.01F * static_cast<float>(i);
}

/// `steps` multiply-adds on each of twelve registers; what they hold is added to `sink`.
using FmaLoop = void (*)(float& sink);

struct Unit {
  const char* isa;  ///< as implementations are called: cpu.avx2
  FmaLoop loop;
  int lanes;
  const char* name;
  bool runs;  ///< on this processor
};

#if defined(__x86_64__)
__attribute__((target("avx512f"))) void loop_avx512(float& sink) {
  __m512 x[accumulators];
  const __m512 a = _mm512_set1_ps(factor), b = _mm512_set1_ps(term);
#pragma GCC unroll 12
  for (int i = 0; i < accumulators; ++i) x[i] = _mm512_set1_ps(start(sink, i));
  for (int step = 0; step < steps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < accumulators; ++i) x[i] = _mm512_fmadd_ps(x[i], a, b);
  }
#pragma GCC unroll 12
  for (int i = 1; i < accumulators; ++i) x[0] = _mm512_add_ps(x[0], x[i]);
  float lanes[16];
  _mm512_storeu_ps(lanes, x[0]);
  sink = lanes[0] / accumulators;
}

__attribute__((target("avx2,fma"))) void loop_avx2(float& sink) {
  __m256 x[accumulators];
  const __m256 a = _mm256_set1_ps(factor), b = _mm256_set1_ps(term);
#pragma GCC unroll 12
  for (int i = 0; i < accumulators; ++i) x[i] = _mm256_set1_ps(start(sink, i));
  for (int step = 0; step < steps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < accumulators; ++i) x[i] = _mm256_fmadd_ps(x[i], a, b);
  }
#pragma GCC unroll 12
  for (int i = 1; i < accumulators; ++i) x[0] = _mm256_add_ps(x[0], x[i]);
  float lanes[8];
  _mm256_storeu_ps(lanes, x[0]);
  sink = lanes[0] / accumulators;
}
#endif

#if defined(__x86_64__)
// Whatever flags this file was given: SSE2 has no multiply-add, the pair of instructions counts.
__attribute__((target("no-avx")))
#endif
/// Four lanes in the compiler's own vector type: NEON's multiply-add, or SSE2's pair.
void loop_four(float& sink) {
  using Vector = float __attribute__((vector_size(16)));
  Vector x[accumulators];
  const Vector a = {factor, factor, factor, factor}, b = {term, term, term, term};
#pragma GCC unroll 12
  for (int i = 0; i < accumulators; ++i) x[i] = Vector{} + start(sink, i);
  for (int step = 0; step < steps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < accumulators; ++i) x[i] = x[i] * a + b;
  }
#pragma GCC unroll 12
  for (int i = 1; i < accumulators; ++i) x[0] += x[i];
  sink = x[0][0] / accumulators;
}

/// The widest first; the last one runs everywhere.
const std::vector<Unit>& units() {
  static const std::vector<Unit> all {
#if defined(__x86_64__)
    {"avx512", loop_avx512, 16, "AVX-512", __builtin_cpu_supports("avx512f") != 0},
        {"avx2", loop_avx2, 8, "AVX2 and FMA",
         __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0},
        {"sse2", loop_four, 4, "SSE2", true},
#elif defined(__aarch64__)
    {"neon", loop_four, 4, "NEON", true},
#else
    {"", loop_four, 4, "128-bit vectors", true},
#endif
  };
  return all;
}

const Unit& unit_of(std::string_view isa) {
  const auto runs = [](const Unit& unit) { return unit.runs; };
  const auto named = [isa](const Unit& unit) { return unit.runs && unit.isa == isa; };
  const auto found = std::find_if(units().begin(), units().end(), named);
  return found != units().end() ? *found : *std::find_if(units().begin(), units().end(), runs);
}

constexpr std::size_t streams = 4;
constexpr std::size_t stride = 128;  // bytes of each stream at a time

/// Everything read in one pass and folded into a word. The four streams lie `part` bytes apart,
/// a multiple of `stride`.
using ReadLoop = std::uint64_t (*)(const std::byte* memory, std::size_t part);

#if defined(__x86_64__)
__attribute__((target("avx512f"))) std::uint64_t read_avx512(const std::byte* memory,
                                                             std::size_t part) {
  __m512i sums[2 * streams];
#pragma GCC unroll 8
  for (std::size_t i = 0; i < 2 * streams; ++i) sums[i] = _mm512_setzero_si512();
  for (std::size_t at = 0; at < part; at += stride) {
#pragma GCC unroll 8
    for (std::size_t i = 0; i < 2 * streams; ++i)
      sums[i] = _mm512_xor_si512(
          sums[i], _mm512_loadu_si512(memory + i / 2 * part + at + i % 2 * sizeof(__m512i)));
  }
#pragma GCC unroll 8
  for (std::size_t i = 1; i < 2 * streams; ++i) sums[0] = _mm512_xor_si512(sums[0], sums[i]);
  std::uint64_t words[8];
  _mm512_storeu_si512(words, sums[0]);
  return words[0] ^ words[1] ^ words[2] ^ words[3] ^ words[4] ^ words[5] ^ words[6] ^ words[7];
}
#endif

/// 16 bytes at a time, in the compiler's own vector type.
std::uint64_t read_sixteen(const std::byte* memory, std::size_t part) {
  using Vector = std::uint64_t __attribute__((vector_size(16)));
  Vector sums[2 * streams] = {};
  for (std::size_t at = 0; at < part; at += 2 * sizeof(Vector)) {
#pragma GCC unroll 8
    for (std::size_t i = 0; i < 2 * streams; ++i) {
      Vector next;
      std::memcpy(&next, memory + i / 2 * part + at + i % 2 * sizeof(Vector), sizeof(next));
      sums[i] ^= next;
    }
  }
#pragma GCC unroll 8
  for (std::size_t i = 1; i < 2 * streams; ++i) sums[0] ^= sums[i];
  return sums[0][0] ^ sums[0][1];
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) std::uint64_t read_avx2(const std::byte* memory, std::size_t part) {
  __m256i sums[2 * streams];
#pragma GCC unroll 8
  for (std::size_t i = 0; i < 2 * streams; ++i) sums[i] = _mm256_setzero_si256();
  for (std::size_t at = 0; at < part; at += 2 * sizeof(__m256i)) {
#pragma GCC unroll 8
    for (std::size_t i = 0; i < 2 * streams; ++i) {
      const std::byte* const from = memory + i / 2 * part + at + i % 2 * sizeof(__m256i);
      sums[i] =
          _mm256_xor_si256(sums[i], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    }
  }
#pragma GCC unroll 8
  for (std::size_t i = 1; i < 2 * streams; ++i) sums[0] = _mm256_xor_si256(sums[0], sums[i]);
  std::uint64_t words[4];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(words), sums[0]);
  return words[0] ^ words[1] ^ words[2] ^ words[3];
}
#endif

ReadLoop widest_read() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") != 0) return read_avx512;
  if (__builtin_cpu_supports("avx2") != 0) return read_avx2;
#endif
  return read_sixteen;
}

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Runs `work(thread)` on so many threads at once, the caller's own among them.
template <class Work>
void on_threads(int threads, const Work& work) {
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back([&work, t] { work(t); });
  work(0);
  for (std::thread& other : others) other.join();
}

/// What loops came to, which nobody reads: without it they would compute for nothing, and go.
std::atomic<std::uint64_t> kept = 0;

/// Units a second of all threads together, each calling `slice(thread)`, which does `units`, for
/// about `seconds` at the same time. Of each thread the median of its slices: one that another
/// process interrupted does not count.
template <class Slice>
double rate_on_threads(int threads, double seconds, double units, const Slice& slice) {
  std::vector<double> rates(static_cast<std::size_t>(threads));
  std::atomic<int> ready = 0;
  on_threads(threads, [&](int thread) {
    slice(thread);
    for (++ready; ready < threads;) std::this_thread::yield();  // all at once, or not the ceiling
    std::vector<double> slices;
    for (const auto start = Clock::now(); since(start) < seconds || slices.size() < 3;) {
      const auto begin = Clock::now();
      slice(thread);
      slices.push_back(units / since(begin));
    }
    const auto middle = slices.begin() + static_cast<std::ptrdiff_t>(slices.size() / 2);
    std::nth_element(slices.begin(), middle, slices.end());
    rates[static_cast<std::size_t>(thread)] = *middle;
  });
  double total = 0;
  for (const double rate : rates) total += rate;
  return total;
}
}  // namespace

int thread_count(int threads) {
  return threads > 0 ? threads : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

std::string_view isa_of(std::string_view implementation) {
  constexpr std::string_view library = "cpu.";
  return implementation.starts_with(library) ? implementation.substr(library.size())
                                             : std::string_view{};
}

std::string fma_name(std::string_view isa) {
  return unit_of(isa).name;
}

double measure_peak_gflops(int threads, double seconds, std::string_view isa) {
  const Unit& unit = unit_of(isa);
  constexpr int calls = 16;
  const double flops = 2.0 * calls * accumulators * steps * unit.lanes;
  return 1e-9 * rate_on_threads(thread_count(threads), seconds, flops, [&unit](int) {
           float sink = 1;
           for (int i = 0; i < calls; ++i) unit.loop(sink);
           kept.store(sink > 1, std::memory_order_relaxed);
         });
}

double measure_read_gbytes(int threads, double seconds, const void* memory, std::size_t bytes) {
  threads = thread_count(threads);
  const ReadLoop loop = widest_read();
  const std::size_t part = bytes / (static_cast<std::size_t>(threads) * streams * stride) * stride;
  const auto share = part * streams;
  return 1e-9 * rate_on_threads(threads, seconds, static_cast<double>(share), [&](int thread) {
           const auto first = static_cast<std::size_t>(thread) * share;
           kept.store(loop(static_cast<const std::byte*>(memory) + first, part),
                      std::memory_order_relaxed);
         });
}

double measure_bandwidth_gbytes() {
  constexpr std::size_t elements = std::size_t{1} << 24;
  std::vector<float> a(elements), b(elements, 1.0F), c(elements, 2.0F);
  const int threads = thread_count(0);
  double fastest = 1e30;
  for (int pass = 0; pass < 4; ++pass) {
    const auto start = Clock::now();
    on_threads(threads, [&](int thread) {
      const std::size_t share = elements / static_cast<std::size_t>(threads);
      const std::size_t first = static_cast<std::size_t>(thread) * share;
      for (std::size_t i = first; i < first + share; ++i)
        a[i] = b[i] + (factor + static_cast<float>(pass)) * c[i];
    });
    fastest = std::min(fastest, since(start));
  }
  return 12.0 * elements / fastest * 1e-9;
}

}  // namespace tilewise::tools
