// cpu.portable over caches, quantised keys, rotary embedding and splits, through the C interface.
// Where mathematics says that two calls are the same, they must be to the bit: wherever the rows of
// a sequence lie, whoever computes them, whatever stands beside them.
#include "core/quantised.hpp"
#include "cpu/portable/rows.hpp"
#include "tests/capi_support.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <string_view>
#include <thread>
#include <tuple>
#include <utility>

#if defined(__unix__)
#include <sys/mman.h>
#endif

namespace tilewise::tests {
namespace {

using Lengths = std::vector<std::int32_t>;

// ------------------------------------------------------------------------------------- problems

/// Numbers in [-1, 1) that depend on their place alone, so that every layout can be filled alike.
float number(std::uint64_t tensor, std::int64_t b, std::int64_t s, std::int64_t h, std::int64_t c) {
  std::uint64_t x = tensor;
  for (const std::int64_t index : {b, s, h, c}) {
    x = (x ^ static_cast<std::uint64_t>(index)) * 0x9e3779b97f4a7c15u;
    x ^= x >> 29;
  }
  return static_cast<float>(x >> 40) * 0x1p-23f - 1;
}
enum : std::uint64_t { of_q = 11, of_k = 23, of_v = 37 };

struct Sizes {
  std::int64_t seqlen_q = 3, nheads_q = 4, nheads_k = 2, head_dim = 20, head_dim_v = 12;
};

/// What else a call may have; every invariant below holds with any of it.
struct Feature {
  const char* name;
  void (*set)(World&, const Sizes&);
};

const Feature features[] = {
    {"plain", [](World&, const Sizes&) {}},
    {"causal", [](World& world, const Sizes&) { world.attention.causal = 1; }},
    {"window",
     [](World& world, const Sizes&) {
       world.attention.window_left = 66;
       world.attention.window_right = 1;
     }},
    {"chunk", [](World& world, const Sizes&) { world.attention.attention_chunk = 48; }},
    {"softcap, ALiBi, sinks",
     [](World& world, const Sizes& sizes) {
       world.attention.softcap = 2;
       world.attention.alibi_slopes = world.input(TILEWISE_F32, {sizes.nheads_q});
       world.attention.sinks = world.input(TILEWISE_F32, {sizes.nheads_q});
     }},
    {"three splits, sinks",
     [](World& world, const Sizes& sizes) {
       world.attention.causal = 1;
       world.attention.num_splits = 3;
       world.attention.sinks = world.input(TILEWISE_F32, {sizes.nheads_q});
     }},
    {"dropout, mean of v for empty rows",
     [](World& world, const Sizes&) {
       world.attention.causal = 1;
       world.attention.dropout_p = 0.25;
       world.attention.philox_seed = 7;
       world.attention.empty_row_output = TILEWISE_EMPTY_OUTPUT_MEAN_V;
     }},
};

float* floats(const tilewise_tensor& tensor) {
  return static_cast<float*>(tensor.data);
}
double* doubles(const tilewise_tensor& tensor) {
  return static_cast<double*>(tensor.data);
}

std::int64_t elements_of(const tilewise_tensor& tensor) {
  return std::accumulate(tensor.shape, tensor.shape + tensor.ndim, std::int64_t{1},
                         std::multiplies<>());
}

tilewise_tensor all_nan(World& world, const Shape& shape) {
  const tilewise_tensor tensor = world.input(TILEWISE_F32, shape);
  std::fill_n(floats(tensor), elements_of(tensor), std::numeric_limits<float>::quiet_NaN());
  return tensor;
}

float& at(const tilewise_tensor& tensor, std::int64_t a, std::int64_t b, std::int64_t c,
          std::int64_t d) {
  const std::int64_t* stride = tensor.strides;
  return floats(tensor)[a * stride[0] + b * stride[1] + c * stride[2] + d * stride[3]];
}

/// Queries, outputs and what is the same in all layouts. Rows of q begin at the sequence's own 0.
World queries(std::int64_t batch, const Sizes& sizes, const Feature& feature) {
  World world;
  tilewise_attention& a = world.attention;
  EXPECT_EQ(tilewise_attention_init(&a, nullptr), TILEWISE_OK);
  feature.set(world, sizes);
  a.q = world.input(TILEWISE_F32, {batch, sizes.seqlen_q, sizes.nheads_q, sizes.head_dim});
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::int64_t s = 0; s < sizes.seqlen_q; ++s)
      for (std::int64_t h = 0; h < sizes.nheads_q; ++h)
        for (std::int64_t c = 0; c < sizes.head_dim; ++c)
          at(a.q, b, s, h, c) = number(of_q, b, s, h, c);
  a.o = world.output(TILEWISE_F32, {batch, sizes.seqlen_q, sizes.nheads_q, sizes.head_dim_v});
  a.lse = world.output(TILEWISE_F32, {batch, sizes.nheads_q, sizes.seqlen_q});
  return world;
}

/// Row s of sequence b of k and v, at [block, row] of a tensor.
void fill_row(const Sizes& sizes, const tilewise_tensor& k, const tilewise_tensor& v,
              std::int64_t block, std::int64_t row, std::int64_t b, std::int64_t s) {
  for (std::int64_t h = 0; h < sizes.nheads_k; ++h) {
    for (std::int64_t c = 0; c < sizes.head_dim; ++c)
      at(k, block, row, h, c) = number(of_k, b, s, h, c);
    for (std::int64_t c = 0; c < sizes.head_dim_v; ++c)
      at(v, block, row, h, c) = number(of_v, b, s, h, c);
  }
}

/// Padded tensors with lengths, and no cache: what the others are compared with.
World gathered(const Lengths& lengths, const Sizes& sizes, const Feature& feature) {
  const auto batch = static_cast<std::int64_t>(lengths.size());
  const std::int64_t capacity = *std::max_element(lengths.begin(), lengths.end());
  World world = queries(batch, sizes, feature);
  tilewise_attention& a = world.attention;
  a.k = all_nan(world, {batch, capacity, sizes.nheads_k, sizes.head_dim});
  a.v = all_nan(world, {batch, capacity, sizes.nheads_k, sizes.head_dim_v});
  a.seqlens_k = world.indices({batch}, lengths);
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::int64_t s = 0; s < lengths[b]; ++s) fill_row(sizes, a.k, a.v, b, s, b, s);
  return world;
}

/// How a cache has its rows. Whatever does not count is NaN, and unused table entries name nothing.
struct Layout {
  std::int64_t page_size = 0;  ///< 0: not paged
  bool hnd = false;            ///< pages [nheads, page size, width] in memory
  bool slots = false;          ///< more cache rows than sequences, in another order
  std::int32_t leftpad = 0;    ///< at most
  std::int32_t appended = 0;   ///< of each length: rows that k_new and v_new have
  unsigned seed = 1;           ///< of the order of pages or slots
};

std::string to_text(const Layout& layout) {
  return "page " + std::to_string(layout.page_size) + (layout.hnd ? " HND" : " NHD") +
         (layout.slots ? " slots" : "") + " leftpad " + std::to_string(layout.leftpad) +
         " appended " + std::to_string(layout.appended) + " seed " + std::to_string(layout.seed);
}

