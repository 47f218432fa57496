// The loops over elements: between views of any strides, and between views and the arrays of files.
#include "tools/tensors_copy.hpp"

#include "core/quantised.hpp"
#include "tools/common.hpp"
#include "tools/tensors.hpp"
#include "tools/tensors_roles.hpp"

#include <fmt/core.h>

#include <cstring>
#include <limits>

namespace tilewise::tools {

namespace {
void copy_dimension(const TensorView& from, const TensorView& to, int dim, std::int64_t from_offset,
                    std::int64_t to_offset) {
  if (dim == from.ndim) {
    if (from.dtype == to.dtype)
      std::memcpy(to.at(to_offset), from.at(from_offset), size_of(to.dtype));
    else
      store(to.dtype, to.at(to_offset), load(from.dtype, from.at(from_offset)));
    return;
  }
  if (dim == from.ndim - 1 && from.strides[dim] == 1 && to.strides[dim] == 1 &&
      from.dtype == to.dtype) {
    std::memcpy(to.at(to_offset), from.at(from_offset),
                static_cast<std::size_t>(from.shape[dim]) * size_of(to.dtype));
    return;
  }
  for (std::int64_t i = 0; i < from.shape[dim]; ++i)
    copy_dimension(from, to, dim + 1, from_offset + i * from.strides[dim],
                   to_offset + i * to.strides[dim]);
}
}  // namespace

void copy_inputs(const AttentionTensors& from, const AttentionTensors& to) {
  for_each_tensor(to, [&](const char* name, const TensorView& wanted) {
    if (!wanted.exists() || is_output(name)) return;
    const TensorView& given = *find(from, name);
    if (!given.exists())
      throw BadInput(fmt::format("{} is missing: expected {} in {}", name, shape_text(wanted),
                                 name_of(wanted.dtype)));
    const bool convertible = is_floating(given.dtype) && is_floating(wanted.dtype) &&
                             size_of(wanted.dtype) >= size_of(DType::f32);
    if (!same_shape(given, wanted) || (given.dtype != wanted.dtype && !convertible))
      throw BadInput(
          fmt::format("{} has shape {} in {}, and is to be run in {} in {}, as gen "
                      "writes it",
                      name, shape_text(given), name_of(given.dtype), shape_text(wanted),
                      name_of(wanted.dtype)));
    copy_dimension(given, wanted, 0, 0, 0);
  });
}

namespace {
/// 8-bit whole numbers, and the bytes of q8_0's blocks, as i32: what every format here holds.
formats::Array as_i32(const formats::Array& array) {
  formats::Array wide{DType::i32, array.shape, {}};
  if (array.dtype == DType::q8_0) wide.shape.push_back(sizeof(BlockQ8));
  wide.bytes.resize(array.bytes.size() * size_of(DType::i32));
  for (std::size_t n = 0; n < array.bytes.size(); ++n) {
    const auto byte = std::to_integer<std::uint8_t>(array.bytes[n]);
    const bool is_signed = array.dtype == DType::i8;
    store(DType::i32, &wide.bytes[n * size_of(DType::i32)],
          is_signed ? static_cast<std::int8_t>(byte) : byte);
  }
  return wide;
}

formats::Array array_of(const TensorView& view) {
  formats::Array array{view.dtype, {view.shape, view.shape + view.ndim}, {}};
  array.bytes.resize(static_cast<std::size_t>(view.elements()) * size_of(view.dtype));
  if (!array.bytes.empty()) copy_dimension(view, array.view(), 0, 0, 0);
  return among(view.dtype, DType::i8, DType::q8_0) ? as_i32(array) : array;
}
}  // namespace

formats::Arrays to_arrays(const Problem& problem, const AttentionTensors& tensors, bool inputs) {
  formats::Arrays arrays;
  for_each_tensor(tensors, [&](const char* name, const TensorView& view) {
    const bool appended_to = problem.seqlen_new > 0 && is_cache(name);
    const bool wanted = inputs ? !is_output(name) : is_output(name) || appended_to;
    if (!view.exists() || !wanted) return;
    const bool heads_first = problem.layout == Layout::bhsd && has_rows_and_heads(name);
    arrays.emplace(name, array_of(heads_first ? transposed(view, 1, 2) : view));
  });
  return arrays;
}

bool is_whole(DType dtype) {
  return among(dtype, DType::i32, DType::i64, DType::i8);
}

std::vector<std::int64_t> whole_numbers(const TensorView& view, std::string_view name,
                                        std::int64_t low, std::int64_t high) {
  std::vector<std::int64_t> numbers;
  for (std::int64_t n = 0; n < view.elements(); ++n) {
    const double number = load(view.dtype, view.at(n));
    if (!(number >= static_cast<double>(low) && number <= static_cast<double>(high)))
      throw BadInput(fmt::format("{} holds {}: expected whole numbers from {} to {}", name, number,
                                 low, high));
    numbers.push_back(static_cast<std::int64_t>(number));
  }
  return numbers;
}

formats::Array as_type(formats::Array array, std::string_view name, DType dtype) {
  if (array.dtype == dtype) return array;
  using Limits = std::numeric_limits<std::int32_t>;
  if (dtype == DType::i32) whole_numbers(array.view(), name, Limits::min(), Limits::max());
  formats::Array result{dtype, array.shape, {}};
  const auto count = static_cast<std::size_t>(array.elements());
  result.bytes.resize(count * size_of(dtype));
  for (std::size_t i = 0; i < count; ++i)
    store(dtype, result.bytes.data() + i * size_of(dtype),
          load(array.dtype, array.bytes.data() + i * size_of(array.dtype)));
  return result;
}

}  // namespace tilewise::tools
