// Attention under the names that people know: flash-attn's, PyTorch's and xformers' functions, each
// with its own argument names, defaults and conventions, over the C interface of tilewise.h.
//
//   tilewise::Context context;
//   tilewise::Result done = tilewise::flash_attn_func(context, q, k, v, out, lse, {.causal =
//   true}); if (!done) std::puts(done.message());
//
// Headers alone, C++17 (the braces with names are C++20), no exceptions, no RTTI. Outputs are the
// caller's tensors; scratch memory comes from the context's allocator for the time of a call.
// Whoever brings their own uses what `describe::` returns with the C calls.
#pragma once

#include "tilewise.h"

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>

namespace tilewise {

// Copies with another TILEWISE_PREFIX are other functions, also to the linker.
#if defined(TILEWISE_PREFIX)
inline namespace TILEWISE_NAME(cpp) {
#else
inline namespace tilewise_cpp {
#endif

  // ------------------------------------------------------------------------- statuses and tensors

  /// What a call answers. True if all went well.
  class [[nodiscard]] Result {
   public:
    Result() = default;
    explicit Result(const tilewise_error& error) : error_(error) {}
    static Result failure(tilewise_status code, const char* message) {
      Result result;
      result.error_.code = code;
      std::size_t length = 0;
      for (; message[length] != '\0' && length + 1 < sizeof result.error_.message; ++length)
        result.error_.message[length] = message[length];
      result.error_.message[length] = '\0';
      return result;
    }

    explicit operator bool() const { return error_.code == TILEWISE_OK; }
    tilewise_status code() const { return error_.code; }
    /// One sentence; empty if all went well.
    const char* message() const { return error_.message; }

   private:
    tilewise_error error_ = TILEWISE_ERROR_INIT;
  };

  /// A view of memory: tilewise_tensor itself, so that one from elsewhere can be filled in by hand.
  using Tensor = tilewise_tensor;

  namespace attention_detail {
  template <class Element>
  struct DTypeOf;
  template <>
  struct DTypeOf<double> {
    static constexpr std::int32_t value = TILEWISE_F64;
  };
  template <>
  struct DTypeOf<float> {
    static constexpr std::int32_t value = TILEWISE_F32;
  };
  template <>
  struct DTypeOf<std::int64_t> {
    static constexpr std::int32_t value = TILEWISE_I64;
  };
  template <>
  struct DTypeOf<std::int32_t> {
    static constexpr std::int32_t value = TILEWISE_I32;
  };
  template <>
  struct DTypeOf<bool> {
    static constexpr std::int32_t value = TILEWISE_BOOL;
  };
  }  // namespace attention_detail

  /// Contiguous memory of a stated dtype: tensor(bits, TILEWISE_BF16, {batch, seqlen, nheads,
  /// dim}). At most five dimensions; more are refused by the call that gets it.
  inline Tensor tensor(const void* data, std::int32_t dtype,
                       std::initializer_list<std::int64_t> shape) {
    return tilewise_contiguous(const_cast<void*>(data), dtype,
                               static_cast<std::int32_t>(shape.size()), shape.begin());
  }

  /// Contiguous memory whose dtype its pointer says: float, double, int32_t, int64_t, bool.
  template <class Element>
  Tensor tensor(const Element* data, std::initializer_list<std::int64_t> shape) {
    return tensor(data, attention_detail::DTypeOf<Element>::value, shape);
  }

  /// The same memory with two dimensions exchanged: [b, h, s, d] seen as [b, s, h, d].
  inline Tensor transposed(Tensor view, int first, int second) {
    const std::int64_t shape = view.shape[first], stride = view.strides[first];
    view.shape[first] = view.shape[second];
    view.strides[first] = view.strides[second];
    view.shape[second] = shape;
    view.strides[second] = stride;
    return view;
  }

  /// Is this a tensor, or the absence of one?
  inline bool is_given(const Tensor& view) {
    return view.ndim != 0 || view.data != nullptr;
  }

  // ---------------------------------------------------------------------------------- the context

  /// Options with their defaults, to be changed before a Context is made of them.
  struct ContextOptions : tilewise_context_options {
    ContextOptions() : tilewise_context_options() { tilewise_context_options_init(this); }
  };

  /// Where to compute. Any number of threads may use one at the same time.
  class Context {
   public:
    Context() : Context(ContextOptions()) {}
    explicit Context(const tilewise_context_options& options) {
      tilewise_error error = TILEWISE_ERROR_INIT;
      (void)tilewise_context_create(&options, &context_, &error);
      result_ = Result(error);
    }
    Context(Context&& other) noexcept : context_(other.context_), result_(other.result_) {
      other.context_ = nullptr;
    }
    Context& operator=(Context&& other) noexcept {
      tilewise_context* const mine = context_;
      context_ = other.context_;
      result_ = other.result_;
      other.context_ = mine;
      return *this;
    }
    Context(const Context&) = delete;
    Context& operator=(const Context&) = delete;
    ~Context() { tilewise_context_destroy(context_); }

    /// Whether it could be made. Calls on one that could not are refused.
    explicit operator bool() const { return context_ != nullptr; }
    const Result& result() const { return result_; }
    tilewise_context* get() const { return context_; }

   private:
    tilewise_context* context_ = nullptr;
    Result result_;
  };

  // -------------------------------------------------------------------- from a call to its fields

  /// Which random bits dropout draws: flash-attn's rng_state.
  struct Philox {
    std::uint64_t seed = 0, offset = 0;
  };

  /// A call of one of the functions below as the C struct, for run(), available() or the C calls;
  /// or why it is none.
  struct Description {
    Result result;
    tilewise_attention attention;
    std::int32_t pass = TILEWISE_FORWARD;
  };

  /// Runs what is described, with scratch memory from the context's allocator.
  inline Result run(Context & context, const Description& description) {
    if (!description.result) return description.result;
    tilewise_error error = TILEWISE_ERROR_INIT;
    std::size_t bytes = 0;
    if (tilewise_attention_workspace(context.get(), &description.attention, description.pass,
                                     &bytes, nullptr, &error) != TILEWISE_OK)
      return Result(error);
    void* const workspace = bytes == 0 ? nullptr : tilewise_allocate(context.get(), bytes);
    if (bytes != 0 && workspace == nullptr)
      return Result::failure(TILEWISE_NO_MEMORY, "the context's allocator has no workspace");
    const auto pass = description.pass == TILEWISE_BACKWARD ? tilewise_attention_backward
                                                            : tilewise_attention_forward;
    (void)pass(context.get(), &description.attention, workspace, bytes, nullptr, &error);
    tilewise_free(context.get(), workspace);
    return Result(error);
  }

  /// Which implementation would run this here. True if one would.
  class Availability {
   public:
    explicit Availability(const tilewise_answer& answer) : answer_(answer) {}

    explicit operator bool() const { return answer_.code == TILEWISE_OK; }
    tilewise_status code() const { return answer_.code; }
    /// "cpu.portable"; empty if there is none.
    const char* implementation() const { return answer_.implementation; }
    /// Is it one that was made for this processor?
    bool fast() const { return answer_.fast != 0; }
    /// Why none, or why not a fast one.
    const char* reason() const { return answer_.reason; }

   private:
    tilewise_answer answer_;
  };

  /// available(context, describe::flash_attn_func(q, k, v, out, lse)); tensors need no memory yet.
  inline Availability available(const Context& context, const Description& description) {
    tilewise_answer answer = TILEWISE_ANSWER_INIT;
    tilewise_error error = TILEWISE_ERROR_INIT;
    Result result = description.result;
    if (result && tilewise_query(context.get(), &description.attention, description.pass, &answer,
                                 &error) != TILEWISE_OK)
      result = Result(error);
    if (!result) {
      answer.code = result.code();
      std::size_t i = 0;
      for (; result.message()[i] != '\0' && i + 1 < sizeof answer.reason; ++i)
        answer.reason[i] = result.message()[i];
      answer.reason[i] = '\0';
    }
    return Availability(answer);
  }

  namespace attention_detail {

  inline Description begin(const char* preset, std::int32_t pass) {
    Description description{};
    description.pass = pass;
    tilewise_error error = TILEWISE_ERROR_INIT;
    (void)tilewise_attention_init_sized(&description.attention, sizeof(tilewise_attention), preset,
                                        &error);
    description.result = Result(error);
    return description;
  }

  inline Description refused(Description description, const char* message) {
    if (description.result) description.result = Result::failure(TILEWISE_BAD_ARGUMENT, message);
    return description;
  }

  /// None of the systems' None: the convention's default. A NaN that somebody computed is refused.
  inline void set_scale(Description& description, const std::optional<double>& scale) {
    if (!scale) return;
    if (std::isnan(*scale))
      description = refused(description, "softmax_scale is not a number; expected a finite one");
    description.attention.softmax_scale = *scale;
  }

  inline void set_dropout(tilewise_attention& attention, double p, const Philox& bits) {
    attention.dropout_p = p;
    attention.philox_seed = bits.seed;
    attention.philox_offset = bits.offset;
  }

  inline void set_forward(tilewise_attention& attention, const Tensor& q, const Tensor& k,
                          const Tensor& v, const Tensor& out, const Tensor& lse) {
    attention.q = q;
    attention.k = k;
    attention.v = v;
    attention.o = out;
    attention.lse = lse;
  }

  inline void set_packed(tilewise_attention& attention, const Tensor& cu_seqlens_q,
                         const Tensor& cu_seqlens_k, std::int64_t max_seqlen_q,
                         std::int64_t max_seqlen_k) {
    attention.cu_seqlens_q = cu_seqlens_q;
    attention.cu_seqlens_k = cu_seqlens_k;
    attention.max_seqlen_q = max_seqlen_q;
    attention.max_seqlen_k = max_seqlen_k;
  }

  inline void set_gradients(tilewise_attention& attention, const Tensor& dout, const Tensor& dq,
                            const Tensor& dk, const Tensor& dv) {
    attention.dout = dout;
    attention.dq = dq;
    attention.dk = dk;
    attention.dv = dv;
  }

  }  // namespace attention_detail

  // ---------------------------------------------------------------------------------- flash-attn 2

  /// The keyword arguments of flash_attn_func and its like, flash-attn 2 (flash_attn/
  /// flash_attn_interface.py). return_attn_probs is not among them: nothing here stores P.
  struct FlashAttnArgs {
    double dropout_p = 0.0;
    std::optional<double> softmax_scale = {};  ///< none: 1 / sqrt(head_dim)
    bool causal = false;                       ///< bottom-right
    /// Keys before and after the query's own position; -1: unbounded.
    std::array<std::int64_t, 2> window_size = {-1, -1};
    double softcap = 0.0;      ///< not together with dropout, as there
    Tensor alibi_slopes = {};  ///< f32 [nheads_q]
    bool deterministic = false;
    Philox rng_state = {};  ///< of dropout; the backward pass wants the forward pass's
  };

  namespace attention_detail {
  inline void set_flash_attn(Description& description, const FlashAttnArgs& args) {
    tilewise_attention& attention = description.attention;
    set_dropout(attention, args.dropout_p, args.rng_state);
    attention.causal = args.causal;
    attention.window_left = args.window_size[0];
    attention.window_right = args.window_size[1];
    attention.softcap = args.softcap;
    attention.alibi_slopes = args.alibi_slopes;
    attention.deterministic = args.deterministic;
    set_scale(description, args.softmax_scale);
  }
  }  // namespace attention_detail

  namespace describe {

  inline Description flash_attn_func(const Tensor& q, const Tensor& k, const Tensor& v,
                                     const Tensor& out, const Tensor& softmax_lse,
                                     const FlashAttnArgs& args = {}) {
    Description description = attention_detail::begin("fa2", TILEWISE_FORWARD);
    attention_detail::set_forward(description.attention, q, k, v, out, softmax_lse);
    attention_detail::set_flash_attn(description, args);
    return description;
  }

  inline Description flash_attn_varlen_func(const Tensor& q, const Tensor& k, const Tensor& v,
                                            const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k,
                                            std::int64_t max_seqlen_q, std::int64_t max_seqlen_k,
                                            const Tensor& out, const Tensor& softmax_lse,
                                            const FlashAttnArgs& args = {}) {
    Description description = flash_attn_func(q, k, v, out, softmax_lse, args);
    attention_detail::set_packed(description.attention, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
                                 max_seqlen_k);
    return description;
  }

  inline Description flash_attn_backward(const Tensor& dout, const Tensor& q, const Tensor& k,
                                         const Tensor& v, const Tensor& out,
                                         const Tensor& softmax_lse, const Tensor& dq,
                                         const Tensor& dk, const Tensor& dv,
                                         const FlashAttnArgs& args = {}) {
    Description description = flash_attn_func(q, k, v, out, softmax_lse, args);
    description.pass = TILEWISE_BACKWARD;
    attention_detail::set_gradients(description.attention, dout, dq, dk, dv);
    return description;
  }

  inline Description flash_attn_varlen_backward(
      const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
      const Tensor& softmax_lse, const Tensor& dq, const Tensor& dk, const Tensor& dv,
      const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k, std::int64_t max_seqlen_q,
      std::int64_t max_seqlen_k, const FlashAttnArgs& args = {}) {
    Description description =
        flash_attn_backward(dout, q, k, v, out, softmax_lse, dq, dk, dv, args);
    attention_detail::set_packed(description.attention, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
                                 max_seqlen_k);
    return description;
  }

  }  // namespace describe

  /// flash_attn_func of flash-attn 2. q, out [batch, seqlen_q, nheads_q, head_dim], k, v [batch,
  /// seqlen_k, nheads_k, head_dim]; softmax_lse f32 [batch, nheads_q, seqlen_q], or {} if not
  /// wanted. A row without keys: out 0, LSE +inf.
  inline Result flash_attn_func(Context & context, const Tensor& q, const Tensor& k,
                                const Tensor& v, const Tensor& out, const Tensor& softmax_lse,
                                const FlashAttnArgs& args = {}) {
    return run(context, describe::flash_attn_func(q, k, v, out, softmax_lse, args));
  }

  /// The same on packed sequences: q, out [total_q, nheads_q, head_dim], k, v [total_k, nheads_k,
  /// head_dim]; cu_seqlens i32 [batch + 1]; softmax_lse [nheads_q, total_q].
  inline Result flash_attn_varlen_func(Context & context, const Tensor& q, const Tensor& k,
                                       const Tensor& v, const Tensor& cu_seqlens_q,
                                       const Tensor& cu_seqlens_k, std::int64_t max_seqlen_q,
                                       std::int64_t max_seqlen_k, const Tensor& out,
                                       const Tensor& softmax_lse, const FlashAttnArgs& args = {}) {
    return run(context,
               describe::flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
                                                max_seqlen_k, out, softmax_lse, args));
  }

  /// The backward pass of flash_attn_func, from its out and softmax_lse, with the same arguments.
  inline Result flash_attn_backward(Context & context, const Tensor& dout, const Tensor& q,
                                    const Tensor& k, const Tensor& v, const Tensor& out,
                                    const Tensor& softmax_lse, const Tensor& dq, const Tensor& dk,
                                    const Tensor& dv, const FlashAttnArgs& args = {}) {
    return run(context,
               describe::flash_attn_backward(dout, q, k, v, out, softmax_lse, dq, dk, dv, args));
  }

  /// The backward pass of flash_attn_varlen_func.
  inline Result flash_attn_varlen_backward(
      Context & context, const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
      const Tensor& out, const Tensor& softmax_lse, const Tensor& dq, const Tensor& dk,
      const Tensor& dv, const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k,
      std::int64_t max_seqlen_q, std::int64_t max_seqlen_k, const FlashAttnArgs& args = {}) {
    return run(context, describe::flash_attn_varlen_backward(dout, q, k, v, out, softmax_lse, dq,
                                                             dk, dv, cu_seqlens_q, cu_seqlens_k,
                                                             max_seqlen_q, max_seqlen_k, args));
  }

  // ---------------------------------------------------------------------------------- flash-attn 3

  /// flash-attn 3 (hopper/flash_attn_interface.py) has functions of the same names with other
  /// arguments: no dropout, no ALiBi; a chunk and lengths in use. A row without keys: LSE -inf.
  namespace fa3 {

  struct FlashAttnArgs {
    std::optional<double> softmax_scale = {};
    bool causal = false;
    std::array<std::int64_t, 2> window_size = {-1, -1};
    std::int64_t attention_chunk = 0;
    double softcap = 0.0;
    std::int32_t num_splits = 1;
    bool deterministic = false;
    Tensor seqused_q = {};  ///< i32 [batch], of the varlen function: rows in use of each sequence
    Tensor seqused_k = {};
  };

  namespace describe {

  inline Description flash_attn_func(const Tensor& q, const Tensor& k, const Tensor& v,
                                     const Tensor& out, const Tensor& softmax_lse,
                                     const FlashAttnArgs& args = {}) {
    Description description = attention_detail::begin("fa3", TILEWISE_FORWARD);
    tilewise_attention& attention = description.attention;
    attention_detail::set_forward(attention, q, k, v, out, softmax_lse);
    attention.causal = args.causal;
    attention.window_left = args.window_size[0];
    attention.window_right = args.window_size[1];
    attention.attention_chunk = args.attention_chunk;
    attention.softcap = args.softcap;
    attention.num_splits = args.num_splits;
    attention.deterministic = args.deterministic;
    attention.seqlens_q = args.seqused_q;
    attention.seqlens_k = args.seqused_k;
    attention_detail::set_scale(description, args.softmax_scale);
    return description;
  }

  inline Description flash_attn_varlen_func(const Tensor& q, const Tensor& k, const Tensor& v,
                                            const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k,
                                            std::int64_t max_seqlen_q, std::int64_t max_seqlen_k,
                                            const Tensor& out, const Tensor& softmax_lse,
                                            const FlashAttnArgs& args = {}) {
    Description description = flash_attn_func(q, k, v, out, softmax_lse, args);
    attention_detail::set_packed(description.attention, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
                                 max_seqlen_k);
    return description;
  }

  }  // namespace describe

  inline Result flash_attn_func(Context& context, const Tensor& q, const Tensor& k, const Tensor& v,
                                const Tensor& out, const Tensor& softmax_lse,
                                const FlashAttnArgs& args = {}) {
    return run(context, describe::flash_attn_func(q, k, v, out, softmax_lse, args));
  }

  inline Result flash_attn_varlen_func(Context& context, const Tensor& q, const Tensor& k,
                                       const Tensor& v, const Tensor& cu_seqlens_q,
                                       const Tensor& cu_seqlens_k, std::int64_t max_seqlen_q,
                                       std::int64_t max_seqlen_k, const Tensor& out,
                                       const Tensor& softmax_lse, const FlashAttnArgs& args = {}) {
    return run(context,
               describe::flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
                                                max_seqlen_k, out, softmax_lse, args));
  }

  }  // namespace fa3