/// [blocks, rows, nheads, width], all NaN, perhaps with heads before rows in memory.
tilewise_tensor blocks_of(World& world, bool hnd, std::int64_t blocks, std::int64_t rows,
                          std::int64_t nheads, std::int64_t width) {
  if (!hnd) return all_nan(world, {blocks, rows, nheads, width});
  tilewise_tensor tensor = all_nan(world, {blocks, nheads, rows, width});
  std::swap(tensor.shape[1], tensor.shape[2]);
  std::swap(tensor.strides[1], tensor.strides[2]);
  return tensor;
}

World cached(const Lengths& lengths, const Sizes& sizes, const Feature& feature,
             const Layout& layout) {
  const auto batch = static_cast<std::int64_t>(lengths.size());
  const std::int64_t capacity =
      *std::max_element(lengths.begin(), lengths.end()) + layout.leftpad + 2;
  const bool paged = layout.page_size > 0;
  const std::int64_t rows = paged ? layout.page_size : capacity;
  const std::int64_t pages = paged ? (capacity + rows - 1) / rows : 1;  // of a sequence
  const std::int64_t blocks = batch * pages + (layout.slots || paged ? 2 : 0);
  std::vector<std::int32_t> order(static_cast<std::size_t>(blocks));
  std::iota(order.begin(), order.end(), 0);
  if (paged || layout.slots) std::shuffle(order.begin(), order.end(), std::mt19937(layout.seed));

  World world = queries(batch, sizes, feature);
  tilewise_attention& a = world.attention;
  a.k = blocks_of(world, layout.hnd, blocks, rows, sizes.nheads_k, sizes.head_dim);
  a.v = blocks_of(world, layout.hnd, blocks, rows, sizes.nheads_k, sizes.head_dim_v);
  if (layout.appended > 0) {
    a.k_new = all_nan(world, {batch, layout.appended, sizes.nheads_k, sizes.head_dim});
    a.v_new = all_nan(world, {batch, layout.appended, sizes.nheads_k, sizes.head_dim_v});
  }
  Lengths counted, leftpad, table;
  for (std::int64_t b = 0; b < batch; ++b) {
    leftpad.push_back(
        layout.leftpad == 0 ? 0 : static_cast<std::int32_t>(b * 5 + 3) % (layout.leftpad + 1));
    const std::int32_t stored = lengths[b] - layout.appended;
    counted.push_back(leftpad[b] + stored);
    for (std::int64_t s = 0; s < lengths[b]; ++s) {
      const std::int64_t r = leftpad[b] + s;
      if (s < stored)
        fill_row(sizes, a.k, a.v, order[b * pages + r / rows], r % rows, b, s);
      else
        fill_row(sizes, a.k_new, a.v_new, b, s - stored, b, s);
    }
    for (std::int64_t page = 0; page < pages; ++page) {
      const bool used = page * rows < leftpad[b] + lengths[b] && (page + 1) * rows > leftpad[b];
      table.push_back(used || !paged ? order[b * pages + page] : -77);
    }
  }
  a.seqlens_k = world.indices({batch}, counted);
  if (layout.leftpad > 0) a.cache_leftpad = world.indices({batch}, leftpad);
  if (paged) a.block_table = world.indices({batch, pages}, table);
  if (layout.slots) a.cache_batch_idx = world.indices({batch}, table);
  return world;
}

// ------------------------------------------------------------------------------------- running

void run(const Context& context, World& world, std::int32_t pass = TILEWISE_FORWARD) {
  const Workspace workspace(workspace_bytes(context, world.attention, pass));
  tilewise_error error = TILEWISE_ERROR_INIT;
  ASSERT_EQ(compute(context, world.attention, pass, workspace, error), TILEWISE_OK)
      << error.message;
}

std::string result(World& world) {
  run(serial(), world);
  return world.output_bytes();
}
std::string result(World&& world) {
  return result(world);
}

/// The largest difference between two o, or two lse, relative to 1; infinities must be the same.
double distance(const tilewise_tensor& x, const tilewise_tensor& y) {
  double most = 0;
  const auto value = [](const tilewise_tensor& tensor, std::int64_t i) {
    return tensor.dtype == TILEWISE_F64 ? doubles(tensor)[i]
                                        : static_cast<double>(floats(tensor)[i]);
  };
  for (std::int64_t i = 0; i < elements_of(x); ++i) {
    const double a = value(x, i), b = value(y, i);
    if (a == b) continue;
    const double difference = std::fabs(a - b) / std::fmax(1, std::fabs(b));
    if (!(difference <= most)) most = std::isnan(difference) ? infinity : difference;
  }
  return most;
}

template <class Real>
bool same_bits(const Real* x, const Real* y, std::int64_t count) {
  const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(Real);
  return std::string_view(reinterpret_cast<const char*>(x), bytes) ==
         std::string_view(reinterpret_cast<const char*>(y), bytes);
}

const Lengths some_lengths = {135, 5, 70};
const Lengths with_an_empty_one = {0, 129, 64};

// --------------------------------------------------------------------------------- where rows lie

TEST(PortableCache, IsWhatTheGatheredRowsAre) {
  const Sizes sizes;
  for (const Feature& feature : features)
    for (const Lengths& lengths : {some_lengths, with_an_empty_one}) {
      const std::string expected = result(gathered(lengths, sizes, feature));
      std::vector<Layout> layouts;
      for (const std::int64_t page_size : {0, 1, 3, 16, 64, 256})
        for (const bool hnd : {false, true})
          for (const std::int32_t leftpad : {0, 9})
            layouts.push_back({page_size, hnd, false, leftpad, 0, 1});
      layouts.push_back({16, false, false, 0, 0, 2});  // the same pages in another order
      layouts.push_back({0, false, true, 0, 0, 1});
      layouts.push_back({0, true, true, 9, 0, 2});
      for (const Layout& layout : layouts) {
        SCOPED_TRACE(std::string(feature.name) + ", " + to_text(layout));
        EXPECT_EQ(result(cached(lengths, sizes, feature, layout)), expected);
      }
    }
}

TEST(PortableCache, AppendingThenAttendingIsAttending) {
  const Sizes sizes;
  for (const Feature& feature : features) {
    const std::string expected = result(gathered(some_lengths, sizes, feature));
    for (const Layout& layout :
         {Layout{0, false, false, 0, 5, 1}, Layout{0, true, true, 9, 1, 1},
          Layout{1, false, false, 4, 5, 1}, Layout{3, true, false, 9, 5, 1},
          Layout{16, false, false, 0, 2, 1}, Layout{64, true, false, 9, 5, 1},
          Layout{256, false, false, 4, 5, 1}}) {
      SCOPED_TRACE(std::string(feature.name) + ", " + to_text(layout));
      World world = cached(some_lengths, sizes, feature, layout);
      EXPECT_EQ(result(world), expected);
      // The cache has the new rows, where they belong, and is otherwise as it was.
      Layout before = layout;
      before.appended = 0;
      const World full = cached(some_lengths, sizes, feature, before);
      const tilewise_attention &a = world.attention, &b = full.attention;
      EXPECT_TRUE(same_bits(floats(a.k), floats(b.k), elements_of(b.k)));
      EXPECT_TRUE(same_bits(floats(a.v), floats(b.v), elements_of(b.v)));
    }
  }
}

