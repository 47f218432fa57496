// 2b. Tiles: Br queries against Bc keys at a time.
//
// The recurrence of 2a with a block of keys in place of one key (Dao 2023, arXiv 2307.08691,
// Algorithm 1, whose line 10 should read diag(exp(m_old - m_new)) without the inverse):
//
//   S = scale Q_i K_j^T     m' = max(m, rowmax S)     P = exp(S - m')     alpha = exp(m - m')
//   l <- alpha l + rowsum P                           O <- alpha O + P V_j
//
//                  keys: tile j = 0      1       2
//                     +--------+--------+--------+
//   queries block 0   | Br x Bc|   ->   |   ->   |    the row block keeps m[Br], l[Br], O[Br][d_v];
//                     +--------+--------+--------+    K and V tiles pass by, each read once a block
//   queries block 1   |   ->   |   ->   |causal: |
//                     +--------+--------+ skipped|    and used for Br rows while it is in cache.
//
// Under causal a tile beyond the block's last visible key is never touched.
#include "stages/stage.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace tilewise::stages {
namespace {

constexpr std::int64_t Br = 32, Bc = 64;
constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

/// What one block of query rows keeps between tiles.
struct RowBlock {
  explicit RowBlock(std::int64_t head_dim_v)
      : P(Br * Bc), m(Br), l(Br), O(static_cast<std::size_t>(Br * head_dim_v)) {}

  std::vector<float> P;  ///< [Br][Bc]: scores first, then exp(S - m)
  std::vector<float> m, l;
  std::vector<float> O;  ///< [Br][head_dim_v], not yet divided by l
};

// [snippet tile]
/// One tile: keys first..last for the rows i0..i0 + rows.
void add_tile(const StageArgs& args, ConstMatrix Q, ConstMatrix K, ConstMatrix V, std::int64_t i0,
              std::int64_t rows, std::int64_t first, std::int64_t last, RowBlock& block) {
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int64_t keys = std::min(last, args.keys_of_row(i0 + r)) - first;
    if (keys <= 0) continue;  // the diagonal passes above this row: nothing visible in the tile
    float* p = &block.P[static_cast<std::size_t>(r * Bc)];
    float* o = &block.O[static_cast<std::size_t>(r * V.cols)];
    float& m = block.m[static_cast<std::size_t>(r)];
    float& l = block.l[static_cast<std::size_t>(r)];

    float m_new = m;
    for (std::int64_t j = 0; j < keys; ++j) {
      float s = 0;
      for (std::int64_t c = 0; c < K.cols; ++c) s += Q(i0 + r, c) * K(first + j, c);
      p[j] = args.softmax_scale * s;
      m_new = std::max(m_new, p[j]);
    }

    const float alpha = std::exp(m - m_new);
    float sum = 0;
    for (std::int64_t j = 0; j < keys; ++j) sum += p[j] = std::exp(p[j] - m_new);
    l = alpha * l + sum;
    m = m_new;

    for (std::int64_t c = 0; c < V.cols; ++c) o[c] *= alpha;
    for (std::int64_t j = 0; j < keys; ++j)
      for (std::int64_t c = 0; c < V.cols; ++c) o[c] += p[j] * V(first + j, c);
  }
}
// [end tile]

// [snippet row_block]
void attend_block(const StageArgs& args, std::int64_t b, std::int64_t h, std::int64_t i0,
                  RowBlock& block) {
  const std::int64_t rows = std::min(Br, args.seqlen_q - i0);
  const ConstMatrix K = args.k(b, args.kv_head(h)), V = args.v(b, args.kv_head(h));
  std::fill(block.m.begin(), block.m.end(), minus_infinity);
  std::fill(block.l.begin(), block.l.end(), 0.0f);
  std::fill(block.O.begin(), block.O.end(), 0.0f);

  const std::int64_t keys = args.keys_of_row(i0 + rows - 1);  // the last row sees the most
  for (std::int64_t first = 0; first < keys; first += Bc)
    add_tile(args, args.q(b, h), K, V, i0, rows, first, std::min(first + Bc, keys), block);

  for (std::int64_t r = 0; r < rows; ++r) {
    const float l = block.l[static_cast<std::size_t>(r)];
    const bool empty = args.keys_of_row(i0 + r) == 0;
    for (std::int64_t c = 0; c < V.cols; ++c)
      args.o(b, h)(i0 + r, c) = empty ? 0 : block.O[static_cast<std::size_t>(r * V.cols + c)] / l;
    args.lse(b, h)[i0 + r] =
        empty ? minus_infinity : block.m[static_cast<std::size_t>(r)] + std::log(l);
  }
}
// [end row_block]

void run(const StageArgs& args) {
  RowBlock block(args.head_dim_v);
  for (std::int64_t b = 0; b < args.batch; ++b)
    for (std::int64_t h = 0; h < args.nheads_q; ++h)
      for (std::int64_t i0 = 0; i0 < args.seqlen_q; i0 += Br) attend_block(args, b, h, i0, block);
}

// [snippet bytes_moved]
// Q, O and LSE cross once; K and V once a row block, as far as its last row sees. With the block in
// a fast memory of M floats, Br ~ M / d: Theta(N^2 d^2 / M) (Dao et al. 2022, Theorem 2).
double bytes_moved(const StageArgs& args) {
  const double width = static_cast<double>(args.head_dim + args.head_dim_v);
  double floats_a_head = static_cast<double>(args.seqlen_q) * (width + 1);
  for (std::int64_t i0 = 0; i0 < args.seqlen_q; i0 += Br) {
    const std::int64_t last_row = std::min(i0 + Br, args.seqlen_q) - 1;
    floats_a_head += static_cast<double>(args.keys_of_row(last_row)) * width;
  }
  return 4 * static_cast<double>(args.batch * args.nheads_q) * floats_a_head;
}
// [end bytes_moved]

}  // namespace

Step tiles() {
  return {.name = "stage.2b_tiles",
          .idea =
              "Br queries share each tile of Bc keys, so K and V cross from slow memory Br "
              "times less often.",
          .features = {.causal = true, .grouped_heads = true, .lse = true},
          .run = run,
          .bytes_moved = bytes_moved};
}

}  // namespace tilewise::stages
