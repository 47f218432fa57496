// 4b. Tensor cores: a warp multiplies 16 x 16 by 16 x 8 numbers of 16 bits in one instruction.
//
// A block has 64 rows, as 3c's, and its four warps divide the work as FlashAttention 1 did (Dao
// 2023, arXiv 2307.08691, section 3.3, "split-K"): all of them have all rows, each has a quarter of
// the keys, and a quarter of the columns of O.
//
//        S = Q K^T, 64 x 64                P through shared memory         O = P V, 64 x D
//     +-----+-----+-----+-----+                +-----------+           +-----+-----+-----+-----+
//     |warp0|warp1|warp2|warp3|    exp2 ->     |     P     |    ->     |warp0|warp1|warp2|warp3|
//     |     |     |     |     |                |           |           |     |     |     |     |
//     +-----+-----+-----+-----+                +-----------+           +-----+-----+-----+-----+
//
// So no warp has a row: the row's maximum goes around through shared memory, and so does P. (FA1's
// own kernels let each warp multiply its P by its rows of V and add up four O instead: the same
// amount of talk.) Everything waits for loads, and the tiles lie as in a textbook, so that ldmatrix
// finds its eight rows in the same banks. 4c mends all three.
//
// Contract
//   grid     (ceil(seqlen_q / 64), nheads_q, batch) blocks of 4 warps
//   shared   Q, K, V, P of 16 bits and the warps' maxima: 33, 57 KiB for D = 64, 128
//   waits    four __syncthreads() a tile: free, K and V are there, maxima are there, P is there
//   memory   no workspace; the same bits in every run
#include "cuda/device/copy.hpp"
#include "cuda/device/epilogue.hpp"
#include "cuda/device/mask.hpp"
#include "cuda/device/operands.hpp"
#include "cuda/device/shared.hpp"
#include "cuda/device/softmax.hpp"
#include "stages/cuda_halves.hpp"

namespace tilewise::stages::inline TILEWISE_TARGET {
namespace {

// [snippet configuration]
constexpr int warps = 4, threads = warps * 32, Br = 64, Bc = 64;
constexpr int heights = Br / 16;   ///< tiles of mma below each other: every warp has all rows
constexpr int slice = Bc / warps;  ///< keys of a warp
static_assert(slice == 16, "a step of P V is 16 keys, and P's are one warp's");

template <class T, int D>
struct Tiles {
  device::PlainTile<T, Br, D> Q;
  device::PlainTile<T, Bc, D> K, V;
  device::PlainTile<T, Br, Bc> P;
  float told[warps][Br];  ///< each warp's maxima of a tile, and its sums at the end
};
// [end configuration]

// [snippet scores]
/// S, the warp's 16 keys of all rows. A fragment of K serves the four heights.
template <class T, int D>
__device__ __forceinline__ void scores(Tiles<T, D>& t, device::WarpTile<slice> (&s)[heights]) {
  TILEWISE_UNROLL
  for (auto& tile : s) tile.clear();
  TILEWISE_UNROLL
  for (int k = 0; k < D / 16; ++k) {
    device::OperandB key[2];
    device::load_operands_b(key, t.K, device::warp_index() * slice, 2 * k);
    TILEWISE_UNROLL
    for (int y = 0; y < heights; ++y) {
      const device::OperandA q = device::load_operand_a(t.Q, 16 * y, 2 * k);
      device::multiply<T>(s[y].piece[0], q, key[0]);
      device::multiply<T>(s[y].piece[1], q, key[1]);
    }
  }
}
// [end scores]

/// What a warp keeps of the block's 64 rows. A lane has rows 16 y + at.row and, as "row 1", the
/// eighth below it, of each height y (cuda/device/fragment.hpp).
template <int D>
struct Running {
  static constexpr int pieces = D / warps / 8;  ///< of the warp's columns of O
  int warp;
  device::Position at;
  device::OfRows m[heights], l[heights];  ///< m: of all keys; l: of the lane's own, until the end
  device::WarpTile<8 * pieces> o[heights];

