// The vocabulary of core/: number formats (exhaustively where 16 bits or fewer), views, statuses,
// and which keys a row may look at.
#include "core/attention.hpp"
#include "core/dropout.hpp"
#include "core/dtype.hpp"
#include "core/philox.hpp"
#include "core/minifloat.hpp"
#include "core/status.hpp"
#include "core/tensor.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace tilewise {
namespace {

// ------------------------------------------------------------------------------- number formats

// The formats, described a second time and in other words: IEEE 754-2019 table 3.5 (f16), bfloat16
// (float's top half), OFP8 revision 1.0 tables 1 and 2 (E4M3, E5M2).
struct F16Format {
  using Codec = F16;
  static constexpr int exponent_bits = 5, mantissa_bits = 10, bias = 15;
  static constexpr bool has_infinity = true;
  static constexpr double largest = 65504, smallest = 0x1p-24;
  static constexpr DType dtype = DType::f16;
};
struct BF16Format {
  using Codec = BF16;
  static constexpr int exponent_bits = 8, mantissa_bits = 7, bias = 127;
  static constexpr bool has_infinity = true;
  static constexpr double largest = 0x1.fep127, smallest = 0x1p-133;
  static constexpr DType dtype = DType::bf16;
};
struct E4M3Format {
  using Codec = E4M3;
  static constexpr int exponent_bits = 4, mantissa_bits = 3, bias = 7;
  static constexpr bool has_infinity = false;
  static constexpr double largest = 448, smallest = 0x1p-9;
  static constexpr DType dtype = DType::e4m3;
};
struct E5M2Format {
  using Codec = E5M2;
  static constexpr int exponent_bits = 5, mantissa_bits = 2, bias = 15;
  static constexpr bool has_infinity = true;
  static constexpr double largest = 57344, smallest = 0x1p-16;
  static constexpr DType dtype = DType::e5m2;
};

template <class Format>
constexpr std::uint32_t code_count = 1u << (1 + Format::exponent_bits + Format::mantissa_bits);

/// A code's value, worked out from its fields by ldexp.
template <class Format>
double value_of_fields(std::uint32_t code) {
  const int exponent_mask = (1 << Format::exponent_bits) - 1;
  const int mantissa_mask = (1 << Format::mantissa_bits) - 1;
  const int mantissa = static_cast<int>(code) & mantissa_mask;
  const int exponent = static_cast<int>(code >> Format::mantissa_bits) & exponent_mask;
  const bool negative = code >= code_count<Format> / 2;
  double magnitude;
  if (Format::has_infinity && exponent == exponent_mask)
    magnitude = mantissa == 0 ? HUGE_VAL : std::nan("");
  else if (!Format::has_infinity && exponent == exponent_mask && mantissa == mantissa_mask)
    magnitude = std::nan("");
  else if (exponent == 0)
    magnitude = std::ldexp(mantissa, 1 - Format::bias - Format::mantissa_bits);
  else
    magnitude = std::ldexp(mantissa + (1 << Format::mantissa_bits),
                           exponent - Format::bias - Format::mantissa_bits);
  return negative ? -magnitude : magnitude;
}

bool same_value(double a, double b) {
  return (std::isnan(a) && std::isnan(b)) || (a == b && std::signbit(a) == std::signbit(b));
}

template <class Format>
class MinifloatTest : public testing::Test {};
using Formats = testing::Types<F16Format, BF16Format, E4M3Format, E5M2Format>;
TYPED_TEST_SUITE(MinifloatTest, Formats);

TYPED_TEST(MinifloatTest, DecodesEveryCodeAsItsFieldsSay) {
  for (std::uint32_t code = 0; code < code_count<TypeParam>; ++code)
    ASSERT_TRUE(same_value(TypeParam::Codec::decode(code), value_of_fields<TypeParam>(code)))
        << "code " << code << " decodes to " << TypeParam::Codec::decode(code);
}

TYPED_TEST(MinifloatTest, EveryCodeRoundTrips) {
  for (std::uint32_t code = 0; code < code_count<TypeParam>; ++code) {
    const double value = TypeParam::Codec::decode(code);
    const std::uint32_t back = TypeParam::Codec::encode(value);
    if (std::isnan(value))
      ASSERT_TRUE(std::isnan(TypeParam::Codec::decode(back))) << "code " << code;
    else
      ASSERT_EQ(back, code);
  }
}

// Between every two neighbours lies one midpoint: there the even code wins, and the double next to
// the midpoint on either side goes to the neighbour on that side. Above the largest finite code the
// missing neighbour is one step further, where infinity or NaN begins.
TYPED_TEST(MinifloatTest, RoundsToNearestEvenAroundEveryMidpoint) {
  using Codec = typename TypeParam::Codec;
  ASSERT_EQ(Codec::decode(Codec::max_bits), TypeParam::largest);
  for (std::uint32_t lower = 0; lower <= Codec::max_bits; ++lower) {
    const double low = Codec::decode(lower);
    const double high = lower < Codec::max_bits
                            ? Codec::decode(lower + 1)
                            : TypeParam::largest + (low - Codec::decode(lower - 1));
    const double middle = (low + high) / 2;
    const std::uint32_t even = (lower & 1) == 0 ? lower : lower + 1;
    for (const std::uint32_t sign : {0u, Codec::sign_bit}) {
      const double s = sign == 0 ? 1 : -1;
      ASSERT_EQ(Codec::encode(s * middle), sign | even) << "between codes " << lower << " and next";
      ASSERT_EQ(Codec::encode(s * std::nextafter(middle, 0)), sign | lower);
      ASSERT_EQ(Codec::encode(s * std::nextafter(middle, HUGE_VAL)), sign | (lower + 1));
    }
  }
  EXPECT_EQ(Codec::max_bits + 1, TypeParam::has_infinity ? Codec::infinity_bits : Codec::nan_bits);
}

TYPED_TEST(MinifloatTest, EncodesTheExtremes) {
  using Codec = typename TypeParam::Codec;
  const std::uint32_t overflow = TypeParam::has_infinity ? Codec::infinity_bits : Codec::nan_bits;
  const double infinity = std::numeric_limits<double>::infinity();
  for (double value : {infinity, std::numeric_limits<double>::max(), 0x1p129}) {
    EXPECT_EQ(Codec::encode(value), overflow) << value;
    EXPECT_EQ(Codec::encode(-value), Codec::sign_bit | overflow) << value;
  }
  EXPECT_TRUE(std::isnan(Codec::decode(Codec::encode(std::nan("")))));
  for (double value :
       {0.0, std::numeric_limits<double>::denorm_min(), std::numeric_limits<double>::min()}) {
    EXPECT_EQ(Codec::encode(value), 0u) << value;
    EXPECT_EQ(Codec::encode(-value), Codec::sign_bit) << value;
  }
  EXPECT_EQ(Codec::decode(1), TypeParam::smallest);
}

TYPED_TEST(MinifloatTest, TheTableRowAgrees) {
  const DTypeInfo& row = info(TypeParam::dtype);
  EXPECT_EQ(row.size * 8,
            static_cast<std::size_t>(1 + TypeParam::exponent_bits + TypeParam::mantissa_bits));
  EXPECT_EQ(row.significand, TypeParam::mantissa_bits + 1);
  EXPECT_EQ(unit_roundoff(TypeParam::dtype), std::ldexp(1, -TypeParam::mantissa_bits - 1));
  EXPECT_EQ(subnormal_roundoff(TypeParam::dtype), TypeParam::smallest / 2);
}

TYPED_TEST(MinifloatTest, LoadAndStoreGoThroughMemory) {
  using Codec = typename TypeParam::Codec;
  for (double value : {0.0, 1.0, -1.5, TypeParam::largest, TypeParam::smallest, 0.1}) {
    unsigned char bytes[2] = {0, 0};
    store(TypeParam::dtype, bytes, value);
    const std::uint32_t code = static_cast<std::uint32_t>(bytes[0] | (bytes[1] << 8));
    EXPECT_EQ(code, Codec::encode(value)) << value;
    EXPECT_EQ(load(TypeParam::dtype, bytes), Codec::decode(code)) << value;
    EXPECT_EQ(rounded_to(TypeParam::dtype, value), Codec::decode(code)) << value;
  }
}

/// The nearest code to a non-negative x, found by searching all values; ties to the even code.
template <class Format>
class NearestBySearch {
 public:
  NearestBySearch() {
    for (std::uint32_t code = 0; code <= Format::Codec::max_bits; ++code)
      values_.push_back(value_of_fields<Format>(code));
    const std::size_t last = values_.size() - 1;
    values_.push_back(values_[last] + (values_[last] - values_[last - 1]));  // overflow begins
  }
  std::uint32_t operator()(double x) const {
    const auto above = std::lower_bound(values_.begin(), values_.end(), x);
    if (above == values_.end()) return static_cast<std::uint32_t>(values_.size() - 1);
    const auto upper = static_cast<std::uint32_t>(above - values_.begin());
    if (*above == x || upper == 0) return upper;
    const double middle = (values_[upper - 1] + values_[upper]) / 2;
    if (x != middle) return x < middle ? upper - 1 : upper;
    return (upper & 1) == 0 ? upper : upper - 1;
  }

