// The shipped CUDA kernels before the judge, on the first GPU: cuda.sm80, cuda.sm90. A call's
// tensors travel to the device and back, as a plug-in's do.
#pragma once

#include "oracle/harness/implementation.hpp"

#include <memory>

namespace tilewise::tools {

std::unique_ptr<harness::Implementation> cuda_kernels();
std::unique_ptr<harness::Implementation> cuda_kernels_sm90();

}  // namespace tilewise::tools
