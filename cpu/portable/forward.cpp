// Forward: O and LSE, one block of Br queries a task, keys in tiles of Bc (Dao 2023,
// arXiv 2307.08691, Algorithm 1).
//
//   k_new, v_new into the cache      append.cpp
//
//   for each tile of keys that the block can reach:
//     S = finished scores            visibility.hpp, scores.hpp
//     m' = max(m, rowmax S)          P = exp(S - m')          alpha = exp(m - m')
//     l <- alpha l + rowsum P        O <- alpha O + (P Z) V   Z: dropout's factors
//   O_i = O / l,  LSE_i = m + log l
//
// With num_splits > 1 the tiles are cut into runs, each run has an m, l and O of its own, and those
// are merged in order as above (flash-attn's split-KV decoding, one run after the other):
//
//   m' = max(m, m_run)    l <- e^(m - m') l + e^(m_run - m') l_run    O likewise
//
// Tiles start at multiples of Bc from the sequence's first key, and a tile in which a row sees
// nothing leaves that row's m, l and O as they were. So a row's bits depend on its own query, keys
// and masks alone: not on its neighbours, the batch, or who computes it. (Where runs begin depends
// on what the whole block can reach.)
#include "cpu/portable/append.hpp"
#include "cpu/portable/operands.hpp"
#include "cpu/portable/outcome.hpp"
#include "cpu/portable/portable.hpp"
#include "cpu/portable/rows.hpp"
#include "cpu/portable/scores.hpp"
#include "cpu/portable/tile.hpp"
#include "cpu/portable/workspace.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace tilewise::cpu::portable {
namespace {

template <class Real>
constexpr Real minus_infinity = -std::numeric_limits<Real>::infinity();

/// What has been seen of some keys, for each row of a block.
template <class Real>
struct Seen {
  Seen(Arena& arena, const Shape& shape)
      : O(arena.take_tile<Real>(Br, shape.head_dim_v)),
        m(arena.take<Real>(Br)),
        l(arena.take<Real>(Br)) {}

  /// A sink is a score that was seen before every key, and whose value is zero. -inf: none.
  void start(Real sink) const {
    for (std::int64_t r = 0; r < Br; ++r) {
      m[r] = sink;
      l[r] = sink == minus_infinity<Real> ? Real{0} : Real{1};
    }
    O.clear(Br);
  }

  /// The largest score adds exp(0) = 1 to l: a sum of anything is never that small.
  bool nothing(std::int64_t r) const { return l[r] == 0; }

  Tile<Real> O;  ///< not yet divided by l
  Real *m, *l;
};

/// All that a worker needs, whatever the lengths.
template <class Real>
struct ForwardTiles {
  ForwardTiles(Arena& arena, const Shape& shape)
      : Q(arena.take_tile<Real>(Br, shape.head_dim)),
        K(arena.take_tile<Real>(Bc, shape.head_dim)),
        Kt(arena.take_tile<Real>(shape.head_dim, Bc)),
        V(arena.take_tile<Real>(Bc, shape.head_dim_v)),
        S(arena.take_tile<Real>(Br, Bc)),
        Z(arena.take_tile<Real>(Br, Bc)),
        all(arena, shape),
        run(arena, shape),
        visible{arena.take<std::uint8_t>(Br * Bc)} {}

