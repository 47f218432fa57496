// Where the rows of a problem's tensors lie, and what values they stand for: layouts, packed
// sequences, caches with pages, padding and new rows, scales, rotary embedding. The only part of
// the oracle that knows of memory.
#include "oracle/attention.hpp"

#include "core/quantised.hpp"

#include <cmath>

namespace tilewise::oracle {

namespace {

std::int64_t entry(const TensorView& vector, std::int64_t index) {
  return static_cast<std::int64_t>(load(vector.dtype, vector.at(index * vector.strides[0])));
}

/// Element (b, h) of a [batch, nheads_k] tensor of factors; 1 if there is none.
double factor(const TensorView& factors, std::int64_t b, std::int64_t h) {
  if (!factors.exists()) return 1;
  return load(factors.dtype, factors.at(b * factors.strides[0] + h * factors.strides[1]));
}

}  // namespace

std::int64_t Case::leftpad(std::int64_t b) const {
  return tensors_.cache.leftpad.exists() ? entry(tensors_.cache.leftpad, b) : 0;
}

std::int64_t Case::offset(const TensorView& tensor, Side side, std::int64_t b, std::int64_t s,
                          std::int64_t h) const {
  const std::int64_t* const stride = tensor.strides;
  const KvCache& cache = tensors_.cache;
  const TensorView& starts = side == Side::query ? tensors_.cu_seqlens_q : tensors_.cu_seqlens_k;
  if (starts.exists())  // packed: [total, nheads, width]
    return (entry(starts, b) + s) * stride[0] + h * stride[1];
  if (side == Side::query) return b * stride[0] + s * stride[1] + h * stride[2];
  const std::int64_t row = leftpad(b) + s;
  if (cache.paged()) {
    const TensorView& table = cache.block_table;
    const std::int64_t page_size = tensor.shape[1];
    const auto page = static_cast<std::int64_t>(
        load(table.dtype, table.at(b * table.strides[0] + row / page_size * table.strides[1])));
    return page * stride[0] + row % page_size * stride[1] + h * stride[2];
  }
  const std::int64_t slot = cache.cache_batch_idx.exists() ? entry(cache.cache_batch_idx, b) : b;
  return slot * stride[0] + row * stride[1] + h * stride[2];
}

std::vector<double> Case::row(const TensorView& tensor, Side side, std::int64_t b, std::int64_t s,
                              std::int64_t h) const {
  const int last = tensor.ndim - 1;
  std::vector<double> values(
      static_cast<std::size_t>(tensor.shape[last] * numbers_in(tensor.dtype)));
  const std::int64_t start = offset(tensor, side, b, s, h);
  for (std::size_t t = 0; t < values.size(); ++t)
    values[t] = load_number(tensor, start, tensor.strides[last], static_cast<std::int64_t>(t));
  return values;
}

std::vector<double> Case::head(const TensorView& tensor, Side side, std::int64_t b,
                               std::int64_t h) const {
  std::vector<double> values;
  values.reserve(static_cast<std::size_t>(seqlen(side, b) * tensor.shape[tensor.ndim - 1]));
  for (std::int64_t s = 0; s < seqlen(side, b); ++s) {
    const std::vector<double> one = row(tensor, side, b, s, h);
    values.insert(values.end(), one.begin(), one.end());
  }
  return values;
}

/// x1' = x1 cos - x2 sin,  x2' = x1 sin + x2 cos (Su et al. 2021, arXiv 2104.09864, equation 34).
void Case::turn(std::vector<double>& row, std::int64_t position) const {
  const KvCache& cache = tensors_.cache;
  const std::int64_t pairs = cache.rotary_cos.shape[1];
  const auto table = [&](const TensorView& angles, std::int64_t pair) {
    return load(angles.dtype, angles.at(position * angles.strides[0] + pair * angles.strides[1]));
  };
  for (std::int64_t pair = 0; pair < pairs; ++pair) {
    const double cosine = table(cache.rotary_cos, pair), sine = table(cache.rotary_sin, pair);
    double& first = row[cache.rotary_interleaved ? 2 * pair : pair];
    double& second = row[cache.rotary_interleaved ? 2 * pair + 1 : pair + pairs];
    const double x1 = first, x2 = second;
    first = x1 * cosine - x2 * sine;
    second = x1 * sine + x2 * cosine;
  }
}

std::vector<double> Case::query(std::int64_t b, std::int64_t i, std::int64_t h) const {
  std::vector<double> values = row(tensors_.q, Side::query, b, i, h);
  const double descale = factor(tensors_.scales.q_descale, b, h / problem_.group());
  if (descale != 1)
    for (double& x : values) x *= descale;
  if (tensors_.cache.rotates()) {
    // Without causal and window, flash-attn turns all queries as the first new key.
    const bool moving = problem_.causal || problem_.window_left >= 0 ||
                        problem_.window_right >= 0 || problem_.attention_chunk > 0;
    turn(values,
         leftpad(b) + problem_.seqlen_k(b) - tensors_.cache.seqlen_new() + (moving ? i : 0));
  }
  return values;
}

std::vector<double> Case::new_row(const TensorView& fresh, std::int64_t b, std::int64_t j,
                                  std::int64_t h) const {
  const std::int64_t n = j - (problem_.seqlen_k(b) - tensors_.cache.seqlen_new());
  const std::int64_t start = b * fresh.strides[0] + n * fresh.strides[1] + h * fresh.strides[2];
  std::vector<double> values(static_cast<std::size_t>(fresh.shape[3]));
  for (std::size_t t = 0; t < values.size(); ++t)
    values[t] = load_number(fresh, start, fresh.strides[3], static_cast<std::int64_t>(t));
  return values;
}

std::vector<double> Case::appended_key(std::int64_t b, std::int64_t j, std::int64_t h) const {
  std::vector<double> values = new_row(tensors_.cache.k_new, b, j, h);
  if (tensors_.cache.rotates()) turn(values, leftpad(b) + j);
  return values;
}

std::vector<double> Case::appended_value(std::int64_t b, std::int64_t j, std::int64_t h) const {
  return new_row(tensors_.cache.v_new, b, j, h);
}

void Case::multiply(std::vector<double>& row, const TensorView& row_scales,
                    const TensorView& descale, std::int64_t b, std::int64_t j,
                    std::int64_t h) const {
  double scale = factor(descale, b, h);
  if (row_scales.exists())
    scale *= load(row_scales.dtype, row_scales.at(offset(row_scales, Side::key, b, j, h)));
  if (scale != 1)
    for (double& x : row) x *= scale;
}

std::vector<double> Case::key(std::int64_t b, std::int64_t j, std::int64_t h) const {
  std::vector<double> values =
      is_new(b, j) ? appended_key(b, j, h) : row(tensors_.k, Side::key, b, j, h);
  multiply(values, tensors_.scales.k_scales, tensors_.scales.k_descale, b, j, h);
  return values;
}

std::vector<double> Case::value(std::int64_t b, std::int64_t j, std::int64_t h) const {
  std::vector<double> values =
      is_new(b, j) ? appended_value(b, j, h) : row(tensors_.v, Side::key, b, j, h);
  multiply(values, tensors_.scales.v_scales, tensors_.scales.v_descale, b, j, h);
  return values;
}

std::vector<double> Case::queries(std::int64_t b, std::int64_t h) const {
  std::vector<double> values;
  for (std::int64_t i = 0; i < problem_.seqlen_q(b); ++i) {
    const std::vector<double> one = query(b, i, h);
    values.insert(values.end(), one.begin(), one.end());
  }
  return values;
}

}  // namespace tilewise::oracle
