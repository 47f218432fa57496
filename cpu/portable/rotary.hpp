// Rotary position embedding (Su et al. 2021, arXiv 2104.09864, equation 34): pairs of a row's
// numbers, as points of a plane, are turned by an angle that grows with the row's position.
//
//   x1' = x1 cos - x2 sin      interleaved: (x1, x2) = elements (2p, 2p + 1)
//   x2' = x1 sin + x2 cos      else:        (x1, x2) = elements (p, p + pairs)
//
// Row `position` of the tables has the cosines and sines, one for each pair; what lies behind the
// first 2 x pairs elements stays as it is. Positions are rows of the cache, padding included.
#pragma once

#include "cpu/portable/head.hpp"

#include <cstdint>

namespace tilewise::cpu::portable {

/// A new key's position is the row that it is stored in. Queries stand beside the new keys where
/// position decides who sees whom; without causal, window and chunk they all stand at the first.
std::int64_t query_position(const Head& head, std::int64_t i);

template <class Real>
void rotate(const KvCache& cache, std::int64_t position, Real* row);

}  // namespace tilewise::cpu::portable
