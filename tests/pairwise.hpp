// Problems in which every pair of features meets: a covering array over the words of a problem's
// line, drawn greedily. Combinations that do not go together are left out by the parser itself.
#pragma once

#include "random_problem.hpp"

#include <cstddef>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace tilewise::tests {

/// One feature and what the line may say of it; the first is the plain case.
using Factor = std::vector<std::string>;

struct Covering {
  std::vector<Problem> problems;
  std::size_t pairs = 0;       ///< of two features' words that meet in some problem
  std::size_t impossible = 0;  ///< pairs for which no consistent problem was found
};

class PairwiseProblems {
 public:
  /// `wanted`: which problems may be taken, beside being consistent.
  PairwiseProblems(std::vector<Factor> factors, std::uint64_t seed,
                   std::function<bool(const Problem&)> wanted)
      : factors_(std::move(factors)), random_(seed), wanted_(std::move(wanted)) {}

  Covering cover() {
    Covering covering;
    for (std::size_t f = 0; f < factors_.size(); ++f)
      for (std::size_t g = f + 1; g < factors_.size(); ++g)
        for (std::size_t i = 0; i < factors_[f].size(); ++i)
          for (std::size_t j = 0; j < factors_[g].size(); ++j)
            if (met_.count(key(f, i, g, j)) == 0 && !meet(f, i, g, j, covering))
              ++covering.impossible;
    covering.pairs = met_.size();
    return covering;
  }

  /// Random ones beside, from crowded to plain.
  std::vector<Problem> more(std::size_t count) {
    std::vector<Problem> problems;
    // Of features that exclude each other, some are left out; what then fits nothing is drawn anew.
    const std::size_t most_draws = 4000 * count;
    for (std::size_t seed = 0; problems.size() < count && seed < most_draws; ++seed)
      if (const std::optional<Problem> problem =
              problem_of(random_choice(0.6 / static_cast<double>(1 + seed % 5)), seed))
        problems.push_back(*problem);
    return problems;
  }

 private:
  using Choice = std::vector<std::size_t>;

  /// Keeps the problem that has this pair and the most others that have not met yet.
  bool meet(std::size_t f, std::size_t i, std::size_t g, std::size_t j, Covering& covering) {
    constexpr int tries = 60;
    Choice best;
    Problem best_problem;
    std::size_t most = 0;
    for (int attempt = 0; attempt < tries; ++attempt) {
      // From crowded to plain: of many features together, some pair may be contradictory.
      const int decade = attempt / 10;
      Choice choice = random_choice(attempt == tries - 1 ? 0 : 0.6 / (1 + decade));
      choice[f] = i;
      choice[g] = j;
      const std::optional<Problem> problem = problem_of(choice, met_.size());
      if (!problem) continue;
      if (const std::size_t fresh = unmet(choice); fresh > most) {
        most = fresh;
        best = choice;
        best_problem = *problem;
      }
    }
    if (best.empty()) return false;
    for (std::size_t a = 0; a < best.size(); ++a)
      for (std::size_t b = a + 1; b < best.size(); ++b) met_.insert(key(a, best[a], b, best[b]));
    covering.problems.push_back(best_problem);
    return true;
  }

  std::size_t unmet(const Choice& choice) const {
    std::size_t count = 0;
    for (std::size_t a = 0; a < choice.size(); ++a)
      for (std::size_t b = a + 1; b < choice.size(); ++b)
        count += met_.count(key(a, choice[a], b, choice[b])) == 0 ? 1 : 0;
    return count;
  }

  Choice random_choice(double crowd) {
    Choice choice(factors_.size());
    for (std::size_t n = 0; n < factors_.size(); ++n)
      if (random_.chance(crowd))
        choice[n] =
            static_cast<std::size_t>(random_.below(static_cast<std::int64_t>(factors_[n].size())));
    return choice;
  }

  std::optional<Problem> problem_of(const Choice& choice, std::uint64_t seed) const {
    std::string line = "seed=" + std::to_string(seed);
    for (std::size_t n = 0; n < choice.size(); ++n)
      if (!factors_[n][choice[n]].empty()) line += " " + factors_[n][choice[n]];
    const auto parsed = parse_problem(line);
    const Problem* const problem = std::get_if<Problem>(&parsed);
    if (problem == nullptr || !wanted_(*problem)) return std::nullopt;
    return *problem;
  }

  static std::uint64_t key(std::size_t f, std::size_t i, std::size_t g, std::size_t j) {
    return ((f * 64 + i) * 64 + g) * 64 + j;
  }

  std::vector<Factor> factors_;
  Random random_;
  std::function<bool(const Problem&)> wanted_;
  std::set<std::uint64_t> met_;
};

}  // namespace tilewise::tests
