// Which rows and columns a verdict looks at: all of them where that takes seconds, else those where
// kernels go wrong (first, last, both sides of tile borders) and seeded ones in between.
#pragma once

#include "problem.hpp"

#include <cstdint>
#include <string>
#include <vector>

namespace tilewise::oracle {

/// Positions judged in one head's sequence, ascending, without repeats.
struct Sample {
  std::vector<std::int64_t> positions;
  std::int64_t total = 0;
  bool complete() const { return static_cast<std::int64_t>(positions.size()) == total; }
};

/// How much a judgement may cost: (query, key) pairs times head dimensions.
inline constexpr double default_budget = 1e9;

class Sampling {
 public:
  Sampling(const Problem& problem, bool every_row, double budget = default_budget);

  bool everything() const { return everything_; }
  /// The queries of (b, h) whose o, lse and dq are judged.
  Sample rows(std::int64_t b, std::int64_t h) const;
  /// The keys of (b, kv_head) whose dk and dv are judged.
  Sample columns(std::int64_t b, std::int64_t kv_head) const;
  /// One sentence for the verdict.
  std::string coverage() const;

 private:
  Sample choose(std::int64_t seqlen, std::int64_t wanted, std::uint64_t which) const;

  Problem problem_;
  bool everything_;
  std::int64_t rows_a_head_, columns_a_head_;
};

}  // namespace tilewise::oracle
