// 3b. The paper's loops: Algorithm 1 of FlashAttention as printed.
//
// The outer loop walks along K and V, the inner one along Q. So a tile of K and V is fetched once,
// and each row's m, l and O, which have to wait for the next tile of keys, wait in HBM: they cross
// twice for every pair of tiles. The comments give the paper's line numbers.
//
//                 keys:  tile j = 0     tile 1       tile 2
//   rows 0..Br        [ K V stay  ]        |            |      Q, O, m, l come and go:
//   rows Br..2 Br     [  while    ]        v            v      read and written once a tile
//   rows ...          [ Q passes  ] ->  all rows  ->  all rows
//
// Contract
//   grid       (nheads_q, batch) blocks of 128 threads: a block a head, as in the paper's kernel.
//              With few heads most of a GPU idles: what FlashAttention-2 mends.
//   shared     Q, K, V, P: 25 to 29 KiB, static. O's numbers are each loaded, changed and stored by
//              one thread, in a register.
//   workspace  m and l, 2 batch nheads_q seqlen_q floats: linear in seqlen_q
//   waits      three __syncthreads() for a pair of tiles (Q is there; S is there; P is there), two
//              for a tile of keys
//   order      fixed: every run gives the same bits
#include "cuda/device/trace.hpp"
#include "stages/cuda_heads.hpp"

#include <cmath>
#include <cstdint>

