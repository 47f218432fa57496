// mbarriers and the bulk loads that they count: a tile that one thread asks for and all read, and a
// ring of tiles between a producer and consumers. Each has many ways to be wrong.
#include "cuda/device/ptx/mbarrier.hpp"
#include "cuda/device/ptx/tma.hpp"
#include "cuda/device/shared.hpp"
#include "on_device.hpp"

#include <cstddef>

namespace tilewise::tests::inline TILEWISE_TARGET {
namespace {

using device::Mbarrier;

constexpr unsigned threads = 64;
constexpr unsigned width = 4;  // numbers that a thread adds up
constexpr unsigned numbers = threads * width;
constexpr int tile_bytes = numbers * sizeof(float);

// Each thread sums the four numbers of thread threads - 1 - t.
std::vector<float> sums(unsigned tiles) {
  std::vector<float> expected(threads);
  for (unsigned t = 0; t < threads; ++t)
    for (unsigned tile = 0; tile < tiles; ++tile)
      expected[t] += static_cast<float>(4 * (tile * numbers + width * (threads - 1 - t)) + 10);
  return expected;
}

// -------------------------------------------------------------------------------------- one tile

enum class Flaw {
  none,
  announced_too_few,
  announced_too_many,
  not_announced,
  announced_afterwards,
  arrived_twice,
  not_made,
  made_twice,
  made_for_nobody,
  made_unaligned,
  not_fenced,
  not_met,
  wrong_parity,
  parity_of_two,
  not_waited_for,
  never_waited_for,
  stored_over_barrier,
  loaded_over_barrier,
  outside_of_shared,
  unaligned_target,
  unaligned_size,
  written_while_loaded,
  end_of_tensor,
};

struct Tile {
  alignas(128) float number[numbers];
  alignas(16) Mbarrier full;
  Mbarrier unused;
};

template <Flaw flaw>
__global__ void one_tile(const float* in, float* out) {
  Tile& shared = device::shared_memory<Tile>();
  const unsigned t = threadIdx.x;
  if (t == 0) {
    auto* const barrier = reinterpret_cast<Mbarrier*>(reinterpret_cast<std::byte*>(&shared.full) +
                                                      (flaw == Flaw::made_unaligned ? 4 : 0));
    const int arrivals = flaw == Flaw::made_for_nobody ? 0 : 1;
    if (flaw != Flaw::not_made) device::mbarrier_init(*barrier, arrivals);    // line: make
    if (flaw == Flaw::made_twice) device::mbarrier_init(*barrier, arrivals);  // line: make_again
    if (flaw != Flaw::not_fenced) device::mbarrier_fence_init();
  }
  if (flaw == Flaw::not_met) device::mbarrier_wait(shared.full, 0);  // line: too_early
  __syncthreads();
  if (flaw == Flaw::stored_over_barrier && t == 5)
    shared.number[numbers - 5 + t] = 0;  // line: store
  if (t == 32) {
    int bytes = tile_bytes, announced = tile_bytes;
    if (flaw == Flaw::announced_too_few) announced -= 16;
    if (flaw == Flaw::announced_too_many) announced += 16;
    if (flaw == Flaw::loaded_over_barrier) announced = bytes += 16;
    if (flaw == Flaw::unaligned_size) announced = bytes -= 8;
    if (flaw == Flaw::not_announced || flaw == Flaw::announced_afterwards)
      device::mbarrier_arrive(shared.full);
    else
      device::mbarrier_arrive_expect(shared.full, announced);               // line: announce
    if (flaw == Flaw::arrived_twice) device::mbarrier_arrive(shared.full);  // line: arrive_again
    float* to = shared.number;
    if (flaw == Flaw::outside_of_shared) to += sizeof(Tile) / sizeof(float);
    if (flaw == Flaw::unaligned_target) to += 1;
    const float* const from = flaw == Flaw::end_of_tensor ? in + 4 : in;
    device::bulk_load(to, from, bytes, shared.full);  // line: load
    if (flaw == Flaw::announced_afterwards) device::mbarrier_arrive_expect(shared.full, announced);
  }
  __syncthreads();
  if (flaw == Flaw::written_while_loaded) shared.number[t] = 0;  // line: write
  const unsigned parity = flaw == Flaw::wrong_parity ? 1 : flaw == Flaw::parity_of_two ? 2 : 0;
  if (flaw != Flaw::not_waited_for && flaw != Flaw::never_waited_for)
    device::mbarrier_wait(shared.full, parity);  // line: wait
  float sum = 0;
  if (flaw != Flaw::never_waited_for)
    for (unsigned n = 0; n < width; ++n)
      sum += shared.number[width * (threads - 1 - t) + n];  // line: read
  out[t] = sum;
}

template <Flaw flaw>
Ran run_tile(bool buggy) {
  return run("one_tile", buggy ? one_tile<flaw> : one_tile<Flaw::none>,
             {{1}, {threads}, sizeof(Tile)}, counted(numbers), sums(1));
}

// The load before its announcement, which is as good while the thread has still to arrive; waited
// for by one thread in a loop of its own, which the others meet.
template <bool buggy>
__global__ void tried(const float* in, float* out) {
  Tile& shared = device::shared_memory<Tile>();
  const unsigned t = threadIdx.x;
  if (t == 0) {
    device::mbarrier_init(shared.full, 1);
    device::mbarrier_fence_init();
    device::bulk_load(shared.number, in, tile_bytes, shared.full);
    if (!buggy) device::mbarrier_arrive_expect(shared.full, tile_bytes);
    while (!device::mbarrier_try_wait(shared.full, 0)) {  // bug: tried_for_ever
    }
  }
  __syncthreads();  // meets: tried_for_ever
  float sum = 0;
  for (unsigned n = 0; n < width; ++n) sum += shared.number[width * (threads - 1 - t) + n];
  out[t] = sum;
}

Ran run_tried(bool buggy) {
  return run("tried", buggy ? tried<true> : tried<false>, {{1}, {threads}, sizeof(Tile)},
             counted(numbers), sums(1));
}

// Static shared memory.
template <bool buggy>
__global__ void static_tile(const float* in, float* out) {
  alignas(128) __shared__ float number[numbers];
  __shared__ Mbarrier full;
  const unsigned t = threadIdx.x;
  if (t == 0) {
    device::mbarrier_init(full, 1);
    device::mbarrier_fence_init();
  }
  __syncthreads();
  if (t == 0) {
    device::mbarrier_arrive_expect(full, tile_bytes);
    device::bulk_load(number, in, tile_bytes, full);  // meets: static_tile
  }
  __syncthreads();
  if (!buggy) device::mbarrier_wait(full, 0);
  float sum = 0;
  for (unsigned n = 0; n < width; ++n)
    sum += number[width * (threads - 1 - t) + n];  // bug: static_tile
  out[t] = sum;
}

Ran run_static_tile(bool buggy) {
  return run("static_tile", buggy ? static_tile<true> : static_tile<false>, {{1}, {threads}, 0},
             counted(numbers), sums(1));
}

// ---------------------------------------------------------------------------------------- a ring

enum class RingFlaw {
  none,
  never_waits_for_empty,
  released_early,
  released_by_one_lane,
  one_lane_after_syncwarp,  // none
  too_many_arrivals,
  too_few_arrivals,
  wrong_stage,
  parity_never_turns,
  first_wait_for_parity_0,
};

constexpr unsigned stages = 2, ring_tiles = 5;

struct Ring {
  alignas(128) float tile[stages][numbers];
  Mbarrier full[stages], empty[stages];
};

// One warp loads, and two consume: thread t of them as in one_tile().
template <RingFlaw flaw>
__global__ void ring(const float* in, float* out) {
  Ring& shared = device::shared_memory<Ring>();
  constexpr bool one_lane =
      flaw == RingFlaw::released_by_one_lane || flaw == RingFlaw::one_lane_after_syncwarp;
  if (threadIdx.x == 0) {
    int arrivals = one_lane ? threads / 32 : threads;
    if (flaw == RingFlaw::too_many_arrivals) ++arrivals;
    if (flaw == RingFlaw::too_few_arrivals) --arrivals;
    for (unsigned s = 0; s < stages; ++s) {
      device::mbarrier_init(shared.full[s], 1);
      device::mbarrier_init(shared.empty[s], arrivals);
    }
    device::mbarrier_fence_init();
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    if (threadIdx.x != 0) return;
    for (unsigned tile = 0; tile < ring_tiles; ++tile) {
      const unsigned s = tile % stages, turn = tile / stages;
      const unsigned parity = flaw == RingFlaw::first_wait_for_parity_0 ? turn % 2 : turn % 2 ^ 1;
      if (flaw != RingFlaw::never_waits_for_empty)
        device::mbarrier_wait(shared.empty[s], parity);  // line: empty
      device::mbarrier_arrive_expect(shared.full[s], tile_bytes);
      device::bulk_load(shared.tile[s], in + tile * numbers, tile_bytes,  // line: refill
                        shared.full[s]);
    }
    return;
  }
  const unsigned t = threadIdx.x - 32;
  float sum = 0;
  for (unsigned tile = 0; tile < ring_tiles; ++tile) {
    const unsigned s = tile % stages;
    const unsigned turn = flaw == RingFlaw::parity_never_turns ? 0 : tile / stages;
    device::mbarrier_wait(shared.full[s], turn % 2);  // line: full
    if (flaw == RingFlaw::released_early) device::mbarrier_arrive(shared.empty[s]);
    const float* const tile_read = shared.tile[flaw == RingFlaw::wrong_stage ? 1 - s : s];
    for (unsigned n = 0; n < width; ++n)
      sum += tile_read[width * (threads - 1 - t) + n];  // line: consume
    if (flaw == RingFlaw::one_lane_after_syncwarp) __syncwarp();
    if (flaw != RingFlaw::released_early && (!one_lane || t % 32 == 0))
      device::mbarrier_arrive(shared.empty[s]);
  }
  out[t] = sum;
}

template <RingFlaw flaw>
Ran run_ring(bool buggy) {
  constexpr RingFlaw twin =
      flaw == RingFlaw::released_by_one_lane ? RingFlaw::one_lane_after_syncwarp : RingFlaw::none;
  return run("ring", buggy ? ring<flaw> : ring<twin>, {{1}, {threads + 32}, sizeof(Ring)},
             counted(ring_tiles * numbers), sums(ring_tiles));
}

}  // namespace
}  // namespace tilewise::tests::inline TILEWISE_TARGET

