// Who computes a call: the first family that serves it.
#include "cuda/kernels/attention.hpp"

#include "cuda/kernels/families.hpp"

#include <string_view>

namespace tilewise::cuda {
namespace {

#define TILEWISE_ROW(family)                                                \
  {#family,                                                                 \
   std::string_view(#family).ends_with("sm90") ? "cuda.sm90" : "cuda.sm80", \
   std::string_view(#family).ends_with("backward"),                         \
   !std::string_view(#family).starts_with("general"),                       \
   family::serves,                                                          \
   family::workspace_bytes},
constexpr Family families[] = {TILEWISE_FAMILIES(TILEWISE_ROW)};
#undef TILEWISE_ROW

}  // namespace

int family_of(const DeviceCall& call, const DeviceLimits& limits, Status& why) {
  int place = 0;
  for (const Family& family : families) {
    if (family.backward == call.backward) {
      const Status status = family.serves(call, limits);
      if (status.ok()) return place;
      why = status;
    }
    ++place;
  }
  return -1;
}

DeviceChoice choose(const DeviceCall& call, const DeviceLimits& limits) {
  DeviceChoice choice;
  Status why;
  const int family = family_of(call, limits, why);
  if (family < 0) {
    choice.status = why;
    return choice;
  }
  choice.implementation = families[family].implementation;
  choice.fast = families[family].fast;
  if (!choice.fast) choice.slow = why;
  return choice;
}

std::size_t workspace_bytes(const DeviceCall& call, const DeviceLimits& limits) {
  Status why;
  const int family = family_of(call, limits, why);
  return family < 0 ? 0 : families[family].workspace_bytes(call, limits);
}

}  // namespace tilewise::cuda
