// The tile kernels' drivers: how work is cut, that cutting changes no bit, and how long sums err.
// What they compute is judged in conformance_test.cpp.
#include "core/dtype.hpp"
#include "cpu/flash/detect.hpp"
#include "cpu/flash/schedule.hpp"
#include "tests/capi_support.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numeric>
#include <queue>
#include <random>
#include <vector>

namespace tilewise::tests {
namespace {

constexpr std::int32_t every_isa[] = {TILEWISE_ISA_SSE2, TILEWISE_ISA_AVX2, TILEWISE_ISA_AVX512,
                                      TILEWISE_ISA_NEON};

Context context_of(std::int32_t isa, std::int32_t threads) {
  tilewise_context_options options =
      options_with(threads == 1 ? TILEWISE_THREADING_SERIAL : TILEWISE_THREADING_THREADS, threads);
  options.isa = isa;
  return context_with(options);
}

/// Queries against keys, f32 or f16, [1, rows, heads, width] each.
struct Long {
  Long(std::int64_t seqlen_q, std::int64_t seqlen_k, std::int64_t heads_q, std::int64_t heads_k,
       std::int64_t width, DType type, float v_mean = 0)
      : dtype(type) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<char>& memory, std::int64_t count, float mean) {
      memory.resize(static_cast<std::size_t>(count) * size_of(dtype));
      for (std::int64_t n = 0; n < count; ++n)
        store(dtype, &memory[static_cast<std::size_t>(n) * size_of(dtype)], mean + normal(random));
    };
    fill(q, seqlen_q * heads_q * width, 0);
    fill(k, seqlen_k * heads_k * width, 0);
    fill(v, seqlen_k * heads_k * width, v_mean);
    o.resize(q.size());
    lse.resize(static_cast<std::size_t>(heads_q * seqlen_q));
    (void)tilewise_attention_init(&attention, nullptr);
    const std::int32_t code = static_cast<std::int32_t>(dtype) + 1;
    const auto view = [&](void* data, std::int64_t rows, std::int64_t heads) {
      const std::int64_t shape[] = {1, rows, heads, width};
      return tilewise_contiguous(data, code, 4, shape);
    };
    attention.q = view(q.data(), seqlen_q, heads_q);
    attention.k = view(k.data(), seqlen_k, heads_k);
    attention.v = view(v.data(), seqlen_k, heads_k);
    attention.o = view(o.data(), seqlen_q, heads_q);
    const std::int64_t lse_shape[] = {1, heads_q, seqlen_q};
    attention.lse = tilewise_contiguous(lse.data(), TILEWISE_F32, 3, lse_shape);
  }

  /// O and LSE, as bits, with the least or the largest workspace that the call can use.
  std::string computed(const Context& context, bool fast) {
    std::size_t least = 0, most = 0;
    EXPECT_EQ(tilewise_attention_workspace(context.get(), &attention, TILEWISE_FORWARD, &least,
                                           &most, nullptr),
              TILEWISE_OK);
    EXPECT_GE(most, least);
    Workspace workspace(fast ? most : least);
    std::fill(o.begin(), o.end(), '\1');
    tilewise_error error = TILEWISE_ERROR_INIT;
    EXPECT_EQ(tilewise_attention_forward(context.get(), &attention, workspace.data, workspace.bytes,
                                         nullptr, &error),
              TILEWISE_OK)
        << error.message;
    std::string bits(o.begin(), o.end());
    return bits.append(reinterpret_cast<const char*>(lse.data()), lse.size() * sizeof(float));
  }

  DType dtype;
  std::vector<char> q, k, v, o;
  std::vector<float> lse;
  tilewise_attention attention{};
};

TEST(Flash, NeitherWorkersNorWorkspaceChangeABit) {
  for (const std::int32_t isa : every_isa) {
    if (cpu::flash::kernels_of(isa) == nullptr) continue;
    for (const DType dtype : {DType::f32, DType::f16})
      for (const std::int64_t seqlen_q : {1, 3, 70})
        for (const std::int64_t seqlen_k : {1, 64, 1024, 1025, 5000}) {
          SCOPED_TRACE("isa " + std::to_string(isa) + ", " + std::to_string(seqlen_q) + " x " +
                       std::to_string(seqlen_k));
          Long call(seqlen_q, seqlen_k, 8, 2, 24, dtype);
          call.attention.causal = 1;
          const std::string expected = call.computed(context_of(isa, 1), false);
          for (const std::int32_t threads : {1, 2, 5})
            for (const bool fast : {false, true})
              EXPECT_EQ(call.computed(context_of(isa, threads), fast), expected)
                  << threads << " threads" << (fast ? ", large workspace" : "");
        }
  }
}

