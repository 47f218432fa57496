// Tensor files: .npy (NumPy format 1.0 to 3.0) and .safetensors, read and written.
//
// Nothing a file says is believed before it is checked against the file's length: truncated files,
// huge headers, overflowing shapes and random bytes give a sentence, never a crash or an
// allocation.
#pragma once

#include "../../core/dtype.hpp"
#include "../../core/tensor.hpp"

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <variant>
#include <vector>

namespace tilewise::formats {

/// A tensor that owns its bytes: contiguous, last dimension fastest.
struct Array {
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
  std::vector<std::byte> bytes;

  std::int64_t elements() const;
  TensorView view();  ///< at most TensorView::max_dims dimensions; of this array's memory
};

/// What is wrong with a file, as one sentence that names it.
struct FileError {
  std::string message;
};

template <class T>
using Result = std::variant<T, FileError>;

/// One array. Fortran order is turned into C order. NumPy has no bf16 or fp8: those do not occur.
Result<Array> read_npy(const std::filesystem::path& path);
Result<std::monostate> write_npy(const std::filesystem::path& path, const Array& array);

using Arrays = std::map<std::string, Array>;
using Metadata = std::map<std::string, std::string>;

struct Safetensors {
  Arrays arrays;
  Metadata metadata;  ///< the header's "__metadata__": strings to strings
};

Result<Safetensors> read_safetensors(const std::filesystem::path& path);
Result<std::monostate> write_safetensors(const std::filesystem::path& path, const Arrays& arrays,
                                         const Metadata& metadata = {});

/// From memory, for tests and fuzzing; `name` stands for the path in messages.
Result<Array> parse_npy(std::string_view bytes, const std::string& name);
Result<Safetensors> parse_safetensors(std::string_view bytes, const std::string& name);

/// Arrays by name from a directory of .npy and .safetensors files (a .npy file's array has the
/// file's stem as its name), or from one file.
Result<Arrays> read_arrays(const std::filesystem::path& file_or_directory);

}  // namespace tilewise::formats
