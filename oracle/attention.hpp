// Float64 attention, forward and backward, one row or one column at a time: the reference that
// every verdict rests on. Plain loops, written to be read; nothing here is tiled, fused or clever.
//
// Forward, for query i of head h in sequence b (notation of core/attention.hpp):
//   s_j = score of key j,  m = max_j s_j,  l = sum_j exp(s_j - m),  p_j = exp(s_j - m) / l,
//   o = sum_j p_j v_j,     lse = m + ln l
// Backward (Dao et al. 2022, arXiv 2205.14135, appendix B.2), with dO given:
//   dp_j = dO . v_j,   D = sum_j p_j dp_j = dO . o,   ds_j = p_j (dp_j - D) ds'_j/ds_j
//   dq = scale sum_j ds_j k_j,   dk_j = scale sum_i ds_ij q_i,   dv_j = sum_i p_ij dO_i
// where dk_j and dv_j sum over every query head that reads this key head.
//
// With dropout z_j = 0 or 1 / (1 - p) multiplies p_j where it meets v_j, and dO . v_j. A sink of
// score c adds exp(c - m) to l and looks at nothing: its probability p_c has dp = 0, so its
// gradient is -p_c D. The gradient of a bias is that of the finished score, summed over what was
// broadcast.
#pragma once

#include "problem.hpp"

#include <cstdint>
#include <span>
#include <vector>

namespace tilewise::oracle {

/// Whose sequence a tensor's rows belong to: q, o, dout, dq and lse, or k, v, dk and dv.
enum class Side : std::uint8_t { query, key };

/// A problem with its input tensors, ready to be read element by element.
class Case {
 public:
  Case(const Problem& problem, const AttentionTensors& tensors);

  const Problem& problem() const { return problem_; }
  const AttentionTensors& tensors() const { return tensors_; }
  const AttentionParams& params() const { return params_; }

  std::int64_t seqlen(Side side, std::int64_t b) const {
    return side == Side::query ? problem_.seqlen_q(b) : problem_.seqlen_k(b);
  }
  /// Query i of head h, and key or value j of key head h, as the values that are multiplied: found
  /// in the cache or among the new rows, scaled, turned.
  std::vector<double> query(std::int64_t b, std::int64_t i, std::int64_t h) const;
  std::vector<double> key(std::int64_t b, std::int64_t j, std::int64_t h) const;
  std::vector<double> value(std::int64_t b, std::int64_t j, std::int64_t h) const;
  /// Key or value j, one of the new ones, as it is to stand in the cache but for its rounding.
  std::vector<double> appended_key(std::int64_t b, std::int64_t j, std::int64_t h) const;
  std::vector<double> appended_value(std::int64_t b, std::int64_t j, std::int64_t h) const;
  /// All queries of a head, [seqlen_q, head_dim].
  std::vector<double> queries(std::int64_t b, std::int64_t h) const;

  /// Row `s` of sequence `b`, head `h` of a tensor, as doubles.
  std::vector<double> row(const TensorView& tensor, Side side, std::int64_t b, std::int64_t s,
                          std::int64_t h) const;
  /// All rows of one head, [seqlen, width], row-major.
  std::vector<double> head(const TensorView& tensor, Side side, std::int64_t b,
                           std::int64_t h) const;
  /// Where a row starts, in elements from the tensor's first: packed, padded or in a cache.
  std::int64_t offset(const TensorView& tensor, Side side, std::int64_t b, std::int64_t s,
                      std::int64_t h) const;
  /// Where LSE (b, h, i) lies.
  std::int64_t lse_offset(const TensorView& lse, std::int64_t b, std::int64_t h,
                          std::int64_t i) const;
  /// The LSE that somebody stored, in the units the conventions name.
  double stored_lse(std::int64_t b, std::int64_t h, std::int64_t i) const;