TEST(PortableCache, AppendsInEveryFloatingFormat) {
  for (const std::int32_t dtype :
       {TILEWISE_F64, TILEWISE_F16, TILEWISE_BF16, TILEWISE_E4M3, TILEWISE_E5M2}) {
    World world;
    tilewise_attention& a = world.attention;
    ASSERT_EQ(tilewise_attention_init(&a, nullptr), TILEWISE_OK);
    const std::int32_t out = dtype == TILEWISE_F64 ? TILEWISE_F64 : TILEWISE_F32;
    a.q = world.input(dtype, {1, 1, 1, 8});
    a.k = world.input(dtype, {1, 4, 1, 8});
    a.v = world.input(dtype, {1, 4, 1, 8});
    a.k_new = world.input(dtype, {1, 2, 1, 8});
    a.v_new = world.input(dtype, {1, 2, 1, 8});
    a.seqlens_k = world.indices({1}, {1});
    a.o = world.output(out, {1, 1, 1, 8});
    const std::size_t bytes = 16 * size_of(dtype);
    for (const tilewise_tensor& rows : {a.k_new, a.v_new}) {
      auto* const byte = static_cast<unsigned char*>(rows.data);
      for (std::size_t i = 0; i < bytes; ++i) byte[i] = static_cast<unsigned char>(i * 5 % 60 + 1);
    }
    run(serial(), world);
    for (const auto& [cache, rows] : {std::pair{a.k, a.k_new}, std::pair{a.v, a.v_new}}) {
      const auto* const begin = static_cast<const unsigned char*>(cache.data) + bytes / 2;
      EXPECT_EQ(std::memcmp(begin, rows.data, bytes), 0) << "dtype " << dtype;
      EXPECT_EQ(std::count(begin + bytes, begin + bytes * 3 / 2, 0),
                static_cast<std::ptrdiff_t>(bytes / 2));
    }
  }
}

TEST(PortableCache, NeighboursInTheBatchDoNotMatter) {
  const Sizes sizes;
  const auto sequence_one = [&](const World& world) {
    const std::int64_t rows = sizes.seqlen_q * sizes.nheads_q;
    const float* const o = floats(world.attention.o) + rows * sizes.head_dim_v;
    const float* const lse = floats(world.attention.lse) + rows;
    std::vector<std::uint32_t> bits;
    for (std::int64_t i = 0; i < rows * sizes.head_dim_v; ++i)
      bits.push_back(std::bit_cast<std::uint32_t>(o[i]));
    for (std::int64_t i = 0; i < rows; ++i) bits.push_back(std::bit_cast<std::uint32_t>(lse[i]));
    return bits;
  };
  for (const Feature& feature : features) {
    SCOPED_TRACE(feature.name);
    const Layout layout{16, false, false, 9, 5, 1};
    World world = cached({135, 90, 70}, sizes, feature, layout);
    run(serial(), world);
    const auto bits = sequence_one(world);
    World other = cached({5, 90, 300}, sizes, feature, {64, true, false, 4, 5, 3});
    for (const std::int64_t b : {0, 2})
      for (std::int64_t s = 0; s < sizes.seqlen_q; ++s)
        at(other.attention.q, b, s, 0, 0) = std::numeric_limits<float>::quiet_NaN();
    run(serial(), other);
    EXPECT_EQ(sequence_one(other), bits);
  }
}

/// Queries packed, keys in pages: each sequence as if it were alone.
TEST(PortableCache, PackedQueriesAreSingles) {
  const Sizes sizes;
  const Lengths lengths_q = {3, 0, 2};
  for (const Feature& feature : features) {
    SCOPED_TRACE(feature.name);
    if (std::string(feature.name).find("dropout") == 0) continue;  // its bits know the batch entry
    World world = cached(some_lengths, sizes, feature, {16, true, false, 9, 2, 1});
    tilewise_attention& a = world.attention;
    const tilewise_tensor q = a.q;
    a.q = world.input(TILEWISE_F32, {5, sizes.nheads_q, sizes.head_dim});
    a.o = world.output(TILEWISE_F32, {5, sizes.nheads_q, sizes.head_dim_v});
    a.lse = world.output(TILEWISE_F32, {sizes.nheads_q, 5});
    a.cu_seqlens_q = world.indices({4}, {0, 3, 3, 5});
    a.max_seqlen_q = 3;
    const std::int64_t row = sizes.nheads_q * sizes.head_dim;
    for (std::int64_t b = 0, i = 0; b < 3; ++b)
      for (std::int64_t s = 0; s < lengths_q[b]; ++s, ++i)
        std::copy_n(&at(q, b, s, 0, 0), row, floats(a.q) + i * row);
    run(serial(), world);
    for (std::int64_t b = 0, i = 0; b < 3; i += lengths_q[b++]) {
      World single = gathered(some_lengths, sizes, feature);
      single.attention.seqlens_q = single.indices({3}, {0, 0, 0});
      set_index(single.attention.seqlens_q, static_cast<int>(b), lengths_q[b]);
      run(serial(), single);
      for (std::int64_t s = 0; s < lengths_q[b]; ++s) {
        const std::int64_t width = sizes.nheads_q * sizes.head_dim_v;
        EXPECT_TRUE(
            same_bits(floats(a.o) + (i + s) * width, &at(single.attention.o, b, s, 0, 0), width))
            << "sequence " << b << ", row " << s;
        for (std::int64_t h = 0; h < sizes.nheads_q; ++h)
          EXPECT_EQ(floats(a.lse)[h * 5 + i + s],
                    floats(single.attention.lse)[(b * sizes.nheads_q + h) * sizes.seqlen_q + s]);
      }
    }
  }
}

/// Keys packed as well, and no cache.
TEST(PortableVarlen, IsSingles) {
  const Sizes sizes;
  const Lengths lengths = {70, 0, 131};
  for (const Feature& feature : features) {
    SCOPED_TRACE(feature.name);
    World expected = gathered(lengths, sizes, feature);
    run(serial(), expected);
    World world = gathered(lengths, sizes, feature);
    tilewise_attention& a = world.attention;
    const tilewise_tensor k = a.k, v = a.v;
    a.seqlens_k = {};
    a.k = world.input(TILEWISE_F32, {201, sizes.nheads_k, sizes.head_dim});
    a.v = world.input(TILEWISE_F32, {201, sizes.nheads_k, sizes.head_dim_v});
    for (std::int64_t b = 0, j = 0; b < 3; j += lengths[b++]) {
      const std::int64_t row = sizes.nheads_k * sizes.head_dim;
      const std::int64_t row_v = sizes.nheads_k * sizes.head_dim_v;
      if (lengths[b] == 0) continue;
      std::copy_n(&at(k, b, 0, 0, 0), lengths[b] * row, floats(a.k) + j * row);
      std::copy_n(&at(v, b, 0, 0, 0), lengths[b] * row_v, floats(a.v) + j * row_v);
    }
    a.cu_seqlens_k = world.indices({4}, {0, 70, 70, 201});
    a.max_seqlen_k = 131;
    EXPECT_EQ(result(world), expected.output_bytes());
  }
}

