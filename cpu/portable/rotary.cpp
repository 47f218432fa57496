#include "cpu/portable/rotary.hpp"

namespace tilewise::cpu::portable {

std::int64_t query_position(const Head& head, std::int64_t i) {
  const AttentionParams& params = head.call.params;
  const bool ordered = params.causal || params.window_left >= 0 || params.window_right >= 0 ||
                       params.attention_chunk > 0;
  return head.keys.cache_row(head.b, head.keys.length_before(head.b) + (ordered ? i : 0));
}

template <class Real>
void rotate(const KvCache& cache, std::int64_t position, Real* row) {
  const TensorView &cosines = cache.rotary_cos, &sines = cache.rotary_sin;
  const std::int64_t pairs = cosines.shape[1];
  const auto at = [&](const TensorView& table, std::int64_t p) {
    return static_cast<Real>(
        load(table.dtype, table.at(position * table.strides[0] + p * table.strides[1])));
  };
  for (std::int64_t p = 0; p < pairs; ++p) {
    Real& x1 = row[cache.rotary_interleaved ? 2 * p : p];
    Real& x2 = row[cache.rotary_interleaved ? 2 * p + 1 : p + pairs];
    const Real cosine = at(cosines, p), sine = at(sines, p);
    const Real turned = x1 * cosine - x2 * sine;
    x2 = x1 * sine + x2 * cosine;
    x1 = turned;
  }
}

template void rotate(const KvCache&, std::int64_t, float*);
template void rotate(const KvCache&, std::int64_t, double*);

}  // namespace tilewise::cpu::portable
