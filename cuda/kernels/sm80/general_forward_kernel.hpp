// The general forward kernel, for sm_80 and later: FlashAttention-2's loops (Dao 2023, arXiv
// 2307.08691, Algorithm 1) around every semantic of core/attention.hpp, chosen by flags as it runs.
// For what the fast families do not compute: correct first, tensor cores for both products, tiles
// that no row sees left out.
//
// Contract
//   grid      blocks of 4 warps, one for 64 rows of a head. Of packed sequences the host knows how
//             many rows they have together, and the device which block has whose: find_work().
//             Others may be shorter than the grid is made for: their blocks end at once
//   shared    Q, K, V of a tile, where its rows lie, its block mask: 26, 50, 65 KiB
//   threads   each warp has 16 rows: its O and S are registers
//   loads     a tile's K and V at once, V arriving under Q K^T; cp.async where rows are chunks of
//             16 bytes of T, else a thread loads and converts numbers
//   waits     four __syncthreads() a tile: all are done with the last one; it is known where rows
//             lie; K is there; V is there
//   memory    O and LSE. Of what the device alone knows nothing is believed: general_scores.hpp.
//             The same bits in every run
//
// A key that some row of its tile may look at is multiplied with P = 0 for the others: NaN there
// reaches all of them. Keys behind the sequence's end, or that no row of the block can reach by
// position, are not read.
#pragma once

#include "cuda/device/operands.hpp"
#include "cuda/device/scheduler.hpp"
#include "cuda/device/shared.hpp"
#include "cuda/device/softmax.hpp"
#include "cuda/kernels/sm80/general_dropout.hpp"
#include "cuda/kernels/sm80/general_forward.hpp"
#include "cuda/kernels/sm80/general_scores.hpp"
#include "cuda/kernels/sm80/general_tiles.hpp"

#include <cmath>

namespace tilewise::cuda::sm80::inline TILEWISE_TARGET {
namespace general {

template <int D>
struct ForwardTile {
  static constexpr int warps = 4, threads = 32 * warps;
  static constexpr int Br = 16 * warps;
  static constexpr int Bc = D == 256 ? 32 : 64;
};

template <class T, int D>
struct ForwardShared {
  device::SwizzledTile<T, ForwardTile<D>::Br, D> Q;
  device::SwizzledTile<T, ForwardTile<D>::Bc, D> K, V;
  BlockBits<ForwardTile<D>::Br, ForwardTile<D>::Bc> bits;
  std::int64_t key[ForwardTile<D>::Bc];  ///< where the tile's rows begin, or nowhere
  std::int64_t value[ForwardTile<D>::Bc];
  float key_scale[ForwardTile<D>::Bc];  ///< of whole numbers, which T holds exactly
};
static_assert(sizeof(ForwardShared<device::f16, 256>) <= 99 * 1024, "fits an RTX 3090");

/// A row's scale of a tensor of whole numbers; 1 where there is none.
__device__ __forceinline__ float row_scale(const Problem& problem, const Tensor& scales,
                                           const Sequence& sequence, int j, int kv_head) {
  if (!scales.exists()) return 1;
  return element_at<float>(scales.data, key_offset(problem, scales, sequence, j, kv_head));
}

/// The lane's two rows, and what they may look at by position.
struct LaneRows {
  int row[2];
  Range keys[2];

