#include "cpu/flash/key_values.hpp"

#include "cpu/portable/operands.hpp"

namespace tilewise::cpu::flash {
namespace {

using portable::Head;
using portable::Span;
using portable::Tile;

bool known(DType dtype) {
  return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16;
}

bool is_dense(const TensorView& tensor) {
  return tensor.strides[tensor.ndim - 1] == 1;
}

/// A tensor of a known dtype, from element `first` on.
Source source_at(const TensorView& tensor, std::int64_t first) {
  return {tensor.at(first),
          tensor.strides[tensor.ndim - 3],  // [.., row, head, number]; packed: [row, head, number]
          tensor.dtype == DType::f32   ? Element::f32
          : tensor.dtype == DType::f16 ? Element::f16
                                       : Element::bf16};
}

}  // namespace

bool KeyValues::evenly_spaced(Span keys) const {
  const KvCache& cache = head_->call.tensors.cache;
  if (!cache.paged()) return true;
  const std::int64_t page_size = head_->call.tensors.k.shape[1];
  return head_->keys.cache_row(head_->b, keys.first) % page_size + keys.count <= page_size;
}

bool KeyValues::readable(const TensorView& tensor, const TensorView& descale) {
  return known(tensor.dtype) && is_dense(tensor) && !descale.exists();
}

Source KeyValues::source_of(const TensorView& tensor, std::int64_t key) const {
  return source_at(tensor, head_->keys.offset(tensor, head_->b, key, head_->kv_head));
}

Rows KeyValues::read(const TensorView& tensor, Span keys, std::int64_t width,
                     const Tile<float>& memory) const {
  const bool even = evenly_spaced(keys);
  const Source first = source_of(tensor, keys.first);
  if (first.element == Element::f32 && even && first.stride == width)
    return {static_cast<const float*>(first.data), first.stride};
  const bool more = even && keys.end() + keys.count <= head_->seqlen_k;
  if (even)
    kernels_->read_rows(first, keys.count, width, more, memory.data, memory.stride);
  else
    for (std::int64_t j = 0; j < keys.count; ++j)
      kernels_->read_rows(source_of(tensor, keys.first + j), 1, width, false, memory.row(j),
                          memory.stride);
  return {memory.data, memory.stride};
}

void KeyValues::read_keys(Span keys) {
  const AttentionTensors& tensors = head_->call.tensors;
  if (readable(tensors.k, tensors.scales.k_descale)) {
    k_ = read(tensors.k, keys, head_->shape.head_dim, key_memory_);
    return;
  }
  portable::read_keys(*head_, keys, key_memory_);
  k_ = {key_memory_.data, key_memory_.stride};
}

void KeyValues::read_values(Span keys) {
  const AttentionTensors& tensors = head_->call.tensors;
  if (readable(tensors.v, tensors.scales.v_descale)) {
    v_ = read(tensors.v, keys, head_->shape.head_dim_v, value_memory_);
    return;
  }
  portable::read_values(*head_, keys, value_memory_);
  v_ = {value_memory_.data, value_memory_.stride};
}

void KeyValues::turn_to(Span keys) {
  read_keys(keys);
  read_values(keys);
}

Source KeyValues::source_of_keys(Span keys) {
  const AttentionTensors& tensors = head_->call.tensors;
  if (readable(tensors.k, tensors.scales.k_descale) && evenly_spaced(keys))
    return source_of(tensors.k, keys.first);
  read_keys(keys);
  return {k_.data, k_.stride, Element::f32};
}

Source KeyValues::source_of_values(Span keys) {
  const AttentionTensors& tensors = head_->call.tensors;
  if (readable(tensors.v, tensors.scales.v_descale) && evenly_spaced(keys))
    return source_of(tensors.v, keys.first);
  read_values(keys);
  return {v_.data, v_.stride, Element::f32};
}

Rows query_rows(const Head& head, Span rows, const TileKernels& kernels,
                const Tile<float>& memory) {
  const AttentionTensors& tensors = head.call.tensors;
  const TensorView& q = tensors.q;
  const Tile<float> packed{memory.data, portable::padded<float>(head.shape.head_dim)};
  const bool as_it_is = known(q.dtype) && is_dense(q) && !tensors.scales.q_descale.exists() &&
                        !tensors.cache.rotates();
  if (!as_it_is) {
    portable::read_queries(head, rows, packed);
    return {packed.data, packed.stride};
  }
  const Source source = source_at(q, head.queries.offset(q, head.b, rows.first, head.h));
  if (source.element == Element::f32)
    return {static_cast<const float*>(source.data), source.stride};
  kernels.read_rows(source, rows.count, head.shape.head_dim, false, packed.data, packed.stride);
  return {packed.data, packed.stride};
}

Rows output_rows(const Head& head, Span rows, const Tile<float>& memory) {
  const TensorView& o = head.call.tensors.o;
  if (o.dtype != DType::f32 || !is_dense(o)) return {memory.data, memory.stride};
  const Source first = source_at(o, head.queries.offset(o, head.b, rows.first, head.h));
  return {static_cast<const float*>(first.data), first.stride};
}

}  // namespace tilewise::cpu::flash
