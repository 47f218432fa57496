// 1c. What every real model adds: a causal mask, shared key heads, and the log-sum-exp.
//
//   causal   row i looks at keys j <= i + seqlen_k - seqlen_q: the last row sees every key
//   GQA      query head h reads key/value head h / (nheads_q / nheads_k)
//   LSE_i    = log sum_j exp S_ij = m_i + log l_i: one number a row from which P can be rebuilt,
//            P_ij = exp(S_ij - LSE_i); split attention and the backward pass live on it
//
//        keys -->                      A row without any visible key (only when seqlen_q >
//      . . . . . .  row 0  empty       seqlen_k) is not 0/0: here, O = 0 and LSE = -inf, as in
//      x . . . . .  row 1              flash-attn 3. Others choose otherwise: docs/conventions.md.
//      x x . . . .  row 2
#include "stages/eigen.hpp"

#include <cmath>
#include <limits>

namespace tilewise::stages {
namespace step_1c {

// [snippet softmax_rows]
/// P = softmax of the visible part of each row of S, zero elsewhere; and the rows' LSE.
RowMajor softmax_rows(const StageArgs& args, const RowMajor& S, float* lse) {
  RowMajor P = RowMajor::Zero(S.rows(), S.cols());
  for (std::int64_t i = 0; i < args.seqlen_q; ++i) {
    const std::int64_t keys = args.keys_of_row(i);
    if (keys == 0) {
      lse[i] = -std::numeric_limits<float>::infinity();
      continue;
    }
    const float m = S.row(i).head(keys).maxCoeff();
    P.row(i).head(keys) = (S.row(i).head(keys).array() - m).exp();
    const float l = P.row(i).head(keys).sum();
    P.row(i).head(keys) /= l;
    lse[i] = m + std::log(l);
  }
  return P;
}
// [end softmax_rows]

// [snippet heads]
void run(const StageArgs& args) {
  for (std::int64_t b = 0; b < args.batch; ++b)
    for (std::int64_t h = 0; h < args.nheads_q; ++h) {
      const ConstRows Q = eigen(args.q(b, h));
      const ConstRows K = eigen(args.k(b, args.kv_head(h)));
      const ConstRows V = eigen(args.v(b, args.kv_head(h)));
      const RowMajor S = args.softmax_scale * (Q * K.transpose());
      const RowMajor P = softmax_rows(args, S, args.lse(b, h));
      eigen(args.o(b, h)).noalias() = P * V;
    }
}
// [end heads]

// As in 1a, with LSE: the masked half of S and P is computed and stored all the same, and each
// query head reads its K and V again. Dao et al. 2022, Algorithm 0 and Theorem 2.
double bytes_moved(const StageArgs& args) {
  const double sq = static_cast<double>(args.seqlen_q), sk = static_cast<double>(args.seqlen_k);
  const double width = static_cast<double>(args.head_dim + args.head_dim_v);
  const double floats_a_head = (sq + sk) * width + 4 * sq * sk + sq;
  return 4 * static_cast<double>(args.batch * args.nheads_q) * floats_a_head;
}

}  // namespace step_1c

Step causal_gqa_lse() {
  return {.name = "stage.1c_causal_gqa_lse",
          .idea =
              "Causal mask, shared key heads, rows without keys, and the log-sum-exp of each "
              "row.",
          .features = {.causal = true, .grouped_heads = true, .lse = true},
          .run = step_1c::run,
          .bytes_moved = step_1c::bytes_moved};
}

}  // namespace tilewise::stages
