#include "tools/emulated_kernels.hpp"

#include "cuda/api/backend.hpp"
#include "cuda/emulator/named_memory.hpp"
#include "stages/cuda_adapter.hpp"
#include "tools/capi_implementation.hpp"

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tilewise::tools {
namespace {

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
    // Of a block of q8_0, its 34 bytes are told apart in twos.
    const std::size_t element = view.dtype == DType::q8_0 ? 2 : size_of(view.dtype);
    const bool output = name == "o" || name == "lse" || (name[0] == 'd' && name != "dout");
    ranges.push_back({std::string(name), reinterpret_cast<std::uintptr_t>(view.at(first)),
                      reinterpret_cast<std::uintptr_t>(view.at(last + 1)), element, !output});
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

/// The number that such a device has in the emulated machine; -1: it has none.
int number_of(const emulator::Device& device) {
  const DeviceBackend& machine = cuda::emulated::backend();
  DeviceLimits limits;
  for (int id = 0; id < cuda::emulated::devices; ++id)
    if (machine.open(id, limits).ok() && limits.compute_capability == device.compute_capability &&
        limits.multiprocessors == device.multiprocessors &&
        limits.shared_bytes_a_block == device.shared_bytes_a_block)
      return id;
  return -1;
}

LibraryImplementation::Row row_of(Kernels kernels, const emulator::Device& device) {
  const bool hopper = kernels == Kernels::sm90;
  LibraryImplementation::Row row =
      hopper ? cuda_row_sm90("emulated.sm90") : cuda_row("emulated.sm80");
  row.device_id = number_of(device);
  row.backend = reinterpret_cast<const tilewise_backend*>(
      hopper ? &cuda::emulated::backend() : &cuda::emulated::backend_of_sm80());
  return row;
}

class EmulatedKernels final : public LibraryImplementation, public stages::Emulated {
 public:
  EmulatedKernels(Kernels kernels, const emulator::Options& options)
      : LibraryImplementation(row_of(kernels, options.device)), options_(options) {}

  const emulator::Report& report() const override { return report_; }

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
    Status status = compute(call, call.tensors, call.workspace, nullptr);
    report_ = std::move(session.report());
    if (!report_.clean()) return failure(Code::failed, "%s", report_.text().c_str());
    return status.ok() ? validate(call, call.workspace, nullptr) : status;
  }

 private:
  emulator::Options options_;
  mutable emulator::Report report_;
};

}  // namespace

std::unique_ptr<harness::Implementation> emulated_kernels(const emulator::Options& options) {
  return std::make_unique<EmulatedKernels>(Kernels::sm80, options);
}

std::unique_ptr<harness::Implementation> emulated_kernels(Kernels kernels,
                                                          const emulator::Options& options) {
  return std::make_unique<EmulatedKernels>(kernels, options);
}

}  // namespace tilewise::tools
