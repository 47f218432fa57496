#include "oracle/attention.hpp"

#include "core/dropout.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace tilewise::oracle {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

std::int64_t entry(const TensorView& vector, std::int64_t index) {
  return static_cast<std::int64_t>(load(vector.dtype, vector.at(index * vector.strides[0])));
}

/// A dot product with four running sums: the rounding error of a quarter of the length, and no
/// addition waits for the one before.
double dot(const double* x, const double* y, std::int64_t n) {
  double sum[4] = {};
  std::int64_t t = 0;
  for (; t + 4 <= n; t += 4)
    for (int lane = 0; lane < 4; ++lane) sum[lane] += x[t + lane] * y[t + lane];
  for (; t < n; ++t) sum[0] += x[t] * y[t];
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/// y += a x
void add_scaled(double* y, double a, const double* x, std::int64_t n) {
  for (std::int64_t t = 0; t < n; ++t) y[t] += a * x[t];
}

}  // namespace

std::int64_t broadcast_offset(const TensorView& tensor, std::int64_t b, std::int64_t h,
                              std::int64_t i, std::int64_t j) {
  const std::int64_t index[4] = {b, h, i, j};
  std::int64_t offset = 0;
  for (int dim = 0; dim < tensor.ndim; ++dim)
    if (tensor.shape[dim] != 1) offset += index[dim] * tensor.strides[dim];
  return offset;
}

namespace {

double broadcast(const TensorView& tensor, std::int64_t b, std::int64_t h, std::int64_t i,
                 std::int64_t j) {
  return load(tensor.dtype, tensor.at(broadcast_offset(tensor, b, h, i, j)));
}

}  // namespace

Case::Case(const Problem& problem, const AttentionTensors& tensors)
    : problem_(problem), tensors_(tensors), params_(problem.params()) {
  if (tensors_.block_mask.exists()) read_block_mask();
}

void Case::read_block_mask() {
  const BlockMask& mask = tensors_.block_mask;
  const std::int64_t batches = mask.kv_indices.shape[0], heads = mask.kv_indices.shape[1],
                     rows = mask.kv_indices.shape[2], columns = mask.kv_indices.shape[3];
  blocks_.assign(static_cast<std::size_t>(batches * heads * rows * columns), Block::absent);
  const auto read_list = [&](const TensorView& counts, const TensorView& indices, Block kind) {
    if (!counts.exists()) return;
    for (std::int64_t b = 0; b < batches; ++b)
      for (std::int64_t h = 0; h < heads; ++h)
        for (std::int64_t row = 0; row < rows; ++row) {
          const auto count = static_cast<std::int64_t>(broadcast(counts, b, h, row, 0));
          for (std::int64_t n = 0; n < count; ++n) {
            const auto column = static_cast<std::int64_t>(broadcast(indices, b, h, row, n));
            blocks_[((b * heads + h) * rows + row) * columns + column] = kind;
          }
        }
  };
  read_list(mask.kv_num_blocks, mask.kv_indices, Block::partial);
  read_list(mask.full_kv_num_blocks, mask.full_kv_indices, Block::full);
}

Case::Block Case::block(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
  const BlockMask& mask = tensors_.block_mask;
  const TensorView& indices = mask.kv_indices;
  const std::int64_t heads = indices.shape[1], rows = indices.shape[2], columns = indices.shape[3];
  const std::int64_t entry_b = indices.shape[0] == 1 ? 0 : b, entry_h = heads == 1 ? 0 : h;
  return blocks_[((entry_b * heads + entry_h) * rows + i / mask.block_q) * columns +
                 j / mask.block_k];
}

double Case::dropout_factor(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
  if (params_.dropout_p == 0) return 1;
  const Dropout dropout(params_.dropout_p, params_.philox_seed, params_.philox_offset,
                        problem_.nheads_q);
  return dropout.keeps(b, h, i, j) ? dropout.scale() : 0;
}

double Case::sink(std::int64_t h) const {
  const TensorView& sinks = tensors_.sinks;
  return sinks.exists() ? load(sinks.dtype, sinks.at(h * sinks.strides[0])) : -infinity;
}

