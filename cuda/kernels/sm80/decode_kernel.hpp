// The decode kernel for sm_80 and later: few queries, many keys, for head_dim 64, 128 and 256 of
// f16 or bf16. The keys are divided among blocks ("Flash-Decoding", Dao, Haziza, Massa, Sizov 2023,
// pytorch.org/blog/flash-decoding), and query heads that share a key head are rows of one tile. The
// course's 4e is where it comes from (stages/4_fa2_cuda/README.md); what it has beyond that: any
// strides, lengths and caches, and warps that do not wait for each other.
//
//   a split's keys, slices of 16:   | w0 | w1 | w2 | w3 | w0 | w1 | w2 | w3 | w0 | ..
//
// Each warp goes through its slices with copies, m, l and O of its own, and no barrier: there is
// nothing that the others have and it wants. At the end the block's warps meet, once; what the
// blocks have, decode_combine.hpp puts together.
//
// Contract
//   grid       (row tiles x nheads_k x batch, splits) blocks of DecodeTile::warps warps. Row tiles
//              and heads of the same keys are neighbours, and read them at the same time
//   shared     64 KiB: each warp's `stages` slices of K and V, at the end its O; and its m and l.
//              Three blocks on an H100, two on an A100, one on an RTX 3090
//   threads    a warp has all 16 rows: Q, S and O of them are its registers. Rows that are not
//              there are zeros: of few rows K and V are read once, which is what takes the time
//   copies     a slice's K and V, `stages` slices ahead of what is computed
//   waits      cp.async's own and __syncwarp(); one __syncthreads() before the warps' O are added
//   lengths    beyond their tensors are clamped, and so are pages and rows of the cache. Block 0
//              looks lengths and rows over, and writes the workspace's first word; of pages a block
//              says what it has found, and the combination adds that
//   memory     without a combination O, and LSE where it is wanted; else m, l and O of each split.
//              Every number has one writer and every sum one order: the same bits in every run
#pragma once

#include "cuda/device/epilogue.hpp"
#include "cuda/device/operands.hpp"
#include "cuda/device/ptx/cp_async.hpp"
#include "cuda/device/shared.hpp"
#include "cuda/device/softmax.hpp"
#include "cuda/device/swizzle.hpp"
#include "cuda/kernels/sm80/decode_rows.hpp"

/// Before a loop that is to stay one: code that runs once comes from memory, too, and a block that
/// has a few microseconds to live waits for it.
#if TILEWISE_EMULATED
#define TILEWISE_ROLLED
#else
#define TILEWISE_ROLLED _Pragma("unroll 1")
#endif

namespace tilewise::cuda::sm80::inline TILEWISE_TARGET {

// ------------------------------------------------------------------------------------- the tile
// [snippet decode_tile]
/// Of a thread's registers O takes D / 2 and Q D / 4. At 256, where these are 192, two warps do the
/// work of four.
template <int D>
struct DecodeTile {
  static constexpr int warps = D == 256 ? 2 : 4, threads = 32 * warps;
  static constexpr int rows = decode::tile_rows, keys = decode::slice_keys;
  static constexpr int stages = D == 64 ? 4 : 2;
  static_assert(warps * stages * keys == decode::keys_under_way(D), "64 KiB");
};

template <class T, int D>
struct DecodeSlice {
  device::SwizzledTile<T, decode::slice_keys, D> K, V;
};

template <class T, int D>
struct DecodeShared {
  struct Warp {
    union {
      DecodeSlice<T, D> slice[DecodeTile<D>::stages];
      // 8 columns more: a quad writes 32 bytes, and four quads' are in all banks.
      float o[decode::tile_rows][D + 8];
    };
  };
  Warp warp[DecodeTile<D>::warps];
  float m[DecodeTile<D>::warps][decode::tile_rows], l[DecodeTile<D>::warps][decode::tile_rows];
  DecodeError error[DecodeTile<D>::warps];  // of lengths
  bool no_page[DecodeTile<D>::warps];
};
static_assert(3 * (sizeof(DecodeShared<device::f16, 128>) + 1024) <= 228 * 1024, "on an H100");
static_assert(2 * (sizeof(DecodeShared<device::f16, 128>) + 1024) <= 164 * 1024, "on an A100");
// [end decode_tile]

// ------------------------------------------------------------------------------ where keys lie
/// The keys of a sequence from global to shared memory, slice by slice, by one warp: its lanes are
/// side by side on a row's chunks. Keys are rows of a block of K and V, one below the other; or of
/// pages, each of which the sequence's table names.
template <class T, int D>
class DecodeKeys {
 public:
  __device__ DecodeKeys(const DecodeProblem& problem, int b, int head_k, int end)
      : k_(static_cast<const T*>(problem.k) + head_k * problem.k_layout.head + 8 * chunk()),
        v_(static_cast<const T*>(problem.v) + head_k * problem.v_layout.head + 8 * chunk()),
        table_(problem.block_table == nullptr ? nullptr
                                              : problem.block_table + b * problem.table_row),
        end_(end) {
    if (table_ != nullptr || end == 0) return;
    const std::int64_t block = clamped(problem.cache_rows, b, problem.blocks - 1, b);
    k_ += block * problem.k_layout.block;
    v_ += block * problem.v_layout.block;
  }

