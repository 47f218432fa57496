// What a library of kernels for a device offers whoever holds the device's memory: the seam between
// the C interface (cpu/api/) and the kernels of cuda/. Neither knows the other.
//
// `choose` and `workspace` look at shapes, strides and addresses. `compute` and `merge` put work
// into a stream and return: they allocate nothing, wait for nothing, and can be captured in a
// graph. Device memory is looked at by kernels and by `validate` alone.
#pragma once

#include "attention.hpp"
#include "status.hpp"

#include <cstddef>
#include <cstdint>

namespace tilewise {

/// What tiles, splits and workspaces are chosen by.
struct DeviceLimits {
  int compute_capability = 0;  ///< 80, 86, 90
  int kernels = 0;  ///< the latest architecture whose kernels may run there: 80, or 90 on a 9.0
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
  std::int64_t max_seqlen_k = 0;  ///< of keys in a cache: what the caller promises, or its capacity
  /// On the device; they replace the parameters' seed and offset unless null.
  const std::uint64_t* philox_seed = nullptr;
  const std::uint64_t* philox_offset = nullptr;
};

/// Who would compute a call.
struct DeviceChoice {
  Status status;                    ///< not ok: nobody, and why not
  const char* implementation = "";  ///< "cuda.sm80", "cuda.sm90"
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

/// n attentions over disjoint sets of keys, to be joined by their LSE (tilewise_merge_states). All
/// have been checked as far as the host can; o and lse may each be one of the parts, element for
/// element.
struct DeviceMerge {
  std::int64_t n = 0;
  /// Part i of n. The caller's list is the caller's memory, on the host, until the call returns.
  TensorView (*o_part)(const DeviceMerge& merge, std::int64_t i) = nullptr;
  TensorView (*lse_part)(const DeviceMerge& merge, std::int64_t i) = nullptr;
  const void *o_parts = nullptr, *lse_parts = nullptr;  ///< what these two look into
  TensorView o;    ///< [batch, seqlen, nheads, width], or packed [total, nheads, width]
  TensorView lse;  ///< [batch, nheads, seqlen], or packed [nheads, total]; may be absent
  LseBase lse_base{};
  EmptyRowLse empty_row_lse{};  ///< of a row that no part has seen a key for; its o is 0
};

/// Library and backend are compiled apart, each with this file: two that see it differently must
/// not meet. The first number grows with every change that sizes do not show.
constexpr std::uint64_t device_backend_layout =
    (std::uint64_t{2} << 32) + (sizeof(DeviceMerge) << 16) + sizeof(DeviceCall);

struct DeviceBackend {
  std::uint64_t layout = device_backend_layout;
  DeviceType type = DeviceType::cuda;
  const char* name = "";  ///< "CUDA"
  /// ok, with the limits filled in, if this device can run kernels; else why not.
  Status (*open)(int device_id, DeviceLimits& limits) = nullptr;
  DeviceChoice (*choose)(const DeviceCall& call, const DeviceLimits& limits) = nullptr;
  /// In bytes, beginning at a multiple of 64; 0: none, also where nobody serves the call.
  std::size_t (*workspace)(const DeviceCall& call, const DeviceLimits& limits) = nullptr;
  /// On the device that the tensors are on. Refuses what nobody serves.
  Status (*compute)(const DeviceCall& call, const DeviceLimits& limits, void* workspace,
                    void* stream) = nullptr;
  /// Null: these kernels have none.
  Status (*merge)(const DeviceMerge& merge, const DeviceLimits& limits, void* stream) = nullptr;
  /// Waits for the stream, and says what the last call on this workspace found amiss; a null
  /// workspace has nothing to say.
  Status (*validate)(int device_id, const void* workspace, void* stream) = nullptr;
  /// Memory of the device at a multiple of 256 bytes; null if there is none.
  void* (*allocate)(int device_id, std::size_t bytes) = nullptr;
  /// Waits for all work on the device first.
  void (*release)(int device_id, void* memory) = nullptr;
};

/// What a WorkspaceHead's word says, as a status.
inline Status status_of(DeviceError error) {
  switch (error) {
    case DeviceError::none: return {};
    case DeviceError::length:
      return failure(Code::bad_argument,
                     "a length or a prefix sum lay outside its tensor, and was clamped");
    case DeviceError::page:
      return failure(Code::bad_argument,
                     "an entry of block_table named no page, and was clamped or left out");
    case DeviceError::cache_row:
      return failure(Code::bad_argument,
                     "cache_batch_idx or cache_leftpad lay outside the cache, and was clamped");
    case DeviceError::block_list:
      return failure(Code::bad_argument,
                     "a count or an index of a block mask lay outside it, and was clamped");
    case DeviceError::capacity:
      return failure(Code::bad_argument, "appended rows found no room in the cache");
  }
  return failure(Code::failed,
                 "the workspace begins with %u, which no call has written: it is another one's",
                 static_cast<unsigned>(error));
}

}  // namespace tilewise
