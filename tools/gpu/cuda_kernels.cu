#include "tools/gpu/cuda_kernels.hpp"

#include "cuda/api/backend.hpp"
#include "include/tilewise/cuda.h"
#include "stages/gpu/gpu.hpp"
#include "tools/capi_implementation.hpp"
#include "tools/plugin_device.hpp"

#include <cstdio>

namespace tilewise::tools {
namespace {

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

class CudaKernels final : public LibraryImplementation {
 public:
  explicit CudaKernels(const Row& row) : LibraryImplementation(row) {}

  bool on_device() const override { return true; }

  Status run(const harness::Call& call) const override {
    static const tilewise_plugin memory = device_memory();
    DeviceCopy copy(memory, {DeviceType::cuda, 0});
    if (Status status = copy.upload(call); !status.ok()) return status;
    const stages::Launch launch = [&](cudaStream_t stream) {
      return compute(call, copy.tensors(), copy.workspace(), stream);
    };
    Status status = call.device_seconds != nullptr
                        ? stages::time_launch(launch, *call.device_seconds)
                        : stages::launch_in_turn(calls_++, launch);
    if (status.ok()) status = validate(call, copy.workspace(), nullptr);
    return status.ok() ? copy.download() : status;
  }

 private:
  mutable int calls_ = 0;
};

}  // namespace

std::unique_ptr<harness::Implementation> cuda_kernels() {
  LibraryImplementation::Row row = cuda_row("cuda.sm80");
  row.backend = reinterpret_cast<const tilewise_backend*>(&cuda::gpu::backend_of_sm80());
  return std::make_unique<CudaKernels>(row);
}

std::unique_ptr<harness::Implementation> cuda_kernels_sm90() {
  LibraryImplementation::Row row = cuda_row_sm90("cuda.sm90");
  row.backend = tilewise_cuda_backend();
  return std::make_unique<CudaKernels>(row);
}

}  // namespace tilewise::tools
