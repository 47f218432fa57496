// What the general kernels are given: every semantic of core/attention.hpp as plain pointers,
// strides and flags, made once by the host from a DeviceCall. The kernels of fast families have
// their cases compiled in; these look at flags, and are slower for it.
//
// What can be said of a call before it runs is said here: strides of dimensions of size 1 are 0,
// causal is a window without keys behind, lengths have an upper bound from every tensor that they
// index. What only the device's memory says (lengths, pages, lists) general_scores.hpp reads.
#pragma once

#include "core/device_backend.hpp"
#include "cuda/device/platform.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>

/// Before a kernel's parameter that it refers to: no copy of its own for each thread. CUDA C++
/// Programming Guide, "__grid_constant__".
#if TILEWISE_EMULATED
#define TILEWISE_GRID_CONSTANT
#else
#define TILEWISE_GRID_CONSTANT __grid_constant__
#endif

namespace tilewise::cuda::sm80::inline TILEWISE_TARGET {
namespace general {

/// Number `column` of row s of head h of block b lies `b block + s row + h head + column column`
/// elements from the first. A block is an entry of the batch, a row of a cache, or a page; packed
/// tensors have one block for all, and its stride is 0. Not there: data is null.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t block = 0, row = 0, head = 0, column = 0;

  __host__ __device__ bool exists() const { return data != nullptr; }
};

/// Bias, mask and their like: element (b, h, i, j), the strides of broadcast dimensions 0.
struct Spread {
  void* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t b = 0, h = 0, i = 0, j = 0;

  __host__ __device__ bool exists() const { return data != nullptr; }
};

/// i32 [n] or [n, m].
struct Indices {
  const std::int32_t* data = nullptr;
  std::int64_t first = 0, second = 0;  ///< strides

  __host__ __device__ bool exists() const { return data != nullptr; }
  __device__ int at(std::int64_t i, std::int64_t j = 0) const {
    return data[i * first + j * second];
  }
};

/// f32 [n] or [n, m].
struct Floats {
  const float* data = nullptr;
  std::int64_t first = 0, second = 0;

  __host__ __device__ bool exists() const { return data != nullptr; }
  __device__ float at(std::int64_t i, std::int64_t j = 0) const {
    return data[i * first + j * second];
  }
};

/// One list of a block mask: how many key blocks each row of blocks names, and which.
struct BlockList {
  const std::int32_t *counts = nullptr, *indices = nullptr;
  std::int64_t counts_b = 0, counts_h = 0, counts_row = 0;
  std::int64_t indices_b = 0, indices_h = 0, indices_row = 0, indices_n = 0;
  int longest = 0;  ///< room for so many indices

  __host__ __device__ bool exists() const { return counts != nullptr; }
};

struct Problem {
  // Tensors. Of a forward call dout, dq, dk, dv, dbias and dsinks are not there.
  Tensor q, k, v, o, dout, dq, dk, dv;
  float* lse = nullptr;
  std::int64_t lse_b = 0, lse_h = 0, lse_i = 0;  ///< its strides; packed: lse_b is 0
  Spread bias, mask, dbias;                      ///< the mask only if it counts
  Floats alibi_slopes, sinks;
  float* dsinks = nullptr;
  std::int64_t dsinks_stride = 0;
  Floats q_descale, k_descale, v_descale;
  Tensor k_scales, v_scales;  ///< column is 0
  BlockList some_blocks, full_blocks;
  int block_q = 1, block_k = 1;

  // Shapes.
  int batch = 0, nheads_q = 0, nheads_k = 0, group = 1, head_dim = 0, head_dim_v = 0;
  int rows_q = 0, rows_k = 0;  ///< of the tensor: of a sequence, or packed of all of them
  int most_q = 0, most_k = 0;  ///< no sequence can be longer; grids are made for it
  bool packed_q = false, packed_k = false;
  Indices cu_seqlens_q, cu_seqlens_k, seqlens_q, seqlens_k;

  // Keys in a cache.
  bool cached = false;
  Indices block_table, cache_batch_idx, leftpad;
  int page_size = 1;          ///< rows of a page
  int cache_blocks = 0;       ///< pages, or rows of the cache
  std::int64_t capacity = 0;  ///< rows that a sequence has room for, padding included
  int new_rows = 0;
  Tensor k_new, v_new;
  Tensor rotary_cos, rotary_sin;  ///< `row` is a position's stride
  int positions = 0, rotary_pairs = 0;
  bool rotary_interleaved = true;
  bool ordered = false;  ///< a query's position is its own, not that of the first

