// The verdict's two views, on verdicts made by hand; and the short ways to a verdict.
#include "oracle/harness/verdict.hpp"

#include "oracle/harness/function_implementation.hpp"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace tilewise::harness {
namespace {

using Json = nlohmann::ordered_json;
constexpr double nan = std::numeric_limits<double>::quiet_NaN();
constexpr double inf = std::numeric_limits<double>::infinity();

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

::testing::AssertionResult contains(const std::string& text, std::string_view part) {
  if (text.find(part) != std::string::npos) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "no \"" << part << "\" in\n" << text;
}

Verdict passing() {
  Verdict v;
  v.state = State::pass;
  v.implementation = "stage.2b_tiles";
  v.problem = "fwd b1 sq100 sk100 h2 d64";
  OutputReport o;
  o.name = "o";
  o.present = true;
  o.rows_judged = o.rows_total = 200;
  o.max_error = 2.4e-7;
  o.max_relative = 3e-7;
  o.max_ratio = 0.31;
  o.naive_error = 2e-7;
  o.naive_allowed = 4e-7;
  OutputReport lse = o;
  lse.name = "lse";
  lse.max_ratio = 0.12;
  v.outputs = {o, lse};
  v.coverage = "every row";
  v.reproduce = "tilewise check 'fwd b1 sq100 sk100 h2 d64' --impl stage.2b_tiles";
  v.repeats = 3;
  return v;
}

Verdict failing() {
  Verdict v = passing();
  v.state = State::fail;
  v.implementation = "bug.mask_off_by_one";
  v.reasons = {"o: 1 of 200 rows is beyond its bound", "k was written to, first at element 17"};
  OutputReport& o = v.outputs[0];
  o.passed = false;
  o.why = "1 of 200 rows is beyond its bound";
  o.worst = {0, 1, 63, 5};
  o.got = 0.75;
  o.expected = 0.5;
  o.bound = 1e-5;
  o.max_error = 0.25;
  o.max_ratio = 25000;
  o.scale_ratio = 12.5;
  o.naive_rule_passed = false;
  o.map = {"........", "...x....", ".N......"};
  o.map_caption = "one row of text = 8 query rows, one character = 8 columns";
  v.not_checked = {"dq, dk, dv: a forward problem", "memory"};
  return v;
}

TEST(VerdictText, StatesHaveNames) {
  EXPECT_EQ(name_of(State::pass), "pass");
  EXPECT_EQ(name_of(State::fail), "fail");
  EXPECT_EQ(name_of(State::unsupported), "unsupported");
  EXPECT_EQ(name_of(State::error), "error");
}

TEST(VerdictText, APassIsOneLine) {
  EXPECT_EQ(to_text(passing()),
            "pass  stage.2b_tiles  fwd b1 sq100 sk100 h2 d64   "
            "o 0.31 of bound (max error 2.4e-07, 0.6 of 2 x naive rule), lse 0.12, every row, "
            "3 runs compared");
}

TEST(VerdictText, APassSaysWhatItDidNotCheck) {
  Verdict v = passing();
  v.not_checked = {"dq, dk, dv: a forward problem", "memory"};
  const std::vector<std::string> lines = lines_of(to_text(v));
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[1], "      not checked: dq, dk, dv: a forward problem; memory");
}

TEST(VerdictText, APassShowsMemoryAndTimeWhereMeasured) {
  Verdict v = passing();
  v.memory.measured = true;
  v.memory.heap_peak = 3 * 1024;
  v.time = {10, 2e-3, 1e-3, 4e-3, 8e6};
  EXPECT_TRUE(contains(to_text(v), ", memory 3.0 KiB, 2.00 ms (4 GFLOP/s)"));
}

TEST(VerdictText, AFailureIsAPage) {
  const std::string text = to_text(failing());
  EXPECT_EQ(text.rfind("FAIL  bug.mask_off_by_one\n", 0), 0u);
  for (const std::string_view part :
       {"  problem       fwd b1 sq100 sk100 h2 d64\n",
        "  because       o: 1 of 200 rows is beyond its bound\n",
        "                k was written to, first at element 17\n",
        "batch 0, head 1, row 63, column 5\n", "0.75", "expected  0.5\n", "bound     1e-05",
        "error/bound  2.5e+04\n", "off by 12.5 of its bound\n",
        "broken: max error 0.25, allowed 4e-07, naive's own error 2e-07\n",
        "one row of text = 8 query rows", "                |...x....|\n",
        "                |.N......|\n", "  the others    lse 0.12", "  judged        every row\n",
        "  not checked   dq, dk, dv: a forward problem; memory\n",
        "  reproduce     tilewise check 'fwd b1 sq100 sk100 h2 d64' --impl stage.2b_tiles"})
    EXPECT_TRUE(contains(text, part));
}

