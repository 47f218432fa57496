// Problem: its arithmetic, its line of text in both directions, and what makes one inconsistent.
//
// One table, `keys`, says how each field is written. parse_problem, to_string and inconsistency all
// walk it, so what one prints the others read, and a field out of range is refused by the same code
// whether it came from text or from C++.
#include "oracle/problem.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <iterator>
#include <limits>
#include <numeric>
#include <span>
#include <type_traits>

namespace tilewise {

// ---------------------------------------------------------------------------------- arithmetic

std::int64_t Problem::longest(const std::vector<std::int64_t>& lengths) {
  return lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end());
}

std::int64_t Problem::total(const std::vector<std::int64_t>& lengths) const {
  if (lengths.size() == 1) return lengths[0] * batch;
  return std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0});
}

double Problem::scale() const {
  if (softmax_scale) return *softmax_scale;
  switch (conventions.default_scale) {
    case DefaultScale::inverse_sqrt_head_dim: return 1 / std::sqrt(static_cast<double>(head_dim));
    case DefaultScale::one: return 1;
    case DefaultScale::required: break;  // inconsistency() refuses it: let no number look right
  }
  return std::numeric_limits<double>::quiet_NaN();
}

AttentionParams Problem::params() const {
  AttentionParams params;
  params.softmax_scale = scale();
  params.causal = causal;
  params.window_left = window_left;
  params.window_right = window_right;
  params.attention_chunk = attention_chunk;
  params.softcap = softcap;
  params.dropout_p = dropout_p;
  params.philox_seed = seed;
  params.conventions = conventions;
  return params;
}

double Problem::flops() const {
  AttentionParams params = this->params();
  if (mask && conventions.mask_and_causal == MaskAndCausal::mask_replaces) params.causal = false;

  const auto visible_pairs = [&](std::int64_t b) {
    double pairs = 0;
    for (std::int64_t i = 0; i < seqlen_q(b); ++i) {
      const KeyRange range = visible_keys(params, i, seqlen_q(b), seqlen_k(b));
      pairs += static_cast<double>(range.end - range.begin);
    }
    return pairs;
  };
  double pairs = 0;
  if (varlen())
    for (std::int64_t b = 0; b < batch; ++b) pairs += visible_pairs(b);
  else
    pairs = static_cast<double>(batch) * visible_pairs(0);
  if (blocks) pairs *= blocks->density;  // as many as are expected to be there

  const double d = static_cast<double>(head_dim), dv = static_cast<double>(head_dim_v);
  // Two operations per multiply-add. Forward: S = Q K^T (d) and O = P V (dv). Backward: S again,
  // dQ = dS K and dK = dS^T Q (d each), dP = dO V^T and dV = P^T dO (dv each).
  const double forward = 2 * (d + dv), both = forward + 2 * (3 * d + 2 * dv);
  return static_cast<double>(nheads_q) * pairs * (pass == Pass::backward ? both : forward);
}

namespace {

// ------------------------------------------------------------------------- the words of choices

struct Choice {
  std::string_view word;
  int value = 0;

  constexpr Choice() = default;
  template <class Value>
  constexpr Choice(std::string_view name, Value chosen)
      : word(name), value(static_cast<int>(chosen)) {}
  constexpr explicit Choice(DType dtype) : Choice(name_of(dtype), dtype) {}
};

constexpr Choice passes[] = {{"fwd", Pass::forward}, {"bwd", Pass::backward}};
constexpr Choice dtypes[] = {Choice(DType::f64),  Choice(DType::f32),  Choice(DType::f16),
                             Choice(DType::bf16), Choice(DType::e4m3), Choice(DType::e5m2)};
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

/// How a key is printed. `name=value` is read for all of them.
enum class Form {
  value_alone,  ///< bf16
  name_alone,   ///< causal: absent when false
  glued,        ///< sq250: short name and value
  assigned,     ///< window=127,0
};

struct Key {
  using Read = bool (*)(Problem&, const Key&, std::string_view value);
  /// The field's value as text; absent where there is nothing to say.
  using Print = std::optional<std::string> (*)(const Problem&, const Key&);

