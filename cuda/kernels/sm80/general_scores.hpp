// S', number by number: what becomes of the dot product of query i and key j of a head, and whether
// i may look at j at all. With it, what both passes ask of a sequence before: how long it is, where
// its rows lie, which keys are worth loading.
//
//   s  = scale (q_i . k_j)                         score(), in the order of the conventions
//   s' = softcap tanh(s / softcap)     + ALiBi + bias        or softcap_last: tanh of the sum
//
//   visible(i, j):  window, causal and chunk: j in keys_of(i)      and mask[i][j]
//                   block mask: in a full block always, in the others of its list as above
//
// cpu/portable/scores.cpp and visibility.cpp say the same on the CPU, where a debugger is at hand.
//
// What lies in the device's memory may be wrong: each length, page and list entry is clamped to
// what its tensor has, and problem.error says what was amiss.
#pragma once

#include "cuda/device/warp.hpp"
#include "cuda/kernels/sm80/general_numbers.hpp"
#include "cuda/kernels/sm80/general_problem.hpp"

#include <cmath>
#include <cstdint>
#include <limits>

namespace tilewise::cuda::sm80::inline TILEWISE_TARGET {
namespace general {

__device__ __forceinline__ void report(const Problem& problem, DeviceError error) {
  if (problem.error != nullptr) atomicMax(problem.error, static_cast<std::uint32_t>(error));
}

/// `value` if it lies in [least, most], else the nearer of them and a report.
__device__ __forceinline__ int checked(const Problem& problem, int value, int least, int most,
                                       DeviceError error) {
  if (value >= least && value <= most) return value;
  report(problem, error);
  return value < least ? least : most;
}

// --------------------------------------------------------------------------------------- sequences

struct Sequence {
  int b;
  int seqlen_q, seqlen_k;
  /// Row 0's place: in a packed tensor, or behind the padding of a cache.
  int first_q, first_k;
  int block_k;  ///< the batch entry or the row of the cache; of pages the table says
  int held;     ///< rows that the cache had before this call, padding included
  int shift;    ///< query i stands at key position i + shift
};

namespace detail {

struct Stretch {
  int first, length;
};

/// Of packed rows, or of a tensor [batch, rows, ...].
__device__ __forceinline__ Stretch stretch_of(const Problem& problem, int b, bool packed, int rows,
                                              int most, const Indices& cu_seqlens,
                                              const Indices& seqlens) {
  Stretch stretch = {0, rows};
  if (packed) {
    stretch.first = checked(problem, cu_seqlens.at(b), 0, rows, DeviceError::length);
    stretch.length =
        checked(problem, cu_seqlens.at(b + 1), stretch.first, rows, DeviceError::length) -
        stretch.first;
  }
  if (seqlens.exists())
    stretch.length = checked(problem, seqlens.at(b), 0, stretch.length, DeviceError::length);
  stretch.length = checked(problem, stretch.length, 0, most, DeviceError::length);
  return stretch;
}

__device__ __forceinline__ Stretch queries_of(const Problem& problem, int b) {
  return stretch_of(problem, b, problem.packed_q, problem.rows_q, problem.most_q,
                    problem.cu_seqlens_q, problem.seqlens_q);
}

}  // namespace detail

__device__ inline Sequence sequence_of(const Problem& problem, int b) {
  const detail::Stretch queries = detail::queries_of(problem, b);
  Sequence sequence = {b, queries.length, 0, queries.first, 0, b, 0, 0};
  if (problem.cached) {
    const auto capacity = static_cast<int>(problem.capacity);
    int held = problem.seqlens_k.exists() ? problem.seqlens_k.at(b) : capacity;
    held = checked(problem, held, 0, capacity, DeviceError::length);
    int padding = problem.leftpad.exists() ? problem.leftpad.at(b) : 0;
    padding = checked(problem, padding, 0, held, DeviceError::cache_row);
    const int room = capacity - held;
    const int added = checked(problem, problem.new_rows, 0, room, DeviceError::capacity);
    sequence.held = held;
    sequence.first_k = padding;
    sequence.seqlen_k =
        checked(problem, held - padding + added, 0, problem.most_k, DeviceError::length);
    if (problem.cache_batch_idx.exists())
      sequence.block_k = checked(problem, problem.cache_batch_idx.at(b), 0,
                                 problem.cache_blocks - 1, DeviceError::cache_row);
  } else {
    const detail::Stretch keys =
        detail::stretch_of(problem, b, problem.packed_k, problem.rows_k, problem.most_k,
                           problem.cu_seqlens_k, problem.seqlens_k);
    sequence.first_k = keys.first;
    sequence.seqlen_k = keys.length;
  }
  sequence.shift = problem.bottom_right ? sequence.seqlen_k - sequence.seqlen_q : 0;
  return sequence;
}

/// Where row i of a tensor of the queries' side begins: q, o, dout, dq.
__device__ __forceinline__ std::int64_t query_offset(const Tensor& tensor, const Sequence& sequence,
                                                     int i, int head) {
  return sequence.b * tensor.block +
         (static_cast<std::int64_t>(sequence.first_q) + i) * tensor.row + head * tensor.head;
}

/// Row `row` of the sequence's cache, counted with its padding; or of the keys, packed or not.
__device__ __forceinline__ std::int64_t stored_offset(const Problem& problem, const Tensor& tensor,
                                                      const Sequence& sequence, int row, int head) {
  if (!problem.block_table.exists())
    return sequence.block_k * tensor.block + row * tensor.row + head * tensor.head;
  const int entry = problem.block_table.at(sequence.b, row / problem.page_size);
  const int page = checked(problem, entry, 0, problem.cache_blocks - 1, DeviceError::page);
  return page * tensor.block + row % problem.page_size * tensor.row + head * tensor.head;
}

/// Where row j of a tensor of the keys' side begins: k, v, their scales, dk, dv.
__device__ __forceinline__ std::int64_t key_offset(const Problem& problem, const Tensor& tensor,
                                                   const Sequence& sequence, int j, int kv_head) {
  return stored_offset(problem, tensor, sequence, sequence.first_k + j, kv_head);
}

__device__ __forceinline__ std::int64_t lse_offset(const Problem& problem, const Sequence& sequence,
                                                   int i, int head) {
  return sequence.b * problem.lse_b + head * problem.lse_h +
         (static_cast<std::int64_t>(sequence.first_q) + i) * problem.lse_i;
}

// ---------------------------------------------------------------------------------- who sees whom

/// Keys [begin, end).
struct Range {
  int begin, end;