std::int64_t Case::lse_offset(const TensorView& lse, std::int64_t b, std::int64_t h,
                              std::int64_t i) const {
  if (lse.ndim == 2)  // packed: [nheads_q, total_q]
    return h * lse.strides[0] + (entry(tensors_.cu_seqlens_q, b) + i) * lse.strides[1];
  return b * lse.strides[0] + h * lse.strides[1] + i * lse.strides[2];
}

double Case::stored_lse(std::int64_t b, std::int64_t h, std::int64_t i) const {
  const TensorView& lse = tensors_.lse;
  return load(lse.dtype, lse.at(lse_offset(lse, b, h, i)));
}

bool Case::visible(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
  if (tensors_.block_mask.exists()) {
    const Block kind = block(b, h, i, j);
    if (kind != Block::partial) return kind == Block::full;
  }
  const Conventions& conventions = params_.conventions;
  const bool has_mask = tensors_.mask.exists();
  const bool masked_in = !has_mask || broadcast(tensors_.mask, b, h, i, j) != 0;
  const bool causal_counts =
      params_.causal && !(has_mask && conventions.mask_and_causal == MaskAndCausal::mask_replaces);
  const bool mask_counts =
      !(params_.causal && conventions.mask_and_causal == MaskAndCausal::causal_replaces);
  const std::int64_t shift = conventions.alignment == Alignment::bottom_right
                                 ? problem_.seqlen_k(b) - problem_.seqlen_q(b)
                                 : 0;
  const std::int64_t distance = j - (i + shift);  // > 0: the key comes after the query
  if (params_.attention_chunk > 0) {
    // Both stand in the chunk that their position divided by its length, rounded down, names.
    const auto chunk = [&](std::int64_t position) {
      return std::floor(static_cast<double>(position) /
                        static_cast<double>(params_.attention_chunk));
    };
    if (chunk(j) != chunk(i + shift)) return false;
  }
  if (causal_counts && distance > 0) return false;
  if (params_.window_right >= 0 && distance > params_.window_right) return false;
  if (params_.window_left >= 0) {
    const bool counts_self = conventions.window_left == WindowLeft::keys_including_self;
    if (-distance > params_.window_left - (counts_self ? 1 : 0)) return false;
  }
  return !mask_counts || masked_in;
}

double Case::added(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
  double sum = 0;
  if (tensors_.alibi_slopes.exists()) {
    const double slope = load(tensors_.alibi_slopes.dtype,
                              tensors_.alibi_slopes.at(h * tensors_.alibi_slopes.strides[0]));
    const Conventions& conventions = params_.conventions;
    const std::int64_t shift = conventions.alignment == Alignment::bottom_right
                                   ? problem_.seqlen_k(b) - problem_.seqlen_q(b)
                                   : 0;
    switch (conventions.alibi) {
      case Alibi::minus_distance:
        sum -= slope * std::abs(static_cast<double>(i + shift - j));
        break;
      case Alibi::fa2:
        sum += params_.causal ? slope * static_cast<double>(j)
                              : -slope * std::abs(static_cast<double>(i + shift - j));
        break;
      case Alibi::signed_distance: sum += slope * static_cast<double>(j - i); break;
    }
  }
  if (tensors_.bias.exists()) sum += broadcast(tensors_.bias, b, h, i, j);
  return sum;
}

KeyValueHead read_key_value_head(const Case& problem_case, std::int64_t b, std::int64_t kv_head) {
  KeyValueHead head{b, kv_head, problem_case.problem().seqlen_k(b), {}, {}};
  for (std::int64_t j = 0; j < head.seqlen; ++j) {
    const std::vector<double> key = problem_case.key(b, j, kv_head);
    const std::vector<double> value = problem_case.value(b, j, kv_head);
    head.k.insert(head.k.end(), key.begin(), key.end());
    head.v.insert(head.v.end(), value.begin(), value.end());
  }
  return head;
}

double finished_score(const AttentionParams& params, double raw, double added) {
  const double cap = params.softcap;
  if (cap == 0) return raw + added;
  if (params.conventions.score_order == ScoreOrder::softcap_bias_mask)
    return cap * std::tanh(raw / cap) + added;
  return cap * std::tanh((raw + added) / cap);
}

