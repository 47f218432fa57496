// Seconds of CUDA steps on a GPU, by its own clock. Prints JSON.
//
//   tilewise_gpu_benchmark STEPS PROBLEM...   STEPS: beginnings of their names, 4b,cuda.sm80
//
// Before every call the second-level cache is filled with something else: in a model, other kernels
// ran since the inputs were there last. Between two rows the GPU rests: it throttles.
#include "cuda/device/memory.hpp"
#include "stages/cuda_problem.hpp"
#include "stages/cuda_stage.hpp"
#include "stages/gpu/gpu_adapter.hpp"
#include "tests/gpu/shipped.hpp"
#include "tests/gpu/tensors.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <string>
#include <string_view>
#include <thread>
#include <variant>
#include <vector>

namespace {

using namespace tilewise;
using gpu_tests::require;
using Json = nlohmann::ordered_json;

constexpr std::size_t flushed_bytes = std::size_t{256} << 20;  // an H100's has 50 MiB
constexpr double seconds_a_row = 0.4;
constexpr std::size_t fewest_calls = 5, most_calls = 100;
constexpr auto rest = std::chrono::milliseconds(300);

/// Whether the step's name begins with one of the words between commas.
bool named(std::string_view step, std::string_view words) {
  for (std::size_t begin = 0; begin <= words.size();) {
    const std::size_t end = std::min(words.find(',', begin), words.size());
    const std::string_view word = words.substr(begin, end - begin);
    if (!word.empty() && step.substr(0, word.size()) == word) return true;
    begin = end + 1;
  }
  return false;
}

class Clock {
 public:
  Clock() {
    require(stream_.create());
    require(begin_.create());
    require(end_.create());
    require(other_.allocate(flushed_bytes, "what fills the cache"));
  }

  double seconds(const stages::CudaStep& step, stages::CudaArgs args) {
    args.stream = stream_.handle();
    require(device::status_of(cudaMemsetAsync(other_.data(), 1, flushed_bytes, stream_.handle()),
                              "filling the cache"));
    require(begin_.record(stream_.handle()));
    require(step.run(args));
    require(end_.record(stream_.handle()));
    require(end_.wait());
    float milliseconds = 0;
    require(end_.since(begin_, milliseconds));
    return static_cast<double>(milliseconds) / 1000;
  }

 private:
  device::Stream stream_;
  device::Event begin_, end_;
  device::Memory<unsigned char> other_;
};

Json timed(Clock& clock, const stages::CudaStep& step, const stages::CudaArgs& args, double flops) {
  std::this_thread::sleep_for(rest);
  (void)clock.seconds(step, args);  // loads the module
  std::vector<double> all;
  double spent = 0;
  while (all.size() < fewest_calls || (spent < seconds_a_row && all.size() < most_calls)) {
    all.push_back(clock.seconds(step, args));
    spent += all.back();
  }
  std::sort(all.begin(), all.end());
  const auto quantile = [&](double part) {
    return all[static_cast<std::size_t>(std::lround(part * static_cast<double>(all.size() - 1)))];
  };
  return {{"seconds", quantile(0.5)},
          {"low", quantile(0.25)},
          {"high", quantile(0.75)},
          {"fastest", all.front()},
          {"slowest", all.back()},
          {"calls", all.size()},
          {"gflops", flops / quantile(0.5) / 1e9}};
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 3) {
    std::fprintf(stderr, "expected STEPS PROBLEM...\n");
    return 2;
  }
  const harness::Table table = stages::gpu_implementations();
  Clock clock;
  Json rows = Json::array();
  for (int n = 2; n < count; ++n) {
    const auto parsed = parse_problem(arguments[n]);
    const Problem* const problem = std::get_if<Problem>(&parsed);
    if (problem == nullptr) {
      std::fprintf(stderr, "no problem: %s\n", arguments[n]);
      return 2;
    }
    stages::CudaArgs args = stages::sizes_of(*problem);
    const gpu_tests::Tensors tensors(args);
    if (named("cuda.sm80", arguments[1])) {
      Json row = {{"implementation", "cuda.sm80"}, {"problem", to_string(*problem)}};
      const stages::CudaStep step = gpu_tests::shipped("cuda.sm80", args.backward);
      device::Memory<unsigned char> workspace;
      require(workspace.allocate(step.workspace_bytes(args), "the workspace"));
      args.workspace = workspace.data();
      if (const Status status = step.run(args); status.ok())
        row.update(timed(clock, step, args, problem->flops()));
      else
        row["why_not"] = status.reason;
      rows.push_back(row);
    }
    for (std::size_t i = 0; i < table.size(); ++i) {
      const stages::CudaStep& step = stages::gpu_steps()[i];
      if (!named(step.name, arguments[1])) continue;
      Json row = {{"implementation", std::string(table[i]->name())},
                  {"problem", to_string(*problem)}};
      if (const harness::Support support = table[i]->supports(*problem); support.ok) {
        device::Memory<unsigned char> workspace;
        require(workspace.allocate(table[i]->workspace_bytes(*problem), "the workspace"));
        args.workspace = workspace.data();
        row.update(timed(clock, step, args, problem->flops()));
      } else {
        row["why_not"] = support.reason;
      }
      rows.push_back(row);
    }
  }
  std::printf("%s\n", rows.dump(1).c_str());
}
