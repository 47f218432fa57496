// What the decode kernels are given, one call, checked by the host, its tensors in the device's
// memory; and their launches.
#pragma once

#include "core/device_backend.hpp"
#include "cuda/device/launch.hpp"
#include "cuda/kernels/sm80/decode_plan.hpp"

#include <cstdint>

namespace tilewise::cuda::sm80::inline TILEWISE_TARGET {

using DecodePlan = decode::Plan;

/// Number c of row i of head h of block b lies at b block + i row + h head + c. A block is a
/// sequence, a row of a cache, or a page. Rows begin at multiples of 16 bytes; of LSE, c is 0.
struct DecodeLayout {
  std::int64_t block, row, head;
};

/// i32, one for each sequence; null: not given.
struct DecodeNumbers {
  const std::int32_t* data;
  std::int64_t stride;
};

struct DecodeProblem {
  const void *q, *k, *v;  ///< f16 or bf16
  void* o;                ///< the same
  float* lse;             ///< null where it is not wanted
  DecodeLayout q_layout, k_layout, v_layout, o_layout, lse_layout;
  int batch, nheads_q, nheads_k, head_dim;
  int seqlen_q, seqlen_k;  ///< the most that a sequence may have
  bool causal;             ///< from the bottom right
  float softmax_scale;
  float lse_unit;   ///< LSE times this is what is stored: 1, or log2(e) for logarithms to base 2
  float empty_lse;  ///< of a row without keys

  // What only the device can see. All of it is clamped before it is used.
  DecodeNumbers seqlens_q, seqlens_k;  ///< how many of a sequence's rows count
  DecodeNumbers cache_rows;            ///< the block of K and V that is the sequence's
  const std::int32_t* block_table;     ///< of sequence b, page n: at b table_row + n table_page
  std::int64_t table_row, table_page;
  int blocks, page_size;  ///< of K and V: how many; with a block table, keys of each
};

/// A DeviceError's number.
using DecodeError = std::uint32_t;

/// The workspace. All null where a call has none.
struct DecodeSpace {
  WorkspaceHead* head;
  /// Of each split and packed row, [splits][batch][nheads_k][rows of a key head], how far a
  /// softmax over the split's keys has come: O [head_dim], not yet divided by l, and m and l. Null
  /// where the first kernel stores O itself.
  float* o;
  float2* m_l;
  DecodeError* findings;  ///< with a block table: [splits][batch][row tiles], what was amiss
  std::int64_t found;     ///< how many
};

/// Starts decode_kernel.hpp's. Each instantiation is a file: cuda/kernels/CMakeLists.txt has the
/// list.
template <class T, int D>
Status launch_decode(const DecodeProblem& problem, const DecodePlan& plan, const DecodeSpace& space,
                     device::StreamHandle stream);

/// Starts decode_combine.hpp's, after that.
template <class T>
Status launch_combine(const DecodeProblem& problem, const DecodePlan& plan,
                      const DecodeSpace& space, device::StreamHandle stream);

}  // namespace tilewise::cuda::sm80::inline TILEWISE_TARGET