  // --------------------------------------------------------------------------------------- PyTorch

  /// The keyword arguments of torch.nn.functional.scaled_dot_product_attention.
  struct ScaledDotProductAttentionArgs {
    Tensor attn_mask =
        {};  ///< bool (true: may look) or floating (added), broadcast to [N, H, L, S]
    double dropout_p = 0.0;            ///< applied whenever it is set: there is no training flag
    bool is_causal = false;            ///< top-left; not together with attn_mask
    std::optional<double> scale = {};  ///< none: 1 / sqrt(E)
    bool enable_gqa = false;           ///< without it, query and key have equally many heads
    Philox rng_state = {};             ///< in place of PyTorch's global generator
  };

  namespace attention_detail {

  /// [N, H, L, E], [N, L, E] or [L, E] as [N, L, H, E].
  inline bool heads_first(const Tensor& given, Tensor& view) {
    if (given.ndim < 2 || given.ndim > 4) return false;
    view = given;
    view.ndim = 4;
    for (int dim = 0; dim < 4; ++dim) view.shape[dim] = view.strides[dim] = 1;
    const int last = given.ndim - 1;
    view.shape[3] = given.shape[last];
    view.strides[3] = given.strides[last];
    view.shape[1] = given.shape[last - 1];
    view.strides[1] = given.strides[last - 1];
    if (given.ndim >= 3) {
      view.shape[0] = given.shape[0];
      view.strides[0] = given.strides[0];
    }
    if (given.ndim == 4) {
      view.shape[2] = given.shape[1];
      view.strides[2] = given.strides[1];
    }
    return true;
  }

