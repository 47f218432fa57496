// What every CUDA step needs and none is about: where a head's rows lie, how many keys a row may
// look at, and which tile width serves a head_dim.
#pragma once

#include "cuda/device/launch.hpp"
#include "cuda/device/platform.hpp"
#include "stages/cuda_stage.hpp"

#include <cmath>
#include <type_traits>

/// Before a long loop, where TILEWISE_UNROLL would be too much. (platform.hpp has that one.)
#if TILEWISE_EMULATED
#define TILEWISE_UNROLL_4
#else
#define TILEWISE_UNROLL_4 _Pragma("unroll 4")
#endif

namespace tilewise::stages::inline TILEWISE_TARGET {

/// A head of one sequence: `rows` rows of `width` numbers; a row lies `stride` behind the other.
template <class T>
struct Head {
  T* data;
  std::int64_t rows, stride;
  int width;

  __device__ T* row(std::int64_t i) const { return data + i * stride; }
};

/// Head h of sequence b of a tensor [batch, seqlen, nheads, head_dim].
template <class T, class Pointer>
__device__ __forceinline__ Head<T> head_of(Pointer tensor, std::int64_t seqlen, std::int64_t nheads,
                                           std::int64_t head_dim, std::int64_t b, std::int64_t h) {
  return {static_cast<T*>(tensor) + (b * seqlen * nheads + h) * head_dim, seqlen, nheads * head_dim,
          static_cast<int>(head_dim)};
}
/// A tensor with the queries' heads, and one with the keys': q, o, dout, dq; k, v, dk, dv.
template <class T, class Pointer>
__device__ __forceinline__ Head<T> query_head(const CudaArgs& args, Pointer tensor, std::int64_t b,
                                              std::int64_t h) {
  return head_of<T>(tensor, args.seqlen_q, args.nheads_q, args.head_dim, b, h);
}
template <class T, class Pointer>
__device__ __forceinline__ Head<T> key_head(const CudaArgs& args, Pointer tensor, std::int64_t b,
                                            std::int64_t h) {
  return head_of<T>(tensor, args.seqlen_k, args.nheads_k, args.head_dim, b, h);
}

/// The key head that query head h reads (grouped-query attention).
__device__ __forceinline__ std::int64_t kv_head(const CudaArgs& args, std::int64_t h) {
  return h / (args.nheads_q / args.nheads_k);
}

/// Row i of (b, h) in what has one float a row: lse, and the workspaces' m, l and D.
__host__ __device__ __forceinline__ std::int64_t row_number(const CudaArgs& args, std::int64_t b,
                                                            std::int64_t h, std::int64_t i) {
  return (b * args.nheads_q + h) * args.seqlen_q + i;
}

/// How many keys row i may look at: all, or under causal those up to its own position.
__host__ __device__ __forceinline__ std::int64_t keys_of_row(const CudaArgs& args, std::int64_t i) {
  if (!args.causal) return args.seqlen_k;
  const std::int64_t n = i + 1 + args.seqlen_k - args.seqlen_q;
  return n < 0 ? 0 : n > args.seqlen_k ? args.seqlen_k : n;
}

/// Kernels are compiled for three widths of a tile; columns past head_dim are zeros. `run` gets
/// the width as a type. (Constants of types are what a kernel keeps in registers.)
template <class Run>
Status with_tile_width(std::int64_t head_dim, Run run) {
  if (head_dim <= 32) return run(std::integral_constant<int, 32>{});
  if (head_dim <= 64) return run(std::integral_constant<int, 64>{});
  if (head_dim <= 128) return run(std::integral_constant<int, 128>{});
  return failure(Code::unsupported, "head_dim is %ld; these steps serve at most 128",
                 static_cast<long>(head_dim));
}
constexpr int tile_width(std::int64_t head_dim) {
  return head_dim <= 32 ? 32 : head_dim <= 64 ? 64 : 128;
}

inline device::StreamHandle stream_of(const CudaArgs& args) {
  return static_cast<device::StreamHandle>(args.stream);
}

/// A block for each `rows` queries of each head.
inline device::Grid grid_of_row_blocks(const CudaArgs& args, int rows, int threads,
                                       std::size_t shared_bytes = 0) {
  const dim3 blocks{static_cast<unsigned>((args.seqlen_q + rows - 1) / rows),
                    static_cast<unsigned>(args.nheads_q), static_cast<unsigned>(args.batch)};
  return {blocks, {static_cast<unsigned>(threads)}, shared_bytes, stream_of(args)};
}

/// How a head's queries are spread over blocks: `rows` of them in each.
struct RowBlocks {
  int rows, threads;
  std::size_t shared_bytes = 0;  ///< dynamic
};

/// Starts `kernel` with these blocks for every head; where there are no queries, nothing.
template <class... More>
Status launch_rows(const char* name, void (*kernel)(CudaArgs, More...), const CudaArgs& args,
                   const RowBlocks& blocks, std::type_identity_t<More>... more) {
  if (args.batch * args.nheads_q * args.seqlen_q == 0) return {};
  const device::Grid grid =
      grid_of_row_blocks(args, blocks.rows, blocks.threads, blocks.shared_bytes);
  return device::launch(name, kernel, grid, args, more...);
}

// [snippet bytes]
/// Bytes between HBM and the chip when a block has `rows` queries of a head. Q, O and LSE cross
/// once. K and V cross once a row block, as far as its last row sees: ceil(N / rows) times, where
/// 2a's single rows took N times.
inline double bytes_of_row_blocks(const CudaArgs& args, int rows) {
  const std::int64_t N = args.seqlen_q, d = args.head_dim;
  std::int64_t numbers = 2 * N * d;
  for (std::int64_t i0 = 0; i0 < N; i0 += rows)
    numbers += keys_of_row(args, (i0 + rows < N ? i0 + rows : N) - 1) * 2 * d;
  const auto size = static_cast<std::int64_t>(size_of(args.dtype));
  const std::int64_t a_head = numbers * size + N * 4;  // LSE is float
  return static_cast<double>(args.batch * args.nheads_q * a_head);
}
// [end bytes]

}  // namespace tilewise::stages::inline TILEWISE_TARGET
