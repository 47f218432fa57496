// 4f. The backward pass on tensor cores: Algorithm 2 of FlashAttention-2 (arXiv 2307.08691).
//
// 3d's equations, but a block has one tile of keys, not a head: K, V, dK and dV stay with it, the
// queries pass by, and the blocks of a head meet in dQ only, by atomic additions.
//
//             Bc = 128 keys                       S^T = K Q^T      P^T = exp(scale S^T - LSE)
//   Br rows  [ K V dK dV ]  [ another ]           dP^T = V dO^T    dS^T = P^T o (dP^T - D)
//   Br rows  [   stay    ]  [  block  ]           dV += P^T dO     dK += dS^T Q     dQ += dS K
//
// Why S^T: an accumulator lies over the lanes like an operand A (fragment.hpp). With a row for each
// key, P^T and dS^T are the A of dV and dK as they are, in registers, as P was that of O. From
// S = Q K^T both would have to be transposed, through shared memory. Now only dS goes there: dQ's
// rows are queries, and it sums over keys, which the warps have divided among them.
//
//   A warp has 2048 / D keys and all D columns of their dK and dV, 128 registers a lane; S^T and
//   dP^T of 16 or 64 queries at a time; and of dQ, Br x D, a part of 32 x 32.
//
// The kernel before it is the forward pass, which leaves D = rowsum(dO o O) and zeros for dQ; the
// one behind it rounds dQ. Of grouped heads a block takes in turn all that read its keys.
//
// Contract
//   grid       backward: ceil(seqlen_k / 128) nheads_k batch blocks of 2 D threads, D 64 or 128;
//              before and behind: (ceil(seqlen_q / 64), nheads_q, batch) of 128, of 2 D threads
//   shared     81 or 145 KiB, two blocks a multiprocessor or one; forward 40 or 80 KiB
//   workspace  LSE, D and dQ, floats: D + 2 for each row of whole tiles of queries
//   waits      two __syncthreads() a tile of queries: it has come, a tile ahead; dS is there
//   bits       the same in every run, but for dQ, which adds up in the order in which blocks come
#include "cuda/device/copy.hpp"
#include "cuda/device/epilogue.hpp"
#include "cuda/device/mask.hpp"
#include "cuda/device/operands.hpp"
#include "cuda/device/scheduler.hpp"
#include "cuda/device/shared.hpp"
#include "cuda/device/softmax.hpp"
#include "stages/cuda_halves.hpp"

#include <cstdint>

