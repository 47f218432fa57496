// wgmma: a warpgroup (four warps) multiplies 64 rows by up to 256 columns on the tensor cores, and
// goes on meanwhile. D = A B + D; B, and A if it likes, lie in shared memory as a descriptor says
// (matrix_descriptor.hpp); D, and A if it likes, in registers (fragment.hpp). PTX ISA,
// "Asynchronous Warpgroup Level Matrix Instructions: wgmma"; sm_90a.
//
//     wgmma_fence();                     registers and shared memory are as written
//     wgmma_shared(s, q, k, false);      any number of them, in order on one accumulator
//     wgmma_commit();                    a group
//     wgmma_wait<0>();                   until at most so many youngest groups are under way
//     wgmma_arrived(s);                  from here on the compiler may read s
//
// Between the first and the wait nobody touches D, and nobody changes a register operand A or what
// lies in shared memory. Neither the language nor the hardware says so when somebody does: the
// emulator does. wgmma_arrived() costs no instruction; without it the compiler, to which the wait
// is some instruction, may have read the accumulators before it.
#pragma once

#include "cuda/device/platform.hpp"
#include "cuda/device/ptx/matrix_descriptor.hpp"

#include <cstdint>
#include <type_traits>

namespace tilewise::device::inline TILEWISE_TARGET {

/// How B lies in shared memory: rows of k (as K does, for Q K^T), or rows of n (as V, for P V).
enum class Major : std::uint8_t { k, n };

/// Before the first wgmma, and after registers of D or A were written.
__device__ __forceinline__ void wgmma_fence([[maybe_unused]] Site site = Site::current()) {
#if TILEWISE_EMULATED
  emulator::wgmma_fence(site);
#else
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

/// What the warpgroup has issued since the last commit is a group.
__device__ __forceinline__ void wgmma_commit([[maybe_unused]] Site site = Site::current()) {
#if TILEWISE_EMULATED
  emulator::wgmma_commit(site);
#else
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

/// Until at most the `Groups` youngest groups are under way.
template <int Groups>
__device__ __forceinline__ void wgmma_wait([[maybe_unused]] Site site = Site::current()) {
#if TILEWISE_EMULATED
  emulator::wgmma_wait(Groups, site);
#else
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Groups) : "memory");
#endif
}

/// For the compiler: these registers get their values here, not before.
template <class T, int Count>
__device__ __forceinline__ void wgmma_arrived([[maybe_unused]] T (&registers)[Count]) {
#if !TILEWISE_EMULATED
  TILEWISE_UNROLL
  for (int n = 0; n < Count; ++n) {
    if constexpr (std::is_same_v<T, float>)
      asm volatile("" : "+f"(registers[n])::"memory");
    else
      asm volatile("" : "+r"(registers[n])::"memory");
  }
#endif
}

#if !TILEWISE_EMULATED
namespace detail {

// Eight registers of an accumulator: their numbers in the instruction's text, and as operands.
#define TILEWISE_D0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define TILEWISE_D1 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define TILEWISE_D2 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define TILEWISE_D3 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define TILEWISE_D4 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define TILEWISE_D5 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define TILEWISE_D6 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define TILEWISE_D7 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define TILEWISE_D8 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define TILEWISE_D9 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define TILEWISE_D10 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define TILEWISE_D11 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define TILEWISE_D12 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define TILEWISE_D13 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define TILEWISE_D14 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define TILEWISE_D15 ", %120, %121, %122, %123, %124, %125, %126, %127"
#define TILEWISE_OPERANDS(n)                                                          \
  "+f"(d[8 * (n)]), "+f"(d[8 * (n) + 1]), "+f"(d[8 * (n) + 2]), "+f"(d[8 * (n) + 3]), \
      "+f"(d[8 * (n) + 4]), "+f"(d[8 * (n) + 5]), "+f"(d[8 * (n) + 6]), "+f"(d[8 * (n) + 7])
#define TILEWISE_O0 TILEWISE_OPERANDS(0)
#define TILEWISE_O1 TILEWISE_O0, TILEWISE_OPERANDS(1)
#define TILEWISE_O2 TILEWISE_O1, TILEWISE_OPERANDS(2)
#define TILEWISE_O3 TILEWISE_O2, TILEWISE_OPERANDS(3)
#define TILEWISE_O4 TILEWISE_O3, TILEWISE_OPERANDS(4)
#define TILEWISE_O5 TILEWISE_O4, TILEWISE_OPERANDS(5)
#define TILEWISE_O6 TILEWISE_O5, TILEWISE_OPERANDS(6)
#define TILEWISE_O7 TILEWISE_O6, TILEWISE_OPERANDS(7)
#define TILEWISE_O8 TILEWISE_O7, TILEWISE_OPERANDS(8)
#define TILEWISE_O9 TILEWISE_O8, TILEWISE_OPERANDS(9)
#define TILEWISE_O10 TILEWISE_O9, TILEWISE_OPERANDS(10)
#define TILEWISE_O11 TILEWISE_O10, TILEWISE_OPERANDS(11)
#define TILEWISE_O12 TILEWISE_O11, TILEWISE_OPERANDS(12)
#define TILEWISE_O13 TILEWISE_O12, TILEWISE_OPERANDS(13)
#define TILEWISE_O14 TILEWISE_O13, TILEWISE_OPERANDS(14)
#define TILEWISE_O15 TILEWISE_O14, TILEWISE_OPERANDS(15)

// All numbers up to there.
#define TILEWISE_T1 TILEWISE_D0 TILEWISE_D1
#define TILEWISE_T2 TILEWISE_T1 TILEWISE_D2
#define TILEWISE_T3 TILEWISE_T2 TILEWISE_D3
#define TILEWISE_T4 TILEWISE_T3 TILEWISE_D4
#define TILEWISE_T5 TILEWISE_T4 TILEWISE_D5
#define TILEWISE_T6 TILEWISE_T5 TILEWISE_D6
#define TILEWISE_T7 TILEWISE_T6 TILEWISE_D7
#define TILEWISE_T8 TILEWISE_T7 TILEWISE_D8
#define TILEWISE_T9 TILEWISE_T8 TILEWISE_D9
#define TILEWISE_T10 TILEWISE_T9 TILEWISE_D10
#define TILEWISE_T11 TILEWISE_T10 TILEWISE_D11
#define TILEWISE_T12 TILEWISE_T11 TILEWISE_D12
#define TILEWISE_T13 TILEWISE_T12 TILEWISE_D13
#define TILEWISE_T14 TILEWISE_T13 TILEWISE_D14
#define TILEWISE_T15 TILEWISE_T14 TILEWISE_D15

// The two instructions for a shape, after as many registers of D (c = N / 2): the descriptors, a
// register that says whether D counts, and how B lies.
#define TILEWISE_WGMMA(N, last, c0, c1, c2, c3, c4, c5, c6)                                     \
  template <class T, Major B>                                                                   \
  __device__ __forceinline__ void wgmma_shared_instruction(float(&d)[(N) / 2], std::uint64_t a, \
                                                           std::uint64_t b, int keep) {         \
    if constexpr (std::is_same_v<T, f16>)                                                       \
      asm volatile(TILEWISE_SHARED_TEXT(N, "f16", last, c0, c1, c2, c3)                         \
                   : TILEWISE_O##last                                                           \
                   : "l"(a), "l"(b), "r"(keep), "n"(B == Major::n ? 1 : 0));                    \
    else                                                                                        \
      asm volatile(TILEWISE_SHARED_TEXT(N, "bf16", last, c0, c1, c2, c3)                        \
                   : TILEWISE_O##last                                                           \
                   : "l"(a), "l"(b), "r"(keep), "n"(B == Major::n ? 1 : 0));                    \
  }                                                                                             \
  template <class T, Major B>                                                                   \
  __device__ __forceinline__ void wgmma_registers_instruction(                                  \
      float(&d)[(N) / 2], const std::uint32_t(&a)[4], std::uint64_t b, int keep) {              \
    if constexpr (std::is_same_v<T, f16>)                                                       \
      asm volatile(TILEWISE_REGISTERS_TEXT(N, "f16", last, c0, c1, c2, c3, c4, c5, c6)          \
                   : TILEWISE_O##last                                                           \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep),             \
                     "n"(B == Major::n ? 1 : 0));                                               \
    else                                                                                        \
      asm volatile(TILEWISE_REGISTERS_TEXT(N, "bf16", last, c0, c1, c2, c3, c4, c5, c6)         \
                   : TILEWISE_O##last                                                           \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep),             \
                     "n"(B == Major::n ? 1 : 0));                                               \
  }
#define TILEWISE_SHARED_TEXT(N, type, last, c0, c1, c2, c3)                             \
  "{\n.reg .pred keep;\nsetp.ne.b32 keep, %" #c2                                        \
  ", 0;\n"                                                                              \
  "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type " {" TILEWISE_T##last \
      "}, %" #c0 ", %" #c1 ", keep, 1, 1, 0, %" #c3 ";\n}"
#define TILEWISE_REGISTERS_TEXT(N, type, last, c0, c1, c2, c3, c4, c5, c6)              \
  "{\n.reg .pred keep;\nsetp.ne.b32 keep, %" #c5                                        \
  ", 0;\n"                                                                              \
  "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type " {" TILEWISE_T##last \
      "}, {%" #c0 ", %" #c1 ", %" #c2 ", %" #c3 "}, %" #c4 ", keep, 1, 1, %" #c6 ";\n}"

