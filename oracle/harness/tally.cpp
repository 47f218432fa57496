#include "oracle/harness/tally.hpp"

#include "oracle/baseline.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include <fmt/format.h>

namespace tilewise::harness {

void Tally::row(const Place& place, const TensorView& view, std::int64_t offset,
                std::int64_t stride, const double* expected, const double* bound,
                std::int64_t width, double scale_bound) {
  double error_squares = 0, expected_squares = 0, along = 0;
  bool finite = true;
  RowMap map{place.row,
             std::string(static_cast<std::size_t>(std::min<std::int64_t>(width, map_width)), '.')};
  bool faulty = false;
  for (std::int64_t t = 0; t < width; ++t) {
    const void* element = view.at(offset + t * stride);
    const double got = load(dtype_, element);
    const Fault fault =
        inspect(element, got, expected[t], bound[t], {place.batch, place.head, place.row, t});
    if (fault != Fault::none) {
      faulty = true;
      char& cell = map.cells[static_cast<std::size_t>(
          t * static_cast<std::int64_t>(map.cells.size()) / width)];
      cell = fault == Fault::wrong          ? (cell == '.' ? 'x' : cell)
             : fault == Fault::not_a_number ? 'N'
                                            : 'u';
    }
    if (!std::isfinite(got) || !std::isfinite(expected[t])) {
      finite = false;
      continue;
    }
    error_squares += (got - expected[t]) * (got - expected[t]);
    expected_squares += expected[t] * expected[t];
    along += (got - expected[t]) * expected[t];
    tolerance_ = std::max(tolerance_, oracle::naive_tolerance(dtype_, expected[t]));
    if (std::isfinite(bound[t])) sigma_ = std::max(sigma_, bound[t] / 6);
  }
  if (finite && expected_squares > 0) {
    report_.max_relative =
        std::max(report_.max_relative, std::sqrt(error_squares / expected_squares));
    const double deviation = std::abs(along) / expected_squares;
    if (scale_bound > 0 && std::isfinite(scale_bound)) {
      const double ratio = deviation / scale_bound;
      if (!(ratio <= report_.scale_ratio)) {
        report_.scale_ratio = ratio;
        scale_place_ = place;
        scale_deviation_ = along / expected_squares;
      }
      if (!(ratio <= 1)) {
        ++scale_failures_;
        faulty = true;
        for (char& cell : map.cells) cell = cell == '.' ? 's' : cell;
      }
    }
  }
  ++report_.rows_judged;
  if (faulty) ++faulty_rows_[{place.batch, place.head}];
  maps_[{place.batch, place.head}].push_back(std::move(map));
}

void Tally::merge(Tally&& other) {
  OutputReport& mine = report_;
  const OutputReport& its = other.report_;
  mine.rows_judged += its.rows_judged;
  mine.rows_total += its.rows_total;
  mine.max_error = std::max(mine.max_error, its.max_error);
  mine.max_relative = std::max(mine.max_relative, its.max_relative);
  mine.naive_error = std::max(mine.naive_error, its.naive_error);
  if (other.any_ && (!any_ || !(its.max_ratio <= mine.max_ratio))) {
    mine.max_ratio = its.max_ratio;
    mine.worst = its.worst;
    mine.got = its.got;
    mine.expected = its.expected;
    mine.bound = its.bound;
    any_ = true;
  }
  if (!(its.scale_ratio <= mine.scale_ratio)) {
    mine.scale_ratio = its.scale_ratio;
    scale_place_ = other.scale_place_;
    scale_deviation_ = other.scale_deviation_;
  }
  wrong_ += other.wrong_;
  not_numbers_ += other.not_numbers_;
  unwritten_ += other.unwritten_;
  elements_ += other.elements_;
  scale_failures_ += other.scale_failures_;
  tolerance_ = std::max(tolerance_, other.tolerance_);
  sigma_ = std::max(sigma_, other.sigma_);
  for (const auto& [head, count] : other.faulty_rows_) faulty_rows_[head] += count;
  for (auto& [head, maps] : other.maps_)
    for (RowMap& map : maps) maps_[head].push_back(std::move(map));
}

OutputReport Tally::finish(bool naive_rule) {
  const OutputReport& r = report_;
  std::vector<std::string> why;
  if (unwritten_ > 0)
    why.push_back(fmt::format("{} of {} elements are unwritten", unwritten_, elements_));
  if (not_numbers_ > 0)
    why.push_back(
        fmt::format("{} of {} elements are NaN or infinite where they should not be, or "
                    "finite where they should",
                    not_numbers_, elements_));
  if (wrong_ > 0)
    why.push_back(
        fmt::format("{} of {} elements are farther off than their bound, the worst {:.3g} "
                    "times",
                    wrong_, elements_, r.max_ratio));
  if (scale_failures_ > 0)
    why.push_back(
        fmt::format("{} rows are off by a factor, the worst (batch {}, head {}, row {}) by "
                    "{:+.3g} %, {:.3g} times "
                    "what rounding explains",
                    scale_failures_, scale_place_.batch, scale_place_.head, scale_place_.row,
                    100 * scale_deviation_, r.scale_ratio));
  if (naive_rule) {
    // Plain arithmetic may be exact by luck: it counts as no better than the model expects of it.
    report_.naive_allowed = 2 * std::max(r.naive_error, sigma_) + tolerance_;
    report_.naive_rule_passed = r.max_error <= report_.naive_allowed;
    if (!report_.naive_rule_passed && why.empty())
      why.push_back(
          fmt::format("the largest error {:.3g} is more than twice that of naive arithmetic "
                      "in {} ({:.3g} allowed)",
                      r.max_error, tilewise::name_of(dtype_), report_.naive_allowed));
  }
  report_.passed = why.empty() && report_.naive_rule_passed;
  report_.why = fmt::format("{}", fmt::join(why, "; "));
  if (!report_.passed) draw_map();
  return report_;
}

Fault Tally::inspect(const void* element, double got, double expected, double bound,
                     const Place& place) {
  ++elements_;
  const Fault fault = fault_of(element, got, expected, bound);
  double ratio = 0, error = 0;
  if (std::isfinite(got) && std::isfinite(expected)) {
    error = std::abs(got - expected);
    ratio = error == 0 ? 0 : error / bound;
    report_.max_error = std::max(report_.max_error, error);
  } else if (fault != Fault::none) {
    error = ratio = INFINITY;
    report_.max_error = INFINITY;
  }
  if (!any_ || !(ratio <= report_.max_ratio)) {
    any_ = true;
    report_.max_ratio = ratio;
    report_.worst = place;
    report_.got = got;
    report_.expected = expected;
    report_.bound = bound;
  }
  wrong_ += fault == Fault::wrong;
  not_numbers_ += fault == Fault::not_a_number;
  unwritten_ += fault == Fault::unwritten;
  return fault;
}

Fault Tally::fault_of(const void* element, double got, double expected, double bound) const {
  if (std::isnan(expected) && std::isnan(got)) return Fault::none;
  if (poisoned_ && still_poisoned(element)) return Fault::unwritten;
  if (std::isnan(expected) || std::isnan(got)) return Fault::not_a_number;
  if (std::isinf(expected)) return got == expected ? Fault::none : Fault::not_a_number;
  // Right where a number within the bound does not fit the format.
  if (std::isinf(got))
    return (got > 0 ? expected : -expected) + bound > largest_finite(dtype_) ? Fault::none
                                                                             : Fault::not_a_number;
  return std::abs(got - expected) <= bound ? Fault::none : Fault::wrong;
}

bool Tally::still_poisoned(const void* element) const {
  static constexpr unsigned char poison[8] = {255, 255, 255, 255, 255, 255, 255, 255};
  return std::memcmp(element, poison, size_of(dtype_)) == 0;
}

void Tally::draw_map() {
  if (faulty_rows_.empty()) return;
  const auto worst =
      std::max_element(faulty_rows_.begin(), faulty_rows_.end(),
                       [](const auto& a, const auto& b) { return a.second < b.second; });
  const std::vector<RowMap>& maps = maps_[worst->first];
  constexpr std::size_t most_lines = 32;
  const std::size_t step = (maps.size() + most_lines - 1) / most_lines;
  for (std::size_t first = 0; first < maps.size(); first += step) {
    std::string cells = maps[first].cells;
    for (std::size_t n = first; n < std::min(first + step, maps.size()); ++n)
      for (std::size_t c = 0; c < cells.size(); ++c)
        if (maps[n].cells[c] != '.') cells[c] = maps[n].cells[c];
    report_.map.push_back(fmt::format("{:>7} {}", maps[first].row, cells));
  }
  std::string heads;
  int listed = 0;
  for (const auto& [head, count] : faulty_rows_)
    if (count > 0 && ++listed <= 12) heads += fmt::format(" ({}, {})", head.first, head.second);
  report_.map_caption = fmt::format(
      "batch {}, head {}: rows down{}, elements across; x wrong, s row off by a factor, N not a "
      "number, "
      "u unwritten. Wrong in {} of {} (batch, head):{}{}",
      worst->first.first, worst->first.second, step > 1 ? fmt::format(" ({} a line)", step) : "",
      listed, maps_.size(), heads, listed > 12 ? " ..." : "");
}

}  // namespace tilewise::harness
