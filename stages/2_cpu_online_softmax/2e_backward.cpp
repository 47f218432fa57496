// 2e. The backward pass by recomputation.
//
// Forward keeps no P; but P_ij = exp(S_ij - LSE_i), so O and LSE are enough to build any tile of it
// again. The equations are 1d's, tile by tile (Dao 2023, arXiv 2307.08691, Algorithm 2):
//
//   D_i = dO_i . O_i                 first, one number a row (Dao et al. 2022, appendix B.2)
//   for each block of keys j:        K^T, V^T packed once; dK^T, dV^T stay here
//     for each block of queries i:     S  = scale Q_i K_j^T     P  = exp(S - LSE_i)
//                                      dP = dO_i V_j^T          dS = P o (dP - D_i)
//                                      dV_j += P^T dO_i         dK_j += scale dS^T Q_i
//                                      dQ_i += scale dS K_j
//
//                keys:  block 0    block 1           Here the lanes are keys: a row of S, P, dP, dS
//   queries 0..3       [ P dS ]                      is contiguous, Q and dO are read in place,
//   queries 4..7       [ P dS ]   [ P dS ]           element by element, and LSE_i and D_i are one
//         |               |          |               broadcast each.
//       dQ adds up     dK, dV     dK, dV
//       across blocks  stay       stay
// Extra memory: D, one float a query row and head at a time, and the tiles.
#include "cpu/simd.hpp"
#include "stages/stage.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace tilewise::stages {
namespace {

using simd::Broadcast, simd::Floats, simd::Into, simd::lanes, simd::tile_product;

constexpr std::int64_t Br = 64, Bc = 64;
constexpr float minus_infinity = -std::numeric_limits<float>::infinity();
constexpr auto padded = [](std::int64_t width) { return (width + lanes - 1) / lanes * lanes; };

/// Tiles of one key block against one query block; the key index, or d, fastest.
struct Tiles {
  std::int64_t d, dv;
  simd::Buffer Kt{d * Bc}, Vt{dv * Bc}, dKt{d * Bc}, dVt{dv * Bc};  ///< [d][Bc]
  simd::Buffer K{Bc * padded(d)}, V{Bc * padded(dv)};               ///< [Bc][padded d]
  simd::Buffer P{Br * Bc}, dS{Br * Bc}, m{Br}, l{Br};               ///< [Br][Bc]; m and l [Br]
  simd::Buffer row{Br * std::max(padded(d), padded(dv))};           ///< O forward, dQ backward
};

/// Rows j0..j0 + Bc, zeros past the last: as they are, or transposed.
template <bool transposed>
void pack(ConstMatrix X, std::int64_t j0, float* to) {
  for (std::int64_t j = 0; j < Bc; ++j)
    for (std::int64_t c = 0, width = padded(X.cols); c < X.cols; ++c)
      to[transposed ? c * Bc + j : j * width + c] = j0 + j < X.rows ? X(j0 + j, c) : 0;
}

/// S = scale Q_i K_j^T, -inf where row i0 + r may not see key j0 + j.
void scores(const StageArgs& args, ConstMatrix Q, std::int64_t i0, std::int64_t rows,
            std::int64_t j0, Tiles& t) {
  tile_product<Into::replace>(rows, Bc, t.d, Broadcast{Q.row(i0), Q.stride, 1}, t.Kt.data(), Bc,
                              t.P.data(), Bc);
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t j = 0, keys = args.keys_of_row(i0 + r) - j0; j < Bc; ++j)
      t.P[r * Bc + j] = j < keys ? args.softmax_scale * t.P[r * Bc + j] : minus_infinity;
}

/// Row r of S to exp(S - m), with m, l and O brought up to date.
void online_softmax(std::int64_t r, std::int64_t width, Tiles& t) {
  float *const p = &t.P[r * Bc], *const o = &t.row[r * width];
  Floats most(t.m[r]), sum(0.0f);
  for (std::int64_t j = 0; j < Bc; j += lanes) most = simd::max(most, simd::load<Floats>(p + j));
  const float m = simd::reduce_max(most), shift = m == minus_infinity ? 0 : m;
  const float alpha = std::exp(t.m[r] - shift);
  for (std::int64_t j = 0; j < Bc; j += lanes) {
    const Floats e = simd::exp(simd::load<Floats>(p + j) - Floats(shift));
    simd::store(p + j, e);
    sum = sum + e;
  }
  t.m[r] = m;
  t.l[r] = alpha * t.l[r] + simd::reduce_add(sum);
  for (std::int64_t c = 0; c < width; ++c) o[c] *= alpha;
}

