// Decoding: a few new queries against a long cache (Dao et al. 2023, Flash-Decoding).
//
//   task: one key head of one sequence, some of its query heads
//     for each stretch of 1024 keys:              stretches start at multiples of 1024: their
//       for each tile of 64 keys:                 borders, and so the bits, are the same however
//         S = Q K^T, P = softmax, O += P V        many workers there are
//       (m, l, O) of the stretch joins what the stretches before it had
//
// With the larger workspace each stretch is a task, its (m, l, O) is kept there, and the stretches
// are joined in the same order afterwards.
#include "cpu/flash/decode.hpp"

#include "cpu/flash/key_values.hpp"
#include "cpu/flash/outcome.hpp"
#include "cpu/portable/operands.hpp"
#include "cpu/portable/scores.hpp"
#include "cpu/portable/visibility.hpp"
#include "cpu/portable/workspace.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace tilewise::cpu::flash {
namespace {

using portable::Arena;
using portable::Bc;
using portable::blocks;
using portable::Coverage;
using portable::Head;
using portable::Shape;
using portable::Span;
using portable::Tile;

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();
constexpr std::int64_t most_rows = 16;  ///< queries times heads of a task
constexpr std::int64_t stretch = 1024;

/// What some keys have told the rows of a task.
struct State {
  float *m, *l, *O;
  std::int64_t O_row;

  static State take(Arena& arena, const Shape& shape) {
    const Tile<float> O = arena.take_tile<float>(most_rows, shape.head_dim_v);
    float* const m = arena.take<float>(most_rows);
    return {m, arena.take<float>(most_rows), O.data, O.stride};
  }
  void clear(std::int64_t rows) const {
    std::fill_n(m, rows, minus_infinity);
    std::fill_n(l, rows, 0.0f);
    std::fill_n(O, rows * O_row, 0.0f);
  }
};

struct Tiles {
  Tiles(Arena& arena, const Shape& shape)
      : key_values(arena, shape),
        Q(arena.take_tile<float>(most_rows, shape.head_dim)),
        S(arena.take_tile<float>(most_rows, Bc)),
        Z(arena.take_tile<float>(most_rows, Bc)),
        all(State::take(arena, shape)),
        part(State::take(arena, shape)),
        alpha(arena.take<float>(most_rows)),
        visible{arena.take<std::uint8_t>(most_rows * Bc)},
        o(arena.take_tile<float>(most_rows, shape.head_dim_v)) {}

  KeyValues key_values;
  Tile<float> Q, S, Z;
  State all, part;
  float* alpha;
  portable::Visible visible;
  Tile<float> o;
};

/// Which of a call's work a task is.
struct Place {
  std::int64_t b, kv_head, first_head, heads;
};

class Decode {
 public:
  Decode(const TileKernels& kernels, const Call& call, const Place& place, const Tiles& tiles)
      : kernels_(kernels),
        call_(call),
        place_(place),
        tiles_(tiles),
        head_(call, place.b, place.first_head),
        plain_(is_plain(call)),
        rows_(place.heads * head_.seqlen_q) {
    tiles_.key_values.start(kernels, head_);
    for (std::int64_t n = 0; n < place.heads; ++n)
      portable::read_queries(of_head(n), all_queries(), rows_of_head(tiles_.Q, n));
  }

  std::int64_t stretches() const { return blocks(head_.seqlen_k, stretch); }
  std::int64_t rows() const { return rows_; }

  /// The state of one stretch, in tiles.part.
  void attend(std::int64_t n) {
    tiles_.part.clear(rows_);
    const KeyRange reach = portable::reachable_keys(head_, all_queries());
    const std::int64_t begin = std::max(n * stretch, reach.begin);
    const std::int64_t end = std::min((n + 1) * stretch, reach.end);
    for (std::int64_t t = begin / Bc; t * Bc < end; ++t)
      add_tile(Span::block(t, Bc, head_.seqlen_k));
  }

  void clear() const { tiles_.all.clear(rows_); }

