// A view of memory as a tensor: who owns the memory is somebody else's business.
#pragma once

#include "dtype.hpp"

#include <cstddef>
#include <cstdint>

namespace tilewise {

enum class DeviceType : std::int32_t { cpu = 1, cuda = 2 };  // DLPack's numbers

struct Device {
  DeviceType type = DeviceType::cpu;
  std::int32_t id = 0;
};

/// The fields of DLPack's DLTensor, with room for the shape inside. Strides count elements, as
/// DLPack's do; they may be zero (a broadcast dimension) or describe any layout.
struct TensorView {
  static constexpr int max_dims = 5;

  void* data = nullptr;
  DType dtype = DType::f32;
  Device device{};
  std::int32_t ndim = 0;
  std::int64_t shape[max_dims] = {};
  std::int64_t strides[max_dims] = {};

  bool exists() const { return data != nullptr; }

  std::int64_t elements() const {
    std::int64_t count = 1;
    for (int dim = 0; dim < ndim; ++dim) count *= shape[dim];
    return count;
  }

  void* at(std::int64_t offset) const {
    return static_cast<char*>(data) + offset * static_cast<std::int64_t>(size_of(dtype));
  }
};

/// A view of contiguous memory, the last dimension fastest.
template <class... Sizes>
TensorView contiguous(void* data, DType dtype, Sizes... sizes) {
  static_assert(sizeof...(Sizes) <= TensorView::max_dims, "a view has at most five dimensions");
  TensorView view{data, dtype, {}, sizeof...(Sizes), {static_cast<std::int64_t>(sizes)...}, {}};
  std::int64_t stride = 1;
  for (int dim = view.ndim - 1; dim >= 0; --dim) {
    view.strides[dim] = stride;
    stride *= view.shape[dim];
  }
  return view;
}

/// The same memory with two dimensions exchanged.
inline TensorView transposed(TensorView view, int first, int second) {
  const std::int64_t shape = view.shape[first], stride = view.strides[first];
  view.shape[first] = view.shape[second];
  view.strides[first] = view.strides[second];
  view.shape[second] = shape;
  view.strides[second] = stride;
  return view;
}

}  // namespace tilewise