 private:
  std::vector<double> values_;
};

TYPED_TEST(MinifloatTest, EncodesFloatsLikeASearchOfTheNearest) {
  using Codec = typename TypeParam::Codec;
  const NearestBySearch<TypeParam> nearest;
  constexpr std::uint32_t stride = 9973;  // a prime: all low bits take all values
  int checked = 0;
  for (std::uint64_t bits = 0; bits < (1ull << 32); bits += stride) {
    const float value = std::bit_cast<float>(static_cast<std::uint32_t>(bits));
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(Codec::decode(Codec::encode(value)))) << std::hex << bits;
      continue;
    }
    const std::uint32_t sign = std::signbit(value) ? Codec::sign_bit : 0;
    ASSERT_EQ(Codec::encode(value), sign | nearest(std::fabs(value))) << std::hex << bits;
    ++checked;
  }
  EXPECT_GT(checked, 400000);
}

TEST(Minifloat, OverflowThresholdsAreTheKnownOnes) {
  EXPECT_EQ(F16::encode(65519.99), 0x7bffu);
  EXPECT_EQ(F16::encode(65520), 0x7c00u);
  EXPECT_EQ(BF16::encode(static_cast<double>(std::numeric_limits<float>::max())), 0x7f80u);
  EXPECT_EQ(E4M3::encode(464), 0x7eu);  // a tie, and 448 has the even code
  EXPECT_EQ(E4M3::encode(464.001), 0x7fu);
  EXPECT_EQ(E5M2::encode(61439.99), 0x7bu);
  EXPECT_EQ(E5M2::encode(61440), 0x7cu);
}