namespace tilewise::stages::inline TILEWISE_TARGET {
namespace {

using namespace device;

constexpr int Br = 64, Bc = 128, forward_keys = 64, forward_threads = 2 * Br;
constexpr float log2_e = 1.44269504f;

template <int D>
struct Shape {
  static constexpr int M = 128 / D;                 ///< times 16 keys of a warp
  static constexpr int slice = D == 128 ? Br : 16;  ///< queries at a time: what registers leave
  static constexpr int threads = 32 * Bc / (16 * M), blocks = 128 / D;
  static_assert(threads / 32 * 32 * 32 == Br * D, "dQ is 32 x 32 a warp");
};

/// What backward needs of Br queries of a head, and where their dQ adds up: the workspace.
template <int D>
struct QueryTile {
  float rows[2 * Br];  ///< LSE times log2(e), and behind all of them D
  float dQ[Br * D];    ///< without scale, place_of_dq() says where
};

__host__ __device__ Mask mask_of(const CudaArgs& args) {
  return {static_cast<int>(args.seqlen_q), static_cast<int>(args.seqlen_k), args.causal};
}
__host__ __device__ int query_tiles(const CudaArgs& args) {
  return static_cast<int>((args.seqlen_q + Br - 1) / Br);
}
template <int D>
__device__ QueryTile<D>& tile_of(const CudaArgs& args, std::int64_t b, std::int64_t h, int tile) {
  return static_cast<QueryTile<D>*>(
      args.workspace)[(b * args.nheads_q + h) * query_tiles(args) + tile];
}

// ---------------------------------------------------------------------------------------- forward

template <class T, int D>
struct ForwardShared {
  SwizzledTile<T, Br, D> Q;
  SwizzledTile<T, forward_keys, D> K[2], V[2];
};

/// O and LSE, 16 rows a warp; for backward also what backward finds in the workspace.
template <class T, int D>
__global__ void __launch_bounds__(forward_threads) attend_rows(CudaArgs args) {
  auto& shared = shared_memory<ForwardShared<T, D>>();
  const std::int64_t h = blockIdx.y, b = blockIdx.z;
  const auto Q = query_head<const T>(args, args.q, b, h);
  const auto K = key_head<const T>(args, args.k, b, kv_head(args, h));
  const auto V = key_head<const T>(args, args.v, b, kv_head(args, h));
  const Mask mask = mask_of(args);
  const int first = static_cast<int>(blockIdx.x) * Br, own = 16 * warp_index(), i0 = first + own;
  const int rows = mask.seqlen_q - i0;
  const int most_keys = mask.keys_of(min(first + Br, mask.seqlen_q) - 1);

  const auto fetch = [&](int j) {
    const int j0 = j * forward_keys, keys = most_keys - j0;
    if (keys > 0) {
      copy_tile_async<forward_threads>(shared.K[j % 2], K.row(j0), K.stride, keys, K.width);
      copy_tile_async<forward_threads>(shared.V[j % 2], V.row(j0), V.stride, keys, V.width);
    }
    cp_async_commit();
  };
  copy_tile_async<forward_threads>(shared.Q, Q.row(first), Q.stride, rows + own, Q.width);
  fetch(0);
  WarpTile<D> o[1] = {};
  OnlineSoftmax softmax;
  for (int j = 0; j * forward_keys < most_keys; ++j) {
    cp_async_wait<0>();
    __syncthreads();  // tile j has come, and all are done with tile j - 1
    fetch(j + 1);
    WarpTile<forward_keys> s[1] = {};
    multiply_rows<T>(s, shared.Q, own, shared.K[j % 2], 0);
    if (args.softmax_scale < 0) rescale(s[0], {-1, -1});
    if (mask.cuts(i0, j * forward_keys, forward_keys)) mask.apply(s[0], i0, j * forward_keys);
    rescale(o[0], softmax.absorb(s[0], log2_scale_of(args.softmax_scale)));
    TILEWISE_UNROLL
    for (int k = 0; k < forward_keys / 16; ++k) {
      const OperandA p[1] = {as_operand_a<T>(s[0].piece[2 * k], s[0].piece[2 * k + 1])};
      multiply_columns<T>(o, p, shared.V[j % 2], 16 * k, 0);
    }
  }
  cp_async_wait<0>();  // of Q, where there is no key
  const OfRows lse = softmax.finish(o[0]);
  const auto O = query_head<T>(args, args.o, b, h);
  store_tile(o[0], O.row(i0), O.stride, rows, O.width);
  store_lse(lse, args.lse + row_number(args, b, h, i0), rows);
  if (!args.backward) return;
  auto& work = tile_of<D>(args, b, h, first / Br);
  const auto dO = query_head<const T>(args, args.dout, b, h);
  store_lse({lse.row[0] * log2_e, lse.row[1] * log2_e}, work.rows + own, 16);
  store_lse(row_dots(o[0], dO.row(i0), dO.stride, rows, dO.width), work.rows + Br + own, 16);
  for (int n = static_cast<int>(threadIdx.x); n < Br * D / 4; n += forward_threads)
    store_vector(work.dQ + 4 * n, make_float4(0, 0, 0, 0));
}

// --------------------------------------------------------------------------------------- backward

template <class T, int D>
struct BackwardShared {
  SwizzledTile<T, Bc, D> K, V;
  SwizzledTile<T, Br, D> Q[2], dO[2];
  SwizzledTile<T, Bc, Br> dS;  ///< transposed: a row for each key
  float rows[2][2 * Br];       ///< LSE and D, as in QueryTile
};

/// Where a lane's 32 of dQ add up: an instruction, of 32 lanes, adds to a whole line of 128 bytes.
__device__ __forceinline__ int place_of_dq(int number) {
  return (32 * warp_index() + number) * 32 + lane_index();
}

// [snippet scores]
/// S^T becomes P^T, and dP^T becomes dS^T. At `rows` are LSE and D of the first column.
template <int Columns>
__device__ __forceinline__ void to_p_and_ds(WarpTile<Columns>& p, WarpTile<Columns>& ds,
                                            const float* rows, float scale) {
  const int first = accumulator_at(lane_index(), 0).column;
  TILEWISE_UNROLL
  for (int x = 0; x < Columns / 4; ++x) {
    const int piece = x / 2, number = x % 2, column = first + 8 * piece + number;
    const float L = rows[column], D = rows[Br + column];
    for (int row = 0; row < 2; ++row) {
      float &s = p.piece[piece].of_row(row, number), &dp = ds.piece[piece].of_row(row, number);
      s = exp2_approx(fmaf(s, scale, -L));
      dp = s * (dp - D);
    }
  }
}
/// Zeros where a query does not look at a key: a column from `query` on, a row from `key` on. Of a
/// query without keys that is all: its LSE is -inf, and P would have been infinite.
template <int Columns>
__device__ __forceinline__ void hide(WarpTile<Columns>& p, WarpTile<Columns>& ds, const Mask& mask,
                                     int query, int key) {
  const Position mine = accumulator_at(lane_index(), 0);
  TILEWISE_UNROLL
  for (int x = 0; x < Columns / 4; ++x) {
    const int piece = x / 2, number = x % 2, column = mine.column + 8 * piece + number;
    const int keys = mask.keys_of(query + column) - key - mine.row;
    for (int row = 0; row < 2; ++row)
      if (8 * row >= keys)
        p.piece[piece].of_row(row, number) = ds.piece[piece].of_row(row, number) = 0;
  }
}
// [end scores]
// [snippet kernel]
template <class T, int D>
__global__ void __launch_bounds__(Shape<D>::threads, Shape<D>::blocks)
    pass_queries(CudaArgs args, Schedule schedule) {
  constexpr int M = Shape<D>::M, slice = Shape<D>::slice, threads = Shape<D>::threads;
  auto& shared = shared_memory<BackwardShared<T, D>>();
  // Schedule begins with the last tiles; under a causal mask the first keys have the most queries.
  const Work work = schedule.work_of(blockIdx.x);
  const int j0 = (schedule.row_blocks - 1 - work.row_block) * Bc, own = 16 * M * warp_index();
  const Mask mask = mask_of(args);
  const auto K = key_head<const T>(args, args.k, work.batch, work.head_k);
  const auto V = key_head<const T>(args, args.v, work.batch, work.head_k);

  // The tiles that pass: of each head of the group those in which a query looks at one of the keys.
  const int group = static_cast<int>(args.nheads_q / args.nheads_k);
  const int first = min(mask.first_row_of(j0) / Br, query_tiles(args));
  const int of_head = query_tiles(args) - first, tiles = group * of_head;
  const auto head = [&](int n) { return work.head_k * group + n / of_head; };
  const auto fetch = [&](int n) {
    if (n < tiles) {
      const auto Q = query_head<const T>(args, args.q, work.batch, head(n));
      const auto dO = query_head<const T>(args, args.dout, work.batch, head(n));
      const int tile = first + n % of_head, i0 = tile * Br, rows = mask.seqlen_q - i0;
      copy_tile_async<threads>(shared.Q[n % 2], Q.row(i0), Q.stride, rows, Q.width);
      copy_tile_async<threads>(shared.dO[n % 2], dO.row(i0), dO.stride, rows, dO.width);
      const float* const numbers = tile_of<D>(args, work.batch, head(n), tile).rows;
      if (const int at = 4 * static_cast<int>(threadIdx.x); at < 2 * Br)
        cp_async<16>(shared.rows[n % 2] + at, numbers + at);
    }
    cp_async_commit();
  };
  copy_tile_async<threads>(shared.K, K.row(j0), K.stride, mask.seqlen_k - j0, K.width);
  copy_tile_async<threads>(shared.V, V.row(j0), V.stride, mask.seqlen_k - j0, V.width);
  fetch(0);
  WarpTile<D> dK[M] = {}, dV[M] = {};
  for (int n = 0; n < tiles; ++n) {
    cp_async_wait<0>();
    __syncthreads();  // tile n has come, and all have read dS
    fetch(n + 1);     // where tile n - 1 was: since the barrier below nobody has read that
    auto &Q = shared.Q[n % 2], &dO = shared.dO[n % 2];
    const int tile = first + n % of_head;
    const bool cut = mask.cuts(tile * Br, j0, Bc);
    for (int row = 0; row < Br; row += slice) {
      WarpTile<slice> p[M] = {}, ds[M] = {};
      multiply_rows<T>(p, shared.K, own, Q, row);
      multiply_rows<T>(ds, shared.V, own, dO, row);
      for (int m = 0; m < M; ++m) {
        to_p_and_ds(p[m], ds[m], shared.rows[n % 2] + row, args.softmax_scale * log2_e);
        if (cut) hide(p[m], ds[m], mask, tile * Br + row, j0 + own + 16 * m);
      }
      TILEWISE_UNROLL
      for (int k = 0; k < slice / 16; ++k) {
        OperandA a_p[M], a_ds[M];
        for (int m = 0; m < M; ++m) {
          a_p[m] = as_operand_a<T>(p[m].piece[2 * k], p[m].piece[2 * k + 1]);
          a_ds[m] = as_operand_a<T>(ds[m].piece[2 * k], ds[m].piece[2 * k + 1]);
          store_operand_a(a_ds[m], shared.dS, own + 16 * m, row / 8 + 2 * k);
        }
        multiply_columns<T>(dV, a_p, dO, row + 16 * k, 0);
        multiply_columns<T>(dK, a_ds, Q, row + 16 * k, 0);
      }
    }
    __syncthreads();  // all have written dS, and have read Q and dO
    const int below = warp_index() / (D / 32) * 4, part = warp_index() % (D / 32) * 4;
    WarpTile<32> dQ[2] = {};
    TILEWISE_UNROLL
    for (int j = 0; j < Bc; j += 16) {
      OperandA a[2];
      for (int m = 0; m < 2; ++m) a[m] = load_operand_a_transposed(shared.dS, j, below + 2 * m);
      multiply_columns<T>(dQ, a, shared.K, j, part);
    }
    auto& sums = tile_of<D>(args, work.batch, head(n), tile).dQ;
    TILEWISE_UNROLL
    for (int x = 0; x < 32; ++x)
      atomicAdd(sums + place_of_dq(x), dQ[x / 16].piece[x / 4 % 4].value[x % 4]);
  }
  cp_async_wait<0>();  // of K and V, where no query has passed
  T* const dK_out = key_head<T>(args, args.dk, work.batch, work.head_k).row(j0 + own);
  T* const dV_out = key_head<T>(args, args.dv, work.batch, work.head_k).row(j0 + own);
  TILEWISE_UNROLL
  for (int m = 0; m < M; ++m) {
    const int j = 16 * m, keys = mask.seqlen_k - j0 - own - j;
    rescale(dK[m], {args.softmax_scale, args.softmax_scale});
    store_tile(dK[m], dK_out + j * K.stride, K.stride, keys, K.width);
    store_tile(dV[m], dV_out + j * V.stride, V.stride, keys, V.width);
  }
}
// [end kernel]

/// dQ times scale, rounded: a warp takes the part that it added up.
template <class T, int D>
__global__ void __launch_bounds__(Shape<D>::threads) round_dq(CudaArgs args) {
  const int tile = static_cast<int>(blockIdx.x), part = warp_index() % (D / 32) * 32;
  const auto dQ = query_head<T>(args, args.dq, blockIdx.z, blockIdx.y);
  const float* const sums = tile_of<D>(args, blockIdx.z, blockIdx.y, tile).dQ;
  TILEWISE_UNROLL
  for (int m = 0; m < 2; ++m) {
    const int i0 = tile * Br + warp_index() / (D / 32) * 32 + 16 * m;
    const int rows = static_cast<int>(args.seqlen_q) - i0;
    WarpTile<32> some;
    TILEWISE_UNROLL
    for (int x = 0; x < 16; ++x)
      some.piece[x / 4].value[x % 4] = args.softmax_scale * sums[place_of_dq(16 * m + x)];
    store_tile(some, dQ.row(i0) + part, dQ.stride, rows, dQ.width - part);
  }
}

std::size_t workspace_bytes(const CudaArgs& args) {
  const std::size_t tile = args.head_dim <= 64 ? sizeof(QueryTile<64>) : sizeof(QueryTile<128>);
  const std::int64_t tiles = args.batch * args.nheads_q * query_tiles(args);
  return args.backward ? tile * static_cast<std::size_t>(tiles) : 0;
}

Status run(const CudaArgs& args) {
  return with_halves(args, [&](auto number, auto width) -> Status {
    using T = decltype(number);
    constexpr int D = width(), threads = Shape<D>::threads;
    const RowBlocks forward{Br, forward_threads, sizeof(ForwardShared<T, D>)};
    Status status = launch_rows("4f_backward: forward", attend_rows<T, D>, args, forward);
    if (!status.ok() || !args.backward) return status;
    const auto heads = static_cast<int>(args.nheads_k);
    const Schedule schedule{static_cast<int>(args.batch), heads, heads,
                            static_cast<int>((args.seqlen_k + Bc - 1) / Bc), args.causal};
    const Grid grid{{schedule.blocks()}, {threads}, sizeof(BackwardShared<T, D>), stream_of(args)};
    if (schedule.blocks() > 0)
      status = launch("4f_backward", pass_queries<T, D>, grid, args, schedule);
    return status.ok() ? launch_rows("4f_backward: dQ", round_dq<T, D>, args, {Br, threads})
                       : status;
  });
}

// [snippet bytes]
// Forward: bytes_of_row_blocks(). For backward dO, and the workspace written; then K, V, dK, dV
// once, and Q, dO, LSE, D for each pair of tiles that the mask leaves; then dQ, read and rounded.
// Atomic additions, Br D for a pair of tiles, are no copies: the second-level cache adds.
double bytes_moved(const CudaArgs& args) {
  if (!args.backward) return bytes_of_row_blocks(args, Br);
  const Mask mask = mask_of(args);
  const std::int64_t d = args.head_dim, D = d <= 64 ? 64 : 128;
  std::int64_t a_head = 0;
  for (int i0 = 0; i0 < mask.seqlen_q; i0 += Br) {
    const int rows = mask.seqlen_q - i0 < Br ? mask.seqlen_q - i0 : Br;
    a_head += rows * 4 * d + 4 * Br * (2 * D + 2);
    a_head += mask.tiles_of(i0, Br, Bc) * (rows * 4 * d + 4 * Br * 2);
  }
  a_head *= args.batch * args.nheads_q;
  const std::int64_t of_keys = args.batch * args.nheads_k * args.seqlen_k * 8 * d;
  return bytes_of_row_blocks(args, Br) + static_cast<double>(a_head + of_keys);
}
// [end bytes]

}  // namespace

CudaStep fa2_backward() {
  CudaFeatures features = halves;
  features.backward = true;
  return {.name = "4f_backward",
          .idea = "FlashAttention-2's backward: P^T and dS^T stay in registers; dQ by atomics.",
          .features = features,
          .run = run,
          .workspace_bytes = workspace_bytes,
          .bytes_moved = bytes_moved,
          .repeatable_dq = false};
}

}  // namespace tilewise::stages::inline TILEWISE_TARGET
