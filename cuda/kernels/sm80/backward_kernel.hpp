// The backward kernels for sm_80 and later: FlashAttention-2 (Dao 2023, arXiv 2307.08691, Algorithm
// 2), for head_dim 64, 128 and 256 of f16 or bf16, full or causal. The course's 4f is where they
// come from (stages/4_fa2_cuda/README.md); what they have beyond that: any strides, warps that
// divide the queries too, a barrier less, and a dQ that can be the same in every run.
//
// A block has Bc keys of a head. K, V, dK and dV stay with it, tiles of Br queries pass by:
//
//     S^T = K Q^T      P^T = exp2(c S^T - LSE)        dV += P^T dO      dQ += dS K
//     dP^T = V dO^T    dS^T = P^T o (dP^T - D)        dK += dS^T Q
//
// dV and dK of a warp are some keys by some columns, and sum over all queries; so what it computed
// of P^T and dS^T, the same keys by some queries, it multiplies from its registers, and what its
// neighbours of the same keys did from shared memory. dQ sums over keys: all warps' dS^T. With
// 4 x 2 warps, and 0 and 1 those that share keys:
//
//                  S^T, dP^T                dV, dK                dQ
//              queries   0   32        columns  0   64      columns 0  32  64  96
//     keys  0          [ 0 | 1 ]              [ 0 | 1 ]   queries 0 [ 0 | 1 | 2 | 3 ]
//          32          [ 2 | 3 ]              [ 2 | 3 ]          32 [ 4 | 5 | 6 | 7 ]
//          64          [ 4 | 5 ]              [ 4 | 5 ]
//          96          [ 6 | 7 ]              [ 6 | 7 ]
//
// Contract
//   launches   prepare_backward: a block for each tile of queries; backward_kernel: for each tile
//              of keys, with all heads that read them; finish_backward: for each tile of queries
//   shared     BackwardTile::shared_bytes: of D 64 81 KiB (two blocks); 128 177, or 80.5 (two on an
//              A100); 256 217, or 144.5
//   copies     tile n + stages as soon as all are done with tile n, while dQ goes on
//   waits      a tile: the block, for dS and for the next tile, before dQ; the warps that share
//              keys, for each other's P and dS, when they have used their own; and the block again,
//              before the next S, where dS is there only once
//   workspace  BackwardHead, then BackwardQueries, D + 2 floats a query: written by the first
//              launch
//   memory     dQ is added up in the workspace by atomics, in the order in which blocks come, and
//              rounded by the last launch. All else has the same bits in every run
//   in turn    if deterministic, a block adds to a tile of dQ when those of all later keys have:
//              blocks take their work by numbers, so that whom one waits for has begun before it
#pragma once

#include "cuda/device/copy.hpp"
#include "cuda/device/epilogue.hpp"
#include "cuda/device/mask.hpp"
#include "cuda/device/operands.hpp"
#include "cuda/device/ptx/barrier.hpp"
#include "cuda/device/ptx/reduce.hpp"
#include "cuda/device/scheduler.hpp"
#include "cuda/device/shared.hpp"
#include "cuda/device/softmax.hpp"
#include "cuda/kernels/sm80/backward.hpp"

namespace tilewise::cuda::sm80::inline TILEWISE_TARGET {

// ------------------------------------------------------------------------------ who lies where

template <class T, class Tile>
struct BackwardShared {
  device::SwizzledTile<T, Tile::Bc, Tile::D> K, V;
  device::SwizzledTile<T, Tile::Br, Tile::D> Q[Tile::stages], dO[Tile::stages];
  /// dS^T, and behind it P^T, a row for each key; P^T only where warps share keys.
  device::SwizzledTile<T, Tile::Bc, Tile::Br> exchanged[Tile::ds_tiles + (Tile::query_warps > 1)];
  float rows[Tile::stages][2 * Tile::Br];  ///< as in BackwardQueries
};

/// The rows of a head of a tensor.
template <class T>
struct BackwardRows {
  T* data;
  std::int64_t stride;

