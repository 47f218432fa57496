// What the two decode kernels know alike: of a call's sequences, how many rows and keys count; of a
// sequence's keys, which split has which; and how parts of a row become the row.
#pragma once

#include "cuda/device/platform.hpp"
#include "cuda/device/ptx/convert.hpp"
#include "cuda/device/ptx/exp2.hpp"
#include "cuda/device/ptx/vector_access.hpp"
#include "cuda/kernels/sm80/decode.hpp"

#include <cmath>
#include <cstdint>

namespace tilewise::cuda::sm80::inline TILEWISE_TARGET {

/// A sequence's number of a list, from 0 to `most`; `otherwise` where there is no list.
__device__ __forceinline__ int clamped(const DecodeNumbers& list, int b, int most, int otherwise) {
  return list.data == nullptr ? otherwise : max(0, min(list.data[b * list.stride], most));
}

struct DecodeSequence {
  int queries, keys;

  __device__ DecodeSequence(const DecodeProblem& problem, int b)
      : queries(clamped(problem.seqlens_q, b, problem.seqlen_q, problem.seqlen_q)),
        keys(clamped(problem.seqlens_k, b, problem.seqlen_k, problem.seqlen_k)) {}

  /// Query i looks at keys 0 to keys_of(i) - 1 (cuda/device/mask.hpp).
  __device__ int keys_of(int query, bool causal) const {
    return causal ? max(0, min(query + 1 + keys - queries, keys)) : keys;
  }
};

/// Query and head of packed row r of a key head. Of one query a division is saved: where all is
/// latency, some hundred cycles count.
struct DecodeRow {
  int query, head;

  __device__ DecodeRow(const DecodeProblem& problem, const DecodePlan& plan, int head_k, int r)
      : query(problem.seqlen_q == 1 ? 0 : r / plan.group),
        head(head_k * plan.group + r - query * plan.group) {}
};

/// The keys of a split, but of the last one. Of each sequence's own keys: where lengths differ,
/// short sequences are divided into as many parts as long ones, and no block waits for another.
__device__ __forceinline__ int keys_of_split(const DecodeProblem& problem, const DecodePlan& plan,
                                             const DecodeSequence& of) {
  constexpr int unit = decode::slice_keys;
  if (problem.seqlens_k.data == nullptr) return plan.each;
  const int each = (of.keys + plan.splits - 1) / plan.splits;
  return max(plan.fewest, (each + unit - 1) / unit * unit);
}

/// The number of packed row r of a key head, in the workspace's order.
__device__ __forceinline__ std::int64_t packed_row(const DecodeProblem& problem,
                                                   const DecodePlan& plan, int b, int head_k,
                                                   int r) {
  const std::int64_t head = static_cast<std::int64_t>(b) * problem.nheads_k + head_k;
  return head * plan.group * problem.seqlen_q + r;
}

// [snippet merge]
/// Four columns of O, and what belongs to them: m and l as in cuda/device/softmax.hpp, O and l sums
/// of exp2(s - m). Two such states of one row, over different keys, become one as an online softmax
/// goes from tile to tile: what was summed at a smaller m shrinks, and is added.
struct DecodeState {
  float m, l;
  float4 o;

  /// What a sum at another, smaller m counts here. A part without keys has m = -inf, and counts 0.
  __device__ float weight_of(float other) const {
    return device::exp2_approx(other - (m == -INFINITY ? 0.0f : m));  // -inf - -inf is NaN
  }
  __device__ void add(float weight, float of_l, const float4& of_o) {
    l += weight * of_l;
    o = {o.x + weight * of_o.x, o.y + weight * of_o.y, o.z + weight * of_o.z,
         o.w + weight * of_o.w};
  }
};
// [end merge]

/// Four columns of a row's O; and its LSE, by whoever has column 0.
template <class T>
__device__ __forceinline__ void store_row(const DecodeProblem& problem, int b, const DecodeRow& row,
                                          int column, const DecodeState& state) {
  const float unit = state.l == 0 ? 0.0f : 1.0f / state.l;  // no keys: O = 0
  const DecodeLayout& at = problem.o_layout;
  T* const to = static_cast<T*>(problem.o) + b * at.block + row.query * at.row + row.head * at.head;
  device::store_vector(to + column, uint2{device::pack<T>(unit * state.o.x, unit * state.o.y),
                                          device::pack<T>(unit * state.o.z, unit * state.o.w)});
  if (column != 0 || problem.lse == nullptr) return;
  const DecodeLayout& lse = problem.lse_layout;
  problem.lse[b * lse.block + row.query * lse.row + row.head * lse.head] =
      state.l == 0 ? problem.empty_lse
                   : fmaf(state.m, 0.69314718f, logf(state.l)) * problem.lse_unit;
}

}  // namespace tilewise::cuda::sm80::inline TILEWISE_TARGET
