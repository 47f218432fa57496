// The steps by name, each defined at the end of its own file: what stages/steps.cpp lists.
#pragma once

#include "stage.hpp"

namespace tilewise::stages {

Step textbook();        // 1_naive/1a_textbook.cpp
Step safe_softmax();    // 1_naive/1b_safe_softmax.cpp
Step causal_gqa_lse();  // 1_naive/1c_causal_gqa_lse.cpp
Step naive_backward();  // 1_naive/1d_backward.cpp
Step online_row();      // 2_cpu_online_softmax/2a_online_row.cpp
Step tiles();           // 2_cpu_online_softmax/2b_tiles.cpp
Step simd_lanes();      // 2_cpu_online_softmax/2c_simd.cpp
Step threads();         // 2_cpu_online_softmax/2d_threads.cpp
Step flash_backward();  // 2_cpu_online_softmax/2e_backward.cpp
Step mine();            // mine/mine.cpp

}  // namespace tilewise::stages
