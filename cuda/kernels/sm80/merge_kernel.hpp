// n attentions over disjoint sets of keys become one: o = sum_i exp(lse_i - lse) o_i, with lse =
// log sum_i exp(lse_i). Any strides, and any of the formats for each part: a row is one warp's.
//
// Contract
//   grid     ceil(rows / warps) blocks of `warps` warps, a row each: of all sequences and heads
//   threads  lane i has part i's LSE; then all have columns, neighbouring lanes neighbouring ones
//   waits    shuffles; one __syncwarp() before LSE is written, which may be a part's own
//   memory   a number of o is read of all parts by the thread that then writes it, so that o may
//            be one of them. A part whose LSE is infinite has seen no key, and its o is not read
#pragma once

#include "core/attention.hpp"
#include "cuda/device/launch.hpp"
#include "cuda/device/platform.hpp"
#include "cuda/device/warp.hpp"
#include "cuda/kernels/merge.hpp"

#include <cmath>
#include <cstdint>

namespace tilewise::cuda::sm80::inline TILEWISE_TARGET {

enum class MergeFormat : int { f32, f16, bf16 };

/// Number c of row s of head h of sequence b lies at b batch + s row + h head + c column.
struct MergeTensor {
  void* data;
  MergeFormat format;
  std::int64_t batch, row, head, column;

  __device__ float load(std::int64_t at) const {
    switch (format) {
      case MergeFormat::f32: return static_cast<const float*>(data)[at];
      case MergeFormat::f16: return __half2float(static_cast<const device::f16*>(data)[at]);
      case MergeFormat::bf16: return __bfloat162float(static_cast<const device::bf16*>(data)[at]);
    }
    return 0;
  }
  __device__ void store(std::int64_t at, float value) const {
    switch (format) {
      case MergeFormat::f32: static_cast<float*>(data)[at] = value; return;
      case MergeFormat::f16: static_cast<device::f16*>(data)[at] = __float2half_rn(value); return;
      case MergeFormat::bf16:
        static_cast<device::bf16*>(data)[at] = __float2bfloat16_rn(value);
        return;
    }
  }
};

struct MergeLse {
  float* data;
  std::int64_t batch, row, head;
};

struct MergeProblem {
  int n;
  MergeTensor o_part[most_merged];
  MergeLse lse_part[most_merged];
  MergeTensor o;
  MergeLse lse;  ///< data is null where it is not wanted
  std::int64_t rows, seqlen, nheads, width;
  bool base_two;
  float empty_lse;  ///< of a row that no part has seen a key for
};
static_assert(sizeof(MergeProblem) <= 4096, "a kernel's parameters");

constexpr int merge_warps = 4;

__global__ void __launch_bounds__(32 * merge_warps) merge_kernel(MergeProblem problem) {
  const std::int64_t row = std::int64_t{blockIdx.x} * merge_warps + device::warp_index();
  if (row >= problem.rows) return;
  const int lane = device::lane_index();
  const std::int64_t h = row % problem.nheads, s = row / problem.nheads % problem.seqlen;
  const std::int64_t b = row / problem.nheads / problem.seqlen;

  float lse = -INFINITY;
  if (lane < problem.n) {
    const MergeLse& part = problem.lse_part[lane];
    lse = part.data[b * part.batch + s * part.row + h * part.head];
  }
  const bool counts = fabsf(lse) != INFINITY;  // a NaN does: it has to come through
  const unsigned counted = __ballot_sync(~0u, counts);
  float most = counts ? lse : -INFINITY;
  for (int by = 16; by > 0; by /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, by));
  float weight = !counts ? 0.0f : problem.base_two ? exp2f(lse - most) : expf(lse - most);
  float sum = weight;
  for (int by = 16; by > 0; by /= 2) sum += __shfl_xor_sync(~0u, sum, by);
  if (counts) weight /= sum;

  constexpr int at_once = 4;  // columns of a lane, so that as many loads are under way
  for (std::int64_t first = 0; first < problem.width; first += 32 * at_once) {
    float total[at_once] = {};
    for (int i = 0; i < problem.n; ++i) {
      const float of_part = __shfl_sync(~0u, weight, i);
      if ((counted >> i & 1) == 0) continue;
      const MergeTensor& part = problem.o_part[i];
      const std::int64_t start = b * part.batch + s * part.row + h * part.head;
      TILEWISE_UNROLL
      for (int n = 0; n < at_once; ++n)
        if (const std::int64_t column = first + 32 * n + lane; column < problem.width)
          total[n] += of_part * part.load(start + column * part.column);
    }
    const std::int64_t start = b * problem.o.batch + s * problem.o.row + h * problem.o.head;
    TILEWISE_UNROLL
    for (int n = 0; n < at_once; ++n)
      if (const std::int64_t column = first + 32 * n + lane; column < problem.width)
        problem.o.store(start + column * problem.o.column, total[n]);
  }
  __syncwarp();
  if (lane != 0 || problem.lse.data == nullptr) return;
  problem.lse.data[b * problem.lse.batch + s * problem.lse.row + h * problem.lse.head] =
      counted == 0 ? problem.empty_lse : most + (problem.base_two ? log2f(sum) : logf(sum));
}

}  // namespace tilewise::cuda::sm80::inline TILEWISE_TARGET