TEST(PortableCache, GroupedHeadsAreRepeatedHeads) {
  const Sizes grouped;
  Sizes repeated = grouped;
  repeated.nheads_k = grouped.nheads_q;
  for (const Feature& feature : features) {
    SCOPED_TRACE(feature.name);
    const Layout layout{16, false, false, 9, 0, 1};
    const std::string expected = result(cached(some_lengths, grouped, feature, layout));
    World world = cached(some_lengths, repeated, feature, layout);
    const World source = cached(some_lengths, grouped, feature, layout);
    const tilewise_attention &to = world.attention, &from = source.attention;
    for (const auto& [many, few] : {std::pair{to.k, from.k}, std::pair{to.v, from.v}})
      for (std::int64_t page = 0; page < many.shape[0]; ++page)
        for (std::int64_t r = 0; r < many.shape[1]; ++r)
          for (std::int64_t h = 0; h < many.shape[2]; ++h)
            std::copy_n(&at(few, page, r, h / 2, 0), many.shape[3], &at(many, page, r, h, 0));
    EXPECT_EQ(result(world), expected);
  }
}

// --------------------------------------------------------------------------------------- rotary

struct Rotary {
  bool interleaved = true;
  std::int64_t pairs = 4;
  std::int32_t dtype = TILEWISE_F32;

  double angle(std::int64_t position, std::int64_t pair) const {
    return static_cast<double>(position) * std::pow(100.0, -static_cast<double>(pair) / 4);
  }
  double entry(double value) const { return rounded_to(static_cast<DType>(dtype - 1), value); }

  void add_to(World& world, std::int64_t positions) const {
    tilewise_attention& a = world.attention;
    a.rotary_cos = world.input(dtype, {positions, pairs});
    a.rotary_sin = world.input(dtype, {positions, pairs});
    a.rotary_interleaved = interleaved ? 1 : 0;
    for (std::int64_t r = 0; r < positions; ++r)
      for (std::int64_t p = 0; p < pairs; ++p) {
        const auto to = [&](const tilewise_tensor& table) {
          return static_cast<char*>(table.data) +
                 (r * pairs + p) * static_cast<std::int64_t>(tests::size_of(dtype));
        };
        store(static_cast<DType>(dtype - 1), to(a.rotary_cos), std::cos(angle(r, p)));
        store(static_cast<DType>(dtype - 1), to(a.rotary_sin), std::sin(angle(r, p)));
      }
  }

  /// As complex numbers: (x1 + i x2)(cos + i sin).
  void turn(std::int64_t position, double* x) const {
    for (std::int64_t p = 0; p < pairs; ++p) {
      double& x1 = x[interleaved ? p * 2 : p];
      double& x2 = x[interleaved ? p * 2 + 1 : pairs + p];
      const double c = entry(std::cos(angle(position, p))), s = entry(std::sin(angle(position, p)));
      const double y1 = c * x1 - s * x2, y2 = s * x1 + c * x2;
      x1 = y1;
      x2 = y2;
    }
  }
};

/// q, k, v in double, the queries turned to rows `shift[b] + i`, or all to `shift[b]`, and the last
/// `appended` keys to the rows that they are stored in.
World turned_by_hand(const Lengths& lengths, const Sizes& sizes, const Feature& feature,
                     const Rotary& rotary, const Lengths& leftpad, std::int32_t appended,
                     bool ordered) {
  World world = gathered(lengths, sizes, feature);
  tilewise_attention& a = world.attention;
  for (tilewise_tensor* tensor : {&a.q, &a.k, &a.v}) {
    const tilewise_tensor narrow = *tensor;
    *tensor = world.input(TILEWISE_F64, Shape(narrow.shape, narrow.shape + narrow.ndim));
    for (std::int64_t i = 0; i < elements_of(narrow); ++i)
      doubles(*tensor)[i] = static_cast<double>(floats(narrow)[i]);
  }
  world.outputs.clear();
  a.o = world.output(TILEWISE_F64, Shape(a.o.shape, a.o.shape + 4));
  a.lse = world.output(TILEWISE_F64, Shape(a.lse.shape, a.lse.shape + 3));
  const auto row = [](const tilewise_tensor& x, std::int64_t b, std::int64_t s, std::int64_t h) {
    return doubles(x) + b * x.strides[0] + s * x.strides[1] + h * x.strides[2];
  };
  for (std::int64_t b = 0; b < a.q.shape[0]; ++b) {
    const std::int64_t before = lengths[b] - appended;
    for (std::int64_t i = 0; i < sizes.seqlen_q; ++i)
      for (std::int64_t h = 0; h < sizes.nheads_q; ++h)
        rotary.turn(leftpad[b] + before + (ordered ? i : 0), row(a.q, b, i, h));
    for (std::int64_t s = before; s < lengths[b]; ++s)
      for (std::int64_t h = 0; h < sizes.nheads_k; ++h)
        rotary.turn(leftpad[b] + s, row(a.k, b, s, h));
  }
  return world;
}

TEST(PortableRotary, TurnsQueriesAndNewKeys) {
  Sizes sizes;
  sizes.seqlen_q = 5;
  const Lengths lengths = {140, 5, 71};
  for (const Rotary& rotary : {Rotary{true, 4, TILEWISE_F32}, Rotary{false, 4, TILEWISE_F32},
                               Rotary{true, 10, TILEWISE_F32}, Rotary{false, 10, TILEWISE_F32}})
    for (const Layout& layout : {Layout{0, false, false, 0, 5, 1}, Layout{16, true, false, 9, 5, 1},
                                 Layout{3, false, false, 4, 2, 1}, Layout{0, false, true, 9, 0, 1}})
      for (const Feature& feature : features) {
        const std::string name = feature.name;
        SCOPED_TRACE(name + ", " + to_text(layout) + ", pairs " + std::to_string(rotary.pairs) +
                     (rotary.interleaved ? " interleaved" : " halves"));
        const bool ordered = name != "plain" && name.find("softcap") != 0;
        World world = cached(lengths, sizes, feature, layout);
        rotary.add_to(world, 200);
        Lengths leftpad = {0, 0, 0};
        if (layout.leftpad > 0)
          std::copy_n(static_cast<const std::int32_t*>(world.attention.cache_leftpad.data), 3,
                      leftpad.begin());
        run(serial(), world);
        World expected =
            turned_by_hand(lengths, sizes, feature, rotary, leftpad, layout.appended, ordered);
        run(serial(), expected);
        EXPECT_LT(distance(world.attention.o, expected.attention.o), 3e-6);
        EXPECT_LT(distance(world.attention.lse, expected.attention.lse), 3e-6);
        if (layout.page_size > 0 || layout.slots) continue;
        for (std::int64_t b = 0; b < 3; ++b)  // the keys, as they are in the cache now
          for (std::int64_t s = lengths[b] - layout.appended; s < lengths[b]; ++s)
            for (std::int64_t h = 0; h < sizes.nheads_k; ++h)
              for (std::int64_t c = 0; c < sizes.head_dim; ++c) {
                const tilewise_tensor& k = expected.attention.k;
                EXPECT_NEAR(static_cast<double>(at(world.attention.k, b, s, h, c)),
                            doubles(k)[b * k.strides[0] + s * k.strides[1] + h * k.strides[2] + c],
                            3e-7);
              }
      }
}