  __device__ BackwardRows(T* tensor, const Layout& at, int b, int h)
      : data(tensor + b * at.batch + h * at.head), stride(at.row) {}
  __device__ T* from(int row) const { return data + row * stride; }
};

template <class Tile>
__host__ __device__ int query_tiles(const BackwardProblem& problem) {
  return (problem.seqlen_q + Tile::Br - 1) / Tile::Br;
}
template <class Tile>
__device__ BackwardQueries<Tile>& queries_of(const BackwardProblem& problem, int b, int h,
                                             int tile) {
  const std::int64_t head = static_cast<std::int64_t>(b) * problem.nheads_q + h;
  return reinterpret_cast<BackwardQueries<Tile>*>(
      static_cast<char*>(problem.workspace) +
      backward_head_bytes)[head * query_tiles<Tile>(problem) + tile];
}
inline __device__ BackwardHead& backward_head(const BackwardProblem& problem) {
  return *static_cast<BackwardHead*>(problem.workspace);
}

/// The tile of queries of a block of the first and the last launch.
struct QueryWork {
  int batch, head, tile;
};
template <class Tile>
__device__ QueryWork query_work(const BackwardProblem& problem) {
  const int tiles = query_tiles<Tile>(problem), block = static_cast<int>(blockIdx.x);
  const int head = block / tiles;
  return {head / problem.nheads_q, head % problem.nheads_q, block % tiles};
}

/// Where the warp's part of dQ begins: rows, and columns.
template <class Tile>
__device__ __forceinline__ device::Position part_of_dq() {
  constexpr int beside = Tile::D / Tile::dq_columns;  // the last % shows the compiler how few
  return {device::warp_index() / beside % (Tile::Br / 32) * 32,
          device::warp_index() % beside * Tile::dq_columns};
}
/// Where the warp's accumulator `piece` of 16 rows number `height` adds up.
template <class Tile>
__device__ __forceinline__ float* sums_of_dq(BackwardQueries<Tile>& queries, int height,
                                             int piece) {
  constexpr int pieces = Tile::dq_columns / 8;
  return queries.dQ + ((device::warp_index() * 2 + height) * pieces + piece) * 128;
}

// --------------------------------------------------------------------------- the first launch

constexpr int prepare_threads = 128;

/// LSE to base 2, D = rowsum(dO o O), and zeros for dQ. Rows that are not there, and those without
/// keys, get an LSE of +inf: their P is then 0.
template <class T, class Tile>
__global__ void __launch_bounds__(prepare_threads) prepare_backward(BackwardProblem problem) {
  constexpr int Br = Tile::Br, lanes = Tile::D / 8;  // 16 bytes of a row each
  const int thread = static_cast<int>(threadIdx.x);
  if (blockIdx.x == 0 && thread == 0) {
    backward_head(problem).head.error = 0;
    backward_head(problem).next = 0;
  }
  if (problem.batch * problem.nheads_q * query_tiles<Tile>(problem) == 0) return;
  const auto [b, h, tile] = query_work<Tile>(problem);
  auto& queries = queries_of<Tile>(problem, b, h, tile);
  const BackwardRows O(static_cast<const T*>(problem.o), problem.o_layout, b, h);
  const BackwardRows dO(static_cast<const T*>(problem.dout), problem.dout_layout, b, h);
  const std::int64_t head = static_cast<std::int64_t>(b) * problem.nheads_q + h;
  const float* const LSE = problem.lse + head * problem.seqlen_q;
  const int chunk = thread % lanes;
  TILEWISE_UNROLL
  for (int row = thread / lanes; row < Br; row += prepare_threads / lanes) {
    const int i = tile * Br + row;
    const bool inside = i < problem.seqlen_q;
    const uint4 o = device::load_vector_if<uint4>(inside, O.from(i) + 8 * chunk);
    const uint4 grad = device::load_vector_if<uint4>(inside, dO.from(i) + 8 * chunk);
    float sum = 0;
    const auto add = [&](std::uint32_t left, std::uint32_t right) {
      const float2 x = device::unpack<T>(left), y = device::unpack<T>(right);
      sum += x.x * y.x + x.y * y.y;
    };
    add(o.x, grad.x);
    add(o.y, grad.y);
    add(o.z, grad.z);
    add(o.w, grad.w);
    for (int with = lanes / 2; with > 0; with /= 2) sum += __shfl_xor_sync(~0u, sum, with);
    if (chunk != 0) continue;
    const float lse = inside ? LSE[i] : -INFINITY;
    queries.rows[row] = lse == -INFINITY ? INFINITY : lse * problem.lse_unit;
    queries.rows[Br + row] = sum;
  }
  TILEWISE_UNROLL
  for (int n = 4 * thread; n < Br * Tile::D; n += 4 * prepare_threads)
    device::store_vector(queries.dQ + n, make_float4(0, 0, 0, 0));
  if (thread == 0) queries.done = 0;
}

// ------------------------------------------------------------------------- P and dS of a slice

/// S^T becomes P^T. At `rows` are LSE of the first column and those behind it.
template <int Columns>
__device__ __forceinline__ void to_p(device::WarpTile<Columns>& s, const float* rows, float scale) {
  rows += device::accumulator_at(device::lane_index(), 0).column;
  TILEWISE_UNROLL
  for (int n = 0; n < s.pieces; ++n) {
    const float2 lse = device::load_vector<float2>(rows + 8 * n);
    for (int row = 0; row < 2; ++row) {
      float &left = s.piece[n].of_row(row, 0), &right = s.piece[n].of_row(row, 1);
      left = device::exp2_approx(fmaf(left, scale, -lse.x));
      right = device::exp2_approx(fmaf(right, scale, -lse.y));
    }
  }
}

/// dP^T becomes dS^T. At `rows` is D.
template <int Columns>
__device__ __forceinline__ void to_ds(device::WarpTile<Columns>& dp,
                                      const device::WarpTile<Columns>& p, const float* rows) {
  rows += device::accumulator_at(device::lane_index(), 0).column;
  TILEWISE_UNROLL
  for (int n = 0; n < dp.pieces; ++n) {
    const float2 d = device::load_vector<float2>(rows + 8 * n);
    for (int row = 0; row < 2; ++row) {
      float &left = dp.piece[n].of_row(row, 0), &right = dp.piece[n].of_row(row, 1);
      left = p.piece[n].of_row(row, 0) * (left - d.x);
      right = p.piece[n].of_row(row, 1) * (right - d.y);
    }
  }
}

/// Zeros where a query does not look at a key: a column from `query` on, a row from `key` on.
template <int Columns>
__device__ __forceinline__ void hide(device::WarpTile<Columns>& p, device::WarpTile<Columns>& ds,
                                     const device::Mask& mask, int query, int key) {
  const device::Position mine = device::accumulator_at(device::lane_index(), 0);
  TILEWISE_UNROLL
  for (int x = 0; x < Columns / 4; ++x) {
    const int piece = x / 2, number = x % 2;
    const int keys = mask.keys_of(query + mine.column + 8 * piece + number) - key - mine.row;
    for (int row = 0; row < 2; ++row)
      if (8 * row >= keys)
        p.piece[piece].of_row(row, number) = ds.piece[piece].of_row(row, number) = 0;
  }
}

// ------------------------------------------------------------------------------- dQ, in turn

/// Until `before` blocks have added; for all of the block.
inline __device__ void wait_for_turn(std::uint32_t& done, std::uint32_t before) {
  if (threadIdx.x == 0) {
    while (atomicAdd(&done, 0u) != before) {
    }
    __threadfence();
  }
  __syncthreads();
}
/// All of the block have added.
inline __device__ void end_turn(std::uint32_t& done) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) atomicAdd(&done, 1u);
}

