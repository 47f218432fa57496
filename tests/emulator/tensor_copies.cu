// Boxes of tensors to shared memory and back: what they hold, what is out of the tensor, and stores
// that are not fenced, not waited for, or overtaken.
#include "cuda/device/ptx/barrier.hpp"
#include "cuda/device/ptx/mbarrier.hpp"
#include "cuda/device/ptx/proxy.hpp"
#include "cuda/device/ptx/tma.hpp"
#include "cuda/device/shared.hpp"
#include "measured.hpp"
#include "on_device.hpp"

#include <cstddef>
#include <cstdint>

namespace tilewise::tests::inline TILEWISE_TARGET {
namespace {

using device::Mbarrier;
using device::Swizzle;
using device::TensorMap;
using device::TensorShape;

constexpr unsigned threads = 64;

// ------------------------------------------------------------------------ boxes as they come to be

// The box at `at` of a tensor of five dimensions comes to shared memory, and all of it to `out`.
__global__ void box_to_shared(const __grid_constant__ TensorMap map, float* out, int a, int b,
                              int c, int d, int e, int dimensions, int bytes) {
  struct Shared {
    alignas(1024) float number[2048];
    Mbarrier full;
  };
  Shared& shared = device::shared_memory<Shared>();
  const unsigned t = threadIdx.x;
  if (t == 0) {
    device::mbarrier_init(shared.full, 1);
    device::mbarrier_fence_init();
    device::mbarrier_arrive_expect(shared.full, bytes);
    const int two[] = {a, b}, three[] = {a, b, c}, four[] = {a, b, c, d}, five[] = {a, b, c, d, e};
    if (dimensions == 2) device::tma_load(shared.number, map, two, shared.full);
    if (dimensions == 3) device::tma_load(shared.number, map, three, shared.full);
    if (dimensions == 4) device::tma_load(shared.number, map, four, shared.full);
    if (dimensions == 5) device::tma_load(shared.number, map, five, shared.full);
  }
  __syncthreads();
  device::mbarrier_wait(shared.full, 0);
  for (unsigned n = t; n < static_cast<unsigned>(bytes) / sizeof(float); n += threads)
    out[n] = shared.number[n];
}

// --------------------------------------------------------------------------- a box there and back

enum class Flaw {
  none,
  fewer_rows_than_announced,
  more_rows_than_announced,
  more_columns_than_the_tile,
  unaligned_tile,
  of_other_dimensions,
  no_map,
  not_fenced,
  fenced_by_the_issuer,
  fenced_before,
  not_met,
  not_waited_for_load,
  not_written,
  never_committed,
  ends_under_way,
  overwritten,
  one_group_may_stay,
  read_before_it_is_there,
  store_outside_of_shared,
};

constexpr int columns = 32, rows = 16;  // of a tile: 128 bytes a row
constexpr int tensor_columns = 64, tensor_rows = 40;
constexpr int tile_bytes = columns * rows * static_cast<int>(sizeof(float));

struct Tile {
  alignas(1024) float number[rows * columns];
  alignas(1024) float twice[rows * columns];
  alignas(128) Mbarrier full;
};

// A block takes a tile, and stores it doubled; the tensor's last rows are half a tile.
template <Flaw flaw>
__global__ void doubled(const __grid_constant__ TensorMap from,
                        const __grid_constant__ TensorMap to,
                        const __grid_constant__ TensorMap wrong, const float* out) {
  Tile& shared = device::shared_memory<Tile>();
  const unsigned t = threadIdx.x;
  const int place[] = {static_cast<int>(blockIdx.x) * columns, static_cast<int>(blockIdx.y) * rows};
  const int deep[] = {place[0], place[1], 0};
  if (t == 0) {
    device::mbarrier_init(shared.full, 1);
    device::mbarrier_fence_init();
  }
  __syncthreads();
  if (t == 0) {
    constexpr bool other_box = flaw == Flaw::fewer_rows_than_announced ||
                               flaw == Flaw::more_rows_than_announced ||
                               flaw == Flaw::more_columns_than_the_tile || flaw == Flaw::no_map;
    device::mbarrier_arrive_expect(shared.full, tile_bytes);  // line: announce
    float* const tile = shared.number + (flaw == Flaw::unaligned_tile ? 16 : 0);
    if (flaw == Flaw::of_other_dimensions)
      device::tma_load(tile, from, deep, shared.full);  // line: deep
    else
      device::tma_load(tile, other_box ? wrong : from, place, shared.full);  // line: load
  }
  __syncthreads();
  if (flaw != Flaw::not_waited_for_load) device::mbarrier_wait(shared.full, 0);  // line: wait
  if (flaw == Flaw::fenced_before) device::fence_proxy_async();
  for (unsigned n = t; n < rows * columns; n += threads)
    if (flaw != Flaw::not_written || n != 100)
      shared.twice[n] = 2 * shared.number[n];  // line: write
  if (flaw != Flaw::not_fenced && flaw != Flaw::fenced_before &&
      (flaw != Flaw::fenced_by_the_issuer || t == 0))
    device::fence_proxy_async();
  if (flaw != Flaw::not_met) __syncthreads();
  if (t == 0) {
    const float* const source =
        shared.twice + (flaw == Flaw::store_outside_of_shared ? sizeof(Tile) / 4 : 0);
    device::tma_store(to, place, source);  // line: store
    if (flaw != Flaw::never_committed) device::tma_commit();
    if (flaw == Flaw::one_group_may_stay)
      device::tma_wait_read<1>();
    else if (flaw == Flaw::read_before_it_is_there)
      device::tma_wait_read<0>();
    else if (flaw != Flaw::ends_under_way && flaw != Flaw::overwritten)
      device::tma_wait<0>();
    if (flaw == Flaw::overwritten || flaw == Flaw::one_group_may_stay)
      shared.twice[0] = 0;  // line: overwrite
    if (flaw == Flaw::overwritten) device::tma_wait<0>();
    const float first = out[place[1] * tensor_columns + place[0]];  // line: read
    shared.twice[0] = first;
  }
}

Status tile_map(TensorMap& map, const float* memory, int box_columns, int box_rows) {
  const TensorShape shape{2, {tensor_columns, tensor_rows, 1, 1, 1}, {tensor_columns}};
  return device::describe_tensor(
      map, memory, shape,
      {static_cast<std::uint32_t>(box_columns), static_cast<std::uint32_t>(box_rows), 1, 1, 1},
      Swizzle::none);
}

template <Flaw flaw>
Ran run_doubled(bool buggy) {
  Ran ran;
  Memory<float> in, out;
  const std::vector<float> values = counted(tensor_columns * tensor_rows);
  TensorMap from{}, to{}, wrong{};
  const int wrong_columns = flaw == Flaw::more_columns_than_the_tile ? 2 * columns : columns;
  const int wrong_rows = flaw == Flaw::fewer_rows_than_announced  ? rows - 1
                         : flaw == Flaw::more_rows_than_announced ? rows + 1
                                                                  : rows;
  ran.status = uploaded(in, values, "in");
  if (ran.status.ok()) ran.status = out.allocate(values.size(), "out");
  if (ran.status.ok()) ran.status = tile_map(from, in.data(), columns, rows);
  if (ran.status.ok()) ran.status = tile_map(to, out.data(), columns, rows);
  if (ran.status.ok() && flaw != Flaw::no_map)
    ran.status = tile_map(wrong, in.data(), wrong_columns, wrong_rows);
  if (!ran.status.ok()) return ran;
  const Grid grid{
      {tensor_columns / columns, (tensor_rows + rows - 1) / rows}, {threads}, sizeof(Tile)};
  ran.status = device::launch("doubled", buggy ? doubled<flaw> : doubled<Flaw::none>, grid, from,
                              to, wrong, out.data());
  std::vector<float> expected = values;
  for (float& value : expected) value *= 2;
  if (ran.status.ok()) ran.right = downloaded(out) == expected;
  return ran;
}

// --------------------------------------------------------------------------- sums in global memory

// All blocks add to the same numbers. Two buffers; a thread waits for the older store only.
template <bool buggy>
__global__ void added(const float* in, float* out) {
  struct Shared {
    alignas(128) float number[2][threads];
  };
  Shared& shared = device::shared_memory<Shared>();
  const unsigned t = threadIdx.x;
  for (unsigned turn = 0; turn < 4; ++turn) {
    shared.number[turn % 2][t] = in[t] * static_cast<float>(turn);  // meets: buffer_still_read
    device::fence_proxy_async();
    __syncthreads();
    if (t == 0) {
      device::bulk_reduce_add(out, shared.number[turn % 2],  // bug: buffer_still_read
                              sizeof shared.number[0]);
      device::tma_commit();
      if (!buggy)
        device::tma_wait_read<1>();
      else
        device::tma_wait_read<2>();
    }
    __syncthreads();
  }
  if (t == 0) device::tma_wait<0>();
}

// A store where others add.
template <bool buggy>
__global__ void stored(const float* in, float* out) {
  struct Shared {
    alignas(128) float number[threads];
  };
  Shared& shared = device::shared_memory<Shared>();
  const unsigned t = threadIdx.x;
  shared.number[t] = in[t] * 6;
  device::fence_proxy_async();
  __syncthreads();
  if (t != 0) return;
  if (buggy)
    device::bulk_store(out, shared.number, sizeof shared.number);  // bug: two_stores
  else
    device::bulk_reduce_add(out, shared.number, sizeof shared.number);
  device::tma_commit();
  device::tma_wait<0>();
}

Ran run_sums(const char* name, void (*kernel)(const float*, float*)) {
  constexpr unsigned blocks = 3;
  Ran ran;
  Memory<float> in, out;
  ran.status = uploaded(in, counted(threads), "in");
  if (ran.status.ok()) ran.status = uploaded(out, std::vector<float>(threads), "out");
  if (!ran.status.ok()) return ran;
  ran.status = device::launch(name, kernel, {{blocks}, {threads}, 2 * threads * sizeof(float)},
                              in.data(), out.data());
  std::vector<float> expected = counted(threads);
  for (float& value : expected) value *= 6 * blocks;
  if (ran.status.ok()) ran.right = downloaded(out) == expected;
  return ran;
}

Ran run_added(bool buggy) {
  return run_sums("added", buggy ? added<true> : added<false>);
}
Ran run_stored(bool buggy) {
  return run_sums("stored", buggy ? stored<true> : stored<false>);
}

}  // namespace
}  // namespace tilewise::tests::inline TILEWISE_TARGET

