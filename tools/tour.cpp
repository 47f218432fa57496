// `tilewise tour`: everything that this machine can run, judged on two kinds of tensors, timed
// beside the machine's ceiling, its memory measured as the lengths grow; told as a table and a
// page.
#include "tools/tour.hpp"

#include "tools/ceiling.hpp"
#include "tools/commands.hpp"
#include "tools/common.hpp"
#include "tools/json.hpp"
#include "tools/plugin.hpp"
#include "tools/plot.hpp"
#include "tools/progress.hpp"
#include "tools/table.hpp"

#include "oracle/harness/harness.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>

namespace tilewise::tools {

namespace {
using Implementation = harness::Implementation;
using harness::State;

/// What is run, and how long: a full tour or a quick one.
struct Plan {
  const char* normal;  ///< everything behind fwd or bwd
  const char* real;
  std::int64_t base;  ///< the length that stays while the other varies
  std::vector<std::int64_t> lengths;
  double time_seconds;
  int repeats;
};

Plan plan_of(bool quick) {
  if (quick)
    return {"s256 h4 d64 seed=1", "s179 h12 d32 fill=real", 512, {512, 1024, 2048}, 0.1, 1};
  return {"s512 h4 d64 seed=1", "b3 s179 h12 d32 fill=real", 512, {512, 1024, 2048, 4096}, 0.4, 2};
}

class Guide {
 public:
  explicit Guide(const TourOptions& options)
      : options_(options),
        plan_(plan_of(options.quick)),
        table_(with_plugins(implementations_for("emulated."), options.plugins)) {}

  Tour run() {
    const auto start = std::chrono::steady_clock::now();
    const auto all = select(table_, options_.only.empty() ? "all" : options_.only);
    require_on_cpu(all, "tour");
    std::vector<const Implementation*> chosen, emulated;
    for (const Implementation* implementation : all)
      (implementation->name().starts_with("emulated.") ? emulated : chosen)
          .push_back(implementation);
    tour_.quick = options_.quick;
    tour_.memory_base = plan_.base;
    tour_.memory_problem =
        fmt::format("fwd or bwd, b1 h1 d32 f32; a length that does not vary is {}", plan_.base);
    Progress progress(static_cast<int>(all.size()) + 1);
    progress.begin("measuring this machine");
    tour_.machine = describe_machine();
    progress.done(fmt::format("{} GFLOP/s", short_text(tour_.machine.peak_gflops)));
    for (const Implementation* implementation : chosen) {
      progress.begin(std::string(implementation->name()));
      progress.done(visit(*implementation, progress));
    }
    for (const Implementation* implementation : emulated) {
      progress.begin(std::string(implementation->name()));
      tour_.emulated.push_back(run_emulated(*implementation, options_.quick));
      progress.done(tour_.emulated.back().verdict.passed() ? "pass" : "FAIL");
    }
    tour_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return std::move(tour_);
  }

 private:
  /// One implementation; answers how it went, in a word or two.
  std::string visit(const Implementation& implementation, Progress& progress) {
    const Problem normal = problem_for(implementation, plan_.normal);
    const Problem real = problem_for(implementation, plan_.real);
    if (const harness::Support support = implementation.supports(normal); !support.ok) {
      tour_.not_run.push_back(
          {std::string(implementation.name()), std::string(implementation.idea()), support.reason});
      return "not run: " + support.reason;
    }
    TourRun first = judge(implementation, normal, "normal", progress, 0);
    // Of another device the tensors' copies here would be measured.
    if (!implementation.on_device())
      first.memory = harness::measure_scaling(
          implementation, problem_for(implementation, fmt::format("s{} h1 d32", plan_.base)),
          plan_.lengths, options_.data);
    progress.within(0.6);
    judge_features(implementation, first);
    bool passed = first.verdict.passed();
    if (!implementation.supports(real).ok) {
      tour_.runs.push_back(std::move(first));
      return passed ? "pass" : "FAIL";
    }
    TourRun second = judge(implementation, real, "real", progress, 0.7);
    second.memory = first.memory;
    passed = passed && second.verdict.passed();
    tour_.runs.push_back(std::move(first));
    tour_.runs.push_back(std::move(second));
    return passed ? "pass" : "FAIL";
  }