TEST(PortableRotary, TablesInHalfPrecision) {
  World world;
  tilewise_attention& a = world.attention;
  ASSERT_EQ(tilewise_attention_init(&a, nullptr), TILEWISE_OK);
  const Rotary rotary{true, 4, TILEWISE_F16};
  a.q = world.input(TILEWISE_F16, {1, 1, 1, 8});
  a.k = world.input(TILEWISE_F16, {1, 16, 1, 8});
  a.v = world.input(TILEWISE_F16, {1, 16, 1, 8});
  a.k_new = world.input(TILEWISE_F16, {1, 1, 1, 8});
  a.v_new = world.input(TILEWISE_F16, {1, 1, 1, 8});
  a.seqlens_k = world.indices({1}, {11});
  a.o = world.output(TILEWISE_F16, {1, 1, 1, 8});
  rotary.add_to(world, 16);
  double x[8];
  for (int c = 0; c < 8; ++c) {
    x[c] = rounded_to(DType::f16, static_cast<double>(number(of_k, 0, 0, 0, c)));
    store(DType::f16, static_cast<char*>(a.k_new.data) + c * 2, x[c]);
  }
  rotary.turn(11, x);
  run(serial(), world);
  for (int c = 0; c < 8; ++c) {
    const double stored = load(DType::f16, static_cast<char*>(a.k.data) + (11 * 8 + c) * 2);
    EXPECT_NEAR(stored, x[c], 1e-6 + std::fabs(x[c]) * 0x1p-11);
  }
}

/// Turning both sides by the same angle leaves their products: only distances count.
TEST(PortableRotary, NewKeysAndQueriesKeepTheirDistances) {
  Sizes sizes;
  sizes.seqlen_q = 5;
  const Lengths lengths = {5, 5};
  const Rotary rotary{false, 10, TILEWISE_F32};
  World near = cached(lengths, sizes, features[1], {0, false, false, 0, 5, 1});
  World far = cached(lengths, sizes, features[1], {0, false, false, 20, 5, 1});
  for (World* world : {&near, &far}) {
    rotary.add_to(*world, 64);
    run(serial(), *world);
  }
  EXPECT_LT(distance(near.attention.o, far.attention.o), 3e-6);
  World unturned = cached(lengths, sizes, features[1], {0, false, false, 0, 5, 1});
  run(serial(), unturned);
  EXPECT_GT(distance(near.attention.o, unturned.attention.o), 1e-3);
}

// -------------------------------------------------------------------------------------- threads

/// Threads of the test's own, as a caller's tilewise_parallel_for: tasks backwards.
void backwards(void* pool, std::int32_t max_workers, std::int64_t n, tilewise_task fn, void* arg) {
  ++*static_cast<int*>(pool);
  std::vector<std::thread> threads;
  for (std::int32_t worker = 0; worker < max_workers; ++worker)
    threads.emplace_back([=] {
      for (std::int64_t task = n - 1 - worker; task >= 0; task -= max_workers)
        fn(arg, task, worker);
    });
  for (std::thread& thread : threads) thread.join();
}

std::vector<std::pair<std::string, Context>> every_context(int* calls) {
  std::vector<std::pair<std::string, Context>> contexts;
  contexts.emplace_back("serial", serial());
  for (const std::int32_t threads : {1, 2, 3, 7})
    for (const std::int32_t threading :
         {TILEWISE_THREADING_THREADS, TILEWISE_THREADING_OPENMP, TILEWISE_THREADING_CALLER}) {
      tilewise_context_options options = options_with(threading, threads);
      if (threading == TILEWISE_THREADING_CALLER) {
        options.parallel_for = backwards;
        options.pool = calls;
      }
      tilewise_context* context = nullptr;
      tilewise_error error = TILEWISE_ERROR_INIT;
      const tilewise_status status = tilewise_context_create(&options, &context, &error);
      if (threading == TILEWISE_THREADING_OPENMP && status == TILEWISE_UNSUPPORTED) continue;
      EXPECT_EQ(status, TILEWISE_OK) << error.message;
      contexts.emplace_back(std::to_string(threads) + " of kind " + std::to_string(threading),
                            Context(context));
    }
  return contexts;
}

TEST(PortableThreads, ResultsDoNotDependOnThem) {
  Sizes sizes;
  sizes.seqlen_q = 70;
  const Lengths lengths = {200, 75, 130};
  const Rotary rotary;
  int calls = 0;
  const auto contexts = every_context(&calls);
  for (const Feature& feature : features)
    for (const std::int32_t splits : {0, 2, 5}) {
      std::string expected, keys;
      for (const auto& [name, context] : contexts) {
        SCOPED_TRACE(std::string(feature.name) + ", " + std::to_string(splits) + " splits, " +
                     name);
        World world = cached(lengths, sizes, feature, {16, true, false, 9, 70, 1});
        rotary.add_to(world, 220);
        if (splits != 0) world.attention.num_splits = splits;
        run(context, world);
        if (expected.empty()) {
          expected = world.output_bytes();
          keys = world.input_bytes();
        }
        EXPECT_EQ(world.output_bytes(), expected);
        EXPECT_EQ(world.input_bytes(), keys);  // the cache among them
      }
    }
  EXPECT_GT(calls, 0);
}

// --------------------------------------------------------------------------------------- splits

TEST(PortableSplits, AreTheWholeWithinRounding) {
  Sizes sizes;
  sizes.seqlen_q = 66;
  const Lengths lengths = {700, 0, 65};
  for (const Feature& feature : features) {
    World whole = gathered(lengths, sizes, feature);
    whole.attention.num_splits = 1;
    run(serial(), whole);
    for (const std::int32_t splits :
         {2, 3, 4, 11, 1000, std::numeric_limits<std::int32_t>::max()}) {
      SCOPED_TRACE(std::string(feature.name) + ", " + std::to_string(splits));
      World split = gathered(lengths, sizes, feature);
      split.attention.num_splits = splits;
      run(serial(), split);
      EXPECT_LT(distance(split.attention.o, whole.attention.o), 1e-6);
      EXPECT_LT(distance(split.attention.lse, whole.attention.lse), 1e-6);
    }
  }
}

