#include "tools/tour_emulated.hpp"

#include "tools/common.hpp"
#include "tools/table.hpp"

#include "cuda/emulator/emulator.hpp"
#include "oracle/harness/harness.hpp"
#include "stages/cuda_adapter.hpp"
#include "tools/emulated_kernels.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <iterator>

namespace tilewise::tools {
namespace {

using emulator::Counts;
using emulator::Traffic;

/// What every view of a run says, as words.
struct Row {
  explicit Row(const EmulatedRun& run) {
    const harness::OutputReport* const worst = harness::worst_output(run.verdict);
    const Counts& counts = run.report.counts;
    const Traffic traffic = counts.total();
    verdict = std::string(harness::name_of(run.verdict.state));
    error = worst != nullptr ? error_text(worst->max_error) : "-";
    bound = worst != nullptr ? fmt::format("{:.2f}", worst->max_ratio) : "-";
    loaded = bytes_text(static_cast<double>(traffic.bytes_loaded));
    stored = bytes_text(static_cast<double>(traffic.bytes_stored));
    travelled =
        bytes_text(32.0 * static_cast<double>(traffic.sectors_loaded + traffic.sectors_stored));
    formula = run.verdict.bytes_moved ? bytes_text(*run.verdict.bytes_moved) : "-";
    barriers = fmt::format("{}", counts.barriers);
    banks = counts.banks.requests > 0 ? fmt::format("{:.2f}", counts.banks.conflict()) : "-";
    mma = counts.mma > 0 ? fmt::format("{}", counts.mma) : "-";
    special = fmt::format("{}", counts.special_functions);
    shared = bytes_text(static_cast<double>(counts.most_shared_bytes));
  }

