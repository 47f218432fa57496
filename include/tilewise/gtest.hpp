// The harness with GoogleTest: a kernel's test is one line,
//
//   EXPECT_TRUE(tilewise::harness::passes(my_kernel, "fwd b1 sq100 sk100 h2 d64 causal"));
#pragma once

#include "harness.hpp"

#if __has_include("oracle/harness/gtest.hpp")
#include "oracle/harness/gtest.hpp"
#else
#include "../../oracle/harness/gtest.hpp"
#endif
