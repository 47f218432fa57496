#include "stages/gpu/gpu_adapter.hpp"

#include "cuda/device/memory.hpp"
#include "stages/cuda_implementation.hpp"
#include "stages/cuda_problem.hpp"
#include "stages/gpu/gpu.hpp"

#include <algorithm>
#include <span>
#include <string>
#include <vector>

namespace tilewise::stages {
namespace {

/// A tensor's bytes on the device, between two guards, for as long as a call takes.
class Travelling {
 public:
  static constexpr std::size_t guard = 256;  // keeps the alignment that cudaMalloc gives

  Status there(const void* host, std::size_t bytes, const char* name) {
    name_ = name;
    if (host == nullptr) return {};
    const auto* const first = static_cast<const unsigned char*>(host);
    std::vector<unsigned char> all(guard, pattern);
    all.insert(all.end(), first, first + bytes);
    all.insert(all.end(), guard, pattern);
    Status status = memory_.allocate(all.size(), name);
    return status.ok() ? memory_.upload(all.data()) : status;
  }

  /// Null: nothing of an input comes back; that it is as it was is looked at.
  Status back(void* host, const void* as_it_was) const {
    if (memory_.data() == nullptr) return {};
    std::vector<unsigned char> all(memory_.size());
    if (Status status = memory_.download(all.data()); !status.ok()) return status;
    const auto begin = all.begin() + guard, end = all.end() - guard;
    const auto untouched = [](unsigned char byte) { return byte == pattern; };
    if (!std::all_of(all.begin(), begin, untouched) || !std::all_of(end, all.end(), untouched))
      return failure(Code::failed, "wrote outside of %s, on the device", name_);
    if (host != nullptr)
      std::copy(begin, end, static_cast<unsigned char*>(host));
    else if (!std::equal(begin, end, static_cast<const unsigned char*>(as_it_was)))
      return failure(Code::failed, "wrote to %s, an input, on the device", name_);
    return {};
  }

  void* data() const { return memory_.data() == nullptr ? nullptr : memory_.data() + guard; }

 private:
  static constexpr unsigned char pattern = 0xa5;
  const char* name_ = "";
  device::Memory<unsigned char> memory_;
};

class GpuStep final : public CudaImplementation {
 public:
  explicit GpuStep(const CudaStep& step) : CudaImplementation(step, "stage.") {}

  bool on_device() const override { return true; }

 protected:
  std::string reason_of_device() const override {
    if (!this_gpu().why_not.empty()) return this_gpu().why_not;
    if (step().left_out != nullptr) return step().left_out;
    return reason_against_device(step().features, this_gpu().compute_capability, this_gpu().name);
  }

  Status run_there(const harness::Call& call, CudaArgs args,
                   std::span<const CudaTensor> tensors) const override {
    std::vector<Travelling> there(tensors.size());
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      const CudaTensor& tensor = tensors[i];
      if (Status status = there[i].there(tensor.view.data, tensor.bytes(), tensor.name);
          !status.ok())
        return status;
      tensor.place(args, there[i].data());
    }
    Travelling workspace;
    if (Status status = workspace.there(call.workspace, call.workspace_bytes, "workspace");
        !status.ok())
      return status;
    args.workspace = workspace.data();
    const Launch launch = [&](cudaStream_t stream) {
      args.stream = stream;
      return step().run(args);
    };
    Status status = call.device_seconds != nullptr ? time_launch(launch, *call.device_seconds)
                                                   : launch_in_turn(calls_++, launch);
    if (!status.ok()) return status;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      void* const host = tensors[i].view.data;
      status = there[i].back(tensors[i].input ? nullptr : host, host);
      if (!status.ok()) return status;
    }
    return workspace.back(call.workspace, nullptr);
  }

 private:
  mutable int calls_ = 0;
};

}  // namespace

harness::Table gpu_implementations() {
  harness::Table table;
  for (const CudaStep& step : gpu_steps()) table.push_back(std::make_unique<GpuStep>(step));
  return table;
}

}  // namespace tilewise::stages
