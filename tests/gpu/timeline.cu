// Who does what when on a GPU: one call of a step whose marks have clocks, as JSON for
// tools/draw_timeline.py.
//
//   tilewise_gpu_timeline STEP PROBLEM FILE [FIRST_BLOCK [BLOCKS]]
//
// STEP is a beginning of its name, 4d. Times are the multiprocessor's clocks from the block's first
// mark on; "nanoseconds" says when that was, after the first of all, as exactly as the GPU's coarse
// common clock does. A call before the one that is written loads the module and fills the caches.
#include "cuda/device/clock_trace.hpp"
#include "cuda/device/memory.hpp"
#include "stages/cuda_problem.hpp"
#include "tests/gpu/tensors.hpp"
#include "tests/gpu/timeline.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace {

using namespace tilewise;
using device::ClockMark;
using gpu_tests::require;

constexpr unsigned most_warps = 16, most_marks = 4096;
constexpr std::size_t longest_name = 64;

__global__ void read_name(const char* name, char* to) {
  for (std::size_t n = 0; n + 1 < longest_name && name[n] != 0; ++n) to[n] = name[n];
}

__global__ void count_clocks(double* clocks_a_nanosecond) {
  const auto nanoseconds = [] {
    std::uint64_t now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)::"memory");
    return now;
  };
  // From one of its steps to another, two milliseconds later.
  const std::uint64_t before = nanoseconds();
  std::uint64_t begin = before, end = before;
  while (begin == before) begin = nanoseconds();
  const long long first = clock64();
  while (end < begin + 2000000) end = nanoseconds();
  *clocks_a_nanosecond = double(clock64() - first) / double(end - begin);
}

/// What lies on the device at these addresses.
class Names {
 public:
  Names() { require(text_.allocate(longest_name, "a name")); }

  const std::string& of(std::uint64_t address) {
    const auto [found, added] = all_.try_emplace(address);
    if (added) {
      std::vector<char> text(longest_name);
      require(text_.upload(text.data()));
      require(device::launch("read_name", read_name, {{1}, {1}},
                             reinterpret_cast<const char*>(address), text_.data()));
      require(text_.download(text.data()));
      found->second = text.data();
    }
    return found->second;
  }

 private:
  device::Memory<char> text_;
  std::map<std::uint64_t, std::string> all_;
};

double clocks_a_nanosecond() {
  device::Memory<double> memory;
  require(memory.allocate(1, "clocks"));
  require(device::launch("count_clocks", count_clocks, {{1}, {1}}, memory.data()));
  double clocks = 0;
  require(memory.download(&clocks));
  return clocks;
}

std::string quoted(std::string_view text) {
  std::string all = "\"";
  for (const char letter : text) {
    if (letter == '"' || letter == '\\') all += '\\';
    all += letter;
  }
  return all + '"';
}

