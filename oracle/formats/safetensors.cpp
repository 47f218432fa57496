// .safetensors, as https://github.com/huggingface/safetensors (README, "Format") documents it:
//
//   header length (u64, little-endian)  header (JSON, may end in spaces)  data
//
// where the header maps names to {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
// offsets counting from the start of the data, which the arrays cover without holes or overlaps.
#include "detail.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <bit>
#include <cstring>
#include <set>
#include <utility>

namespace tilewise::formats {

namespace {

using detail::in_quotes;
using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "files are little-endian, and so are we");

/// The limit of the format's own reader.
constexpr std::uint64_t longest_header = 100'000'000;

struct DTypeName {
  DType dtype;
  std::string_view name;
};
constexpr DTypeName dtype_names[] = {
    {DType::f64, "F64"},   {DType::f32, "F32"},      {DType::f16, "F16"},
    {DType::bf16, "BF16"}, {DType::e4m3, "F8_E4M3"}, {DType::e5m2, "F8_E5M2"},
    {DType::i64, "I64"},   {DType::i32, "I32"},      {DType::boolean, "BOOL"}};

/// An entry of the header, checked by itself.
struct Entry {
  std::string name;
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0, end = 0;
};

/// The header as JSON; `problem` is empty or says why there is none.
struct Parsed {
  json header;
  std::string problem;
};

/// The parser keeps a stack of its own, so deep nesting cannot exhaust the call stack; and what is
/// nested deeper than a header may be is not kept.
Parsed parse_header(std::string_view text) {
  if (text.empty() || text[0] != '{') return {{}, "the header does not begin with '{'"};
  bool too_deep = false;
  std::string twice;
  std::set<std::string> seen;
  const auto watch = [&](int depth, json::parse_event_t event, json& parsed) {
    if (depth > 3) too_deep = true;
    if (event == json::parse_event_t::key && depth == 1 &&
        !seen.insert(parsed.get_ref<const std::string&>()).second)
      twice = parsed.get_ref<const std::string&>();
    return depth <= 3;
  };
  json header = json::parse(text.begin(), text.end(), watch, false);
  if (too_deep)
    return {{}, "the header is nested too deeply, expected names, then dtype and shape"};
  if (header.is_discarded() || !header.is_object()) return {{}, "the header is not a JSON object"};
  if (!twice.empty()) return {{}, fmt::format("the header names {} twice", in_quotes(twice))};
  return {std::move(header), {}};
}

/// A JSON array of sizes or offsets; absent if it is anything else.
std::optional<std::vector<std::int64_t>> counts(const json& entry, const char* key) {
  const auto field = entry.find(key);
  if (field == entry.end() || !field->is_array()) return std::nullopt;
  std::vector<std::int64_t> values;
  for (const json& value : *field) {
    if (!value.is_number_unsigned()) return std::nullopt;
    const auto count = value.get<std::uint64_t>();
    if (count > INT64_MAX) return std::nullopt;
    values.push_back(static_cast<std::int64_t>(count));
  }
  return values;
}

/// One array's entry against the length of the data.
std::variant<Entry, std::string> parse_entry(const std::string& name, const json& fields,
                                             std::uint64_t data_length) {
  const auto wrong = [&name](std::string_view what) {
    return fmt::format("array {}: {}", in_quotes(name), what);
  };
  if (!fields.is_object()) return wrong("expected an object with dtype, shape and data_offsets");
  const auto dtype = fields.find("dtype");
  if (dtype == fields.end() || !dtype->is_string()) return wrong("no dtype");
  const auto& dtype_name = dtype->get_ref<const std::string&>();
  const auto* row = std::find_if(std::begin(dtype_names), std::end(dtype_names),
                                 [&](const DTypeName& it) { return it.name == dtype_name; });
  if (row == std::end(dtype_names))
    return wrong(
        fmt::format("dtype {}, expected one of F64 F32 F16 BF16 F8_E4M3 F8_E5M2 I64 I32 "
                    "BOOL",
                    in_quotes(dtype_name)));

  const auto shape = counts(fields, "shape");
  if (!shape) return wrong("shape is not a list of sizes from 0 to 2^63 - 1");
  if (shape->size() > TensorView::max_dims)
    return wrong(fmt::format("{} dimensions, expected at most {}", shape->size(),
                             static_cast<int>(TensorView::max_dims)));
  const auto needed = detail::byte_count(*shape, row->dtype);
  if (!needed)
    return wrong(fmt::format("shape {} is larger than any memory", detail::shape_text(*shape)));

  const auto offsets = counts(fields, "data_offsets");
  if (!offsets || offsets->size() != 2) return wrong("data_offsets is not [begin, end]");
  const auto begin = static_cast<std::uint64_t>((*offsets)[0]);
  const auto end = static_cast<std::uint64_t>((*offsets)[1]);
  if (begin > end || end > data_length)
    return wrong(fmt::format("data_offsets [{}, {}] lie outside the file's {} bytes of data", begin,
                             end, data_length));
  if (end - begin != *needed)
    return wrong(fmt::format("data_offsets [{}, {}] span {} bytes, shape {} in {} needs {}", begin,
                             end, end - begin, detail::shape_text(*shape), dtype_name, *needed));
  return Entry{name, row->dtype, *shape, begin, end};
}

/// The entries, in the order of their data, against each other: empty, or what is wrong.
std::string uncovered(const std::vector<Entry>& entries, std::uint64_t data_length) {
  std::uint64_t covered = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != covered)
      return fmt::format(
          "array {} begins at byte {} of the data, expected {}: arrays must neither "
          "overlap nor leave holes",
          in_quotes(entry.name), entry.begin, covered);
    covered = entry.end;
  }
  if (covered != data_length)
    return fmt::format("the file has {} bytes of data, its arrays cover {}", data_length, covered);
  return {};
}

}  // namespace

