#include "oracle/harness/fill.hpp"

#include "core/philox.hpp"
#include "core/quantised.hpp"
#include "oracle/attention.hpp"
#include "oracle/formats/formats.hpp"
#include "oracle/parallel.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <numbers>
#include <numeric>
#include <vector>

namespace tilewise::harness {

namespace {

/// Which numbers a tensor draws: its stream of the generator.
enum Stream : std::uint64_t { of_q, of_k, of_v, of_dout, of_bias, of_sinks, of_choices };

/// Four independent N(0, 1) numbers (Box and Muller 1958).
std::array<double, 4> normals(std::uint64_t seed, std::uint64_t stream, std::uint64_t index) {
  const auto bits = philox(seed, stream, index);
  std::array<double, 4> values{};
  for (int pair = 0; pair < 2; ++pair) {
    const double radius = std::sqrt(-2 * std::log(unit_interval(bits[2 * pair])));
    const double angle = 2 * std::numbers::pi * unit_interval(bits[2 * pair + 1]);
    values[2 * pair] = radius * std::cos(angle);
    values[2 * pair + 1] = radius * std::sin(angle);
  }
  return values;
}

/// The place of a row: sequence, position, head, and how many positions and heads there are.
struct RowPlace {
  std::int64_t b, s, h, seqlen, nheads;

  std::uint64_t id() const {
    return static_cast<std::uint64_t>((b * nheads + h) * (std::int64_t{1} << 32) + s);
  }
  /// One number for the whole head: rows that share it are alike.
  std::uint64_t head_id() const { return static_cast<std::uint64_t>(b * nheads + h) << 32; }
};

/// One row of a tensor before rounding; `row` is the counter that its numbers come from.
void normal_row(std::uint64_t seed, std::uint64_t stream, std::uint64_t row,
                std::vector<double>& values) {
  // A row has at most 4096 elements: 1024 counters each keep rows apart.
  for (std::size_t t = 0; t < values.size(); t += 4) {
    const std::array<double, 4> four = normals(seed, stream, row * 1024 + t / 4);
    for (std::size_t n = 0; n < 4 && t + n < values.size(); ++n) values[t + n] = four[n];
  }
}

std::uint32_t choice(std::uint64_t seed, std::uint64_t which, std::uint64_t index) {
  return philox(seed, of_choices + which, index)[0];
}

/// The numbers of one row of q, k, v or dout, by the problem's fill.
class Filler {
 public:
  Filler(const Problem& problem, const formats::Arrays& real) : problem_(problem), real_(real) {}

  void row(Stream stream, const RowPlace& place, std::vector<double>& values) const {
    const std::uint64_t seed = problem_.seed;
    const bool key_like = stream == of_q || stream == of_k;
    normal_row(seed, stream, place.id(), values);
    switch (problem_.fill) {
      case Fill::normal: return;
      case Fill::peaks:
        // About one key in 31 is long enough to win every row that points its way.
        if (stream == of_k && choice(seed, 0, place.id()) % 31 == 0)
          for (double& x : values) x *= 8;
        return;
      case Fill::ascending: {
        // Positive q, and keys along one positive direction, the later the longer.
        if (!key_like) return;
        if (stream == of_k) normal_row(seed, stream, place.head_id(), values);
        const double length =
            6.0 * static_cast<double>(place.s + 1) / static_cast<double>(place.seqlen);
        for (double& x : values) x = (0.25 + std::abs(x)) * (stream == of_k ? length : 1.0);
        return;
      }
      case Fill::constant:
        if (stream == of_k) normal_row(seed, stream, place.head_id(), values);
        return;
      case Fill::onehot: return onehot_row(stream, place, values);
      case Fill::denormal: {
        const double smallest = power_of_two(info(problem_.dtype).smallest_exponent);
        const int codes =
            1 << (info(problem_.dtype).significand - 1 < 20 ? info(problem_.dtype).significand - 1
                                                            : 20);
        for (double& x : values) x = smallest * std::trunc(x / 4 * codes);
        return;
      }
      case Fill::mixed: {
        const int span = key_like ? 7 : 14, top = key_like ? 2 : 1;
        for (std::size_t t = 0; t < values.size(); ++t)
          values[t] *= power_of_two(
              top - static_cast<int>(choice(seed, 1 + stream, place.id() * 4096 + t) % span));
        return;
      }
      case Fill::huge:
        if (key_like)
          for (double& x : values) x *= 64;
        return;
      case Fill::outliers:
        for (std::size_t t = 0; t < values.size(); ++t)
          if (choice(seed, 1 + stream, place.id() * 4096 + t) % 1000 == 0)
            values[t] += 10 * normals(seed, 16 + stream, place.id() * 4096 + t)[0];
        return;
      case Fill::real: return real_row(stream, place, values);
    }
  }

