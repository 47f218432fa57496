// SIMD for attention kernels: xsimd 8.1 or newer behind the few operations that they need.
//
//   Floats              a register of `lanes` floats
//   load, store         whole registers; load_tail, store_tail the first n < lanes floats
//   fma, max, select    lane by lane; reduce_add, reduce_max across the lanes
//   exp                 to 1e-7 relative
//   exp2_of_nonpositive to 3e-7 relative, faster: what a shipped softmax needs
//   tile_product        C += A B on a tile, every multiplication an fma on registers
//   Buffer              floats aligned for any register
//
// Why not xsimd alone: between 8.1 and 14 it renamed hadd to reduce_add and added reduce_max; 8.1
// has no fused multiply-add on AVX-512 (it multiplies, rounds and adds, unless the compiler
// contracts it); and on processors that it does not know there is no batch at all: then a register
// here is one float.
//
// Code compiled for different instruction sets must not share a symbol, or the linker keeps one of
// two functions and an old processor meets instructions that it does not have. A file that is
// compiled with flags of its own defines TILEWISE_ISA first: the namespace that this goes into.
#pragma once

#include <xsimd/xsimd.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#if defined(__GNUC__)
#define TILEWISE_INLINE inline __attribute__((always_inline))
#define TILEWISE_LAMBDA_INLINE __attribute__((always_inline))
#else
#define TILEWISE_INLINE inline
#define TILEWISE_LAMBDA_INLINE
#endif

#if !defined(TILEWISE_ISA)
#define TILEWISE_ISA native
#endif

