#include "oracle/harness/fill.hpp"

#include "core/philox.hpp"
#include "oracle/formats/formats.hpp"
#include "oracle/parallel.hpp"

#include <array>
#include <cmath>
#include <cstdlib>
#include <numbers>
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

/// Every row of one tensor that belongs to a sequence. Rows of padding keep the poison: what a
/// kernel must not look at is NaN.
void fill_rows(const Problem& problem, const Filler& filler, Stream stream,
               const TensorView& tensor) {
  const bool of_queries = stream == of_q || stream == of_dout;
  const std::int64_t nheads = of_queries ? problem.nheads_q : problem.nheads_k;
  const auto seqlen = [&](std::int64_t b) {
    return of_queries ? problem.seqlen_q(b) : problem.seqlen_k(b);
  };
  const bool packed = tensor.ndim == 3;
  const int last = tensor.ndim - 1;
  std::int64_t start = 0;  // first row of the sequence in a packed tensor
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    oracle::parallel_for(nheads, [&](std::int64_t h) {
      std::vector<double> values(static_cast<std::size_t>(tensor.shape[last]));
      for (std::int64_t s = 0; s < seqlen(b); ++s) {
        filler.row(stream, {b, s, h, seqlen(b), nheads}, values);
        const std::int64_t at =
            packed ? (start + s) * tensor.strides[0] + h * tensor.strides[1]
                   : b * tensor.strides[0] + s * tensor.strides[1] + h * tensor.strides[2];
        for (std::size_t t = 0; t < values.size(); ++t)
          store(tensor.dtype, tensor.at(at + static_cast<std::int64_t>(t) * tensor.strides[last]),
                values[t]);
      }
    });
    start += seqlen(b);
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

void fill_lengths(const Problem& problem, const AttentionTensors& tensors) {
  std::int64_t sum_q = 0, sum_k = 0;
  const auto put = [](const TensorView& vector, std::int64_t at, std::int64_t value) {
    if (vector.exists()) store(vector.dtype, vector.at(at), static_cast<double>(value));
  };
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    put(tensors.cu_seqlens_q, b, sum_q);
    put(tensors.cu_seqlens_k, b, sum_k);
    put(tensors.seqlens_q, b, problem.seqlen_q(b));
    put(tensors.seqlens_k, b, problem.seqlen_k(b));
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
  const Filler filler(problem, real);
  fill_rows(problem, filler, of_q, tensors.q);
  fill_rows(problem, filler, of_k, tensors.k);
  fill_rows(problem, filler, of_v, tensors.v);
  if (tensors.dout.exists()) fill_rows(problem, filler, of_dout, tensors.dout);
  if (tensors.bias.exists()) fill_broadcast(problem, of_bias, tensors.bias);
  if (tensors.mask.exists()) fill_broadcast(problem, of_choices, tensors.mask);
  for (std::int64_t h = 0; tensors.sinks.exists() && h < problem.nheads_q; ++h)
    store(tensors.sinks.dtype, tensors.sinks.at(h),
          normals(problem.seed, of_sinks, static_cast<std::uint64_t>(h))[0]);
  if (tensors.block_mask.exists()) fill_block_mask(problem, tensors.block_mask);
  for (std::int64_t h = 0; tensors.alibi_slopes.exists() && h < problem.nheads_q; ++h)
    store(tensors.alibi_slopes.dtype, tensors.alibi_slopes.at(h),
          std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(problem.nheads_q)));
  fill_lengths(problem, tensors);
  return {};
}

}  // namespace tilewise::harness
