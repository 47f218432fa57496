// Arrays in memory, whole files, and a directory of tensor files read as one set of names.
#include "detail.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <new>
#include <system_error>
#include <utility>

namespace tilewise::formats {

namespace fs = std::filesystem;

std::int64_t Array::elements() const {
  std::int64_t count = 1;
  for (const std::int64_t size : shape) count *= size;
  return count;
}

TensorView Array::view() {
  TensorView view;
  if (shape.size() > TensorView::max_dims) return view;
  // A tensor without elements exists all the same, so it needs an address that is not null.
  alignas(8) static std::byte no_elements[8];
  view.data = bytes.empty() ? no_elements : bytes.data();
  view.dtype = dtype;
  view.ndim = static_cast<std::int32_t>(shape.size());
  std::int64_t stride = 1;
  for (int dim = view.ndim - 1; dim >= 0; --dim) {
    view.shape[dim] = shape[static_cast<std::size_t>(dim)];
    view.strides[dim] = stride;
    stride *= std::max<std::int64_t>(view.shape[dim], 1);
  }
  return view;
}

namespace detail {

Result<std::string> read_file(const fs::path& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) return FileError{fmt::format("{}: no such file", path.string())};
  if (!fs::is_regular_file(status))
    return FileError{fmt::format("{}: not a regular file", path.string())};
  const std::uintmax_t size = fs::file_size(path, error);
  if (error) return FileError{fmt::format("{}: {}", path.string(), error.message())};

  std::ifstream file(path, std::ios::binary);
  if (!file) return FileError{fmt::format("{}: {}", path.string(), std::strerror(errno))};
  std::string text;
  try {
    text.resize(static_cast<std::size_t>(size));
  } catch (const std::exception&) {
    return FileError{
        fmt::format("{}: {} bytes do not fit into this machine's memory", path.string(), size)};
  }
  file.read(text.data(), static_cast<std::streamsize>(size));
  if (static_cast<std::uintmax_t>(file.gcount()) != size)
    return FileError{fmt::format("{}: read {} bytes of {}", path.string(), file.gcount(), size)};
  return text;
}

Result<std::monostate> write_file(const fs::path& path,
                                  const std::vector<std::string_view>& pieces) {
  errno = 0;
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  for (const std::string_view piece : pieces)
    file.write(piece.data(), static_cast<std::streamsize>(piece.size()));
  file.close();
  if (!file)
    return FileError{fmt::format("{}: cannot be written ({})", path.string(),
                                 errno != 0 ? std::strerror(errno) : "unknown reason")};
  return std::monostate{};
}

std::optional<std::uint64_t> byte_count(const std::vector<std::int64_t>& shape, DType dtype) {
  constexpr std::uint64_t most = INT64_MAX;
  std::uint64_t product = size_of(dtype);
  bool empty = false;
  for (const std::int64_t size : shape) {
    if (size < 0) return std::nullopt;
    if (size == 0) {
      empty = true;
    } else {
      if (product > most / static_cast<std::uint64_t>(size)) return std::nullopt;
      product *= static_cast<std::uint64_t>(size);
    }
  }
  return empty ? 0 : product;
}

std::string mismatch(const Array& array) {
  if (array.shape.size() > TensorView::max_dims)
    return fmt::format("shape {} has {} dimensions, expected at most {}", shape_text(array.shape),
                       array.shape.size(), static_cast<int>(TensorView::max_dims));
  const auto needed = byte_count(array.shape, array.dtype);
  if (!needed) return fmt::format("shape {} is negative or too large", shape_text(array.shape));
  if (*needed != array.bytes.size())
    return fmt::format("{} bytes are there, shape {} in {} needs {}", array.bytes.size(),
                       shape_text(array.shape), name_of(array.dtype), *needed);
  return {};
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

std::string in_quotes(std::string_view text) {
  constexpr std::size_t longest = 60;
  std::string result = "'";
  for (const char character : text.substr(0, longest)) {
    const auto byte = static_cast<unsigned char>(character);
    if (byte >= 0x20 && byte < 0x7f)
      result += character;
    else
      result += fmt::format("\\x{:02x}", byte);
  }
  return result + (text.size() > longest ? "...'" : "'");
}

}  // namespace detail

namespace {

Result<Arrays> read_one(const fs::path& path) {
  if (path.extension() == ".npy") {
    Result<Array> array = read_npy(path);
    if (auto* error = std::get_if<FileError>(&array)) return std::move(*error);
    Arrays arrays;
    arrays.emplace(path.stem().string(), std::move(std::get<Array>(array)));
    return arrays;
  }
  if (path.extension() == ".safetensors") {
    Result<Safetensors> file = read_safetensors(path);
    if (auto* error = std::get_if<FileError>(&file)) return std::move(*error);
    return std::move(std::get<Safetensors>(file).arrays);
  }
  return FileError{
      fmt::format("{}: not a tensor file, expected .npy or .safetensors", path.string())};
}

}  // namespace

Result<Arrays> read_arrays(const fs::path& file_or_directory) {
  std::error_code error;
  if (!fs::is_directory(file_or_directory, error)) return read_one(file_or_directory);

  std::vector<fs::path> files;
  fs::directory_iterator entry(file_or_directory, error);
  for (const fs::directory_iterator end; !error && entry != end; entry.increment(error)) {
    const fs::path extension = entry->path().extension();
    if (extension == ".npy" || extension == ".safetensors") files.push_back(entry->path());
  }
  if (error) return FileError{fmt::format("{}: {}", file_or_directory.string(), error.message())};
  if (files.empty())
    return FileError{
        fmt::format("{}: no tensor file in this directory, expected .npy or "
                    ".safetensors",
                    file_or_directory.string())};
  std::sort(files.begin(), files.end());

  Arrays all;
  std::map<std::string, fs::path> origin;
  for (const fs::path& file : files) {
    Result<Arrays> some = read_one(file);
    if (auto* problem = std::get_if<FileError>(&some)) return std::move(*problem);
    for (auto& [name, array] : std::get<Arrays>(some)) {
      const auto [first, is_new] = origin.emplace(name, file);
      if (!is_new)
        return FileError{fmt::format("{}: array {} is already in {}, expected each name once",
                                     file.string(), detail::in_quotes(name),
                                     first->second.filename().string())};
      all.emplace(name, std::move(array));
    }
  }
  return all;
}

}  // namespace tilewise::formats
