// Which rows of which head a block computes: blockIdx.x becomes (batch, head, row block).
//
// Full attention: row blocks of one head after another, so that blocks that run at the same time
// read the same K and V, from the L2 cache. Causal: the last row blocks have the most keys and come
// first, of all heads; the short ones at the end fill the multiprocessors that are free. Longest
// first is within 4/3 of the best order (Graham 1969), and gave one kernel 9 to 13 % (flashinfer,
// pull request 2890). That blocks start in the order of their numbers is how GPUs behave, and is
// written nowhere: nothing but speed relies on it.
//
// Grouped heads: nheads_q / nheads_k neighbouring query heads share a key head (arXiv 2305.13245).
#pragma once

#include "cuda/device/platform.hpp"

namespace tilewise::device::inline TILEWISE_TARGET {

struct Work {
  int batch, head_q, head_k, row_block;
};

struct Schedule {
  int batch, nheads_q, nheads_k, row_blocks;
  bool causal;

  /// How many blocks: the grid's x.
  __host__ __device__ constexpr unsigned blocks() const {
    return static_cast<unsigned>(batch) * static_cast<unsigned>(nheads_q) *
           static_cast<unsigned>(row_blocks);
  }
  __host__ __device__ constexpr Work work_of(unsigned block) const {
    const auto number = static_cast<int>(block);
    const int heads = batch * nheads_q;
    const int row_block = causal ? row_blocks - 1 - number / heads : number % row_blocks;
    const int head = causal ? number % heads : number / row_blocks;
    const int head_q = head % nheads_q;
    return {head / nheads_q, head_q, head_q / (nheads_q / nheads_k), row_block};
  }
};

}  // namespace tilewise::device::inline TILEWISE_TARGET
