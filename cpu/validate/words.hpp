// What refusals are written with.
#pragma once

#include "core/status.hpp"
#include "core/tensor.hpp"

#include <cstdint>

namespace tilewise::cpu {

/// failure() with Code::bad_argument.
#if defined(__GNUC__)
__attribute__((format(printf, 1, 2)))
#endif
Status
bad(const char* format, ...);

/// "[2, 70, 4, 32]"
struct ShapeText {
  char text[120] = "[";

  ShapeText(const std::int64_t* shape, int ndim);
  explicit ShapeText(const TensorView& view) : ShapeText(view.shape, view.ndim) {}
};

inline const char* text(DType dtype) {
  return tilewise::name_of(dtype).data();
}

/// A shape that a tensor must have.
struct Expected {
  int ndim = 0;
  std::int64_t shape[TensorView::max_dims] = {};
};

/// `why` ends the sentence: where the expected sizes come from.
Status check_shape(const char* name, const TensorView& view, const Expected& expected,
                   const char* why);

Status check_dtype(const char* name, const TensorView& view, DType expected);

}  // namespace tilewise::cpu