TEST(Minifloat, Bf16IsTheTopHalfOfAFloat) {
  for (std::uint32_t code = 0; code < 0x10000; ++code)
    ASSERT_TRUE(same_value(BF16::decode(code), std::bit_cast<float>(code << 16))) << code;
  for (std::uint64_t wide = 0; wide < (1ull << 32); wide += 9973) {
    const auto bits = static_cast<std::uint32_t>(wide);
    const float value = std::bit_cast<float>(bits);
    if (std::isnan(value)) continue;
    // Half of the dropped part, a little less if the kept part is even, then drop.
    ASSERT_EQ(BF16::encode(value), (bits + 0x7fff + ((bits >> 16) & 1)) >> 16) << std::hex << bits;
  }
}

// g++ 12 has the type in C++ for x86 alone, though it defines the macro for 64-bit ARM too.
#if defined(__FLT16_MANT_DIG__) && defined(__x86_64__) && \
    (!defined(__clang__) || __clang_major__ >= 15)
TEST(Minifloat, F16IsTheCompilersFloat16) {
  __extension__ using Compilers = _Float16;
  for (std::uint16_t code = 0;; ++code) {
    ASSERT_TRUE(same_value(F16::decode(code), static_cast<double>(std::bit_cast<Compilers>(code))))
        << code;
    if (code == 0xffff) break;
  }
  for (std::uint64_t bits = 0; bits < (1ull << 32); bits += 99991) {
    const float value = std::bit_cast<float>(static_cast<std::uint32_t>(bits));
    if (std::isnan(value)) continue;
    ASSERT_EQ(F16::encode(value), std::bit_cast<std::uint16_t>(static_cast<Compilers>(value)))
        << std::hex << bits;
  }
}
#endif