  /// Asks the table for the page of each key of a slice, a lane a key: before it is needed, so that
  /// nobody waits for the answer.
  __device__ void expect(const DecodeProblem& problem, int first_key) {
    if (table_ == nullptr) return;
    const int key = key_of_lane(first_key);
    if (key < end_) page_ = table_[key / problem.page_size * problem.table_page];
  }
  /// Whether the table named none for a key of the lane's.
  __device__ bool no_page() const { return no_page_; }

  /// Copies the slice that was expected; then the one at `next_key` is.
  __device__ void copy(const DecodeProblem& problem, DecodeSlice<T, D>& to, int first_key,
                       int next_key) {
    const DecodeLayout &k = problem.k_layout, &v = problem.v_layout;
    if (table_ == nullptr) {
      const T* const from_k = k_ + (first_key + row()) * k.row;
      const T* const from_v = v_ + (first_key + row()) * v.row;
      TILEWISE_UNROLL
      for (int first = 0; first < keys; first += pass)
        copy_chunks(to, first, from_k + first * k.row, from_v + first * v.row, first_key);
      return;
    }
    const int page = max(0, min(page_, problem.blocks - 1));
    const int row_of_page = key_of_lane(first_key) % problem.page_size;
    no_page_ = no_page_ || (page != page_ && key_of_lane(first_key) < end_);
    expect(problem, next_key);
    TILEWISE_UNROLL
    for (int first = 0; first < keys; first += pass) {
      const std::int64_t block = __shfl_sync(~0u, page, first + row());
      const std::int64_t at = __shfl_sync(~0u, row_of_page, first + row());
      copy_chunks(to, first, k_ + block * k.block + at * k.row, v_ + block * v.block + at * v.row,
                  first_key);
    }
  }

 private:
  static constexpr int keys = decode::slice_keys, chunks = D / 8;
  static constexpr int pass = 32 / chunks;  ///< rows at once
  static_assert(keys % pass == 0 && pass >= 1, "whole passes");

  static __device__ __forceinline__ int key_of_lane(int first_key) {
    return first_key + device::lane_index() % keys;
  }
  static __device__ __forceinline__ int row() { return device::lane_index() / chunks; }
  static __device__ __forceinline__ int chunk() { return device::lane_index() % chunks; }

  /// Zeros where there is no key: what P V multiplies by 0 must not be NaN.
  __device__ __forceinline__ void copy_chunks(DecodeSlice<T, D>& to, int first, const T* from_k,
                                              const T* from_v, int first_key) const {
    const bool inside = first_key + first + row() < end_;
    device::cp_async<16>(to.K.chunk(first + row(), chunk()), from_k, inside);
    device::cp_async<16>(to.V.chunk(first + row(), chunk()), from_v, inside);
  }

