#include "tests/bugs/kernel.hpp"

#include "core/dropout.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <span>
#include <utility>
#include <vector>

namespace tilewise::bugs {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double nan_value = std::numeric_limits<double>::quiet_NaN();

/// One query head of one sequence, and the key/value head that it reads.
struct Head {
  std::int64_t b = 0, h = 0, kv = 0;
  std::int64_t seqlen_q = 0, seqlen_k = 0;
  std::int64_t start_q = 0, start_k = 0;  // of the sequence in packed tensors; else 0
};

/// `count` consecutive rows of a head, starting at `first`, as a row-major matrix.
template <class Real>
struct Tile {
  std::int64_t first = 0, count = 0, width = 0;
  std::vector<Real> data{};

  Tile(std::int64_t first_row, std::int64_t row_count, std::int64_t row_width)
      : first(first_row),
        count(row_count),
        width(row_width),
        data(static_cast<std::size_t>(row_count * row_width)) {}
  Real* row(std::int64_t i) { return data.data() + i * width; }
  const Real* row(std::int64_t i) const { return data.data() + i * width; }
};

/// What online softmax keeps for each row of a query tile: the running maximum m, the running row
/// sum l, and the output not yet divided by it.
template <class Real>
struct Running {
  std::vector<Real> m;
  std::vector<double> l;  // holds floats, unless the recipe sums in f64
  Tile<Real> O;

