// What the tests of the shipped CUDA kernels share: a call's outputs, and their bits over orders.
#pragma once

#include "cuda/emulator/emulator.hpp"
#include "oracle/harness/session.hpp"

#include <gtest/gtest.h>

#include <string>
#include <variant>
#include <vector>

namespace tilewise {

inline Problem problem_of(const std::string& text) {
  return std::get<Problem>(parse_problem(text));
}

/// What one call wrote.
inline std::vector<harness::ProblemBuffers::Snapshot> outputs(
    const harness::Implementation& kernels, const std::string& text) {
  harness::Session session(kernels, problem_of(text));
  EXPECT_TRUE(session.allocate().ok()) << text;
  EXPECT_TRUE(session.fill().ok());
  const Status status = session.call_on_poison();
  EXPECT_TRUE(status.ok()) << text << ": " << status.reason;
  return session.buffers().snapshot();
}

/// A launch is one order of warps and blocks, and one arrival of copies, among many. `results_by`:
/// outputs() of the kernels by these options.
template <class ResultsBy>
void expect_same_bits_in_every_order(const std::string& text, const ResultsBy& results_by) {
  std::vector<std::vector<harness::ProblemBuffers::Snapshot>> results;
  for (const auto arrival :
       {emulator::Arrival::early, emulator::Arrival::late, emulator::Arrival::seeded}) {
    emulator::Options options;
    options.arrival = arrival;
    options.seed = results.size() + 1;
    options.threads = static_cast<int>(results.size()) + 1;
    results.push_back(results_by(options));
  }
  for (const auto& result : results)
    for (std::size_t n = 0; n < result.size(); ++n)
      EXPECT_EQ(result[n].bytes, results[0][n].bytes) << text << ": " << result[n].name;
}

}  // namespace tilewise
