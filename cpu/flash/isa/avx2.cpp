// The tile kernels for AVX2; cpu/CMakeLists.txt has this file's flags.
#define TILEWISE_ISA avx2
#include "cpu/flash/tile/table.hpp"

namespace tilewise::cpu::flash {

const TileKernels* avx2_kernels() {
  static constexpr TileKernels kernels = table("cpu.avx2");
  return &kernels;
}

}  // namespace tilewise::cpu::flash