TILEWISE_WGMMA(64, 3, 32, 33, 34, 35, 36, 37, 38)
TILEWISE_WGMMA(80, 4, 40, 41, 42, 43, 44, 45, 46)
TILEWISE_WGMMA(96, 5, 48, 49, 50, 51, 52, 53, 54)
TILEWISE_WGMMA(112, 6, 56, 57, 58, 59, 60, 61, 62)
TILEWISE_WGMMA(128, 7, 64, 65, 66, 67, 68, 69, 70)
TILEWISE_WGMMA(160, 9, 80, 81, 82, 83, 84, 85, 86)
TILEWISE_WGMMA(176, 10, 88, 89, 90, 91, 92, 93, 94)
TILEWISE_WGMMA(192, 11, 96, 97, 98, 99, 100, 101, 102)
TILEWISE_WGMMA(256, 15, 128, 129, 130, 131, 132, 133, 134)

#undef TILEWISE_WGMMA
#undef TILEWISE_SHARED_TEXT
#undef TILEWISE_REGISTERS_TEXT
#undef TILEWISE_OPERANDS
#undef TILEWISE_D0
#undef TILEWISE_O0
#undef TILEWISE_D1
#undef TILEWISE_O1
#undef TILEWISE_D2
#undef TILEWISE_O2
#undef TILEWISE_D3
#undef TILEWISE_O3
#undef TILEWISE_D4
#undef TILEWISE_O4
#undef TILEWISE_D5
#undef TILEWISE_O5
#undef TILEWISE_D6
#undef TILEWISE_O6
#undef TILEWISE_D7
#undef TILEWISE_O7
#undef TILEWISE_D8
#undef TILEWISE_O8
#undef TILEWISE_D9
#undef TILEWISE_O9
#undef TILEWISE_D10
#undef TILEWISE_O10
#undef TILEWISE_D11
#undef TILEWISE_O11
#undef TILEWISE_D12
#undef TILEWISE_O12
#undef TILEWISE_D13
#undef TILEWISE_O13
#undef TILEWISE_D14
#undef TILEWISE_O14
#undef TILEWISE_D15
#undef TILEWISE_O15
#undef TILEWISE_T1
#undef TILEWISE_T2
#undef TILEWISE_T3
#undef TILEWISE_T4
#undef TILEWISE_T5
#undef TILEWISE_T6
#undef TILEWISE_T7
#undef TILEWISE_T8
#undef TILEWISE_T9
#undef TILEWISE_T10
#undef TILEWISE_T11
#undef TILEWISE_T12
#undef TILEWISE_T13
#undef TILEWISE_T14
#undef TILEWISE_T15

}  // namespace detail
#endif

