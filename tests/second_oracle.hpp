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
//   sink            one more term of l              one more column of the scores, a value of zeros
//   dropout         asked element by element        bytes dealt out lane by lane to whole blocks
//   blocks          a table of blocks               two boolean matrices
//   chunk           floor of a quotient             counted off from the first position
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
  Real sink = 0;  ///< -inf without one
  Matrix q, k, v;
  BoolMatrix visible;
  Matrix factor;  ///< dropout's: 0 or 1 / (1 - p), 1 without dropout
  Matrix raw;     ///< scale Q K^T
  Matrix added;   ///< ALiBi and bias
  Matrix score;   ///< after softcap; -inf where not visible
  Matrix p, o;
  Vector p_sink;
  Vector lse;  ///< natural logarithm; -inf on an empty row
  std::vector<bool> empty;

  Matrix dout, dp;    ///< backward only, like all below; dp with dropout's factor
  Matrix slope;       ///< d(score) / d(raw)
  Matrix ds;          ///< gradient of raw
  Matrix dq, dk, dv;  ///< of this head's own copies of K and V
  Matrix dbias;       ///< gradient of what was added, before it is summed over what was broadcast
  Vector dsink;       ///< row by row
};

/// All query heads of sequence b.
std::vector<SecondHead> second_sequence(const Problem& problem, const AttentionTensors& tensors,
                                        std::int64_t b);

/// Dense [batch][head][row][column] arrays, padded to the longest with zeros, as oracle::Everything
/// has them. LSE is what the conventions ask for; NaN where they leave it unspecified.
struct SecondEverything {
  std::vector<Real> o, lse, dq, dk, dv;
  std::vector<Real> dbias;   ///< in the bias's own shape; empty without one
  std::vector<Real> dsinks;  ///< [head]; zero without sinks
};

/// Which elements of P flash-attn 2's dropout keeps in head `h` of `nheads` of sequence b.
BoolMatrix second_dropout(double p, std::uint64_t seed, std::uint64_t offset, std::int64_t nheads,
                          std::int64_t b, std::int64_t h, Eigen::Index rows, Eigen::Index columns);

/// The number of element (b, h, i, j) in row-major order of a tensor whose dimensions may be 1.
std::size_t second_element(const TensorView& tensor, std::int64_t b, std::int64_t h, std::int64_t i,
                           std::int64_t j);
SecondEverything second_attention(const Problem& problem, const AttentionTensors& tensors);

/// The LSE a kernel is expected to write for row i.
Real second_lse(const Conventions& conventions, const SecondHead& head, Eigen::Index i);

}  // namespace tilewise::tests
