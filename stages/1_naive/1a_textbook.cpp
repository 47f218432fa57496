// 1a. Attention as the paper writes it.
//
//   S = scale Q K^T      P = softmax(S) row by row      O = P V
//   softmax(s)_j = exp(s_j) / sum_k exp(s_k)            (Vaswani et al. 2017, equation 1)
//
// One head; everything is a whole matrix, and two of them are as large as seqlen_q x seqlen_k:
//
//        d            seqlen_k         seqlen_k           d_v            d_v
//     +-----+       +----------+     +----------+       +-----+        +-----+
//     |  Q  |  K^T  |    S     | --> |    P     |   .   |  V  |   =    |  O  |  seqlen_q
//     +-----+       +----------+ exp +----------+       +-----+        +-----+
//
// exp(89) is already larger than any float: one large score makes its row inf / inf = NaN.
#include "stages/eigen.hpp"

namespace tilewise::stages {
namespace step_1a {

// [snippet textbook]
void attend(float softmax_scale, const ConstRows& Q, const ConstRows& K, const ConstRows& V,
            Rows O) {
  RowMajor S = softmax_scale * (Q * K.transpose());
  RowMajor P = S.array().exp();
  const Eigen::VectorXf l = P.rowwise().sum();
  P.array().colwise() /= l.array();
  O.noalias() = P * V;
}
// [end textbook]

void run(const StageArgs& args) {
  for (std::int64_t b = 0; b < args.batch; ++b)
    for (std::int64_t h = 0; h < args.nheads_q; ++h)
      attend(args.softmax_scale, eigen(args.q(b, h)), eigen(args.k(b, h)), eigen(args.v(b, h)),
             eigen(args.o(b, h)));
}

// [snippet bytes_moved]
// Algorithm 0 of Dao et al. 2022 (arXiv 2205.14135), each line through slow memory, per head:
//   read Q, K, write S | read S, write P | read P, V, write O
// = seqlen_q (d + d_v) + seqlen_k (d + d_v) + 4 seqlen_q seqlen_k floats: their Theorem 2's
// Theta(N d + N^2).
double bytes_moved(const StageArgs& args) {
  const double sq = static_cast<double>(args.seqlen_q), sk = static_cast<double>(args.seqlen_k);
  const double width = static_cast<double>(args.head_dim + args.head_dim_v);
  const double floats_a_head = (sq + sk) * width + 4 * sq * sk;
  return 4 * static_cast<double>(args.batch * args.nheads_q) * floats_a_head;
}
// [end bytes_moved]

}  // namespace step_1a

Step textbook() {
  return {.name = "stage.1a_textbook",
          .idea =
              "softmax(Q K^T) V with whole matrices, exactly as the formula says: large scores "
              "overflow.",
          .features = {},
          .run = step_1a::run,
          .bytes_moved = step_1a::bytes_moved};
}

}  // namespace tilewise::stages
