// What the decode kernel's blocks have found of a row, each from its split of the keys, put
// together. A kernel of a few microseconds, of which all is latency: it asks for everything at
// once. A warp loads up to eight splits' O before it waits for the first; where there are more
// splits, more warps share the row, up to eight.
//
// Contract
//   grid      (rows / rows of a block, head_dim / 128) blocks of 8 warps; `share` warps a row, a
//             lane four columns
//   shared    each warp's sum, 4.5 KiB
//   waits     for the first kernel's end; one __syncthreads() between the warps of a row
//   lengths   a row looks at the splits that have keys which it sees; block 0 adds what blocks have
//             found of pages to the workspace's first word
//   memory    O, and LSE where it is wanted; each has one writer, and each sum one order
#pragma once

#include "cuda/device/shared.hpp"
#include "cuda/device/warp.hpp"
#include "cuda/kernels/sm80/decode_rows.hpp"

namespace tilewise::cuda::sm80::inline TILEWISE_TARGET {

struct Combination {
  static constexpr int warps = 8, threads = 32 * warps;
  static constexpr int at_once = 8;    ///< splits whose O a warp asks for before it waits
  static constexpr int columns = 128;  ///< of a warp

  /// How many warps of a block share a row: two to this.
  static constexpr int doublings_of(int splits) {
    int doublings = 0;
    while (warps >> doublings > 1 && at_once << doublings < splits) ++doublings;
    return doublings;
  }
};

struct CombinationShared {
  float4 sum_o[Combination::warps][32];
  float sum_l[Combination::warps];
  DecodeError errors[Combination::warps];
};

/// The worst of what blocks have found, and of what there is already. All threads of one block.
__device__ __forceinline__ void gather(const DecodeSpace& space,
                                       DecodeError (&errors)[Combination::warps]) {
  DecodeError worst = 0;
  for (std::int64_t n = threadIdx.x; n < space.found; n += Combination::threads)
    worst = max(worst, space.findings[n]);
  for (int by = 16; by > 0; by /= 2) worst = max(worst, __shfl_xor_sync(~0u, worst, by));
  if (device::lane_index() == 0) errors[device::warp_index()] = worst;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (const DecodeError error : errors) worst = max(worst, error);
  space.head->error = max(worst, space.head->error);
}

// [snippet decode_combine]
template <class T>
__global__ void __launch_bounds__(Combination::threads)
    combine_kernel(DecodeProblem problem, DecodePlan plan, DecodeSpace space, int doublings) {
  constexpr int warps = Combination::warps, at_once = Combination::at_once;
  auto& [sum_o, sum_l, errors] = device::shared_memory<CombinationShared>();
  const int warp = device::warp_index(), lane = device::lane_index();
  const int column = 4 * lane + Combination::columns * static_cast<int>(blockIdx.y);
  const std::int64_t all = packed_row(problem, plan, problem.batch, 0, 0);
  const int share = 1 << doublings, first = warp % share;
  const int row = static_cast<int>(blockIdx.x) * (warps >> doublings) + (warp >> doublings);

  // From the workspace's order of rows: sequence, key head, query, head of the group.
  const int of_head = plan.group * problem.seqlen_q, head = row / of_head;
  const int b = head / problem.nheads_k;
  const DecodeRow where(problem, plan, head % problem.nheads_k, row % of_head);
  bool there = row < all;
  int parts = there ? plan.splits : 0;
  if (there &&
      (problem.causal || problem.seqlens_k.data != nullptr || problem.seqlens_q.data != nullptr)) {
    const DecodeSequence sequence(problem, b);
    const int each = keys_of_split(problem, plan, sequence);
    there = where.query < sequence.queries;
    parts = there ? (sequence.keys_of(where.query, problem.causal) + each - 1) / each : 0;
  }

  // O of the first splits is on its way while the greatest m is looked for.
  float4 o[at_once];
  float2 m_l[at_once];
  const auto load = [&](int from) {
    TILEWISE_UNROLL
    for (int n = 0; n < at_once; ++n) {
      const int split = from + n * share;
      const std::int64_t place = split * all + row;
      o[n] = device::load_vector_if<float4>(split < parts && column < problem.head_dim,
                                            space.o + place * problem.head_dim + column);
      m_l[n] = split < parts ? device::load_vector<float2>(space.m_l + place)
                             : make_float2(-INFINITY, 0);
    }
  };
  load(first);
  DecodeState state = {-INFINITY, 0, {}};
  for (int split = lane; split < parts; split += 32)
    state.m = fmaxf(state.m, device::load_vector<float2>(space.m_l + split * all + row).x);
  for (int by = 16; by > 0; by /= 2) state.m = fmaxf(state.m, __shfl_xor_sync(~0u, state.m, by));
  for (int next = first; next < parts;) {
    TILEWISE_UNROLL
    for (int n = 0; n < at_once; ++n) state.add(state.weight_of(m_l[n].x), m_l[n].y, o[n]);
    next += at_once * share;
    if (next < parts) load(next);
  }

  device::store_vector(&sum_o[warp][lane], state.o);
  if (lane == 0) sum_l[warp] = state.l;
  __syncthreads();
  if (there && first == 0 && column < problem.head_dim) {
    for (int other = 1; other < share; ++other)
      state.add(1, sum_l[warp + other], device::load_vector<float4>(&sum_o[warp + other][lane]));
    store_row<T>(problem, b, where, column, state);
  }
  if (blockIdx.x == 0 && blockIdx.y == 0 && space.findings != nullptr) gather(space, errors);
}
// [end decode_combine]

template <class T>
Status launch_combine(const DecodeProblem& problem, const DecodePlan& plan,
                      const DecodeSpace& space, device::StreamHandle stream) {
  const int doublings = Combination::doublings_of(plan.splits);
  const int rows_a_block = Combination::warps >> doublings;
  const std::int64_t rows = std::int64_t{problem.batch} * problem.nheads_q * problem.seqlen_q;
  const dim3 blocks{static_cast<unsigned>((rows + rows_a_block - 1) / rows_a_block),
                    static_cast<unsigned>((problem.head_dim + 127) / Combination::columns)};
  return device::launch("cuda.sm80 decode: combine", combine_kernel<T>,
                        {blocks, {Combination::threads}, sizeof(CombinationShared), stream},
                        problem, plan, space, doublings);
}

}  // namespace tilewise::cuda::sm80::inline TILEWISE_TARGET