namespace tilewise::simd {
inline namespace TILEWISE_ISA {

namespace detail {
template <class Body, int... I>
TILEWISE_INLINE void unroll(Body& body, std::integer_sequence<int, I...>) {
  (body(std::integral_constant<int, I>{}), ...);
}
}  // namespace detail

/// body(0), ..., body(N - 1) written out, the index a compile-time constant. Arrays of registers
/// stay in registers only if every index into them is known.
template <int N, class Body>
TILEWISE_INLINE void unroll(Body&& body) {
  detail::unroll(body, std::make_integer_sequence<int, N>{});
}

#if defined(XSIMD_NO_SUPPORTED_ARCHITECTURE)

/// One lane, for processors without SIMD that xsimd knows.
struct Floats {
  static constexpr std::size_t size = 1;
  float value;

  Floats() = default;
  Floats(float x) : value(x) {}  // NOLINT: a broadcast, as xsimd's is

  friend Floats operator+(Floats a, Floats b) { return a.value + b.value; }
  friend Floats operator-(Floats a, Floats b) { return a.value - b.value; }
  friend Floats operator*(Floats a, Floats b) { return a.value * b.value; }
  friend Floats operator/(Floats a, Floats b) { return a.value / b.value; }
  friend bool operator<(Floats a, Floats b) { return a.value < b.value; }
  friend bool operator==(Floats a, Floats b) { return a.value == b.value; }
};
inline Floats fma(Floats a, Floats b, Floats c) {
  return std::fma(a.value, b.value, c.value);
}
inline Floats max(Floats a, Floats b) {
  return a.value < b.value ? b : a;
}
inline Floats select(bool which, Floats yes, Floats no) {
  return which ? yes : no;
}
inline float reduce_add(Floats x) {
  return x.value;
}
inline float reduce_max(Floats x) {
  return x.value;
}
inline Floats add_lanes(const Floats* x) {
  return *x;
}
inline void interleave(Floats&, Floats&) {}
template <class F>
F load(const float* from) {
  return *from;
}
inline void store(float* to, Floats x) {
  *to = x.value;
}
inline Floats exp(Floats x) {
  return std::exp(x.value);
}
inline Floats exp2_of_nonpositive(Floats x) {
  return x.value < -126 ? 0.0f : std::exp2(x.value);
}

#else

using Floats = xsimd::batch<float>;

template <class Arch>
TILEWISE_INLINE xsimd::batch<float, Arch> fma(const xsimd::batch<float, Arch>& a,
                                              const xsimd::batch<float, Arch>& b,
                                              const xsimd::batch<float, Arch>& c) {
#if defined(__AVX512F__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, Arch>)
    return xsimd::batch<float, Arch>(_mm512_fmadd_ps(a, b, c));
  else
#endif
    return xsimd::fma(a, b, c);
}

template <class Arch>
TILEWISE_INLINE xsimd::batch<float, Arch> max(const xsimd::batch<float, Arch>& a,
                                              const xsimd::batch<float, Arch>& b) {
  return xsimd::max(a, b);
}

template <class Arch>
TILEWISE_INLINE xsimd::batch<float, Arch> select(const xsimd::batch_bool<float, Arch>& which,
                                                 const xsimd::batch<float, Arch>& yes,
                                                 const xsimd::batch<float, Arch>& no) {
  return xsimd::select(which, yes, no);
}

template <class Arch>
TILEWISE_INLINE float reduce_add(const xsimd::batch<float, Arch>& x) {
#if defined(__AVX512F__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, Arch>) return _mm512_reduce_add_ps(x);
#endif
#if XSIMD_VERSION_MAJOR < 9
  return xsimd::hadd(x);
#else
  return xsimd::reduce_add(x);
#endif
}

template <class Arch>
TILEWISE_INLINE float reduce_max(const xsimd::batch<float, Arch>& x) {
#if defined(__AVX512F__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, Arch>) return _mm512_reduce_max_ps(x);
#endif
#if XSIMD_VERSION_MAJOR < 9
  float lane[xsimd::batch<float, Arch>::size];
  x.store_unaligned(lane);
  float most = lane[0];
  for (const float value : lane) most = value > most ? value : most;
  return most;
#else
  return xsimd::reduce_max(x);
#endif
}

/// Lane i: the lanes of x[i] added up, for as many registers as there are lanes, in one order.
template <class Arch>
TILEWISE_INLINE xsimd::batch<float, Arch> add_lanes(const xsimd::batch<float, Arch>* x) {
#if defined(__AVX512DQ__)
  // Not xsimd's: 8.1 gives them out of order on AVX-512. Here 128-bit quarters are folded, of
  // sixteen registers to eight to four; then numbers within quarters.
  if constexpr (std::is_base_of_v<xsimd::avx512f, Arch>) {
    __m512 half[8], quarter[4], fold[2];
    unroll<8>([&](auto i) TILEWISE_LAMBDA_INLINE {
      half[i] = _mm512_add_ps(_mm512_shuffle_f32x4(x[i], x[i + 8], _MM_SHUFFLE(1, 0, 1, 0)),
                              _mm512_shuffle_f32x4(x[i], x[i + 8], _MM_SHUFFLE(3, 2, 3, 2)));
    });
    unroll<4>([&](auto i) TILEWISE_LAMBDA_INLINE {
      quarter[i] =
          _mm512_add_ps(_mm512_shuffle_f32x4(half[i], half[i + 4], _MM_SHUFFLE(2, 0, 2, 0)),
                        _mm512_shuffle_f32x4(half[i], half[i + 4], _MM_SHUFFLE(3, 1, 3, 1)));
    });
    unroll<2>([&](auto i) TILEWISE_LAMBDA_INLINE {
      fold[i] = _mm512_add_ps(_mm512_unpacklo_ps(quarter[2 * i], quarter[2 * i + 1]),
                              _mm512_unpackhi_ps(quarter[2 * i], quarter[2 * i + 1]));
    });
    const __m512 all = _mm512_add_ps(_mm512_shuffle_ps(fold[0], fold[1], _MM_SHUFFLE(1, 0, 1, 0)),
                                     _mm512_shuffle_ps(fold[0], fold[1], _MM_SHUFFLE(3, 2, 3, 2)));
    return xsimd::batch<float, Arch>(_mm512_shuffle_f32x4(all, all, _MM_SHUFFLE(3, 1, 2, 0)));
  } else
#endif
    return xsimd::haddp(x);
}

/// a0 b0 a1 b1 ... of two registers: the first half of it, then the second. (xsimd's zip_lo and
/// zip_hi did this within 128 bits before version 9, and across the register since.)
template <class Arch>
TILEWISE_INLINE void interleave(xsimd::batch<float, Arch>& a, xsimd::batch<float, Arch>& b) {
  using F = xsimd::batch<float, Arch>;
#if defined(__AVX512F__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, Arch>) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    const F first(_mm512_permutex2var_ps(a, low, b));
    b = F(_mm512_permutex2var_ps(a, high, b));
    a = first;
    return;
  }
#endif
#if defined(__AVX__)
  if constexpr (F::size == 8) {
    const __m256 even = _mm256_unpacklo_ps(a, b), odd = _mm256_unpackhi_ps(a, b);
    a = F(_mm256_permute2f128_ps(even, odd, 0x20));
    b = F(_mm256_permute2f128_ps(even, odd, 0x31));
    return;
  }
#endif
  const F first = xsimd::zip_lo(a, b);
  b = xsimd::zip_hi(a, b);
  a = first;
}

template <class F>
TILEWISE_INLINE F load(const float* from) {
  return F::load_unaligned(from);
}

template <class Arch>
TILEWISE_INLINE void store(float* to, const xsimd::batch<float, Arch>& x) {
  x.store_unaligned(to);
}

/// e^x: x = n ln 2 + r with |r| <= ln 2 / 2, and e^r = 1 + r + r^2 q(r), q of degree 4
/// interpolating at the Chebyshev nodes (its own error is 3e-9, the rest is rounding). Results
/// under 2^-125 become 0, those too large infinity; NaN stays NaN. ln 2 in two parts: n times the
/// first is exact (Cody & Waite 1980).
template <class Arch>
TILEWISE_INLINE xsimd::batch<float, Arch> exp(const xsimd::batch<float, Arch>& x) {
  using F = xsimd::batch<float, Arch>;
  const F n = xsimd::nearbyint(x * F(1.44269504f));
  const F r = fma(n, F(2.12194440e-4f), fma(n, F(-0.693359375f), x));
  F q = fma(F(1.39262504e-3f), r, F(8.36323295e-3f));
  q = fma(q, r, F(4.16665524e-2f));
  q = fma(q, r, F(1.66665763e-1f));
  q = fma(q, r, F(0.5f));
  const F mantissa = F(1.0f) + fma(r * r, q, r);
  constexpr float lowest = -86.6f;        // just above ln 2^-125
  constexpr float highest = 88.7228317f;  // e^x beyond is above the largest float
  constexpr float infinity = std::numeric_limits<float>::infinity();
#if defined(__AVX512F__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, Arch>) {
    const __mmask16 nonzero = _mm512_cmp_ps_mask(x, _mm512_set1_ps(lowest), _CMP_NLT_UQ);
    const __m512 y = _mm512_maskz_scalef_ps(nonzero, mantissa, n);
    const __mmask16 large = _mm512_cmp_ps_mask(x, _mm512_set1_ps(highest), _CMP_GT_OQ);
    return F(_mm512_mask_mov_ps(y, large, _mm512_set1_ps(infinity)));
  } else
#endif
  {
    // 2^n as 2^(n-1) times 2, so that n = 128 does not leave the exponent's range too early.
    const F y = xsimd::ldexp(mantissa + mantissa, xsimd::to_int(n - F(1.0f)));
    return select(x < F(lowest), F(0.0f), select(F(highest) < x, F(infinity), y));
  }
}