TEST(VerdictText, LseHasNoColumn) {
  Verdict v = failing();
  v.outputs[1].passed = false;
  v.outputs[1].worst = {2, 3, 4, 0};
  EXPECT_TRUE(contains(to_text(v), "batch 2, head 3, row 4\n"));
}

TEST(VerdictText, NaNsAreShown) {
  Verdict v = failing();
  v.outputs[0].got = nan;
  v.outputs[0].max_error = v.outputs[0].max_ratio = inf;
  const std::string text = to_text(v);
  EXPECT_TRUE(contains(text, "got         nan "));
  EXPECT_TRUE(contains(text, "error/bound  inf\n"));
}

TEST(VerdictText, AnAbsentOutputHasNoNumbers) {
  Verdict v = failing();
  OutputReport dq;
  dq.name = "dq";
  dq.passed = false;
  dq.why = "never written";
  v.outputs = {dq};
  const std::string text = to_text(v);
  EXPECT_TRUE(contains(text, "  dq            never written\n"));
  EXPECT_FALSE(contains(text, "worst at"));
}

TEST(VerdictText, LongLinesWrapAtAHundredColumns) {
  Verdict v = failing();
  std::string reason = "o:";
  for (int i = 0; i < 60; ++i) reason += " word" + std::to_string(i);
  v.reasons = {reason};
  v.not_checked.assign(20, "something with a name");
  const std::string text = to_text(v);
  std::string rejoined;
  for (const std::string& line : lines_of(text)) {
    EXPECT_LE(line.size(), 100u) << line;
    rejoined += line.substr(std::min(line.find_first_not_of(' '), line.size())) + ' ';
  }
  EXPECT_TRUE(contains(rejoined, reason));
  // What somebody will copy stays whole, however long it is.
  v.reproduce = std::string("tilewise check ") + std::string(150, 'x') + " --impl y";
  EXPECT_TRUE(contains(to_text(v), v.reproduce));
}

TEST(VerdictText, UnsupportedAndErrorAreOneLine) {
  Verdict v;
  v.implementation = "cpu.avx512";
  v.problem = "fwd d64 bf16";
  v.state = State::unsupported;
  v.reasons = {"this processor has no AVX-512"};
  EXPECT_EQ(to_text(v), "unsupported  cpu.avx512  fwd d64 bf16: this processor has no AVX-512");
  v.state = State::error;
  v.reasons = {"no memory", "give up"};
  EXPECT_EQ(to_text(v), "error  cpu.avx512  fwd d64 bf16: no memory; give up");
}

TEST(VerdictJson, ParsesBackWithEveryField) {
  Verdict v = failing();
  v.bytes_moved = 1234.5;
  v.memory = {true, "", 1, 2, 30, 4, 5};
  v.time = {10, 2e-3, 1e-3, 4e-3, 8e6};
  const Json j = Json::parse(to_json(v));
  EXPECT_EQ(j["state"], "fail");
  EXPECT_EQ(j["implementation"], v.implementation);
  EXPECT_EQ(j["problem"], v.problem);
  EXPECT_EQ(j["reasons"].get<std::vector<std::string>>(), v.reasons);
  EXPECT_EQ(j["not_checked"].get<std::vector<std::string>>(), v.not_checked);
  EXPECT_EQ(j["coverage"], v.coverage);
  EXPECT_EQ(j["reproduce"], v.reproduce);
  EXPECT_EQ(j["bytes_moved"], 1234.5);
  EXPECT_EQ(j["repeats"], 3);
  EXPECT_EQ(j.size(), 12u);

  ASSERT_EQ(j["outputs"].size(), 2u);
  const Json& o = j["outputs"][0];
  EXPECT_EQ(o["name"], "o");
  EXPECT_EQ(o["present"], true);
  EXPECT_EQ(o["passed"], false);
  EXPECT_EQ(o["why"], v.outputs[0].why);
  EXPECT_EQ(o["rows_judged"], 200);
  EXPECT_EQ(o["rows_total"], 200);
  EXPECT_EQ(o["max_error"], 0.25);
  EXPECT_EQ(o["max_relative"], 3e-7);
  EXPECT_EQ(o["max_ratio"], 25000);
  EXPECT_EQ(o["scale_ratio"], 12.5);
  EXPECT_EQ(o["worst"], Json::parse(R"({"batch": 0, "head": 1, "row": 63, "column": 5})"));
  EXPECT_EQ(o["got"], 0.75);
  EXPECT_EQ(o["expected"], 0.5);
  EXPECT_EQ(o["bound"], 1e-5);
  EXPECT_EQ(o["naive_error"], 2e-7);
  EXPECT_EQ(o["naive_allowed"], 4e-7);
  EXPECT_EQ(o["naive_rule_passed"], false);
  EXPECT_EQ(o["map"].get<std::vector<std::string>>(), v.outputs[0].map);
  EXPECT_EQ(o["map_caption"], v.outputs[0].map_caption);
  EXPECT_EQ(o.size(), 19u);

  EXPECT_EQ(j["memory"], Json::parse(R"({"measured": true, "why": "", "heap_peak": 1,
      "mapped_peak": 2, "workspace_declared": 30, "workspace_touched": 4, "stack": 5,
      "total": 12})"));
  EXPECT_EQ(j["time"]["repetitions"], 10);
  EXPECT_EQ(j["time"]["median"], 2e-3);
  EXPECT_EQ(j["time"]["fastest"], 1e-3);
  EXPECT_EQ(j["time"]["slowest"], 4e-3);
  EXPECT_EQ(j["time"]["flops"], 8e6);
  EXPECT_DOUBLE_EQ(j["time"]["gflops"].get<double>(), 4.0);
}

