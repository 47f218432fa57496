// 4c. Split-Q: each warp has rows of its own, and copies run while it computes.
//
// FlashAttention-2's partitioning (Dao 2023, arXiv 2307.08691, section 3.3): the four warps divide
// 4b's 64 rows, not its keys. A row's 64 scores are then one quad's registers:
//
//        S = Q K^T, 64 x 64                                            O = P V, 64 x D
//     +-----------------------+                                     +-----------------------+
//     |         warp 0        |   P: as it stands, S's registers    |         warp 0        |
//     |         warp 1        |   are the operand of P V            |         warp 1        |
//     |         warp 2        |   (cuda/device/fragment.hpp)  ->    |         warp 2        |
//     |         warp 3        |                                     |         warp 3        |
//     +-----------------------+                                     +-----------------------+
//
// Maxima go around by two shuffles, P never leaves its registers, and of 4b's four barriers two
// remain. The tiles are swizzled: ldmatrix's eight rows lie in eight different groups of banks.
// And there are two of K and of V: while one is computed with, cp.async fills the other.
//
//     copies     K0 V0 |  K1 V1   |  K2 V2   |  ...      arrive while
//     compute          | tile 0   | tile 1   |  ...      these go on
//
// Contract
//   grid     (ceil(seqlen_q / 64), nheads_q, batch) blocks of 4 warps
//   shared   Q, two tiles of K, two of V: 40, 80 KiB for D = 64, 128
//   waits    cp.async's own, and two __syncthreads() a tile: it is there for all; all are done
//   memory   no workspace; the same bits in every run
#include "cuda/device/copy.hpp"
#include "cuda/device/epilogue.hpp"
#include "cuda/device/mask.hpp"
#include "cuda/device/operands.hpp"
#include "cuda/device/shared.hpp"
#include "cuda/device/softmax.hpp"
#include "cuda/device/trace.hpp"
#include "stages/cuda_halves.hpp"

