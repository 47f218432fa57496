// 3d. The backward pass by recomputation: Algorithm 4 of FlashAttention.
//
// Forward (3a's, a thread a row) leaves O and LSE, and no P. Then, with 2e's equations,
//
//   D_i = dO_i . O_i                        equation 4 of appendix B.2; at the end of forward here
//   for each tile of keys j:                K, V stay in shared memory; dK, dV in registers
//     for each tile of queries i:             S  = tau Q_i K_j^T     P  = exp(S - LSE_i)
//                                             dP = dO_i V_j^T        dS = P o (dP - D_i)
//                                             dV_j += P^T dO_i       dK_j += tau dS^T Q_i
//                                             dQ_i += tau dS K_j     in HBM
//
//                 keys:  tile j = 0     tile 1
//   rows 0..Br        [ K V dK dV  ]  [          ]     Q, dO, LSE, D pass by; dQ comes, grows, goes
//   rows Br..2 Br     [    stay    ]  [   then   ]
//
// Of the printed algorithm it leaves out dropout, keeps m + log l in place of m and l, and takes D
// out of the inner loop, which fetched O once a tile for it.
//
// Contract
//   grid       forward: (ceil(seqlen_q / 128), nheads_q, batch) blocks of 128 threads;
//              backward: (nheads_k, batch), a block a key head: it alone adds to that head's dK and
//              dV and to the dQ of the query heads that read it, in one order. No atomics, and the
//              same bits in every run; and most of a GPU idles when there are few heads.
//   shared     forward 2 tiles of 16 keys; backward Q, K, V, dO, P, dS: 27 to 43 KiB, static
//   workspace  D, batch nheads_q seqlen_q floats
//   waits      three __syncthreads() for a pair of tiles: free, Q and dO are there, P and dS are
#include "cuda/device/trace.hpp"
#include "stages/cuda_heads.hpp"

#include <cmath>
#include <cstdint>

