#include "tests/random_problem.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

namespace tilewise::tests {
namespace {

constexpr double nan_value = std::numeric_limits<double>::quiet_NaN();

Conventions random_conventions(Random& random, bool mean_of_values) {
  Conventions conventions;
  if (random.chance(0.3)) {  // a system that exists; else every field for itself
    const auto count = static_cast<std::int64_t>(std::size(convention_presets));
    conventions = convention_presets[random.below(count)].conventions;
  } else {
    const auto choose = [&random](auto& field, int count) {
      field = static_cast<std::remove_reference_t<decltype(field)>>(random.below(count));
    };
    choose(conventions.alignment, 2);
    choose(conventions.empty_row_output, 3);
    choose(conventions.empty_row_lse, 3);
    choose(conventions.lse_base, 2);
    choose(conventions.window_left, 2);
    choose(conventions.default_scale, 3);
    choose(conventions.score_order, 2);
    choose(conventions.alibi, 3);
    choose(conventions.mask_and_causal, 4);
  }
  if (!mean_of_values) conventions.empty_row_output = EmptyRowOutput::zero;
  return conventions;
}

Broadcast random_broadcast(Random& random) {
  return {random.chance(0.5), random.chance(0.5), random.chance(0.7), random.chance(0.9)};
}

std::optional<BlockSparsity> random_blocks(Random& random) {
  const bool present = random.chance(0.25);
  BlockSparsity blocks;
  blocks.block_q = random.pick<std::int64_t>({1, 2, 3, 4, 7, 16, 64});
  blocks.block_k = random.pick<std::int64_t>({1, 2, 3, 4, 7, 16, 64});
  blocks.density = 0.125 * static_cast<double>(random.between(0, 8));
  return present ? std::optional(blocks) : std::nullopt;
}

double random_dropout(Random& random) {
  const bool present = random.chance(0.3);
  const double p =
      random.chance(0.5) ? random.pick<double>({0.1, 0.17, 0.5, 0.9}) : 0.99 * random.uniform();
  return present ? p : 0;
}

}  // namespace

Problem random_problem(std::uint64_t seed, const RandomLimits& limits) {
  Random random(seed);
  Problem problem;
  problem.pass = random.chance(0.5) ? Pass::backward : Pass::forward;
  problem.batch = random.between(1, limits.max_batch);
  const auto lengths = [&](bool several) {
    std::vector<std::int64_t> result;
    for (std::int64_t n = several ? problem.batch : 1; n > 0; --n)
      result.push_back(random.between(limits.min_seqlen, limits.max_seqlen));
    return result;
  };
  const bool several = problem.batch > 1 && random.chance(0.4);
  problem.seqlens_q = lengths(several);
  problem.seqlens_k = random.chance(0.3) ? problem.seqlens_q : lengths(several);
  problem.nheads_k = random.between(1, limits.max_nheads_k);
  problem.nheads_q = problem.nheads_k * random.between(1, limits.max_group);
  problem.head_dim = random.between(1, limits.max_head_dim);
  problem.head_dim_v =
      random.chance(0.5) ? problem.head_dim : random.between(1, limits.max_head_dim);
  problem.dtype = random.pick(limits.dtypes);
  problem.layout = random.pick<Layout>({Layout::bshd, Layout::bhsd, Layout::packed});
  problem.conventions = random_conventions(random, limits.mean_of_values);
  if (problem.conventions.default_scale == DefaultScale::required || random.chance(0.3))
    problem.softmax_scale = 0.0625 * static_cast<double>(random.between(1, 32));
  problem.causal = random.chance(0.4);
  if (random.chance(0.4)) {
    const bool left = random.chance(0.8);
    // A window of zero keys including the query's own is not a window: W starts at 1 there.
    const bool counts_self = problem.conventions.window_left == WindowLeft::keys_including_self;
    if (left) problem.window_left = random.between(counts_self ? 1 : 0, 6);
    if (!left || random.chance(0.5)) problem.window_right = random.between(0, 6);
  }
  if (random.chance(0.3)) problem.softcap = 0.5 * static_cast<double>(random.between(1, 60));
  problem.alibi = random.chance(0.3);
  if (random.chance(0.3)) problem.bias = random_broadcast(random);
  const bool refused =
      problem.causal && problem.conventions.mask_and_causal == MaskAndCausal::refuse;
  if (!refused && random.chance(0.3)) problem.mask = random_broadcast(random);
  problem.fill = random.pick<Fill>({Fill::normal, Fill::normal, Fill::normal, Fill::peaks,
                                    Fill::ascending, Fill::constant, Fill::onehot, Fill::denormal,
                                    Fill::mixed, Fill::huge, Fill::outliers});
  problem.seed = seed;

  // Every draw is made, whatever the limits allow.
  const bool sink = random.chance(0.3);
  const std::optional<BlockSparsity> blocks = random_blocks(random);
  const double dropout_p = random_dropout(random);
  const std::int64_t chunk = random.chance(0.25) ? random.between(1, limits.max_seqlen) : 0;
  if (limits.sinks) problem.sink = sink;
  if (limits.blocks) problem.blocks = blocks;
  if (limits.dropout) problem.dropout_p = dropout_p;
  if (limits.chunks) problem.attention_chunk = chunk;
  return problem;
}

void* element(const TensorView& tensor, const TensorView& prefix_sums, std::int64_t b,
              std::int64_t s, std::int64_t h, std::int64_t column) {
  if (tensor.ndim == 4)
    return tensor.at(b * tensor.strides[0] + s * tensor.strides[1] + h * tensor.strides[2] +
                     column * tensor.strides[3]);
  const auto start = static_cast<std::int64_t>(
      load(prefix_sums.dtype, prefix_sums.at(b * prefix_sums.strides[0])));
  return tensor.at((start + s) * tensor.strides[0] + h * tensor.strides[1] +
                   column * tensor.strides[2]);
}

void* SmallTensors::memory(std::int64_t bytes) {
  // Never null: an empty tensor exists, too.
  return storage_.emplace_back(static_cast<std::size_t>(std::max<std::int64_t>(bytes, 8))).data();
}

TensorView SmallTensors::sequences(const Problem& problem, bool of_queries, std::int64_t nheads,
                                   std::int64_t width, Random& random) {
  const std::int64_t row = width + (random.chance(0.5) ? random.below(4) : 0);
  const std::int64_t longest = of_queries ? problem.max_seqlen_q() : problem.max_seqlen_k();
  const std::int64_t total = of_queries ? problem.total_q() : problem.total_k();
  TensorView view;
  if (problem.layout == Layout::packed) {
    view = contiguous(nullptr, problem.dtype, total, nheads, row);
    view.shape[2] = width;
  } else {
    view = problem.layout == Layout::bshd
               ? contiguous(nullptr, problem.dtype, problem.batch, longest, nheads, row)
               : transposed(contiguous(nullptr, problem.dtype, problem.batch, nheads, longest, row),
                            1, 2);
    view.shape[3] = width;
  }
  const std::int64_t elements = view.elements() / width * row;
  view.data = memory(elements * static_cast<std::int64_t>(size_of(problem.dtype)));
  for (std::int64_t n = 0; n < elements; ++n) store(problem.dtype, view.at(n), nan_value);
  return view;
}

TensorView SmallTensors::spread(const Problem& problem, const Broadcast& dims, DType dtype) {
  TensorView view =
      contiguous(nullptr, dtype, dims.batch ? problem.batch : 1, dims.head ? problem.nheads_q : 1,
                 dims.query ? problem.max_seqlen_q() : 1, dims.key ? problem.max_seqlen_k() : 1);
  view.data = memory(view.elements() * static_cast<std::int64_t>(size_of(dtype)));
  return view;
}

BlockMask SmallTensors::block_lists(const Problem& problem, Random& random) {
  const BlockSparsity& blocks = *problem.blocks;
  const std::int64_t batches = random.chance(0.5) ? problem.batch : 1;
  const std::int64_t heads = random.chance(0.5) ? problem.nheads_q : 1;
  const std::int64_t rows = (problem.max_seqlen_q() + blocks.block_q - 1) / blocks.block_q;
  const std::int64_t columns = (problem.max_seqlen_k() + blocks.block_k - 1) / blocks.block_k;
  const std::int64_t gap = random.below(3);
  const auto list = [&](std::int64_t width) {
    TensorView view = contiguous(nullptr, DType::i32, batches, heads, rows, width + gap);
    view.data = memory(view.elements() * std::int64_t{4});
    view.shape[3] = width;
    return view;
  };
  const auto counts = [&] {
    TensorView view = contiguous(nullptr, DType::i32, batches, heads, rows);
    view.data = memory(view.elements() * std::int64_t{4});
    return view;
  };
  const bool has_full = random.chance(0.8);
  BlockMask mask{blocks.block_q, blocks.block_k, counts(), list(columns), {}, {}};
  if (has_full) {
    mask.full_kv_num_blocks = counts();
    mask.full_kv_indices = list(columns);
  }
  const auto write = [&](const TensorView& count, const TensorView& indices, std::int64_t row,
                         std::vector<std::int64_t> chosen, std::vector<std::int64_t> others) {
    store(DType::i32, count.at(row), static_cast<double>(chosen.size()));
    std::int64_t at = row * (columns + gap);
    for (std::vector<std::int64_t>* part : {&chosen, &others})
      while (!part->empty()) {
        const auto next = part->begin() + random.below(static_cast<std::int64_t>(part->size()));
        store(DType::i32, indices.at(at++), static_cast<double>(*next));
        part->erase(next);
      }
  };
  for (std::int64_t row = 0; row < batches * heads * rows; ++row) {
    std::vector<std::int64_t> partial, full, neither;
    for (std::int64_t column = 0; column < columns; ++column) {
      const bool present = random.chance(blocks.density), whole = random.chance(0.3);
      (!present ? neither : whole && has_full ? full : partial).push_back(column);
    }
    std::vector<std::int64_t> not_partial = neither, not_full = neither;
    not_partial.insert(not_partial.end(), full.begin(), full.end());
    not_full.insert(not_full.end(), partial.begin(), partial.end());
    write(mask.kv_num_blocks, mask.kv_indices, row, partial, not_partial);
    if (has_full) write(mask.full_kv_num_blocks, mask.full_kv_indices, row, full, not_full);
  }
  return mask;
}

TensorView SmallTensors::prefix_sums(const Problem& problem, bool of_queries) {
  TensorView view =
      contiguous(memory((problem.batch + 1) * std::int64_t{4}), DType::i32, problem.batch + 1);
  std::int64_t sum = 0;
  for (std::int64_t b = 0; b <= problem.batch; ++b) {
    store(DType::i32, view.at(b), static_cast<double>(sum));
    if (b < problem.batch) sum += of_queries ? problem.seqlen_q(b) : problem.seqlen_k(b);
  }
  return view;
}

TensorView SmallTensors::lengths(const Problem& problem, bool of_queries) {
  TensorView view = contiguous(memory(problem.batch * std::int64_t{4}), DType::i32, problem.batch);
  for (std::int64_t b = 0; b < problem.batch; ++b)
    store(DType::i32, view.at(b),
          static_cast<double>(of_queries ? problem.seqlen_q(b) : problem.seqlen_k(b)));
  return view;
}

SmallTensors::SmallTensors(const Problem& problem) {
  Random random(problem.seed ^ 0x7e57da7aull);
  AttentionTensors& t = views_;
  t.q = sequences(problem, true, problem.nheads_q, problem.head_dim, random);
  t.k = sequences(problem, false, problem.nheads_k, problem.head_dim, random);
  t.v = sequences(problem, false, problem.nheads_k, problem.head_dim_v, random);
  if (problem.pass == Pass::backward)
    t.dout = sequences(problem, true, problem.nheads_q, problem.head_dim_v, random);
  if (problem.layout == Layout::packed) {
    t.cu_seqlens_q = prefix_sums(problem, true);
    t.cu_seqlens_k = prefix_sums(problem, false);
  } else if (problem.varlen()) {
    t.seqlens_q = lengths(problem, true);
    t.seqlens_k = lengths(problem, false);
  }

  // The largest magnitude a value may have without becoming infinite or NaN when it is rounded.
  const double largest = problem.dtype == DType::e4m3   ? 448
                         : problem.dtype == DType::e5m2 ? 57344
                         : problem.dtype == DType::f16  ? 65504
                                                        : 0x1p100;
  const auto clipped = [largest](double value) { return std::clamp(value, -largest, largest); };
  const auto put = [&](const TensorView& tensor, const TensorView& starts, std::int64_t b,
                       std::int64_t s, std::int64_t h, std::int64_t c, double value) {
    store(tensor.dtype, element(tensor, starts, b, s, h, c), clipped(value));
  };
  const Fill fill = problem.fill;
  const double smallest = 2 * subnormal_roundoff(problem.dtype);
  const auto plain = [&] {
    const double normal = random.normal();
    if (fill == Fill::mixed) return std::ldexp(normal, static_cast<int>(random.between(-12, 12)));
    if (fill == Fill::denormal)
      return smallest * static_cast<double>(random.between(-7, 7));  // 7: all have three bits
    if (fill == Fill::outliers && random.chance(0.02)) return normal + 10 * random.normal();
    return normal;
  };
  // Query and key of magnitude `size` make logits of about scale * size^2 * sqrt(head_dim).
  const double size = fill == Fill::huge ? std::sqrt(1e4 / problem.scale()) : 1;

  for (std::int64_t b = 0; b < problem.batch; ++b) {
    for (std::int64_t i = 0; i < problem.seqlen_q(b); ++i)
      for (std::int64_t h = 0; h < problem.nheads_q; ++h) {
        const std::int64_t marked = i % problem.head_dim;
        for (std::int64_t c = 0; c < problem.head_dim; ++c) {
          double value = size * plain();
          if (fill == Fill::ascending) value = std::abs(value);
          if (fill == Fill::onehot) value = c == marked ? 64 : 0;
          put(t.q, t.cu_seqlens_q, b, i, h, c, value);
        }
        if (t.dout.exists())
          for (std::int64_t c = 0; c < problem.head_dim_v; ++c)
            put(t.dout, t.cu_seqlens_q, b, i, h, c, plain());
      }
    for (std::int64_t h = 0; h < problem.nheads_k; ++h) {
      std::vector<double> same;
      for (std::int64_t c = 0; c < problem.head_dim; ++c) same.push_back(plain());
      for (std::int64_t j = 0; j < problem.seqlen_k(b); ++j) {
        const bool peak = fill == Fill::peaks && random.chance(0.15);
        for (std::int64_t c = 0; c < problem.head_dim; ++c) {
          double value = size * plain();
          if (peak) value *= 16;
          if (fill == Fill::ascending) value = 0.5 * static_cast<double>(j);
          if (fill == Fill::constant) value = same[static_cast<std::size_t>(c)];
          if (fill == Fill::onehot) value = c == j % problem.head_dim ? 64 : 0;
          put(t.k, t.cu_seqlens_k, b, j, h, c, value);
        }
        for (std::int64_t c = 0; c < problem.head_dim_v; ++c)
          put(t.v, t.cu_seqlens_k, b, j, h, c, plain());
      }
    }
  }

  if (problem.alibi) {
    t.alibi_slopes =
        contiguous(memory(problem.nheads_q * std::int64_t{4}), DType::f32, problem.nheads_q);
    for (std::int64_t h = 0; h < problem.nheads_q; ++h)
      store(DType::f32, t.alibi_slopes.at(h),
            std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(problem.nheads_q)));
  }
  if (problem.bias) {
    t.bias = spread(problem, *problem.bias, problem.dtype);
    for (std::int64_t n = 0; n < t.bias.elements(); ++n)
      store(t.bias.dtype, t.bias.at(n), clipped(plain()));
  }
  if (problem.mask) {
    t.mask = spread(problem, *problem.mask, DType::boolean);
    const double kept = random.chance(0.2) ? 0.15 : 0.7;
    for (std::int64_t n = 0; n < t.mask.elements(); ++n)
      store(DType::boolean, t.mask.at(n), random.chance(kept) ? 1 : 0);
  }
  if (problem.blocks) t.block_mask = block_lists(problem, random);
  if (problem.sink) {
    t.sinks = contiguous(memory(problem.nheads_q * std::int64_t{4}), DType::f32, problem.nheads_q);
    for (std::int64_t h = 0; h < problem.nheads_q; ++h)
      store(DType::f32, t.sinks.at(h), (fill == Fill::huge ? 5000 : 1) * random.normal());
  }
}

}  // namespace tilewise::tests
