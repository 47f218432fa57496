// From a call to the general forward kernel's instantiation: the narrowest that has room for both
// head dims.
#include "cuda/kernels/sm80/general_forward.hpp"

#include "cuda/kernels/families.hpp"
#include "cuda/kernels/sm80/general_append_kernel.hpp"

#include <algorithm>

namespace tilewise::cuda::TILEWISE_TARGET {
namespace {

template <class T>
Status wide(const sm80::general::Problem& problem, device::StreamHandle stream) {
  const int width = std::max(problem.head_dim, problem.head_dim_v);
  if (width <= 64) return sm80::launch_general_forward<T, 64>(problem, stream);
  if (width <= 128) return sm80::launch_general_forward<T, 128>(problem, stream);
  return sm80::launch_general_forward<T, 256>(problem, stream);
}

}  // namespace

Status general_forward(const DeviceCall& call, const DeviceLimits& limits, void* workspace,
                       void* stream) {
  const bool wants = cuda::general_forward::workspace_bytes(call, limits) != 0;
  const sm80::general::Problem problem =
      sm80::general::problem_of(call, wants ? workspace : nullptr);
  const auto on = static_cast<device::StreamHandle>(stream);
  if (const Status status = sm80::general::launch_before(problem, on); !status.ok()) return status;
  return call.tensors.q.dtype == DType::f16 ? wide<device::f16>(problem, on)
                                            : wide<device::bf16>(problem, on);
}

}  // namespace tilewise::cuda::TILEWISE_TARGET
