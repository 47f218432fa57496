#include "cpu/validate.hpp"

#include "cpu/api/overlap.hpp"

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace tilewise::cpu {
namespace {

static_assert(static_cast<int>(DType::f64) + 1 == TILEWISE_F64);
static_assert(static_cast<int>(DType::f32) + 1 == TILEWISE_F32);
static_assert(static_cast<int>(DType::f16) + 1 == TILEWISE_F16);
static_assert(static_cast<int>(DType::bf16) + 1 == TILEWISE_BF16);
static_assert(static_cast<int>(DType::e4m3) + 1 == TILEWISE_E4M3);
static_assert(static_cast<int>(DType::e5m2) + 1 == TILEWISE_E5M2);
static_assert(static_cast<int>(DType::i64) + 1 == TILEWISE_I64);
static_assert(static_cast<int>(DType::i32) + 1 == TILEWISE_I32);
static_assert(static_cast<int>(DType::boolean) + 1 == TILEWISE_BOOL);

static_assert(static_cast<int>(Alignment::top_left) == TILEWISE_ALIGN_TOP_LEFT);
static_assert(static_cast<int>(EmptyRowOutput::nan) == TILEWISE_EMPTY_OUTPUT_NAN);
static_assert(static_cast<int>(EmptyRowOutput::mean_v) == TILEWISE_EMPTY_OUTPUT_MEAN_V);
static_assert(static_cast<int>(EmptyRowLse::plus_inf) == TILEWISE_EMPTY_LSE_PLUS_INF);
static_assert(static_cast<int>(EmptyRowLse::unspecified) == TILEWISE_EMPTY_LSE_UNSPECIFIED);
static_assert(static_cast<int>(LseBase::two) == TILEWISE_LSE_BASE_2);
static_assert(static_cast<int>(WindowLeft::keys_including_self) ==
              TILEWISE_WINDOW_KEYS_INCLUDING_SELF);
static_assert(static_cast<int>(DefaultScale::one) == TILEWISE_SCALE_ONE);
static_assert(static_cast<int>(DefaultScale::required) == TILEWISE_SCALE_REQUIRED);
static_assert(static_cast<int>(ScoreOrder::bias_softcap_mask) == TILEWISE_ORDER_BIAS_SOFTCAP_MASK);
static_assert(static_cast<int>(Alibi::fa2) == TILEWISE_ALIBI_FA2);
static_assert(static_cast<int>(Alibi::signed_distance) == TILEWISE_ALIBI_SIGNED_DISTANCE);
static_assert(static_cast<int>(MaskAndCausal::mask_replaces) ==
              TILEWISE_MASK_AND_CAUSAL_MASK_REPLACES);
static_assert(static_cast<int>(MaskAndCausal::causal_replaces) ==
              TILEWISE_MASK_AND_CAUSAL_CAUSAL_REPLACES);
static_assert(static_cast<int>(MaskAndCausal::refuse) == TILEWISE_MASK_AND_CAUSAL_REFUSE);

/// More than any memory holds, and small enough for sums of a few to stay far from overflow.
constexpr std::int64_t largest_dimension = std::int64_t{1} << 48;
constexpr std::int64_t largest_head_dim = 512;

/// failure() with Code::bad_argument.
#if defined(__GNUC__)
__attribute__((format(printf, 1, 2)))
#endif
Status
bad(const char* format, ...) {
  Status status{Code::bad_argument, {}};
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(status.reason, sizeof status.reason, format, arguments);
  va_end(arguments);
  return status;
}

/// "[2, 70, 4, 32]"
struct ShapeText {
  char text[120] = "[";

  ShapeText(const std::int64_t* shape, int ndim) {
    std::size_t used = 1;
    for (int dim = 0; dim < ndim; ++dim) {
      const int more = std::snprintf(text + used, sizeof text - used, "%s%" PRId64,
                                     dim == 0 ? "" : ", ", shape[dim]);
      used += static_cast<std::size_t>(more);
    }
    text[used] = ']';
    text[used + 1] = '\0';
  }
};

bool is_fp8(DType dtype) {
  return dtype == DType::e4m3 || dtype == DType::e5m2;
}

/// An index tensor's element.
std::int64_t index_at(const TensorView& view, std::int64_t offset) {
  std::int32_t value;
  std::memcpy(&value, view.at(offset), sizeof value);
  return value;
}

/// One tensor of the struct: where it comes from and goes to, and its part in this pass.
struct Member {
  const char* name;
  const tilewise_tensor* given;
  TensorView* view;
  enum Part { required, optional, output, optional_output } part;

  bool written() const { return part == output || part == optional_output; }
};

class Checker {
 public:
  Checker(const tilewise_attention& given, bool backward, Depth depth, Call& call)
      : given_(given),
        backward_(backward),
        depth_(depth),
        call_(call),
        params_(call.params),
        tensors_(call.tensors) {}

  Status run() {
    for (const auto step :
         {&Checker::choices, &Checker::numbers, &Checker::each_tensor, &Checker::activations,
          &Checker::statistics, &Checker::lengths, &Checker::head_vectors, &Checker::broadcasts,
          &Checker::block_mask, &Checker::combinations, &Checker::memory, &Checker::scale})
      if (Status status = (this->*step)(); !status.ok()) return status;
    bound_positions();
    return {};
  }

 private:
  // ---------------------------------------------------------------------------- fields by
  // themselves

  Status choices() {
    const struct {
      const char* name;
      std::int32_t value, count;
    } fields[] = {
        {"causal", given_.causal, 2},
        {"deterministic", given_.deterministic, 2},
        {"alignment", given_.alignment, 2},
        {"empty_row_output", given_.empty_row_output, 3},
        {"empty_row_lse", given_.empty_row_lse, 3},
        {"lse_base", given_.lse_base, 2},
        {"window_left_counts", given_.window_left_counts, 2},
        {"default_scale", given_.default_scale, 3},
        {"score_order", given_.score_order, 2},
        {"alibi", given_.alibi, 3},
        {"mask_and_causal", given_.mask_and_causal, 4},
        {"softcap_and_dropout", given_.softcap_and_dropout, 2},
    };
    for (const auto& field : fields)
      if (Status status = check_choice(field.name, field.value, field.count); !status.ok())
        return status;
    call_.deterministic = given_.deterministic != 0;
    params_.causal = given_.causal != 0;
    params_.conventions = {static_cast<Alignment>(given_.alignment),
                           static_cast<EmptyRowOutput>(given_.empty_row_output),
                           static_cast<EmptyRowLse>(given_.empty_row_lse),
                           static_cast<LseBase>(given_.lse_base),
                           static_cast<WindowLeft>(given_.window_left_counts),
                           static_cast<DefaultScale>(given_.default_scale),
                           static_cast<ScoreOrder>(given_.score_order),
                           static_cast<Alibi>(given_.alibi),
                           static_cast<MaskAndCausal>(given_.mask_and_causal)};
    return {};
  }

  Status numbers() {
    if (std::isinf(given_.softmax_scale))
      return bad("softmax_scale is infinite; expected a finite number, or NaN for the default");
    if (!(std::isfinite(given_.softcap) && given_.softcap >= 0))
      return bad("softcap is %g; expected a finite number, 0 for none", given_.softcap);
    // As a float, because that is what dropout computes with (core/dropout.hpp).
    if (!(given_.dropout_p >= 0 && static_cast<float>(given_.dropout_p) < 1))
      return bad("dropout_p is %g; expected a probability in [0, 1)", given_.dropout_p);
    if (given_.window_left < -1 || given_.window_right < -1)
      return bad("window_%s is %" PRId64 "; expected a number of keys, or -1 for no bound",
                 given_.window_left < -1 ? "left" : "right",
                 given_.window_left < -1 ? given_.window_left : given_.window_right);
    if (given_.attention_chunk < 0)
      return bad("attention_chunk is %" PRId64 "; expected a number of keys, 0 for none",
                 given_.attention_chunk);
    for (const auto& [name, length] :
         {Named{"max_seqlen_q", given_.max_seqlen_q}, Named{"max_seqlen_k", given_.max_seqlen_k}})
      if (length < 0 || length > largest_dimension)
        return bad("%s is %" PRId64 "; expected a length, or 0 where it is not known", name,
                   length);
    if (given_.num_splits < 0)
      return bad("num_splits is %d; expected 0 (the library's choice) or more",
                 static_cast<int>(given_.num_splits));
    if (given_.num_splits > 1)
      return failure(Code::unsupported,
                     "num_splits is %d; cpu.portable does not split the keys: expected 0 or 1",
                     static_cast<int>(given_.num_splits));
    params_.window_left = given_.window_left;
    params_.window_right = given_.window_right;
    params_.attention_chunk = given_.attention_chunk;
    params_.softcap = given_.softcap;
    params_.dropout_p = given_.dropout_p;
    params_.philox_seed = given_.philox_seed;
    params_.philox_offset = given_.philox_offset;
    if (depth_ == Depth::memory) {
      if (given_.philox_seed_pointer != nullptr)
        std::memcpy(&params_.philox_seed, given_.philox_seed_pointer, sizeof(std::uint64_t));
      if (given_.philox_offset_pointer != nullptr)
        std::memcpy(&params_.philox_offset, given_.philox_offset_pointer, sizeof(std::uint64_t));
    }
    return {};
  }

  Status each_tensor() {
    using Part = Member::Part;
    const Part result = backward_ ? Member::required : Member::output;
    const Part statistic = backward_ ? Member::required : Member::optional_output;
    add("q", given_.q, tensors_.q, Member::required);
    add("k", given_.k, tensors_.k, Member::required);
    add("v", given_.v, tensors_.v, Member::required);
    add("o", given_.o, tensors_.o, result);
    add("lse", given_.lse, tensors_.lse, statistic);
    if (backward_) {
      add("dout", given_.dout, tensors_.dout, Member::required);
      add("dq", given_.dq, tensors_.dq, Member::output);
      add("dk", given_.dk, tensors_.dk, Member::output);
      add("dv", given_.dv, tensors_.dv, Member::output);
      add("dbias", given_.dbias, tensors_.dbias, Member::optional_output);
      add("dsinks", given_.dsinks, tensors_.dsinks, Member::optional_output);
    }
    add("bias", given_.bias, tensors_.bias, Member::optional);
    add("mask", given_.mask, tensors_.mask, Member::optional);
    add("sinks", given_.sinks, tensors_.sinks, Member::optional);
    add("alibi_slopes", given_.alibi_slopes, tensors_.alibi_slopes, Member::optional);
    add("cu_seqlens_q", given_.cu_seqlens_q, tensors_.cu_seqlens_q, Member::optional);
    add("cu_seqlens_k", given_.cu_seqlens_k, tensors_.cu_seqlens_k, Member::optional);
    add("seqlens_q", given_.seqlens_q, tensors_.seqlens_q, Member::optional);
    add("seqlens_k", given_.seqlens_k, tensors_.seqlens_k, Member::optional);
    BlockMask& blocks = tensors_.block_mask;
    add("kv_num_blocks", given_.kv_num_blocks, blocks.kv_num_blocks, Member::optional);
    add("kv_indices", given_.kv_indices, blocks.kv_indices, Member::optional);
    add("full_kv_num_blocks", given_.full_kv_num_blocks, blocks.full_kv_num_blocks,
        Member::optional);
    add("full_kv_indices", given_.full_kv_indices, blocks.full_kv_indices, Member::optional);

    for (int i = 0; i < count_; ++i) {
      const Member& member = members_[i];
      const bool needed = member.part == Member::required || member.part == Member::output;
      if (member.given->ndim == 0 && member.given->data == nullptr) {
        if (needed)
          return bad("%s is absent; the %s pass needs it", member.name,
                     backward_ ? "backward" : "forward");
        continue;
      }
      Status status = check_tensor(member.name, *member.given, depth_, *member.view);
      if (status.ok() && member.written()) status = check_output(member.name, *member.view);
      if (!status.ok()) return status;
    }
    return {};
  }

  void add(const char* name, const tilewise_tensor& given, TensorView& view, Member::Part part) {
    members_[count_++] = {name, &given, &view, part};
  }

  // --------------------------------------------------------------------------- how shapes fit
  // together

  Status activations() {
    const TensorView &q = tensors_.q, &k = tensors_.k, &v = tensors_.v;
    packed_q_ = tensors_.cu_seqlens_q.exists();
    packed_k_ = tensors_.cu_seqlens_k.exists();
    for (const auto& [view, name, packed] :
         {Side{&q, "q", packed_q_}, Side{&k, "k", packed_k_}, Side{&v, "v", packed_k_}})
      if (view->ndim != (packed ? 3 : 4))
        return bad("%s has %d dimensions; expected %s", name, static_cast<int>(view->ndim),
                   packed ? "3 beside cu_seqlens, [total, nheads, head_dim]"
                          : "4, [batch, seqlen, nheads, head_dim], or 3 and cu_seqlens");
    nheads_q_ = q.shape[q.ndim - 2];
    nheads_k_ = k.shape[k.ndim - 2];
    head_dim_ = q.shape[q.ndim - 1];
    head_dim_v_ = v.shape[v.ndim - 1];
    if (nheads_q_ == 0 || nheads_k_ == 0)
      return bad("%s has no heads; expected at least one", nheads_q_ == 0 ? "q" : "k");
    if (head_dim_ == 0 || head_dim_v_ == 0)
      return bad("head_dim%s is 0; expected 1 to %" PRId64, head_dim_ == 0 ? "" : "_v",
                 largest_head_dim);
    if (head_dim_ > largest_head_dim || head_dim_v_ > largest_head_dim)
      return failure(Code::unsupported,
                     "head_dim%s is %" PRId64 "; cpu.portable serves 1 to %" PRId64,
                     head_dim_ > largest_head_dim ? "" : "_v",
                     head_dim_ > largest_head_dim ? head_dim_ : head_dim_v_, largest_head_dim);
    if (nheads_q_ % nheads_k_ != 0)
      return bad("%" PRId64 " query heads do not divide among %" PRId64
                 " key/value heads; expected a multiple",
                 nheads_q_, nheads_k_);

    for (const TensorView* lengths : {&tensors_.cu_seqlens_q, &tensors_.cu_seqlens_k})
      if (lengths->exists() && (lengths->ndim != 1 || lengths->shape[0] < 1))
        return bad("%s has shape %s; expected [batch + 1]", name_of(*lengths),
                   ShapeText(lengths->shape, lengths->ndim).text);
    batch_ = packed_q_ ? tensors_.cu_seqlens_q.shape[0] - 1 : q.shape[0];
    const std::int64_t batch_k = packed_k_ ? tensors_.cu_seqlens_k.shape[0] - 1 : k.shape[0];
    if (batch_ != batch_k)
      return bad("q is of %" PRId64 " sequences, k of %" PRId64 "; expected as many", batch_,
                 batch_k);

    if (!is_floating(q.dtype))
      return bad("q has dtype %s; expected a floating-point one", text(q.dtype));
    for (const TensorView* view : {&k, &v})
      if (view->dtype != q.dtype)
        return bad("%s has dtype %s, q has %s; expected the same of q, k and v", name_of(*view),
                   text(view->dtype), text(q.dtype));

    Status status = shape_of(k, of_keys(k, head_dim_), "the sizes of k and head_dim of q");
    if (status.ok()) status = shape_of(v, of_keys(k, head_dim_v_), "the sizes of k");
    if (status.ok()) status = shape_of(tensors_.o, of_queries(head_dim_v_), sizes_of_q_and_v);
    if (status.ok()) status = stored_dtype(tensors_.o);
    if (!status.ok() || !backward_) return status;
    for (const auto& [view, like, width] :
         {Gradient{&tensors_.dout, "o", head_dim_v_}, Gradient{&tensors_.dq, "q", head_dim_}}) {
      status = shape_of(*view, of_queries(width), like);
      if (status.ok()) status = stored_dtype(*view);
      if (!status.ok()) return status;
    }
    for (const auto& [view, like, width] :
         {Gradient{&tensors_.dk, "k", head_dim_}, Gradient{&tensors_.dv, "v", head_dim_v_}}) {
      status = shape_of(*view, of_keys(k, width), like);
      if (status.ok()) status = stored_dtype(*view);
      if (!status.ok()) return status;
    }
    return {};
  }

  Status statistics() {
    const TensorView& lse = tensors_.lse;
    if (!lse.exists()) return {};
    Expected expected;
    if (packed_q_)
      expected = {2, {nheads_q_, tensors_.q.shape[0]}};
    else
      expected = {3, {batch_, nheads_q_, tensors_.q.shape[1]}};
    if (Status status = shape_of(lse, expected,
                                 packed_q_ ? "[nheads_q, total_q]" : "[batch, nheads_q, seqlen_q]");
        !status.ok())
      return status;
    const DType wanted = tensors_.q.dtype == DType::f64 ? DType::f64 : DType::f32;
    if (lse.dtype != wanted)
      return bad("lse has dtype %s; expected %s beside %s inputs", text(lse.dtype), text(wanted),
                 text(tensors_.q.dtype));
    return {};
  }

  Status lengths() {
    Status status = lengths_of(tensors_.q, "q", packed_q_, tensors_.cu_seqlens_q,
                               tensors_.seqlens_q, given_.max_seqlen_q, longest_q_);
    if (status.ok())
      status = lengths_of(tensors_.k, "k", packed_k_, tensors_.cu_seqlens_k, tensors_.seqlens_k,
                          given_.max_seqlen_k, longest_k_);
    return status;
  }

  /// `longest`: what a sequence's length cannot exceed, as far as that is known.
  Status lengths_of(const TensorView& rows, const char* side, bool packed, const TensorView& cu,
                    const TensorView& seqlens, std::int64_t max_seqlen, std::int64_t& longest) {
    if (!packed && max_seqlen != 0 && max_seqlen != rows.shape[1])
      return bad("max_seqlen_%s is %" PRId64 " and %s has seqlen %" PRId64
                 "; expected the same, or 0",
                 side, max_seqlen, side, rows.shape[1]);
    longest = packed ? max_seqlen : rows.shape[1];
    for (const TensorView* view : {&cu, &seqlens})
      if (view->exists() && view->dtype != DType::i32)
        return bad("%s has dtype %s; expected i32", name_of(*view), text(view->dtype));
    if (seqlens.exists() && (seqlens.ndim != 1 || seqlens.shape[0] != batch_))
      return bad("%s has shape %s; expected [%" PRId64 "], [batch]", name_of(seqlens),
                 ShapeText(seqlens.shape, seqlens.ndim).text, batch_);
    if (depth_ == Depth::shapes || (!packed && !seqlens.exists())) return {};

    std::int64_t most = 0;
    if (packed && index_at(cu, 0) != 0)
      return bad("cu_seqlens_%s starts with %" PRId64 "; expected 0", side, index_at(cu, 0));
    for (std::int64_t b = 0; b < batch_; ++b) {
      std::int64_t room = packed ? 0 : rows.shape[1];
      if (packed) {
        const std::int64_t begin = index_at(cu, b * cu.strides[0]);
        const std::int64_t end = index_at(cu, (b + 1) * cu.strides[0]);
        if (end < begin)
          return bad("cu_seqlens_%s falls from %" PRId64 " to %" PRId64 " at sequence %" PRId64
                     "; expected that it never falls",
                     side, begin, end, b);
        if (end > rows.shape[0])
          return bad("cu_seqlens_%s ends sequence %" PRId64 " at row %" PRId64 "; %s has %" PRId64
                     " rows",
                     side, b, end, side, rows.shape[0]);
        room = end - begin;
        if (max_seqlen != 0 && room > max_seqlen)
          return bad("sequence %" PRId64 " of %s has length %" PRId64
                     "; max_seqlen_%s promised at most %" PRId64,
                     b, side, room, side, max_seqlen);
      }
      most = std::max(most, room);
      if (!seqlens.exists()) continue;
      const std::int64_t length = index_at(seqlens, b * seqlens.strides[0]);
      if (length < 0 || length > room)
        return bad("seqlens_%s says %" PRId64 " for sequence %" PRId64 "; expected 0 to %" PRId64,
                   side, length, b, room);
    }
    if (packed) longest = std::max(longest, most);
    return {};
  }

  Status head_vectors() {
    for (const TensorView* view : {&tensors_.sinks, &tensors_.dsinks, &tensors_.alibi_slopes}) {
      if (!view->exists()) continue;
      if (view->dtype != DType::f32)
        return bad("%s has dtype %s; expected f32", name_of(*view), text(view->dtype));
      if (Status status = shape_of(*view, {1, {nheads_q_}}, "[nheads_q]"); !status.ok())
        return status;
    }
    if (tensors_.dsinks.exists() && !tensors_.sinks.exists())
      return bad("dsinks is given without sinks, whose gradient it is");
    return {};
  }

  Status broadcasts() {
    const TensorView &bias = tensors_.bias, &dbias = tensors_.dbias, &mask = tensors_.mask;
    for (const TensorView* view : {&bias, &mask}) {
      if (!view->exists()) continue;
      if (view->ndim != 4)
        return bad(
            "%s has %d dimensions; expected 4, [batch, nheads_q, seqlen_q, seqlen_k], each "
            "of which may be 1",
            name_of(*view), static_cast<int>(view->ndim));
      const bool fits = fits_or_one(view->shape[0], batch_, false) &&
                        fits_or_one(view->shape[1], nheads_q_, false) &&
                        fits_or_one(view->shape[2], longest_q_, packed_q_) &&
                        fits_or_one(view->shape[3], longest_k_, packed_k_);
      if (!fits) {
        const std::int64_t full[] = {batch_, nheads_q_, longest_q_, longest_k_};
        return bad("%s has shape %s; expected %s, each of which may be 1", name_of(*view),
                   ShapeText(view->shape, 4).text, ShapeText(full, 4).text);
      }
    }
    if (mask.exists() && mask.dtype != DType::boolean)
      return bad("mask has dtype %s; expected bool, or a floating-point bias", text(mask.dtype));
    const auto additive = [&](DType dtype) {
      return dtype == DType::f32 || dtype == tensors_.q.dtype;
    };
    if (bias.exists() && !additive(bias.dtype))
      return bad("bias has dtype %s; expected f32 or q's, %s", text(bias.dtype),
                 text(tensors_.q.dtype));
    if (!dbias.exists()) return {};
    if (!bias.exists()) return bad("dbias is given without bias, whose gradient it is");
    if (!additive(dbias.dtype))
      return bad("dbias has dtype %s; expected f32 or q's, %s", text(dbias.dtype),
                 text(tensors_.q.dtype));
    return shape_of(dbias, {4, {bias.shape[0], bias.shape[1], bias.shape[2], bias.shape[3]}},
                    "bias's");
  }

  /// Packed sequences have lengths of their own: there a dimension has to reach the longest.
  static bool fits_or_one(std::int64_t size, std::int64_t wanted, bool packed) {
    return size == 1 || (packed ? size >= wanted : size == wanted);
  }

  // ----------------------------------------------------------------------------------- block masks

  Status block_mask() {
    BlockMask& blocks = tensors_.block_mask;
    if (!blocks.exists()) {
      for (const TensorView* view :
           {&blocks.kv_indices, &blocks.full_kv_num_blocks, &blocks.full_kv_indices})
        if (view->exists()) return bad("%s is given without kv_num_blocks", name_of(*view));
      if (given_.block_q != 0 || given_.block_k != 0)
        return bad("block_%s is set without kv_num_blocks", given_.block_q != 0 ? "q" : "k");
      return {};
    }
    if (given_.block_q < 1 || given_.block_k < 1 || given_.block_q > largest_dimension ||
        given_.block_k > largest_dimension)
      return bad("blocks are %" PRId64 " queries by %" PRId64 " keys; expected at least 1 of each",
                 given_.block_q, given_.block_k);
    if (!blocks.kv_indices.exists()) return bad("kv_num_blocks is given without kv_indices");
    if (blocks.full_kv_num_blocks.exists() != blocks.full_kv_indices.exists())
      return bad("of full_kv_num_blocks and full_kv_indices one is given; expected both or none");
    blocks.block_q = given_.block_q;
    blocks.block_k = given_.block_k;
    rows_ = blocks_in(longest_q_, blocks.block_q);
    Status status = block_list(blocks.kv_num_blocks, blocks.kv_indices);
    if (status.ok() && blocks.full_kv_num_blocks.exists())
      status = block_list(blocks.full_kv_num_blocks, blocks.full_kv_indices);
    if (status.ok() && depth_ == Depth::memory && blocks.full_kv_num_blocks.exists())
      status = in_one_list_only();
    return status;
  }

  static std::int64_t blocks_in(std::int64_t length, std::int64_t block) {
    return (length + block - 1) / block;
  }

  Status block_list(const TensorView& counts, const TensorView& indices) {
    for (const auto& [view, ndim] : {Ranked{&counts, 3}, Ranked{&indices, 4}}) {
      if (view->dtype != DType::i32)
        return bad("%s has dtype %s; expected i32", name_of(*view), text(view->dtype));
      const bool fits = view->ndim == ndim && fits_or_one(view->shape[0], batch_, false) &&
                        fits_or_one(view->shape[1], nheads_q_, false) &&
                        (packed_q_ ? view->shape[2] >= rows_ : view->shape[2] == rows_);
      if (!fits)
        return bad("%s has shape %s; expected [%" PRId64 " or 1, %" PRId64 " or 1, %" PRId64
                   "%s], for %" PRId64 " rows of blocks",
                   name_of(*view), ShapeText(view->shape, view->ndim).text, batch_, nheads_q_,
                   rows_, ndim == 4 ? ", key blocks" : "", rows_);
    }
    if (depth_ == Depth::shapes) return {};
    const std::int64_t key_blocks = blocks_in(longest_k_, tensors_.block_mask.block_k);
    for (std::int64_t b = 0; b < std::max(counts.shape[0], indices.shape[0]); ++b)
      for (std::int64_t h = 0; h < std::max(counts.shape[1], indices.shape[1]); ++h)
        for (std::int64_t row = 0; row < rows_; ++row) {
          const std::int64_t count = entry(counts, b, h, row, 0);
          if (count < 0 || count > indices.shape[3])
            return bad("%s says %" PRId64 " in row %" PRId64 "; expected 0 to %" PRId64
                       ", the length of its list",
                       name_of(counts), count, row, indices.shape[3]);
          std::int64_t before = -1;
          for (std::int64_t n = 0; n < count; ++n) {
            const std::int64_t index = entry(indices, b, h, row, n);
            if (index < 0 || index >= key_blocks)
              return bad("%s names key block %" PRId64 " in row %" PRId64 "; there are %" PRId64,
                         name_of(indices), index, row, key_blocks);
            if (index <= before)
              return bad("%s has key block %" PRId64 " after %" PRId64 " in row %" PRId64
                         "; expected that each list ascends",
                         name_of(indices), index, before, row);
            before = index;
          }
        }
    return {};
  }

  Status in_one_list_only() {
    const BlockMask& blocks = tensors_.block_mask;
    const TensorView* const all[] = {&blocks.kv_num_blocks, &blocks.kv_indices,
                                     &blocks.full_kv_num_blocks, &blocks.full_kv_indices};
    std::int64_t batch = 0, heads = 0;
    for (const TensorView* view : all) {
      batch = std::max(batch, view->shape[0]);
      heads = std::max(heads, view->shape[1]);
    }
    for (std::int64_t b = 0; b < batch; ++b)
      for (std::int64_t h = 0; h < heads; ++h)
        for (std::int64_t row = 0; row < rows_; ++row) {
          const std::int64_t some = entry(blocks.kv_num_blocks, b, h, row, 0);
          const std::int64_t full = entry(blocks.full_kv_num_blocks, b, h, row, 0);
          for (std::int64_t m = 0, n = 0; m < some && n < full;) {
            const std::int64_t first = entry(blocks.kv_indices, b, h, row, m);
            const std::int64_t second = entry(blocks.full_kv_indices, b, h, row, n);
            if (first == second)
              return bad("key block %" PRId64 " of row %" PRId64
                         " is in kv_indices and full_kv_indices; expected one of them",
                         first, row);
            first < second ? ++m : ++n;
          }
        }
    return {};
  }

  /// Element (b, h, row[, n]) of a list, b and h broadcast.
  static std::int64_t entry(const TensorView& list, std::int64_t b, std::int64_t h,
                            std::int64_t row, std::int64_t n) {
    const std::int64_t index[] = {list.shape[0] == 1 ? 0 : b, list.shape[1] == 1 ? 0 : h, row, n};
    std::int64_t offset = 0;
    for (int dim = 0; dim < list.ndim; ++dim) offset += index[dim] * list.strides[dim];
    return index_at(list, offset);
  }

  // ---------------------------------------------------------------------------------- the whole

  Status combinations() {
    if (params_.causal && tensors_.mask.exists() &&
        params_.conventions.mask_and_causal == MaskAndCausal::refuse)
      return bad("mask and causal are both given, which these conventions refuse");
    if (params_.softcap > 0 && params_.dropout_p > 0 &&
        given_.softcap_and_dropout == TILEWISE_SOFTCAP_AND_DROPOUT_REFUSE)
      return bad("softcap and dropout_p are both set, which these conventions refuse");
    return {};
  }

  Status memory() {
    if (depth_ == Depth::shapes) return {};
    for (int i = 0; i < count_; ++i) {
      if (!members_[i].written() || !members_[i].view->exists()) continue;
      for (int j = 0; j < count_; ++j) {
        const bool later_output = members_[j].written() && j <= i;
        if (later_output || !members_[j].view->exists()) continue;
        if (share_memory(*members_[i].view, *members_[j].view))
          return bad("%s shares memory with %s; expected an output that overlaps nothing",
                     members_[i].name, members_[j].name);
      }
    }
    return {};
  }

  Status scale() {
    params_.softmax_scale = given_.softmax_scale;
    if (!std::isnan(given_.softmax_scale)) return {};
    switch (params_.conventions.default_scale) {
      case DefaultScale::inverse_sqrt_head_dim:
        params_.softmax_scale = 1 / std::sqrt(static_cast<double>(head_dim_));
        return {};
      case DefaultScale::one: params_.softmax_scale = 1; return {};
      case DefaultScale::required: break;
    }
    return bad("softmax_scale is not set, and these conventions have no default");
  }

  /// What reaches beyond every position is brought near, so that no sum of positions overflows.
  void bound_positions() {
    const std::int64_t beyond = reach(tensors_.q, packed_q_) + reach(tensors_.k, packed_k_) + 1;
    if (params_.window_left > beyond) params_.window_left = -1;
    if (params_.window_right > beyond) params_.window_right = -1;
    params_.attention_chunk = std::min(params_.attention_chunk, beyond);
  }

  static std::int64_t reach(const TensorView& view, bool packed) {
    return view.shape[packed ? 0 : 1];
  }

  // --------------------------------------------------------------------------------------- words

  struct Named {
    const char* name;
    std::int64_t value;
  };
  struct Side {
    const TensorView* view;
    const char* name;
    bool packed;
  };
  struct Gradient {
    const TensorView* view;
    const char* like;
    std::int64_t width;
  };
  struct Ranked {
    const TensorView* view;
    int ndim;
  };
  struct Expected {
    int ndim = 0;
    std::int64_t shape[TensorView::max_dims] = {};
  };
  static constexpr const char* sizes_of_q_and_v = "the sizes of q and head_dim_v of v";

  Expected of_queries(std::int64_t width) const {
    const TensorView& q = tensors_.q;
    if (packed_q_) return {3, {q.shape[0], nheads_q_, width}};
    return {4, {batch_, q.shape[1], nheads_q_, width}};
  }
  Expected of_keys(const TensorView& k, std::int64_t width) const {
    if (packed_k_) return {3, {k.shape[0], nheads_k_, width}};
    return {4, {batch_, k.shape[1], nheads_k_, width}};
  }

  Status shape_of(const TensorView& view, const Expected& expected, const char* why) const {
    bool fits = view.ndim == expected.ndim;
    for (int dim = 0; fits && dim < view.ndim; ++dim) fits = view.shape[dim] == expected.shape[dim];
    if (fits) return {};
    return bad("%s has shape %s; expected %s, %s", name_of(view),
               ShapeText(view.shape, view.ndim).text, ShapeText(expected.shape, expected.ndim).text,
               why);
  }

  Status stored_dtype(const TensorView& view) const {
    const DType inputs = tensors_.q.dtype;
    const DType own = is_fp8(inputs) ? DType::bf16 : inputs;
    if (view.dtype == own || view.dtype == DType::f32) return {};
    return bad("%s has dtype %s; expected %s or f32 beside %s inputs", name_of(view),
               text(view.dtype), text(own), text(inputs));
  }

  static const char* text(DType dtype) { return tilewise::name_of(dtype).data(); }

  const char* name_of(const TensorView& view) const {
    for (int i = 0; i < count_; ++i)
      if (members_[i].view == &view) return members_[i].name;
    return "a tensor";
  }

  const tilewise_attention& given_;
  bool backward_;
  Depth depth_;
  Call& call_;
  AttentionParams& params_;
  AttentionTensors& tensors_;
  Member members_[32] = {};
  int count_ = 0;
  bool packed_q_ = false, packed_k_ = false;
  std::int64_t batch_ = 0, nheads_q_ = 0, nheads_k_ = 0, head_dim_ = 0, head_dim_v_ = 0;
  std::int64_t longest_q_ = 0, longest_k_ = 0;
  std::int64_t rows_ = 0;  // of blocks of queries
};

/// What views of nothing point at, so that they exist().
alignas(64) constexpr unsigned char nothing[64] = {};

}  // namespace

Status check_choice(const char* name, std::int32_t value, std::int32_t count) {
  if (value >= 0 && value < count) return {};
  return bad("%s is %d; expected one of the values 0 to %d", name, static_cast<int>(value),
             static_cast<int>(count - 1));
}

Status check_tensor(const char* name, const tilewise_tensor& given, Depth depth, TensorView& view) {
  if (given.ndim < 1 || given.ndim > TensorView::max_dims)
    return bad("%s has %d dimensions; expected 1 to %d", name, static_cast<int>(given.ndim),
               TensorView::max_dims);
  if (given.dtype < TILEWISE_F64 || given.dtype > TILEWISE_BOOL)
    return bad("%s has dtype number %d, which is none", name, static_cast<int>(given.dtype));
  if (given.device_type == TILEWISE_CUDA)
    return failure(Code::unsupported,
                   "%s is on a CUDA device; this version serves tensors on the CPU", name);
  if (given.device_type != TILEWISE_CPU)
    return bad("%s has device type %d; expected 1, the CPU", name,
               static_cast<int>(given.device_type));
  view = {};
  view.data = given.data;
  view.dtype = static_cast<DType>(given.dtype - 1);
  view.ndim = given.ndim;
  for (int dim = 0; dim < given.ndim; ++dim) {
    view.shape[dim] = given.shape[dim];
    view.strides[dim] = given.strides[dim];
    if (given.shape[dim] < 0)
      return bad("%s has size %" PRId64 " in dimension %d; expected 0 or more", name,
                 given.shape[dim], dim);
    if (given.shape[dim] > largest_dimension)
      return bad("%s has size %" PRId64 " in dimension %d, beyond any memory", name,
                 given.shape[dim], dim);
  }
  const bool somewhere = given.data != nullptr;
  if (!somewhere) view.data = const_cast<unsigned char*>(nothing);
  ByteRange range;
  if (!byte_range(view, range))
    return bad("%s has sizes and strides that reach beyond any memory", name);
  if (!somewhere && depth == Depth::memory && range.end > range.begin)
    return bad("%s has elements and its data is null", name);
  if (reinterpret_cast<std::uintptr_t>(view.data) % size_of(view.dtype) != 0)
    return bad("%s is misaligned: its address is no multiple of the %zu bytes of %s", name,
               size_of(view.dtype), tilewise::name_of(view.dtype).data());
  return {};
}

Status check_output(const char* name, const TensorView& view) {
  if (!shares_with_itself(view)) return {};
  for (int dim = 0; dim < view.ndim; ++dim)
    if (view.strides[dim] == 0 && view.shape[dim] > 1)
      return bad("%s has stride 0 in dimension %d; an output's elements each need a place", name,
                 dim);
  return bad("%s has strides by which its elements share memory; an output's each need a place",
             name);
}

Status check_attention(const tilewise_attention& given, std::int32_t pass, Depth depth,
                       Call& call) {
  if (Status status = check_choice("pass", pass, 2); !status.ok()) return status;
  call = {};
  return Checker(given, pass == TILEWISE_BACKWARD, depth, call).run();
}

Status check_workspace(const Call& call, const void* workspace, std::size_t bytes,
                       std::size_t needed) {
  if (needed == 0) return {};
  if (workspace == nullptr) return bad("workspace is null; this call needs %zu bytes", needed);
  if (reinterpret_cast<std::uintptr_t>(workspace) % 64 != 0)
    return bad("workspace is misaligned: expected an address that is a multiple of 64");
  if (bytes < needed)
    return failure(Code::no_memory, "workspace has %zu bytes; this call needs %zu", bytes, needed);
  const AttentionTensors& all = call.tensors;
  const struct {
    const char* name;
    const TensorView& view;
  } tensors[] = {
      {"q", all.q},
      {"k", all.k},
      {"v", all.v},
      {"o", all.o},
      {"lse", all.lse},
      {"dout", all.dout},
      {"dq", all.dq},
      {"dk", all.dk},
      {"dv", all.dv},
      {"dbias", all.dbias},
      {"dsinks", all.dsinks},
      {"bias", all.bias},
      {"mask", all.mask},
      {"sinks", all.sinks},
      {"alibi_slopes", all.alibi_slopes},
      {"cu_seqlens_q", all.cu_seqlens_q},
      {"cu_seqlens_k", all.cu_seqlens_k},
      {"seqlens_q", all.seqlens_q},
      {"seqlens_k", all.seqlens_k},
      {"kv_num_blocks", all.block_mask.kv_num_blocks},
      {"kv_indices", all.block_mask.kv_indices},
      {"full_kv_num_blocks", all.block_mask.full_kv_num_blocks},
      {"full_kv_indices", all.block_mask.full_kv_indices},
  };
  for (const auto& [name, view] : tensors)
    if (view.exists() && shares_with_bytes(view, workspace, needed))
      return bad("%s lies in the workspace; expected memory of its own", name);
  return {};
}

}  // namespace tilewise::cpu