/// O and LSE of a row block, as in 2b.
void forward_block(const StageArgs& args, std::int64_t b, std::int64_t h, std::int64_t i0,
                   Tiles& t) {
  const ConstMatrix K = args.k(b, args.kv_head(h)), V = args.v(b, args.kv_head(h));
  const std::int64_t rows = std::min(Br, args.seqlen_q - i0), width = padded(t.dv);
  std::fill_n(t.row.data(), Br * width, 0.0f);
  std::fill_n(t.m.data(), Br, minus_infinity);
  std::fill_n(t.l.data(), Br, 0.0f);
  for (std::int64_t j0 = 0, keys = args.keys_of_row(i0 + rows - 1); j0 < keys; j0 += Bc) {
    pack<true>(K, j0, t.Kt.data());
    pack<false>(V, j0, t.V.data());
    scores(args, args.q(b, h), i0, rows, j0, t);
    for (std::int64_t r = 0; r < rows; ++r) online_softmax(r, width, t);
    tile_product<Into::add>(rows, width, Bc, Broadcast{t.P.data(), Bc, 1}, t.V.data(), width,
                            t.row.data(), width);
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    const float l = t.l[r] == 0 ? 1 : t.l[r];  // 0: no key, and O = 0, LSE = -inf come out
    for (std::int64_t c = 0; c < t.dv; ++c) args.o(b, h)(i0 + r, c) = t.row[r * width + c] / l;
    args.lse(b, h)[i0 + r] = t.m[r] + std::log(l);
  }
}

// [snippet tile]
/// What the queries i0..i0 + Br of head h add to dQ, and to dK and dV of the packed key block.
void backward_tile(const StageArgs& args, std::int64_t b, std::int64_t h, std::int64_t i0,
                   std::int64_t j0, const float* D, Tiles& t) {
  const ConstMatrix Q = args.q(b, h), dO = args.dout(b, h);
  const std::int64_t rows = std::min(Br, args.seqlen_q - i0), width = padded(t.d);
  const Broadcast dO_i{dO.row(i0), dO.stride, 1}, dO_i_transposed{dO.row(i0), 1, dO.stride},
      Q_i_transposed{Q.row(i0), 1, Q.stride}, dS{t.dS.data(), Bc, 1};

  scores(args, Q, i0, rows, j0, t);
  tile_product<Into::replace>(rows, Bc, t.dv, dO_i, t.Vt.data(), Bc, t.dS.data(), Bc);  // dP
  for (std::int64_t r = 0; r < rows; ++r) {
    const float lse = args.lse(b, h)[i0 + r];
    const Floats shift(lse == minus_infinity ? 0 : lse), d(D[i0 + r]), scale(args.softmax_scale);
    for (std::int64_t x = r * Bc; x < (r + 1) * Bc; x += lanes) {
      const Floats p = simd::exp(simd::load<Floats>(&t.P[x]) - shift);
      simd::store(&t.P[x], p);
      simd::store(&t.dS[x], scale * p * (simd::load<Floats>(&t.dS[x]) - d));  // with dS's scale
    }
  }
  tile_product<Into::add>(t.dv, Bc, rows, dO_i_transposed, t.P.data(), Bc, t.dVt.data(), Bc);
  tile_product<Into::add>(t.d, Bc, rows, Q_i_transposed, t.dS.data(), Bc, t.dKt.data(), Bc);
  tile_product<Into::replace>(rows, width, Bc, dS, t.K.data(), width, t.row.data(), width);
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < t.d; ++c) args.dq(b, h)(i0 + r, c) += t.row[r * width + c];
}
// [end tile]

