// What the emulator puts into the 128 bytes of a tensor map, and how it reads them. The hardware's
// format is nobody's business; what the driver refuses is refused here (CUDA Driver API, "Tensor
// Map Object Management": cuTensorMapEncodeTiled).
#pragma once

#include <cstddef>
#include <cstdint>

namespace tilewise::emulator {

struct TensorBox {
  std::uintptr_t memory = 0;
  std::size_t element = 0;  ///< bytes
  int dimensions = 0;
  int swizzle = 0;  ///< 0: none; chunks change places in 16 << swizzle bytes
  std::uint64_t size[5] = {};
  std::uint64_t stride_bytes[5] = {};  ///< of the first: an element's
  std::uint32_t box[5] = {};

  std::size_t row_bytes() const { return box[0] * element; }
  std::size_t rows() const { return std::size_t{1} * box[1] * box[2] * box[3] * box[4]; }
};

/// False: nobody has described a tensor there.
bool decode(const void* map, TensorBox& box);

/// Where a byte of a swizzled box comes to lie: chunks of 16 bytes change places within each 32, 64
/// or 128 bytes, by the number of the 128 bytes around them. It undoes itself.
///
///     128 bytes: bits 4-6 ^= bits 7-9      64: bits 4-5 ^= bits 7-8      32: bit 4 ^= bit 7
constexpr std::uintptr_t swizzled(std::uintptr_t address, int swizzle) {
  return address ^ ((address >> 7 & ((1u << swizzle) - 1)) << 4);
}

}  // namespace tilewise::emulator
