// The gradients of what enters the scores beside Q and K: the bias and the sinks.
//
//   dbias   a block for each tile of dbias's own elements. Whatever its elements were broadcast to
//           (sequences, heads, rows, keys) passes by in a fixed order, and is added in registers.
//           Of a bias that few elements stand for, these are few blocks: slow, and the same bits in
//           every run
//   dsinks  a block for each head: a sink's value is zero, so its dP is, and its dS is -P D:
//           dsink_h = - sum over all rows of exp(sink_h - LSE) D
#pragma once

#include "cuda/kernels/sm80/general_backward_tile.hpp"

#include <cmath>
#include <cstdint>

namespace tilewise::cuda::sm80::inline TILEWISE_TARGET {
namespace general {

template <class T, int D>
struct BiasShared : BackwardOperands<T, D> {
  /// A column more, so that rows begin in different banks.
  float sums[BackwardTile<D>::size][BackwardTile<D>::size + 1];
};
static_assert(sizeof(BiasShared<device::f16, 128>) <= 99 * 1024, "fits an RTX 3090");
static_assert(sizeof(BiasShared<device::f16, 256>) <= 99 * 1024, "fits an RTX 3090");

/// The indices that element n of a dimension stands for: itself, or all if the dimension is 1.
__device__ __forceinline__ Range stood_for(int size, int n, int all) {
  return size == 1 ? Range{0, all} : Range{n, n + 1};
}

/// Adds dS of one head: rows in [rows.begin, rows.end), keys likewise, tile by tile.
template <class T, int D>
__device__ __forceinline__ void add_head(BiasShared<T, D>& shared, const BackwardProblem& backward,
                                         const Sequence& sequence, int h, Range rows, Range keys,
                                         device::WarpTile<BackwardTile<D>::half>& sum) {
  constexpr int size = BackwardTile<D>::size;
  const Problem& problem = backward.problem;
  const int kv_head = h / problem.group;
  const float v_factor = factor_at(problem.v_descale, sequence.b, kv_head);
  const Scores scores(problem, sequence, h, kv_head);
  const Dropout dropout(problem, sequence.b, h);
  for (int first = rows.begin; first < rows.end && first < sequence.seqlen_q; first += size) {
    const Range reach = reachable_keys(problem, sequence, first, size);
    int first_key = keys.begin;
    if (reach.begin > first_key) first_key = reach.begin / size * size;
    const int end = reach.end < keys.end ? reach.end : keys.end;
    if (first_key >= end) continue;
    __syncthreads();  // all are done with the last rows
    fetch_rows<T, D>(shared, backward, sequence, h, first);
    for (; first_key < end; first_key += size) {
      __syncthreads();  // all are done with the last tile
      if (!fetch_bits<D>(shared, problem, sequence, h, first, first_key)) continue;
      fetch_keys<T, D>(shared, problem, sequence, kv_head, first_key);
      device::cp_async_wait<0>();
      __syncthreads();  // it has come
      const Gradients<D> parts = gradients<T, D>(shared, problem, sequence, scores, dropout,
                                                 v_factor, Of::bias, first, first_key);
      TILEWISE_UNROLL
      for (int piece = 0; piece < sum.pieces; ++piece)
        for (int n = 0; n < 4; ++n) sum.piece[piece].value[n] += parts.ds[0].piece[piece].value[n];
    }
    device::cp_async_wait<0>();  // of the rows, where the lists of a block mask named no tile
  }
}

template <class T, int D>
__global__ void __launch_bounds__(BackwardTile<D>::threads, BackwardTile<D>::blocks)
    dbias_kernel(const TILEWISE_GRID_CONSTANT BackwardProblem backward) {
  using Tile = BackwardTile<D>;
  constexpr int size = Tile::size;
  auto& shared = device::shared_memory<BiasShared<T, D>>();
  const Problem& problem = backward.problem;
  const bool over_rows = backward.bias_rows == 1, over_keys = backward.bias_keys == 1;
  const int row_tiles = tiles_of(backward.bias_rows, size);
  const BackwardPlace place(tiles_of(backward.bias_keys, size), row_tiles);
  const int first_key = place.tile * size, first = place.head * size;
  const int h = place.b % backward.bias_heads, b = place.b / backward.bias_heads;

  device::WarpTile<Tile::half> sum;
  sum.clear();
  const Range sequences = stood_for(backward.bias_batch, b, problem.batch);
  const Range heads = stood_for(backward.bias_heads, h, problem.nheads_q);
  for (int each_b = sequences.begin; each_b < sequences.end; ++each_b) {
    const Sequence sequence = sequence_of(problem, each_b);
    const Range rows = over_rows ? Range{0, sequence.seqlen_q} : Range{first, first + size};
    const Range keys = over_keys ? Range{0, sequence.seqlen_k} : Range{first_key, first_key + size};
    for (int each_h = heads.begin; each_h < heads.end; ++each_h)
      add_head<T, D>(shared, backward, sequence, each_h, rows, keys, sum);
  }

  const device::Position mine = device::accumulator_at(device::lane_index(), 0);
  TILEWISE_UNROLL
  for (int piece = 0; piece < sum.pieces; ++piece) TILEWISE_UNROLL
  for (int row = 0; row < 2; ++row)
    for (int n = 0; n < 2; ++n)
      shared.sums[Tile::own() + mine.row + 8 * row]
                 [Tile::side() * Tile::half + 8 * piece + mine.column + n] =
          sum.piece[piece].of_row(row, n);
  __syncthreads();
  // What was summed over lies in all rows, or columns, of the tile.
  const int rows = over_rows ? 1 : size, keys = over_keys ? 1 : size;
  for (int n = static_cast<int>(threadIdx.x); n < rows * keys; n += Tile::threads) {
    const int row = n / keys, key = n % keys;
    if (first + row >= backward.bias_rows || first_key + key >= backward.bias_keys) continue;
    float all = 0;
    for (int i = row; i < (over_rows ? size : row + 1); ++i) {
      float some = 0;
      for (int j = key; j < (over_keys ? size : key + 1); ++j) some += shared.sums[i][j];
      all += some;
    }
    write_number(problem.dbias.data, problem.dbias.dtype,
                 b * problem.dbias.b + h * problem.dbias.h + (first + row) * problem.dbias.i +
                     (first_key + key) * problem.dbias.j,
                 all);
  }
}

struct SinkSum {
  static constexpr int threads = 256;
  float part[threads];
};

template <class T, int D>
__global__ void __launch_bounds__(SinkSum::threads)
    dsinks_kernel(const TILEWISE_GRID_CONSTANT BackwardProblem backward) {
  auto& shared = device::shared_memory<SinkSum>();
  const Problem& problem = backward.problem;
  const auto h = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const float sink = problem.sinks.at(h);
  float all = 0;
  for (int b = 0; b < problem.batch; ++b) {
    const Sequence sequence = sequence_of(problem, b);
    float some = 0;
    for (int i = thread; i < sequence.seqlen_q; i += SinkSum::threads) {
      const float lse = lse_of(problem, sequence, i, h);
      if (lse == INFINITY) continue;
      some =
          fmaf(-expf(sink - lse), backward.row_dots[row_dot_place(backward, sequence, i, h)], some);
    }
    all += some;
  }
  shared.part[thread] = all;
  for (int with = SinkSum::threads / 2; with > 0; with /= 2) {
    __syncthreads();
    if (thread < with) shared.part[thread] += shared.part[thread + with];
  }
  if (thread == 0) problem.dsinks[h * problem.dsinks_stride] = shared.part[0];
}

}  // namespace general
}  // namespace tilewise::cuda::sm80::inline TILEWISE_TARGET
