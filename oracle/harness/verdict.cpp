// A verdict as text for people and as JSON for programs.
#include "oracle/harness/verdict.hpp"

#include <algorithm>
#include <cmath>
#include <string_view>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace tilewise::harness {

std::string_view name_of(State state) {
  switch (state) {
    case State::pass: return "pass";
    case State::fail: return "fail";
    case State::unsupported: return "unsupported";
    case State::error: return "error";
  }
  return "unknown";
}

namespace {

// ---- text ------------------------------------------------------------------------------------

constexpr std::size_t page_columns = 100;
constexpr std::size_t label_columns = 16;

std::string joined(const std::vector<std::string>& parts, std::string_view between) {
  return fmt::format("{}", fmt::join(parts, between));
}

/// `text` broken at spaces into lines that end before the page does, all but the first indented by
/// `indent`; `used` columns of the first line are taken. A word that is too long stays whole.
std::string wrapped(std::string_view text, std::size_t indent, std::size_t used) {
  std::string result;
  std::size_t column = used;
  bool line_start = true;
  while (!text.empty()) {
    const std::size_t length = std::min(text.find(' '), text.size());
    const std::string_view word = text.substr(0, length);
    text.remove_prefix(std::min(length + 1, text.size()));
    if (!line_start && column + 1 + length > page_columns) {
      result += '\n' + std::string(indent, ' ');
      column = indent;
      line_start = true;
    }
    if (!line_start) {
      result += ' ';
      ++column;
    }
    result += word;
    column += length;
    line_start = false;
  }
  return result;
}

/// "  label        text", the text wrapped below itself.
std::string entry(std::string_view label, std::string_view text) {
  return fmt::format("  {:<{}}{}\n", label, label_columns - 2,
                     wrapped(text, label_columns, label_columns));
}

/// The same in one line however long it is: what somebody will copy.
std::string verbatim(std::string_view label, std::string_view text) {
  return fmt::format("  {:<{}}{}\n", label, label_columns - 2, text);
}

std::string bytes_text(std::int64_t bytes) {
  const auto count = static_cast<double>(bytes);
  if (bytes < 1024) return fmt::format("{} B", bytes);
  if (bytes < 1024 * 1024) return fmt::format("{:.1f} KiB", count / 1024);
  if (bytes < 1024 * 1024 * 1024) return fmt::format("{:.1f} MiB", count / (1024 * 1024));
  return fmt::format("{:.2f} GiB", count / (1024.0 * 1024 * 1024));
}

std::string seconds_text(double seconds) {
  if (seconds < 1e-3) return fmt::format("{:.1f} us", seconds * 1e6);
  if (seconds < 1) return fmt::format("{:.2f} ms", seconds * 1e3);
  return fmt::format("{:.2f} s", seconds);
}

std::string time_text(const TimeReport& time) {
  std::string text = seconds_text(time.median);
  if (time.flops > 0 && time.median > 0) text += fmt::format(" ({:.3g} GFLOP/s)", time.gflops());
  return text;
}

std::string memory_text(const MemoryReport& memory) {
  if (!memory.measured) return "not measured: " + memory.why;
  return fmt::format("{}: heap {}, mapped {}, stack {}, workspace {} touched of {}",
                     bytes_text(memory.total()), bytes_text(memory.heap_peak),
                     bytes_text(memory.mapped_peak), bytes_text(memory.stack),
                     bytes_text(memory.workspace_touched), bytes_text(memory.workspace_declared));
}

std::string repeats_text(int runs) {
  return fmt::format("{} run{} compared", runs, runs == 1 ? "" : "s");
}

/// The error as a part of what flash-attn's rule allows.
std::string naive_text(const OutputReport& output) {
  return fmt::format("{:.2g} of 2 x naive rule", output.max_error / output.naive_allowed);
}

/// "o 0.31 of bound (max error 2.4e-07, 0.6 of 2 x naive rule), lse 0.12": the first in full.
std::string passed_outputs(const std::vector<OutputReport>& outputs) {
  std::vector<std::string> parts;
  for (const OutputReport& output : outputs) {
    if (!output.present || !output.passed) continue;
    std::string text = fmt::format("{} {:.2g}", output.name, output.max_ratio);
    if (parts.empty()) {
      text += fmt::format(" of bound (max error {:.2g}", output.max_error);
      if (output.naive_allowed > 0) text += ", " + naive_text(output);
      text += ")";
    }
    parts.push_back(std::move(text));
  }
  return joined(parts, ", ");
}

std::string pass_text(const Verdict& verdict) {
  std::vector<std::string> parts;
  const auto add = [&](std::string part) {
    if (!part.empty()) parts.push_back(std::move(part));
  };
  add(passed_outputs(verdict.outputs));
  add(verdict.coverage);
  if (verdict.repeats > 0) add(repeats_text(verdict.repeats));
  if (verdict.memory.measured) add("memory " + bytes_text(verdict.memory.total()));
  if (verdict.time.repetitions > 0) add(time_text(verdict.time));
  std::string text = fmt::format("pass  {}  {}", verdict.implementation, verdict.problem);
  if (!parts.empty()) text += "   " + joined(parts, ", ");
  if (!verdict.not_checked.empty()) {
    constexpr std::string_view label = "      not checked: ";
    text += fmt::format("\n{}{}", label,
                        wrapped(joined(verdict.not_checked, "; "), label.size(), label.size()));
  }
  return text;
}

std::string worst_text(const OutputReport& output) {
  const Place& at = output.worst;
  std::string place = fmt::format("batch {}, head {}, row {}", at.batch, at.head, at.row);
  if (output.name != "lse") place += fmt::format(", column {}", at.column);
  return place;
}

/// One failing output: where and what, both rules, and the map of where else.
std::string failed_output(const OutputReport& output) {
  std::string text = entry(output.name, output.why.empty() ? "wrong" : output.why);
  if (output.present && output.rows_judged > 0) {
    text += entry("  worst at", worst_text(output));
    text += entry("  got", fmt::format("{:<24.9g}  expected  {:.9g}", output.got, output.expected));
    text += entry("  error", fmt::format("{:<24.3g}  bound     {:.3g}   error/bound  {:.3g}",
                                         std::abs(output.got - output.expected), output.bound,
                                         output.max_ratio));
    if (output.scale_ratio > 0)
      text += entry("  row scale", fmt::format("off by {:.3g} of its bound", output.scale_ratio));
    if (output.naive_allowed > 0)
      text += entry("  naive rule",
                    fmt::format("{}: max error {:.3g}, allowed {:.3g}, naive's own error {:.3g}",
                                output.naive_rule_passed ? "kept" : "broken", output.max_error,
                                output.naive_allowed, output.naive_error));
  }
  if (!output.map.empty()) {
    text += entry("  map", output.map_caption);
    for (const std::string& row : output.map)
      text += fmt::format("{}|{}|\n", std::string(label_columns, ' '), row);
  }
  return text;
}

std::string fail_text(const Verdict& verdict) {
  std::string text = fmt::format("FAIL  {}\n", verdict.implementation);
  text += verbatim("problem", verdict.problem);
  for (std::size_t i = 0; i < verdict.reasons.size(); ++i)
    text += entry(i == 0 ? "because" : "", verdict.reasons[i]);
  text += '\n';
  bool any_failed = false;
  for (const OutputReport& output : verdict.outputs) {
    if (output.passed) continue;
    text += failed_output(output) + '\n';
    any_failed = true;
  }
  const std::string passed = passed_outputs(verdict.outputs);
  if (!passed.empty()) text += entry(any_failed ? "the others" : "numbers", passed);
  if (!verdict.coverage.empty()) text += entry("judged", verdict.coverage);
  if (verdict.repeats > 0) text += entry("repeats", repeats_text(verdict.repeats));
  if (verdict.memory.measured) text += entry("memory", memory_text(verdict.memory));
  if (verdict.time.repetitions > 0) text += entry("time", time_text(verdict.time));
  if (!verdict.not_checked.empty()) text += entry("not checked", joined(verdict.not_checked, "; "));
  if (!verdict.reproduce.empty()) text += verbatim("reproduce", verdict.reproduce);
  text.pop_back();
  return text;
}

// ---- JSON ------------------------------------------------------------------------------------

using Json = nlohmann::ordered_json;

/// JSON has no NaN and no infinities: they are written as strings.
Json number(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  return value;
}

Json to_json_value(const Place& place) {
  return {
      {"batch", place.batch}, {"head", place.head}, {"row", place.row}, {"column", place.column}};
}

Json to_json_value(const OutputReport& output) {
  return {{"name", output.name},
          {"present", output.present},
          {"passed", output.passed},
          {"why", output.why},
          {"rows_judged", output.rows_judged},
          {"rows_total", output.rows_total},
          {"max_error", number(output.max_error)},
          {"max_relative", number(output.max_relative)},
          {"max_ratio", number(output.max_ratio)},
          {"scale_ratio", number(output.scale_ratio)},
          {"worst", to_json_value(output.worst)},
          {"got", number(output.got)},
          {"expected", number(output.expected)},
          {"bound", number(output.bound)},
          {"naive_error", number(output.naive_error)},
          {"naive_allowed", number(output.naive_allowed)},
          {"naive_rule_passed", output.naive_rule_passed},
          {"map", output.map},
          {"map_caption", output.map_caption}};
}

Json to_json_value(const MemoryReport& memory) {
  return {{"measured", memory.measured},
          {"why", memory.why},
          {"heap_peak", memory.heap_peak},
          {"mapped_peak", memory.mapped_peak},
          {"workspace_declared", memory.workspace_declared},
          {"workspace_touched", memory.workspace_touched},
          {"stack", memory.stack},
          {"total", memory.total()}};
}

Json to_json_value(const TimeReport& time) {
  return {{"repetitions", time.repetitions}, {"median", number(time.median)},
          {"fastest", number(time.fastest)}, {"slowest", number(time.slowest)},
          {"flops", number(time.flops)},     {"gflops", number(time.gflops())}};
}

}  // namespace

