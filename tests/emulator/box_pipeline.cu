// The skeleton of a kernel for Hopper, without its arithmetic: a warp that loads boxes of tensors
// of four dimensions into a ring, two groups that work on them, and stores of the result by way of
// shared memory. A block does several tiles, one after the other.
#include "cuda/device/ptx/barrier.hpp"
#include "cuda/device/ptx/mbarrier.hpp"
#include "cuda/device/ptx/proxy.hpp"
#include "cuda/device/ptx/tma.hpp"
#include "cuda/device/shared.hpp"
#include "cuda/device/swizzle.hpp"
#include "on_device.hpp"

#include <cstdint>

namespace tilewise::tests::inline TILEWISE_TARGET {
namespace {

using device::Mbarrier;
using device::Swizzle;
using device::TensorMap;
using device::TensorShape;
using Number = device::bf16;

enum class Flaw {
  none,
  parity_begins_anew,
  result_not_fenced,
  result_not_met,
  result_overwritten,
  result_not_swizzled,
  stages_mistaken,
  empty_never_released,
  one_slab_announced,
};

constexpr int rows = 16, columns = 128, slabs = columns / 64;  // of a tile; a slab is a box
constexpr int batch = 2, heads = 2, seqlen = 40;               // two tiles and a half
constexpr unsigned stages = 2, groups = 2, group_threads = 32;
constexpr unsigned block_threads = 32 + groups * group_threads;
constexpr int tile_bytes = rows * columns * static_cast<int>(sizeof(Number));

struct Pipeline {
  device::SwizzledTile<Number, rows, 64> tile[stages][slabs];
  alignas(1024) device::SwizzledTile<Number, rows / groups, 64> result[groups][slabs];
  Mbarrier full[stages], empty[stages];
};

/// A group takes half of a tile's rows, and adds up what all tiles of its sequence have there.
template <Flaw flaw>
__global__ void pipeline(const __grid_constant__ TensorMap in,
                         const __grid_constant__ TensorMap out) {
  Pipeline& shared = device::shared_memory<Pipeline>();
  constexpr int tiles = (seqlen + rows - 1) / rows;
  if (threadIdx.x == 0) {
    for (unsigned s = 0; s < stages; ++s) {
      device::mbarrier_init(shared.full[s], 1);
      device::mbarrier_init(shared.empty[s], groups * group_threads);
    }
    device::mbarrier_fence_init();
  }
  __syncthreads();
  unsigned turn = 0;  // of the ring
  if (threadIdx.x < 32) {
    if (threadIdx.x != 0) return;
    for (int b = static_cast<int>(blockIdx.x); b < batch * heads; b += static_cast<int>(gridDim.x))
      for (int tile = 0; tile < tiles; ++tile, ++turn) {
        const unsigned s = turn % stages;
        device::mbarrier_wait(shared.empty[s], turn / stages % 2 ^ 1);  // line: empty
        constexpr int announced = flaw == Flaw::one_slab_announced ? tile_bytes / 2 : tile_bytes;
        device::mbarrier_arrive_expect(shared.full[s], announced);  // line: announce
        for (int slab = 0; slab < slabs; ++slab) {
          const int at[] = {slab * 64, tile * rows, b % heads, b / heads};
          device::tma_load(&shared.tile[s][slab], in, at, shared.full[s]);  // line: load
        }
      }
    return;
  }
  const unsigned group = threadIdx.x / group_threads - 1, t = threadIdx.x % group_threads;
  for (int b = static_cast<int>(blockIdx.x); b < batch * heads; b += static_cast<int>(gridDim.x)) {
    if (flaw == Flaw::parity_begins_anew) turn = 0;
    float sum[rows / groups][columns / group_threads] = {};
    for (int tile = 0; tile < tiles; ++tile, ++turn) {
      const unsigned s = turn % stages;
      device::mbarrier_wait(shared.full[s], turn / stages % 2);  // line: full
      const unsigned from = flaw == Flaw::stages_mistaken ? (s + 1) % stages : s;
      for (unsigned row = 0; row < rows / groups; ++row)
        for (unsigned n = 0; n < columns / group_threads; ++n) {
          const unsigned column = n * group_threads + t;
          auto& slab = shared.tile[from][column / 64];
          const Number* const place = &slab.at(static_cast<int>(group * rows / groups + row),
                                               static_cast<int>(column % 64));
          const Number number = *place;  // line: use
          sum[row][n] += static_cast<float>(number);
        }
      if (flaw != Flaw::empty_never_released) device::mbarrier_arrive(shared.empty[s]);
    }
    // The last result has left shared memory.
    if (t == 0 && flaw != Flaw::result_overwritten) device::tma_wait_read<0>();
    device::barrier_sync(static_cast<int>(1 + group), group_threads);
    for (unsigned row = 0; row < rows / groups; ++row)
      for (unsigned n = 0; n < columns / group_threads; ++n) {
        const unsigned column = n * group_threads + t;
        auto& result = shared.result[group][column / 64];
        Number& place = flaw == Flaw::result_not_swizzled
                            ? result.element[row * 64 + column % 64]
                            : result.at(static_cast<int>(row), static_cast<int>(column % 64));
        place = static_cast<Number>(sum[row][n]);  // line: result
      }
    if (flaw != Flaw::result_not_fenced) device::fence_proxy_async();
    if (flaw != Flaw::result_not_met)
      device::barrier_sync(static_cast<int>(1 + group), group_threads);
    if (t == 0) {
      for (int slab = 0; slab < slabs; ++slab) {
        const int at[] = {slab * 64, static_cast<int>(group) * rows / static_cast<int>(groups),
                          b % heads, b / heads};
        device::tma_store(out, at, &shared.result[group][slab]);  // line: store
      }
      device::tma_commit();
    }
  }
  if (t == 0) device::tma_wait_read<0>();
}

Status tensor_map(TensorMap& map, const Number* memory, std::uint64_t length, std::uint32_t box) {
  // [batch, length, heads, columns]
  const TensorShape shape{
      4, {columns, length, heads, batch, 1}, {heads * columns, columns, length * heads * columns}};
  return device::describe_tensor(map, memory, shape, {64, box, 1, 1, 1}, Swizzle::bytes_128);
}

template <Flaw flaw>
Ran run_pipeline(bool buggy) {
  Ran ran;
  Memory<Number> in, out;
  TensorMap in_map{}, out_map{};
  std::vector<Number> values(batch * seqlen * heads * columns);
  for (std::size_t n = 0; n < values.size(); ++n)
    values[n] = Number(static_cast<float>(n * 7 % 61) - 30);
  std::vector<float> expected(batch * rows * heads * columns);
  for (int b = 0; b < batch; ++b)
    for (int row = 0; row < seqlen; ++row)
      for (int n = 0; n < heads * columns; ++n)
        expected[static_cast<std::size_t>((b * rows + row % rows) * heads * columns + n)] +=
            static_cast<float>(
                values[static_cast<std::size_t>((b * seqlen + row) * heads * columns + n)]);
  ran.status = uploaded(in, values, "in");
  if (ran.status.ok()) ran.status = out.allocate(expected.size(), "out");
  if (ran.status.ok()) ran.status = tensor_map(in_map, in.data(), seqlen, rows);
  if (ran.status.ok()) ran.status = tensor_map(out_map, out.data(), rows, rows / groups);
  if (!ran.status.ok()) return ran;
  ran.status = device::launch("pipeline", buggy ? pipeline<flaw> : pipeline<Flaw::none>,
                              {{3}, {block_threads}, sizeof(Pipeline)}, in_map, out_map);
  if (!ran.status.ok()) return ran;
  const std::vector<Number> found = downloaded(out);
  ran.right = true;
  for (std::size_t n = 0; n < expected.size(); ++n)
    ran.right = ran.right && static_cast<float>(found[n]) == expected[n];
  return ran;
}

}  // namespace
}  // namespace tilewise::tests::inline TILEWISE_TARGET

