// `tilewise bench`: implementations timed in turns, the machine's ceiling measured beside each
// call.
//
// A, B, A, B, ...: what slows the machine down for a while hits both of a pair, so that the ratio
// within pairs says more than the ratio of two averages. For the same reason each call has its own
// ceiling, the multiply-adds of its own instruction set directly before and after it, and what is
// told is the median of the calls' fractions.
//
// One query reads all keys and computes little with each: reading K and V may then take longer than
// the multiply-adds, and is measured beside each call too, over as many bytes.
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
#include <cmath>
#include <cstddef>
#include <memory>

namespace tilewise::tools {

namespace {
/// One implementation in the race.
struct Runner {
  std::unique_ptr<harness::Session> session;
  std::vector<double> seconds, fractions, peaks;
  std::vector<double> rates, of_bound;  ///< of decoding: GB/s of reading, and what was reached
};

/// The rows, and of decoding a line about reading.
struct Race {
  std::vector<BenchRow> rows;
  std::string reading;
};

/// Bytes of K and V where every sequence has one query, which looks at all of them; else 0, and
/// where they are fewer than 1 MiB: too little to be cut into streams for many threads.
std::size_t bytes_to_read(const Problem& problem) {
  const auto keys = static_cast<double>(problem.total_k() * problem.nheads_q);
  const auto columns = static_cast<double>(problem.head_dim + problem.head_dim_v);
  if (problem.pass != Pass::forward || problem.max_seqlen_q() != 1 || problem.mask ||
      problem.kv_dtype() == DType::q8_0 || problem.flops() != 2 * columns * keys)
    return 0;
  const std::size_t bytes = size_of(problem.kv_dtype()) *
                            static_cast<std::size_t>(problem.total_k() * problem.nheads_k *
                                                     (problem.head_dim + problem.head_dim_v));
  return bytes < std::size_t{1} << 20 ? 0 : bytes;
}

double timed_call(const harness::Session& session) {
  double seconds = 0;
  require(session.timed_call(seconds));
  return seconds;
}

constexpr double peak_seconds = 0.0015;

/// One more call of `runner`, between two looks at the ceiling; `memory` is as large as K and V
/// where reading them is one of its ceilings, else empty.
double add_call(Runner& runner, int threads, double flops, const std::vector<std::byte>& memory) {
  const std::string_view isa = isa_of(runner.session->implementation().name());
  const auto reading = [&] {
    return measure_read_gbytes(threads, peak_seconds, memory.data(), memory.size());
  };
  double peak = measure_peak_gflops(threads, peak_seconds, isa);
  double rate = 0;
  if (!memory.empty()) {
    rate = reading();
    require(runner.session->call());  // K and V go where they stay from call to call
  }
  const double seconds = timed_call(*runner.session);
  peak = (peak + measure_peak_gflops(threads, peak_seconds, isa)) / 2;
  const double adding = flops / peak * 1e-9;
  runner.seconds.push_back(seconds);
  runner.peaks.push_back(peak);
  runner.fractions.push_back(adding / seconds);
  if (!memory.empty()) {
    rate = (rate + reading()) / 2;
    runner.rates.push_back(rate);
    const double read = static_cast<double>(memory.size()) / rate * 1e-9;
    runner.of_bound.push_back(std::max(read, adding) / seconds);
  }
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

std::string reading_text(const std::vector<Runner>& runners, std::size_t bytes) {
  std::vector<double> rates;
  std::string parts;
  for (const Runner& runner : runners) {
    rates.insert(rates.end(), runner.rates.begin(), runner.rates.end());
    parts += fmt::format("{}{} {:.1f} %", parts.empty() ? "" : ", ",
                         runner.session->implementation().name(), median(runner.of_bound) * 100);
  }
  return fmt::format(
      "reading: {}, as much as K and V, at {} GB/s, before and after each call\n"
      "of the longer of the two, multiply-adds and reading: {}\n",
      bytes_text(static_cast<double>(bytes)), short_text(median(rates)), parts);
}

Race race(const Problem& problem, const std::vector<const harness::Implementation*>& chosen,
          const BenchOptions& options) {
  Race result;
  std::vector<BenchRow>& rows = result.rows;
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
    runners.push_back({std::move(session), {}, {}, {}, {}, {}});
  }
  if (runners.empty()) return result;

  Progress progress(1);
  progress.begin(to_string(problem));
  for (Runner& runner : runners) require(runner.session->call());  // warm up: pages, thread pools
  const double flops = problem.flops();
  const std::vector<std::byte> memory(bytes_to_read(problem), std::byte{1});
  const double budget = options.seconds * static_cast<double>(runners.size());
  double spent = 0;
  for (int round = 0; round < 3 || spent < budget; ++round)
    for (Runner& runner : runners) {
      spent += add_call(runner, options.threads, flops, memory);
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
    if (!runner.session->implementation().on_device()) {
      row.fraction_of_peak = median(runner.fractions);
      row.peak_gflops = median(runner.peaks);
      row.fma = fma_name(isa_of(row.implementation));
    }
    if (i > 0) row.ratio = ratio_of(runners.front(), runner);
  }
  if (!memory.empty()) result.reading = reading_text(runners, memory.size());
  return result;
}

std::string text_of(const Race& result) {
  const std::vector<BenchRow>& rows = result.rows;
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
    table.push_back(
        {row.implementation, seconds_text(row.time.median), seconds_text(row.time.fastest),
         seconds_text(row.time.slowest), fmt::format("{}", row.time.repetitions),
         short_text(row.time.gflops()),
         row.peak_gflops > 0 ? fmt::format("{:.1f} %", row.fraction_of_peak * 100) : "-",
         row.peak_gflops > 0 ? fmt::format("{} {}", short_text(row.peak_gflops), row.fma) : "-"});
    if (ratios)
      table.back().push_back(row.ratio
                                 ? fmt::format("{:.2f}x ({:.2f} to {:.2f})", row.ratio->median,
                                               row.ratio->low, row.ratio->high)
                                 : "1");
  }
  std::string text = rows.front().problem + "\n";
  if (first != nullptr)
    text += table_text(table, {false, true, true, true, true, true, true, false, false}) +
            "peak: GFLOP/s of float32 multiply-adds on registers, before and after each call\n" +
            result.reading;
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
    const Race result = race(problem, chosen, options);
    if (!options.json) print(fmt::format("{}{}", all.empty() ? "" : "\n", text_of(result)));
    all.insert(all.end(), result.rows.begin(), result.rows.end());
  }
  if (options.json) print(bench_json(all));
  return exit_pass;
}

}  // namespace tilewise::tools
