// Hopper's forward kernel, its host side: which calls are its, on compute capability 9.0.
#include "cuda/kernels/families.hpp"
#include "cuda/kernels/serving.hpp"
#include "cuda/kernels/sm90/forward_work.hpp"

#include <cstdint>
#include <limits>

namespace tilewise::cuda::forward_sm90 {
namespace {

Status widths(const AttentionTensors& t) {
  const std::int64_t d = t.q.shape[3], dv = t.v.shape[3];
  if ((d == dv && (d == 64 || d == 128 || d == 256)) || (d == 192 && dv == 128)) return {};
  return failure(Code::unsupported,
                 "head_dim is %lld and head_dim_v %lld; Hopper's kernels have 64, 128 and 256 of "
                 "both, and 192 with 128",
                 static_cast<long long>(d), static_cast<long long>(dv));
}

/// CUDA Driver API, cuTensorMapEncodeTiled: strides are below 2^40 bytes. Of a dimension with one
/// element it does not matter.
Status in_boxes(const char* name, const TensorView& tensor) {
  constexpr std::int64_t most = (std::int64_t{1} << 39) - 1;  // numbers of 16 bits
  for (int n = 0; n < 3; ++n)
    if (tensor.shape[n] > 1 && (tensor.strides[n] <= 0 || tensor.strides[n] > most))
      return failure(Code::unsupported,
                     "%s has a stride of %lld; Hopper's kernels have strides from 1 to 2^39", name,
                     static_cast<long long>(tensor.strides[n]));
  return {};
}

/// The corner is bottom right, or does not matter; rows without keys have O = 0 and LSE = -inf.
Status conventions(const DeviceCall& call, const sm90::Window& window) {
  const Conventions& named = call.params.conventions;
  const std::int64_t queries = call.tensors.q.shape[1], keys = call.tensors.k.shape[1];
  if (!window.is_full() && queries != keys && named.alignment != Alignment::bottom_right)
    return no("a mask from the top left over another number of keys than queries");
  const bool empty_rows = keys == 0 || queries - keys > window.right || window.left < 0;
  if (empty_rows && (named.empty_row_output != EmptyRowOutput::zero ||
                     named.empty_row_lse == EmptyRowLse::plus_inf))
    return no("rows without keys that are not O = 0 and LSE = -inf");
  return {};
}

}  // namespace

Status serves(const DeviceCall& call, const DeviceLimits& limits) {
  const AttentionTensors& t = call.tensors;
  if (limits.kernels < 90) return no("a device of another compute capability than 9.0");
  if (call.backward) return no("backward");
  if (Status status = plain(call, {"q", "k", "v", "o", "lse", "sinks"}, true); !status.ok())
    return status;
  if (Status status = one_half_dtype(t); !status.ok()) return status;
  if (Status status = widths(t); !status.ok()) return status;
  const struct {
    const char* name;
    const TensorView& view;
  } all[] = {{"q", t.q}, {"k", t.k}, {"v", t.v}, {"o", t.o}};
  for (const auto& [name, view] : all) {
    if (Status status = in_chunks(name, view); !status.ok()) return status;
    if (Status status = in_boxes(name, view); !status.ok()) return status;
  }
  if (Status status = contiguous_lse(t.lse); !status.ok()) return status;
  constexpr std::int64_t most = sm90::Window::unbounded;
  const std::int64_t n = t.q.shape[1], heads = t.q.shape[0] * t.q.shape[2];
  if (n > most - 256 || t.k.shape[1] > most - 256 ||
      heads * (n / 64 + 1) > std::numeric_limits<std::int32_t>::max())
    return failure(Code::unsupported, "more than 2^29 rows or keys, or 2^31 blocks of rows");
  if (call.num_splits > 1) return no("num_splits");
  if (call.params.softmax_scale < 0) return no("a negative softmax_scale, on Hopper's kernels,");
  return conventions(call, sm90::window_of(call.params));
}

std::size_t workspace_bytes(const DeviceCall& call, const DeviceLimits& limits) {
  return sm90::hands_out_work(call, limits) ? sm90::counter_at + workspace_head_bytes : 0;
}

}  // namespace tilewise::cuda::forward_sm90
