// tilewise_merge_states: attention over disjoint sets of keys, joined by their LSE.
//
// Each part i has o_i = sum_j exp(s_j) v_j / exp(lse_i) over its own keys. Multiplying by
// exp(lse_i) takes the division back, the sums of all parts add up, and one division by exp(lse) is
// left:
//   o = sum_i exp(lse_i - lse) o_i,   lse = log sum_i exp(lse_i)
// (flash-attn's split-KV decoding; with base 2, powers and logarithms of 2). Computed in double.
#include "cpu/api/overlap.hpp"
#include "cpu/api/sized.hpp"
#include "cpu/context.hpp"
#include "cpu/validate.hpp"

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <limits>

namespace tilewise::cpu {
namespace {

/// The rows of an o tensor, and where each has its LSE: dense [batch, seqlen, nheads, width] beside
/// [batch, nheads, seqlen], or packed [total, nheads, width] beside [nheads, total].
struct Rows {
  std::int64_t batch, seqlen, nheads, width;

  explicit Rows(const TensorView& o)
      : batch(o.ndim == 4 ? o.shape[0] : 1),
        seqlen(o.shape[o.ndim - 3]),
        nheads(o.shape[o.ndim - 2]),
        width(o.shape[o.ndim - 1]) {}

  std::int64_t offset(const TensorView& o, std::int64_t b, std::int64_t s, std::int64_t h) const {
    const std::int64_t* const stride = o.strides + o.ndim - 3;
    return (o.ndim == 4 ? b * o.strides[0] : 0) + s * stride[0] + h * stride[1];
  }
  std::int64_t lse_offset(const TensorView& lse, std::int64_t b, std::int64_t s,
                          std::int64_t h) const {
    const std::int64_t* const stride = lse.strides + lse.ndim - 2;
    return (lse.ndim == 3 ? b * lse.strides[0] : 0) + h * stride[0] + s * stride[1];
  }
};

/// The parts as the caller has them: checked one by one and turned into views where they are read,
/// because n is the caller's and nothing is allocated here.
struct Parts {
  std::int64_t n;
  const tilewise_tensor *o, *lse;

  static TensorView view(const tilewise_tensor& given) {
    TensorView view;
    view.data = given.data;
    view.device = {static_cast<DeviceType>(given.device_type), given.device_id};
    view.dtype = static_cast<DType>(given.dtype - 1);
    view.ndim = given.ndim;
    for (int dim = 0; dim < given.ndim; ++dim) {
      view.shape[dim] = given.shape[dim];
      view.strides[dim] = given.strides[dim];
    }
    return view;
  }
};

struct Merge {
  Parts parts;
  TensorView o, lse;
  bool base_two = false, plus_inf = false;

  double power(double x) const { return base_two ? std::exp2(x) : std::exp(x); }
  double logarithm(double x) const { return base_two ? std::log2(x) : std::log(x); }

  double part_lse(std::int64_t i, const Rows& rows, std::int64_t b, std::int64_t s,
                  std::int64_t h) const {
    const TensorView part = Parts::view(parts.lse[i]);
    return load(part.dtype, part.at(rows.lse_offset(part, b, s, h)));
  }

  void row(const Rows& rows, std::int64_t b, std::int64_t s, std::int64_t h) const {
    const double infinity = std::numeric_limits<double>::infinity();
    double max = -infinity;
    for (std::int64_t i = 0; i < parts.n; ++i) {
      const double part = part_lse(i, rows, b, s, h);
      // Not std::max: a NaN has to come through.
      if (!std::isinf(part) && !(part <= max)) max = part;
      if (std::isnan(max)) break;
    }
    const bool empty = max == -infinity;
    double sum = 0;
    for (std::int64_t i = 0; i < parts.n && !empty; ++i) {
      const double part = part_lse(i, rows, b, s, h);
      if (!std::isinf(part)) sum += power(part - max);
    }
    // A few columns at a time, so that a weight is worked out once for all of them; and all parts
    // are read before o is written, which may be one of them.
    constexpr std::int64_t columns = 64;
    for (std::int64_t first = 0; first < rows.width; first += columns) {
      const std::int64_t count = std::min(columns, rows.width - first);
      double total[columns] = {};
      for (std::int64_t i = 0; i < parts.n && !empty; ++i) {
        const double lse_i = part_lse(i, rows, b, s, h);
        if (std::isinf(lse_i)) continue;
        const double weight = power(lse_i - max) / sum;
        const TensorView part = Parts::view(parts.o[i]);
        const std::int64_t start = rows.offset(part, b, s, h), step = part.strides[part.ndim - 1];
        for (std::int64_t x = 0; x < count; ++x)
          total[x] += weight * load(part.dtype, part.at(start + (first + x) * step));
      }
      const std::int64_t start = rows.offset(o, b, s, h), step = o.strides[o.ndim - 1];
      for (std::int64_t x = 0; x < count; ++x)
        store(o.dtype, o.at(start + (first + x) * step), total[x]);
    }
    if (!lse.exists()) return;
    const double merged = empty ? (plus_inf ? infinity : -infinity) : max + logarithm(sum);
    store(lse.dtype, lse.at(rows.lse_offset(lse, b, s, h)), merged);
  }

