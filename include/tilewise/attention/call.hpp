// What the functions of attention.hpp have in common: tensors, a context, and a call as a value.
#pragma once

#include "../tilewise.h"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <optional>

// Copies with another TILEWISE_PREFIX are other functions, also to the linker.
#if defined(TILEWISE_PREFIX)
#define TILEWISE_CPP TILEWISE_NAME(cpp)
#else
#define TILEWISE_CPP tilewise_cpp
#endif

namespace tilewise {
inline namespace TILEWISE_CPP {

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

/// A call of one of the functions of attention.hpp as the C struct, for run(), available() or the C
/// calls; or why it is none.
struct Description {
  Result result;
  tilewise_attention attention;
  std::int32_t pass = TILEWISE_FORWARD;
  /// Lengths of a cache that flash-attn takes in other forms than the C interface: one number for
  /// all sequences, or prefix sums. seqlens_k is then without memory until run() lends it some.
  std::optional<std::int32_t> every_seqlen_k = {};
  Tensor cu_seqlens_k_of_cache = {};
};

namespace attention_detail {

/// The lengths that prefix sums stand for. What is no length becomes -1, which is refused later.
inline void write_differences(const Tensor& cu_seqlens, std::int32_t* lengths) {
  const auto at = [&](std::int64_t b) {
    std::int32_t value;
    std::memcpy(&value,
                static_cast<const std::int32_t*>(cu_seqlens.data) + b * cu_seqlens.strides[0],
                sizeof value);
    return std::int64_t{value};
  };
  for (std::int64_t b = 0; b + 1 < cu_seqlens.shape[0]; ++b) {
    const std::int64_t length = at(b + 1) - at(b);
    lengths[b] = length < 0 || length > INT32_MAX ? -1 : static_cast<std::int32_t>(length);
  }
}

}  // namespace attention_detail

/// Runs what is described, with scratch memory from tilewise_allocate. On a device it goes into
/// the stream, and freeing that memory waits for it.
inline Result run(Context& context, const Description& description, void* stream = nullptr) {
  if (!description.result) return description.result;
  tilewise_attention attention = description.attention;
  tilewise_error error = TILEWISE_ERROR_INIT;
  std::size_t bytes = 0;
  if (tilewise_attention_workspace(context.get(), &attention, description.pass, nullptr, &bytes,
                                   &error) != TILEWISE_OK)
    return Result(error);
  if (description.every_seqlen_k) {
    attention.seqlens_k.data = const_cast<std::int32_t*>(&*description.every_seqlen_k);
    attention.seqlens_k.strides[0] = 0;
  }
  const Tensor& sums = description.cu_seqlens_k_of_cache;
  const std::size_t lengths_at = (bytes + 63) / 64 * 64;
  const auto lengths =
      is_given(sums) ? static_cast<std::size_t>(sums.shape[0] - 1) * sizeof(std::int32_t) : 0;
  if (lengths != 0 && sums.device_type != TILEWISE_CPU)
    return Result::failure(TILEWISE_UNSUPPORTED,
                           "cu_seqlens_k of a cache is not on the CPU; expected seqlens there");
  if (lengths != 0 && sums.data == nullptr)
    return Result::failure(TILEWISE_BAD_ARGUMENT, "cu_seqlens_k has elements and its data is null");
  const std::size_t all = lengths == 0 ? bytes : lengths_at + lengths;
  void* const workspace = all == 0 ? nullptr : tilewise_allocate(context.get(), all);
  if (all != 0 && workspace == nullptr)
    return Result::failure(TILEWISE_NO_MEMORY, "the context's allocator has no workspace");
  if (lengths != 0) {
    attention.seqlens_k.data = static_cast<char*>(workspace) + lengths_at;
    attention_detail::write_differences(sums, static_cast<std::int32_t*>(attention.seqlens_k.data));
  }
  const auto pass = description.pass == TILEWISE_BACKWARD ? tilewise_attention_backward
                                                          : tilewise_attention_forward;
  (void)pass(context.get(), &attention, bytes == 0 ? nullptr : workspace, bytes, stream, &error);
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

/// A correct request that is not served, by its name.
inline Description not_served(Description description, const char* message) {
  if (description.result) description.result = Result::failure(TILEWISE_UNSUPPORTED, message);
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

}  // namespace TILEWISE_CPP
}  // namespace tilewise
