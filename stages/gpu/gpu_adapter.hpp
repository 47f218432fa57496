// From a CUDA step of the course to an Implementation that the harness can judge: on the GPU.
// Called "stage." and the step's name. Tensors travel to the device and back around each call; the
// time told is the device's own.
#pragma once

#include "oracle/harness/implementation.hpp"

namespace tilewise::stages {

/// Every CUDA step, in the course's order. Calls take turns: on a stream of their own, then as a
/// graph that was captured, then on the default stream; each must give the same bits.
harness::Table gpu_implementations();

}  // namespace tilewise::stages
