// 1d. The backward pass with whole matrices.
//
// Given dO, the chain rule through O = P V, P = softmax(S), S = scale Q K^T
// (Dao et al. 2022, arXiv 2205.14135, appendix B.2):
//
//   dV = P^T dO       dP = dO V^T       D_i = sum_j P_ij dP_ij
//   dS = P o (dP - D)                   o: element by element, D down the rows
//   dQ = scale dS K   dK = scale dS^T Q
//
// Four matrices of seqlen_q x seqlen_k stand in memory at once:
//
//   S --exp--> P ---------+----> dS --> dQ, dK
//              |          |
//              dV   dP ---+            Query heads that share a key head add to the same dK, dV.
#include "stages/eigen.hpp"

#include <cmath>
#include <limits>

namespace tilewise::stages {
namespace step_1d {

RowMajor softmax_rows(const StageArgs& args, const RowMajor& S, float* lse) {  // as in 1c
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

// [snippet gradients]
void run(const StageArgs& args) {
  for (std::int64_t b = 0; b < args.batch; ++b) {
    if (args.backward)
      for (std::int64_t h = 0; h < args.nheads_k; ++h) {
        eigen(args.dk(b, h)).setZero();
        eigen(args.dv(b, h)).setZero();
      }
    for (std::int64_t h = 0; h < args.nheads_q; ++h) {
      const std::int64_t kv = args.kv_head(h);
      const ConstRows Q = eigen(args.q(b, h)), K = eigen(args.k(b, kv)), V = eigen(args.v(b, kv));
      const RowMajor S = args.softmax_scale * (Q * K.transpose());
      const RowMajor P = softmax_rows(args, S, args.lse(b, h));
      eigen(args.o(b, h)).noalias() = P * V;
      if (!args.backward) continue;

      const ConstRows dO = eigen(args.dout(b, h));
      eigen(args.dv(b, kv)).noalias() += P.transpose() * dO;
      const RowMajor dP = dO * V.transpose();
      const Eigen::VectorXf D = P.cwiseProduct(dP).rowwise().sum();
      const RowMajor dS = P.cwiseProduct(dP.colwise() - D);
      eigen(args.dq(b, h)).noalias() = args.softmax_scale * (dS * K);
      eigen(args.dk(b, kv)).noalias() += args.softmax_scale * (dS.transpose() * Q);
    }
  }
}
// [end gradients]

// Forward as in 1c; then Algorithm 3 of Dao et al. 2022 (appendix B.4), per head:
//   read P, dO, write dV | read dO, V, write dP | read P, dP, write dS | read dS, K, write dQ
//   | read dS, Q, write dK:  7 matrices of seqlen_q x seqlen_k, and 8 of the tensors' size.
double bytes_moved(const StageArgs& args) {
  const double sq = static_cast<double>(args.seqlen_q), sk = static_cast<double>(args.seqlen_k);
  const double d = static_cast<double>(args.head_dim), dv = static_cast<double>(args.head_dim_v);
  double floats_a_head = (sq + sk) * (d + dv) + 4 * sq * sk + sq;
  if (args.backward) floats_a_head += sq * (2 * dv + 2 * d) + sk * (2 * dv + 2 * d) + 7 * sq * sk;
  return 4 * static_cast<double>(args.batch * args.nheads_q) * floats_a_head;
}

}  // namespace step_1d

Step naive_backward() {
  return {.name = "stage.1d_backward",
          .idea = "The chain rule with whole matrices: P, dP and dS all stand in memory.",
          .features = {.causal = true, .grouped_heads = true, .lse = true, .backward = true},
          .run = step_1d::run,
          .bytes_moved = step_1d::bytes_moved};
}

}  // namespace tilewise::stages
