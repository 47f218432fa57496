// Contexts whose device is not the CPU: which device that is, and calls that are handed over to
// options.backend once they are checked.
#pragma once

#include "core/device_backend.hpp"
#include "cpu/call.hpp"
#include "cpu/context.hpp"
#include "include/tilewise/tilewise.h"

#include <cstddef>
#include <cstdint>

namespace tilewise::cpu {

/// Where a context computes, and who does it there: null for the CPU.
struct Placed {
  Device device{};
  const DeviceBackend* backend = nullptr;
  DeviceLimits limits{};
  Status choice{};  ///< ok, and its `reason` says why this device
};

/// What the options come to. They are CPU, CUDA or the best device by now.
Status place(const tilewise_context_options& options, Placed& placed);

/// A call as the backend sees it; `given` is what `call` was made of.
DeviceCall device_call(const Call& call, const tilewise_attention& given, std::int32_t pass);

/// Checks the workspace and puts the call into the stream.
Status compute_on_device(const tilewise_context& context, const Call& call,
                         const DeviceCall& device_call, void* workspace, std::size_t bytes,
                         void* stream);

/// tilewise_validate on a device.
Status validate_on_device(const tilewise_context& context, const void* workspace, void* stream);

}  // namespace tilewise::cpu
