// Forward, whole blocks of queries: FlashAttention-2's loops (Dao 2023, arXiv 2307.08691, Algorithm
// 1) around the tile kernels.
//
//   task: some blocks of queries of one head
//     Qt of each block
//     for each tile of 64 keys that one of them reaches:
//       K, V as rows of floats: in place, or copied once for all of the task's blocks
//       for each block:
//         S = K Qt, hidden scores -inf        P, m, l = online softmax        Ot = alpha Ot + V^T P
//     O = Ot^T / l, LSE
//
// Tiles that a block cannot see are not touched, and where the causal diagonal crosses one, neither
// are the registers of lanes above it. As in the portable backend a row's bits depend on its own
// query, keys and masks alone: tiles start at multiples of 64 keys from the sequence's first, and a
// lane never learns of another.
#include "cpu/flash/flash.hpp"
#include "cpu/flash/decode.hpp"
#include "cpu/flash/key_values.hpp"
#include "cpu/flash/outcome.hpp"
#include "cpu/flash/schedule.hpp"
#include "cpu/portable/append.hpp"
#include "cpu/portable/operands.hpp"
#include "cpu/portable/portable.hpp"
#include "cpu/portable/rows.hpp"
#include "cpu/portable/scores.hpp"
#include "cpu/portable/visibility.hpp"
#include "cpu/portable/workspace.hpp"

#include <algorithm>
#include <cmath>
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
constexpr std::int64_t most_queries = 64;  ///< of a block, for any instruction set
constexpr std::int64_t most_blocks = RowSchedule::most_blocks;

struct Block {
  float *Qt, *Ot, *m, *l;
  KeyRange* ranges;  ///< the keys that each row sees, where the call is plain
};

struct Tiles {
  Tiles(Arena& arena, const Shape& shape, std::int64_t queries)
      : key_values(arena, shape),
        S(arena.take<float>(Bc * queries)),
        top(arena.take<float>(queries)),
        alpha(arena.take<float>(queries)),
        begin(arena.take<float>(queries)),
        end(arena.take<float>(queries)),
        rows(
            arena.take_tile<float>(most_queries, std::max({shape.head_dim, shape.head_dim_v, Bc}))),
        Z(arena.take_tile<float>(most_queries, Bc)),
        visible{arena.take<std::uint8_t>(most_queries * Bc)} {
    for (Block& block : all)
      block = {arena.take<float>(shape.head_dim * queries),
               arena.take<float>(shape.head_dim_v * queries), arena.take<float>(queries),
               arena.take<float>(queries), arena.take<KeyRange>(queries)};
  }

  KeyValues key_values;
  float *S, *top, *alpha, *begin, *end;
  Tile<float> rows;  ///< of queries, outputs or scores, on their way between tensors and lanes
  Tile<float> Z;     ///< dropout's factors
  portable::Visible visible;
  Block all[most_blocks];
};

/// One task.
class Attend {
 public:
  Attend(const TileKernels& kernels, const Head& head, Span rows, Tiles& tiles)
      : kernels_(kernels), head_(head), tiles_(tiles), plain_(is_plain(head.call)) {
    for (std::int64_t first = rows.first; first < rows.end(); first += kernels.queries)
      rows_[count_++] = {first, std::min(kernels.queries, rows.end() - first)};
  }

  void run() {
    tiles_.key_values.start(kernels_, head_);
    std::int64_t first = head_.seqlen_k, end = 0;
    for (int n = 0; n < count_; ++n) {
      start(n);
      first = std::min(first, reach_[n].begin);
      end = std::max(end, reach_[n].end);
    }
    for (std::int64_t t = first / Bc; t < blocks(end, Bc); ++t) {
      const Span keys = Span::block(t, Bc, head_.seqlen_k);
      tiles_.key_values.turn_to(keys);
      for (int n = 0; n < count_; ++n)
        if (reach_[n].begin < keys.end() && reach_[n].end > keys.first) add_tile(n, keys);
    }
    for (int n = 0; n < count_; ++n) finish(n);
  }

 private:
  void start(int n) {
    const Span rows = rows_[n];
    const Block& block = tiles_.all[n];
    std::fill_n(block.m, kernels_.queries, minus_infinity);
    std::fill_n(block.l, kernels_.queries, 0.0f);
    std::fill_n(block.Ot, head_.shape.head_dim_v * kernels_.queries, 0.0f);
    const Rows q = query_rows(head_, rows, kernels_, tiles_.rows);
    kernels_.pack_queries(q, rows.count, head_.shape.head_dim, block.Qt);
    reach_[n] = portable::reachable_keys(head_, rows);
    if (!plain_) return;
    for (std::int64_t r = 0; r < rows.count; ++r)
      block.ranges[r] =
          visible_keys(head_.call.params, rows.first + r, head_.seqlen_q, head_.seqlen_k);
  }

