// 2e. The backward pass by recomputation.
//
// Forward keeps no P; but P_ij = exp(S_ij - LSE_i), so O and LSE are enough to build any tile of it
// again. Equations as in 1d, tile by tile (Dao 2023, arXiv 2307.08691, Algorithm 2):
//
//   D_i = dO_i . O_i                 first, one number a row (= sum_j P_ij dP_ij, appendix B.2 of
//                                    Dao et al. 2022)
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
//
// Extra memory: D, one float a query row and head at a time, and the tiles.
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
constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

std::int64_t padded(std::int64_t width) {
  return (width + lanes - 1) / lanes * lanes;
}

/// Tiles of one key block against one query block; the key index, or d, fastest.
struct Tiles {
  Tiles(std::int64_t d, std::int64_t dv)
      : Kt(d * Bc),
        Vt(dv * Bc),
        K(Bc * padded(d)),
        V(Bc * padded(dv)),
        P(Br * Bc),
        dS(Br * Bc),
        dKt(d * Bc),
        dVt(dv * Bc),
        row(Br * std::max(padded(d), padded(dv))),
        m(Br),
        l(Br) {}

  simd::Buffer Kt, Vt;    ///< [d][Bc]
  simd::Buffer K, V;      ///< [Bc][padded d]
  simd::Buffer P, dS;     ///< [Br][Bc]
  simd::Buffer dKt, dVt;  ///< [d][Bc]
  simd::Buffer row;       ///< [Br][padded d]: O forward, dQ backward
  simd::Buffer m, l;      ///< [Br], forward
};

/// Rows j0..j0 + Bc, zeros past the last: as they are, or transposed.
void pack(ConstMatrix from, std::int64_t j0, simd::Buffer& to) {
  const std::int64_t width = padded(from.cols);
  for (std::int64_t j = 0; j < Bc; ++j)
    for (std::int64_t c = 0; c < from.cols; ++c)
      to[j * width + c] = j0 + j < from.rows ? from(j0 + j, c) : 0;
}
void pack_transposed(ConstMatrix from, std::int64_t j0, simd::Buffer& to) {
  for (std::int64_t c = 0; c < from.cols; ++c)
    for (std::int64_t j = 0; j < Bc; ++j) to[c * Bc + j] = j0 + j < from.rows ? from(j0 + j, c) : 0;
}

/// S = scale Q_i K_j^T, -inf where row i0 + r may not see key j0 + j.
void scores(const StageArgs& args, ConstMatrix Q, std::int64_t i0, std::int64_t rows,
            std::int64_t j0, Tiles& t) {
  simd::tile_product<Into::replace>(rows, Bc, Q.cols, Broadcast{Q.row(i0), Q.stride, 1},
                                    t.Kt.data(), Bc, t.P.data(), Bc);
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t j = 0, keys = args.keys_of_row(i0 + r) - j0; j < Bc; ++j)
      t.P[r * Bc + j] = j < keys ? args.softmax_scale * t.P[r * Bc + j] : minus_infinity;
}

/// O and LSE of a row block, by the recurrence of 2b.
void forward_block(const StageArgs& args, std::int64_t b, std::int64_t h, std::int64_t i0,
                   Tiles& t) {
  const ConstMatrix Q = args.q(b, h);
  const ConstMatrix K = args.k(b, args.kv_head(h)), V = args.v(b, args.kv_head(h));
  const std::int64_t rows = std::min(Br, args.seqlen_q - i0), width = padded(V.cols);
  std::fill_n(t.row.data(), Br * width, 0.0f);
  std::fill_n(t.m.data(), Br, minus_infinity);
  std::fill_n(t.l.data(), Br, 0.0f);
  const std::int64_t keys = args.keys_of_row(i0 + rows - 1);
  for (std::int64_t j0 = 0; j0 < keys; j0 += Bc) {
    pack_transposed(K, j0, t.Kt);
    pack(V, j0, t.V);
    scores(args, Q, i0, rows, j0, t);
    for (std::int64_t r = 0; r < rows; ++r) {
      float* p = &t.P[r * Bc];
      Floats most(t.m[r]), sum(0.0f);
      for (std::int64_t j = 0; j < Bc; j += lanes)
        most = simd::max(most, simd::load<Floats>(p + j));
      const float m = simd::reduce_max(most);
      const float shift = m == minus_infinity ? 0 : m;
      const float alpha = std::exp(t.m[r] - shift);
      for (std::int64_t j = 0; j < Bc; j += lanes) {
        const Floats e = simd::exp(simd::load<Floats>(p + j) - Floats(shift));
        simd::store(p + j, e);
        sum = sum + e;
      }
      t.m[r] = m;
      t.l[r] = alpha * t.l[r] + simd::reduce_add(sum);
      for (std::int64_t c = 0; c < width; ++c) t.row[r * width + c] *= alpha;
    }
    simd::tile_product<Into::add>(rows, width, Bc, Broadcast{t.P.data(), Bc, 1}, t.V.data(), width,
                                  t.row.data(), width);
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    const bool empty = args.keys_of_row(i0 + r) == 0;
    for (std::int64_t c = 0; c < V.cols; ++c)
      args.o(b, h)(i0 + r, c) = empty ? 0 : t.row[r * width + c] / t.l[r];
    args.lse(b, h)[i0 + r] = empty ? minus_infinity : t.m[r] + std::log(t.l[r]);
  }
}

