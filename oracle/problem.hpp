// Problem: what to compute, as one line of text.
//
//   fwd b2 sq250 sk1024 hq8 hk2 d64 bf16 causal window=127,0 seed=7
//
// The line is a test's name, the reproduction line of a failure, a row of the report and an
// argument of the command. docs/problem.md lists every key.
#pragma once

#include "../core/attention.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace tilewise {

enum class Pass : std::uint8_t { forward, backward };  ///< backward computes both

/// How q, k, v and their like lie in memory.
enum class Layout : std::uint8_t {
  bshd,    ///< [batch, seqlen, nheads, head_dim], flash-attn's
  bhsd,    ///< [batch, nheads, seqlen, head_dim], PyTorch's
  packed,  ///< [total of seqlens, nheads, head_dim] with prefix sums: varlen
};

/// Where the numbers come from (oracle/harness/fill.hpp).
enum class Fill : std::uint8_t {
  normal,     ///< independent N(0, 1)
  peaks,      ///< normal, and a few keys planted to dominate their rows
  ascending,  ///< scores rise with the key: the running maximum changes at every step
  constant,   ///< all keys of a head alike: uniform attention
  onehot,     ///< every row looks at one key, with all other weights negligible
  denormal,   ///< values among the subnormal numbers of the format
  mixed,      ///< magnitudes from 2^-12 to 2^12, mixed
  huge,       ///< logits of about +-10^4, where exp overflows without the maximum
  outliers,   ///< N(0, 1) + N(0, 100) Bernoulli(0.001), FA3's model of activations
  real,       ///< a pretrained transformer's q, k, v (tests/data)
};

/// Which dimensions of a [batch, head, query, key] tensor are present; the others are 1.
struct Broadcast {
  bool batch = false, head = false, query = false, key = false;
  bool operator==(const Broadcast&) const = default;
};

/// A block mask: blocks of block_q queries by block_k keys, each there with this probability; of
/// those that are there, one in four lets everything through (BlockMask's `full` lists).
struct BlockSparsity {
  std::int64_t block_q = 64, block_k = 64;
  double density = 0.5;
  bool operator==(const BlockSparsity&) const = default;
};

/// Rotary embedding of queries and new keys: so many elements of a row are turned, in pairs.
struct Rotary {
  std::int64_t elements = 0;
  bool interleaved = true;  ///< pairs (2i, 2i + 1); else (i, i + elements / 2)
  bool operator==(const Rotary&) const = default;
};

struct Problem {
  Pass pass = Pass::forward;
  std::int64_t batch = 1;
  /// One length for every sequence, or `batch` of them.
  std::vector<std::int64_t> seqlens_q{128};
  std::vector<std::int64_t> seqlens_k{128};
  std::int64_t nheads_q = 1, nheads_k = 1;
  std::int64_t head_dim = 64, head_dim_v = 64;
  DType dtype = DType::f32;
  Layout layout = Layout::bshd;
  std::optional<double> softmax_scale;  ///< absent: the conventions' default
  bool causal = false;
  std::int64_t window_left = -1, window_right = -1;
  std::int64_t attention_chunk = 0;
  double softcap = 0;
  bool alibi = false;  ///< slopes 2^(-8 (h + 1) / nheads_q), as Press et al. choose them
  std::optional<Broadcast> bias, mask;
  std::optional<BlockSparsity> blocks;
  bool sink = false;     ///< one more score a head, of N(0, 1)
  double dropout_p = 0;  ///< its random bits come from `seed`, offset 0

  // A cache of keys and values (KvCache of core/attention.hpp). seqlens_k counts every key that is
  // attended to: those in the cache and the new ones.
  std::int64_t page = 0;        ///< 0: not paged; else rows of a page (bhsd: HND pages)
  std::int64_t slots = 0;       ///< 0: as many cache rows as sequences; else so many, permuted
  std::int64_t leftpad = 0;     ///< sequences have 0 to so many rows of padding before their keys
  std::int64_t seqlen_new = 0;  ///< the last keys of each sequence are appended by the call
  std::optional<Rotary> rotary;
  std::optional<DType> kv;  ///< dtype of k and v, where it is not that of q: fp8, i8, q8_0
  bool descale = false;     ///< factors for q, k and v, one a sequence and key head
  std::int64_t splits = 0;  ///< 0: the implementation's choice; else parts the keys are cut into
  Conventions conventions{};
  Fill fill = Fill::normal;
  std::uint64_t seed = 0;

  bool operator==(const Problem&) const = default;

  bool varlen() const { return seqlens_q.size() > 1 || seqlens_k.size() > 1; }
  std::int64_t seqlen_q(std::int64_t b) const { return length(seqlens_q, b); }
  std::int64_t seqlen_k(std::int64_t b) const { return length(seqlens_k, b); }
  std::int64_t max_seqlen_q() const { return longest(seqlens_q); }
  std::int64_t max_seqlen_k() const { return longest(seqlens_k); }
  std::int64_t total_q() const { return total(seqlens_q); }
  std::int64_t total_k() const { return total(seqlens_k); }
  std::int64_t group() const { return nheads_q / nheads_k; }  ///< query heads per key/value head
  DType kv_dtype() const { return kv.value_or(dtype); }
  bool cached() const {
    return page > 0 || slots > 0 || leftpad > 0 || seqlen_new > 0 || rotary.has_value();
  }
  /// Whether a kernel may round q, k or v to q's dtype again before it multiplies them.
  bool converts() const { return rotary.has_value() || kv.has_value(); }

  /// What o, dq, dk and dv are stored in: the inputs' format; bf16 for fp8 inputs, as flash-attn 3.
  DType output_dtype() const {
    return dtype == DType::e4m3 || dtype == DType::e5m2 ? DType::bf16 : dtype;
  }
  /// lse is f32, beside f64 inputs f64.
  DType lse_dtype() const { return dtype == DType::f64 ? DType::f64 : DType::f32; }

  /// The scale in force: the one given, or the conventions' default.
  double scale() const;
  AttentionParams params() const;

  /// Useful floating-point operations, as the papers count them: 4 d per visible (query, key) pair
  /// forward (2 for S, 2 for O), 2.5 times that for backward (Dao 2023, section 4.1) on top.
  double flops() const;

 private:
  static std::int64_t length(const std::vector<std::int64_t>& lengths, std::int64_t b) {
    return lengths.size() == 1 ? lengths[0] : lengths[static_cast<std::size_t>(b)];
  }
  static std::int64_t longest(const std::vector<std::int64_t>& lengths);
  std::int64_t total(const std::vector<std::int64_t>& lengths) const;
};

std::string to_string(const Problem& problem);

/// What is wrong with a line, and where: `column` counts from 1.
struct ParseError {
  std::string message;
  std::size_t column = 0;

  /// The line, a caret below the column, the message.
  std::string explain(std::string_view line) const;
};

std::variant<Problem, ParseError> parse_problem(std::string_view line);

/// Parses onto `defaults`: keys that the line does not name keep their value (tensors from files
/// bring their own shapes).
std::variant<Problem, ParseError> parse_problem(std::string_view line, const Problem& defaults);

/// Whether the fields fit together (heads divide, lengths match the batch, ...): empty, or why not.
std::string inconsistency(const Problem& problem);

}  // namespace tilewise