  void add_tile(int n, Span keys) {
    if (plain_)
      add_plain_tile(n, keys);
    else
      add_any_tile(n, keys);
  }

  /// Masks are ranges of keys, and a score is a scaled dot product.
  void add_plain_tile(int n, Span keys) {
    const Span rows = rows_[n];
    const Block& block = tiles_.all[n];
    const KeyRange first = block.ranges[0], last = block.ranges[rows.count - 1];
    const bool all = last.begin <= keys.first && first.end >= keys.end();
    // From one row to the next one more key is seen, at most: but for chunks.
    const std::int64_t diagonal =
        all || head_.call.params.attention_chunk > 0 ? no_diagonal : first.end - keys.first - 1;
    kernels_.scores(block.Qt, head_.shape.head_dim, tiles_.key_values.k(), keys.count, diagonal,
                    tiles_.S, tiles_.top);
    if (!all) {
      for (std::int64_t r = 0; r < kernels_.queries; ++r) {
        const KeyRange range = r < rows.count ? block.ranges[r] : KeyRange{};
        tiles_.begin[r] =
            static_cast<float>(std::clamp<std::int64_t>(range.begin - keys.first, 0, Bc));
        tiles_.end[r] = static_cast<float>(std::clamp<std::int64_t>(range.end - keys.first, 0, Bc));
      }
      kernels_.hide(tiles_.S, keys.count, tiles_.begin, tiles_.end, tiles_.top);
    }
    add_scores(n, keys, all ? Coverage::all : Coverage::some, diagonal);
  }

  /// Everything that the portable backend knows how to do to scores, by its own functions.
  void add_any_tile(int n, Span keys) {
    const Span rows = rows_[n];
    Coverage coverage = portable::look(head_, rows, keys, tiles_.visible);
    if (coverage == Coverage::none) return;
    kernels_.scores(tiles_.all[n].Qt, head_.shape.head_dim, tiles_.key_values.k(), keys.count,
                    no_diagonal, tiles_.S, tiles_.top);
    const Tile<float> scores{tiles_.rows.data, Bc};
    kernels_.to_rows(tiles_.S, keys.count, scores.data, Bc);
    coverage =
        portable::finish_scores(head_, rows, keys, coverage, tiles_.visible, scores, Tile<float>{});
    kernels_.from_rows(scores.data, Bc, keys.count, tiles_.S, tiles_.top);
    add_scores(n, keys, coverage, no_diagonal);
  }

  void add_scores(int n, Span keys, Coverage coverage, std::int64_t diagonal) {
    const Block& block = tiles_.all[n];
    // 0 NaN is NaN: where V is not finite, what is hidden has to be left out.
    const bool leave_out =
        coverage != Coverage::all &&
        !kernels_.finite(tiles_.key_values.v(), keys.count, head_.shape.head_dim_v);
    if (leave_out) note_hidden(keys);
    kernels_.online_softmax(tiles_.S, keys.count,
                            {block.m, block.l, tiles_.top, tiles_.alpha, factor_of(head_.call)});
    if (head_.call.params.dropout_p > 0) drop(n, keys);
    if (leave_out)
      add_seen_values(block, keys);
    else
      kernels_.values(tiles_.S, keys.count, diagonal, tiles_.key_values.v(), head_.shape.head_dim_v,
                      tiles_.alpha, block.Ot);
  }

  void drop(int n, Span keys) {
    portable::dropout_factors(head_, rows_[n], keys, tiles_.Z);
    for (std::int64_t j = 0; j < keys.count; ++j)
      for (std::int64_t r = 0; r < rows_[n].count; ++r)
        tiles_.S[j * kernels_.queries + r] *= tiles_.Z.row(r)[j];
  }

  void note_hidden(Span keys) {
    for (std::int64_t j = 0; j < keys.count; ++j)
      for (std::int64_t r = 0; r < kernels_.queries; ++r)
        tiles_.visible.pair[j * kernels_.queries + r] =
            tiles_.S[j * kernels_.queries + r] != minus_infinity;
  }

  void add_seen_values(const Block& block, Span keys) {
    const Rows v = tiles_.key_values.v();
    const std::int64_t lanes = kernels_.queries;
    for (std::int64_t c = 0; c < head_.shape.head_dim_v; ++c)
      for (std::int64_t r = 0; r < lanes; ++r) {
        float sum = 0;
        for (std::int64_t j = 0; j < keys.count; ++j)
          if (tiles_.visible.pair[j * lanes + r] != 0)
            sum += tiles_.S[j * lanes + r] * v.data[j * v.stride + c];
        float& o = block.Ot[c * lanes + r];
        o = tiles_.alpha[r] * o + sum;
      }
  }