  /// What a stretch has seen joins what those before it have; one that saw nothing leaves no trace.
  void join(const State& part) const {
    const State& all = tiles_.all;
    const double factor = plain_ ? call_.params.softmax_scale : 1;
    for (std::int64_t r = 0; r < rows_; ++r) {
      if (part.l[r] == 0) continue;
      const float m = part.m[r] > all.m[r] ? part.m[r] : all.m[r];
      const double shift = m == minus_infinity ? 0 : m;
      const auto alpha = static_cast<float>(std::exp((all.m[r] - shift) * factor));
      const auto beta = static_cast<float>(std::exp((part.m[r] - shift) * factor));
      all.l[r] = alpha * all.l[r] + beta * part.l[r];
      all.m[r] = m;
      float* const o = all.O + r * all.O_row;
      for (std::int64_t c = 0; c < head_.shape.head_dim_v; ++c)
        o[c] = alpha * o[c] + beta * part.O[r * part.O_row + c];
    }
  }

  void finish() const {
    const State& all = tiles_.all;
    for (std::int64_t n = 0; n < place_.heads; ++n) {
      const Head head = of_head(n);
      const Tile<float> o = rows_of_head(tiles_.o, n);
      for (std::int64_t i = 0; i < head.seqlen_q; ++i) {
        const std::int64_t r = n * head.seqlen_q + i;
        const Outcome row =
            outcome(head, i, plain_ ? all.m[r] * call_.params.softmax_scale : all.m[r], all.l[r]);
        for (std::int64_t c = 0; c < head.shape.head_dim_v; ++c)
          o.row(i)[c] = all.O[r * all.O_row + c] / row.divisor;
        if (row.empty)
          portable::fill_empty_row(head, tiles_.key_values.memory_for_values(), o.row(i));
      }
      portable::write_tile(head.queries, call_.tensors.o, head.b, head.h, all_queries(), o);
    }
  }

 private:
  Span all_queries() const { return {0, head_.seqlen_q}; }
  Head of_head(std::int64_t n) const { return {call_, place_.b, place_.first_head + n}; }
  Tile<float> rows_of_head(const Tile<float>& tile, std::int64_t n) const {
    return {tile.row(n * head_.seqlen_q), tile.stride};
  }

  void add_tile(Span keys) {
    const bool all = plain_ ? every_row_sees(keys) : false;
    if (all) {
      const Source k = tiles_.key_values.source_of_keys(keys);
      kernels_.dots({tiles_.Q.data, tiles_.Q.stride}, rows_, head_.shape.head_dim, k, keys.count,
                    tiles_.S.data, Bc);
      weigh(keys);
      add_values(tiles_.key_values.source_of_values(keys), keys);
      return;
    }
    tiles_.key_values.turn_to(keys);
    const Rows k = tiles_.key_values.k(), v = tiles_.key_values.v();
    kernels_.dots({tiles_.Q.data, tiles_.Q.stride}, rows_, head_.shape.head_dim,
                  {k.data, k.stride, Element::f32}, keys.count, tiles_.S.data, Bc);
    finish_scores(keys);
    // 0 NaN is NaN: where V is not finite, what is hidden has to be left out.
    const bool leave_out = !kernels_.finite(v, keys.count, head_.shape.head_dim_v);
    if (leave_out)
      for (std::int64_t r = 0; r < rows_; ++r)
        for (std::int64_t j = 0; j < keys.count; ++j)
          tiles_.visible.row(r)[j] = tiles_.S.row(r)[j] != minus_infinity;
    weigh(keys);
    if (call_.params.dropout_p > 0) drop(keys);
    if (leave_out)
      add_seen_values(v, keys);
    else
      add_values({v.data, v.stride, Element::f32}, keys);
  }

  bool every_row_sees(Span keys) const {
    const KeyRange first = visible_keys(call_.params, 0, head_.seqlen_q, head_.seqlen_k);
    const KeyRange last =
        visible_keys(call_.params, head_.seqlen_q - 1, head_.seqlen_q, head_.seqlen_k);
    return last.begin <= keys.first && first.end >= keys.end();
  }

