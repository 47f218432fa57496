// The families of kernels. Each is a host side, which looks at shapes alone and exists once, and a
// launch for each target.
#pragma once

#include "core/device_backend.hpp"

#include <cstddef>

namespace tilewise::cuda {

/// `serves`: ok if the family computes this call, and is to do so; else what of the call it does
/// not, by name. `workspace_bytes` is asked where it serves; what is not 0 includes the
/// WorkspaceHead.
#define TILEWISE_FAMILY(family)                                                      \
  namespace family {                                                                 \
  Status serves(const DeviceCall& call, const DeviceLimits& limits);                 \
  std::size_t workspace_bytes(const DeviceCall& call, const DeviceLimits& limits);   \
  }                                                                                  \
  namespace emulated {                                                               \
  Status family(const DeviceCall& call, const DeviceLimits& limits, void* workspace, \
                void* stream);                                                       \
  }                                                                                  \
  namespace gpu {                                                                    \
  Status family(const DeviceCall& call, const DeviceLimits& limits, void* workspace, \
                void* stream);                                                       \
  }

TILEWISE_FAMILY(decode)            ///< few queries: heads packed, keys divided
TILEWISE_FAMILY(forward_sm90)      ///< what the next does, and windows, with Hopper's instructions
TILEWISE_FAMILY(forward)           ///< full and causal, head_dim 64, 128 and 256
TILEWISE_FAMILY(backward)          ///< full and causal, head_dim 64, 128 and 256
TILEWISE_FAMILY(general_forward)   ///< every semantic, by flags
TILEWISE_FAMILY(general_backward)  ///< the same, of the gradients

#undef TILEWISE_FAMILY

/// All of them, in the order in which they are asked.
#define TILEWISE_FAMILIES(each)                                                      \
  each(decode) each(forward_sm90) each(forward) each(backward) each(general_forward) \
      each(general_backward)

struct Family {
  const char* name;
  const char* implementation;  ///< what the C interface calls whoever computes
  bool backward;               ///< which pass; it is asked of no other
  bool fast;                   ///< compiled for such calls, and not for all
  Status (*serves)(const DeviceCall& call, const DeviceLimits& limits);
  std::size_t (*workspace_bytes)(const DeviceCall& call, const DeviceLimits& limits);
};

/// Which of them computes this call, by its place in TILEWISE_FAMILIES; -1: none. `why` is what
/// the last one asked, before it or of all, does not do.
int family_of(const DeviceCall& call, const DeviceLimits& limits, Status& why);

}  // namespace tilewise::cuda