TEST(VerdictJson, IsOneLine) {
  EXPECT_EQ(to_json(failing()).find('\n'), std::string::npos);
}

TEST(VerdictJson, WhatIsNoNumberIsAString) {
  Verdict v = failing();
  v.outputs[0].got = nan;
  v.outputs[0].expected = -inf;
  v.outputs[0].max_error = inf;
  const Json j = Json::parse(to_json(v));
  EXPECT_EQ(j["outputs"][0]["got"], "nan");
  EXPECT_EQ(j["outputs"][0]["expected"], "-inf");
  EXPECT_EQ(j["outputs"][0]["max_error"], "inf");
  EXPECT_TRUE(j["bytes_moved"].is_null());
}

TEST(VerdictJson, BytesThatAreNoTextDoNotThrow) {
  Verdict v = failing();
  v.reasons = {"a kernel said \xff\xfe \"quoted\"\n"};
  const Json j = Json::parse(to_json(v));
  EXPECT_TRUE(contains(j["reasons"][0].get<std::string>(), "\"quoted\"\n"));
}

TEST(FunctionImplementation, AFunctionIsEnough) {
  int runs = 0;
  const auto mine = make_implementation("mine.flash", [&](const Call&) -> Status {
    ++runs;
    return {};
  });
  Problem problem;
  EXPECT_EQ(mine.name(), "mine.flash");
  EXPECT_TRUE(mine.supports(problem).ok);
  EXPECT_EQ(mine.workspace_bytes(problem), 0u);
  EXPECT_FALSE(mine.bytes_moved(problem));
  EXPECT_TRUE(mine.writes(problem).lse);
  EXPECT_FALSE(mine.writes(problem).dq);
  problem.pass = Pass::backward;
  EXPECT_TRUE(mine.writes(problem).dq);
  EXPECT_TRUE(mine.run(Call{problem, {}, {}}).ok());
  EXPECT_EQ(runs, 1);
}

TEST(FunctionImplementation, TraitsAreHeard) {
  const auto mine = make_implementation(
      "mine.flash", [](const Call&) { return failure(Code::failed, "no"); },
      {.idea = "as the paper has it",
       .supports =
           [](const Problem& p) {
             return p.causal ? Support::no("no causal yet") : Support::yes();
           },
       .workspace_bytes = [](const Problem&) { return std::size_t{128}; },
       .writes = {.o = true},
       .repeatable = Outputs::none(),
       .bytes_moved = [](const Problem&) { return std::optional<double>(5.0); }});
  Problem problem;
  EXPECT_EQ(mine.idea(), "as the paper has it");
  EXPECT_TRUE(mine.supports(problem).ok);
  problem.causal = true;
  EXPECT_EQ(mine.supports(problem).reason, "no causal yet");
  EXPECT_EQ(mine.workspace_bytes(problem), 128u);
  EXPECT_TRUE(mine.writes(problem).o);
  EXPECT_FALSE(mine.writes(problem).lse);
  EXPECT_FALSE(mine.repeatable().o);
  EXPECT_EQ(mine.bytes_moved(problem), 5.0);
  EXPECT_EQ(mine.run(Call{problem, {}, {}}).code, Code::failed);
}

}  // namespace
}  // namespace tilewise::harness