  /// -inf where a row does not see a key; in a call that is not plain, all else that is done to
  /// scores.
  void finish_scores(Span keys) {
    for (std::int64_t n = 0; n < place_.heads; ++n) {
      const Head head = of_head(n);
      const Tile<float> scores = rows_of_head(tiles_.S, n);
      if (plain_) {
        for (std::int64_t i = 0; i < head.seqlen_q; ++i) {
          const KeyRange range = visible_keys(call_.params, i, head.seqlen_q, head.seqlen_k);
          for (std::int64_t j = 0; j < keys.count; ++j)
            if (keys.first + j < range.begin || keys.first + j >= range.end)
              scores.row(i)[j] = minus_infinity;
        }
        continue;
      }
      const Coverage coverage = portable::look(head, all_queries(), keys, tiles_.visible);
      if (coverage == Coverage::none)
        for (std::int64_t i = 0; i < head.seqlen_q; ++i)
          std::fill_n(scores.row(i), keys.count, minus_infinity);
      else
        portable::finish_scores(head, all_queries(), keys, coverage, tiles_.visible, scores,
                                Tile<float>{});
    }
  }

  void weigh(Span keys) const {
    kernels_.weigh(tiles_.S.data, Bc, rows_, keys.count,
                   {tiles_.part.m, tiles_.part.l, nullptr, tiles_.alpha, factor_of(call_)});
  }

  void add_values(Source v, Span keys) const {
    kernels_.add_values(tiles_.S.data, Bc, rows_, keys.count, v, head_.shape.head_dim_v,
                        tiles_.alpha, tiles_.part.O, tiles_.part.O_row);
  }

  void add_seen_values(Rows v, Span keys) const {
    for (std::int64_t r = 0; r < rows_; ++r)
      for (std::int64_t c = 0; c < head_.shape.head_dim_v; ++c) {
        float sum = 0;
        for (std::int64_t j = 0; j < keys.count; ++j)
          if (tiles_.visible.row(r)[j] != 0) sum += tiles_.S.row(r)[j] * v.data[j * v.stride + c];
        float& o = tiles_.part.O[r * tiles_.part.O_row + c];
        o = tiles_.alpha[r] * o + sum;
      }
  }

  void drop(Span keys) const {
    for (std::int64_t n = 0; n < place_.heads; ++n) {
      const Tile<float> Z = rows_of_head(tiles_.Z, n), P = rows_of_head(tiles_.S, n);
      portable::dropout_factors(of_head(n), all_queries(), keys, Z);
      for (std::int64_t i = 0; i < head_.seqlen_q; ++i)
        for (std::int64_t j = 0; j < keys.count; ++j) P.row(i)[j] *= Z.row(i)[j];
    }
  }

  const TileKernels& kernels_;
  const Call& call_;
  Place place_;
  Tiles tiles_;
  Head head_;
  bool plain_;
  std::int64_t rows_;
};

struct Job {
  const TileKernels& kernels;
  const Call& call;
  Shape shape;
  std::int64_t most_stretches;
  std::int64_t heads_a_task;
  char* memory;
  std::size_t bytes_a_worker;
  char* extra;

