#include "tests/rounding_bounds.hpp"

#include <cmath>
#include <limits>

namespace tilewise::tests {
namespace {

using Eigen::Index;

/// What one operation of each oracle may lose together. Sums in long double are short here: 64
/// covers the few terms more that the written-out Jacobian adds.
constexpr Real u = 0x1p-53L + 64 * (std::numeric_limits<Real>::epsilon() / 2);
/// A result below the normal range is off by at most this, instead of by a factor 1 + u.
constexpr Real underflow = 0x1p-1074L;

struct Bounds {
  Matrix o, dq, dk, dv;
  Vector lse;
  Matrix dbias;  // a pair each, and the part that grows with the number of terms summed
  Matrix dbias_size;
  Vector dsink, dsink_size;
};

/// `rows_added`: how many query rows are summed into one key's gradient, over the whole group.
Bounds bounds(const Problem& problem, const SecondHead& head, Index rows_added) {
  const Index rows = head.q.rows(), keys = head.k.rows(), d = head.q.cols(), d_v = head.v.cols();
  const bool has_sink = head.sink != -std::numeric_limits<Real>::infinity();
  // The sink is one more term of l.
  const Real scale = std::abs(head.scale), n = static_cast<Real>(keys + (has_sink ? 1 : 0));
  const auto cap = static_cast<Real>(problem.softcap);
  const bool base_two = problem.conventions.lse_base == LseBase::two;
  const bool bias_in_softcap = problem.conventions.score_order == ScoreOrder::bias_softcap_mask;

  Bounds bound;
  bound.o = Matrix::Zero(rows, d_v);
  bound.lse = Vector::Zero(rows);
  bound.dq = Matrix::Zero(rows, d);
  bound.dk = Matrix::Zero(keys, d);
  bound.dv = Matrix::Zero(keys, d_v);
  bound.dbias = bound.dbias_size = Matrix::Zero(rows, keys);
  bound.dsink = bound.dsink_size = Vector::Zero(rows);

  // Values of masked rows may be NaN: they are never multiplied below, only skipped.
  for (Index i = 0; i < rows; ++i) {
    if (head.empty[static_cast<std::size_t>(i)]) {
      if (problem.conventions.empty_row_output == EmptyRowOutput::mean_v && keys > 0) {
        // 1/n, a product, and the sum: of n terms in o, of one term a row in dV.
        bound.o.row(i) = ((n + 2) * u * head.v.cwiseAbs().colwise().mean()).array() + n * underflow;
        if (problem.pass == Pass::backward)
          bound.dv.rowwise() +=
              (static_cast<Real>(rows_added + 2) * u / n) * head.dout.row(i).cwiseAbs() +
              Matrix::Constant(1, d_v, underflow);
      }
      continue;
    }
    Vector score = Vector::Zero(keys);     // error of s_j
    Vector exponent = Vector::Zero(keys);  // relative error of exp(s_j - m)
    const Real max = keys > 0 ? std::max(head.sink, head.score.row(i).maxCoeff()) : head.sink;
    for (Index j = 0; j < keys; ++j) {
      if (!head.visible(i, j)) continue;
      // d products and d - 1 sums; the product with the scale and the scale's own two roundings;
      // softcap: quotient 1, tanh 4, product 1; the sum with what is added: 1. Together d + 10.
      const Real products = scale * head.q.row(i).cwiseAbs().dot(head.k.row(j).cwiseAbs());
      score(j) = static_cast<Real>(d + 10) * u * (products + std::abs(head.added(i, j))) +
                 static_cast<Real>(d) * underflow * (1 + scale);
      // The difference s - m, and exp itself.
      exponent(j) = score(j) + u * (max - head.score(i, j)) + 4 * u;
    }
    // p = e^{s_j} / sum_k e^{s_k}: if each exponent moves by at most f_j, the sum moves by a factor
    // of at most sum_k p_k e^{f_k}. Adding n terms costs n - 1, the division 1.
    const Vector p = head.p.row(i).transpose();
    Real moved = 0;
    for (Index j = 0; j < keys; ++j) moved += p(j) * std::expm1(exponent(j));
    const Real sink_exponent = has_sink ? u * (max - head.sink) + 4 * u : 0;
    moved += head.p_sink(i) * std::expm1(sink_exponent);
    const Real sum = std::log1p(moved) + n * u;
    Vector p_error = Vector::Zero(keys);
    for (Index j = 0; j < keys; ++j)
      if (head.visible(i, j)) p_error(j) = p(j) * std::expm1(exponent(j) + sum) + 4 * underflow;
    const Vector p_most = p + p_error;
    const Real sink_p_error = head.p_sink(i) * std::expm1(sink_exponent + sum) + 4 * underflow;
    // Dropout's factor multiplies what P's error does, and costs one more product.
    const Vector factor = head.factor.row(i).transpose();

    // lse = m + log l: log 4 |log l|, the sum 1; another base costs log 2's rounding and a
    // quotient.
    const Real log_sum = head.lse(i) - max;
    bound.lse(i) = sum + 4 * u * log_sum + 3 * u * std::abs(head.lse(i));
    if (base_two) bound.lse(i) *= std::log2(std::exp(Real{1}));

    for (Index j = 0; j < keys; ++j)
      if (head.visible(i, j))
        bound.o.row(i).array() +=
            factor(j) * (p_error(j) + (n + 2) * u * p_most(j)) * head.v.row(j).cwiseAbs().array() +
            (1 + head.v.row(j).cwiseAbs().array()) * underflow;
    if (problem.pass == Pass::forward) continue;

    // dp_j = factor dO . v_j has d_v products and sums, and one; D = sum_j p_j dp_j has n.
    Vector m = Vector::Zero(keys), dp_error = Vector::Zero(keys);  // m_j = sum |dO| |v_j| >= |dp_j|
    Real d_most = 0, d_error = 0;
    for (Index j = 0; j < keys; ++j) {
      if (!head.visible(i, j)) continue;
      m(j) = factor(j) * head.dout.row(i).cwiseAbs().dot(head.v.row(j).cwiseAbs());
      dp_error(j) = static_cast<Real>(d_v + 1) * (u * m(j) + factor(j) * underflow) + underflow;
      d_most += p_most(j) * m(j);
      d_error += p_error(j) * m(j) + p_most(j) * (dp_error(j) + n * u * m(j)) + underflow;
    }
    const Real weighted_dp = p.dot(head.dp.row(i).transpose());
    // A row adds -p_c D to the sink's gradient.
    bound.dsink_size(i) = (head.p_sink(i) + sink_p_error) * (std::abs(weighted_dp) + d_error);
    bound.dsink(i) = sink_p_error * d_most + (head.p_sink(i) + sink_p_error) * d_error + underflow;
    for (Index j = 0; j < keys; ++j) {
      if (!head.visible(i, j)) continue;
      // p (dp - D): a difference and a product.
      const Real difference = m(j) + d_most;
      Real ds_error = p_error(j) * difference +
                      p_most(j) * (dp_error(j) + d_error + 2 * u * difference) + underflow;
      const auto of_bias = [&] {
        bound.dbias(i, j) = ds_error;
        bound.dbias_size(i, j) = std::abs(head.dbias(i, j)) + ds_error;
      };
      if (!bias_in_softcap) of_bias();
      if (cap != 0) {
        // 1 - t^2 with t = tanh(x): |d(t^2)| <= 2 |dt|, where dt is x's error and tanh's 4, and
        // the square and the difference.
        const Real slope_error = 2 * (score(j) / cap + 5 * u) + 2 * u;
        const Real unsloped = p(j) * std::abs(head.dp(i, j) - weighted_dp) + ds_error;
        ds_error = head.slope(i, j) * ds_error + unsloped * (slope_error + u) + underflow;
      }
      if (bias_in_softcap) of_bias();
      const Real ds_most = std::abs(head.ds(i, j)) + ds_error;
      // Terms scale ds k: n summed, two products, the scale's two roundings.
      const Real query_part = scale * (ds_error + (n + 4) * u * ds_most);
      const auto added = static_cast<Real>(rows_added);
      const Real key_part = scale * (ds_error + (added + 4) * u * ds_most);
      bound.dq.row(i).array() +=
          (query_part + underflow) * head.k.row(j).cwiseAbs().array() + underflow;
      bound.dk.row(j).array() +=
          (key_part + underflow) * head.q.row(i).cwiseAbs().array() + underflow;
      bound.dv.row(j).array() += factor(j) * (p_error(j) + (added + 2) * u * p_most(j)) *
                                     head.dout.row(i).cwiseAbs().array() +
                                 (1 + head.dout.row(i).cwiseAbs().array()) * underflow;
    }
  }
  return bound;
}

/// Adds a head's bounds to a dense [batch][head][row][column] array.
void add_rows(std::vector<Real>& dense, const Matrix& rows, std::int64_t head,
              std::int64_t longest) {
  for (Index row = 0; row < rows.rows(); ++row)
    for (Index c = 0; c < rows.cols(); ++c)
      dense[static_cast<std::size_t>((head * longest + row) * rows.cols() + c)] += rows(row, c);
}

}  // namespace

SecondEverything rounding_bounds(const Problem& problem, const AttentionTensors& tensors) {
  const std::int64_t longest_q = problem.max_seqlen_q(), longest_k = problem.max_seqlen_k();
  const auto zeros = [](std::int64_t count) {
    return std::vector<Real>(static_cast<std::size_t>(count), 0);
  };
  SecondEverything all;
  all.o = zeros(problem.batch * problem.nheads_q * longest_q * problem.head_dim_v);
  all.lse = zeros(problem.batch * problem.nheads_q * longest_q);
  if (problem.pass == Pass::backward) {
    all.dq = zeros(problem.batch * problem.nheads_q * longest_q * problem.head_dim);
    all.dk = zeros(problem.batch * problem.nheads_k * longest_k * problem.head_dim);
    all.dv = zeros(problem.batch * problem.nheads_k * longest_k * problem.head_dim_v);
    all.dsinks = zeros(problem.nheads_q);
    if (tensors.bias.exists()) all.dbias = zeros(tensors.bias.elements());
  }
  // How many terms one element of dbias or dsinks sums, at most.
  const Real pairs = static_cast<Real>(problem.batch * problem.nheads_q * longest_q * longest_k);
  const Real bias_terms = all.dbias.empty() ? 0 : pairs / static_cast<Real>(all.dbias.size()) + 1;
  const auto sink_terms = static_cast<Real>(problem.batch * longest_q + 1);
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    const std::vector<SecondHead> heads = second_sequence(problem, tensors, b);
    for (std::int64_t h = 0; h < problem.nheads_q; ++h) {
      const SecondHead& head = heads[static_cast<std::size_t>(h)];
      const Bounds bound = bounds(problem, head, head.q.rows() * problem.group());
      const std::int64_t query_head = b * problem.nheads_q + h;
      const std::int64_t key_head = b * problem.nheads_k + h / problem.group();
      add_rows(all.o, bound.o, query_head, longest_q);
      add_rows(all.lse, bound.lse, query_head, longest_q);
      if (problem.pass == Pass::forward) continue;
      add_rows(all.dq, bound.dq, query_head, longest_q);
      add_rows(all.dk, bound.dk, key_head, longest_k);
      add_rows(all.dv, bound.dv, key_head, longest_k);
      all.dsinks[static_cast<std::size_t>(h)] +=
          bound.dsink.sum() + sink_terms * u * bound.dsink_size.sum();
      if (tensors.bias.exists())
        for (Index i = 0; i < bound.dbias.rows(); ++i)
          for (Index j = 0; j < bound.dbias.cols(); ++j)
            all.dbias[second_element(tensors.bias, b, h, i, j)] +=
                bound.dbias(i, j) + bias_terms * u * bound.dbias_size(i, j);
    }
  }
  return all;
}

}  // namespace tilewise::tests
