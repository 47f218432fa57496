// The tour as one page that needs nothing else: tools/report.html with its {{places}} filled in.
#include "tools/common.hpp"
#include "tools/plot.hpp"
#include "tools/tour.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <utility>

namespace tilewise::tools {

/// tools/report.html, compiled in (tools/CMakeLists.txt).
extern const char* const report_template;

namespace {
using harness::OutputReport;
using harness::State;
using harness::Verdict;

/// The runs on normal tensors: one an implementation.
std::vector<const TourRun*> main_runs(const Tour& tour) {
  std::vector<const TourRun*> runs;
  for (const TourRun& run : tour.runs)
    if (run.tensors == "normal") runs.push_back(&run);
  return runs;
}

std::string state_badge(State state) {
  const std::string name(harness::name_of(state));
  return fmt::format("<span class=\"badge {0}\">{0}</span>", name);
}

/// A bar of `part` of its cell's width, with its number before it.
std::string bar(double part, const std::string& text, const char* kind) {
  const double width = std::isfinite(part) ? std::clamp(part, 0.0, 1.0) * 100 : 100;
  return fmt::format(
      "<span class=\"number\">{}</span><span class=\"track\"><span class=\"bar {}\" "
      "style=\"width:{:.1f}%\"></span></span>",
      text, kind, width);
}

// ------------------------------------------------------------------------------------ the sections

std::string summary(const Tour& tour) {
  int passed = 0, wrong = 0;
  for (const TourRun& run : tour.runs) ++(run.verdict.passed() ? passed : wrong);
  const auto card = [](const std::string& value, const std::string& label, const char* kind) {
    return fmt::format("<div class=\"card {}\"><b>{}</b><span>{}</span></div>\n", kind, value,
                       label);
  };
  return card(fmt::format("{}", main_runs(tour).size()), "implementations ran here", "") +
         card(fmt::format("{} of {}", passed, passed + wrong), "verdicts are a pass",
              wrong == 0 ? "good" : "bad") +
         card(fmt::format("{} GFLOP/s", short_text(tour.machine.peak_gflops)),
              "this machine&rsquo;s measured ceiling", "") +
         card(fmt::format("{:.0f} s", tour.seconds),
              tour.quick ? "for this tour (the quick one)" : "for this tour", "");
}

std::string results(const Tour& tour) {
  double best = 0;
  for (const TourRun& run : tour.runs) best = std::max(best, run.fraction_of_peak);
  std::string html;
  for (const TourRun& run : tour.runs) {
    const Verdict& verdict = run.verdict;
    const OutputReport* worst = harness::worst_output(verdict);
    const bool timed = verdict.time.repetitions > 0, curve = !run.memory.points.empty();
    if (run.tensors == "normal")
      html += fmt::format(
          "<tr class=\"idea\"><th scope=\"rowgroup\" colspan=\"10\"><a "
          "href=\"#verdict-{0}\">{0}</a> "
          "<span>{1}</span></th></tr>\n",
          html_escaped(run.implementation), html_escaped(run.idea));
    html += fmt::format(
        "<tr><td><abbr title=\"{}\">{}</abbr></td><td>{}</td>", html_escaped(verdict.problem),
        html_escaped(verdict.problem.substr(0, 3) + " " + run.tensors), state_badge(verdict.state));
    html += worst ? fmt::format("<td class=\"n\">{}</td><td class=\"meter\">{}</td>",
                                error_text(worst->max_error),
                                bar(worst->max_ratio, fmt::format("{:.2f}", worst->max_ratio),
                                    worst->max_ratio <= 1 ? "fine" : "wrong"))
                  : "<td>&ndash;</td><td>&ndash;</td>";
    html += fmt::format("<td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>",
                        verdict.memory.measured
                            ? bytes_text(static_cast<double>(verdict.memory.total()))
                            : "&ndash;",
                        curve ? fmt::format("{:.2f}", run.memory.slope_both) : "&ndash;",
                        verdict.bytes_moved ? bytes_text(*verdict.bytes_moved) : "&ndash;");
    html += timed ? fmt::format(
                        "<td class=\"n\">{}</td><td class=\"n\">{}</td><td "
                        "class=\"meter\">{}</td>",
                        seconds_text(verdict.time.median), short_text(verdict.time.gflops()),
                        bar(best > 0 ? run.fraction_of_peak / best : 0,
                            fmt::format("{:.1f} %", run.fraction_of_peak * 100), "speed"))
                  : "<td>&ndash;</td><td>&ndash;</td><td>&ndash;</td>";
    html += "</tr>\n";
  }
  return html;
}

std::string not_run(const Tour& tour) {
  if (tour.not_run.empty()) return "<p>Everything in the table of implementations ran.</p>\n";
  std::string html = "<ul class=\"plain\">\n";
  for (const NotRun& row : tour.not_run)
    html += fmt::format("<li><b>{}</b> <span class=\"muted\">{}</span><br>{}</li>\n",
                        html_escaped(row.implementation), html_escaped(row.idea),
                        html_escaped(row.why));
  return html + "</ul>\n";
}

std::string legend(const Tour& tour) {
  std::string html;
  int index = 0;
  for (const TourRun* run : main_runs(tour))
    html += fmt::format("<span><i style=\"background:var(--series-{})\"></i>{}</span>\n", index++,
                        html_escaped(run->implementation));
  return html;
}

/// Three plots: queries alone, keys alone, both; or a sentence where there is no gnuplot.
std::string memory_plots(const Tour& tour) {
  const std::pair<const char*, std::string> panels[] = {
      {"both", "Both lengths grow"}, {"q", "Queries alone"}, {"k", "Keys alone"}};
  double low = 1e30, high = 0;
  for (const TourRun* run : main_runs(tour))
    for (const harness::MemoryPoint& point : run->memory.points) {
      low = std::min(low, static_cast<double>(std::max<std::int64_t>(point.bytes, 64)));
      high = std::max(high, static_cast<double>(point.bytes));
    }
  if (high <= 0) return "<p class=\"note\">No memory was measured in this build.</p>\n";
  std::string html;
  for (const auto& panel : panels) {
    const std::string vary = panel.first, title = panel.second;
    Plot plot{title, vary == "k" ? "keys" : vary == "q" ? "queries" : "N", "", low / 2, high * 2,
              {}};
    for (const TourRun* run : main_runs(tour)) {
      plot.series.push_back({run->implementation, {}});
      for (const harness::MemoryPoint& point : run->memory.points)
        if (harness::name_of(point.vary) == vary)
          plot.series.back().points.emplace_back(
              static_cast<double>(point.n),
              static_cast<double>(std::max<std::int64_t>(point.bytes, 64)));
    }
    // A series without points would be an error of gnuplot's; its colour must stay its own.
    for (Series& series : plot.series)
      if (series.points.empty()) series.points.emplace_back(tour.memory_base, low / 4);
    const auto svg = plot_svg(plot, 380, 310);
    if (!svg)
      return "<p class=\"note\"><b>No plot:</b> gnuplot was not found on this machine, and it "
             "draws "
             "the curves. The table below has the same numbers; with gnuplot installed "
             "(<code>apt-get install gnuplot-nox</code>), the next tour shows them as "
             "curves.</p>\n";
    html += fmt::format("<figure>{}</figure>\n", *svg);
  }
  return html;
}

std::string memory_table(const Tour& tour) {
  std::vector<std::int64_t> lengths;
  for (const TourRun* run : main_runs(tour))
    for (const harness::MemoryPoint& point : run->memory.points) lengths.push_back(point.n);
  std::sort(lengths.begin(), lengths.end());
  lengths.erase(std::unique(lengths.begin(), lengths.end()), lengths.end());
  std::string html = "<table><thead><tr><th>implementation</th><th>varies</th>";
  for (const std::int64_t n : lengths) html += fmt::format("<th class=\"n\">{}</th>", n);
  html += "<th class=\"n\">slope</th></tr></thead><tbody>\n";
  for (const TourRun* run : main_runs(tour)) {
    const std::pair<const char*, double> kinds[] = {
        {"both", run->memory.slope_both}, {"q", run->memory.slope_q}, {"k", run->memory.slope_k}};
    for (const auto& kind : kinds) {
      const std::string vary = kind.first;
      const double slope = kind.second;
      html += fmt::format("<tr><td>{}</td><td>{}</td>",
                          vary == "both" ? html_escaped(run->implementation) : "",
                          vary == "both" ? "both"
                          : vary == "q"  ? "queries"
                                         : "keys");
      for (const std::int64_t n : lengths) {
        const auto point =
            std::find_if(run->memory.points.begin(), run->memory.points.end(),
                         [&](const harness::MemoryPoint& candidate) {
                           return candidate.n == n && harness::name_of(candidate.vary) == vary;
                         });
        html += fmt::format("<td class=\"n\">{}</td>",
                            point == run->memory.points.end()
                                ? "&ndash;"
                                : bytes_text(static_cast<double>(point->bytes)));
      }
      html += fmt::format("<td class=\"n\">{:.2f}</td></tr>\n", slope);
    }
  }
  return html + "</tbody></table>\n";
}

std::string features_table(const Tour& tour) {
  const auto runs = main_runs(tour);
  if (runs.empty()) return {};
  std::string html = "<table class=\"features\"><thead><tr><th>implementation</th>";
  for (const TourFeature& feature : runs.front()->features)
    html += fmt::format("<th><abbr title=\"{}\">{}</abbr></th>", html_escaped(feature.problem),
                        html_escaped(feature.name));
  html += "</tr></thead><tbody>\n";
  for (const TourRun* run : runs) {
    html += fmt::format("<tr><td>{}</td>", html_escaped(run->implementation));
    for (const TourFeature& feature : run->features) {
      const bool pass = feature.state == State::pass;
      const bool absent = feature.state == State::unsupported;
      html += fmt::format("<td class=\"{}\" title=\"{}\">{}</td>",
                          pass     ? "yes"
                          : absent ? "no"
                                   : "wrong",
                          html_escaped(feature.why),
                          pass     ? "pass"
                          : absent ? "&middot;"
                                   : "FAIL");
    }
    html += "</tr>\n";
  }
  return html + "</tbody></table>\n";
}

std::string number_text(double value) {
  return std::isfinite(value) ? fmt::format("{:.3g}", value) : fmt::format("{}", value);
}

std::string outputs_table(const Verdict& verdict) {
  std::string html =
      "<table><thead><tr><th>output</th><th class=\"n\">largest error</th><th class=\"n\">of its "
      "bound</th><th class=\"n\">row norm error</th><th class=\"n\">naive arithmetic&rsquo;s "
      "error</th><th>worst at</th><th class=\"n\">rows judged</th></tr></thead><tbody>\n";
  for (const OutputReport& output : verdict.outputs) {
    if (!output.present) {
      html +=
          fmt::format("<tr><td>{}</td><td colspan=\"6\" class=\"muted\">{}</td></tr>\n",
                      output.name, html_escaped(output.why.empty() ? "not written" : output.why));
      continue;
    }
    html += fmt::format(
        "<tr><td>{}{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td "
        "class=\"n\">{}</td><td>batch {}, head {}, row {}{}</td><td class=\"n\">{} of "
        "{}</td></tr>\n",
        output.name, output.passed ? "" : " " + state_badge(State::fail),
        number_text(output.max_error), number_text(output.max_ratio),
        number_text(output.max_relative),
        output.naive_allowed > 0 ? number_text(output.naive_error) : "&ndash;", output.worst.batch,
        output.worst.head, output.worst.row,
        output.name == "lse" ? "" : fmt::format(", column {}", output.worst.column),
        output.rows_judged, output.rows_total);
  }
  return html + "</tbody></table>\n";
}

std::string verdicts(const Tour& tour) {
  std::string html;
  for (const TourRun& run : tour.runs) {
    const Verdict& verdict = run.verdict;
    const bool first = run.tensors == "normal";
    html += fmt::format(
        "<details{}{}><summary>{} {} <span class=\"muted\">{} tensors</span></summary>\n",
        first ? fmt::format(" id=\"verdict-{}\"", html_escaped(run.implementation)) : "",
        verdict.passed() ? "" : " open", state_badge(verdict.state),
        html_escaped(run.implementation), run.tensors);
    html += fmt::format("<p>{}</p>\n<p><code>{}</code></p>\n", html_escaped(run.idea),
                        html_escaped(verdict.problem));
    for (const std::string& reason : verdict.reasons)
      html += fmt::format("<p class=\"reason\">{}</p>\n", html_escaped(reason));
    html += outputs_table(verdict);
    const harness::MemoryReport& memory = verdict.memory;
    const auto bytes = [](std::int64_t count) { return bytes_text(static_cast<double>(count)); };
    html += "<dl>\n";
    const auto entry = [&](const char* label, const std::string& text) {
      html += fmt::format("<dt>{}</dt><dd>{}</dd>\n", label, text);
    };
    entry("judged", html_escaped(verdict.coverage));
    for (const std::string& missing : verdict.not_checked)
      entry("not checked", html_escaped(missing));
    entry("repeated", fmt::format("{} further run{} compared with the first", verdict.repeats,
                                  verdict.repeats == 1 ? "" : "s"));
    entry("extra memory",
          memory.measured
              ? fmt::format("{}: heap {}, mapped {}, stack {}, workspace {} touched of {}",
                            bytes(memory.total()), bytes(memory.heap_peak),
                            bytes(memory.mapped_peak), bytes(memory.stack),
                            bytes(memory.workspace_touched), bytes(memory.workspace_declared))
              : "not measured: " + html_escaped(memory.why));
    if (verdict.time.repetitions > 0)
      entry("time", fmt::format("median {} of {} calls, {} to {}; ceiling {} GFLOP/s beside it",
                                seconds_text(verdict.time.median), verdict.time.repetitions,
                                seconds_text(verdict.time.fastest),
                                seconds_text(verdict.time.slowest), short_text(run.peak_gflops)));
    entry("run it again", fmt::format("<code>{}</code>", html_escaped(verdict.reproduce)));
    html += "</dl>\n";
    if (!verdict.passed())
      html += fmt::format("<pre>{}</pre>\n", html_escaped(harness::to_text(verdict)));
    html += "</details>\n";
  }
  return html;
}

std::string machine_table(const Machine& machine) {
  const std::pair<const char*, std::string> rows[] = {
      {"processor", machine.cpu},
      {"cores", fmt::format("{}", machine.cores)},
      {"caches", machine.caches},
      {"memory", bytes_text(machine.memory_bytes)},
      {"ceiling, all cores", fmt::format("{} GFLOP/s: float32 multiply-adds on registers, {}",
                                         short_text(machine.peak_gflops), machine.fma)},
      {"ceiling, one core", fmt::format("{} GFLOP/s", short_text(machine.peak_gflops_one))},
      {"memory bandwidth", fmt::format("{} GB/s: a triad over three arrays of 64 MiB",
                                       short_text(machine.bandwidth_gbytes))},
      {"system", machine.system},
      {"compiler", fmt::format("{}, {}", machine.compiler, machine.build_type)},
      {"date", machine.date},
  };
  std::string html;
  for (const auto& [label, text] : rows)
    if (!text.empty()) html += fmt::format("<dt>{}</dt><dd>{}</dd>\n", label, html_escaped(text));
  return html;
}

/// One colour a series: chapter 1 from red to yellow, chapter 2 from green to violet, the others
/// grey; a lighter set for dark pages.
std::string series_colours(const Tour& tour, bool dark) {
  const auto runs = main_runs(tour);
  const auto chapter = [](const TourRun& run) {
    return run.implementation.starts_with("stage.1")   ? 1
           : run.implementation.starts_with("stage.2") ? 2
                                                       : 0;
  };
  int counts[3] = {}, seen[3] = {};
  for (const TourRun* run : runs) ++counts[chapter(*run)];
  std::string css;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const int c = chapter(*runs[i]);
    const double part = counts[c] > 1 ? static_cast<double>(seen[c]++) / (counts[c] - 1) : 0;
    const double hue = c == 1 ? 0 + 45 * part : 160 + 120 * part;
    css += fmt::format("--series-{}:hsl({:.0f} {}% {}%);", i, hue, c == 0 ? 0 : 70, dark ? 62 : 42);
  }
  return css;
}

std::string filled(const std::string& page,
                   const std::vector<std::pair<std::string, std::string>>& places) {
  std::string result;
  std::size_t at = 0;
  for (std::size_t open; (open = page.find("{{", at)) != std::string::npos;) {
    const std::size_t close = page.find("}}", open);
    const std::string name = page.substr(open + 2, close - open - 2);
    result += page.substr(at, open - at);
    for (const auto& [place, html] : places)
      if (place == name) result += html;
    at = close + 2;
  }
  return result + page.substr(at);
}
}  // namespace

std::string report_html(const Tour& tour) {
  const auto runs = main_runs(tour);
  return filled(report_template, {{"SERIES_LIGHT", series_colours(tour, false)},
                                  {"SERIES_DARK", series_colours(tour, true)},
                                  {"SUMMARY", summary(tour)},
                                  {"RESULTS", results(tour)},
                                  {"EMULATED", emulated_html(tour.emulated)},
                                  {"NOT_RUN", not_run(tour)},
                                  {"LEGEND", legend(tour)},
                                  {"MEMORY_PROBLEM", html_escaped(tour.memory_problem)},
                                  {"MEMORY_PLOTS", memory_plots(tour)},
                                  {"MEMORY_TABLE", memory_table(tour)},
                                  {"FEATURES", features_table(tour)},
                                  {"VERDICTS", verdicts(tour)},
                                  {"MACHINE", machine_table(tour.machine)},
                                  {"NORMAL_PROBLEM",
                                   runs.empty() ? "" : html_escaped(runs.front()->verdict.problem)},
                                  {"DATE", html_escaped(tour.machine.date)}});
}

}  // namespace tilewise::tools
