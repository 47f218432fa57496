// The shipped kernels on the machine's GPUs: tilewise_cuda_backend() of tilewise/cuda.h.
#include "cuda/api/backend.hpp"
#include "cuda/device/launch.hpp"
#include "cuda/kernels/attention.hpp"
#include "cuda/kernels/merge.hpp"
#include "include/tilewise/cuda.h"

namespace tilewise::cuda::gpu {
namespace {

using device::status_of;

/// The latest architecture that this build has kernels for.
#if defined(TILEWISE_SM90)
constexpr int latest = 90;
#else
constexpr int latest = 80;
#endif

/// The calling thread's current device, for as long as this lives.
class Current {
 public:
  explicit Current(int device_id) {
    status_ = status_of(cudaGetDevice(&before_), "the current CUDA device");
    if (!status_.ok() || before_ == device_id) return;
    status_ = status_of(cudaSetDevice(device_id), "making the context's CUDA device current");
    changed_ = status_.ok();
  }
  ~Current() {
    if (changed_) (void)cudaSetDevice(before_);
  }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

  const Status& status() const { return status_; }

 private:
  int before_ = 0;
  bool changed_ = false;
  Status status_;
};

/// A single property, without the milliseconds that all of them take.
Status property(int device_id, cudaDeviceAttr which, int& value) {
  return status_of(cudaDeviceGetAttribute(&value, which, device_id), "a GPU's properties");
}

template <int Most>
Status open(int device_id, DeviceLimits& limits) {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess || count == 0) {
    (void)cudaGetLastError();
    if (error == cudaSuccess || error == cudaErrorNoDevice)
      return failure(Code::unsupported, "this machine has no CUDA device");
    return failure(Code::unsupported, "no CUDA device can be used: %s", cudaGetErrorString(error));
  }
  if (device_id >= count)
    return failure(Code::unsupported, "there is no CUDA device %d; this machine has %d", device_id,
                   count);
  int major = 0, minor = 0, multiprocessors = 0, shared = 0;
  Status status = property(device_id, cudaDevAttrComputeCapabilityMajor, major);
  if (status.ok()) status = property(device_id, cudaDevAttrComputeCapabilityMinor, minor);
  if (status.ok()) status = property(device_id, cudaDevAttrMultiProcessorCount, multiprocessors);
  if (status.ok()) status = property(device_id, cudaDevAttrMaxSharedMemoryPerBlockOptin, shared);
  if (!status.ok()) return status;
  if (10 * major + minor < least_compute_capability)
    return too_old(device_id, "a GPU", 10 * major + minor);
  limits = {10 * major + minor, kernels_for(10 * major + minor, Most), multiprocessors,
            static_cast<std::size_t>(shared)};
  return {};
}

Status compute_there(const DeviceCall& call, const DeviceLimits& limits, void* workspace,
                     void* stream) {
  const Current current(call.tensors.q.device.id);
  return current.status().ok() ? compute(call, limits, workspace, stream) : current.status();
}

Status merge_there(const DeviceMerge& what, const DeviceLimits& limits, void* stream) {
  const Current current(what.o.device.id);
  return current.status().ok() ? merge(what, limits, stream) : current.status();
}

Status validate(int device_id, const void* workspace, void* stream) {
  const Current current(device_id);
  if (!current.status().ok()) return current.status();
  const auto on = static_cast<cudaStream_t>(stream);
  Status status = status_of(cudaStreamSynchronize(on), "the stream's work");
  if (!status.ok() || workspace == nullptr) return status;
  WorkspaceHead head{};
  status = status_of(cudaMemcpy(&head, workspace, sizeof head, cudaMemcpyDeviceToHost),
                     "reading the workspace's first word");
  return status.ok() ? tilewise::status_of(static_cast<DeviceError>(head.error)) : status;
}

void* allocate(int device_id, std::size_t bytes) {
  const Current current(device_id);
  void* memory = nullptr;
  if (current.status().ok() && cudaMalloc(&memory, bytes) == cudaSuccess) return memory;
  (void)cudaGetLastError();
  return nullptr;
}

void release(int device_id, void* memory) {
  const Current current(device_id);
  (void)cudaDeviceSynchronize();
  (void)cudaFree(memory);
}

template <int Most>
constexpr DeviceBackend backend_up_to{.name = "CUDA",
                                      .open = open<Most>,
                                      .choose = choose,
                                      .workspace = workspace_bytes,
                                      .compute = compute_there,
                                      .merge = merge_there,
                                      .validate = validate,
                                      .allocate = allocate,
                                      .release = release};

}  // namespace

const DeviceBackend& backend() {
  return backend_up_to<latest>;
}

const DeviceBackend& backend_of_sm80() {
  return backend_up_to<80>;
}

}  // namespace tilewise::cuda::gpu

const tilewise_backend* tilewise_cuda_backend(void) {
  return reinterpret_cast<const tilewise_backend*>(&tilewise::cuda::gpu::backend());
}
