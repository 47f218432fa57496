// Where attention systems disagree, as named choices; and what each system chose, as presets.
//
// docs/conventions.md gives the source of every row. The default is `fa3`, field by field.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace tilewise {

/// Which corner the causal diagonal, and every window, is anchored to when seqlen_q != seqlen_k.
/// Query i stands at key position i + shift: shift = 0, or seqlen_k - seqlen_q.
enum class Alignment : std::uint8_t { bottom_right, top_left };

/// O of a row that may look at no key at all.
enum class EmptyRowOutput : std::uint8_t { zero, nan, mean_v };

/// LSE of such a row. `unspecified`: the system gives no LSE, or promises nothing of it here.
enum class EmptyRowLse : std::uint8_t { minus_inf, plus_inf, unspecified };

/// LSE as a natural logarithm, or in base 2: the same number times log2(e).
enum class LseBase : std::uint8_t { e, two };

/// window_left = W keeps W keys before the query's own position, or W keys including it.
enum class WindowLeft : std::uint8_t { keys_before, keys_including_self };

/// What softmax_scale is when nobody says.
enum class DefaultScale : std::uint8_t { inverse_sqrt_head_dim, one, required };

/// What happens to a score after scaling. `bias` stands for ALiBi and the additive bias alike.
enum class ScoreOrder : std::uint8_t { softcap_bias_mask, bias_softcap_mask };

/// The ALiBi term for query i at key position p = i + shift and key j.
enum class Alibi : std::uint8_t {
  minus_distance,  ///< -slope |p - j|
  fa2,             ///< -slope |p - j|, but slope j under causal: the same O, another LSE
  signed_distance  ///< slope (j - i), whatever the alignment
};

/// Causal and a boolean mask given together.
enum class MaskAndCausal : std::uint8_t { intersect, mask_replaces, causal_replaces, refuse };

struct Conventions {
  Alignment alignment = Alignment::bottom_right;
  EmptyRowOutput empty_row_output = EmptyRowOutput::zero;
  EmptyRowLse empty_row_lse = EmptyRowLse::minus_inf;
  LseBase lse_base = LseBase::e;
  WindowLeft window_left = WindowLeft::keys_before;
  DefaultScale default_scale = DefaultScale::inverse_sqrt_head_dim;
  ScoreOrder score_order = ScoreOrder::softcap_bias_mask;
  Alibi alibi = Alibi::minus_distance;
  MaskAndCausal mask_and_causal = MaskAndCausal::intersect;

  bool operator==(const Conventions&) const = default;
};

struct ConventionPreset {
  std::string_view name;
  std::string_view system;
  Conventions conventions;
};

namespace detail {
/// `change` applied to our default, so that a preset lists only where its system differs.
template <class Change>
constexpr Conventions differing(Change change) {
  Conventions conventions{};
  change(conventions);
  return conventions;
}
}  // namespace detail

inline constexpr ConventionPreset convention_presets[] = {
    {"fa3", "flash-attn 3, hopper/flash_attn_interface.py; Tilewise's own default", {}},
    {"fa2", "flash-attn 2, flash_attn_interface.py", detail::differing([](Conventions& c) {
       c.empty_row_lse = EmptyRowLse::plus_inf;
       c.alibi = Alibi::fa2;
     })},
    {"torch_sdpa", "torch.nn.functional.scaled_dot_product_attention, PyTorch 2.5 and later",
     detail::differing([](Conventions& c) {
       c.alignment = Alignment::top_left;
       c.empty_row_lse = EmptyRowLse::unspecified;
       c.mask_and_causal = MaskAndCausal::refuse;
     })},
    {"xformers", "memory_efficient_attention with LowerTriangularMask",
     detail::differing([](Conventions& c) {
       c.alignment = Alignment::top_left;
       c.empty_row_lse = EmptyRowLse::unspecified;
     })},
    {"flashinfer", "single_prefill_with_kv_cache and the batch wrappers",
     detail::differing([](Conventions& c) {
       c.lse_base = LseBase::two;
       c.score_order = ScoreOrder::bias_softcap_mask;
       c.alibi = Alibi::signed_distance;
       c.mask_and_causal = MaskAndCausal::mask_replaces;
     })},
    {"vllm", "vLLM's FlashAttention backend; its configured sliding window counts the query itself",
     detail::differing([](Conventions& c) {
       c.window_left = WindowLeft::keys_including_self;
       c.empty_row_lse = EmptyRowLse::unspecified;
       c.default_scale = DefaultScale::required;
     })},
    {"onnx", "ONNX Attention, opset 25, with the errata of 2026 and no past",
     detail::differing([](Conventions& c) {
       c.alignment = Alignment::top_left;
       c.empty_row_lse = EmptyRowLse::unspecified;
     })},
    {"cudnn", "cuDNN frontend's SDPA, its default diagonal", detail::differing([](Conventions& c) {
       c.alignment = Alignment::top_left;
       c.empty_row_lse = EmptyRowLse::unspecified;
       c.window_left = WindowLeft::keys_including_self;
       c.default_scale = DefaultScale::one;
       c.alibi = Alibi::signed_distance;
     })},
    {"ggml", "ggml_flash_attn_ext", detail::differing([](Conventions& c) {
       c.empty_row_lse = EmptyRowLse::unspecified;
       c.default_scale = DefaultScale::required;
     })},
    {"mlx", "mlx.core.fast.scaled_dot_product_attention, fused path",
     detail::differing([](Conventions& c) {
       c.empty_row_lse = EmptyRowLse::unspecified;
       c.default_scale = DefaultScale::required;
       c.mask_and_causal = MaskAndCausal::refuse;
     })},
    {"jax", "jax.nn.dot_product_attention", detail::differing([](Conventions& c) {
       c.alignment = Alignment::top_left;
       c.empty_row_output = EmptyRowOutput::mean_v;
       c.empty_row_lse = EmptyRowLse::unspecified;
     })},
    {"triton_tutorial", "Triton's fused attention tutorial, python/tutorials/06-fused-attention.py",
     detail::differing([](Conventions& c) {
       c.alignment = Alignment::top_left;
       c.empty_row_lse = EmptyRowLse::unspecified;
       c.lse_base = LseBase::two;
       c.default_scale = DefaultScale::required;
     })},
    {"hf_eager", "Hugging Face Transformers' eager attention with its finfo.min masks",
     detail::differing([](Conventions& c) {
       c.empty_row_output = EmptyRowOutput::mean_v;
       c.empty_row_lse = EmptyRowLse::unspecified;
       c.window_left = WindowLeft::keys_including_self;
     })},
};

constexpr std::optional<Conventions> conventions_from_name(std::string_view name) {
  for (const ConventionPreset& preset : convention_presets)
    if (preset.name == name) return preset.conventions;
  return std::nullopt;
}

}  // namespace tilewise
