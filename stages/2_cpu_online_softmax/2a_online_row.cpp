// 2a. Online softmax: one query row, one key at a time, no matrix at all.
//
// After the keys 0..j the row keeps three things (Milakov & Gimelshein 2018, arXiv 1805.02867,
// algorithm 3, with the weighted sum of V carried along):
//
//   m = max of the scores so far
//   l = sum_k exp(s_k - m)
//   o = sum_k exp(s_k - m) v_k
//
// When the next score raises the maximum to m', the old sums are in the wrong units; both are
// mended by the same factor:
//
//   alpha = exp(m - m')     l <- alpha l + exp(s - m')     o <- alpha o + exp(s - m') v
//
//     q_i ->  k_0  k_1  k_2  ...  k_j         At the end O_i = o / l and LSE_i = m + log l.
//              s    s    s         s          Only one score exists at any moment.
//            [m l o] -> [m l o] -> ...
#include "stages/stage.hpp"

#include <cmath>
#include <limits>

namespace tilewise::stages {
namespace {

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

float dot(const float* x, const float* y, std::int64_t n) {
  float sum = 0;
  for (std::int64_t c = 0; c < n; ++c) sum += x[c] * y[c];
  return sum;
}

// [snippet online_row]
/// Fills o, the row's output, and returns its LSE.
float attend_row(const float* q, ConstMatrix K, ConstMatrix V, std::int64_t keys, float scale,
                 float* o) {
  float m = minus_infinity;
  float l = 0;
  for (std::int64_t c = 0; c < V.cols; ++c) o[c] = 0;

  for (std::int64_t j = 0; j < keys; ++j) {
    const float s = scale * dot(q, K.row(j), K.cols);
    const float m_new = std::fmax(m, s);
    const float alpha = std::exp(m - m_new);  // exp(-inf) = 0 at the first key
    const float p = std::exp(s - m_new);
    l = alpha * l + p;
    for (std::int64_t c = 0; c < V.cols; ++c) o[c] = alpha * o[c] + p * V(j, c);
    m = m_new;
  }

  if (keys == 0) return minus_infinity;  // nothing to divide by: O stays 0
  for (std::int64_t c = 0; c < V.cols; ++c) o[c] /= l;
  return m + std::log(l);
}
// [end online_row]

void run(const StageArgs& args) {
  for (std::int64_t b = 0; b < args.batch; ++b)
    for (std::int64_t h = 0; h < args.nheads_q; ++h) {
      const ConstMatrix Q = args.q(b, h);
      const ConstMatrix K = args.k(b, args.kv_head(h)), V = args.v(b, args.kv_head(h));
      for (std::int64_t i = 0; i < args.seqlen_q; ++i)
        args.lse(b, h)[i] = attend_row(Q.row(i), K, V, args.keys_of_row(i), args.softmax_scale,
                                       args.o(b, h).row(i));
    }
}

// Slow memory sees each row of Q, O and LSE once, and all of that row's K and V for every row:
// Theta(N^2 d), more than the naive 4 N^2 as soon as d_v + d > 4. No N x N matrix exists, but with
// only one row in fast memory nothing read is used twice. Tiles (2b) mend that.
double bytes_moved(const StageArgs& args) {
  const double width = static_cast<double>(args.head_dim + args.head_dim_v);
  double floats_a_head = static_cast<double>(args.seqlen_q) * (width + 1);
  for (std::int64_t i = 0; i < args.seqlen_q; ++i)
    floats_a_head += static_cast<double>(args.keys_of_row(i)) * width;
  return 4 * static_cast<double>(args.batch * args.nheads_q) * floats_a_head;
}

}  // namespace

Step online_row() {
  return {.name = "stage.2a_online_row",
          .idea =
              "One key at a time with a running maximum, sum and output: no matrix is ever "
              "stored.",
          .features = {.causal = true, .grouped_heads = true, .lse = true},
          .run = run,
          .bytes_moved = bytes_moved};
}

}  // namespace tilewise::stages
