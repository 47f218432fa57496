// 5a. TMA and wgmma: 4d's loop with Hopper's two engines, and everybody waits.
//
// One thread asks the copy engine for a whole tile (cuda/device/ptx/tma.hpp): no thread computes an
// address, and no register holds what is on its way. A warpgroup, which is four warps, asks for a
// whole product (cuda/device/ptx/wgmma.hpp): 64 rows by as many columns as the tile has. It reads
// Q, K and V from shared memory by itself, and P and O from registers: there is no ldmatrix any
// more.
//
// Both engines run beside the threads that asked. Here nobody makes use of that: each product is
// waited for where it is issued. As in 4d, K has one buffer and V another, filled while the other
// one is computed with.
//
//     copy engine   K0, V0 |            | K1                     | V1            |
//     tensor cores         | Q K0^T     |            | P V0      |   | Q K1^T    |
//     threads              | wait       | softmax    | wait      |   | wait      | softmax
//
// That a tile is there, an mbarrier says: thread 0 announces so many bytes, the engine counts them
// down, and everybody waits for the phase to end. That a tile may be overwritten, __syncthreads()
// says.
//
// Contract
//   grid     blocks() of cuda/device/scheduler.hpp: a block of one warpgroup for each 64 rows of a
//            head
//   shared   Q, K, V: 40, 80 KiB for D = 64, 128; two blocks share a multiprocessor
//   waits    an mbarrier each for Q, K and V; two __syncthreads() a tile: all are done with K, all
//            are done with V
//   memory   no workspace; the same bits in every run
#include "cuda/device/shared.hpp"
#include "cuda/device/slab_tile.hpp"
#include "cuda/device/trace.hpp"
#include "stages/cuda_hopper.hpp"

namespace tilewise::stages::inline TILEWISE_TARGET {
namespace {

// [snippet configuration]
constexpr int threads = device::warpgroup_threads, Br = 64, Bc = 128;

template <class T, int D>
struct Tiles {
  device::SlabTile<T, Br, D> Q;
  device::SlabTile<T, Bc, D> K, V;
  device::Mbarrier q_full, k_full, v_full;
};
static_assert(2 * sizeof(Tiles<device::f16, 128>) <= 227 * 1024, "two blocks on an H100");
// [end configuration]

// [snippet kernel]
template <class T, int D>
__global__ void __launch_bounds__(threads, 2)
    one_warpgroup(const __grid_constant__ HeadMaps maps, CudaArgs args, device::Schedule schedule) {
  auto& t = device::shared_memory<Tiles<T, D>>();
  const BlockRows rows = rows_of_block<Br, Bc>(args, schedule);
  const device::Work work = rows.work;
  const int tiles = rows.tiles, row = rows.first_row + 16 * device::warp_index();
  const bool asks = threadIdx.x == 0;
  if (asks) {
    device::mbarrier_init(t.q_full, 1);  // one arrives: who announces the bytes
    device::mbarrier_init(t.k_full, 1);
    device::mbarrier_init(t.v_full, 1);
    device::mbarrier_fence_init();
  }
  __syncthreads();

  const auto fetch = [&](auto& to, const device::TensorMap& map, device::Mbarrier& full,
                         const device::Box& from) {
    device::mbarrier_arrive_expect(full, to.bytes);
    device::load_box(to, 0, map, from, full);
  };
  const auto fetch_k = [&](int tile) {
    if (!asks || tile < 0) return;
    const device::Trace mark("load K", tile);
    fetch(t.K, maps.k, t.k_full, {tile * Bc, work.head_k, work.batch});
  };
  const auto fetch_v = [&](int tile) {
    if (!asks || tile < 0) return;
    const device::Trace mark("load V", tile);
    fetch(t.V, maps.v, t.v_full, {tile * Bc, work.head_k, work.batch});
  };
  if (asks && tiles > 0) fetch(t.Q, maps.q, t.q_full, {rows.first_row, work.head_q, work.batch});
  fetch_k(tiles - 1);
  fetch_v(tiles - 1);

  device::OnlineSoftmax softmax;
  device::WarpTile<D> o;
  o.clear();
  if (tiles > 0) device::mbarrier_wait(t.q_full, 0);
  unsigned parity = 0;  // of the phase in which K and V of this tile come
  for (int tile = tiles - 1; tile >= 0; --tile, parity ^= 1) {
    device::WarpTile<Bc> s;
    device::mbarrier_wait(t.k_full, parity);
    {
      const device::Trace mark("S = Q K^T", tile);
      device::wgmma_fence();
      device::issue_scores<T, Br, D>(s, t.Q.describe(), t.K.describe());
      device::wgmma_commit();
      device::wgmma_wait<0>();
      device::arrived(s);
    }
    __syncthreads();  // all are done with K
    fetch_k(tile - 1);
    device::OperandA p[Bc / 16];
    device::rescale(o, softmax_of_tile(softmax, s, args, rows.mask, row, tile));
    device::as_operands<T>(p, s);
    device::mbarrier_wait(t.v_full, parity);
    {
      const device::Trace mark("O += P V", tile);
      device::wgmma_fence();
      device::issue_values<T, Bc>(o, p, t.V.describe());
      device::wgmma_commit();
      device::wgmma_wait<0>();
      device::arrived(o);
    }
    __syncthreads();  // all are done with V
    fetch_v(tile - 1);
  }
  const device::Trace mark("store O", work.row_block);
  store_rows<T>(args, work, row, softmax, o);
}
// [end kernel]

Status run(const CudaArgs& args) {
  return with_halves(args, [&](auto number, auto D) {
    using T = decltype(number);
    return launch_hopper<T>("5a_tma_wgmma", one_warpgroup<T, D>, args,
                            {Br, Bc, threads, sizeof(Tiles<T, D>)});
  });
}

// As 4d's: a row block's Q, and K and V as far as its last row sees.
double bytes_moved(const CudaArgs& args) {
  return bytes_of_tiles(args, Br, Bc);
}

}  // namespace

CudaStep tma_wgmma() {
  return {.name = "5a_tma_wgmma",
          .idea = "Hopper's engines: one thread asks for tiles, a warpgroup for whole products.",
          .features = hopper,
          .run = run,
          .workspace_bytes = nullptr,
          .bytes_moved = bytes_moved};
}

}  // namespace tilewise::stages::inline TILEWISE_TARGET
