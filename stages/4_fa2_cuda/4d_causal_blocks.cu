// 4d. Causal blocks: what the mask hides is not loaded, and what it does not touch is not masked.
//
// Half of S is hidden under a causal mask. Of the tiles of a row block, three kinds (Dao 2023,
// arXiv 2307.08691, section 3.1, "Causal masking"):
//
//     keys ->    0     1     2     3
//   rows 0      cut    .     .     .       seen    computed, and no mask is asked
//        1      seen  cut    .     .       cut     the diagonal passes: one or two, masked
//        2      seen  seen  cut    .       .       never loaded
//        3      seen  seen  seen  cut
//
// The last row block has the most to do. It goes first (cuda/device/scheduler.hpp), so that the
// short ones fill what is left at the end; and from the diagonal the keys go down to 0.
//
// Two changes more, by which the kernel comes near the one that is shipped. A warp has 32 rows, two
// heights of mma: a fragment of K or V that came from shared memory serves both. And each of K and
// V has one buffer, that is filled while the other is computed with: half the shared memory of 4c,
// so that two blocks fit on a multiprocessor of an A100, too.
//
//     copies     K0 | V0      |  K1               |  V1     |  ...
//     compute       | Q K0^T  |  softmax, P V0    | Q K1^T  |  ...
//
// Contract
//   grid     blocks() of cuda/device/scheduler.hpp: a block of 4 warps for each 128 rows of a head
//   shared   Q, K, V: 32, 64 KiB for D = 64, 128
//   waits    cp.async's own, and two __syncthreads() a tile: K is there and V is free; V is there
//            and K is free
//   memory   no workspace; the same bits in every run
#include "cuda/device/copy.hpp"
#include "cuda/device/epilogue.hpp"
#include "cuda/device/mask.hpp"
#include "cuda/device/operands.hpp"
#include "cuda/device/scheduler.hpp"
#include "cuda/device/shared.hpp"
#include "cuda/device/softmax.hpp"
#include "cuda/device/trace.hpp"
#include "stages/cuda_halves.hpp"