  const T *k_, *v_;  ///< of the head, the lane's chunk
  const std::int32_t* table_;
  int end_, page_ = 0;
  bool no_page_ = false;
};

/// What the host could not see: whether all lengths and rows of the cache are in range. All threads
/// of one block.
template <int D>
__device__ __forceinline__ void look_over(const DecodeProblem& problem, WorkspaceHead* head,
                                          DecodeError (&errors)[DecodeTile<D>::warps]) {
  DecodeError worst = 0;
  const auto expect = [&](const DecodeNumbers& list, int b, int most, DeviceError otherwise) {
    if (list.data != nullptr && list.data[b * list.stride] != clamped(list, b, most, 0))
      worst = max(worst, static_cast<DecodeError>(otherwise));
  };
  const int me = static_cast<int>(threadIdx.x);
  for (int b = me; b < problem.batch; b += DecodeTile<D>::threads) {
    expect(problem.seqlens_q, b, problem.seqlen_q, DeviceError::length);
    expect(problem.seqlens_k, b, problem.seqlen_k, DeviceError::length);
    if (DecodeSequence(problem, b).keys > 0)
      expect(problem.cache_rows, b, problem.blocks - 1, DeviceError::cache_row);
  }
  for (int by = 16; by > 0; by /= 2) worst = max(worst, __shfl_xor_sync(~0u, worst, by));
  if (device::lane_index() == 0) errors[device::warp_index()] = worst;
  __syncthreads();
  if (me != 0) return;
  for (const DecodeError error : errors) worst = max(worst, error);
  head->error = worst;
}

// ------------------------------------------------------------------------------- a warp's slice
// [snippet decode_attend]
/// Rows 0 and 1 of a lane look at the slice's first `seen` keys; `cut`, if not all rows do at all.
template <class T, int D>
__device__ __forceinline__ void attend(DecodeSlice<T, D>& slice,
                                       const device::OperandA (&q)[D / 16], bool cut,
                                       const int (&seen)[2], float log2_scale,
                                       device::OnlineSoftmax& softmax,
                                       device::WarpTile<D> (&o)[1]) {
  device::WarpTile<decode::slice_keys> s;
  s.clear();
  TILEWISE_UNROLL
  for (int k = 0; k < D / 16; ++k) {
    device::OperandB key[2];
    device::load_operands_b(key, slice.K, 0, 2 * k);
    device::multiply<T>(s.piece[0], q[k], key[0]);
    device::multiply<T>(s.piece[1], q[k], key[1]);
  }
  if (cut) {
    const int column = device::accumulator_at(device::lane_index(), 0).column;
    TILEWISE_UNROLL
    for (int x = 0; x < 8; ++x)
      if (column + x / 4 * 8 + x % 2 >= seen[x / 2 % 2])
        s.piece[x / 4].of_row(x / 2 % 2, x % 2) = -INFINITY;
  }
  device::rescale_if_grown(o[0], softmax.absorb(s, log2_scale));
  const device::OperandA p[1] = {device::as_operand_a<T>(s.piece[0], s.piece[1])};
  device::multiply_columns<T>(o, p, slice.V, 0, 0);
}
// [end decode_attend]

// ------------------------------------------------------------------------------------ the kernel
// [snippet decode_kernel]
template <class T, int D>
__global__ void __launch_bounds__(DecodeTile<D>::threads, 3)
    decode_kernel(DecodeProblem problem, DecodePlan plan, DecodeSpace space) {
  using Tile = DecodeTile<D>;
  auto& shared = device::shared_memory<DecodeShared<T, D>>();
  const int warp = device::warp_index(), lane = device::lane_index();
  auto& mine = shared.warp[warp];

  const int tile = static_cast<int>(blockIdx.x) % plan.row_tiles;
  const int head = static_cast<int>(blockIdx.x) / plan.row_tiles;  // of all sequences' key heads
  const int b = head / problem.nheads_k, head_k = head % problem.nheads_k;
  const int split = static_cast<int>(blockIdx.y);
  const DecodeSequence sequence(problem, b);
  const int first_row = tile * Tile::rows;
  const int rows = max(0, min(Tile::rows, plan.group * sequence.queries - first_row));
  const auto keys_of = [&](int r) {
    const DecodeRow row(problem, plan, head_k, first_row + r);
    return r < rows ? sequence.keys_of(row.query, problem.causal) : 0;
  };
  const int each = keys_of_split(problem, plan, sequence), begin = split * each;
  const int end = min(begin + each, keys_of(rows - 1));  // the last row sees the most

  // Q, from memory into the places of its fragments. Before the keys: behind them it would come
  // last.
  const device::Position at = device::accumulator_at(lane, 0);
  device::OperandA q[D / 16];
  TILEWISE_UNROLL
  for (int y = 0; y < 2; ++y) {
    const int r = at.row + 8 * y;
    const DecodeRow row(problem, plan, head_k, first_row + r);
    const DecodeLayout& layout = problem.q_layout;
    const T* const from = static_cast<const T*>(problem.q) + b * layout.block +
                          row.query * layout.row + row.head * layout.head + at.column;
    TILEWISE_UNROLL
    for (int x = 0; x < D / 8; ++x)
      q[x / 2].value[y + x % 2 * 2] =
          device::load_vector_if<std::uint32_t>(r < rows && begin < end, from + 8 * x);
  }

  // The copies of a slice are a group, be it empty: then each wait means the same.
  DecodeKeys<T, D> KV(problem, b, head_k, max(end, 0));
  const auto slice_at = [&](int n) { return begin + (warp + n * Tile::warps) * Tile::keys; };
  const auto fetch = [&](int n) {
    if (slice_at(n) < end)
      KV.copy(problem, mine.slice[n % Tile::stages], slice_at(n), slice_at(n + 1));
    device::cp_async_commit();
  };
  KV.expect(problem, slice_at(0));
  TILEWISE_ROLLED
  for (int n = 0; n < Tile::stages; ++n) fetch(n);

  if (space.head != nullptr && blockIdx.x == 0 && split == 0)
    look_over<D>(problem, space.head, shared.error);
  // What a block has found of pages it says in any case; of the rest nobody asks for what is empty.
  const auto say = [&](DeviceError error) {
    if (space.findings != nullptr && head_k == 0 && threadIdx.x == 0)
      space.findings[(split * problem.batch + b) * plan.row_tiles + tile] =
          static_cast<DecodeError>(error);
  };
  if (rows == 0 || (begin >= end && space.o != nullptr)) return say(DeviceError::none);
  if (problem.softmax_scale < 0)
    for (device::OperandA& operand : q) device::negate(operand);
  const float log2_scale = device::log2_scale_of(problem.softmax_scale);
  const int seen[2] = {min(keys_of(at.row), end), min(keys_of(at.row + 8), end)};
  const int all_see = min(keys_of(0), end);
  device::OnlineSoftmax softmax;
  device::WarpTile<D> o[1];
  o[0].clear();
  for (int n = 0; slice_at(n) < end; ++n) {
    device::cp_async_wait<Tile::stages - 1>();
    __syncwarp();  // the slice is there, for all lanes
    const int key = slice_at(n);
    attend<T>(mine.slice[n % Tile::stages], q, key + Tile::keys > all_see,
              {seen[0] - key, seen[1] - key}, log2_scale, softmax, o);
    __syncwarp();  // all are done with it
    fetch(n + Tile::stages);
  }
  device::cp_async_wait<0>();

  // The warps' states become one. Each has put its own where its slices were.
  device::store_tile(o[0], mine.o[0], D + 8, rows, D);
  TILEWISE_UNROLL
  for (int row = 0; row < 2; ++row) {
    const float l = device::quad_sum(softmax.l[row]);
    if (at.column != 0) continue;
    shared.m[warp][at.row + 8 * row] = softmax.m[row];
    shared.l[warp][at.row + 8 * row] = l;
  }
  const bool no_page = __any_sync(~0u, KV.no_page());
  if (lane == 0) shared.no_page[warp] = no_page;
  __syncthreads();
  if (space.findings != nullptr) {
    bool any = false;
    for (const bool of_warp : shared.no_page) any = any || of_warp;
    say(any ? DeviceError::page : DeviceError::none);
  }
  for (int x = static_cast<int>(threadIdx.x); x < rows * D / 4; x += Tile::threads) {
    const int r = x / (D / 4), column = x % (D / 4) * 4;
    DecodeState state = {-INFINITY, 0, {}};
    TILEWISE_UNROLL
    for (int w = 0; w < Tile::warps; ++w) state.m = fmaxf(state.m, shared.m[w][r]);
    TILEWISE_UNROLL
    for (int w = 0; w < Tile::warps; ++w)
      state.add(state.weight_of(shared.m[w][r]), shared.l[w][r],
                device::load_vector<float4>(&shared.warp[w].o[r][column]));
    const int packed = first_row + r;
    if (space.o == nullptr) {
      store_row<T>(problem, b, DecodeRow(problem, plan, head_k, packed), column, state);
      continue;
    }
    const std::int64_t all = packed_row(problem, plan, problem.batch, 0, 0);
    const std::int64_t place = split * all + packed_row(problem, plan, b, head_k, packed);
    device::store_vector(space.o + place * D + column, state.o);
    if (column == 0) device::store_vector(space.m_l + place, make_float2(state.m, state.l));
  }
}
// [end decode_kernel]

template <class T, int D>
Status launch_decode(const DecodeProblem& problem, const DecodePlan& plan, const DecodeSpace& space,
                     device::StreamHandle stream) {
  const dim3 blocks{static_cast<unsigned>(plan.row_tiles) * static_cast<unsigned>(problem.batch) *
                        static_cast<unsigned>(problem.nheads_k),
                    static_cast<unsigned>(plan.splits)};
  const device::Grid grid = {blocks, {DecodeTile<D>::threads}, sizeof(DecodeShared<T, D>), stream};
  return device::launch("cuda.sm80 decode", decode_kernel<T, D>, grid, problem, plan, space);
}

}  // namespace tilewise::cuda::sm80::inline TILEWISE_TARGET
