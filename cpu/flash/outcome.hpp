// What both drivers share: which calls are plain, and how a row ends.
#pragma once

#include "cpu/portable/head.hpp"
#include "cpu/portable/outcome.hpp"
#include "cpu/portable/rows.hpp"

#include <cmath>

namespace tilewise::cpu::flash {

inline constexpr double log2_e = 1.4426950408889634;

/// Whether scores need no more than a scale, and masks no more than a range of keys for each row.
/// Other calls take the portable backend's way with each tile of scores.
inline bool is_plain(const Call& call) {
  const AttentionTensors& tensors = call.tensors;
  return call.params.softcap == 0 && call.params.dropout_p == 0 && call.params.softmax_scale > 0 &&
         std::isfinite(call.params.softmax_scale) && !tensors.bias.exists() &&
         !tensors.mask.exists() && !tensors.alibi_slopes.exists() && !tensors.block_mask.exists();
}

/// From scores, as S has them, to powers of two. Finished scores have their scale already.
inline float factor_of(const Call& call) {
  return static_cast<float>(is_plain(call) ? call.params.softmax_scale * log2_e : log2_e);
}

struct Outcome {
  float divisor;  ///< of O
  bool empty;     ///< the row saw no key, and O is what the conventions say
};

/// Writes a row's LSE, from the largest finished score and the sum of exp(score - m). A sink is a
/// further score, whose value is zero: with it no row is empty.
inline Outcome outcome(const portable::Head& head, std::int64_t row, double m, float l) {
  constexpr double minus_infinity = -std::numeric_limits<double>::infinity();
  const double sink = portable::sink_of<double>(head);
  const bool asked = head.call.tensors.lse.exists();
  if (sink == minus_infinity) {
    if (asked) portable::write_lse(head, row, m + std::log(static_cast<double>(l)), l == 0);
    return {l, l == 0};
  }
  const double most = m > sink ? m : sink;
  const double sum = l * std::exp(m - most) + std::exp(sink - most);
  if (asked) portable::write_lse(head, row, most + std::log(sum), false);
  return {static_cast<float>(l + std::exp(sink - m)), false};
}

}  // namespace tilewise::cpu::flash
