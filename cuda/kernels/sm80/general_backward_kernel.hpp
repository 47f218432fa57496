// The general backward pass, for sm_80 and later: every semantic of core/attention.hpp, chosen by
// flags as it runs; for what the fast family does not compute. Correct first: the tiles of
// general_backward_tile.hpp, made anew by each kernel.
//
//   row_dots_kernel   D = rowsum(dO o O), into the workspace
//   dkv_kernel        a tile of keys of a key head: all heads of its group, all rows pass by
//   dq_kernel         a tile of rows of a head: all keys pass by
//   dbias, dsinks     general_backward_scores.hpp
//
// Contract
//   grid       a block for each tile of rows, or keys, of each head: 64, at D 256 32. Sequences may
//              be shorter than the grid is made for: their blocks end at once
//   shared     Q, dO, K, V of a tile, P, dS: 49, 81, 69 KiB; and the tile's block mask
//   threads    8 warps, at D 256 4: of a sum a warp has 16 rows by half of the columns, in
//              registers (dK and dV: D / 4 numbers a lane each)
//   workspace  WorkspaceHead, and a float for each row and head
//   waits      of a tile three __syncthreads(): all are done with the last one; it has come; P and
//              dS are there
//   bits       the same in every run: no number is added by two blocks, no atomics but for errors
//
// A pair that may not look is multiplied as P = 0 and dS = 0: NaN in its K, V, Q or dO reaches the
// others of the tile. Rows and keys behind a sequence's end, and tiles that nobody looks into, are
// not read.
#pragma once

#include "cuda/kernels/sm80/general_backward_scores.hpp"
#include "cuda/kernels/sm80/general_backward_tile.hpp"

#include <algorithm>
#include <cstdint>

