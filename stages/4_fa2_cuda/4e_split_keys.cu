// 4e. The keys split: for few queries and many keys, as in decoding ("Flash-Decoding", Dao, Haziza,
// Massa, Sizov 2023, pytorch.org/blog/flash-decoding).
//
// One query and 8 key heads are 8 blocks, and a GPU has over 100 multiprocessors. What there is a
// lot of is keys, so these are divided among blocks too, and what the blocks found is put together.
// The query heads of a key head are rows of one tile, so that K and V are read once for all.
//
//   16 packed rows: query i of the group's head g is row i G + g
//
//        keys:   split 0          split 1          split 2
//              [ tile  tile ..] [ tile  tile ..] [ tile ..  ]        a block each
//                O_0, LSE_0       O_1, LSE_1       O_2, LSE_2        floats, in the workspace
//                        \            |            /
//         LSE = log sum_s exp(LSE_s),   O = sum_s exp(LSE_s - LSE) O_s      a warp each row
//
// Within a block the keys are split once more: each of four warps has 16 of a tile's 64, with m, l
// and O of its own until the end, when they meet in the same way. 16 rows leave nothing else to
// divide; and what 4b pays for that at each tile is paid once.
//
// Contract
//   grid       (row tiles x batch, nheads_k, splits) blocks of 4 warps; then, if splits > 1,
//              ceil(batch nheads_q seqlen_q / 4) blocks of 4 warps, a row each
//   splits     follow from the sizes alone, for an H100's 132 multiprocessors wherever it runs: the
//              same bits everywhere. With many queries there is one.
//   shared     Q, and two tiles each of K and V: 34, 68 KiB for D = 64, 128; at the end the warps'
//              O where K and V were
//   workspace  if splits > 1: O and LSE of each, splits batch nheads_q seqlen_q (d + 1) floats
//   waits      as 4c; the combination, for the first kernel's end
//   memory     each number has one writer, each sum one order: the same bits in every run
#include "cuda/device/copy.hpp"
#include "cuda/device/epilogue.hpp"
#include "cuda/device/operands.hpp"
#include "cuda/device/shared.hpp"
#include "cuda/device/softmax.hpp"
#include "cuda/device/trace.hpp"
#include "stages/cuda_halves.hpp"

#include <algorithm>

