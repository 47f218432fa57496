#include "cpu/portable/rows.hpp"

namespace tilewise::cpu::portable {
namespace {

// With the dtype a constant, the switch inside load() and store() is decided outside of the loop.
template <DType dtype, class Real>
void read(const TensorView& tensor, std::int64_t offset, std::int64_t stride, std::int64_t n,
          Real* to) {
  const char* from = static_cast<const char*>(tensor.at(offset));
  const std::int64_t step = stride * static_cast<std::int64_t>(size_of(dtype));
  for (std::int64_t x = 0; x < n; ++x) to[x] = static_cast<Real>(load(dtype, from + x * step));
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
void read_elements(const TensorView& tensor, std::int64_t offset, std::int64_t stride,
                   std::int64_t n, Real* to) {
  switch (tensor.dtype) {
    case DType::f64: return read<DType::f64>(tensor, offset, stride, n, to);
    case DType::f32: return read<DType::f32>(tensor, offset, stride, n, to);
    case DType::f16: return read<DType::f16>(tensor, offset, stride, n, to);
    case DType::bf16: return read<DType::bf16>(tensor, offset, stride, n, to);
    case DType::e4m3: return read<DType::e4m3>(tensor, offset, stride, n, to);
    case DType::e5m2: return read<DType::e5m2>(tensor, offset, stride, n, to);
    default:  // whole numbers and truth values: nothing whose speed matters
      for (std::int64_t x = 0; x < n; ++x)
        to[x] = static_cast<Real>(load(tensor.dtype, tensor.at(offset + x * stride)));
  }
}

template <class Real>
void write_elements(const TensorView& tensor, std::int64_t offset, std::int64_t stride,
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

template void read_elements(const TensorView&, std::int64_t, std::int64_t, std::int64_t, float*);
template void read_elements(const TensorView&, std::int64_t, std::int64_t, std::int64_t, double*);
template void write_elements(const TensorView&, std::int64_t, std::int64_t, std::int64_t,
                             const float*);
template void write_elements(const TensorView&, std::int64_t, std::int64_t, std::int64_t,
                             const double*);

}  // namespace tilewise::cpu::portable