  /// May query i look at key j? Every mask of the problem together.
  bool visible(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const;
  /// What dropout multiplies p_ij by: 0, or 1 / (1 - p); 1 without dropout.
  double dropout_factor(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const;
  /// The head's sink; -inf without one.
  double sink(std::int64_t h) const;
  /// What is added to the scaled score: ALiBi and bias.
  double added(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const;

 private:
  std::int64_t leftpad(std::int64_t b) const;
  bool is_new(std::int64_t b, std::int64_t j) const {
    return j >= problem_.seqlen_k(b) - tensors_.cache.seqlen_new();
  }
  std::vector<double> new_row(const TensorView& fresh, std::int64_t b, std::int64_t j,
                              std::int64_t h) const;
  void multiply(std::vector<double>& row, const TensorView& row_scales, const TensorView& descale,
                std::int64_t b, std::int64_t j, std::int64_t h) const;
  void turn(std::vector<double>& row, std::int64_t position) const;
  enum class Block : std::uint8_t { absent, partial, full };
  void read_block_mask();
  Block block(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const;

  Problem problem_;
  AttentionTensors tensors_;
  AttentionParams params_;
  std::vector<Block> blocks_;  // [batch or 1, nheads_q or 1, query blocks, key blocks]
};

/// One key/value head, read once as doubles and used for many rows.
struct KeyValueHead {
  std::int64_t b = 0, h = 0, seqlen = 0;
  std::vector<double> k;  ///< [seqlen, head_dim]
  std::vector<double> v;  ///< [seqlen, head_dim_v]
};
KeyValueHead read_key_value_head(const Case& problem_case, std::int64_t b, std::int64_t kv_head);

/// One query row, worked out.
struct Row {
  bool empty = false;              ///< no key is visible, and no sink makes up for it
  std::vector<std::int64_t> keys;  ///< the visible keys, ascending
  std::vector<double> score;       ///< s_j of those keys, after bias, softcap and all
  std::vector<double> raw;         ///< scale * q . k_j of those keys
  std::vector<double> p;           ///< their probabilities
  std::vector<double> w;           ///< p times dropout's factor: what multiplies v
  double sink = 0;                 ///< the sink's probability
  std::vector<double> o;           ///< [head_dim_v]; an empty row's is what the conventions say
  double max = 0;                  ///< m
  double sum = 0;                  ///< l
  double lse = 0;                  ///< natural logarithm; -inf on an empty row
};
Row forward_row(const Case& problem_case, const KeyValueHead& head, std::int64_t query_head,
                std::int64_t i);

/// The LSE that a kernel is expected to write: base and empty row as the conventions say.
double expected_lse(const Conventions& conventions, const Row& row);

/// The score after everything that is applied to the scaled dot product `raw`.
double finished_score(const AttentionParams& params, double raw, double added);

/// Where element (b, h, i, j) lies in a tensor whose dimensions may be 1 instead.
std::int64_t broadcast_offset(const TensorView& tensor, std::int64_t b, std::int64_t h,
                              std::int64_t i, std::int64_t j);

/// ds_j/d(raw score_j): 1 without softcap, else 1 - tanh^2.
double softcap_slope(const AttentionParams& params, double raw, double added);

/// d(finished score)/d(bias): 1, or the softcap's slope where the bias is added inside it.
double bias_slope(const Case& problem_case, double raw, std::int64_t b, std::int64_t h,
                  std::int64_t i, std::int64_t j);
/// The number of element (b, h, i, j) in row-major order, whatever the tensor's strides.
std::int64_t element_of(const TensorView& tensor, std::int64_t b, std::int64_t h, std::int64_t i,
                        std::int64_t j);

struct RowGradient {
  std::vector<double> dp;         ///< dO . v_j times dropout's factor, per visible key
  std::vector<double> dfinished;  ///< gradient of the finished score: p (dp - D)
  std::vector<double> ds;         ///< gradient of the scaled score, per visible key
  double d = 0;                   ///< D = dO . o
  std::vector<double> dq;         ///< [head_dim]
};
RowGradient backward_row(const Case& problem_case, const KeyValueHead& head, const Row& row,
                         std::int64_t query_head, std::int64_t i);

/// An empty row passes no gradient on, but where its output is the mean of V: then dV gets dO / n.
///
/// Everything, for small problems: dense [batch][head][row][column] arrays, padded to the longest.
struct Everything {
  std::vector<double> o, lse, dq, dk, dv;
  std::vector<double> dbias;   ///< in the bias's own shape
  std::vector<double> dsinks;  ///< [head]
};
Everything attention(const Case& problem_case);

}  // namespace tilewise::oracle
