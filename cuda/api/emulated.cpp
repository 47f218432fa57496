#include "cuda/api/backend.hpp"
#include "cuda/emulator/emulator.hpp"
#include "cuda/kernels/attention.hpp"
#include "cuda/kernels/merge.hpp"

#include <new>

namespace tilewise::cuda::emulated {
namespace {

constexpr std::align_val_t alignment{256};

template <int Most>
Status open(int device_id, DeviceLimits& limits) {
  const emulator::Device all[devices] = {emulator::Device::h100(), emulator::Device::a100(),
                                         emulator::Device::rtx3090(), emulator::Device::t4()};
  if (device_id < 0 || device_id >= devices)
    return failure(Code::unsupported, "there is no CUDA device %d; the emulated machine has %d",
                   device_id, devices);
  const emulator::Device& device = all[device_id];
  if (device.compute_capability < least_compute_capability)
    return too_old(device_id, device.name, device.compute_capability);
  limits = {device.compute_capability, kernels_for(device.compute_capability, Most),
            device.multiprocessors, device.shared_bytes_a_block};
  return {};
}

/// A launch has ended when it returns: there is nothing to wait for.
Status validate(int, const void* workspace, void*) {
  if (workspace == nullptr) return {};
  return status_of(static_cast<DeviceError>(static_cast<const WorkspaceHead*>(workspace)->error));
}

void* allocate(int, std::size_t bytes) {
  void* const memory = ::operator new(bytes, alignment, std::nothrow);
  // The caller may fill it in from outside: it counts as written.
  if (memory != nullptr) emulator::register_memory(memory, bytes, "allocated memory", 1, true);
  return memory;
}

void release(int, void* memory) {
  emulator::forget_memory(memory);
  ::operator delete(memory, alignment);
}

template <int Most>
constexpr DeviceBackend backend_up_to{.name = "CUDA",
                                      .open = open<Most>,
                                      .choose = choose,
                                      .workspace = workspace_bytes,
                                      .compute = compute,
                                      .merge = merge,
                                      .validate = validate,
                                      .allocate = allocate,
                                      .release = release};

}  // namespace

const DeviceBackend& backend() {
  return backend_up_to<90>;
}

const DeviceBackend& backend_of_sm80() {
  return backend_up_to<80>;
}

}  // namespace tilewise::cuda::emulated
