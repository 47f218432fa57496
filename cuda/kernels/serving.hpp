// What families ask of a call's tensors. Each refusal names what is not served, never only that
// something is.
#pragma once

#include "core/device_backend.hpp"

#include <initializer_list>
#include <string_view>

namespace tilewise::cuda {

/// "WHAT: these CUDA kernels do not compute it".
Status no(const char* what);

/// A tensor is there if it has a shape: it may not have memory yet.
inline bool is_there(const TensorView& tensor) {
  return tensor.ndim != 0;
}

/// Beyond scale and causal, no parameter, but perhaps a window and a softcap; and of the tensors
/// none but `taken`.
Status plain(const DeviceCall& call, std::initializer_list<std::string_view> taken,
             bool with_windows_and_caps = false);

/// q, k, v, o and what else is there of dout, dq, dk and dv: all f16, or all bf16.
Status one_half_dtype(const AttentionTensors& tensors);

/// Four dimensions, rows of 16-byte chunks at multiples of 16 bytes: what cp.async copies.
Status in_chunks(const char* name, const TensorView& tensor);

/// [batch, nheads_q, seqlen_q], contiguous; or not there.
Status contiguous_lse(const TensorView& lse);

/// The mask's corner is bottom right, or does not matter; rows without keys, if there are any, have
/// O = 0 and LSE = -inf.
Status usual_conventions(const DeviceCall& call);

}  // namespace tilewise::cuda
