// For GoogleTest: a kernel's test in three lines.
//
//   TEST(MyKernel, Causal) {
//     EXPECT_TRUE(tilewise::harness::passes(my_kernel, "fwd b1 sq100 sk100 h2 d64 causal"));
//   }
#pragma once

#include "function_implementation.hpp"
#include "harness.hpp"

#include <gtest/gtest.h>

#include <string_view>

namespace tilewise::harness {

/// Succeeds on a pass alone: a problem that the implementation does not serve is a failure here, so
/// that a test cannot go green without having run anything. The message is the verdict's page.
inline ::testing::AssertionResult passes(const Implementation& implementation,
                                         std::string_view problem, const Options& options = {}) {
  const Verdict verdict = check(implementation, problem, options);
  return (verdict.passed() ? ::testing::AssertionSuccess() : ::testing::AssertionFailure())
         << to_text(verdict);
}

}  // namespace tilewise::harness