namespace {

/// A row that may look at no key: what the conventions want of it.
void finish_empty_row(const Conventions& conventions, const KeyValueHead& head, std::int64_t width,
                      Row& row) {
  row.empty = true;
  row.lse = -infinity;
  switch (conventions.empty_row_output) {
    case EmptyRowOutput::zero: break;
    case EmptyRowOutput::nan:
      std::fill(row.o.begin(), row.o.end(), std::numeric_limits<double>::quiet_NaN());
      break;
    case EmptyRowOutput::mean_v:
      for (std::int64_t j = 0; j < head.seqlen; ++j)
        add_scaled(row.o.data(), 1.0 / static_cast<double>(head.seqlen), &head.v[j * width], width);
      break;
  }
}

}  // namespace

double softcap_slope(const AttentionParams& params, double raw, double added) {
  if (params.softcap == 0) return 1;
  const bool bias_inside = params.conventions.score_order == ScoreOrder::bias_softcap_mask;
  const double t = std::tanh((bias_inside ? raw + added : raw) / params.softcap);
  return 1 - t * t;
}

Row forward_row(const Case& problem_case, const KeyValueHead& head, std::int64_t query_head,
                std::int64_t i) {
  const Problem& problem = problem_case.problem();
  const AttentionParams& params = problem_case.params();
  const std::int64_t d = problem.head_dim, dv = problem.head_dim_v;
  const std::vector<double> q = problem_case.query(head.b, i, query_head);

  Row row;
  row.o.assign(static_cast<std::size_t>(dv), 0.0);
  row.max = -infinity;
  for (std::int64_t j = 0; j < head.seqlen; ++j) {
    if (!problem_case.visible(head.b, query_head, i, j)) continue;
    const double raw = params.softmax_scale * dot(q.data(), &head.k[j * d], d);
    const double score = finished_score(params, raw, problem_case.added(head.b, query_head, i, j));
    row.keys.push_back(j);
    row.raw.push_back(raw);
    row.score.push_back(score);
    // Not std::max: a NaN score must reach the result.
    if (!(score <= row.max)) row.max = score;
  }
  const double sink = problem_case.sink(query_head);
  if (sink > row.max) row.max = sink;
  // A bias of -inf hides a key as a mask does.
  if (row.max == -infinity) {
    row.keys.clear();
    row.raw.clear();
    row.score.clear();
    finish_empty_row(params.conventions, head, dv, row);
    return row;
  }
  row.p.reserve(row.score.size());
  for (double s : row.score) {
    row.p.push_back(std::exp(s - row.max));
    row.sum += row.p.back();
  }
  row.sink = std::exp(sink - row.max);
  row.sum += row.sink;
  row.sink /= row.sum;
  row.w.reserve(row.p.size());
  for (std::size_t n = 0; n < row.p.size(); ++n) {
    row.p[n] /= row.sum;
    row.w.push_back(row.p[n] * problem_case.dropout_factor(head.b, query_head, i, row.keys[n]));
    add_scaled(row.o.data(), row.w[n], &head.v[row.keys[n] * dv], dv);
  }
  row.lse = row.max + std::log(row.sum);
  return row;
}

double expected_lse(const Conventions& conventions, const Row& row) {
  if (row.empty) return conventions.empty_row_lse == EmptyRowLse::plus_inf ? infinity : -infinity;
  return conventions.lse_base == LseBase::two ? row.lse / std::log(2.0) : row.lse;
}

RowGradient backward_row(const Case& problem_case, const KeyValueHead& head, const Row& row,
                         std::int64_t query_head, std::int64_t i) {
  const Problem& problem = problem_case.problem();
  const AttentionParams& params = problem_case.params();
  const std::int64_t d = problem.head_dim, dv = problem.head_dim_v;
  const std::vector<double> dout =
      problem_case.row(problem_case.tensors().dout, Side::query, head.b, i, query_head);

  RowGradient gradient;
  gradient.dq.assign(static_cast<std::size_t>(d), 0.0);
  for (std::size_t n = 0; n < row.keys.size(); ++n) {
    gradient.dp.push_back(problem_case.dropout_factor(head.b, query_head, i, row.keys[n]) *
                          dot(dout.data(), &head.v[row.keys[n] * dv], dv));
    gradient.d += row.p[n] * gradient.dp[n];
  }
  for (std::size_t n = 0; n < row.keys.size(); ++n) {
    const std::int64_t j = row.keys[n];
    double ds = row.p[n] * (gradient.dp[n] - gradient.d);
    gradient.dfinished.push_back(ds);
    if (params.softcap != 0)
      ds *= softcap_slope(params, row.raw[n], problem_case.added(head.b, query_head, i, j));
    gradient.ds.push_back(ds);
    add_scaled(gradient.dq.data(), params.softmax_scale * ds, &head.k[j * d], d);
  }
  return gradient;
}

