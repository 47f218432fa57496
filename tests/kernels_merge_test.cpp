// The CUDA merge under the emulator, against the formula in float64.
#include "cuda/emulator/named_memory.hpp"
#include "cuda/kernels/merge.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace tilewise {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

/// A tensor with memory of its own.
struct Owned {
  std::vector<std::uint8_t> bytes;
  TensorView view;

  explicit Owned(TensorView shape)
      : bytes(static_cast<std::size_t>(shape.elements()) * size_of(shape.dtype)), view(shape) {
    view.data = bytes.data();
  }
  double get(std::int64_t offset) const { return load(view.dtype, view.at(offset)); }
  void set(std::int64_t offset, double value) { store(view.dtype, view.at(offset), value); }
};

struct Shape {
  std::int64_t batch, seqlen, nheads, width;
};

/// Parts of random numbers, and the call that merges them.
struct Merged {
  Shape shape;
  std::vector<Owned> o, lse;
  Owned to_o, to_lse;
  DeviceMerge call;

  /// `dtypes` go round; of parts with odd numbers heads come before rows, and columns are last.
  Merged(const Shape& of, std::int64_t n, const std::vector<DType>& dtypes, DType out)
      : shape(of), to_o(o_shape(of, out, false)), to_lse(lse_shape(of, false)) {
    std::mt19937 random(7);
    std::normal_distribution<double> normal;
    for (std::int64_t i = 0; i < n; ++i) {
      o.emplace_back(o_shape(of, dtypes[static_cast<std::size_t>(i) % dtypes.size()], i % 2 == 1));
      lse.emplace_back(lse_shape(of, i % 2 == 1));
      for (std::int64_t x = 0; x < o.back().view.elements(); ++x) o.back().set(x, normal(random));
      for (std::int64_t x = 0; x < lse.back().view.elements(); ++x)
        lse.back().set(x, 3 * normal(random) + 20);
    }
    call.n = n;
    call.o = to_o.view;
    call.lse = to_lse.view;
    call.o_part = [](const DeviceMerge& self, std::int64_t i) {
      return static_cast<const Owned*>(self.o_parts)[i].view;
    };
    call.lse_part = [](const DeviceMerge& self, std::int64_t i) {
      return static_cast<const Owned*>(self.lse_parts)[i].view;
    };
  }

  static TensorView o_shape(const Shape& of, DType dtype, bool heads_first) {
    if (!heads_first) return contiguous(nullptr, dtype, of.batch, of.seqlen, of.nheads, of.width);
    // [batch, nheads, width, seqlen] in memory: no two columns side by side.
    TensorView view = contiguous(nullptr, dtype, of.batch, of.nheads, of.width, of.seqlen);
    view = transposed(view, 1, 2);  // b, width, h, s
    return transposed(view, 1, 3);  // b, s, h, width
  }
  static TensorView lse_shape(const Shape& of, bool other) {
    if (!other) return contiguous(nullptr, DType::f32, of.batch, of.nheads, of.seqlen);
    return transposed(contiguous(nullptr, DType::f32, of.batch, of.seqlen, of.nheads), 1, 2);
  }

  float& lse_at(std::size_t i, std::int64_t b, std::int64_t h, std::int64_t s) {
    const TensorView& view = lse[i].view;
    return static_cast<float*>(
        view.data)[b * view.strides[0] + h * view.strides[1] + s * view.strides[2]];
  }
  static std::int64_t at(const TensorView& view, std::int64_t b, std::int64_t s, std::int64_t h,
                         std::int64_t c) {
    return b * view.strides[0] + s * view.strides[1] + h * view.strides[2] + c * view.strides[3];
  }

  /// `in_place`: o and lse are also part 0.
  Status run(bool in_place = false) {
    call.o_parts = o.data();
    call.lse_parts = lse.data();
    emulator::NamedMemory memory;
    for (std::size_t i = 0; i < o.size(); ++i) {
      memory.add(("o_parts" + std::to_string(i)).c_str(), o[i].bytes.data(), o[i].bytes.size(),
                 size_of(o[i].view.dtype), true);
      memory.add(("lse_parts" + std::to_string(i)).c_str(), lse[i].bytes.data(),
                 lse[i].bytes.size(), 4, true);
    }
    if (!in_place) {
      memory.add("o", to_o.bytes.data(), to_o.bytes.size(), size_of(to_o.view.dtype), false);
      memory.add("lse", to_lse.bytes.data(), to_lse.bytes.size(), 4, false);
    }
    emulator::Session session;
    const Status status = cuda::emulated::merge(call, {90, 80, 132, 227 * 1024}, nullptr);
    EXPECT_TRUE(session.report().clean()) << session.report().text();
    return status;
  }

