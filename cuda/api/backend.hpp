// The shipped kernels as what the C interface is handed (core/device_backend.hpp): of a GPU, and of
// an emulated machine.
#pragma once

#include "core/device_backend.hpp"

namespace tilewise::cuda {

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
}  // namespace emulated

namespace gpu {
/// The machine's GPUs.
const DeviceBackend& backend();
}  // namespace gpu

}  // namespace tilewise::cuda
