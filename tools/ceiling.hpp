// What this machine can do at most, measured: float32 multiply-adds a second, and bytes a second.
//
// A time means little without the ceiling beside it: machines are shared and change their clock, so
// the ceiling is measured again next to every timing instead of being read from a data sheet.
#pragma once

#include <string>

namespace tilewise::tools {

/// The widest multiply-add that this processor executes: "AVX-512", "AVX2 and FMA", ...
std::string fma_name();

/// GFLOP/s of independent float32 multiply-adds on registers alone, on `threads` threads (0: all of
/// the machine's) for about `seconds`. A multiply-add is two operations.
double measure_peak_gflops(int threads, double seconds);

/// Gbyte/s of a[i] = b[i] + x c[i] over arrays of 64 MiB (McCalpin's STREAM triad: three arrays,
/// 12 bytes counted an element), the best of a few passes, on all threads.
double measure_bandwidth_gbytes();

/// What `threads` means when it is 0.
int thread_count(int threads);

}  // namespace tilewise::tools
