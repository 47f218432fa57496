// A tile of the general backward pass: from Q, dO, K and V of some rows and keys to P and dS, by
// recomputation from LSE (Dao et al. 2022, arXiv 2205.14135, appendix B.2 and Algorithm 4):
//
//   P  = exp(S' - LSE)          S': general_scores.hpp
//   dP = Z dO V^T               Z: 0 where dropout drops, else 1 / (1 - p); 1 without
//   dS = P (dP - D) slope       D = rowsum(dO o O), slope: the softcap's derivative
//
//   dV = (P Z)^T dO             dQ = scale dS K             dK = scale dS^T Q
//
// Every kernel of the family makes it anew: nothing of the size of S is kept, and each sums into
// registers of its own, in the order of rows, or of keys. So nothing is added by several blocks,
// and the bits are the same in every run.
//
//              keys: two halves
//   rows 0-15  [ warp 0 | warp 1 ]     of S and dP; then P and dS go through shared memory, where
//   rows 16-31 [ warp 2 | warp 3 ]     every warp finds the rows, or keys, of its part of a sum:
//    ...                               16 of them by half of the columns
#pragma once

#include "cuda/device/operands.hpp"
#include "cuda/device/ptx/exp2.hpp"
#include "cuda/device/shared.hpp"
#include "cuda/kernels/sm80/general_backward.hpp"
#include "cuda/kernels/sm80/general_dropout.hpp"
#include "cuda/kernels/sm80/general_scores.hpp"
#include "cuda/kernels/sm80/general_tiles.hpp"

#include <cmath>
#include <cstdint>

namespace tilewise::cuda::sm80::inline TILEWISE_TARGET {
namespace general {

/// So many rows, and as many keys. At 256 a warp's parts of dK and dV are 128 registers a lane
/// whatever the tile is; four tiles of 32 x 256 are 64 KiB.
template <int D>
struct BackwardTile {
  static constexpr int size = D == 256 ? 32 : 64;
  static constexpr int half = size / 2;
  static constexpr int warps = 2 * size / 16, threads = 32 * warps;
  /// Blocks that a multiprocessor's registers are to have room for: of dK and dV, and of dbias, as
  /// many as do without spills.
  static constexpr int blocks = D == 256 ? 2 : 1;

  /// The warp's sixteen rows, or keys, and which half of the columns.
  __device__ static int own() { return device::warp_index() / 2 * 16; }
  __device__ static int side() { return device::warp_index() % 2; }
};

template <class T, int D>
struct BackwardOperands {
  static constexpr int size = BackwardTile<D>::size;
  device::SwizzledTile<T, size, D> Q, dO, K, V;
  BlockBits<size, size> bits;
  float lse[size];  ///< natural logarithm; +inf where a row saw no key, or is not there
  float D_[size];
};

/// What a block works on: one tile of rows, or of keys, of one head.
struct BackwardPlace {
  int tile, head, b;

