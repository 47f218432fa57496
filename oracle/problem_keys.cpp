#include "oracle/problem_keys.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <charconv>
#include <cmath>
#include <iterator>
#include <type_traits>

namespace tilewise::problem_text {
namespace {

// ------------------------------------------------------------------------- the words of choices

constexpr Choice passes[] = {{"fwd", Pass::forward}, {"bwd", Pass::backward}};
constexpr Choice dtypes[] = {Choice(DType::f64),  Choice(DType::f32),  Choice(DType::f16),
                             Choice(DType::bf16), Choice(DType::e4m3), Choice(DType::e5m2)};
constexpr Choice kv_dtypes[] = {Choice(DType::e4m3), Choice(DType::e5m2), Choice(DType::i8),
                                Choice(DType::q8_0)};
constexpr Choice layouts[] = {
    {"bshd", Layout::bshd}, {"bhsd", Layout::bhsd}, {"packed", Layout::packed}};
constexpr Choice booleans[] = {{"1", true}, {"0", false}};
constexpr Choice fills[] = {{"normal", Fill::normal},       {"peaks", Fill::peaks},
                            {"ascending", Fill::ascending}, {"constant", Fill::constant},
                            {"onehot", Fill::onehot},       {"denormal", Fill::denormal},
                            {"mixed", Fill::mixed},         {"huge", Fill::huge},
                            {"outliers", Fill::outliers},   {"real", Fill::real}};
constexpr Choice alignments[] = {{"bottom_right", Alignment::bottom_right},
                                 {"top_left", Alignment::top_left}};
constexpr Choice empty_outputs[] = {{"zero", EmptyRowOutput::zero},
                                    {"nan", EmptyRowOutput::nan},
                                    {"mean_v", EmptyRowOutput::mean_v}};
constexpr Choice empty_lses[] = {{"minus_inf", EmptyRowLse::minus_inf},
                                 {"plus_inf", EmptyRowLse::plus_inf},
                                 {"unspecified", EmptyRowLse::unspecified}};
constexpr Choice lse_bases[] = {{"e", LseBase::e}, {"2", LseBase::two}};
constexpr Choice window_lefts[] = {{"keys_before", WindowLeft::keys_before},
                                   {"keys_including_self", WindowLeft::keys_including_self}};
constexpr Choice default_scales[] = {{"inverse_sqrt_head_dim", DefaultScale::inverse_sqrt_head_dim},
                                     {"one", DefaultScale::one},
                                     {"required", DefaultScale::required}};
constexpr Choice score_orders[] = {{"softcap_bias_mask", ScoreOrder::softcap_bias_mask},
                                   {"bias_softcap_mask", ScoreOrder::bias_softcap_mask}};
constexpr Choice alibi_forms[] = {{"minus_distance", Alibi::minus_distance},
                                  {"fa2", Alibi::fa2},
                                  {"signed_distance", Alibi::signed_distance}};
constexpr Choice masks_and_causals[] = {{"intersect", MaskAndCausal::intersect},
                                        {"mask_replaces", MaskAndCausal::mask_replaces},
                                        {"causal_replaces", MaskAndCausal::causal_replaces},
                                        {"refuse", MaskAndCausal::refuse}};
constexpr auto presets = [] {
  std::array<Choice, std::size(convention_presets)> choices;
  for (std::size_t i = 0; i < choices.size(); ++i) choices[i] = {convention_presets[i].name, i};
  return choices;
}();
// ------------------------------------------------------------------------------- the key table

constexpr std::int64_t most_head_dim = 4096;

/// A field of Problem or of its conventions.
template <auto field, class P>
auto& get(P& problem) {
  if constexpr (requires { problem.*field; })
    return problem.*field;
  else
    return problem.conventions.*field;
}

template <class Number>
bool read_number(std::string_view text, Number& number) {
  const char* const end = text.data() + text.size();
  const auto [stopped, error] = std::from_chars(text.data(), end, number);
  return !text.empty() && error == std::errc{} && stopped == end;
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (std::size_t at = 0;;) {
    const std::size_t end = text.find(separator, at);
    parts.push_back(text.substr(at, end - at));
    if (end == std::string_view::npos) return parts;
    at = end + 1;
  }
}

bool read_in_range(const Key& key, std::string_view text, std::int64_t& number) {
  return read_number(text, number) && number >= key.low && number <= key.high;
}

template <class Owner, class Field>
constexpr bool is_convention(Field Owner::*) {
  return std::is_same_v<Owner, Conventions>;
}

template <auto field>
constexpr Key choice_key(std::string_view name, Form form, std::span<const Choice> choices) {
  Key key{name, {}, form, false, is_convention(field), {}, choices};
  key.read = [](Problem& problem, const Key& self, std::string_view value) {
    auto& target = get<field>(problem);
    for (const Choice& choice : self.choices)
      if (choice.word == value) {
        target = static_cast<std::remove_reference_t<decltype(target)>>(choice.value);
        return true;
      }
    return false;
  };
  key.print = [](const Problem& problem, const Key& self) -> std::optional<std::string> {
    for (const Choice& choice : self.choices)
      if (choice.value == static_cast<int>(get<field>(problem))) return std::string(choice.word);
    return "?";
  };
  return key;
}

template <auto field>
constexpr Key count_key(std::string_view name, std::string_view short_name, std::int64_t high) {
  Key key{name, short_name, Form::glued, false, false, "a whole number from {} to {}", {}, 1, high};
  key.read = [](Problem& problem, const Key& self, std::string_view value) {
    return read_in_range(self, value, problem.*field);
  };
  key.print = [](const Problem& problem, const Key&) -> std::optional<std::string> {
    return fmt::to_string(problem.*field);
  };
  return key;
}

template <auto field>
constexpr Key lengths_key(std::string_view name, std::string_view short_name) {
  Key key{name, short_name, Form::glued};
  key.expected = "one length or a list such as 3,5,0, each from {} to {}";
  key.high = most;
  key.read = [](Problem& problem, const Key& self, std::string_view value) {
    std::vector<std::int64_t>& lengths = problem.*field;
    lengths.clear();
    for (std::string_view item : split(value, ','))
      if (!read_in_range(self, item, lengths.emplace_back())) return false;
    return true;
  };
  key.print = [](const Problem& problem, const Key&) -> std::optional<std::string> {
    return fmt::to_string(fmt::join(problem.*field, ","));
  };
  return key;
}

constexpr std::string_view dimension_letters = "bhqk";

template <auto field>
constexpr Key dimensions_key(std::string_view name) {
  Key key{name};
  key.expected = "four dimensions b,h,q,k, each the letter in its place or 1, such as 1,h,q,k";
  key.read = [](Problem& problem, const Key&, std::string_view value) {
    const std::vector<std::string_view> items = split(value, ',');
    if (items.size() != dimension_letters.size()) return false;
    Broadcast present;
    bool* const target[] = {&present.batch, &present.head, &present.query, &present.key};
    for (std::size_t i = 0; i < items.size(); ++i) {
      *target[i] = items[i] == dimension_letters.substr(i, 1);
      if (!*target[i] && items[i] != "1") return false;
    }
    problem.*field = present;
    return true;
  };
  key.print = [](const Problem& problem, const Key&) -> std::optional<std::string> {
    if (!(problem.*field)) return std::nullopt;
    const Broadcast& present = *(problem.*field);
    return fmt::format("{},{},{},{}", present.batch ? 'b' : '1', present.head ? 'h' : '1',
                       present.query ? 'q' : '1', present.key ? 'k' : '1');
  };
  return key;
}

constexpr Key usual(Key key) {
  key.always = true;
  return key;
}

constexpr Key scale_key() {
  Key key{"scale"};
  key.expected = "a finite number";
  key.read = [](Problem& problem, const Key&, std::string_view value) {
    return read_number(value, problem.softmax_scale.emplace()) &&
           std::isfinite(*problem.softmax_scale);
  };
  key.print = [](const Problem& problem, const Key&) -> std::optional<std::string> {
    if (!problem.softmax_scale) return std::nullopt;
    return fmt::to_string(*problem.softmax_scale);
  };
  return key;
}

constexpr Key softcap_key() {
  Key key{"softcap"};
  key.expected = "a finite number of at least 0 (0: no softcap)";
  key.read = [](Problem& problem, const Key&, std::string_view value) {
    return read_number(value, problem.softcap) && std::isfinite(problem.softcap) &&
           problem.softcap >= 0;
  };
  key.print = [](const Problem& problem, const Key&) -> std::optional<std::string> {
    return fmt::to_string(problem.softcap);
  };
  return key;
}

constexpr Key dropout_key() {
  Key key{"dropout"};
  key.expected = "a probability from 0 to less than 1";
  key.read = [](Problem& problem, const Key&, std::string_view value) {
    return read_number(value, problem.dropout_p) && problem.dropout_p >= 0 &&
           1.0f - static_cast<float>(problem.dropout_p) > 0;
  };
  key.print = [](const Problem& problem, const Key&) -> std::optional<std::string> {
    return fmt::to_string(problem.dropout_p);
  };
  return key;
}

constexpr Key blocks_key() {
  Key key{"blocks"};
  key.expected =
      "BLOCK_Q,BLOCK_K,DENSITY: two whole numbers from {} to {} and a part from 0 to 1, such as "
      "64,64,0.5";
  key.low = 1;
  key.high = most;
  key.read = [](Problem& problem, const Key& self, std::string_view value) {
    const std::vector<std::string_view> parts = split(value, ',');
    BlockSparsity blocks;
    problem.blocks = blocks;
    if (parts.size() != 3 || !read_in_range(self, parts[0], blocks.block_q) ||
        !read_in_range(self, parts[1], blocks.block_k) || !read_number(parts[2], blocks.density))
      return false;
    problem.blocks = blocks;
    return blocks.density >= 0 && blocks.density <= 1;
  };
  key.print = [](const Problem& problem, const Key&) -> std::optional<std::string> {
    if (!problem.blocks) return std::nullopt;
    return fmt::format("{},{},{}", problem.blocks->block_q, problem.blocks->block_k,
                       problem.blocks->density);
  };
  return key;
}

/// A number of which zero says that there is none.
template <auto field>
constexpr Key number_key(std::string_view name) {
  Key key{name};
  key.expected = "a whole number from {} (none) to {}";
  key.high = most;
  key.read = [](Problem& problem, const Key& self, std::string_view value) {
    return read_in_range(self, value, problem.*field);
  };
  key.print = [](const Problem& problem, const Key&) -> std::optional<std::string> {
    return fmt::to_string(problem.*field);
  };
  return key;
}

constexpr Key rotary_key() {
  Key key{"rotary"};
  key.expected =
      "an even number of elements from {} to {}, with \",half\" where the pairs are (i, i + half) "
      "instead of neighbours, such as 64 or 64,half";
  key.low = 2;
  key.high = most_head_dim;
  key.read = [](Problem& problem, const Key& self, std::string_view value) {
    const std::vector<std::string_view> parts = split(value, ',');
    Rotary rotary;
    problem.rotary = rotary;
    if (parts.size() > 2 || (parts.size() == 2 && parts[1] != "half")) return false;
    if (!read_in_range(self, parts[0], rotary.elements)) return false;
    rotary.interleaved = parts.size() == 1;
    problem.rotary = rotary;
    return rotary.elements % 2 == 0;
  };
  key.print = [](const Problem& problem, const Key&) -> std::optional<std::string> {
    if (!problem.rotary) return std::nullopt;
    return fmt::format("{}{}", problem.rotary->elements,
                       problem.rotary->interleaved ? "" : ",half");
  };
  return key;
}

constexpr Key kv_key() {
  Key key{"kv"};
  key.choices = kv_dtypes;
  key.read = [](Problem& problem, const Key& self, std::string_view value) {
    for (const Choice& choice : self.choices)
      if (choice.word == value) {
        problem.kv = static_cast<DType>(choice.value);
        return true;
      }
    return false;
  };
  key.print = [](const Problem& problem, const Key&) -> std::optional<std::string> {
    if (!problem.kv) return std::nullopt;
    return std::string(name_of(*problem.kv));
  };
  return key;
}

constexpr Key window_key() {
  Key key{"window"};
  key.expected = "two whole numbers LEFT,RIGHT from {} (unbounded) to {}, such as 127,0";
  key.low = -1;
  key.high = most;
  key.read = [](Problem& problem, const Key& self, std::string_view value) {
    const std::vector<std::string_view> sides = split(value, ',');
    return sides.size() == 2 && read_in_range(self, sides[0], problem.window_left) &&
           read_in_range(self, sides[1], problem.window_right);
  };
  key.print = [](const Problem& problem, const Key&) -> std::optional<std::string> {
    return fmt::format("{},{}", problem.window_left, problem.window_right);
  };
  return key;
}

constexpr Key seed_key() {
  Key key{"seed"};
  key.expected = "a whole number from 0 to 2^64 - 1";
  key.read = [](Problem& problem, const Key&, std::string_view value) {
    return read_number(value, problem.seed);
  };
  key.print = [](const Problem& problem, const Key&) -> std::optional<std::string> {
    return fmt::to_string(problem.seed);
  };
  return key;
}

constexpr Key preset_key() {
  Key key{"conv"};
  key.choices = presets;
  key.read = [](Problem& problem, const Key&, std::string_view value) {
    const std::optional<Conventions> conventions = conventions_from_name(value);
    if (conventions) problem.conventions = *conventions;
    return conventions.has_value();
  };
  key.print = [](const Problem& problem, const Key&) -> std::optional<std::string> {
    const ConventionPreset& preset = nearest_preset(problem);
    if (preset.conventions == Conventions{}) return std::nullopt;
    return std::string(preset.name);
  };
  return key;
}

constexpr Key table[] = {
    usual(choice_key<&Problem::pass>("pass", Form::value_alone, passes)),
    usual(count_key<&Problem::batch>("batch", "b", most)),
    usual(lengths_key<&Problem::seqlens_q>("seqlen_q", "sq")),
    usual(lengths_key<&Problem::seqlens_k>("seqlen_k", "sk")),
    usual(count_key<&Problem::nheads_q>("nheads_q", "hq", most)),
    usual(count_key<&Problem::nheads_k>("nheads_k", "hk", most)),
    usual(count_key<&Problem::head_dim>("head_dim", "d", most_head_dim)),
    count_key<&Problem::head_dim_v>("head_dim_v", "dv", most_head_dim),
    usual(choice_key<&Problem::dtype>("dtype", Form::value_alone, dtypes)),
    choice_key<&Problem::layout>("layout", Form::value_alone, layouts),
    scale_key(),
    choice_key<&Problem::causal>("causal", Form::name_alone, booleans),
    window_key(),
    number_key<&Problem::attention_chunk>("chunk"),
    softcap_key(),
    choice_key<&Problem::alibi>("alibi", Form::name_alone, booleans),
    dimensions_key<&Problem::bias>("bias"),
    dimensions_key<&Problem::mask>("mask"),
    blocks_key(),
    choice_key<&Problem::sink>("sink", Form::name_alone, booleans),
    dropout_key(),
    number_key<&Problem::page>("page"),
    number_key<&Problem::slots>("slots"),
    number_key<&Problem::leftpad>("leftpad"),
    number_key<&Problem::seqlen_new>("new"),
    rotary_key(),
    kv_key(),
    choice_key<&Problem::descale>("descale", Form::name_alone, booleans),
    number_key<&Problem::splits>("splits"),
    usual(preset_key()),
    choice_key<&Conventions::alignment>("align", Form::assigned, alignments),
    choice_key<&Conventions::empty_row_output>("empty_o", Form::assigned, empty_outputs),
    choice_key<&Conventions::empty_row_lse>("empty_lse", Form::assigned, empty_lses),
    choice_key<&Conventions::lse_base>("lse_base", Form::assigned, lse_bases),
    choice_key<&Conventions::window_left>("window_left", Form::assigned, window_lefts),
    choice_key<&Conventions::default_scale>("default_scale", Form::assigned, default_scales),
    choice_key<&Conventions::score_order>("score_order", Form::assigned, score_orders),
    choice_key<&Conventions::alibi>("alibi_form", Form::assigned, alibi_forms),
    choice_key<&Conventions::mask_and_causal>("mask_and_causal", Form::assigned, masks_and_causals),
    choice_key<&Problem::fill>("fill", Form::assigned, fills),
    usual(seed_key()),
};

}  // namespace

std::span<const Key> keys() {
  return table;
}

std::size_t index_of(std::string_view name) {
  std::size_t index = 0;
  while (table[index].name != name) ++index;  // only called with names of the table
  return index;
}

const ConventionPreset& nearest_preset(const Problem& problem) {
  const ConventionPreset* nearest = nullptr;
  std::size_t fewest = std::size(table) + 1;
  for (const ConventionPreset& preset : convention_presets) {
    if (preset.conventions == problem.conventions) return preset;
    Problem other;
    other.conventions = preset.conventions;
    std::size_t differing = 0;
    for (const Key& key : table)
      if (key.convention && key.print(problem, key) != key.print(other, key)) ++differing;
    if (differing < fewest) fewest = differing, nearest = &preset;
  }
  return *nearest;
}

}  // namespace tilewise::problem_text
