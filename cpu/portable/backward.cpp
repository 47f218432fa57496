// Backward: every gradient that the call has room for, each by tasks of its own that write what
// nobody else writes. The scores are recomputed for each; nothing is added up by several workers.
//
//   1. D_i = dO_i . O_i                                    linear in the workspace
//   2. dQ    a task: (b, query head, block of rows)        sums over keys
//   3. dK dV a task: (b, key head, block of keys)          sums over the group's heads, then rows
//   4. dbias a task: a block of the bias's elements        score_gradients.cpp
//   5. dsinks                                              score_gradients.cpp
#include "cpu/portable/gradients.hpp"
#include "cpu/portable/portable.hpp"
#include "cpu/portable/scores.hpp"

#include <cmath>
#include <limits>

namespace tilewise::cpu::portable {
namespace {

/// Calls body(head, rows, tiles) for every block of rows of every query head, in parallel.
template <class Real, class Body>
void for_each_row_block(const BackwardCall<Real>& backward, const Workers& workers, void* memory,
                        const Body& body) {
  const Sequences queries = Sequences::of_queries(backward.call.tensors);
  const std::int64_t row_blocks = blocks(queries.longest(), Br);
  const std::int64_t nheads_q = backward.shape.nheads_q;
  for_each_task<BackwardTiles<Real>>(
      workers, memory, backward.shape, queries.batch() * nheads_q * row_blocks,
      [&](std::int64_t task, const BackwardTiles<Real>& tiles) {
        const std::int64_t sequence_head = task / row_blocks;
        const Head head(backward.call, sequence_head / nheads_q, sequence_head % nheads_q);
        const Span rows = Span::block(task % row_blocks, Br, head.seqlen_q);
        if (rows.count > 0) body(head, rows, tiles);
      });
}

template <class Real>
void write_facts(const BackwardCall<Real>& backward, const Head& head, Span rows,
                 const BackwardTiles<Real>& tiles) {
  const AttentionTensors& tensors = head.call.tensors;
  const bool base_two = head.call.params.conventions.lse_base == LseBase::two;
  const Tile<Real>& O = tiles.dV;  // the same shape, and free
  read_tile(head.queries, tensors.dout, head.b, head.h, rows, tiles.dO);
  read_tile(head.queries, tensors.o, head.b, head.h, rows, O);
  for (std::int64_t r = 0; r < rows.count; ++r) {
    const std::int64_t i = rows.first + r, index = backward.facts.index(head, i);
    double lse = load(tensors.lse.dtype,
                      tensors.lse.at(head.queries.lse_offset(tensors.lse, head.b, head.h, i)));
    if (base_two) lse *= 0.6931471805599453;  // ln 2
    backward.facts.lse[index] = static_cast<Real>(std::isinf(lse) ? std::fabs(lse) : lse);
    double d = 0;
    for (std::int64_t c = 0; c < head.shape.head_dim_v; ++c)
      d += static_cast<double>(tiles.dO.row(r)[c]) * static_cast<double>(O.row(r)[c]);
    backward.facts.d[index] = static_cast<Real>(d);
  }
}

template <class Real>
void write_dq(const BackwardCall<Real>& backward, const Head& head, Span rows,
              const BackwardTiles<Real>& tiles) {
  read_queries(head, rows, tiles);
  tiles.dQ.clear(rows.count);
  const KeyRange range = reachable_keys(head, rows);
  for (std::int64_t n = range.begin / Bc; n * Bc < range.end; ++n) {
    const Span keys = Span::block(n, Bc, head.seqlen_k);
    Coverage coverage = look(head, rows, keys, tiles.visible);
    if (coverage == Coverage::none) continue;
    read_keys(head, keys, tiles);
    coverage = gradient_tile(backward, head, rows, keys, coverage, Of::dot_product, tiles);
    add_rows_times(coverage, rows, keys, tiles.dS, tiles.visible, tiles.K, tiles.dQ);
  }
  const auto scale = static_cast<Real>(head.call.params.softmax_scale);
  for (std::int64_t r = 0; r < rows.count; ++r)
    for (std::int64_t c = 0; c < head.shape.head_dim; ++c) tiles.dQ.row(r)[c] *= scale;
  write_tile(head.queries, head.call.tensors.dq, head.b, head.h, rows, tiles.dQ);
}

/// A row whose O is the mean of V hands dO / n to every key: the sum of those, into `sums`.
template <class Real>
void add_means(const BackwardCall<Real>& backward, const Head& head,
               const BackwardTiles<Real>& tiles, Real* sums) {
  for (std::int64_t n = 0; n < blocks(head.seqlen_q, Br); ++n) {
    const Span rows = Span::block(n, Br, head.seqlen_q);
    std::int64_t empty = 0;
    for (std::int64_t i = rows.first; i < rows.end(); ++i) {
      if (backward.facts.lse[backward.facts.index(head, i)] !=
          std::numeric_limits<Real>::infinity())
        continue;
      const Tile<Real> next{tiles.dO.row(empty++), tiles.dO.stride};
      read_tile(head.queries, head.call.tensors.dout, head.b, head.h, {i, 1}, next);
    }
    add_rows(tiles.dO, empty, head.shape.head_dim_v, sums);
  }
}

template <class Real>
void write_dk_dv(const BackwardCall<Real>& backward, std::int64_t b, std::int64_t kv_head,
                 Span keys, const BackwardTiles<Real>& tiles) {
  const Call& call = backward.call;
  const Shape& shape = backward.shape;
  const Head first(call, b, kv_head * shape.group);
  tiles.dK.clear(keys.count);
  tiles.dV.clear(keys.count);
  read_keys(first, keys, tiles);
  for (std::int64_t g = 0; g < shape.group; ++g) {
    const Head head(call, b, kv_head * shape.group + g);
    for (std::int64_t n = 0; n < blocks(head.seqlen_q, Br); ++n) {
      const Span rows = Span::block(n, Br, head.seqlen_q);
      Coverage coverage = look(head, rows, keys, tiles.visible);
      if (coverage == Coverage::none) continue;
      read_queries(head, rows, tiles);
      coverage = gradient_tile(backward, head, rows, keys, coverage, Of::dot_product, tiles);
      add_columns_times(coverage, rows, keys, tiles.dS, tiles.visible, tiles.Q, tiles.dK);
      add_columns_times(coverage, rows, keys, tiles.P, tiles.visible, tiles.dO, tiles.dV);
    }
  }
  if (call.params.conventions.empty_row_output == EmptyRowOutput::mean_v) {
    Real* mean = tiles.Vt.data;  // as long as a row of V at least, and no longer needed
    for (std::int64_t c = 0; c < shape.head_dim_v; ++c) mean[c] = 0;
    for (std::int64_t g = 0; g < shape.group; ++g)
      add_means(backward, Head(call, b, kv_head * shape.group + g), tiles, mean);
    for (std::int64_t r = 0; r < keys.count; ++r)
      for (std::int64_t c = 0; c < shape.head_dim_v; ++c)
        tiles.dV.row(r)[c] += mean[c] / static_cast<Real>(first.seqlen_k);
  }
  const auto scale = static_cast<Real>(call.params.softmax_scale);
  for (std::int64_t r = 0; r < keys.count; ++r)
    for (std::int64_t c = 0; c < shape.head_dim; ++c) tiles.dK.row(r)[c] *= scale;
  if (call.tensors.dk.exists()) write_tile(first.keys, call.tensors.dk, b, kv_head, keys, tiles.dK);
  if (call.tensors.dv.exists()) write_tile(first.keys, call.tensors.dv, b, kv_head, keys, tiles.dV);
}

}  // namespace

template <class Real>
std::size_t backward_workspace(const Call& call, int max_workers) {
  Arena arena(nullptr);
  const RowFacts<Real> facts(arena, call);
  return arena.used() +
         bytes_a_worker<BackwardTiles<Real>>(Shape(call)) * static_cast<std::size_t>(max_workers);
}

template <class Real>
void backward(const Call& call, const Workers& workers, void* workspace) {
  Arena arena(workspace);
  const BackwardCall<Real> backward{call, Shape(call), RowFacts<Real>(arena, call)};
  void* const memory = arena.take<char>(0);  // the workers' tiles begin here
  const AttentionTensors& tensors = call.tensors;

  for_each_row_block(backward, workers, memory,
                     [&](const Head& head, Span rows, const BackwardTiles<Real>& tiles) {
                       write_facts(backward, head, rows, tiles);
                     });
  if (tensors.dq.exists())
    for_each_row_block(backward, workers, memory,
                       [&](const Head& head, Span rows, const BackwardTiles<Real>& tiles) {
                         write_dq(backward, head, rows, tiles);
                       });
  if (tensors.dk.exists() || tensors.dv.exists()) {
    const Sequences sequences = Sequences::of_keys(tensors);
    const std::int64_t key_blocks = blocks(sequences.longest(), Bc);
    const std::int64_t nheads_k = backward.shape.nheads_k;
    for_each_task<BackwardTiles<Real>>(
        workers, memory, backward.shape, sequences.batch() * nheads_k * key_blocks,
        [&](std::int64_t task, const BackwardTiles<Real>& tiles) {
          const std::int64_t b = task / key_blocks / nheads_k;
          const Span keys = Span::block(task % key_blocks, Bc, sequences.length(b));
          if (keys.count > 0) write_dk_dv(backward, b, task / key_blocks % nheads_k, keys, tiles);
        });
  }
  if (tensors.dbias.exists()) write_dbias(backward, workers, memory);
  if (tensors.dsinks.exists()) write_dsinks(backward);
}

template std::size_t backward_workspace<float>(const Call&, int);
template std::size_t backward_workspace<double>(const Call&, int);
template void backward<float>(const Call&, const Workers&, void*);
template void backward<double>(const Call&, const Workers&, void*);

}  // namespace tilewise::cpu::portable