  __device__ __forceinline__ bool has(int j) const { return j >= begin && j < end; }
};

/// The keys that row i may look at by its position; none for a row that is not there. Neither end
/// ever moves back from one row to the next.
__device__ inline Range keys_of(const Problem& problem, const Sequence& sequence, int i) {
  if (i >= sequence.seqlen_q) return {sequence.seqlen_k, sequence.seqlen_k};
  const std::int64_t position = static_cast<std::int64_t>(i) + sequence.shift;
  std::int64_t begin = position - problem.left, end = position + problem.right + 1;
  if (problem.chunk > 0) {
    // Positions before the first key belong to chunks before the first.
    const std::int64_t size = problem.chunk;
    const std::int64_t chunk = position >= 0 ? position / size : -((size - 1 - position) / size);
    if (chunk * size > begin) begin = chunk * size;
    if ((chunk + 1) * size < end) end = (chunk + 1) * size;
  }
  if (begin < 0) begin = 0;
  if (begin > sequence.seqlen_k) begin = sequence.seqlen_k;
  if (end > sequence.seqlen_k) end = sequence.seqlen_k;
  if (end < begin) end = begin;
  return {static_cast<int>(begin), static_cast<int>(end)};
}

/// The keys outside of which none of `rows` rows from `first` on may look at any.
__device__ inline Range reachable_keys(const Problem& problem, const Sequence& sequence, int first,
                                       int rows) {
  // Full blocks know no other mask.
  if (problem.full_blocks.exists()) return {0, sequence.seqlen_k};
  const int behind = first + rows < sequence.seqlen_q ? first + rows : sequence.seqlen_q;
  if (behind <= first) return {0, 0};
  return {keys_of(problem, sequence, first).begin, keys_of(problem, sequence, behind - 1).end};
}

/// The rows outside of which none may look at any of `keys` keys from `first` on, for whoever has
/// the keys and looks for queries: the other way about, and found by bisection since neither end of
/// a row's keys moves back.
__device__ inline Range reaching_rows(const Problem& problem, const Sequence& sequence, int first,
                                      int keys) {
  if (problem.full_blocks.exists()) return {0, sequence.seqlen_q};
  int low = 0, high = sequence.seqlen_q;  // the first row whose keys end behind `first`
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (keys_of(problem, sequence, middle).end > first)
      high = middle;
    else
      low = middle + 1;
  }
  const int begin = low;
  high = sequence.seqlen_q;  // the first row whose keys begin behind the last
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (keys_of(problem, sequence, middle).begin >= first + keys)
      high = middle;
    else
      low = middle + 1;
  }
  return {begin, low};
}

