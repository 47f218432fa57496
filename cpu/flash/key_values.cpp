#include "cpu/flash/key_values.hpp"

#include "cpu/portable/operands.hpp"

#include <cstring>

namespace tilewise::cpu::flash {
namespace {

using portable::Head;
using portable::Span;
using portable::Tile;

std::int64_t row_stride(const TensorView& tensor) {
  return tensor.strides[tensor.ndim - 3];  // [.., row, head, number]; packed: [row, head, number]
}

bool is_dense(const TensorView& tensor) {
  return tensor.strides[tensor.ndim - 1] == 1;
}

void prefetch(const void* row, std::size_t bytes) {
#if defined(__GNUC__)
  for (std::size_t at = 0; at < bytes; at += 64)
    __builtin_prefetch(static_cast<const char*>(row) + at, 0, 2);
#endif
}

}  // namespace

bool KeyValues::evenly_spaced(Span keys) const {
  const KvCache& cache = head_->call.tensors.cache;
  if (!cache.paged()) return true;
  const std::int64_t page_size = head_->call.tensors.k.shape[1];
  return head_->keys.cache_row(head_->b, keys.first) % page_size + keys.count <= page_size;
}

/// `width` numbers of each row of a tile, as floats. False for what is not a plain tensor of f32,
/// f16 or bf16: then nothing has been read.
bool KeyValues::read(const TensorView& tensor, Span keys, std::int64_t width,
                     const Tile<float>& memory, Rows& rows) const {
  const bool wide = tensor.dtype == DType::f32;
  if (!is_dense(tensor) || (!wide && tensor.dtype != DType::f16 && tensor.dtype != DType::bf16))
    return false;
  const bool even = evenly_spaced(keys);
  const std::int64_t first = head_->keys.offset(tensor, head_->b, keys.first, head_->kv_head);
  const std::int64_t stride = row_stride(tensor);
  if (wide && even && stride == width) {
    rows = {static_cast<const float*>(tensor.at(first)), stride};
    return true;
  }
  for (std::int64_t j = 0; j < keys.count; ++j) {
    const void* from =
        tensor.at(even ? first + j * stride
                       : head_->keys.offset(tensor, head_->b, keys.first + j, head_->kv_head));
    if (wide)
      std::memcpy(memory.row(j), from, static_cast<std::size_t>(width) * sizeof(float));
    else if (tensor.dtype == DType::f16)
      kernels_->widen_f16(from, width, memory.row(j));
    else
      kernels_->widen_bf16(from, width, memory.row(j));
    // The same row of the next tile: by the time it is wanted it will have come.
    if (even && keys.end() + j < head_->seqlen_k)
      prefetch(tensor.at(first + (keys.count + j) * stride), width * size_of(tensor.dtype));
  }
  rows = {memory.data, memory.stride};
  return true;
}

void KeyValues::read_keys(Span keys) {
  const AttentionTensors& tensors = head_->call.tensors;
  if (!tensors.scales.k_descale.exists() &&
      read(tensors.k, keys, head_->shape.head_dim, key_memory_, k_))
    return;
  portable::read_keys(*head_, keys, key_memory_);
  k_ = {key_memory_.data, key_memory_.stride};
}

void KeyValues::read_values(Span keys) {
  const AttentionTensors& tensors = head_->call.tensors;
  if (!tensors.scales.v_descale.exists() &&
      read(tensors.v, keys, head_->shape.head_dim_v, value_memory_, v_))
    return;
  portable::read_values(*head_, keys, value_memory_);
  v_ = {value_memory_.data, value_memory_.stride};
}

void KeyValues::turn_to(Span keys) {
  read_keys(keys);
  read_values(keys);
}

bool KeyValues::stored(const TensorView& tensor, const TensorView& descale, Span keys,
                       Source& source) const {
  const bool known =
      tensor.dtype == DType::f32 || tensor.dtype == DType::f16 || tensor.dtype == DType::bf16;
  if (!known || descale.exists() || !is_dense(tensor) || !evenly_spaced(keys)) return false;
  source = {tensor.at(head_->keys.offset(tensor, head_->b, keys.first, head_->kv_head)),
            row_stride(tensor),
            tensor.dtype == DType::f32   ? Element::f32
            : tensor.dtype == DType::f16 ? Element::f16
                                         : Element::bf16};
  return true;
}

Source KeyValues::source_of_keys(Span keys) {
  const AttentionTensors& tensors = head_->call.tensors;
  Source source{};
  if (stored(tensors.k, tensors.scales.k_descale, keys, source)) return source;
  read_keys(keys);
  return {k_.data, k_.stride, Element::f32};
}

Source KeyValues::source_of_values(Span keys) {
  const AttentionTensors& tensors = head_->call.tensors;
  Source source{};
  if (stored(tensors.v, tensors.scales.v_descale, keys, source)) return source;
  read_values(keys);
  return {v_.data, v_.stride, Element::f32};
}

Rows query_rows(const Head& head, Span rows, const TileKernels& kernels,
                const Tile<float>& memory) {
  const AttentionTensors& tensors = head.call.tensors;
  const TensorView& q = tensors.q;
  const bool as_it_is =
      is_dense(q) && !tensors.scales.q_descale.exists() && !tensors.cache.rotates();
  const std::int64_t first = head.queries.offset(q, head.b, rows.first, head.h);
  if (as_it_is && q.dtype == DType::f32)
    return {static_cast<const float*>(q.at(first)), row_stride(q)};
  const Tile<float> packed{memory.data, portable::padded<float>(head.shape.head_dim)};
  if (as_it_is && (q.dtype == DType::f16 || q.dtype == DType::bf16)) {
    const auto widen = q.dtype == DType::f16 ? kernels.widen_f16 : kernels.widen_bf16;
    for (std::int64_t r = 0; r < rows.count; ++r)
      widen(q.at(first + r * row_stride(q)), head.shape.head_dim, packed.row(r));
  } else {
    portable::read_queries(head, rows, packed);
  }
  return {packed.data, packed.stride};
}

Rows output_rows(const Head& head, Span rows, const Tile<float>& memory) {
  const TensorView& o = head.call.tensors.o;
  if (o.dtype != DType::f32 || !is_dense(o)) return {memory.data, memory.stride};
  const std::int64_t first = head.queries.offset(o, head.b, rows.first, head.h);
  return {static_cast<const float*>(o.at(first)), row_stride(o)};
}

}  // namespace tilewise::cpu::flash
