// The oracle's gradients against central differences of its own forward pass:
//
//   df/dx = (f(x + h) - f(x - h)) / 2h + error,  f = sum dO . O
//   |error| <= h^2 / 6 max |f'''| + (what f loses to rounding) / h
//
// Both parts are known here. One element of q or k moves the scores of a row along s + h a, where
// |a_j| <= A = scale |k_jc| (or scale |q_ic|); f is then the mean of g_j = dO . v_j under p(h),
// whose third derivative is a joint cumulant of (g, a, a, a), at most 2 R_g R_a^3 with ranges R. A
// softcap bends the line: s(h) = cap tanh(..) has |s'| <= A, |s''| <= 0.77 A^2 / cap, |s'''| <= 2
// A^3 / cap^2, and the chain rule adds 3 cum(g, s', s'') + cum(g, s'''). In v, f is linear: no
// truncation at all. A bias or a sink moves some of a row's scores by h itself: A = 1. Dropout's
// mask stays as it is, and its factor belongs to g. The step balances the two parts, which makes it
// about the cube root of the unit roundoff.
#include "oracle/attention.hpp"
#include "tests/random_problem.hpp"
#include "tests/rounding_bounds.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <vector>

namespace tilewise::tests {
namespace {

double third_derivative(double softcap, double direction, double gradient_range) {
  const double range = 2 * direction;
  double cumulants = 2 * range * range * range;
  if (softcap != 0)
    cumulants += 3 * range * 2 * 0.77 * direction * direction / softcap +
                 2 * 2 * direction * direction * direction / (softcap * softcap);
  return gradient_range * cumulants;
}

class Differences {
 public:
  explicit Differences(const Problem& problem) : problem_(problem), tensors_(problem) {
    // Values on a grid: x + h and x - h are then exact.
    for (const TensorView* view : {&t().q, &t().k, &t().v})
      for_each(*view, [&](std::int64_t b, std::int64_t s, std::int64_t h, std::int64_t c) {
        set(*view, b, s, h, c, std::ldexp(std::round(std::ldexp(get(*view, b, s, h, c), 12)), -12));
      });
    if (t().bias.exists())
      for (std::int64_t n = 0; n < t().bias.elements(); ++n) {
        void* const bias = t().bias.at(n);
        store(DType::f64, bias,
              std::ldexp(std::round(std::ldexp(load(DType::f64, bias), 12)), -12));
      }
    if (t().sinks.exists()) {  // in f64, where x + h is exact as well
      for (std::int64_t h = 0; h < problem_.nheads_q; ++h)
        sinks_.push_back(
            std::ldexp(std::round(std::ldexp(load(DType::f32, t().sinks.at(h)), 12)), -12));
      tensors_.views().sinks = contiguous(sinks_.data(), DType::f64, problem_.nheads_q);
    }
    gradients_ = oracle::attention(oracle::Case(problem_, t()));
    bounds_ = rounding_bounds(problem_, t());
    for (std::int64_t b = 0; b < problem_.batch; ++b)
      heads_.push_back(second_sequence(problem_, t(), b));
  }

  /// Compares a sample of the elements; returns the largest error over its tolerance.
  double check(Random& random) {
    double worst = 0;
    for_each(t().q, [&](std::int64_t b, std::int64_t i, std::int64_t h, std::int64_t c) {
      if (!random.chance(0.3)) return;
      const double third = third_of_row(b, h, i, largest_key(b, h, i, c));
      const std::size_t at =
          index(b, h, i, c, problem_.nheads_q, problem_.max_seqlen_q(), problem_.head_dim);
      worst = std::max(worst, compare("dq", t().q, b, i, h, c, third, gradients_.dq[at],
                                      static_cast<double>(bounds_.dq[at])));
    });
    for_each(t().k, [&](std::int64_t b, std::int64_t j, std::int64_t kv, std::int64_t c) {
      if (!random.chance(0.3)) return;
      double third = 0;
      for (std::int64_t h = kv * problem_.group(); h < (kv + 1) * problem_.group(); ++h)
        for (std::int64_t i = 0; i < problem_.seqlen_q(b); ++i)
          if (head(b, h).visible(i, j))
            third += third_of_row(
                b, h, i, problem_.scale() * std::abs(static_cast<double>(head(b, h).q(i, c))));
      const std::size_t at =
          index(b, kv, j, c, problem_.nheads_k, problem_.max_seqlen_k(), problem_.head_dim);
      worst = std::max(worst, compare("dk", t().k, b, j, kv, c, third, gradients_.dk[at],
                                      static_cast<double>(bounds_.dk[at])));
    });
    for_each(t().v, [&](std::int64_t b, std::int64_t j, std::int64_t kv, std::int64_t c) {
      if (!random.chance(0.3)) return;
      const std::size_t at =
          index(b, kv, j, c, problem_.nheads_k, problem_.max_seqlen_k(), problem_.head_dim_v);
      worst = std::max(worst, compare("dv", t().v, b, j, kv, c, 0, gradients_.dv[at],
                                      static_cast<double>(bounds_.dv[at])));
    });
    if (t().bias.exists())
      for (std::int64_t n = 0; n < t().bias.elements(); ++n) {
        const auto at = static_cast<std::size_t>(n);
        if (random.chance(0.5))
          worst = std::max(
              worst, compare_shared("dbias", DType::f64, t().bias.at(n), -1, gradients_.dbias[at],
                                    static_cast<double>(bounds_.dbias[at])));
      }
    for (std::int64_t h = 0; t().sinks.exists() && h < problem_.nheads_q; ++h) {
      const auto at = static_cast<std::size_t>(h);
      worst = std::max(
          worst, compare_shared("dsinks", DType::f64, t().sinks.at(h), h, gradients_.dsinks[at],
                                static_cast<double>(bounds_.dsinks[at])));
    }
    return worst;
  }