  struct Row {
    double lse;
    std::vector<double> o, size;  ///< size: the sum of the magnitudes that o is the sum of
  };
  Row expected(std::int64_t b, std::int64_t h, std::int64_t s) {
    const bool two = call.lse_base == LseBase::two;
    const auto power = [&](double x) { return two ? std::exp2(x) : std::exp(x); };
    double most = -HUGE_VAL, sum = 0;
    for (std::size_t i = 0; i < o.size(); ++i)
      if (const double part = lse_at(i, b, h, s); std::isfinite(part)) most = std::fmax(most, part);
    Row row{0, std::vector<double>(static_cast<std::size_t>(shape.width)),
            std::vector<double>(static_cast<std::size_t>(shape.width))};
    for (std::size_t i = 0; i < o.size(); ++i) {
      const double part = lse_at(i, b, h, s);
      if (!std::isfinite(part)) continue;
      sum += power(part - most);
      for (std::int64_t c = 0; c < shape.width; ++c) {
        const double term = power(part - most) * o[i].get(at(o[i].view, b, s, h, c));
        row.o[static_cast<std::size_t>(c)] += term;
        row.size[static_cast<std::size_t>(c)] += std::fabs(term);
      }
    }
    for (std::vector<double>* each : {&row.o, &row.size})
      for (double& number : *each) number = sum == 0 ? 0 : number / sum;
    row.lse = most + (two ? std::log2(sum) : std::log(sum));
    if (sum == 0) row.lse = call.empty_row_lse == EmptyRowLse::plus_inf ? HUGE_VAL : -HUGE_VAL;
    return row;
  }

  /// Every number, within float32's rounding of it and the output's own.
  void judge(const std::vector<Row>& rows) const {
    const double u = unit_roundoff(DType::f32), u_out = unit_roundoff(to_o.view.dtype);
    std::size_t n = 0;
    for (std::int64_t b = 0; b < shape.batch; ++b)
      for (std::int64_t h = 0; h < shape.nheads; ++h)
        for (std::int64_t s = 0; s < shape.seqlen; ++s) {
          const Row& row = rows[n++];
          for (std::int64_t c = 0; c < shape.width; ++c) {
            const auto column = static_cast<std::size_t>(c);
            const double got = load(call.o.dtype, call.o.at(at(call.o, b, s, h, c)));
            const double bound = 64 * u * row.size[column] +
                                 1.01 * u_out * std::fabs(row.o[column]) +
                                 subnormal_roundoff(call.o.dtype);
            EXPECT_LE(std::fabs(got - row.o[column]), bound)
                << b << " " << h << " " << s << " " << c;
          }
          if (!call.lse.exists()) continue;
          const std::int64_t* const stride = call.lse.strides;
          const double got =
              load(DType::f32, call.lse.at(b * stride[0] + h * stride[1] + s * stride[2]));
          if (std::isinf(row.lse))
            EXPECT_EQ(got, row.lse);
          else
            EXPECT_LE(std::fabs(got - row.lse), 4 * u * (std::fabs(row.lse) + 4));
        }
  }
  std::vector<Row> all_expected() {
    std::vector<Row> rows;
    for (std::int64_t b = 0; b < shape.batch; ++b)
      for (std::int64_t h = 0; h < shape.nheads; ++h)
        for (std::int64_t s = 0; s < shape.seqlen; ++s) rows.push_back(expected(b, h, s));
    return rows;
  }
};

TEST(CudaMerge, IsTheFormula) {
  const std::vector<DType> halves{DType::f16, DType::bf16, DType::f32};
  for (const std::int64_t n : {1, 2, 5, 32})
    for (const DType out : {DType::f32, DType::f16, DType::bf16}) {
      Merged merged({2, 3, 2, n == 5 ? 130 : 40}, n, halves, out);
      const auto rows = merged.all_expected();
      const Status status = merged.run();
      ASSERT_TRUE(status.ok()) << status.reason;
      merged.judge(rows);
    }
}

TEST(CudaMerge, HasBaseTwo) {
  Merged merged({1, 5, 3, 64}, 4, {DType::f16}, DType::f16);
  merged.call.lse_base = LseBase::two;
  const auto rows = merged.all_expected();
  ASSERT_TRUE(merged.run().ok());
  merged.judge(rows);
}