static_assert(F16::encode(1.0) == 0x3c00 && F16::decode(0x3c00) == 1.0);
static_assert(BF16::encode(-2.0) == 0xc000 && BF16::decode(0xc000) == -2.0);
static_assert(E4M3::encode(448.0) == 0x7e && E4M3::decode(0x7e) == 448.0);
static_assert(E5M2::encode(57344.0) == 0x7b && E5M2::decode(0x7b) == 57344.0);
static_assert(F16::decode(F16::infinity_bits) == std::numeric_limits<double>::infinity());

// ---------------------------------------------------------------------------------------- dtypes

TEST(DTypes, RowsStandWhereTheirEnumeratorPoints) {
  for (std::size_t i = 0; i < std::size(dtype_table); ++i) {
    EXPECT_EQ(static_cast<std::size_t>(dtype_table[i].dtype), i);
    EXPECT_EQ(dtype_from_name(dtype_table[i].name), dtype_table[i].dtype);
  }
  EXPECT_EQ(static_cast<std::size_t>(DType::q8_0) + 1, std::size(dtype_table));
  EXPECT_EQ(dtype_from_name("float"), std::nullopt);
  EXPECT_EQ(dtype_from_name(""), std::nullopt);
}

TEST(DTypes, FloatAndDoubleAreTheMachines) {
  EXPECT_EQ(info(DType::f64).significand, std::numeric_limits<double>::digits);
  EXPECT_EQ(info(DType::f32).significand, std::numeric_limits<float>::digits);
  EXPECT_EQ(subnormal_roundoff(DType::f32), std::numeric_limits<float>::denorm_min() / 2.0);
  EXPECT_EQ(std::ldexp(1, info(DType::f64).smallest_exponent),
            std::numeric_limits<double>::denorm_min());
}

TEST(DTypes, UnitRoundoffs) {
  static_assert(unit_roundoff(DType::f32) == 0x1p-24);
  EXPECT_EQ(unit_roundoff(DType::f64), 0x1p-53);
  EXPECT_EQ(unit_roundoff(DType::f16), 0x1p-11);
  EXPECT_EQ(unit_roundoff(DType::bf16), 0x1p-8);
  EXPECT_EQ(unit_roundoff(DType::e4m3), 0x1p-4);
  EXPECT_EQ(unit_roundoff(DType::e5m2), 0x1p-3);
}

TEST(DTypes, Sizes) {
  const std::pair<DType, std::size_t> expected[] = {
      {DType::f64, 8},  {DType::f32, 4}, {DType::f16, 2}, {DType::bf16, 2},   {DType::e4m3, 1},
      {DType::e5m2, 1}, {DType::i64, 8}, {DType::i32, 4}, {DType::boolean, 1}};
  for (const auto& [dtype, size] : expected) EXPECT_EQ(size_of(dtype), size) << name_of(dtype);
  EXPECT_TRUE(is_floating(DType::e5m2));
  EXPECT_FALSE(is_floating(DType::i32));
  EXPECT_FALSE(is_floating(DType::boolean));
}