// [snippet tile]
/// What the queries i0..i0 + Br of head h add to dQ, and to dK and dV of the packed key block.
void backward_tile(const StageArgs& args, std::int64_t b, std::int64_t h, std::int64_t i0,
                   std::int64_t j0, const float* D, Tiles& t) {
  const ConstMatrix Q = args.q(b, h), dO = args.dout(b, h);
  const Matrix dQ = args.dq(b, h);
  const std::int64_t rows = std::min(Br, args.seqlen_q - i0), width = padded(Q.cols);

  scores(args, Q, i0, rows, j0, t);
  simd::tile_product<Into::replace>(rows, Bc, dO.cols, Broadcast{dO.row(i0), dO.stride, 1},
                                    t.Vt.data(), Bc, t.dS.data(), Bc);  // dP
  for (std::int64_t r = 0; r < rows; ++r) {
    const float lse = args.lse(b, h)[i0 + r];
    const Floats shift(lse == minus_infinity ? 0 : lse), d(D[i0 + r]), scale(args.softmax_scale);
    for (std::int64_t x = r * Bc; x < (r + 1) * Bc; x += lanes) {
      const Floats p = simd::exp(simd::load<Floats>(&t.P[x]) - shift);
      simd::store(&t.P[x], p);
      simd::store(&t.dS[x], scale * p * (simd::load<Floats>(&t.dS[x]) - d));  // with dS's scale
    }
  }
  simd::tile_product<Into::add>(dO.cols, Bc, rows, Broadcast{dO.row(i0), 1, dO.stride}, t.P.data(),
                                Bc, t.dVt.data(), Bc);
  simd::tile_product<Into::add>(Q.cols, Bc, rows, Broadcast{Q.row(i0), 1, Q.stride}, t.dS.data(),
                                Bc, t.dKt.data(), Bc);
  simd::tile_product<Into::replace>(rows, width, Bc, Broadcast{t.dS.data(), Bc, 1}, t.K.data(),
                                    width, t.row.data(), width);
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < Q.cols; ++c) dQ(i0 + r, c) += t.row[r * width + c];
}
// [end tile]

// [snippet key_blocks]
/// dK and dV of one key/value head, and dQ of the query heads that read it.
void backward_head(const StageArgs& args, std::int64_t b, std::int64_t kv, Tiles& t) {
  const std::int64_t group = args.nheads_q / args.nheads_k, first_head = kv * group;
  simd::Buffer D(group * args.seqlen_q);
  for (std::int64_t g = 0; g < group; ++g)
    for (std::int64_t i = 0; i < args.seqlen_q; ++i) {
      float sum = 0;
      for (std::int64_t c = 0; c < args.head_dim_v; ++c)
        sum += args.dout(b, first_head + g)(i, c) * args.o(b, first_head + g)(i, c);
      D[g * args.seqlen_q + i] = sum;
      std::fill_n(args.dq(b, first_head + g).row(i), args.head_dim, 0.0f);
    }

  const ConstMatrix K = args.k(b, kv), V = args.v(b, kv);
  for (std::int64_t j0 = 0; j0 < args.seqlen_k; j0 += Bc) {
    pack(K, j0, t.K);
    pack_transposed(K, j0, t.Kt);
    pack_transposed(V, j0, t.Vt);
    std::fill_n(t.dKt.data(), K.cols * Bc, 0.0f);
    std::fill_n(t.dVt.data(), V.cols * Bc, 0.0f);
    for (std::int64_t g = 0; g < group; ++g)
      for (std::int64_t i0 = 0; i0 < args.seqlen_q; i0 += Br) {
        const std::int64_t last_row = std::min(i0 + Br, args.seqlen_q) - 1;
        if (args.keys_of_row(last_row) <= j0) continue;  // above the diagonal
        backward_tile(args, b, first_head + g, i0, j0, D.data() + g * args.seqlen_q, t);
      }
    for (std::int64_t j = 0; j < std::min(Bc, K.rows - j0); ++j) {
      for (std::int64_t c = 0; c < K.cols; ++c) args.dk(b, kv)(j0 + j, c) = t.dKt[c * Bc + j];
      for (std::int64_t c = 0; c < V.cols; ++c) args.dv(b, kv)(j0 + j, c) = t.dVt[c * Bc + j];
    }
  }
}
// [end key_blocks]

void run(const StageArgs& args) {
  Tiles tiles(args.head_dim, args.head_dim_v);
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
  const double d = static_cast<double>(args.head_dim), dv = static_cast<double>(args.head_dim_v);
  const double sq = static_cast<double>(args.seqlen_q), sk = static_cast<double>(args.seqlen_k);
  const double heads_q = static_cast<double>(args.batch * args.nheads_q);
  const double heads_k = static_cast<double>(args.batch * args.nheads_k);
  double forward = sq * (d + dv + 1), backward = sq * (2 * dv + 1 + d);
  for (std::int64_t i0 = 0; i0 < args.seqlen_q; i0 += Br) {
    const std::int64_t end = std::min(i0 + Br, args.seqlen_q), keys = args.keys_of_row(end - 1);
    forward += static_cast<double>(keys) * (d + dv);
    const std::int64_t tiles = (keys + Bc - 1) / Bc;
    backward += static_cast<double>(tiles * (end - i0)) * (3 * d + dv + 2);
  }
  if (!args.backward) return 4 * heads_q * forward;
  return 4 * (heads_q * (forward + backward) + heads_k * 2 * sk * (d + dv));
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