/// Which pairs of a tile of Rows x Keys, Rows being where tiles of rows begin and end, the lists of
/// a block mask name: a bit for each key, for each row of blocks. In shared memory.
template <int Rows, int Keys>
struct BlockBits {
  static_assert(Keys % 32 == 0, "of whole words");
  static constexpr int words = Keys / 32;
  static constexpr int no_key = std::numeric_limits<int>::max();
  // A block is one row high at least.
  std::uint32_t some[Rows][words], full[Rows][words];
  int next[8];  ///< of each warp's lists: the first key behind the tile that one names

  /// All warps of the block; barriers around it are the caller's. Each warp reads lists of its own,
  /// its lanes neighbouring entries; in which order a list is does not matter.
  template <int Warps>
  __device__ void read(const Problem& problem, const Sequence& sequence, int h, int first_row,
                       int first_key) {
    static_assert(Warps <= 8, "places in `next`");
    const int warp = device::warp_index();
    int behind = no_key;
    for (int row = warp; row < rows_of(problem, sequence, first_row); row += Warps) {
      const int block_row = first_row / problem.block_q + row;
      read_list(problem, problem.some_blocks, sequence, h, block_row, first_key, some[row], behind);
      read_list(problem, problem.full_blocks, sequence, h, block_row, first_key, full[row], behind);
    }
    for (int with = 16; with > 0; with /= 2) {
      const int other = __shfl_xor_sync(~0u, behind, with);
      behind = other < behind ? other : behind;
    }
    if (device::lane_index() == 0) next[warp] = behind;
  }

  /// The first key behind the tile that any of its rows may look at: what lies between need not be
  /// visited.
  template <int Warps>
  __device__ int next_key() const {
    int first = next[0];
    for (int warp = 1; warp < Warps; ++warp) first = next[warp] < first ? next[warp] : first;
    return first;
  }

  /// Whether there is any pair at all.
  __device__ bool any(const Problem& problem, const Sequence& sequence, int first_row) const {
    std::uint32_t bits = 0;
    for (int row = 0; row < rows_of(problem, sequence, first_row); ++row)
      for (int n = 0; n < words; ++n) bits |= some[row][n] | full[row][n];
    return bits != 0;
  }

  /// Row i and the tile's key number `key`.
  __device__ __forceinline__ bool in_some(const Problem& problem, int first_row, int i,
                                          int key) const {
    return (some[i / problem.block_q - first_row / problem.block_q][key / 32] >> (key % 32) & 1u) !=
           0;
  }
  __device__ __forceinline__ bool in_full(const Problem& problem, int first_row, int i,
                                          int key) const {
    return (full[i / problem.block_q - first_row / problem.block_q][key / 32] >> (key % 32) & 1u) !=
           0;
  }

 private:
  /// Rows of blocks that the tile has a part in.
  __device__ static int rows_of(const Problem& problem, const Sequence& sequence, int first_row) {
    const int rest = sequence.seqlen_q - first_row, rows = rest < Rows ? rest : Rows;
    return rows <= 0 ? 0
                     : (first_row + rows - 1) / problem.block_q - first_row / problem.block_q + 1;
  }

  /// Bits begin to end - 1, as far as they are bits of a word.
  __device__ static std::uint32_t bits_of(std::int64_t begin, std::int64_t end) {
    if (end <= 0 || begin >= 32) return 0;
    const int first = begin < 0 ? 0 : static_cast<int>(begin);
    const int count = (end > 32 ? 32 : static_cast<int>(end)) - first;
    return ~0u >> (32 - count) << first;
  }

  __device__ static void read_list(const Problem& problem, const BlockList& list,
                                   const Sequence& sequence, int h, int row, int first_key,
                                   std::uint32_t (&to)[words], int& behind) {
    std::uint32_t bits[words] = {};
    if (list.exists()) {
      const int count = checked(
          problem,
          list.counts[sequence.b * list.counts_b + h * list.counts_h + row * list.counts_row], 0,
          list.longest, DeviceError::block_list);
      const std::int32_t* const indices =
          list.indices + sequence.b * list.indices_b + h * list.indices_h + row * list.indices_row;
      const int blocks = problem.most_k / problem.block_k + (problem.most_k % problem.block_k != 0);
      for (int n = device::lane_index(); n < count; n += 32) {
        const int index = indices[n * list.indices_n];
        if (index < 0 || index >= blocks) {
          report(problem, DeviceError::block_list);
          continue;
        }
        const std::int64_t begin = static_cast<std::int64_t>(index) * problem.block_k - first_key;
        if (begin + problem.block_k > Keys) {
          const int key = first_key + (begin < Keys ? Keys : static_cast<int>(begin));
          behind = key < behind ? key : behind;
        }
        TILEWISE_UNROLL
        for (int word = 0; word < words; ++word)
          bits[word] |= bits_of(begin - 32 * word, begin - 32 * word + problem.block_k);
      }
    }
    TILEWISE_UNROLL
    for (int n = 0; n < words; ++n) {
      for (int with = 16; with > 0; with /= 2) bits[n] |= __shfl_xor_sync(~0u, bits[n], with);
      if (device::lane_index() == 0) to[n] = bits[n];
    }
  }
};