TEST(DTypes, LoadAndStoreOfTheWideAndTheIntegers) {
  EXPECT_EQ(rounded_to(DType::f64, 0.1), 0.1);
  EXPECT_EQ(rounded_to(DType::f32, 0.1), static_cast<double>(0.1f));
  EXPECT_EQ(rounded_to(DType::i32, -7), -7);
  EXPECT_EQ(rounded_to(DType::i64, 0x1p52), 0x1p52);
  EXPECT_EQ(rounded_to(DType::boolean, 3), 1);
  EXPECT_EQ(rounded_to(DType::boolean, 0), 0);
}

// ----------------------------------------------------------------------------------------- views

TEST(Tensors, ContiguousAndTransposed) {
  std::array<float, 2 * 3 * 4> data;
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<float>(i);
  const TensorView view = contiguous(data.data(), DType::f32, 2, 3, 4);
  ASSERT_EQ(view.ndim, 3);
  EXPECT_EQ(view.elements(), 24);
  EXPECT_EQ(view.strides[0], 12);
  EXPECT_EQ(view.strides[1], 4);
  EXPECT_EQ(view.strides[2], 1);
  EXPECT_TRUE(view.exists());
  EXPECT_EQ(load(view.dtype, view.at(1 * 12 + 2 * 4 + 3)), 23);

  const TensorView turned = transposed(view, 0, 2);
  EXPECT_EQ(turned.shape[0], 4);
  EXPECT_EQ(turned.shape[1], 3);
  EXPECT_EQ(turned.shape[2], 2);
  for (std::int64_t i = 0; i < 2; ++i)
    for (std::int64_t j = 0; j < 3; ++j)
      for (std::int64_t k = 0; k < 4; ++k)
        EXPECT_EQ(turned.at(k * turned.strides[0] + j * turned.strides[1] + i * turned.strides[2]),
                  view.at(i * view.strides[0] + j * view.strides[1] + k * view.strides[2]));
  const TensorView back = transposed(turned, 2, 0);
  EXPECT_TRUE(std::equal(back.strides, back.strides + 3, view.strides));
}

TEST(Tensors, OffsetsCountElementsNotBytes) {
  std::array<std::uint16_t, 8> data{};
  const TensorView view = contiguous(data.data(), DType::bf16, 8);
  EXPECT_EQ(view.at(3), &data[3]);
}

TEST(Tensors, EmptyOnes) {
  EXPECT_FALSE(TensorView{}.exists());
  float data = 0;
  EXPECT_EQ(contiguous(&data, DType::f32, 3, 0, 5).elements(), 0);
}

// ---------------------------------------------------------------------------------------- status

TEST(Statuses, CarryAReasonOfBoundedLength) {
  EXPECT_TRUE(Status{}.ok());
  const Status short_one =
      failure(Code::bad_argument, "head_dim is %d, expected %s", 0, "1 to 256");
  EXPECT_FALSE(short_one.ok());
  EXPECT_EQ(short_one.code, Code::bad_argument);
  EXPECT_STREQ(short_one.reason, "head_dim is 0, expected 1 to 256");
  const Status cut = failure(Code::io, "%s", std::string(1000, 'x').c_str());
  EXPECT_EQ(std::string(cut.reason), std::string(sizeof cut.reason - 1, 'x'));
  EXPECT_STREQ(name_of(Code::no_memory), "no memory");
}

// ---------------------------------------------------------------------------------- visible keys

/// The mask a person draws: one string a row, '1' where the query may look at the key.
using Picture = std::vector<std::string>;

Picture picture_of(const AttentionParams& params, std::int64_t seqlen_q, std::int64_t seqlen_k) {
  Picture picture;
  for (std::int64_t row = 0; row < seqlen_q; ++row) {
    const KeyRange range = visible_keys(params, row, seqlen_q, seqlen_k);
    EXPECT_LE(0, range.begin);
    EXPECT_LE(range.begin, range.end);
    std::string keys(static_cast<std::size_t>(seqlen_k), '.');
    for (std::int64_t key = range.begin; key < range.end; ++key)
      keys.at(static_cast<std::size_t>(key)) = '1';
    picture.push_back(keys);
  }
  return picture;
}

