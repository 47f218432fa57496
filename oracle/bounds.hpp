// How far a correct kernel may be from float64: a bound for every element of O, LSE, dQ, dK and dV,
// from the unit roundoffs of its arithmetic and the magnitudes of that very row.
//
// docs/error-bounds.md derives every term. In short, a kernel is taken to compute dot products and
// sums in `accumulate` precision, to round P and dS to `probability` precision before the second
// matrix product, and to round its outputs. Rounding errors are taken as independent, with the
// variance u^2 x^2 / 3 of a uniform error, except where equal numbers make equal errors; a bound is
// six standard deviations, or the worst case where that is smaller.
#pragma once

#include "attention.hpp"

#include <vector>

namespace tilewise::oracle {

/// The unit roundoffs (and the absolute errors among subnormal numbers) that a verdict allows.
struct Recipe {
  double accumulate;       ///< of dot products, sums, exp
  double probability;      ///< of P and dS as operands of a matrix product
  double probability_eta;  ///< half the smallest positive number of that format
  double probability_min;  ///< its smallest normal number
  double input;            ///< of q, k, v rounded again after rotary or decoding; 0 without these
  double output;           ///< of o, dq, dk, dv as stored
  double output_eta;
  double lse;  ///< of lse as stored
  /// Absolute error of every term of a float32 sum among the subnormal numbers. In f64 problems
  /// 2^-500: the variances of smaller numbers vanish in the oracle's own doubles.
  double term_eta;
  /// exp may flush results below this to zero: vector code and GPUs do.
  double exp_eta;
};
/// float32 accumulation (float64 for f64 inputs), P in the inputs' format, outputs as stored.
Recipe recipe_for(const Problem& problem);

struct ForwardBound {
  std::vector<double> o;
  double lse = 0;
  /// Largest credible |sum_d (got_d - o_d) o_d| / sum_d o_d^2: a row that is off by a factor,
  /// however small a part of each element's own bound that is.
  double scale = 0;
  double normaliser = 0;  ///< relative, of l: the part of o's error that all elements share
  /// What the bound of the gradients needs of the forward pass: the standard deviation of each
  /// key's p, relative, and of each o_d's error but for P, the scores, the normaliser and the
  /// store.
  std::vector<double> tau, o_rest_sigma;
};
ForwardBound bound_forward(const Case& problem_case, const KeyValueHead& head, const Row& row,
                           std::int64_t query_head, std::int64_t i, const Recipe& recipe);

/// The bound of a new key as it stands in the cache; 0 where nothing was turned.
std::vector<double> bound_turned(const Case& problem_case, const std::vector<double>& key,
                                 const Recipe& recipe);

/// What a column's gradient and its bound need to know of each query row.
struct RowFacts {
  bool empty = true;
  double lse = 0;        ///< natural logarithm
  double d = 0;          ///< D = dO . o
  double plain_d = 0;    ///< the same from o as stored, summed in float32: plain arithmetic's
  double lse_sigma = 0;  ///< standard deviation of a kernel's own LSE
  double d_sigma = 0;    ///< and of its D
  double o_size = 0;     ///< sum_t |o_t|: equal queries have this and their LSE in common
};
RowFacts facts_of(const Row& row, const RowGradient& gradient, const ForwardBound& bound,
                  const std::vector<double>& dout, const Recipe& recipe, DType stored);

std::vector<double> bound_dq(const Case& problem_case, const KeyValueHead& head, const Row& row,
                             const RowGradient& gradient, const RowFacts& facts,
                             std::int64_t query_head, std::int64_t i, const Recipe& recipe);

/// One query head, read once and used for many columns.
struct QueryHead {
  std::int64_t b = 0, h = 0, seqlen = 0;
  std::vector<double> q;     ///< [seqlen, head_dim]
  std::vector<double> dout;  ///< [seqlen, head_dim_v]
  std::vector<RowFacts> facts;
};

/// The gradients of one key and value, with their bounds.
struct Column {
  std::vector<double> dk, dv;
  std::vector<double> dk_bound, dv_bound;
};
/// `group` holds every query head that reads this key head.
Column backward_column(const Case& problem_case, const std::vector<QueryHead>& group,
                       std::int64_t b, std::int64_t kv_head, std::int64_t j, const Recipe& recipe);

/// What one (query, key) pair adds to the gradients, and the standard deviations of a kernel's own.
struct PairGradient {
  bool counts = false;  ///< visible, and of a probability that is not zero
  double p = 0;
  double w = 0, w_sigma = 0;          ///< p times dropout's factor
  double ds = 0, ds_sigma = 0;        ///< gradient of the scaled score
  double dbias = 0, dbias_sigma = 0;  ///< gradient of what is added to it
  double dbias_shared = 0;            ///< its error through D, which all keys of a row share
};
/// Query i of `head`, key j with its rows `k` and `v`.
PairGradient pair_gradient(const Case& problem_case, const QueryHead& head, std::int64_t i,
                           std::int64_t j, const double* k, const double* v, const Recipe& recipe);

/// A single sum with its bound: a sink's gradient, an element of a bias's.
class ScalarSum {
 public:
  /// One term, computed with standard deviation `own`, and with an error of deviation `shared` that
  /// it has in common with the other terms of its row: the one that `source` numbers, of these
  /// facts. A row's terms follow one another.
  void add(double term, double own, double shared, const RowFacts& facts, std::int64_t source);
  double value() const { return sum_; }
  double bound(const Recipe& recipe, DType stored) const;

 private:
  struct Row {
    double lse, log_o;          ///< what rows that err alike have in common
    double terms, own, shared;  ///< how many, and the sums of their deviations
  };

  double sum_ = 0, squares_ = 0, worst_ = 0;
  std::int64_t source_ = -1;
  std::vector<Row> rows_;
};

/// Adds what one row gives to its head's sink gradient.
void add_sink_gradient(const Case& problem_case, std::int64_t h, const RowFacts& facts,
                       std::int64_t source, const Recipe& recipe, ScalarSum& sum);

}  // namespace tilewise::oracle
