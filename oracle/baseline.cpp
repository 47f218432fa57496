#include "oracle/baseline.hpp"

#include <algorithm>
#include <cmath>

namespace tilewise::oracle {

namespace {

/// A float32 dot product in a few running sums, as vector code computes it.
double dot(const float* x, const float* y, std::int64_t n) {
  constexpr std::int64_t lanes = 8;
  float sum[lanes] = {};
  std::int64_t t = 0;
  for (; t + lanes <= n; t += lanes)
    for (std::int64_t lane = 0; lane < lanes; ++lane) sum[lane] += x[t + lane] * y[t + lane];
  for (; t < n; ++t) sum[0] += x[t] * y[t];
  float total = 0;
  for (const float one : sum) total += one;
  return static_cast<double>(total);
}

/// y += a x
void add_scaled(float* y, float a, const float* x, std::int64_t n) {
  for (std::int64_t t = 0; t < n; ++t) y[t] += a * x[t];
}

/// Every operation's result is rounded to the tensors' format, as a framework stores it. Under fp8
/// inputs only the operands of products (P, dS) are fp8; scores would not fit.
class Plain {
 public:
  explicit Plain(const Case& problem_case)
      : params_(problem_case.params()),
        operand_(problem_case.problem().dtype),
        stored_(problem_case.problem().output_dtype()) {}

  double stored(double x) const { return rounded_to(stored_, x); }
  float operand(double x) const { return static_cast<float>(rounded_to(operand_, x)); }
  /// Tensors as they are stored: what comes out of rotary or decoding is rounded once more.
  std::vector<float> tensor(const std::vector<double>& values) const {
    std::vector<float> rounded;
    rounded.reserve(values.size());
    for (const double x : values) rounded.push_back(static_cast<float>(stored(x)));
    return rounded;
  }

  /// The finished score in float32; `scaled` says that k had the scale multiplied in already.
  float score(const float* q, const float* k, std::int64_t d, bool scaled, double added) const {
    const double product = stored(dot(q, k, d));
    const auto raw = static_cast<float>(scaled ? product : stored(params_.softmax_scale * product));
    const auto cap = static_cast<float>(params_.softcap), bias = static_cast<float>(added);
    float finished = raw + bias;
    if (params_.softcap != 0)
      finished = params_.conventions.score_order == ScoreOrder::softcap_bias_mask
                     ? cap * std::tanh(raw / cap) + bias
                     : cap * std::tanh((raw + bias) / cap);
    return static_cast<float>(stored(static_cast<double>(finished)));
  }

  /// The softcap's derivative in float32, `raw` being the scaled product.
  float slope(double raw, double added) const {
    if (params_.softcap == 0) return 1;
    const bool bias_inside = params_.conventions.score_order == ScoreOrder::bias_softcap_mask;
    const auto t =
        std::tanh(static_cast<float>((bias_inside ? raw + added : raw) / params_.softcap));
    return 1 - t * t;
  }

  /// Largest difference between `factor` times the float32 sums, as stored, and the exact values.
  double error(const std::vector<float>& sums, double factor,
               const std::vector<double>& exact) const {
    double largest = 0;
    for (std::size_t t = 0; t < exact.size(); ++t)
      largest = std::max(
          largest, std::abs(rounded_to(stored_, factor * static_cast<double>(sums[t])) - exact[t]));
    return largest;
  }

