// Google Benchmark over the course's steps and the library's kernels:
//
//   tilewise_bench --benchmark_filter='cpu.avx2.*bshd' --benchmark_repetitions=5
//   tilewise_bench --benchmark_filter='2c_simd.*/threads:1'
//
// Counters: GFLOP/s of useful operations, and of_peak, the median fraction of the ceiling:
// multiply-adds of the kernel's own instruction set, on as many threads, directly before and after
// each call (or group of short ones) because clocks drift.
#include "oracle/harness/session.hpp"
#include "stages/adapter.hpp"
#include "tools/capi_implementation.hpp"
#include "tools/ceiling.hpp"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace tilewise {
namespace {

/// Of the course's steps.
constexpr const char* lessons[] = {
    "fwd s512 h4 d64 f32",   "fwd s2048 h4 d64 f32", "fwd s2048 h4 d64 f32 causal",
    "fwd s2048 h4 d128 f32", "bwd s512 h4 d64 f32",  "bwd s512 h4 d64 f32 causal",
};

/// Of the library: lengths and widths, contiguous heads (bhsd) and interleaved ones (bshd), and one
/// query over a cache.
std::vector<std::string> library_problems() {
  std::vector<std::string> lines;
  for (const char* shape : {"b16 s128 h8", "b2 s512 h8", "s2048 h8"})
    for (const char* width : {"d64", "d128"})
      for (const char* layout : {"bhsd", "bshd"})
        for (const char* mask : {"", " causal"})
          lines.push_back(std::string("fwd ") + shape + " " + width + " f32 " + layout + mask);
  for (const char* keys : {"1024", "4096", "32768"})
    for (const char* dtype : {"f32", "f16"})
      lines.push_back(std::string("fwd sq1 sk") + keys + " hq32 hk8 d128 " + dtype);
  return lines;
}

/// Groups of calls between two looks at the ceiling: one call, or as many short ones as take as
/// long as the looks.
class Fractions {
 public:
  Fractions(int threads, std::string_view isa, double flops)
      : threads_(threads), isa_(isa), flops_(flops) {}

  void before_call() {
    if (calls_ == 0) before_ = peak();
  }
  void after_call(double seconds) {
    ++calls_;
    seconds_ += seconds;
    if (seconds_ >= 2 * peak_seconds) end_group();
  }
  double median() {
    if (calls_ > 0) end_group();
    if (groups_.empty()) return 0;
    const auto middle = groups_.begin() + static_cast<std::ptrdiff_t>(groups_.size() / 2);
    std::nth_element(groups_.begin(), middle, groups_.end());
    return *middle;
  }

 private:
  static constexpr double peak_seconds = 0.0015;

  double peak() const { return tools::measure_peak_gflops(threads_, peak_seconds, isa_); }
  void end_group() {
    groups_.push_back(flops_ * calls_ * 1e-9 / seconds_ / ((before_ + peak()) / 2));
    calls_ = 0;
    seconds_ = 0;
  }

  int threads_;
  std::string_view isa_;
  double flops_, before_ = 0, seconds_ = 0;
  int calls_ = 0;
  std::vector<double> groups_;
};

void run(benchmark::State& state, const harness::Implementation& implementation,
         const Problem& problem, int threads) {
  harness::Session session(implementation, problem, threads);
  Status status = session.allocate();
  if (status.ok()) status = session.fill();
  if (status.ok()) status = session.call();  // warm up: pages, thread pools
  if (!status.ok()) {
    state.SkipWithError(status.reason);
    return;
  }
  Fractions fractions(threads, tools::isa_of(implementation.name()), problem.flops());
  for (auto unused : state) {
    static_cast<void>(unused);
    fractions.before_call();
    const auto start = std::chrono::steady_clock::now();
    status = session.call();
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    benchmark::ClobberMemory();
    state.SetIterationTime(seconds);
    fractions.after_call(seconds);
  }
  if (!status.ok()) state.SkipWithError(status.reason);
  state.counters["GFLOP/s"] =
      benchmark::Counter(problem.flops() * static_cast<double>(state.iterations()) * 1e-9,
                         benchmark::Counter::kIsRate);
  state.counters["of_peak"] = fractions.median();
}

void add(const harness::Implementation& implementation, const std::string& line, int threads) {
  const Problem problem = std::get<Problem>(parse_problem(line));
  if (!implementation.supports(problem).ok) return;
  const std::string name = std::string(implementation.name()) + "/" + line +
                           (threads > 0 ? "/threads:" + std::to_string(threads) : "");
  benchmark::RegisterBenchmark(name.c_str(),
                               [&implementation, problem, threads](benchmark::State& state) {
                                 run(state, implementation, problem, threads);
                               })
      ->Unit(benchmark::kMillisecond)
      ->UseManualTime();
}

void add_lessons(const harness::Table& steps) {
  for (const auto& step : steps)
    for (const char* line : lessons) {
      const bool also_backward = step->supports(std::get<Problem>(parse_problem("bwd s8 d8"))).ok;
      // A step that also does the backward pass is measured there.
      const bool forward = std::get<Problem>(parse_problem(line)).pass == Pass::forward;
      if (!(forward && also_backward)) add(*step, line, 0);
    }
}

void add_library(const harness::Table& library) {
  std::vector<int> counts{1};
  if (const int all = tools::thread_count(0); all > 1) counts.push_back(all);
  for (const auto& kernel : library) {
    if (kernel->name() == "cpu.portable") continue;  // fifty problems at its speed take too long
    for (const std::string& line : library_problems())
      for (const int threads : counts) add(*kernel, line, threads);
  }
}

}  // namespace
}  // namespace tilewise

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  const tilewise::harness::Table steps = tilewise::stages::implementations();
  const tilewise::harness::Table library = tilewise::tools::library_implementations();
  tilewise::add_lessons(steps);
  tilewise::add_library(library);
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
