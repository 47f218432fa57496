// 3c. Warp tiles: the 32 threads of a warp share 16 rows, and each computes a small rectangle.
//
// In 3a a number of K that comes from shared memory serves one product of each thread. Here a
// thread has 4 rows and 8 keys: 4 + 8 numbers serve 32 products. A row then belongs to 8 lanes, and
// its maximum goes around among them by shuffles.
//
//                        keys: lane x of 8 has x, x + 8, x + 16, ...
//   rows of a warp:      x = 0  1  2  3  4  5  6  7  0  1  2 ...
//     y, y + 4, y + 8,     [ l0 l1 l2 l3 l4 l5 l6 l7 l0 l1 ..      y = 0
//     y + 12 belong to     [ l8 l9 ..                              y = 1       lane = 8 y + x
//     the lanes with y     [ l16 ..                                y = 2, and l24 .. for y = 3
//
// The loops are 3a's, rows outside: m, l and O stay in registers, and nothing waits in HBM. (In the
// paper's order the same tiles would move 3b's bytes. FlashAttention-2 swapped the loops for that
// reason, and gave each warp rows of its own, as here: its sections 3.1 and 3.3.)
//
// Contract
//   grid     (ceil(seqlen_q / 64), nheads_q, batch) blocks of 4 warps
//   shared   Q, one tile that K and V take turns in, P: 36, 52, 60 KiB for D = 32, 64, 128. Above
//            48 KiB a kernel has to ask for it: device::launch does. A T4 has 64.
//   waits    four __syncthreads() a tile: free, K is there, K done with, V is there. P is written
//            and read by one warp, and the last two order that as well.
//   memory   no workspace; the same bits in every run
#include "cuda/device/shared.hpp"
#include "cuda/device/trace.hpp"
#include "stages/cuda_heads.hpp"

#include <cmath>
#include <cstdint>

namespace tilewise::stages::inline TILEWISE_TARGET {
namespace {

// [snippet configuration]
constexpr int warps = 4, threads = warps * 32, Br = 64;
constexpr int R = 4;  ///< rows of a thread: y, y + 4, y + 8, y + 12 of its warp's 16
constexpr unsigned whole_warp = 0xffffffff;
constexpr float minus_infinity = -INFINITY;

template <int D>
struct Tiles {
  static constexpr int Bc = D == 128 ? 32 : 64;
  static constexpr int C = Bc / 8;  ///< keys of a thread
  static constexpr int W = D / 8;   ///< columns of O of a thread
  // Columns more than needed, so that rows begin in different banks: the 8 rows of K that a warp
  // reads a column of, in 8 groups of 4 banks; the 4 rows of P to which it writes 8 columns, in 4
  // groups of 8. Rows stay multiples of 16 bytes: nvcc can take four numbers a load.
  float Q[Br][D + 4], KV[Bc][D + 4], P[Br][Bc + 8];
};
static_assert(Br == warps * R * 4, "8 lanes a row, R rows a thread: a warp has 4 R rows");
static_assert(sizeof(Tiles<32>) <= 64 * 1024 && sizeof(Tiles<64>) <= 64 * 1024 &&
                  sizeof(Tiles<128>) <= 64 * 1024,
              "a T4 has 64 KiB of shared memory for a block");
// [end configuration]

/// What of the problem a thread works at. Its rows of the block: row, row + 4, row + 8, row + 12.
template <int D>
struct Mine {
  int row, x;
  float m[R], l[R];  ///< l: the sum over this thread's own keys, until the end
  float o[R][Tiles<D>::W];