  std::string_view name = {}, short_name = {};
  Form form = Form::assigned;
  bool always = false;             ///< printed even when it has its default
  bool convention = false;         ///< a field of Conventions: conv= comes before it
  std::string_view expected = {};  ///< completes "expected ..."; with `choices`, made from them
  std::span<const Choice> choices = {};
  std::int64_t low = 0, high = 0;
  Read read = nullptr;
  Print print = nullptr;
};

constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();  // as cu_seqlens count
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

constexpr Key chunk_key() {
  Key key{"chunk"};
  key.expected = "a whole number from {} (none) to {}";
  key.high = most;
  key.read = [](Problem& problem, const Key& self, std::string_view value) {
    return read_in_range(self, value, problem.attention_chunk);
  };
  key.print = [](const Problem& problem, const Key&) -> std::optional<std::string> {
    return fmt::to_string(problem.attention_chunk);
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

/// The preset that `problem` is described from: an equal one, else the one that differs least.
const ConventionPreset& nearest_preset(const Problem& problem);

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

/// In the order of printing, which is also the order in which values are applied.
constexpr Key keys[] = {
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
    chunk_key(),
    softcap_key(),
    choice_key<&Problem::alibi>("alibi", Form::name_alone, booleans),
    dimensions_key<&Problem::bias>("bias"),
    dimensions_key<&Problem::mask>("mask"),
    blocks_key(),
    choice_key<&Problem::sink>("sink", Form::name_alone, booleans),
    dropout_key(),
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

/// One word that gives two keys the same value.
struct Pair {
  std::string_view name, short_name, first, second;
};
constexpr Pair pairs[] = {{"seqlen", "s", "seqlen_q", "seqlen_k"},
                          {"nheads", "h", "nheads_q", "nheads_k"}};

constexpr std::size_t index_of(std::string_view name) {
  std::size_t index = 0;
  while (keys[index].name != name) ++index;  // only called with names of the table
  return index;
}

const ConventionPreset& nearest_preset(const Problem& problem) {
  const ConventionPreset* nearest = nullptr;
  std::size_t fewest = std::size(keys) + 1;
  for (const ConventionPreset& preset : convention_presets) {
    if (preset.conventions == problem.conventions) return preset;
    Problem other;
    other.conventions = preset.conventions;
    std::size_t differing = 0;
    for (const Key& key : keys)
      if (key.convention && key.print(problem, key) != key.print(other, key)) ++differing;
    if (differing < fewest) fewest = differing, nearest = &preset;
  }
  return *nearest;
}

// ------------------------------------------------------------------------------------- printing

std::string word_of(const Key& key, const std::string& value) {
  switch (key.form) {
    case Form::value_alone: return value;
    case Form::name_alone: return std::string(key.name);
    case Form::glued: return fmt::format("{}{}", key.short_name, value);
    case Form::assigned: break;
  }
  return fmt::format("{}={}", key.name, value);
}

// -------------------------------------------------------------------------------------- messages

/// Somebody's text made fit for a message: printable and not endless.
std::string quoted(std::string_view text) {
  constexpr std::size_t longest = 40;
  std::string shown(text.substr(0, longest));
  for (char& c : shown)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  return fmt::format("\"{}{}\"", shown, text.size() > longest ? "..." : "");
}

/// Levenshtein's distance: how many letters to insert, delete or exchange.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i + 1;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t exchanged = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({row[j] + 1, row[j + 1] + 1, exchanged});
    }
  }
  return row.back();
}

/// "; did you mean ...?", or nothing where no candidate comes near.
std::string suggestion(std::string_view word, const std::vector<std::string_view>& candidates) {
  if (word.size() < 2 || word.size() > 32) return {};
  std::size_t allowed = word.size() < 6 ? 1 : 2;
  std::string_view best;
  for (std::string_view candidate : candidates)
    if (const std::size_t distance = edit_distance(word, candidate); distance <= allowed) {
      best = candidate;
      if (distance == 0) break;
      allowed = distance - 1;
    }
  return best.empty() ? "" : fmt::format("; did you mean \"{}\"?", best);
}

std::vector<std::string_view> words_of(std::span<const Choice> choices) {
  std::vector<std::string_view> words;
  for (const Choice& choice : choices) words.push_back(choice.word);
  return words;
}

std::string expected_of(const Key& key) {
  if (!key.choices.empty()) return fmt::format("one of {}", fmt::join(words_of(key.choices), ", "));
  return fmt::format(fmt::runtime(key.expected), key.low, key.high);
}

std::string mismatch(const Key& key, std::string_view value) {
  return fmt::format("{} is {}, expected {}{}", key.name, quoted(value), expected_of(key),
                     suggestion(value, words_of(key.choices)));
}

std::string unknown(std::string_view word, std::string_view name, bool assigned) {
  std::vector<std::string_view> names, alone;
  for (const Key& key : keys) {
    names.push_back(key.name);
    if (!key.short_name.empty()) names.push_back(key.short_name);
    if (key.form == Form::value_alone)
      for (const Choice& choice : key.choices) alone.push_back(choice.word);
  }
  for (const Pair& pair : pairs) names.insert(names.end(), {pair.name, pair.short_name});
  std::string did_you_mean = assigned ? "" : suggestion(word, alone);
  if (did_you_mean.empty()) did_you_mean = suggestion(name, names);
  if (!did_you_mean.empty()) return fmt::format("unknown word {}{}", quoted(word), did_you_mean);
  return fmt::format("unknown word {}, expected one of {}, or one of the keys {}", quoted(word),
                     fmt::join(alone, ", "), fmt::join(names, ", "));
}

// -------------------------------------------------------------------------------- inconsistency

/// What does not fit, and which keys to point at: the first of them that the line names.
struct Conflict {
  std::string message;
  std::vector<std::string_view> keys;
};

/// Elements of the largest tensor. In double, because the question is whether int64 suffices.
double largest_tensor(const Problem& problem) {
  const auto real = [](std::int64_t number) { return static_cast<double>(number); };
  const double b = real(problem.batch), d = real(std::max(problem.head_dim, problem.head_dim_v));
  const double sq = real(problem.max_seqlen_q()), sk = real(problem.max_seqlen_k());
  const double hq = real(problem.nheads_q), hk = real(problem.nheads_k);
  double largest = std::max(b * sq * hq * d, b * sk * hk * d);
  for (const std::optional<Broadcast>& added : {problem.bias, problem.mask})
    if (added)
      largest = std::max(largest, (added->batch ? b : 1) * (added->head ? hq : 1) *
                                      (added->query ? sq : 1) * (added->key ? sk : 1));
  return largest;
}

std::optional<Conflict> find_conflict(const Problem& problem) {
  for (const Key& key : keys) {
    Problem scratch;
    const std::optional<std::string> value = key.print(problem, key);
    if (value && !key.read(scratch, key, *value))
      return Conflict{mismatch(key, *value), {key.name}};
  }
  const auto fits = [&](const std::vector<std::int64_t>& lengths) {
    return lengths.size() == 1 || lengths.size() == static_cast<std::size_t>(problem.batch);
  };
  const auto wrong_list = [&](std::string_view name, std::size_t size) {
    return Conflict{fmt::format("{} lists {} lengths for batch {}, expected one length or {}", name,
                                size, problem.batch, problem.batch),
                    {name, "batch"}};
  };
  if (!fits(problem.seqlens_q)) return wrong_list("seqlen_q", problem.seqlens_q.size());
  if (!fits(problem.seqlens_k)) return wrong_list("seqlen_k", problem.seqlens_k.size());
  if (problem.nheads_q % problem.nheads_k != 0)
    return Conflict{
        fmt::format("nheads_q is {} and nheads_k is {}, expected nheads_k to divide nheads_q",
                    problem.nheads_q, problem.nheads_k),
        {"nheads_k", "nheads_q"}};
  if (problem.mask && problem.causal &&
      problem.conventions.mask_and_causal == MaskAndCausal::refuse)
    return Conflict{
        "these conventions refuse a mask together with causal, expected one of the two, "
        "or mask_and_causal=intersect",
        {"mask", "causal"}};
  if (!problem.softmax_scale && problem.conventions.default_scale == DefaultScale::required)
    return Conflict{"these conventions have no default scale, expected scale=NUMBER",
                    {"default_scale", "conv"}};
  if (problem.layout == Layout::packed && std::max(problem.total_q(), problem.total_k()) > most)
    return Conflict{
        fmt::format(
            "the packed sequences have {} rows together, expected at most {} (int32 offsets)",
            std::max(problem.total_q(), problem.total_k()), most),
        {"layout"}};
  if (const double largest = largest_tensor(problem); largest > 0x1p60)
    return Conflict{
        fmt::format("a tensor would have {:.3g} elements, expected at most 2^60", largest),
        {"seqlen_q", "seqlen_k", "batch", "nheads_q"}};
  return std::nullopt;
}

// -------------------------------------------------------------------------------------- parsing

bool is_space(char c) {
  return c == ' ' || (c >= '\t' && c <= '\r');
}

class Parser {
 public:
  Parser(std::string_view line, const Problem& defaults) : line_(line), problem_(defaults) {}

