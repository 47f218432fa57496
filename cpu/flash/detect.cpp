#include "cpu/flash/detect.hpp"

#include "include/tilewise/tilewise.h"

#include <cstdlib>
#include <cstring>

// cpu/CMakeLists.txt defines TILEWISE_AVX2_KERNELS and its like for those in this build.
#if defined(TILEWISE_AVX2_KERNELS) || defined(TILEWISE_AVX512_KERNELS)
#include <cpuid.h>
#define TILEWISE_ASK_X86
#elif defined(TILEWISE_NEON_KERNELS) && defined(__arm__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace tilewise::cpu::flash {
namespace {

#if defined(TILEWISE_ASK_X86)
bool bit(unsigned word, int n) {
  return (word >> n & 1u) != 0;
}

/// The register files that the operating system saves (Intel SDM volume 1, 13.3: XCR0).
unsigned saved_registers() {
  unsigned low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

struct X86 {
  bool avx2 = false, avx512 = false;

  X86() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid(1, &a, &b, &c, &d) == 0) return;
    const bool os_saves = bit(c, 27), fma = bit(c, 12), f16c = bit(c, 29);
    if (!os_saves || !fma || !f16c || __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return;
    constexpr unsigned ymm = 0x6, zmm = 0xe6;
    const unsigned saved = saved_registers();
    avx2 = bit(b, 5) && (saved & ymm) == ymm;
    const bool f_dq_cd_bw_vl = bit(b, 16) && bit(b, 17) && bit(b, 28) && bit(b, 30) && bit(b, 31);
    avx512 = avx2 && f_dq_cd_bw_vl && (saved & zmm) == zmm;
  }
};
#endif

#if defined(TILEWISE_NEON_KERNELS)
/// AArch64 has it always; a 32-bit processor has it with fused multiply-adds, or the kernels' flags
/// are not its own.
bool has_neon() {
#if defined(__arm__)
  constexpr unsigned long wanted = HWCAP_NEON | HWCAP_VFPv4;
  return (getauxval(AT_HWCAP) & wanted) == wanted;
#else
  return true;
#endif
}
#endif

struct Candidate {
  std::int32_t isa;
  const char* name;
  const TileKernels* kernels;
};

/// What can run, the best first.
struct Candidates {
  Candidate all[4];
  int count = 0;

  Candidates() {
#if defined(TILEWISE_ASK_X86)
    const X86 processor;
#endif
#if defined(TILEWISE_AVX512_KERNELS)
    if (processor.avx512) all[count++] = {TILEWISE_ISA_AVX512, "avx512", avx512_kernels()};
#endif
#if defined(TILEWISE_AVX2_KERNELS)
    if (processor.avx2) all[count++] = {TILEWISE_ISA_AVX2, "avx2", avx2_kernels()};
#endif
#if defined(TILEWISE_SSE2_KERNELS)
    all[count++] = {TILEWISE_ISA_SSE2, "sse2", sse2_kernels()};
#endif
#if defined(TILEWISE_NEON_KERNELS)
    if (has_neon()) all[count++] = {TILEWISE_ISA_NEON, "neon", neon_kernels()};
#endif
  }
};

const Candidates& candidates() {
  static const Candidates found;
  return found;
}

struct Decision {
  const TileKernels* kernels = nullptr;
  const char* refused = nullptr;

  Decision() {
    const Candidates& found = candidates();
    const char* const wanted = std::getenv("TILEWISE_ISA");
    if (wanted == nullptr || *wanted == '\0') {
      if (found.count > 0) kernels = found.all[0].kernels;
      return;
    }
    if (std::strcmp(wanted, "portable") == 0) return;
    refused = wanted;
    for (int n = 0; n < found.count; ++n)
      if (std::strcmp(wanted, found.all[n].name) == 0) {
        kernels = found.all[n].kernels;
        refused = nullptr;
      }
  }
};

const Decision& decision() {
  static const Decision made;
  return made;
}

}  // namespace

const TileKernels* best_kernels() {
  return decision().kernels;
}

const char* refused_isa() {
  return decision().refused;
}

const TileKernels* kernels_of(std::int32_t isa) {
  const Candidates& found = candidates();
  for (int n = 0; n < found.count; ++n)
    if (found.all[n].isa == isa) return found.all[n].kernels;
  return nullptr;
}

}  // namespace tilewise::cpu::flash