namespace tilewise::stages::inline TILEWISE_TARGET {
namespace {

using namespace device;

constexpr int warps = 4, threads = 32 * warps, Br = 16, Bc = 16 * warps;

// [snippet plan]
// Two blocks for each multiprocessor, all at once: with more the last ones run alone, and there is
// more to put together. Four tiles for each split, so that it is more than a beginning and an end.
constexpr std::int64_t enough_blocks = 2 * 132, fewest_tiles = 4, most_splits = 128;

struct Plan {
  int group, rows, row_tiles;  ///< of one key head: query heads, packed rows, tiles of them
  int splits, keys;            ///< of a split
};
Plan plan_of(const CudaArgs& args) {
  const std::int64_t group = args.nheads_q / args.nheads_k, rows = group * args.seqlen_q;
  const std::int64_t row_tiles = (rows + Br - 1) / Br, tiles = (args.seqlen_k + Bc - 1) / Bc;
  const std::int64_t blocks = std::max<std::int64_t>(1, row_tiles * args.nheads_k * args.batch);
  const std::int64_t wanted = std::clamp<std::int64_t>(enough_blocks / blocks, 1, most_splits);
  const std::int64_t each = std::max(fewest_tiles, (tiles + wanted - 1) / wanted);
  const std::int64_t splits = std::max<std::int64_t>(1, (tiles + each - 1) / each);
  return {static_cast<int>(group), static_cast<int>(rows), static_cast<int>(row_tiles),
          static_cast<int>(splits), static_cast<int>(each * Bc)};
}
// [end plan]

template <class T, int D>
struct Tiles {
  SwizzledTile<T, Br, D> Q;
  union {
    SwizzledTile<T, Bc, D> KV[2][2];
    float o[warps][Br][D + 8];  // 8 more: a quad writes 32 bytes, and 4 rows are in all banks
  };
  float lse[warps][Br];
};
static_assert(3 * (sizeof(Tiles<f16, 128>) + 1024) <= 228 * 1024, "an H100 holds three");

// [snippet merge]
/// Four columns of O, and LSE, of a row of which each of several has seen a part of the keys.
struct Seen {
  float4 o;
  float lse;
};
template <class LseOf, class OOf>
__device__ __forceinline__ Seen merge(int parts, LseOf lse_of, OOf o_of) {
  float most = -INFINITY, sum = 0;
  for (int s = 0; s < parts; ++s) most = fmaxf(most, lse_of(s));
  const float shift = most == -INFINITY ? 0 : most;  // no key: -inf - -inf is NaN
  float4 o = {};
  TILEWISE_UNROLL_4
  for (int s = 0; s < parts; ++s) {
    const float weight = __expf(lse_of(s) - shift);
    const float4 part = o_of(s);
    o = {o.x + weight * part.x, o.y + weight * part.y, o.z + weight * part.z,
         o.w + weight * part.w};
    sum += weight;
  }
  const float unit = sum == 0 ? 0 : 1 / sum;
  return {{unit * o.x, unit * o.y, unit * o.z, unit * o.w}, most + logf(sum)};
}
// [end merge]

template <class T>
__device__ void store_four(T* to, float4 o) {
  store_vector(to, uint2{pack<T>(o.x, o.y), pack<T>(o.z, o.w)});
}

// [snippet tile]
/// A tile of keys: this warp's 16. Of them the lane's two rows see those before `seen`.
template <class T, int D>
__device__ __forceinline__ void attend(Tiles<T, D>& t, int stage, float scale, const int (&seen)[2],
                                       OnlineSoftmax& softmax, WarpTile<D> (&o)[1]) {
  const int first = 16 * warp_index(), column = first + accumulator_at(lane_index(), 0).column;
  WarpTile<16> s[1] = {};
  multiply_rows<T>(s, t.Q, 0, t.KV[stage][0], first);
  if (scale < 0) rescale(s[0], {-1, -1});
  TILEWISE_UNROLL
  for (int x = 0; x < 8; ++x)
    if (column + x / 4 * 8 + x % 2 >= seen[x / 2 % 2])
      s[0].piece[x / 4].of_row(x / 2 % 2, x % 2) = -INFINITY;
  rescale(o[0], softmax.absorb(s[0], log2_scale_of(scale)));
  const OperandA p[1] = {as_operand_a<T>(s[0].piece[0], s[0].piece[1])};
  multiply_columns<T>(o, p, t.KV[stage][1], first, 0);
}
// [end tile]

// [snippet kernel]
template <class T, int D>
__global__ void __launch_bounds__(threads, 3)
    attend_split(CudaArgs args, Plan plan, float* all_o, float* all_lse) {
  auto& t = shared_memory<Tiles<T, D>>();
  const int b = static_cast<int>(blockIdx.x) / plan.row_tiles, kv = blockIdx.y, split = blockIdx.z;
  const int row0 = static_cast<int>(blockIdx.x) % plan.row_tiles * Br;
  const int rows = min(Br, plan.rows - row0), d = static_cast<int>(args.head_dim);
  const auto query = [&](int r) { return (row0 + r) / plan.group; };
  const auto head = [&](int r) { return kv * plan.group + (row0 + r) % plan.group; };
  const auto keys_of = [&](int r) {
    return r < rows ? static_cast<int>(keys_of_row(args, query(r))) : 0;
  };
  const int begin = split * plan.keys, end = min(begin + plan.keys, keys_of(rows - 1));
  if (begin >= end && plan.splits > 1) return;  // nobody looks here, and nobody will ask

  for (int x = threadIdx.x; x < Br * D / 8; x += threads) {
    const int r = x / (D / 8), c = x % (D / 8) * 8;
    const bool inside = r < rows && c < d;
    const T* const from = query_head<const T>(args, args.q, b, head(r)).row(query(r)) + c;
    cp_async<16>(t.Q.chunk(r, c / 8), inside ? from : args.q, inside);
  }
  const auto K = key_head<const T>(args, args.k, b, kv), V = key_head<const T>(args, args.v, b, kv);
  const auto fetch = [&](int j0) {  // always a group, if an empty one
    const Trace mark("copy K, V", j0 / Bc);
    const int stage = j0 / Bc % 2;
    if (j0 < end) {
      copy_tile_async<threads>(t.KV[stage][0], K.row(j0), K.stride, end - j0, d);
      copy_tile_async<threads>(t.KV[stage][1], V.row(j0), V.stride, end - j0, d);
    }
    cp_async_commit();
  };
  fetch(begin);
  const int my_row = accumulator_at(lane_index(), 0).row;
  const int mine[2] = {min(keys_of(my_row), end), min(keys_of(my_row + 8), end)};
  OnlineSoftmax softmax;
  WarpTile<D> o[1] = {};
  for (int j0 = begin; j0 < end; j0 += Bc) {
    fetch(j0 + Bc);
    cp_async_wait<1>();
    __syncthreads();  // this tile is there, for all
    {
      const Trace mark("compute", j0 / Bc);
      attend(t, j0 / Bc % 2, args.softmax_scale, {mine[0] - j0, mine[1] - j0}, softmax, o);
    }
    __syncthreads();  // all are done with it
  }

  cp_async_wait<0>();  // of Q's copies, where there was no key
  const int warp = warp_index();
  store_lse(softmax.finish(o[0]), t.lse[warp], Br);
  store_tile(o[0], t.o[warp][0], D + 8, Br, D);
  __syncthreads();
  for (int x = threadIdx.x; x < rows * D / 4; x += threads) {
    const int r = x / (D / 4), c = x % (D / 4) * 4;
    if (c >= d) continue;
    const Seen all = merge(
        warps, [&](int w) { return t.lse[w][r]; },
        [&](int w) { return load_vector<float4>(&t.o[w][r][c]); });
    const std::int64_t row = row_number(args, b, head(r), query(r));
    const std::int64_t place = split * row_number(args, args.batch, 0, 0) + row;
    if (c == 0) (plan.splits == 1 ? args.lse[row] : all_lse[place]) = all.lse;
    if (plan.splits == 1)
      store_four(query_head<T>(args, args.o, b, head(r)).row(query(r)) + c, all.o);
    else
      store_vector(all_o + place * d + c, all.o);
  }
}
// [end kernel]

// [snippet combine]
template <class T>
__global__ void __launch_bounds__(threads)
    combine(CudaArgs args, Plan plan, const float* all_o, const float* all_lse) {
  __shared__ float lse[warps][most_splits];
  const int warp = warp_index(), lane = lane_index(), c = 4 * lane;
  const std::int64_t rows = row_number(args, args.batch, 0, 0);
  const std::int64_t row = std::int64_t{blockIdx.x} * warps + warp, head = row / args.seqlen_q;
  if (row >= rows) return;
  const std::int64_t i = row % args.seqlen_q, keys = keys_of_row(args, i);
  const int splits = static_cast<int>((keys + plan.keys - 1) / plan.keys);  // that it sees
  for (int s = lane; s < splits; s += 32) lse[warp][s] = all_lse[s * rows + row];
  __syncwarp();
  const auto O = query_head<T>(args, args.o, head / args.nheads_q, head % args.nheads_q);
  if (c >= O.width) return;
  const Seen all = merge(
      splits, [&](int s) { return lse[warp][s]; },
      [&](int s) { return load_vector<float4>(all_o + (s * rows + row) * O.width + c); });
  store_four(O.row(i) + c, all.o);
  if (c == 0) args.lse[row] = all.lse;
}
// [end combine]

std::size_t workspace_bytes(const CudaArgs& args) {
  const std::int64_t splits = plan_of(args).splits, rows = row_number(args, args.batch, 0, 0);
  return splits == 1 ? 0 : static_cast<std::size_t>(4 * splits * rows * (args.head_dim + 1));
}

Status run(const CudaArgs& args) {
  const Plan plan = plan_of(args);
  const std::int64_t rows = row_number(args, args.batch, 0, 0);
  if (rows == 0) return {};
  auto* const o = static_cast<float*>(args.workspace);
  float* const lse = plan.splits == 1 ? nullptr : o + plan.splits * rows * args.head_dim;
  const dim3 blocks{static_cast<unsigned>(plan.row_tiles * args.batch),
                    static_cast<unsigned>(args.nheads_k), static_cast<unsigned>(plan.splits)};
  return with_halves(args, [&](auto number, auto D) {
    using T = decltype(number);
    Grid grid = {blocks, {threads}, sizeof(Tiles<T, D>), stream_of(args)};
    const Status status = launch("4e_split_keys", attend_split<T, D>, grid, args, plan, o, lse);
    if (!status.ok() || plan.splits == 1) return status;
    grid = {{static_cast<unsigned>((rows + warps - 1) / warps)}, {threads}, 0, stream_of(args)};
    return launch("4e_split_keys: combine", combine<T>, grid, args, plan, o, lse);
  });
}

// [snippet bytes]
// Of a tile of rows: Q once a split, K and V once, as far as its last row sees, O and LSE once. Of
// several splits each writes O and LSE as floats, and each row reads those that it sees.
double bytes_moved(const CudaArgs& args) {
  const Plan plan = plan_of(args);
  const std::int64_t d = args.head_dim;
  const auto keys = [&](std::int64_t row) { return keys_of_row(args, row / plan.group); };
  const auto splits = [&](std::int64_t row) { return (keys(row) + plan.keys - 1) / plan.keys; };
  std::int64_t bytes = 0;
  for (std::int64_t r0 = 0; r0 < plan.rows; r0 += Br) {
    const std::int64_t end = std::min<std::int64_t>(r0 + Br, plan.rows), rows = end - r0;
    const std::int64_t blocks = plan.splits == 1 ? 1 : splits(end - 1);
    bytes += blocks * rows * 2 * d + keys(end - 1) * 4 * d + rows * (2 * d + 4);
    if (plan.splits == 1) continue;
    bytes += blocks * rows * 4 * (d + 1);
    for (std::int64_t row = r0; row < end; ++row) bytes += splits(row) * 4 * (d + 1);
  }
  return static_cast<double>(args.batch * args.nheads_k * bytes);
}
// [end bytes]

}  // namespace

CudaStep split_keys() {
  return {.name = "4e_split_keys",
          .idea = "Few queries: the keys are divided among blocks, whose O meet by their LSE.",
          .features = halves,
          .run = run,
          .workspace_bytes = workspace_bytes,
          .bytes_moved = bytes_moved};
}

}  // namespace tilewise::stages::inline TILEWISE_TARGET