/// Computed part by part, the sink in the first of them alone, and merged by tilewise_merge_states.
TEST(PortableSplits, AreMergedStates) {
  Sizes sizes;
  sizes.seqlen_q = 5;
  const std::int64_t length = 640 - 7;
  constexpr std::int64_t tile = 64, tiles = 10;
  const Feature& sinks = features[4];
  for (const std::int32_t splits : {2, 3, 4, 10, 20}) {
    SCOPED_TRACE(splits);
    World split = gathered({static_cast<std::int32_t>(length)}, sizes, sinks);
    split.attention.alibi_slopes = {};  // positions count from a part's first key
    split.attention.num_splits = splits;
    run(serial(), split);
    const std::int64_t run_length = (tiles + splits - 1) / splits * tile;
    std::vector<World> parts;
    std::vector<tilewise_tensor> o, lse;
    for (std::int64_t first = 0; first < length; first += run_length) {
      parts.push_back(gathered({static_cast<std::int32_t>(length)}, sizes, sinks));
      tilewise_attention& a = parts.back().attention;
      a.alibi_slopes = a.seqlens_k = {};
      if (first > 0) a.sinks = {};
      for (tilewise_tensor* tensor : {&a.k, &a.v}) {
        tensor->data = &at(*tensor, 0, first, 0, 0);
        tensor->shape[1] = std::min(run_length, length - first);
      }
      run(serial(), parts.back());
      o.push_back(a.o);
      lse.push_back(a.lse);
    }
    World merged = queries(1, sizes, features[0]);
    tilewise_error error = TILEWISE_ERROR_INIT;
    ASSERT_EQ(
        tilewise_merge_states(serial().get(), static_cast<std::int64_t>(o.size()), o.data(),
                              lse.data(), &merged.attention.o, &merged.attention.lse,
                              TILEWISE_LSE_BASE_E, TILEWISE_EMPTY_LSE_MINUS_INF, nullptr, &error),
        TILEWISE_OK)
        << error.message;
    EXPECT_LT(distance(split.attention.o, merged.attention.o), 1e-6);
    EXPECT_LT(distance(split.attention.lse, merged.attention.lse), 1e-6);
  }
}

/// A run whose keys a mask hides all, NaN among them, is as if it were not there.
TEST(PortableSplits, RunsThatSeeNothingLeaveNoTrace) {
  const Sizes sizes;
  World world = gathered({640}, sizes, features[0]);
  World alone = gathered({64}, sizes, features[0]);
  tilewise_attention& a = world.attention;
  a.num_splits = alone.attention.num_splits = 5;  // runs of two tiles
  a.mask = world.input(TILEWISE_BOOL, {1, 1, 1, 640});
  auto* const mask = static_cast<unsigned char*>(a.mask.data);
  std::fill_n(mask, 640, static_cast<unsigned char>(0));
  std::fill_n(mask + 256, 64, static_cast<unsigned char>(1));  // the third run alone
  for (std::int64_t s = 0; s < 640; ++s)
    for (std::int64_t h = 0; h < sizes.nheads_k; ++h) {
      for (std::int64_t c = 0; c < sizes.head_dim; ++c) {
        float& x = at(a.k, 0, s, h, c);
        x = mask[s] != 0 ? at(alone.attention.k, 0, s - 256, h, c)
                         : std::numeric_limits<float>::quiet_NaN();
      }
      for (std::int64_t c = 0; c < sizes.head_dim_v; ++c) {
        float& x = at(a.v, 0, s, h, c);
        x = mask[s] != 0 ? at(alone.attention.v, 0, s - 256, h, c)
                         : std::numeric_limits<float>::quiet_NaN();
      }
    }
  EXPECT_EQ(result(world), result(alone));
}

/// NaN that is looked at stays NaN, also where a run has seen nothing but NaN.
TEST(PortableSplits, NanComesThrough) {
  const Sizes sizes;
  for (const std::int32_t splits : {1, 2, 5}) {
    World world = gathered({640}, sizes, features[0]);
    world.attention.num_splits = splits;
    for (std::int64_t s = 128; s < 256; ++s)
      at(world.attention.k, 0, s, 0, 0) = std::numeric_limits<float>::quiet_NaN();
    run(serial(), world);
    for (std::int64_t h = 0; h < sizes.nheads_q; ++h) {
      EXPECT_EQ(std::isnan(at(world.attention.o, 0, 0, h, 0)), h < 2) << splits << " splits";
      EXPECT_EQ(std::isnan(floats(world.attention.lse)[h * sizes.seqlen_q]), h < 2);
    }
  }
}

// ------------------------------------------------------------------------------- stored numbers

/// A tensor of `dtype` with the values of an f32 one, rounded or quantised, and those put back into
/// the f32 one. `scales`: of i8.
tilewise_tensor quantised(World& world, const tilewise_tensor& values, std::int32_t dtype,
                          tilewise_tensor& scales) {
  const auto stored = static_cast<DType>(dtype - 1);
  const std::int64_t width = values.shape[3], per = numbers_in(stored);
  const Shape rows(values.shape, values.shape + 3);
  Shape shape = rows;
  shape.push_back(width / per);
  const tilewise_tensor tensor = world.input(dtype, shape);
  if (stored == DType::i8) scales = world.input(TILEWISE_F32, rows);
  for (std::int64_t row = 0; row < rows[0] * rows[1] * rows[2]; ++row) {
    float* const value = floats(values) + row * width;
    char* const to = static_cast<char*>(tensor.data) +
                     row * shape[3] * static_cast<std::int64_t>(tests::size_of(dtype));
    const bool unused = std::isnan(value[0]);  // NaN has to be in its place here as well
    if (stored == DType::q8_0) {
      for (std::int64_t n = 0; n < shape[3]; ++n) {
        double block[BlockQ8::size];
        for (int x = 0; x < BlockQ8::size; ++x)
          block[x] = static_cast<double>(value[n * BlockQ8::size + x]);
        BlockQ8 codes = quantise_block(block);
        if (unused) codes.scale = F16::nan_bits;
        std::memcpy(to + n * static_cast<std::int64_t>(sizeof codes), &codes, sizeof codes);
        for (int x = 0; x < BlockQ8::size; ++x)
          value[n * BlockQ8::size + x] = static_cast<float>(F16::decode(codes.scale) * codes.x[x]);
      }
      continue;
    }
    const float scale = unused ? value[0] : 0.001f * static_cast<float>(row % 7 + 4);
    if (stored == DType::i8) floats(scales)[row] = scale;
    for (std::int64_t x = 0; x < width; ++x) {
      if (stored == DType::i8) {
        const float ratio = unused ? 1 : std::nearbyint(value[x] / scale);
        const auto code = static_cast<std::int8_t>(std::clamp(ratio, -128.0f, 127.0f));
        to[x] = static_cast<char>(code);
        value[x] = static_cast<float>(code) * scale;
      } else {
        const double number = static_cast<double>(value[x]);
        store(stored, to + x, number);
        value[x] = static_cast<float>(load(stored, to + x));
      }
    }
  }
  return tensor;
}

constexpr std::int32_t small_dtypes[] = {TILEWISE_F32, TILEWISE_E4M3, TILEWISE_E5M2, TILEWISE_I8,
                                         TILEWISE_Q8_0};

/// The numbers' places: contiguous, or each element apart from the next.
tilewise_tensor spread(World& world, const tilewise_tensor& tensor) {
  Shape shape(tensor.shape, tensor.shape + 4);
  shape[3] *= 3;
  tilewise_tensor wide = world.input(tensor.dtype, shape);
  const std::size_t size = tests::size_of(tensor.dtype);
  for (std::int64_t i = 0; i < elements_of(tensor); ++i)
    std::memcpy(static_cast<char*>(wide.data) + static_cast<std::size_t>(i) * 3 * size,
                static_cast<const char*>(tensor.data) + static_cast<std::size_t>(i) * size, size);
  wide.shape[3] = tensor.shape[3];
  wide.strides[3] = 3;
  return wide;
}

