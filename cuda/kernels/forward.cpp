// The forward kernel's host side: which calls are its.
#include "cuda/kernels/families.hpp"
#include "cuda/kernels/serving.hpp"

#include <cstdint>
#include <limits>

namespace tilewise::cuda::forward {

Status serves(const DeviceCall& call, const DeviceLimits&) {
  constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
  const AttentionTensors& t = call.tensors;
  if (call.backward) return no("backward");
  if (Status status = plain(call, {"q", "k", "v", "o", "lse"}); !status.ok()) return status;
  if (Status status = one_half_dtype(t); !status.ok()) return status;
  const std::int64_t d = t.q.shape[3];
  if (d != 64 && d != 128 && d != 256)
    return failure(Code::unsupported, "head_dim is %lld; these CUDA kernels have 64, 128 and 256",
                   static_cast<long long>(d));
  if (t.v.shape[3] != d)
    return failure(Code::unsupported, "head_dim_v is %lld, and head_dim %lld; they must be equal",
                   static_cast<long long>(t.v.shape[3]), static_cast<long long>(d));
  const struct {
    const char* name;
    const TensorView& view;
  } all[] = {{"q", t.q}, {"k", t.k}, {"v", t.v}, {"o", t.o}};
  for (const auto& [name, view] : all)
    if (Status status = in_chunks(name, view); !status.ok()) return status;
  if (Status status = contiguous_lse(t.lse); !status.ok()) return status;
  const std::int64_t n = t.q.shape[1], heads = t.q.shape[0] * t.q.shape[2];
  if (n > most - 256 || t.k.shape[1] > most - 256 || heads * (n / 64 + 1) > most)
    return failure(Code::unsupported, "more than 2^31 rows, keys, or blocks of rows");
  if (call.num_splits > 1) return no("num_splits");
  return usual_conventions(call);
}

std::size_t workspace_bytes(const DeviceCall&, const DeviceLimits&) {
  return 0;
}

}  // namespace tilewise::cuda::forward
