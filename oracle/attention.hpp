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
  /// Row `s` of sequence `b`, head `h` of a tensor, as doubles.
  std::vector<double> row(const TensorView& tensor, Side side, std::int64_t b, std::int64_t s,
                          std::int64_t h) const;
  /// All rows of one head, [seqlen, width], row-major.
  std::vector<double> head(const TensorView& tensor, Side side, std::int64_t b,
                           std::int64_t h) const;
  /// Where a row starts, in elements from the tensor's first (packed or not).
  std::int64_t offset(const TensorView& tensor, Side side, std::int64_t b, std::int64_t s,
                      std::int64_t h) const;
  /// Where LSE (b, h, i) lies.
  std::int64_t lse_offset(const TensorView& lse, std::int64_t b, std::int64_t h,
                          std::int64_t i) const;
  /// The LSE that somebody stored, in the units the conventions name.
  double stored_lse(std::int64_t b, std::int64_t h, std::int64_t i) const;

  /// May query i look at key j? Every mask of the problem together.
  bool visible(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const;
  /// What is added to the scaled score: ALiBi and bias.
  double added(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const;

 private:
  Problem problem_;
  AttentionTensors tensors_;
  AttentionParams params_;
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
  bool empty = false;              ///< no key is visible
  std::vector<std::int64_t> keys;  ///< the visible keys, ascending
  std::vector<double> score;       ///< s_j of those keys, after bias, softcap and all
  std::vector<double> raw;         ///< scale * q . k_j of those keys
  std::vector<double> p;           ///< their probabilities
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

/// ds_j/d(raw score_j): 1 without softcap, else 1 - tanh^2.
double softcap_slope(const AttentionParams& params, double raw, double added);

struct RowGradient {
  std::vector<double> dp;  ///< dO . v_j per visible key
  std::vector<double> ds;  ///< gradient of the scaled score, per visible key
  double d = 0;            ///< D = dO . o
  std::vector<double> dq;  ///< [head_dim]
};
RowGradient backward_row(const Case& problem_case, const KeyValueHead& head, const Row& row,
                         std::int64_t query_head, std::int64_t i);

/// An empty row passes no gradient on, but where its output is the mean of V: then dV gets dO / n.
///
/// Everything, for small problems: dense [batch][head][row][column] arrays, padded to the longest.
struct Everything {
  std::vector<double> o, lse, dq, dk, dv;
};
Everything attention(const Case& problem_case);

}  // namespace tilewise::oracle