// ----------------------------------------------------------------------------------------- scores

/// A finished score, and its derivative by the scaled dot product: the softcap's, 1 without.
struct Score {
  float value, slope;
};

/// Of one query head of one sequence.
class Scores {
 public:
  __device__ Scores(const Problem& problem, const Sequence& sequence, int h, int kv_head)
      : problem_(problem),
        sequence_(sequence),
        scale_(problem.softmax_scale * descale(problem.q_descale, sequence, kv_head) *
               descale(problem.k_descale, sequence, kv_head)),
        bias_(sequence.b * problem.bias.b + h * problem.bias.h),
        mask_(sequence.b * problem.mask.b + h * problem.mask.h),
        alibi_slope_(problem.alibi_slopes.exists() ? problem.alibi_slopes.at(h) : 0) {}

  /// Whether i, whose keys by position are `keys`, may look at j. Block masks aside.
  __device__ __forceinline__ bool visible(int i, int j, Range keys) const {
    if (!keys.has(j)) return false;
    return !problem_.mask.exists() ||
           element_at<std::uint8_t>(problem_.mask.data,
                                    mask_ + i * problem_.mask.i + j * problem_.mask.j) != 0;
  }

  /// With them, if there are any; `bits` are those of the tile that begins with first_row and
  /// first_key.
  template <class Bits>
  __device__ __forceinline__ bool visible(int i, int j, Range keys, const Bits& bits, int first_row,
                                          int first_key) const {
    if (!problem_.some_blocks.exists()) return visible(i, j, keys);
    if (i >= sequence_.seqlen_q || j >= sequence_.seqlen_k) return false;
    if (bits.in_full(problem_, first_row, i, j - first_key)) return true;
    return bits.in_some(problem_, first_row, i, j - first_key) && visible(i, j, keys);
  }

  /// S' of a pair that is there, in natural units; `dot` is q_i . k_j. A bias of -inf hides a pair
  /// unless a softcap comes behind it.
  __device__ __forceinline__ float score(float dot, int i, int j) const {
    float s = dot * scale_;
    const bool capped = problem_.softcap != 0;
    if (capped && !problem_.softcap_last) s = problem_.softcap * tanhf(s / problem_.softcap);
    s = with_added(s, i, j);
    if (capped && problem_.softcap_last) s = problem_.softcap * tanhf(s / problem_.softcap);
    return s;
  }

  __device__ __forceinline__ Score score_and_slope(float dot, int i, int j) const {
    float s = dot * scale_;
    if (problem_.softcap == 0) return {with_added(s, i, j), 1};
    if (problem_.softcap_last) s = with_added(s, i, j);
    const float x = s / problem_.softcap, capped = problem_.softcap * tanhf(x);
    // 1 - tanh^2 x = 4 e / (1 + e)^2 for e = exp(-2 |x|): no difference of numbers close to one.
    const float e = expf(-2 * fabsf(x)), slope = 4 * e / ((1 + e) * (1 + e));
    return {problem_.softcap_last ? capped : with_added(capped, i, j), slope};
  }

  /// d score / d bias, of a Score's slope.
  __device__ __forceinline__ float bias_slope(float slope) const {
    return problem_.softcap_last ? slope : 1;
  }

 private:
  /// ALiBi and bias.
  __device__ __forceinline__ float with_added(float s, int i, int j) const {
    if (problem_.alibi_slopes.exists()) {
      const int beside = i + sequence_.shift - j;
      float distance = -fabsf(static_cast<float>(beside));
      if (problem_.alibi == Alibi::signed_distance) distance = static_cast<float>(j - i);
      if (problem_.alibi == Alibi::fa2 && problem_.causal) distance = static_cast<float>(j);
      s = fmaf(alibi_slope_, distance, s);
    }
    if (problem_.bias.exists())
      s += read_number(problem_.bias.data, problem_.bias.dtype,
                       bias_ + i * problem_.bias.i + j * problem_.bias.j);
    return s;
  }

  __device__ static float descale(const Floats& factors, const Sequence& sequence, int kv_head) {
    return factors.exists() ? factors.at(sequence.b, kv_head) : 1;
  }

  const Problem& problem_;
  const Sequence& sequence_;
  float scale_;  ///< of dot products of what is stored
  std::int64_t bias_, mask_;
  float alibi_slope_;
};

}  // namespace general
}  // namespace tilewise::cuda::sm80::inline TILEWISE_TARGET
