// 5c. Ping-pong: the two consumers of 5b take turns, so that the softmax of one runs while the
// tensor cores have the products of the other.
//
// A row of 128 scores costs 128 exponentials. A multiprocessor of an H100 computes 16 a clock, and
// of the products that go with them, at D = 128, 4 x 128 x 128 operations at 4096 a clock: 8 clocks
// of the one for 16 of the other. In 5b nothing keeps the consumers from computing their softmax at
// the same time, with nothing for the tensor cores to do; and they do, since the same mbarrier lets
// both begin. FlashAttention-3 (Shah et al. 2024, arXiv 2407.08608, section 3.1) makes them take
// turns:
//
//     consumer 1   | QK2 | softmax 2 | PV2 QK1 | softmax 1 | PV1 QK0 | softmax 0 | PV0 |
//     consumer 2         | QK2 | softmax 2 | PV2 QK1 | softmax 1 | PV1 QK0 | softmax 0 | PV0 |
//                                ^ turns: who has issued its products passes on
//
// A turn is the values of one tile and the scores of the next, issued together. Each consumer has a
// named barrier: it waits there for its turn, and the other arrives there when it has issued. The
// products themselves need no order; that they are issued in turns is all.
//
// Contract
//   grid, shared, memory   5b's
//   waits    5b's mbarriers; the named barriers 1 and 2, of 256: a consumer that waits for its turn
//            and the one that passes it on
#include "cuda/device/pipeline.hpp"
#include "cuda/device/ptx/barrier.hpp"
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

// [snippet turns]
/// Barrier 1 + c is consumer c's: c waits there, and the other one arrives.
struct Turns {
  int mine;
  static constexpr int both = 2 * device::warpgroup_threads;

  __device__ __forceinline__ void begin() const {
    if (mine == 1) device::barrier_arrive(1, both);  // consumer 0 is first
  }
  __device__ __forceinline__ void wait() const { device::barrier_sync(1 + mine, both); }
  __device__ __forceinline__ void pass_on() const { device::barrier_arrive(2 - mine, both); }
  __device__ __forceinline__ void end() const {
    if (mine == 0) wait();  // the last turn is nobody's: a barrier is left as it was found
  }
};
// [end turns]

// [snippet consumer]
/// One warpgroup: 64 of the block's rows.
template <class T, int D>
__device__ __forceinline__ void consume(Tiles<T, D>& t, const CudaArgs& args, const BlockRows& rows,
                                        int mine) {
  const int row = rows.first_row + 64 * mine + 16 * (device::warp_index() % 4);
  const device::MatrixDescriptor queries = t.Q.describe(64 * mine);
  const Turns turns = {mine};
  device::OnlineSoftmax softmax;
  device::WarpTile<Bc> s;
  device::WarpTile<D> o;
  device::OperandA p[Bc / 16];
  device::Cursor<stages> k, v;  // the scores are a tile ahead of the values
  o.clear();
  const auto issue_scores = [&] {
    device::wgmma_fence();
    device::issue_scores<T, Br, D>(s, queries, t.K[k.stage].describe());
    device::wgmma_commit();
  };
  const auto scores_arrived = [&] {
    device::arrived(s);
    t.k.release(k);
    k.advance();
  };

  turns.begin();
  if (rows.tiles > 0) {
    device::mbarrier_wait(t.q_full, 0);
    t.k.wait_full(k);
    turns.wait();
    const device::Trace mark("S = Q K^T", rows.tiles - 1);
    issue_scores();
    turns.pass_on();
    device::wgmma_wait<0>();
    scores_arrived();
  }
  for (int tile = rows.tiles - 1; tile >= 0; --tile) {
    device::rescale(o, softmax_of_tile(softmax, s, args, rows.mask, row, tile));
    device::as_operands<T>(p, s);
    t.v.wait_full(v);
    if (tile > 0) t.k.wait_full(k);
    turns.wait();
    const device::Trace mark(tile > 0 ? "O += P V, S = Q K^T" : "O += P V", tile);
    device::wgmma_fence();
    device::issue_values<T, Bc>(o, p, t.V[v.stage].describe());
    device::wgmma_commit();
    if (tile > 0) issue_scores();  // of the next tile
    turns.pass_on();
    device::wgmma_wait<0>();
    device::arrived(o);
    t.v.release(v);
    v.advance();
    if (tile > 0) scores_arrived();
  }
  turns.end();
  const device::Trace mark("store O", rows.work.row_block);
  store_rows<T>(args, rows.work, row, softmax, o);
}
// [end consumer]

// [snippet kernel]
template <class T, int D>
__global__ void __launch_bounds__(threads, 1)
    in_turns(const __grid_constant__ HeadMaps maps, CudaArgs args, device::Schedule schedule) {
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
    return launch_hopper<T>("5c_ping_pong", in_turns<T, D>, args,
                            {Br, Bc, threads, sizeof(Tiles<T, D>)});
  });
}

// 5b's.
double bytes_moved(const CudaArgs& args) {
  return bytes_of_tiles(args, Br, Bc);
}

}  // namespace

CudaStep ping_pong() {
  return {.name = "5c_ping_pong",
          .idea =
              "Consumers take turns: one's softmax runs while the tensor cores have the other's "
              "products.",
          .features = hopper,
          .run = run,
          .workspace_bytes = nullptr,
          .bytes_moved = bytes_moved};
}

}  // namespace tilewise::stages::inline TILEWISE_TARGET
