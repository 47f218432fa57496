#include "tests/second_oracle.hpp"

#include <array>
#include <cmath>
#include <limits>

namespace tilewise::tests {
namespace {

using Eigen::Index;

constexpr Real infinity = std::numeric_limits<Real>::infinity();

Real number(const TensorView& tensor, std::int64_t offset) {
  return static_cast<Real>(load(tensor.dtype, tensor.at(offset)));
}

/// First row and row count of sequence b within the dimension that holds the rows.
struct Span {
  std::int64_t start, length;
};

Span span_of(const TensorView& tensor, const TensorView& prefix_sums, const TensorView& lengths,
             std::int64_t b) {
  const auto at = [](const TensorView& vector, std::int64_t n) {
    return static_cast<std::int64_t>(number(vector, n * vector.strides[0]));
  };
  if (prefix_sums.exists())
    return {at(prefix_sums, b), at(prefix_sums, b + 1) - at(prefix_sums, b)};
  if (lengths.exists()) return {0, at(lengths, b)};
  return {0, tensor.shape[1]};
}

/// Head h of sequence b. A packed tensor has no batch dimension: its sequences share the rows.
Matrix read(const TensorView& tensor, Span span, std::int64_t b, std::int64_t h) {
  const bool packed = tensor.ndim == 3;
  const std::int64_t* stride = tensor.strides + (packed ? 0 : 1);  // rows, heads, columns
  const std::int64_t origin = (packed ? 0 : b * tensor.strides[0]) + h * stride[1];
  return Matrix::NullaryExpr(span.length, tensor.shape[packed ? 2 : 3], [&](Index row, Index c) {
    return number(tensor, origin + (span.start + row) * stride[0] + c * stride[2]);
  });
}

/// The [seqlen_q, seqlen_k] slice of a tensor whose dimensions of size 1 are meant for all.
Matrix read_broadcast(const TensorView& tensor, std::int64_t b, std::int64_t h, Index seqlen_q,
                      Index seqlen_k) {
  const auto step = [&](int dim) { return tensor.shape[dim] == 1 ? 0 : tensor.strides[dim]; };
  const std::int64_t origin = b * step(0) + h * step(1);
  return Matrix::NullaryExpr(seqlen_q, seqlen_k, [&](Index i, Index j) {
    return number(tensor, origin + i * step(2) + j * step(3));
  });
}

/// How many positions key j lies behind query i (negative: ahead). Both are counted from the corner
/// that the alignment names: from the first query and key, or from the last ones.
Matrix positions_behind(Alignment alignment, Index seqlen_q, Index seqlen_k) {
  return Matrix::NullaryExpr(seqlen_q, seqlen_k, [&](Index i, Index j) {
    const Index behind =
        alignment == Alignment::top_left ? i - j : (seqlen_k - 1 - j) - (seqlen_q - 1 - i);
    return static_cast<Real>(behind);
  });
}

/// The chunk of every position from `first` on: counted off by walking from one chunk's border to
/// the next, the chunk that starts at position 0 being number 0.
std::vector<std::int64_t> chunks_from(std::int64_t first, Index count, std::int64_t size) {
  std::int64_t start = 0, chunk = 0;
  while (start > first) start -= size, --chunk;
  std::vector<std::int64_t> chunks;
  for (Index n = 0; n < count; ++n) {
    while (start + size <= first + n) start += size, ++chunk;
    chunks.push_back(chunk);
  }
  return chunks;
}

BoolMatrix same_chunk(const Problem& problem, Index seqlen_q, Index seqlen_k) {
  const bool top_left = problem.conventions.alignment == Alignment::top_left;
  const auto of_queries =
      chunks_from(top_left ? 0 : seqlen_k - seqlen_q, seqlen_q, problem.attention_chunk);
  const auto of_keys = chunks_from(0, seqlen_k, problem.attention_chunk);
  return BoolMatrix::NullaryExpr(seqlen_q, seqlen_k, [&](Index i, Index j) {
    return of_queries[static_cast<std::size_t>(i)] == of_keys[static_cast<std::size_t>(j)];
  });
}

/// The queries and keys of every listed block.
BoolMatrix listed(const BlockMask& mask, const TensorView& counts, const TensorView& indices,
                  std::int64_t b, std::int64_t h, Index seqlen_q, Index seqlen_k) {
  BoolMatrix result = BoolMatrix::Constant(seqlen_q, seqlen_k, false);
  if (!counts.exists()) return result;
  const auto origin = [&](const TensorView& tensor) {
    return (tensor.shape[0] > 1 ? b * tensor.strides[0] : 0) +
           (tensor.shape[1] > 1 ? h * tensor.strides[1] : 0);
  };
  for (Index first = 0, row = 0; first < seqlen_q; first += mask.block_q, ++row) {
    const auto count =
        static_cast<std::int64_t>(number(counts, origin(counts) + row * counts.strides[2]));
    for (std::int64_t n = 0; n < count; ++n) {
      const Index first_key =
          mask.block_k *
          static_cast<Index>(
              number(indices, origin(indices) + row * indices.strides[2] + n * indices.strides[3]));
      if (first_key >= seqlen_k) continue;  // past the end of a shorter sequence
      result
          .block(first, first_key, std::min<Index>(mask.block_q, seqlen_q - first),
                 std::min<Index>(mask.block_k, seqlen_k - first_key))
          .setConstant(true);
    }
  }
  return result;
}

BoolMatrix visibility(const Problem& problem, const TensorView& mask, const Matrix& behind,
                      std::int64_t b, std::int64_t h) {
  const Conventions& conventions = problem.conventions;
  const BoolMatrix all = BoolMatrix::Constant(behind.rows(), behind.cols(), true);
  BoolMatrix causal = all, window = all, masked_in = all;
  if (problem.causal) causal = behind.array() >= 0;
  if (problem.window_left >= 0) {
    // The most positions that a key may lie behind: W, or W - 1 when W counts the query's own.
    const std::int64_t reach = conventions.window_left == WindowLeft::keys_before
                                   ? problem.window_left
                                   : problem.window_left - 1;
    window = window && behind.array() <= static_cast<Real>(reach);
  }
  if (problem.window_right >= 0)
    window = window && -behind.array() <= static_cast<Real>(problem.window_right);
  if (mask.exists())
    masked_in = read_broadcast(mask, b, h, behind.rows(), behind.cols()).array() != 0;
  if (problem.causal && mask.exists()) {
    if (conventions.mask_and_causal == MaskAndCausal::mask_replaces) causal = all;
    if (conventions.mask_and_causal == MaskAndCausal::causal_replaces) masked_in = all;
  }
  BoolMatrix chunk = all;
  if (problem.attention_chunk > 0) chunk = same_chunk(problem, behind.rows(), behind.cols());
  return causal && window && masked_in && chunk;
}

/// All masks together: where a block is listed in full, none of the others count.
BoolMatrix everything_visible(const Problem& problem, const AttentionTensors& tensors,
                              const Matrix& behind, std::int64_t b, std::int64_t h) {
  BoolMatrix others = visibility(problem, tensors.mask, behind, b, h);
  const BlockMask& blocks = tensors.block_mask;
  if (!blocks.exists()) return others;
  const auto lists = [&](const TensorView& counts, const TensorView& indices) {
    return listed(blocks, counts, indices, b, h, behind.rows(), behind.cols());
  };
  return lists(blocks.full_kv_num_blocks, blocks.full_kv_indices) ||
         (lists(blocks.kv_num_blocks, blocks.kv_indices) && others);
}

/// One round of Philox4x32 (Salmon et al. 2011, section 3.3): two products, their high and low
/// halves exchanged and mixed with the other words and the key.
struct Philox {
  std::array<std::uint32_t, 4> counter;
  std::array<std::uint32_t, 2> key;