  /// Why fill=real cannot serve the problem; empty if it can.
  static std::string real_refusal(const Problem& problem, const formats::Arrays& real) {
    if (real.empty()) return "fill=real: no captured tensors";
    const formats::Array& q = real.begin()->second;
    if (q.shape.size() != 4)
      return "fill=real: captured tensors are not [1, seqlen, nheads, head_dim]";
    if (problem.head_dim != q.shape[3] || problem.head_dim_v != q.shape[3])
      return "fill=real: the captured heads have head_dim " + std::to_string(q.shape[3]) +
             ", the problem asks for another";
    return {};
  }

 private:
  /// Keys of +-4; a query is a copy of the key that it is to find.
  void onehot_row(Stream stream, const RowPlace& place, std::vector<double>& values) const {
    if (stream != of_q && stream != of_k) return;
    RowPlace source = place;
    if (stream == of_q) {
      source.nheads = problem_.nheads_k;
      source.h = place.h / problem_.group();
      const std::int64_t keys = problem_.seqlen_k(place.b);
      source.s = keys == 0 ? 0 : choice(problem_.seed, 0, place.id()) % keys;
      normal_row(problem_.seed, of_k, source.id(), values);
    }
    for (double& x : values) x = x < 0 ? -4 : 4;
  }

  /// Sequence b is layer b of the capture, and so on around.
  void real_row(Stream stream, const RowPlace& place, std::vector<double>& values) const {
    if (stream == of_dout) return;
    std::vector<const formats::Array*> layers;
    const char* const suffix = stream == of_q ? ".q" : stream == of_k ? ".k" : ".v";
    for (const auto& [name, array] : real_)
      if (name.ends_with(suffix)) layers.push_back(&array);
    const formats::Array& layer = *layers[static_cast<std::size_t>(place.b) % layers.size()];
    const std::int64_t s = place.s % layer.shape[1], h = place.h % layer.shape[2];
    const std::int64_t width = layer.shape[3];
    for (std::size_t t = 0; t < values.size(); ++t)
      values[t] = load(layer.dtype, layer.bytes.data() +
                                        static_cast<std::size_t>((s * layer.shape[2] + h) * width +
                                                                 static_cast<std::int64_t>(t)) *
                                            size_of(layer.dtype));
  }

