// The forward kernel for sm_80 and later: FlashAttention-2 (Dao 2023, arXiv 2307.08691, Algorithm
// 1), for head_dim 64, 128 and 256 of f16 or bf16, full or causal. The course's 4d is where it
// comes from (stages/4_fa2_cuda/README.md); what it has beyond that: any strides, a tile for 256,
// and a mask that exists only where it is compiled in.
//
// Contract
//   grid      Schedule::blocks() blocks of Tile::warps warps, one for each Br rows of a head
//   shared    Q, K, V of a tile: 48, 64, 96 KiB. Two blocks fit on an A100 (163 KiB) but for d 256;
//             an RTX 3090 has 99 KiB, which is enough for one
//   threads   each warp has `heights` times 16 rows: its O and S are registers
//   copies    K of the next tile arrives while softmax and P V go on, V of this one under Q K^T:
//
//     copies     K0 | V0      |  K1               |  V1     |  ...
//     compute       | Q K0^T  |  softmax, P V0    | Q K1^T  |  ...
//
//   waits     cp.async's own, and two __syncthreads() a tile: K is there and V is free; V is there
//             and K is free
//   memory    O, and LSE where it is wanted; no workspace; the same bits in every run
#pragma once

#include "cuda/device/copy.hpp"
#include "cuda/device/epilogue.hpp"
#include "cuda/device/mask.hpp"
#include "cuda/device/operands.hpp"
#include "cuda/device/scheduler.hpp"
#include "cuda/device/shared.hpp"
#include "cuda/device/softmax.hpp"
#include "cuda/kernels/sm80/forward.hpp"

namespace tilewise::cuda::sm80::inline TILEWISE_TARGET {

// ------------------------------------------------------------------------------------- the tile
// [snippet tile]
/// Of a thread's 255 registers, O takes heights * D / 2 and S heights * Bc / 2: the tile is what is
/// left room for. Two heights, so that a fragment of K or V from shared memory serves two products;
/// at 256, O of one height is 128 registers already.
template <int D>
struct Tile {
  static constexpr int warps = 4, threads = 32 * warps;
  static constexpr int heights = D == 256 ? 1 : 2;
  static constexpr int Br = 16 * heights * warps;
  static constexpr int Bc = D == 64 ? 128 : 64;
  static_assert(heights * (D + Bc) / 2 <= 192, "registers");
};

template <class T, int D>
struct Shared {
  device::SwizzledTile<T, Tile<D>::Br, D> Q;
  device::SwizzledTile<T, Tile<D>::Bc, D> K, V;
};
static_assert(2 * sizeof(Shared<device::f16, 128>) <= 163 * 1024, "two blocks on an A100");
static_assert(sizeof(Shared<device::f16, 256>) <= 99 * 1024, "one on an RTX 3090");
// [end tile]

/// Rows of one head.
template <class T>
struct Rows {
  T* data;
  std::int64_t stride;
  int count;