  /// `complete`: the line stands alone, so what it leaves out follows from what it says (sk from
  /// sq); otherwise the defaults know better.
  std::variant<Problem, ParseError> parse(bool complete) {
    read_words();
    apply_values();
    if (!error_) follow(complete);
    if (error_) return *error_;
    if (const std::optional<Conflict> conflict = find_conflict(problem_)) {
      for (std::string_view name : conflict->keys)
        if (const Given& given = given_[index_of(name)]; given.column != 0)
          return ParseError{conflict->message, given.column};
      return ParseError{conflict->message, 1};
    }
    return problem_;
  }

 private:
  struct Given {
    std::size_t column = 0;  ///< of the word, from 1; 0: the line does not name this key
    std::string_view value;
    std::size_t value_column = 0;
  };

  /// Keeps the leftmost error.
  void fail(std::size_t column, std::string message) {
    if (!error_ || column < error_->column) error_ = ParseError{std::move(message), column};
  }

  void read_words() {
    for (std::size_t at = 0; at < line_.size();) {
      if (is_space(line_[at])) {
        ++at;
        continue;
      }
      std::size_t end = at;
      while (end < line_.size() && !is_space(line_[end])) ++end;
      read_word(line_.substr(at, end - at), at + 1);
      at = end;
    }
  }

