// 4a. The loops swapped: Algorithm 1 of FlashAttention-2, with 3b's tiles, threads and shared
// memory.
//
// What differs from 3b is what FlashAttention-2 changed (Dao 2023, arXiv 2307.08691). The loop over
// rows is outside and becomes the grid, a block a row block, of which none waits for another
// (section 3.2). O is a sum not yet divided by l while it grows, with m and l beside it on the chip
// until the last tile of keys, and what is left of m and l is LSE (section 3.1.1). The comments
// give the paper's line numbers.
//
//                  keys:  tile 0      tile 1      tile 2
//   block 0: Q stays      K V  ---->  K V  ---->  K V      O, m, l stay: nothing comes back
//   block 1: Q stays           ---->       ---->
//
// What that saves, beside 3b, for N rows and keys and one head:
//   HBM          2 N d + N + 2 N d N / Br floats, for 3b's N (d + 5) + 2 N d + (3 d + 4) N N / Bc.
//                Br = Bc = M / 4d at d = 64 and 128: 8 N^2 d^2 / M, for 12. At d = 32, where Br is
//                d and Bc twice that, it is more: 2 / 32 for 3 / 64. Then Br ought to be larger,
//                and can: rows no longer cost any shared memory but Q's and P's.
//   operations   that are no part of a product, for a row and a tile, beside those of the scores
//                themselves: 1 exp for 3b's 2; no division for 1; a multiplication for each of d
//                columns of O for 2. The quotient O / l is once a row, not once a row and tile.
//   workspace    none: what was m and l is LSE = m + log l, a float a row, for backward
//
// Contract
//   grid     (ceil(seqlen_q / Br), nheads_q, batch) blocks of 128 threads
//   shared   Q, K, V, P, and a factor for each row: 25 to 29 KiB, static
//   waits    four __syncthreads() a tile: the last one is done with, K and V are there, S is there,
//            P is there; and two for O / l
//   memory   no workspace; each output has one writer, so every run gives the same bits
#include "cuda/device/trace.hpp"
#include "stages/cuda_heads.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace tilewise::stages::inline TILEWISE_TARGET {
namespace {

// Line 1, as in 3b: Bc = M / 4d, Br = min(Bc, d), for a fast memory of M floats.
constexpr int M = 32 * 1024 / sizeof(float);
template <int D>
struct Blocks {
  static constexpr int Bc = M / (4 * D), Br = Bc < D ? Bc : D;
};

constexpr int threads = 128;
constexpr float minus_infinity = -INFINITY;

/// A column more than needed: the lanes of a warp that read one column of 32 rows meet 32 banks.
template <int D>
struct Tiles {
  static constexpr int Br = Blocks<D>::Br, Bc = Blocks<D>::Bc;
  float Q[Br][D + 1], K[Bc][D + 1], V[Bc][D + 1];
  float P[Br][Bc + 1];  ///< S, and then P~
  float keep[Br];       ///< of line 10; at the end that of line 12
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
/// Line 9 for row r of the tile, which sees the tile's first n keys. Returns line 10's factor.
template <int D>
__device__ float online_softmax(Tiles<D>& t, int r, int n, float& m, float& l) {
  float m_new = m;
  for (int c = 0; c < n; ++c) m_new = fmaxf(m_new, t.P[r][c]);
  const float shift = m_new == minus_infinity ? 0 : m_new;  // no key yet: -inf - -inf is NaN
  const float alpha = __expf(m - shift);                    // 0 at the first tile
  m = m_new;
  l *= alpha;
  for (int c = 0; c < Tiles<D>::Bc; ++c) {
    t.P[r][c] = c < n ? __expf(t.P[r][c] - shift) : 0;
    l += t.P[r][c];
  }
  return alpha;
}
// [end softmax]

// [snippet kernel]
template <int D>
__global__ void __launch_bounds__(threads) algorithm_1(CudaArgs args) {
  constexpr int Br = Tiles<D>::Br, Bc = Tiles<D>::Bc;
  static_assert(Br * D % threads == 0, "as many numbers of O for every thread");
  __shared__ Tiles<D> t;
  const std::int64_t h = blockIdx.y, b = blockIdx.z;
  const auto K = key_head<const float>(args, args.k, b, kv_head(args, h));
  const auto V = key_head<const float>(args, args.v, b, kv_head(args, h));
  const int me = threadIdx.x;

  const std::int64_t i0 = static_cast<std::int64_t>(blockIdx.x) * Br;  // 3: the grid
  const int rows = static_cast<int>(min(std::int64_t{Br}, args.seqlen_q - i0));
  const std::int64_t most_keys = keys_of_row(args, i0 + rows - 1);  // the last row sees the most
  load_tile<D>(query_head<const float>(args, args.q, b, h), i0, rows, t.Q);  // 4
  float o[Br * D / threads] = {};                                            // 5: on the chip
  float m = minus_infinity, l = 0;                                           // of row `me`

  for (std::int64_t j0 = 0; j0 < most_keys; j0 += Bc) {  // 6
    const int keys = static_cast<int>(min(std::int64_t{Bc}, most_keys - j0));
    const int tile = static_cast<int>(j0 / Bc);
    __syncthreads();  // done with the tiles before
    {
      const device::Trace mark("load K, V", tile);
      load_tile<D>(K, j0, keys, t.K);  // 7
      load_tile<D>(V, j0, keys, t.V);
    }
    __syncthreads();

    {
      const device::Trace mark("S", tile);
      for (int x = me; x < rows * keys; x += threads) {  // 8: S = tau Q K^T
        const int r = x / keys, c = x % keys;
        float sum = 0;
        for (int k = 0; k < D; ++k) sum += t.Q[r][k] * t.K[c][k];
        t.P[r][c] = args.softmax_scale * sum;
      }
    }
    __syncthreads();

    if (me < rows) {  // 9
      const device::Trace mark("softmax", tile);
      const std::int64_t seen = keys_of_row(args, i0 + me) - j0;
      const int n = static_cast<int>(max(std::int64_t{0}, min(std::int64_t{keys}, seen)));
      t.keep[me] = online_softmax<D>(t, me, n, m, l);
    }
    __syncthreads();

    const device::Trace mark("O", tile);
    TILEWISE_UNROLL
    for (int n = 0; n < Br * D / threads; ++n) {  // 10, without the inverse that is printed there
      const int r = (me + threads * n) / D, c = (me + threads * n) % D;
      if (r >= rows) continue;
      float sum = t.keep[r] * o[n];
      for (int k = 0; k < keys; ++k) sum += t.P[r][k] * t.V[k][c];
      o[n] = sum;
    }
  }

  __syncthreads();
  if (me < rows) {
    t.keep[me] = l > 0 ? 1 / l : 0;  // no key: O = 0
    args.lse[row_number(args, b, h, i0 + me)] = l > 0 ? m + logf(l) : minus_infinity;  // 13, 15
  }
  __syncthreads();
  const auto O = query_head<float>(args, args.o, b, h);
  TILEWISE_UNROLL
  for (int n = 0; n < Br * D / threads; ++n) {  // 12, 14
    const int r = (me + threads * n) / D, c = (me + threads * n) % D;
    if (r < rows && c < O.width) O.row(i0 + r)[c] = t.keep[r] * o[n];
  }
}
// [end kernel]

Status run(const CudaArgs& args) {
  return with_tile_width(args.head_dim, [&](auto D) {
    return launch_rows("4a_swapped_loops", algorithm_1<D>, args, {Blocks<D>::Br, threads});
  });
}

// As 3a's: Q, O and LSE once, K and V once a row block.
double bytes_moved(const CudaArgs& args) {
  const int D = tile_width(args.head_dim);
  return bytes_of_row_blocks(args, std::min(M / (4 * D), D));
}

}  // namespace

CudaStep swapped_loops() {
  return {.name = "4a_swapped_loops",
          .idea = "3b with its loops swapped: a block a row block, O undivided on the chip.",
          .features = {.causal = true, .grouped_heads = true, .f32 = true},
          .run = run,
          .workspace_bytes = nullptr,
          .bytes_moved = bytes_moved};
}

}  // namespace tilewise::stages::inline TILEWISE_TARGET
