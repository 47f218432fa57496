// The shipped kernels as what the C interface is handed (core/device_backend.hpp): of a GPU, and of
// an emulated machine.
#pragma once

#include "core/device_backend.hpp"

namespace tilewise::cuda {

/// Which kernels a device of this compute capability runs, of those for architectures up to `most`:
/// Hopper's instructions are of 9.0 and of nothing later.
constexpr int kernels_for(int compute_capability, int most) {
  return compute_capability == 90 && most >= 90 ? 90 : 80;
}

/// What a device must be able to: cp.async, and shared memory for the tiles.
constexpr int least_compute_capability = 80;

/// Why a device of less cannot run them.
inline Status too_old(int device_id, const char* name, int compute_capability) {
  return failure(Code::unsupported,
                 "CUDA device %d, %.80s, has compute capability %d.%d; these kernels want %d.%d",
                 device_id, name, compute_capability / 10, compute_capability % 10,
                 least_compute_capability / 10, least_compute_capability % 10);
}

namespace emulated {
/// A machine with four devices, by their numbers: an H100, an A100, an RTX 3090, and a T4, which is
/// too old. Their memory is the host's; kernels touch what the emulator knows of: what `allocate`
/// gave, and what emulator::register_memory was told.
const DeviceBackend& backend();
constexpr int devices = 4;
/// The same, with kernels for sm_80 alone: to judge and time these on later devices.
const DeviceBackend& backend_of_sm80();
}  // namespace emulated

namespace gpu {
/// The machine's GPUs.
const DeviceBackend& backend();
const DeviceBackend& backend_of_sm80();
}  // namespace gpu

}  // namespace tilewise::cuda
