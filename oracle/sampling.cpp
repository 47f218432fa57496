#include "oracle/sampling.hpp"

#include "core/philox.hpp"

#include <algorithm>
#include <numeric>

#include <fmt/format.h>

namespace tilewise::oracle {

namespace {

/// Every head gets at least this many positions: the two ends and a few of its own.
constexpr std::int64_t fewest = 4;

/// Positions beside the borders of the tile sizes that kernels use, around the start, the middle
/// and the end of a sequence.
std::vector<std::int64_t> beside_tile_borders(std::int64_t seqlen) {
  std::vector<std::int64_t> positions;
  for (const std::int64_t tile : {64, 128, 16, 32, 80, 256})
    for (const std::int64_t near : {tile, seqlen / 2, seqlen - 1}) {
      const std::int64_t border = near / tile * tile;
      for (const std::int64_t position : {border - 1, border})
        if (position >= 0 && position < seqlen) positions.push_back(position);
    }
  return positions;
}

}  // namespace

Sampling::Sampling(const Problem& problem, bool every_row, double budget) : problem_(problem) {
  double pairs = 0;
  for (std::int64_t b = 0; b < problem.batch; ++b)
    pairs += static_cast<double>(problem.seqlen_q(b)) * static_cast<double>(problem.seqlen_k(b));
  const auto width = static_cast<double>(problem.head_dim + problem.head_dim_v);
  const double cost = pairs * width * static_cast<double>(problem.nheads_q);
  everything_ = every_row || cost <= budget;
  // Of a backward pass, rows have dq beside o, and there are columns too. Counted twice, a
  // judgement takes about as long as a forward one.
  const double work = problem.pass == Pass::backward ? 2 * width : width;
  const auto a_head = [&](std::int64_t heads, std::int64_t other_length, std::int64_t group) {
    const double one = work * static_cast<double>(std::max<std::int64_t>(other_length, 1) * group);
    return std::max(fewest, static_cast<std::int64_t>(
                                budget / (one * static_cast<double>(problem.batch * heads))));
  };
  rows_a_head_ = a_head(problem.nheads_q, problem.max_seqlen_k(), 1);
  columns_a_head_ = a_head(problem.nheads_k, problem.max_seqlen_q(), problem.group());
}

Sample Sampling::choose(std::int64_t seqlen, std::int64_t wanted, std::uint64_t which) const {
  Sample sample;
  sample.total = seqlen;
  std::vector<std::int64_t>& positions = sample.positions;
  if (everything_ || seqlen <= wanted) {
    positions.resize(static_cast<std::size_t>(seqlen));
    std::iota(positions.begin(), positions.end(), std::int64_t{0});
    return sample;
  }
  positions = {0, seqlen - 1};
  // Half of the rest beside tile borders, each head starting elsewhere in the list.
  const std::vector<std::int64_t> borders = beside_tile_borders(seqlen);
  const std::int64_t from_borders = (wanted - 2) / 2;
  for (std::int64_t n = 0; n < from_borders && n < static_cast<std::int64_t>(borders.size()); ++n)
    positions.push_back(borders[(which * 7 + static_cast<std::uint64_t>(n)) % borders.size()]);
  for (std::uint64_t n = 0; static_cast<std::int64_t>(positions.size()) < wanted; ++n)
    positions.push_back(static_cast<std::int64_t>(philox(problem_.seed, 1000 + which, n)[0] %
                                                  static_cast<std::uint64_t>(seqlen)));
  std::sort(positions.begin(), positions.end());
  positions.erase(std::unique(positions.begin(), positions.end()), positions.end());
  return sample;
}

Sample Sampling::rows(std::int64_t b, std::int64_t h) const {
  return choose(problem_.seqlen_q(b), rows_a_head_,
                static_cast<std::uint64_t>(b * problem_.nheads_q + h));
}

Sample Sampling::columns(std::int64_t b, std::int64_t kv_head) const {
  return choose(problem_.seqlen_k(b), columns_a_head_,
                static_cast<std::uint64_t>(b * problem_.nheads_k + kv_head));
}

std::string Sampling::coverage() const {
  const bool backward = problem_.pass == Pass::backward;
  if (everything_) return backward ? "every row and column" : "every row";
  std::int64_t rows = 0, all_rows = 0, columns = 0, all_columns = 0;
  for (std::int64_t b = 0; b < problem_.batch; ++b) {
    for (std::int64_t h = 0; h < problem_.nheads_q; ++h) {
      rows += static_cast<std::int64_t>(this->rows(b, h).positions.size());
      all_rows += problem_.seqlen_q(b);
    }
    for (std::int64_t h = 0; h < problem_.nheads_k; ++h) {
      columns += static_cast<std::int64_t>(this->columns(b, h).positions.size());
      all_columns += problem_.seqlen_k(b);
    }
  }
  std::string text =
      fmt::format("{} of {} rows, in every head: first, last, beside tile borders, and seeded ones",
                  rows, all_rows);
  if (backward)
    text += fmt::format("; {} of {} columns, given the O and LSE of the rows not judged", columns,
                        all_columns);
  return text;
}

}  // namespace tilewise::oracle