// ------------------------------------------------------------------------------------ the kernel
// [snippet kernel]
template <class T, class Tile, bool Causal>
__global__ void __launch_bounds__(Tile::threads, Tile::blocks)
    backward_kernel(BackwardProblem problem, device::Schedule schedule) {
  constexpr int Br = Tile::Br, Bc = Tile::Bc, D = Tile::D, M = Tile::heights;
  constexpr int stages = Tile::stages, threads = Tile::threads;
  auto& shared = device::shared_memory<BackwardShared<T, Tile>>();
  static_assert(sizeof shared == Tile::shared_bytes);

  // Under a causal mask the first keys have the most queries: they begin. In turn they end, so
  // that a tile's first turn is the block's whose diagonal it has.
  unsigned number = blockIdx.x;
  if (problem.deterministic) {
    if (threadIdx.x == 0)
      device::store_vector(shared.exchanged[0].element,
                           atomicAdd(&backward_head(problem).next, 1u));
    __syncthreads();
    number = device::load_vector<unsigned>(shared.exchanged[0].element);
  }
  const device::Work work = schedule.work_of(number);
  const int key_block =
      Causal && problem.deterministic ? work.row_block : schedule.row_blocks - 1 - work.row_block;
  const int j0 = key_block * Bc;
  const device::Mask mask = {problem.seqlen_q, problem.seqlen_k, Causal};

  // What is the warp's: keys, and of these queries of S, and columns of dV and dK.
  const int beside = device::warp_index() % Tile::query_warps;
  const int keys_together = device::warp_index() / Tile::query_warps;
  const int own = keys_together * Tile::warp_keys, queries = beside * Tile::warp_queries;
  const int chunk = beside * Tile::warp_columns / 8;

  // The tiles that pass: of each head of the group those in which a query looks at one of the keys.
  const int group = problem.nheads_q / problem.nheads_k;
  const int first = min(mask.first_row_of(j0) / Br, query_tiles<Tile>(problem));
  const int behind = query_tiles<Tile>(problem);
  const int tiles = group * (behind - first);
  struct Passing {  // counted, not divided: the loop is short of instructions and registers
    int head, tile;
    __device__ void next(int first, int behind) {
      if (++tile == behind) {
        tile = first;
        ++head;
      }
    }
  };
  Passing now = {work.head_k * group, first}, fetched = now;
  const auto fetch = [&](int n) {
    if (n < tiles) {
      const BackwardRows Q(static_cast<const T*>(problem.q), problem.q_layout, work.batch,
                           fetched.head);
      const BackwardRows dO(static_cast<const T*>(problem.dout), problem.dout_layout, work.batch,
                            fetched.head);
      const int i0 = fetched.tile * Br, rows = problem.seqlen_q - i0;
      device::copy_tile_async<threads>(shared.Q[n % stages], Q.from(i0), Q.stride, rows, D);
      device::copy_tile_async<threads>(shared.dO[n % stages], dO.from(i0), dO.stride, rows, D);
      const float* const numbers =
          queries_of<Tile>(problem, work.batch, fetched.head, fetched.tile).rows;
      if (const int at = 4 * static_cast<int>(threadIdx.x); at < 2 * Br)
        device::cp_async<16>(shared.rows[n % stages] + at, numbers + at);
      fetched.next(first, behind);
    }
    device::cp_async_commit();
  };
  const BackwardRows K(static_cast<const T*>(problem.k), problem.k_layout, work.batch, work.head_k);
  const BackwardRows V(static_cast<const T*>(problem.v), problem.v_layout, work.batch, work.head_k);
  device::copy_tile_async<threads>(shared.K, K.from(j0), K.stride, problem.seqlen_k - j0, D);
  device::copy_tile_async<threads>(shared.V, V.from(j0), V.stride, problem.seqlen_k - j0, D);
  for (int n = 0; n < stages; ++n) fetch(n);

  device::WarpTile<Tile::warp_columns> dK[M], dV[M];
  TILEWISE_UNROLL
  for (int m = 0; m < M; ++m) {
    dK[m].clear();
    dV[m].clear();
  }
  const float scale = problem.softmax_scale * 1.44269504f;
  if constexpr (Tile::ds_tiles == 2) {
    device::cp_async_wait<stages - 1>();
    __syncthreads();  // tile 0 has come
  }
  for (int n = 0; n < tiles; ++n) {
    if constexpr (Tile::ds_tiles == 1) {
      device::cp_async_wait<stages - 1>();
      __syncthreads();  // tile n has come, and all have read dS
    }
    auto &Q = shared.Q[n % stages], &dO = shared.dO[n % stages];
    auto &dS = shared.exchanged[n % Tile::ds_tiles], &P = shared.exchanged[Tile::ds_tiles];
    const int i0 = now.tile * Br;
    TILEWISE_UNROLL
    for (int slice = 0; slice < Tile::warp_queries; slice += Tile::slice) {
      const int row = queries + slice;
      const float* const numbers = shared.rows[n % stages] + row;
      device::WarpTile<Tile::slice> p[M], ds[M];
      TILEWISE_UNROLL
      for (int m = 0; m < M; ++m) {
        p[m].clear();
        ds[m].clear();
      }
      device::multiply_rows<T>(p, shared.K, own, Q, row);
      TILEWISE_UNROLL
      for (int m = 0; m < M; ++m) to_p(p[m], numbers, scale);
      device::multiply_rows<T>(ds, shared.V, own, dO, row);
      TILEWISE_UNROLL
      for (int m = 0; m < M; ++m) to_ds(ds[m], p[m], numbers + Br);
      if (mask.cuts(i0 + row, j0 + own, Tile::warp_keys)) {
        TILEWISE_UNROLL
        for (int m = 0; m < M; ++m) hide(p[m], ds[m], mask, i0 + row, j0 + own + 16 * m);
      }
      TILEWISE_UNROLL
      for (int k = 0; k < Tile::slice / 16; ++k) {
        device::OperandA a_p[M], a_ds[M];
        TILEWISE_UNROLL
        for (int m = 0; m < M; ++m) {
          a_p[m] = device::as_operand_a<T>(p[m].piece[2 * k], p[m].piece[2 * k + 1]);
          a_ds[m] = device::as_operand_a<T>(ds[m].piece[2 * k], ds[m].piece[2 * k + 1]);
          device::store_operand_a(a_ds[m], dS, own + 16 * m, row / 8 + 2 * k);
          if constexpr (Tile::query_warps > 1)
            device::store_operand_a(a_p[m], P, own + 16 * m, row / 8 + 2 * k);
        }
        device::multiply_columns<T>(dV, a_p, dO, row + 16 * k, chunk);
        device::multiply_columns<T>(dK, a_ds, Q, row + 16 * k, chunk);
      }
    }
    if constexpr (Tile::query_warps > 1) {
      device::barrier_sync(1 + keys_together, 32 * Tile::query_warps);  // the others' P and dS
      TILEWISE_UNROLL
      for (int other = 1; other < Tile::query_warps; ++other) {
        const int row = (beside + other) % Tile::query_warps * Tile::warp_queries;
        TILEWISE_UNROLL
        for (int k = 0; k < Tile::warp_queries / 16; ++k) {
          device::OperandA a_p[M], a_ds[M];
          TILEWISE_UNROLL
          for (int m = 0; m < M; ++m) {
            a_p[m] = device::load_operand_a(P, own + 16 * m, row / 8 + 2 * k);
            a_ds[m] = device::load_operand_a(dS, own + 16 * m, row / 8 + 2 * k);
          }
          device::multiply_columns<T>(dV, a_p, dO, row + 16 * k, chunk);
          device::multiply_columns<T>(dK, a_ds, Q, row + 16 * k, chunk);
        }
      }
    }
    if constexpr (Tile::ds_tiles == 2) device::cp_async_wait<stages - 2>();
    __syncthreads();    // dS is there; all are done with Q and dO; with two dS, the next has come
    fetch(n + stages);  // where tile n was
    device::WarpTile<Tile::dq_columns> dQ[2];
    TILEWISE_UNROLL
    for (auto& half : dQ) half.clear();
    const device::Position part = part_of_dq<Tile>();
    TILEWISE_UNROLL
    for (int j = 0; j < Bc; j += 16) {
      device::OperandA a[2];
      TILEWISE_UNROLL
      for (int m = 0; m < 2; ++m)
        a[m] = device::load_operand_a_transposed(dS, j, part.row / 8 + 2 * m);
      device::multiply_columns<T>(dQ, a, shared.K, j, part.column / 8);
    }
    auto& sums = queries_of<Tile>(problem, work.batch, now.head, now.tile);
    if (problem.deterministic)
      wait_for_turn(sums.done, static_cast<unsigned>(mask.tiles_of(i0, Br, Bc) - 1 - key_block));
    TILEWISE_UNROLL
    for (int x = 0; x < Tile::dq_columns / 4; ++x) {
      const int height = x % 2, piece = x / 2;
      device::reduce_add(sums_of_dq(sums, height, piece), dQ[height].piece[piece].value);
    }
    if (problem.deterministic) end_turn(sums.done);
    now.next(first, behind);
  }
  device::cp_async_wait<0>();  // of K and V, where no query has passed

  const BackwardRows dK_out(static_cast<T*>(problem.dk), problem.dk_layout, work.batch,
                            work.head_k);
  const BackwardRows dV_out(static_cast<T*>(problem.dv), problem.dv_layout, work.batch,
                            work.head_k);
  TILEWISE_UNROLL
  for (int m = 0; m < M; ++m) {
    const int j = j0 + own + 16 * m, rows = problem.seqlen_k - j;
    device::rescale(dK[m], {problem.softmax_scale, problem.softmax_scale});
    device::store_tile(dK[m], dK_out.from(j) + 8 * chunk, dK_out.stride, rows, D);
    device::store_tile(dV[m], dV_out.from(j) + 8 * chunk, dV_out.stride, rows, D);
  }
}
// [end kernel]

