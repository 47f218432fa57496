// What a library of kernels for a device offers whoever holds the device's memory: the seam between
// the C interface (cpu/api/) and the kernels of cuda/. Neither knows the other.
//
// No function here allocates or synchronises, but for `open` and `validate`; none but these two
// looks at device memory. `compute` puts work into a stream and returns.
#pragma once

#include "attention.hpp"
#include "status.hpp"

#include <cstddef>
#include <cstdint>

namespace tilewise {

/// What tiles, splits and workspaces are chosen by.
struct DeviceLimits {
  int compute_capability = 0;  ///< 80, 86, 90
  int multiprocessors = 0;
  std::size_t shared_bytes_a_block = 0;  ///< with the kernel's own consent
};

/// One attention call whose tensors lie in the device's memory. Shapes, dtypes and strides fit
/// together, and what the host can see has been checked. What only the device can see (lengths,
/// prefix sums, page tables, counts of block lists) has not: kernels clamp it, touch nothing
/// outside the tensors, and say so in the workspace's first word.
struct DeviceCall {
  AttentionParams params;
  AttentionTensors tensors;  ///< in questions, without memory: a tensor is there if it has a shape
  bool backward = false;     ///< from q, k, v, o, lse and dout; else the forward pass
  bool deterministic = false;     ///< gradients have the same bits in every run
  std::int64_t num_splits = 0;    ///< parts that the keys are cut into; 0: the library's choice
  std::int64_t max_seqlen_q = 0;  ///< packed: no sequence is longer; 0: not known. Dense: seqlen_q
  std::int64_t max_seqlen_k = 0;
  /// On the device; they replace the parameters' seed and offset unless null.
  const std::uint64_t* philox_seed = nullptr;
  const std::uint64_t* philox_offset = nullptr;
};

/// Who would compute a call.
struct DeviceChoice {
  Status status;                    ///< not ok: nobody, and why not
  const char* implementation = "";  ///< "cuda.sm80"
  bool fast = false;                ///< by a kernel compiled for such calls
  Status slow;                      ///< if not fast: why that kernel is not the one
};

/// A workspace, where a call wants one, begins with this; the rest of these 64 bytes is unused. The
/// first kernel of each call sets `error` to 0, later ones perhaps to a DeviceError.
struct WorkspaceHead {
  std::uint32_t error;
};
constexpr std::size_t workspace_head_bytes = 64;

enum class DeviceError : std::uint32_t {
  none = 0,
  length = 1,      ///< a sequence's length, or a prefix sum, lies outside its tensor
  page = 2,        ///< an entry of a block table is no page
  cache_row = 3,   ///< cache_batch_idx or cache_leftpad lies outside the cache
  block_list = 4,  ///< a count or an index of a block mask lies outside
  capacity = 5     ///< appended rows find no room in the cache
};

struct DeviceBackend {
  DeviceType type;
  const char* name;  ///< "cuda"
  /// ok, with the limits filled in, if this device can run kernels; else why not.
  Status (*open)(int device_id, DeviceLimits& limits);
  DeviceChoice (*choose)(const DeviceCall& call, const DeviceLimits& limits);
  /// In bytes, beginning at a multiple of 64; 0: none.
  std::size_t (*workspace)(const DeviceCall& call, const DeviceLimits& limits);
  Status (*compute)(const DeviceCall& call, const DeviceLimits& limits, void* workspace,
                    void* stream);
  /// Waits for the stream, and says what the last call on this workspace found amiss.
  Status (*validate)(const void* workspace, void* stream);
};

}  // namespace tilewise
