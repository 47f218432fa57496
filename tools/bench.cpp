// `tilewise bench`: implementations timed in turns, the machine's ceiling measured beside each
// call.
//
// A, B, A, B, ...: what slows the machine down for a while hits both of a pair, so that the ratio
// within pairs says more than the ratio of two averages. For the same reason each call has its own
// ceiling, the multiply-adds of its own instruction set directly before and after it, and what is
// told is the median of the calls' fractions.
#include "tools/ceiling.hpp"
#include "tools/commands.hpp"
#include "tools/common.hpp"
#include "tools/json.hpp"
#include "tools/plugin.hpp"
#include "tools/progress.hpp"
#include "tools/table.hpp"

#include "oracle/harness/session.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>

namespace tilewise::tools {

namespace {
/// One implementation in the race.
struct Runner {
  std::unique_ptr<harness::Session> session;
  std::vector<double> seconds, fractions, peaks;
};

double timed_call(const harness::Session& session) {
  const auto start = std::chrono::steady_clock::now();
  require(session.call());
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

constexpr double peak_seconds = 0.0015;

/// One more call of `runner`, between two looks at the ceiling.
double add_call(Runner& runner, int threads, double flops) {
  const std::string_view isa = isa_of(runner.session->implementation().name());
  const double before = measure_peak_gflops(threads, peak_seconds, isa);
  const double seconds = timed_call(*runner.session);
  const double peak = (before + measure_peak_gflops(threads, peak_seconds, isa)) / 2;
  runner.seconds.push_back(seconds);
  runner.peaks.push_back(peak);
  runner.fractions.push_back(flops / seconds * 1e-9 / peak);
  return seconds;
}

double quantile(std::vector<double> values, double part) {
  std::sort(values.begin(), values.end());
  const auto last = static_cast<double>(values.size() - 1);
  return values[static_cast<std::size_t>(std::lround(last * part))];
}

BenchRow::Ratio ratio_of(const Runner& first, const Runner& other) {
  std::vector<double> ratios;
  for (std::size_t i = 0; i < other.seconds.size(); ++i)
    ratios.push_back(first.seconds[i] / other.seconds[i]);
  return {median(ratios), quantile(ratios, 0.25), quantile(ratios, 0.75)};
}

std::vector<BenchRow> race(const Problem& problem,
                           const std::vector<const harness::Implementation*>& chosen,
                           const BenchOptions& options) {
  std::vector<BenchRow> rows;
  std::vector<Runner> runners;
  std::vector<std::size_t> row_of;  // per runner
  for (const harness::Implementation* implementation : chosen) {
    rows.push_back({to_string(problem), std::string(implementation->name()), {}, {}, 0, 0, {}, {}});
    const harness::Support support = implementation->supports(problem);
    if (!support.ok) {
      rows.back().why_not = support.reason;
      continue;
    }
    row_of.push_back(rows.size() - 1);
    auto session = std::make_unique<harness::Session>(*implementation, problem, options.threads);
    require(session->allocate());
    require(session->fill(options.data));
    runners.push_back({std::move(session), {}, {}, {}});
  }
  if (runners.empty()) return rows;

  Progress progress(1);
  progress.begin(to_string(problem));
  for (Runner& runner : runners) require(runner.session->call());  // warm up: pages, thread pools
  const double flops = problem.flops();
  const double budget = options.seconds * static_cast<double>(runners.size());
  double spent = 0;
  for (int round = 0; round < 3 || spent < budget; ++round)
    for (Runner& runner : runners) {
      spent += add_call(runner, options.threads, flops);
      progress.within(spent / budget);
    }

  for (std::size_t i = 0; i < runners.size(); ++i) {
    const Runner& runner = runners[i];
    BenchRow& row = rows[row_of[i]];
    row.time.repetitions = static_cast<int>(runner.seconds.size());
    row.time.median = median(runner.seconds);
    row.time.fastest = quantile(runner.seconds, 0);
    row.time.slowest = quantile(runner.seconds, 1);
    row.time.flops = flops;
    row.fraction_of_peak = median(runner.fractions);
    row.peak_gflops = median(runner.peaks);
    row.fma = fma_name(isa_of(row.implementation));
    if (i > 0) row.ratio = ratio_of(runners.front(), runner);
  }
  return rows;
}

std::string text_of(const std::vector<BenchRow>& rows) {
  const BenchRow* first = nullptr;
  for (const BenchRow& row : rows)
    if (first == nullptr && row.why_not.empty()) first = &row;
  std::vector<std::vector<std::string>> table{
      {"implementation", "median", "fastest", "slowest", "calls", "GFLOP/s", "of peak", "peak"}};
  bool ratios = false;
  for (const BenchRow& row : rows) ratios = ratios || row.ratio.has_value();
  if (ratios) table.front().push_back("speed-up (middle half)");
  std::string refused;
  for (const BenchRow& row : rows) {
    if (!row.why_not.empty()) {
      refused += fmt::format("{} is not timed: {}\n", row.implementation, row.why_not);
      continue;
    }
    table.push_back({row.implementation, seconds_text(row.time.median),
                     seconds_text(row.time.fastest), seconds_text(row.time.slowest),
                     fmt::format("{}", row.time.repetitions), short_text(row.time.gflops()),
                     fmt::format("{:.1f} %", row.fraction_of_peak * 100),
                     fmt::format("{} {}", short_text(row.peak_gflops), row.fma)});
    if (ratios)
      table.back().push_back(row.ratio
                                 ? fmt::format("{:.2f}x ({:.2f} to {:.2f})", row.ratio->median,
                                               row.ratio->low, row.ratio->high)
                                 : "1");
  }
  std::string text = rows.front().problem + "\n";
  if (first != nullptr)
    text += table_text(table, {false, true, true, true, true, true, true, false, false}) +
            "peak: GFLOP/s of float32 multiply-adds on registers, before and after each call\n";
  if (ratios)
    text +=
        fmt::format("speed-up: {}'s time over this one's, pair by pair\n", first->implementation);
  return text + refused;
}
}  // namespace

int bench_command(const BenchOptions& options) {
  const harness::Table table =
      with_plugins(implementations_for(options.implementations), options.plugins);
  const auto chosen = select(
      table, options.implementations.empty() ? plugin_names(table) : options.implementations);
  require_on_cpu(chosen, "bench");
  std::vector<Problem> problems;
  for (const std::string& line : expand_problems(options.problems)) problems.push_back(parse(line));

  const auto served = [&](const Problem& problem) {
    return std::any_of(chosen.begin(), chosen.end(), [&](const auto* implementation) {
      return implementation->supports(problem).ok;
    });
  };
  if (!problems.empty() && std::none_of(problems.begin(), problems.end(), served))
    throw BadInput(fmt::format("{} does not serve \"{}\": {}", chosen.front()->name(),
                               to_string(problems.front()),
                               chosen.front()->supports(problems.front()).reason));

  std::vector<BenchRow> all;
  for (const Problem& problem : problems) {
    const std::vector<BenchRow> rows = race(problem, chosen, options);
    if (!options.json) print(fmt::format("{}{}", all.empty() ? "" : "\n", text_of(rows)));
    all.insert(all.end(), rows.begin(), rows.end());
  }
  if (options.json) print(bench_json(all));
  return exit_pass;
}

}  // namespace tilewise::tools
