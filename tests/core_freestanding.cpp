// core/ as an app carries it: compiled with -fno-exceptions -fno-rtti, linked without a test
// library, and proved to allocate nothing. Exits with 0 when all is well, else with the number of
// the step that went wrong.
#include "core/attention.hpp"
#include "core/conventions.hpp"
#include "core/dropout.hpp"
#include "core/dtype.hpp"
#include "core/minifloat.hpp"
#include "core/philox.hpp"
#include "core/quantised.hpp"
#include "core/status.hpp"
#include "core/tensor.hpp"

#if defined(_GLIBCXX_IOSTREAM) || defined(_GLIBCXX_OSTREAM) || defined(_LIBCPP_IOSTREAM)
#error "core includes iostream"
#endif
#if defined(_GLIBCXX_STRING) || defined(_GLIBCXX_VECTOR) || defined(_GLIBCXX_FUNCTIONAL)
#error "core includes a header whose types allocate"
#endif
#if defined(__cpp_exceptions) || defined(__cpp_rtti)
#error "compile this file with -fno-exceptions -fno-rtti: that is what it tests"
#endif

#include <cstdlib>
#include <new>

// Whoever allocates through C++ ends here.
void* operator new(std::size_t) {
  std::_Exit(100);
}
void* operator new[](std::size_t) {
  std::_Exit(100);
}
void operator delete(void*) noexcept {}
void operator delete[](void*) noexcept {}
void operator delete(void*, std::size_t) noexcept {}
void operator delete[](void*, std::size_t) noexcept {}

namespace {

int first_wrong_step() {
  using namespace std::string_view_literals;
  for (const tilewise::DTypeInfo& row : tilewise::dtype_table)
    if (tilewise::numbers_in(row.dtype) == 1 && tilewise::rounded_to(row.dtype, 1.0) != 1.0)
      return 1;
  if (tilewise::dtype_from_name("bf16"sv) != tilewise::DType::bf16) return 2;

  unsigned char data[2 * 3] = {};
  const tilewise::TensorView view = tilewise::contiguous(data, tilewise::DType::e4m3, 2, 3);
  if (tilewise::transposed(view, 0, 1).strides[1] != 3) return 3;

  tilewise::AttentionParams params;
  params.causal = true;
  if (tilewise::visible_keys(params, 0, 2, 2).end != 1) return 4;

  for (const tilewise::ConventionPreset& preset : tilewise::convention_presets)
    if (tilewise::conventions_from_name(preset.name) != preset.conventions) return 5;

  const tilewise::Status status =
      tilewise::failure(tilewise::Code::unsupported, "head_dim is %d", 3);
  if (status.ok() || status.reason[0] != 'h') return 6;
  if (tilewise::E5M2::decode(tilewise::E5M2::encode(0.5)) != 0.5) return 7;
  if (tilewise::philox(1, 2, 3) != tilewise::philox(1, 2, 3)) return 8;
  if (tilewise::philox(1, 2, 3) == tilewise::philox(1, 2, 4)) return 9;
  if (tilewise::Dropout(0.5, 1, 0, 1).scale() != 2) return 10;

  double numbers[tilewise::BlockQ8::size] = {};
  numbers[5] = 127;
  tilewise::BlockQ8 block = tilewise::quantise_block(numbers);
  const tilewise::TensorView blocks = tilewise::contiguous(&block, tilewise::DType::q8_0, 1);
  if (tilewise::load_number(blocks, 0, 1, 5) != 127) return 11;
  return 0;
}

}  // namespace

int main() {
  return first_wrong_step();
}
