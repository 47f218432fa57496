// The tile kernels for SSE2; cpu/CMakeLists.txt has this file's flags.
#define TILEWISE_ISA sse2
#include "cpu/flash/tile/table.hpp"

namespace tilewise::cpu::flash {

const TileKernels* sse2_kernels() {
  static constexpr TileKernels kernels = table("cpu.sse2");
  return &kernels;
}

}  // namespace tilewise::cpu::flash