  void finish(int n) {
    const Span rows = rows_[n];
    const Block& block = tiles_.all[n];
    bool empty[most_queries];
    for (std::int64_t r = 0; r < rows.count; ++r) {
      const double m = block.m[r];
      const Outcome row = outcome(head_, rows.first + r,
                                  plain_ ? m * head_.call.params.softmax_scale : m, block.l[r]);
      block.l[r] = row.divisor;
      empty[r] = row.empty;
    }
    const Rows o = output_rows(head_, rows, tiles_.rows);
    float* const first = const_cast<float*>(o.data);
    kernels_.unpack(block.Ot, block.l, rows.count, head_.shape.head_dim_v, first, o.stride);
    for (std::int64_t r = 0; r < rows.count; ++r)
      if (empty[r])
        portable::fill_empty_row(head_, tiles_.key_values.memory_for_values(),
                                 first + r * o.stride);
    if (first == tiles_.rows.data)
      portable::write_tile(head_.queries, head_.call.tensors.o, head_.b, head_.h, rows,
                           tiles_.rows);
  }

  const TileKernels& kernels_;
  const Head& head_;
  Tiles& tiles_;
  bool plain_;
  int count_ = 0;
  Span rows_[most_blocks];
  KeyRange reach_[most_blocks];
};

struct Job {
  const TileKernels& kernels;
  const Call& call;
  Shape shape;
  RowSchedule schedule;
  char* memory;
  std::size_t bytes_a_worker;
};

void run_task(void* arg, std::int64_t n, int worker) {
  const Job& job = *static_cast<const Job*>(arg);
  const RowTask task = job.schedule[n];
  const Head head(job.call, task.b, task.h);
  const std::int64_t end = std::min(task.rows.end(), head.seqlen_q);
  if (task.rows.first >= end || is_short(job.kernels, head.seqlen_q)) return;
  Arena arena(job.memory + static_cast<std::size_t>(worker) * job.bytes_a_worker);
  Tiles tiles(arena, job.shape, job.kernels.queries);
  Attend(job.kernels, head, {task.rows.first, end - task.rows.first}, tiles).run();
}

std::size_t bytes_a_worker(const TileKernels& kernels, const Call& call) {
  Arena arena(nullptr);
  const Tiles tiles(arena, Shape(call), kernels.queries);
  return std::max(
      {arena.used(), decode_workspace(call), portable::forward_workspace<float>(call, 1)});
}

}  // namespace

const char* refuses(const Call& call) {
  if (call.tensors.q.dtype == DType::f64) return "float64 is computed in plain C++";
  if (call.num_splits > 1) return "num_splits is computed in plain C++";
  return nullptr;
}

std::size_t forward_workspace(const TileKernels& kernels, const Call& call, int max_workers) {
  return bytes_a_worker(kernels, call) * static_cast<std::size_t>(max_workers);
}

std::size_t forward_fast_workspace(const TileKernels& kernels, const Call& call, int max_workers) {
  return forward_workspace(kernels, call, max_workers) + decode_extra(kernels, call);
}

void forward(const TileKernels& kernels, const Call& call, const Workers& workers, void* workspace,
             std::size_t bytes) {
  if (call.tensors.cache.appends()) portable::append<float>(call, workers, workspace);
  const Sequences queries = Sequences::of_queries(call.tensors);
  const Shape shape(call);
  auto* const memory = static_cast<char*>(workspace);
  const std::size_t a_worker = bytes_a_worker(kernels, call);
  std::int64_t longest = 0, shortest = std::numeric_limits<std::int64_t>::max();
  for (std::int64_t b = 0; b < queries.batch(); ++b) {
    longest = std::max(longest, queries.length(b));
    shortest = std::min(shortest, queries.length(b));
  }
  if (is_short(kernels, shortest)) {
    const std::size_t least = forward_workspace(kernels, call, workers.max_workers);
    const std::size_t extra = decode_extra(kernels, call);
    const bool fast = extra > 0 && bytes >= least + extra;
    decode(kernels, call, workers, memory, a_worker, fast ? memory + least : nullptr);
  }
  if (is_short(kernels, longest)) return;
  Job job{kernels, call,
          shape,   {shape, kernels.queries, queries.batch(), longest, workers.max_workers},
          memory,  a_worker};
  workers.parallel_for(workers.pool, workers.max_workers, job.schedule.tasks(), run_task, &job);
}

}  // namespace tilewise::cpu::flash
