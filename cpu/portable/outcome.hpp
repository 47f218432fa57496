// What a row of queries puts out where it is not O / l and m + log l as they come: attention sinks,
// rows without keys, the base of LSE. The conventions say how (docs/conventions.md).
#pragma once

#include "cpu/portable/head.hpp"
#include "cpu/portable/tile.hpp"

namespace tilewise::cpu::portable {

/// A score that every row of the head has beside those of its keys; -inf: none.
template <class Real>
Real sink_of(const Head& head);

/// O of a row that may look at no key. `V` is memory for a tile of values.
template <class Real>
void fill_empty_row(const Head& head, const Tile<Real>& V, Real* o);

/// LSE of a row, if it is asked for, from its natural logarithm.
void write_lse(const Head& head, std::int64_t row, double lse, bool empty);

}  // namespace tilewise::cpu::portable
