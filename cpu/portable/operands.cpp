#include "cpu/portable/operands.hpp"

#include "cpu/portable/rotary.hpp"
#include "cpu/portable/rows.hpp"

namespace tilewise::cpu::portable {
namespace {

template <class Real>
void multiply(const Tile<Real>& tile, std::int64_t r, Real factor) {
  for (std::int64_t c = 0; c < tile.stride; c += panel_width<Real>)
    for (int x = 0; x < panel_width<Real>; ++x) tile.row(r)[c + x] *= factor;
}

/// One factor for each row: an i8 tensor's.
template <class Real>
void multiply_by_rows(const Head& head, const TensorView& scales, Span keys,
                      const Tile<Real>& tile) {
  if (!scales.exists()) return;
  for (std::int64_t r = 0; r < keys.count; ++r) {
    const std::int64_t offset = head.keys.offset(scales, head.b, keys.first + r, head.kv_head);
    multiply(tile, r, static_cast<Real>(load(scales.dtype, scales.at(offset))));
  }
}

/// One factor for all of them.
template <class Real>
void multiply_by_head(const Head& head, const TensorView& descale, Span span,
                      const Tile<Real>& tile) {
  if (!descale.exists()) return;
  const std::int64_t offset = head.b * descale.strides[0] + head.kv_head * descale.strides[1];
  const auto factor = static_cast<Real>(load(descale.dtype, descale.at(offset)));
  for (std::int64_t r = 0; r < span.count; ++r) multiply(tile, r, factor);
}

}  // namespace

template <class Real>
void read_queries(const Head& head, Span rows, const Tile<Real>& Q) {
  const AttentionTensors& tensors = head.call.tensors;
  read_tile(head.queries, tensors.q, head.b, head.h, rows, Q);
  multiply_by_head(head, tensors.scales.q_descale, rows, Q);
  if (!tensors.cache.rotates()) return;
  for (std::int64_t r = 0; r < rows.count; ++r)
    rotate(tensors.cache, query_position(head, rows.first + r), Q.row(r));
}

template <class Real>
void read_keys(const Head& head, Span keys, const Tile<Real>& K) {
  const AttentionTensors& tensors = head.call.tensors;
  read_tile(head.keys, tensors.k, head.b, head.kv_head, keys, K);
  multiply_by_rows(head, tensors.scales.k_scales, keys, K);
  multiply_by_head(head, tensors.scales.k_descale, keys, K);
}

template <class Real>
void read_values(const Head& head, Span keys, const Tile<Real>& V) {
  const AttentionTensors& tensors = head.call.tensors;
  read_tile(head.keys, tensors.v, head.b, head.kv_head, keys, V);
  multiply_by_rows(head, tensors.scales.v_scales, keys, V);
  multiply_by_head(head, tensors.scales.v_descale, keys, V);
}

template void read_queries(const Head&, Span, const Tile<float>&);
template void read_queries(const Head&, Span, const Tile<double>&);
template void read_keys(const Head&, Span, const Tile<float>&);
template void read_keys(const Head&, Span, const Tile<double>&);
template void read_values(const Head&, Span, const Tile<float>&);
template void read_values(const Head&, Span, const Tile<double>&);

}  // namespace tilewise::cpu::portable