  void read_word(std::string_view word, std::size_t column) {
    for (const Key& key : keys) {
      if (key.form == Form::name_alone && word == key.name) return note(key, {column, "1", column});
      if (key.form != Form::value_alone) continue;
      for (const Choice& choice : key.choices)
        if (word == choice.word) return note(key, {column, word, column});
    }
    const std::size_t equals = word.find('=');
    const bool assigned = equals != std::string_view::npos;
    const std::size_t letters = word.find_first_not_of("abcdefghijklmnopqrstuvwxyz_");
    const std::string_view name = word.substr(0, assigned ? equals : letters);
    const std::size_t start = assigned ? equals + 1 : name.size();
    const Given given{column, word.substr(start), column + start};

    const auto names = [&](const auto& entry) {
      return name == entry.name || (!entry.short_name.empty() && name == entry.short_name);
    };
    const auto writable = [&](const auto& entry) {  // glued values want the short name
      return assigned || (name == entry.short_name && !given.value.empty());
    };
    const auto misspelt = [&](const auto& entry, const std::string& what) {
      if (given.value.empty())
        fail(column, fmt::format("{} has no value, expected {}", quoted(word), what));
      else
        fail(column, fmt::format("{} is not how a value is given, expected \"{}={}\"", quoted(word),
                                 entry.name, given.value));
    };
    for (const Pair& pair : pairs)
      if (names(pair)) {
        if (!writable(pair)) return misspelt(pair, expected_of(keys[index_of(pair.first)]));
        note(keys[index_of(pair.first)], given);
        return note(keys[index_of(pair.second)], given);
      }
    for (const Key& key : keys)
      if (names(key)) return writable(key) ? note(key, given) : misspelt(key, expected_of(key));
    fail(column, unknown(word, name, assigned));
  }