// [snippet key_blocks]
/// dK and dV of one key/value head, and dQ of the query heads that read it.
void backward_head(const StageArgs& args, std::int64_t b, std::int64_t kv, Tiles& t) {
  const std::int64_t group = args.nheads_q / args.nheads_k, first = kv * group;
  simd::Buffer D(group * args.seqlen_q);
  for (std::int64_t h = first; h < first + group; ++h)
    for (std::int64_t i = 0; i < args.seqlen_q; ++i) {
      const float *dO = args.dout(b, h).row(i), *O = args.o(b, h).row(i);
      D[(h - first) * args.seqlen_q + i] = std::inner_product(dO, dO + t.dv, O, 0.0f);
      std::fill_n(args.dq(b, h).row(i), t.d, 0.0f);
    }
  const ConstMatrix K = args.k(b, kv), V = args.v(b, kv);
  for (std::int64_t j0 = 0; j0 < args.seqlen_k; j0 += Bc) {
    pack<false>(K, j0, t.K.data());
    pack<true>(K, j0, t.Kt.data());
    pack<true>(V, j0, t.Vt.data());
    std::fill_n(t.dKt.data(), t.d * Bc, 0.0f);
    std::fill_n(t.dVt.data(), t.dv * Bc, 0.0f);
    for (std::int64_t h = first; h < first + group; ++h)
      for (std::int64_t i0 = 0; i0 < args.seqlen_q; i0 += Br)
        if (args.keys_of_row(std::min(i0 + Br, args.seqlen_q) - 1) > j0)  // below the diagonal
          backward_tile(args, b, h, i0, j0, &D[(h - first) * args.seqlen_q], t);
    for (std::int64_t j = 0; j < std::min(Bc, K.rows - j0); ++j) {
      for (std::int64_t c = 0; c < t.d; ++c) args.dk(b, kv)(j0 + j, c) = t.dKt[c * Bc + j];
      for (std::int64_t c = 0; c < t.dv; ++c) args.dv(b, kv)(j0 + j, c) = t.dVt[c * Bc + j];
    }
  }
}
// [end key_blocks]

void run(const StageArgs& args) {
  Tiles tiles{args.head_dim, args.head_dim_v};
  for (std::int64_t b = 0; b < args.batch; ++b) {
    for (std::int64_t h = 0; h < args.nheads_q; ++h)
      for (std::int64_t i0 = 0; i0 < args.seqlen_q; i0 += Br) forward_block(args, b, h, i0, tiles);
    if (args.backward)
      for (std::int64_t kv = 0; kv < args.nheads_k; ++kv) backward_head(args, b, kv, tiles);
  }
}

// Forward as 2b. Backward (Dao et al. 2022, Theorem 5): O and dO once for D, dQ zeroed; K, V, dK,
// dV once a key head; and for every tile that the mask leaves, its Q, dO, LSE, D, and dQ both ways.
double bytes_moved(const StageArgs& args) {
  const auto real = [](std::int64_t number) { return static_cast<double>(number); };
  const double d = real(args.head_dim), dv = real(args.head_dim_v), sq = real(args.seqlen_q);
  const double heads = real(args.batch * args.nheads_q);
  const double keys_and_values = real(args.batch * args.nheads_k * args.seqlen_k) * (d + dv);
  double forward = sq * (d + dv + 1), backward = sq * (2 * dv + 1 + d);
  for (std::int64_t i0 = 0; i0 < args.seqlen_q; i0 += Br) {
    const std::int64_t end = std::min(i0 + Br, args.seqlen_q), keys = args.keys_of_row(end - 1);
    forward += real(keys) * (d + dv);
    backward += real((keys + Bc - 1) / Bc * (end - i0)) * (3 * d + dv + 2);
  }
  return 4 * (args.backward ? heads * (forward + backward) + 2 * keys_and_values : heads * forward);
}

}  // namespace

Step flash_backward() {
  return {.name = "stage.2e_backward",
          .idea =
              "Keep O and LSE, throw P away, and build it again tile by tile for the "
              "gradients.",
          .features = {.causal = true, .grouped_heads = true, .lse = true, .backward = true},
          .run = run,
          .bytes_moved = bytes_moved};
}

}  // namespace tilewise::stages
