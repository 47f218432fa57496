#include "oracle/harness/compare.hpp"

#include "oracle/baseline.hpp"
#include "oracle/bounds.hpp"
#include "oracle/parallel.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <mutex>

#include <fmt/format.h>

namespace tilewise::harness {

namespace {

using oracle::Case;
using oracle::Side;

/// How one judged row or column looked, for the map: a cell a stretch of elements.
constexpr int map_width = 64;
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

  /// Compares one row. `bytes` is where it lies, `stride` how far its elements are apart.
  void row(const Place& place, const TensorView& view, std::int64_t offset, std::int64_t stride,
           const double* expected, const double* bound, std::int64_t width, double scale_bound) {
    double error_squares = 0, expected_squares = 0, along = 0;
    bool finite = true;
    RowMap map{
        place.row,
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

  void naive(double error) { report_.naive_error = std::max(report_.naive_error, error); }
  const std::string& name() const { return report_.name; }
  void total(std::int64_t rows) { report_.rows_total += rows; }

  void merge(Tally&& other) {
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

  OutputReport finish(bool naive_rule) {
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

 private:
  Fault inspect(const void* element, double got, double expected, double bound,
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

  Fault fault_of(const void* element, double got, double expected, double bound) const {
    if (std::isnan(expected) && std::isnan(got)) return Fault::none;
    if (poisoned_ && still_poisoned(element)) return Fault::unwritten;
    if (std::isnan(expected) || std::isnan(got)) return Fault::not_a_number;
    if (std::isinf(expected)) return got == expected ? Fault::none : Fault::not_a_number;
    if (std::isinf(got))  // right if the exact value does not fit the format
      return got == rounded_to(dtype_, expected) ? Fault::none : Fault::not_a_number;
    return std::abs(got - expected) <= bound ? Fault::none : Fault::wrong;
  }

  bool still_poisoned(const void* element) const {
    static constexpr unsigned char poison[8] = {255, 255, 255, 255, 255, 255, 255, 255};
    return std::memcmp(element, poison, size_of(dtype_)) == 0;
  }

  /// The head with the most wrong rows, rows downwards, elements across.
  void draw_map() {
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

/// The whole comparison: rows first (o, lse, dq), then columns (dk, dv).
class Comparer {
 public:
  Comparer(const Problem& problem, const AttentionTensors& tensors, const Options& options,
           bool poisoned)
      : case_(problem, tensors),
        problem_(problem),
        tensors_(tensors),
        options_(options),
        recipe_(oracle::recipe_for(problem)),
        sampling_(problem, options.every_row),
        poisoned_(poisoned),
        backward_(problem.pass == Pass::backward) {}

  Comparison run() {
    result_.coverage = sampling_.coverage();
    if (problem_.conventions.empty_row_lse == EmptyRowLse::unspecified)
      result_.not_checked.push_back(
          "lse of rows that may look at no key: the conventions leave it open");
    facts_.resize(static_cast<std::size_t>(problem_.batch * problem_.nheads_q));
    judge_rows();
    if (backward_) judge_columns();
    return std::move(result_);
  }

 private:
  std::size_t head_index(std::int64_t b, std::int64_t h) const {
    return static_cast<std::size_t>(b * problem_.nheads_q + h);
  }

  void advance(double share) {
    if (!options_.progress) return;
    const std::lock_guard lock(progress_mutex_);
    done_ += share;
    options_.progress(std::min(done_, 1.0));
  }

  void judge_rows() {
    const std::int64_t heads = problem_.batch * problem_.nheads_q;
    // A head's rows are dealt out in pieces, so that few heads keep all cores busy.
    constexpr std::int64_t piece = 32;
    struct Task {
      std::int64_t b, h;
      std::vector<std::int64_t> rows;
      bool first;
    };
    std::vector<Task> tasks;
    for (std::int64_t n = 0; n < heads; ++n) {
      const std::int64_t b = n / problem_.nheads_q, h = n % problem_.nheads_q;
      const oracle::Sample sample = sampling_.rows(b, h);
      facts_[static_cast<std::size_t>(n)].resize(static_cast<std::size_t>(problem_.seqlen_q(b)));
      for (std::size_t at = 0; at == 0 || at < sample.positions.size(); at += piece) {
        const auto begin = sample.positions.begin() + static_cast<std::ptrdiff_t>(at);
        const auto end = sample.positions.begin() +
                         static_cast<std::ptrdiff_t>(std::min(at + piece, sample.positions.size()));
        tasks.push_back({b, h, {begin, end}, at == 0});
      }
    }
    std::vector<std::vector<Tally>> tallies(tasks.size());
    oracle::parallel_for(static_cast<std::int64_t>(tasks.size()), [&](std::int64_t n) {
      const Task& task = tasks[static_cast<std::size_t>(n)];
      std::vector<Tally>& tally = tallies[static_cast<std::size_t>(n)];
      tally = row_tallies();
      if (task.first)
        for (Tally& one : tally) one.total(problem_.seqlen_q(task.b));
      if (!task.rows.empty()) {
        const auto head = oracle::read_key_value_head(case_, task.b, task.h / problem_.group());
        const oracle::PlainHead plain = oracle::plain_head(case_, head);
        for (const std::int64_t i : task.rows) judge_row(head, plain, task.h, i, tally);
      }
      advance((backward_ ? 0.4 : 1.0) / static_cast<double>(tasks.size()));
    });
    finish(row_tallies(), tallies);
  }

  std::vector<Tally> row_tallies() const {
    std::vector<Tally> tallies;
    tallies.emplace_back("o", tensors_.o.dtype, poisoned_);
    tallies.emplace_back("lse", tensors_.lse.dtype, poisoned_);
    if (backward_) tallies.emplace_back("dq", tensors_.dq.dtype, poisoned_);
    return tallies;
  }

  void judge_row(const oracle::KeyValueHead& head, const oracle::PlainHead& plain, std::int64_t h,
                 std::int64_t i, std::vector<Tally>& tallies) {
    const oracle::Row row = oracle::forward_row(case_, head, h, i);
    const oracle::ForwardBound bound = oracle::bound_forward(case_, head, row, h, i, recipe_);
    const Place place{head.b, h, i, 0};
    if (tensors_.o.exists())
      tallies[0].row(place, tensors_.o, case_.offset(tensors_.o, Side::query, head.b, i, h),
                     tensors_.o.strides[tensors_.o.ndim - 1], row.o.data(), bound.o.data(),
                     problem_.head_dim_v, bound.scale);
    const bool lse_open =
        row.empty && problem_.conventions.empty_row_lse == EmptyRowLse::unspecified;
    if (tensors_.lse.exists() && !lse_open) {
      const double expected = oracle::expected_lse(problem_.conventions, row);
      const double unit = problem_.conventions.lse_base == LseBase::two ? 1 / std::log(2.0) : 1;
      const double allowed = bound.lse * unit;
      tallies[1].row(place, tensors_.lse, case_.lse_offset(tensors_.lse, head.b, h, i), 1,
                     &expected, &allowed, 1, 0);
    }
    if (!backward_) {
      tallies[0].naive(oracle::naive_row(case_, head, plain, row, nullptr, h, i).o);
      return;
    }
    const oracle::RowGradient gradient = oracle::backward_row(case_, head, row, h, i);
    const std::vector<double> dout = case_.row(tensors_.dout, Side::query, head.b, i, h);
    const oracle::RowFacts facts =
        oracle::facts_of(row, gradient, bound, dout, recipe_, problem_.output_dtype());
    facts_[head_index(head.b, h)][static_cast<std::size_t>(i)] = facts;
    const oracle::NaiveRowError naive = oracle::naive_row(case_, head, plain, row, &gradient, h, i);
    tallies[0].naive(naive.o);
    tallies[2].naive(naive.dq);
    if (tensors_.dq.exists()) {
      const std::vector<double> allowed =
          oracle::bound_dq(case_, head, row, gradient, facts, h, i, recipe_);
      tallies[2].row(place, tensors_.dq, case_.offset(tensors_.dq, Side::query, head.b, i, h),
                     tensors_.dq.strides[tensors_.dq.ndim - 1], gradient.dq.data(), allowed.data(),
                     problem_.head_dim, 0);
    }
  }

  /// Rows that were not judged: what their columns need is taken from the outputs themselves, as a
  /// backward kernel takes it from its forward pass.
  void adopt_facts(std::int64_t b, std::int64_t h, const oracle::Sample& judged) {
    std::vector<oracle::RowFacts>& facts = facts_[head_index(b, h)];
    const double unit = problem_.conventions.lse_base == LseBase::two ? std::log(2.0) : 1;
    auto next = judged.positions.begin();
    for (std::int64_t i = 0; i < problem_.seqlen_q(b); ++i) {
      if (next != judged.positions.end() && *next == i) {
        ++next;
        continue;
      }
      oracle::RowFacts& fact = facts[static_cast<std::size_t>(i)];
      const double lse = case_.stored_lse(b, h, i) * unit;
      fact.empty = std::isinf(lse);
      fact.lse = lse;
      fact.lse_sigma = 8 * recipe_.accumulate * (1 + std::abs(lse));
      const std::vector<double> o = case_.row(tensors_.o, Side::query, b, i, h);
      const std::vector<double> dout = case_.row(tensors_.dout, Side::query, b, i, h);
      double squares = 0;
      for (std::size_t t = 0; t < o.size(); ++t) {
        fact.d += o[t] * dout[t];
        squares += o[t] * o[t] * dout[t] * dout[t];
      }
      fact.plain_d = fact.d;
      fact.d_sigma = recipe_.output * std::sqrt(squares) +
                     recipe_.accumulate * std::sqrt(static_cast<double>(o.size())) *
                         (std::abs(fact.d) + std::sqrt(squares));
    }
  }

  void judge_columns() {
    std::vector<oracle::ScalarSum> sinks(static_cast<std::size_t>(problem_.nheads_q));
    std::vector<oracle::ScalarSum> bias;
    if (tensors_.dbias.exists() && sampling_.everything())
      bias.resize(static_cast<std::size_t>(tensors_.dbias.elements()));
    const bool possible = sampling_.everything() || (tensors_.lse.exists() && tensors_.o.exists());
    if (!possible) {
      result_.not_checked.push_back(
          "dk and dv: a problem of this size needs o and lse beside them, or --every-row");
      for (const char* name : {"dk", "dv"}) absent(name, "needs o and lse");
      return;
    }
    const std::int64_t heads = problem_.batch * problem_.nheads_k;
    std::vector<std::vector<Tally>> tallies(static_cast<std::size_t>(heads));
    // Few heads: the columns of one head are dealt out instead of the heads.
    for (std::int64_t n = 0; n < heads; ++n) {
      const std::int64_t b = n / problem_.nheads_k, kv_head = n % problem_.nheads_k;
      std::vector<oracle::QueryHead> group;
      for (std::int64_t h = kv_head * problem_.group(); h < (kv_head + 1) * problem_.group(); ++h) {
        if (!sampling_.everything()) adopt_facts(b, h, sampling_.rows(b, h));
        if (problem_.sink)
          for (const oracle::RowFacts& fact : facts_[head_index(b, h)])
            oracle::add_sink_gradient(case_, h, fact, recipe_, sinks[static_cast<std::size_t>(h)]);
        group.push_back({b, h, problem_.seqlen_q(b), case_.head(tensors_.q, Side::query, b, h),
                         case_.head(tensors_.dout, Side::query, b, h),
                         std::move(facts_[head_index(b, h)])});
      }
      if (!bias.empty()) add_bias_gradient(group, b, kv_head, bias);
      const oracle::Sample sample = sampling_.columns(b, kv_head);
      constexpr std::int64_t piece = 16;
      const auto columns = static_cast<std::int64_t>(sample.positions.size());
      const std::int64_t pieces = (columns + piece - 1) / piece;
      std::vector<std::vector<Tally>> parts(static_cast<std::size_t>(pieces));
      oracle::parallel_for(pieces, [&](std::int64_t part) {
        std::vector<Tally>& tally = parts[static_cast<std::size_t>(part)];
        tally = column_tallies();
        for (std::int64_t at = part * piece; at < std::min(columns, (part + 1) * piece); ++at)
          judge_column(group, b, kv_head, sample.positions[static_cast<std::size_t>(at)], tally);
      });
      std::vector<Tally>& tally = tallies[static_cast<std::size_t>(n)];
      tally = column_tallies();
      for (Tally& one : tally) one.total(problem_.seqlen_k(b));
      for (std::vector<Tally>& part : parts)
        for (std::size_t output = 0; output < part.size(); ++output)
          tally[output].merge(std::move(part[output]));
      advance(0.6 / static_cast<double>(heads));
    }
    finish(column_tallies(), tallies);
    if (problem_.sink) judge_scalars("dsinks", tensors_.dsinks, sinks);
    if (problem_.bias && tensors_.dbias.exists() && bias.empty()) {
      result_.not_checked.push_back("dbias: at this size only with --every-row");
      absent("dbias", "not judged at this size");
    } else if (problem_.bias) {
      judge_scalars("dbias", tensors_.dbias, bias);
    }
  }

  /// Every pair of one key head adds to the element of the bias that it was given.
  void add_bias_gradient(const std::vector<oracle::QueryHead>& group, std::int64_t b,
                         std::int64_t kv_head, std::vector<oracle::ScalarSum>& bias) const {
    const oracle::KeyValueHead keys = oracle::read_key_value_head(case_, b, kv_head);
    for (const oracle::QueryHead& head : group)
      for (std::int64_t i = 0; i < head.seqlen; ++i)
        for (std::int64_t j = 0; j < keys.seqlen; ++j) {
          const oracle::PairGradient pair =
              oracle::pair_gradient(case_, head, i, j, &keys.k[j * problem_.head_dim],
                                    &keys.v[j * problem_.head_dim_v], recipe_);
          if (pair.counts)
            bias[static_cast<std::size_t>(oracle::element_of(tensors_.bias, b, head.h, i, j))].add(
                pair.dbias, pair.dbias_sigma);
        }
  }

  /// An output whose elements are sums of their own, each a row of one element in the report: row n
  /// is element n in row-major order.
  void judge_scalars(const char* name, const TensorView& view,
                     const std::vector<oracle::ScalarSum>& sums) {
    if (!view.exists()) {
      result_.not_checked.push_back(std::string(name) + ": not given");
      absent(name, "not given");
      return;
    }
    Tally tally(name, view.dtype, poisoned_);
    tally.total(view.elements());
    for (std::int64_t n = 0; n < view.elements(); ++n) {
      std::int64_t rest = n, offset = 0;
      for (int dim = view.ndim - 1; dim >= 0; --dim) {
        offset += rest % view.shape[dim] * view.strides[dim];
        rest /= view.shape[dim];
      }
      const oracle::ScalarSum& sum = sums[static_cast<std::size_t>(n)];
      const double expected = sum.value(), bound = sum.bound(recipe_, view.dtype);
      tally.row({0, 0, n, 0}, view, offset, 1, &expected, &bound, 1, 0);
    }
    OutputReport report = tally.finish(/*naive_rule=*/false);
    if (!report.passed) result_.reasons.push_back(report.name + ": " + report.why);
    result_.outputs.push_back(std::move(report));
  }

  void absent(const char* name, const char* why) {
    OutputReport report;
    report.name = name;
    report.why = why;
    result_.outputs.push_back(report);
  }

  std::vector<Tally> column_tallies() const {
    std::vector<Tally> tallies;
    tallies.emplace_back("dk", tensors_.dk.dtype, poisoned_);
    tallies.emplace_back("dv", tensors_.dv.dtype, poisoned_);
    return tallies;
  }

  void judge_column(const std::vector<oracle::QueryHead>& group, std::int64_t b,
                    std::int64_t kv_head, std::int64_t j, std::vector<Tally>& tallies) {
    const oracle::Column column = oracle::backward_column(case_, group, b, kv_head, j, recipe_);
    const oracle::NaiveColumnError naive =
        oracle::naive_column(case_, group, column, b, kv_head, j);
    tallies[0].naive(naive.dk);
    tallies[1].naive(naive.dv);
    const Place place{b, kv_head, j, 0};
    const auto judge = [&](Tally& tally, const TensorView& view,
                           const std::vector<double>& expected, const std::vector<double>& bound) {
      if (view.exists())
        tally.row(place, view, case_.offset(view, Side::key, b, j, kv_head),
                  view.strides[view.ndim - 1], expected.data(), bound.data(),
                  static_cast<std::int64_t>(expected.size()), 0);
    };
    judge(tallies[0], tensors_.dk, column.dk, column.dk_bound);
    judge(tallies[1], tensors_.dv, column.dv, column.dv_bound);
  }

  /// flash-attn's rule speaks of O and the gradients, and of formats that frameworks compute in:
  /// not of fp8, where plain attention makes no sense, nor of the oracle's own.
  bool naive_rule_applies() const {
    return problem_.dtype == DType::f32 || problem_.dtype == DType::f16 ||
           problem_.dtype == DType::bf16;
  }

  const TensorView& view_named(const std::string& name) const {
    return name == "o"     ? tensors_.o
           : name == "lse" ? tensors_.lse
           : name == "dq"  ? tensors_.dq
           : name == "dk"  ? tensors_.dk
                           : tensors_.dv;
  }

  void finish(std::vector<Tally> sums, std::vector<std::vector<Tally>>& parts) {
    for (std::vector<Tally>& part : parts)
      for (std::size_t n = 0; n < part.size(); ++n) sums[n].merge(std::move(part[n]));
    for (Tally& sum : sums) {
      OutputReport report = sum.finish(naive_rule_applies() && sum.name() != "lse");
      if (!view_named(report.name).exists()) {
        OutputReport absent;
        absent.name = report.name;
        absent.why = "not given";
        result_.not_checked.push_back(report.name + ": not given");
        report = absent;
      }
      if (report.present && !report.passed)
        result_.reasons.push_back(report.name + ": " + report.why);
      result_.outputs.push_back(std::move(report));
    }
  }

  Case case_;
  const Problem& problem_;
  const AttentionTensors& tensors_;
  const Options& options_;
  oracle::Recipe recipe_;
  oracle::Sampling sampling_;
  bool poisoned_, backward_;
  std::vector<std::vector<oracle::RowFacts>> facts_;  // by (batch, query head), then query
  Comparison result_;
  std::mutex progress_mutex_;
  double done_ = 0;
};

}  // namespace

Comparison compare(const Problem& problem, const AttentionTensors& tensors, const Options& options,
                   bool poisoned) {
  return Comparer(problem, tensors, options, poisoned).run();
}

}  // namespace tilewise::harness
