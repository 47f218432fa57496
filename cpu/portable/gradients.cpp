#include "cpu/portable/gradients.hpp"

#include "cpu/portable/scores.hpp"

#include <cmath>
#include <cstring>
#include <limits>

namespace tilewise::cpu::portable {
namespace {

/// A row that saw no key has nothing but hidden pairs, whoever hid them.
template <class Real>
Coverage hide_empty_rows(const RowFacts<Real>& facts, const Head& head, Span rows,
                         Coverage coverage, const Visible& visible) {
  for (std::int64_t r = 0; r < rows.count; ++r) {
    if (facts.lse[facts.index(head, rows.first + r)] != std::numeric_limits<Real>::infinity())
      continue;
    if (coverage == Coverage::all)
      std::memset(visible.pair, 1, static_cast<std::size_t>(rows.count * Bc));
    coverage = Coverage::some;
    std::memset(visible.row(r), 0, static_cast<std::size_t>(Bc));
  }
  return coverage;
}

}  // namespace

template <class Real>
Coverage gradient_tile(const BackwardCall<Real>& backward, const Head& head, Span rows, Span keys,
                       Coverage coverage, Of of, const BackwardTiles<Real>& tiles) {
  const AttentionParams& params = head.call.params;
  const RowFacts<Real>& facts = backward.facts;
  const std::int64_t columns = padded<Real>(keys.count);
  tiles.P.clear(rows.count);
  add_product(rows.count, columns, head.shape.head_dim, tiles.Q.data, {tiles.Q.stride, 1}, tiles.Kt,
              tiles.P);
  coverage = finish_scores(head, rows, keys, coverage, tiles.visible, tiles.P, tiles.slope);
  coverage = hide_empty_rows(facts, head, rows, coverage, tiles.visible);
  tiles.dS.clear(rows.count);
  add_product(rows.count, columns, head.shape.head_dim_v, tiles.dO.data, {tiles.dO.stride, 1},
              tiles.Vt, tiles.dS);

  const bool dropout = params.dropout_p > 0;
  if (dropout) dropout_factors(head, rows, keys, tiles.Z);
  const bool sloped =
      params.softcap != 0 &&
      (of == Of::dot_product || params.conventions.score_order == ScoreOrder::bias_softcap_mask);
  for (std::int64_t r = 0; r < rows.count; ++r) {
    const std::int64_t index = facts.index(head, rows.first + r);
    const Real lse = facts.lse[index], d = facts.d[index];
    Real *p = tiles.P.row(r), *ds = tiles.dS.row(r);
    for (std::int64_t j = 0; j < keys.count; ++j) {
      if (coverage == Coverage::some && !tiles.visible.row(r)[j]) {
        p[j] = ds[j] = 0;
        continue;
      }
      const Real z = dropout ? tiles.Z.row(r)[j] : Real{1};
      const Real probability = std::exp(p[j] - lse);
      p[j] = probability * z;
      ds[j] = probability * (z * ds[j] - d);
      if (sloped) ds[j] *= tiles.slope.row(r)[j];
    }
  }
  return coverage;
}

template Coverage gradient_tile(const BackwardCall<float>&, const Head&, Span, Span, Coverage, Of,
                                const BackwardTiles<float>&);
template Coverage gradient_tile(const BackwardCall<double>&, const Head&, Span, Span, Coverage, Of,
                                const BackwardTiles<double>&);

}  // namespace tilewise::cpu::portable
