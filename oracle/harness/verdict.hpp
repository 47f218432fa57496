// Verdict: how an implementation did on a problem. One record; text, JSON, HTML and a gtest message
// are views of it.
#pragma once

#include "../problem.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace tilewise::harness {

enum class State : std::uint8_t {
  pass,
  fail,         ///< it ran, and something it did is wrong
  unsupported,  ///< it said, with a reason, that it does not serve this problem
  error,        ///< it could not be judged: a bad call, a missing file, no memory
};

/// Where one element stands: `row` is the query (o, lse, dq) or the key (dk, dv), in its sequence.
struct Place {
  std::int64_t batch = 0, head = 0, row = 0, column = 0;
};

/// How one output compares with the float64 oracle.
struct OutputReport {
  std::string name;  ///< "o", "lse", "dq", "dk", "dv"
  bool present = false;
  bool passed = true;
  std::string why;  ///< what failed, or why it is absent

  std::int64_t rows_judged = 0, rows_total = 0;
  double max_error = 0;     ///< largest |got - expected|
  double max_relative = 0;  ///< largest row error over the row's largest |expected|, 2-norms
  double max_ratio = 0;     ///< largest |got - expected| / bound: accepted iff <= 1
  double scale_ratio = 0;   ///< largest row scale deviation / its bound: accepted iff <= 1

  Place worst;  ///< the element with the largest ratio
  double got = 0, expected = 0, bound = 0;

  /// flash-attn's own rule: error <= 2 x the error of the same arithmetic done naively + 2 atol
  /// (see docs/error-bounds.md for how lucky naive arithmetic is not let decide). Allowed 0: not
  /// applied.
  double naive_error = 0, naive_allowed = 0;
  bool naive_rule_passed = true;

  /// A map of where it failed: rows of text, '.' fine, 'x' wrong, 'N' not a number, ' ' not judged.
  std::vector<std::string> map;
  std::string map_caption;
};

/// Extra memory of one call beside its inputs and outputs, measured.
struct MemoryReport {
  bool measured = false;
  std::string why;  ///< why it could not be measured
  std::int64_t heap_peak = 0;
  std::int64_t mapped_peak = 0;
  std::int64_t workspace_declared = 0;
  std::int64_t workspace_touched = 0;
  std::int64_t stack = 0;

  std::int64_t total() const { return heap_peak + mapped_peak + workspace_touched + stack; }
};

struct TimeReport {
  int repetitions = 0;
  double median = 0, fastest = 0, slowest = 0;  ///< seconds
  double flops = 0;                             ///< useful operations of one call
  double gflops() const { return median > 0 ? flops / median * 1e-9 : 0; }
};

struct Verdict {
  State state = State::error;
  std::string implementation;
  std::string problem;
  std::vector<std::string> reasons;  ///< one line each; empty on a pass
  std::vector<OutputReport> outputs;
  std::vector<std::string> not_checked;  ///< said, so that a pass never claims more than it proved
  std::string coverage;                  ///< "every row" or which rows and columns were judged
  std::string reproduce;                 ///< a command line that runs this again
  MemoryReport memory;
  TimeReport time;
  std::optional<double> bytes_moved;
  int repeats = 0;  ///< how many runs were compared with each other

  bool passed() const { return state == State::pass; }
};

std::string_view name_of(State state);

/// The output that came nearest to its bound, or is not in it; null if there is none.
const OutputReport* worst_output(const Verdict& verdict);

/// For people: a line on a pass, a page on a failure.
std::string to_text(const Verdict& verdict);
/// One JSON object, the same fields.
std::string to_json(const Verdict& verdict);

}  // namespace tilewise::harness