  /// A mask broadcast against scores of `scores` dimensions, the last aligned: as [N, H, L, S].
  inline bool broadcast_mask(const Tensor& given, int scores, Tensor& view) {
    if (given.ndim < 1 || given.ndim > scores) return false;
    view = given;
    view.ndim = 4;
    for (int dim = 0; dim < 4; ++dim) {
      view.shape[dim] = 1;
      view.strides[dim] = 1;
    }
    for (int dim = 0; dim < given.ndim; ++dim) {
      int place = 4 - given.ndim + dim;
      if (scores == 3 && place == 1) place = 0;  // [N, L, S]: there is no dimension of heads
      view.shape[place] = given.shape[dim];
      view.strides[place] = given.strides[dim];
    }
    return true;
  }

  }  // namespace attention_detail

  namespace describe {

  inline Description scaled_dot_product_attention(const Tensor& query, const Tensor& key,
                                                  const Tensor& value, const Tensor& out,
                                                  const ScaledDotProductAttentionArgs& args = {}) {
    Description description = attention_detail::begin("torch_sdpa", TILEWISE_FORWARD);
    tilewise_attention& attention = description.attention;
    if (query.ndim != key.ndim || query.ndim != value.ndim || query.ndim != out.ndim ||
        !attention_detail::heads_first(query, attention.q) ||
        !attention_detail::heads_first(key, attention.k) ||
        !attention_detail::heads_first(value, attention.v) ||
        !attention_detail::heads_first(out, attention.o))
      return attention_detail::refused(
          description,
          "query, key, value and out have other numbers of dimensions; expected "
          "4 of each, [N, H, L, E], or 3, or 2");
    if (args.is_causal && is_given(args.attn_mask))
      return attention_detail::refused(description,
                                       "attn_mask and is_causal are both given; expected one");
    if (!args.enable_gqa && attention.q.shape[2] != attention.k.shape[2])
      return attention_detail::refused(
          description,
          "query and key have different numbers of heads; expected the same without enable_gqa");
    attention.causal = args.is_causal;
    if (is_given(args.attn_mask)) {
      Tensor& mask = args.attn_mask.dtype == TILEWISE_BOOL ? attention.mask : attention.bias;
      if (!attention_detail::broadcast_mask(args.attn_mask, query.ndim, mask))
        return attention_detail::refused(description,
                                         "attn_mask has more dimensions than the scores, or none");
    }
    attention_detail::set_dropout(attention, args.dropout_p, args.rng_state);
    attention_detail::set_scale(description, args.scale);
    return description;
  }

  }  // namespace describe

