#include "cpu/api/overlap.hpp"

namespace tilewise::cpu {
namespace {

constexpr std::int64_t limit = std::int64_t{1} << 56;

/// a * b + c for numbers not negative; false beyond the limit.
bool multiply_add(std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t& result) {
  if (a != 0 && b > (limit - c) / a) return false;
  result = a * b + c;
  return true;
}

/// A tensor's elements as nested steps: strides in bytes, positive, the largest first, dimensions
/// of size 1 left out. Negative strides are turned round, which moves the base.
struct Grid {
  std::uintptr_t base = 0;
  int ndim = 0;
  bool empty = false;
  std::int64_t stride[TensorView::max_dims] = {};
  std::int64_t size[TensorView::max_dims] = {};
  std::int64_t span[TensorView::max_dims + 1] = {};  // bytes from here inwards, an element's last

  explicit Grid(const TensorView& view) {
    const auto element = static_cast<std::int64_t>(size_of(view.dtype));
    base = reinterpret_cast<std::uintptr_t>(view.data);
    for (int dim = 0; dim < view.ndim; ++dim) {
      if (view.shape[dim] == 0) empty = true;
      if (view.shape[dim] <= 1) continue;
      std::int64_t step = view.strides[dim] * element;
      if (step < 0) {
        base -=
            static_cast<std::uintptr_t>(-step) * static_cast<std::uintptr_t>(view.shape[dim] - 1);
        step = -step;
      }
      int place = ndim++;
      for (; place > 0 && stride[place - 1] < step; --place) {
        stride[place] = stride[place - 1];
        size[place] = size[place - 1];
      }
      stride[place] = step;
      size[place] = view.shape[dim];
    }
    span[ndim] = element;
    for (int dim = ndim - 1; dim >= 0; --dim)
      span[dim] = span[dim + 1] + stride[dim] * (size[dim] - 1);
  }
};

std::int64_t floor_divided(std::int64_t a, std::int64_t b) {
  return a / b - (a % b < 0 ? 1 : 0);
}

/// Do elements meet, of `a` from dimension i inwards and of `b` from dimension j inwards, where b
/// begins `offset` bytes after a? Peels off the larger stride: on steps x of a and y of b the
/// offset is that much further by (y - x) strides, and only few of these bring the inner parts
/// together.
bool meet(const Grid& a, int i, const Grid& b, int j, std::int64_t offset, int& patience) {
  if (offset >= a.span[i] || -offset >= b.span[j]) return false;
  if ((i == a.ndim && j == b.ndim) || --patience < 0) return true;
  const std::int64_t a_stride = i < a.ndim ? a.stride[i] : 0;
  const std::int64_t b_stride = j < b.ndim ? b.stride[j] : 0;
  const std::int64_t stride = a_stride > b_stride ? a_stride : b_stride;
  if (stride == 0) return true;  // broadcast dimensions only: the spans have met
  const int a_inner = a_stride == stride ? i + 1 : i, b_inner = b_stride == stride ? j + 1 : j;
  const std::int64_t a_steps = a_inner > i ? a.size[i] - 1 : 0;
  const std::int64_t b_steps = b_inner > j ? b.size[j] - 1 : 0;
  std::int64_t first = floor_divided(-b.span[b_inner] - offset, stride) + 1;
  std::int64_t last = floor_divided(a.span[a_inner] - 1 - offset, stride);
  if (first < -a_steps) first = -a_steps;
  if (last > b_steps) last = b_steps;
  for (std::int64_t steps = first; steps <= last; ++steps)
    if (meet(a, a_inner, b, b_inner, offset + steps * stride, patience)) return true;
  return false;
}

}  // namespace

bool byte_range(const TensorView& view, ByteRange& range) {
  std::int64_t below = 0, above = 0, elements = 1;
  bool empty = false;
  for (int dim = 0; dim < view.ndim; ++dim) {
    const std::int64_t size = view.shape[dim], stride = view.strides[dim];
    if (stride < -limit || !multiply_add(elements, size == 0 ? 1 : size, 0, elements)) return false;
    if (size == 0) empty = true;
    if (size <= 1) continue;
    std::int64_t& reach = stride < 0 ? below : above;
    if (!multiply_add(size - 1, stride < 0 ? -stride : stride, reach, reach)) return false;
  }
  const auto element = static_cast<std::int64_t>(size_of(view.dtype));
  if (!multiply_add(elements, element, 0, elements) || !multiply_add(below, element, 0, below) ||
      !multiply_add(above, element, element, above))
    return false;
  range = empty ? ByteRange{} : ByteRange{-below, above};
  const auto data = reinterpret_cast<std::uintptr_t>(view.data);
  return data >= static_cast<std::uintptr_t>(below) &&
         data + static_cast<std::uintptr_t>(above) >= data;
}

bool shares_with_itself(const TensorView& view) {
  const Grid grid(view);
  if (grid.empty) return false;
  for (int dim = 0; dim < grid.ndim; ++dim)
    if (grid.stride[dim] < grid.span[dim + 1]) return true;
  return false;
}

bool share_memory(const TensorView& first, const TensorView& second) {
  const Grid a(first), b(second);
  if (a.empty || b.empty) return false;
  int patience = 1000;
  return meet(a, 0, b, 0, static_cast<std::int64_t>(b.base - a.base), patience);
}

bool shares_with_bytes(const TensorView& view, const void* memory, std::size_t bytes) {
  const Grid grid(view);
  if (grid.empty || bytes == 0) return false;
  const auto begin = reinterpret_cast<std::uintptr_t>(memory);
  return grid.base < begin + bytes && begin < grid.base + static_cast<std::uintptr_t>(grid.span[0]);
}

bool same_place(const TensorView& first, const TensorView& second) {
  if (first.data != second.data || first.dtype != second.dtype || first.ndim != second.ndim)
    return false;
  for (int dim = 0; dim < first.ndim; ++dim)
    if (first.shape[dim] != second.shape[dim] ||
        (first.shape[dim] > 1 && first.strides[dim] != second.strides[dim]))
      return false;
  return true;
}

}  // namespace tilewise::cpu
