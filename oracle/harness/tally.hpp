// The report on one output, added up row by row: errors against their bounds, the worst place, what
// is not a number or was never written, and a map of where.
#pragma once

#include "../../core/tensor.hpp"
#include "verdict.hpp"

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace tilewise::harness {

/// How one judged row or column looked, for the map: a cell a stretch of elements.
inline constexpr int map_width = 64;
struct RowMap {
  std::int64_t row;
  std::string cells;
};

/// What is wrong with an element, beside being too far off.
enum class Fault { none, wrong, not_a_number, unwritten };

/// One output tensor under judgement: adds up what the rows of one task showed; tasks are then
/// merged in order, so that the report does not depend on the threads.
class Tally {
 public:
  Tally(const char* name, DType dtype, bool poisoned) : dtype_(dtype), poisoned_(poisoned) {
    report_.name = name;
    report_.present = true;
  }

  /// Compares one row: element t lies at `offset` + t `stride`. `scale_bound` 0: no factor is
  /// looked for.
  void row(const Place& place, const TensorView& view, std::int64_t offset, std::int64_t stride,
           const double* expected, const double* bound, std::int64_t width, double scale_bound);

  void naive(double error) { report_.naive_error = std::max(report_.naive_error, error); }
  const std::string& name() const { return report_.name; }
  void total(std::int64_t rows) { report_.rows_total += rows; }

  void merge(Tally&& other);

  OutputReport finish(bool naive_rule);

 private:
  Fault inspect(const void* element, double got, double expected, double bound, const Place& place);

  Fault fault_of(const void* element, double got, double expected, double bound) const;

  bool still_poisoned(const void* element) const;

  /// The head with the most wrong rows, rows downwards, elements across.
  void draw_map();

  using Head = std::pair<std::int64_t, std::int64_t>;

  OutputReport report_;
  DType dtype_;
  bool poisoned_, any_ = false;
  std::int64_t wrong_ = 0, not_numbers_ = 0, unwritten_ = 0, elements_ = 0, scale_failures_ = 0;
  double tolerance_ = 0, sigma_ = 0, scale_deviation_ = 0;
  Place scale_place_;
  std::map<Head, std::int64_t> faulty_rows_;
  std::map<Head, std::vector<RowMap>> maps_;
};

}  // namespace tilewise::harness