/// Marks of `blocks` blocks, most_warps each, most_marks of a warp, the first of which says where.
void write(std::FILE* file, const std::vector<ClockMark>& marks, unsigned first_block,
           unsigned blocks, double clocks) {
  const auto of_warp = [&](unsigned block, unsigned warp) {
    return marks.data() + std::size_t{block * most_warps + warp} * most_marks;
  };
  // Of each block the warp that began first.
  std::vector<const ClockMark*> place(blocks);
  const ClockMark* earliest = nullptr;
  for (unsigned block = 0; block < blocks; ++block)
    for (unsigned warp = 0; warp < most_warps; ++warp) {
      const ClockMark* const mark = of_warp(block, warp);
      if (mark->name == 0) continue;
      if (place[block] == nullptr || mark->begin < place[block]->begin) place[block] = mark;
      if (earliest == nullptr || mark->name < earliest->name) earliest = mark;
    }
  std::fprintf(file, " \"blocks\": [");
  const char* comma = "";
  for (unsigned block = 0; block < blocks; ++block) {
    if (place[block] == nullptr) continue;
    std::fprintf(file, "%s\n  {\"block\": %u, \"multiprocessor\": %d, \"nanoseconds\": %llu}",
                 comma, first_block + block, place[block]->tile,
                 static_cast<unsigned long long>(place[block]->name - earliest->name));
    comma = ",";
  }
  std::fprintf(file, "\n ],\n \"clocks_a_nanosecond\": %.4f,\n \"events\": [", clocks);
  comma = "";
  Names names;
  for (unsigned block = 0; block < blocks; ++block)
    for (unsigned warp = 0; warp < most_warps; ++warp) {
      const ClockMark* const mark = of_warp(block, warp);
      for (unsigned n = 1; n < most_marks && mark[n].name != 0; ++n) {
        if (mark[n].end == 0) continue;  // never ended
        std::fprintf(
            file,
            "%s\n  {\"block\": %u, \"warp\": %u, \"name\": %s, \"tile\": %d, \"begin\": %llu, "
            "\"end\": %llu}",
            comma, first_block + block, warp, quoted(names.of(mark[n].name)).c_str(), mark[n].tile,
            static_cast<unsigned long long>(mark[n].begin - place[block]->begin),
            static_cast<unsigned long long>(mark[n].end - place[block]->begin));
        comma = ",";
      }
    }
  std::fprintf(file, "\n ]\n}\n");
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 4) {
    std::fprintf(stderr, "expected STEP PROBLEM FILE [FIRST_BLOCK [BLOCKS]]\n");
    return 2;
  }
  const auto parsed = parse_problem(arguments[2]);
  const Problem* const problem = std::get_if<Problem>(&parsed);
  const std::vector<gpu_tests::TracedStep> all = gpu_tests::traced_steps();
  const auto traced = std::find_if(all.begin(), all.end(), [&](const gpu_tests::TracedStep& one) {
    return one.step.name.substr(0, std::string_view(arguments[1]).size()) == arguments[1];
  });
  if (problem == nullptr || traced == all.end()) {
    std::fprintf(stderr, "no %s: %s\n", problem == nullptr ? "problem" : "traced step",
                 arguments[problem == nullptr ? 2 : 1]);
    return 2;
  }
  const unsigned first_block = count > 4 ? static_cast<unsigned>(std::atoi(arguments[4])) : 0;
  const unsigned blocks = count > 5 ? static_cast<unsigned>(std::atoi(arguments[5])) : 1;

  const stages::CudaStep& step = traced->step;
  stages::CudaArgs args = stages::sizes_of(*problem);
  const gpu_tests::Tensors tensors(args);
  device::Memory<unsigned char> workspace;
  require(workspace.allocate(step.workspace_bytes == nullptr ? 0 : step.workspace_bytes(args),
                             "the workspace"));
  args.workspace = workspace.data();
  std::vector<ClockMark> marks(std::size_t{blocks} * most_warps * most_marks);
  device::Memory<ClockMark> memory;
  require(memory.allocate(marks.size(), "marks"));
  for (unsigned launch = 1; launch <= 2; ++launch) {
    require(device::status_of(cudaMemset(memory.data(), 0, memory.bytes()), "marks"));
    require(traced->trace_to({memory.data(), first_block, blocks, most_warps, most_marks, launch}));
    require(step.run(args));
    require(device::status_of(cudaDeviceSynchronize(), step.name.data()));
  }
  require(memory.download(marks.data()));

  std::FILE* const file = std::fopen(arguments[3], "w");
  if (file == nullptr) {
    std::fprintf(stderr, "cannot write %s\n", arguments[3]);
    return 1;
  }
  cudaDeviceProp device{};
  require(device::status_of(cudaGetDeviceProperties(&device, 0), "the device"));
  std::fprintf(file, "{\n \"step\": %s,\n \"problem\": %s,\n \"device\": %s,\n",
               quoted(step.name).c_str(), quoted(to_string(*problem)).c_str(),
               quoted(device.name).c_str());
  write(file, marks, first_block, blocks, clocks_a_nanosecond());
  return std::fclose(file) == 0 ? 0 : 1;
}