  /// torch.nn.functional.scaled_dot_product_attention: query, out [N, H, L, E], key, value
  /// [N, H, S, E] (E of value and out may differ), or without H, or without N and H. A row without
  /// keys gives 0.
  inline Result scaled_dot_product_attention(
      Context & context, const Tensor& query, const Tensor& key, const Tensor& value,
      const Tensor& out, const ScaledDotProductAttentionArgs& args = {}) {
    return run(context, describe::scaled_dot_product_attention(query, key, value, out, args));
  }

  // -------------------------------------------------------------------------------------- xformers

  /// What xformers calls an attn_bias (xformers/ops/fmha/attn_bias.py). Made by the classes below,
  /// which have its classes' names; or a plain tensor, added to the scores: [B, H, M, N], each of
  /// which may be 1.
  struct AttentionBias {
    AttentionBias() = default;
    AttentionBias(const Tensor& added) : bias(added) {}  // NOLINT(google-explicit-constructor)

    Tensor bias = {};
    bool causal = false, bottom_right = false;
    bool counts_self = false;  ///< window_left counts the query's own key
    std::int64_t window_left = -1, window_right = -1;
    Tensor cu_seqlens_q = {}, cu_seqlens_k = {}, seqlens_k = {};
    std::int64_t max_seqlen_q = 0, max_seqlen_k = 0;
    std::int64_t padding = 0;  ///< keys lie in stretches of this length
  };

