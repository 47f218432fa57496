// Tensor files: any bytes are refused with a sentence that can be printed, or are arrays that are
// no larger than the file and whose bytes fit their shapes.
#include "oracle/formats/formats.hpp"
#include "tests/fuzz/targets.hpp"

#include <string>

namespace tilewise::fuzz {
namespace {

std::string_view text_of(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

void require_sentence(const formats::FileError& error) {
  require(!error.message.empty() && error.message.find("the input") != std::string::npos,
          "an error names the file", error.message.c_str());
  for (const char c : error.message)
    require(static_cast<unsigned char>(c) >= ' ', "a message has no control characters",
            error.message.c_str());
}

/// `input` is what the array was read from: nothing is believed that is not there.
void require_sound(formats::Array& array, std::size_t input) {
  require(array.elements() >= 0, "sizes are not negative");
  require(array.bytes.size() == static_cast<std::size_t>(array.elements()) * size_of(array.dtype),
          "an array's bytes are those of its shape");
  require(array.bytes.size() <= input, "an array is no larger than its file");
  if (array.shape.size() > static_cast<std::size_t>(TensorView::max_dims)) return;
  const TensorView view = array.view();
  if (array.elements() == 0) return;
  std::int64_t last = 0;
  for (int dim = 0; dim < view.ndim; ++dim) last += (view.shape[dim] - 1) * view.strides[dim];
  require(last == array.elements() - 1, "a view reaches the last element");
  static_cast<void>(load(view.dtype, view.at(last)));
}

}  // namespace

void fuzz_npy(const std::uint8_t* data, std::size_t size) {
  auto read = formats::parse_npy(text_of(data, size), "the input");
  if (const auto* error = std::get_if<formats::FileError>(&read)) return require_sentence(*error);
  require_sound(std::get<formats::Array>(read), size);
}

void fuzz_safetensors(const std::uint8_t* data, std::size_t size) {
  auto read = formats::parse_safetensors(text_of(data, size), "the input");
  if (const auto* error = std::get_if<formats::FileError>(&read)) return require_sentence(*error);
  for (auto& [name, array] : std::get<formats::Safetensors>(read).arrays)
    require_sound(array, size);
}

}  // namespace tilewise::fuzz