/// mantissa times 2^n, n in the low bits of `shifted`.
template <class Arch>
TILEWISE_INLINE xsimd::batch<float, Arch> add_to_exponent(
    const xsimd::batch<float, Arch>& mantissa, const xsimd::batch<float, Arch>& shifted) {
#if XSIMD_VERSION_MAJOR < 9 && defined(__ARM_NEON)
  // There its bitwise_cast is a table of functions: no compiler inlines them, and two instruction
  // sets would share them.
  const int32x4_t exponent = vshlq_n_s32(vreinterpretq_s32_f32(shifted), 23);
  return xsimd::batch<float, Arch>(
      vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(mantissa), exponent)));
#elif XSIMD_VERSION_MAJOR < 9
  using Bits = xsimd::batch<std::int32_t, Arch>;
  const Bits bits =
      xsimd::bitwise_cast<Bits>(mantissa) + (xsimd::bitwise_cast<Bits>(shifted) << 23);
  return xsimd::bitwise_cast<xsimd::batch<float, Arch> >(bits);
#else
  return xsimd::bitwise_cast<float>(xsimd::bitwise_cast<std::int32_t>(mantissa) +
                                    (xsimd::bitwise_cast<std::int32_t>(shifted) << 23));
#endif
}

/// 2^x for x <= 0, or a little above, or NaN: x = n + r with |r| <= 1/2, and 2^r by a polynomial of
/// degree 5, (2^r - 1) / r interpolated at the Chebyshev nodes, 2.0e-7 off at most. Results under
/// 2^-126 become 0: a subnormal P would cost more in the products behind than it is worth.
template <class Arch>
TILEWISE_INLINE xsimd::batch<float, Arch> exp2_of_nonpositive(const xsimd::batch<float, Arch>& x) {
  using F = xsimd::batch<float, Arch>;
  const auto power = [](const F& r) TILEWISE_LAMBDA_INLINE {
    F q = fma(F(1.3381302e-3f), r, F(9.6663684e-3f));
    q = fma(q, r, F(5.5503812e-2f));
    q = fma(q, r, F(2.4022350e-1f));
    q = fma(q, r, F(6.9314718e-1f));
    return fma(q, r, F(1.0f));
  };
  constexpr float lowest = -126.0f;
#if defined(__AVX512DQ__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, Arch>) {
    const F r(_mm512_reduce_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    const __mmask16 nonzero = _mm512_cmp_ps_mask(x, _mm512_set1_ps(lowest), _CMP_NLT_UQ);
    return F(_mm512_maskz_scalef_ps(nonzero, power(r), _mm512_sub_ps(x, r)));
  } else
#endif
  {
    // Adding 1.5 2^23 rounds to an integer, which stands in the sum's low bits; shifted to where
    // the exponent is and added to it, it multiplies by 2^n.
    const F magic(12582912.0f);
    const F sum = x + magic;
    const F y = add_to_exponent(power(x - (sum - magic)), sum);
    return select(x < F(lowest), F(0.0f), y);
  }
}