double bias_slope(const Case& problem_case, double raw, std::int64_t b, std::int64_t h,
                  std::int64_t i, std::int64_t j) {
  const AttentionParams& params = problem_case.params();
  if (params.conventions.score_order == ScoreOrder::softcap_bias_mask) return 1;
  return softcap_slope(params, raw, problem_case.added(b, h, i, j));
}

std::int64_t element_of(const TensorView& tensor, std::int64_t b, std::int64_t h, std::int64_t i,
                        std::int64_t j) {
  TensorView dense = tensor;
  std::int64_t stride = 1;
  for (int dim = dense.ndim - 1; dim >= 0; --dim) {
    dense.strides[dim] = stride;
    stride *= dense.shape[dim];
  }
  return broadcast_offset(dense, b, h, i, j);
}

Everything attention(const Case& problem_case) {
  const Problem& problem = problem_case.problem();
  const AttentionTensors& tensors = problem_case.tensors();
  const std::int64_t d = problem.head_dim, dv = problem.head_dim_v;
  const std::int64_t max_q = problem.max_seqlen_q(), max_k = problem.max_seqlen_k();
  const bool backward = problem.pass == Pass::backward;
  const auto q_rows = static_cast<std::size_t>(problem.batch * problem.nheads_q * max_q);
  const auto k_rows = static_cast<std::size_t>(problem.batch * problem.nheads_k * max_k);

  Everything all;
  all.o.assign(q_rows * dv, 0.0);
  all.lse.assign(q_rows, 0.0);
  if (backward) {
    all.dq.assign(q_rows * d, 0.0);
    all.dk.assign(k_rows * d, 0.0);
    all.dv.assign(k_rows * dv, 0.0);
    all.dsinks.assign(static_cast<std::size_t>(problem.nheads_q), 0.0);
    if (tensors.bias.exists())
      all.dbias.assign(static_cast<std::size_t>(tensors.bias.elements()), 0.0);
  }
  for (std::int64_t b = 0; b < problem.batch; ++b)
    for (std::int64_t h = 0; h < problem.nheads_q; ++h) {
      const std::int64_t kv_head = h / problem.group();
      const KeyValueHead head = read_key_value_head(problem_case, b, kv_head);
      for (std::int64_t i = 0; i < problem.seqlen_q(b); ++i) {
        const Row row = forward_row(problem_case, head, h, i);
        const std::int64_t at = (b * problem.nheads_q + h) * max_q + i;
        std::copy(row.o.begin(), row.o.end(), all.o.begin() + at * dv);
        all.lse[at] = expected_lse(problem_case.params().conventions, row);
        if (!backward) continue;
        const RowGradient gradient = backward_row(problem_case, head, row, h, i);
        std::copy(gradient.dq.begin(), gradient.dq.end(), all.dq.begin() + at * d);
        const std::vector<double> q = problem_case.query(b, i, h);
        const std::vector<double> dout = problem_case.row(tensors.dout, Side::query, b, i, h);
        const std::int64_t first_key = (b * problem.nheads_k + kv_head) * max_k;
        const double scale = problem_case.params().softmax_scale;
        for (std::size_t n = 0; n < row.keys.size(); ++n) {
          const std::int64_t column = first_key + row.keys[n];
          add_scaled(&all.dk[column * d], scale * gradient.ds[n], q.data(), d);
          add_scaled(&all.dv[column * dv], row.w[n], dout.data(), dv);
          if (tensors.bias.exists())
            all.dbias[element_of(tensors.bias, b, h, i, row.keys[n])] +=
                gradient.dfinished[n] * bias_slope(problem_case, row.raw[n], b, h, i, row.keys[n]);
        }
        all.dsinks[h] -= row.sink * gradient.d;
        if (row.empty && problem.conventions.empty_row_output == EmptyRowOutput::mean_v)
          for (std::int64_t j = 0; j < head.seqlen; ++j)
            add_scaled(&all.dv[(first_key + j) * dv], 1.0 / static_cast<double>(head.seqlen),
                       dout.data(), dv);
      }
    }
  return all;
}

}  // namespace tilewise::oracle