  void note(const Key& key, const Given& given) {
    Given& slot = given_[static_cast<std::size_t>(&key - keys)];
    if (slot.column != 0)
      return fail(given.column, fmt::format("{} is given twice, first at column {}; expected once",
                                            key.name, slot.column));
    slot = given;
  }

  /// In the table's order: a preset before the single conventions, wherever they stand in the line.
  void apply_values() {
    for (std::size_t i = 0; i < std::size(keys); ++i)
      if (const Given& given = given_[i]; given.column != 0)
        if (!keys[i].read(problem_, keys[i], given.value))
          fail(given.value_column, mismatch(keys[i], given.value));
  }

  bool given(std::string_view name) const { return given_[index_of(name)].column != 0; }

  void take_batch_from(const std::vector<std::int64_t>& lengths) {
    if (lengths.size() > 1) problem_.batch = static_cast<std::int64_t>(lengths.size());
  }

  void follow(bool complete) {
    if (complete) {
      if (!given("seqlen_k")) problem_.seqlens_k = problem_.seqlens_q;
      if (!given("nheads_k")) problem_.nheads_k = problem_.nheads_q;
      if (!given("head_dim_v")) problem_.head_dim_v = problem_.head_dim;
    }
    if (given("batch")) return;
    if (given("seqlen_k")) take_batch_from(problem_.seqlens_k);
    if (given("seqlen_q")) take_batch_from(problem_.seqlens_q);
  }

  std::string_view line_;
  Problem problem_;
  std::array<Given, std::size(keys)> given_{};
  std::optional<ParseError> error_;
};

}  // namespace

// --------------------------------------------------------------------------------- the interface

std::string to_string(const Problem& problem) {
  Problem plain;  // what an absent key would be read as
  plain.head_dim_v = problem.head_dim;
  plain.conventions = nearest_preset(problem).conventions;
  std::vector<std::string> words;
  for (const Key& key : keys)
    if (const auto value = key.print(problem, key);
        value && (key.always || value != key.print(plain, key)))
      words.push_back(word_of(key, *value));
  return fmt::to_string(fmt::join(words, " "));
}

std::string ParseError::explain(std::string_view line) const {
  std::string shown(line), below;
  for (char& c : shown)
    if (is_space(c)) c = ' ';
  // A column counts bytes; the caret stands under the character that the byte begins.
  for (char c : line.substr(0, column == 0 ? 0 : column - 1))
    if ((static_cast<unsigned char>(c) & 0xc0) != 0x80) below += ' ';
  return fmt::format("{}\n{}^\n{}", shown, below, message);
}

std::variant<Problem, ParseError> parse_problem(std::string_view line) {
  return Parser(line, Problem{}).parse(true);
}

std::variant<Problem, ParseError> parse_problem(std::string_view line, const Problem& defaults) {
  return Parser(line, defaults).parse(false);
}

std::string inconsistency(const Problem& problem) {
  const std::optional<Conflict> conflict = find_conflict(problem);
  return conflict ? conflict->message : "";
}

}  // namespace tilewise