#endif  // XSIMD_NO_SUPPORTED_ARCHITECTURE

template <class F>
inline constexpr int lanes_of = static_cast<int>(F::size);
inline constexpr int lanes = lanes_of<Floats>;

/// The first n floats, `rest` in the other lanes.
template <class F>
TILEWISE_INLINE F load_tail(const float* from, std::int64_t n, float rest = 0) {
  float lane[F::size];
  for (int i = 0; i < lanes_of<F>; ++i) lane[i] = i < n ? from[i] : rest;
  return load<F>(lane);
}

template <class F>
TILEWISE_INLINE void store_tail(float* to, const F& x, std::int64_t n) {
  float lane[F::size];
  store(lane, x);
  for (int i = 0; i < lanes_of<F> && i < n; ++i) to[i] = lane[i];
}

/// A square of registers: x[i][j] becomes x[j][i]. Row i and row i + half are interleaved, and so
/// on: a number's place, row and lane written in binary, is rotated by one bit each time, and after
/// log2(lanes) times row and lane have changed places.
template <class F>
TILEWISE_INLINE void transpose(F (&x)[F::size]) {
  constexpr int L = lanes_of<F>;
  for (int distance = 1; distance < L; distance *= 2) {
    F y[F::size];
    unroll<L / 2>([&](auto i) TILEWISE_LAMBDA_INLINE {
      y[2 * i] = x[i];
      y[2 * i + 1] = x[i + L / 2];
      interleave(y[2 * i], y[2 * i + 1]);
    });
    unroll<L>([&](auto i) TILEWISE_LAMBDA_INLINE { x[i] = y[i]; });
  }
}

