// 1b. Safe softmax: subtract the row's maximum first.
//
//   m = max_k s_k,    softmax(s)_j = exp(s_j - m) / sum_k exp(s_k - m)
//
// The quotient is the same, because exp(-m) cancels; but now every exponent is <= 0, every exp lies
// in [0, 1], and the sum in [1, seqlen_k]. Nothing can overflow, whatever the scores.
//
//     row of S   [ 3  1  7 -2 ]   m = 7
//     S - m      [-4 -6  0 -9 ]
//     exp        [.018 .002 1 .0001]   l = 1.02      P = exp / l
#include "stages/eigen.hpp"

namespace tilewise::stages {
namespace step_1b {

// [snippet safe_softmax]
void attend(float softmax_scale, const ConstRows& Q, const ConstRows& K, const ConstRows& V,
            Rows O) {
  RowMajor S = softmax_scale * (Q * K.transpose());
  const Eigen::VectorXf m = S.rowwise().maxCoeff();
  RowMajor P = (S.colwise() - m).array().exp();
  const Eigen::VectorXf l = P.rowwise().sum();
  P.array().colwise() /= l.array();
  O.noalias() = P * V;
}
// [end safe_softmax]

void run(const StageArgs& args) {
  for (std::int64_t b = 0; b < args.batch; ++b)
    for (std::int64_t h = 0; h < args.nheads_q; ++h)
      attend(args.softmax_scale, eigen(args.q(b, h)), eigen(args.k(b, h)), eigen(args.v(b, h)),
             eigen(args.o(b, h)));
}

// As in 1a: the maximum is found while S is read. Dao et al. 2022, Algorithm 0 and Theorem 2.
double bytes_moved(const StageArgs& args) {
  const double sq = static_cast<double>(args.seqlen_q), sk = static_cast<double>(args.seqlen_k);
  const double width = static_cast<double>(args.head_dim + args.head_dim_v);
  const double floats_a_head = (sq + sk) * width + 4 * sq * sk;
  return 4 * static_cast<double>(args.batch * args.nheads_q) * floats_a_head;
}

}  // namespace step_1b

Step safe_softmax() {
  return {.name = "stage.1b_safe_softmax",
          .idea =
              "Subtract each row's maximum before exp: the same quotient, and nothing "
              "overflows.",
          .features = {},
          .run = step_1b::run,
          .bytes_moved = step_1b::bytes_moved};
}

}  // namespace tilewise::stages
