// What a tensor's name, one of for_each_tensor()'s, says of it: whether a call reads or writes it,
// what it is like.
#pragma once

#include "core/attention.hpp"
#include "oracle/harness/buffers.hpp"
#include "oracle/problem.hpp"

#include <algorithm>
#include <string>
#include <string_view>

namespace tilewise::tools {

/// The tensor of that name; null if there is no such name.
template <class Tensors>
auto* find(Tensors& tensors, std::string_view name) {
  decltype(&tensors.q) found = nullptr;
  for_each_tensor(tensors, [&](std::string_view each, auto& view) {
    if (each == name) found = &view;
  });
  return found;
}

/// Whether the value is one of the others.
template <class Value, class... Others>
bool among(const Value& value, const Others&... others) {
  return ((value == others) || ...);
}

/// Whether a call writes the tensor: those that are there only where outputs are asked for.
inline bool is_output(std::string_view name) {
  const auto shapes = [](const harness::Outputs& outputs) {
    Problem problem;
    problem.bias = Broadcast{};
    problem.sink = true;
    return harness::tensor_shapes(problem, outputs);
  };
  static const AttentionTensors without = shapes(harness::Outputs::none());
  static const AttentionTensors with = shapes(harness::Outputs::all());
  return find(without, name)->ndim == 0 && find(with, name)->ndim != 0;
}

/// Whether a call may write to it: the cache that it appends to.
inline bool is_cache(std::string_view name) {
  return among(name, "k", "v");
}

inline bool is_row_scales(std::string_view name) {
  return among(name, "k_scales", "v_scales");
}

/// Of keys and their like, in a cache where there is one.
inline bool is_of_keys(std::string_view name) {
  return is_cache(name) || is_row_scales(name) || among(name, "k_new", "v_new", "dk", "dv");
}

/// Has both rows and heads, which layouts order.
inline bool has_rows_and_heads(std::string_view name) {
  return is_of_keys(name) || among(name, "q", "o", "dout", "dq");
}

/// "[2, 64, 8, 128]", for messages.
inline std::string shape_text(const TensorView& view) {
  std::string text = "[";
  for (int dim = 0; dim < view.ndim; ++dim)
    text += (dim == 0 ? "" : ", ") + std::to_string(view.shape[dim]);
  return text + "]";
}

inline bool same_shape(const TensorView& a, const TensorView& b) {
  return a.ndim == b.ndim && std::equal(a.shape, a.shape + a.ndim, b.shape);
}

}  // namespace tilewise::tools