  Tile<Real> Q, K, Kt, V;
  Tile<Real> S;  ///< scores, then P
  Tile<Real> Z;
  Seen<Real> all;
  Seen<Real> run;  ///< of one split
  Visible visible;
};

/// What has to be subtracted from scores up to m before exp: a row that has seen no key yet has
/// m = -inf, and -inf - -inf is NaN.
template <class Real>
Real shift_of(Real m) {
  return m == minus_infinity<Real> ? Real{0} : m;
}

template <class Real>
void rescale(const Tile<Real>& O, std::int64_t r, Real alpha) {
  if (alpha == 1) return;
  for (std::int64_t c = 0; c < O.stride; ++c) O.row(r)[c] *= alpha;
}

/// S to P, with m, l and O brought up to date. A NaN score leaves m alone and makes l NaN.
template <class Real>
void online_softmax(Span rows, Span keys, const Tile<Real>& S, const Seen<Real>& seen) {
  for (std::int64_t r = 0; r < rows.count; ++r) {
    Real* s = S.row(r);
    Real m = seen.m[r];
    for (std::int64_t j = 0; j < keys.count; ++j) m = s[j] > m ? s[j] : m;
    const Real shift = shift_of(m);
    Real sum = 0;
    for (std::int64_t j = 0; j < keys.count; ++j) sum += s[j] = std::exp(s[j] - shift);
    const Real alpha = std::exp(seen.m[r] - shift);
    seen.l[r] = alpha * seen.l[r] + sum;
    seen.m[r] = m;
    rescale(seen.O, r, alpha);
  }
}

/// What a run has seen joins what the runs before it have. One that saw nothing leaves no trace.
template <class Real>
void merge(Span rows, const Seen<Real>& run, const Seen<Real>& all) {
  for (std::int64_t r = 0; r < rows.count; ++r) {
    if (run.nothing(r)) continue;
    const Real m = run.m[r] > all.m[r] ? run.m[r] : all.m[r];
    const Real shift = shift_of(m);
    const Real alpha = std::exp(all.m[r] - shift), beta = std::exp(run.m[r] - shift);
    all.l[r] = alpha * all.l[r] + beta * run.l[r];
    all.m[r] = m;
    rescale(all.O, r, alpha);
    for (std::int64_t c = 0; c < all.O.stride; ++c) all.O.row(r)[c] += beta * run.O.row(r)[c];
  }
}

template <class Real>
void add_tile(const Head& head, Span rows, Span keys, const ForwardTiles<Real>& tiles,
              const Seen<Real>& seen) {
  Coverage coverage = look(head, rows, keys, tiles.visible);
  if (coverage == Coverage::none) return;
  read_keys(head, keys, tiles.K);
  read_values(head, keys, tiles.V);
  transpose(tiles.K, keys.count, head.shape.head_dim, tiles.Kt);

  tiles.S.clear(rows.count);
  add_product(rows.count, padded<Real>(keys.count), head.shape.head_dim, tiles.Q.data,
              {tiles.Q.stride, 1}, tiles.Kt, tiles.S);
  coverage = finish_scores(head, rows, keys, coverage, tiles.visible, tiles.S, {});
  online_softmax(rows, keys, tiles.S, seen);

  if (head.call.params.dropout_p > 0) {
    dropout_factors(head, rows, keys, tiles.Z);
    for (std::int64_t r = 0; r < rows.count; ++r)
      for (std::int64_t j = 0; j < keys.count; ++j) tiles.S.row(r)[j] *= tiles.Z.row(r)[j];
  }
  if (coverage == Coverage::all)
    add_product(rows.count, tiles.V.stride, keys.count, tiles.S.data, {Bc, 1}, tiles.V, seen.O);
  else
    add_visible_product(rows.count, tiles.V.stride, keys.count, tiles.S.data, tiles.visible,
                        {Bc, 1}, tiles.V, seen.O);
}

template <class Real>
void finish(const Head& head, Span rows, const ForwardTiles<Real>& tiles) {
  for (std::int64_t r = 0; r < rows.count; ++r) {
    const Real m = tiles.all.m[r], l = tiles.all.l[r];
    const bool empty = tiles.all.nothing(r);
    Real* o = tiles.all.O.row(r);
    if (empty)
      fill_empty_row(head, tiles.V, o);
    else
      for (std::int64_t c = 0; c < head.shape.head_dim_v; ++c) o[c] /= l;
    write_lse(head, rows.first + r, static_cast<double>(m) + std::log(static_cast<double>(l)),
              empty);
  }
  write_tile(head.queries, head.call.tensors.o, head.b, head.h, rows, tiles.all.O);
}

template <class Real>
void attend(const Head& head, Span rows, const ForwardTiles<Real>& tiles) {
  read_queries(head, rows, tiles.Q);
  const KeyRange range = reachable_keys(head, rows);
  const std::int64_t first = range.begin / Bc, end = blocks(range.end, Bc);
  const auto add_tiles = [&](std::int64_t from, std::int64_t to, const Seen<Real>& seen) {
    for (std::int64_t n = from; n < to; ++n)
      add_tile(head, rows, Span::block(n, Bc, head.seqlen_k), tiles, seen);
  };
  tiles.all.start(sink_of<Real>(head));
  if (head.call.num_splits <= 1) {
    add_tiles(first, end, tiles.all);
  } else {
    const std::int64_t run = blocks(end - first, head.call.num_splits);
    for (std::int64_t from = first; from < end; from += run) {
      tiles.run.start(minus_infinity<Real>);
      add_tiles(from, std::min(from + run, end), tiles.run);
      merge(rows, tiles.run, tiles.all);
    }
  }
  finish(head, rows, tiles);
}

}  // namespace

template <class Real>
std::size_t forward_workspace(const Call& call, int max_workers) {
  return bytes_a_worker<ForwardTiles<Real>>(Shape(call)) * static_cast<std::size_t>(max_workers);
}

template <class Real>
void forward(const Call& call, const Workers& workers, void* workspace) {
  if (call.tensors.cache.appends()) append<Real>(call, workers, workspace);
  const Sequences queries = Sequences::of_queries(call.tensors);
  const Shape shape(call);
  const std::int64_t row_blocks = blocks(queries.longest(), Br);
  const std::int64_t tasks = queries.batch() * shape.nheads_q * row_blocks;
  for_each_task<ForwardTiles<Real>>(
      workers, workspace, shape, tasks, [&](std::int64_t task, const ForwardTiles<Real>& tiles) {
        const std::int64_t sequence_head = task / row_blocks;
        const Head head(call, sequence_head / shape.nheads_q, sequence_head % shape.nheads_q);
        const Span rows = Span::block(task % row_blocks, Br, head.seqlen_q);
        if (rows.count > 0) attend(head, rows, tiles);
      });
}

template std::size_t forward_workspace<float>(const Call&, int);
template std::size_t forward_workspace<double>(const Call&, int);
template void forward<float>(const Call&, const Workers&, void*);
template void forward<double>(const Call&, const Workers&, void*);

}  // namespace tilewise::cpu::portable