  __device__ Rows(T* tensor, const Layout& at, int b, int h, int rows)
      : data(tensor + b * at.batch + h * at.head), stride(at.row), count(rows) {}
  __device__ T* from(int row) const { return data + row * stride; }
};

// ------------------------------------------------------------------------------ the two products
// [snippet products]
/// S = Q K^T of the warp's rows.
template <class T, int D>
__device__ __forceinline__ void scores(Shared<T, D>& shared,
                                       device::WarpTile<Tile<D>::Bc> (&s)[Tile<D>::heights]) {
  constexpr int heights = Tile<D>::heights;
  const int first = 16 * heights * device::warp_index();
  TILEWISE_UNROLL
  for (auto& tile : s) tile.clear();
  TILEWISE_UNROLL
  for (int k = 0; k < D / 16; ++k) {
    device::OperandA q[heights];
    TILEWISE_UNROLL
    for (int y = 0; y < heights; ++y)
      q[y] = device::load_operand_a(shared.Q, first + 16 * y, 2 * k);
    TILEWISE_UNROLL
    for (int n = 0; n < Tile<D>::Bc / 8; n += 2) {
      device::OperandB key[2];
      device::load_operands_b(key, shared.K, 8 * n, 2 * k);
      TILEWISE_UNROLL
      for (int y = 0; y < heights; ++y) {
        device::multiply<T>(s[y].piece[n], q[y], key[0]);
        device::multiply<T>(s[y].piece[n + 1], q[y], key[1]);
      }
    }
  }
}

/// O += P V. P is S's own registers, rounded to T (cuda/device/fragment.hpp).
template <class T, int D>
__device__ __forceinline__ void add_values(
    Shared<T, D>& shared, const device::WarpTile<Tile<D>::Bc> (&p)[Tile<D>::heights],
    device::WarpTile<D> (&o)[Tile<D>::heights]) {
  constexpr int heights = Tile<D>::heights;
  TILEWISE_UNROLL
  for (int k = 0; k < Tile<D>::Bc / 16; ++k) {
    device::OperandA a[heights];
    TILEWISE_UNROLL
    for (int y = 0; y < heights; ++y)
      a[y] = device::as_operand_a<T>(p[y].piece[2 * k], p[y].piece[2 * k + 1]);
    TILEWISE_UNROLL
    for (int n = 0; n < D / 8; n += 2) {
      device::OperandB v[2];
      device::load_operands_b_transposed(v, shared.V, 16 * k, n);
      TILEWISE_UNROLL
      for (int y = 0; y < heights; ++y) {
        device::multiply<T>(o[y].piece[n], a[y], v[0]);
        device::multiply<T>(o[y].piece[n + 1], a[y], v[1]);
      }
    }
  }
}
// [end products]

// ------------------------------------------------------------------------------------ the kernel
// [snippet kernel]
template <class T, int D, bool Causal>
__global__ void __launch_bounds__(Tile<D>::threads, 2)
    forward_kernel(ForwardProblem problem, device::Schedule schedule) {
  using Tile = sm80::Tile<D>;
  auto& shared = device::shared_memory<Shared<T, D>>();
  const device::Work work = schedule.work_of(blockIdx.x);
  const device::Mask mask = {problem.seqlen_q, problem.seqlen_k, Causal};
  const Rows Q(static_cast<const T*>(problem.q), problem.q_layout, work.batch, work.head_q,
               problem.seqlen_q);
  const Rows K(static_cast<const T*>(problem.k), problem.k_layout, work.batch, work.head_k,
               problem.seqlen_k);
  const Rows V(static_cast<const T*>(problem.v), problem.v_layout, work.batch, work.head_k,
               problem.seqlen_k);
  const int first = work.row_block * Tile::Br;
  const int mine = first + 16 * Tile::heights * device::warp_index();
  const float log2_scale = device::log2_scale_of(problem.softmax_scale);

  // The copies that follow a tile are a group, be it empty: then each wait means the same.
  const auto fetch = [](const Rows<const T>& rows, int tile, auto& to) {
    if (tile >= 0)
      device::copy_tile_async<Tile::threads>(to, rows.from(tile * Tile::Bc), rows.stride,
                                             rows.count - tile * Tile::Bc, D);
    device::cp_async_commit();
  };
  // From the last tile that the block's last row sees down to the first: those that the diagonal
  // or the end cuts are met at once, and the causal mask's maxima early.
  const int tiles = mask.tiles_of(first, Tile::Br, Tile::Bc);
  device::copy_tile_async<Tile::threads>(shared.Q, Q.from(first), Q.stride, Q.count - first, D);
  fetch(K, tiles - 1, shared.K);
  if (problem.softmax_scale < 0) {
    device::cp_async_wait<0>();
    device::negate_copied<Tile::threads>(shared.Q);
  }

  device::OnlineSoftmax softmax[Tile::heights];
  device::WarpTile<D> o[Tile::heights];
  TILEWISE_UNROLL
  for (auto& rows : o) rows.clear();
  for (int tile = tiles - 1; tile >= 0; --tile) {
    device::cp_async_wait<0>();
    __syncthreads();  // K is there, and all are done with V
    fetch(V, tile, shared.V);
    device::WarpTile<Tile::Bc> s[Tile::heights];
    scores(shared, s);
    device::cp_async_wait<0>();
    __syncthreads();  // V is there, and all are done with K
    fetch(K, tile - 1, shared.K);
    TILEWISE_UNROLL
    for (int y = 0; y < Tile::heights; ++y) {
      const int row = mine + 16 * y, key = tile * Tile::Bc;
      if (mask.cuts(row, key, Tile::Bc)) mask.apply(s[y], row, key);
      device::rescale_if_grown(o[y], softmax[y].absorb(s[y], log2_scale));
    }
    add_values(shared, s, o);
  }
  device::cp_async_wait<0>();  // of Q's copies, where there was no key

  const Rows O(static_cast<T*>(problem.o), problem.o_layout, work.batch, work.head_q,
               problem.seqlen_q);
  const std::int64_t head = static_cast<std::int64_t>(work.batch) * problem.nheads_q + work.head_q;
  TILEWISE_UNROLL
  for (int y = 0; y < Tile::heights; ++y) {
    const int row = mine + 16 * y;
    device::OfRows lse = softmax[y].finish(o[y]);
    device::store_tile(o[y], O.from(row), O.stride, O.count - row, D);
    for (float& of_row : lse.row) of_row *= problem.lse_unit;
    if (problem.lse != nullptr)
      device::store_lse(lse, problem.lse + head * problem.seqlen_q + row, O.count - row);
  }
}
// [end kernel]

template <class T, int D, bool Causal>
Status launch_forward(const ForwardProblem& problem, device::StreamHandle stream) {
  const int row_blocks = (problem.seqlen_q + Tile<D>::Br - 1) / Tile<D>::Br;
  const std::int64_t bytes_a_head = std::int64_t{2} * sizeof(T) * D * problem.seqlen_k;
  const device::Schedule schedule = {
      problem.batch,
      problem.nheads_q,
      problem.nheads_k,
      row_blocks,
      Causal,
      device::Schedule::section_of(bytes_a_head, problem.nheads_q / problem.nheads_k)};
  const device::Grid grid = {{schedule.blocks()}, {Tile<D>::threads}, sizeof(Shared<T, D>), stream};
  return device::launch("cuda.sm80 forward", forward_kernel<T, D, Causal>, grid, problem, schedule);
}

}  // namespace tilewise::cuda::sm80::inline TILEWISE_TARGET