namespace tilewise::tests {

Status load_box(const Box& box, const std::vector<float>& tensor, std::vector<float>& shared) {
  device::Memory<float> in, out;
  device::TensorMap map{};
  std::size_t count = 1;
  for (const std::uint32_t extent : box.box) count *= extent;
  Status status = uploaded(in, tensor, "in");
  if (status.ok()) status = out.allocate(count, "out");
  device::TensorShape shape;
  shape.dimensions = box.dimensions;
  for (int n = 0; n < 5; ++n) shape.size[n] = box.size[n];
  for (int n = 0; n < 4; ++n) shape.stride[n] = box.stride[n];
  if (status.ok())
    status = device::describe_tensor(map, in.data(), shape, box.box,
                                     static_cast<device::Swizzle>(box.swizzle));
  if (!status.ok()) return status;
  status = device::launch("box_to_shared", box_to_shared, {{1}, {threads}, 2048 * 4 + 1024}, map,
                          out.data(), box.at[0], box.at[1], box.at[2], box.at[3], box.at[4],
                          box.dimensions, static_cast<int>(count * sizeof(float)));
  shared = downloaded(out);
  return status;
}

std::vector<Planted> tensor_copy_bugs() {
  using emulator::Kind;
  const auto planted = [](const char* name, Kind kind, Ran (*run)(bool), const char* line,
                          const char* other = nullptr, Shown shown = Shown::alone) {
    return Planted{name, "tensor_copies.cu", kind, run, false, line, other, shown};
  };
  const Shown first = Shown::with_consequences;
  return {
      planted("fewer_rows_than_announced", Kind::deadlock,
              run_doubled<Flaw::fewer_rows_than_announced>, "wait"),
      planted("more_rows_than_announced", Kind::bad_mbarrier,
              run_doubled<Flaw::more_rows_than_announced>, "load", "announce"),
      planted("more_columns_than_the_tile", Kind::bad_mbarrier,
              run_doubled<Flaw::more_columns_than_the_tile>, "load", "announce"),
      planted("unaligned_box", Kind::misaligned, run_doubled<Flaw::unaligned_tile>, "load"),
      planted("of_other_dimensions", Kind::bad_instruction, run_doubled<Flaw::of_other_dimensions>,
              "deep"),
      planted("no_map", Kind::bad_instruction, run_doubled<Flaw::no_map>, "load"),
      planted("not_fenced", Kind::not_fenced, run_doubled<Flaw::not_fenced>, "store", "write"),
      planted("fenced_by_the_issuer", Kind::not_fenced, run_doubled<Flaw::fenced_by_the_issuer>,
              "store", "write"),
      planted("fenced_before", Kind::not_fenced, run_doubled<Flaw::fenced_before>, "store",
              "write"),
      planted("store_not_met", Kind::race, run_doubled<Flaw::not_met>, "store", "write", first),
      planted("tile_not_waited_for", Kind::not_waited_for, run_doubled<Flaw::not_waited_for_load>,
              "write", "load", first),
      planted("store_of_nothing", Kind::uninitialised, run_doubled<Flaw::not_written>, "store"),
      planted("never_committed", Kind::not_waited_for, run_doubled<Flaw::never_committed>, "store",
              nullptr, first),
      planted("ends_under_way", Kind::not_waited_for, run_doubled<Flaw::ends_under_way>, "store",
              nullptr, first),
      planted("source_overwritten", Kind::race, run_doubled<Flaw::overwritten>, "overwrite",
              "store"),
      planted("one_group_may_stay", Kind::race, run_doubled<Flaw::one_group_may_stay>, "overwrite",
              "store", first),
      planted("read_before_it_is_there", Kind::race, run_doubled<Flaw::read_before_it_is_there>,
              "read", "store"),
      planted("store_outside_of_shared", Kind::out_of_bounds,
              run_doubled<Flaw::store_outside_of_shared>, "store"),
      {"buffer_still_read", "tensor_copies.cu", Kind::race, run_added, false, nullptr, nullptr,
       first},
      {"two_stores", "tensor_copies.cu", Kind::race, run_stored},
  };
}

}  // namespace tilewise::tests