  const Problem& problem_;
  const formats::Arrays& real_;
};

/// Rounds a row into its place. Of i8 and q8_0, the largest number of a row, or block, becomes 127.
void store_row(const TensorView& tensor, std::int64_t offset, const TensorView& scales,
               std::int64_t scale_offset, const std::vector<double>& values) {
  const std::int64_t stride = tensor.strides[tensor.ndim - 1];
  if (tensor.dtype == DType::q8_0) {
    for (std::size_t n = 0; n * BlockQ8::size < values.size(); ++n) {
      const BlockQ8 block = quantise_block(&values[n * BlockQ8::size]);
      std::memcpy(tensor.at(offset + static_cast<std::int64_t>(n) * stride), &block, sizeof block);
    }
    return;
  }
  double unit = 1;
  if (tensor.dtype == DType::i8) {
    double largest = 0;
    for (const double x : values) largest = std::max(largest, std::abs(x));
    unit = largest == 0 ? 1 : rounded_to(DType::f32, largest / 127);
    store(scales.dtype, scales.at(scale_offset), unit);
  }
  for (std::size_t t = 0; t < values.size(); ++t) {
    const double x = tensor.dtype == DType::i8 ? std::round(values[t] / unit) : values[t];
    store(tensor.dtype, tensor.at(offset + static_cast<std::int64_t>(t) * stride), x);
  }
}

/// Every row that belongs to a sequence, in q, dout, k or v; keys and values that the call is to
/// append, in `fresh`. Rows of padding and unused pages keep the poison: what a kernel must not
/// look at is NaN.
void fill_rows(const Problem& problem, const oracle::Case& place, const Filler& filler,
               Stream stream, const TensorView& tensor, const TensorView& fresh = {},
               const TensorView& scales = {}) {
  const bool of_queries = stream == of_q || stream == of_dout;
  const oracle::Side side = of_queries ? oracle::Side::query : oracle::Side::key;
  const std::int64_t nheads = of_queries ? problem.nheads_q : problem.nheads_k;
  const std::int64_t width = tensor.shape[tensor.ndim - 1] * numbers_in(tensor.dtype);
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    const std::int64_t seqlen = of_queries ? problem.seqlen_q(b) : problem.seqlen_k(b);
    const std::int64_t stored = of_queries ? seqlen : seqlen - problem.seqlen_new;
    oracle::parallel_for(nheads, [&](std::int64_t h) {
      std::vector<double> values(static_cast<std::size_t>(width));
      for (std::int64_t s = 0; s < seqlen; ++s) {
        filler.row(stream, {b, s, h, seqlen, nheads}, values);
        if (s >= stored)
          store_row(fresh,
                    b * fresh.strides[0] + (s - stored) * fresh.strides[1] + h * fresh.strides[2],
                    {}, 0, values);
        else
          store_row(tensor, place.offset(tensor, side, b, s, h), scales,
                    scales.exists() ? place.offset(scales, side, b, s, h) : 0, values);
      }
    });
  }
}

/// A boolean mask that shows seven keys in ten, and now and then hides a whole row.
double mask_element(std::uint64_t seed, std::uint64_t row, std::uint64_t element) {
  if (choice(seed, 32, row) % 23 == 0) return 0;
  return choice(seed, 33, element) % 10 < 7 ? 1 : 0;
}

void fill_broadcast(const Problem& problem, Stream stream, const TensorView& tensor) {
  const std::int64_t row_length = tensor.shape[3];
  for (std::int64_t n = 0; n < tensor.elements(); ++n) {
    const auto element = static_cast<std::uint64_t>(n);
    const auto row = static_cast<std::uint64_t>(n / (row_length == 0 ? 1 : row_length));
    // With one row for all queries, hiding it would leave nothing to compute.
    const double value = stream == of_bias ? normals(problem.seed, of_bias, element)[0]
                         : tensor.shape[2] == 1
                             ? (choice(problem.seed, 33, element) % 10 < 7 ? 1.0 : 0.0)
                             : mask_element(problem.seed, row, element);
    store(tensor.dtype, tensor.at(n), value);
  }
}

/// The lists of a block mask: each block is there with the problem's density, one in four of those
/// in full. Behind the counted entries stands what nobody may use.
void fill_block_mask(const Problem& problem, const BlockMask& mask) {
  const TensorView& shape = mask.kv_indices;
  const auto threshold = static_cast<std::uint64_t>(problem.blocks->density * 0x1p32);
  std::uint64_t element = 0;
  for (std::int64_t b = 0; b < shape.shape[0]; ++b)
    for (std::int64_t h = 0; h < shape.shape[1]; ++h)
      for (std::int64_t row = 0; row < shape.shape[2]; ++row) {
        const std::int64_t at =
            b * shape.strides[0] + h * shape.strides[1] + row * shape.strides[2];
        std::int64_t partial = 0, full = 0;
        for (std::int64_t column = 0; column < shape.shape[3]; ++column, ++element) {
          if (choice(problem.seed, 34, element) >= threshold) continue;
          const bool whole = choice(problem.seed, 35, element) % 4 == 0;
          store(DType::i32,
                (whole ? mask.full_kv_indices : mask.kv_indices)
                    .at(at + (whole ? full++ : partial++)),
                static_cast<double>(column));
        }
        for (std::int64_t n = partial; n < shape.shape[3]; ++n)
          store(DType::i32, mask.kv_indices.at(at + n), -1);
        for (std::int64_t n = full; n < shape.shape[3]; ++n)
          store(DType::i32, mask.full_kv_indices.at(at + n), -1);
        const TensorView& counts = mask.kv_num_blocks;
        const std::int64_t count_at =
            b * counts.strides[0] + h * counts.strides[1] + row * counts.strides[2];
        store(DType::i32, mask.kv_num_blocks.at(count_at), static_cast<double>(partial));
        store(DType::i32, mask.full_kv_num_blocks.at(count_at), static_cast<double>(full));
      }
}

/// $TILEWISE_DATA, or where this was built from.
std::string default_directory() {
  const char* const named = std::getenv("TILEWISE_DATA");
  return named != nullptr && *named != '\0' ? named : TILEWISE_DATA_DIRECTORY;
}

/// Pages in an order that no kernel can guess; entries that no row needs name no page.
void fill_block_table(const Problem& problem, const AttentionTensors& tensors) {
  const TensorView& table = tensors.cache.block_table;
  std::vector<std::int64_t> pages(static_cast<std::size_t>(tensors.k.shape[0]));
  std::iota(pages.begin(), pages.end(), std::int64_t{0});
  for (std::size_t n = pages.size(); n > 1; --n)
    std::swap(pages[n - 1], pages[choice(problem.seed, 37, n) % n]);
  std::size_t next = 0;
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    const std::int64_t used =
        (problem.leftpad + problem.seqlen_k(b) + problem.page - 1) / problem.page;
    for (std::int64_t n = 0; n < table.shape[1]; ++n)
      store(table.dtype, table.at(b * table.strides[0] + n * table.strides[1]),
            n < used ? static_cast<double>(pages[next++]) : -1);
  }
}

