#include "cpu/validate/words.hpp"

#include <cinttypes>
#include <cstdarg>
#include <cstdio>

namespace tilewise::cpu {

Status bad(const char* format, ...) {
  Status status{Code::bad_argument, {}};
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(status.reason, sizeof status.reason, format, arguments);
  va_end(arguments);
  return status;
}

ShapeText::ShapeText(const std::int64_t* shape, int ndim) {
  std::size_t used = 1;
  for (int dim = 0; dim < ndim; ++dim) {
    const int more = std::snprintf(text + used, sizeof text - used, "%s%" PRId64,
                                   dim == 0 ? "" : ", ", shape[dim]);
    used += static_cast<std::size_t>(more);
  }
  text[used] = ']';
  text[used + 1] = '\0';
}

Status check_shape(const char* name, const TensorView& view, const Expected& expected,
                   const char* why) {
  bool fits = view.ndim == expected.ndim;
  for (int dim = 0; fits && dim < view.ndim; ++dim) fits = view.shape[dim] == expected.shape[dim];
  if (fits) return {};
  return bad("%s has shape %s; expected %s, %s", name, ShapeText(view).text,
             ShapeText(expected.shape, expected.ndim).text, why);
}

Status check_dtype(const char* name, const TensorView& view, DType expected) {
  if (view.dtype == expected) return {};
  return bad("%s has dtype %s; expected %s", name, text(view.dtype), text(expected));
}

}  // namespace tilewise::cpu
