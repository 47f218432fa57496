// The judge is judged: planted bugs must be rejected, each for the reason it was planted for, and
// correct kernels must be accepted, on the same problems and on many random ones.
#include "oracle/harness/harness.hpp"
#include "tests/bugs/table.hpp"
#include "tests/random_problem.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <fstream>
#include <functional>
#include <iterator>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace tilewise {
namespace {

using harness::Verdict;

constexpr DType precisions[] = {DType::f32, DType::f16, DType::bf16};

/// Runs task(0) ... task(count - 1) on every core, at least two threads, and gathers complaints.
std::vector<std::string> gather(std::size_t count,
                                const std::function<std::vector<std::string>(std::size_t)>& task) {
  std::vector<std::string> complaints;
  std::mutex mutex;
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t n = next++; n < count; n = next++)
      for (std::string& complaint : task(n)) {
        const std::lock_guard lock(mutex);
        complaints.push_back(std::move(complaint));
      }
  };
  std::vector<std::jthread> others;
  for (unsigned n = 1; n < std::max(2u, std::thread::hardware_concurrency()); ++n)
    others.emplace_back(work);
  work();
  others.clear();  // joins
  return complaints;
}

/// Some complaints in full: a page each is enough to start with.
void report(const std::vector<std::string>& complaints) {
  constexpr std::size_t in_full = 5;
  for (std::size_t n = 0; n < std::min(complaints.size(), in_full); ++n)
    ADD_FAILURE() << complaints[n];
  if (complaints.size() > in_full)
    ADD_FAILURE() << "... and " << complaints.size() - in_full << " more";
}

harness::Options with_repeats(int repeats) {
  harness::Options options;
  options.repeats = repeats;
  options.threads = 1;
  return options;
}

/// Does one of the verdict's reasons say what `expected` (BugInfo) names?
bool complains_of(const Verdict& verdict, std::string_view expected) {
  return std::any_of(verdict.reasons.begin(), verdict.reasons.end(), [&](std::string_view reason) {
    if (expected == "unwritten") return reason.find(expected) != std::string_view::npos;
    // "o: 3 of 640 elements ...", "guard: wrote past ...", "input q was written to ..."
    return reason.starts_with(expected) && reason.size() > expected.size() &&
           (reason[expected.size()] == ':' || reason[expected.size()] == ' ');
  });
}

TEST(PlantedBugs, HaveNamesSentencesAndProblems) {
  std::set<std::string_view> names;
  for (const bugs::BugInfo& bug : bugs::bug_list()) {
    EXPECT_TRUE(bug.name.starts_with("bug.")) << bug.name;
    EXPECT_TRUE(names.insert(bug.name).second) << bug.name << " is listed twice";
    EXPECT_TRUE(bug.sentence.ends_with(".")) << bug.name;
    EXPECT_FALSE(bug.problems.empty()) << bug.name;
    for (std::string_view line : bug.problems)
      for (DType dtype : precisions) {
        const auto parsed = parse_problem(bugs::at_precision(line, dtype));
        ASSERT_TRUE(std::holds_alternative<Problem>(parsed))
            << bug.name << "\n"
            << std::get<ParseError>(parsed).explain(bugs::at_precision(line, dtype));
        EXPECT_EQ(std::get<Problem>(parsed).dtype, dtype) << bug.name << ": " << line;
        EXPECT_EQ(inconsistency(std::get<Problem>(parsed)), "") << bug.name << ": " << line;
      }
  }
  EXPECT_GE(names.size(), 90u);
}