  /// Query i looks at keys j <= i: aligned top-left.
  struct LowerTriangularMask : AttentionBias {
    LowerTriangularMask() { causal = true; }
  };

  struct LowerTriangularMaskWithTensorBias : LowerTriangularMask {
    explicit LowerTriangularMaskWithTensorBias(const Tensor& added) { bias = added; }
  };

  /// The last query looks at the last key.
  struct LowerTriangularFromBottomRightMask : AttentionBias {
    LowerTriangularFromBottomRightMask() { causal = bottom_right = true; }
  };

  /// The same, of which each query looks at the last window_size keys, its own among them.
  struct LowerTriangularFromBottomRightLocalAttentionMask : LowerTriangularFromBottomRightMask {
    explicit LowerTriangularFromBottomRightLocalAttentionMask(std::int64_t window_size) {
      window_left = window_size;
      counts_self = true;
    }
  };

  /// Keys from window_left before to window_right after the query's own, aligned bottom-right.
  struct LocalAttentionFromBottomRightMask : AttentionBias {
    LocalAttentionFromBottomRightMask(std::int64_t left, std::int64_t right) {
      bottom_right = true;
      window_left = left;
      window_right = right;
    }
  };

  /// Sequences one after the other, each of which sees itself alone; query [1, total, H, K].
  /// cu_seqlens i32 [batch + 1] (their seqstart), and the longest lengths, 0 if not known.
  struct BlockDiagonalMask : AttentionBias {
    BlockDiagonalMask(const Tensor& cu_q, const Tensor& cu_k, std::int64_t max_q = 0,
                      std::int64_t max_k = 0) {
      cu_seqlens_q = cu_q;
      cu_seqlens_k = cu_k;
      max_seqlen_q = max_q;
      max_seqlen_k = max_k;
    }
  };