namespace tilewise::tests {

std::vector<Planted> mbarrier_bugs() {
  using emulator::Kind;
  const char* const file = "mbarriers.cu";
  const auto in_tile = [&](const char* name, Kind kind, Ran (*run)(bool), const char* line,
                           const char* other = nullptr, Shown shown = Shown::alone) {
    return Planted{name, file, kind, run, false, line, other, shown};
  };
  const Shown first = Shown::with_consequences, mostly = Shown::mostly;
  return {
      in_tile("announced_too_few", Kind::bad_mbarrier, run_tile<Flaw::announced_too_few>, "load",
              "announce"),
      in_tile("announced_too_many", Kind::deadlock, run_tile<Flaw::announced_too_many>, "wait"),
      in_tile("not_announced", Kind::not_waited_for, run_tile<Flaw::not_announced>, "read", "load",
              first),
      in_tile("announced_afterwards", Kind::deadlock, run_tile<Flaw::announced_afterwards>, "wait",
              nullptr, mostly),
      in_tile("arrived_twice", Kind::bad_mbarrier, run_tile<Flaw::arrived_twice>, "arrive_again",
              "make"),
      in_tile("not_made", Kind::bad_mbarrier, run_tile<Flaw::not_made>, "announce"),
      in_tile("made_twice", Kind::bad_mbarrier, run_tile<Flaw::made_twice>, "make_again", "make"),
      in_tile("made_for_nobody", Kind::bad_instruction, run_tile<Flaw::made_for_nobody>, "make"),
      in_tile("made_unaligned", Kind::misaligned, run_tile<Flaw::made_unaligned>, "make"),
      in_tile("init_not_fenced", Kind::not_fenced, run_tile<Flaw::not_fenced>, "load", "make"),
      in_tile("init_not_met", Kind::bad_mbarrier, run_tile<Flaw::not_met>, "too_early"),
      in_tile("wrong_parity", Kind::deadlock, run_tile<Flaw::wrong_parity>, "wait", nullptr,
              mostly),
      in_tile("parity_of_two", Kind::bad_instruction, run_tile<Flaw::parity_of_two>, "wait"),
      in_tile("load_not_waited_for", Kind::not_waited_for, run_tile<Flaw::not_waited_for>, "read",
              "load", first),
      in_tile("load_never_waited_for", Kind::not_waited_for, run_tile<Flaw::never_waited_for>,
              "load"),
      in_tile("stored_over_barrier", Kind::bad_mbarrier, run_tile<Flaw::stored_over_barrier>,
              "store", "make"),
      in_tile("loaded_over_barrier", Kind::bad_mbarrier, run_tile<Flaw::loaded_over_barrier>,
              "load", "make"),
      in_tile("load_outside_of_shared", Kind::out_of_bounds, run_tile<Flaw::outside_of_shared>,
              "load"),
      in_tile("unaligned_target", Kind::misaligned, run_tile<Flaw::unaligned_target>, "load"),
      in_tile("unaligned_size", Kind::misaligned, run_tile<Flaw::unaligned_size>, "load"),
      in_tile("written_while_loaded", Kind::not_waited_for, run_tile<Flaw::written_while_loaded>,
              "write", "load", first),
      in_tile("load_past_the_end", Kind::out_of_bounds, run_tile<Flaw::end_of_tensor>, "load"),
      {"tried_for_ever", file, Kind::deadlock, run_tried},
      {"static_tile", file, Kind::not_waited_for, run_static_tile, false, nullptr, nullptr, first},
      in_tile("never_waits_for_empty", Kind::not_waited_for,
              run_ring<RingFlaw::never_waits_for_empty>, "refill", nullptr, mostly),
      in_tile("released_early", Kind::race, run_ring<RingFlaw::released_early>, "refill", "consume",
              mostly),
      in_tile("released_by_one_lane", Kind::race, run_ring<RingFlaw::released_by_one_lane>,
              "refill", "consume", mostly),
      in_tile("too_many_arrivals", Kind::deadlock, run_ring<RingFlaw::too_many_arrivals>, "empty",
              "full"),
      in_tile("too_few_arrivals", Kind::race, run_ring<RingFlaw::too_few_arrivals>, "refill",
              "consume", mostly),
      in_tile("wrong_stage", Kind::not_waited_for, run_ring<RingFlaw::wrong_stage>, "consume",
              "refill", mostly),
      in_tile("parity_never_turns", Kind::race, run_ring<RingFlaw::parity_never_turns>, "refill",
              "consume", mostly),
      in_tile("first_wait_for_parity_0", Kind::deadlock,
              run_ring<RingFlaw::first_wait_for_parity_0>, "empty", "full"),
  };
}

}  // namespace tilewise::tests
