// The subcommands: what each is told, and the function that does it. main.cpp fills the options
// from the command line; each function returns how the command ends (common.hpp) or throws
// BadInput.
#pragma once

#include "oracle/harness/harness.hpp"

#include <cstdint>
#include <string>
#include <vector>

namespace tilewise::tools {

/// What the commands that judge have in common.
struct JudgeOptions {
  bool every_row = false;
  int repeats = 2;
  int threads = 0;
  std::string data;  ///< directory of the real tensors; empty: the source tree's

  harness::Options harness_options() const {
    harness::Options options;
    options.every_row = every_row;
    options.repeats = repeats;
    options.threads = threads;
    options.data_directory = data;
    return options;
  }
};

struct ListOptions {
  std::vector<std::string> plugins;  ///< shared libraries with kernels (include/tilewise/plugin.h)
  bool json = false;
};

struct GenOptions {
  std::string problem, out, data;
  bool npy = false, json = false;
};

struct RunOptions {
  std::vector<std::string> plugins;
  std::string problem, implementation, in, out, layout, data;
  int threads = 0;
  bool json = false;
};

struct CheckOptions {
  std::vector<std::string> problems;
  std::string implementation;        ///< judge one of ours,
  std::vector<std::string> plugins;  ///< or of a plug-in,
  std::string in, outputs;           ///< or somebody else's files
  std::string layout;
  JudgeOptions judge;
  bool json = false;
};

struct CountOptions {
  std::vector<std::string> problems;
  std::string implementations = "emulated";
  std::string device = "h100", arrival = "seeded";
  std::uint64_t seed = 1;
  std::string data;
  bool json = false;
};

struct BenchOptions {
  std::vector<std::string> problems, plugins;
  std::string implementations, data;
  double seconds = 1;
  int threads = 0;
  bool json = false;
};

struct BugsOptions {
  std::vector<std::string> names;
  std::string dtype = "f32";
  bool list = false, json = false;
  JudgeOptions judge;
};

struct TourOptions {
  bool quick = false, json = false;
  std::vector<std::string> plugins;
  std::string only, out = "build/tour", data;
};

struct NewKernelOptions {
  std::string directory, name = "my_kernel";
  bool cuda = false, json = false;
};

int list_command(const ListOptions& options);
int gen_command(const GenOptions& options);
int run_command(const RunOptions& options);
int check_command(const CheckOptions& options);
int bench_command(const BenchOptions& options);
/// Where this build has the emulator.
int count_command(const CountOptions& options);
int bugs_command(const BugsOptions& options);
int tour_command(const TourOptions& options);
int new_kernel_command(const NewKernelOptions& options);

}  // namespace tilewise::tools