AttentionParams masked(bool causal, std::int64_t left, std::int64_t right, Alignment alignment,
                       WindowLeft counting = WindowLeft::keys_before) {
  AttentionParams params;
  params.causal = causal;
  params.window_left = left;
  params.window_right = right;
  params.conventions.alignment = alignment;
  params.conventions.window_left = counting;
  return params;
}

constexpr auto bottom_right = Alignment::bottom_right;
constexpr auto top_left = Alignment::top_left;
constexpr auto including_self = WindowLeft::keys_including_self;

TEST(VisibleKeys, WithoutMasksAllAreVisible) {
  for (Alignment alignment : {bottom_right, top_left})
    EXPECT_EQ(picture_of(masked(false, -1, -1, alignment), 2, 3), (Picture{"111", "111"}));
}

TEST(VisibleKeys, CausalSquareIsTheSameInBothAlignments) {
  for (Alignment alignment : {bottom_right, top_left})
    EXPECT_EQ(picture_of(masked(true, -1, -1, alignment), 3, 3), (Picture{"1..", "11.", "111"}));
}

TEST(VisibleKeys, CausalWithMoreKeysThanQueries) {
  EXPECT_EQ(picture_of(masked(true, -1, -1, bottom_right), 3, 5),
            (Picture{"111..", "1111.", "11111"}));
  EXPECT_EQ(picture_of(masked(true, -1, -1, top_left), 3, 5), (Picture{"1....", "11...", "111.."}));
}

TEST(VisibleKeys, CausalWithMoreQueriesThanKeysLeavesEmptyRowsBottomRight) {
  EXPECT_EQ(picture_of(masked(true, -1, -1, bottom_right), 5, 3),
            (Picture{"...", "...", "1..", "11.", "111"}));
  EXPECT_EQ(picture_of(masked(true, -1, -1, top_left), 5, 3),
            (Picture{"1..", "11.", "111", "111", "111"}));
}

TEST(VisibleKeys, OneDecodedQuerySeesEveryKeyBottomRight) {
  EXPECT_EQ(picture_of(masked(true, -1, -1, bottom_right), 1, 4), (Picture{"1111"}));
  EXPECT_EQ(picture_of(masked(true, -1, -1, top_left), 1, 4), (Picture{"1..."}));
}

TEST(VisibleKeys, WindowLeftCountsKeysBeforeOrIncludingSelf) {
  EXPECT_EQ(picture_of(masked(true, 1, -1, bottom_right), 4, 4),
            (Picture{"1...", "11..", ".11.", "..11"}));
  EXPECT_EQ(picture_of(masked(true, 1, -1, bottom_right, including_self), 4, 4),
            (Picture{"1...", ".1..", "..1.", "...1"}));
  EXPECT_EQ(picture_of(masked(true, 2, -1, bottom_right, including_self), 4, 4),
            (Picture{"1...", "11..", ".11.", "..11"}));
}

TEST(VisibleKeys, WindowOfZero) {
  EXPECT_EQ(picture_of(masked(false, 0, 0, bottom_right), 3, 3), (Picture{"1..", ".1.", "..1"}));
  EXPECT_EQ(picture_of(masked(false, 0, 0, bottom_right, including_self), 3, 3),
            (Picture{"...", "...", "..."}));
}

TEST(VisibleKeys, WindowBothSides) {
  EXPECT_EQ(picture_of(masked(false, 1, 2, bottom_right), 5, 5),
            (Picture{"111..", "1111.", ".1111", "..111", "...11"}));
  EXPECT_EQ(picture_of(masked(false, -1, 1, bottom_right), 4, 4),
            (Picture{"11..", "111.", "1111", "1111"}));
  EXPECT_EQ(picture_of(masked(false, 1, -1, bottom_right), 4, 4),
            (Picture{"1111", "1111", ".111", "..11"}));
}

