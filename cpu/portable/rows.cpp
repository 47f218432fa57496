#include "cpu/portable/rows.hpp"

#include "core/quantised.hpp"
#include "cpu/portable/widen.hpp"

#include <cstring>

namespace tilewise::cpu::portable {
namespace {

// With the dtype a constant, every switch on it is decided outside of the loops.

template <DType dtype, class Real>
Real decode(const char* element) {
  using detail::load_bits;
  if constexpr (dtype == DType::f16)
    return static_cast<Real>(widen<F16>(load_bits<std::uint16_t>(element)));
  else if constexpr (dtype == DType::bf16)
    return static_cast<Real>(widen<BF16>(load_bits<std::uint16_t>(element)));
  else if constexpr (dtype == DType::e4m3)
    return static_cast<Real>(fp8_table<E4M3>[load_bits<std::uint8_t>(element)]);
  else if constexpr (dtype == DType::e5m2)
    return static_cast<Real>(fp8_table<E5M2>[load_bits<std::uint8_t>(element)]);
  else if constexpr (dtype == DType::i8)
    return static_cast<Real>(static_cast<std::int8_t>(load_bits<std::uint8_t>(element)));
  else
    return static_cast<Real>(load(dtype, element));
}

/// Numbers next to each other go some at a time, from one array of the function's own to another:
/// a compiler uses vector registers for such a loop without knowing more of it.
template <DType dtype, class Real>
void read(const TensorView& tensor, std::int64_t offset, std::int64_t stride, std::int64_t n,
          Real* to) {
  constexpr auto size = static_cast<std::int64_t>(size_of(dtype));
  constexpr std::int64_t some = 16;
  const char* from = static_cast<const char*>(tensor.at(offset));
  std::int64_t x = 0;
  for (; stride == 1 && x + some <= n; x += some) {
    char elements[some * size];
    Real numbers[some];
    std::memcpy(elements, from + x * size, sizeof elements);
    for (std::int64_t y = 0; y < some; ++y) numbers[y] = decode<dtype, Real>(elements + y * size);
    std::memcpy(to + x, numbers, sizeof numbers);
  }
  for (; x < n; ++x) to[x] = decode<dtype, Real>(from + x * stride * size);
}

template <class Real>
void read_blocks(const TensorView& tensor, std::int64_t offset, std::int64_t stride, std::int64_t n,
                 Real* to) {
  for (std::int64_t x = 0; x < n; x += BlockQ8::size, offset += stride) {
    BlockQ8 block;
    std::memcpy(&block, tensor.at(offset), sizeof block);
    const Real scale = widen<F16>(block.scale);
    for (std::int64_t y = 0; y < BlockQ8::size; ++y)
      to[x + y] = scale * static_cast<Real>(block.x[y]);
  }
}

template <DType dtype, class Real>
void write(const TensorView& tensor, std::int64_t offset, std::int64_t stride, std::int64_t n,
           const Real* from) {
  char* to = static_cast<char*>(tensor.at(offset));
  const std::int64_t step = stride * static_cast<std::int64_t>(size_of(dtype));
  for (std::int64_t x = 0; x < n; ++x) store(dtype, to + x * step, static_cast<double>(from[x]));
}

}  // namespace

template <class Real>
void read_numbers(const TensorView& tensor, std::int64_t offset, std::int64_t stride,
                  std::int64_t n, Real* to) {
  switch (tensor.dtype) {
    case DType::f64: return read<DType::f64>(tensor, offset, stride, n, to);
    case DType::f32: return read<DType::f32>(tensor, offset, stride, n, to);
    case DType::f16: return read<DType::f16>(tensor, offset, stride, n, to);
    case DType::bf16: return read<DType::bf16>(tensor, offset, stride, n, to);
    case DType::e4m3: return read<DType::e4m3>(tensor, offset, stride, n, to);
    case DType::e5m2: return read<DType::e5m2>(tensor, offset, stride, n, to);
    case DType::i8: return read<DType::i8>(tensor, offset, stride, n, to);
    case DType::q8_0: return read_blocks(tensor, offset, stride, n, to);
    default:  // lengths and truth values: nothing whose speed matters
      for (std::int64_t x = 0; x < n; ++x)
        to[x] = static_cast<Real>(load(tensor.dtype, tensor.at(offset + x * stride)));
  }
}

template <class Real>
void write_numbers(const TensorView& tensor, std::int64_t offset, std::int64_t stride,
                   std::int64_t n, const Real* from) {
  switch (tensor.dtype) {
    case DType::f32: return write<DType::f32>(tensor, offset, stride, n, from);
    case DType::f16: return write<DType::f16>(tensor, offset, stride, n, from);
    case DType::bf16: return write<DType::bf16>(tensor, offset, stride, n, from);
    default:
      for (std::int64_t x = 0; x < n; ++x)
        store(tensor.dtype, tensor.at(offset + x * stride), static_cast<double>(from[x]));
  }
}

template void read_numbers(const TensorView&, std::int64_t, std::int64_t, std::int64_t, float*);
template void read_numbers(const TensorView&, std::int64_t, std::int64_t, std::int64_t, double*);
template void write_numbers(const TensorView&, std::int64_t, std::int64_t, std::int64_t,
                            const float*);
template void write_numbers(const TensorView&, std::int64_t, std::int64_t, std::int64_t,
                            const double*);

}  // namespace tilewise::cpu::portable