  __device__ int row(int y, int row) const { return 16 * y + at.row + 8 * row; }
};

// [snippet talk]
/// Calls f(y, row) for each of the lane's rows.
template <class F>
__device__ __forceinline__ void for_rows(F f) {
  TILEWISE_UNROLL
  for (int y = 0; y < heights; ++y)
    for (int row = 0; row < 2; ++row) f(y, row);
}

/// A quad's number of a row, for the other warps; they listen behind a barrier.
template <class T, int D>
__device__ __forceinline__ void tell(Tiles<T, D>& t, const Running<D>& my, int row, float number) {
  if (my.at.column == 0) t.told[my.warp][row] = number;
}

template <class T, int D>
__device__ __forceinline__ void tell_maxima(Tiles<T, D>& t, const Running<D>& my,
                                            const device::WarpTile<slice> (&s)[heights]) {
  for_rows([&](int y, int row) {
    float most = -INFINITY;
    for (const device::Accumulator& piece : s[y].piece)
      most = fmaxf(most, fmaxf(piece.of_row(row, 0), piece.of_row(row, 1)));
    tell(t, my, my.row(y, row), device::quad_max(most));
  });
}

/// S becomes P, in shared memory; m, l and O follow: the recurrence of cuda/device/softmax.hpp, but
/// for where a row's maximum comes from.
template <class T, int D>
__device__ __forceinline__ void online_softmax(Tiles<T, D>& t, Running<D>& my, float log2_scale,
                                               device::WarpTile<slice> (&s)[heights]) {
  device::OfRows factor[heights];
  for_rows([&](int y, int row) {
    float &m = my.m[y].row[row], &l = my.l[y].row[row], most = m;
    for (int w = 0; w < warps; ++w) most = fmaxf(most, t.told[w][my.row(y, row)] * log2_scale);
    const float base = most == -INFINITY ? 0.0f : most;  // no key yet: -inf - -inf is NaN
    factor[y].row[row] = device::exp2_approx(m - base);
    m = most;
    l *= factor[y].row[row];
    for (int n = 0; n < 2; ++n) {
      float p[2];
      for (int c = 0; c < 2; ++c) {
        p[c] = device::exp2_approx(fmaf(s[y].piece[n].of_row(row, c), log2_scale, -base));
        l += p[c];
      }
      T* const to = &t.P.at(my.row(y, row), my.warp * slice + 8 * n + my.at.column);
      device::store_vector(to, device::pack<T>(p[0], p[1]));
    }
  });
  TILEWISE_UNROLL
  for (int y = 0; y < heights; ++y) device::rescale(my.o[y], factor[y]);
}
// [end talk]

/// O += P V, the warp's columns of all rows.
template <class T, int D>
__device__ __forceinline__ void add_values(Tiles<T, D>& t, Running<D>& my) {
  constexpr int pieces = Running<D>::pieces;
  TILEWISE_UNROLL
  for (int k = 0; k < Bc / 16; ++k) {
    device::OperandB v[pieces / 2][2];
    TILEWISE_UNROLL
    for (int n = 0; n < pieces / 2; ++n)
      device::load_operands_b_transposed(v[n], t.V, 16 * k, my.warp * pieces + 2 * n);
    TILEWISE_UNROLL
    for (int y = 0; y < heights; ++y) {
      const device::OperandA p = device::load_operand_a(t.P, 16 * y, 2 * k);
      TILEWISE_UNROLL
      for (int n = 0; n < pieces; ++n) device::multiply<T>(my.o[y].piece[n], p, v[n / 2][n % 2]);
    }
  }
}

// [snippet kernel]
template <class T, int D>
__global__ void __launch_bounds__(threads) attend_sliced(CudaArgs args) {
  auto& t = device::shared_memory<Tiles<T, D>>();
  const std::int64_t h = blockIdx.y, b = blockIdx.z;
  const auto K = key_head<const T>(args, args.k, b, kv_head(args, h));
  const auto V = key_head<const T>(args, args.v, b, kv_head(args, h));
  const int i0 = static_cast<int>(blockIdx.x) * Br;
  const device::Mask mask = {static_cast<int>(args.seqlen_q), static_cast<int>(args.seqlen_k),
                             args.causal};
  Running<D> my;
  my.warp = device::warp_index();
  my.at = device::accumulator_at(device::lane_index(), 0);
  for_rows([&](int y, int row) {
    my.m[y].row[row] = -INFINITY;
    my.l[y].row[row] = 0;
  });
  TILEWISE_UNROLL
  for (auto& tile : my.o) tile.clear();

  const auto load = [&](Head<const T> X, int first, auto& tile) {  // and wait for it
    const int rows = static_cast<int>(X.rows) - first;
    device::copy_tile<threads>(tile, X.row(first), X.stride, rows, X.width);
  };
  load(query_head<const T>(args, args.q, b, h), i0, t.Q);
  if (args.softmax_scale < 0) device::negate_copied<threads>(t.Q);
  for (int j0 = 0; j0 < args.seqlen_k; j0 += Bc) {
    __syncthreads();  // done with the tile before
    load(K, j0, t.K);
    load(V, j0, t.V);
    __syncthreads();
    device::WarpTile<slice> s[heights];
    scores(t, s);
    TILEWISE_UNROLL
    for (int y = 0; y < heights; ++y) mask.apply(s[y], i0 + 16 * y, j0 + my.warp * slice);
    tell_maxima(t, my, s);
    __syncthreads();
    online_softmax(t, my, device::log2_scale_of(args.softmax_scale), s);
    __syncthreads();  // P is there, of all warps
    add_values(t, my);
  }

  __syncthreads();  // nobody listens for a maximum any more
  for_rows(
      [&](int y, int row) { tell(t, my, my.row(y, row), device::quad_sum(my.l[y].row[row])); });
  __syncthreads();
  const auto O = query_head<T>(args, args.o, b, h);
  const int first = my.warp * 8 * my.pieces;  // column
  TILEWISE_UNROLL
  for (int y = 0; y < heights; ++y) {
    const int rows = static_cast<int>(args.seqlen_q) - i0 - 16 * y;
    device::OfRows lse, inverse;
    for (int row = 0; row < 2; ++row) {
      float l = 0;
      for (int w = 0; w < warps; ++w) l += t.told[w][my.row(y, row)];
      lse.row[row] = l > 0 ? fmaf(my.m[y].row[row], 0.69314718f, logf(l)) : -INFINITY;
      inverse.row[row] = l > 0 ? 1 / l : 0;  // no key: O = 0
    }
    device::rescale(my.o[y], inverse);
    device::store_tile(my.o[y], O.row(i0 + 16 * y) + first, O.stride, rows, O.width - first);
    if (my.warp == 0) device::store_lse(lse, args.lse + row_number(args, b, h, i0 + 16 * y), rows);
  }
}
// [end kernel]

Status run(const CudaArgs& args) {
  if (args.batch * args.nheads_q * args.seqlen_q == 0) return {};
  return with_halves(args, [&](auto number, auto D) {
    using T = decltype(number);
    const device::Grid grid = grid_of_row_blocks(args, Br, threads, sizeof(Tiles<T, D>));
    return device::launch("4b_tensor_cores", attend_sliced<T, D>, grid, args);
  });
}

// Q, O and LSE cross once, K and V once a row block: all of them, whatever the mask.
double bytes_moved(const CudaArgs& args) {
  const std::int64_t N = args.seqlen_q, d = args.head_dim, blocks = (N + Br - 1) / Br;
  const std::int64_t a_head = 2 * (2 * N * d + blocks * 2 * args.seqlen_k * d) + 4 * N;
  return static_cast<double>(args.batch * args.nheads_q * a_head);
}

}  // namespace

CudaStep tensor_cores() {
  return {.name = "4b_tensor_cores",
          .idea = "Tensor cores multiply, and four warps share each row, as FlashAttention 1 did.",
          .features = halves,
          .run = run,
          .workspace_bytes = nullptr,
          .bytes_moved = bytes_moved};
}

}  // namespace tilewise::stages::inline TILEWISE_TARGET
