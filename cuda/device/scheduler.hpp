// Which rows of which head a block computes: blockIdx.x becomes (batch, head, row block).
//
// Full attention: row blocks of one head after another, so that blocks that run at the same time
// read the same K and V, from the L2 cache. Causal: the last row blocks have the most keys and come
// first; the short ones at the end fill the multiprocessors that are free. Longest first is within
// 4/3 of the best order (Graham 1969), and gave one kernel 9 to 13 % (flashinfer, pull request
// 2890). But not of all heads: in sections of as many as the L2 cache has room for, since each K
// and V is read once a row block (FlashAttention-3's scheduler does so too). That blocks start in
// the order of their numbers is how GPUs behave, and is written nowhere: nothing but speed relies
// on it.
//
// Grouped heads: nheads_q / nheads_k neighbouring query heads share a key head (arXiv 2305.13245).
#pragma once

#include "cuda/device/platform.hpp"

#include <cstdint>

namespace tilewise::device::inline TILEWISE_TARGET {

struct Work {
  int batch, head_q, head_k, row_block;
};

struct Schedule {
  int batch, nheads_q, nheads_k, row_blocks;
  bool causal;
  int section = 1 << 30;  ///< heads whose row blocks run together, if causal: section_of()
  int tail = 1 << 30;     ///< heads from here on are one section: a multiple of `section`

  /// Of how many query heads K and V, so many bytes for each key head, fit into the L2 cache: 32 of
  /// an H100's 50 MB, of an A100's 40.
  static constexpr int section_of(std::int64_t bytes, int queries_a_key_head) {
    const std::int64_t heads = bytes == 0 ? 1 << 20 : (std::int64_t{32} << 20) / bytes;
    return static_cast<int>(heads < 1 ? 1 : heads > 1 << 20 ? 1 << 20 : heads) * queries_a_key_head;
  }

  /// How many blocks: the grid's x.
  __host__ __device__ constexpr unsigned blocks() const {
    return static_cast<unsigned>(batch) * static_cast<unsigned>(nheads_q) *
           static_cast<unsigned>(row_blocks);
  }
  __host__ __device__ constexpr Work work_of(unsigned block) const {
    const auto number = static_cast<int>(block);
    int row_block = number % row_blocks, head = number / row_blocks;
    if (causal) {
      const int first = head < tail ? head / section * section : tail;  // of this section
      const int left = batch * nheads_q - first;
      const int heads = first == tail || left < section ? left : section;
      const int within = number - first * row_blocks;
      row_block = row_blocks - 1 - within / heads;
      head = first + within % heads;
    }
    const int head_q = head % nheads_q;
    return {head / nheads_q, head_q, head_q / (nheads_q / nheads_k), row_block};
  }
};

}  // namespace tilewise::device::inline TILEWISE_TARGET
