#include "oracle/harness/compare.hpp"

#include "oracle/baseline.hpp"
#include "oracle/bounds.hpp"
#include "oracle/harness/tally.hpp"
#include "oracle/parallel.hpp"

#include <algorithm>
#include <cmath>
#include <mutex>

#include <fmt/format.h>

namespace tilewise::harness {

namespace {

using oracle::Case;
using oracle::Side;

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
        sampling_(problem, options.every_row, options.budget),
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
    if (problem_.seqlen_new > 0) judge_appended();
    return std::move(result_);
  }

 private:
  std::size_t head_index(std::int64_t b, std::int64_t h) const {
    return static_cast<std::size_t>(b * problem_.nheads_q + h);
  }

  std::int64_t row_number(std::int64_t b, std::int64_t h, std::int64_t i) const {
    return (b * problem_.nheads_q + h) * problem_.max_seqlen_q() + i;
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
    constexpr std::size_t piece = 32;
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
      fact.empty = !std::isfinite(lse);  // an LSE that is NaN explains nothing
      fact.lse = lse;
      fact.lse_sigma = 8 * recipe_.accumulate * (1 + std::abs(lse));
      const std::vector<double> o = case_.row(tensors_.o, Side::query, b, i, h);
      const std::vector<double> dout = case_.row(tensors_.dout, Side::query, b, i, h);
      double squares = 0;
      for (std::size_t t = 0; t < o.size(); ++t) {
        fact.d += o[t] * dout[t];
        fact.o_size += std::abs(o[t]);
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
          for (std::int64_t i = 0; i < problem_.seqlen_q(b); ++i)
            oracle::add_sink_gradient(
                case_, h, facts_[head_index(b, h)][static_cast<std::size_t>(i)],
                row_number(b, h, i), recipe_, sinks[static_cast<std::size_t>(h)]);
        group.push_back({b, h, problem_.seqlen_q(b), case_.queries(b, h),
                         case_.head(tensors_.dout, Side::query, b, h),
                         std::move(facts_[head_index(b, h)])});
      }
      if (!bias.empty()) add_bias_gradient(group, b, kv_head, bias);
      const oracle::Sample sample = sampling_.columns(b, kv_head);
      const auto columns = static_cast<std::int64_t>(sample.positions.size());
      const std::int64_t piece = 1 + columns / 64;
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
                pair.dbias, pair.dbias_sigma, pair.dbias_shared,
                head.facts[static_cast<std::size_t>(i)], row_number(b, head.h, i));
        }
  }

  /// An output whose elements are sums of their own, each a row of one element in the report: row n
  /// is element n in row-major order.
  void judge_scalars(const char* name, const TensorView& view,
                     const std::vector<oracle::ScalarSum>& sums) {
    if (!view.exists()) {
      result_.not_checked.push_back(fmt::format("{}: not given", name));
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
    if (!report.passed) result_.reasons.push_back(fmt::format("{}: {}", report.name, report.why));
    result_.outputs.push_back(std::move(report));
  }

  /// The rows that the call was to append to its cache: turned keys to a rounding, all else to the
  /// bit.
  void judge_appended() {
    std::vector<std::vector<Tally>> parts(1);
    std::vector<Tally>& tallies = parts.front();
    tallies = appended_tallies();
    for (std::int64_t b = 0; b < problem_.batch; ++b)
      for (std::int64_t h = 0; h < problem_.nheads_k; ++h) {
        for (Tally& one : tallies) one.total(problem_.seqlen_new);
        for (std::int64_t j = problem_.seqlen_k(b) - problem_.seqlen_new; j < problem_.seqlen_k(b);
             ++j) {
          const std::vector<double> key = case_.appended_key(b, j, h);
          const std::vector<double> value = case_.appended_value(b, j, h);
          const std::vector<double> exact(value.size(), 0.0);
          const std::vector<double> turned = oracle::bound_turned(case_, key, recipe_);
          tallies[0].row({b, h, j, 0}, tensors_.k, case_.offset(tensors_.k, Side::key, b, j, h),
                         tensors_.k.strides[3], key.data(), turned.data(), problem_.head_dim, 0);
          tallies[1].row({b, h, j, 0}, tensors_.v, case_.offset(tensors_.v, Side::key, b, j, h),
                         tensors_.v.strides[3], value.data(), exact.data(), problem_.head_dim_v, 0);
        }
      }
    finish(appended_tallies(), parts);
  }

  std::vector<Tally> appended_tallies() const {
    std::vector<Tally> tallies;
    tallies.emplace_back("k", tensors_.k.dtype, poisoned_);
    tallies.emplace_back("v", tensors_.v.dtype, poisoned_);
    return tallies;
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
  bool naive_rule_applies(const std::string& output) const {
    if (output == "lse" || output == "k" || output == "v") return false;
    return problem_.dtype == DType::f32 || problem_.dtype == DType::f16 ||
           problem_.dtype == DType::bf16;
  }

  const TensorView& view_named(const std::string& name) const {
    return name == "o"     ? tensors_.o
           : name == "lse" ? tensors_.lse
           : name == "dq"  ? tensors_.dq
           : name == "dk"  ? tensors_.dk
           : name == "dv"  ? tensors_.dv
           : name == "k"   ? tensors_.k
                           : tensors_.v;
  }

  void finish(std::vector<Tally> sums, std::vector<std::vector<Tally>>& parts) {
    for (std::vector<Tally>& part : parts)
      for (std::size_t n = 0; n < part.size(); ++n) sums[n].merge(std::move(part[n]));
    for (Tally& sum : sums) {
      OutputReport report = sum.finish(naive_rule_applies(sum.name()));
      if (!view_named(report.name).exists()) {
        OutputReport absent;
        absent.name = report.name;
        absent.why = "not given";
        result_.not_checked.push_back(fmt::format("{}: not given", report.name));
        report = absent;
      }
      if (report.present && !report.passed)
        result_.reasons.push_back(fmt::format("{}: {}", report.name, report.why));
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
