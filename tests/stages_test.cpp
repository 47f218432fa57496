// Every step of the course before the judge: on shapes that divide nothing, on every kind of
// numbers that it promises to handle, on a real transformer's tensors. And what it does not
// promise, it refuses with a reason, or fails as its chapter says.
#include "oracle/harness/harness.hpp"
#include "oracle/harness/session.hpp"
#include "stages/adapter.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace tilewise {
namespace {

using harness::State;
using harness::Verdict;

const harness::Table& table() {
  static const harness::Table steps = stages::implementations();
  return steps;
}

const harness::Implementation& step(const std::string& name) {
  for (const auto& implementation : table())
    if (implementation->name() == name) return *implementation;
  ADD_FAILURE() << "no step is called " << name;
  return *table().front();
}

std::vector<std::string> written_steps() {
  std::vector<std::string> names;
  for (const auto& implementation : table())
    if (implementation->supports(std::get<Problem>(parse_problem("fwd s8 d8 f32"))).ok)
      names.emplace_back(implementation->name());
  return names;
}

class EveryStep : public testing::TestWithParam<std::string> {};

TEST_P(EveryStep, PassesWhereItSaysThatItServes) {
  const harness::Implementation& kernel = step(GetParam());
  const char* const problems[] = {
      "fwd sq1 sk1 d1 f32",
      "fwd sq1 sk300 h2 d64 f32",
      "fwd sq33 sk65 h3 d40 f32",
      "fwd b2 sq130 sk127 h2 d80 dv48 f32",
      "fwd sq100 sk100 d64 f32 scale=0.7",
      "fwd sq64 sk64 hq8 hk1 d32 f32",
      "fwd b2 sq129 sk129 hq4 hk2 d64 f32 causal",
      "fwd sq50 sk200 h2 d32 f32 causal",
      "fwd sq200 sk50 h2 d32 f32 causal",
      "fwd sq70 sk0 h1 d16 f32",
      "fwd sq90 sk90 h2 d33 f32 fill=ascending",
      "fwd sq90 sk90 h2 d32 f32 fill=peaks",
      "fwd sq90 sk90 h2 d32 f32 fill=mixed",
      "fwd sq90 sk90 h2 d32 f32 fill=denormal",
      "fwd sq90 sk90 h2 d32 f32 fill=outliers",
      "fwd sq90 sk90 h2 d32 f32 fill=constant",
      "fwd b3 sq179 sk179 h12 d32 f32 fill=real",
      "bwd sq1 sk1 d1 f32",
      "bwd b2 sq61 sk83 hq4 hk2 d48 dv40 f32",
      "bwd sq129 sk129 hq2 hk1 d64 f32 causal",
      "bwd sq90 sk40 h2 d32 f32 causal",
      "bwd sq60 sk60 h2 d32 f32 fill=ascending",
      "bwd b3 sq100 sk100 h12 d32 f32 fill=real",
  };
  int passed = 0;
  for (const char* problem : problems) {
    const Verdict verdict = harness::check(kernel, problem);
    if (verdict.state == State::unsupported) {
      EXPECT_FALSE(verdict.reasons.empty());
      continue;
    }
    EXPECT_TRUE(verdict.passed()) << to_text(verdict);
    ++passed;
  }
  EXPECT_GE(passed, 10);
}

TEST_P(EveryStep, SurvivesHugeScoresExceptTheTextbook) {
  const Verdict verdict = harness::check(step(GetParam()), "fwd sq50 sk90 h2 d64 f32 fill=huge");
  if (GetParam() == "stage.1a_textbook") {
    // Step 1a is there to show this.
    ASSERT_EQ(verdict.state, State::fail);
    EXPECT_TRUE(std::isnan(verdict.outputs.at(0).got)) << to_text(verdict);
  } else {
    EXPECT_TRUE(verdict.passed()) << to_text(verdict);
  }
}

TEST_P(EveryStep, RefusesWithAReasonWhatNoStepDoes) {
  for (const char* problem :
       {"fwd s32 d32 bf16", "fwd s32 d32 f32 bhsd", "fwd s32 d32 f32 softcap=5",
        "fwd s32 d32 f32 alibi", "fwd s32 d32 f32 window=4,0", "fwd s32 d32 f32 bias=1,1,q,k",
        "fwd s32 d32 f32 mask=1,1,q,k", "fwd b2 sq3,4 sk5,6 d32 f32", "fwd s32 d32 f32 packed",
        "fwd sq32 sk40 d32 f32 causal align=top_left", "fwd s32 d32 f32 lse_base=2"}) {
    const Verdict verdict = harness::check(step(GetParam()), problem);
    // Conventions of what a step does not do (LSE, causal) cannot be broken by it.
    if (verdict.state == State::pass) continue;
    EXPECT_EQ(verdict.state, State::unsupported) << to_text(verdict);
    EXPECT_FALSE(verdict.reasons.empty()) << problem;
  }
}

INSTANTIATE_TEST_SUITE_P(Stages, EveryStep, testing::ValuesIn(written_steps()),
                         [](const auto& parameter) { return parameter.param.substr(6); });

TEST(Threads, GiveTheSameBitsHoweverMany) {
  const harness::Implementation& kernel = step("stage.2d_threads");
  const Problem problem =
      std::get<Problem>(parse_problem("fwd b2 sq150 sk170 hq4 hk2 d48 f32 causal"));
  if (!kernel.supports(problem).ok) GTEST_SKIP() << kernel.supports(problem).reason;
  std::vector<std::vector<harness::ProblemBuffers::Snapshot>> results;
  for (const int threads : {1, 2, 3, 7}) {
    harness::Session session(kernel, problem, threads);
    ASSERT_TRUE(session.allocate().ok());
    ASSERT_TRUE(session.fill().ok());
    ASSERT_TRUE(session.call_on_poison().ok());
    results.push_back(session.buffers().snapshot());
  }
  for (const auto& result : results)
    for (std::size_t n = 0; n < result.size(); ++n)
      EXPECT_EQ(result[n].bytes, results[0][n].bytes) << result[n].name;
}

TEST(Mine, IsListedAsNotWrittenYet) {
  const Verdict verdict = harness::check(step("stage.mine"), "fwd s8 d8 f32");
  if (verdict.state != State::unsupported) GTEST_SKIP() << "somebody has written it";
  EXPECT_NE(verdict.reasons.at(0).find("stages/mine/mine.cpp"), std::string::npos);
}

TEST(Course, KeepsOneIdeaToAFile) {
  int files = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(
           std::filesystem::path(TILEWISE_SOURCE_DIRECTORY) / "stages")) {
    if (entry.path().extension() != ".cpp" || entry.path().parent_path().filename() == "stages")
      continue;
    std::ifstream file(entry.path());
    int lines = 0;
    for (std::string line; std::getline(file, line);) ++lines;
    EXPECT_LE(lines, 200) << entry.path() << ": a step is about 200 lines at most";
    ++files;
  }
  EXPECT_GE(files, 10);
}

}  // namespace
}  // namespace tilewise
