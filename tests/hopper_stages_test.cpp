// Chapter 5's steps under the emulator: what tests/cuda_stages_test.cpp asks of every CUDA step,
// and here that the ring goes round, both types and widths, and no bit depends on when copies and
// products come or on the order in which warps run.
#include "oracle/harness/gtest.hpp"
#include "oracle/harness/session.hpp"
#include "stages/cuda_adapter.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace tilewise {
namespace {

Problem problem_of(const std::string& text) {
  return std::get<Problem>(parse_problem(text));
}

std::vector<std::string> names() {
  std::vector<std::string> all;
  for (const stages::CudaStep& each : stages::emulated_steps())
    if (each.name[0] == '5') all.emplace_back(each.name);
  return all;
}

std::unique_ptr<stages::EmulatedImplementation> step(const std::string& name,
                                                     const emulator::Options& options = {}) {
  for (const stages::CudaStep& each : stages::emulated_steps())
    if (each.name == name) return stages::emulated_implementation_of(each, options);
  return nullptr;
}

class EveryHopperStep : public testing::TestWithParam<std::string> {};

// Tiles have 128 keys and rings two stages: 530 keys go round twice, and a bit.
TEST_P(EveryHopperStep, PassesAndIsClean) {
  int number = 0;
  for (const char* problem : {
           "fwd sq65 sk530 h1 d64 f16",
           "fwd sq65 sk400 h1 d128 bf16",
           "fwd sq129 sk385 h1 d128 f16 causal",
           "fwd sq270 sk270 h1 d64 bf16 causal",
           "fwd sq63 sk129 hq4 hk2 d72 f16",
           "fwd b2 sq130 sk257 hq2 hk1 d40 bf16 causal",
           "fwd sq200 sk70 h1 d128 bf16 causal",
           "fwd sq40 sk200 h1 d64 f16 scale=-0.3",
           "fwd sq64 sk200 h1 d128 f16 fill=huge",
           "fwd sq40 sk384 h1 d64 f16 fill=ascending",
       }) {
    emulator::Options options;
    options.seed = static_cast<std::uint64_t>(++number);
    const auto kernel = step(GetParam(), options);
    harness::Options once;
    once.repeats = 0;
    const harness::Verdict verdict = harness::check(*kernel, problem_of(problem), once);
    EXPECT_TRUE(verdict.passed()) << to_text(verdict);
    EXPECT_TRUE(kernel->report().clean()) << kernel->report().text();
  }
}

TEST_P(EveryHopperStep, GivesTheSameBitsWheneverCopiesArriveAndInWhateverOrderWarpsRun) {
  for (const char* problem : {"fwd sq65 sk520 h1 d64 f16 causal", "fwd sq33 sk300 h1 d128 bf16"}) {
    std::vector<harness::ProblemBuffers::Snapshot> first;
    for (const emulator::Arrival arrival :
         {emulator::Arrival::early, emulator::Arrival::late, emulator::Arrival::seeded})
      for (const std::uint64_t seed : {1u, 2u}) {
        emulator::Options options;
        options.seed = seed;
        options.arrival = arrival;
        const auto kernel = step(GetParam(), options);
        harness::Session session(*kernel, problem_of(problem));
        ASSERT_TRUE(session.allocate().ok());
        ASSERT_TRUE(session.fill().ok());
        ASSERT_TRUE(session.call_on_poison().ok()) << kernel->report().text();
        const auto result = session.buffers().snapshot();
        if (first.empty()) first = result;
        for (std::size_t n = 0; n < result.size(); ++n)
          EXPECT_EQ(result[n].bytes, first[n].bytes) << result[n].name << " of " << problem;
      }
  }
}

// Its instructions are not Ampere's, and not those of what comes after Hopper.
TEST_P(EveryHopperStep, RefusesAllButHopper) {
  emulator::Options options;
  for (const int compute_capability : {80, 89, 100, 120}) {
    options.device.compute_capability = compute_capability;
    options.device.name = "another one";
    const harness::Support support =
        step(GetParam(), options)->supports(problem_of("fwd s64 h1 d64 f16"));
    EXPECT_FALSE(support.ok);
    EXPECT_EQ(support.reason, "for compute capability 9.0 alone, not for another one");
  }
}

INSTANTIATE_TEST_SUITE_P(Emulated, EveryHopperStep, testing::ValuesIn(names()),
                         [](const auto& parameter) { return parameter.param; });

}  // namespace
}  // namespace tilewise
