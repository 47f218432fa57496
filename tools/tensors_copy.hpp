// Elements of tensors and arrays, read and turned into other types one by one.
#pragma once

#include "oracle/formats/formats.hpp"

#include <cstdint>
#include <string_view>
#include <vector>

namespace tilewise::tools {

/// Of a type that files hold whole numbers in.
bool is_whole(DType dtype);

/// The whole numbers of a contiguous tensor, each of which must be from `low` to `high`.
std::vector<std::int64_t> whole_numbers(const TensorView& view, std::string_view name,
                                        std::int64_t low, std::int64_t high);

/// Turns whole numbers into i32, or factors into f32: the types that they have in a call.
formats::Array as_type(formats::Array array, std::string_view name, DType dtype);

}  // namespace tilewise::tools
