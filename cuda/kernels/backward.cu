// From a backward call to the instantiation that computes it.
#include "cuda/kernels/families.hpp"
#include "cuda/kernels/sm80/backward.hpp"

namespace tilewise::cuda::TILEWISE_TARGET {
namespace {

template <class T, class Tile>
Status launch_masked(const sm80::BackwardProblem& problem, bool causal,
                     device::StreamHandle stream) {
  return causal ? sm80::launch_backward<T, Tile, true>(problem, stream)
                : sm80::launch_backward<T, Tile, false>(problem, stream);
}

template <class T>
Status launch_tiled(const sm80::BackwardProblem& problem, std::int64_t head_dim, bool causal,
                    const DeviceLimits& limits, device::StreamHandle stream) {
  if (head_dim == 64) return launch_masked<T, sm80::Backward64>(problem, causal, stream);
  const std::size_t shared = limits.shared_bytes_a_block;
  if (head_dim == 128)
    return shared >= sm80::Backward128::shared_bytes
               ? launch_masked<T, sm80::Backward128>(problem, causal, stream)
               : launch_masked<T, sm80::Backward128Small>(problem, causal, stream);
  return shared >= sm80::Backward256::shared_bytes
             ? launch_masked<T, sm80::Backward256>(problem, causal, stream)
             : launch_masked<T, sm80::Backward256Small>(problem, causal, stream);
}

}  // namespace

Status backward(const DeviceCall& call, const DeviceLimits& limits, void* workspace, void* stream) {
  const AttentionParams& params = call.params;
  const AttentionTensors& t = call.tensors;
  constexpr float log2_e = 1.44269504f;
  const auto layout = [](const TensorView& tensor) {
    return sm80::Layout{tensor.strides[0], tensor.strides[1], tensor.strides[2]};
  };
  const sm80::BackwardProblem problem = {
      .q = t.q.data,
      .k = t.k.data,
      .v = t.v.data,
      .o = t.o.data,
      .dout = t.dout.data,
      .lse = static_cast<const float*>(t.lse.data),
      .dq = t.dq.data,
      .dk = t.dk.data,
      .dv = t.dv.data,
      .workspace = workspace,
      .q_layout = layout(t.q),
      .k_layout = layout(t.k),
      .v_layout = layout(t.v),
      .o_layout = layout(t.o),
      .dout_layout = layout(t.dout),
      .dq_layout = layout(t.dq),
      .dk_layout = layout(t.dk),
      .dv_layout = layout(t.dv),
      .batch = static_cast<int>(t.q.shape[0]),
      .nheads_q = static_cast<int>(t.q.shape[2]),
      .nheads_k = static_cast<int>(t.k.shape[2]),
      .seqlen_q = static_cast<int>(t.q.shape[1]),
      .seqlen_k = static_cast<int>(t.k.shape[1]),
      .softmax_scale = static_cast<float>(params.softmax_scale),
      .lse_unit = params.conventions.lse_base == LseBase::two ? 1.0f : log2_e,
      .deterministic = call.deterministic};
  const auto on = static_cast<device::StreamHandle>(stream);
  return t.q.dtype == DType::f16
             ? launch_tiled<device::f16>(problem, t.q.shape[3], params.causal, limits, on)
             : launch_tiled<device::bf16>(problem, t.q.shape[3], params.causal, limits, on);
}

}  // namespace tilewise::cuda::TILEWISE_TARGET
