// The backward pass: the bounds of dQ, dK, dV, and of the gradients of bias and sinks.
// docs/error-bounds.md, section 6.
#include "oracle/bounds.hpp"
#include "oracle/rounding.hpp"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

namespace tilewise::oracle {

namespace {

/// Standard deviation of rounding each o_t as it is stored, seen in D = sum_t dO_t o_t: equal o_t
/// are rounded alike.
double stored_o_sigma(const Row& row, const std::vector<double>& dout, const Recipe& recipe) {
  std::vector<std::pair<double, double>> parts;  // |o_t|, dO_t o_t
  for (std::size_t t = 0; t < dout.size(); ++t)
    parts.emplace_back(sortable(std::abs(row.o[t])), sortable(dout[t] * row.o[t]));
  std::sort(parts.begin(), parts.end());
  double variance = 0, run = 0;
  for (std::size_t t = 0; t < parts.size(); ++t) {
    run += parts[t].second;
    variance += square(parts[t].second);
    const bool last_of_equals = t + 1 == parts.size() || parts[t + 1].first - parts[t].first >
                                                             recipe.output / 16 * parts[t].first;
    if (!last_of_equals) continue;
    variance += square(run);
    run = 0;
  }
  return uniform_sigma * recipe.output * std::sqrt(variance);
}

}  // namespace

RowFacts facts_of(const Row& row, const RowGradient& gradient, const ForwardBound& bound,
                  const std::vector<double>& dout, const Recipe& recipe, DType stored) {
  RowFacts facts;
  if (row.empty) return facts;
  facts.empty = false;
  facts.lse = row.lse;
  facts.d = gradient.d;
  facts.lse_sigma = bound.lse / 6;
  float plain_d = 0;
  double rest = 0, squares = 0;
  for (std::size_t t = 0; t < dout.size(); ++t) {
    plain_d += static_cast<float>(dout[t]) * static_cast<float>(rounded_to(stored, row.o[t]));
    rest += square(dout[t] * bound.o_rest_sigma[t]);
    squares += square(dout[t] * row.o[t]);
  }
  facts.plain_d = static_cast<double>(plain_d);
  for (const double o : row.o) facts.o_size += std::abs(o);
  // D = sum_j p_j dp_j feels the errors of p as o does, by cells of equal scores.
  double of_p = 0, of_scores = 0, flushed = 0;
  for (const std::vector<std::size_t>& group : equal_scores(row.score, recipe.probability / 16)) {
    double along = 0, p = 0, scores = 0;
    for (std::size_t n : group) {
      const double term = row.p[n] * gradient.dp[n];
      along += term;
      p += row.p[n];
      scores += row.p[n] * bound.tau[n] * std::abs(gradient.dp[n] - gradient.d);
      if (group.size() > 1) of_p += square(term);
      flushed += subnormal_error(row.p[n], row.sum, recipe) * std::abs(gradient.dp[n]);
    }
    of_p += square(along) + square(p * gradient.d);
    of_scores += square(scores);
  }
  facts.d_sigma =
      uniform_sigma * recipe.probability * std::sqrt(of_p) + std::sqrt(of_scores) +
      stored_o_sigma(row, dout, recipe) + std::sqrt(rest) + flushed / 6 +
      std::abs(gradient.d) * bound.normaliser / 6 +
      dot_sigma(recipe.accumulate, static_cast<std::int64_t>(dout.size()), gradient.d, squares);
  return facts;
}

namespace {

/// Sums over many terms, an element of a gradient row each, which a kernel computes as: round the
/// operand (p or ds), multiply by a factor (an element of k, q or dO), accumulate. Collects what
/// the bounds need: the exact sum, sums of magnitudes and squares, the largest partial sum, and the
/// operands' own errors. One array a quantity, so that the inner loop runs on vectors.
class BoundedSums {
 public:
  explicit BoundedSums(std::int64_t width) : width_(width), terms_(0) {
    for (std::vector<double>* values :
         {&sum_, &magnitude_, &squares_, &worst_, &flushed_, &variance_})
      values->assign(static_cast<std::size_t>(width), 0.0);
  }

  /// Adds operand * factors[t] to every element; `sigma` is the operand's error before rounding,
  /// `p` the probability that it comes from.
  void add(double operand, const double* factors, double sigma, double p, const Recipe& recipe,
           double kept = 1) {
    ++terms_;
    entries_.push_back({p, operand, sigma, factors});
    // Among the subnormal numbers rounding errs by up to eta; what is below eta may vanish.
    // What is rounded is the operand before dropout's factor `kept` multiplied it.
    const double before = std::abs(operand) / kept;
    const bool subnormal = before < recipe.probability_min;
    const double vanishing =
        before < std::max(2 * recipe.probability_eta, recipe.exp_eta) ? std::abs(operand) : 0;
    const double operand_variance =
        square(sigma) + (subnormal ? square(recipe.probability_eta * kept * uniform_sigma) : 0);
    for (std::int64_t t = 0; t < width_; ++t) {
      const double term = operand * factors[t];
      const double sum = sum_[t] + term;
      sum_[t] = sum;
      magnitude_[t] += std::abs(term);
      squares_[t] += term * term;
      worst_[t] = worst_[t] < std::abs(sum) ? std::abs(sum) : worst_[t];
      flushed_[t] += vanishing * std::abs(factors[t]);
      variance_[t] += operand_variance * factors[t] * factors[t];
    }
  }

