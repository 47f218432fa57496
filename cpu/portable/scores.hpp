// What happens to a tile of dot products Q K^T before softmax: scale, softcap, ALiBi, bias, in the
// order that the conventions name, and masks last. And the factors of dropout, after softmax.
#pragma once

#include "cpu/portable/head.hpp"
#include "cpu/portable/tile.hpp"
#include "cpu/portable/visibility.hpp"

namespace tilewise::cpu::portable {

/// S becomes the finished scores, -inf where a pair is hidden. `coverage` and `visible` are those
/// of look(); a bias of -inf hides a pair as a mask does, unless a softcap makes it finite again.
/// If `slope` has memory, it becomes d(finished score) / d(scaled dot product), the softcap's
/// 1 - tanh^2; it is not touched without softcap.
template <class Real>
Coverage finish_scores(const Head& head, Span rows, Span keys, Coverage coverage,
                       const Visible& visible, const Tile<Real>& S, const Tile<Real>& slope);

/// Z: 0 where an element of P is dropped, else 1 / (1 - p).
template <class Real>
void dropout_factors(const Head& head, Span rows, Span keys, const Tile<Real>& Z);

}  // namespace tilewise::cpu::portable