  void round() {
    const std::uint64_t x = std::uint64_t{counter[0]} * 0xD2511F53u;
    const std::uint64_t z = std::uint64_t{counter[2]} * 0xCD9E8D57u;
    const auto high = [](std::uint64_t product) {
      return static_cast<std::uint32_t>(product >> 32);
    };
    const auto low = [](std::uint64_t product) { return static_cast<std::uint32_t>(product); };
    counter = {high(z) ^ counter[1] ^ key[0], low(z), high(x) ^ counter[3] ^ key[1], low(x)};
  }
  void next_key() {
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
};

Matrix alibi_and_bias(const Problem& problem, const AttentionTensors& tensors, const Matrix& behind,
                      std::int64_t b, std::int64_t h) {
  const Index seqlen_q = behind.rows(), seqlen_k = behind.cols();
  Matrix sum = Matrix::Zero(seqlen_q, seqlen_k);
  if (tensors.alibi_slopes.exists()) {
    const Real slope = number(tensors.alibi_slopes, h * tensors.alibi_slopes.strides[0]);
    Matrix distance = -behind.cwiseAbs();
    if (problem.conventions.alibi == Alibi::fa2 && problem.causal)
      distance = Matrix::NullaryExpr(seqlen_q, seqlen_k,
                                     [](Index, Index j) { return static_cast<Real>(j); });
    if (problem.conventions.alibi == Alibi::signed_distance)
      distance = Matrix::NullaryExpr(seqlen_q, seqlen_k,
                                     [](Index i, Index j) { return static_cast<Real>(j - i); });
    sum += slope * distance;
  }
  if (tensors.bias.exists()) sum += read_broadcast(tensors.bias, b, h, seqlen_q, seqlen_k);
  return sum;
}

Real softmax_scale(const Problem& problem, Index head_dim) {
  if (problem.softmax_scale) return static_cast<Real>(*problem.softmax_scale);
  if (problem.conventions.default_scale == DefaultScale::one) return 1;
  return 1 / std::sqrt(static_cast<Real>(head_dim));
}

/// score = cap tanh(x / cap), its derivative = (cosh^2 - sinh^2) / cosh^2 = 1 / cosh^2.
void apply_softcap(const Problem& problem, SecondHead& head) {
  const bool added_first = problem.conventions.score_order == ScoreOrder::bias_softcap_mask;
  Matrix x = head.raw;
  if (added_first) x += head.added;
  head.score = x;
  head.slope = Matrix::Ones(x.rows(), x.cols());
  if (problem.softcap != 0) {
    const auto cap = static_cast<Real>(problem.softcap);
    head.score = x.unaryExpr([cap](Real value) { return cap * std::tanh(value / cap); });
    head.slope = x.unaryExpr([cap](Real value) {
      const Real cosine = std::cosh(value / cap);
      return 1 / (cosine * cosine);
    });
  }
  if (!added_first) head.score += head.added;
}

/// `matrix` with zero rows where `keep` is false: a masked row does not count, whatever it holds
/// (zero times NaN would).
template <class Keep>
Matrix kept(const Matrix& matrix, const Keep& keep) {
  Matrix result = matrix;
  for (Index row = 0; row < matrix.rows(); ++row)
    if (!keep(row)) result.row(row).setZero();
  return result;
}

/// A matrix with one more row.
Matrix with_row(const Matrix& matrix, const Matrix& row) {
  Matrix result(matrix.rows() + 1, matrix.cols());
  result << matrix, row;
  return result;
}

void forward(const Problem& problem, const AttentionTensors& tensors, std::int64_t b,
             std::int64_t h, SecondHead& head) {
  const Index rows = head.q.rows(), keys = head.k.rows();
  const Matrix behind = positions_behind(problem.conventions.alignment, rows, keys);
  head.scale = softmax_scale(problem, head.q.cols());
  head.raw = head.scale * (head.q * head.k.transpose());
  head.added = alibi_and_bias(problem, tensors, behind, b, h);
  apply_softcap(problem, head);

  // A score of -inf (from a bias) hides a key as a mask does.
  head.visible =
      everything_visible(problem, tensors, behind, b, h) && head.score.array() != -infinity;
  head.score = head.visible.select(head.score, Matrix::Constant(rows, keys, -infinity));

  head.sink =
      tensors.sinks.exists() ? number(tensors.sinks, h * tensors.sinks.strides[0]) : -infinity;
  head.factor = Matrix::Ones(rows, keys);
  if (problem.dropout_p > 0) {
    const auto kept_scale =
        static_cast<Real>(1.0f / (1.0f - static_cast<float>(problem.dropout_p)));
    const BoolMatrix keep = second_dropout(problem.dropout_p, problem.seed, 0,
                                           tensors.q.shape[tensors.q.ndim - 2], b, h, rows, keys);
    head.factor = keep.select(Matrix::Constant(rows, keys, kept_scale), Matrix::Zero(rows, keys));
  }

  head.p_sink = Vector::Zero(rows);
  head.lse = Vector::Constant(rows, -infinity);
  head.p = Matrix::Zero(rows, keys);
  head.o = Matrix::Zero(rows, head.v.cols());
  head.empty.assign(static_cast<std::size_t>(rows), false);
  for (Index i = 0; i < rows; ++i) {
    const auto visible = head.visible.row(i);
    if (!visible.any() && head.sink == -infinity) {
      head.empty[static_cast<std::size_t>(i)] = true;
      if (problem.conventions.empty_row_output == EmptyRowOutput::nan)
        head.o.row(i).setConstant(std::numeric_limits<Real>::quiet_NaN());
      if (problem.conventions.empty_row_output == EmptyRowOutput::mean_v && keys > 0)
        head.o.row(i) = head.v.colwise().mean();
      continue;
    }
    // The sink is one more key, in the last column; its value is a row of zeros.
    Vector score(keys + 1);
    score << head.score.row(i).transpose(), head.sink;
    // Relative to the row's maximum, so that the large part of a score cancels exactly once.
    const Real max = score.maxCoeff();
    const auto relative = (score.array() - max).eval();
    const Real relative_lse = std::log(relative.exp().sum());
    const Vector p = (relative - relative_lse).exp();
    head.p.row(i) = p.head(keys).transpose();
    head.p_sink(i) = p(keys);
    head.lse(i) = max + relative_lse;
    Vector dropped = p;
    dropped.head(keys).array() *= head.factor.row(i).transpose().array();
    head.o.row(i) =
        dropped.transpose() * with_row(kept(head.v, visible), Matrix::Zero(1, head.v.cols()));
  }
}

void backward(const Problem& problem, SecondHead& head) {
  const Index rows = head.q.rows(), keys = head.k.rows();
  head.dp = Matrix::Zero(rows, keys);
  head.ds = Matrix::Zero(rows, keys);
  head.dq = Matrix::Zero(rows, head.q.cols());
  head.dk = Matrix::Zero(keys, head.k.cols());
  head.dv = Matrix::Zero(keys, head.v.cols());
  head.dbias = Matrix::Zero(rows, keys);
  head.dsink = Vector::Zero(rows);
  if (rows == 0) return;
  const bool bias_in_softcap = problem.conventions.score_order == ScoreOrder::bias_softcap_mask;
  for (Index i = 0; i < rows; ++i) {
    if (head.empty[static_cast<std::size_t>(i)]) continue;
    const auto visible = head.visible.row(i);
    head.dp.row(i) =
        (head.dout.row(i) * kept(head.v, visible).transpose()).cwiseProduct(head.factor.row(i));
    Vector p(keys + 1), dp(keys + 1);
    p << head.p.row(i).transpose(), head.p_sink(i);
    dp << head.dp.row(i).transpose(), Real{0};
    const Matrix jacobian = Matrix(p.asDiagonal()) - p * p.transpose();
    const Vector through_softmax = jacobian * dp;
    for (Index j = 0; j < keys; ++j) {
      if (!visible(j)) continue;
      head.ds(i, j) = through_softmax(j) * head.slope(i, j);
      head.dbias(i, j) = through_softmax(j) * (bias_in_softcap ? head.slope(i, j) : Real{1});
    }
    head.dsink(i) = through_softmax(keys);
    head.dq.row(i) = head.scale * (head.ds.row(i) * kept(head.k, visible));
  }
  for (Index j = 0; j < keys; ++j) {
    const auto visible = head.visible.col(j);
    head.dk.row(j) = head.scale * (head.ds.col(j).transpose() * kept(head.q, visible));
    head.dv.row(j) =
        head.p.col(j).cwiseProduct(head.factor.col(j)).transpose() * kept(head.dout, visible);
  }
  // The output of an empty row is a constant, or the mean of V: (1/n, ..., 1/n) V.
  if (problem.conventions.empty_row_output == EmptyRowOutput::mean_v && keys > 0)
    for (Index i = 0; i < rows; ++i)
      if (head.empty[static_cast<std::size_t>(i)])
        head.dv.rowwise() += head.dout.row(i) / static_cast<Real>(keys);
}

/// Writes a head's rows into a dense [batch][head][row][column] array, adding to what is there.
void add_rows(std::vector<Real>& dense, const Matrix& rows, std::int64_t head,
              std::int64_t longest) {
  for (Index row = 0; row < rows.rows(); ++row)
    for (Index c = 0; c < rows.cols(); ++c)
      dense[static_cast<std::size_t>((head * longest + row) * rows.cols() + c)] += rows(row, c);
}

}  // namespace

BoolMatrix second_dropout(double p, std::uint64_t seed, std::uint64_t offset, std::int64_t nheads,
                          std::int64_t b, std::int64_t h, Index rows, Index columns) {
  // As flash-attn 2 works it out: float32 until the product with 255.
  const float keep_probability = 1.0f - static_cast<float>(p);
  const auto most = static_cast<unsigned>(std::floor(keep_probability * 255.0));
  const auto word = [](std::uint64_t bits, int n) {
    return static_cast<std::uint32_t>(bits >> (32 * n));
  };
  BoolMatrix keep = BoolMatrix::Constant(rows, columns, false);
  for (Index top = 0; top < rows; top += 16)
    for (Index left = 0; left < columns; left += 32)
      for (unsigned lane = 0; lane < 32; ++lane) {
        const std::uint64_t subsequence =
            offset + static_cast<std::uint64_t>(b * nheads + h) * 32 + lane;
        Philox generator{
            {word(subsequence, 0), word(subsequence, 1), static_cast<std::uint32_t>(top / 16),
             static_cast<std::uint32_t>(left / 32)},
            {word(seed, 0), word(seed, 1)}};
        for (int round = 0; round < 6; ++round) {
          generator.round();
          generator.next_key();
        }
        generator.round();
        // A lane of mma.sync holds two neighbouring columns of rows r and r + 8, in each of the
        // four groups of eight columns; the bytes follow in this order.
        unsigned byte = 0;
        for (Index group = 0; group < 4; ++group)
          for (Index half = 0; half < 2; ++half)
            for (Index neighbour = 0; neighbour < 2; ++neighbour, ++byte) {
              const Index i = top + 8 * half + lane / 4;
              const Index j = left + 8 * group + 2 * (lane % 4) + neighbour;
              if (i < rows && j < columns)
                keep(i, j) = (generator.counter[byte / 4] >> (8 * (byte % 4)) & 0xffu) <= most;
            }
      }
  return keep;
}

std::size_t second_element(const TensorView& tensor, std::int64_t b, std::int64_t h, std::int64_t i,
                           std::int64_t j) {
  std::int64_t number_of = 0, dim = 0;
  for (const std::int64_t index : {b, h, i, j}) {
    const std::int64_t size = tensor.shape[dim++];
    number_of = number_of * size + (size == 1 ? 0 : index);
  }
  return static_cast<std::size_t>(number_of);
}

std::vector<SecondHead> second_sequence(const Problem& problem, const AttentionTensors& tensors,
                                        std::int64_t b) {
  const Span queries = span_of(tensors.q, tensors.cu_seqlens_q, tensors.seqlens_q, b);
  const Span keys = span_of(tensors.k, tensors.cu_seqlens_k, tensors.seqlens_k, b);
  const std::int64_t nheads_q = tensors.q.shape[tensors.q.ndim - 2];
  const std::int64_t nheads_k = tensors.k.shape[tensors.k.ndim - 2];

  std::vector<SecondHead> heads;
  for (std::int64_t kv_head = 0; kv_head < nheads_k; ++kv_head)
    for (std::int64_t copy = 0; copy < nheads_q / nheads_k; ++copy) {
      SecondHead head;
      head.k = read(tensors.k, keys, b, kv_head);
      head.v = read(tensors.v, keys, b, kv_head);
      heads.push_back(head);
    }
  for (std::int64_t h = 0; h < nheads_q; ++h) {
    SecondHead& head = heads[static_cast<std::size_t>(h)];
    head.q = read(tensors.q, queries, b, h);
    forward(problem, tensors, b, h, head);
    if (problem.pass == Pass::forward) continue;
    head.dout = read(tensors.dout, queries, b, h);
    backward(problem, head);
  }
  return heads;
}

Real second_lse(const Conventions& conventions, const SecondHead& head, Index i) {
  if (head.empty[static_cast<std::size_t>(i)]) switch (conventions.empty_row_lse) {
      case EmptyRowLse::minus_inf: return -infinity;
      case EmptyRowLse::plus_inf: return infinity;
      case EmptyRowLse::unspecified: return std::numeric_limits<Real>::quiet_NaN();
    }
  const Real log2_e = std::log2(std::exp(Real{1}));
  return conventions.lse_base == LseBase::two ? head.lse(i) * log2_e : head.lse(i);
}

SecondEverything second_attention(const Problem& problem, const AttentionTensors& tensors) {
  const std::int64_t nheads_q = tensors.q.shape[tensors.q.ndim - 2];
  const std::int64_t nheads_k = tensors.k.shape[tensors.k.ndim - 2];
  const std::int64_t d = tensors.q.shape[tensors.q.ndim - 1];
  const std::int64_t d_v = tensors.v.shape[tensors.v.ndim - 1];
  const std::int64_t longest_q = problem.max_seqlen_q(), longest_k = problem.max_seqlen_k();
  const auto zeros = [](std::int64_t count) {
    return std::vector<Real>(static_cast<std::size_t>(count), 0);
  };

  SecondEverything all;
  all.o = zeros(problem.batch * nheads_q * longest_q * d_v);
  all.lse = zeros(problem.batch * nheads_q * longest_q);
  if (problem.pass == Pass::backward) {
    all.dq = zeros(problem.batch * nheads_q * longest_q * d);
    all.dk = zeros(problem.batch * nheads_k * longest_k * d);
    all.dv = zeros(problem.batch * nheads_k * longest_k * d_v);
    all.dsinks = zeros(nheads_q);
    if (tensors.bias.exists()) all.dbias = zeros(tensors.bias.elements());
  }
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    const std::vector<SecondHead> heads = second_sequence(problem, tensors, b);
    for (std::int64_t h = 0; h < nheads_q; ++h) {
      const SecondHead& head = heads[static_cast<std::size_t>(h)];
      const std::int64_t query_head = b * nheads_q + h;
      add_rows(all.o, head.o, query_head, longest_q);
      for (Index i = 0; i < head.lse.size(); ++i)
        all.lse[static_cast<std::size_t>(query_head * longest_q + i)] =
            second_lse(problem.conventions, head, i);
      if (problem.pass == Pass::forward) continue;
      const std::int64_t key_head = b * nheads_k + h / (nheads_q / nheads_k);
      add_rows(all.dq, head.dq, query_head, longest_q);
      add_rows(all.dk, head.dk, key_head, longest_k);
      add_rows(all.dv, head.dv, key_head, longest_k);
      all.dsinks[static_cast<std::size_t>(h)] += head.dsink.sum();
      if (tensors.bias.exists())
        for (Index i = 0; i < head.dbias.rows(); ++i)
          for (Index j = 0; j < head.dbias.cols(); ++j)
            all.dbias[second_element(tensors.bias, b, h, i, j)] += head.dbias(i, j);
    }
  }
  return all;
}

}  // namespace tilewise::tests
