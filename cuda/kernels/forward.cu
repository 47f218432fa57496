// From a call to the instantiation that computes it.
#include "cuda/kernels/families.hpp"
#include "cuda/kernels/sm80/forward.hpp"

namespace tilewise::cuda::TILEWISE_TARGET {
namespace {

sm80::Layout layout_of(const TensorView& tensor) {
  return {tensor.strides[0], tensor.strides[1], tensor.strides[2]};
}

template <class T, int D>
Status masked(const sm80::ForwardProblem& problem, bool causal, device::StreamHandle stream) {
  return causal ? sm80::launch_forward<T, D, true>(problem, stream)
                : sm80::launch_forward<T, D, false>(problem, stream);
}

template <class T>
Status wide(const sm80::ForwardProblem& problem, std::int64_t head_dim, bool causal,
            device::StreamHandle stream) {
  if (head_dim == 64) return masked<T, 64>(problem, causal, stream);
  if (head_dim == 128) return masked<T, 128>(problem, causal, stream);
  return masked<T, 256>(problem, causal, stream);
}

}  // namespace

Status forward(const DeviceCall& call, const DeviceLimits&, void*, void* stream) {
  const AttentionParams& params = call.params;
  const AttentionTensors& tensors = call.tensors;
  const TensorView &q = tensors.q, &k = tensors.k;
  if (q.elements() == 0) return {};
  constexpr float log2_e = 1.44269504f;
  const sm80::ForwardProblem problem = {
      .q = q.data,
      .k = k.data,
      .v = tensors.v.data,
      .o = tensors.o.data,
      .lse = tensors.lse.exists() ? static_cast<float*>(tensors.lse.data) : nullptr,
      .q_layout = layout_of(q),
      .k_layout = layout_of(k),
      .v_layout = layout_of(tensors.v),
      .o_layout = layout_of(tensors.o),
      .batch = static_cast<int>(q.shape[0]),
      .nheads_q = static_cast<int>(q.shape[2]),
      .nheads_k = static_cast<int>(k.shape[2]),
      .seqlen_q = static_cast<int>(q.shape[1]),
      .seqlen_k = static_cast<int>(k.shape[1]),
      .softmax_scale = static_cast<float>(params.softmax_scale),
      .lse_unit = params.conventions.lse_base == LseBase::two ? log2_e : 1.0f};
  const auto on = static_cast<device::StreamHandle>(stream);
  return q.dtype == DType::f16 ? wide<device::f16>(problem, q.shape[3], params.causal, on)
                               : wide<device::bf16>(problem, q.shape[3], params.causal, on);
}

}  // namespace tilewise::cuda::TILEWISE_TARGET
