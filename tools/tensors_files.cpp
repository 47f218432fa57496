// Files of tensors turned into a problem: read by name, and then what the shapes say is inferred,
// what they cannot say is read from the line, and what the two say differently is refused.
#include "tools/tensors_files.hpp"

#include "tools/common.hpp"
#include "tools/tensors.hpp"
#include "tools/tensors_copy.hpp"
#include "tools/tensors_roles.hpp"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <cstddef>
#include <filesystem>
#include <optional>
#include <utility>
#include <variant>

namespace tilewise::tools {

namespace {
/// The dtype that a tensor has in every call; absent: it follows from q's, or may be one of
/// several.
std::optional<DType> fixed_dtype(std::string_view name) {
  if (name == "mask") return DType::boolean;
  if (is_row_scales(name) ||
      among(name, "alibi_slopes", "sinks", "q_descale", "k_descale", "v_descale"))
    return DType::f32;
  if (among(name, "cu_seqlens_q", "cu_seqlens_k", "seqlens_q", "seqlens_k", "kv_num_blocks",
            "kv_indices", "full_kv_num_blocks", "full_kv_indices", "block_table", "cache_batch_idx",
            "cache_leftpad"))
    return DType::i32;
  return std::nullopt;
}

void check_dtype(std::string_view name, DType dtype, const std::string& path) {
  const std::optional<DType> fixed = fixed_dtype(name);
  const char* expected = nullptr;
  if (fixed == DType::i32) {
    if (!is_whole(dtype)) expected = "i32 or i64";
  } else if (fixed == DType::boolean) {
    if (dtype != DType::boolean) expected = "bool";
  } else if (!is_floating(dtype)) {
    if (!is_cache(name))
      expected = "a floating-point format";
    else if (!is_whole(dtype))
      expected = "a floating-point format, or i32 for the numbers of i8 or the bytes of q8_0";
  }
  if (expected != nullptr)
    throw BadInput(
        fmt::format("{} in {} is {}: expected {}", name, path, name_of(dtype), expected));
}
}  // namespace

TensorView& TensorFiles::tensor(std::string_view name) {
  return *find(tensors, name);
}

const TensorView& TensorFiles::tensor(std::string_view name) const {
  return *find(tensors, name);
}

void TensorFiles::add(AttentionTensors& to, std::string_view name, formats::Array array,
                      const std::string& path) {
  check_dtype(name, array.dtype, path);
  if (const std::optional<DType> fixed = fixed_dtype(name))
    array = as_type(std::move(array), name, *fixed);
  if (array.elements() == 0)
    throw BadInput(fmt::format("{} in {} has no elements: expected at least one", name, path));
  owned.push_back(std::move(array));
  *find(to, name) = owned.back().view();
}

TensorView TensorFiles::logical(std::string_view name, const TensorView& view) const {
  const bool in_cache = cached && is_of_keys(name);
  const bool no_width = is_row_scales(name);
  const int wanted = (in_cache ? 4 : packed ? 3 : flat ? 2 : 4) - (no_width ? 1 : 0);
  if (view.ndim != wanted)
    throw BadInput(fmt::format("{} has shape {}: expected {} dimensions, as {}", name,
                               shape_text(view), wanted,
                               in_cache ? "keys and values are in a cache"
                               : packed ? "cu_seqlens_q says that sequences are packed"
                               : flat   ? "q has [seqlen, head_dim]"
                                        : "q has [batch, seqlen, nheads, head_dim]"));
  if (flat && no_width) return contiguous(view.data, view.dtype, 1, view.shape[0], 1);
  if (flat) return contiguous(view.data, view.dtype, 1, view.shape[0], 1, view.shape[1]);
  return bhsd ? transposed(view, 1, 2) : view;
}

std::string TensorFiles::shape_in_file(std::string_view name, const TensorView& view) const {
  if (!has_rows_and_heads(name)) return shape_text(view);
  if (flat && view.ndim == 4) return fmt::format("[{}, {}]", view.shape[1], view.shape[3]);
  return shape_text(bhsd ? transposed(view, 1, 2) : view);
}

std::vector<std::int64_t> TensorFiles::integers(const char* name) const {
  const TensorView& vector = tensor(name);
  if (vector.ndim != 1)
    throw BadInput(fmt::format("{} has shape {}: expected one dimension, [{}]", name,
                               shape_text(vector),
                               std::string_view(name).starts_with("cu_") ? "batch + 1" : "batch"));
  std::vector<std::int64_t> values;
  for (std::int64_t i = 0; i < vector.shape[0]; ++i)
    values.push_back(static_cast<std::int64_t>(load(vector.dtype, vector.at(i))));
  return values;
}

namespace {
/// The names of what a call reads (q, k and v first), or of what it writes (o first).
std::vector<std::string> names_of(bool inputs) {
  std::vector<std::string> names;
  const AttentionTensors tensors;
  for_each_tensor(tensors, [&](std::string_view name, const TensorView&) {
    if (is_output(name) != inputs) names.emplace_back(name);
  });
  if (!inputs) names.insert(names.end(), {"k", "v"});
  return names;
}

void take(TensorFiles& files, const std::string& path, bool input) {
  formats::Arrays arrays = value_of(formats::read_arrays(path));
  // A file with a single array needs no name for it when it can only be o.
  if (!input && arrays.size() == 1 && find(files.tensors, arrays.begin()->first) == nullptr) {
    auto only = arrays.extract(arrays.begin());
    only.key() = std::string("o");
    arrays.insert(std::move(only));
  }
  for (auto& [name, array] : arrays) {
    if (find(files.tensors, name) == nullptr) {
      const std::vector<std::string> known = names_of(input);
      const std::string guess = closest(name, known);
      throw BadInput(fmt::format("{} holds \"{}\": expected {}{}", path, name,
                                 fmt::join(known, " "),
                                 guess.empty() ? "" : fmt::format("; did you mean {}?", guess)));
    }
    if (!input && is_cache(name))
      files.add(files.updated, name, std::move(array), path);
    else if (is_output(name) != input)
      files.add(files.tensors, name, std::move(array), path);
  }
}

std::string rest_of(std::vector<std::string> names, std::ptrdiff_t known) {
  names.erase(names.begin(), names.begin() + known);
  return fmt::format("{}", fmt::join(names, " "));
}

TensorFiles read_files(const std::string& in, const std::string& outputs) {
  TensorFiles files;
  take(files, in, true);
  if (!outputs.empty()) take(files, outputs, false);
  for (const char* name : {"q", "k", "v"})
    if (!files.has(name))
      throw BadInput(
          fmt::format("{} holds no {}: expected q, k, v and, where the problem has "
                      "them, {}",
                      in, name, rest_of(names_of(true), 3)));
  files.outputs = outputs;
  if (!outputs.empty() && !files.has("o"))
    throw BadInput(
        fmt::format("{} holds no o: expected o [{}]", outputs, rest_of(names_of(false), 1)));
  return files;
}

/// bshd or bhsd, for 4-D tensors: as --layout or the line says.
Layout chosen_layout(const std::string& line, const std::string& layout) {
  const auto from_line = [&](Layout fallback) {
    Problem defaults;
    defaults.layout = fallback;
    const auto parsed = parse_problem(line, defaults);
    const auto* problem = std::get_if<Problem>(&parsed);
    return problem == nullptr ? fallback : problem->layout;
  };
  // The line names a layout if the answer does not depend on the default.
  const Layout said = line.empty() ? Layout::bshd : from_line(Layout::bshd);
  const bool named = !line.empty() && said == from_line(Layout::bhsd);
  if (layout.empty()) return said;
  const Layout wanted = layout == "bhsd"   ? Layout::bhsd
                        : layout == "bshd" ? Layout::bshd
                                           : Layout::packed;
  if (named && wanted != said)
    throw BadInput(fmt::format("--layout {} contradicts the problem \"{}\"", layout, line));
  return wanted;
}

void take_from_line(TensorFiles& files, const Problem& problem) {
  if (problem.blocks) {
    files.tensors.block_mask.block_q = problem.blocks->block_q;
    files.tensors.block_mask.block_k = problem.blocks->block_k;
  }
  if (problem.rotary) files.tensors.cache.rotary_interleaved = problem.rotary->interleaved;
}

/// A forward problem judges no gradients, whatever the files hold.
void drop_unasked(TensorFiles& files, const Problem& problem) {
  if (problem.pass == Pass::backward) return;
  for (const char* name : {"dout", "dq", "dk", "dv", "dbias", "dsinks"}) files.tensor(name) = {};
}
}  // namespace

Given read_given(const std::string& in, const std::string& outputs, std::string line,
                 const std::string& layout) {
  const std::filesystem::path problem_file = std::filesystem::path(in) / "problem.txt";
  if (line.empty() && std::filesystem::is_directory(in) && std::filesystem::exists(problem_file)) {
    line = read_text(problem_file);
    while (!line.empty() && (line.back() == '\n' || line.back() == '\r')) line.pop_back();
  }
  TensorFiles files = read_files(in, outputs);
  const Problem inferred = infer(files, chosen_layout(line, layout));
  if (line.empty()) check_presence(files, inferred);
  Given given;
  given.problem = line.empty() ? inferred : agreed(files, parse(line, inferred), inferred);
  if (const std::string why = inconsistency(given.problem); !why.empty()) throw BadInput(why);
  drop_unasked(files, given.problem);
  take_from_line(files, given.problem);
  check_fit(files, given.problem);
  if (given.problem.seqlen_new > 0 && !files.outputs.empty())
    given.changed_cache = take_appended(files, given.problem);
  given.tensors = files.tensors;
  given.owned = std::move(files.owned);
  return given;
}

}  // namespace tilewise::tools