/// The largest error of a row, and the row's own norm: |o - exact| / |exact|, both Euclidean.
double relative_error(const Long& call, std::int64_t rows, std::int64_t keys, std::int64_t width) {
  const auto number = [&](const std::vector<char>& memory, std::int64_t n) {
    return load(call.dtype, &memory[static_cast<std::size_t>(n) * size_of(call.dtype)]);
  };
  double worst = 0;
  for (std::int64_t i = 0; i < rows; ++i) {
    std::vector<double> s(static_cast<std::size_t>(keys)), exact(static_cast<std::size_t>(width));
    double most = -INFINITY, sum = 0;
    for (std::int64_t j = 0; j < keys; ++j) {
      double dot = 0;
      for (std::int64_t c = 0; c < width; ++c)
        dot += number(call.q, i * width + c) * number(call.k, j * width + c);
      s[static_cast<std::size_t>(j)] = dot / std::sqrt(static_cast<double>(width));
      most = std::max(most, s[static_cast<std::size_t>(j)]);
    }
    for (std::int64_t j = 0; j < keys; ++j) {
      const double p = std::exp(s[static_cast<std::size_t>(j)] - most);
      sum += p;
      for (std::int64_t c = 0; c < width; ++c)
        exact[static_cast<std::size_t>(c)] += p * number(call.v, j * width + c);
    }
    double off = 0, norm = 0;
    for (std::int64_t c = 0; c < width; ++c) {
      const double expected = exact[static_cast<std::size_t>(c)] / sum;
      const double difference = number(call.o, i * width + c) - expected;
      off += difference * difference;
      norm += expected * expected;
    }
    worst = std::max(worst, std::sqrt(off / norm));
  }
  return worst;
}

// V around one, so that its sums are as long as sums get and nothing cancels; and around zero.
TEST(Flash, LongSumsStayExact) {
  constexpr std::int64_t width = 16;
  for (const std::int32_t isa : every_isa) {
    if (cpu::flash::kernels_of(isa) == nullptr) continue;
    for (const std::int64_t keys : {32768, 131072})
      for (const std::int64_t rows : {1, 64})
        for (const float mean : {1.0f, 0.0f}) {
          Long call(rows, keys, 1, 1, width, DType::f32, mean);
          (void)call.computed(context_of(isa, 1), false);
          const double error = relative_error(call, std::min<std::int64_t>(rows, 4), keys, width);
          EXPECT_LE(error, 3e-6) << "isa " << isa << ", " << rows << " rows";
          std::printf("isa %d, %lld keys, %lld queries, V around %g: relative error %.1e\n",
                      static_cast<int>(isa), static_cast<long long>(keys),
                      static_cast<long long>(rows), static_cast<double>(mean), error);
        }
  }
}

// --------------------------------------------------------------------------------------- schedule

/// When the last of these tasks ends, if whoever is free takes the next, over what would be ideal.
double makespan(const std::vector<double>& tasks, std::size_t workers) {
  std::priority_queue<double, std::vector<double>, std::greater<>> free_at;
  for (std::size_t n = 0; n < workers; ++n) free_at.push(0);
  double end = 0;
  for (const double cost : tasks) {
    const double until = free_at.top() + cost;
    free_at.pop();
    free_at.push(until);
    end = std::max(end, until);
  }
  return end * static_cast<double>(workers) / std::accumulate(tasks.begin(), tasks.end(), 0.0);
}

/// Pairs of a block of queries and a tile of keys, each task's.
std::vector<double> costs(const std::vector<std::int64_t>& lengths, std::int64_t heads,
                          std::int64_t width, bool causal, std::int64_t workers) {
  constexpr std::int64_t queries = 64;
  const AttentionTensors shapes = [&] {
    AttentionTensors tensors;
    tensors.q = tensors.k = tensors.v = contiguous(nullptr, DType::f32, 1, 1, heads, width);
    return tensors;
  }();
  cpu::Call call;
  call.tensors = shapes;
  const std::int64_t longest = *std::max_element(lengths.begin(), lengths.end());
  const cpu::flash::RowSchedule schedule(cpu::portable::Shape(call), queries,
                                         static_cast<std::int64_t>(lengths.size()), longest,
                                         workers);
  std::vector<double> all;
  for (std::int64_t n = 0; n < schedule.tasks(); ++n) {
    const cpu::flash::RowTask task = schedule[n];
    const std::int64_t length = lengths[static_cast<std::size_t>(task.b)];
    double cost = 0.01;  // nobody's rows: found out and left
    for (std::int64_t row = task.rows.first; row < std::min(task.rows.end(), length);
         row += queries) {
      const std::int64_t seen = causal ? std::min(row + queries, length) : length;
      cost += static_cast<double>(cpu::portable::blocks(seen, 64));
    }
    all.push_back(cost);
  }
  return all;
}