  std::int64_t head_tasks() const { return shape.nheads_k * blocks(shape.group, heads_a_task); }
  Place place(std::int64_t n) const {
    const std::int64_t parts = blocks(shape.group, heads_a_task);
    const std::int64_t kv_head = n / parts % shape.nheads_k, part = n % parts;
    return {n / parts / shape.nheads_k, kv_head, kv_head * shape.group + part * heads_a_task,
            std::min(heads_a_task, shape.group - part * heads_a_task)};
  }
  State kept(std::int64_t n, std::int64_t part) const {
    Arena sizes(nullptr);
    State::take(sizes, shape);
    Arena arena(extra + (n * most_stretches + part) * static_cast<std::int64_t>(sizes.used()));
    return State::take(arena, shape);
  }
};

template <class Body>
void with_task(const Job& job, std::int64_t n, int worker, const Body& body) {
  const Place place = job.place(n);
  const std::int64_t seqlen_q = Sequences::of_queries(job.call.tensors).length(place.b);
  if (seqlen_q == 0 || !is_short(job.kernels, seqlen_q)) return;
  Arena arena(job.memory + static_cast<std::size_t>(worker) * job.bytes_a_worker);
  const Tiles tiles(arena, job.shape);
  Decode task(job.kernels, job.call, place, tiles);
  body(task, tiles);
}

void run_whole(void* arg, std::int64_t n, int worker) {
  const Job& job = *static_cast<const Job*>(arg);
  with_task(job, n, worker, [](Decode& task, const Tiles& tiles) {
    task.clear();
    for (std::int64_t part = 0; part < task.stretches(); ++part) {
      task.attend(part);
      task.join(tiles.part);
    }
    task.finish();
  });
}

void run_stretch(void* arg, std::int64_t n, int worker) {
  const Job& job = *static_cast<const Job*>(arg);
  const std::int64_t part = n % job.most_stretches, whole = n / job.most_stretches;
  with_task(job, whole, worker, [&](Decode& task, const Tiles& tiles) {
    if (part >= task.stretches()) return;
    task.attend(part);
    const State kept = job.kept(whole, part);
    std::copy_n(tiles.part.m, task.rows(), kept.m);
    std::copy_n(tiles.part.l, task.rows(), kept.l);
    std::copy_n(tiles.part.O, task.rows() * kept.O_row, kept.O);
  });
}

void join_stretches(void* arg, std::int64_t n, int worker) {
  const Job& job = *static_cast<const Job*>(arg);
  with_task(job, n, worker, [&](Decode& task, const Tiles&) {
    task.clear();
    for (std::int64_t part = 0; part < task.stretches(); ++part) task.join(job.kept(n, part));
    task.finish();
  });
}

/// Of the longest short sequence.
std::int64_t heads_a_task(const TileKernels& kernels, const Call& call) {
  const Sequences queries = Sequences::of_queries(call.tensors);
  std::int64_t longest = 1;
  for (std::int64_t b = 0; b < queries.batch(); ++b)
    if (is_short(kernels, queries.length(b))) longest = std::max(longest, queries.length(b));
  return std::min(Shape(call).group, std::max<std::int64_t>(most_rows / longest, 1));
}

/// From shapes alone: what tensors have room for.
std::int64_t most_stretches(const Call& call) {
  const TensorView& k = call.tensors.k;
  const KvCache& cache = call.tensors.cache;
  const std::int64_t keys = cache.exists() && cache.paged()
                                ? cache.block_table.shape[1] * k.shape[1]
                            : k.ndim == 3 ? k.shape[0]
                                          : k.shape[1];
  return blocks(keys + cache.seqlen_new(), stretch);
}

}  // namespace

bool is_short(const TileKernels& kernels, std::int64_t seqlen_q) {
  return seqlen_q <= std::min<std::int64_t>(kernels.queries / 4, most_rows);
}

std::size_t decode_workspace(const Call& call) {
  return portable::bytes_a_worker<Tiles>(Shape(call));
}

std::size_t decode_extra(const TileKernels& kernels, const Call& call) {
  const TensorView& q = call.tensors.q;
  const bool packed = q.ndim == 3;
  if (most_stretches(call) <= 1 || (!packed && !is_short(kernels, q.shape[1]))) return 0;
  const Shape shape(call);
  Arena sizes(nullptr);
  State::take(sizes, shape);
  // Packed sequences may be longer than a task of one head has room for others.
  const std::int64_t rows = packed ? most_rows : std::max<std::int64_t>(q.shape[1], 1);
  const std::int64_t heads = std::min(shape.group, std::max<std::int64_t>(most_rows / rows, 1));
  const std::int64_t tasks =
      Sequences::of_queries(call.tensors).batch() * shape.nheads_k * blocks(shape.group, heads);
  return static_cast<std::size_t>(tasks * most_stretches(call)) * sizes.used();
}

void decode(const TileKernels& kernels, const Call& call, const Workers& workers, char* memory,
            std::size_t bytes_a_worker, char* extra) {
  Job job{kernels, call,           Shape(call), most_stretches(call), heads_a_task(kernels, call),
          memory,  bytes_a_worker, extra};
  const std::int64_t tasks = Sequences::of_queries(call.tensors).batch() * job.head_tasks();
  const bool split = extra != nullptr && job.most_stretches > 1 && workers.max_workers > 1;
  if (!split) {
    workers.parallel_for(workers.pool, workers.max_workers, tasks, run_whole, &job);
    return;
  }
  workers.parallel_for(workers.pool, workers.max_workers, tasks * job.most_stretches, run_stretch,
                       &job);
  workers.parallel_for(workers.pool, workers.max_workers, tasks, join_stretches, &job);
}

}  // namespace tilewise::cpu::flash