  /// Equal probabilities come of equal scores: what is computed from them errs alike, and the
  /// errors add (queries that are equal even share their O, and its part in D).
  void finish(const Recipe& recipe) {
    std::sort(entries_.begin(), entries_.end(),
              [](const Entry& a, const Entry& b) { return a.order() < b.order(); });
    const auto width = static_cast<std::size_t>(width_);
    std::vector<double> rounding(width), sigma(width);
    alike_rounding_.assign(width, 0.0);
    alike_variance_.assign(width, 0.0);
    for (std::size_t first = 0; first < entries_.size();) {
      std::size_t last = first + 1;  // (a NaN is alike to nothing, itself included)
      const double cell = recipe.probability / 16 * entries_[first].p;
      while (last < entries_.size() && entries_[last].p - entries_[first].p <= cell) ++last;
      if (last - first > 1) {
        std::fill(rounding.begin(), rounding.end(), 0.0);
        std::fill(sigma.begin(), sigma.end(), 0.0);
        for (std::size_t n = first; n < last; ++n)
          for (std::size_t t = 0; t < width; ++t) {
            rounding[t] += entries_[n].operand * entries_[n].factors[t];
            sigma[t] += entries_[n].sigma * entries_[n].factors[t];
          }
        for (std::size_t t = 0; t < width; ++t) {
          alike_rounding_[t] += square(rounding[t]);
          alike_variance_[t] += square(sigma[t]);
        }
      }
      first = last;
    }
  }

  std::int64_t terms() const { return terms_; }
  double sum(std::int64_t t) const { return sum_[t]; }

  /// The bound of element t, but for the rounding of the output.
  double bound(std::int64_t t, const Recipe& recipe) const {
    const double root = std::sqrt(squares_[t]);
    const double rounding =
        std::min(recipe.probability * magnitude_[t],
                 six_sigma * recipe.probability * std::sqrt(squares_[t] + alike_rounding_[t]));
    const double accumulation = six_sigma * recipe.accumulate *
                                std::sqrt(static_cast<double>(terms_) + 4) * (worst_[t] + root);
    return rounding + flushed_[t] + 6 * std::sqrt(variance_[t] + alike_variance_[t]) +
           accumulation + static_cast<double>(terms_) * recipe.term_eta;
  }

 private:
  struct Entry {
    double p, operand, sigma;
    const double* factors;