  TourRun judge(const Implementation& implementation, const Problem& problem, const char* tensors,
                Progress& progress, double progress_start) const {
    harness::Options options;
    options.repeats = plan_.repeats;
    options.measure_memory = !implementation.on_device();
    options.time_seconds = plan_.time_seconds;
    options.data_directory = options_.data;
    options.progress = [&](double part) { progress.within(progress_start + part * 0.3); };
    TourRun run;
    run.implementation = implementation.name();
    run.idea = implementation.idea();
    run.tensors = tensors;
    const double before = measure_peak_gflops(0, 0.02);
    run.verdict = harness::check(implementation, problem, options);
    const double after = measure_peak_gflops(0, 0.02);
    run.peak_gflops = (before + after) / 2;
    if (!implementation.on_device())
      run.fraction_of_peak = run.verdict.time.gflops() / run.peak_gflops;
    return run;
  }

  void judge_features(const Implementation& implementation, TourRun& run) const {
    for (const Feature& feature : features()) {
      harness::Options options;
      options.repeats = 1;
      options.data_directory = options_.data;
      const harness::Verdict verdict =
          harness::check(implementation, std::string_view(feature.problem), options);
      run.features.push_back({std::string(feature.name), std::string(feature.problem),
                              verdict.state,
                              verdict.reasons.empty() ? std::string() : verdict.reasons.front()});
    }
  }

