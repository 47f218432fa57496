// How far two float64 evaluations of attention may lie apart, element by element.
//
// The oracle computes in double, unit roundoff u = 2^-53; the second oracle in long double. The
// bound follows the oracle's arithmetic operation by operation and adds up what each may lose
// (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., sections 2.2 and 3.1):
//
//   a product, sum, quotient, square root    its result by a factor 1 + u
//   a sum of n terms                         each term by at most n u
//   exp, log, tanh                           two units in the last place: 4 u
//   s_j          (d + 10) u (scale sum |q| |k_j| + |added_j|) =: e_j
//   p_j          p_j (e^{f_j} - 1), f_j = e_j + u |s_j - m| + ln sum_k p_k e^{..} + (n + 8) u or so
//   o            sum_j (p_j's error + (n + 1) u p_j) |v_j|
//   dS, dQ, ...  the same step by step through the products of the backward pass
//
// A sink is one more of the n; dropout's factor is one more product.
//
// There is no tolerance to tune: every constant is a count of operations.
#pragma once

#include "tests/second_oracle.hpp"

namespace tilewise::tests {

/// For every element of the oracle's answer: how far it may lie from the second oracle's. Two
/// evaluations in double may differ by twice as much.
SecondEverything rounding_bounds(const Problem& problem, const AttentionTensors& tensors);

}  // namespace tilewise::tests