  __device__ LaneRows(const Problem& problem, const Sequence& sequence, int first) {
    const device::Position mine = device::accumulator_at(device::lane_index(), 0);
    for (int n = 0; n < 2; ++n) {
      row[n] = first + mine.row + 8 * n;
      keys[n] = keys_of(problem, sequence, row[n]);
    }
  }
};

/// S, dot products first, becomes S', -inf where a row may not look.
template <int D>
__device__ __forceinline__ void finish_scores(
    device::WarpTile<ForwardTile<D>::Bc>& s, const Problem& problem, const Scores& scores,
    const LaneRows& mine, const BlockBits<ForwardTile<D>::Br, ForwardTile<D>::Bc>& bits,
    const float* key_scale, int first_row, int first_key) {
  constexpr int Bc = ForwardTile<D>::Bc;
  const bool whole = mine.keys[0].begin <= first_key && mine.keys[1].begin <= first_key &&
                     mine.keys[0].end >= first_key + Bc && mine.keys[1].end >= first_key + Bc &&
                     !problem.mask.exists() && !problem.some_blocks.exists();
  const bool all = __all_sync(~0u, whole) != 0;
  const int column = first_key + device::accumulator_at(device::lane_index(), 0).column;
  TILEWISE_UNROLL
  for (int piece = 0; piece < s.pieces; ++piece)
    for (int row = 0; row < 2; ++row)
      for (int n = 0; n < 2; ++n) {
        const int i = mine.row[row], j = column + 8 * piece + n;
        float& score = s.piece[piece].of_row(row, n);
        const bool sees = all || scores.visible(i, j, mine.keys[row], bits, first_row, first_key);
        if (problem.k_scales.exists()) score *= key_scale[j - first_key];
        score = sees ? scores.score(score, i, j) : -INFINITY;
      }
}

/// P without the elements that are dropped. What the others are multiplied by, O is at the end.
template <int Columns>
__device__ __forceinline__ void drop(device::WarpTile<Columns>& p, const Dropout& dropout,
                                     int first_row, int first_key) {
  TILEWISE_UNROLL
  for (int four = 0; four < p.pieces; four += 4) {
    const DropoutWords words =
        dropout.words(first_row / 16, first_key / 32 + four / 4, device::lane_index());
    TILEWISE_UNROLL
    for (int piece = 0; piece < 4; ++piece)
      for (int row = 0; row < 2; ++row)
        for (int n = 0; n < 2; ++n)
          if (!dropout.keeps(words, piece, row, n)) p.piece[four + piece].of_row(row, n) = 0;
  }
}

/// One column of V, its mean over all keys: in tiles' sums, so that rounding errors stay small.
__device__ inline float mean_of_values(const Problem& problem, const Sequence& sequence,
                                       int kv_head, int column) {
  float all = 0;
  for (int first = 0; first < sequence.seqlen_k; first += 64) {
    float some = 0;
    for (int j = first; j < sequence.seqlen_k && j < first + 64; ++j)
      some += row_scale(problem, problem.v_scales, sequence, j, kv_head) *
              read_column(problem.v, key_offset(problem, problem.v, sequence, j, kv_head), column);
    all += some;
  }
  return sequence.seqlen_k == 0 ? 0.0f : all / static_cast<float>(sequence.seqlen_k);
}

/// The numbers that a lane has of one row, times `factor`, each to where it belongs, as far as
/// there are columns.
template <class Stored, int D>
__device__ __forceinline__ void store_numbers(const device::WarpTile<D>& o, int row, Stored* to,
                                              std::int64_t column_stride, int columns,
                                              float factor) {
  const int first = device::accumulator_at(device::lane_index(), 0).column;
  TILEWISE_UNROLL
  for (int piece = 0; piece < o.pieces; ++piece)
    for (int n = 0; n < 2; ++n)
      if (8 * piece + first + n < columns)
        to[(8 * piece + first + n) * column_stride] =
            Stored(factor * o.piece[piece].of_row(row, n));
}

/// To O, whatever its strides and dtype.
template <class T, int D>
__device__ __forceinline__ void store_row(const device::WarpTile<D>& o, int row,
                                          const Problem& problem, std::int64_t offset,
                                          float factor) {
  const Tensor& tensor = problem.o;
  const int columns = problem.head_dim_v;
  if (tensor.dtype == DType::f32)
    return store_numbers(o, row, static_cast<float*>(tensor.data) + offset, tensor.column, columns,
                         factor);
  T* const to = static_cast<T*>(tensor.data) + offset;
  if (tensor.column != 1 || columns % 2 != 0 || reinterpret_cast<std::uintptr_t>(to) % 4 != 0)
    return store_numbers(o, row, to, tensor.column, columns, factor);
  const int first = device::accumulator_at(device::lane_index(), 0).column;
  TILEWISE_UNROLL
  for (int piece = 0; piece < o.pieces; ++piece)
    if (8 * piece + first < columns)
      device::store_vector(to + 8 * piece + first,
                           device::pack<T>(factor * o.piece[piece].of_row(row, 0),
                                           factor * o.piece[piece].of_row(row, 1)));
}

/// The rows `empty` has a bit for, of the warp's sixteen from `first` on, become the mean of V.
__device__ inline void store_means(const Problem& problem, const Sequence& sequence, int h,
                                   int kv_head, int first, unsigned empty, float factor) {
  for (int column = device::lane_index(); column < problem.head_dim_v; column += 32) {
    const float mean = factor * mean_of_values(problem, sequence, kv_head, column);
    for (int row = 0; row < 16; ++row)
      if ((empty >> row & 1u) != 0)
        write_number(problem.o.data, problem.o.dtype,
                     query_offset(problem.o, sequence, first + row, h) + column * problem.o.column,
                     mean);
  }
}

/// O and LSE of the warp's rows from `first` on. v_factor is what all of V is to be multiplied by.
template <class T, int D>
__device__ __forceinline__ void finish_rows(device::OnlineSoftmax& softmax, device::WarpTile<D>& o,
                                            const Problem& problem, const Sequence& sequence, int h,
                                            int kv_head, int first, float v_factor) {
  const device::OfRows lse = softmax.finish(o);
  const float factor = v_factor * (problem.drops ? problem.dropout_factor : 1.0f);
  const bool means = problem.empty_output == EmptyRowOutput::mean_v;
  const device::Position mine = device::accumulator_at(device::lane_index(), 0);
  unsigned empty_rows = 0;
  TILEWISE_UNROLL
  for (int row = 0; row < 2; ++row) {
    const int place = mine.row + 8 * row, i = first + place;
    const bool there = i < sequence.seqlen_q, empty = lse.row[row] == -INFINITY;
    // A quad's lanes agree: four bits a row.
    const unsigned votes = __ballot_sync(~0u, there && empty);
    for (int g = 0; g < 8; ++g)
      if ((votes >> (4 * g) & 1u) != 0) empty_rows |= 1u << (g + 8 * row);
    if (!there) continue;
    if (empty && problem.empty_output == EmptyRowOutput::nan) {
      TILEWISE_UNROLL
      for (int piece = 0; piece < o.pieces; ++piece)
        o.piece[piece].of_row(row, 0) = o.piece[piece].of_row(row, 1) = NAN;
    }
    if (!(empty && means))
      store_row<T>(o, row, problem, query_offset(problem.o, sequence, i, h), factor);
    if (problem.lse != nullptr && mine.column == 0)
      problem.lse[lse_offset(problem, sequence, i, h)] = !empty ? lse.row[row] * problem.lse_unit
                                                         : problem.empty_lse_is_plus_inf
                                                             ? INFINITY
                                                             : -INFINITY;
  }
  if (means && empty_rows != 0)
    store_means(problem, sequence, h, kv_head, first, empty_rows, v_factor);
}

/// Row blocks of packed sequences, one sequence's behind the other's, for each head: at most one a
/// sequence more than the rows would fill.
inline std::int64_t packed_row_blocks(const Problem& problem, int Br) {
  return problem.rows_q / Br + std::int64_t{1} * problem.batch;
}

/// Of packed sequences, which rows a block has: where among the sums of their row blocks its number
/// lies, 32 sequences at a time, each warp for itself. A block that is left over has a row block
/// behind the last sequence's end.
__device__ inline device::Work find_work(const Problem& problem, unsigned block, int Br) {
  const auto row_blocks = static_cast<unsigned>(problem.rows_q / Br + problem.batch);
  const auto head = static_cast<int>(block / row_blocks);
  auto left = static_cast<int>(block % row_blocks);  // behind the sequences that were looked at
  const int lane = device::lane_index();
  for (int first = 0; first < problem.batch; first += 32) {
    const int b = first + lane;
    const int rows = b < problem.batch ? detail::queries_of(problem, b).length : 0;
    const int mine = rows / Br + (rows % Br != 0);
    int behind = mine;  // row blocks of the sequences up to this one
    for (int by = 1; by < 32; by *= 2) {
      const int before = __shfl_up_sync(~0u, behind, static_cast<unsigned>(by));
      if (lane >= by) behind += before;
    }
    const unsigned found = __ballot_sync(~0u, behind > left);
    if (found == 0) {
      left -= __shfl_sync(~0u, behind, 31);
      continue;
    }
    int place = 0;
    while ((found >> place & 1u) == 0) ++place;
    const int row_block = left - __shfl_sync(~0u, behind - mine, place);
    return {first + place, head, head / problem.group, row_block};
  }
  return {problem.batch - 1, head, head / problem.group, problem.rows_q / Br + 1};
}

template <class T, int D>
__global__ void __launch_bounds__(ForwardTile<D>::threads, 2)
    forward_kernel(const TILEWISE_GRID_CONSTANT Problem problem, device::Schedule schedule) {
  using Tile = ForwardTile<D>;
  constexpr int Br = Tile::Br, Bc = Tile::Bc, threads = Tile::threads;
  constexpr float log2_e = 1.44269504f;
  auto& shared = device::shared_memory<ForwardShared<T, D>>();
  const device::Work work =
      problem.packed_q ? find_work(problem, blockIdx.x, Br) : schedule.work_of(blockIdx.x);
  const int h = work.head_q, kv_head = work.head_k;
  const Sequence sequence = sequence_of(problem, work.batch);
  const int first = work.row_block * Br;
  if (first >= sequence.seqlen_q) return;
  const int mine = first + 16 * device::warp_index();

  const auto one = [](int) { return 1.0f; };
  load_rows<threads>(
      shared.Q, problem.q, problem.head_dim,
      [&](int row) {
        return first + row < sequence.seqlen_q ? query_offset(problem.q, sequence, first + row, h)
                                               : nowhere;
      },
      one, nowhere + 1);
  device::cp_async_commit();
  if (problem.rotary_pairs > 0) {
    device::cp_async_wait<0>();
    __syncthreads();
    rotate_queries<threads>(shared.Q, problem, sequence, first);
  }

  device::OnlineSoftmax softmax;
  if (problem.sinks.exists()) {
    // A score that was seen before every key: it is in the sum, of one lane of each quad.
    const float sink = problem.sinks.at(h) * log2_e;
    const bool counts = sink != -INFINITY && device::lane_index() % 4 == 0;
    softmax.m[0] = softmax.m[1] = sink;
    softmax.l[0] = softmax.l[1] = counts ? 1.0f : 0.0f;
  }
  device::WarpTile<D> o[1];
  o[0].clear();
  const Scores scores(problem, sequence, h, kv_head);
  const Dropout dropout(problem, work.batch, h);
  const LaneRows rows(problem, sequence, mine);
  const Range reach = reachable_keys(problem, sequence, first, Br);
  const Range reach_of_warp = reachable_keys(problem, sequence, mine, 16);

  int next_key = reach.begin / Bc * Bc;
  while (next_key < reach.end) {
    const int first_key = next_key;
    __syncthreads();  // all are done with the last tile
    for (int n = static_cast<int>(threadIdx.x); n < Bc; n += threads) {
      const bool inside = reach.has(first_key + n);
      shared.key[n] =
          inside ? key_offset(problem, problem.k, sequence, first_key + n, kv_head) : nowhere;
      shared.value[n] =
          inside ? key_offset(problem, problem.v, sequence, first_key + n, kv_head) : nowhere;
      if (problem.k_scales.exists())
        shared.key_scale[n] =
            inside ? row_scale(problem, problem.k_scales, sequence, first_key + n, kv_head) : 0.0f;
    }
    if (problem.some_blocks.exists())
      shared.bits.template read<Tile::warps>(problem, sequence, h, first, first_key);
    __syncthreads();  // it is known where rows lie, and who sees them
    next_key += Bc;
    if (problem.some_blocks.exists()) {
      next_key = shared.bits.template next_key<Tile::warps>() / Bc * Bc;
      if (!shared.bits.any(problem, sequence, first)) continue;
    }

    const auto fetch = [&](auto& to, const Tensor& from, int width, const std::int64_t* offsets,
                           const Tensor& scales) {
      load_rows<threads>(
          to, from, width, [&](int row) { return offsets[row]; },
          [&](int row) { return row_scale(problem, scales, sequence, first_key + row, kv_head); },
          nowhere + 1);
      device::cp_async_commit();
    };
    fetch(shared.K, problem.k, problem.head_dim, shared.key, Tensor{});
    fetch(shared.V, problem.v, problem.head_dim_v, shared.value, problem.v_scales);
    device::cp_async_wait<1>();
    __syncthreads();  // K is there
    const bool sees = reach_of_warp.begin < first_key + Bc && reach_of_warp.end > first_key;
    device::WarpTile<Bc> s[1];
    if (sees) {
      s[0].clear();
      device::multiply_rows<T>(s, shared.Q, 16 * device::warp_index(), shared.K, 0);
      finish_scores<D>(s[0], problem, scores, rows, shared.bits, shared.key_scale, first,
                       first_key);
      device::rescale_if_grown(o[0], softmax.absorb(s[0], log2_e));
      if (problem.drops) drop(s[0], dropout, mine, first_key);
    }
    device::cp_async_wait<0>();
    __syncthreads();  // V is there
    if (!sees) continue;
    TILEWISE_UNROLL
    for (int k = 0; k < Bc / 16; ++k) {
      const device::OperandA p[1] = {
          device::as_operand_a<T>(s[0].piece[2 * k], s[0].piece[2 * k + 1])};
      device::multiply_columns<T>(o, p, shared.V, 16 * k, 0);
    }
  }
  device::cp_async_wait<0>();  // of Q's copies, where there was no key

  const float v_factor =
      problem.v_descale.exists() ? problem.v_descale.at(work.batch, kv_head) : 1.0f;
  finish_rows<T>(softmax, o[0], problem, sequence, h, kv_head, mine, v_factor);
}

}  // namespace general

template <class T, int D>
Status launch_general_forward(const general::Problem& problem, device::StreamHandle stream) {
  using Tile = general::ForwardTile<D>;
  // Where later rows see more keys, they come first.
  const bool causal =
      problem.right == 0 && problem.left == general::Problem::unbounded && problem.chunk == 0;
  const device::Schedule schedule = {
      problem.batch,
      problem.nheads_q,
      problem.nheads_k,
      (problem.most_q + Tile::Br - 1) / Tile::Br,
      causal,
      device::Schedule::section_of(std::int64_t{2} * sizeof(T) * D * problem.most_k,
                                   problem.group)};
  const unsigned blocks =
      problem.packed_q
          ? static_cast<unsigned>(general::packed_row_blocks(problem, Tile::Br) * problem.nheads_q)
          : schedule.blocks();
  if (blocks == 0 || problem.batch == 0 || problem.most_q == 0) return {};
  const device::Grid grid = {
      {blocks}, {Tile::threads}, sizeof(general::ForwardShared<T, D>), stream};
  return device::launch("cuda.sm80 general forward", general::forward_kernel<T, D>, grid, problem,
                        schedule);
}

}  // namespace tilewise::cuda::sm80::inline TILEWISE_TARGET
