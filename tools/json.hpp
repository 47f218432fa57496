// The JSON view of what the subcommands print: one function a subcommand, all in one translation
// unit, because nlohmann's header is slow to compile.
#pragma once

#include "oracle/formats/formats.hpp"
#include "oracle/harness/verdict.hpp"
#include "oracle/problem.hpp"

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tilewise::tools {

struct Tour;

struct Listed {
  struct Feature {
    std::string name;
    bool supported = false;
    std::string why;
  };
  std::string name, idea;
  std::vector<Feature> features;
  bool writes_lse = false;
};
std::string list_json(const std::vector<Listed>& listed);

/// What gen and run wrote; `implementation` is empty for gen.
std::string written_json(const Problem& problem, const std::string& directory,
                         const formats::Arrays& arrays, std::string_view implementation);

/// The files of a new project, by path.
std::string new_kernel_json(std::string_view name, const std::vector<std::string>& files);

std::string check_json(const std::vector<harness::Verdict>& verdicts);

/// How one implementation did on one problem of `bench`.
struct BenchRow {
  struct Ratio {
    double median = 0, low = 0, high = 0;  ///< low and high: the middle half of the pairs
  };
  std::string problem, implementation;
  std::string why_not;  ///< not empty: it does not serve the problem
  harness::TimeReport time;
  double fraction_of_peak = 0, peak_gflops = 0;  ///< medians, each call beside its own peak
  std::string fma;                               ///< whose multiply-adds the peak is
  std::optional<Ratio> ratio;  ///< of the first implementation's time to this one's
};
std::string bench_json(const std::vector<BenchRow>& rows);

struct BugRow {
  std::string name, sentence, expected;
  std::vector<std::string> problems;
  bool ran = false, rejected = false;
  std::string problem, reason;  ///< where it was rejected, and why
};
std::string bugs_json(const std::vector<BugRow>& rows);

std::string tour_json(const Tour& tour);

}  // namespace tilewise::tools