    double order() const { return sortable(p); }
  };
  std::vector<Entry> entries_;
  std::int64_t width_, terms_;
  std::vector<double> sum_, magnitude_, squares_, worst_, flushed_, variance_, alike_rounding_,
      alike_variance_;
};

/// dO . v_j as it meets P: times dropout's factor.
Dot dropped_dot(const Case& problem_case, std::int64_t b, std::int64_t h, std::int64_t i,
                std::int64_t j, const double* dout, const double* v) {
  Dot result = dot(dout, v, problem_case.problem().head_dim_v);
  const double factor = problem_case.dropout_factor(b, h, i, j);
  result.value *= factor;
  result.squares *= square(factor);
  result.largest *= factor;
  return result;
}

/// The standard deviation of ds = p (dp - D) slope, the row's common errors (D, LSE) left out.
/// `slope` is computed as 1 - tanh^2, which cancels where tanh saturates; and an error of tanh's
/// argument changes it by 2 tanh slope / softcap.
double ds_sigma(const AttentionParams& params, double p, double slope, double centred, double tau,
                double product_sigma, const Dot& dp, std::int64_t width, const Recipe& recipe) {
  const double u = recipe.accumulate;
  const double slope_sigma =
      params.softcap != 0 ? 4 * u + 2 * slope / params.softcap * product_sigma : 0;
  return p * (std::abs(centred) * (slope * (tau + 4 * u) + slope_sigma) +
              slope * (dot_sigma(u, width, dp.largest, dp.squares) + u * std::abs(dp.value))) +
         recipe.exp_eta * std::abs(centred) * slope;
}

}  // namespace

std::vector<double> bound_dq(const Case& problem_case, const KeyValueHead& head, const Row& row,
                             const RowGradient& gradient, const RowFacts& facts,
                             std::int64_t query_head, std::int64_t i, const Recipe& recipe) {
  const Problem& problem = problem_case.problem();
  const AttentionParams& params = problem_case.params();
  const std::int64_t d = problem.head_dim, dv = problem.head_dim_v;
  const double u = recipe.accumulate, scale = std::abs(params.softmax_scale);
  BoundedSums sums(d);
  std::vector<double> d_slope(
      static_cast<std::size_t>(d));  // how D's error reaches dq: alike for all keys
  const std::vector<double> q = problem_case.query(head.b, i, query_head);
  const std::vector<double> dout =
      problem_case.row(problem_case.tensors().dout, Side::query, head.b, i, query_head);
  for (std::size_t n = 0; n < row.keys.size(); ++n) {
    if (row.p[n] == 0) continue;
    const std::int64_t j = row.keys[n];
    const double added = problem_case.added(head.b, query_head, i, j);
    const double slope = softcap_slope(params, row.raw[n], added);
    const Dot qk = dot(q.data(), &head.k[j * d], d);
    const double tau =
        score_sigma(params, u, d, qk, row.raw[n], row.score[n], added, row.lse) + exp_units * u;
    const double sigma = ds_sigma(
        params, row.p[n], slope, gradient.dp[n] - gradient.d, tau, raw_sigma(params, u, d, qk),
        dropped_dot(problem_case, head.b, query_head, i, j, dout.data(), &head.v[j * dv]), dv,
        recipe);
    const double* k = &head.k[j * d];
    sums.add(gradient.ds[n], k, sigma, row.p[n], recipe);
    for (std::int64_t t = 0; t < d; ++t) d_slope[t] += row.p[n] * slope * k[t];
  }
  sums.finish(recipe);
  std::vector<double> bound(static_cast<std::size_t>(d));
  for (std::int64_t t = 0; t < d; ++t) {
    const double computed = sums.bound(t, recipe) + 6 * facts.d_sigma * std::abs(d_slope[t]) +
                            (6 * facts.lse_sigma + 4 * u) * std::abs(sums.sum(t));
    bound[t] = stored_bound(gradient.dq[t], scale * computed, recipe);
  }
  return bound;
}

PairGradient pair_gradient(const Case& problem_case, const QueryHead& head, std::int64_t i,
                           std::int64_t j, const double* k, const double* v, const Recipe& recipe) {
  const Problem& problem = problem_case.problem();
  const AttentionParams& params = problem_case.params();
  const std::int64_t d = problem.head_dim, dv = problem.head_dim_v, b = head.b, h = head.h;
  const double u = recipe.accumulate;
  const RowFacts& facts = head.facts[static_cast<std::size_t>(i)];
  PairGradient pair;
  if (facts.empty || !problem_case.visible(b, h, i, j)) return pair;
  const double added = problem_case.added(b, h, i, j);
  const Dot qk = dot(&head.q[i * d], k, d);
  const double raw = params.softmax_scale * qk.value;
  const double score = finished_score(params, raw, added);
  const double p = std::exp(score - facts.lse);
  if (p == 0) return pair;
  const double slope = softcap_slope(params, raw, added);
  const Dot dp = dropped_dot(problem_case, b, h, i, j, &head.dout[i * dv], v);
  const double centred = dp.value - facts.d;
  const double tau =
      score_sigma(params, u, d, qk, raw, score, added, facts.lse) + exp_units * u + facts.lse_sigma;
  pair.counts = true;
  pair.p = p;
  pair.w = p * problem_case.dropout_factor(b, h, i, j);
  pair.w_sigma = pair.w * tau;
  pair.ds = p * centred * slope;
  const double own =
      ds_sigma(params, p, slope, centred, tau, raw_sigma(params, u, d, qk), dp, dv, recipe);
  pair.ds_sigma = own + p * slope * facts.d_sigma;
  const double of_bias = bias_slope(problem_case, raw, b, h, i, j);
  pair.dbias = p * centred * of_bias;
  pair.dbias_sigma =
      of_bias == slope ? own : ds_sigma(params, p, 1, centred, tau, 0, dp, dv, recipe);
  pair.dbias_shared = p * of_bias * facts.d_sigma;
  return pair;
}

Column backward_column(const Case& problem_case, const std::vector<QueryHead>& group,
                       std::int64_t b, std::int64_t kv_head, std::int64_t j, const Recipe& recipe) {
  const Problem& problem = problem_case.problem();
  const std::int64_t d = problem.head_dim, dv = problem.head_dim_v;
  const double u = recipe.accumulate, scale = problem_case.params().softmax_scale;
  const std::vector<double> k = problem_case.key(b, j, kv_head);
  const std::vector<double> v = problem_case.value(b, j, kv_head);
  BoundedSums dk(d), dv_sum(dv);
  const double mean = 1.0 / static_cast<double>(std::max<std::int64_t>(problem.seqlen_k(b), 1));
  for (const QueryHead& head : group)
    for (std::int64_t i = 0; i < head.seqlen; ++i) {
      const double* dout = &head.dout[i * dv];
      if (head.facts[static_cast<std::size_t>(i)].empty) {
        if (problem.conventions.empty_row_output == EmptyRowOutput::mean_v)
          dv_sum.add(mean, dout, 0, mean, recipe);
        continue;
      }
      const PairGradient pair = pair_gradient(problem_case, head, i, j, k.data(), v.data(), recipe);
      if (!pair.counts) continue;
      if (pair.w != 0) dv_sum.add(pair.w, dout, pair.w_sigma, pair.p, recipe, pair.w / pair.p);
      dk.add(pair.ds, &head.q[i * d], pair.ds_sigma, pair.p, recipe);
    }
  dk.finish(recipe);
  dv_sum.finish(recipe);
  Column column;
  for (std::int64_t t = 0; t < d; ++t) {
    const double value = scale * dk.sum(t);
    const double computed = std::abs(scale) * dk.bound(t, recipe) + 4 * u * std::abs(value);
    column.dk.push_back(value);
    column.dk_bound.push_back(stored_bound(value, computed, recipe));
  }
  for (std::int64_t t = 0; t < dv; ++t) {
    column.dv.push_back(dv_sum.sum(t));
    column.dv_bound.push_back(stored_bound(dv_sum.sum(t), dv_sum.bound(t, recipe), recipe));
  }
  return column;
}

void ScalarSum::add(double term, double own, double shared, const RowFacts& facts,
                    std::int64_t source) {
  if (source != source_)
    rows_.push_back({facts.lse, std::log(std::max(facts.o_size, 0x1p-1000)), 0, 0, 0});
  source_ = source;
  Row& row = rows_.back();
  row.terms += 1;
  row.own += own;  // the keys of a row may be equal too
  row.shared += shared;
  sum_ += term;
  squares_ += square(term);
  worst_ = std::max(worst_, std::abs(sum_));
}

namespace {

/// Sorts by `mark` and calls visit(first, last) for each run of marks within `width` of its first.
template <class Iterator, class Mark, class Visit>
void for_each_cell(Iterator first, Iterator end, Mark mark, double width, const Visit& visit) {
  std::sort(first, end,
            [&](const auto& a, const auto& b) { return sortable(a.*mark) < sortable(b.*mark); });
  while (first != end) {
    Iterator last = first + 1;  // (a NaN is alike to nothing, itself included)
    while (last != end && (*last).*mark - (*first).*mark <= width) ++last;
    visit(first, last);
    first = last;
  }
}

}  // namespace

double ScalarSum::bound(const Recipe& recipe, DType stored) const {
  // Rows of one LSE and O come of equal queries: their errors are equal, and so are those of adding
  // their terms, and both add up. Those of other rows are independent.
  const double width = std::max(recipe.probability / 16, 8 * recipe.accumulate);
  std::vector<Row> rows = rows_;
  double count = 0, variance = 0, additions = 0;
  const auto add_cell = [&](auto row, auto end) {
    double own = 0, shared = 0, roots = 0;
    for (; row != end; ++row) {
      own += row->own;
      shared += row->shared;
      roots += std::sqrt(row->terms);
      count += row->terms;
    }
    variance += square(own) + square(shared);
    additions += square(roots);
  };
  for_each_cell(rows.begin(), rows.end(), &Row::lse, width, [&](auto first, auto end) {
    for_each_cell(first, end, &Row::log_o, width, add_cell);
  });
  const double accumulation =
      six_sigma * recipe.accumulate * std::sqrt(additions + 4) * (worst_ + std::sqrt(squares_));
  const double computed = 6 * std::sqrt(variance) + accumulation + count * recipe.term_eta;
  return computed + unit_roundoff(stored) * (std::abs(sum_) + computed) +
         subnormal_roundoff(stored);
}

void add_sink_gradient(const Case& problem_case, std::int64_t h, const RowFacts& facts,
                       std::int64_t source, const Recipe& recipe, ScalarSum& sum) {
  if (facts.empty) return;
  const double u = recipe.accumulate, sink = problem_case.sink(h);
  const double p = std::exp(sink - facts.lse);
  const double tau =
      (exp_units + 2 * std::abs(sink) + 2 * std::abs(facts.lse)) * u + facts.lse_sigma;
  // One error: that of the normaliser is in p and in D.
  sum.add(-p * facts.d, 0,
          p * (std::abs(facts.d) * tau + facts.d_sigma) + recipe.exp_eta * std::abs(facts.d), facts,
          source);
}

}  // namespace tilewise::oracle
