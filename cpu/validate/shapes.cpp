// How the shapes and dtypes of the large tensors fit together.
#include "core/quantised.hpp"
#include "cpu/validate/check.hpp"
#include "cpu/validate/words.hpp"

#include <cinttypes>
#include <utility>

namespace tilewise::cpu {
namespace {

bool is_fp8(DType dtype) {
  return dtype == DType::e4m3 || dtype == DType::e5m2;
}

/// What k and v may be stored in beside queries of dtype `q`.
bool stores_keys(DType dtype, DType q) {
  return dtype == q || is_fp8(dtype) || dtype == DType::i8 || dtype == DType::q8_0;
}

struct Side {
  const TensorView* view;
  const char* name;
  bool packed;
};

Status check_ranks(const Check& check) {
  const AttentionTensors& all = check.call.tensors;
  for (const auto& [view, name, packed] :
       {Side{&all.q, "q", check.packed_q}, Side{&all.k, "k", check.packed_k},
        Side{&all.v, "v", check.packed_k}})
    if (view->ndim != (packed ? 3 : 4))
      return bad("%s has %d dimensions; expected %s", name, static_cast<int>(view->ndim),
                 packed ? "3 beside cu_seqlens, [total, nheads, head_dim]"
                        : "4, [batch, seqlen, nheads, head_dim], or 3 and cu_seqlens");
  return {};
}

/// The dtypes of q, k and v, on which it depends how many numbers a row has.
Status check_dtypes(const Check& check) {
  const AttentionTensors& all = check.call.tensors;
  if (!is_floating(all.q.dtype))
    return bad("q has dtype %s; expected a floating-point one", text(all.q.dtype));
  for (const TensorView* view : {&all.k, &all.v}) {
    const char* const name = check.name_of(*view);
    if (!stores_keys(view->dtype, all.q.dtype))
      return bad("%s has dtype %s, q has %s; expected q's, e4m3, e5m2, i8 or q8_0", name,
                 text(view->dtype), text(all.q.dtype));
    if (check.backward && view->dtype != all.q.dtype)
      return failure(Code::unsupported,
                     "%s has dtype %s beside %s of q; quantised keys and values have no backward "
                     "pass",
                     name, text(view->dtype), text(all.q.dtype));
  }
  return {};
}

Status check_heads(Check& check) {
  const TensorView &q = check.call.tensors.q, &k = check.call.tensors.k, &v = check.call.tensors.v;
  check.nheads_q = q.shape[q.ndim - 2];
  check.nheads_k = k.shape[k.ndim - 2];
  check.head_dim = q.shape[q.ndim - 1];
  check.head_dim_v = v.shape[v.ndim - 1] * numbers_in(v.dtype);
  if (check.nheads_q == 0 || check.nheads_k == 0)
    return bad("%s has no heads; expected at least one", check.nheads_q == 0 ? "q" : "k");
  for (const auto& [name, width] :
       {std::pair{"head_dim", check.head_dim}, std::pair{"head_dim_v", check.head_dim_v}}) {
    if (width == 0) return bad("%s is 0; expected 1 to %" PRId64, name, largest_head_dim);
    if (width > largest_head_dim)
      return failure(Code::unsupported, "%s is %" PRId64 "; cpu.portable serves 1 to %" PRId64,
                     name, width, largest_head_dim);
  }
  if (k.dtype == DType::q8_0 && check.head_dim % BlockQ8::size != 0)
    return bad("head_dim is %" PRId64 "; expected a multiple of %" PRId64 " beside keys in q8_0",
               check.head_dim, BlockQ8::size);
  if (check.nheads_q % check.nheads_k != 0)
    return bad("%" PRId64 " query heads do not divide among %" PRId64
               " key/value heads; expected a multiple",
               check.nheads_q, check.nheads_k);
  return {};
}

Status check_batch(Check& check) {
  const AttentionTensors& all = check.call.tensors;
  for (const TensorView* lengths : {&all.cu_seqlens_q, &all.cu_seqlens_k})
    if (lengths->exists() && (lengths->ndim != 1 || lengths->shape[0] < 1))
      return bad("%s has shape %s; expected [batch + 1]", check.name_of(*lengths),
                 ShapeText(*lengths).text);
  check.batch = check.packed_q ? all.cu_seqlens_q.shape[0] - 1 : all.q.shape[0];
  // What names its rows or pages has as many of them as it likes.
  if (all.cache.paged() || all.cache.cache_batch_idx.exists()) return {};
  const std::int64_t batch_k = check.packed_k ? all.cu_seqlens_k.shape[0] - 1 : all.k.shape[0];
  if (check.batch == batch_k) return {};
  return bad("q is of %" PRId64 " sequences, k of %" PRId64 "; expected as many", check.batch,
             batch_k);
}

Expected of_queries(const Check& check, std::int64_t width) {
  const TensorView& q = check.call.tensors.q;
  if (check.packed_q) return {3, {q.shape[0], check.nheads_q, width}};
  return {4, {check.batch, q.shape[1], check.nheads_q, width}};
}

/// `width` in numbers, of which an element of `dtype` may hold several.
Expected of_keys(const Check& check, std::int64_t width, DType dtype) {
  const TensorView& k = check.call.tensors.k;
  const std::int64_t elements = width / numbers_in(dtype);
  if (check.packed_k) return {3, {k.shape[0], check.nheads_k, elements}};
  return {4, {k.shape[0], k.shape[1], check.nheads_k, elements}};
}

Status check_stored_dtype(const Check& check, const TensorView& view) {
  const DType inputs = check.call.tensors.q.dtype;
  const DType own = is_fp8(inputs) ? DType::bf16 : inputs;
  if (view.dtype == own || view.dtype == DType::f32) return {};
  return bad("%s has dtype %s; expected %s or f32 beside %s inputs", check.name_of(view),
             text(view.dtype), text(own), text(inputs));
}

Status check_stored(const Check& check, const TensorView& view, const Expected& expected,
                    const char* why) {
  Status status = check_shape(check.name_of(view), view, expected, why);
  return status.ok() ? check_stored_dtype(check, view) : status;
}

Status check_gradients(const Check& check) {
  const AttentionTensors& all = check.call.tensors;
  Status status = check_stored(check, all.dout, of_queries(check, check.head_dim_v), "o");
  if (status.ok()) status = check_stored(check, all.dq, of_queries(check, check.head_dim), "q");
  if (status.ok())
    status = check_stored(check, all.dk, of_keys(check, check.head_dim, DType::f32), "k");
  if (status.ok())
    status = check_stored(check, all.dv, of_keys(check, check.head_dim_v, DType::f32), "v");
  return status;
}

}  // namespace

Status check_activations(Check& check) {
  const AttentionTensors& all = check.call.tensors;
  check.packed_q = all.cu_seqlens_q.exists();
  check.packed_k = all.cu_seqlens_k.exists();
  for (const auto step : {check_ranks, check_dtypes})
    if (Status status = step(check); !status.ok()) return status;
  for (const auto step : {check_heads, check_batch})
    if (Status status = step(check); !status.ok()) return status;
  check.capacity = all.k.shape[check.packed_k ? 0 : 1];

  Status status = check_shape("k", all.k, of_keys(check, check.head_dim, all.k.dtype),
                              "the sizes of k and head_dim of q");
  if (status.ok())
    status =
        check_shape("v", all.v, of_keys(check, check.head_dim_v, all.v.dtype), "the sizes of k");
  if (status.ok())
    status = check_stored(check, all.o, of_queries(check, check.head_dim_v),
                          "the sizes of q and head_dim_v of v");
  return status.ok() && check.backward ? check_gradients(check) : status;
}

Status check_statistics(Check& check) {
  const TensorView &lse = check.call.tensors.lse, &q = check.call.tensors.q;
  if (!lse.exists()) return {};
  Status status =
      check.packed_q
          ? check_shape("lse", lse, {2, {check.nheads_q, q.shape[0]}}, "[nheads_q, total_q]")
          : check_shape("lse", lse, {3, {check.batch, check.nheads_q, q.shape[1]}},
                        "[batch, nheads_q, seqlen_q]");
  if (!status.ok()) return status;
  const DType wanted = q.dtype == DType::f64 ? DType::f64 : DType::f32;
  if (lse.dtype == wanted) return {};
  return bad("lse has dtype %s; expected %s beside %s inputs", text(lse.dtype), text(wanted),
             text(q.dtype));
}

Status check_head_vectors(Check& check) {
  const AttentionTensors& all = check.call.tensors;
  for (const TensorView* view : {&all.sinks, &all.dsinks, &all.alibi_slopes}) {
    if (!view->exists()) continue;
    const char* const name = check.name_of(*view);
    Status status = check_dtype(name, *view, DType::f32);
    if (status.ok()) status = check_shape(name, *view, {1, {check.nheads_q}}, "[nheads_q]");
    if (!status.ok()) return status;
  }
  if (all.dsinks.exists() && !all.sinks.exists())
    return bad("dsinks is given without sinks, whose gradient it is");
  return {};
}

Status check_scales(Check& check) {
  const AttentionTensors& all = check.call.tensors;
  const Scales& scales = all.scales;
  for (const TensorView* view : {&scales.q_descale, &scales.k_descale, &scales.v_descale}) {
    if (!view->exists()) continue;
    const char* const name = check.name_of(*view);
    Status status = check_dtype(name, *view, DType::f32);
    if (status.ok())
      status = check_shape(name, *view, {2, {check.batch, check.nheads_k}}, "[batch, nheads_k]");
    if (!status.ok()) return status;
  }
  for (const auto& [rows, view] :
       {std::pair{&all.k, &scales.k_scales}, std::pair{&all.v, &scales.v_scales}}) {
    const char *const name = check.name_of(*view), *const of = check.name_of(*rows);
    if (rows->dtype != DType::i8) {
      if (view->exists())
        return bad("%s is given and %s has dtype %s; expected i8, whose rows they scale", name, of,
                   text(rows->dtype));
      continue;
    }
    if (!view->exists()) return bad("%s has dtype i8 and %s is absent", of, name);
    Status status = check_dtype(name, *view, DType::f32);
    Expected expected{rows->ndim - 1, {}};
    for (int dim = 0; dim < expected.ndim; ++dim) expected.shape[dim] = rows->shape[dim];
    if (status.ok()) status = check_shape(name, *view, expected, "one for each row and head");
    if (!status.ok()) return status;
  }
  return {};
}

Status check_broadcasts(Check& check) {
  const AttentionTensors& all = check.call.tensors;
  for (const TensorView* view : {&all.bias, &all.mask}) {
    if (!view->exists()) continue;
    const char* const name = check.name_of(*view);
    if (view->ndim != 4)
      return bad(
          "%s has %d dimensions; expected 4, [batch, nheads_q, seqlen_q, seqlen_k], each "
          "of which may be 1",
          name, static_cast<int>(view->ndim));
    const bool fits = fits_or_one(view->shape[0], check.batch, false) &&
                      fits_or_one(view->shape[1], check.nheads_q, false) &&
                      fits_or_one(view->shape[2], check.longest_q, check.packed_q) &&
                      fits_or_one(view->shape[3], check.longest_k, check.keys_have_lengths());
    if (!fits) {
      const std::int64_t full[] = {check.batch, check.nheads_q, check.longest_q, check.longest_k};
      return bad("%s has shape %s; expected %s, each of which may be 1", name,
                 ShapeText(*view).text, ShapeText(full, 4).text);
    }
  }
  if (all.mask.exists() && all.mask.dtype != DType::boolean)
    return bad("mask has dtype %s; expected bool, or a floating-point bias", text(all.mask.dtype));
  for (const TensorView* view : {&all.bias, &all.dbias})
    if (view->exists() && view->dtype != DType::f32 && view->dtype != all.q.dtype)
      return bad("%s has dtype %s; expected f32 or q's, %s", check.name_of(*view),
                 text(view->dtype), text(all.q.dtype));
  if (!all.dbias.exists()) return {};
  if (!all.bias.exists()) return bad("dbias is given without bias, whose gradient it is");
  const std::int64_t* const shape = all.bias.shape;
  return check_shape("dbias", all.dbias, {4, {shape[0], shape[1], shape[2], shape[3]}}, "bias's");
}

}  // namespace tilewise::cpu