  /// Which column of O is the c-th here: of each 32 the four from 4 x.
  __device__ int column(int c) const { return 4 * x + c / 4 * 32 + c % 4; }
};

/// Rows first..first + rows of X, and zeros up to `all` rows: what is masked is still multiplied.
template <int D>
__device__ void load_tile(Head<const float> X, std::int64_t first, std::int64_t rows, int all,
                          float (*tile)[D + 4]) {
  for (int n = threadIdx.x; n < all * D; n += threads) {
    const int j = n / D, c = n % D;
    tile[j][c] = j < rows && c < X.width ? X.row(first + j)[c] : 0;
  }
}

// [snippet products]
/// S = Q K^T: for each k 4 + C numbers from shared memory, 4 C products.
template <int D>
__device__ __forceinline__ void scores(const Tiles<D>& t, const Mine<D>& my,
                                       float (&s)[R][Tiles<D>::C]) {
  TILEWISE_UNROLL_4
  for (int k = 0; k < D; ++k) {
    float q[R];
    TILEWISE_UNROLL
    for (int i = 0; i < R; ++i) q[i] = t.Q[my.row + 4 * i][k];
    TILEWISE_UNROLL
    for (int j = 0; j < Tiles<D>::C; ++j) {
      const float key = t.KV[my.x + 8 * j][k];
      TILEWISE_UNROLL
      for (int i = 0; i < R; ++i) s[i][j] += q[i] * key;
    }
  }
}

/// O += P V: for each key 4 + W numbers, 4 W products.
template <int D>
__device__ __forceinline__ void add_values(const Tiles<D>& t, Mine<D>& my) {
  TILEWISE_UNROLL_4
  for (int k = 0; k < Tiles<D>::Bc; ++k) {
    float p[R];
    TILEWISE_UNROLL
    for (int i = 0; i < R; ++i) p[i] = t.P[my.row + 4 * i][k];
    TILEWISE_UNROLL
    for (int c = 0; c < Tiles<D>::W; ++c) {
      const float v = t.KV[k][my.column(c)];
      TILEWISE_UNROLL
      for (int i = 0; i < R; ++i) my.o[i][c] += p[i] * v;
    }
  }
}
// [end products]

// [snippet softmax]
/// The thread's scores of a tile become P, in shared memory; m, l and O follow. n: how many of the
/// tile's keys each of its rows sees.
template <int D>
__device__ __forceinline__ void online_softmax(Tiles<D>& t, Mine<D>& my, float scale,
                                               const std::int64_t (&n)[R],
                                               float (&s)[R][Tiles<D>::C]) {
  TILEWISE_UNROLL
  for (int i = 0; i < R; ++i) {
    float m = my.m[i];
    TILEWISE_UNROLL
    for (int j = 0; j < Tiles<D>::C; ++j) {
      s[i][j] = my.x + 8 * j < n[i] ? scale * s[i][j] : minus_infinity;
      m = fmaxf(m, s[i][j]);
    }
    TILEWISE_UNROLL
    for (int with = 1; with < 8; with *= 2)  // among the 8 lanes of the row
      m = fmaxf(m, __shfl_xor_sync(whole_warp, m, with));
    const float shift = m == minus_infinity ? 0 : m;  // no key yet: -inf - -inf is NaN
    const float alpha = __expf(my.m[i] - shift);
    my.m[i] = m;
    my.l[i] *= alpha;
    TILEWISE_UNROLL
    for (int j = 0; j < Tiles<D>::C; ++j) {
      const float p = __expf(s[i][j] - shift);
      my.l[i] += p;
      t.P[my.row + 4 * i][my.x + 8 * j] = p;
    }
    TILEWISE_UNROLL
    for (int c = 0; c < Tiles<D>::W; ++c) my.o[i][c] *= alpha;
  }
}
// [end softmax]

// [snippet kernel]
template <int D>
__global__ void __launch_bounds__(threads) attend_tiles(CudaArgs args) {
  auto& t = device::shared_memory<Tiles<D>>();
  const std::int64_t h = blockIdx.y, b = blockIdx.z;
  const auto K = key_head<const float>(args, args.k, b, kv_head(args, h));
  const auto V = key_head<const float>(args, args.v, b, kv_head(args, h));
  const std::int64_t i0 = static_cast<std::int64_t>(blockIdx.x) * Br;
  const std::int64_t max_keys = keys_of_row(args, min(i0 + Br, args.seqlen_q) - 1);
  const int warp = threadIdx.x / 32, y = threadIdx.x % 32 / 8;
  Mine<D> my = {warp * 16 + y, static_cast<int>(threadIdx.x % 8), {}, {}, {}};
  TILEWISE_UNROLL
  for (int i = 0; i < R; ++i) my.m[i] = minus_infinity;

  load_tile<D>(query_head<const float>(args, args.q, b, h), i0, args.seqlen_q - i0, Br, t.Q);
  for (std::int64_t j0 = 0; j0 < max_keys; j0 += Tiles<D>::Bc) {
    const int tile = static_cast<int>(j0 / Tiles<D>::Bc);
    __syncthreads();  // done with V of the tile before
    {
      const device::Trace mark("load K", tile);
      load_tile<D>(K, j0, max_keys - j0, Tiles<D>::Bc, t.KV);
    }
    __syncthreads();
    {
      const device::Trace mark("S and P", tile);
      float s[R][Tiles<D>::C] = {};
      scores(t, my, s);
      std::int64_t n[R];
      TILEWISE_UNROLL
      for (int i = 0; i < R; ++i) n[i] = min(keys_of_row(args, i0 + my.row + 4 * i), max_keys) - j0;
      online_softmax(t, my, args.softmax_scale, n, s);
    }
    __syncthreads();  // done with K
    {
      const device::Trace mark("load V", tile);
      load_tile<D>(V, j0, max_keys - j0, Tiles<D>::Bc, t.KV);
    }
    __syncthreads();
    const device::Trace mark("O += P V", tile);
    add_values(t, my);
  }

  const auto O = query_head<float>(args, args.o, b, h);
  TILEWISE_UNROLL
  for (int i = 0; i < R; ++i) {
    float l = my.l[i];
    TILEWISE_UNROLL
    for (int with = 1; with < 8; with *= 2) l += __shfl_xor_sync(whole_warp, l, with);
    const std::int64_t at = i0 + my.row + 4 * i;
    if (at >= args.seqlen_q) continue;
    const float unit = l > 0 ? 1 / l : 0;  // no key: O = 0
    TILEWISE_UNROLL
    for (int c = 0; c < Tiles<D>::W; ++c)
      if (my.column(c) < O.width) O.row(at)[my.column(c)] = my.o[i][c] * unit;
    if (my.x == 0)
      args.lse[row_number(args, b, h, at)] = l > 0 ? my.m[i] + logf(l) : minus_infinity;
  }
}
// [end kernel]

Status run(const CudaArgs& args) {
  return with_tile_width(args.head_dim, [&](auto D) {
    return launch_rows("3c_warp_tiles", attend_tiles<D>, args, {Br, threads, sizeof(Tiles<D>)});
  });
}

}  // namespace

CudaStep warp_tiles() {
  return {.name = "3c_warp_tiles",
          .idea = "A thread computes 4 rows by 8 keys, so that a load serves several products.",
          .features = {.causal = true, .grouped_heads = true, .f32 = true},
          .run = run,
          .workspace_bytes = nullptr,
          .bytes_moved = [](const CudaArgs& args) { return bytes_of_row_blocks(args, Br); }};
}

}  // namespace tilewise::stages::inline TILEWISE_TARGET
