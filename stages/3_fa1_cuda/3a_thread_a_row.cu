// 3a. A thread a row.
//
// 2b with 128 rows at a time: each thread owns one query row, with its q, o, m and l in registers,
// and never hears of another row. What the threads of a block share is the walk along the keys: a
// tile of K and V is brought into shared memory once and read by all.
//
//     shared memory              registers of thread t: row i0 + t
//   K  Bc x D  [key j0    ]      q[D]  s[Bc]          s = q K^T, a tile's scores
//              [key j0 + 1]  ->                       m, l      as in 2b, once a tile
//   V  Bc x D  [  ...     ]      o[D]                 o = alpha o + p V
//
// Contract
//   grid      (ceil(seqlen_q / Br), nheads_q, batch) blocks of Br = 128 threads
//   shared    2 Bc D floats, static: 4, 8, 16 KiB for D = 32, 64, 128
//   D         head_dim rounded up to 32, 64 or 128; the columns between are zeros
//   waits     __syncthreads() before a tile is overwritten, and before it is read; nothing else
//   memory    no workspace; each output has one writer, so every run gives the same bits
#include "cuda/device/trace.hpp"
#include "stages/cuda_heads.hpp"

#include <cmath>
#include <cstdint>

namespace tilewise::stages::inline TILEWISE_TARGET {
namespace {

constexpr int Br = 128;  ///< rows, and threads, of a block
constexpr int Bc = 16;   ///< keys of a tile: s[Bc] stands in registers beside q and o
constexpr float minus_infinity = -INFINITY;

static_assert(Br % 32 == 0, "whole warps");

// [snippet load]
/// Rows first..first + rows of X. Neighbouring threads take neighbouring columns: a warp's 32
/// loads lie side by side in memory, and come in four sectors of 32 bytes.
template <int D>
__device__ void load_tile(Head<const float> X, std::int64_t first, int rows, float (*tile)[D]) {
  for (int x = threadIdx.x; x < rows * D; x += Br) {
    const int j = x / D, c = x % D;
    tile[j][c] = c < X.width ? X.row(first + j)[c] : 0;
  }
}
// [end load]

// [snippet kernel]
template <int D>
__global__ void __launch_bounds__(Br) attend_rows(CudaArgs args) {
  alignas(16) __shared__ float K[Bc][D];
  alignas(16) __shared__ float V[Bc][D];
  const std::int64_t h = blockIdx.y, b = blockIdx.z;
  const auto Q = query_head<const float>(args, args.q, b, h);
  const auto keys = key_head<const float>(args, args.k, b, kv_head(args, h));
  const auto values = key_head<const float>(args, args.v, b, kv_head(args, h));

  const std::int64_t i0 = static_cast<std::int64_t>(blockIdx.x) * Br, i = i0 + threadIdx.x;
  const bool mine = i < args.seqlen_q;  // the last block has threads without a row: they only load
  const std::int64_t my_keys = mine ? keys_of_row(args, i) : 0;
  const std::int64_t last_row = min(i0 + Br, args.seqlen_q) - 1;
  const std::int64_t most_keys = keys_of_row(args, last_row);  // the last row sees the most

  float q[D], o[D], m = minus_infinity, l = 0;
  TILEWISE_UNROLL
  for (int c = 0; c < D; ++c) {
    q[c] = mine && c < Q.width ? args.softmax_scale * Q.row(i)[c] : 0;
    o[c] = 0;
  }

  for (std::int64_t j0 = 0; j0 < most_keys; j0 += Bc) {
    const int rows = static_cast<int>(min(std::int64_t{Bc}, most_keys - j0));
    __syncthreads();  // everybody has done with the tile before
    {
      const device::Trace mark("load K, V", static_cast<int>(j0 / Bc));
      load_tile(keys, j0, rows, K);
      load_tile(values, j0, rows, V);
    }
    __syncthreads();  // and sees this one
    const device::Trace mark("compute", static_cast<int>(j0 / Bc));
    const int n = static_cast<int>(min(std::int64_t{rows}, my_keys - j0));
    if (n <= 0) continue;  // the diagonal passes above this row: nothing visible in the tile

    float s[Bc], m_new = m;
    TILEWISE_UNROLL
    for (int j = 0; j < Bc; ++j) {
      s[j] = minus_infinity;
      if (j >= n) continue;
      float sum = 0;
      TILEWISE_UNROLL
      for (int c = 0; c < D; ++c) sum += q[c] * K[j][c];  // one address for the warp: a broadcast
      s[j] = sum;
      m_new = fmaxf(m_new, sum);
    }

    const float alpha = __expf(m - m_new);  // exp(-inf) = 0 at the first tile
    l *= alpha;
    TILEWISE_UNROLL
    for (int c = 0; c < D; ++c) o[c] *= alpha;
    TILEWISE_UNROLL
    for (int j = 0; j < Bc; ++j) {
      if (j >= n) continue;
      const float p = __expf(s[j] - m_new);
      l += p;
      TILEWISE_UNROLL
      for (int c = 0; c < D; ++c) o[c] += p * V[j][c];
    }
    m = m_new;
  }

  if (!mine) return;
  const float unit = l > 0 ? 1 / l : 0;  // no key: O = 0
  const auto O = query_head<float>(args, args.o, b, h);
  TILEWISE_UNROLL
  for (int c = 0; c < D; ++c)
    if (c < O.width) O.row(i)[c] = o[c] * unit;
  args.lse[row_number(args, b, h, i)] = l > 0 ? m + logf(l) : minus_infinity;
}
// [end kernel]

Status run(const CudaArgs& args) {
  return with_tile_width(args.head_dim, [&](auto D) {
    return launch_rows("3a_thread_a_row", attend_rows<D>, args, {Br, Br});
  });
}

}  // namespace

CudaStep thread_a_row() {
  return {.name = "3a_thread_a_row",
          .idea = "Each thread owns a query row in registers; tiles of K and V are shared by 128.",
          .features = {.causal = true, .grouped_heads = true, .f32 = true},
          .run = run,
          .workspace_bytes = nullptr,
          .bytes_moved = [](const CudaArgs& args) { return bytes_of_row_blocks(args, Br); }};
}

}  // namespace tilewise::stages::inline TILEWISE_TARGET