  // Parameters.
  float softmax_scale = 1, softcap = 0;
  bool softcap_last = false;  ///< behind bias and ALiBi
  bool causal = false;        ///< as it was asked; what it hides is in `right`
  bool bottom_right = true;   ///< queries stand at the end of the keys
  /// Query i at key position p sees keys p - left to p + right: at most `unbounded`.
  std::int64_t left = 0, right = 0;
  std::int64_t chunk = 0;
  Alibi alibi = Alibi::minus_distance;
  EmptyRowOutput empty_output = EmptyRowOutput::zero;
  bool empty_lse_is_plus_inf = false;
  float lse_unit = 1;  ///< LSE times this is what is stored

  // Dropout.
  bool drops = false;
  int keep_threshold = 0;    ///< bytes up to this keep their element: core/dropout.hpp
  float dropout_factor = 1;  ///< 1 / (1 - p)
  std::uint64_t philox_seed = 0, philox_offset = 0;
  const std::uint64_t *philox_seed_pointer = nullptr, *philox_offset_pointer = nullptr;

  std::uint32_t* error = nullptr;  ///< WorkspaceHead's; null where nothing can be amiss

  static constexpr std::int64_t unbounded = std::int64_t{1} << 40;
};

// ----------------------------------------------------------------------- from a call, by the host

namespace detail {

/// [blocks, rows, heads, width], or packed [rows, heads, width].
inline Tensor tensor_of(const TensorView& view) {
  if (!view.exists()) return {};
  if (view.ndim == 3)
    return {view.data, view.dtype, 0, view.strides[0], view.strides[1], view.strides[2]};
  return {view.data,       view.dtype,      view.strides[0],
          view.strides[1], view.strides[2], view.strides[3]};
}

/// Scales of rows: [blocks, rows, heads], or packed [rows, heads].
inline Tensor row_scales_of(const TensorView& view) {
  if (!view.exists()) return {};
  if (view.ndim == 2) return {view.data, view.dtype, 0, view.strides[0], view.strides[1], 0};
  return {view.data, view.dtype, view.strides[0], view.strides[1], view.strides[2], 0};
}

/// A table [rows, columns].
inline Tensor table_of(const TensorView& view) {
  if (!view.exists()) return {};
  return {view.data, view.dtype, 0, view.strides[0], 0, view.strides[1]};
}

inline std::int64_t stride_or_0(const TensorView& view, int dim) {
  return view.shape[dim] == 1 ? 0 : view.strides[dim];
}

inline Spread spread_of(const TensorView& view) {
  if (!view.exists()) return {};
  return {view.data,
          view.dtype,
          stride_or_0(view, 0),
          stride_or_0(view, 1),
          stride_or_0(view, 2),
          stride_or_0(view, 3)};
}

inline Indices indices_of(const TensorView& view) {
  if (!view.exists()) return {};
  return {static_cast<const std::int32_t*>(view.data), view.strides[0],
          view.ndim > 1 ? view.strides[1] : 0};
}

inline Floats floats_of(const TensorView& view) {
  if (!view.exists()) return {};
  return {static_cast<const float*>(view.data), view.strides[0],
          view.ndim > 1 ? view.strides[1] : 0};
}

inline int as_int(std::int64_t value) {
  constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
  return static_cast<int>(std::min(value, most));
}

inline BlockList list_of(const TensorView& counts, const TensorView& indices) {
  if (!counts.exists()) return {};
  return {static_cast<const std::int32_t*>(counts.data),
          static_cast<const std::int32_t*>(indices.data),
          stride_or_0(counts, 0),
          stride_or_0(counts, 1),
          counts.strides[2],
          stride_or_0(indices, 0),
          stride_or_0(indices, 1),
          indices.strides[2],
          indices.strides[3],
          indices.exists() ? as_int(indices.shape[3]) : 0};
}

/// No longer than a dimension that the rows, or keys, of a sequence index; 1 is for all of them.
inline void bound_by(std::int64_t& most, const TensorView& view, int dim) {
  if (view.exists() && view.shape[dim] != 1) most = std::min(most, view.shape[dim]);
}

inline void set_shapes(Problem& problem, const DeviceCall& call) {
  const AttentionTensors& t = call.tensors;
  const KvCache& cache = t.cache;
  problem.packed_q = t.cu_seqlens_q.exists();
  problem.packed_k = t.cu_seqlens_k.exists();
  problem.batch = as_int(problem.packed_q ? t.cu_seqlens_q.shape[0] - 1 : t.q.shape[0]);
  problem.nheads_q = as_int(t.q.shape[t.q.ndim - 2]);
  problem.nheads_k = as_int(t.k.shape[t.k.ndim - 2]);
  problem.group = problem.nheads_q / std::max(problem.nheads_k, 1);
  problem.head_dim = as_int(t.q.shape[t.q.ndim - 1]);
  problem.head_dim_v = as_int(t.v.shape[t.v.ndim - 1] * (t.v.dtype == DType::q8_0 ? 32 : 1));
  problem.rows_q = as_int(t.q.shape[problem.packed_q ? 0 : 1]);
  problem.rows_k = as_int(t.k.shape[problem.packed_k ? 0 : 1]);
  problem.cached = cache.exists();
  problem.capacity = problem.rows_k;
  if (cache.paged()) problem.capacity = cache.block_table.shape[1] * t.k.shape[1];
  if (t.k.shape[0] == 0 && !problem.packed_k) problem.capacity = 0;  // no page to have rows in

  std::int64_t most_q = problem.rows_q, most_k = problem.capacity;
  if (call.max_seqlen_q > 0) most_q = std::min(most_q, call.max_seqlen_q);
  if (call.max_seqlen_k > 0 && !problem.cached) most_k = std::min(most_k, call.max_seqlen_k);
  for (const TensorView* const view : {&t.bias, &t.mask, &t.dbias}) {
    bound_by(most_q, *view, 2);
    bound_by(most_k, *view, 3);
  }
  for (const TensorView* const view :
       {&t.block_mask.kv_num_blocks, &t.block_mask.kv_indices, &t.block_mask.full_kv_num_blocks,
        &t.block_mask.full_kv_indices})
    if (view->exists())
      most_q = std::min(most_q, std::min<std::int64_t>(view->shape[2], 1 << 30) *
                                    std::min<std::int64_t>(t.block_mask.block_q, 1 << 30));
  problem.most_q = as_int(most_q);
  problem.most_k = as_int(most_k);
}

inline void set_cache(Problem& problem, const AttentionTensors& t) {
  const KvCache& cache = t.cache;
  problem.block_table = indices_of(cache.block_table);
  problem.cache_batch_idx = indices_of(cache.cache_batch_idx);
  problem.leftpad = indices_of(cache.leftpad);
  problem.page_size = cache.paged() ? as_int(t.k.shape[1]) : 1;
  problem.cache_blocks = as_int(t.k.shape[0]);
  problem.new_rows = as_int(cache.seqlen_new());
  problem.k_new = tensor_of(cache.k_new);
  problem.v_new = tensor_of(cache.v_new);
  if (!cache.rotates()) return;
  problem.rotary_cos = table_of(cache.rotary_cos);
  problem.rotary_sin = table_of(cache.rotary_sin);
  problem.positions = as_int(cache.rotary_cos.shape[0]);
  problem.rotary_pairs = as_int(cache.rotary_cos.shape[1]);
  problem.rotary_interleaved = cache.rotary_interleaved;
}

inline void set_parameters(Problem& problem, const AttentionParams& params, bool has_mask) {
  constexpr std::int64_t unbounded = Problem::unbounded;
  const Conventions& conventions = params.conventions;
  const bool counts_self = conventions.window_left == WindowLeft::keys_including_self;
  problem.softmax_scale = static_cast<float>(params.softmax_scale);
  problem.softcap = static_cast<float>(params.softcap);
  problem.softcap_last = conventions.score_order == ScoreOrder::bias_softcap_mask;
  problem.causal = params.causal;
  problem.bottom_right = conventions.alignment == Alignment::bottom_right;
  problem.left = problem.right = unbounded;
  if (params.window_left >= 0)
    problem.left = std::min(params.window_left - (counts_self ? 1 : 0), unbounded);
  if (params.window_right >= 0) problem.right = std::min(params.window_right, unbounded);
  if (params.causal && !(has_mask && conventions.mask_and_causal == MaskAndCausal::mask_replaces))
    problem.right = 0;
  problem.chunk = std::min(params.attention_chunk, unbounded);
  problem.ordered = params.causal || params.window_left >= 0 || params.window_right >= 0 ||
                    params.attention_chunk > 0;
  problem.alibi = conventions.alibi;
  problem.empty_output = conventions.empty_row_output;
  problem.empty_lse_is_plus_inf = conventions.empty_row_lse == EmptyRowLse::plus_inf;
  problem.lse_unit = conventions.lse_base == LseBase::two ? 1.44269504f : 1.0f;
}

inline void set_dropout(Problem& problem, const DeviceCall& call) {
  const double p = call.params.dropout_p;
  if (p == 0) return;
  problem.drops = true;
  // In the arithmetic of core/dropout.hpp, which says why.
  const float kept = 1.0f - static_cast<float>(p);
  problem.keep_threshold = static_cast<int>(static_cast<double>(kept) * 255.0);
  problem.dropout_factor = 1.0f / kept;
  problem.philox_seed = call.params.philox_seed;
  problem.philox_offset = call.params.philox_offset;
  problem.philox_seed_pointer = call.philox_seed;
  problem.philox_offset_pointer = call.philox_offset;
}

}  // namespace detail

/// `workspace` is null or begins with a WorkspaceHead.
inline Problem problem_of(const DeviceCall& call, void* workspace) {
  const AttentionTensors& t = call.tensors;
  Problem problem;
  problem.q = detail::tensor_of(t.q);
  problem.k = detail::tensor_of(t.k);
  problem.v = detail::tensor_of(t.v);
  problem.o = detail::tensor_of(t.o);
  problem.dout = detail::tensor_of(t.dout);
  problem.dq = detail::tensor_of(t.dq);
  problem.dk = detail::tensor_of(t.dk);
  problem.dv = detail::tensor_of(t.dv);
  if (t.lse.exists()) {
    const bool packed = t.lse.ndim == 2;
    problem.lse = static_cast<float*>(t.lse.data);
    problem.lse_b = packed ? 0 : t.lse.strides[0];
    problem.lse_h = t.lse.strides[packed ? 0 : 1];
    problem.lse_i = t.lse.strides[packed ? 1 : 2];
  }
  const bool mask_counts = !(call.params.causal && call.params.conventions.mask_and_causal ==
                                                       MaskAndCausal::causal_replaces);
  problem.bias = detail::spread_of(t.bias);
  problem.dbias = detail::spread_of(t.dbias);
  if (mask_counts) problem.mask = detail::spread_of(t.mask);
  problem.alibi_slopes = detail::floats_of(t.alibi_slopes);
  problem.sinks = detail::floats_of(t.sinks);
  if (t.dsinks.exists()) {
    problem.dsinks = static_cast<float*>(t.dsinks.data);
    problem.dsinks_stride = t.dsinks.strides[0];
  }
  problem.q_descale = detail::floats_of(t.scales.q_descale);
  problem.k_descale = detail::floats_of(t.scales.k_descale);
  problem.v_descale = detail::floats_of(t.scales.v_descale);
  problem.k_scales = detail::row_scales_of(t.scales.k_scales);
  problem.v_scales = detail::row_scales_of(t.scales.v_scales);
  if (t.block_mask.exists()) {
    problem.some_blocks = detail::list_of(t.block_mask.kv_num_blocks, t.block_mask.kv_indices);
    problem.full_blocks =
        detail::list_of(t.block_mask.full_kv_num_blocks, t.block_mask.full_kv_indices);
    problem.block_q = detail::as_int(t.block_mask.block_q);
    problem.block_k = detail::as_int(t.block_mask.block_k);
  }
  problem.cu_seqlens_q = detail::indices_of(t.cu_seqlens_q);
  problem.cu_seqlens_k = detail::indices_of(t.cu_seqlens_k);
  problem.seqlens_q = detail::indices_of(t.seqlens_q);
  problem.seqlens_k = detail::indices_of(t.seqlens_k);
  detail::set_shapes(problem, call);
  if (problem.cached) detail::set_cache(problem, t);
  detail::set_parameters(problem, call.params, t.mask.exists());
  detail::set_dropout(problem, call);
  if (workspace != nullptr) problem.error = &static_cast<WorkspaceHead*>(workspace)->error;
  return problem;
}

}  // namespace general
}  // namespace tilewise::cuda::sm80::inline TILEWISE_TARGET
