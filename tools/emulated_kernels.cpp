#include "tools/emulated_kernels.hpp"

#include "cuda/emulator/named_memory.hpp"
#include "cuda/kernels/attention.hpp"
#include "stages/cuda_adapter.hpp"
#include "tools/device_calls.hpp"

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tilewise::tools {
namespace {

using harness::Support;

/// Memory from the first to the last byte of a tensor; of several tensors where they overlap.
struct Range {
  std::string name;
  std::uintptr_t begin, end;
  std::size_t element;
  bool written;
};

std::vector<Range> ranges_of(const harness::Call& call) {
  std::vector<Range> ranges;
  for_each_tensor(call.tensors, [&](std::string_view name, const TensorView& view) {
    if (!view.exists() || view.elements() == 0) return;
    std::int64_t first = 0, last = 0;
    for (int n = 0; n < view.ndim; ++n) {
      const std::int64_t reach = (view.shape[n] - 1) * view.strides[n];
      (reach < 0 ? first : last) += reach;
    }
    const bool output = name == "o" || name == "lse" || (name[0] == 'd' && name != "dout");
    ranges.push_back({std::string(name), reinterpret_cast<std::uintptr_t>(view.at(first)),
                      reinterpret_cast<std::uintptr_t>(view.at(last + 1)), size_of(view.dtype),
                      !output});
  });
  std::sort(ranges.begin(), ranges.end(),
            [](const Range& a, const Range& b) { return a.begin < b.begin; });
  std::vector<Range> merged;
  for (const Range& range : ranges) {
    if (merged.empty() || merged.back().end <= range.begin) {
      merged.push_back(range);
      continue;
    }
    Range& before = merged.back();
    before.name += " and " + range.name;
    before.end = std::max(before.end, range.end);
    before.element = std::min(before.element, range.element);
    before.written = before.written || range.written;
  }
  return merged;
}

class EmulatedKernels final : public harness::Implementation, public stages::Emulated {
 public:
  explicit EmulatedKernels(const emulator::Options& options)
      : options_(options),
        limits_{options.device.compute_capability, options.device.multiprocessors,
                options.device.shared_bytes_a_block} {}

  std::string_view name() const override { return "emulated.sm80"; }
  std::string_view idea() const override {
    return "The kernels that are shipped for sm_80 and later, where chapter 4 ends.";
  }
  const emulator::Report& report() const override { return report_; }

  Support supports(const Problem& problem) const override {
    return kernels_support(problem, writes(problem), limits_);
  }
  std::size_t workspace_bytes(const Problem& problem) const override {
    return kernels_workspace(problem, writes(problem), limits_);
  }

  Status run(const harness::Call& call) const override {
    report_ = {};
    emulator::NamedMemory memory;
    const std::vector<Range> ranges = ranges_of(call);
    for (const Range& range : ranges)
      memory.add(range.name.c_str(), reinterpret_cast<const void*>(range.begin),
                 range.end - range.begin, range.element, range.written);
    memory.add("workspace", call.workspace, call.workspace_bytes, 4, false);
    emulator::Options options = options_;
    if (call.threads > 0) options.threads = call.threads;
    emulator::Session session(options);
    Status status;
    for (const DeviceCall& each : device_calls(call.problem, call.tensors))
      if (status.ok()) status = cuda::emulated::compute(each, limits_, call.workspace, nullptr);
    report_ = std::move(session.report());
    if (!report_.clean()) return failure(Code::failed, "%s", report_.text().c_str());
    return status;
  }

 private:
  emulator::Options options_;
  DeviceLimits limits_;
  mutable emulator::Report report_;
};

}  // namespace

std::unique_ptr<harness::Implementation> emulated_kernels(const emulator::Options& options) {
  return std::make_unique<EmulatedKernels>(options);
}

}  // namespace tilewise::tools