  const TourOptions& options_;
  Plan plan_;
  harness::Table table_;
  Tour tour_;
};

// ------------------------------------------------------------------------------------- on the
// terminal

/// `text` broken at spaces to lines of 100 columns, the later ones indented.
std::string wrapped(const std::string& text, const std::string& indent) {
  std::string result, line;
  for (const std::string& word : split(text, ' ')) {
    if (!line.empty() && columns(line) + 1 + columns(word) > 100) {
      result += line + "\n";
      line = indent + word;
    } else {
      line += (line.empty() ? "" : " ") + word;
    }
  }
  return result + line + "\n";
}

/// A line with the idea for each implementation, and below it one row a kind of tensors.
std::string results_text(const Tour& tour) {
  if (tour.runs.empty()) return {};
  std::vector<std::vector<std::string>> rows{{"", "tensors", "verdict", "error", "/bound", "memory",
                                              "slope q", "k", "both", "moved", "time", "GFLOP/s",
                                              "of peak"}};
  for (const TourRun& run : tour.runs) {
    const harness::Verdict& verdict = run.verdict;
    const harness::OutputReport* worst = harness::worst_output(verdict);
    const bool measured = !run.memory.points.empty(), timed = verdict.time.repetitions > 0;
    const auto slope = [&](double value) {
      // A tiny negative slope is a constant, not "-0.00".
      return measured ? fmt::format("{:.2f}", std::abs(value) < 0.005 ? 0.0 : value) : "-";
    };
    rows.push_back(
        {"", verdict.problem.substr(0, 3) + " " + run.tensors,
         std::string(harness::name_of(verdict.state)), worst ? error_text(worst->max_error) : "-",
         worst ? fmt::format("{:.2f}", worst->max_ratio) : "-",
         verdict.memory.measured ? bytes_text(static_cast<double>(verdict.memory.total())) : "-",
         slope(run.memory.slope_q), slope(run.memory.slope_k), slope(run.memory.slope_both),
         verdict.bytes_moved ? bytes_text(*verdict.bytes_moved) : "-",
         timed ? seconds_text(verdict.time.median) : "-",
         timed ? short_text(verdict.time.gflops()) : "-",
         run.fraction_of_peak > 0 ? fmt::format("{:.1f} %", run.fraction_of_peak * 100) : "-"});
  }
  const std::string table = table_text(
      rows, {false, false, false, true, true, true, true, true, true, true, true, true, true});
  const std::vector<std::string> lines = split(table, '\n');
  std::string text = lines[0] + "\n" + lines[1] + "\n";
  for (std::size_t i = 0; i < tour.runs.size(); ++i) {
    const TourRun& run = tour.runs[i];
    if (run.tensors == "normal") text += wrapped(run.implementation + ": " + run.idea, "    ");
    text += lines[i + 2] + "\n";
  }
  return text;
}

std::string not_run_text(const Tour& tour) {
  std::string text;
  for (const NotRun& row : tour.not_run)
    text += fmt::format("  {:<22} {}\n", row.implementation, row.why);
  return text.empty() ? text : "Not run\n" + text;
}

/// The first step of a chapter that has a memory curve of a forward pass.
const TourRun* first_of(const Tour& tour, const std::string& prefix) {
  for (const TourRun& run : tour.runs)
    if (run.implementation.starts_with(prefix) && !run.memory.points.empty()) return &run;
  return nullptr;
}

/// Naive and online side by side, on the same axes.
std::string curves_text(const Tour& tour) {
  const TourRun* naive = first_of(tour, "stage.1");
  const TourRun* online = first_of(tour, "stage.2");
  if (naive == nullptr || online == nullptr) return {};
  const std::string about = "Extra memory of one call, measured, for N queries and N keys:\n";
  double low = 1e30, high = 0;
  std::string numbers =
      fmt::format("  {:>6}  {:>24}  {:>24}\n", "N", naive->implementation, online->implementation);
  Plot plots[2];
  for (int side = 0; side < 2; ++side) {
    const TourRun& run = side == 0 ? *naive : *online;
    plots[side] = {fmt::format("{} {}: slope {:.2f}", side == 0 ? "naive" : "online",
                               run.implementation, std::abs(run.memory.slope_both)),
                   "N",
                   "",
                   0,
                   0,
                   {{run.implementation, {}}}};
    for (const harness::MemoryPoint& point : run.memory.points) {
      if (point.vary != harness::Vary::both) continue;
      const double bytes = static_cast<double>(std::max<std::int64_t>(point.bytes, 64));
      plots[side].series[0].points.emplace_back(static_cast<double>(point.n), bytes);
      low = std::min(low, bytes);
      high = std::max(high, bytes);
    }
  }
  const auto& points = plots[0].series[0].points;
  for (std::size_t i = 0; i < std::min(points.size(), plots[1].series[0].points.size()); ++i)
    numbers +=
        fmt::format("  {:>6.0f}  {:>24}  {:>24}\n", points[i].first, bytes_text(points[i].second),
                    bytes_text(plots[1].series[0].points[i].second));
  for (Plot& plot : plots) {
    plot.y_low = low / 2;
    plot.y_high = high * 2;
  }
  const auto left = plot_text(plots[0], 46, 16), right = plot_text(plots[1], 46, 16);
  if (!left || !right)
    return about + numbers + "  (gnuplot is not installed: numbers instead of curves)\n";
  return about + side_by_side(*left, *right, "    ");
}

std::string failures_text(const Tour& tour) {
  std::string text;
  for (const TourRun& run : tour.runs) {
    if (!run.verdict.passed()) text += harness::to_text(run.verdict) + "\n\n";
    for (const TourFeature& feature : run.features)
      if (feature.state == State::fail || feature.state == State::error)
        text += fmt::format("{}  {}  {}: {}\n", harness::name_of(feature.state), run.implementation,
                            feature.problem, feature.why);
  }
  return text;
}

std::string terminal_text(const Tour& tour) {
  const Machine& machine = tour.machine;
  std::string text =
      fmt::format("\n{}, {} cores; measured ceiling {} GFLOP/s (float32, {}), {} GB/s\n\n",
                  machine.cpu, machine.cores, short_text(machine.peak_gflops), machine.fma,
                  short_text(machine.bandwidth_gbytes));
  for (const std::string& part : {results_text(tour), emulated_text(tour.emulated),
                                  not_run_text(tour), curves_text(tour), failures_text(tour)})
    if (!part.empty()) text += part + "\n";
  return text;
}
}  // namespace

int tour_command(const TourOptions& options) {
  const std::filesystem::path out(options.out);
  make_directory(out);
  const Tour tour = Guide(options).run();
  write_text(out / "report.html", report_html(tour));
  const std::string json = tour_json(tour);
  write_text(out / "tour.json", json);
  const std::string text = terminal_text(tour);
  write_text(out / "tour.txt", text);
  if (options.json)
    print(json);
  else
    print(text + fmt::format("{:.1f} s. The report: {}\nThe numbers: {}\n", tour.seconds,
                             (out / "report.html").string(), (out / "tour.json").string()));
  for (const TourRun& run : tour.runs) {
    if (run.verdict.state == State::error)
      throw BadInput(fmt::format("{} could not be judged: {}", run.implementation,
                                 run.verdict.reasons.empty() ? "" : run.verdict.reasons.front()));
    if (!run.verdict.passed()) return exit_fail;
    for (const TourFeature& feature : run.features)
      if (feature.state == State::fail) return exit_fail;
  }
  for (const EmulatedRun& run : tour.emulated)
    if (!run.verdict.passed()) return exit_fail;
  return exit_pass;
}

}  // namespace tilewise::tools
