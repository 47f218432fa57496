// What a step of the course is given: one attention problem in the plainest form.
//
// A step is one function that fills o and lse (and, backward, dq, dk, dv). Everything is float32
// and row-major per head, so a step needs no layout code: the plumbing is stages/adapter.hpp's.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace tilewise::stages {

/// A row-major matrix: element (i, j) at data[i * stride + j]. `stride` need not be `cols`.
struct Matrix {
  float* data;
  std::int64_t rows, cols, stride;

  float* row(std::int64_t i) const { return data + i * stride; }
  float& operator()(std::int64_t i, std::int64_t j) const { return data[i * stride + j]; }
};

/// The same, read-only: what a step is given as input.
struct ConstMatrix {
  const float* data;
  std::int64_t rows, cols, stride;

  const float* row(std::int64_t i) const { return data + i * stride; }
  float operator()(std::int64_t i, std::int64_t j) const { return data[i * stride + j]; }
};

/// A [batch, seqlen, nheads, head_dim] tensor (flash-attn's layout) seen head by head.
template <class Element, class Head>
struct Tensor {
  Element* data;
  std::int64_t seqlen, nheads, head_dim;

  /// Sequence b of head h as a matrix [seqlen, head_dim]; its rows lie nheads * head_dim apart.
  Head operator()(std::int64_t b, std::int64_t h) const {
    return {data + (b * seqlen * nheads + h) * head_dim, seqlen, head_dim, nheads * head_dim};
  }
};
using Input = Tensor<const float, ConstMatrix>;
using Output = Tensor<float, Matrix>;

struct StageArgs {
  std::int64_t batch, nheads_q, nheads_k;
  std::int64_t seqlen_q, seqlen_k;
  std::int64_t head_dim, head_dim_v;
  float softmax_scale;
  bool causal;  ///< row i looks at keys j <= i + seqlen_k - seqlen_q (bottom-right)

  Input q, k, v;  ///< [batch, seqlen, nheads, head_dim]
  Output o;
  float* lse_data;  ///< [batch, nheads_q, seqlen_q], natural logarithm; null unless features.lse

  bool backward = false;  ///< fill dq, dk, dv as well, from dout
  Input dout;
  Output dq, dk, dv;

  int threads = 1;  ///< for the steps that use several; 0: all of the machine's

  /// The key/value head that query head h reads (grouped-query attention).
  std::int64_t kv_head(std::int64_t h) const { return h / (nheads_q / nheads_k); }
  /// The LSE row of (b, h): one float a query.
  float* lse(std::int64_t b, std::int64_t h) const {
    return lse_data + (b * nheads_q + h) * seqlen_q;
  }
  /// How many keys row i may look at: all, or under causal those up to its own position.
  std::int64_t keys_of_row(std::int64_t i) const {
    if (!causal) return seqlen_k;
    const std::int64_t n = i + 1 + seqlen_k - seqlen_q;
    return n < 0 ? 0 : n > seqlen_k ? seqlen_k : n;
  }
};

/// What a step can do beyond plain attention with one head and every key visible.
struct Features {
  bool causal = false;
  bool grouped_heads = false;  ///< nheads_q > nheads_k (GQA, MQA)
  bool lse = false;            ///< writes lse
  bool backward = false;       ///< writes dq, dk, dv (and o, lse on the way)
};

/// A step of the course: what the table of implementations knows of it.
struct Step {
  std::string_view name;  ///< "stage.2b_tiles"
  std::string_view idea;  ///< one sentence
  Features features;
  void (*run)(const StageArgs&);  ///< null: not written yet (stages/mine)
  /// Bytes that cross between slow and fast memory by the algorithm's own count; see each chapter.
  double (*bytes_moved)(const StageArgs&);
  std::string_view unavailable = {};  ///< why this build cannot run it; empty: it can
};

/// Every step, in the course's order (stages/steps.cpp).
std::span<const Step> steps();

}  // namespace tilewise::stages
