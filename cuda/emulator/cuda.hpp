// The names of CUDA C++ that kernels use, for a compiler that is not nvcc: declaration words,
// indices, barriers, shuffles, votes, atomics, half types, vectors, functions. What a kernel's file
// includes in place of <cuda_runtime.h>, <cuda_fp16.h> and <cuda_bf16.h>; cuda/device/ does so.
//
// CUDA C++ Programming Guide, "C++ Language Extensions". A name that is missing here is missing for
// a reader to see at compile time.
#pragma once

#include "cuda/emulator/emulator.hpp"
#include "cuda/emulator/hopper.hpp"
#include "cuda/emulator/services.hpp"
#include "cuda/emulator/warp_instructions.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

// Compilers call memcpy for a copy of a struct, and kernels may themselves. With the emulator's
// hooks (hooks.cpp), all that is compiled together with a kernel calls those instead.
#if defined(__SANITIZE_THREAD__)
#define TILEWISE_HOOKED 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define TILEWISE_HOOKED 1
#endif
#endif
#if defined(TILEWISE_HOOKED)
asm("memcpy = __tsan_memcpy");
asm("memmove = __tsan_memmove");
asm("memset = __tsan_memset");
#undef TILEWISE_HOOKED
#endif

// The names are CUDA's.
// NOLINTBEGIN(readability-identifier-naming,bugprone-reserved-identifier)

#define __global__ [[maybe_unused]]
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
/// One for each block, since a block stays on one thread of the host.
#define __shared__ static thread_local
#define __constant__ const

#define threadIdx (::tilewise::emulator::thread_index())
#define blockIdx (::tilewise::emulator::block_index())
#define blockDim (::tilewise::emulator::block_size())
#define gridDim (::tilewise::emulator::grid_size())
inline constexpr int warpSize = 32;

using dim3 = ::tilewise::emulator::Dim3;
using TilewiseSite = ::tilewise::emulator::Site;

// ---------------------------------------------------------------------------------------- barriers

inline void __syncthreads(TilewiseSite site = TilewiseSite::current()) {
  ::tilewise::emulator::barrier(0, 0, true, site);
}
inline void __syncwarp(unsigned mask = ~0u, TilewiseSite site = TilewiseSite::current()) {
  ::tilewise::emulator::sync_warp(mask, site);
}
inline void __threadfence(TilewiseSite site = TilewiseSite::current()) {
  ::tilewise::emulator::fence(site);
}
inline void __threadfence_block(TilewiseSite site = TilewiseSite::current()) {
  ::tilewise::emulator::fence(site);
}