/// d, 64 x 2 Count of float, becomes a b, plus d if `keep`; a, 64 x 16 of T with rows of k, and b,
/// 16 x 2 Count, both in shared memory.
template <class T, Major B = Major::k, int Count>
__device__ __forceinline__ void wgmma_shared(float (&d)[Count], MatrixDescriptor a,
                                             MatrixDescriptor b, bool keep,
                                             [[maybe_unused]] Site site = Site::current()) {
  static_assert(std::is_same_v<T, f16> || std::is_same_v<T, bf16>, "the formats of this shape");
#if TILEWISE_EMULATED
  constexpr auto operand =
      std::is_same_v<T, f16> ? emulator::Operand::f16 : emulator::Operand::bf16;
  emulator::wgmma(d, 2 * Count, nullptr, a.bits, b.bits, B == Major::n, keep, operand, site);
#else
  detail::wgmma_shared_instruction<T, B>(d, a.bits, b.bits, keep ? 1 : 0);
#endif
}

/// The same with a in registers.
template <class T, Major B = Major::k, int Count>
__device__ __forceinline__ void wgmma_registers(float (&d)[Count], const std::uint32_t (&a)[4],
                                                MatrixDescriptor b, bool keep,
                                                [[maybe_unused]] Site site = Site::current()) {
  static_assert(std::is_same_v<T, f16> || std::is_same_v<T, bf16>, "the formats of this shape");
#if TILEWISE_EMULATED
  constexpr auto operand =
      std::is_same_v<T, f16> ? emulator::Operand::f16 : emulator::Operand::bf16;
  emulator::wgmma(d, 2 * Count, a, 0, b.bits, B == Major::n, keep, operand, site);
#else
  detail::wgmma_registers_instruction<T, B>(d, a, b.bits, keep ? 1 : 0);
#endif
}

}  // namespace tilewise::device::inline TILEWISE_TARGET