// ---------------------------------------------------------------------------- the last launch

/// dQ times scale, rounded: a warp takes the part that it added up.
template <class T, class Tile>
__global__ void __launch_bounds__(Tile::threads) finish_backward(BackwardProblem problem) {
  const auto [b, h, tile] = query_work<Tile>(problem);
  auto& queries = queries_of<Tile>(problem, b, h, tile);
  const BackwardRows dQ(static_cast<T*>(problem.dq), problem.dq_layout, b, h);
  const device::Position part = part_of_dq<Tile>();
  TILEWISE_UNROLL
  for (int height = 0; height < 2; ++height) {
    const int i = tile * Tile::Br + part.row + 16 * height;
    device::WarpTile<Tile::dq_columns> some;
    TILEWISE_UNROLL
    for (int piece = 0; piece < some.pieces; ++piece)
      device::load_sums(some.piece[piece].value, sums_of_dq(queries, height, piece));
    device::rescale(some, {problem.softmax_scale, problem.softmax_scale});
    device::store_tile(some, dQ.from(i) + part.column, dQ.stride, problem.seqlen_q - i,
                       Tile::dq_columns);
  }
}

// ---------------------------------------------------------------------------------- all of them

template <class T, class Tile, bool Causal>
Status launch_backward(const BackwardProblem& problem, device::StreamHandle stream) {
  const auto queries =
      static_cast<unsigned>(problem.batch * problem.nheads_q * query_tiles<Tile>(problem));
  const device::Grid before = {{queries > 0 ? queries : 1}, {prepare_threads}, 0, stream};
  Status status =
      device::launch("cuda.sm80 backward: D", prepare_backward<T, Tile>, before, problem);

  // Of a head of keys Q, dO and dQ's sums are what its blocks read at the same time.
  const int group = problem.nheads_k > 0 ? problem.nheads_q / problem.nheads_k : 0;
  const std::int64_t bytes =
      std::int64_t{group} * problem.seqlen_q * Tile::D * (2 * sizeof(T) + sizeof(float));
  const device::Schedule schedule = {problem.batch,    problem.nheads_k,
                                     problem.nheads_k, (problem.seqlen_k + Tile::Bc - 1) / Tile::Bc,
                                     Causal,           device::Schedule::section_of(bytes, 1)};
  const device::Grid grid = {
      {schedule.blocks()}, {Tile::threads}, sizeof(BackwardShared<T, Tile>), stream};
  if (status.ok() && schedule.blocks() > 0)
    status = device::launch("cuda.sm80 backward", backward_kernel<T, Tile, Causal>, grid, problem,
                            schedule);
  const device::Grid behind = {{queries}, {Tile::threads}, 0, stream};
  if (status.ok() && queries > 0)
    status = device::launch("cuda.sm80 backward: dQ", finish_backward<T, Tile>, behind, problem);
  return status;
}

}  // namespace tilewise::cuda::sm80::inline TILEWISE_TARGET
