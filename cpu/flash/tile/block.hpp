// A block: how many registers of queries, and how many numbers are broadcast against them at once.
#pragma once

#include "cpu/flash/tile_kernels.hpp"
#include "cpu/simd.hpp"

#include <cstdint>

namespace tilewise::cpu::flash {
inline namespace TILEWISE_ISA {

// By name: a directive would also bring in what other files of this name space have.
using simd::TILEWISE_ISA::fma;
using simd::TILEWISE_ISA::load;
using simd::TILEWISE_ISA::load_tail;
using simd::TILEWISE_ISA::max;
using simd::TILEWISE_ISA::select;
using simd::TILEWISE_ISA::store;
using simd::TILEWISE_ISA::store_tail;
using simd::TILEWISE_ISA::unroll;
using F = simd::TILEWISE_ISA::Floats;

// [snippet block]
constexpr int L = simd::TILEWISE_ISA::lanes_of<F>;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int V = 4;  // of 32 registers
#else
constexpr int V = 3;  // of 16
#endif
constexpr int R = 4;
constexpr std::int64_t queries = V * L;
// [end block]
constexpr float minus_infinity = -__builtin_inff();

}  // namespace TILEWISE_ISA
}  // namespace tilewise::cpu::flash