  /// Causal in each block, top-left.
  struct BlockDiagonalCausalMask : BlockDiagonalMask {
    BlockDiagonalCausalMask(const Tensor& cu_q, const Tensor& cu_k, std::int64_t max_q = 0,
                            std::int64_t max_k = 0)
        : BlockDiagonalMask(cu_q, cu_k, max_q, max_k) {
      causal = true;
    }
  };

  /// Causal in each block, bottom-right.
  struct BlockDiagonalCausalFromBottomRightMask : BlockDiagonalMask {
    BlockDiagonalCausalFromBottomRightMask(const Tensor& cu_q, const Tensor& cu_k,
                                           std::int64_t max_q = 0, std::int64_t max_k = 0)
        : BlockDiagonalMask(cu_q, cu_k, max_q, max_k) {
      causal = bottom_right = true;
    }
  };

  /// Causal in each block, top-left, and at most window_size keys back, the query's own among them.
  struct BlockDiagonalCausalLocalAttentionMask : BlockDiagonalCausalMask {
    BlockDiagonalCausalLocalAttentionMask(const Tensor& cu_q, const Tensor& cu_k,
                                          std::int64_t window_size, std::int64_t max_q = 0,
                                          std::int64_t max_k = 0)
        : BlockDiagonalCausalMask(cu_q, cu_k, max_q, max_k) {
      window_left = window_size;
      counts_self = true;
    }
  };

  struct BlockDiagonalCausalLocalAttentionFromBottomRightMask
      : BlockDiagonalCausalFromBottomRightMask {
    BlockDiagonalCausalLocalAttentionFromBottomRightMask(const Tensor& cu_q, const Tensor& cu_k,
                                                         std::int64_t window_size,
                                                         std::int64_t max_q = 0,
                                                         std::int64_t max_k = 0)
        : BlockDiagonalCausalFromBottomRightMask(cu_q, cu_k, max_q, max_k) {
      window_left = window_size;
      counts_self = true;
    }
  };

  /// Packed queries beside keys in stretches of kv_padding, [1, batch * kv_padding, H, K], of which
  /// the first kv_seqlen (i32 [batch]) are in use.
  struct BlockDiagonalPaddedKeysMask : AttentionBias {
    BlockDiagonalPaddedKeysMask(const Tensor& cu_q, std::int64_t kv_padding,
                                const Tensor& kv_seqlen, std::int64_t max_q = 0) {
      cu_seqlens_q = cu_q;
      padding = kv_padding;
      seqlens_k = kv_seqlen;
      max_seqlen_q = max_q;
    }
  };

