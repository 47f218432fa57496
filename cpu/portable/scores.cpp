#include "cpu/portable/scores.hpp"

#include "core/dropout.hpp"
#include "cpu/portable/rows.hpp"

#include <cmath>
#include <cstring>
#include <limits>

namespace tilewise::cpu::portable {
namespace {

template <class Real>
constexpr Real minus_infinity = -std::numeric_limits<Real>::infinity();

template <class Real>
void scale(const Head& head, Span rows, Span keys, const Tile<Real>& S) {
  const auto factor = static_cast<Real>(head.call.params.softmax_scale);
  for (std::int64_t r = 0; r < rows.count; ++r)
    for (std::int64_t j = 0; j < keys.count; ++j) S.row(r)[j] *= factor;
}

// In double: near the cap, 1 - tanh^2 is a small difference of numbers close to one.
template <class Real>
void cap(const Head& head, Span rows, Span keys, const Tile<Real>& S, const Tile<Real>& slope) {
  const double softcap = head.call.params.softcap;
  for (std::int64_t r = 0; r < rows.count; ++r)
    for (std::int64_t j = 0; j < keys.count; ++j) {
      const double t = std::tanh(static_cast<double>(S.row(r)[j]) / softcap);
      S.row(r)[j] = static_cast<Real>(softcap * t);
      if (slope.data != nullptr) slope.row(r)[j] = static_cast<Real>(1 - t * t);
    }
}

template <class Real>
void add_alibi(const Head& head, Span rows, Span keys, const Tile<Real>& S) {
  const AttentionParams& params = head.call.params;
  const TensorView& slopes = head.call.tensors.alibi_slopes;
  const double slope = load(slopes.dtype, slopes.at(head.h * slopes.strides[0]));
  const std::int64_t shift =
      params.conventions.alignment == Alignment::bottom_right ? head.seqlen_k - head.seqlen_q : 0;
  const auto term = [&](std::int64_t i, std::int64_t j) {
    switch (params.conventions.alibi) {
      case Alibi::signed_distance: return slope * static_cast<double>(j - i);
      case Alibi::fa2:
        if (params.causal) return slope * static_cast<double>(j);
        [[fallthrough]];
      case Alibi::minus_distance: break;
    }
    return -slope * std::fabs(static_cast<double>(i + shift - j));
  };
  for (std::int64_t r = 0; r < rows.count; ++r)
    for (std::int64_t j = 0; j < keys.count; ++j) {
      Real& s = S.row(r)[j];
      s = static_cast<Real>(static_cast<double>(s) + term(rows.first + r, keys.first + j));
    }
}

template <class Real>
Coverage add_bias(const Head& head, Span rows, Span keys, Coverage coverage, const Visible& visible,
                  const Tile<Real>& S) {
  const TensorView& bias = head.call.tensors.bias;
  const AttentionParams& params = head.call.params;
  const bool hides =
      params.softcap == 0 || params.conventions.score_order == ScoreOrder::softcap_bias_mask;
  for (std::int64_t r = 0; r < rows.count; ++r) {
    Real values[Bc];
    read_numbers(bias, broadcast_offset(bias, head.b, head.h, rows.first + r, keys.first),
                 bias.shape[3] == 1 ? 0 : bias.strides[3], keys.count, values);
    for (std::int64_t j = 0; j < keys.count; ++j) {
      S.row(r)[j] += values[j];
      if (!hides || values[j] != minus_infinity<Real>) continue;
      if (coverage == Coverage::all)
        std::memset(visible.pair, 1, static_cast<std::size_t>(rows.count * Bc));
      coverage = Coverage::some;
      visible.row(r)[j] = 0;
    }
  }
  return coverage;
}

}  // namespace

template <class Real>
Coverage finish_scores(const Head& head, Span rows, Span keys, Coverage coverage,
                       const Visible& visible, const Tile<Real>& S, const Tile<Real>& slope) {
  const AttentionParams& params = head.call.params;
  const AttentionTensors& tensors = head.call.tensors;
  const bool capped = params.softcap != 0;
  const bool cap_last = params.conventions.score_order == ScoreOrder::bias_softcap_mask;
  scale(head, rows, keys, S);
  if (capped && !cap_last) cap(head, rows, keys, S, slope);
  if (tensors.alibi_slopes.exists()) add_alibi(head, rows, keys, S);
  if (tensors.bias.exists()) coverage = add_bias(head, rows, keys, coverage, visible, S);
  if (capped && cap_last) cap(head, rows, keys, S, slope);
  if (coverage == Coverage::all) return coverage;
  for (std::int64_t r = 0; r < rows.count; ++r)
    for (std::int64_t j = 0; j < keys.count; ++j)
      if (!visible.row(r)[j]) S.row(r)[j] = minus_infinity<Real>;
  return coverage;
}

template <class Real>
void dropout_factors(const Head& head, Span rows, Span keys, const Tile<Real>& Z) {
  const AttentionParams& params = head.call.params;
  const Dropout dropout(params.dropout_p, params.philox_seed, params.philox_offset,
                        head.shape.nheads_q);
  const auto kept = static_cast<Real>(dropout.scale());
  for (std::int64_t r = 0; r < rows.count; ++r)
    for (std::int64_t j = 0; j < keys.count; ++j)
      Z.row(r)[j] = dropout.keeps(head.b, head.h, rows.first + r, keys.first + j) ? kept : Real{0};
}

template Coverage finish_scores(const Head&, Span, Span, Coverage, const Visible&,
                                const Tile<float>&, const Tile<float>&);
template Coverage finish_scores(const Head&, Span, Span, Coverage, const Visible&,
                                const Tile<double>&, const Tile<double>&);
template void dropout_factors(const Head&, Span, Span, const Tile<float>&);
template void dropout_factors(const Head&, Span, Span, const Tile<double>&);

}  // namespace tilewise::cpu::portable
