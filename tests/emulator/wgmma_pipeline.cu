// A small kernel with all of Hopper in it, as the forward kernel is built: a producer warpgroup
// that hands most of its registers back and loads tiles through a ring of two stages; two consumer
// warpgroups of 64 rows each, S = Q K^T and O += P V with P in registers; O through stmatrix and a
// TMA store. P is what S leaves divided by 8, a small integer, so that O is exact.
#include "cuda/device/ptx/barrier.hpp"
#include "cuda/device/ptx/elect.hpp"
#include "cuda/device/ptx/mbarrier.hpp"
#include "cuda/device/ptx/register_budget.hpp"
#include "cuda/device/ptx/stmatrix.hpp"
#include "cuda/device/ptx/tma.hpp"
#include "measured.hpp"
#include "wgmma_tiles.hpp"

#include <algorithm>

namespace tilewise::tests::inline TILEWISE_TARGET {
namespace {

using device::f16;
using device::Major;
using device::MatrixDescriptor;
using device::Mbarrier;
using device::TensorMap;
using device::wgmma_commit;
using device::wgmma_fence;
using device::wgmma_wait;

constexpr int d = 128, tile_rows = 64, tiles = 4, stages = 2;

enum class Flaw {
  none,
  released_early,
  released_by_nobody,
  products_before_full,
  store_unfenced,
  store_unmet,
  two_slabs_announced_as_one,
  leading_distance,
};

struct Shared {
  Slabs<tile_rows, d> q[2];
  Slabs<tile_rows, d> k[stages], v[stages];
  Mbarrier q_full, full[stages], empty[stages];
};

template <Flaw flaw>
__device__ void produce(Shared& shared, const TensorMap& q, const TensorMap& k,
                        const TensorMap& v) {
  constexpr int slab = tile_rows * 32, bytes = slab * 4;
  const auto load = [&](Slabs<tile_rows, d>& to, const TensorMap& map, int row, Mbarrier& full) {
    for (int n = 0; n < 2; ++n)
      device::tma_load(to.word + n * slab, map, {64 * n, row, 0, 0}, full);  // line: load
  };
  device::mbarrier_arrive_expect(shared.q_full, 4 * bytes);
  for (int n = 0; n < 2; ++n) load(shared.q[n], q, n * tile_rows, shared.q_full);
  for (int tile = 0; tile < tiles; ++tile) {
    const int stage = tile % stages;
    const unsigned round = static_cast<unsigned>(tile / stages);
    device::mbarrier_wait(shared.empty[stage], (round & 1) ^ 1);  // line: wait_for_empty
    device::mbarrier_arrive_expect(                               // line: announce
        shared.full[stage], flaw == Flaw::two_slabs_announced_as_one ? 2 * bytes : 4 * bytes);
    load(shared.k[stage], k, tile * tile_rows, shared.full[stage]);
    load(shared.v[stage], v, tile * tile_rows, shared.full[stage]);
  }
}

template <Flaw flaw>
__device__ void consume(Shared& shared, const TensorMap& to, int group) {
  const int thread = static_cast<int>(threadIdx.x) % 128, lane = thread % 32, warp = thread / 32;
  const MatrixDescriptor q = device::describe_matrix(&shared.q[group], tile_rows);
  float o[d / 2];
  device::mbarrier_wait(shared.q_full, 0);
  for (int tile = 0; tile < tiles; ++tile) {
    const int stage = tile % stages;
    const unsigned parity = static_cast<unsigned>(tile / stages) & 1;
    if (flaw != Flaw::products_before_full) device::mbarrier_wait(shared.full[stage], parity);
    const MatrixDescriptor k = device::describe_matrix(&shared.k[stage], tile_rows);
    const MatrixDescriptor v = device::describe_matrix(
        &shared.v[stage], flaw == Flaw::leading_distance ? tile_rows / 2 : tile_rows);
    float s[tile_rows / 2];
    wgmma_fence();
    for (int n = 0; n < d / 16; ++n) {
      const int advance = n / 4 * tile_rows * 128 + n % 4 * 32;
      device::wgmma_shared<f16>(s, q.advanced(advance), k.advanced(advance), n > 0);  // line: qk
    }
    wgmma_commit();
    wgmma_wait<0>();
    std::uint32_t p[tile_rows / 16][4];
    const auto left = [](float value) { return static_cast<float>(static_cast<int>(value) % 8); };
    for (int n = 0; n < tile_rows / 4; ++n)
      p[n / 4][n % 4] = device::pack<f16>(left(s[2 * n]), left(s[2 * n + 1]));
    wgmma_fence();
    for (int n = 0; n < tile_rows / 16; ++n)
      device::wgmma_registers<f16, Major::n>(o, p[n], v.advanced(2048 * n),  // line: pv
                                             tile + n > 0);
    wgmma_commit();
    // One lane says for the warpgroup that the stage is free, once it has waited.
    const bool says_so = warp == 0 && device::elect_one();
    if (flaw == Flaw::released_early && says_so) device::mbarrier_arrive(shared.empty[stage]);
    wgmma_wait<0>();
    if (flaw != Flaw::released_early && flaw != Flaw::released_by_nobody && says_so)
      device::mbarrier_arrive(shared.empty[stage]);
  }
  // Where Q was, each warp its own rows; both Q are read by then, this group's by itself.
  Slabs<tile_rows, d>& staged = shared.q[group];
  for (int n = 0; n < d / 16; ++n) {
    std::uint32_t registers[4];
    for (int i = 0; i < 4; ++i)
      registers[i] = device::pack<f16>(o[8 * n + 2 * i], o[8 * n + 2 * i + 1]);
    device::stmatrix(staged.at(warp * 16 + lane % 16, n * 16 + lane / 16 * 8),  // line: stage_o
                     registers);
  }
  if (flaw != Flaw::store_unfenced) device::fence_proxy_async();
  if (flaw != Flaw::store_unmet) device::barrier_sync(1 + group, 128);
  if (warp == 0 && device::elect_one()) {
    for (int n = 0; n < 2; ++n)
      device::tma_store(to, {64 * n, group * tile_rows, 0, 0},  // line: store
                        staged.word + n * tile_rows * 32);
    device::tma_commit();
    device::tma_wait<0>();
  }
}

template <Flaw flaw>
__global__ void __launch_bounds__(384, 1)
    pipeline(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k,
             const __grid_constant__ TensorMap v, const __grid_constant__ TensorMap o) {
  Shared& shared = device::shared_memory<Shared>();
  if (threadIdx.x == 0) {
    device::mbarrier_init(shared.q_full, 1);
    for (int n = 0; n < stages; ++n) {
      device::mbarrier_init(shared.full[n], 1);
      device::mbarrier_init(shared.empty[n], 2);
    }
    device::mbarrier_fence_init();
  }
  __syncthreads();
  const int group = static_cast<int>(threadIdx.x) / 128;
  if (group == 0) {
    device::keep_registers<24>();
    if (threadIdx.x / 32 == 0 && device::elect_one()) produce<flaw>(shared, q, k, v);
  } else {
    device::ask_for_registers<240>();
    consume<flaw>(shared, o, group - 1);
  }
}

Status described(TensorMap& map, device::Memory<std::uint16_t>& memory, int rows) {
  device::TensorShape shape;
  shape.dimensions = 4;
  shape.size[0] = d;
  shape.size[1] = static_cast<std::uint64_t>(rows);
  shape.stride[0] = d;
  shape.stride[1] = shape.stride[2] = static_cast<std::uint64_t>(rows) * d;
  return device::describe_tensor(map, memory.data(), shape, {64, tile_rows, 1, 1, 1},
                                 device::Swizzle::bytes_128);
}

/// O = ((Q K^T) mod 8) V of 128 x 256 x 128.
template <Flaw flaw>
Ran run_pipeline(bool buggy) {
  constexpr int rows = 2 * tile_rows, keys = tiles * tile_rows;
  static const std::vector<float> numbers = small_integers((rows + 2 * keys) * d, 23);
  static const std::vector<float> expected = [] {
    const float* const k = numbers.data() + rows * d;
    std::vector<float> p = product_of(numbers.data(), k, rows, keys, d, false);
    for (float& value : p) value = static_cast<float>(static_cast<int>(value) % 8);
    return product_of(p.data(), k + keys * d, rows, d, keys, true);
  }();
  static const std::vector<std::uint16_t> bits = as_f16(numbers);
  device::Memory<std::uint16_t> q, k, v, o;
  const auto part = [&](int begin, int end) {
    return std::vector<std::uint16_t>(bits.begin() + begin * d, bits.begin() + end * d);
  };
  Ran ran;
  TensorMap maps[4] = {};
  ran.status = uploaded(q, part(0, rows), "q");
  if (ran.status.ok()) ran.status = uploaded(k, part(rows, rows + keys), "k");
  if (ran.status.ok()) ran.status = uploaded(v, part(rows + keys, rows + 2 * keys), "v");
  if (ran.status.ok()) ran.status = o.allocate(rows * d, "o");
  if (ran.status.ok()) ran.status = described(maps[0], q, rows);
  if (ran.status.ok()) ran.status = described(maps[1], k, keys);
  if (ran.status.ok()) ran.status = described(maps[2], v, keys);
  if (ran.status.ok()) ran.status = described(maps[3], o, rows);
  if (!ran.status.ok()) return ran;
  ran.status = device::launch("pipeline", buggy ? pipeline<flaw> : pipeline<Flaw::none>,
                              {{1}, {384}, sizeof(Shared)}, maps[0], maps[1], maps[2], maps[3]);
  if (!ran.status.ok()) return ran;
  ran.right = from_f16(downloaded(o)) == expected;
  return ran;
}

}  // namespace
}  // namespace tilewise::tests::inline TILEWISE_TARGET