  int compared_shared() const { return compared_shared_; }
  int compared() const { return compared_; }
  double coarsest() const { return coarsest_; }

 private:
  const AttentionTensors& t() const { return tensors_.views(); }
  const SecondHead& head(std::int64_t b, std::int64_t h) const {
    return heads_[static_cast<std::size_t>(b)][static_cast<std::size_t>(h)];
  }
  bool of_queries(const TensorView& view) const {
    return view.data == t().q.data || view.data == t().dout.data;
  }
  void* place(const TensorView& view, std::int64_t b, std::int64_t s, std::int64_t h,
              std::int64_t c) const {
    return element(view, of_queries(view) ? t().cu_seqlens_q : t().cu_seqlens_k, b, s, h, c);
  }
  double get(const TensorView& view, std::int64_t b, std::int64_t s, std::int64_t h,
             std::int64_t c) const {
    return load(view.dtype, place(view, b, s, h, c));
  }
  void set(const TensorView& view, std::int64_t b, std::int64_t s, std::int64_t h, std::int64_t c,
           double value) const {
    store(view.dtype, place(view, b, s, h, c), value);
  }
  template <class Visit>
  void for_each(const TensorView& view, Visit visit) const {
    const std::int64_t nheads = view.shape[view.ndim - 2], width = view.shape[view.ndim - 1];
    for (std::int64_t b = 0; b < problem_.batch; ++b)
      for (std::int64_t s = 0; s < (of_queries(view) ? problem_.seqlen_q(b) : problem_.seqlen_k(b));
           ++s)
        for (std::int64_t h = 0; h < nheads; ++h)
          for (std::int64_t c = 0; c < width; ++c) visit(b, s, h, c);
  }
  static std::size_t index(std::int64_t b, std::int64_t h, std::int64_t row, std::int64_t c,
                           std::int64_t nheads, std::int64_t longest, std::int64_t width) {
    return static_cast<std::size_t>(((b * nheads + h) * longest + row) * width + c);
  }

  double largest_key(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t c) const {
    double largest = 0;
    for (std::int64_t j = 0; j < problem_.seqlen_k(b); ++j)
      if (head(b, h).visible(i, j))
        largest = std::max(largest, std::abs(static_cast<double>(head(b, h).k(j, c))));
    return problem_.scale() * largest;
  }
  double third_of_row(std::int64_t b, std::int64_t h, std::int64_t i, double direction) const {
    const double range = 2 * static_cast<double>(head(b, h).dp.row(i).cwiseAbs().maxCoeff());
    return third_derivative(problem_.softcap, direction, range);
  }

  /// What 2 f may be off by: the rounding bound of every row of the sequence, twice over.
  double rounding(std::int64_t b) const {
    double sum = 0;
    for (std::int64_t h = 0; h < problem_.nheads_q; ++h)
      for (std::int64_t i = 0; i < problem_.seqlen_q(b); ++i)
        for (std::int64_t c = 0; c < problem_.head_dim_v; ++c)
          sum += std::abs(static_cast<double>(head(b, h).dout(i, c))) *
                 static_cast<double>(bounds_.o[index(
                     b, h, i, c, problem_.nheads_q, problem_.max_seqlen_q(), problem_.head_dim_v)]);
    return 2.2 * sum;
  }