const OutputReport* worst_output(const Verdict& verdict) {
  const OutputReport* worst = nullptr;
  for (const OutputReport& output : verdict.outputs)
    if (output.present && (worst == nullptr || !(output.max_ratio <= worst->max_ratio)))
      worst = &output;
  return worst;
}

std::string to_text(const Verdict& verdict) {
  switch (verdict.state) {
    case State::pass: return pass_text(verdict);
    case State::fail: return fail_text(verdict);
    case State::unsupported:
    case State::error: break;
  }
  return fmt::format("{}  {}  {}: {}", name_of(verdict.state), verdict.implementation,
                     verdict.problem, joined(verdict.reasons, "; "));
}

std::string to_json(const Verdict& verdict) {
  Json outputs = Json::array();
  for (const OutputReport& output : verdict.outputs) outputs.push_back(to_json_value(output));
  const Json json = {{"state", std::string(name_of(verdict.state))},
                     {"implementation", verdict.implementation},
                     {"problem", verdict.problem},
                     {"reasons", verdict.reasons},
                     {"outputs", std::move(outputs)},
                     {"not_checked", verdict.not_checked},
                     {"coverage", verdict.coverage},
                     {"reproduce", verdict.reproduce},
                     {"memory", to_json_value(verdict.memory)},
                     {"time", to_json_value(verdict.time)},
                     {"bytes_moved", verdict.bytes_moved ? number(*verdict.bytes_moved) : Json()},
                     {"repeats", verdict.repeats}};
  // Reasons may quote what a kernel or a file said: bytes that are no UTF-8 must not throw here.
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace tilewise::harness