namespace tilewise::tests {

std::vector<Planted> box_pipeline_bugs() {
  using emulator::Kind;
  const auto planted = [](const char* name, Kind kind, Ran (*run)(bool), const char* line,
                          const char* other = nullptr, Shown shown = Shown::alone) {
    return Planted{name, "box_pipeline.cu", kind, run, false, line, other, shown};
  };
  const Shown mostly = Shown::mostly;
  std::vector<Planted> all = {
      planted("parity_begins_anew", Kind::deadlock, run_pipeline<Flaw::parity_begins_anew>, "full",
              nullptr, mostly),
      planted("result_not_fenced", Kind::not_fenced, run_pipeline<Flaw::result_not_fenced>, "store",
              "result"),
      planted("result_not_met", Kind::race, run_pipeline<Flaw::result_not_met>, "store", "result",
              mostly),
      planted("result_overwritten", Kind::race, run_pipeline<Flaw::result_overwritten>, "result",
              "store"),
      planted("stages_mistaken", Kind::not_waited_for, run_pipeline<Flaw::stages_mistaken>, "use",
              "load", mostly),
      planted("empty_never_released", Kind::deadlock, run_pipeline<Flaw::empty_never_released>,
              "empty", "full"),
      planted("one_slab_announced", Kind::bad_mbarrier, run_pipeline<Flaw::one_slab_announced>,
              "load", "announce", mostly),
  };
  Planted silent =
      planted("result_not_swizzled", Kind::race, run_pipeline<Flaw::result_not_swizzled>, nullptr);
  silent.silent = true;
  all.push_back(silent);
  for (std::size_t n = 1; n < all.size(); ++n) all[n].shares_its_twin = true;
  return all;
}

}  // namespace tilewise::tests
