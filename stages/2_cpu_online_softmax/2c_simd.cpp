// 2c. SIMD: the lanes of a register are queries.
//
// 2b leaves the processor's vector units idle: a dot product along d ends in a sum across lanes,
// and so do a row's maximum and sum. Turn the tile on its side and nothing crosses lanes any more:
//
//           one register = `lanes` queries                   S^T[j][i] = sum_c K[j][c] Q^T[c][i]
//         i0      i0+16   i0+32   i0+48   i0+64              O^T[c][i] = sum_j V[j][c] P^T[j][i]
//          +-------+-------+-------+-------+
//  key j0  |  S^T  |       |       |       |  row block of Br = 64 queries, tile of Bc = 64 keys.
//  key j1  |       |       |       |       |  m, l, alpha: one register for 16 queries, and each
//   ...    |       |       |       |       |  lane minds its own.
//          +-------+-------+-------+-------+
//
// Both products are the same register tile (cpu/simd.hpp): broadcast an element of K or V,
// multiply it by a register of Q^T or P^T. K and V are read in place, row by row; only Q is
// transposed on the way in and O on the way out.
#include "cpu/simd.hpp"
#include "stages/stage.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace tilewise::stages {
namespace {

using simd::Broadcast;
using simd::Floats;
using simd::Into;
using simd::lanes;

constexpr std::int64_t Br = 64, Bc = 64;
static_assert(Br % lanes == 0, "a row block is whole registers");
constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

/// What one block of query rows keeps, all with the query index fastest.
struct RowBlock {
  RowBlock(std::int64_t head_dim, std::int64_t head_dim_v)
      : Qt(head_dim * Br), Pt(Bc * Br), Ot(head_dim_v * Br), m(Br), l(Br), keys(Br) {}

