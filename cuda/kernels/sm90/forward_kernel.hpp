// The forward kernel for Hopper: FlashAttention-3 (Shah et al. 2024, arXiv 2407.08608), for
// head_dim 64, 128 and 256 of f16 or bf16, full or causal. The course's 5a to 5d lead to it
// (stages/5_fa3_hopper/README.md).
//
//   producer     one thread asks the copy engine for tiles of Q, K and V, as soon as there is room
//   consumers    two or three warpgroups, each with 64 rows: S = Q K^T and O += P V by wgmma, which
//                reads shared memory by itself, and softmax between them
//
// A consumer issues the scores of its next tile before the values of this one, so that the tensor
// cores have work while it exponentiates (the paper's algorithm 2); and consumers take turns at
// issuing, so that one's exponentials run under the other's products ("ping-pong"):
//
//     consumer 1   | QK1 PV0 | softmax 1 ........ | QK2 PV1 | softmax 2 ........ |
//     consumer 2             | QK1 PV0 | softmax 1 ........ | QK2 PV1 | softmax 2 ...
//     tensor cores | 1       | 2       | 1                  | 2       | 1 ...
//
// Contract
//   grid      as many blocks as there are multiprocessors, or less: each goes on with the next
//             piece of work, one row block of a head, until none is left
//   shared    Shared: Q, a ring of K and V, O on its way out. 224 KiB at most: one block
//   threads   warpgroup 0 is the producer and keeps 40 (32) registers a thread; the consumers ask
//             for 232 (160)
//   waits     mbarriers, full and empty, for every buffer; named barriers 1 to 3 for turns
//   memory    O, and LSE where it is wanted; the same bits in every run
//
// Everything that a warp branches on or addresses with is the same in all lanes, and written so
// that the compiler sees it (warpgroup_index(), a shuffle behind what comes from shared memory):
// else descriptors lie in registers of each lane, and moving them before each wgmma costs 5 to 10
// %.
#pragma once

#include "cuda/device/band.hpp"
#include "cuda/device/epilogue.hpp"
#include "cuda/device/mask.hpp"
#include "cuda/device/pipeline.hpp"
#include "cuda/device/ptx/barrier.hpp"
#include "cuda/device/ptx/elect.hpp"
#include "cuda/device/ptx/proxy.hpp"
#include "cuda/device/ptx/register_budget.hpp"
#include "cuda/device/ptx/stmatrix.hpp"
#include "cuda/device/scheduler.hpp"
#include "cuda/device/shared.hpp"
#include "cuda/device/slab_tile.hpp"
#include "cuda/device/softmax.hpp"
#include "cuda/device/trace.hpp"
#include "cuda/device/warpgroup.hpp"
#include "cuda/kernels/sm90/forward.hpp"

