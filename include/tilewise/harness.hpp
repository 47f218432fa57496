// The harness, for other people's tests: tilewise::harness::check(kernel, problem) runs a kernel,
// judges it against float64, and answers with a Verdict. For GoogleTest: <tilewise/gtest.hpp>.
#pragma once

// Installed, the harness lies beside this file; in the source tree, two folders up.
#if __has_include("oracle/harness/harness.hpp")
#include "oracle/harness/function_implementation.hpp"
#include "oracle/harness/harness.hpp"
#else
#include "../../oracle/harness/function_implementation.hpp"
#include "../../oracle/harness/harness.hpp"
#endif