namespace tilewise::stages::inline TILEWISE_TARGET {
namespace {

// [snippet blocks]
// Line 1: Bc = ceil(M / 4d), Br = min(ceil(M / 4d), d), for a fast memory of M floats.
constexpr int M = 32 * 1024 / sizeof(float);
template <int D>
struct Blocks {
  static constexpr int Bc = M / (4 * D), Br = Bc < D ? Bc : D;
};
// [end blocks]

constexpr int threads = 128;
constexpr float minus_infinity = -INFINITY;

/// A column more than needed: the lanes of a warp that read one column of 32 rows meet 32 banks.
template <int D>
struct Tiles {
  static constexpr int Br = Blocks<D>::Br, Bc = Blocks<D>::Bc;
  float Q[Br][D + 1], K[Bc][D + 1], V[Bc][D + 1];
  float P[Br][Bc + 1];      ///< S, and then P~
  float keep[Br], add[Br];  ///< the factors of O and of P~ V in line 12
};
static_assert(sizeof(Tiles<32>) <= 48 * 1024 && sizeof(Tiles<64>) <= 48 * 1024 &&
                  sizeof(Tiles<128>) <= 48 * 1024,
              "static shared memory of a block: 48 KiB");
static_assert(Blocks<32>::Br <= threads, "a thread has one row's m and l at most");

template <int D>
__device__ void load_tile(Head<const float> X, std::int64_t first, int rows, float (*tile)[D + 1]) {
  for (int x = threadIdx.x; x < rows * D; x += threads)
    tile[x / D][x % D] = x % D < X.width ? X.row(first + x / D)[x % D] : 0;
}

// [snippet softmax]
/// Lines 10, 11 and 13 for row r of the tile, which sees the tile's first n keys.
template <int D>
__device__ void online_softmax(Tiles<D>& t, int r, int n, float& m, float& l) {
  const float m_old = m, l_old = l;
  float m_tile = minus_infinity, l_tile = 0;
  for (int c = 0; c < n; ++c) m_tile = fmaxf(m_tile, t.P[r][c]);
  for (int c = 0; c < Tiles<D>::Bc; ++c) {
    t.P[r][c] = c < n ? __expf(t.P[r][c] - m_tile) : 0;
    l_tile += t.P[r][c];
  }
  const float m_new = fmaxf(m_old, m_tile);
  const float shift = m_new == minus_infinity ? 0 : m_new;  // no key yet: -inf - -inf is NaN
  const float alpha = __expf(m_old - shift), beta = __expf(m_tile - shift);
  const float l_new = alpha * l_old + beta * l_tile;
  const float unit = l_new > 0 ? 1 / l_new : 0;
  t.keep[r] = l_old * alpha * unit;  // O stands in HBM divided by l: undo it, and divide again
  t.add[r] = beta * unit;
  m = m_new;
  l = l_new;
}
// [end softmax]

// [snippet kernel]
template <int D>
__global__ void __launch_bounds__(threads) algorithm_1(CudaArgs args, float* all_m, float* all_l) {
  constexpr int Br = Tiles<D>::Br, Bc = Tiles<D>::Bc;
  __shared__ Tiles<D> t;
  const std::int64_t h = blockIdx.x, b = blockIdx.y;
  const auto Q = query_head<const float>(args, args.q, b, h);
  const auto O = query_head<float>(args, args.o, b, h);
  const auto K = key_head<const float>(args, args.k, b, kv_head(args, h));
  const auto V = key_head<const float>(args, args.v, b, kv_head(args, h));
  float* const m = all_m + row_number(args, b, h, 0);
  float* const l = all_l + row_number(args, b, h, 0);
  const int me = threadIdx.x;

  for (std::int64_t i = me; i < Q.rows; i += threads) {  // 2: O = 0, l = 0, m = -inf, in HBM
    m[i] = minus_infinity;
    l[i] = 0;
  }
  for (std::int64_t x = me; x < O.rows * O.width; x += threads) O.row(x / O.width)[x % O.width] = 0;

  for (std::int64_t j0 = 0; j0 < K.rows; j0 += Bc) {  // 5
    const int keys = static_cast<int>(min(std::int64_t{Bc}, K.rows - j0));
    if (keys_of_row(args, Q.rows - 1) <= j0) break;  // nobody sees this tile, nor the next
    __syncthreads();                                 // done with the tiles before
    {
      const device::Trace mark("load K, V", static_cast<int>(j0 / Bc));
      load_tile<D>(K, j0, keys, t.K);  // 6
      load_tile<D>(V, j0, keys, t.V);
    }

    for (std::int64_t i0 = 0; i0 < Q.rows; i0 += Br) {  // 7
      const int rows = static_cast<int>(min(std::int64_t{Br}, Q.rows - i0));
      if (keys_of_row(args, i0 + rows - 1) <= j0) continue;  // the mask hides the whole tile
      const int tile = static_cast<int>(i0 / Br);
      {
        const device::Trace mark("load Q", tile);
        load_tile<D>(Q, i0, rows, t.Q);  // 8
      }
      __syncthreads();

      {
        const device::Trace mark("S", tile);
        for (int x = me; x < rows * keys; x += threads) {  // 9: S = tau Q K^T
          const int r = x / keys, c = x % keys;
          float sum = 0;
          for (int k = 0; k < D; ++k) sum += t.Q[r][k] * t.K[c][k];
          t.P[r][c] = args.softmax_scale * sum;
        }
      }
      __syncthreads();

      if (me < rows) {  // 10, 11, 13
        const device::Trace mark("softmax", tile);
        const std::int64_t seen = keys_of_row(args, i0 + me) - j0;
        const int n = static_cast<int>(max(std::int64_t{0}, min(std::int64_t{keys}, seen)));
        online_softmax<D>(t, me, n, m[i0 + me], l[i0 + me]);
      }
      __syncthreads();

      const device::Trace mark("O", tile);
      for (int x = me; x < rows * O.width; x += threads) {  // 12
        const int r = x / O.width, c = x % O.width;
        float sum = 0;
        for (int k = 0; k < keys; ++k) sum += t.P[r][k] * t.V[k][c];
        float& o = O.row(i0 + r)[c];
        o = t.keep[r] * o + t.add[r] * sum;
      }
    }
  }

  __syncthreads();
  for (std::int64_t i = me; i < Q.rows; i += threads)  // without a key: -inf + log 0 = -inf
    args.lse[row_number(args, b, h, i)] = m[i] + logf(l[i]);
}
// [end kernel]

std::int64_t rows_of(const CudaArgs& args) {
  return args.batch * args.nheads_q * args.seqlen_q;
}

std::size_t workspace_bytes(const CudaArgs& args) {
  return 2 * sizeof(float) * static_cast<std::size_t>(rows_of(args));
}

Status run(const CudaArgs& args) {
  if (rows_of(args) == 0) return {};
  const dim3 blocks{static_cast<unsigned>(args.nheads_q), static_cast<unsigned>(args.batch)};
  const device::Grid grid{blocks, {threads}, 0, stream_of(args)};
  auto* const m = static_cast<float*>(args.workspace);
  return with_tile_width(args.head_dim, [&](auto D) {
    return device::launch("3b_paper_loops", algorithm_1<D>, grid, args, m, m + rows_of(args));
  });
}

// [snippet bytes]
// Theorem 2, counted: K and V once; and for each tile of keys, Q in, O, m, l in and out, of every
// row of a tile that the mask leaves. N / Bc passes of 3 N d, with Bc = M / 4d: 12 N^2 d^2 / M.
double bytes_moved(const CudaArgs& args) {
  const int D = tile_width(args.head_dim);
  const std::int64_t Bc = M / (4 * D), Br = Bc < D ? Bc : D, N = args.seqlen_q;
  std::int64_t rows_passed = 0, keys_passed = 0;
  for (std::int64_t j0 = 0; N > 0 && j0 < keys_of_row(args, N - 1); j0 += Bc) {
    keys_passed += Bc < args.seqlen_k - j0 ? Bc : args.seqlen_k - j0;
    for (std::int64_t i0 = 0; i0 < N; i0 += Br) {
      const std::int64_t end = i0 + Br < N ? i0 + Br : N;
      if (keys_of_row(args, end - 1) > j0) rows_passed += end - i0;
    }
  }
  const std::int64_t d = args.head_dim;
  const std::int64_t floats_a_head = N * (d + 2)                  // line 2
                                     + keys_passed * 2 * d        // 6
                                     + rows_passed * (3 * d + 4)  // 8, 12, 13
                                     + N * 3;                     // LSE from m and l
  return 4 * static_cast<double>(args.batch * args.nheads_q * floats_a_head);
}
// [end bytes]

}  // namespace

CudaStep paper_loops() {
  return {.name = "3b_paper_loops",
          .idea = "Algorithm 1 as printed: K and V outside, Q inside; O, m and l wait in HBM.",
          .features = {.causal = true, .grouped_heads = true, .f32 = true},
          .run = run,
          .workspace_bytes = workspace_bytes,
          .bytes_moved = bytes_moved};
}

}  // namespace tilewise::stages::inline TILEWISE_TARGET
