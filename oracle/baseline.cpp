#include "oracle/baseline.hpp"

#include <algorithm>
#include <cmath>

namespace tilewise::oracle {

namespace {

/// Arithmetic as a framework's plain operations do it: products and sums in float32 inside one
/// operation, every operation's result rounded to the tensors' format.
class Plain {
 public:
  explicit Plain(const Problem& problem)
      : stored_(problem.dtype), result_(problem.output_dtype()) {}

  double stored(double x) const { return rounded_to(stored_, x); }
  double result(double x) const { return rounded_to(result_, x); }

  double dot(const double* x, const double* y, std::int64_t n) const {
    float sum = 0;
    for (std::int64_t t = 0; t < n; ++t) sum += static_cast<float>(x[t]) * static_cast<float>(y[t]);
    return stored(static_cast<double>(sum));
  }
  /// The same with y scaled, and rounded, before the product.
  double dot_scaled(const double* x, const double* y, double scale, std::int64_t n) const {
    float sum = 0;
    for (std::int64_t t = 0; t < n; ++t)
      sum += static_cast<float>(x[t]) * static_cast<float>(stored(scale * y[t]));
    return stored(static_cast<double>(sum));
  }

 private:
  DType stored_, result_;
};

double score(const Plain& plain, const AttentionParams& params, double raw, double added) {
  return plain.stored(finished_score(params, raw, added));
}

}  // namespace

double naive_tolerance(DType dtype, double value) {
  const double x = rounded_to(dtype, value);
  const double there_and_back = rounded_to(dtype, rounded_to(dtype, x + 0.3) - 0.3);
  return 2 * std::abs(there_and_back - x);
}

NaiveRowError naive_row(const Case& problem_case, const KeyValueHead& head, const Row& row,
                        const RowGradient* gradient, std::int64_t query_head, std::int64_t i) {
  const Problem& problem = problem_case.problem();
  const AttentionParams& params = problem_case.params();
  const std::int64_t d = problem.head_dim, dv = problem.head_dim_v;
  const Plain plain(problem);
  const std::vector<double> q =
      problem_case.row(problem_case.tensors().q, Side::query, head.b, i, query_head);
  std::vector<double> dout;
  if (gradient != nullptr)
    dout = problem_case.row(problem_case.tensors().dout, Side::query, head.b, i, query_head);

  NaiveRowError error;
  const std::size_t n_keys = row.keys.size();
  for (const bool reversed : {false, true}) {
    const auto at = [&](std::size_t n) { return reversed ? n_keys - 1 - n : n; };
    std::vector<float> p(n_keys);
    float max = -INFINITY, sum = 0;
    for (std::size_t n = 0; n < n_keys; ++n) {
      const std::int64_t j = row.keys[at(n)];
      const double raw =
          reversed ? plain.dot_scaled(q.data(), &head.k[j * d], params.softmax_scale, d)
                   : plain.stored(params.softmax_scale * plain.dot(q.data(), &head.k[j * d], d));
      const double added = problem_case.added(head.b, query_head, i, j);
      p[n] = static_cast<float>(score(plain, params, raw, added));
      max = std::max(max, p[n]);
    }
    for (float& x : p) sum += x = std::exp(x - max);
    for (float& x : p) x = static_cast<float>(plain.stored(static_cast<double>(x / sum)));

    std::vector<float> o(static_cast<std::size_t>(dv));
    for (std::size_t n = 0; n < n_keys; ++n)
      for (std::int64_t t = 0; t < dv; ++t)
        o[t] += p[n] * static_cast<float>(head.v[row.keys[at(n)] * dv + t]);
    for (std::int64_t t = 0; t < dv; ++t)
      error.o = std::max(error.o, std::abs(plain.result(static_cast<double>(o[t])) - row.o[t]));
    if (gradient == nullptr) continue;

    std::vector<float> dp(n_keys), dq(static_cast<std::size_t>(d));
    float delta = 0;
    for (std::size_t n = 0; n < n_keys; ++n) {
      dp[n] = static_cast<float>(plain.dot(dout.data(), &head.v[row.keys[at(n)] * dv], dv));
      delta += p[n] * dp[n];
    }
    for (std::size_t n = 0; n < n_keys; ++n) {
      const std::int64_t j = row.keys[at(n)];
      const double slope =
          softcap_slope(params, row.raw[at(n)], problem_case.added(head.b, query_head, i, j));
      const auto ds =
          static_cast<float>(plain.stored(slope * static_cast<double>(p[n] * (dp[n] - delta))));
      for (std::int64_t t = 0; t < d; ++t) dq[t] += ds * static_cast<float>(head.k[j * d + t]);
    }
    for (std::int64_t t = 0; t < d; ++t)
      error.dq = std::max(error.dq,
                          std::abs(plain.result(params.softmax_scale * static_cast<double>(dq[t])) -
                                   gradient->dq[t]));
  }
  return error;
}

NaiveColumnError naive_column(const Case& problem_case, const std::vector<QueryHead>& group,
                              const Column& column, std::int64_t b, std::int64_t kv_head,
                              std::int64_t j) {
  const Problem& problem = problem_case.problem();
  const AttentionParams& params = problem_case.params();
  const AttentionTensors& tensors = problem_case.tensors();
  const std::int64_t d = problem.head_dim, dv = problem.head_dim_v;
  const Plain plain(problem);
  const std::vector<double> k = problem_case.row(tensors.k, Side::key, b, j, kv_head);
  const std::vector<double> v = problem_case.row(tensors.v, Side::key, b, j, kv_head);
  NaiveColumnError error;
  for (const bool reversed : {false, true}) {
    std::vector<float> dk(static_cast<std::size_t>(d)), dv_sum(static_cast<std::size_t>(dv));
    for (const QueryHead& head : group)
      for (std::int64_t n = 0; n < head.seqlen; ++n) {
        const std::int64_t i = reversed ? head.seqlen - 1 - n : n;
        const RowFacts& facts = head.facts[static_cast<std::size_t>(i)];
        if (facts.empty || !problem_case.visible(b, head.h, i, j)) continue;
        const double* q = &head.q[i * d];
        const double* dout = &head.dout[i * dv];
        const double added = problem_case.added(b, head.h, i, j);
        const double raw = reversed
                               ? plain.dot_scaled(q, k.data(), params.softmax_scale, d)
                               : plain.stored(params.softmax_scale * plain.dot(q, k.data(), d));
        const double p = plain.stored(std::exp(score(plain, params, raw, added) - facts.lse));
        const double dp = plain.dot(dout, v.data(), dv);
        const double ds = plain.stored(p * (dp - facts.d) * softcap_slope(params, raw, added));
        for (std::int64_t t = 0; t < dv; ++t)
          dv_sum[t] += static_cast<float>(p) * static_cast<float>(dout[t]);
        for (std::int64_t t = 0; t < d; ++t)
          dk[t] += static_cast<float>(ds) * static_cast<float>(q[t]);
      }
    for (std::int64_t t = 0; t < d; ++t)
      error.dk = std::max(
          error.dk,
          std::abs(plain.result(params.softmax_scale * static_cast<double>(dk[t])) - column.dk[t]));
    for (std::int64_t t = 0; t < dv; ++t)
      error.dv =
          std::max(error.dv, std::abs(plain.result(static_cast<double>(dv_sum[t])) - column.dv[t]));
  }
  return error;
}

}  // namespace tilewise::oracle