  /// Task t is the sequence position t of all heads.
  static void task(void* arg, std::int64_t t, int) {
    const Merge& merge = *static_cast<const Merge*>(arg);
    const Rows rows(merge.o);
    for (std::int64_t h = 0; h < rows.nheads; ++h)
      merge.row(rows, t / rows.seqlen, t % rows.seqlen, h);
  }
};

struct Label {
  char text[32];
  Label(const char* name, std::int64_t i) {
    std::snprintf(text, sizeof text, "%s[%" PRId64 "]", name, i);
  }
};

Status check_lse(const char* name, const TensorView& lse, const Rows& rows, bool packed) {
  const bool fits =
      packed ? lse.ndim == 2 && lse.shape[0] == rows.nheads && lse.shape[1] == rows.seqlen
             : lse.ndim == 3 && lse.shape[0] == rows.batch && lse.shape[1] == rows.nheads &&
                   lse.shape[2] == rows.seqlen;
  if (!fits)
    return failure(Code::bad_argument, "%s does not have the shape %s of o", name,
                   packed ? "[nheads, total]" : "[batch, nheads, seqlen]");
  if (lse.dtype != DType::f32 && lse.dtype != DType::f64)
    return failure(Code::bad_argument, "%s has dtype %s; expected f32 or f64", name,
                   name_of(lse.dtype).data());
  return {};
}

Status check_o(const char* name, const TensorView& view, const TensorView& o) {
  if (!is_floating(view.dtype))
    return failure(Code::bad_argument, "%s has dtype %s; expected a floating-point one", name,
                   name_of(view.dtype).data());
  bool fits = view.ndim == o.ndim && (view.ndim == 3 || view.ndim == 4);
  for (int dim = 0; fits && dim < o.ndim; ++dim) fits = view.shape[dim] == o.shape[dim];
  if (fits) return {};
  return failure(Code::bad_argument,
                 "%s has another shape than o; expected [batch, seqlen, nheads, head_dim_v] or "
                 "[total, nheads, head_dim_v] of them all",
                 name);
}

/// An output may be one of the parts it is made of, element for element, and else overlap none.
Status check_apart(const char* output_name, const TensorView& output, const char* part_name,
                   const TensorView& part, bool may_be_it) {
  if (!share_memory(output, part) || (may_be_it && same_place(output, part))) return {};
  return failure(Code::bad_argument, "%s shares memory with %s", output_name, part_name);
}

Status check(const tilewise_tensor* o, const tilewise_tensor* lse, std::int32_t lse_base,
             std::int32_t empty_row_lse, const Scope& scope, Merge& merge) {
  const Parts& parts = merge.parts;
  if (parts.n < 1)
    return failure(Code::bad_argument, "n is %" PRId64 "; expected at least one part", parts.n);
  if (parts.o == nullptr || parts.lse == nullptr || o == nullptr)
    return failure(Code::bad_argument, "%s is null",
                   o == nullptr         ? "o"
                   : parts.o == nullptr ? "o_parts"
                                        : "lse_parts");
  Status status = check_choice("lse_base", lse_base, 2);
  if (status.ok()) status = check_choice("empty_row_lse", empty_row_lse, 3);
  if (status.ok()) status = check_tensor("o", *o, scope, merge.o);
  if (status.ok()) status = check_output("o", merge.o);
  if (status.ok()) status = check_o("o", merge.o, merge.o);
  if (!status.ok()) return status;
  merge.base_two = lse_base == TILEWISE_LSE_BASE_2;
  merge.plus_inf = empty_row_lse == TILEWISE_EMPTY_LSE_PLUS_INF;

  const Rows rows(merge.o);
  const bool packed = merge.o.ndim == 3;
  if (lse != nullptr && (lse->ndim != 0 || lse->data != nullptr)) {
    status = check_tensor("lse", *lse, scope, merge.lse);
    if (status.ok()) status = check_output("lse", merge.lse);
    if (status.ok()) status = check_lse("lse", merge.lse, rows, packed);
    if (status.ok()) status = check_apart("lse", merge.lse, "o", merge.o, false);
    if (!status.ok()) return status;
  }
  for (std::int64_t i = 0; i < parts.n; ++i) {
    const Label o_name("o_parts", i), lse_name("lse_parts", i);
    TensorView part, part_lse;
    status = check_tensor(o_name.text, parts.o[i], scope, part);
    if (status.ok()) status = check_o(o_name.text, part, merge.o);
    if (status.ok()) status = check_tensor(lse_name.text, parts.lse[i], scope, part_lse);
    if (status.ok()) status = check_lse(lse_name.text, part_lse, rows, packed);
    if (status.ok()) status = check_apart("o", merge.o, o_name.text, part, true);
    if (status.ok()) status = check_apart("o", merge.o, lse_name.text, part_lse, false);
    if (status.ok() && merge.lse.exists()) {
      status = check_apart("lse", merge.lse, o_name.text, part, false);
      if (status.ok()) status = check_apart("lse", merge.lse, lse_name.text, part_lse, true);
    }
    if (!status.ok()) return status;
  }
  return {};
}

/// On another device: as the backend sees it.
Status merge_there(const tilewise_context& context, const Merge& merge, std::int32_t empty_row_lse,
                   void* stream) {
  if (context.backend->merge == nullptr)
    return failure(Code::unsupported, "tilewise_merge_states: these %s kernels do not compute it",
                   context.backend->name);
  DeviceMerge there;
  there.n = merge.parts.n;
  there.o_parts = merge.parts.o;
  there.lse_parts = merge.parts.lse;
  there.o_part = [](const DeviceMerge& self, std::int64_t i) {
    return Parts::view(static_cast<const tilewise_tensor*>(self.o_parts)[i]);
  };
  there.lse_part = [](const DeviceMerge& self, std::int64_t i) {
    return Parts::view(static_cast<const tilewise_tensor*>(self.lse_parts)[i]);
  };
  there.o = merge.o;
  there.lse = merge.lse;
  there.lse_base = merge.base_two ? LseBase::two : LseBase::e;
  there.empty_row_lse = static_cast<EmptyRowLse>(empty_row_lse);
  return context.backend->merge(there, context.limits, stream);
}

}  // namespace
}  // namespace tilewise::cpu