namespace tilewise::cuda::sm80::inline TILEWISE_TARGET {
namespace general {

// ----------------------------------------------------------------------------------------------- D

struct RowDots {
  static constexpr int warps = 4, threads = 32 * warps, rows = 16;
};

/// A warp a row: its lanes take columns 32 apart, and add up in one order.
template <class T, int D>
__global__ void __launch_bounds__(RowDots::threads)
    row_dots_kernel(const TILEWISE_GRID_CONSTANT BackwardProblem backward) {
  const Problem& problem = backward.problem;
  const BackwardPlace place(tiles_of(problem.most_q, RowDots::rows), problem.nheads_q);
  const Sequence sequence = sequence_of(problem, place.b);
  const int first = place.tile * RowDots::rows;
  const int end =
      first + RowDots::rows < sequence.seqlen_q ? first + RowDots::rows : sequence.seqlen_q;
  for (int i = first + device::warp_index(); i < end; i += RowDots::warps) {
    const std::int64_t o = query_offset(problem.o, sequence, i, place.head);
    const std::int64_t dout = query_offset(problem.dout, sequence, i, place.head);
    float sum = 0;
    for (int column = device::lane_index(); column < problem.head_dim_v; column += 32)
      sum = fmaf(read_column(problem.o, o, column), read_column(problem.dout, dout, column), sum);
    for (int with = 16; with > 0; with /= 2) sum += __shfl_xor_sync(~0u, sum, with);
    if (device::lane_index() == 0)
      backward.row_dots[row_dot_place(backward, sequence, i, place.head)] = sum;
  }
}

// ----------------------------------------------------------------------------------- dK and dV, dQ

template <class T, int D>
struct GradientsShared : BackwardOperands<T, D> {
  device::SwizzledTile<T, BackwardTile<D>::size, BackwardTile<D>::size> P, dS;
};
static_assert(sizeof(GradientsShared<device::f16, 128>) <= 99 * 1024, "fits an RTX 3090");
static_assert(sizeof(GradientsShared<device::f16, 256>) <= 99 * 1024, "fits an RTX 3090");

template <class T, int D>
__global__ void __launch_bounds__(BackwardTile<D>::threads, BackwardTile<D>::blocks)
    dkv_kernel(const TILEWISE_GRID_CONSTANT BackwardProblem backward) {
  using Tile = BackwardTile<D>;
  constexpr int size = Tile::size;
  auto& shared = device::shared_memory<GradientsShared<T, D>>();
  const Problem& problem = backward.problem;
  const BackwardPlace place(tiles_of(problem.most_k, size), problem.nheads_k);
  const int kv_head = place.head, first_key = place.tile * size;
  const Sequence sequence = sequence_of(problem, place.b);
  if (first_key >= sequence.seqlen_k) return;
  const float v_factor = factor_at(problem.v_descale, place.b, kv_head);

  fetch_keys<T, D>(shared, problem, sequence, kv_head, first_key);
  device::WarpTile<D / 2> dK[1], dV[1];
  dK[0].clear();
  dV[0].clear();
  // A row without keys whose O is the mean of V looks at all of them.
  Range rows = reaching_rows(problem, sequence, first_key, size);
  if (problem.empty_output == EmptyRowOutput::mean_v) rows = {0, sequence.seqlen_q};
  for (int h = kv_head * problem.group; h < (kv_head + 1) * problem.group; ++h) {
    const Scores scores(problem, sequence, h, kv_head);
    const Dropout dropout(problem, place.b, h);
    for (int first = rows.begin / size * size; first < rows.end; first += size) {
      __syncthreads();  // all are done with the last tile
      if (!fetch_bits<D>(shared, problem, sequence, h, first, first_key) &&
          problem.empty_output != EmptyRowOutput::mean_v)
        continue;
      fetch_rows<T, D>(shared, backward, sequence, h, first);
      device::cp_async_wait<0>();
      __syncthreads();  // it has come
      const Gradients<D> parts = gradients<T, D>(shared, problem, sequence, scores, dropout,
                                                 v_factor, Of::dot_product, first, first_key);
      store_part<T, D>(parts.p[0], shared.P);
      store_part<T, D>(parts.ds[0], shared.dS);
      __syncthreads();  // P and dS are there
      TILEWISE_UNROLL
      for (int row = 0; row < size; row += 16) {
        const device::OperandA p[1] = {
            device::load_operand_a_transposed(shared.P, row, Tile::own() / 8)};
        const device::OperandA ds[1] = {
            device::load_operand_a_transposed(shared.dS, row, Tile::own() / 8)};
        device::multiply_columns<T>(dV, p, shared.dO, row, Tile::side() * (D / 16));
        device::multiply_columns<T>(dK, ds, shared.Q, row, Tile::side() * (D / 16));
      }
    }
  }
  device::cp_async_wait<0>();  // of K and V, where no row has passed

  const int count = there<D>(sequence.seqlen_k, first_key);
  const auto store = [&](const device::WarpTile<D / 2>& sum, const Tensor& to, int width,
                         float factor) {
    if (!to.exists()) return;
    store_sum<T, D>(sum, to, width, factor, key_offset(problem, to, sequence, first_key, kv_head),
                    count);
  };
  store(dK[0], problem.dk, problem.head_dim,
        problem.softmax_scale * factor_at(problem.q_descale, place.b, kv_head));
  store(dV[0], problem.dv, problem.head_dim_v, 1);
}

template <class T, int D>
__global__ void __launch_bounds__(BackwardTile<D>::threads, 2)
    dq_kernel(const TILEWISE_GRID_CONSTANT BackwardProblem backward) {
  using Tile = BackwardTile<D>;
  constexpr int size = Tile::size;
  auto& shared = device::shared_memory<GradientsShared<T, D>>();
  const Problem& problem = backward.problem;
  const int tiles = tiles_of(problem.most_q, size);
  const BackwardPlace place(tiles, problem.nheads_q);
  // The last rows of a causal call have the most keys: they come first.
  const int h = place.head, kv_head = h / problem.group, first = (tiles - 1 - place.tile) * size;
  const Sequence sequence = sequence_of(problem, place.b);
  if (first >= sequence.seqlen_q) return;
  const float v_factor = factor_at(problem.v_descale, place.b, kv_head);

  fetch_rows<T, D>(shared, backward, sequence, h, first);
  device::WarpTile<D / 2> dQ[1];
  dQ[0].clear();
  const Scores scores(problem, sequence, h, kv_head);
  const Dropout dropout(problem, place.b, h);
  const Range keys = reachable_keys(problem, sequence, first, size);
  for (int first_key = keys.begin / size * size; first_key < keys.end; first_key += size) {
    __syncthreads();  // all are done with the last tile
    if (!fetch_bits<D>(shared, problem, sequence, h, first, first_key)) continue;
    fetch_keys<T, D>(shared, problem, sequence, kv_head, first_key);
    device::cp_async_wait<0>();
    __syncthreads();  // it has come
    const Gradients<D> parts = gradients<T, D>(shared, problem, sequence, scores, dropout, v_factor,
                                               Of::dot_product, first, first_key);
    store_part<T, D>(parts.ds[0], shared.dS);
    __syncthreads();  // dS is there
    TILEWISE_UNROLL
    for (int key = 0; key < size; key += 16) {
      const device::OperandA ds[1] = {device::load_operand_a(shared.dS, Tile::own(), key / 8)};
      device::multiply_columns<T>(dQ, ds, shared.K, key, Tile::side() * (D / 16));
    }
  }
  device::cp_async_wait<0>();  // of Q and dO, where no key has passed

  store_sum<T, D>(dQ[0], problem.dq, problem.head_dim,
                  problem.softmax_scale * factor_at(problem.k_descale, place.b, kv_head),
                  query_offset(problem.dq, sequence, first, h), there<D>(sequence.seqlen_q, first));
}

}  // namespace general

// -------------------------------------------------------------------------------------- the launch

template <class T, int D>
Status launch_general_backward(const general::BackwardProblem& backward,
                               device::StreamHandle stream) {
  using namespace general;
  using Tile = BackwardTile<D>;
  const Problem& problem = backward.problem;
  // Nothing, where there is no block.
  const auto start = [&](const char* name, auto* kernel, std::int64_t blocks, int threads,
                         std::size_t shared_bytes) {
    const device::Grid grid = {
        {static_cast<unsigned>(blocks)}, {static_cast<unsigned>(threads)}, shared_bytes, stream};
    return blocks == 0 ? Status{} : device::launch(name, kernel, grid, backward);
  };
  const std::int64_t heads_q = std::int64_t{1} * problem.batch * problem.nheads_q;
  const std::int64_t heads_k = std::int64_t{1} * problem.batch * problem.nheads_k;
  Status status = start("cuda.sm80 general D", row_dots_kernel<T, D>,
                        heads_q * tiles_of(problem.most_q, RowDots::rows), RowDots::threads, 0);
  if (status.ok() && problem.dq.exists())
    status = start("cuda.sm80 general dQ", dq_kernel<T, D>,
                   heads_q * tiles_of(problem.most_q, Tile::size), Tile::threads,
                   sizeof(GradientsShared<T, D>));
  if (status.ok() && (problem.dk.exists() || problem.dv.exists()))
    status = start("cuda.sm80 general dK, dV", dkv_kernel<T, D>,
                   heads_k * tiles_of(problem.most_k, Tile::size), Tile::threads,
                   sizeof(GradientsShared<T, D>));
  if (status.ok() && problem.dbias.exists())
    status = start("cuda.sm80 general dbias", dbias_kernel<T, D>,
                   std::int64_t{1} * backward.bias_batch * backward.bias_heads *
                       tiles_of(backward.bias_rows, Tile::size) *
                       tiles_of(backward.bias_keys, Tile::size),
                   Tile::threads, sizeof(BiasShared<T, D>));
  if (status.ok() && problem.dsinks != nullptr)
    status = start("cuda.sm80 general dsinks", dsinks_kernel<T, D>, problem.nheads_q,
                   SinkSum::threads, sizeof(SinkSum));
  return status;
}

}  // namespace tilewise::cuda::sm80::inline TILEWISE_TARGET
