// Hopper's forward kernel, its host side: which calls are its. Those of `forward`, on compute
// capability 9.0, as far as the copy engine can describe the tensors.
#include "cuda/kernels/families.hpp"
#include "cuda/kernels/serving.hpp"
#include "cuda/kernels/sm90/forward_work.hpp"

#include <cstdint>

namespace tilewise::cuda::forward_sm90 {
namespace {

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

}  // namespace

Status serves(const DeviceCall& call, const DeviceLimits& limits) {
  if (limits.kernels < 90) return no("a device of another compute capability than 9.0");
  if (Status status = forward::serves(call, limits); !status.ok()) return status;
  if (call.params.softmax_scale < 0) return no("a negative softmax_scale, on Hopper's kernels,");
  const AttentionTensors& t = call.tensors;
  const struct {
    const char* name;
    const TensorView& view;
  } all[] = {{"q", t.q}, {"k", t.k}, {"v", t.v}, {"o", t.o}};
  for (const auto& [name, view] : all)
    if (Status status = in_boxes(name, view); !status.ok()) return status;
  return {};
}

std::size_t workspace_bytes(const DeviceCall& call, const DeviceLimits& limits) {
  return sm90::hands_out_work(call, limits) ? sm90::counter_at + workspace_head_bytes : 0;
}

}  // namespace tilewise::cuda::forward_sm90
