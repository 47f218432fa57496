// Google Benchmark over every implementation:
//
//   tilewise_bench --benchmark_filter='2c_simd.*causal' --benchmark_repetitions=5
//
// Counters: GFLOP/s of useful operations, and the fraction of the machine's multiply-add ceiling,
// which is measured directly before and after each run because clocks drift.
#include "oracle/harness/session.hpp"
#include "stages/adapter.hpp"
#include "tools/ceiling.hpp"

#include <benchmark/benchmark.h>

#include <memory>
#include <string>

namespace tilewise {
namespace {

constexpr const char* problems[] = {
    "fwd s512 h4 d64 f32",   "fwd s2048 h4 d64 f32", "fwd s2048 h4 d64 f32 causal",
    "fwd s2048 h4 d128 f32", "bwd s512 h4 d64 f32",  "bwd s512 h4 d64 f32 causal",
};

void run(benchmark::State& state, const harness::Implementation& implementation,
         const Problem& problem) {
  harness::Session session(implementation, problem);
  Status status = session.allocate();
  if (status.ok()) status = session.fill();
  if (status.ok()) status = session.call();  // warm up: pages, thread pools
  if (!status.ok()) {
    state.SkipWithError(status.reason);
    return;
  }
  constexpr double seconds = 0.01;
  const double before = tools::measure_peak_gflops(0, seconds);
  for (auto unused : state) {
    static_cast<void>(unused);
    status = session.call();
    benchmark::ClobberMemory();
  }
  const double peak = (before + tools::measure_peak_gflops(0, seconds)) / 2;
  if (!status.ok()) state.SkipWithError(status.reason);
  const auto calls = static_cast<double>(state.iterations());
  state.counters["GFLOP/s"] =
      benchmark::Counter(problem.flops() * calls * 1e-9, benchmark::Counter::kIsRate);
  // A rate divided by a constant rate is the fraction.
  state.counters["of_peak"] =
      benchmark::Counter(problem.flops() * calls * 1e-9 / peak, benchmark::Counter::kIsRate);
}

void register_benchmarks(const harness::Table& table) {
  for (const auto& implementation : table)
    for (const char* line : problems) {
      const Problem problem = std::get<Problem>(parse_problem(line));
      if (!implementation->supports(problem).ok) continue;
      // A step that also does the backward pass is measured there.
      if (problem.pass == Pass::forward &&
          implementation->supports(std::get<Problem>(parse_problem("bwd s8 d8"))).ok)
        continue;
      benchmark::RegisterBenchmark((std::string(implementation->name()) + "/" + line).c_str(),
                                   [&kernel = *implementation, problem](benchmark::State& state) {
                                     run(state, kernel, problem);
                                   })
          ->Unit(benchmark::kMillisecond)
          ->UseRealTime();
    }
}

}  // namespace
}  // namespace tilewise

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  const tilewise::harness::Table table = tilewise::stages::implementations();
  tilewise::register_benchmarks(table);
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
