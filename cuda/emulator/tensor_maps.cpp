#include "cuda/emulator/tensor_maps.hpp"

#include "cuda/emulator/hopper.hpp"

#include <cstring>

namespace tilewise::emulator {
namespace {

constexpr std::uint64_t mark = 0x70616d726f736e65u;

/// 128 bytes: the device's TensorMap.
struct Encoded {
  std::uint64_t mark;
  std::uint64_t memory;
  std::uint64_t size[5];
  std::uint64_t stride_bytes[4];
  std::uint32_t box[5];
  std::uint8_t element, dimensions, swizzle, none;
  std::uint64_t sum;
  std::uint64_t nothing;
};
static_assert(sizeof(Encoded) == 128);

std::uint64_t sum_of(const Encoded& encoded) {
  std::uint64_t words[14], sum = 0;
  std::memcpy(words, &encoded, sizeof words);
  for (const std::uint64_t word : words) sum = sum * 0x9e3779b97f4a7c15u + word;
  return sum;
}

unsigned long long number(std::uint64_t value) {
  return value;
}

}  // namespace

Status describe_tensor(void* map, const void* memory, std::size_t element, int dimensions,
                       const std::uint64_t (&size)[5], const std::uint64_t (&stride)[4],
                       const std::uint32_t (&box)[5], int swizzle) {
  constexpr std::uint64_t most_size = std::uint64_t{1} << 32, most_stride = std::uint64_t{1} << 40;
  if (dimensions < 1 || dimensions > 5)
    return failure(Code::bad_argument, "a tensor map of %d dimensions: it has 1 to 5", dimensions);
  if (swizzle < 0 || swizzle > 3)
    return failure(Code::bad_argument, "a tensor map has no swizzle %d", swizzle);
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  if (memory == nullptr || address % 16 != 0)
    return failure(Code::bad_argument,
                   "a tensor map's memory begins at a multiple of 16 bytes, not %d after one",
                   static_cast<int>(address % 16));
  Encoded encoded{};
  encoded.mark = mark;
  encoded.memory = address;
  encoded.element = static_cast<std::uint8_t>(element);
  encoded.dimensions = static_cast<std::uint8_t>(dimensions);
  encoded.swizzle = static_cast<std::uint8_t>(swizzle);
  for (int n = 0; n < 5; ++n) encoded.size[n] = encoded.box[n] = 1;
  for (int n = 0; n < dimensions; ++n) {
    if (size[n] < 1 || size[n] > most_size)
      return failure(Code::bad_argument,
                     "a tensor map's dimension %d has 1 to 2^32 elements, not %llu", n,
                     number(size[n]));
    if (box[n] < 1 || box[n] > 256)
      return failure(Code::bad_argument,
                     "a tensor map's box has 1 to 256 elements of dimension %d, "
                     "not %u",
                     n, box[n]);
    encoded.size[n] = size[n];
    encoded.box[n] = box[n];
  }
  for (int n = 0; n + 1 < dimensions; ++n) {
    const std::uint64_t bytes = stride[n] * element;
    if (stride[n] >= most_stride || bytes >= most_stride || bytes % 16 != 0)
      return failure(
          Code::bad_argument,
          "a tensor map's stride of dimension %d is a multiple of 16 bytes below 2^40, not "
          "%llu bytes",
          n + 1, number(bytes));
    encoded.stride_bytes[n] = bytes;
  }
  const std::size_t row = box[0] * element;
  if (row % 16 != 0)
    return failure(Code::bad_argument,
                   "a row of a tensor map's box is a multiple of 16 bytes, not %zu", row);
  if (swizzle > 0 && row > std::size_t{16} << swizzle)
    return failure(Code::bad_argument,
                   "a row of a tensor map's box has at most the swizzle's %zu bytes, not %zu",
                   std::size_t{16} << swizzle, row);
  encoded.sum = sum_of(encoded);
  std::memcpy(map, &encoded, sizeof encoded);
  return {};
}

bool decode(const void* map, TensorBox& box) {
  Encoded encoded;
  std::memcpy(&encoded, map, sizeof encoded);
  if (encoded.mark != mark || encoded.sum != sum_of(encoded)) return false;
  box.memory = encoded.memory;
  box.element = encoded.element;
  box.dimensions = encoded.dimensions;
  box.swizzle = encoded.swizzle;
  for (int n = 0; n < 5; ++n) {
    box.size[n] = encoded.size[n];
    box.box[n] = encoded.box[n];
    box.stride_bytes[n] = n == 0 ? encoded.element : encoded.stride_bytes[n - 1];
  }
  return true;
}

}  // namespace tilewise::emulator