namespace tilewise::stages::inline TILEWISE_TARGET {
namespace {

// [snippet configuration]
constexpr int warps = 4, threads = warps * 32, Br = 64, Bc = 64;
static_assert(Br == 16 * warps, "a warp has the sixteen rows of one mma");

template <class T, int D>
struct Tiles {
  device::SwizzledTile<T, Br, D> Q;
  device::SwizzledTile<T, Bc, D> K[2], V[2];
};
static_assert(sizeof(Tiles<device::f16, 128>) <= 99 * 1024, "what an RTX 3090 has for a block");
// [end configuration]

// [snippet products]
/// S = Q K^T, the warp's 16 rows of all keys.
template <class T, int D>
__device__ __forceinline__ void scores(Tiles<T, D>& t, int stage, device::WarpTile<Bc>& s) {
  s.clear();
  TILEWISE_UNROLL
  for (int k = 0; k < D / 16; ++k) {
    const device::OperandA q = device::load_operand_a(t.Q, 16 * device::warp_index(), 2 * k);
    TILEWISE_UNROLL
    for (int n = 0; n < s.pieces; n += 2) {
      device::OperandB key[2];
      device::load_operands_b(key, t.K[stage], 8 * n, 2 * k);
      device::multiply<T>(s.piece[n], q, key[0]);
      device::multiply<T>(s.piece[n + 1], q, key[1]);
    }
  }
}

/// O += P V: P is S's own registers, two pieces an operand.
template <class T, int D>
__device__ __forceinline__ void add_values(Tiles<T, D>& t, int stage, const device::WarpTile<Bc>& p,
                                           device::WarpTile<D>& o) {
  TILEWISE_UNROLL
  for (int k = 0; k < Bc / 16; ++k) {
    const device::OperandA a = device::as_operand_a<T>(p.piece[2 * k], p.piece[2 * k + 1]);
    TILEWISE_UNROLL
    for (int n = 0; n < o.pieces; n += 2) {
      device::OperandB v[2];
      device::load_operands_b_transposed(v, t.V[stage], 16 * k, n);
      device::multiply<T>(o.piece[n], a, v[0]);
      device::multiply<T>(o.piece[n + 1], a, v[1]);
    }
  }
}
// [end products]

// [snippet kernel]
template <class T, int D>
__global__ void __launch_bounds__(threads) attend_rows_of_warps(CudaArgs args) {
  auto& t = device::shared_memory<Tiles<T, D>>();
  const std::int64_t h = blockIdx.y, b = blockIdx.z;
  const auto Q = query_head<const T>(args, args.q, b, h);
  const auto K = key_head<const T>(args, args.k, b, kv_head(args, h));
  const auto V = key_head<const T>(args, args.v, b, kv_head(args, h));
  const int N = static_cast<int>(args.seqlen_k), rows = static_cast<int>(args.seqlen_q);
  const int i0 = static_cast<int>(blockIdx.x) * Br, mine = i0 + 16 * device::warp_index();
  const device::Mask mask = {rows, N, args.causal};
  const float log2_scale = device::log2_scale_of(args.softmax_scale);

  // A tile's copies are one group: committed even where nothing is left to copy, so that "all but
  // the youngest" means the same in every turn.
  const auto fetch = [&](int j0) {
    const device::Trace mark("copy K, V", j0 / Bc);
    const int stage = j0 / Bc % 2;
    if (j0 < N) {
      device::copy_tile_async<threads>(t.K[stage], K.row(j0), K.stride, N - j0, K.width);
      device::copy_tile_async<threads>(t.V[stage], V.row(j0), V.stride, N - j0, V.width);
    }
    device::cp_async_commit();
  };
  device::copy_tile_async<threads>(t.Q, Q.row(i0), Q.stride, rows - i0, Q.width);
  fetch(0);
  if (args.softmax_scale < 0) {
    device::cp_async_wait<0>();
    device::negate_copied<threads>(t.Q);
  }

  device::OnlineSoftmax softmax;
  device::WarpTile<D> o;
  o.clear();
  for (int j0 = 0; j0 < N; j0 += Bc) {
    const int tile = j0 / Bc, stage = tile % 2;
    fetch(j0 + Bc);
    device::cp_async_wait<1>();
    __syncthreads();  // this tile is there, for all
    {
      const device::Trace mark("compute", tile);
      device::WarpTile<Bc> s;
      scores(t, stage, s);
      mask.apply(s, mine, j0);
      device::rescale(o, softmax.absorb(s, log2_scale));
      add_values(t, stage, s, o);
    }
    __syncthreads();  // all are done with it: the turn after next may fill it
  }
  device::cp_async_wait<0>();  // of Q's copies, where there was no key

  const device::OfRows lse = softmax.finish(o);
  const auto O = query_head<T>(args, args.o, b, h);
  device::store_tile(o, O.row(mine), O.stride, rows - mine, O.width);
  device::store_lse(lse, args.lse + row_number(args, b, h, mine), rows - mine);
}
// [end kernel]

Status run(const CudaArgs& args) {
  if (args.batch * args.nheads_q * args.seqlen_q == 0) return {};
  return with_halves(args, [&](auto number, auto D) {
    using T = decltype(number);
    const device::Grid grid = grid_of_row_blocks(args, Br, threads, sizeof(Tiles<T, D>));
    return device::launch("4c_split_queries", attend_rows_of_warps<T, D>, grid, args);
  });
}

// As 4b's: Q, O and LSE cross once, K and V once a row block, whatever the mask.
double bytes_moved(const CudaArgs& args) {
  const std::int64_t N = args.seqlen_q, d = args.head_dim, blocks = (N + Br - 1) / Br;
  const std::int64_t a_head = 2 * (2 * N * d + blocks * 2 * args.seqlen_k * d) + 4 * N;
  return static_cast<double>(args.batch * args.nheads_q * a_head);
}

}  // namespace

CudaStep split_queries() {
  return {.name = "4c_split_queries",
          .idea = "Each warp has its own rows: P stays in registers, copies run meanwhile.",
          .features = halves,
          .run = run,
          .workspace_bytes = nullptr,
          .bytes_moved = bytes_moved};
}

}  // namespace tilewise::stages::inline TILEWISE_TARGET
