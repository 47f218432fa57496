// What chapter 5's steps share besides stages/cuda_halves.hpp: the tensors as the copy engine wants
// them described, which rows a block has, and the end of a row block, which is 4d's.
#pragma once

#include "cuda/device/epilogue.hpp"
#include "cuda/device/mask.hpp"
#include "cuda/device/scheduler.hpp"
#include "cuda/device/softmax.hpp"
#include "cuda/device/tensor_map.hpp"
#include "cuda/device/trace.hpp"
#include "cuda/device/warpgroup.hpp"
#include "stages/cuda_halves.hpp"

namespace tilewise::stages::inline TILEWISE_TARGET {

/// Hopper's own instructions exist on Hopper alone: sm_90a.
inline constexpr CudaFeatures hopper = [] {
  CudaFeatures features = halves;
  features.compute_capability = 90;
  features.exactly = true;
  return features;
}();

/// A kernel's parameter: const __grid_constant__.
struct HeadMaps {
  device::TensorMap q, k, v;
};

// [snippet maps]
/// A tensor [batch, seqlen, heads, head_dim]. Rows, heads and sequences are dimensions of their
/// own: what a box has outside of its head comes as zeros, and not as the next head's rows. A box
/// has 64 columns, as a slab has (cuda/device/slab_tile.hpp), and so many rows of one head.
template <class T>
Status describe_heads(device::TensorMap& map, const CudaArgs& args, const void* tensor,
                      std::int64_t rows, std::int64_t heads, int box_rows) {
  if (rows == 0) return {};  // an empty tensor has no map, and nobody asks for one
  const auto of = [](std::int64_t number) { return static_cast<std::uint64_t>(number); };
  const std::int64_t d = args.head_dim;
  const device::TensorShape shape = {4,
                                     {of(d), of(rows), of(heads), of(args.batch), 1},
                                     {of(heads * d), of(d), of(rows * heads * d), 0}};
  return device::describe_tensor(map, static_cast<const T*>(tensor), shape,
                                 {64, static_cast<std::uint32_t>(box_rows), 1, 1, 1},
                                 device::Swizzle::bytes_128);
}
// [end maps]

/// What a block computes: `tiles` of keys for the rows from `first_row` on of a head.
struct BlockRows {
  device::Work work;
  device::Mask mask;
  int first_row, tiles;
};
template <int Br, int Bc>
__device__ __forceinline__ BlockRows rows_of_block(const CudaArgs& args,
                                                   const device::Schedule& schedule) {
  const device::Work work = schedule.work_of(blockIdx.x);
  const device::Mask mask = {static_cast<int>(args.seqlen_q), static_cast<int>(args.seqlen_k),
                             args.causal};
  return {work, mask, work.row_block * Br, mask.tiles_of(work.row_block * Br, Br, Bc)};
}

/// A tile's scores become P, still as floats, of a warp's rows from `row` on; returns the factor
/// for O. A negative softmax_scale turns the scores over: Q lies where wgmma reads it by itself.
template <int Bc>
__device__ __forceinline__ device::OfRows softmax_of_tile(device::OnlineSoftmax& softmax,
                                                          device::WarpTile<Bc>& s,
                                                          const CudaArgs& args,
                                                          const device::Mask& mask, int row,
                                                          int tile) {
  const device::Trace mark("softmax", tile);
  if (args.softmax_scale < 0) {
    TILEWISE_UNROLL
    for (int n = 0; n < Bc / 2; ++n) device::registers_of(s)[n] = -device::registers_of(s)[n];
  }
  if (mask.cuts(row, tile * Bc, Bc)) mask.apply(s, row, tile * Bc);
  return softmax.absorb_in_chains(s, device::log2_scale_of(args.softmax_scale));
}

/// O / l and LSE of a warp's rows from `row` on.
template <class T, int D>
__device__ __forceinline__ void store_rows(const CudaArgs& args, const device::Work& work, int row,
                                           device::OnlineSoftmax& softmax, device::WarpTile<D>& o) {
  const auto O = query_head<T>(args, args.o, work.batch, work.head_q);
  const int rows = static_cast<int>(args.seqlen_q) - row;
  const device::OfRows lse = softmax.finish(o);
  device::store_tile(o, O.row(row), O.stride, rows, O.width);
  device::store_lse(lse, args.lse + row_number(args, work.batch, work.head_q, row), rows);
}

/// Rows of Q and keys of a tile, each a box; threads and dynamic shared memory of a block.
struct HopperBlocks {
  int rows, keys, threads;
  std::size_t shared_bytes;
};

template <class T>
Status launch_hopper(const char* name, void (*kernel)(HeadMaps, CudaArgs, device::Schedule),
                     const CudaArgs& args, const HopperBlocks& blocks) {
  if (args.batch * args.nheads_q * args.seqlen_q == 0) return {};
  HeadMaps maps = {};
  Status status =
      describe_heads<T>(maps.q, args, args.q, args.seqlen_q, args.nheads_q, blocks.rows);
  if (status.ok())
    status = describe_heads<T>(maps.k, args, args.k, args.seqlen_k, args.nheads_k, blocks.keys);
  if (status.ok())
    status = describe_heads<T>(maps.v, args, args.v, args.seqlen_k, args.nheads_k, blocks.keys);
  if (!status.ok()) return status;
  const device::Schedule schedule = {
      static_cast<int>(args.batch), static_cast<int>(args.nheads_q),
      static_cast<int>(args.nheads_k),
      static_cast<int>((args.seqlen_q + blocks.rows - 1) / blocks.rows), args.causal};
  const device::Grid grid = {{schedule.blocks()},
                             {static_cast<unsigned>(blocks.threads)},
                             blocks.shared_bytes,
                             stream_of(args)};
  return device::launch(name, kernel, grid, maps, args, schedule);
}

/// Bytes between HBM and the chip: each row block reads its Q, if it sees a key, and K and V as far
/// as its last row sees, in whole tiles but for what lies outside.
inline double bytes_of_tiles(const CudaArgs& args, int rows, int keys) {
  const std::int64_t N = args.seqlen_q, d = args.head_dim;
  std::int64_t a_head = 2 * N * d + 4 * N;  // O, LSE
  for (std::int64_t i0 = 0; i0 < N; i0 += rows) {
    const std::int64_t behind = i0 + rows < N ? i0 + rows : N;
    const std::int64_t seen = keys_of_row(args, behind - 1);
    if (seen == 0) continue;
    const std::int64_t loaded = (seen + keys - 1) / keys * keys;
    a_head += 2 * d * (behind - i0 + 2 * (loaded < args.seqlen_k ? loaded : args.seqlen_k));
  }
  return static_cast<double>(args.batch * args.nheads_q * a_head);
}

}  // namespace tilewise::stages::inline TILEWISE_TARGET