  std::string verdict, error, bound, loaded, stored, travelled, formula, barriers, banks, mma,
      special, shared;
};

constexpr const char* headings[] = {"verdict", "error",    "/bound", "loaded", "stored", "sectors",
                                    "formula", "barriers", "banks",  "mma",    "exp"};

std::vector<std::string> cells(const EmulatedRun& run) {
  const Row row(run);
  return {row.verdict, row.error,    row.bound, row.loaded, row.stored, row.travelled,
          row.formula, row.barriers, row.banks, row.mma,    row.special};
}

/// A block's warps from top to bottom, their own instructions from left to right: a bar each time
/// that one loads, computes or stores a tile.
std::string timeline(const EmulatedRun& run) {
  std::vector<const emulator::TraceEvent*> events;
  for (const emulator::TraceEvent& event : run.report.trace)
    if (event.block == 0) events.push_back(&event);
  if (events.empty()) return {};
  std::int64_t end = 1;
  int warps = 1;
  std::vector<std::string> names;
  for (const emulator::TraceEvent* event : events) {
    end = std::max(end, event->end);
    warps = std::max(warps, event->warp + 1);
    if (std::find(names.begin(), names.end(), event->name) == names.end())
      names.push_back(event->name);
  }
  constexpr int width = 900, height = 22, left = 60;
  std::string svg =
      fmt::format("<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"timeline of {}\">\n",
                  left + width, warps * height + 24, run.implementation);
  for (int warp = 0; warp < warps; ++warp)
    svg += fmt::format(
        "<text x=\"0\" y=\"{}\" fill=\"currentColor\" font-size=\"11\">warp {}</text>\n",
        warp * height + 15, warp);
  for (const emulator::TraceEvent* event : events) {
    const auto name = std::find(names.begin(), names.end(), event->name) - names.begin();
    const double scale = static_cast<double>(width) / static_cast<double>(end);
    svg += fmt::format(
        "<rect x=\"{:.1f}\" y=\"{}\" width=\"{:.1f}\" height=\"{}\" fill=\"hsl({} 60% 55%)\">"
        "<title>{} {}: {} to {}</title></rect>\n",
        left + static_cast<double>(event->begin) * scale, event->warp * height + 3,
        std::max(0.5, static_cast<double>(event->end - event->begin) * scale), height - 6,
        20 + name * 300 / std::max<std::ptrdiff_t>(1, std::ssize(names)), html_escaped(event->name),
        event->tile, event->begin, event->end);
  }
  std::int64_t x = left;
  for (std::size_t n = 0; n < names.size(); ++n) {
    svg += fmt::format(
        "<rect x=\"{}\" y=\"{}\" width=\"10\" height=\"10\" fill=\"hsl({} 60% 55%)\"/>"
        "<text x=\"{}\" y=\"{}\" fill=\"currentColor\" font-size=\"11\">{}</text>\n",
        x, warps * height + 10, 20 + n * 300 / names.size(), x + 14, warps * height + 19,
        html_escaped(names[n]));
    x += 40 + 8 * static_cast<std::int64_t>(names[n].size());
  }
  return fmt::format(
      "<figure><figcaption>{}: block 0, warps against the instructions that each has "
      "behind it</figcaption>\n{}</svg></figure>\n",
      html_escaped(run.implementation), svg);
}

}  // namespace

harness::Table emulated_implementations(const emulator::Options& options) {
  harness::Table table = stages::emulated_implementations(options);
  table.push_back(emulated_kernels(options));
  table.push_back(emulated_kernels(Kernels::sm90, options));
  return table;
}

harness::Table emulated_implementations() {
  emulator::Options options;
  options.trace = true;
  return emulated_implementations(options);
}

std::string emulated_json(const EmulatedRun& run) {
  return emulator::to_json(run.report);
}

EmulatedRun run_emulated(const harness::Implementation& implementation, bool quick) {
  const Problem problem = problem_for(
      implementation, fmt::format("s{} h{} d64 seed=1", quick ? 64 : 128, quick ? 1 : 2));
  harness::Options options;
  options.repeats = 1;
  EmulatedRun run;
  run.implementation = implementation.name();
  run.idea = implementation.idea();
  run.verdict = harness::check(implementation, problem, options);
  run.report = dynamic_cast<const stages::Emulated&>(implementation).report();
  return run;
}

std::string emulated_text(const std::vector<EmulatedRun>& runs) {
  if (runs.empty()) return {};
  std::vector<std::vector<std::string>> rows;
  rows.emplace_back(1, "");
  rows.back().insert(rows.back().end(), std::begin(headings), std::end(headings));
  for (const EmulatedRun& run : runs) {
    std::vector<std::string> row = cells(run);
    row.insert(row.begin(), run.implementation);
    rows.push_back(std::move(row));
  }
  std::vector<bool> right(rows.front().size(), true);
  right[0] = right[1] = false;
  std::string text = fmt::format(
      "CUDA steps under the emulator, on {} (backward where a step has it, f16\n"
      "where it has tensor cores): counted, not timed. Bytes of global memory that threads ask "
      "for, "
      "and in\nsectors of 32; the papers' formula; passes over the banks of shared memory for each "
      "that its bytes\nneed.\n\n",
      runs.front().verdict.problem);
  text += table_text(rows, right);
  for (const EmulatedRun& run : runs)
    if (!run.verdict.passed()) text += harness::to_text(run.verdict) + "\n";
  return text;
}

std::string emulated_html(const std::vector<EmulatedRun>& runs) {
  if (runs.empty()) return {};
  std::string html =
      "<h2>CUDA under the emulator</h2>\n<p>The same kernel sources that a GPU runs, "
      "on the CPU: counted, never timed. ";
  html += fmt::format(
      "Problem: <code>{}</code>, backward where a step has it, f16 where it has "
      "tensor cores.</p>\n<table><thead><tr><th>step</th>",
      html_escaped(runs.front().verdict.problem));
  for (const char* const heading : headings) html += fmt::format("<th>{}</th>", heading);
  html += "</tr></thead><tbody>\n";
  for (const EmulatedRun& run : runs) {
    html += fmt::format("<tr><td><b>{}</b><br>{}</td>", html_escaped(run.implementation),
                        html_escaped(run.idea));
    for (const std::string& cell : cells(run))
      html += fmt::format("<td>{}</td>", html_escaped(cell));
    html += "</tr>\n";
  }
  html += "</tbody></table>\n";
  html +=
      "<h3>Bytes of global memory by tensor</h3>\n<table><thead><tr><th>step</th><th>tensor</th>"
      "<th>loaded</th><th>stored</th><th>sectors loaded</th><th>sectors stored</th>"
      "<th>atomics</th></tr></thead><tbody>\n";
  for (const EmulatedRun& run : runs)
    for (const auto& [name, traffic] : run.report.counts.traffic)
      html += fmt::format(
          "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></"
          "tr>\n",
          html_escaped(run.implementation), html_escaped(name),
          bytes_text(static_cast<double>(traffic.bytes_loaded)),
          bytes_text(static_cast<double>(traffic.bytes_stored)), traffic.sectors_loaded,
          traffic.sectors_stored, traffic.atomics);
  html += "</tbody></table>\n";
  for (const EmulatedRun& run : runs) html += timeline(run);
  return html;
}

}  // namespace tilewise::tools
