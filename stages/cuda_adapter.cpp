#include "stages/cuda_adapter.hpp"

#include "cuda/emulator/named_memory.hpp"
#include "stages/cuda_problem.hpp"

#include <string>
#include <utility>

namespace tilewise::stages {
namespace {

class EmulatedStep final : public EmulatedImplementation {
 public:
  EmulatedStep(const CudaStep& step, const emulator::Options& options)
      : EmulatedImplementation(step, "emulated."), options_(options) {}

  const emulator::Report& report() const override { return report_; }

 protected:
  std::string reason_of_device() const override {
    return reason_against_device(step().features, options_.device.compute_capability,
                                 options_.device.name);
  }

  Status run_there(const harness::Call& call, CudaArgs args,
                   std::span<const CudaTensor> tensors) const override {
    report_ = {};
    emulator::NamedMemory memory;
    for (const CudaTensor& tensor : tensors) {
      memory.add(tensor.name, tensor.view.data, tensor.bytes(), size_of(tensor.view.dtype),
                 tensor.input);
      tensor.place(args, tensor.view.data);
    }
    memory.add("workspace", call.workspace, workspace_bytes(call.problem), sizeof(float), false);
    args.workspace = call.workspace;

    emulator::Options options = options_;
    if (call.threads > 0) options.threads = call.threads;
    emulator::Session session(options);
    const Status status = step().run(args);
    report_ = std::move(session.report());
    if (!report_.clean()) return failure(Code::failed, "%s", report_.text().c_str());
    return status;
  }

 private:
  emulator::Options options_;
  mutable emulator::Report report_;
};

}  // namespace

std::unique_ptr<EmulatedImplementation> emulated_implementation_of(
    const CudaStep& step, const emulator::Options& options) {
  return std::make_unique<EmulatedStep>(step, options);
}

harness::Table emulated_implementations(const emulator::Options& options) {
  harness::Table table;
  for (const CudaStep& step : emulated_steps())
    table.push_back(emulated_implementation_of(step, options));
  return table;
}

}  // namespace tilewise::stages
