// 5b. A producer and its consumers around a ring of buffers: who copies does not compute.
//
// 5a's thread 0 asks for the next tile when it gets there, and all others wait for it. Here a warp
// does nothing but ask ("warp specialisation"), and is as far ahead as there is room: K and V have
// two buffers each. Between it and those who compute, each buffer has two mbarriers, full and empty
// (cuda/device/pipeline.hpp), and nobody else waits: __syncthreads() is gone.
//
//     producer     | K2 V2 | K1 V1 | -- until a buffer is empty -- | K0 V0 |
//     ring         [ 0: K2 V2 ] [ 1: K1 V1 ] [ 0: K0 V0 ]
//     consumer 1           | Q K2^T | softmax | P V2 | Q K1^T | softmax | P V1 | Q K0^T | ...
//     consumer 2           | Q K2^T | softmax | P V2 | Q K1^T | softmax | P V1 | Q K0^T | ...
//
// The consumers are two warpgroups of 64 rows each: a tile of K and V serves 128 rows, so that half
// as many bytes come from the second-level cache as in 5a.
//
// Registers: a kernel is launched with as many for every thread, and 65536 / 384 would be 168 of
// them. The producer's four warps hand theirs back, but for 40, and the consumers ask for 232:
// 40 + 2 x 232 = 504 = 3 x 168 (cuda/device/ptx/register_budget.hpp). O, S and P take 160 of them
// at D = 128.
//
// Contract
//   grid     as 5a's, with 128 rows a block of three warpgroups
//   shared   Q, and two stages of K and V: 80, 160 KiB for D = 64, 128; one block
//   waits    an mbarrier for Q; full and empty for each buffer. 8 arrivals make one empty: one for
//            each consumer warp
//   memory   no workspace; the same bits in every run
#include "cuda/device/pipeline.hpp"
#include "cuda/device/ptx/elect.hpp"
#include "cuda/device/ptx/register_budget.hpp"
#include "cuda/device/shared.hpp"
#include "cuda/device/slab_tile.hpp"
#include "cuda/device/trace.hpp"
#include "stages/cuda_hopper.hpp"

namespace tilewise::stages::inline TILEWISE_TARGET {
namespace {

// [snippet configuration]
constexpr int consumers = 2, threads = (1 + consumers) * device::warpgroup_threads;
constexpr int Br = 64 * consumers, Bc = 128, stages = 2;

template <class T, int D>
struct Tiles {
  device::SlabTile<T, Br, D> Q;
  device::SlabTile<T, Bc, D> K[stages], V[stages];
  device::Mbarrier q_full;
  device::Pipeline<stages> k, v;
};
static_assert(sizeof(Tiles<device::f16, 128>) <= 227 * 1024, "an H100's");
// [end configuration]

// [snippet producer]
/// One thread: Q, and then K and V as soon as there is room.
template <class T, int D>
__device__ __forceinline__ void produce(Tiles<T, D>& t, const HeadMaps& maps,
                                        const BlockRows& rows) {
  const device::Work work = rows.work;
  if (rows.tiles == 0) return;
  device::mbarrier_arrive_expect(t.q_full, t.Q.bytes);
  device::load_box(t.Q, 0, maps.q, {rows.first_row, work.head_q, work.batch}, t.q_full);
  device::Cursor<stages> at;
  for (int tile = rows.tiles - 1; tile >= 0; --tile, at.advance()) {
    const device::Box box = {tile * Bc, work.head_k, work.batch};
    device::Mbarrier& k_full = t.k.begin_fill(at, t.K->bytes);
    device::trace_point("load K", tile);
    device::load_box(t.K[at.stage], 0, maps.k, box, k_full);
    device::Mbarrier& v_full = t.v.begin_fill(at, t.V->bytes);
    device::trace_point("load V", tile);
    device::load_box(t.V[at.stage], 0, maps.v, box, v_full);
  }
}
// [end producer]

// [snippet consumer]
/// One warpgroup: 64 of the block's rows.
template <class T, int D>
__device__ __forceinline__ void consume(Tiles<T, D>& t, const CudaArgs& args, const BlockRows& rows,
                                        int mine) {
  const int row = rows.first_row + 64 * mine + 16 * (device::warp_index() % 4);
  const device::MatrixDescriptor queries = t.Q.describe(64 * mine);
  device::OnlineSoftmax softmax;
  device::WarpTile<D> o;
  o.clear();
  if (rows.tiles > 0) device::mbarrier_wait(t.q_full, 0);
  device::Cursor<stages> at;
  for (int tile = rows.tiles - 1; tile >= 0; --tile, at.advance()) {
    device::WarpTile<Bc> s;
    t.k.wait_full(at);
    {
      const device::Trace mark("S = Q K^T", tile);
      device::wgmma_fence();
      device::issue_scores<T, Br, D>(s, queries, t.K[at.stage].describe());
      device::wgmma_commit();
      device::wgmma_wait<0>();
      device::arrived(s);
    }
    t.k.release(at);
    device::OperandA p[Bc / 16];
    device::rescale(o, softmax_of_tile(softmax, s, args, rows.mask, row, tile));
    device::as_operands<T>(p, s);
    t.v.wait_full(at);
    {
      const device::Trace mark("O += P V", tile);
      device::wgmma_fence();
      device::issue_values<T, Bc>(o, p, t.V[at.stage].describe());
      device::wgmma_commit();
      device::wgmma_wait<0>();
      device::arrived(o);
    }
    t.v.release(at);
  }
  const device::Trace mark("store O", rows.work.row_block);
  store_rows<T>(args, rows.work, row, softmax, o);
}
// [end consumer]

// [snippet kernel]
template <class T, int D>
__global__ void __launch_bounds__(threads, 1)
    around_a_ring(const __grid_constant__ HeadMaps maps, CudaArgs args, device::Schedule schedule) {
  auto& t = device::shared_memory<Tiles<T, D>>();
  if (threadIdx.x == 0) {
    device::mbarrier_init(t.q_full, 1);
    t.k.init(4 * consumers);
    t.v.init(4 * consumers);
    device::mbarrier_fence_init();
  }
  __syncthreads();
  const BlockRows rows = rows_of_block<Br, Bc>(args, schedule);
  const int group = device::warpgroup_index();
  if (group == 0) {
    device::keep_registers<40>();
    if (device::warp_index() == 0 && device::elect_one()) produce(t, maps, rows);
  } else {
    device::ask_for_registers<232>();
    consume(t, args, rows, group - 1);
  }
}
// [end kernel]

Status run(const CudaArgs& args) {
  return with_halves(args, [&](auto number, auto D) {
    using T = decltype(number);
    return launch_hopper<T>("5b_producer_consumers", around_a_ring<T, D>, args,
                            {Br, Bc, threads, sizeof(Tiles<T, D>)});
  });
}

// 5a's with twice as many rows: K and V half as often.
double bytes_moved(const CudaArgs& args) {
  return bytes_of_tiles(args, Br, Bc);
}

}  // namespace

CudaStep producer_consumers() {
  return {.name = "5b_producer_consumers",
          .idea = "A warp that only copies, two warpgroups that only compute, a ring between them.",
          .features = hopper,
          .run = run,
          .workspace_bytes = nullptr,
          .bytes_moved = bytes_moved};
}

}  // namespace tilewise::stages::inline TILEWISE_TARGET
