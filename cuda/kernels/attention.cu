// From a call to the family that computes it, on this target.
#include "cuda/kernels/attention.hpp"

#include "cuda/device/platform.hpp"
#include "cuda/kernels/families.hpp"

namespace tilewise::cuda::TILEWISE_TARGET {

Status compute(const DeviceCall& call, const DeviceLimits& limits, void* workspace, void* stream) {
#define TILEWISE_ROW(family) family,
  constexpr decltype(&forward) families[] = {TILEWISE_FAMILIES(TILEWISE_ROW)};
#undef TILEWISE_ROW
  Status why;
  const int family = family_of(call, limits, why);
  return family < 0 ? why : families[family](call, limits, workspace, stream);
}

}  // namespace tilewise::cuda::TILEWISE_TARGET
