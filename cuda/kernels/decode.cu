// From a call to the decode kernels' instantiation that computes it.
#include "cuda/kernels/families.hpp"
#include "cuda/kernels/sm80/decode.hpp"
#include "cuda/kernels/sm80/decode_combine.hpp"

#include <cmath>

namespace tilewise::cuda::TILEWISE_TARGET {
namespace {

sm80::DecodeLayout decode_layout_of(const TensorView& tensor) {
  return {tensor.strides[0], tensor.strides[1], tensor.strides[2]};
}

sm80::DecodeNumbers decode_numbers_of(const TensorView& list) {
  return {static_cast<const std::int32_t*>(list.data), list.strides[0]};
}

sm80::DecodeProblem decode_problem_of(const DeviceCall& call) {
  constexpr float log2_e = 1.44269504f;
  const AttentionTensors& t = call.tensors;
  const Conventions& conventions = call.params.conventions;
  const bool plus = conventions.empty_row_lse == EmptyRowLse::plus_inf;
  const TensorView& table = t.cache.block_table;
  return {
      .q = t.q.data,
      .k = t.k.data,
      .v = t.v.data,
      .o = t.o.data,
      .lse = static_cast<float*>(t.lse.data),
      .q_layout = decode_layout_of(t.q),
      .k_layout = decode_layout_of(t.k),
      .v_layout = decode_layout_of(t.v),
      .o_layout = decode_layout_of(t.o),
      .lse_layout = {t.lse.strides[0], t.lse.strides[2], t.lse.strides[1]},
      .batch = static_cast<int>(t.q.shape[0]),
      .nheads_q = static_cast<int>(t.q.shape[2]),
      .nheads_k = static_cast<int>(t.k.shape[2]),
      .head_dim = static_cast<int>(t.q.shape[3]),
      .seqlen_q = static_cast<int>(t.q.shape[1]),
      .seqlen_k = static_cast<int>(decode::capacity_of(t)),
      .causal = call.params.causal,
      .softmax_scale = static_cast<float>(call.params.softmax_scale),
      .lse_unit = conventions.lse_base == LseBase::two ? log2_e : 1.0f,
      .empty_lse = plus ? INFINITY : -INFINITY,
      .seqlens_q = decode_numbers_of(t.seqlens_q),
      .seqlens_k = decode_numbers_of(t.seqlens_k),
      .cache_rows = decode_numbers_of(t.cache.cache_batch_idx),
      .block_table = static_cast<const std::int32_t*>(table.data),
      .table_row = table.strides[0],
      .table_page = table.strides[1],
      .blocks = static_cast<int>(t.k.shape[0]),
      .page_size = static_cast<int>(t.k.shape[1]),
  };
}

/// The workspace's parts, one behind the other.
sm80::DecodeSpace decode_space_of(const DeviceCall& call, const decode::Plan& plan,
                                  void* workspace) {
  const TensorView& q = call.tensors.q;
  const std::int64_t parts = plan.splits * q.shape[0] * q.shape[1] * q.shape[2];
  sm80::DecodeSpace space = {};
  space.head = static_cast<WorkspaceHead*>(workspace);
  if (!plan.combined) return space;
  space.o = reinterpret_cast<float*>(static_cast<char*>(workspace) + workspace_head_bytes);
  space.m_l = reinterpret_cast<float2*>(space.o + parts * q.shape[3]);
  space.found = decode::findings_of(call.tensors, plan);
  if (space.found > 0) space.findings = reinterpret_cast<std::uint32_t*>(space.m_l + parts);
  return space;
}

template <class T>
Status decode_wide(const sm80::DecodeProblem& problem, const decode::Plan& plan,
                   const sm80::DecodeSpace& space, device::StreamHandle stream) {
  const auto launch = problem.head_dim == 64    ? sm80::launch_decode<T, 64>
                      : problem.head_dim == 128 ? sm80::launch_decode<T, 128>
                                                : sm80::launch_decode<T, 256>;
  const Status status = launch(problem, plan, space, stream);
  if (!status.ok() || !plan.combined) return status;
  return sm80::launch_combine<T>(problem, plan, space, stream);
}

}  // namespace

Status decode(const DeviceCall& call, const DeviceLimits& limits, void* workspace, void* stream) {
  const TensorView& q = call.tensors.q;
  if (q.elements() == 0) return {};
  const decode::Plan plan = decode::plan_of(call, limits);
  const bool with_space = decode::workspace_bytes(call, limits) > 0;
  if (with_space && workspace == nullptr) return failure(Code::no_memory, "the workspace is null");
  const sm80::DecodeProblem problem = decode_problem_of(call);
  sm80::DecodeSpace space = {};
  if (with_space) space = decode_space_of(call, plan, workspace);
  const auto on = static_cast<device::StreamHandle>(stream);
  return q.dtype == DType::f16 ? decode_wide<device::f16>(problem, plan, space, on)
                               : decode_wide<device::bf16>(problem, plan, space, on);
}

}  // namespace tilewise::cuda::TILEWISE_TARGET
