// The table of a problem's keys, which parsing, printing and checking all walk: what one prints the
// others read, and a field out of range is refused by the same code whether it came from text or
// from C++. Inside the oracle only, not installed.
#pragma once

#include "problem.hpp"

#include <limits>
#include <span>
#include <string>
#include <vector>

namespace tilewise::problem_text {

/// A word for a value.
struct Choice {
  std::string_view word;
  int value = 0;

  constexpr Choice() = default;
  template <class Value>
  constexpr Choice(std::string_view name, Value chosen)
      : word(name), value(static_cast<int>(chosen)) {}
  constexpr explicit Choice(DType dtype) : Choice(name_of(dtype), dtype) {}
};

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

/// Lengths and counts go up to what int32 prefix sums can hold.
inline constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();

/// In the order of printing, which is also the order in which values are applied.
std::span<const Key> keys();

/// The key's place in the table; only for names that it has.
std::size_t index_of(std::string_view name);

/// The preset that `problem` is described from: an equal one, else the one that differs least.
const ConventionPreset& nearest_preset(const Problem& problem);

/// "one of bshd, bhsd, packed", "a whole number from 1 to 4096".
std::string expected_of(const Key& key);
/// "layout is "bsdh", expected one of ...; did you mean "bshd"?"
std::string mismatch(const Key& key, std::string_view value);

/// What does not fit, and which keys to point at: the first of them that the line names.
struct Conflict {
  std::string message;
  std::vector<std::string_view> keys;
};
std::optional<Conflict> find_conflict(const Problem& problem);

}  // namespace tilewise::problem_text
