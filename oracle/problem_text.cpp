// A problem as a line of text, both ways.
#include "oracle/problem_keys.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>

namespace tilewise {
namespace problem_text {
namespace {

/// One word that gives two keys the same value.
struct Pair {
  std::string_view name, short_name, first, second;
};
constexpr Pair pairs[] = {{"seqlen", "s", "seqlen_q", "seqlen_k"},
                          {"nheads", "h", "nheads_q", "nheads_k"}};

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

std::string unknown(std::string_view word, std::string_view name, bool assigned) {
  std::vector<std::string_view> names, alone;
  for (const Key& key : keys()) {
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

}  // namespace

std::string expected_of(const Key& key) {
  if (!key.choices.empty()) return fmt::format("one of {}", fmt::join(words_of(key.choices), ", "));
  return fmt::format(fmt::runtime(key.expected), key.low, key.high);
}

std::string mismatch(const Key& key, std::string_view value) {
  return fmt::format("{} is {}, expected {}{}", key.name, quoted(value), expected_of(key),
                     suggestion(value, words_of(key.choices)));
}

namespace {

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
    for (const Key& key : keys()) {
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
        if (!writable(pair)) return misspelt(pair, expected_of(keys()[index_of(pair.first)]));
        note(keys()[index_of(pair.first)], given);
        return note(keys()[index_of(pair.second)], given);
      }
    for (const Key& key : keys())
      if (names(key)) return writable(key) ? note(key, given) : misspelt(key, expected_of(key));
    fail(column, unknown(word, name, assigned));
  }

  void note(const Key& key, const Given& given) {
    Given& slot = given_[static_cast<std::size_t>(&key - keys().data())];
    if (slot.column != 0)
      return fail(given.column, fmt::format("{} is given twice, first at column {}; expected once",
                                            key.name, slot.column));
    slot = given;
  }

  /// In the table's order: a preset before the single conventions, wherever they stand in the line.
  void apply_values() {
    for (std::size_t i = 0; i < keys().size(); ++i)
      if (const Given& given = given_[i]; given.column != 0)
        if (!keys()[i].read(problem_, keys()[i], given.value))
          fail(given.value_column, mismatch(keys()[i], given.value));
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
  std::vector<Given> given_ = std::vector<Given>(keys().size());
  std::optional<ParseError> error_;
};

}  // namespace
}  // namespace problem_text

// --------------------------------------------------------------------------------- the interface

std::string to_string(const Problem& problem) {
  Problem plain;  // what an absent key would be read as
  plain.head_dim_v = problem.head_dim;
  plain.conventions = problem_text::nearest_preset(problem).conventions;
  std::vector<std::string> words;
  for (const problem_text::Key& key : problem_text::keys())
    if (const auto value = key.print(problem, key);
        value && (key.always || value != key.print(plain, key)))
      words.push_back(problem_text::word_of(key, *value));
  return fmt::to_string(fmt::join(words, " "));
}

std::string ParseError::explain(std::string_view line) const {
  std::string shown(line), below;
  for (char& c : shown)
    if (problem_text::is_space(c)) c = ' ';
  // A column counts bytes; the caret stands under the character that the byte begins.
  for (char c : line.substr(0, column == 0 ? 0 : column - 1))
    if ((static_cast<unsigned char>(c) & 0xc0) != 0x80) below += ' ';
  return fmt::format("{}\n{}^\n{}", shown, below, message);
}

std::variant<Problem, ParseError> parse_problem(std::string_view line) {
  return problem_text::Parser(line, Problem{}).parse(true);
}

std::variant<Problem, ParseError> parse_problem(std::string_view line, const Problem& defaults) {
  return problem_text::Parser(line, defaults).parse(false);
}

}  // namespace tilewise