  /// The same, causal: the last query of a block looks at its last key in use.
  struct BlockDiagonalCausalWithOffsetPaddedKeysMask : BlockDiagonalPaddedKeysMask {
    BlockDiagonalCausalWithOffsetPaddedKeysMask(const Tensor& cu_q, std::int64_t kv_padding,
                                                const Tensor& kv_seqlen, std::int64_t max_q = 0)
        : BlockDiagonalPaddedKeysMask(cu_q, kv_padding, kv_seqlen, max_q) {
      causal = bottom_right = true;
    }
  };

  struct BlockDiagonalLocalAttentionPaddedKeysMask : BlockDiagonalPaddedKeysMask {
    BlockDiagonalLocalAttentionPaddedKeysMask(const Tensor& cu_q, std::int64_t kv_padding,
                                              const Tensor& kv_seqlen, std::int64_t left,
                                              std::int64_t right, std::int64_t max_q = 0)
        : BlockDiagonalPaddedKeysMask(cu_q, kv_padding, kv_seqlen, max_q) {
      bottom_right = true;
      window_left = left;
      window_right = right;
    }
  };

  struct BlockDiagonalCausalLocalAttentionPaddedKeysMask
      : BlockDiagonalCausalWithOffsetPaddedKeysMask {
    BlockDiagonalCausalLocalAttentionPaddedKeysMask(const Tensor& cu_q, std::int64_t kv_padding,
                                                    const Tensor& kv_seqlen,
                                                    std::int64_t window_size,
                                                    std::int64_t max_q = 0)
        : BlockDiagonalCausalWithOffsetPaddedKeysMask(cu_q, kv_padding, kv_seqlen, max_q) {
      window_left = window_size;
      counts_self = true;
    }
  };

  /// Packed queries and keys, of whose stretches the first kv_seqlen keys are in use.
  struct BlockDiagonalGappyKeysMask : BlockDiagonalMask {
    BlockDiagonalGappyKeysMask(const Tensor& cu_q, const Tensor& kv_seqstarts,
                               const Tensor& kv_seqlen, std::int64_t max_q = 0)
        : BlockDiagonalMask(cu_q, kv_seqstarts, max_q) {
      seqlens_k = kv_seqlen;
    }
  };

  struct BlockDiagonalCausalWithOffsetGappyKeysMask : BlockDiagonalGappyKeysMask {
    BlockDiagonalCausalWithOffsetGappyKeysMask(const Tensor& cu_q, const Tensor& kv_seqstarts,
                                               const Tensor& kv_seqlen, std::int64_t max_q = 0)
        : BlockDiagonalGappyKeysMask(cu_q, kv_seqstarts, kv_seqlen, max_q) {
      causal = bottom_right = true;
    }
  };

  /// The keyword arguments of xformers.ops.memory_efficient_attention. Its output_dtype is out's.
  struct MemoryEfficientAttentionArgs {
    AttentionBias attn_bias = {};
    double p = 0.0;  ///< of dropout
    std::optional<double> scale = {};
    /// f32 [B, H, M], or [H, total] under a BlockDiagonal mask; what
    /// memory_efficient_attention_forward_requires_grad returns beside the output.
    Tensor lse = {};
    Philox rng_state = {};
  };

  namespace attention_detail {

  /// [B, M, G, H, K] as [B, M, G H, K] for queries; for keys and values that are expanded over H
  /// (stride 0), as xformers wants it of the caller, as [B, M, G, K].
  inline bool four_dimensions(const Tensor& given, bool expanded, Tensor& view) {
    view = given;
    if (given.ndim == 4) return true;
    if (given.ndim != 5) return false;
    view.ndim = 4;
    view.shape[3] = given.shape[4];
    view.strides[3] = given.strides[4];
    view.shape[4] = view.strides[4] = 0;
    if (expanded && (given.strides[3] == 0 || given.shape[3] == 1)) return true;
    if (given.shape[3] != 1 && given.shape[2] != 1 &&
        given.strides[2] != given.shape[3] * given.strides[3])
      return false;
    view.shape[2] = given.shape[2] * given.shape[3];
    view.strides[2] = given.shape[3] == 1 ? given.strides[2] : given.strides[3];
    return true;
  }

  /// [1, total, H, K] as [total, H, K].
  inline bool without_batch(Tensor& view) {
    if (view.shape[0] != 1) return false;
    for (int dim = 0; dim < 3; ++dim) {
      view.shape[dim] = view.shape[dim + 1];
      view.strides[dim] = view.strides[dim + 1];
    }
    view.ndim = 3;
    return true;
  }

