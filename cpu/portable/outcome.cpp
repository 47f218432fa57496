#include "cpu/portable/outcome.hpp"

#include "cpu/portable/operands.hpp"
#include "cpu/portable/rows.hpp"

#include <algorithm>
#include <limits>

namespace tilewise::cpu::portable {

template <class Real>
Real sink_of(const Head& head) {
  const TensorView& sinks = head.call.tensors.sinks;
  if (!sinks.exists()) return -std::numeric_limits<Real>::infinity();
  return static_cast<Real>(load(sinks.dtype, sinks.at(head.h * sinks.strides[0])));
}

template <class Real>
void fill_empty_row(const Head& head, const Tile<Real>& V, Real* o) {
  const std::int64_t width = head.shape.head_dim_v;
  const EmptyRowOutput wanted = head.call.params.conventions.empty_row_output;
  std::fill(o, o + width,
            wanted == EmptyRowOutput::nan ? std::numeric_limits<Real>::quiet_NaN() : Real{0});
  if (wanted != EmptyRowOutput::mean_v) return;
  for (std::int64_t n = 0; n < blocks(head.seqlen_k, Bc); ++n) {
    const Span keys = Span::block(n, Bc, head.seqlen_k);
    read_values(head, keys, V);
    add_rows(V, keys.count, width, o);
  }
  for (std::int64_t c = 0; c < width && head.seqlen_k > 0; ++c)
    o[c] /= static_cast<Real>(head.seqlen_k);
}

void write_lse(const Head& head, std::int64_t row, double lse, bool empty) {
  const TensorView& tensor = head.call.tensors.lse;
  if (!tensor.exists()) return;
  constexpr double infinity = std::numeric_limits<double>::infinity();
  const Conventions& conventions = head.call.params.conventions;
  if (conventions.lse_base == LseBase::two) lse *= 1.4426950408889634;  // log2 e
  if (empty) lse = conventions.empty_row_lse == EmptyRowLse::plus_inf ? infinity : -infinity;
  store(tensor.dtype, tensor.at(head.queries.lse_offset(tensor, head.b, head.h, row)), lse);
}

template float sink_of(const Head&);
template double sink_of(const Head&);
template void fill_empty_row(const Head&, const Tile<float>&, float*);
template void fill_empty_row(const Head&, const Tile<double>&, double*);

}  // namespace tilewise::cpu::portable