  simd::Buffer Qt;    ///< [head_dim][Br], times softmax_scale
  simd::Buffer Pt;    ///< [Bc][Br]: scores first, then exp(S - m)
  simd::Buffer Ot;    ///< [head_dim_v][Br], not yet divided by l
  simd::Buffer m, l;  ///< [Br]
  simd::Buffer keys;  ///< [Br]: how many keys of the tile the row may see
};

// [snippet softmax]
/// Scores in Pt to exp(S - m), with m, l and O brought up to date. All 64 rows at once, `lanes` at
/// a time; nothing here adds, compares or moves across lanes.
void online_softmax(std::int64_t tile_keys, std::int64_t head_dim_v, bool masked, RowBlock& block) {
  for (std::int64_t x = 0; x < Br; x += lanes) {
    float* pt = block.Pt.data() + x;
    if (masked) {
      const Floats keys = simd::load<Floats>(&block.keys[x]);
      for (std::int64_t j = 0; j < tile_keys; ++j) {
        const Floats s = simd::load<Floats>(pt + j * Br);
        const auto visible = Floats(static_cast<float>(j)) < keys;
        simd::store(pt + j * Br, simd::select(visible, s, Floats(minus_infinity)));
      }
    }

    const Floats m_old = simd::load<Floats>(&block.m[x]);
    Floats m = m_old;
    for (std::int64_t j = 0; j < tile_keys; ++j) m = simd::max(m, simd::load<Floats>(pt + j * Br));

    // A row that has seen no key yet has m = -inf, and -inf - -inf is NaN: subtract 0 there.
    const Floats shift = simd::select(m == Floats(minus_infinity), Floats(0.0f), m);
    const Floats alpha = simd::exp(m_old - shift);
    Floats sum(0.0f);
    for (std::int64_t j = 0; j < tile_keys; ++j) {
      const Floats p = simd::exp(simd::load<Floats>(pt + j * Br) - shift);
      simd::store(pt + j * Br, p);
      sum = sum + p;
    }
    simd::store(&block.m[x], m);
    simd::store(&block.l[x], simd::fma(alpha, simd::load<Floats>(&block.l[x]), sum));
    for (std::int64_t c = 0; c < head_dim_v; ++c) {
      float* ot = &block.Ot[c * Br + x];
      simd::store(ot, alpha * simd::load<Floats>(ot));
    }
  }
}
// [end softmax]

// [snippet row_block]
void attend_block(const StageArgs& args, std::int64_t b, std::int64_t h, std::int64_t i0,
                  RowBlock& block) {
  const std::int64_t rows = std::min(Br, args.seqlen_q - i0);
  const ConstMatrix Q = args.q(b, h);
  const ConstMatrix K = args.k(b, args.kv_head(h)), V = args.v(b, args.kv_head(h));

  for (std::int64_t c = 0; c < Q.cols; ++c)  // lanes past the last row compute with zeros
    for (std::int64_t r = 0; r < Br; ++r)
      block.Qt[c * Br + r] = r < rows ? args.softmax_scale * Q(i0 + r, c) : 0;
  std::fill_n(block.Ot.data(), V.cols * Br, 0.0f);
  std::fill_n(block.m.data(), Br, minus_infinity);
  std::fill_n(block.l.data(), Br, 0.0f);

  const std::int64_t every_row = args.keys_of_row(i0);            // keys that all rows see
  const std::int64_t some_row = args.keys_of_row(i0 + rows - 1);  // keys that the last row sees
  for (std::int64_t j0 = 0; j0 < some_row; j0 += Bc) {
    const std::int64_t n = std::min(Bc, some_row - j0);
    simd::tile_product<Into::replace>(n, Br, Q.cols, Broadcast{K.row(j0), K.stride, 1},
                                      block.Qt.data(), Br, block.Pt.data(), Br);
    const bool masked = j0 + n > every_row;  // only tiles that the diagonal crosses
    if (masked)
      for (std::int64_t r = 0; r < Br; ++r)
        block.keys[r] = static_cast<float>(args.keys_of_row(std::min(i0 + r, i0 + rows - 1)) - j0);
    online_softmax(n, V.cols, masked, block);
    simd::tile_product<Into::add>(V.cols, Br, n, Broadcast{V.row(j0), 1, V.stride}, block.Pt.data(),
                                  Br, block.Ot.data(), Br);
  }

  for (std::int64_t r = 0; r < rows; ++r) {
    const bool empty = args.keys_of_row(i0 + r) == 0;
    for (std::int64_t c = 0; c < V.cols; ++c)
      args.o(b, h)(i0 + r, c) = empty ? 0 : block.Ot[c * Br + r] / block.l[r];
    args.lse(b, h)[i0 + r] = empty ? minus_infinity : block.m[r] + std::log(block.l[r]);
  }
}
// [end row_block]

void run(const StageArgs& args) {
  RowBlock block(args.head_dim, args.head_dim_v);
  for (std::int64_t b = 0; b < args.batch; ++b)
    for (std::int64_t h = 0; h < args.nheads_q; ++h)
      for (std::int64_t i0 = 0; i0 < args.seqlen_q; i0 += Br) attend_block(args, b, h, i0, block);
}

// As 2b, with Br = 64: Dao et al. 2022, Theorem 2.
double bytes_moved(const StageArgs& args) {
  const double width = static_cast<double>(args.head_dim + args.head_dim_v);
  double floats_a_head = static_cast<double>(args.seqlen_q) * (width + 1);
  for (std::int64_t i0 = 0; i0 < args.seqlen_q; i0 += Br) {
    const std::int64_t last_row = std::min(i0 + Br, args.seqlen_q) - 1;
    floats_a_head += static_cast<double>(args.keys_of_row(last_row)) * width;
  }
  return 4 * static_cast<double>(args.batch * args.nheads_q) * floats_a_head;
}

}  // namespace

Step simd_lanes() {
  return {.name = "stage.2c_simd",
          .idea =
              "The lanes of a register are queries: the softmax of many rows at once, both "
              "products on registers.",
          .features = {.causal = true, .grouped_heads = true, .lse = true},
          .run = run,
          .bytes_moved = bytes_moved};
}

}  // namespace tilewise::stages
