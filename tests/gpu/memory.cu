// How much device memory a step needs beside its tensors, at several lengths, measured: bytes of
// its workspace that it touched, and what else the device has less of while it runs. Prints JSON.
//
//   tilewise_gpu_memory        every CUDA step of this build that this GPU runs, and the shipped
//   kernels
#include "cuda/device/memory.hpp"
#include "stages/cuda_stage.hpp"
#include "stages/gpu/gpu_adapter.hpp"
#include "tests/gpu/shipped.hpp"
#include "tests/gpu/tensors.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

namespace {

using namespace tilewise;
using gpu_tests::require;

std::size_t free_bytes() {
  std::size_t free = 0, total = 0;
  require(device::status_of(cudaMemGetInfo(&free, &total), "cudaMemGetInfo"));
  return free;
}

/// Bytes of the workspace that are no longer the pattern, and of memory that went elsewhere.
struct Measured {
  std::size_t declared = 0, touched = 0, elsewhere = 0;
};

Measured measure(const stages::CudaStep& step, std::int64_t queries, std::int64_t keys) {
  stages::CudaArgs args{};
  args.batch = args.nheads_q = args.nheads_k = 1;
  args.seqlen_q = queries;
  args.seqlen_k = keys;
  args.head_dim = 64;
  args.softmax_scale = 0.125f;
  args.dtype = step.features.f32 ? DType::f32 : DType::f16;
  args.backward = step.features.backward;
  const gpu_tests::Tensors tensors(args);
  Measured measured;
  measured.declared = step.workspace_bytes == nullptr ? 0 : step.workspace_bytes(args);
  constexpr unsigned char pattern = 0xa5;
  std::vector<unsigned char> workspace(measured.declared, pattern);
  device::Memory<unsigned char> there;
  require(there.allocate(measured.declared, "the workspace"));
  // Once to load the module, whose own memory is not the call's.
  for (int call = 0; call < 2; ++call) {
    std::fill(workspace.begin(), workspace.end(), pattern);
    if (measured.declared > 0) require(there.upload(workspace.data()));
    args.workspace = there.data();
    const std::size_t before = free_bytes();
    require(step.run(args));
    measured.elsewhere = before - std::min(before, free_bytes());
    require(device::status_of(cudaDeviceSynchronize(), step.name.data()));
  }
  if (measured.declared > 0) require(there.download(workspace.data()));
  measured.touched = static_cast<std::size_t>(std::count_if(
      workspace.begin(), workspace.end(), [](unsigned char b) { return b != pattern; }));
  return measured;
}

/// N keys, and N queries or one; the slope of the sum of touched and elsewhere.
nlohmann::ordered_json series(const stages::CudaStep& step, bool one_query) {
  nlohmann::ordered_json points = nlohmann::ordered_json::array();
  double n_sum = 0, y_sum = 0, nn = 0, ny = 0, count = 0;
  for (std::int64_t n = 512; n <= 16384; n *= 2) {
    const Measured measured = measure(step, one_query ? 1 : n, n);
    points.push_back({{"n", n},
                      {"workspace_declared", measured.declared},
                      {"workspace_touched", measured.touched},
                      {"elsewhere", measured.elsewhere}});
    const double x = std::log(static_cast<double>(n));
    const double y = std::log(
        static_cast<double>(std::max<std::size_t>(measured.touched + measured.elsewhere, 64)));
    n_sum += x, y_sum += y, nn += x * x, ny += x * y, count += 1;
  }
  const double slope = (count * ny - n_sum * y_sum) / (count * nn - n_sum * n_sum);
  return {{"slope", slope}, {"points", points}};
}

}  // namespace

int main() {
  const harness::Table table = stages::gpu_implementations();
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (std::size_t i = 0; i < table.size(); ++i) {
    const stages::CudaStep& step = stages::gpu_steps()[i];
    const Problem smallest = std::get<Problem>(
        parse_problem(std::string("fwd s1 h1 d64 ") + (step.features.f32 ? "f32" : "f16")));
    nlohmann::ordered_json row = {{"step", std::string(step.name)}};
    if (const harness::Support support = table[i]->supports(smallest); support.ok) {
      row.update(series(step, false));
      row["one_query"] = series(step, true);
    } else {
      row["why_not"] = support.reason;
    }
    all.push_back(row);
  }
  for (const bool backward : {false, true}) {
    const char* const name = backward ? "sm80 backward" : "sm80 forward";
    nlohmann::ordered_json row = {{"step", name}};
    if (gpu_tests::limits_of_gpu().compute_capability >= 80) {
      const stages::CudaStep step = gpu_tests::shipped(name, backward);
      row.update(series(step, false));
      row["one_query"] = series(step, true);
    } else {
      row["why_not"] = "needs compute capability 8.0";
    }
    all.push_back(row);
  }
  std::printf("%s\n", all.dump(1).c_str());
}
