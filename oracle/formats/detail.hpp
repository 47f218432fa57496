// What the two readers and writers share: whole files, sizes that cannot overflow, and short
// quotations for messages.
#pragma once

#include "formats.hpp"

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tilewise::formats::detail {

Result<std::string> read_file(const std::filesystem::path& path);
Result<std::monostate> write_file(const std::filesystem::path& path,
                                  const std::vector<std::string_view>& pieces);

/// Bytes of an array; absent where a size is negative or the product does not fit. Zeros count as
/// one in the check, so that the strides of an array that passes it cannot overflow either.
std::optional<std::uint64_t> byte_count(const std::vector<std::int64_t>& shape, DType dtype);

/// Why an array must not be written: its bytes and its shape disagree. Empty: it may.
std::string mismatch(const Array& array);

std::string shape_text(const std::vector<std::int64_t>& shape);

/// Foreign text made safe to print: in quotes, unprintable bytes as \xNN, cut when long.
std::string in_quotes(std::string_view text);

inline std::string_view characters(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
inline std::vector<std::byte> bytes_of(std::string_view text) {
  const auto* begin = reinterpret_cast<const std::byte*>(text.data());
  return {begin, begin + text.size()};
}

}  // namespace tilewise::formats::detail
