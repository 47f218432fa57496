#include "tools/emulated_kernels.hpp"

#include "cuda/emulator/named_memory.hpp"
#include "cuda/kernels/attention.hpp"
#include "oracle/harness/buffers.hpp"
#include "stages/cuda_adapter.hpp"

#include <string_view>
#include <utility>

namespace tilewise::tools {
namespace {

using harness::Support;

class EmulatedKernels final : public harness::Implementation, public stages::Emulated {
 public:
  explicit EmulatedKernels(const emulator::Options& options) : options_(options) {}

  std::string_view name() const override { return "emulated.sm80"; }
  std::string_view idea() const override {
    return "The kernel that is shipped for sm_80 and later: 4d, for any strides and head_dim 256.";
  }
  const emulator::Report& report() const override { return report_; }

  Support supports(const Problem& problem) const override {
    if (problem.pass == Pass::backward) return Support::no("backward: not yet");
    const AttentionTensors shapes = harness::tensor_shapes(problem, writes(problem));
    const Status status = cuda::serves_forward(problem.params(), shapes);
    return status.ok() ? Support::yes() : Support::no(status.reason);
  }

  Status run(const harness::Call& call) const override {
    report_ = {};
    emulator::NamedMemory memory;
    for_each_tensor(call.tensors, [&](std::string_view name, const TensorView& view) {
      if (!view.exists() || view.elements() == 0) return;
      const bool input = name != "o" && name != "lse";
      std::int64_t last = 0;
      for (int n = 0; n < view.ndim; ++n) last += (view.shape[n] - 1) * view.strides[n];
      const std::size_t element = size_of(view.dtype);
      memory.add(name.data(), view.data, (static_cast<std::size_t>(last) + 1) * element, element,
                 input);
    });
    emulator::Options options = options_;
    if (call.threads > 0) options.threads = call.threads;
    emulator::Session session(options);
    const Status status = cuda::emulated::forward(call.params, call.tensors, nullptr);
    report_ = std::move(session.report());
    if (!report_.clean()) return failure(Code::failed, "%s", report_.text().c_str());
    return status;
  }

 private:
  emulator::Options options_;
  mutable emulator::Report report_;
};

}  // namespace

std::unique_ptr<harness::Implementation> emulated_kernels(const emulator::Options& options) {
  return std::make_unique<EmulatedKernels>(options);
}

}  // namespace tilewise::tools
