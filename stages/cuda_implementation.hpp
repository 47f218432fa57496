// What a CUDA step is before the judge, wherever it runs: the emulator's adapter and the GPU's say
// only where that is.
#pragma once

#include "oracle/harness/implementation.hpp"
#include "stages/cuda_stage.hpp"

#include <span>
#include <string>

namespace tilewise::stages {

/// A tensor of a call, and how a kernel is told where it lies.
struct CudaTensor {
  const char* name;
  TensorView view;  ///< of the host's memory; without data where the call has no such tensor
  bool input;
  void (*place)(CudaArgs& args, void* data);

  std::size_t bytes() const {
    return static_cast<std::size_t>(view.elements()) * size_of(view.dtype);
  }
};

class CudaImplementation : public harness::Implementation {
 public:
  /// Called `prefix` and the step's name.
  CudaImplementation(const CudaStep& step, std::string_view prefix)
      : step_(step), name_(std::string(prefix) + std::string(step.name)) {}

  std::string_view name() const final { return name_; }
  std::string_view idea() const final { return step_.idea; }
  harness::Support supports(const Problem& problem) const final;
  std::size_t workspace_bytes(const Problem& problem) const final;
  std::optional<double> bytes_moved(const Problem& problem) const final;
  harness::Outputs repeatable() const final {
    harness::Outputs outputs = harness::Outputs::all();
    outputs.dq = step_.repeatable_dq;
    return outputs;
  }
  Status run(const harness::Call& call) const final;

 protected:
  const CudaStep& step() const { return step_; }

  /// Why the step cannot run here, whatever the problem; empty if it can.
  virtual std::string reason_of_device() const = 0;

  /// Places the tensors and the workspace, which `args` does not have yet, and runs the step.
  virtual Status run_there(const harness::Call& call, CudaArgs args,
                           std::span<const CudaTensor> tensors) const = 0;

 private:
  CudaStep step_;
  std::string name_;
};

}  // namespace tilewise::stages
