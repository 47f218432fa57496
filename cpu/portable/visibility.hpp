// Which keys of a tile which queries may look at: causal, window, chunk, mask and block mask.
//
// A hidden pair is skipped wherever something is summed. It is never multiplied by zero, so what
// lies in a hidden place, be it NaN, reaches no output.
#pragma once

#include "cpu/portable/head.hpp"

#include <cstdint>

namespace tilewise::cpu::portable {

enum class Coverage : std::uint8_t { none, some, all };

/// One byte a pair, laid out as S is: pair[r * Bc + j]. Meaningful under Coverage::some only.
struct Visible {
  std::uint8_t* pair = nullptr;

  std::uint8_t* row(std::int64_t r) const { return pair + r * Bc; }
};

/// The keys outside of which no query of `rows` may look at any: where to look for tiles.
KeyRange reachable_keys(const Head& head, Span rows);

/// How much of a tile may be looked at, and if some: which pairs.
Coverage look(const Head& head, Span rows, Span keys, const Visible& visible);

}  // namespace tilewise::cpu::portable
