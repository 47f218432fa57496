// What the emulator does for a kernel's threads: the bodies of the wrappers in cuda/device, where
// there is no CUDA compiler, and of the names in cuda.hpp. Called by a running thread only.
#pragma once

#include "site.hpp"

#include <cstddef>
#include <cstdint>

namespace tilewise::emulator {

struct Coordinates {
  unsigned x, y, z;
};
// By value and not inlined: a kernel that reads them touches no memory.
[[gnu::const]] Coordinates thread_index();
[[gnu::const]] Coordinates block_index();
[[gnu::const]] Coordinates block_size();
[[gnu::const]] Coordinates grid_size();

/// The block's dynamic shared memory, aligned to 1024 bytes; a finding if it has fewer bytes.
void* shared_memory(std::size_t bytes, Site site);

/// barrier.sync (`waits`) and barrier.arrive; 0 threads: all of the block.
void barrier(unsigned id, int threads, bool waits, Site site);
void sync_warp(unsigned mask, Site site);

/// The lanes of the mask bring an operand each; when all have come, `function` runs once, with a
/// pointer for each lane of the mask and null for others. Orders no memory, as on the GPU.
using LanesTogether = void (*)(void* const operands[32], unsigned mask);
void together(const char* name, unsigned mask, void* operand, LanesTogether function, Site site);

/// An access that the compiler's hooks would not see whole: of 8 or 16 bytes at once, or one lane's
/// of an instruction that a warp does together.
void note_read(const void* address, std::size_t bytes, Site site);
void note_write(const void* address, std::size_t bytes, Site site);

/// Called before an atomic operation: checks the access, and takes what others let go of there.
void note_atomic(const void* address, std::size_t bytes, Site site);
/// Called after it: whether there is another value now.
void note_outcome(const void* address, bool changed, Site site);
void fence(Site site);

/// `function` of what is there and `value` takes its place; answers what was there.
float change(float* at, float value, float (*function)(float, float), Site site);
double change(double* at, double value, double (*function)(double, double), Site site);
int change(int* at, int value, int (*function)(int, int), Site site);
unsigned change(unsigned* at, unsigned value, unsigned (*function)(unsigned, unsigned), Site site);
int compare_and_swap(int* at, int expected, int value, Site site);
unsigned compare_and_swap(unsigned* at, unsigned expected, unsigned value, Site site);

void copy_async(void* to, const void* from, int total, int bytes, Site site);
void commit_async_copies();
void wait_for_async_copies(int groups_that_may_stay);

void count_mma(std::int64_t flops);
void count_special_function();

/// Of the warp's trace (report.hpp), by its first lane: what began last under this name ends; what
/// began in between may go on.
void trace_begin(const char* name, std::int64_t tile);
void trace_end(const char* name, std::int64_t tile);

/// Something that an instruction does not have: the block ends here.
[[noreturn]] void refuse(const char* text, Site site);

}  // namespace tilewise::emulator
