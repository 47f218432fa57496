// The course's order, in one place.
#include "stages/steps.hpp"

namespace tilewise::stages {

std::span<const Step> steps() {
  static const Step all[] = {
      textbook(), safe_softmax(), causal_gqa_lse(), naive_backward(), online_row(),
      tiles(),    simd_lanes(),   threads(),        flash_backward(), mine(),
  };
  return all;
}

}  // namespace tilewise::stages