// ------------------------------------------------------------------------------ shuffles and votes

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32,
              TilewiseSite site = TilewiseSite::current()) {
  ::tilewise::emulator::shuffle(::tilewise::emulator::Shuffle::index, mask, &value, sizeof(T),
                                static_cast<unsigned>(lane), width, site);
  return value;
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32,
                 TilewiseSite site = TilewiseSite::current()) {
  ::tilewise::emulator::shuffle(::tilewise::emulator::Shuffle::up, mask, &value, sizeof(T), by,
                                width, site);
  return value;
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32,
                   TilewiseSite site = TilewiseSite::current()) {
  ::tilewise::emulator::shuffle(::tilewise::emulator::Shuffle::down, mask, &value, sizeof(T), by,
                                width, site);
  return value;
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32,
                  TilewiseSite site = TilewiseSite::current()) {
  ::tilewise::emulator::shuffle(::tilewise::emulator::Shuffle::exclusive_or, mask, &value,
                                sizeof(T), static_cast<unsigned>(with), width, site);
  return value;
}
inline unsigned __ballot_sync(unsigned mask, int predicate,
                              TilewiseSite site = TilewiseSite::current()) {
  return ::tilewise::emulator::ballot(mask, predicate != 0, site);
}
inline int __any_sync(unsigned mask, int predicate, TilewiseSite site = TilewiseSite::current()) {
  return ::tilewise::emulator::ballot(mask, predicate != 0, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, TilewiseSite site = TilewiseSite::current()) {
  return ::tilewise::emulator::ballot(mask, predicate == 0, site) == 0;
}

// ----------------------------------------------------------------------------------------- atomics

template <class T>
T atomicAdd(T* at, T value, TilewiseSite site = TilewiseSite::current()) {
  return ::tilewise::emulator::change(
      at, value, +[](T a, T b) { return static_cast<T>(a + b); }, site);
}
template <class T>
T atomicMax(T* at, T value, TilewiseSite site = TilewiseSite::current()) {
  return ::tilewise::emulator::change(
      at, value, +[](T a, T b) { return std::max(a, b); }, site);
}
template <class T>
T atomicMin(T* at, T value, TilewiseSite site = TilewiseSite::current()) {
  return ::tilewise::emulator::change(
      at, value, +[](T a, T b) { return std::min(a, b); }, site);
}
template <class T>
T atomicExch(T* at, T value, TilewiseSite site = TilewiseSite::current()) {
  return ::tilewise::emulator::change(
      at, value, +[](T, T b) { return b; }, site);
}
template <class T>
T atomicCAS(T* at, T expected, T value, TilewiseSite site = TilewiseSite::current()) {
  return ::tilewise::emulator::compare_and_swap(at, expected, value, site);
}

// ------------------------------------------------------------------------------------------ halves

struct __half {
  std::uint16_t bits;
  __half() = default;
  explicit __half(float value) : bits(::tilewise::emulator::f16_of_float(value)) {}
  explicit operator float() const { return ::tilewise::emulator::float_of_f16(bits); }
};
struct __nv_bfloat16 {
  std::uint16_t bits;
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float value) : bits(::tilewise::emulator::bf16_of_float(value)) {}
  explicit operator float() const { return ::tilewise::emulator::float_of_bf16(bits); }
};
using half = __half;
struct alignas(4) __half2 {
  __half x, y;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
inline __half __float2half(float value) {
  return __half(value);
}
inline __half __float2half_rn(float value) {
  return __half(value);
}
inline float __half2float(__half value) {
  return static_cast<float>(value);
}
inline __nv_bfloat16 __float2bfloat16(float value) {
  return __nv_bfloat16(value);
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  return __nv_bfloat16(value);
}
inline float __bfloat162float(__nv_bfloat16 value) {
  return static_cast<float>(value);
}
inline __half2 __floats2half2_rn(float x, float y) {
  return {__half(x), __half(y)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__nv_bfloat16(x), __nv_bfloat16(y)};
}

// ----------------------------------------------------------------------------------------- vectors

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) {
  return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}
inline int4 make_int4(int x, int y, int z, int w) {
  return {x, y, z, w};
}
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}

// --------------------------------------------------------------------------------------- functions

// On the GPU these go to the special function unit, with errors of a few units in the last place;
// here they are as exact as the C library's.
inline float __expf(float x) {
  ::tilewise::emulator::count_special_function();
  return std::exp(x);
}
inline float __logf(float x) {
  ::tilewise::emulator::count_special_function();
  return std::log(x);
}
inline float __fdividef(float x, float y) {
  ::tilewise::emulator::count_special_function();
  return x / y;
}
inline float __frcp_rn(float x) {
  return 1.0f / x;
}
inline float __fmaf_rn(float x, float y, float z) {
  return std::fma(x, y, z);
}
inline unsigned __float_as_uint(float x) {
  return std::bit_cast<unsigned>(x);
}
inline float __uint_as_float(unsigned x) {
  return std::bit_cast<float>(x);
}
inline float rsqrtf(float x) {
  ::tilewise::emulator::count_special_function();
  return 1.0f / std::sqrt(x);
}
template <class T>
T __ldg(const T* at) {
  return *at;
}
using std::max;
using std::min;

// NOLINTEND(readability-identifier-naming,bugprone-reserved-identifier)