  /// [1, batch * padding, H, K] as [batch, padding, H, K].
  inline bool in_stretches(Tensor& view, std::int64_t padding) {
    if (padding < 1 || view.shape[0] != 1 || view.shape[1] % padding != 0) return false;
    view.shape[0] = view.shape[1] / padding;
    view.strides[0] = view.strides[1] * padding;
    view.shape[1] = padding;
    return true;
  }

  }  // namespace attention_detail

  namespace describe {

  inline Description memory_efficient_attention(const Tensor& query, const Tensor& key,
                                                const Tensor& value, const Tensor& out,
                                                const MemoryEfficientAttentionArgs& args = {}) {
    Description description = attention_detail::begin("xformers", TILEWISE_FORWARD);
    tilewise_attention& attention = description.attention;
    const AttentionBias& bias = args.attn_bias;
    if (!attention_detail::four_dimensions(query, false, attention.q) ||
        !attention_detail::four_dimensions(key, true, attention.k) ||
        !attention_detail::four_dimensions(value, true, attention.v) ||
        !attention_detail::four_dimensions(out, false, attention.o))
      return attention_detail::refused(
          description,
          "expected tensors [B, M, H, K], or [B, M, G, H, K] with G and H one "
          "dimension in memory and key and value expanded over H");
    if (is_given(bias.cu_seqlens_q)) {
      bool packed = attention_detail::without_batch(attention.q) &&
                    attention_detail::without_batch(attention.o);
      if (bias.padding != 0)
        packed = packed && attention_detail::in_stretches(attention.k, bias.padding) &&
                 attention_detail::in_stretches(attention.v, bias.padding);
      else
        packed = packed && attention_detail::without_batch(attention.k) &&
                 attention_detail::without_batch(attention.v);
      if (!packed)
        return attention_detail::refused(
            description,
            "a block-diagonal mask wants tensors [1, total, H, K], the total of "
            "padded keys a multiple of the padding");
      attention_detail::set_packed(attention, bias.cu_seqlens_q, bias.cu_seqlens_k,
                                   bias.max_seqlen_q, bias.max_seqlen_k);
      attention.seqlens_k = bias.seqlens_k;
    }
    if (bias.counts_self && bias.window_left < 1)
      return attention_detail::refused(description,
                                       "window_size is not positive; expected at least 1");
    attention.bias = bias.bias;
    attention.causal = bias.causal;
    attention.alignment = bias.bottom_right ? TILEWISE_ALIGN_BOTTOM_RIGHT : TILEWISE_ALIGN_TOP_LEFT;
    attention.window_left = bias.window_left;
    attention.window_right = bias.window_right;
    attention.window_left_counts =
        bias.counts_self ? TILEWISE_WINDOW_KEYS_INCLUDING_SELF : TILEWISE_WINDOW_KEYS_BEFORE;
    attention.lse = args.lse;
    attention_detail::set_dropout(attention, args.p, args.rng_state);
    attention_detail::set_scale(description, args.scale);
    return description;
  }

  }  // namespace describe

  /// xformers.ops.memory_efficient_attention: query, out [B, M, H, K], key, value [B, N, H, K].
  /// Fewer heads of key and value than of query are grouped-query attention, expanded or not.
  inline Result memory_efficient_attention(
      Context & context, const Tensor& query, const Tensor& key, const Tensor& value,
      const Tensor& out, const MemoryEfficientAttentionArgs& args = {}) {
    return run(context, describe::memory_efficient_attention(query, key, value, out, args));
  }

  // ----------------------------------------------------------------------------------------- merge

  /// How LSEs are written, for merge_states.
  struct MergeArgs {
    std::int32_t lse_base = TILEWISE_LSE_BASE_E;
    std::int32_t empty_row_lse = TILEWISE_EMPTY_LSE_MINUS_INF;
  };

  /// Joins attention over disjoint sets of keys by LSE. outs[i] [batch, seqlen, nheads, head_dim_v]
  /// beside lses[i] [batch, nheads, seqlen], or packed; a part with an infinite LSE counts nothing.
  /// `lse` may be {}.
  inline Result merge_states(Context & context, std::initializer_list<Tensor> outs,
                             std::initializer_list<Tensor> lses, const Tensor& out,
                             const Tensor& lse, const MergeArgs& args = {}) {
    if (outs.size() != lses.size())
      return Result::failure(TILEWISE_BAD_ARGUMENT, "outs and lses differ in number");
    tilewise_error error = TILEWISE_ERROR_INIT;
    (void)tilewise_merge_states(context.get(), static_cast<std::int64_t>(outs.size()), outs.begin(),
                                lses.begin(), &out, &lse, args.lse_base, args.empty_row_lse,
                                nullptr, &error);
    return Result(error);
  }

}  // inline namespace
}  // namespace tilewise