  explicit Running(const Tile<Real>& output)
      : m(static_cast<std::size_t>(output.count), static_cast<Real>(-infinity)),
        l(static_cast<std::size_t>(output.count), 0.0),
        O(output) {}
};

/// A finished score, -inf where the row may not look, and its derivative by the scaled product.
template <class Real>
struct Score {
  Real value, slope;
};

template <class Real>
Real dot(const Real* x, const Real* y, std::int64_t n) {
  Real sum = 0;
  for (std::int64_t c = 0; c < n; ++c) sum += x[c] * y[c];
  return sum;
}

/// y += a x
template <class Real>
void add_scaled(Real* y, Real a, const Real* x, std::int64_t n) {
  for (std::int64_t c = 0; c < n; ++c) y[c] += a * x[c];
}

std::int64_t entry(const TensorView& vector, std::int64_t index) {
  return static_cast<std::int64_t>(load(vector.dtype, vector.at(index * vector.strides[0])));
}

/// An element of a [batch or 1, head or 1, query or 1, key or 1] tensor.
double broadcast(const TensorView& tensor, std::int64_t b, std::int64_t h, std::int64_t i,
                 std::int64_t j) {
  const std::int64_t index[4] = {b, h, i, j};
  std::int64_t offset = 0;
  for (int dim = 0; dim < 4; ++dim)
    if (tensor.shape[dim] != 1) offset += index[dim] * tensor.strides[dim];
  return load(tensor.dtype, tensor.at(offset));
}

/// What a block mask says of a block.
enum class Block : std::uint8_t { absent, partial, full };

constexpr std::int64_t round_up(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

/// Real is the type of S, the softmax and the accumulators: float, or double in an f64 problem.
template <class Real>
class Kernel {
 public:
  Kernel(const Recipe& recipe, const harness::Call& call, std::uint64_t calls)
      : recipe_(recipe),
        problem_(call.problem),
        params_(call.params),
        mask_params_(call.params),
        tensors_(call.tensors),
        calls_(calls) {
    Bc_ = recipe.Bc == Recipe::whole_row ? std::max<std::int64_t>(problem_.max_seqlen_k(), 1)
                                         : recipe.Bc;
    scale_ = softmax_scale();
    unit_ = recipe.base_two ? std::numbers::log2e : 1.0;

    const bool has_mask = tensors_.mask.exists();
    const MaskAndCausal together = params_.conventions.mask_and_causal;
    uses_mask_ = has_mask && !(params_.causal && together == MaskAndCausal::causal_replaces);
    if (has_mask && together == MaskAndCausal::mask_replaces) mask_params_.causal = false;

    if (has(Bug::causal_top_left) || has(Bug::window_top_left) || has(Bug::chunk_top_left))
      mask_params_.conventions.alignment = Alignment::top_left;
    if (has(Bug::window_left_off_by_one)) mask_params_.window_left += 1;
    if (has(Bug::window_right_off_by_one)) mask_params_.window_right -= 1;
    if (has(Bug::chunk_off_by_one)) mask_params_.attention_chunk += 1;
    if (tensors_.block_mask.exists()) read_block_mask();
    // 1 / (1 - p), as float32 has it even where all else is float64.
    if (params_.dropout_p > 0 && !has(Bug::dropout_scale_missing))
      dropout_scale_ = Dropout(params_.dropout_p, 0, 0, 1).scale();
    dsinks_.resize(static_cast<std::size_t>(problem_.nheads_q));
    if (tensors_.dbias.exists()) dbias_.resize(static_cast<std::size_t>(tensors_.dbias.elements()));
  }

  void forward() {
    if (has(Bug::input_scaled_in_place)) {
      scale_queries_in_place();
      scale_ = 1;
    }
    for (std::int64_t b = 0; b < problem_.batch; ++b)
      for (std::int64_t h = 0; h < problem_.nheads_q; ++h) {
        const Head head = make_head(b, h);
        for (std::int64_t first = 0; first < head.seqlen_q; first += recipe_.Br)
          forward_tile(head, first);
      }
    if (has(Bug::write_past_end)) write_beside(tensors_.o, last_offset(tensors_.o) + 1);
    if (has(Bug::write_before_start)) write_beside(tensors_.o, -1);
  }

  void backward() {
    for (std::int64_t b = 0; b < problem_.batch; ++b)
      for (std::int64_t kv = 0; kv < problem_.nheads_k; ++kv) {
        std::vector<Head> group;  // the query heads that read this key/value head
        for (std::int64_t h = 0; h < problem_.nheads_q; ++h)
          if (Head head = make_head(b, h); head.kv == kv) group.push_back(head);
        backward_group(group);
      }
    for (std::size_t h = 0; tensors_.dsinks.exists() && h < dsinks_.size(); ++h)
      store(tensors_.dsinks.dtype,
            tensors_.dsinks.at(static_cast<std::int64_t>(h) * tensors_.dsinks.strides[0]),
            static_cast<double>(dsinks_[h]));
    for (std::size_t n = 0; n < dbias_.size(); ++n)
      store(tensors_.dbias.dtype, tensors_.dbias.at(static_cast<std::int64_t>(n)),
            static_cast<double>(dbias_[n]));
  }

 private:
  bool has(Bug bug) const { return recipe_.bug == bug; }

  // ---------------------------------------------------------------- heads, rows, tiles

  Head make_head(std::int64_t b, std::int64_t h) const {
    Head head{b, h, h / problem_.group(), problem_.seqlen_q(b), problem_.seqlen_k(b)};
    if (has(Bug::kv_head_modulo)) head.kv = h % problem_.nheads_k;
    if (problem_.layout == Layout::packed) {
      head.start_q = entry(tensors_.cu_seqlens_q, b);
      head.start_k = entry(tensors_.cu_seqlens_k, b);
      if (has(Bug::neighbour_keys))
        head.seqlen_k = std::min(round_up(head.seqlen_k, Bc_), tensors_.k.shape[0] - head.start_k);
    } else if (has(Bug::padding_rows_counted)) {
      head.seqlen_k = tensors_.k.shape[1];
    }
    return head;
  }

  /// Where row `s` of a sequence starts: [total, head, column] packed, else [b, s, head, column].
  std::int64_t offset(const TensorView& tensor, std::int64_t b, std::int64_t start, std::int64_t s,
                      std::int64_t h) const {
    if (tensor.ndim == 3) return (start + s) * tensor.strides[0] + h * tensor.strides[1];
    std::int64_t batch_stride = tensor.strides[0];
    if (has(Bug::batch_stride_of_q)) batch_stride = std::min(batch_stride, tensors_.q.strides[0]);
    return b * batch_stride + s * tensor.strides[1] + h * tensor.strides[2];
  }
  std::int64_t query_row(const TensorView& tensor, const Head& head, std::int64_t i) const {
    return offset(tensor, head.b, head.start_q, i, head.h);
  }
  std::int64_t key_row(const TensorView& tensor, const Head& head, std::int64_t j) const {
    return offset(tensor, head.b, head.start_k, j, head.kv);
  }
  std::int64_t lse_offset(const Head& head, std::int64_t i) const {
    const TensorView& lse = tensors_.lse;
    if (lse.ndim == 2) return head.h * lse.strides[0] + (head.start_q + i) * lse.strides[1];
    return head.b * lse.strides[0] + head.h * lse.strides[1] + i * lse.strides[2];
  }

  static void read_row(const TensorView& tensor, std::int64_t at, Real* row, std::int64_t width) {
    const std::int64_t stride = tensor.strides[tensor.ndim - 1];
    for (std::int64_t c = 0; c < width; ++c)
      row[c] = static_cast<Real>(load(tensor.dtype, tensor.at(at + c * stride)));
  }
  static void write_row(const TensorView& tensor, std::int64_t at, const Real* row,
                        std::int64_t width) {
    const std::int64_t stride = tensor.strides[tensor.ndim - 1];
    for (std::int64_t c = 0; c < width; ++c)
      store(tensor.dtype, tensor.at(at + c * stride), static_cast<double>(row[c]));
  }
  static std::int64_t width_of(const TensorView& tensor) { return tensor.shape[tensor.ndim - 1]; }

  Tile<Real> read_query_tile(const TensorView& tensor, const Head& head, std::int64_t first) const {
    Tile<Real> tile(first, std::min(recipe_.Br, head.seqlen_q - first), width_of(tensor));
    for (std::int64_t i = 0; i < tile.count; ++i)
      read_row(tensor, query_row(tensor, head, first + i), tile.row(i), tile.width);
    return tile;
  }

  /// A key tile always has Bc rows: those past the end of the sequence are zero.
  void read_key_tile(const TensorView& tensor, const Head& head, std::int64_t first,
                     Tile<Real>& tile) const {
    tile.first = first;
    for (std::int64_t j = 0; j < Bc_; ++j) {
      if (first + j < head.seqlen_k)
        read_row(tensor, key_row(tensor, head, first + j), tile.row(j), tile.width);
      else if (!has(Bug::tail_unmasked))  // which finds the rows of the tile before
        std::fill_n(tile.row(j), tile.width, Real{0});
    }
  }

  // ---------------------------------------------------------------- rounding, exp, log

  /// To the type that the tensor cores multiply in.
  Real to_dtype(Real x) const {
    const bool already = problem_.dtype == DType::f64 || problem_.dtype == DType::f32;
    return already ? x : static_cast<Real>(rounded_to(problem_.dtype, static_cast<double>(x)));
  }
  /// To a type too small for the purpose: the problem's dtype, or bf16 where that is f32.
  Real to_low_precision(Real x) const {
    const DType low = problem_.dtype == DType::f32 ? DType::bf16 : problem_.dtype;
    return static_cast<Real>(rounded_to(low, static_cast<double>(x)));
  }
  Real exponential(Real x) const {
    if (has(Bug::exp2_without_log2e)) return std::exp2(x);
    return recipe_.base_two ? std::exp2(x) : std::exp(x);
  }
  Real logarithm(Real x) const { return recipe_.base_two ? std::log2(x) : std::log(x); }

  // ---------------------------------------------------------------- scores and masks

  double softmax_scale() const {
    const auto d = static_cast<double>(problem_.head_dim);
    const auto dv = static_cast<double>(problem_.head_dim_v);
    switch (recipe_.bug) {
      case Bug::scale_inverse_d: return 1 / d;
      case Bug::scale_of_head_dim_v: return 1 / std::sqrt(dv);
      case Bug::scale_missing: return 1;
      case Bug::scale_head_dim_padded:
        return 1 / std::sqrt(static_cast<double>(round_up(problem_.head_dim, 32)));
      case Bug::scale_argument_ignored: return 1 / std::sqrt(d);
      default: return params_.softmax_scale;
    }
  }

  KeyRange range(const Head& head, std::int64_t i) const {
    KeyRange keys = visible_keys(mask_params_, i, head.seqlen_q, head.seqlen_k);
    const bool tile_border = i % recipe_.Br == recipe_.Br - 1;
    if (has(Bug::causal_one_more) || (has(Bug::causal_tile_border) && tile_border))
      keys.end = std::min(keys.end + 1, head.seqlen_k);
    if (has(Bug::causal_one_less)) keys.end = std::max(keys.end - 1, keys.begin);
    return keys;
  }

  bool visible(const Head& head, std::int64_t i, std::int64_t j) const {
    if (j >= head.seqlen_k)  // past the end, in the last tile
      return has(Bug::tail_unmasked) || has(Bug::padded_keys_counted);
    if (tensors_.block_mask.exists()) {
      const BlockMask& mask = tensors_.block_mask;
      const Block kind = block(head, i / mask.block_q, j / mask.block_k);
      if (kind == Block::absent) return false;
      if (kind == Block::full && !has(Bug::full_block_masked)) return true;
    }
    const KeyRange keys = range(head, i);
    if (j < keys.begin || j >= keys.end) return false;
    if (!uses_mask_) return true;
    const std::int64_t b = has(Bug::mask_batch_ignored) ? 0 : head.b;
    const bool may_look = broadcast(tensors_.mask, b, head.h, i, j) != 0;
    return has(Bug::mask_inverted) ? !may_look : may_look;
  }

  /// Turns the lists into a table of blocks.
  void read_block_mask() {
    const BlockMask& mask = tensors_.block_mask;
    const std::int64_t* const shape = mask.kv_indices.shape;
    blocks_.resize(static_cast<std::size_t>(mask.kv_indices.elements()));
    const auto read = [&](const TensorView& counts, const TensorView& indices, Block kind) {
      for (std::int64_t b = 0; counts.exists() && b < shape[0]; ++b)
        for (std::int64_t h = 0; h < shape[1]; ++h)
          for (std::int64_t row = 0; row < shape[2]; ++row) {
            const std::int64_t at = b * counts.strides[0] + h * counts.strides[1];
            auto count = static_cast<std::int64_t>(
                load(counts.dtype, counts.at(at + row * counts.strides[2])));
            if (has(Bug::block_beyond_count)) count = std::min(count + 1, shape[3]);
            for (std::int64_t n = 0; n < count; ++n) {
              const auto column = static_cast<std::int64_t>(broadcast(indices, b, h, row, n));
              // What lies beyond the count may be negative: that bug lands in the first block.
              blocks_[static_cast<std::size_t>(((b * shape[1] + h) * shape[2] + row) * shape[3] +
                                               std::max<std::int64_t>(column, 0))] = kind;
            }
          }
    };
    read(mask.kv_num_blocks, mask.kv_indices, Block::partial);
    if (!has(Bug::full_blocks_forgotten))
      read(mask.full_kv_num_blocks, mask.full_kv_indices, Block::full);
  }

  Block block(const Head& head, std::int64_t row, std::int64_t column) const {
    const std::int64_t* const shape = tensors_.block_mask.kv_indices.shape;
    const std::int64_t b = shape[0] == 1 ? 0 : head.b;
    const std::int64_t h = shape[1] == 1 || has(Bug::block_head_ignored) ? 0 : head.h;
    return blocks_[static_cast<std::size_t>(((b * shape[1] + h) * shape[2] + row) * shape[3] +
                                            column)];
  }

  /// The head's sink, in the units of our scores.
  Real sink(const Head& head) const {
    if (!tensors_.sinks.exists()) return static_cast<Real>(-infinity);
    const std::int64_t h = has(Bug::sink_head_zero) ? 0 : head.h;
    const double value =
        load(tensors_.sinks.dtype, tensors_.sinks.at(h * tensors_.sinks.strides[0]));
    return static_cast<Real>(value * unit_ * (has(Bug::sink_scaled) ? scale_ : 1.0));
  }

  /// Is element (i, j) of P kept? `first_row` and `first_key` are where the tiles start.
  bool kept(const Head& head, std::int64_t i, std::int64_t j, std::int64_t first_row,
            std::int64_t first_key) const {
    if (params_.dropout_p == 0) return true;
    const std::int64_t h = has(Bug::dropout_head_zero) ? 0 : head.h;
    if (has(Bug::dropout_of_tile)) i -= first_row, j -= first_key;
    if (has(Bug::dropout_ten_rounds)) return kept_after_ten_rounds(head.b, h, i, j);
    return Dropout(params_.dropout_p, params_.philox_seed, params_.philox_offset, problem_.nheads_q)
        .keeps(head.b, h, i, j);
  }
  bool kept_after_ten_rounds(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
    const std::int64_t r = i % 16, c = j % 32, lane = r % 8 * 4 + c % 8 / 2;
    const auto words =
        philox<10>(params_.philox_seed,
                   static_cast<std::uint64_t>(i / 16) | static_cast<std::uint64_t>(j / 32) << 32,
                   params_.philox_offset +
                       static_cast<std::uint64_t>((b * problem_.nheads_q + h) * 32 + lane));
    const std::int64_t byte = c / 16 * 8 + c % 16 / 8 * 4 + (r >= 8 ? 2 : 0) + c % 2;
    const double most = (1 - params_.dropout_p) * 255;
    return (words[static_cast<std::size_t>(byte / 4)] >> (8 * (byte % 4)) & 0xff) <= most;
  }

  /// ALiBi and bias.
  Real added(const Head& head, std::int64_t i, std::int64_t j) const {
    double sum = 0;
    if (tensors_.alibi_slopes.exists()) {
      const bool next_head = has(Bug::alibi_next_head);
      const double slope = entry_of_slopes(next_head ? (head.h + 1) % problem_.nheads_q : head.h);
      const double term = slope * alibi_distance(head, i, j);
      sum += has(Bug::alibi_sign) ? -term : term;
    }
    if (tensors_.bias.exists() && j < head.seqlen_k) {
      const std::int64_t h = has(Bug::bias_head_ignored) ? 0 : head.h;
      sum += has(Bug::bias_transposed)
                 ? broadcast(tensors_.bias, head.b, h, j % head.seqlen_q, i % head.seqlen_k)
                 : broadcast(tensors_.bias, head.b, h, i, j);
    }
    return static_cast<Real>(sum);
  }
  double entry_of_slopes(std::int64_t h) const {
    const TensorView& slopes = tensors_.alibi_slopes;
    return load(slopes.dtype, slopes.at(h * slopes.strides[0]));
  }
  double alibi_distance(const Head& head, std::int64_t i, std::int64_t j) const {
    const Conventions& conventions = params_.conventions;
    const bool bottom_right = conventions.alignment == Alignment::bottom_right;
    const std::int64_t position = i + (bottom_right ? head.seqlen_k - head.seqlen_q : 0);
    switch (conventions.alibi) {
      case Alibi::minus_distance: break;
      case Alibi::fa2:
        if (params_.causal) return static_cast<double>(j);
        break;
      case Alibi::signed_distance: return static_cast<double>(j - i);
    }
    return -std::abs(static_cast<double>(position - j));
  }

  /// The score of query i and key j, given their dot product: scale, softcap, bias and masks in the
  /// order that the conventions name.
  Score<Real> score(const Head& head, std::int64_t i, std::int64_t j, Real product) const {
    if (!visible(head, i, j)) {
      if (has(Bug::softcap_after_mask) && j < head.seqlen_k)
        return {static_cast<Real>(-params_.softcap), Real{0}};  // cap tanh(-inf / cap)
      return {static_cast<Real>(-infinity), Real{0}};
    }
    if (has(Bug::s_low_precision)) {
      const Real scaled = to_low_precision(product * static_cast<Real>(scale_));
      return {scaled * static_cast<Real>(unit_), Real{1}};
    }
    if (params_.softcap == 0 || has(Bug::softcap_missing))  // one multiplication: log2(e) is folded
      return {product * static_cast<Real>(scale_ * unit_) +
                  added(head, i, j) * static_cast<Real>(unit_),
              Real{1}};

    const bool bias_first = params_.conventions.score_order == ScoreOrder::bias_softcap_mask;
    const Real bias = added(head, i, j);
    const Real raw = product * static_cast<Real>(scale_) + (bias_first ? bias : Real{0});
    const Real t = std::tanh(raw / static_cast<Real>(params_.softcap));
    const Real capped = static_cast<Real>(params_.softcap) * t + (bias_first ? Real{0} : bias);
    const bool no_slope = has(Bug::softcap_derivative_missing);
    return {capped * static_cast<Real>(unit_), no_slope ? Real{1} : 1 - t * t};
  }

  /// Does a block reach into these rows and the key tile, in full or with keys in sight?
  bool listed(const Head& head, std::int64_t first_row, std::int64_t rows, std::int64_t first_key,
              const KeyRange& in_sight) const {
    const BlockMask& mask = tensors_.block_mask;
    const std::int64_t end_key = std::min(first_key + Bc_, head.seqlen_k);
    const bool sighted = in_sight.begin < end_key && in_sight.end > first_key;
    for (std::int64_t row = first_row / mask.block_q; row * mask.block_q < first_row + rows; ++row)
      for (std::int64_t column = first_key / mask.block_k; column * mask.block_k < end_key;
           ++column) {
        const Block kind = block(head, row, column);
        if (kind == Block::full || (kind == Block::partial && sighted)) return true;
      }
    return false;
  }

  /// The first keys of the tiles that some row of the query tile can see, in the order of visit.
  std::vector<std::int64_t> key_tiles(const Head& head, std::int64_t first_row,
                                      std::int64_t rows) const {
    KeyRange all = range(head, first_row);
    for (std::int64_t i = first_row + 1; i < first_row + rows; ++i) {
      const KeyRange keys = range(head, i);
      if (all.begin == all.end) all = keys;  // an empty range says nothing of where it lies
      if (keys.begin == keys.end) continue;
      all = {std::min(all.begin, keys.begin), std::max(all.end, keys.end)};
    }
    std::vector<std::int64_t> tiles;
    if (tensors_.block_mask.exists()) {
      for (std::int64_t key = 0; key < head.seqlen_k; key += Bc_)
        if (listed(head, first_row, rows, key, all)) tiles.push_back(key);
    } else {
      for (std::int64_t key = all.begin / Bc_ * Bc_; key < all.end; key += Bc_)
        tiles.push_back(key);
    }
    if (tiles.empty()) return tiles;
    if (has(Bug::last_tile_dropped)) tiles.pop_back();
    if (has(Bug::partial_tile_dropped) && tiles.back() + Bc_ > head.seqlen_k) tiles.pop_back();
    if (has(Bug::first_tile_twice)) tiles.insert(tiles.begin(), tiles.front());
    if (recipe_.order == KeyOrder::descending) std::reverse(tiles.begin(), tiles.end());
    return tiles;
  }

  // ---------------------------------------------------------------- forward

  void forward_tile(const Head& head, std::int64_t first_row) {
    const Tile<Real> Q = read_query_tile(tensors_.q, head, first_row);
    const std::vector<std::int64_t> tiles = key_tiles(head, first_row, Q.count);
    const auto per_split = (tiles.size() + recipe_.splits - 1) / recipe_.splits;
    std::vector<Running<Real>> parts;
    for (std::size_t t = 0; t < tiles.size(); t += per_split)
      parts.push_back(
          sweep(head, Q, std::span(tiles).subspan(t, std::min(per_split, tiles.size() - t))));
    if (parts.empty()) parts.push_back(sweep(head, Q, {}));
    if (has(Bug::sink_every_split))
      for (Running<Real>& part : parts) add_sink(head, part);
    Running<Real> whole = parts.size() == 1 ? parts.front() : merged(parts);
    if (tensors_.sinks.exists() && !has(Bug::sink_not_in_lse)) add_sink(head, whole);
    finish(head, std::move(whole));
  }

  /// The sink is one more key, without a value: it joins the row sum, and the maximum.
  void add_sink(const Head& head, Running<Real>& state) const {
    const Real score = sink(head);
    for (std::int64_t i = 0; i < state.O.count; ++i) {
      Real& m = state.m[i];
      const Real m_new = std::max(m, score);
      if (m_new == static_cast<Real>(-infinity)) continue;
      const Real alpha = m == static_cast<Real>(-infinity) ? Real{0} : exponential(m - m_new);
      state.l[i] = rounded_sum(state.l[i] * alpha + exponential(score - m_new));
      for (std::int64_t c = 0; c < state.O.width; ++c) state.O.row(i)[c] *= alpha;
      m = m_new;
    }
  }

  /// Online softmax over some key tiles: algorithm 1 of FlashAttention-2, lines 7 to 10.
  Running<Real> sweep(const Head& head, const Tile<Real>& Q,
                      std::span<const std::int64_t> tiles) const {
    Running<Real> state(Tile<Real>(Q.first, Q.count, problem_.head_dim_v));
    Tile<Real> K(0, Bc_, problem_.head_dim), V(0, Bc_, problem_.head_dim_v);
    std::vector<Real> s(static_cast<std::size_t>(Bc_)), p(static_cast<std::size_t>(Bc_));
    Real first_alpha = 1;
    for (const std::int64_t first_key : tiles) {
      read_key_tile(tensors_.k, head, first_key, K);
      if (!(has(Bug::stale_v_tile) && tiles.size() > 1 && first_key == tiles.back()))
        read_key_tile(tensors_.v, head, first_key, V);

      for (std::int64_t i = 0; i < Q.count; ++i) {
        Real& m = state.m[i];
        double& l = state.l[i];
        Real* O = state.O.row(i);

        Real m_new = m;
        for (std::int64_t j = 0; j < Bc_; ++j) {
          const Real product = dot(Q.row(i), K.row(j), Q.width);
          s[j] = score(head, Q.first + i, first_key + j, product).value;
          m_new = std::max(m_new, s[j]);
        }
        // Nothing visible so far: -inf - -inf would be NaN.
        const bool nothing_yet = m_new == static_cast<Real>(-infinity);
        if (nothing_yet && !has(Bug::masked_tile_nan)) continue;

        const bool first_tile = m == static_cast<Real>(-infinity);
        const Real alpha = first_tile ? Real{0} : exponential(m - m_new);
        if (i == 0) first_alpha = alpha;

        const Real subtracted = has(Bug::stale_max) && !first_tile ? m : m_new;
        for (std::int64_t j = 0; j < Bc_; ++j) p[j] = exponential(s[j] - subtracted);

        const bool rescale_late = has(Bug::row_sum_half_updated);
        if (!rescale_late && !has(Bug::row_sum_not_rescaled)) l = rounded_sum(l * alpha);
        for (std::int64_t j = 0; j < Bc_; ++j)
          if (!has(Bug::dropout_in_row_sum) ||
              kept(head, Q.first + i, first_key + j, Q.first, first_key))
            l = rounded_sum(l + (has(Bug::row_sum_rounded) ? to_low_precision(p[j]) : p[j]));
        if (rescale_late && !first_tile) l = rounded_sum(l * alpha);
        if (has(Bug::sink_every_tile)) l = rounded_sum(l + exponential(sink(head) - m_new));

        Real rescale = alpha;
        if (has(Bug::rescale_missing)) rescale = 1;
        if (has(Bug::rescale_inverted) && !first_tile) rescale = 1 / alpha;
        if (has(Bug::rescale_first_row)) rescale = first_alpha;
        for (std::int64_t c = 0; c < V.width; ++c) O[c] *= rescale;
        for (std::int64_t j = 0; j < Bc_; ++j) {
          if (kept(head, Q.first + i, first_key + j, Q.first, first_key))
            add_scaled(O, to_dtype(p[j]), V.row(j), V.width);
          if (has(Bug::o_low_precision))
            for (std::int64_t c = 0; c < V.width; ++c) O[c] = to_low_precision(O[c]);
        }
        m = m_new;
      }
    }
    return state;
  }

  double rounded_sum(double l) const {
    return recipe_.row_sum_in_f64 ? l : static_cast<double>(static_cast<Real>(l));
  }

  /// Split-KV: partial results weighted by exp(their LSE - the LSE of all).
  Running<Real> merged(const std::vector<Running<Real>>& parts) const {
    Running<Real> whole(Tile<Real>(parts[0].O.first, parts[0].O.count, parts[0].O.width));
    for (std::int64_t i = 0; i < whole.O.count; ++i) {
      std::vector<Real> lse;
      for (const Running<Real>& part : parts)
        lse.push_back(part.m[i] + logarithm(static_cast<Real>(part.l[i])));
      const Real largest = *std::max_element(lse.begin(), lse.end());
      if (largest == static_cast<Real>(-infinity)) continue;  // an empty row stays empty
      Real sum = 0;
      for (const Real one : lse) sum += exponential(one - largest);
      whole.m[i] = largest + logarithm(sum);  // the LSE of all, so that O is normalised
      whole.l[i] = 1;
      for (std::size_t n = 0; n < parts.size(); ++n) {
        if (lse[n] == static_cast<Real>(-infinity)) continue;
        Real weight = exponential(lse[n] - whole.m[i]);
        if (has(Bug::split_average)) weight = 1 / static_cast<Real>(parts.size());
        add_scaled(whole.O.row(i), weight / static_cast<Real>(parts[n].l[i]), parts[n].O.row(i),
                   whole.O.width);
      }
    }
    return whole;
  }

  /// Divides by l and stores O and LSE: algorithm 1, lines 12 to 15.
  void finish(const Head& head, Running<Real> state) const {
    std::vector<Real> m_stored = state.m;
    std::vector<double> l_stored = state.l;
    if (has(Bug::sink_not_in_lse) && tensors_.sinks.exists()) add_sink(head, state);
    for (std::int64_t row = 0; row < state.O.count; ++row) {
      const std::int64_t i = state.O.first + row;
      const Real m = state.m[row];
      auto l = static_cast<Real>(state.l[row]);
      Real* O = state.O.row(row);
      const bool empty = m == static_cast<Real>(-infinity);

      if (has(Bug::lane_normaliser) && i % 32 == 7) l *= static_cast<Real>(1.001);
      if (empty && !has(Bug::empty_row_nan) && !has(Bug::masked_tile_nan)) {
        fill_empty_row(head, O, state.O.width);
      } else {
        for (std::int64_t c = 0; c < state.O.width; ++c)
          O[c] = O[c] / l * static_cast<Real>(dropout_scale_);
      }
      if (has(Bug::late_rows) && 4 * i >= 3 * head.seqlen_q)
        for (std::int64_t c = 0; c < state.O.width; ++c) O[c] *= static_cast<Real>(1.005);
      if (has(Bug::not_repeatable) && i == 0 && calls_ % 2 == 1)
        O[0] *= static_cast<Real>(1 + 2 * unit_roundoff(tensors_.o.dtype));

      store_output_row(head, i, O, state.O.width);
      if (has(Bug::sink_not_in_lse))
        store_lse(head, i, empty, m_stored[row], static_cast<Real>(l_stored[row]));
      else
        store_lse(head, i, empty, m, l);
    }
  }

  void fill_empty_row(const Head& head, Real* O, std::int64_t width) const {
    std::fill_n(O, width, Real{0});
    switch (params_.conventions.empty_row_output) {
      case EmptyRowOutput::zero: return;
      case EmptyRowOutput::nan: std::fill_n(O, width, static_cast<Real>(nan_value)); return;
      case EmptyRowOutput::mean_v:
        std::vector<Real> v(static_cast<std::size_t>(width));
        for (std::int64_t j = 0; j < head.seqlen_k; ++j) {
          read_row(tensors_.v, key_row(tensors_.v, head, j), v.data(), width);
          add_scaled(O, Real{1} / static_cast<Real>(head.seqlen_k), v.data(), width);
        }
    }
  }

  void store_output_row(const Head& head, std::int64_t i, const Real* O, std::int64_t width) const {
    if (has(Bug::row_unwritten) && i == head.seqlen_q / 2) return;
    if (has(Bug::head_dim_v_as_head_dim)) width = std::min(width, problem_.head_dim);
    if (has(Bug::column_unwritten)) --width;
    write_row(tensors_.o, query_row(tensors_.o, head, i), O, width);
  }

  void store_lse(const Head& head, std::int64_t i, bool empty, Real m, Real l) const {
    if (!tensors_.lse.exists()) return;
    if (has(Bug::lse_last_row_unwritten) && i == head.seqlen_q - 1) return;
    const Conventions& conventions = params_.conventions;
    double lse = static_cast<double>(m + logarithm(l));
    if (has(Bug::lse_without_max)) lse = static_cast<double>(logarithm(l));
    if (has(Bug::lse_without_sum)) lse = static_cast<double>(m);
    if (has(Bug::lse_unscaled)) lse = static_cast<double>(m) / scale_ + std::log(l);
    lse /= unit_;  // now a natural logarithm
    const bool base_two = (conventions.lse_base == LseBase::two) != has(Bug::lse_base_two);
    if (base_two) lse *= std::numbers::log2e;
    if (empty) {
      const bool plus = conventions.empty_row_lse == EmptyRowLse::plus_inf;
      lse = plus != has(Bug::empty_row_lse_sign) ? infinity : -infinity;
    }
    store(tensors_.lse.dtype, tensors_.lse.at(lse_offset(head, i)), lse);
  }

  // ---------------------------------------------------------------- writes that must not be

  static std::int64_t last_offset(const TensorView& tensor) {
    std::int64_t last = 0;
    for (int dim = 0; dim < tensor.ndim; ++dim)
      last += (tensor.shape[dim] - 1) * tensor.strides[dim];
    return last;
  }
  static void write_beside(const TensorView& tensor, std::int64_t at) {
    store(tensor.dtype, tensor.at(at), 1.0);
  }
  void scale_queries_in_place() const {
    for (std::int64_t n = 0; n <= last_offset(tensors_.q); ++n)
      store(tensors_.q.dtype, tensors_.q.at(n), scale_ * load(tensors_.q.dtype, tensors_.q.at(n)));
  }

  // ---------------------------------------------------------------- backward

  /// D_i = dO_i . O_i, with O as it was stored: what algorithm 2 computes first.
  std::vector<Real> row_dots(const Head& head) const {
    const std::int64_t width = problem_.head_dim_v;
    std::vector<Real> D, o(static_cast<std::size_t>(width)), dout(o);
    for (std::int64_t i = 0; i < head.seqlen_q; ++i) {
      read_row(tensors_.o, query_row(tensors_.o, head, i), o.data(), width);
      read_row(tensors_.dout, query_row(tensors_.dout, head, i), dout.data(), width);
      D.push_back(has(Bug::d_missing) ? Real{0} : dot(o.data(), dout.data(), width));
    }
    if (has(Bug::d_of_next_row)) std::rotate(D.begin(), D.begin() + 1, D.end());
    return D;
  }

  /// The LSE that the forward pass stored, in the units of our scores.
  std::vector<Real> stored_lse(const Head& head) const {
    std::vector<Real> lse;
    const bool base_two = params_.conventions.lse_base == LseBase::two;
    for (std::int64_t i = 0; i < head.seqlen_q; ++i) {
      const double stored = load(tensors_.lse.dtype, tensors_.lse.at(lse_offset(head, i)));
      lse.push_back(static_cast<Real>((base_two ? stored * std::numbers::ln2 : stored) * unit_));
    }
    return lse;
  }

  /// The maximum of each row's scores, which no correct backward pass needs.
  std::vector<Real> row_maxima(const Head& head) const {
    std::vector<Real> m;
    Tile<Real> K(0, Bc_, problem_.head_dim);
    for (std::int64_t i = 0; i < head.seqlen_q; ++i) {
      const Tile<Real> Q = read_query_tile(tensors_.q, head, i);
      m.push_back(static_cast<Real>(-infinity));
      for (std::int64_t first = 0; first < head.seqlen_k; first += Bc_) {
        read_key_tile(tensors_.k, head, first, K);
        for (std::int64_t j = 0; j < Bc_; ++j)
          m.back() =
              std::max(m.back(), score(head, i, first + j, dot(Q.row(0), K.row(j), Q.width)).value);
      }
    }
    return m;
  }

  /// What the backward pass knows of one query head before it starts, and its dQ as it grows.
  struct QueryHead {
    Head head;
    std::vector<Real> D, lse, lse_for_dv;
    Tile<Real> dQ;
  };

  /// Algorithm 2 for one key/value head: dK and dV of a key tile sum over every query tile of every
  /// query head of the group, dQ over the key tiles.
  void backward_group(const std::vector<Head>& heads) {
    std::vector<QueryHead> group;
    for (const Head& head : heads) {
      QueryHead one{head,
                    row_dots(head),
                    stored_lse(head),
                    {},
                    Tile<Real>(0, head.seqlen_q, problem_.head_dim)};
      if (has(Bug::p_from_max)) one.lse = row_maxima(head);
      one.lse_for_dv = has(Bug::dv_unnormalised) ? row_maxima(head) : one.lse;
      if (tensors_.sinks.exists()) add_sink_gradient(one);
      group.push_back(std::move(one));
    }
    const Head& any = heads.front();
    std::vector<std::int64_t> tiles;
    for (std::int64_t key = 0; key < any.seqlen_k; key += Bc_) tiles.push_back(key);
    if (recipe_.order == KeyOrder::descending) std::reverse(tiles.begin(), tiles.end());

    Tile<Real> K(0, Bc_, problem_.head_dim), V(0, Bc_, problem_.head_dim_v);
    for (const std::int64_t first_key : tiles) {
      read_key_tile(tensors_.k, any, first_key, K);
      read_key_tile(tensors_.v, any, first_key, V);
      Tile<Real> dK(first_key, Bc_, K.width), dV(first_key, Bc_, V.width);
      for (QueryHead& one : group) {
        if (has(Bug::dk_one_head)) std::fill(dK.data.begin(), dK.data.end(), Real{0});
        if (has(Bug::dq_overwritten)) std::fill(one.dQ.data.begin(), one.dQ.data.end(), Real{0});
        for (std::int64_t first = 0; first < one.head.seqlen_q; first += recipe_.Br)
          backward_tile(one, first, K, V, dK, dV);
      }
      for (std::int64_t j = 0; j < Bc_ && first_key + j < any.seqlen_k; ++j) {
        scale_gradient(dK.row(j), K.width);
        write_row(tensors_.dk, key_row(tensors_.dk, any, first_key + j), dK.row(j), K.width);
        write_row(tensors_.dv, key_row(tensors_.dv, any, first_key + j), dV.row(j), V.width);
      }
    }
    for (QueryHead& one : group)
      for (std::int64_t i = 0; i < one.head.seqlen_q; ++i) {
        scale_gradient(one.dQ.row(i), one.dQ.width);
        write_row(tensors_.dq, query_row(tensors_.dq, one.head, i), one.dQ.row(i), one.dQ.width);
      }
  }

  /// The sink looks at nothing: dP = 0, and a row adds -P D to its gradient.
  void add_sink_gradient(const QueryHead& one) {
    Real& sum = dsinks_[static_cast<std::size_t>(one.head.h)];
    if (has(Bug::dsink_last_batch)) sum = 0;
    for (std::int64_t i = 0; i < one.head.seqlen_q; ++i) {
      if (std::isinf(one.lse[i])) continue;
      const Real term = exponential(sink(one.head) - one.lse[i]) * one.D[i];
      sum += has(Bug::dsink_sign) ? term : -term;
    }
  }

  /// The element of the bias that (i, j) was given takes its gradient.
  void add_bias_gradient(const Head& head, std::int64_t i, std::int64_t j, Real gradient) {
    const TensorView& dbias = tensors_.dbias;
    const std::int64_t index[4] = {head.b, head.h, i, j};
    std::int64_t at = 0;
    for (int dim = 0; dim < 4; ++dim)
      if (dbias.shape[dim] != 1) at += index[dim] * dbias.strides[dim];
    Real& sum = dbias_[static_cast<std::size_t>(at)];
    sum = has(Bug::dbias_not_summed) ? gradient : sum + gradient;
  }

  void scale_gradient(Real* row, std::int64_t width) const {
    if (has(Bug::ds_without_scale)) return;
    for (std::int64_t c = 0; c < width; ++c) row[c] *= static_cast<Real>(scale_);
  }

  void backward_tile(QueryHead& one, std::int64_t first_row, const Tile<Real>& K,
                     const Tile<Real>& V, Tile<Real>& dK, Tile<Real>& dV) {
    const Tile<Real> Q = read_query_tile(tensors_.q, one.head, first_row);
    Tile<Real> dO = read_query_tile(tensors_.dout, one.head, first_row);
    if (has(Bug::dout_ignored)) std::fill(dO.data.begin(), dO.data.end(), Real{1});

    for (std::int64_t row = 0; row < Q.count; ++row) {
      const std::int64_t i = first_row + row;
      Real* dQ = one.dQ.row(i);
      if (has(Bug::dq_low_precision))
        for (std::int64_t c = 0; c < Q.width; ++c) dQ[c] = to_low_precision(dQ[c]);
      for (std::int64_t j = 0; j < Bc_; ++j) {
        const Real product = dot(Q.row(row), K.row(j), Q.width);
        const Score<Real> s = score(one.head, i, K.first + j, product);
        const bool hidden = s.value == static_cast<Real>(-infinity);
        if (hidden && !has(Bug::dk_not_causal) && !has(Bug::empty_row_gradient_nan)) continue;

        const Real p = exponential(s.value - one.lse[i]);  // recomputed, never stored
        const Real p_for_dv = exponential(s.value - one.lse_for_dv[i]);
        const bool keep = has(Bug::dropout_forgotten_backward) ||
                          kept(one.head, i, K.first + j, first_row, K.first);
        const Real Z = keep ? static_cast<Real>(dropout_scale_) : Real{0};
        const Real dP =
            dot(dO.row(row), V.row(j), V.width) * (has(Bug::dropout_not_in_dp) ? Real{1} : Z);
        const Real dS = to_dtype(p * (dP - one.D[i]) * s.slope);
        if (tensors_.dbias.exists() && !hidden && K.first + j < one.head.seqlen_k) {
          const bool bias_first = params_.conventions.score_order == ScoreOrder::bias_softcap_mask;
          const bool sloped = bias_first || has(Bug::dbias_through_softcap);
          add_bias_gradient(one.head, i, K.first + j,
                            p * (dP - one.D[i]) * (sloped ? s.slope : Real{1}));
        }
        if (hidden && has(Bug::dk_not_causal)) {
          const Real seen = product * static_cast<Real>(scale_ * unit_);
          const Real leaked = exponential(seen - one.lse[i]) * (dP - one.D[i]);
          if (K.first + j < one.head.seqlen_k) add_scaled(dK.row(j), leaked, Q.row(row), Q.width);
          continue;
        }
        add_scaled(dV.row(j), to_dtype(p_for_dv) * Z, dO.row(row), V.width);
        add_scaled(dQ, dS, K.row(j), Q.width);
        add_scaled(dK.row(j), dS, Q.row(row), Q.width);
        if (has(Bug::dq_low_precision))
          for (std::int64_t c = 0; c < Q.width; ++c) dQ[c] = to_low_precision(dQ[c]);
      }
    }
    add_mean_of_v_gradient(one, dO, dV);
  }

  /// Where an empty row's output is the mean of V, every key's dV gets its share of dO.
  void add_mean_of_v_gradient(const QueryHead& one, const Tile<Real>& dO, Tile<Real>& dV) const {
    if (params_.conventions.empty_row_output != EmptyRowOutput::mean_v) return;
    const Real share = Real{1} / static_cast<Real>(one.head.seqlen_k);
    for (std::int64_t row = 0; row < dO.count; ++row) {
      if (!std::isinf(one.lse[dO.first + row])) continue;
      for (std::int64_t j = 0; j < Bc_; ++j) add_scaled(dV.row(j), share, dO.row(row), dO.width);
    }
  }

  Recipe recipe_;
  const Problem& problem_;
  const AttentionParams& params_;
  AttentionParams mask_params_;  // what the masks are made from
  AttentionTensors tensors_;
  std::uint64_t calls_;
  std::int64_t Bc_ = 0;
  double scale_ = 1;
  double unit_ = 1;  // scores are in units of the natural logarithm, or log2(e) times as large
  double dropout_scale_ = 1;
  bool uses_mask_ = false;
  std::vector<Block> blocks_{};           // [batch or 1, nheads_q or 1, query blocks, key blocks]
  std::vector<Real> dsinks_{}, dbias_{};  // as they grow, over all sequences and heads
};

template <class Real>
void run_in(const Recipe& recipe, const harness::Call& call, std::uint64_t calls) {
  Kernel<Real> kernel(recipe, call, calls);
  kernel.forward();
  if (call.problem.pass == Pass::backward) kernel.backward();
}

}  // namespace

Status run(const Recipe& recipe, const harness::Call& call, std::uint64_t calls) {
  if (call.problem.dtype == DType::f64)
    run_in<double>(recipe, call, calls);
  else
    run_in<float>(recipe, call, calls);
  return {};
}

}  // namespace tilewise::bugs