namespace tilewise::cuda::sm90::inline TILEWISE_TARGET {

// ------------------------------------------------------------------------------------- the tiles
// [snippet shared]
template <class Tile>
constexpr int rows_of = 64 * Tile::consumers;
template <class Tile>
constexpr int threads_of = device::warpgroup_threads*(1 + Tile::consumers);

/// A piece of work: `tiles` of keys for a row block. -1 tiles: there is no more.
struct alignas(16) Item {
  int tiles, row_block, head_q, batch;
};

/// Which keys rows look at, as far as this instantiation knows.
template <Looks looks>
__device__ __forceinline__ auto visible(const ForwardProblem& problem) {
  if constexpr (looks == Looks::band)
    return device::Band{problem.seqlen_q, problem.seqlen_k, problem.left, problem.right};
  else
    return device::Mask{problem.seqlen_q, problem.seqlen_k, looks == Looks::causal};
}

template <class T, class Tile>
struct Shared {
  static constexpr int D = Tile::head_dim, Dv = Tile::head_dim_v;
  static constexpr int Br = rows_of<Tile>, Bc = Tile::Bc;
  device::SlabTile<T, Br, D> Q[Tile::q_stages];
  device::SlabTile<T, Bc, D> K[Tile::stages];
  device::SlabTile<T, Bc, Dv> V[Tile::stages];
  device::SlabTile<T, Tile::stages_o ? Br : 8, Tile::stages_o ? Dv : 64> O;
  Item item[Tile::q_stages];
  device::Pipeline<Tile::q_stages> q[Tile::consumers];  ///< each has its own 64 rows
  device::Pipeline<Tile::stages> k, v;
};
static_assert(sizeof(Shared<device::f16, Forward64>) <= 227 * 1024);
static_assert(sizeof(Shared<device::f16, Forward64Short>) <= 227 * 1024);
static_assert(sizeof(Shared<device::f16, Forward128>) <= 227 * 1024);
static_assert(sizeof(Shared<device::f16, Forward192>) <= 227 * 1024);
static_assert(sizeof(Shared<device::f16, Forward256>) <= 227 * 1024);

/// The tensors, as the copy engine knows them; boxes are what is copied at once.
struct Maps {
  device::TensorMap q, k, v, o;
};
// [end shared]

// ----------------------------------------------------------------------------------- the producer
// [snippet producer]
/// Walks through the block's work and keeps the rings full. One thread.
template <class T, class Tile, Looks looks>
__device__ __forceinline__ void produce(Shared<T, Tile>& shared, const Maps& maps,
                                        const ForwardProblem& problem,
                                        const device::Schedule& schedule, unsigned* next) {
  using Shared = sm90::Shared<T, Tile>;
  const auto mask = visible<looks>(problem);
  const auto items = static_cast<int>(schedule.blocks());
  const auto blocks = static_cast<int>(gridDim.x);
  device::Cursor<Tile::q_stages> q;
  device::Cursor<Tile::stages> k, v;
  for (auto number = static_cast<int>(blockIdx.x);;) {
    const bool last = number >= items;
    const device::Work work = schedule.work_of(last ? 0u : static_cast<unsigned>(number));
    const int first = work.row_block * Shared::Br;
    const int tiles = last ? -1 : mask.tiles_of(first, Shared::Br, Shared::Bc);
    const int first_tile = mask.first_tile_of(first, Shared::Bc);
    // Asked for now, since the answer takes as long as a copy.
    if (!last)
      number = next != nullptr ? static_cast<int>(atomicAdd(next, 1u)) + blocks : number + blocks;
    const auto fetch_k = [&](int tile) {
      const device::Trace trace("load K", tile);
      device::Mbarrier& full = shared.k.begin_fill(k, shared.K->bytes);
      device::load_box(shared.K[k.stage], 0, maps.k, {tile * Shared::Bc, work.head_k, work.batch},
                       full);
      k.advance();
    };
    const auto fetch_v = [&](int tile) {
      const device::Trace trace("load V", tile);
      device::Mbarrier& full = shared.v.begin_fill(v, shared.V->bytes);
      device::load_box(shared.V[v.stage], 0, maps.v, {tile * Shared::Bc, work.head_k, work.batch},
                       full);
      v.advance();
    };
    // K before Q: its ring has room again while the consumers still look at the last Q.
    if (tiles > 0) fetch_k(first_tile + tiles - 1);
    for (int c = 0; c < Tile::consumers; ++c)
      device::mbarrier_wait(shared.q[c].empty[q.stage], q.parity ^ 1);
    shared.item[q.stage] = {tiles, work.row_block, work.head_q, work.batch};
    for (int c = 0; c < Tile::consumers; ++c) {
      device::Mbarrier& full = shared.q[c].full[q.stage];
      if (tiles <= 0) {
        device::mbarrier_arrive(full);
        continue;
      }
      device::mbarrier_arrive_expect(full, 64 * 2 * Shared::D);
      device::load_box(shared.Q[q.stage], 64 * c, maps.q, {first + 64 * c, work.head_q, work.batch},
                       full);
    }
    q.advance();
    if (last) return;
    // From the last tile that the block's last row sees down to the first: those that the diagonal
    // or the end cuts are met at once, and the causal mask's maxima early.
    for (int tile = first_tile + tiles - 2; tile >= first_tile; --tile) {
      fetch_k(tile);
      fetch_v(tile + 1);
    }
    if (tiles > 0) fetch_v(first_tile);
  }
}
// [end producer]

// ---------------------------------------------------------------------------------- the consumers
/// Whose turn it is to issue products. Barrier 1 + c is consumer c's: who had the turn before
/// arrives there, and c waits. bar.sync counts both.
template <int Consumers>
struct Turns {
  static constexpr int both = 2 * device::warpgroup_threads;
  int mine;