  __device__ BackwardPlace(int tiles, int heads) {
    const auto number = static_cast<int>(blockIdx.x);
    tile = number % tiles;
    head = number / tiles % heads;
    b = number / tiles / heads;
  }
};

__host__ __device__ constexpr int tiles_of(int count, int size) {
  return count / size + (count % size != 0 ? 1 : 0);
}

__device__ __forceinline__ std::int64_t row_dot_place(const BackwardProblem& backward,
                                                      const Sequence& sequence, int i, int h) {
  const Problem& problem = backward.problem;
  const std::int64_t before =
      problem.packed_q ? 0 : static_cast<std::int64_t>(sequence.b) * problem.rows_q;
  return h * backward.places + before + sequence.first_q + i;
}

/// The natural logarithm that LSE stands for; +inf of a row that saw no key, whatever the sign by
/// which the conventions say so.
__device__ __forceinline__ float lse_of(const Problem& problem, const Sequence& sequence, int i,
                                        int h) {
  const float lse = problem.lse[lse_offset(problem, sequence, i, h)] / problem.lse_unit;
  return fabsf(lse) == INFINITY ? INFINITY : lse;
}

/// The first `count` rows of a tile, of which row 0 begins at element `first` of the tensor.
template <int Threads, class T, int Rows, int Columns>
__device__ __forceinline__ void fetch(device::SwizzledTile<T, Rows, Columns>& to,
                                      const Tensor& from, int width, std::int64_t first,
                                      int count) {
  load_rows<Threads>(
      to, from, width, [&](int row) { return row < count ? first + row * from.row : nowhere; },
      [](int) { return 1.0f; }, nowhere + 1);
}

/// How many of a tile's rows, or keys, there are, from `first` on.
template <int D>
__device__ __forceinline__ int there(int length, int first) {
  const int rest = length - first;
  return rest < BackwardTile<D>::size ? rest : BackwardTile<D>::size;
}

/// Q and dO of a tile of rows, with what else is known of them. The caller waits, and has a barrier
/// before and behind.
template <class T, int D, class Shared>
__device__ __forceinline__ void fetch_rows(Shared& shared, const BackwardProblem& backward,
                                           const Sequence& sequence, int h, int first) {
  constexpr int threads = BackwardTile<D>::threads;
  const Problem& problem = backward.problem;
  const int count = there<D>(sequence.seqlen_q, first);
  fetch<threads>(shared.Q, problem.q, problem.head_dim, query_offset(problem.q, sequence, first, h),
                 count);
  fetch<threads>(shared.dO, problem.dout, problem.head_dim_v,
                 query_offset(problem.dout, sequence, first, h), count);
  device::cp_async_commit();
  if (const int n = static_cast<int>(threadIdx.x); n < BackwardTile<D>::size) {
    shared.lse[n] = n < count ? lse_of(problem, sequence, first + n, h) : INFINITY;
    shared.D_[n] =
        n < count ? backward.row_dots[row_dot_place(backward, sequence, first + n, h)] : 0.0f;
  }
}

/// K and V of a tile of keys.
template <class T, int D, class Shared>
__device__ __forceinline__ void fetch_keys(Shared& shared, const Problem& problem,
                                           const Sequence& sequence, int kv_head, int first) {
  constexpr int threads = BackwardTile<D>::threads;
  const int count = there<D>(sequence.seqlen_k, first);
  fetch<threads>(shared.K, problem.k, problem.head_dim,
                 key_offset(problem, problem.k, sequence, first, kv_head), count);
  fetch<threads>(shared.V, problem.v, problem.head_dim_v,
                 key_offset(problem, problem.v, sequence, first, kv_head), count);
  device::cp_async_commit();
}

/// The lists of a block mask. False if they name no pair of this tile: all threads agree, and the
/// tile is to be left out. A barrier before is the caller's.
template <int D, class Shared>
__device__ __forceinline__ bool fetch_bits(Shared& shared, const Problem& problem,
                                           const Sequence& sequence, int h, int first_row,
                                           int first_key) {
  if (!problem.some_blocks.exists()) return true;
  shared.bits.template read<BackwardTile<D>::warps>(problem, sequence, h, first_row, first_key);
  __syncthreads();
  return shared.bits.any(problem, sequence, first_row);
}

/// Which score dS is the gradient of: the scaled dot product (dQ, dK), or what the bias was added
/// to, which has the softcap before it or behind it (dbias).
enum class Of { dot_product, bias };

/// A warp's part of P Z and dS, 16 rows by half of the keys.
template <int D>
struct Gradients {
  device::WarpTile<BackwardTile<D>::half> p[1], ds[1];
};

/// From operands that are there. A hidden pair's are 0, whatever its dot products are.
template <class T, int D, class Shared>
__device__ __forceinline__ Gradients<D> gradients(Shared& shared, const Problem& problem,
                                                  const Sequence& sequence, const Scores& scores,
                                                  const Dropout& dropout, float v_factor, Of of,
                                                  int first_row, int first_key) {
  using Tile = BackwardTile<D>;
  constexpr float log2_e = 1.44269504f;
  const int own = Tile::own(), side = Tile::side() * Tile::half;
  Gradients<D> result;
  result.p[0].clear();
  result.ds[0].clear();
  // Of a warp none of whose rows can look at any of its keys that is all.
  const bool means = problem.empty_output == EmptyRowOutput::mean_v;
  const Range reach = reachable_keys(problem, sequence, first_row + own, 16);
  const bool meet = reach.begin < first_key + side + Tile::half && reach.end > first_key + side;
  if (!meet && !means) return result;
  device::multiply_rows<T>(result.p, shared.Q, own, shared.K, side);
  device::multiply_rows<T>(result.ds, shared.dO, own, shared.V, side);

  const device::Position mine = device::accumulator_at(device::lane_index(), 0);
  Range keys[2];
  float lse[2], row_dot[2], unseen[2];
  TILEWISE_UNROLL
  for (int row = 0; row < 2; ++row) {
    const int place = own + mine.row + 8 * row, i = first_row + place;
    keys[row] = keys_of(problem, sequence, i);
    lse[row] = shared.lse[place];
    row_dot[row] = shared.D_[place];
    // O of a row without keys may be the mean of V: then each key has a part in it.
    const bool mean = means && lse[row] == INFINITY && i < sequence.seqlen_q;
    unseen[row] = mean ? 1.0f / static_cast<float>(sequence.seqlen_k) : 0.0f;
  }
  DropoutWords words = {};
  TILEWISE_UNROLL
  for (int piece = 0; piece < Tile::half / 8; ++piece) {
    const int in_tile = side / 8 + piece;
    if (problem.drops && piece % 4 == 0)
      words =
          dropout.words((first_row + own) / 16, first_key / 32 + in_tile / 4, device::lane_index());
    TILEWISE_UNROLL
    for (int row = 0; row < 2; ++row)
      for (int n = 0; n < 2; ++n) {
        const int i = first_row + own + mine.row + 8 * row;
        const int j = first_key + 8 * in_tile + mine.column + n;
        float& p = result.p[0].piece[piece].of_row(row, n);
        float& ds = result.ds[0].piece[piece].of_row(row, n);
        if (lse[row] == INFINITY ||
            !scores.visible(i, j, keys[row], shared.bits, first_row, first_key)) {
          p = j < sequence.seqlen_k ? unseen[row] : 0.0f;
          ds = 0;
          continue;
        }
        const Score score = scores.score_and_slope(p, i, j);
        const float probability = device::exp2_approx((score.value - lse[row]) * log2_e);
        float z = 1;
        if (problem.drops)
          z = dropout.keeps(words, in_tile % 4, row, n) ? problem.dropout_factor : 0.0f;
        p = probability * z;
        ds = probability * (z * v_factor * ds - row_dot[row]) *
             (of == Of::bias ? scores.bias_slope(score.slope) : score.slope);
      }
  }
  return result;
}

/// One of a warp's parts to shared memory, rounded to T: it is an operand of the next product.
template <class T, int D>
__device__ __forceinline__ void store_part(
    const device::WarpTile<BackwardTile<D>::half>& part,
    device::SwizzledTile<T, BackwardTile<D>::size, BackwardTile<D>::size>& to) {
  using Tile = BackwardTile<D>;
  TILEWISE_UNROLL
  for (int k = 0; k < Tile::half / 16; ++k)
    device::store_operand_a(device::as_operand_a<T>(part.piece[2 * k], part.piece[2 * k + 1]), to,
                            Tile::own(), Tile::side() * Tile::half / 8 + 2 * k);
}

/// The warp's sixteen rows of a sum, half of the columns: those of `width` that there are, times
/// `factor`. The tile's row 0 goes to element `first` of the tensor, and `count` of them are there.
template <class T, int D>
__device__ __forceinline__ void store_sum(const device::WarpTile<D / 2>& sum, const Tensor& to,
                                          int width, float factor, std::int64_t first, int count) {
  const device::Position mine = device::accumulator_at(device::lane_index(), 0);
  const int left = BackwardTile<D>::side() * (D / 2) + mine.column;
  TILEWISE_UNROLL
  for (int row = 0; row < 2; ++row) {
    const int place = BackwardTile<D>::own() + mine.row + 8 * row;
    if (place >= count) continue;
    const std::int64_t offset = first + place * to.row;
    const bool in_pairs = to.dtype == dtype_of<T>() && to.column == 1 && offset % 2 == 0 &&
                          reinterpret_cast<std::uintptr_t>(to.data) % 4 == 0;
    TILEWISE_UNROLL
    for (int piece = 0; piece < sum.pieces; ++piece) {
      const int column = left + 8 * piece;
      const float x = factor * sum.piece[piece].of_row(row, 0);
      const float y = factor * sum.piece[piece].of_row(row, 1);
      if (in_pairs && column + 1 < width) {
        device::store_vector(static_cast<T*>(to.data) + offset + column, device::pack<T>(x, y));
        continue;
      }
      if (column < width) write_number(to.data, to.dtype, offset + column * to.column, x);
      if (column + 1 < width) write_number(to.data, to.dtype, offset + (column + 1) * to.column, y);
    }
  }
}

__device__ __forceinline__ float factor_at(const Floats& factors, int b, int kv_head) {
  return factors.exists() ? factors.at(b, kv_head) : 1.0f;
}

}  // namespace general
}  // namespace tilewise::cuda::sm80::inline TILEWISE_TARGET
