#include "tools/gpu/cuda_kernels.hpp"

#include "cuda/device/launch.hpp"
#include "cuda/kernels/attention.hpp"
#include "stages/gpu/gpu.hpp"
#include "tools/device_calls.hpp"
#include "tools/plugin_device.hpp"

#include <cstdio>
#include <string_view>

namespace tilewise::tools {
namespace {

using harness::Support;

/// CUDA's answer as plugin.h wants it.
tilewise_status answer(cudaError_t error, char* reason, std::size_t bytes) {
  if (error == cudaSuccess) return TILEWISE_OK;
  std::snprintf(reason, bytes, "%s", cudaGetErrorString(error));
  return error == cudaErrorMemoryAllocation ? TILEWISE_NO_MEMORY : TILEWISE_FAILED;
}

/// A plug-in without kernels: the memory functions of the GPU.
tilewise_plugin device_memory() {
  tilewise_plugin plugin{};
  plugin.struct_size = sizeof plugin;
  plugin.version = TILEWISE_PLUGIN_VERSION;
  plugin.allocate = [](std::int32_t, std::size_t bytes, void** memory, char* reason,
                       std::size_t room) {
    return answer(cudaMalloc(memory, bytes), reason, room);
  };
  plugin.release = [](std::int32_t, void* memory, char* reason, std::size_t room) {
    return answer(cudaFree(memory), reason, room);
  };
  plugin.copy_to_device = [](std::int32_t, void* to, const void* from, std::size_t bytes,
                             char* reason, std::size_t room) {
    return answer(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), reason, room);
  };
  plugin.copy_to_host = [](std::int32_t, void* to, const void* from, std::size_t bytes,
                           char* reason, std::size_t room) {
    return answer(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), reason, room);
  };
  plugin.synchronize = [](std::int32_t, void*, char* reason, std::size_t room) {
    return answer(cudaDeviceSynchronize(), reason, room);
  };
  return plugin;
}

class CudaKernels final : public harness::Implementation {
 public:
  std::string_view name() const override { return "cuda.sm80"; }
  std::string_view idea() const override {
    return "The kernels that are shipped for sm_80 and later, where chapter 4 ends.";
  }
  bool on_device() const override { return true; }

  Support supports(const Problem& problem) const override {
    const stages::Gpu& gpu = stages::this_gpu();
    if (!gpu.why_not.empty()) return Support::no(gpu.why_not);
    if (gpu.compute_capability < 80) return Support::no("not for " + gpu.name);
    return kernels_support(problem, writes(problem), limits());
  }
  std::size_t workspace_bytes(const Problem& problem) const override {
    return kernels_workspace(problem, writes(problem), limits());
  }

  Status run(const harness::Call& call) const override {
    static const tilewise_plugin memory = device_memory();
    DeviceCopy copy(memory, {DeviceType::cuda, 0});
    if (Status status = copy.upload(call); !status.ok()) return status;
    const stages::Launch launch = [&](cudaStream_t stream) {
      Status computed;
      for (const DeviceCall& each : device_calls(call.problem, copy.tensors()))
        if (computed.ok()) computed = cuda::gpu::compute(each, limits(), copy.workspace(), stream);
      return computed;
    };
    const Status status = call.device_seconds != nullptr
                              ? stages::time_launch(launch, *call.device_seconds)
                              : stages::launch_in_turn(calls_++, launch);
    return status.ok() ? copy.download() : status;
  }

 private:
  static DeviceLimits limits() {
    const stages::Gpu& gpu = stages::this_gpu();
    return {gpu.compute_capability, gpu.multiprocessors, gpu.shared_bytes_a_block};
  }

  mutable int calls_ = 0;
};

}  // namespace

std::unique_ptr<harness::Implementation> cuda_kernels() {
  return std::make_unique<CudaKernels>();
}

}  // namespace tilewise::tools