namespace tilewise::tests {

std::vector<Planted> pipeline_bugs() {
  using emulator::Kind;
  const char* const file = "wgmma_pipeline.cu";
  const auto run = [](Flaw flaw) -> Ran (*)(bool) {
    switch (flaw) {
      case Flaw::released_early: return run_pipeline<Flaw::released_early>;
      case Flaw::released_by_nobody: return run_pipeline<Flaw::released_by_nobody>;
      case Flaw::products_before_full: return run_pipeline<Flaw::products_before_full>;
      case Flaw::store_unfenced: return run_pipeline<Flaw::store_unfenced>;
      case Flaw::store_unmet: return run_pipeline<Flaw::store_unmet>;
      case Flaw::two_slabs_announced_as_one: return run_pipeline<Flaw::two_slabs_announced_as_one>;
      default: return run_pipeline<Flaw::leading_distance>;
    }
  };
  std::vector<Planted> all = {
      {"pipeline_released_early", file, Kind::race, run(Flaw::released_early), false, "load", "pv"},
      {"pipeline_released_by_nobody", file, Kind::deadlock, run(Flaw::released_by_nobody), false,
       "wait_for_empty"},
      {"pipeline_before_full", file, Kind::not_waited_for, run(Flaw::products_before_full), false,
       "qk", "load", Shown::with_consequences},
      {"pipeline_store_unfenced", file, Kind::not_fenced, run(Flaw::store_unfenced), false, "store",
       "stage_o"},
      {"pipeline_store_unmet", file, Kind::race, run(Flaw::store_unmet), false, "store", "stage_o",
       Shown::with_consequences},
      {"pipeline_announced_as_one", file, Kind::bad_mbarrier, run(Flaw::two_slabs_announced_as_one),
       false, "load", nullptr, Shown::mostly},
      {"pipeline_leading_distance", file, {}, run(Flaw::leading_distance), true},
  };
  for (Planted& bug : all) bug.shares_its_twin = true;
  return all;
}

Ran correct_pipeline() {
  return run_pipeline<Flaw::none>(false);
}

}  // namespace tilewise::tests