TEST(Schedule, LeavesNobodyIdleForLong) {
  std::mt19937 random(3);
  std::vector<std::int64_t> mixed;
  for (int n = 0; n < 64; ++n) mixed.push_back(std::uniform_int_distribution<>(1, 8192)(random));
  double worst = 0;
  for (const std::int64_t workers : {2, 3, 8, 16, 32, 64, 128}) {
    const std::vector<std::vector<double>> calls = {
        costs({8192}, 32, 64, true, workers), costs({16384}, 32, 128, true, workers),
        costs({8192, 8192}, 32, 128, false, workers), costs(mixed, 32, 64, true, workers),
        costs(mixed, 32, 128, false, workers)};
    for (std::size_t n = 0; n < calls.size(); ++n) {
      const double over = makespan(calls[n], static_cast<std::size_t>(workers));
      EXPECT_LE(over, 1.05) << workers << " workers, call " << n;
      worst = std::max(worst, over);
    }
    // Decoding: a task for each 1024 keys, of each sequence and key head.
    std::vector<double> stretches;
    for (const std::int64_t length : mixed)
      for (int head = 0; head < 8; ++head)
        for (std::int64_t from = 0; from < 4 * length; from += 1024)
          stretches.push_back(static_cast<double>(std::min<std::int64_t>(4 * length - from, 1024)));
    const double over = makespan(stretches, static_cast<std::size_t>(workers));
    EXPECT_LE(over, 1.05) << workers << " workers, decoding";
    worst = std::max(worst, over);
  }
  std::printf("the last worker ends at most %.1f %% later than ideal\n", 100 * (worst - 1));
}

TEST(Schedule, HasEveryRowOnce) {
  for (const std::int64_t workers : {1, 2, 128})
    for (const std::int64_t longest : {1, 63, 64, 65, 1000}) {
      cpu::Call call;
      call.tensors.q = call.tensors.k = call.tensors.v =
          contiguous(nullptr, DType::f32, 1, 1, 3, 64);
      const cpu::flash::RowSchedule schedule(cpu::portable::Shape(call), 24, 2, longest, workers);
      std::vector<int> seen(static_cast<std::size_t>(2 * 3 * longest));
      for (std::int64_t n = 0; n < schedule.tasks(); ++n) {
        const cpu::flash::RowTask task = schedule[n];
        for (std::int64_t row = task.rows.first; row < std::min(task.rows.end(), longest); ++row)
          ++seen[static_cast<std::size_t>((task.b * 3 + task.h) * longest + row)];
      }
      EXPECT_EQ(std::count(seen.begin(), seen.end(), 1), static_cast<std::int64_t>(seen.size()));
    }
}

// --------------------------------------------------------------------------------------- dispatch

TEST(Dispatch, RefusesNothingThatThereIs) {
  EXPECT_EQ(cpu::flash::refused_isa(), nullptr);
}

TEST(Dispatch, TakesWhatTheEnvironmentAsksForOrTheBest) {
  const cpu::flash::TileKernels* const best = cpu::flash::best_kernels();
  const char* const wanted = std::getenv("TILEWISE_ISA");
  if (wanted != nullptr && std::string(wanted) == "portable") {
    EXPECT_EQ(best, nullptr);
    return;
  }
  for (const std::int32_t isa : every_isa) {
    const cpu::flash::TileKernels* const kernels = cpu::flash::kernels_of(isa);
    if (kernels == nullptr) continue;
    EXPECT_LE(kernels->queries, 64);
    ASSERT_NE(best, nullptr);
    EXPECT_LE(wanted == nullptr ? kernels->queries : 0, best->queries);
    if (wanted != nullptr && kernels->name == "cpu." + std::string(wanted)) {
      EXPECT_EQ(best, kernels);
    }
  }
#if defined(__x86_64__) && defined(__GNUC__)
  EXPECT_EQ(cpu::flash::kernels_of(TILEWISE_ISA_AVX2) != nullptr,
            __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"));
  EXPECT_EQ(cpu::flash::kernels_of(TILEWISE_ISA_AVX512) != nullptr,
            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"));
#endif
}

}  // namespace
}  // namespace tilewise::tests