/// Where the cache's rows are, before they can be filled.
void fill_cache_lists(const Problem& problem, const AttentionTensors& tensors) {
  const KvCache& cache = tensors.cache;
  if (cache.paged()) fill_block_table(problem, tensors);
  for (std::int64_t b = 0; cache.cache_batch_idx.exists() && b < problem.batch; ++b)
    store(DType::i32, cache.cache_batch_idx.at(b), static_cast<double>(problem.slots - 1 - b));
  for (std::int64_t b = 0; cache.leftpad.exists() && b < problem.batch; ++b)
    store(DType::i32, cache.leftpad.at(b),
          static_cast<double>(choice(problem.seed, 36, static_cast<std::uint64_t>(b)) %
                              static_cast<std::uint64_t>(problem.leftpad + 1)));
}

/// Angles position / 10000^(pair / pairs), as Su et al. choose them (arXiv 2104.09864,
/// section 3.2).
void fill_rotary(const KvCache& cache) {
  const std::int64_t pairs = cache.rotary_cos.shape[1];
  for (std::int64_t position = 0; position < cache.rotary_cos.shape[0]; ++position)
    for (std::int64_t pair = 0; pair < pairs; ++pair) {
      const double angle = static_cast<double>(position) *
                           std::pow(10000, -static_cast<double>(pair) / static_cast<double>(pairs));
      const std::int64_t at = position * pairs + pair;
      store(cache.rotary_cos.dtype, cache.rotary_cos.at(at), std::cos(angle));
      store(cache.rotary_sin.dtype, cache.rotary_sin.at(at), std::sin(angle));
    }
}

