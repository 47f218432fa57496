// The tile kernels for AVX-512; cpu/CMakeLists.txt has this file's flags.
#define TILEWISE_ISA avx512
#include "cpu/flash/tile/table.hpp"

namespace tilewise::cpu::flash {

const TileKernels* avx512_kernels() {
  static constexpr TileKernels kernels = table("cpu.avx512");
  return &kernels;
}

}  // namespace tilewise::cpu::flash