Result<Safetensors> parse_safetensors(std::string_view bytes, const std::string& name) {
  const auto wrong = [&name](std::string_view what) {
    return FileError{fmt::format("{}: {}", name, what)};
  };
  std::uint64_t header_length = 0;
  if (bytes.size() < sizeof header_length)
    return wrong(fmt::format("{} bytes are too few for a .safetensors file, expected 8 or more",
                             bytes.size()));
  std::memcpy(&header_length, bytes.data(), sizeof header_length);
  bytes.remove_prefix(sizeof header_length);
  if (header_length > longest_header)
    return wrong(fmt::format("the header claims {} bytes, expected at most {}", header_length,
                             longest_header));
  if (header_length > bytes.size())
    return wrong(fmt::format("the header claims {} bytes, the file has only {} after its length",
                             header_length, bytes.size()));
  const Parsed parsed = parse_header(bytes.substr(0, header_length));
  if (!parsed.problem.empty()) return wrong(parsed.problem);
  const std::string_view data = bytes.substr(header_length);

  Safetensors result;
  std::vector<Entry> entries;
  for (const auto& [key, fields] : parsed.header.items()) {
    if (key == "__metadata__") {
      if (!fields.is_object()) return wrong("__metadata__ is not an object of strings");
      for (const auto& [item, value] : fields.items()) {
        if (!value.is_string())
          return wrong(fmt::format("__metadata__ {} is not a string", in_quotes(item)));
        result.metadata[item] = value.get<std::string>();
      }
      continue;
    }
    auto entry = parse_entry(key, fields, data.size());
    if (const auto* problem = std::get_if<std::string>(&entry)) return wrong(*problem);
    entries.push_back(std::move(std::get<Entry>(entry)));
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  if (const std::string why = uncovered(entries, data.size()); !why.empty()) return wrong(why);

  for (Entry& entry : entries)
    result.arrays.emplace(
        std::move(entry.name),
        Array{entry.dtype, std::move(entry.shape),
              detail::bytes_of(data.substr(entry.begin, entry.end - entry.begin))});
  return result;
}

Result<Safetensors> read_safetensors(const std::filesystem::path& path) {
  Result<std::string> text = detail::read_file(path);
  if (auto* error = std::get_if<FileError>(&text)) return std::move(*error);
  return parse_safetensors(std::get<std::string>(text), path.string());
}

Result<std::monostate> write_safetensors(const std::filesystem::path& path, const Arrays& arrays,
                                         const Metadata& metadata) {
  const auto wrong = [&path](std::string_view what) {
    return FileError{fmt::format("{}: not written, {}", path.string(), what)};
  };
  // Wide elements first: every array then begins at a multiple of its element, which readers that
  // map the file need. Within a width, by name: the same arrays give the same bytes.
  std::vector<const Arrays::value_type*> ordered;
  for (const auto& item : arrays) ordered.push_back(&item);
  std::stable_sort(ordered.begin(), ordered.end(), [](const auto* a, const auto* b) {
    return size_of(a->second.dtype) > size_of(b->second.dtype);
  });

  json header = json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::vector<std::string_view> pieces(2);
  std::uint64_t offset = 0;
  for (const auto* item : ordered) {
    const std::string& name = item->first;
    const Array& array = item->second;
    if (name == "__metadata__") return wrong("no array may be called __metadata__");
    if (const std::string why = detail::mismatch(array); !why.empty())
      return wrong(fmt::format("array {}: {}", in_quotes(name), why));
    const auto* row = std::find_if(std::begin(dtype_names), std::end(dtype_names),
                                   [&](const DTypeName& it) { return it.dtype == array.dtype; });
    header[name] = {{"dtype", row->name},
                    {"shape", array.shape},
                    {"data_offsets", {offset, offset + array.bytes.size()}}};
    pieces.push_back(detail::characters(array.bytes));
    offset += array.bytes.size();
  }

  std::string text;
  try {
    text = header.dump();
  } catch (const json::exception&) {
    return wrong("a name or its metadata is not UTF-8");
  }
  text.append((8 - text.size() % 8) % 8, ' ');
  const std::uint64_t length = text.size();
  pieces[0] = {reinterpret_cast<const char*>(&length), sizeof length};
  pieces[1] = text;
  return detail::write_file(path, pieces);
}

}  // namespace tilewise::formats
