// From a call to the general backward kernels' instantiation: the narrowest that has room for both
// head dims.
#include "cuda/kernels/sm80/general_backward.hpp"

#include "cuda/kernels/families.hpp"
#include "cuda/kernels/sm80/general_append.hpp"

#include <algorithm>

namespace tilewise::cuda::TILEWISE_TARGET {
namespace {

template <class T>
Status wide(const sm80::general::BackwardProblem& backward, device::StreamHandle stream) {
  const int width = std::max(backward.problem.head_dim, backward.problem.head_dim_v);
  if (width <= 64) return sm80::launch_general_backward<T, 64>(backward, stream);
  if (width <= 128) return sm80::launch_general_backward<T, 128>(backward, stream);
  return sm80::launch_general_backward<T, 256>(backward, stream);
}

}  // namespace

Status general_backward(const DeviceCall& call, const DeviceLimits&, void* workspace,
                        void* stream) {
  const AttentionTensors& t = call.tensors;
  sm80::general::BackwardProblem backward;
  backward.problem = sm80::general::problem_of(call, workspace);
  backward.row_dots =
      reinterpret_cast<float*>(static_cast<char*>(workspace) + workspace_head_bytes);
  backward.places = t.q.ndim == 3 ? t.q.shape[0] : t.q.shape[0] * t.q.shape[1];
  if (t.dbias.exists()) {
    backward.bias_batch = static_cast<int>(t.dbias.shape[0]);
    backward.bias_heads = static_cast<int>(t.dbias.shape[1]);
    backward.bias_rows = static_cast<int>(t.dbias.shape[2]);
    backward.bias_keys = static_cast<int>(t.dbias.shape[3]);
  }
  const auto on = static_cast<device::StreamHandle>(stream);
  if (const Status status = sm80::general::launch_before(backward.problem, on); !status.ok())
    return status;
  return t.q.dtype == DType::f16 ? wide<device::f16>(backward, on)
                                 : wide<device::bf16>(backward, on);
}

}  // namespace tilewise::cuda::TILEWISE_TARGET