  __device__ __forceinline__ void begin() const {
    if (mine == Consumers - 1) device::barrier_arrive(1, both);  // the first turn is free
  }
  __device__ __forceinline__ void wait() const { device::barrier_sync(1 + mine, both); }
  __device__ __forceinline__ void pass_on() const {
    device::barrier_arrive(1 + (mine + 1 == Consumers ? 0 : mine + 1), both);
  }
  __device__ __forceinline__ void end() const {
    if (mine == 0) wait();  // nobody leaves a barrier half full
  }
};

// [snippet store]
/// O / l and LSE of a warp's 16 rows, the first of which is `row` of the head. `from`: where in
/// shared memory they pass through.
template <class T, class Tile>
__device__ __forceinline__ void store(Shared<T, Tile>& shared, int from, const Maps& maps,
                                      const ForwardProblem& problem, const Item& item, int row,
                                      device::OnlineSoftmax& softmax,
                                      device::WarpTile<Tile::head_dim_v>& o) {
  const device::Trace trace("store O", item.row_block);
  const int lane = device::lane_index();
  device::OfRows lse = softmax.finish(o);
  if (problem.lse != nullptr) {
    const std::int64_t head =
        static_cast<std::int64_t>(item.batch) * problem.nheads_q + item.head_q;
    for (float& of_row : lse.row) of_row *= problem.lse_unit;
    device::store_lse(lse, problem.lse + head * problem.seqlen_q + row, problem.seqlen_q - row);
  }
  if constexpr (Tile::stages_o) {
    if (lane == 0) device::tma_wait_read<0>();  // the rows of the work before have been read
    __syncwarp();
    TILEWISE_UNROLL
    for (int n = 0; n < Tile::head_dim_v / 16; ++n) {
      const device::OperandA a = device::as_operand_a<T>(o.piece[2 * n], o.piece[2 * n + 1]);
      device::stmatrix(shared.O.chunk(n / 4, from + lane % 16, 2 * (n % 4) + lane / 16), a.value);
    }
    device::fence_proxy_async();
    __syncwarp();
    if (lane == 0) {
      device::store_box(shared.O, from, maps.o, {row, item.head_q, item.batch});
      device::tma_commit();
    }
  } else {
    const Layout& at = problem.o_layout;
    device::store_tile_in_chunks(
        o,
        static_cast<T*>(problem.o) + item.batch * at.batch + item.head_q * at.head + row * at.row,
        at.row, problem.seqlen_q - row);
  }
}
// [end store]

// [snippet consumer]
/// 64 rows of every piece of the block's work. One warpgroup.
template <class T, class Tile, Looks looks>
__device__ __forceinline__ void consume(Shared<T, Tile>& shared, int mine, const Maps& maps,
                                        const ForwardProblem& problem) {
  constexpr int D = Tile::head_dim, Br = rows_of<Tile>, Bc = Tile::Bc;
  const auto mask = visible<looks>(problem);
  const bool caps = looks == Looks::band && problem.softcap > 0;
  // Capped scores have been scaled.
  const float log2_scale = device::log2_scale_of(caps ? 1.0f : problem.softmax_scale);
  const Turns<Tile::consumers> turns = {mine};
  const int rows = 64 * mine + 16 * (device::warp_index() % 4);  // the warp's, of the row block
  device::Cursor<Tile::q_stages> q;
  device::Cursor<Tile::stages> k, v;
  device::WarpTile<Bc> s;
  device::WarpTile<Tile::head_dim_v> o;
  device::OperandA p[Bc / 16];
  const device::MatrixDescriptor all_q = device::uniform(shared.Q->describe(64 * mine)),
                                 all_k = device::uniform(shared.K->describe()),
                                 all_v = device::uniform(shared.V->describe());
  turns.begin();
  for (;; q.advance()) {
    shared.q[mine].wait_full(q);
    Item item = shared.item[q.stage];
    item.tiles = device::uniform(item.tiles);
    if (item.tiles < 0) break;
    const int row = item.row_block * Br + rows;
    const device::MatrixDescriptor queries = all_q.advanced(q.stage * shared.Q->bytes);
    const int first_tile = device::uniform(mask.first_tile_of(item.row_block * Br, Bc));
    device::OnlineSoftmax softmax;
    if (problem.sinks != nullptr)
      softmax.begin_with(problem.sinks[item.head_q * problem.sink_stride]);
    o.clear();

    const auto issue_scores = [&] {
      device::wgmma_fence();
      device::issue_scores<T, Br, D>(s, queries, all_k.advanced(k.stage * shared.K->bytes));
      device::wgmma_commit();
    };
    const auto issue_values = [&] {
      shared.v.wait_full(v);
      device::wgmma_fence();
      device::issue_values<T, Bc>(o, p, all_v.advanced(v.stage * shared.V->bytes));
      device::wgmma_commit();
    };
    const auto scores_arrived = [&](int tile) {
      device::arrived(s);
      shared.k.release(k);
      k.advance();
      if (tile == first_tile) shared.q[mine].release(q);
    };
    const auto values_arrived = [&] {
      device::arrived(o);
      shared.v.release(v);
      v.advance();
    };
    // Masked scores become P, still as floats; the factor is for O.
    const auto softmax_of = [&](int tile) {
      const device::Trace trace("softmax", tile);
      if (caps) device::cap(s, problem.softmax_scale, problem.softcap);
      if (mask.cuts(row, tile * Bc, Bc)) mask.apply(s, row, tile * Bc);
      const device::OfRows factor = softmax.absorb_in_chains(s, log2_scale);
      device::arrived(s);
      return factor;
    };

    if (item.tiles == 0) shared.q[mine].release(q);
    if (item.tiles > 0) {
      shared.k.wait_full(k);
      turns.wait();
      issue_scores();
      turns.pass_on();
      device::wgmma_wait<0>();
      const int last = first_tile + item.tiles - 1;
      scores_arrived(last);
      softmax_of(last);
      device::as_operands<T>(p, s);
      if (item.tiles > 1) shared.k.wait_full(k);
      for (int tile = last - 1; tile >= first_tile; --tile) {
        turns.wait();
        device::arrived(o);
        device::arrived(p);
        issue_scores();  // of this tile
        issue_values();  // of the one before
        turns.pass_on();
        device::wgmma_wait<1>();
        scores_arrived(tile);
        const device::OfRows factor = softmax_of(tile);
        // ptxas moves a wait up past arithmetic, but not past a branch: without this one here, it
        // would wait for the values before it exponentiates.
        if (tile > first_tile) shared.k.wait_full(k);
        device::wgmma_wait<0>();
        values_arrived();
        device::as_operands<T>(p, s);
        device::rescale_if_grown(o, factor);
      }
      device::arrived(o);
      device::arrived(p);
      issue_values();
      device::wgmma_wait<0>();
      values_arrived();
    }
    store<T, Tile>(shared, rows, maps, problem, item, row, softmax, o);
  }
  turns.end();
  if (Tile::stages_o && device::lane_index() == 0) device::tma_wait_read<0>();
}
// [end consumer]

// ------------------------------------------------------------------------------------- the kernel
// [snippet kernel]
template <class T, class Tile, Looks looks>
__global__ void __launch_bounds__(threads_of<Tile>, 1)
    forward_kernel(const __grid_constant__ Maps maps, const ForwardProblem problem,
                   const device::Schedule schedule, unsigned* next) {
  auto& shared = device::shared_memory<Shared<T, Tile>>();
  if (threadIdx.x == 0) {
    for (auto& of_consumer : shared.q) of_consumer.init(4);  // a warpgroup's warps
    shared.k.init(4 * Tile::consumers);
    shared.v.init(4 * Tile::consumers);
    device::mbarrier_fence_init();
  }
  __syncthreads();
  const int group = device::warpgroup_index();
  if (group == 0) {
    device::keep_registers<Tile::consumers == 3 ? 32 : 40>();
    if (device::warp_index() == 0 && device::elect_one())
      produce<T, Tile, looks>(shared, maps, problem, schedule, next);
  } else {
    device::ask_for_registers<Tile::consumers == 3 ? 160 : 232>();
    consume<T, Tile, looks>(shared, group - 1, maps, problem);
  }
}
// [end kernel]

// ------------------------------------------------------------------------------------- the launch

template <class T>
Status describe(device::TensorMap& map, const void* tensor, const Layout& at, int head_dim,
                int rows, int heads, const ForwardProblem& problem, int box_rows) {
  const auto of = [](auto number) { return static_cast<std::uint64_t>(number); };
  // An empty tensor has no map, and nobody asks for one; a size of 1 has no stride that matters.
  if (rows == 0) return {};
  const device::TensorShape shape = {
      4,
      {of(head_dim), of(rows), of(heads), of(problem.batch), 1},
      {of(rows > 1 ? at.row : head_dim), of(heads > 1 ? at.head : head_dim),
       of(problem.batch > 1 ? at.batch : head_dim), 0}};
  return device::describe_tensor(map, static_cast<const T*>(tensor), shape,
                                 {64, static_cast<std::uint32_t>(box_rows), 1, 1, 1},
                                 device::Swizzle::bytes_128);
}

template <class T, class Tile, Looks looks>
Status launch_forward(const ForwardProblem& problem, const Spread& spread,
                      device::StreamHandle stream) {
  constexpr int d = Tile::head_dim, dv = Tile::head_dim_v, Br = rows_of<Tile>;
  Maps maps = {};
  Status status = describe<T>(maps.q, problem.q, problem.q_layout, d, problem.seqlen_q,
                              problem.nheads_q, problem, 64);
  if (status.ok())
    status = describe<T>(maps.k, problem.k, problem.k_layout, d, problem.seqlen_k, problem.nheads_k,
                         problem, Tile::Bc);
  if (status.ok())
    status = describe<T>(maps.v, problem.v, problem.v_layout, dv, problem.seqlen_k,
                         problem.nheads_k, problem, Tile::Bc);
  if (status.ok())
    status = describe<T>(maps.o, problem.o, problem.o_layout, dv, problem.seqlen_q,
                         problem.nheads_q, problem, 16);
  if (!status.ok()) return status;
  const int row_blocks = (problem.seqlen_q + Br - 1) / Br, heads = problem.batch * problem.nheads_q;
  device::Schedule schedule = {
      problem.batch,
      problem.nheads_q,
      problem.nheads_k,
      row_blocks,
      looks == Looks::causal,
      device::Schedule::section_of(std::int64_t{sizeof(T)} * (d + dv) * problem.seqlen_k,
                                   problem.nheads_q / problem.nheads_k)};
  // Few row blocks: a multiprocessor's work is as much reading K and V for the first time as
  // computing, so heads come one behind the other, all row blocks of some at once, and the two
  // alternate. The last ones come longest first, for balance.
  if (row_blocks <= 4 && d <= 128) {
    schedule.section = (spread.multiprocessors + row_blocks - 1) / row_blocks;
    const int sections = heads / schedule.section;
    schedule.tail = sections > 3 ? (sections - 3) * schedule.section : 0;
  }
  const unsigned items = schedule.blocks();
  const auto most = static_cast<unsigned>(spread.multiprocessors);
  const device::Grid grid = {
      {items < most ? items : most}, {threads_of<Tile>}, sizeof(Shared<T, Tile>), stream};
  return device::launch("cuda.sm90 forward", forward_kernel<T, Tile, looks>, grid, maps, problem,
                        schedule, spread.next);
}

}  // namespace tilewise::cuda::sm90::inline TILEWISE_TARGET