/// Factors between 1/2 and 2.
void fill_descale(const Problem& problem, std::uint64_t which, const TensorView& factors) {
  for (std::int64_t n = 0; factors.exists() && n < factors.elements(); ++n) {
    const auto bits = philox(problem.seed, of_choices + which, static_cast<std::uint64_t>(n));
    store(factors.dtype, factors.at(n), std::exp2(2 * unit_interval(bits[0]) - 1));
  }
}

void fill_lengths(const Problem& problem, const AttentionTensors& tensors) {
  const auto put = [](const TensorView& vector, std::int64_t at, std::int64_t value) {
    if (vector.exists()) store(vector.dtype, vector.at(at), static_cast<double>(value));
  };
  std::int64_t sum_q = 0, sum_k = 0;
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    put(tensors.cu_seqlens_q, b, sum_q);
    put(tensors.cu_seqlens_k, b, sum_k);
    put(tensors.seqlens_q, b, problem.seqlen_q(b));
    const TensorView& leftpad = tensors.cache.leftpad;
    const auto padding =
        leftpad.exists() ? static_cast<std::int64_t>(load(leftpad.dtype, leftpad.at(b))) : 0;
    put(tensors.seqlens_k, b, padding + problem.seqlen_k(b) - problem.seqlen_new);
    sum_q += problem.seqlen_q(b);
    sum_k += problem.seqlen_k(b);
  }
  put(tensors.cu_seqlens_q, problem.batch, sum_q);
  put(tensors.cu_seqlens_k, problem.batch, sum_k);
}

}  // namespace

Status fill_inputs(const Problem& problem, const AttentionTensors& tensors,
                   const std::string& data_directory) {
  formats::Arrays real;
  if (problem.fill == Fill::real) {
    const std::string directory = data_directory.empty() ? default_directory() : data_directory;
    auto read = formats::read_arrays(directory + "/minilm.safetensors");
    if (const auto* error = std::get_if<formats::FileError>(&read))
      return failure(Code::io, "fill=real: %s", error->message.c_str());
    real = std::get<formats::Arrays>(std::move(read));
    if (const std::string why = Filler::real_refusal(problem, real); !why.empty())
      return failure(Code::bad_argument, "%s", why.c_str());
  }
  fill_cache_lists(problem, tensors);
  fill_lengths(problem, tensors);
  const Filler filler(problem, real);
  AttentionTensors rows = tensors;
  rows.block_mask = {};  // not filled yet, and no row's place depends on it
  const oracle::Case place(problem, rows);
  fill_rows(problem, place, filler, of_q, tensors.q);
  fill_rows(problem, place, filler, of_k, tensors.k, tensors.cache.k_new, tensors.scales.k_scales);
  fill_rows(problem, place, filler, of_v, tensors.v, tensors.cache.v_new, tensors.scales.v_scales);
  if (tensors.dout.exists()) fill_rows(problem, place, filler, of_dout, tensors.dout);
  if (tensors.cache.rotates()) fill_rotary(tensors.cache);
  fill_descale(problem, 38, tensors.scales.q_descale);
  fill_descale(problem, 39, tensors.scales.k_descale);
  fill_descale(problem, 40, tensors.scales.v_descale);
  if (tensors.bias.exists()) fill_broadcast(problem, of_bias, tensors.bias);
  if (tensors.mask.exists()) fill_broadcast(problem, of_choices, tensors.mask);
  for (std::int64_t h = 0; tensors.sinks.exists() && h < problem.nheads_q; ++h)
    store(tensors.sinks.dtype, tensors.sinks.at(h),
          normals(problem.seed, of_sinks, static_cast<std::uint64_t>(h))[0]);
  if (tensors.block_mask.exists()) fill_block_mask(problem, tensors.block_mask);
  for (std::int64_t h = 0; tensors.alibi_slopes.exists() && h < problem.nheads_q; ++h)
    store(tensors.alibi_slopes.dtype, tensors.alibi_slopes.at(h),
          std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(problem.nheads_q)));
  return {};
}

}  // namespace tilewise::harness
