// A second float64-or-better attention, to check the oracle with: written from the definitions
// (core/attention.hpp, core/conventions.hpp), by another algorithm, in another number format, and
// sharing no code with oracle/attention.cpp but the reading of one element.
//
//                   oracle/attention.cpp            here
//   arithmetic      double, rows and plain loops    long double, whole matrices (Eigen)
//   masks           a test per (query, key)         one boolean matrix a rule, then combined
//   positions       i + shift                       counted from the corner of alignment
//   softmax         exp(s - m) / l                  exp(s - lse)
//   softmax's       p (dp - D)                      J dp with the Jacobian
//    derivative                                     J = diag(p) - p p^T written out
//   softcap's       1 - tanh^2                      1 / cosh^2
//   grouped heads   head h reads h / group          K and V repeated, the copies' gradients summed
//   lengths, sizes  the Problem's                   the tensors'
#pragma once

#include "oracle/problem.hpp"

#include <Eigen/Dense>

#include <cstdint>
#include <vector>

namespace tilewise::tests {

using Real = long double;
using Matrix = Eigen::Matrix<Real, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Vector = Eigen::Matrix<Real, Eigen::Dynamic, 1>;
using BoolMatrix = Eigen::Array<bool, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// One query head with its own copy of the keys and values, every intermediate kept: rows are
/// queries and columns are keys in visible .. ds.
struct SecondHead {
  Real scale = 1;
  Matrix q, k, v;
  BoolMatrix visible;
  Matrix raw;    ///< scale Q K^T
  Matrix added;  ///< ALiBi and bias
  Matrix score;  ///< after softcap; -inf where not visible
  Matrix p, o;
  Vector lse;  ///< natural logarithm; -inf on an empty row
  std::vector<bool> empty;

  Matrix dout, dp;    ///< backward only, like all below
  Matrix slope;       ///< d(score) / d(raw)
  Matrix ds;          ///< gradient of raw
  Matrix dq, dk, dv;  ///< of this head's own copies of K and V
};

/// All query heads of sequence b.
std::vector<SecondHead> second_sequence(const Problem& problem, const AttentionTensors& tensors,
                                        std::int64_t b);

/// Dense [batch][head][row][column] arrays, padded to the longest with zeros, as oracle::Everything
/// has them. LSE is what the conventions ask for; NaN where they leave it unspecified.
struct SecondEverything {
  std::vector<Real> o, lse, dq, dk, dv;
};
SecondEverything second_attention(const Problem& problem, const AttentionTensors& tensors);

/// The LSE a kernel is expected to write for row i.
Real second_lse(const Conventions& conventions, const SecondHead& head, Eigen::Index i);

}  // namespace tilewise::tests