// A part that saw no key counts for nothing, whichever sign its LSE has and whatever is in its o.
TEST(CudaMerge, LeavesOutPartsWithoutKeys) {
  for (const EmptyRowLse empty : {EmptyRowLse::minus_inf, EmptyRowLse::plus_inf}) {
    Merged merged({2, 4, 1, 33}, 3, {DType::f16, DType::f32}, DType::f32);
    merged.call.empty_row_lse = empty;
    for (std::size_t i = 0; i < 3; ++i) merged.lse_at(i, 1, 0, 2) = i == 1 ? infinity : -infinity;
    merged.lse_at(1, 0, 0, 0) = -infinity;
    merged.lse_at(2, 0, 0, 1) = infinity;
    const auto rows = merged.all_expected();
    const auto spoil = [&](std::size_t i, std::int64_t b, std::int64_t s) {
      for (std::int64_t c = 0; c < 33; ++c)
        merged.o[i].set(Merged::at(merged.o[i].view, b, s, 0, c), std::nan(""));
    };
    spoil(1, 0, 0);
    spoil(2, 0, 1);
    spoil(0, 1, 2);
    ASSERT_TRUE(merged.run().ok());
    merged.judge(rows);
  }
}

TEST(CudaMerge, LetsNaNThrough) {
  Merged merged({1, 3, 1, 8}, 2, {DType::f32}, DType::f32);
  merged.lse_at(1, 0, 0, 1) = std::nanf("");
  ASSERT_TRUE(merged.run().ok());
  for (std::int64_t s = 0; s < 3; ++s) {
    for (std::int64_t c = 0; c < 8; ++c)
      EXPECT_EQ(std::isnan(merged.to_o.get(Merged::at(merged.call.o, 0, s, 0, c))), s == 1);
    EXPECT_EQ(std::isnan(merged.to_lse.get(s)), s == 1);
  }
}

TEST(CudaMerge, WorksInPlaceAndWithoutLse) {
  Merged merged({2, 3, 2, 40}, 3, {DType::f32}, DType::f32);
  const auto rows = merged.all_expected();
  merged.call.o = merged.o[0].view;
  merged.call.lse = merged.lse[0].view;
  ASSERT_TRUE(merged.run(true).ok());
  merged.judge(rows);

  Merged without({2, 3, 2, 40}, 3, {DType::f32}, DType::f32);
  without.call.lse = {};
  ASSERT_TRUE(without.run().ok());
  without.judge(rows);
}

TEST(CudaMerge, TakesPackedSequences) {
  Merged merged({1, 5, 2, 64}, 3, {DType::f16}, DType::bf16);
  const auto rows = merged.all_expected();
  const auto drop = [](TensorView& view) {  // the batch, which is one
    --view.ndim;
    for (int dim = 0; dim < view.ndim; ++dim) {
      view.shape[dim] = view.shape[dim + 1];
      view.strides[dim] = view.strides[dim + 1];
    }
  };
  const TensorView o = merged.call.o, lse = merged.call.lse;
  for (std::size_t i = 0; i < 3; ++i) {
    drop(merged.o[i].view);
    drop(merged.lse[i].view);
  }
  drop(merged.call.o);
  drop(merged.call.lse);
  ASSERT_TRUE(merged.run().ok());
  merged.call.o = o;
  merged.call.lse = lse;
  merged.judge(rows);
}

TEST(CudaMerge, DoesNothingWhereThereIsNothing) {
  Merged merged({2, 0, 2, 40}, 2, {DType::f16}, DType::f16);
  EXPECT_TRUE(merged.run().ok());
}

TEST(CudaMerge, RefusesByName) {
  Merged many({1, 1, 1, 8}, 33, {DType::f16}, DType::f16);
  EXPECT_STREQ(many.run().reason, "33 parts; the CUDA merge has 32 at most");
  Merged wide({1, 1, 1, 8}, 2, {DType::f64}, DType::f16);
  EXPECT_STREQ(wide.run().reason,
               "a part of o has dtype f64; the CUDA merge has f16, bf16 and f32");
  Merged fp8({1, 1, 1, 8}, 2, {DType::f16}, DType::e4m3);
  EXPECT_STREQ(fp8.run().reason, "o has dtype e4m3; the CUDA merge has f16, bf16 and f32");
  Merged lse({1, 1, 1, 8}, 2, {DType::f16}, DType::f16);
  lse.call.lse.dtype = DType::f64;
  EXPECT_STREQ(lse.run().reason, "lse has dtype f64; the CUDA merge has f32");
}

}  // namespace
}  // namespace tilewise
