// Q, K and V as they enter the products: what is stored, times its scales, and queries turned to
// their positions.
//
//   value = stored number x row scale (i8) x descale of the batch entry and key/value head
#pragma once

#include "cpu/portable/head.hpp"
#include "cpu/portable/tile.hpp"

namespace tilewise::cpu::portable {

template <class Real>
void read_queries(const Head& head, Span rows, const Tile<Real>& Q);
template <class Real>
void read_keys(const Head& head, Span keys, const Tile<Real>& K);
template <class Real>
void read_values(const Head& head, Span keys, const Tile<Real>& V);

}  // namespace tilewise::cpu::portable
