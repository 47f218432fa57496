// Into how many parts a decode call's keys are divided. The host alone decides it, from shapes and
// the device's size: the workspace depends on it, and so do a result's last bits.
#pragma once

#include "core/device_backend.hpp"

#include <cstdint>

namespace tilewise::cuda::decode {

/// Query i of a group's head g is packed row i group + g: the heads that share K and V are rows of
/// one tile.
constexpr int tile_rows = 16;

/// Keys that a warp takes at once; splits are multiples of them.
constexpr int slice_keys = 16;

/// More would be longer to put together than to compute.
constexpr int most_splits = 128;

/// Keys whose copies a block has under way: 64 KiB of K and V, of 16 bits.
constexpr int keys_under_way(int head_dim) {
  return (64 << 10) / (4 * head_dim);
}

struct Plan {
  int group;      ///< query heads of a key head
  int row_tiles;  ///< of one key head's packed rows
  int splits;     ///< at most so many of any sequence
  int fewest;     ///< keys of a split, but of the last one
  int each;       ///< of a sequence that has as many keys as may be
  bool combined;  ///< whether a second kernel puts parts together, or looks at what was found
};

Plan plan_of(const DeviceCall& call, const DeviceLimits& limits);

/// The words with which blocks say what of a block table they found amiss; 0 without one.
std::int64_t findings_of(const AttentionTensors& tensors, const Plan& plan);

/// How many keys a sequence may have.
std::int64_t capacity_of(const AttentionTensors& tensors);

}  // namespace tilewise::cuda::decode
