// .npy, as numpy.lib.format documents it:
//
//   "\x93NUMPY"  major minor  header length (u16 in version 1, u32 in 2 and 3)  header  data
//
// where the header is the text of a Python dictionary:
//   {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }
#include "detail.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstring>
#include <utility>

namespace tilewise::formats {

namespace {

using detail::in_quotes;

static_assert(std::endian::native == std::endian::little, "files are little-endian, and so are we");

constexpr std::string_view magic = "\x93NUMPY";

struct Descr {
  DType dtype;
  std::string_view code;  ///< descr without its byte order
};
constexpr Descr descrs[] = {{DType::f64, "f8"}, {DType::f32, "f4"}, {DType::f16, "f2"},
                            {DType::i64, "i8"}, {DType::i32, "i4"}, {DType::boolean, "b1"}};

/// The dictionary, as far as it has been read.
struct Header {
  std::optional<std::string> descr;
  std::optional<bool> fortran_order;
  std::optional<std::vector<std::int64_t>> shape;
};

/// Reads the dictionary and nothing else of Python: three keys, strings, booleans, a tuple of
/// integers. `problem` says what went wrong first.
class HeaderReader {
 public:
  explicit HeaderReader(std::string_view text) : text_(text) {}

  Header read() {
    Header header;
    expect('{');
    while (good() && !take('}')) {
      const std::string key = string();
      expect(':');
      if (key == "descr" && !header.descr)
        header.descr = string();
      else if (key == "fortran_order" && !header.fortran_order)
        header.fortran_order = boolean();
      else if (key == "shape" && !header.shape)
        header.shape = tuple();
      else
        fail(fmt::format("the key {} is unknown or there twice", in_quotes(key)));
      if (!take(',') && peek() != '}') fail("a ',' or '}' is missing");
    }
    if (good() && peek() != '\0') fail("text follows the dictionary");
    if (good() && !(header.descr && header.fortran_order && header.shape))
      fail("one of descr, fortran_order and shape is missing");
    return header;
  }

  const std::string& problem() const { return problem_; }

 private:
  bool good() const { return problem_.empty(); }

  void fail(std::string_view what) {
    if (good())
      problem_ = fmt::format("{} at byte {} of the header {}", what, position_, in_quotes(text_));
  }

  /// The next character that is no space; 0 at the end, and after a failure.
  char peek() {
    while (position_ < text_.size() && (text_[position_] == ' ' || text_[position_] == '\n'))
      ++position_;
    return good() && position_ < text_.size() ? text_[position_] : '\0';
  }
  bool take(char wanted) {
    if (peek() != wanted) return false;
    ++position_;
    return true;
  }
  void expect(char wanted) {
    if (!take(wanted)) fail(fmt::format("a '{}' is missing", wanted));
  }

  std::string string() {
    const char quote = peek();
    if (quote != '\'' && quote != '"') {
      fail("a string is missing");
      return {};
    }
    const std::size_t begin = position_ + 1;
    const std::size_t end = text_.find(quote, begin);
    if (end == std::string_view::npos) {
      fail("a string does not end");
      return {};
    }
    position_ = end + 1;
    return std::string(text_.substr(begin, end - begin));
  }

  bool boolean() {
    peek();
    for (const bool value : {false, true}) {
      const std::string_view word = value ? "True" : "False";
      if (text_.substr(std::min(position_, text_.size()), word.size()) == word) {
        position_ += word.size();
        return value;
      }
    }
    fail("True or False is missing");
    return false;
  }

  std::vector<std::int64_t> tuple() {
    std::vector<std::int64_t> sizes;
    expect('(');
    while (good() && !take(')')) {
      peek();
      std::int64_t size = 0;
      const char* begin = text_.data() + position_;
      const auto [end, error] = std::from_chars(begin, text_.data() + text_.size(), size);
      if (error == std::errc::result_out_of_range)
        fail("a size is too large");
      else if (error != std::errc{})
        fail("a size is missing");
      else if (size < 0)
        fail(fmt::format("the size {} is negative", size));
      position_ += static_cast<std::size_t>(end - begin);
      sizes.push_back(size);
      if (!take(',') && peek() != ')') fail("a ',' or ')' is missing");
    }
    return sizes;
  }

