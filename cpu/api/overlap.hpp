// Whether tensors share memory, by their strides: dq, dk and dv may lie interleaved in one
// allocation (flash-attn's packed qkv), where their address ranges overlap and their elements do
// not.
#pragma once

#include "core/tensor.hpp"

#include <cstddef>
#include <cstdint>

namespace tilewise::cpu {

/// The bytes from a tensor's lowest element to behind its highest, relative to its data.
struct ByteRange {
  std::int64_t begin = 0, end = 0;
};

/// False if a size or an offset, counted in bytes, does not fit into 56 bits: more
/// than any machine addresses, and small enough to be multiplied by a few sizes.
bool byte_range(const TensorView& view, ByteRange& range);

/// Whether two elements of one tensor may share memory. May say yes to strides that only mingle,
/// which no layout in use has; never no to those that share.
bool shares_with_itself(const TensorView& view);

/// Whether an element of one tensor may share memory with one of the other. Exact for tensors whose
/// strides come from slicing one allocation; where in doubt, yes.
bool share_memory(const TensorView& first, const TensorView& second);

bool shares_with_bytes(const TensorView& view, const void* memory, std::size_t bytes);

/// The very same elements in the same order.
bool same_place(const TensorView& first, const TensorView& second);

}  // namespace tilewise::cpu