TEST(PortableQuantised, KeysAndValuesAreThoseOfTheNumbers) {
  Sizes sizes;
  sizes.head_dim = 96;
  sizes.head_dim_v = 32;
  for (const std::int32_t of_keys : small_dtypes)
    for (const std::int32_t of_values : small_dtypes)
      for (const bool paged : {false, true})
        for (const Feature& feature : {features[0], features[5]}) {
          SCOPED_TRACE(std::to_string(of_keys) + " and " + std::to_string(of_values) +
                       (paged ? ", paged, " : ", ") + feature.name);
          const Layout layout{paged ? 16 : 0, false, !paged, 9, 0, 1};
          World numbers = cached(some_lengths, sizes, feature, layout);
          World codes = cached(some_lengths, sizes, feature, layout);
          tilewise_attention &a = codes.attention, &b = numbers.attention;
          if (of_keys != TILEWISE_F32) a.k = quantised(codes, b.k, of_keys, a.k_scales);
          if (of_values != TILEWISE_F32) a.v = quantised(codes, b.v, of_values, a.v_scales);
          const std::string expected = result(numbers);
          EXPECT_EQ(result(codes), expected);
          codes.clear_outputs();
          a.k = spread(codes, a.k);
          a.v = spread(codes, a.v);
          EXPECT_EQ(result(codes), expected) << "elements apart";
        }
}

/// A descale of each sequence and head, all powers of two, so that no multiplication rounds.
tilewise_tensor descale(World& world, std::int64_t batch, std::int64_t nheads_k, int first) {
  const tilewise_tensor tensor = world.input(TILEWISE_F32, {batch, nheads_k});
  for (std::int64_t i = 0; i < batch * nheads_k; ++i)
    floats(tensor)[i] = std::ldexp(1.0f, first + static_cast<int>(i));
  return tensor;
}

/// Multiplies what each sequence and head has by the descale: rows [batch, seqlen, heads, width].
void multiply(const tilewise_tensor& rows, const tilewise_tensor& by) {
  for (std::int64_t b = 0; b < rows.shape[0]; ++b)
    for (std::int64_t s = 0; s < rows.shape[1]; ++s)
      for (std::int64_t h = 0; h < rows.shape[2]; ++h)
        for (std::int64_t c = 0; c < rows.shape[3]; ++c)
          at(rows, b, s, h, c) *= floats(by)[b * by.shape[1] + h / (rows.shape[2] / by.shape[1])];
}

TEST(PortableQuantised, DescalesMultiply) {
  Sizes sizes;
  sizes.head_dim = sizes.head_dim_v = 64;
  for (const std::int32_t dtype : small_dtypes) {
    SCOPED_TRACE(dtype);
    World numbers = gathered(some_lengths, sizes, features[1]);
    World codes = gathered(some_lengths, sizes, features[1]);
    tilewise_attention &a = codes.attention, &b = numbers.attention;
    if (dtype != TILEWISE_F32) {
      a.k = quantised(codes, b.k, dtype, a.k_scales);
      a.v = quantised(codes, b.v, dtype, a.v_scales);
    }
    a.q_descale = descale(codes, 3, 2, -3);
    a.k_descale = descale(codes, 3, 2, -2);
    a.v_descale = descale(codes, 3, 2, 1);
    multiply(b.q, a.q_descale);
    multiply(b.k, a.k_descale);
    multiply(b.v, a.v_descale);
    EXPECT_EQ(result(codes), result(numbers));
  }
}

/// q, k, v all in fp8, with descale: forward, and the gradients of the values.
TEST(PortableQuantised, Fp8ForwardAndBackward) {
  const Sizes sizes;
  for (const std::int32_t dtype : {TILEWISE_E4M3, TILEWISE_E5M2}) {
    SCOPED_TRACE(dtype);
    World numbers = gathered({135, 60, 70}, sizes, features[1]);
    World codes = gathered({135, 60, 70}, sizes, features[1]);
    tilewise_attention &a = codes.attention, &b = numbers.attention;
    tilewise_tensor none{};
    a.q = quantised(codes, b.q, dtype, none);
    a.k = quantised(codes, b.k, dtype, none);
    a.v = quantised(codes, b.v, dtype, none);
    a.q_descale = descale(codes, 3, 2, -3);
    a.k_descale = descale(codes, 3, 2, -2);
    a.v_descale = descale(codes, 3, 2, 1);
    multiply(b.q, a.q_descale);
    multiply(b.k, a.k_descale);
    multiply(b.v, a.v_descale);
    for (World* world : {&codes, &numbers}) {
      tilewise_attention& c = world->attention;
      c.dout = world->input(TILEWISE_F32, Shape(c.o.shape, c.o.shape + 4));
      for (std::int64_t i = 0; i < elements_of(c.dout); ++i)
        floats(c.dout)[i] = number(5, 0, i, 0, 0);
      c.dq = world->output(TILEWISE_F32, Shape(c.q.shape, c.q.shape + 4));
      c.dk = world->output(TILEWISE_F32, Shape(c.k.shape, c.k.shape + 4));
      c.dv = world->output(TILEWISE_F32, Shape(c.v.shape, c.v.shape + 4));
      run_both(serial(), c);
    }
    EXPECT_EQ(codes.output_bytes(), numbers.output_bytes());
  }
}

template <class Code, class Real>
void expect_every_code(DType dtype) {
  constexpr std::size_t count = std::size_t{1} << (8 * sizeof(Code));
  std::vector<Code> codes(count * 2);
  for (const std::int64_t stride : {1, 2}) {
    for (std::size_t i = 0; i < count; ++i) codes[i * stride] = static_cast<Code>(i);
    std::vector<Real> numbers(count);
    const TensorView view = contiguous(codes.data(), dtype, count * 2);
    cpu::portable::read_numbers(view, 0, stride, static_cast<std::int64_t>(count), numbers.data());
    int wrong = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const auto expected = static_cast<Real>(load(dtype, &codes[i * stride]));
      wrong += !same_bits(&expected, &numbers[i], 1);
    }
    EXPECT_EQ(wrong, 0) << name_of(dtype) << ", stride " << stride;
  }
}

/// NaN, infinities, zeros of both signs and subnormal numbers among them.
TEST(PortableFormats, EveryCodeIsReadAsCoreReadsIt) {
  for (const DType dtype : {DType::f16, DType::bf16}) {
    expect_every_code<std::uint16_t, float>(dtype);
    expect_every_code<std::uint16_t, double>(dtype);
  }
  for (const DType dtype : {DType::e4m3, DType::e5m2, DType::i8}) {
    expect_every_code<std::uint8_t, float>(dtype);
    expect_every_code<std::uint8_t, double>(dtype);
  }
}

TEST(PortableFormats, BlocksAreReadAsCoreReadsThem) {
  std::vector<BlockQ8> blocks(1 << 16);
  for (std::size_t i = 0; i < blocks.size(); ++i) {  // every scale, NaN and infinity included
    blocks[i].scale = static_cast<std::uint16_t>(i);
    for (std::size_t x = 0; x < 32; ++x)
      blocks[i].x[x] = static_cast<std::int8_t>((i * 7 + x * 8) % 256 - 128);
  }
  const TensorView view = contiguous(blocks.data(), DType::q8_0, blocks.size());
  for (const std::int64_t stride : {1, 3}) {
    const auto n = static_cast<std::int64_t>(blocks.size()) / stride * BlockQ8::size;
    std::vector<float> numbers(static_cast<std::size_t>(n));
    cpu::portable::read_numbers(view, 0, stride, n, numbers.data());
    int wrong = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      const auto expected = static_cast<float>(load_number(view, 0, stride, i));
      wrong += !(expected == numbers[i] || (std::isnan(expected) && std::isnan(numbers[i])));
    }
    EXPECT_EQ(wrong, 0) << "stride " << stride;
  }
}

