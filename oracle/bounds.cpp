// The forward pass: what a verdict allows, and the bounds of O and LSE. docs/error-bounds.md,
// sections 2, 4 and 5.
#include "oracle/bounds.hpp"

#include "oracle/rounding.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace tilewise::oracle {

namespace {

/// How often the running maximum moves when keys come in order: each time, everything so far is
/// multiplied by a rounded exponential.
double rescales(const std::vector<double>& scores) {
  double count = 0, max = -INFINITY;
  for (double s : scores)
    if (s > max) {
      max = s;
      ++count;
    }
  return count;
}

}  // namespace

Recipe recipe_for(const Problem& problem) {
  const DType dtype = problem.dtype, stored = problem.output_dtype();
  const double u = unit_roundoff(dtype == DType::f64 ? DType::f64 : DType::f32);
  const int normal_exponent = info(dtype).smallest_exponent + info(dtype).significand - 1;
  return {u,
          unit_roundoff(dtype),
          subnormal_roundoff(dtype),
          power_of_two(normal_exponent),
          problem.converts() ? unit_roundoff(dtype) + 2 * u : 0,
          unit_roundoff(stored),
          subnormal_roundoff(stored),
          unit_roundoff(problem.lse_dtype()),
          dtype == DType::f64 ? power_of_two(-500) : subnormal_roundoff(DType::f32),
          dtype == DType::f64 ? power_of_two(-500) : power_of_two(-126)};
}