 private:
  const AttentionParams& params_;
  DType operand_, stored_;
};

}  // namespace

double naive_tolerance(DType dtype, double value) {
  const double x = rounded_to(dtype, value);
  const double there_and_back = rounded_to(dtype, rounded_to(dtype, x + 0.3) - 0.3);
  return 2 * std::abs(there_and_back - x);
}

PlainHead plain_head(const Case& problem_case, const KeyValueHead& head) {
  const Plain plain(problem_case);
  PlainHead result{plain.tensor(head.k), {}, plain.tensor(head.v)};
  result.k_scaled.reserve(head.k.size());
  for (const double x : head.k)
    result.k_scaled.push_back(
        static_cast<float>(plain.stored(problem_case.params().softmax_scale * x)));
  return result;
}

NaiveRowError naive_row(const Case& problem_case, const KeyValueHead& head,
                        const PlainHead& plain_kv, const Row& row, const RowGradient* gradient,
                        std::int64_t query_head, std::int64_t i) {
  const Problem& problem = problem_case.problem();
  const AttentionParams& params = problem_case.params();
  const AttentionTensors& tensors = problem_case.tensors();
  const std::int64_t d = problem.head_dim, dv = problem.head_dim_v;
  const Plain plain(problem_case);
  const std::vector<float> q = plain.tensor(problem_case.query(head.b, i, query_head));
  const std::vector<float> dout =
      gradient != nullptr
          ? plain.tensor(problem_case.row(tensors.dout, Side::query, head.b, i, query_head))
          : std::vector<float>{};

  NaiveRowError error;
  const std::size_t n_keys = row.keys.size();
  for (const bool second_order : {false, true}) {
    const auto key = [&](std::size_t n) { return row.keys[second_order ? n_keys - 1 - n : n]; };
    const std::vector<float>& k = second_order ? plain_kv.k_scaled : plain_kv.k;
    std::vector<float> p(n_keys);
    float max = -INFINITY, sum = 0;
    for (std::size_t n = 0; n < n_keys; ++n) {
      const double added = problem_case.added(head.b, query_head, i, key(n));
      p[n] = plain.score(q.data(), &k[key(n) * d], d, second_order, added);
      max = std::max(max, p[n]);
    }
    const auto sink = static_cast<float>(problem_case.sink(query_head));
    max = std::max(max, sink);
    for (float& x : p) sum += x = std::exp(x - max);
    sum += std::exp(sink - max);
    for (float& x : p) x = plain.operand(static_cast<double>(x / sum));
    const auto dropout = [&](std::size_t n) {
      return static_cast<float>(problem_case.dropout_factor(head.b, query_head, i, key(n)));
    };

    std::vector<float> o(static_cast<std::size_t>(dv));
    for (std::size_t n = 0; n < n_keys; ++n)
      add_scaled(o.data(), p[n] * dropout(n), &plain_kv.v[key(n) * dv], dv);
    error.o = std::max(error.o, plain.error(o, 1, row.o));
    if (gradient == nullptr) continue;

    std::vector<float> dp(n_keys), dq(static_cast<std::size_t>(d));
    float delta = 0;
    for (std::size_t n = 0; n < n_keys; ++n) {
      dp[n] = dropout(n) *
              static_cast<float>(plain.stored(dot(dout.data(), &plain_kv.v[key(n) * dv], dv)));
      delta += p[n] * dp[n];
    }
    if (second_order) {
      delta = 0;
      for (std::size_t t = 0; t < o.size(); ++t)
        delta += dout[t] * static_cast<float>(plain.stored(static_cast<double>(o[t])));
    }
    for (std::size_t n = 0; n < n_keys; ++n) {
      const double raw = row.raw[second_order ? n_keys - 1 - n : n];
      const double slope =
          softcap_slope(params, raw, problem_case.added(head.b, query_head, i, key(n)));
      const float ds = plain.operand(slope * static_cast<double>(p[n] * (dp[n] - delta)));
      add_scaled(dq.data(), ds, &plain_kv.k[key(n) * d], d);
    }
    error.dq = std::max(error.dq, plain.error(dq, params.softmax_scale, gradient->dq));
  }
  return error;
}

NaiveColumnError naive_column(const Case& problem_case, const std::vector<QueryHead>& group,
                              const Column& column, std::int64_t b, std::int64_t kv_head,
                              std::int64_t j) {
  const Problem& problem = problem_case.problem();
  const AttentionParams& params = problem_case.params();
  const std::int64_t d = problem.head_dim, dv = problem.head_dim_v;
  const Plain plain(problem_case);
  const std::vector<double> k_exact = problem_case.key(b, j, kv_head);
  const std::vector<float> v = plain.tensor(problem_case.value(b, j, kv_head));
  NaiveColumnError error;
  for (const bool second_order : {false, true}) {
    std::vector<float> k;
    k.reserve(k_exact.size());
    for (const double x : k_exact)
      k.push_back(static_cast<float>(second_order ? plain.stored(params.softmax_scale * x) : x));
    std::vector<float> dk(static_cast<std::size_t>(d)), dv_sum(static_cast<std::size_t>(dv));
    std::vector<float> q(static_cast<std::size_t>(d)), dout(static_cast<std::size_t>(dv));
    for (const QueryHead& head : group)
      for (std::int64_t n = 0; n < head.seqlen; ++n) {
        const std::int64_t i = second_order ? head.seqlen - 1 - n : n;
        const RowFacts& facts = head.facts[static_cast<std::size_t>(i)];
        if (facts.empty || !problem_case.visible(b, head.h, i, j)) continue;
        std::copy_n(&head.q[i * d], d, q.begin());
        std::copy_n(&head.dout[i * dv], dv, dout.begin());
        const double added = problem_case.added(b, head.h, i, j);
        const float score = plain.score(q.data(), k.data(), d, second_order, added);
        const float p =
            plain.operand(static_cast<double>(std::exp(score - static_cast<float>(facts.lse))));
        const double dropout = problem_case.dropout_factor(b, head.h, i, j);
        const double dp = dropout * plain.stored(dot(dout.data(), v.data(), dv));
        const double product = dot(q.data(), k.data(), d);
        const auto slope = static_cast<double>(
            plain.slope(second_order ? product : params.softmax_scale * product, added));
        const double delta = second_order ? facts.plain_d : facts.d;
        const float ds = plain.operand(static_cast<double>(p) * (dp - delta) * slope);
        add_scaled(dv_sum.data(), p * static_cast<float>(dropout), dout.data(), dv);
        add_scaled(dk.data(), ds, q.data(), d);
      }
    error.dk = std::max(error.dk, plain.error(dk, params.softmax_scale, column.dk));
    error.dv = std::max(error.dv, plain.error(dv_sum, 1, column.dv));
  }
  return error;
}

}  // namespace tilewise::oracle
