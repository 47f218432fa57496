// From a call to the instantiation of Hopper's forward kernel that computes it.
#include "cuda/kernels/families.hpp"
#include "cuda/kernels/sm90/forward.hpp"
#include "cuda/kernels/sm90/forward_work.hpp"

namespace tilewise::cuda::TILEWISE_TARGET {

#if TILEWISE_EMULATED || defined(TILEWISE_SM90)
namespace {

/// Nothing is amiss yet, and no piece of work has been asked for.
__global__ void __launch_bounds__(1) begin_forward(std::uint32_t* error, unsigned* next) {
  *error = static_cast<std::uint32_t>(DeviceError::none);
  *next = 0;
}

sm90::Layout layout_of(const TensorView& tensor) {
  return {tensor.strides[0], tensor.strides[1], tensor.strides[2]};
}

template <class T, class Tile>
Status launched(const sm90::ForwardProblem& problem, sm90::Looks looks, const sm90::Spread& spread,
                device::StreamHandle stream) {
  using sm90::Looks;
  if (looks == Looks::full)
    return sm90::launch_forward<T, Tile, Looks::full>(problem, spread, stream);
  if (looks == Looks::causal)
    return sm90::launch_forward<T, Tile, Looks::causal>(problem, spread, stream);
  return sm90::launch_forward<T, Tile, Looks::band>(problem, spread, stream);
}

template <class T>
Status wide(const sm90::ForwardProblem& problem, std::int64_t head_dim, sm90::Looks looks,
            const sm90::Spread& spread, device::StreamHandle stream) {
  using sm90::Looks;
  if (head_dim == 128) return launched<T, sm90::Forward128>(problem, looks, spread, stream);
  if (head_dim == 192) return launched<T, sm90::Forward192>(problem, looks, spread, stream);
  if (head_dim == 256) return launched<T, sm90::Forward256>(problem, looks, spread, stream);
  if (looks == Looks::full)
    return sm90::launch_forward<T, sm90::Forward64, Looks::full>(problem, spread, stream);
  if (looks == Looks::band)
    return sm90::launch_forward<T, sm90::Forward64Short, Looks::band>(problem, spread, stream);
  if (sm90::rows_of_tile(head_dim, false, problem.seqlen_q) == 128)
    return sm90::launch_forward<T, sm90::Forward64Short, Looks::causal>(problem, spread, stream);
  return sm90::launch_forward<T, sm90::Forward64, Looks::causal>(problem, spread, stream);
}

}  // namespace

Status forward_sm90(const DeviceCall& call, const DeviceLimits& limits, void* workspace,
                    void* stream) {
  const AttentionParams& params = call.params;
  const AttentionTensors& tensors = call.tensors;
  const TensorView &q = tensors.q, &k = tensors.k;
  if (q.elements() == 0) return {};
  const auto on = static_cast<device::StreamHandle>(stream);
  sm90::Spread spread = {limits.multiprocessors, nullptr};
  if (sm90::hands_out_work(call, limits)) {
    auto* const head = static_cast<std::uint32_t*>(workspace);
    spread.next = reinterpret_cast<unsigned*>(static_cast<char*>(workspace) + sm90::counter_at);
    Status status = device::launch("cuda.sm90 forward: work", begin_forward, {{1}, {1}, 0, on},
                                   head, spread.next);
    if (!status.ok()) return status;
  }
  const sm90::Window window = sm90::window_of(params);
  constexpr float log2_e = 1.44269504f;
  const sm90::ForwardProblem problem = {
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
      .lse_unit = params.conventions.lse_base == LseBase::two ? log2_e : 1.0f,
      .sinks = static_cast<const float*>(tensors.sinks.data),
      .sink_stride = tensors.sinks.strides[0],
      .left = static_cast<int>(window.left),
      .right = static_cast<int>(window.right),
      .softcap = static_cast<float>(params.softcap)};
  const bool capped = params.softcap > 0;
  const sm90::Looks looks = window.is_full() && !capped     ? sm90::Looks::full
                            : window.is_causal() && !capped ? sm90::Looks::causal
                                                            : sm90::Looks::band;
  return q.dtype == DType::f16 ? wide<device::f16>(problem, q.shape[3], looks, spread, on)
                               : wide<device::bf16>(problem, q.shape[3], looks, spread, on);
}
#else
/// Nobody comes here: without these kernels no device has limits that let `serves` say yes.
Status forward_sm90(const DeviceCall&, const DeviceLimits&, void*, void*) {
  return failure(Code::unsupported, "this build has no kernels for compute capability 9.0");
}
#endif

}  // namespace tilewise::cuda::TILEWISE_TARGET