tilewise_status tilewise_merge_states(tilewise_context* context, std::int64_t n,
                                      const tilewise_tensor* o_parts,
                                      const tilewise_tensor* lse_parts, const tilewise_tensor* o,
                                      const tilewise_tensor* lse, std::int32_t lse_base,
                                      std::int32_t empty_row_lse, void* stream,
                                      tilewise_error* error) {
  using namespace tilewise::cpu;  // NOLINT(google-build-using-namespace): the C functions are
                                  // global
  using tilewise::Code;
  using tilewise::failure;
  if (context == nullptr) return report(error, failure(Code::bad_argument, "context is null"));
  const bool on_cpu = context->backend == nullptr;
  if (on_cpu && stream != nullptr)
    return report(error, failure(Code::bad_argument, "stream is not null; the CPU has none"));
  Merge merge{{n, o_parts, lse_parts}, {}, {}};
  const Scope scope{on_cpu ? Depth::memory : Depth::addresses, context->device};
  if (const tilewise::Status status = check(o, lse, lse_base, empty_row_lse, scope, merge);
      !status.ok())
    return report(error, status);
  if (!on_cpu) return report(error, merge_there(*context, merge, empty_row_lse, stream));
  const Rows rows(merge.o);
  if (rows.nheads > 0)
    context->workers.parallel_for(context->workers.pool, context->workers.max_workers,
                                  rows.batch * rows.seqlen, Merge::task, &merge);
  return report(error, {});
}