namespace tilewise::stages::inline TILEWISE_TARGET {
namespace {

constexpr int threads = 128;
constexpr float minus_infinity = -INFINITY;

// ---------------------------------------------------------------------------------------- forward

constexpr int forward_keys = 16;

/// O and LSE as in 3a. For backward also D, and zeros in dQ, to which every tile of keys adds.
template <int D>
__global__ void __launch_bounds__(threads) attend_rows(CudaArgs args, float* all_D) {
  alignas(16) __shared__ float K[forward_keys][D];
  alignas(16) __shared__ float V[forward_keys][D];
  const std::int64_t h = blockIdx.y, b = blockIdx.z;
  const auto Q = query_head<const float>(args, args.q, b, h);
  const auto keys = key_head<const float>(args, args.k, b, kv_head(args, h));
  const auto values = key_head<const float>(args, args.v, b, kv_head(args, h));
  const std::int64_t i0 = static_cast<std::int64_t>(blockIdx.x) * threads, i = i0 + threadIdx.x;
  const bool mine = i < args.seqlen_q;
  const std::int64_t my_keys = mine ? keys_of_row(args, i) : 0;
  const std::int64_t most_keys = keys_of_row(args, min(i0 + threads, args.seqlen_q) - 1);

  float q[D], o[D], m = minus_infinity, l = 0;
  TILEWISE_UNROLL
  for (int c = 0; c < D; ++c) {
    q[c] = mine && c < Q.width ? args.softmax_scale * Q.row(i)[c] : 0;
    o[c] = 0;
  }
  for (std::int64_t j0 = 0; j0 < most_keys; j0 += forward_keys) {
    __syncthreads();
    const int rows = static_cast<int>(min(std::int64_t{forward_keys}, most_keys - j0));
    for (int x = threadIdx.x; x < rows * D; x += threads) {
      const int j = x / D, c = x % D;
      K[j][c] = c < keys.width ? keys.row(j0 + j)[c] : 0;
      V[j][c] = c < values.width ? values.row(j0 + j)[c] : 0;
    }
    __syncthreads();
    const int n = static_cast<int>(min(std::int64_t{rows}, my_keys - j0));
    for (int j = 0; j < n; ++j) {
      float s = 0;
      TILEWISE_UNROLL
      for (int c = 0; c < D; ++c) s += q[c] * K[j][c];
      const float m_new = fmaxf(m, s), alpha = __expf(m - m_new), p = __expf(s - m_new);
      l = alpha * l + p;
      TILEWISE_UNROLL
      for (int c = 0; c < D; ++c) o[c] = alpha * o[c] + p * V[j][c];
      m = m_new;
    }
  }
  if (!mine) return;

  const float unit = l > 0 ? 1 / l : 0;  // no key: O = 0
  float* const O = query_head<float>(args, args.o, b, h).row(i);
  const std::int64_t row = row_number(args, b, h, i);
  args.lse[row] = l > 0 ? m + logf(l) : minus_infinity;
  TILEWISE_UNROLL
  for (int c = 0; c < D; ++c)
    if (c < Q.width) O[c] = o[c] * unit;
  if (!args.backward) return;
  const float* const dO = query_head<const float>(args, args.dout, b, h).row(i);
  float* const dQ = query_head<float>(args, args.dq, b, h).row(i);
  float sum = 0;
  TILEWISE_UNROLL
  for (int c = 0; c < D; ++c) {
    if (c >= Q.width) continue;
    sum += dO[c] * (o[c] * unit);
    dQ[c] = 0;
  }
  all_D[row] = sum;
}

// --------------------------------------------------------------------------------------- backward

// [snippet tiles]
template <int D>
struct Tiles {
  static constexpr int B = D == 128 ? 16 : 32;  ///< Br and Bc
  // Columns more than needed against bank conflicts: of Q, dO, K, V a warp reads one column of up
  // to 8 rows; to P and dS it writes 8 columns of 4 rows.
  float Q[B][D + 1], dO[B][D + 1], K[B][D + 1], V[B][D + 1];
  float P[B][B + 8], dS[B][B + 8];
  float lse[B], D_row[B];
};
static_assert(sizeof(Tiles<32>) <= 48 * 1024 && sizeof(Tiles<64>) <= 48 * 1024 &&
                  sizeof(Tiles<128>) <= 48 * 1024,
              "static shared memory of a block: 48 KiB");

/// A thread's part of a matrix of B rows and D columns: rows y, y + 16, columns x, x + 8, x + 16 ..
template <int D>
struct Part {
  static constexpr int R = Tiles<D>::B / 16, W = D / 8;
  float at[R][W];
};
// [end tiles]

/// Rows first..first + rows of X, and zeros below: what is past the end is multiplied with P = 0.
template <int D>
__device__ void load_tile(Head<const float> X, std::int64_t first, int rows, float (*tile)[D + 1]) {
  for (int x = threadIdx.x; x < Tiles<D>::B * D; x += threads) {
    const int r = x / D, c = x % D;
    tile[r][c] = r < rows && c < X.width ? X.row(first + r)[c] : 0;
  }
}

// [snippet scores]
/// P and dS of the tile, element by element of this thread's. Row r sees the first keys_of(r).
template <int D, class Keys>
__device__ void recompute(Tiles<D>& t, int y, int x, float scale, Keys keys_of) {
  constexpr int B = Tiles<D>::B, R = B / 16, C = B / 8;
  float S[R][C] = {}, dP[R][C] = {};
  TILEWISE_UNROLL_4
  for (int k = 0; k < D; ++k) {
    TILEWISE_UNROLL
    for (int i = 0; i < R; ++i) {
      const float q = t.Q[y + 16 * i][k], g = t.dO[y + 16 * i][k];
      TILEWISE_UNROLL
      for (int j = 0; j < C; ++j) {
        S[i][j] += q * t.K[x + 8 * j][k];
        dP[i][j] += g * t.V[x + 8 * j][k];
      }
    }
  }
  TILEWISE_UNROLL
  for (int i = 0; i < R; ++i) {
    const int r = y + 16 * i;
    const std::int64_t n = keys_of(r);
    TILEWISE_UNROLL
    for (int j = 0; j < C; ++j) {
      const int c = x + 8 * j;
      const float p = c < n ? __expf(scale * S[i][j] - t.lse[r]) : 0;
      t.P[r][c] = p;
      t.dS[r][c] = c < n ? scale * p * (dP[i][j] - t.D_row[r]) : 0;  // with tau, for dQ and dK
    }
  }
}
// [end scores]

// [snippet kernel]
template <int D>
__global__ void __launch_bounds__(threads) algorithm_4(CudaArgs args, const float* all_D) {
  constexpr int B = Tiles<D>::B, R = Part<D>::R, W = Part<D>::W;
  __shared__ Tiles<D> t;
  const std::int64_t kv = blockIdx.x, b = blockIdx.y, group = args.nheads_q / args.nheads_k;
  const auto K = key_head<const float>(args, args.k, b, kv);
  const auto V = key_head<const float>(args, args.v, b, kv);
  const int y = threadIdx.x / 8, x = threadIdx.x % 8;

  for (std::int64_t j0 = 0; j0 < K.rows; j0 += B) {
    const int keys = static_cast<int>(min(std::int64_t{B}, K.rows - j0));
    __syncthreads();
    {
      const device::Trace mark("load K, V", static_cast<int>(j0 / B));
      load_tile<D>(K, j0, keys, t.K);
      load_tile<D>(V, j0, keys, t.V);
    }
    Part<D> dK = {}, dV = {};

    for (std::int64_t h = kv * group; h < (kv + 1) * group; ++h) {
      const auto dQ = query_head<float>(args, args.dq, b, h);
      for (std::int64_t i0 = 0; i0 < args.seqlen_q; i0 += B) {
        const int rows = static_cast<int>(min(std::int64_t{B}, args.seqlen_q - i0));
        if (keys_of_row(args, i0 + rows - 1) <= j0) continue;  // the mask hides the whole tile
        const int tile = static_cast<int>(i0 / B);
        __syncthreads();
        {
          const device::Trace mark("load Q, dO", tile);
          load_tile<D>(query_head<const float>(args, args.q, b, h), i0, rows, t.Q);
          load_tile<D>(query_head<const float>(args, args.dout, b, h), i0, rows, t.dO);
          if (const int r = threadIdx.x; r < rows) {
            t.lse[r] = args.lse[row_number(args, b, h, i0 + r)];
            t.D_row[r] = all_D[row_number(args, b, h, i0 + r)];
          }
        }
        __syncthreads();
        {
          const device::Trace mark("P and dS", tile);
          recompute<D>(t, y, x, args.softmax_scale,
                       [&](int r) { return r < rows ? keys_of_row(args, i0 + r) - j0 : 0; });
        }
        __syncthreads();

        const device::Trace mark("dV, dK, dQ", tile);
        TILEWISE_UNROLL
        for (int i = 0; i < R; ++i) {
          const int own = y + 16 * i;  // a key for dK and dV, a query for dQ
          float dq[W] = {};
          for (int k = 0; k < B; ++k) {
            const float p = t.P[k][own], ds = t.dS[k][own], ds_own = t.dS[own][k];
            TILEWISE_UNROLL
            for (int c = 0; c < W; ++c) {
              dV.at[i][c] += p * t.dO[k][x + 8 * c];
              dK.at[i][c] += ds * t.Q[k][x + 8 * c];
              dq[c] += ds_own * t.K[k][x + 8 * c];
            }
          }
          TILEWISE_UNROLL
          for (int c = 0; c < W; ++c)
            if (own < rows && x + 8 * c < dQ.width) dQ.row(i0 + own)[x + 8 * c] += dq[c];
        }
      }
    }

    const auto dK_out = key_head<float>(args, args.dk, b, kv);
    const auto dV_out = key_head<float>(args, args.dv, b, kv);
    TILEWISE_UNROLL
    for (int i = 0; i < R; ++i) {
      TILEWISE_UNROLL
      for (int c = 0; c < W; ++c) {
        if (y + 16 * i >= keys || x + 8 * c >= K.width) continue;
        dK_out.row(j0 + y + 16 * i)[x + 8 * c] = dK.at[i][c];
        dV_out.row(j0 + y + 16 * i)[x + 8 * c] = dV.at[i][c];
      }
    }
  }
}
// [end kernel]

std::size_t workspace_bytes(const CudaArgs& args) {
  return args.backward
             ? sizeof(float) * static_cast<std::size_t>(args.batch * args.nheads_q * args.seqlen_q)
             : 0;
}

Status run(const CudaArgs& args) {
  auto* const row_D = static_cast<float*>(args.workspace);
  return with_tile_width(args.head_dim, [&](auto D) -> Status {
    const Status status =
        launch_rows("3d_backward: forward", attend_rows<D>, args, {threads, threads}, row_D);
    if (!status.ok() || !args.backward || args.batch * args.nheads_k * args.seqlen_k == 0)
      return status;
    const dim3 blocks{static_cast<unsigned>(args.nheads_k), static_cast<unsigned>(args.batch)};
    const device::Grid grid{blocks, {threads}, 0, stream_of(args)};
    return device::launch("3d_backward", algorithm_4<D>, grid, args, row_D);
  });
}

// [snippet bytes]
// Theorem 5, counted. Forward as 3a; for D dO once more, D and the zeros of dQ. Backward: K, V, dK
// and dV once a key head; for each tile that the mask leaves Q, dO, LSE, D, and dQ both ways.
double bytes_moved(const CudaArgs& args) {
  const double forward = bytes_of_row_blocks(args, threads);
  if (!args.backward) return forward;
  const std::int64_t d = args.head_dim, N = args.seqlen_q, B = tile_width(d) == 128 ? 16 : 32;
  std::int64_t a_head = N * (2 * d + 1);
  for (std::int64_t i0 = 0; i0 < N; i0 += B) {
    const std::int64_t end = i0 + B < N ? i0 + B : N;
    a_head += (keys_of_row(args, end - 1) + B - 1) / B * (end - i0) * (4 * d + 2);
  }
  const std::int64_t of_keys = args.batch * args.nheads_k * args.seqlen_k * 4 * d;
  return forward + 4 * static_cast<double>(args.batch * args.nheads_q * a_head + of_keys);
}
// [end bytes]

}  // namespace

CudaStep fa1_backward() {
  return {.name = "3d_backward",
          .idea = "Algorithm 4: P again from O's LSE, tile by tile; dQ grows in HBM.",
          .features = {.causal = true, .grouped_heads = true, .backward = true, .f32 = true},
          .run = run,
          .workspace_bytes = workspace_bytes,
          .bytes_moved = bytes_moved};
}

}  // namespace tilewise::stages::inline TILEWISE_TARGET