/// A matrix whose elements are broadcast one by one: (r, t) at data[r * row + t * step].
struct Broadcast {
  const float* data;
  std::int64_t row, step;
};

/// Whether a product replaces C or is added to it.
enum class Into { replace, add };

// [snippet register_tile]
/// R x V registers of C are loaded once, take n fused multiply-adds each, and are stored once. Per
/// t: V loads of B, R broadcasts of A, R V fmas; with R = V = 4 that is two fmas a load, which is
/// what keeps the multipliers busy.
template <class F, int R, int V, Into into>
TILEWISE_INLINE void register_tile(std::int64_t n, Broadcast a, const float* b, std::int64_t b_row,
                                   float* c, std::int64_t c_row) {
  constexpr int L = lanes_of<F>;
  F sum[R][V];
  unroll<R>([&](auto r) {
    unroll<V>(
        [&](auto v) { sum[r][v] = into == Into::add ? load<F>(c + r * c_row + v * L) : F(0.0f); });
  });
  for (std::int64_t t = 0; t < n; ++t) {
    F bt[V];
    unroll<V>([&](auto v) { bt[v] = load<F>(b + t * b_row + v * L); });
    unroll<R>([&](auto r) {
      const F art(a.data[r * a.row + t * a.step]);
      unroll<V>([&](auto v) { sum[r][v] = fma(art, bt[v], sum[r][v]); });
    });
  }
  unroll<R>([&](auto r) { unroll<V>([&](auto v) { store(c + r * c_row + v * L, sum[r][v]); }); });
}
// [end register_tile]

/// C[r][x] (+)= sum over t < n of A(r, t) B[t][x], for r < rows and x < columns. Rows of B and C
/// are b_row and c_row floats apart; columns is a multiple of `lanes`.
template <Into into, class F = Floats>
inline void tile_product(std::int64_t rows, std::int64_t columns, std::int64_t n, Broadcast a,
                         const float* b, std::int64_t b_row, float* c, std::int64_t c_row) {
  constexpr int R = 4;
  constexpr int V = lanes_of<F> >= 16 ? 4 : 2;  // R V sums, V of B, one of A: 32 or 16 registers
  constexpr int L = lanes_of<F>;
  const auto columns_of = [&](auto height, std::int64_t r) {
    const Broadcast from_r{a.data + r * a.row, a.row, a.step};
    std::int64_t x = 0;
    for (; x + V * L <= columns; x += V * L)
      register_tile<F, height, V, into>(n, from_r, b + x, b_row, c + r * c_row + x, c_row);
    for (; x < columns; x += L)
      register_tile<F, height, 1, into>(n, from_r, b + x, b_row, c + r * c_row + x, c_row);
  };
  std::int64_t r = 0;
  for (; r + R <= rows; r += R) columns_of(std::integral_constant<int, R>{}, r);
  for (; r < rows; ++r) columns_of(std::integral_constant<int, 1>{}, r);
}

/// A vector of floats whose first element lies on a 64-byte boundary: a register-wide load then
/// never crosses a cache line.
class Buffer {
 public:
  explicit Buffer(std::int64_t size) : storage_(static_cast<std::size_t>(size) + 16) {
    const auto address = reinterpret_cast<std::uintptr_t>(storage_.data());
    first_ = (64 - address % 64) % 64 / sizeof(float);
  }
  Buffer(Buffer&&) = default;
  Buffer& operator=(Buffer&&) = default;

  float* data() { return storage_.data() + first_; }
  float& operator[](std::int64_t i) { return data()[i]; }

 private:
  std::vector<float> storage_;
  std::size_t first_ = 0;
};
}  // namespace TILEWISE_ISA
}  // namespace tilewise::simd
