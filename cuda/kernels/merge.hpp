// tilewise_merge_states on a device: attention over disjoint sets of keys, joined by their LSE.
// What it computes stands in cpu/api/merge.cpp; here sums are float32.
#pragma once

#include "core/device_backend.hpp"

namespace tilewise::cuda {

/// Parts of one call. They are a kernel's parameters, a lane of a warp for each.
constexpr int most_merged = 32;

namespace emulated {
Status merge(const DeviceMerge& what, const DeviceLimits& limits, void* stream);
}
namespace gpu {
/// `stream` is a cudaStream_t.
Status merge(const DeviceMerge& what, const DeviceLimits& limits, void* stream);
}  // namespace gpu

}  // namespace tilewise::cuda