  /// A number that several sequences may share; head -1: any row of any head may depend on it.
  double compare_shared(const char* name, DType dtype, void* place_of, std::int64_t only_head,
                        double gradient, double own_bound) {
    double third = 0, lost = 0;
    for (std::int64_t b = 0; b < problem_.batch; ++b) {
      lost += rounding(b) / 2;
      for (std::int64_t h = 0; h < problem_.nheads_q; ++h)
        for (std::int64_t i = 0; i < problem_.seqlen_q(b); ++i)
          if (only_head < 0 || h == only_head) third += third_of_row(b, h, i, 1);
    }
    double step = 0x1p-4;
    if (third > 0)
      step =
          std::clamp(std::exp2(std::round(std::log2(std::cbrt(3 * lost / third)))), 0x1p-30, step);
    Problem forward = problem_;
    forward.pass = Pass::forward;
    const double x = load(dtype, place_of);
    store(dtype, place_of, x + step);
    const std::vector<double> above = oracle::attention(oracle::Case(forward, t())).o;
    store(dtype, place_of, x - step);
    const std::vector<double> below = oracle::attention(oracle::Case(forward, t())).o;
    store(dtype, place_of, x);
    double change = 0, size = 0;
    for (std::int64_t b = 0; b < problem_.batch; ++b)
      for (std::int64_t h = 0; h < problem_.nheads_q; ++h)
        for (std::int64_t i = 0; i < problem_.seqlen_q(b); ++i)
          for (std::int64_t c = 0; c < problem_.head_dim_v; ++c) {
            const std::size_t at =
                index(b, h, i, c, problem_.nheads_q, problem_.max_seqlen_q(), problem_.head_dim_v);
            const auto dout = static_cast<double>(head(b, h).dout(i, c));
            change += dout * (above[at] - below[at]);
            size += std::abs(dout);
          }
    const double tolerance = step * step / 6 * third + lost / step + own_bound;
    const double error = std::abs(change / (2 * step) - gradient);
    EXPECT_LE(error, tolerance) << name << ": " << gradient << " against differences "
                                << change / (2 * step) << " in " << to_string(problem_);
    ++compared_shared_;
    coarsest_ = std::max(coarsest_, tolerance / size);
    return error / tolerance;
  }

  double compare(const char* name, const TensorView& view, std::int64_t b, std::int64_t s,
                 std::int64_t h, std::int64_t c, double third, double gradient, double own_bound) {
    const double lost = rounding(b) / 2;
    double step = 0x1p-4;
    if (third > 0)
      step =
          std::clamp(std::exp2(std::round(std::log2(std::cbrt(3 * lost / third)))), 0x1p-30, step);
    const double x = get(view, b, s, h, c);
    Problem forward = problem_;
    forward.pass = Pass::forward;
    set(view, b, s, h, c, x + step);
    const std::vector<double> above = oracle::attention(oracle::Case(forward, t())).o;
    set(view, b, s, h, c, x - step);
    const std::vector<double> below = oracle::attention(oracle::Case(forward, t())).o;
    set(view, b, s, h, c, x);
    // Rows that do not depend on x cancel exactly.
    double change = 0, size = 0;
    for (std::int64_t head_q = 0; head_q < problem_.nheads_q; ++head_q)
      for (std::int64_t i = 0; i < problem_.seqlen_q(b); ++i)
        for (std::int64_t v = 0; v < problem_.head_dim_v; ++v) {
          const std::size_t at = index(b, head_q, i, v, problem_.nheads_q, problem_.max_seqlen_q(),
                                       problem_.head_dim_v);
          const auto dout = static_cast<double>(head(b, head_q).dout(i, v));
          change += dout * (above[at] - below[at]);
          size += std::abs(dout);
        }
    const double tolerance = step * step / 6 * third + lost / step + own_bound;
    const double error = std::abs(change / (2 * step) - gradient);
    EXPECT_LE(error, tolerance) << name << " of sequence " << b << ", row " << s << ", head " << h
                                << ", column " << c << ": " << gradient << " against differences "
                                << change / (2 * step) << " in " << to_string(problem_);
    ++compared_;
    coarsest_ = std::max(coarsest_, tolerance / size);
    return error / tolerance;
  }

  Problem problem_;
  SmallTensors tensors_;
  oracle::Everything gradients_;
  SecondEverything bounds_;
  std::vector<std::vector<SecondHead>> heads_;
  std::vector<double> sinks_;
  int compared_ = 0, compared_shared_ = 0;
  double coarsest_ = 0;
};

TEST(CentralDifferences, OfRandomProblemsWithEveryFeature) {
  RandomLimits limits;
  limits.max_batch = 2;
  limits.max_seqlen = 5;
  limits.max_head_dim = 3;
  limits.dtypes = {DType::f64};
  Random random(1);
  int compared = 0, shared = 0;
  double worst = 0, coarsest = 0;
  for (std::uint64_t seed = 1; seed <= 300; ++seed) {
    Problem problem = random_problem(seed, limits);
    problem.pass = Pass::backward;
    problem.fill = Fill::normal;
    if (problem.conventions.empty_row_output == EmptyRowOutput::nan)
      problem.conventions.empty_row_output = EmptyRowOutput::zero;
    Differences differences(problem);
    worst = std::max(worst, differences.check(random));
    compared += differences.compared();
    shared += differences.compared_shared();
    coarsest = std::max(coarsest, differences.coarsest());
    ASSERT_FALSE(HasFailure());
  }
  std::cout << compared << " derivatives by q, k, v and " << shared
            << " by bias and sinks; largest error over its tolerance " << worst
            << ", coarsest tolerance " << coarsest << " of sum |dO|\n";
  EXPECT_GT(compared, 3000);
  EXPECT_GT(shared, 500);
  // The error model is not idle, and it resolves what a wrong formula would change.
  EXPECT_GT(worst, 0.005);
  EXPECT_LT(coarsest, 1e-6);
}

}  // namespace
}  // namespace tilewise::tests
