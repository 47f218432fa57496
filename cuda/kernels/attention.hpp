// The shipped CUDA kernels, by the vocabulary of core/: who computes what, and the calls.
//
// Every function of kernels exists twice, for the GPU and for the emulator
// (cuda/device/platform.hpp); what only looks at shapes exists once.
#pragma once

#include "core/device_backend.hpp"

namespace tilewise::cuda {

/// Who computes this call: of the families of families.hpp the first that serves it. Looks at
/// shapes, strides, dtypes and addresses, never at memory.
DeviceChoice choose(const DeviceCall& call, const DeviceLimits& limits);

/// The workspace of whom `choose` chooses; 0 also where nobody serves the call.
std::size_t workspace_bytes(const DeviceCall& call, const DeviceLimits& limits);

namespace emulated {
Status compute(const DeviceCall& call, const DeviceLimits& limits, void* workspace, void* stream);
}
namespace gpu {
/// `stream` is a cudaStream_t. The status is that of the launches (cuda/device/launch.hpp).
Status compute(const DeviceCall& call, const DeviceLimits& limits, void* workspace, void* stream);
}

}  // namespace tilewise::cuda
