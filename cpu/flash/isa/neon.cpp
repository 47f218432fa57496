// The tile kernels for NEON; cpu/CMakeLists.txt has this file's flags.
#define TILEWISE_ISA neon
#include "cpu/flash/tile/table.hpp"

namespace tilewise::cpu::flash {

const TileKernels* neon_kernels() {
  static constexpr TileKernels kernels = table("cpu.neon");
  return &kernels;
}

}  // namespace tilewise::cpu::flash
