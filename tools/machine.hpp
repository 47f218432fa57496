// The machine that the numbers were measured on, described for a report.
#pragma once

#include <string>

namespace tilewise::tools {

struct Machine {
  std::string cpu;
  int cores = 0;  ///< hardware threads that this process may use
  double memory_bytes = 0;
  std::string caches;  ///< "L1d 48 KiB, L2 2 MiB, L3 260 MiB", or empty
  std::string system, compiler;
  std::string build_type;
  std::string fma;              ///< the widest multiply-add
  double peak_gflops = 0;       ///< measured, all cores
  double peak_gflops_one = 0;   ///< measured, one core
  double bandwidth_gbytes = 0;  ///< measured, all cores
  std::string date;
};

/// Looks and measures: about a quarter of a second.
Machine describe_machine();

}  // namespace tilewise::tools