TEST(PlantedBugs, AreInTheExercises) {
  std::ifstream file(TILEWISE_SOURCE_DIRECTORY "/docs/bugs.md");
  ASSERT_TRUE(file) << "docs/bugs.md cannot be read";
  const std::string page(std::istreambuf_iterator<char>(file), {});
  const auto row = [](std::string_view name) { return "| `" + std::string(name) + "` | "; };
  for (const bugs::BugInfo& bug : bugs::bug_list()) {
    const std::string exercise = row(bug.name) + "`" + std::string(bug.problems.front()) + "` | " +
                                 std::string(bug.expected) + " |\n";
    const std::string answer = row(bug.name) + std::string(bug.sentence) + " |\n";
    EXPECT_NE(page.find(exercise), std::string::npos) << "docs/bugs.md lacks: " << exercise;
    EXPECT_NE(page.find(answer), std::string::npos) << "docs/bugs.md lacks: " << answer;
  }
  EXPECT_NE(page.find(" with " + std::to_string(bugs::bug_list().size()) + " switches"),
            std::string::npos)
      << "docs/bugs.md counts another number of bugs";
}

TEST(Judge, RejectsEveryPlantedBug) {
  const harness::Table table = bugs::planted_bugs();
  const auto list = bugs::bug_list();
  ASSERT_EQ(table.size(), list.size());
  const auto complaints = gather(table.size(), [&](std::size_t n) {
    std::vector<std::string> wrong;
    for (DType dtype : precisions)
      for (std::string_view line : list[n].problems) {
        const Verdict verdict =
            harness::check(*table[n], bugs::at_precision(line, dtype), with_repeats(2));
        if (verdict.state != harness::State::fail)
          wrong.push_back("not rejected: " + to_text(verdict));
        else if (!complains_of(verdict, list[n].expected))
          wrong.push_back("rejected, but not because of " + std::string(list[n].expected) + ": " +
                          to_text(verdict));
      }
    return wrong;
  });
  report(complaints);
  if (complaints.empty())
    std::printf("%zu planted bugs rejected in %zu precisions\n", table.size(),
                std::size(precisions));
}

// What rejects a bug must be the bug: the same kernel without it passes the same problems.
TEST(Judge, AcceptsTheBugsProblemsWithoutTheBug) {
  const harness::Table good = bugs::correct_kernels();
  std::vector<std::string> lines;
  for (const bugs::BugInfo& bug : bugs::bug_list())
    for (std::string_view line : bug.problems)
      for (DType dtype : precisions) lines.push_back(bugs::at_precision(line, dtype));
  std::sort(lines.begin(), lines.end());
  lines.erase(std::unique(lines.begin(), lines.end()), lines.end());
  const auto complaints = gather(lines.size(), [&](std::size_t n) {
    std::vector<std::string> wrong;
    for (const std::size_t which : {std::size_t{0}, n % good.size()}) {
      const Verdict verdict = harness::check(*good[which], lines[n], with_repeats(1));
      if (!verdict.passed()) wrong.push_back("false alarm: " + to_text(verdict));
    }
    return wrong;
  });
  report(complaints);
  if (complaints.empty())
    std::printf("%zu correct runs accepted on the bugs' problems, 0 false alarms\n",
                2 * lines.size());
}

TEST(Judge, AcceptsCorrectKernels) {
#ifdef TILEWISE_SANITIZED
  constexpr std::size_t seeds = 100;  // some ten times as slow each, and the same code
#else
  constexpr std::size_t seeds = 1040;
#endif
  const harness::Table good = bugs::correct_kernels();
  tests::RandomLimits limits;
  limits.max_batch = 2;
  limits.max_group = 2;
  limits.max_head_dim = 72;
  std::atomic<std::size_t> accepted{0};
  const auto complaints = gather(seeds, [&](std::size_t seed) -> std::vector<std::string> {
    tests::RandomLimits some = limits;
    some.max_seqlen = seed % 8 == 0 ? 200 : 120;  // several tiles of every kernel either way
    const Problem problem = tests::random_problem(seed, some);
    const Verdict verdict = harness::check(*good[seed % good.size()], problem, with_repeats(1));
    if (!verdict.passed()) return {"false alarm: " + to_text(verdict)};
    ++accepted;
    return {};
  });
  report(complaints);
  EXPECT_EQ(accepted.load() + complaints.size(), seeds);
  std::printf("%zu correct runs accepted, %zu false alarms\n", accepted.load(), complaints.size());
}

}  // namespace
}  // namespace tilewise