TEST(VisibleKeys, CausalCutsTheRightWindow) {
  EXPECT_EQ(picture_of(masked(true, 1, 2, bottom_right), 4, 4),
            (Picture{"1...", "11..", ".11.", "..11"}));
}

TEST(VisibleKeys, WindowsFollowTheAlignment) {
  EXPECT_EQ(picture_of(masked(false, 1, 1, bottom_right), 2, 5), (Picture{"..111", "...11"}));
  EXPECT_EQ(picture_of(masked(false, 1, 1, top_left), 2, 5), (Picture{"11...", "111.."}));
}

TEST(VisibleKeys, WindowsWithMoreQueriesThanKeys) {
  EXPECT_EQ(picture_of(masked(false, 1, 0, bottom_right), 5, 2),
            (Picture{"..", "..", "..", "1.", "11"}));
  EXPECT_EQ(picture_of(masked(false, 1, 0, top_left), 5, 2),
            (Picture{"1.", "11", ".1", "..", ".."}));
}

TEST(VisibleKeys, NoKeysAtAll) {
  EXPECT_EQ(picture_of(masked(true, 3, 0, bottom_right), 2, 0), (Picture{"", ""}));
  EXPECT_EQ(picture_of(masked(true, 3, 0, top_left), 2, 0), (Picture{"", ""}));
}

// The known answers of Random123 1.14 (kat_vectors): philox4x32 with 10 and with 7 rounds.
TEST(Philox, GivesThePublishedAnswers) {
  using Words = std::array<std::uint32_t, 4>;
  EXPECT_EQ(philox(0, 0, 0), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox(0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
  EXPECT_EQ(philox<7>(0, 0, 0), (Words{0x5f6fb709, 0x0d893f64, 0x4f121f81, 0x4f730a48}));
}

TEST(Dropout, KeepsTheShareThatItsBytesAllow) {
  // A byte is kept up to floor(255 (1 - p)): of 256, one more than that.
  for (const double p : {0.0, 0.17, 0.5, 0.6, 0.9}) {
    const Dropout dropout(p, 7, 0, 2);
    int kept = 0;
    constexpr int n = 256;
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < n; ++j) kept += dropout.keeps(0, 1, i, j);
    const double share = (std::floor(255 * double{1.0f - static_cast<float>(p)}) + 1) / 256;
    EXPECT_NEAR(kept / double{n * n}, share, 5 * std::sqrt(share * (1 - share)) / n) << p;
  }
  EXPECT_EQ(Dropout(0.5, 1, 2, 3).scale(), 2);
}

TEST(Dropout, DependsOnEveryCoordinate) {
  const auto mask = [](std::uint64_t seed, std::uint64_t offset, std::int64_t b, std::int64_t h) {
    std::string bits;
    for (int i = 0; i < 40; ++i)
      for (int j = 0; j < 70; ++j)
        bits += Dropout(0.5, seed, offset, 4).keeps(b, h, i, j) ? '1' : '0';
    return bits;
  };
  std::set<std::string> seen;
  for (const std::uint64_t seed : {1, 2})
    for (const std::uint64_t offset : {0, 1024})
      for (const std::int64_t b : {0, 1})
        for (const std::int64_t h : {0, 3}) seen.insert(mask(seed, offset, b, h));
  EXPECT_EQ(seen.size(), 16u);
}

TEST(DTypes, HaveTheirLargestNumbers) {
  EXPECT_EQ(largest_finite(DType::f16), 65504);
  EXPECT_EQ(largest_finite(DType::bf16), 0x1.fep127);
  EXPECT_EQ(largest_finite(DType::e4m3), 448);
  EXPECT_EQ(largest_finite(DType::e5m2), 57344);
  EXPECT_EQ(largest_finite(DType::f32), double{std::numeric_limits<float>::max()});
}

}  // namespace
}  // namespace tilewise
