#include "tests/fuzz/capi_problem.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

namespace tilewise::fuzz {

tilewise_tensor tensor_of(Bytes& bytes, std::int32_t dtype,
                          std::initializer_list<std::int64_t> shape) {
  enum Layout : std::uint8_t { plain, heads_first, padded, reversed, broadcast };
  const std::uint8_t choice = bytes.byte();
  const auto layout = choice < 128 ? plain : static_cast<Layout>(choice % 5);
  tilewise_tensor tensor =
      tilewise_contiguous(nullptr, dtype, static_cast<std::int32_t>(shape.size()), shape.begin());
  const int first = tensor.ndim >= 4 ? 1 : 0;
  if (layout == heads_first && tensor.ndim >= 3) {
    std::swap(tensor.shape[first], tensor.shape[first + 1]);
    tensor = tilewise_contiguous(nullptr, dtype, tensor.ndim, tensor.shape);
    std::swap(tensor.shape[first], tensor.shape[first + 1]);
    std::swap(tensor.strides[first], tensor.strides[first + 1]);
  }
  if (layout == padded)
    for (int dim = 0; dim < tensor.ndim; ++dim)
      tensor.strides[dim] *= dim + 1 == tensor.ndim ? 1 : 2;
  if (layout == reversed) tensor.strides[first] = -tensor.strides[first];
  if (layout == broadcast) tensor.strides[0] = 0;
  return tensor;
}

void edit(Bytes& bytes, tilewise_tensor& tensor) {
  const auto dim = static_cast<std::size_t>(bytes.below(TILEWISE_MAX_DIMS));
  switch (bytes.below(8)) {
    case 0: tensor.dtype = odd_choice(bytes); break;
    case 1: tensor.device_type = odd_choice(bytes); break;
    case 2: tensor.device_id = odd_choice(bytes); break;
    case 3: tensor.ndim = odd_choice(bytes); break;
    case 4: tensor.shape[dim] = odd_integer(bytes); break;
    case 5: tensor.strides[dim] = odd_integer(bytes); break;
    case 6: tensor = {}; break;
    case 7: std::swap(tensor.shape[dim], tensor.shape[0]); break;
    default: break;
  }
}

namespace {

// ------------------------------------------------------------------------------------- tensors

using Tensor = tilewise_tensor tilewise_attention::*;

constexpr Tensor tensors[] = {
    &tilewise_attention::q,
    &tilewise_attention::k,
    &tilewise_attention::v,
    &tilewise_attention::o,
    &tilewise_attention::lse,
    &tilewise_attention::dout,
    &tilewise_attention::dq,
    &tilewise_attention::dk,
    &tilewise_attention::dv,
    &tilewise_attention::dbias,
    &tilewise_attention::dsinks,
    &tilewise_attention::bias,
    &tilewise_attention::mask,
    &tilewise_attention::sinks,
    &tilewise_attention::alibi_slopes,
    &tilewise_attention::cu_seqlens_q,
    &tilewise_attention::cu_seqlens_k,
    &tilewise_attention::seqlens_q,
    &tilewise_attention::seqlens_k,
    &tilewise_attention::kv_num_blocks,
    &tilewise_attention::kv_indices,
    &tilewise_attention::full_kv_num_blocks,
    &tilewise_attention::full_kv_indices,
    &tilewise_attention::block_table,
    &tilewise_attention::cache_batch_idx,
    &tilewise_attention::cache_leftpad,
    &tilewise_attention::k_new,
    &tilewise_attention::v_new,
    &tilewise_attention::rotary_cos,
    &tilewise_attention::rotary_sin,
    &tilewise_attention::q_descale,
    &tilewise_attention::k_descale,
    &tilewise_attention::v_descale,
    &tilewise_attention::k_scales,
    &tilewise_attention::v_scales,
};

bool is_output(Tensor tensor, bool backward, bool appends) {
  using A = tilewise_attention;
  const auto among = [&](std::initializer_list<Tensor> list) {
    return std::find(list.begin(), list.end(), tensor) != list.end();
  };
  if (backward) return among({&A::dq, &A::dk, &A::dv, &A::dbias, &A::dsinks});
  return among({&A::o, &A::lse}) || (appends && among({&A::k, &A::v}));
}

/// Writes the i32 elements of a tensor that has memory, in row-major order.
template <class Value>
void write_indices(const tilewise_tensor& tensor, const Value& value) {
  const Extent extent = extent_of(tensor);
  if (tensor.data == nullptr || !extent.sound || extent.empty || extent.large ||
      tensor.dtype != TILEWISE_I32)
    return;
  std::array<std::int64_t, TILEWISE_MAX_DIMS> index{};
  for (std::int64_t n = 0;; ++n) {
    std::int64_t offset = 0;
    for (int dim = 0; dim < tensor.ndim; ++dim)
      if (tensor.shape[dim] > 1)
        offset += index[static_cast<std::size_t>(dim)] * tensor.strides[dim];
    const auto element = static_cast<std::int32_t>(value(n));
    std::memcpy(static_cast<char*>(tensor.data) + offset * 4, &element, sizeof element);
    int dim = tensor.ndim - 1;
    while (dim >= 0 && ++index[static_cast<std::size_t>(dim)] == tensor.shape[dim])
      index[static_cast<std::size_t>(dim--)] = 0;
    if (dim < 0) return;
  }
}

// ----------------------------------------------------------------------------------- a problem

/// The sizes that the tensors of one call agree on.
struct Sizes {
  std::int64_t batch, seqlen_q, seqlen_k, nheads_q, nheads_k, head_dim, head_dim_v;
  std::int64_t page_size, pages, slots, seqlen_new, pairs;
  bool packed_q, packed_k, paged, cached;
};

Sizes choose_sizes(Bytes& bytes, bool backward) {
  constexpr std::int64_t lengths[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 16, 17, 65};
  constexpr std::int64_t widths[] = {1, 2, 4, 8, 3, 5, 16, 32, 64, 65};
  Sizes sizes{};
  sizes.batch = bytes.below(4);
  sizes.seqlen_q = bytes.of(lengths);
  sizes.seqlen_k = bytes.of(lengths);
  sizes.nheads_k = 1 + bytes.below(3);
  sizes.nheads_q = sizes.nheads_k * (1 + bytes.below(3));
  sizes.head_dim = bytes.of(widths);
  sizes.head_dim_v = bytes.one_in(4) ? bytes.of(widths) : sizes.head_dim;
  const std::uint8_t form = bytes.byte() % 8;
  sizes.packed_q = form == 1 || form == 2;
  sizes.packed_k = form == 2 || form == 3;
  sizes.cached = form >= 4 && !backward;
  sizes.paged = form >= 6 && !backward;
  sizes.page_size = 1 + bytes.below(9);
  sizes.pages = 1 + bytes.below(4);
  sizes.slots = sizes.batch + bytes.below(3);
  sizes.seqlen_new = sizes.cached ? bytes.below(4) : 0;
  sizes.pairs = bytes.below(sizes.head_dim / 2 + 1);
  return sizes;
}

void choose_tensors(Bytes& bytes, const Sizes& s, std::int32_t dtype, bool backward,
                    tilewise_attention& a) {
  const std::int32_t result =
      dtype == TILEWISE_E4M3 || dtype == TILEWISE_E5M2 ? TILEWISE_BF16 : dtype;
  const std::int32_t of_keys[] = {dtype,         dtype,         dtype,       dtype,
                                  TILEWISE_E4M3, TILEWISE_E5M2, TILEWISE_I8, TILEWISE_Q8_0};
  const std::int32_t k_dtype = backward ? dtype : bytes.of(of_keys);
  const std::int32_t v_dtype = backward ? dtype : bytes.of(of_keys);
  const auto elements = [](std::int64_t width, std::int32_t of) {
    return of == TILEWISE_Q8_0 ? width / 32 : width;
  };
  const auto of_queries = [&](std::int64_t width) {
    return s.packed_q ? tensor_of(bytes, result, {s.batch * s.seqlen_q, s.nheads_q, width})
                      : tensor_of(bytes, result, {s.batch, s.seqlen_q, s.nheads_q, width});
  };
  const auto keys = [&](std::int64_t width, std::int32_t of) {
    width = elements(width, of);
    if (s.packed_k) return tensor_of(bytes, of, {s.batch * s.seqlen_k, s.nheads_k, width});
    if (s.paged) return tensor_of(bytes, of, {s.pages * s.slots, s.page_size, s.nheads_k, width});
    return tensor_of(bytes, of, {s.cached ? s.slots : s.batch, s.seqlen_k, s.nheads_k, width});
  };
  const auto lists = [&](std::initializer_list<std::int64_t> shape) {
    return tensor_of(bytes, TILEWISE_I32, shape);
  };
  const auto reals = [&](std::initializer_list<std::int64_t> shape) {
    return tensor_of(bytes, TILEWISE_F32, shape);
  };

  a.q = of_queries(s.head_dim);
  a.q.dtype = dtype;
  a.k = keys(s.head_dim, k_dtype);
  a.v = keys(s.head_dim_v, v_dtype);
  a.o = of_queries(s.head_dim_v);
  const std::int32_t lse = dtype == TILEWISE_F64 ? TILEWISE_F64 : TILEWISE_F32;
  if (backward || !bytes.one_in(4))
    a.lse = s.packed_q ? tensor_of(bytes, lse, {s.nheads_q, s.batch * s.seqlen_q})
                       : tensor_of(bytes, lse, {s.batch, s.nheads_q, s.seqlen_q});
  if (k_dtype == TILEWISE_I8) {
    a.k_scales = keys(1, TILEWISE_F32);
    --a.k_scales.ndim;
  }
  if (v_dtype == TILEWISE_I8) {
    a.v_scales = keys(1, TILEWISE_F32);
    --a.v_scales.ndim;
  }
  if (s.packed_q) a.cu_seqlens_q = lists({s.batch + 1});
  if (s.packed_k) a.cu_seqlens_k = lists({s.batch + 1});
  if (backward) {
    a.dout = of_queries(s.head_dim_v);
    a.dq = of_queries(s.head_dim);
    a.dk = keys(s.head_dim, result);
    a.dv = keys(s.head_dim_v, result);
  }

  const auto options = bytes.raw<std::uint16_t>();
  const auto chosen = [&](int bit) { return (options >> bit & 1) != 0; };
  const std::int64_t longest_k =
      s.paged ? s.pages * s.page_size : s.seqlen_k + (s.packed_k ? s.seqlen_k : 0);
  if (chosen(0)) a.seqlens_q = lists({s.batch});
  if (chosen(1) || s.cached) a.seqlens_k = lists({s.batch});
  if (chosen(2)) a.alibi_slopes = reals({s.nheads_q});
  if (chosen(3)) a.sinks = reals({s.nheads_q});
  if (chosen(4)) a.bias = reals({chosen(10) ? s.batch : 1, s.nheads_q, s.seqlen_q, s.seqlen_k});
  if (chosen(5))
    a.mask = tensor_of(bytes, TILEWISE_BOOL, {s.batch, 1, s.seqlen_q, chosen(10) ? 1 : s.seqlen_k});
  if (chosen(6)) {
    a.block_q = 1 + bytes.below(9);
    a.block_k = 1 + bytes.below(9);
    const std::int64_t rows = (s.seqlen_q + a.block_q - 1) / a.block_q;
    const std::int64_t columns = (longest_k + a.block_k - 1) / a.block_k;
    a.kv_num_blocks = lists({1, s.nheads_q, rows});
    a.kv_indices = lists({s.batch, 1, rows, columns});
    if (chosen(10)) {
      a.full_kv_num_blocks = lists({1, 1, rows});
      a.full_kv_indices = lists({1, 1, rows, columns});
    }
  }
  if (chosen(7)) a.q_descale = reals({s.batch, s.nheads_k});
  if (chosen(8)) a.k_descale = reals({s.batch, s.nheads_k});
  if (chosen(9)) a.v_descale = reals({s.batch, s.nheads_k});
  if (backward && chosen(4))
    a.dbias = reals({chosen(10) ? s.batch : 1, s.nheads_q, s.seqlen_q, s.seqlen_k});
  if (backward && chosen(3)) a.dsinks = reals({s.nheads_q});
  if (!s.cached) return;
  if (s.paged) a.block_table = lists({s.batch, s.pages});
  if (chosen(11) && !s.paged) a.cache_batch_idx = lists({s.batch});
  if (chosen(12)) a.cache_leftpad = lists({s.batch});
  if (chosen(13)) {
    a.k_new = tensor_of(bytes, dtype, {s.batch, s.seqlen_new, s.nheads_k, s.head_dim});
    a.v_new = tensor_of(bytes, dtype, {s.batch, s.seqlen_new, s.nheads_k, s.head_dim_v});
  }
  if (chosen(14)) {
    const std::int64_t positions = longest_k + s.seqlen_q + s.seqlen_new;
    a.rotary_cos = reals({positions, s.pairs});
    a.rotary_sin = reals({positions, s.pairs});
    a.rotary_interleaved = chosen(15) ? 1 : 0;
  }
}

void choose_numbers(Bytes& bytes, tilewise_attention& a) {
  const auto options = bytes.raw<std::uint16_t>();
  const auto chosen = [&](int bit) { return (options >> bit & 1) != 0; };
  a.causal = chosen(0);
  if (chosen(1)) a.window_left = bytes.below(9);
  if (chosen(2)) a.window_right = bytes.below(5);
  if (chosen(3) && chosen(4)) a.attention_chunk = 1 + bytes.below(9);
  if (chosen(5) && chosen(6)) a.softcap = 5;
  if (chosen(7) && chosen(8)) a.dropout_p = 0.25;
  if (chosen(9) && chosen(10)) a.num_splits = static_cast<std::int32_t>(bytes.below(5));
  if (chosen(11)) a.softmax_scale = 0.5;
}

/// A field of the struct that is no tensor becomes anything.
void edit_number(Bytes& bytes, tilewise_attention& a) {
  using A = tilewise_attention;
  constexpr std::int32_t A::*choices[] = {&A::causal,
                                          &A::deterministic,
                                          &A::num_splits,
                                          &A::alignment,
                                          &A::empty_row_output,
                                          &A::empty_row_lse,
                                          &A::lse_base,
                                          &A::window_left_counts,
                                          &A::default_scale,
                                          &A::score_order,
                                          &A::alibi,
                                          &A::mask_and_causal,
                                          &A::softcap_and_dropout,
                                          &A::rotary_interleaved,
                                          &A::reserved};
  constexpr std::int64_t A::*integers[] = {&A::window_left,  &A::window_right, &A::attention_chunk,
                                           &A::max_seqlen_q, &A::max_seqlen_k, &A::block_q,
                                           &A::block_k};
  constexpr double A::*reals[] = {&A::softmax_scale, &A::softcap, &A::dropout_p};
  switch (bytes.below(4)) {
    case 0: a.*bytes.of(integers) = odd_integer(bytes); break;
    case 1: a.*bytes.of(reals) = odd_real(bytes); break;
    default: a.*bytes.of(choices) = odd_choice(bytes); break;
  }
}

/// Lengths, tables and lists that fit, but for what the bytes make of them.
void write_lists(Bytes& bytes, const Sizes& s, const tilewise_attention& a) {
  const std::uint8_t wrong = bytes.byte();
  const auto sound = [&](std::int64_t n, std::int64_t value) -> std::int64_t {
    if (wrong < 200 || n != wrong % 4) return value;
    return bytes.one_in(4) ? bytes.raw<std::int32_t>() : odd_choice(bytes);
  };
  const auto at_most = [&](std::int64_t most) {
    return [&, most](std::int64_t n) {
      return sound(n, bytes.below(std::max<std::int64_t>(most, 0) + 1));
    };
  };
  const std::int64_t capacity = s.paged ? s.pages * s.page_size : s.seqlen_k;
  write_indices(a.cu_seqlens_q, [&](std::int64_t n) { return sound(n, n * s.seqlen_q); });
  write_indices(a.cu_seqlens_k,
                [&](std::int64_t n) { return sound(n, n == 1 ? s.seqlen_k / 2 : n * s.seqlen_k); });
  write_indices(a.seqlens_q, at_most(s.seqlen_q));
  const std::int64_t least = std::min<std::int64_t>(capacity, 2);
  if (s.cached)
    write_indices(a.seqlens_k, [&](std::int64_t n) {
      return sound(
          n, least + bytes.below(std::max<std::int64_t>(capacity - s.seqlen_new - least, 0) + 1));
    });
  else
    write_indices(a.seqlens_k, at_most(s.packed_k ? s.seqlen_k / 2 : s.seqlen_k));
  write_indices(a.cache_leftpad, at_most(least));
  write_indices(a.cache_batch_idx, [&](std::int64_t n) { return sound(n, s.slots - 1 - n); });
  write_indices(a.block_table, [&](std::int64_t n) { return sound(n, s.pages * s.slots - 1 - n); });
  // Even key blocks in one list, odd ones in the other.
  const auto columns = [](const tilewise_tensor& list) {
    return list.ndim == 4 ? std::clamp<std::int64_t>(list.shape[3], 1, 64) : 1;
  };
  write_indices(a.kv_num_blocks, at_most((columns(a.kv_indices) + 1) / 2));
  write_indices(a.full_kv_num_blocks, at_most(columns(a.full_kv_indices) / 2));
  write_indices(a.kv_indices,
                [&](std::int64_t n) { return sound(n, n % columns(a.kv_indices) * 2); });
  write_indices(a.full_kv_indices,
                [&](std::int64_t n) { return sound(n, n % columns(a.full_kv_indices) * 2 + 1); });
}

}  // namespace

double work_of(const tilewise_attention& a) {
  const auto size = [](std::int64_t n) {
    return static_cast<double>(std::max<std::int64_t>(n, 1));
  };
  double largest = 0;
  for (const Tensor tensor : tensors)
    if (const Extent extent = extent_of(a.*tensor); extent.sound)
      largest = std::max(largest, extent.elements);
  const Extent q = extent_of(a.q);
  double keys = size(a.k.ndim == 3 ? a.k.shape[0] : a.k.shape[1]);
  if (a.block_table.ndim == 2) keys *= size(a.block_table.shape[1]);
  const double width = size(a.v.shape[std::clamp<int>(a.v.ndim, 1, TILEWISE_MAX_DIMS) - 1]);
  return std::max(largest, q.elements * std::max(keys, 1.0) * (1 + width / 64));
}

CapiProblem choose_problem(Bytes& bytes, Memory& memory) {
  constexpr const char* presets[] = {nullptr, "fa3",  "fa2",  "torch_sdpa",      "flashinfer",
                                     "cudnn", "jax",  "vllm", "triton_tutorial", "hf_eager",
                                     "onnx",  "ggml", "mlx",  "xformers"};
  constexpr std::int32_t dtypes[] = {TILEWISE_F32, TILEWISE_F16,  TILEWISE_BF16,
                                     TILEWISE_F64, TILEWISE_E4M3, TILEWISE_E5M2};
  const bool backward = bytes.one_in(3);
  CapiProblem problem{{}, bytes.one_in(64) ? odd_choice(bytes) : backward ? 1 : 0};
  tilewise_attention& attention = problem.attention;
  require(tilewise_attention_init(&attention, bytes.of(presets)) == TILEWISE_OK,
          "the presets are known");
  const Sizes sizes = choose_sizes(bytes, backward);
  choose_numbers(bytes, attention);
  choose_tensors(bytes, sizes, bytes.of(dtypes), backward, attention);
  const std::uint8_t edits = bytes.byte();
  for (int n = 0; n < (edits < 128 ? 0 : edits % 4 + 1); ++n)
    if (bytes.one_in(2))
      edit_number(bytes, attention);
    else
      edit(bytes, attention.*bytes.of(tensors));

  const bool appends = attention.k_new.ndim != 0;
  for (const Tensor tensor : tensors)
    if ((attention.*tensor).ndim != 0)
      memory.place(attention.*tensor,
                   is_output(tensor, problem.pass == TILEWISE_BACKWARD, appends));
  write_lists(bytes, sizes, attention);
  if (bytes.one_in(8))
    attention.philox_seed_pointer = reinterpret_cast<const std::uint64_t*>(memory.take(8).data());
  if (bytes.one_in(8))
    attention.philox_offset_pointer = reinterpret_cast<const std::uint64_t*>(memory.take(8).data());
  return problem;
}

}  // namespace tilewise::fuzz
