// 16-bit floats to floats: by the processor's own instruction where it has one, else by arithmetic
// on bits that a compiler vectorises.
#pragma once

#include "cpu/flash/tile/block.hpp"

#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace tilewise::cpu::flash {
inline namespace TILEWISE_ISA {

TILEWISE_INLINE float float_of_bits(std::uint32_t bits) {
  float number;
  __builtin_memcpy(&number, &bits, sizeof number);
  return number;
}

/// Normal numbers get another exponent bias by a product, which also normalises subnormals: 2^112
/// times what the bits, moved to a float's places, say. Infinity and NaN are put back.
TILEWISE_INLINE float widen_one_f16(std::uint32_t code) {
  const std::uint32_t magnitude = code & 0x7fff, sign = (code & 0x8000) << 16;
  const float finite = float_of_bits(magnitude << 13) * 0x1p112f;
  std::uint32_t bits;
  __builtin_memcpy(&bits, &finite, sizeof bits);
  if (magnitude > 0x7c00)
    bits = 0x7fc00000;
  else if (magnitude == 0x7c00)
    bits = 0x7f800000;
  return float_of_bits(bits | (magnitude > 0x7c00 ? 0 : sign));
}

/// L codes, as a register.
TILEWISE_INLINE F widen_f16_register(const char* codes) {
#if defined(__AVX512F__)
  return F(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes))));
#elif defined(__F16C__)
  return F(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes))));
#elif defined(__aarch64__)
  float16x4_t half;
  __builtin_memcpy(&half, codes, sizeof half);
  return F(vcvt_f32_f16(half));
#else
  float numbers[L];
  for (int i = 0; i < L; ++i) {
    std::uint16_t code;
    __builtin_memcpy(&code, codes + 2 * i, sizeof code);
    numbers[i] = widen_one_f16(code);
  }
  return load<F>(numbers);
#endif
}

TILEWISE_INLINE F widen_bf16_register(const char* codes) {
#if defined(__AVX512F__)
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
  return F(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)));
#elif defined(__AVX2__)
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
  return F(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16)));
#else
  float numbers[L];
  for (int i = 0; i < L; ++i) {
    std::uint16_t code;
    __builtin_memcpy(&code, codes + 2 * i, sizeof code);
    numbers[i] = float_of_bits(static_cast<std::uint32_t>(code) << 16);
  }
  return load<F>(numbers);
#endif
}

}  // namespace TILEWISE_ISA
}  // namespace tilewise::cpu::flash