namespace tilewise::stages::inline TILEWISE_TARGET {
namespace {

// [snippet configuration]
constexpr int warps = 4, threads = warps * 32, Br = 128;
constexpr int heights = Br / warps / 16;  ///< of a warp
/// Keys of a tile: of a thread's 255 registers, O takes D and S takes Bc.
template <int D>
constexpr int Bc = D == 64 ? 128 : 64;

template <class T, int D>
struct Tiles {
  device::SwizzledTile<T, Br, D> Q;
  device::SwizzledTile<T, Bc<D>, D> K, V;
};
static_assert(2 * sizeof(Tiles<device::f16, 128>) <= 163 * 1024, "two blocks on an A100");
// [end configuration]

/// S = Q K^T: a fragment of K serves both heights.
template <class T, int D>
__device__ __forceinline__ void scores(Tiles<T, D>& t, device::WarpTile<Bc<D>> (&s)[heights]) {
  TILEWISE_UNROLL
  for (auto& tile : s) tile.clear();
  TILEWISE_UNROLL
  for (int k = 0; k < D / 16; ++k) {
    device::OperandA q[heights];
    TILEWISE_UNROLL
    for (int y = 0; y < heights; ++y) {
      q[y] = device::load_operand_a(t.Q, 16 * (heights * device::warp_index() + y), 2 * k);
    }
    TILEWISE_UNROLL
    for (int n = 0; n < Bc<D> / 8; n += 2) {
      device::OperandB key[2];
      device::load_operands_b(key, t.K, 8 * n, 2 * k);
      TILEWISE_UNROLL
      for (int y = 0; y < heights; ++y) {
        device::multiply<T>(s[y].piece[n], q[y], key[0]);
        device::multiply<T>(s[y].piece[n + 1], q[y], key[1]);
      }
    }
  }
}

/// O += P V.
template <class T, int D>
__device__ __forceinline__ void add_values(Tiles<T, D>& t,
                                           const device::WarpTile<Bc<D>> (&p)[heights],
                                           device::WarpTile<D> (&o)[heights]) {
  TILEWISE_UNROLL
  for (int k = 0; k < Bc<D> / 16; ++k) {
    device::OperandA a[heights];
    TILEWISE_UNROLL
    for (int y = 0; y < heights; ++y)
      a[y] = device::as_operand_a<T>(p[y].piece[2 * k], p[y].piece[2 * k + 1]);
    TILEWISE_UNROLL
    for (int n = 0; n < D / 8; n += 2) {
      device::OperandB v[2];
      device::load_operands_b_transposed(v, t.V, 16 * k, n);
      TILEWISE_UNROLL
      for (int y = 0; y < heights; ++y) {
        device::multiply<T>(o[y].piece[n], a[y], v[0]);
        device::multiply<T>(o[y].piece[n + 1], a[y], v[1]);
      }
    }
  }
}

// [snippet kernel]
template <class T, int D>
__global__ void __launch_bounds__(threads, 2)
    attend_seen(CudaArgs args, device::Schedule schedule) {
  auto& t = device::shared_memory<Tiles<T, D>>();
  const device::Work work = schedule.work_of(blockIdx.x);
  const auto Q = query_head<const T>(args, args.q, work.batch, work.head_q);
  const auto K = key_head<const T>(args, args.k, work.batch, work.head_k);
  const auto V = key_head<const T>(args, args.v, work.batch, work.head_k);
  const int N = static_cast<int>(args.seqlen_k), rows = static_cast<int>(args.seqlen_q);
  const int i0 = work.row_block * Br, mine = i0 + 16 * heights * device::warp_index();
  const device::Mask mask = {rows, N, args.causal};
  const float log2_scale = device::log2_scale_of(args.softmax_scale);
  device::OnlineSoftmax softmax[heights];
  device::WarpTile<D> o[heights];
  TILEWISE_UNROLL
  for (auto& tile : o) tile.clear();

  const auto fetch = [&](Head<const T> X, int tile, device::SwizzledTile<T, Bc<D>, D>& to) {
    const device::Trace mark("copy", tile);
    if (tile >= 0)
      device::copy_tile_async<threads>(to, X.row(tile * Bc<D>), X.stride, N - tile * Bc<D>,
                                       X.width);
    device::cp_async_commit();
  };
  const int tiles = mask.tiles_of(i0, Br, Bc<D>);  // none above the diagonal
  device::copy_tile_async<threads>(t.Q, Q.row(i0), Q.stride, rows - i0, Q.width);
  fetch(K, tiles - 1, t.K);
  if (args.softmax_scale < 0) {
    device::cp_async_wait<0>();
    device::negate_copied<threads>(t.Q);
  }
  for (int tile = tiles - 1; tile >= 0; --tile) {
    device::cp_async_wait<0>();
    __syncthreads();  // K is there, and all are done with V
    fetch(V, tile, t.V);
    device::WarpTile<Bc<D>> s[heights];
    {
      const device::Trace mark("S = Q K^T", tile);
      scores(t, s);
    }
    device::cp_async_wait<0>();
    __syncthreads();  // V is there, and all are done with K
    fetch(K, tile - 1, t.K);
    const device::Trace mark("softmax, P V", tile);
    TILEWISE_UNROLL
    for (int y = 0; y < heights; ++y) {
      if (mask.cuts(mine + 16 * y, tile * Bc<D>, Bc<D>))
        mask.apply(s[y], mine + 16 * y, tile * Bc<D>);
      device::rescale_if_grown(o[y], softmax[y].absorb(s[y], log2_scale));
    }
    add_values(t, s, o);
  }
  device::cp_async_wait<0>();  // of Q's copies, where there was no key

  const auto O = query_head<T>(args, args.o, work.batch, work.head_q);
  float* const lse = args.lse + row_number(args, work.batch, work.head_q, 0);
  TILEWISE_UNROLL
  for (int y = 0; y < heights; ++y) {
    const int first = mine + 16 * y;
    const device::OfRows of_rows = softmax[y].finish(o[y]);
    device::store_tile(o[y], O.row(first), O.stride, rows - first, O.width);
    device::store_lse(of_rows, lse + first, rows - first);
  }
}
// [end kernel]

Status run(const CudaArgs& args) {
  if (args.batch * args.nheads_q * args.seqlen_q == 0) return {};
  const device::Schedule schedule = {static_cast<int>(args.batch), static_cast<int>(args.nheads_q),
                                     static_cast<int>(args.nheads_k),
                                     static_cast<int>((args.seqlen_q + Br - 1) / Br), args.causal};
  return with_halves(args, [&](auto number, auto D) {
    using T = decltype(number);
    const device::Grid grid = {
        {schedule.blocks()}, {threads}, sizeof(Tiles<T, D>), stream_of(args)};
    return device::launch("4d_causal_blocks", attend_seen<T, D>, grid, args, schedule);
  });
}

// As 4c's, but K and V as far as a block's last row sees.
double bytes_moved(const CudaArgs& args) {
  const std::int64_t N = args.seqlen_q, d = args.head_dim, tile = d <= 64 ? Bc<64> : Bc<128>;
  std::int64_t a_head = 2 * 2 * N * d + 4 * N;
  for (std::int64_t i0 = 0; i0 < N; i0 += Br) {
    const std::int64_t seen = keys_of_row(args, (i0 + Br < N ? i0 + Br : N) - 1);
    const std::int64_t loaded = (seen + tile - 1) / tile * tile;  // in whole tiles
    a_head += 2 * 2 * d * (loaded < args.seqlen_k ? loaded : args.seqlen_k);
  }
  return static_cast<double>(args.batch * args.nheads_q * a_head);
}

}  // namespace

CudaStep causal_blocks() {
  return {.name = "4d_causal_blocks",
          .idea = "Tiles that the mask hides are left out, others unmasked; 32 rows a warp.",
          .features = halves,
          .run = run,
          .workspace_bytes = nullptr,
          .bytes_moved = bytes_moved};
}

}  // namespace tilewise::stages::inline TILEWISE_TARGET
