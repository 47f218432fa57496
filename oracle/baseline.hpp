// The same attention done naively in the inputs' own precision: the yardstick of flash-attn's
// tests.
//
// Their rule (tests/test_flash_attn.py in Dao-AILab/flash-attention) accepts an output whose
// largest error is at most twice that of plain PyTorch in the same precision, plus a few units in
// the last place. How lucky plain arithmetic is on a given input should not decide, so two orders
// of it are tried and the larger error counts: scores scaled after the product, keys in order; and
// keys scaled before it, in reverse.
#pragma once

#include "bounds.hpp"

namespace tilewise::oracle {

/// A key/value head as plain arithmetic wants it: float32, and the keys a second time with the
/// scale multiplied in and rounded.
struct PlainHead {
  std::vector<float> k, k_scaled;  ///< [seqlen, head_dim]
  std::vector<float> v;            ///< [seqlen, head_dim_v]
};
PlainHead plain_head(const Case& problem_case, const KeyValueHead& head);

/// Largest |naive - exact| of one query row's outputs.
struct NaiveRowError {
  double o = 0, dq = 0;
};
NaiveRowError naive_row(const Case& problem_case, const KeyValueHead& head, const PlainHead& plain,
                        const Row& row, const RowGradient* gradient, std::int64_t query_head,
                        std::int64_t i);

/// Largest |naive - exact| of one key's gradients, the rows' LSE and D taken as exact.
struct NaiveColumnError {
  double dk = 0, dv = 0;
};
NaiveColumnError naive_column(const Case& problem_case, const std::vector<QueryHead>& group,
                              const Column& column, std::int64_t b, std::int64_t kv_head,
                              std::int64_t j);

/// The rule's additive part for one value: 2 |x + 0.3 - 0.3 - x| in `dtype`.
double naive_tolerance(DType dtype, double value);

}  // namespace tilewise::oracle