ForwardBound bound_forward(const Case& problem_case, const KeyValueHead& head, const Row& row,
                           std::int64_t query_head, std::int64_t i, const Recipe& recipe) {
  const Problem& problem = problem_case.problem();
  const AttentionParams& params = problem_case.params();
  const std::int64_t d = problem.head_dim, dv = problem.head_dim_v;
  const auto width = static_cast<std::size_t>(dv);
  const double u = recipe.accumulate;
  ForwardBound bound;
  bound.o.assign(width, 0.0);
  bound.o_rest_sigma.assign(width, 0.0);
  if (row.empty) {
    // Zero and NaN are exact; a mean of V is a sum like any other.
    for (std::size_t t = 0; t < width; ++t) {
      double magnitude = 0;
      for (std::int64_t j = 0; j < head.seqlen; ++j) magnitude += std::abs(head.v[j * dv + t]);
      if (problem.conventions.empty_row_output == EmptyRowOutput::mean_v)
        bound.o[t] = stored_bound(
            row.o[t],
            (recipe.probability / std::max(1.0, static_cast<double>(head.seqlen)) + u) * magnitude +
                static_cast<double>(head.seqlen) * recipe.term_eta,
            recipe);
    }
    bound.scale = INFINITY;
    return bound;
  }

  const std::vector<double> q = problem_case.query(head.b, i, query_head);
  const std::size_t n_keys = row.keys.size();
  const double norm = std::inner_product(row.o.begin(), row.o.end(), row.o.begin(), 0.0);
  const double mean_raw = std::inner_product(row.p.begin(), row.p.end(), row.raw.begin(), 0.0);
  const double mean_score =
      std::inner_product(row.p.begin(), row.p.end(), row.score.begin(), 0.0, std::plus<>(),
                         [](double p, double s) { return p == 0 ? 0.0 : p * s; });

  // Per key: tau, the relative error of p_j from the score and exp; aligned, v_j . o / |o|^2.
  std::vector<double> tau(n_keys), aligned(n_keys), conversion(n_keys);
  double worst_tau = 0, converted_scores = 0;
  for (std::size_t n = 0; n < n_keys; ++n) {
    const std::int64_t j = row.keys[n];
    aligned[n] = norm > 0 ? dot(row.o.data(), &head.v[j * dv], dv).value / norm : 0;
    if (row.p[n] == 0) continue;  // a bias of -inf would make 0 x inf
    const double added = problem_case.added(head.b, query_head, i, j);
    const Dot qk = dot(q.data(), &head.k[j * d], d);
    tau[n] =
        score_sigma(params, u, d, qk, row.raw[n], row.score[n], added, row.max) + exp_units * u;
    if (problem.converts()) {
      conversion[n] = conversion_sigma(problem_case, q.data(), &head.k[j * d], qk, recipe) *
                      softcap_slope(params, row.raw[n], added);
      converted_scores += row.p[n] * square(conversion[n]);
    }
    worst_tau = std::max(worst_tau, row.p[n] * (tau[n] + conversion[n]));
  }
  // Where an error of the score is no longer small, exp turns it into more.
  const double amplify = std::exp(std::min(6 * worst_tau, 50.0));

  // Sums over groups of keys whose errors are alike, squared: the variances.
  std::vector<double> p_variance(width), s_variance(width);
  double p_aligned = 0, s_aligned = 0, s_alone = 0, correlated_additions = 0;
  std::vector<double> p_sum(width), s_sum(width);
  for (const std::vector<std::size_t>& group : equal_scores(row.score, recipe.probability / 16)) {
    std::fill(p_sum.begin(), p_sum.end(), 0.0);
    std::fill(s_sum.begin(), s_sum.end(), 0.0);
    double p_along = 0, s_along = 0, p = 0, s = 0;
    // Alike is not equal: in a group, two neighbours may still round to different sides.
    const bool apart = group.size() > 1;
    for (std::size_t n : group) {
      const double* v = &head.v[row.keys[n] * dv];
      for (std::size_t t = 0; t < width; ++t) {
        p_sum[t] += row.w[n] * v[t];
        s_sum[t] += tau[n] * std::abs(row.w[n] * v[t] - row.p[n] * row.o[t]);
        if (apart) p_variance[t] += square(row.w[n] * v[t]);
      }
      if (apart) p_aligned += square(row.w[n] * aligned[n]);
      p_along += row.w[n] * aligned[n];
      s_along += tau[n] * std::abs(row.w[n] * aligned[n] - row.p[n]);
      p += row.p[n];
      s += row.p[n] * tau[n];
    }
    for (std::size_t t = 0; t < width; ++t) {
      p_variance[t] += square(p_sum[t]) + square(p * row.o[t]);
      s_variance[t] += square(s_sum[t]);
    }
    p_aligned += square(p_along) + square(p);
    s_aligned += square(s_along);
    s_alone += square(s);
    correlated_additions += square(static_cast<double>(group.size()));
  }

  // Sums that need the keys in order: magnitudes, worst partial sums, sensitivity to the scale.
  std::vector<double> magnitude(width), tiny(width), partial(width), worst_partial(width),
      centred(width), worst_centred(width), scale_slope(width), raw_slope(width), squares(width),
      spread(width);
  for (std::size_t n = 0; n < n_keys; ++n) {
    const double* v = &head.v[row.keys[n] * dv];
    const double p = row.p[n], w = row.w[n];
    const double eta = subnormal_error(p, row.sum, recipe);
    const double dropout = p > 0 ? w / p : 0;
    for (std::size_t t = 0; t < width; ++t) {
      const double term = w * v[t], pull = term - p * row.o[t];  // pull: d o / d s_j
      magnitude[t] += w * std::abs(v[t]) + p * std::abs(row.o[t]);
      tiny[t] += eta * dropout * std::abs(v[t]);
      partial[t] += term;
      worst_partial[t] = std::max(worst_partial[t], std::abs(partial[t]));
      centred[t] += pull;
      worst_centred[t] = std::max(worst_centred[t], std::abs(centred[t]));
      if (p > 0) scale_slope[t] += row.score[n] * pull;
      raw_slope[t] += row.raw[n] * pull;
      squares[t] += square(term);
      if (p > 0) spread[t] += square(pull) / p;
    }
  }

  // A query that was rounded errs alike against every key: no independence to lean on, only Cauchy
  // and Schwarz, |sum_j p_j x_j e_j| <= sqrt(sum_j p_j x_j^2) sqrt(sum_j p_j e_j^2).
  const double from_conversion = amplify * 6 * std::sqrt(converted_scores);
  const double converted_value = problem.kv ? recipe.input : 0;
  double spread_along = 0;
  for (std::size_t n = 0; n < n_keys; ++n)
    if (row.p[n] > 0) spread_along += square(row.w[n] * aligned[n] - row.p[n]) / row.p[n];

  const double additions = std::sqrt(static_cast<double>(n_keys) + 4);
  const double rescaling = 4 * u * std::sqrt(rescales(row.score));
  // Relative errors: of l as a sum; of the normaliser, for parts that were computed apart
  // (split-KV) are merged with weights exp(lse_part - lse).
  const double sum_error = six_sigma * u * std::sqrt(correlated_additions) + 4 * u;
  const double sink_sigma =
      row.sink > 0
          ? exp_units * u + u * (std::abs(row.max) + std::abs(problem_case.sink(query_head)))
          : 0;
  const double normaliser = sum_error + 2 * u * std::abs(row.lse) + 6 * row.sink * sink_sigma;
  const double kept_scale = 1 / (1 - problem_case.params().dropout_p);
  double accumulation_along = 0, systematic_along = 0;
  for (std::size_t t = 0; t < width; ++t) {
    const double o = std::abs(row.o[t]);
    const double rounding_of_p =
        std::min(recipe.probability * magnitude[t],
                 six_sigma * recipe.probability * std::sqrt(p_variance[t]));
    const double scores = amplify * 6 * std::sqrt(s_variance[t]) +
                          from_conversion * std::sqrt(spread[t]) +
                          six_sigma * converted_value * std::sqrt(p_variance[t]);
    const double accumulation =
        six_sigma * (u * additions * (worst_partial[t] + std::sqrt(squares[t])) +
                     rescaling * worst_centred[t]) +
        static_cast<double>(n_keys + 4) * recipe.term_eta * kept_scale;
    const double scale_error = 3 * u * std::max(std::abs(scale_slope[t]), std::abs(raw_slope[t]));
    const double computed =
        rounding_of_p + scores + accumulation + scale_error + tiny[t] + normaliser * o;
    bound.o[t] = stored_bound(o, computed, recipe);
    bound.o_rest_sigma[t] = (accumulation + scale_error) / 6 + recipe.output_eta;
    accumulation_along += square((accumulation + tiny[t]) * o);
    systematic_along += (scale_error + recipe.output_eta + tiny[t]) * o;
  }

  // One factor for the whole row: elements with equal values are rounded alike.
  if (norm > 0) {
    std::vector<double> magnitudes(width);
    for (std::size_t t = 0; t < width; ++t) magnitudes[t] = sortable(std::abs(row.o[t]));
    std::sort(magnitudes.begin(), magnitudes.end());
    double variance = 0, run = 0;
    for (std::size_t t = 0; t < width; ++t) {
      run += square(magnitudes[t]);
      const bool last_of_equals =
          t + 1 == width || magnitudes[t + 1] - magnitudes[t] > recipe.output / 16 * magnitudes[t];
      if (!last_of_equals) continue;
      variance += square(run / norm);
      run = 0;
    }
    const double rounding =
        std::min(recipe.output, six_sigma * recipe.output * std::sqrt(variance));
    double p_magnitude = 0;
    for (std::size_t n = 0; n < n_keys; ++n)
      p_magnitude += row.w[n] * std::abs(aligned[n]) + row.p[n];
    const double rounding_of_p = std::min(recipe.probability * p_magnitude,
                                          six_sigma * recipe.probability * std::sqrt(p_aligned));
    bound.scale = rounding + rounding_of_p + amplify * 6 * std::sqrt(s_aligned) +
                  from_conversion * std::sqrt(spread_along) +
                  six_sigma * converted_value * std::sqrt(p_aligned) +
                  (std::sqrt(accumulation_along) + systematic_along) / norm + normaliser;
  } else {
    bound.scale = INFINITY;
  }

  // No term for a row sum of rounded P: l is to be summed before P is rounded.
  bound.normaliser = normaliser;
  bound.tau = std::move(tau);
  bound.lse = amplify * 6 * std::sqrt(s_alone + square(row.sink * sink_sigma)) + from_conversion +
              3 * u * std::max(std::abs(mean_score), std::abs(mean_raw)) + sum_error +
              six_sigma * rescaling + 2 * u * std::abs(row.max) +
              2 * std::max(u, recipe.lse) * (std::abs(row.lse) + std::log1p(row.sum) + 1);
  return bound;
}

std::vector<double> bound_turned(const Case& problem_case, const std::vector<double>& key,
                                 const Recipe& recipe) {
  std::vector<double> bound(key.size(), 0.0);
  const KvCache& cache = problem_case.tensors().cache;
  if (!cache.rotates()) return bound;
  const auto pairs = static_cast<std::size_t>(cache.rotary_cos.shape[1]);
  for (std::size_t pair = 0; pair < pairs; ++pair) {
    const std::size_t first = cache.rotary_interleaved ? 2 * pair : pair;
    const std::size_t second = cache.rotary_interleaved ? first + 1 : pair + pairs;
    // Two products and a sum, each of at most the pair's length.
    const double computed = 3 * recipe.accumulate * std::hypot(key[first], key[second]);
    for (const std::size_t t : {first, second})
      bound[t] =
          computed + recipe.probability * (std::abs(key[t]) + computed) + recipe.probability_eta;
  }
  return bound;
}

}  // namespace tilewise::oracle
