// What this machine can do at most, measured: float32 multiply-adds a second, and bytes a second.
//
// A time means little without the ceiling beside it: machines are shared and change their clock, so
// the ceiling is measured again next to every timing instead of being read from a data sheet.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace tilewise::tools {

/// The instruction set that an implementation is compiled for, by its name: "avx2" of "cpu.avx2".
/// Empty for the course's steps and for plug-ins, which use what they like.
std::string_view isa_of(std::string_view implementation);

/// "AVX-512", "AVX2 and FMA", ...: the multiply-adds of `isa` (sse2, avx2, avx512, neon). Any other
/// word: the widest that this processor executes.
std::string fma_name(std::string_view isa = {});

/// GFLOP/s of independent float32 multiply-adds of `isa` on registers alone, on `threads` threads
/// (0: all of the machine's) for about `seconds`. A multiply-add is two operations.
double measure_peak_gflops(int threads, double seconds, std::string_view isa = {});

/// Gbyte/s of a[i] = b[i] + x c[i] over arrays of 64 MiB (McCalpin's STREAM triad: three arrays,
/// 12 bytes counted an element), the best of a few passes, on all threads.
double measure_bandwidth_gbytes();

/// Gbyte/s of reading `bytes` at `memory` over and over, which is what the level of the caches
/// gives where so many bytes stay. Each of `threads` threads (0: all) reads a part of its own, as
/// wide as the processor loads, for about `seconds` and three times at least.
double measure_read_gbytes(int threads, double seconds, const void* memory, std::size_t bytes);

/// What `threads` means when it is 0.
int thread_count(int threads);

}  // namespace tilewise::tools
