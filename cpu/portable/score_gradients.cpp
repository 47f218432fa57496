// The gradients of what enters the scores beside Q and K: the bias and the sinks.
#include "cpu/portable/gradients.hpp"
#include "cpu/portable/scores.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace tilewise::cpu::portable {
namespace {

/// The indices that element n of a dimension speaks for: itself, or all if the dimension is 1.
Span spoken_for(std::int64_t size, std::int64_t n, std::int64_t all) {
  return size == 1 ? Span{0, all} : Span{n, 1};
}

/// Sums over a tile's rows into its row 0, then over its columns into column 0, as asked.
template <class Real>
void reduce(const Tile<Real>& tile, Span rows, Span keys, bool over_rows, bool over_keys) {
  if (over_rows) add_rows({tile.row(1), tile.stride}, rows.count - 1, keys.count, tile.row(0));
  if (!over_keys) return;
  for (std::int64_t r = 0; r < (over_rows ? 1 : rows.count); ++r)
    for (std::int64_t j = 1; j < keys.count; ++j) tile.row(r)[0] += tile.row(r)[j];
}

/// Adds one head's part to a block of dbias: elements of `rows` and `keys` of the tensor, where a
/// dimension of 1 stands for all rows, or all keys.
template <class Real>
void add_head(const BackwardCall<Real>& backward, const Head& head, Span rows, Span keys,
              const BackwardTiles<Real>& tiles) {
  const TensorView& dbias = backward.call.tensors.dbias;
  const bool over_rows = dbias.shape[2] == 1, over_keys = dbias.shape[3] == 1;
  const std::int64_t first_row_block = over_rows ? 0 : rows.first / Br;
  const std::int64_t first_key_block = over_keys ? 0 : keys.first / Bc;
  const std::int64_t row_blocks = over_rows ? blocks(head.seqlen_q, Br) : 1;
  const std::int64_t key_blocks = over_keys ? blocks(head.seqlen_k, Bc) : 1;
  for (std::int64_t x = first_row_block; x < first_row_block + row_blocks; ++x) {
    const Span some_rows = Span::block(x, Br, head.seqlen_q);
    if (some_rows.count == 0) continue;
    read_queries(head, some_rows, tiles);
    for (std::int64_t y = first_key_block; y < first_key_block + key_blocks; ++y) {
      const Span some_keys = Span::block(y, Bc, head.seqlen_k);
      if (some_keys.count == 0) continue;
      const Coverage coverage = look(head, some_rows, some_keys, tiles.visible);
      if (coverage == Coverage::none) continue;
      read_keys(head, some_keys, tiles);
      gradient_tile(backward, head, some_rows, some_keys, coverage, Of::bias, tiles);
      reduce(tiles.dS, some_rows, some_keys, over_rows, over_keys);
      for (std::int64_t r = 0; r < (over_rows ? 1 : some_rows.count); ++r)
        for (std::int64_t j = 0; j < (over_keys ? 1 : some_keys.count); ++j)
          tiles.dbias.row(r)[j] += tiles.dS.row(r)[j];
    }
  }
}

}  // namespace

template <class Real>
void write_dbias(const BackwardCall<Real>& backward, const Workers& workers, void* memory) {
  const TensorView& dbias = backward.call.tensors.dbias;
  const std::int64_t batch = Sequences::of_queries(backward.call.tensors).batch();
  const std::int64_t row_blocks = blocks(dbias.shape[2], Br);
  const std::int64_t key_blocks = blocks(dbias.shape[3], Bc);
  for_each_task<BackwardTiles<Real>>(
      workers, memory, backward.shape, dbias.shape[0] * dbias.shape[1] * row_blocks * key_blocks,
      [&](std::int64_t task, const BackwardTiles<Real>& tiles) {
        const Span keys = Span::block(task % key_blocks, Bc, dbias.shape[3]);
        const std::int64_t above = task / key_blocks;
        const Span rows = Span::block(above % row_blocks, Br, dbias.shape[2]);
        const std::int64_t h = above / row_blocks % dbias.shape[1];
        const std::int64_t b = above / row_blocks / dbias.shape[1];
        const Span sequences = spoken_for(dbias.shape[0], b, batch);
        const Span heads = spoken_for(dbias.shape[1], h, backward.shape.nheads_q);
        tiles.dbias.clear(Br);
        for (std::int64_t each_b = sequences.first; each_b < sequences.end(); ++each_b)
          for (std::int64_t each_h = heads.first; each_h < heads.end(); ++each_h)
            add_head(backward, Head(backward.call, each_b, each_h), rows, keys, tiles);
        for (std::int64_t r = 0; r < rows.count; ++r)
          write_numbers(dbias, broadcast_offset(dbias, b, h, rows.first + r, keys.first),
                        dbias.strides[3], keys.count, tiles.dbias.row(r));
      });
}

// A sink's value is zero, so its dP is, and its dS is -p D.
template <class Real>
void write_dsinks(const BackwardCall<Real>& backward) {
  const AttentionTensors& tensors = backward.call.tensors;
  const TensorView &sinks = tensors.sinks, &dsinks = tensors.dsinks;
  const RowFacts<Real>& facts = backward.facts;
  const std::int64_t batch = Sequences::of_queries(tensors).batch();
  for (std::int64_t h = 0; h < backward.shape.nheads_q; ++h) {
    const double sink = load(sinks.dtype, sinks.at(h * sinks.strides[0]));
    double sum = 0;
    for (std::int64_t b = 0; b < batch; ++b) {
      const Head head(backward.call, b, h);
      for (std::int64_t i = 0; i < head.seqlen_q; ++i) {
        const std::int64_t index = facts.index(head, i);
        if (facts.lse[index] == std::numeric_limits<Real>::infinity()) continue;
        sum -= std::exp(sink - static_cast<double>(facts.lse[index])) *
               static_cast<double>(facts.d[index]);
      }
    }
    store(dsinks.dtype, dsinks.at(h * dsinks.strides[0]), sum);
  }
}

template void write_dbias(const BackwardCall<float>&, const Workers&, void*);
template void write_dbias(const BackwardCall<double>&, const Workers&, void*);
template void write_dsinks(const BackwardCall<float>&);
template void write_dsinks(const BackwardCall<double>&);

}  // namespace tilewise::cpu::portable