// ---------------------------------------------------------------------------------------- sizes

TEST(PortableWorkspace, KnowsNeitherLengthNorPages) {
  const Sizes sizes;
  for (const std::int32_t splits : {0, 4}) {
    std::vector<std::size_t> bytes;
    for (const Layout& layout : {Layout{}, Layout{16, false, false, 9, 5, 1},
                                 Layout{1, true, false, 0, 5, 1}, Layout{0, false, true, 3, 0, 1}})
      for (const Lengths& lengths : {Lengths{5}, Lengths{5000}}) {
        World world = cached(lengths, sizes, features[1], layout);
        world.attention.num_splits = splits;
        bytes.push_back(workspace_bytes(serial(), world.attention, TILEWISE_FORWARD));
      }
    EXPECT_EQ(std::count(bytes.begin(), bytes.end(), bytes[0]),
              static_cast<std::ptrdiff_t>(bytes.size()));
  }
}

#if defined(__unix__)

/// Address space of which only what is touched takes memory. Null where the system refuses.
class Vast {
 public:
  explicit Vast(std::size_t bytes) : bytes_(bytes) {
    memory_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory_ == MAP_FAILED) memory_ = nullptr;
  }
  ~Vast() {
    if (memory_ != nullptr) munmap(memory_, bytes_);
  }
  Vast(const Vast&) = delete;
  Vast& operator=(const Vast&) = delete;
  char* memory() const { return static_cast<char*>(memory_); }

 private:
  void* memory_;
  std::size_t bytes_;
};

/// The tensors of a call laid out anew, dimension `dim` of each with a stride above 2^31 elements.
class FarApart {
 public:
  /// False if the system refuses the address space.
  bool move(tilewise_tensor& tensor, int dim) {
    constexpr std::int64_t far = (std::int64_t{1} << 31) + 4096;
    const auto bytes = static_cast<std::size_t>((far * tensor.shape[dim] + (1 << 20)) * 4);
    spaces_.push_back(std::make_unique<Vast>(bytes));
    if (spaces_.back()->memory() == nullptr) return false;
    tilewise_tensor moved = tensor;
    moved.data = spaces_.back()->memory();
    std::int64_t stride = 1;
    for (int d = tensor.ndim; d-- > 0;) {
      moved.strides[d] = d == dim ? far : stride;
      if (d != dim) stride *= tensor.shape[d];
    }
    std::int64_t index[TILEWISE_MAX_DIMS] = {};
    for (std::int64_t i = 0; i < elements_of(tensor); ++i) {
      std::int64_t rest = i, from = 0, to = 0;
      for (int d = tensor.ndim; d-- > 0; rest /= tensor.shape[d]) {
        index[d] = rest % tensor.shape[d];
        from += index[d] * tensor.strides[d];
        to += index[d] * moved.strides[d];
      }
      floats(moved)[to] = floats(tensor)[from];
    }
    tensor = moved;
    return true;
  }

 private:
  std::vector<std::unique_ptr<Vast>> spaces_;
};

/// A tensor's elements in order, wherever they lie.
std::vector<std::uint32_t> bits_of(const tilewise_tensor& tensor) {
  std::vector<std::uint32_t> bits;
  for (std::int64_t i = 0; i < elements_of(tensor); ++i) {
    std::int64_t rest = i, from = 0;
    for (int d = tensor.ndim; d-- > 0; rest /= tensor.shape[d])
      from += rest % tensor.shape[d] * tensor.strides[d];
    bits.push_back(std::bit_cast<std::uint32_t>(floats(tensor)[from]));
  }
  return bits;
}

/// dq and so on for a world whose forward pass has them, too.
void add_gradients(World& world) {
  tilewise_attention& a = world.attention;
  a.dout = world.input(TILEWISE_F32, Shape(a.o.shape, a.o.shape + 4));
  a.dq = world.output(TILEWISE_F32, Shape(a.q.shape, a.q.shape + 4));
  a.dk = world.output(TILEWISE_F32, Shape(a.k.shape, a.k.shape + 4));
  a.dv = world.output(TILEWISE_F32, Shape(a.v.shape, a.v.shape + 4));
}

constexpr const char* refused = "the system refuses so much address space";

TEST(PortableOffsets, ElementsBeyondTwoToTheThirtyOne) {
  Sizes sizes;
  sizes.head_dim = 4;
  sizes.head_dim_v = 3;
  sizes.seqlen_q = 2;
  for (int dim = 0; dim < 4; ++dim) {
    SCOPED_TRACE("dimension " + std::to_string(dim));
    World near = gathered({3, 3}, sizes, features[0]), far = gathered({3, 3}, sizes, features[0]);
    for (World* world : {&near, &far}) add_gradients(*world);
    FarApart apart;
    tilewise_attention& a = far.attention;
    for (tilewise_tensor* tensor : {&a.q, &a.k, &a.v, &a.o, &a.dout, &a.dq, &a.dk, &a.dv})
      if (!apart.move(*tensor, dim)) GTEST_SKIP() << refused;
    for (tilewise_tensor* tensor : {&a.lse})
      if (!apart.move(*tensor, dim == 3 ? 2 : dim)) GTEST_SKIP() << refused;
    const tilewise_attention& b = near.attention;
    run_both(serial(), a);
    run_both(serial(), b);
    for (const auto& [there, here] :
         {std::pair{a.o, b.o}, std::pair{a.lse, b.lse}, std::pair{a.dq, b.dq},
          std::pair{a.dk, b.dk}, std::pair{a.dv, b.dv}})
      EXPECT_EQ(bits_of(there), bits_of(here));
  }
}

TEST(PortableOffsets, PagesAndNewRowsBeyondTwoToTheThirtyOne) {
  Sizes sizes;
  sizes.head_dim = 4;
  sizes.head_dim_v = 3;
  for (int dim = 0; dim < 4; ++dim) {
    SCOPED_TRACE("dimension " + std::to_string(dim));
    const Layout layout{2, false, false, 1, 1, 1};
    World near = cached({3, 3}, sizes, features[1], layout);
    World far = cached({3, 3}, sizes, features[1], layout);
    FarApart apart;
    tilewise_attention& a = far.attention;
    for (tilewise_tensor* tensor : {&a.q, &a.k, &a.v, &a.k_new, &a.v_new, &a.o})
      if (!apart.move(*tensor, dim)) GTEST_SKIP() << refused;
    const tilewise_attention& b = near.attention;
    run(serial(), far);
    run(serial(), near);
    for (const auto& [there, here] :
         {std::pair{a.o, b.o}, std::pair{a.k, b.k}, std::pair{a.v, b.v}})
      EXPECT_EQ(bits_of(there), bits_of(here));
  }
}

#endif

}  // namespace
}  // namespace tilewise::tests
