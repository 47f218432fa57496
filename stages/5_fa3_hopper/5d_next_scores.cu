// 5d. The next tile's scores under this tile's softmax: two products under way, and only the first
// one waited for.
//
// In 5c the tensor cores have work during a softmax if the other consumer has just issued some.
// Here each consumer has its own, too (FlashAttention-3, arXiv 2407.08608, section 3.2 and
// Algorithm 2): it issues the scores of tile n, and behind them the values of tile n + 1, of which
// P is ready. It waits until one group is left, which is the scores, and while the values are
// summed it computes softmax n. Then it waits for the values, and only now may change O and P,
// which they used.
//
//     issued by one consumer:   QK(n)  PV(n+1)                               QK(n-1)  PV(n)
//     tensor cores              | QK(n) | PV(n+1)      |                     | QK(n-1) | PV(n)
//     its threads               | wait  | softmax n            | O r, P      | wait    | softmax
//     n-1
//                                       wait<1>        wait<0>
//
// What it costs is registers: S of tile n and P of tile n + 1 live at the same time.
//
// The first tile has no values before it, and the last one no scores behind it: both stand outside
// of the loop.
//
// Contract
//   grid, shared, waits, memory   5c's
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
  device::Cursor<stages> k, v;
  device::TraceSpan scores, values;
  o.clear();
  const auto issue_scores = [&](int tile) {
    scores.begin("S = Q K^T", tile);
    device::wgmma_fence();
    device::issue_scores<T, Br, D>(s, queries, t.K[k.stage].describe());
    device::wgmma_commit();
  };
  const auto issue_values = [&](int tile) {
    t.v.wait_full(v);
    values.begin("O += P V", tile);
    device::wgmma_fence();
    device::issue_values<T, Bc>(o, p, t.V[v.stage].describe());
    device::wgmma_commit();
  };
  const auto scores_arrived = [&] {
    device::arrived(s);
    scores.end();
    t.k.release(k);
    k.advance();
  };
  const auto values_arrived = [&] {
    device::arrived(o);
    values.end();
    t.v.release(v);
    v.advance();
  };

  turns.begin();
  if (rows.tiles > 0) {
    device::mbarrier_wait(t.q_full, 0);
    t.k.wait_full(k);
    turns.wait();
    issue_scores(rows.tiles - 1);
    turns.pass_on();
    device::wgmma_wait<0>();
    scores_arrived();
    softmax_of_tile(softmax, s, args, rows.mask, row, rows.tiles - 1);  // O is zero: no factor
    device::as_operands<T>(p, s);
    if (rows.tiles > 1) t.k.wait_full(k);
    for (int tile = rows.tiles - 2; tile >= 0; --tile) {
      turns.wait();
      device::arrived(o);  // written, for the compiler, before the products begin
      device::arrived(p);
      issue_scores(tile);
      issue_values(tile + 1);
      turns.pass_on();
      device::wgmma_wait<1>();
      scores_arrived();
      const device::OfRows factor = softmax_of_tile(softmax, s, args, rows.mask, row, tile);
      device::arrived(s);
      // ptxas moves a wait up past arithmetic, but not past a branch. This loop is one: without it
      // the values would be waited for before the softmax.
      if (tile > 0) t.k.wait_full(k);
      device::wgmma_wait<0>();
      values_arrived();
      device::rescale(o, factor);
      device::as_operands<T>(p, s);
    }
    device::arrived(o);
    device::arrived(p);
    issue_values(0);
    device::wgmma_wait<0>();
    values_arrived();
  }
  turns.end();
  const device::Trace mark("store O", rows.work.row_block);
  store_rows<T>(args, rows.work, row, softmax, o);
}
// [end consumer]

// [snippet kernel]
template <class T, int D>
__global__ void __launch_bounds__(threads, 1)
    scores_ahead(const __grid_constant__ HeadMaps maps, CudaArgs args, device::Schedule schedule) {
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
    return launch_hopper<T>("5d_next_scores", scores_ahead<T, D>, args,
                            {Br, Bc, threads, sizeof(Tiles<T, D>)});
  });
}

// 5b's.
double bytes_moved(const CudaArgs& args) {
  return bytes_of_tiles(args, Br, Bc);
}

}  // namespace

CudaStep next_scores() {
  return {
      .name = "5d_next_scores",
      .idea = "The next tile's scores are computed under this tile's softmax, in each consumer.",
      .features = hopper,
      .run = run,
      .workspace_bytes = nullptr,
      .bytes_moved = bytes_moved};
}

}  // namespace tilewise::stages::inline TILEWISE_TARGET