  std::string_view text_;
  std::size_t position_ = 0;
  std::string problem_;
};

/// Elements laid out with the first dimension fastest, put into C order.
std::vector<std::byte> from_fortran_order(const std::vector<std::byte>& source,
                                          const std::vector<std::int64_t>& shape,
                                          std::size_t size) {
  std::vector<std::byte> result(source.size());
  std::vector<std::int64_t> index(shape.size(), 0);
  for (std::size_t target = 0; target < result.size(); target += size) {
    std::int64_t offset = 0;
    for (std::size_t dim = shape.size(); dim-- > 0;) offset = offset * shape[dim] + index[dim];
    std::memcpy(&result[target], &source[static_cast<std::size_t>(offset) * size], size);
    for (std::size_t dim = shape.size(); dim-- > 0;) {
      if (++index[dim] < shape[dim]) break;
      index[dim] = 0;
    }
  }
  return result;
}

void swap_bytes(std::vector<std::byte>& bytes, std::size_t size) {
  for (auto element = bytes.begin(); element != bytes.end();
       element += static_cast<std::ptrdiff_t>(size))
    std::reverse(element, element + static_cast<std::ptrdiff_t>(size));
}

}  // namespace

Result<Array> parse_npy(std::string_view bytes, const std::string& name) {
  const auto wrong = [&name](std::string_view what) {
    return FileError{fmt::format("{}: {}", name, what)};
  };
  if (bytes.substr(0, magic.size()) != magic)
    return wrong(fmt::format("not a .npy file: it begins with {}, expected \\x93NUMPY",
                             in_quotes(bytes.substr(0, magic.size()))));
  if (bytes.size() < 10)
    return wrong(
        fmt::format("{} bytes are too few for a .npy file, expected 10 or more", bytes.size()));
  const int major = static_cast<unsigned char>(bytes[6]);
  const int minor = static_cast<unsigned char>(bytes[7]);
  if (major < 1 || major > 3 || minor != 0)
    return wrong(
        fmt::format("version {}.{} of the .npy format, expected 1.0, 2.0 or 3.0", major, minor));

  const std::size_t length_bytes = major == 1 ? 2 : 4;
  const std::size_t header_begin = 8 + length_bytes;
  if (bytes.size() < header_begin)
    return wrong(
        fmt::format("the file ends after {} bytes, inside its header's length", bytes.size()));
  std::uint32_t header_length = 0;
  std::memcpy(&header_length, bytes.data() + 8, length_bytes);
  if (header_length > bytes.size() - header_begin)
    return wrong(fmt::format("the header claims {} bytes, the file has only {} after it begins",
                             header_length, bytes.size() - header_begin));

  HeaderReader reader(bytes.substr(header_begin, header_length));
  const Header header = reader.read();
  if (!reader.problem().empty()) return wrong(reader.problem());

  const std::string& descr = *header.descr;
  const char order = descr.empty() ? '\0' : descr[0];
  const auto* row = std::find_if(std::begin(descrs), std::end(descrs), [&descr](const Descr& it) {
    return descr.size() == 3 && descr.substr(1) == it.code;
  });
  const bool known_order = order == '<' || order == '>' || order == '=' || order == '|';
  if (row == std::end(descrs) || !known_order)
    return wrong(
        fmt::format("dtype {}, expected one of f8 f4 f2 i8 i4 b1 after < or >", in_quotes(descr)));

  Array array{row->dtype, *header.shape, {}};
  if (array.shape.size() > TensorView::max_dims)
    return wrong(fmt::format("{} dimensions, expected at most {}", array.shape.size(),
                             static_cast<int>(TensorView::max_dims)));
  const auto needed = detail::byte_count(array.shape, array.dtype);
  if (!needed)
    return wrong(
        fmt::format("shape {} is larger than any memory", detail::shape_text(array.shape)));
  const std::string_view data = bytes.substr(header_begin + header_length);
  if (data.size() != *needed)
    return wrong(fmt::format("{} bytes of data, shape {} in {} needs {}", data.size(),
                             detail::shape_text(array.shape), name_of(array.dtype), *needed));

  const std::size_t size = size_of(array.dtype);
  array.bytes = detail::bytes_of(data);
  if (*header.fortran_order) array.bytes = from_fortran_order(array.bytes, array.shape, size);
  if (order == '>') swap_bytes(array.bytes, size);
  return array;
}

Result<Array> read_npy(const std::filesystem::path& path) {
  Result<std::string> text = detail::read_file(path);
  if (auto* error = std::get_if<FileError>(&text)) return std::move(*error);
  return parse_npy(std::get<std::string>(text), path.string());
}

Result<std::monostate> write_npy(const std::filesystem::path& path, const Array& array) {
  const auto* row = std::find_if(std::begin(descrs), std::end(descrs),
                                 [&array](const Descr& it) { return it.dtype == array.dtype; });
  if (row == std::end(descrs))
    return FileError{
        fmt::format("{}: NumPy has no {}, expected f64 f32 f16 i64 i32 or bool; "
                    ".safetensors holds them all",
                    path.string(), name_of(array.dtype))};
  if (const std::string why = detail::mismatch(array); !why.empty())
    return FileError{fmt::format("{}: not written, {}", path.string(), why)};

  // A tuple of one needs its comma: (3,).
  std::string header =
      fmt::format("{{'descr': '{}{}', 'fortran_order': False, 'shape': ({}{}), }}",
                  array.dtype == DType::boolean ? '|' : '<', row->code,
                  fmt::join(array.shape, ", "), array.shape.size() == 1 ? "," : "");
  const std::size_t preamble = magic.size() + 4;
  const std::size_t used = preamble + header.size() + 1;
  header.append((64 - used % 64) % 64, ' ');
  header += '\n';
  std::string start(magic);
  start += {'\x01', '\x00', static_cast<char>(header.size() & 0xff),
            static_cast<char>(header.size() >> 8)};
  return detail::write_file(path, {start, header, detail::characters(array.bytes)});
}

}  // namespace tilewise::formats
