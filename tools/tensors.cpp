// Files of tensors turned into a problem: what the shapes say is inferred, what they cannot say is
// read from the line, and what the two say differently is refused.
#include "tools/tensors.hpp"

#include "core/quantised.hpp"
#include "oracle/attention.hpp"
#include "oracle/harness/buffers.hpp"
#include "tools/common.hpp"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <string_view>
#include <tuple>
#include <utility>

namespace tilewise::tools {

namespace {
/// The tensor of that name; null if there is no such name.
template <class Tensors>
auto* find(Tensors& tensors, std::string_view name) {
  decltype(&tensors.q) found = nullptr;
  for_each_tensor(tensors, [&](std::string_view each, auto& view) {
    if (each == name) found = &view;
  });
  return found;
}

template <class Value, class... Others>
bool among(const Value& value, const Others&... others) {
  return ((value == others) || ...);
}

/// Whether a call writes the tensor: those that are there only where outputs are asked for.
bool is_output(std::string_view name) {
  const auto shapes = [](const harness::Outputs& outputs) {
    Problem problem;
    problem.bias = Broadcast{};
    problem.sink = true;
    return harness::tensor_shapes(problem, outputs);
  };
  static const AttentionTensors without = shapes(harness::Outputs::none());
  static const AttentionTensors with = shapes(harness::Outputs::all());
  return find(without, name)->ndim == 0 && find(with, name)->ndim != 0;
}

/// Whether a call may write to it: the cache that it appends to.
bool is_cache(std::string_view name) {
  return among(name, "k", "v");
}

bool is_row_scales(std::string_view name) {
  return among(name, "k_scales", "v_scales");
}

/// Of keys and their like, in a cache where there is one.
bool is_of_keys(std::string_view name) {
  return is_cache(name) || is_row_scales(name) || among(name, "k_new", "v_new", "dk", "dv");
}

/// Has both rows and heads, which layouts order.
bool has_rows_and_heads(std::string_view name) {
  return is_of_keys(name) || among(name, "q", "o", "dout", "dq");
}

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

std::string shape_text(const TensorView& view) {
  return fmt::format("[{}]", fmt::join(view.shape, view.shape + view.ndim, ", "));
}

bool same_shape(const TensorView& a, const TensorView& b) {
  return a.ndim == b.ndim && std::equal(a.shape, a.shape + a.ndim, b.shape);
}

void copy_dimension(const TensorView& from, const TensorView& to, int dim, std::int64_t from_offset,
                    std::int64_t to_offset) {
  if (dim == from.ndim) {
    if (from.dtype == to.dtype)
      std::memcpy(to.at(to_offset), from.at(from_offset), size_of(to.dtype));
    else
      store(to.dtype, to.at(to_offset), load(from.dtype, from.at(from_offset)));
    return;
  }
  if (dim == from.ndim - 1 && from.strides[dim] == 1 && to.strides[dim] == 1 &&
      from.dtype == to.dtype) {
    std::memcpy(to.at(to_offset), from.at(from_offset),
                static_cast<std::size_t>(from.shape[dim]) * size_of(to.dtype));
    return;
  }
  for (std::int64_t i = 0; i < from.shape[dim]; ++i)
    copy_dimension(from, to, dim + 1, from_offset + i * from.strides[dim],
                   to_offset + i * to.strides[dim]);
}
}  // namespace

void copy_inputs(const AttentionTensors& from, const AttentionTensors& to) {
  for_each_tensor(to, [&](const char* name, const TensorView& wanted) {
    if (!wanted.exists() || is_output(name)) return;
    const TensorView& given = *find(from, name);
    if (!given.exists())
      throw BadInput(fmt::format("{} is missing: expected {} in {}", name, shape_text(wanted),
                                 name_of(wanted.dtype)));
    const bool convertible = is_floating(given.dtype) && is_floating(wanted.dtype) &&
                             size_of(wanted.dtype) >= size_of(DType::f32);
    if (!same_shape(given, wanted) || (given.dtype != wanted.dtype && !convertible))
      throw BadInput(
          fmt::format("{} has shape {} in {}, and is to be run in {} in {}, as gen "
                      "writes it",
                      name, shape_text(given), name_of(given.dtype), shape_text(wanted),
                      name_of(wanted.dtype)));
    copy_dimension(given, wanted, 0, 0, 0);
  });
}

namespace {
/// 8-bit whole numbers, and the bytes of q8_0's blocks, as i32: what every format here holds.
formats::Array as_i32(const formats::Array& array) {
  formats::Array wide{DType::i32, array.shape, {}};
  if (array.dtype == DType::q8_0) wide.shape.push_back(sizeof(BlockQ8));
  wide.bytes.resize(array.bytes.size() * size_of(DType::i32));
  for (std::size_t n = 0; n < array.bytes.size(); ++n) {
    const auto byte = std::to_integer<std::uint8_t>(array.bytes[n]);
    const bool is_signed = array.dtype == DType::i8;
    store(DType::i32, &wide.bytes[n * size_of(DType::i32)],
          is_signed ? static_cast<std::int8_t>(byte) : byte);
  }
  return wide;
}

formats::Array array_of(const TensorView& view) {
  formats::Array array{view.dtype, {view.shape, view.shape + view.ndim}, {}};
  array.bytes.resize(static_cast<std::size_t>(view.elements()) * size_of(view.dtype));
  if (!array.bytes.empty()) copy_dimension(view, array.view(), 0, 0, 0);
  return among(view.dtype, DType::i8, DType::q8_0) ? as_i32(array) : array;
}
}  // namespace

formats::Arrays to_arrays(const Problem& problem, const AttentionTensors& tensors, bool inputs) {
  formats::Arrays arrays;
  for_each_tensor(tensors, [&](const char* name, const TensorView& view) {
    const bool appended_to = problem.seqlen_new > 0 && is_cache(name);
    const bool wanted = inputs ? !is_output(name) : is_output(name) || appended_to;
    if (!view.exists() || !wanted) return;
    const bool heads_first = problem.layout == Layout::bhsd && has_rows_and_heads(name);
    arrays.emplace(name, array_of(heads_first ? transposed(view, 1, 2) : view));
  });
  return arrays;
}

// ------------------------------------------------------------------------------- files to problem

namespace {
/// The whole numbers of a contiguous tensor, each of which must be from `low` to `high`.
std::vector<std::int64_t> whole_numbers(const TensorView& view, std::string_view name,
                                        std::int64_t low, std::int64_t high) {
  std::vector<std::int64_t> numbers;
  for (std::int64_t n = 0; n < view.elements(); ++n) {
    const double number = load(view.dtype, view.at(n));
    if (!(number >= static_cast<double>(low) && number <= static_cast<double>(high)))
      throw BadInput(fmt::format("{} holds {}: expected whole numbers from {} to {}", name, number,
                                 low, high));
    numbers.push_back(static_cast<std::int64_t>(number));
  }
  return numbers;
}

/// Turns whole numbers into i32, or factors into f32: the types that they have in a call.
formats::Array as_type(formats::Array array, std::string_view name, DType dtype) {
  if (array.dtype == dtype) return array;
  using Limits = std::numeric_limits<std::int32_t>;
  if (dtype == DType::i32) whole_numbers(array.view(), name, Limits::min(), Limits::max());
  formats::Array result{dtype, array.shape, {}};
  const auto count = static_cast<std::size_t>(array.elements());
  result.bytes.resize(count * size_of(dtype));
  for (std::size_t i = 0; i < count; ++i)
    store(dtype, result.bytes.data() + i * size_of(dtype),
          load(array.dtype, array.bytes.data() + i * size_of(array.dtype)));
  return result;
}

bool is_whole(DType dtype) {
  return among(dtype, DType::i32, DType::i64, DType::i8);
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

/// Adds leading dimensions of size 1 until there are four: numpy's broadcasting.
TensorView broadcast_to_four(TensorView view, const char* name) {
  if (view.ndim > 4)
    throw BadInput(
        fmt::format("{} has shape {}: expected at most the four dimensions [batch, "
                    "nheads_q, seqlen_q, seqlen_k]",
                    name, shape_text(view)));
  TensorView four = view;
  four.ndim = 4;
  for (int dim = 0; dim < 4; ++dim) {
    const int source = dim - (4 - view.ndim);
    four.shape[dim] = source < 0 ? 1 : view.shape[source];
    four.strides[dim] = source < 0 ? 0 : view.strides[source];
  }
  return four;
}

class Reader {
 public:
  Reader(const std::string& in, const std::string& outputs) {
    take(in, true);
    if (!outputs.empty()) take(outputs, false);
    for (const char* name : {"q", "k", "v"})
      if (!has(name))
        throw BadInput(
            fmt::format("{} holds no {}: expected q, k, v and, where the problem has "
                        "them, {}",
                        in, name, rest_of(names_of(true), 3)));
    outputs_ = outputs;
    if (!outputs.empty() && !has("o"))
      throw BadInput(
          fmt::format("{} holds no o: expected o [{}]", outputs, rest_of(names_of(false), 1)));
  }

  Given read(const std::string& line, const std::string& layout) {
    Given given;
    const Problem inferred = infer(chosen_layout(line, layout));
    if (line.empty()) check_presence(inferred);
    given.problem = line.empty() ? inferred : agreed(parse(line, inferred), inferred);
    if (const std::string why = inconsistency(given.problem); !why.empty()) throw BadInput(why);
    drop_unasked(given.problem);
    take_from_line(given.problem);
    check_shapes(given.problem);
    check_block_lists();
    check_places(given.problem);
    if (given.problem.seqlen_new > 0 && !outputs_.empty())
      given.changed_cache = take_appended(given.problem);
    given.tensors = tensors_;
    given.owned = std::move(owned_);
    return given;
  }

 private:
  // ---- files to tensors

  void take(const std::string& path, bool input) {
    formats::Arrays arrays = value_of(formats::read_arrays(path));
    // A file with a single array needs no name for it when it can only be o.
    if (!input && arrays.size() == 1 && find(tensors_, arrays.begin()->first) == nullptr) {
      auto only = arrays.extract(arrays.begin());
      only.key() = std::string("o");
      arrays.insert(std::move(only));
    }
    for (auto& [name, array] : arrays) {
      if (find(tensors_, name) == nullptr) {
        const std::vector<std::string> known = names_of(input);
        const std::string guess = closest(name, known);
        throw BadInput(fmt::format("{} holds \"{}\": expected {}{}", path, name,
                                   fmt::join(known, " "),
                                   guess.empty() ? "" : fmt::format("; did you mean {}?", guess)));
      }
      if (!input && is_cache(name))
        add(updated_, name, std::move(array), path);
      else if (is_output(name) != input)
        add(tensors_, name, std::move(array), path);
    }
  }

  void add(AttentionTensors& tensors, std::string_view name, formats::Array array,
           const std::string& path) {
    check_dtype(name, array.dtype, path);
    if (const std::optional<DType> fixed = fixed_dtype(name))
      array = as_type(std::move(array), name, *fixed);
    if (array.elements() == 0)
      throw BadInput(fmt::format("{} in {} has no elements: expected at least one", name, path));
    owned_.push_back(std::move(array));
    *find(tensors, name) = owned_.back().view();
  }

  static std::string rest_of(std::vector<std::string> names, std::ptrdiff_t known) {
    names.erase(names.begin(), names.begin() + known);
    return fmt::format("{}", fmt::join(names, " "));
  }

  TensorView& tensor(std::string_view name) { return *find(tensors_, name); }
  const TensorView& tensor(std::string_view name) const { return *find(tensors_, name); }
  bool has(std::string_view name) const { return tensor(name).exists(); }

  /// bshd or bhsd, for 4-D tensors: as --layout or the line says.
  static Layout chosen_layout(const std::string& line, const std::string& layout) {
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

  // ---- what shapes, dtypes and lengths say

  Problem infer(Layout wanted) {
    Problem problem;
    problem.layout = find_layout(wanted);
    for (const char* name : {"k", "v"}) unpack(name);
    for_each_tensor(tensors_, [&](const char* name, TensorView& view) {
      if (view.exists() && has_rows_and_heads(name)) view = logical(name, view);
    });
    if (has("lse") && flat_ && tensors_.lse.ndim == 1) {
      const TensorView lse = tensors_.lse;
      tensors_.lse = contiguous(lse.data, lse.dtype, 1, 1, lse.shape[0]);
    }

    const TensorView &q = tensors_.q, &k = tensors_.k, &v = tensors_.v;
    problem.dtype = q.dtype;
    // Of another dtype, but not as a kernel would have it, they are an error of check_shapes().
    if (k.dtype != q.dtype && among(k.dtype, DType::e4m3, DType::e5m2, DType::i8, DType::q8_0))
      problem.kv = k.dtype;
    problem.nheads_q = q.shape[q.ndim - 2];
    problem.nheads_k = k.shape[k.ndim - 2];
    problem.head_dim = q.shape[q.ndim - 1];
    problem.head_dim_v = v.shape[v.ndim - 1] * numbers_in(v.dtype);
    infer_lengths(problem);
    problem.pass = has("dout") ? Pass::backward : Pass::forward;
    for (const char* gradient : {"dq", "dk", "dv", "dbias", "dsinks"})
      if (has(gradient) && !has("dout"))
        throw BadInput(
            fmt::format("{} is given, but dout is not: expected dout beside q, k and v", gradient));
    problem.alibi = has("alibi_slopes");
    problem.sink = has("sinks");
    problem.descale = has("q_descale") || has("k_descale") || has("v_descale");
    problem.bias = broadcast("bias", problem);
    problem.mask = broadcast("mask", problem);
    if (has("dbias")) tensors_.dbias = broadcast_to_four(tensors_.dbias, "dbias");
    if (cached_) infer_cache(problem);
    if (has("seqlens_q") && !packed_) drop_common_padding(problem);
    return problem;
  }

  Layout find_layout(Layout wanted) {
    const TensorView& q = tensors_.q;
    cached_ = tensors_.cache.exists();
    packed_ = has("cu_seqlens_q") || has("cu_seqlens_k");
    if (cached_ && has("cu_seqlens_k"))
      throw BadInput(
          "cu_seqlens_k is given beside a cache: expected seqlens_k, how many of its rows count");
    if (cached_ && !has("seqlens_k"))
      throw BadInput("seqlens_k is missing: a cache comes with how many of its rows count");
    if (packed_ && !(has("cu_seqlens_q") && (has("cu_seqlens_k") || cached_)))
      throw BadInput(
          fmt::format("{} is missing: packed sequences need cu_seqlens_q and cu_seqlens_k",
                      has("cu_seqlens_q") ? "cu_seqlens_k" : "cu_seqlens_q"));
    if (!packed_ && (wanted == Layout::packed || q.ndim == 3))
      throw BadInput(
          fmt::format("q has shape {}, and cu_seqlens_q is absent: packed tensors [total, nheads, "
                      "head_dim] come with cu_seqlens_q and cu_seqlens_k, and one sequence that is "
                      "not packed has the four dimensions [1, seqlen, nheads, head_dim]",
                      shape_text(q)));
    if (cached_ && q.ndim == 2)
      throw BadInput(
          fmt::format("q has shape {}: expected [batch, seqlen_q, nheads_q, head_dim] "
                      "beside a cache",
                      shape_text(q)));
    flat_ = q.ndim == 2;
    const Layout layout = packed_ ? Layout::packed : flat_ ? Layout::bshd : wanted;
    bhsd_ = layout == Layout::bhsd;
    return layout;
  }

  /// Whole numbers of k or v are those of i8, or with one more dimension the bytes of q8_0's
  /// blocks.
  void unpack(const char* name) {
    TensorView& stored = tensor(name);
    if (!is_whole(stored.dtype)) return;
    const int last = stored.ndim - 1;
    const bool blocks = stored.ndim > (cached_ ? 4 : tensors_.q.ndim);
    if (blocks && stored.shape[last] != sizeof(BlockQ8))
      throw BadInput(
          fmt::format("{} has shape {}: expected {} bytes, a block of q8_0, in its last "
                      "dimension",
                      name, shape_text(stored), sizeof(BlockQ8)));
    formats::Array array{blocks ? DType::q8_0 : DType::i8,
                         {stored.shape, stored.shape + (blocks ? last : stored.ndim)},
                         {}};
    for (const std::int64_t number : whole_numbers(stored, name, -128, blocks ? 255 : 127))
      array.bytes.push_back(static_cast<std::byte>(number & 0xff));
    owned_.push_back(std::move(array));
    stored = owned_.back().view();
  }

  /// The tensor as [batch, seqlen, nheads, width], or [total, nheads, width] when packed; scales of
  /// rows without the width.
  TensorView logical(std::string_view name, const TensorView& view) const {
    const bool in_cache = cached_ && is_of_keys(name);
    const bool no_width = is_row_scales(name);
    const int wanted = (in_cache ? 4 : packed_ ? 3 : flat_ ? 2 : 4) - (no_width ? 1 : 0);
    if (view.ndim != wanted)
      throw BadInput(fmt::format("{} has shape {}: expected {} dimensions, as {}", name,
                                 shape_text(view), wanted,
                                 in_cache  ? "keys and values are in a cache"
                                 : packed_ ? "cu_seqlens_q says that sequences are packed"
                                 : flat_   ? "q has [seqlen, head_dim]"
                                           : "q has [batch, seqlen, nheads, head_dim]"));
    if (flat_ && no_width) return contiguous(view.data, view.dtype, 1, view.shape[0], 1);
    if (flat_) return contiguous(view.data, view.dtype, 1, view.shape[0], 1, view.shape[1]);
    return bhsd_ ? transposed(view, 1, 2) : view;
  }

  void infer_lengths(Problem& problem) {
    const TensorView &q = tensors_.q, &k = tensors_.k;
    if (packed_) {
      problem.seqlens_q = differences("cu_seqlens_q", q.shape[0]);
      problem.batch = static_cast<std::int64_t>(problem.seqlens_q.size());
    } else {
      problem.batch = q.shape[0];
    }
    if (cached_) {
      problem.seqlens_k = lengths_in_cache(problem.batch);
    } else if (packed_) {
      problem.seqlens_k = differences("cu_seqlens_k", k.shape[0]);
      if (problem.seqlens_k.size() != problem.seqlens_q.size())
        throw BadInput(
            fmt::format("cu_seqlens_q says {} sequences and cu_seqlens_k says {}: "
                        "expected as many",
                        problem.seqlens_q.size(), problem.seqlens_k.size()));
    }
    if (packed_) return;
    if (!cached_ || problem.seqlens_k.size() > 1) add_missing_lengths(problem.batch);
    problem.seqlens_q = lengths("seqlens_q", problem.batch, q.shape[1]);
    if (!cached_) problem.seqlens_k = lengths("seqlens_k", problem.batch, k.shape[1]);
  }

  /// The keys that are attended to, with those that the call appends and without the padding. As
  /// one length where all are alike, unless queries have lengths as well.
  std::vector<std::int64_t> lengths_in_cache(std::int64_t batch) const {
    const auto per_sequence = [&](const char* name) {
      std::vector<std::int64_t> numbers = integers(name);
      if (static_cast<std::int64_t>(numbers.size()) == batch) return numbers;
      throw BadInput(fmt::format("{} has {} elements: expected {}, one for each sequence", name,
                                 numbers.size(), batch));
    };
    std::vector<std::int64_t> lengths = per_sequence("seqlens_k");
    if (has("cache_leftpad")) {
      const std::vector<std::int64_t> padding = per_sequence("cache_leftpad");
      for (std::size_t b = 0; b < lengths.size(); ++b) {
        if (padding[b] < 0 || padding[b] > lengths[b])
          throw BadInput(
              fmt::format("cache_leftpad says {} for sequence {}: expected 0 to {}, the rows of "
                          "its cache that count",
                          padding[b], b, lengths[b]));
        lengths[b] -= padding[b];
      }
    }
    for (std::int64_t& length : lengths) {
      if (length < 0)
        throw BadInput(fmt::format("seqlens_k is [{}]: expected lengths of at least 0",
                                   fmt::join(integers("seqlens_k"), ", ")));
      length += tensors_.cache.seqlen_new();
    }
    const bool alike = std::all_of(lengths.begin(), lengths.end(),
                                   [&](std::int64_t length) { return length == lengths.front(); });
    if (alike && !has("seqlens_q")) lengths.resize(1);
    return lengths;
  }

  void infer_cache(Problem& problem) const {
    const KvCache& cache = tensors_.cache;
    if (cache.paged()) problem.page = tensors_.k.shape[1];
    if (cache.cache_batch_idx.exists()) problem.slots = tensors_.k.shape[0];
    if (cache.leftpad.exists()) {
      const std::vector<std::int64_t> padding = integers("cache_leftpad");
      problem.leftpad =
          std::max<std::int64_t>(1, *std::max_element(padding.begin(), padding.end()));
    }
    problem.seqlen_new = cache.seqlen_new();
    if (!cache.rotates()) return;
    if (cache.rotary_cos.ndim != 2)
      throw BadInput(fmt::format("rotary_cos has shape {}: expected [positions, pairs]",
                                 shape_text(cache.rotary_cos)));
    problem.rotary = Rotary{2 * cache.rotary_cos.shape[1]};
  }

  /// Lengths of one side alone: on the other, every row counts.
  void add_missing_lengths(std::int64_t batch) {
    if (has("seqlens_q") == has("seqlens_k")) return;
    const TensorView& side = has("seqlens_q") ? tensors_.k : tensors_.q;
    formats::Array array{DType::i32, {batch}, {}};
    array.bytes.resize(static_cast<std::size_t>(batch) * size_of(DType::i32));
    for (std::int64_t b = 0; b < batch; ++b)
      store(DType::i32, array.view().at(b), static_cast<double>(side.shape[1]));
    add(tensors_, has("seqlens_q") ? "seqlens_k" : "seqlens_q", std::move(array), "memory");
  }

  /// Rows beyond the longest sequence belong to nobody: the views end before them.
  void drop_common_padding(const Problem& problem) {
    const auto cut = [this](const char* name, int dim, std::int64_t from, std::int64_t to) {
      TensorView& padded = tensor(name);
      if (padded.exists() && padded.ndim > dim && padded.shape[dim] == from) padded.shape[dim] = to;
    };
    const std::int64_t rows_q = tensors_.q.shape[1], rows_k = tensors_.k.shape[1];
    const std::int64_t longest_q = problem.max_seqlen_q(), longest_k = problem.max_seqlen_k();
    for (const char* name : {"q", "dout", "o", "dq"}) cut(name, 1, rows_q, longest_q);
    cut("lse", 2, rows_q, longest_q);
    for (const char* name : {"bias", "mask", "dbias"})
      if (tensor(name).shape[2] > 1) cut(name, 2, rows_q, longest_q);
    if (cached_) return;  // a cache has room for more, which belongs to it
    for (const char* name : {"k", "v", "dk", "dv", "k_scales", "v_scales"})
      cut(name, 1, rows_k, longest_k);
    for (const char* name : {"bias", "mask", "dbias"})
      if (tensor(name).shape[3] > 1) cut(name, 3, rows_k, longest_k);
  }

  std::vector<std::int64_t> integers(const char* name) const {
    const TensorView& vector = tensor(name);
    if (vector.ndim != 1)
      throw BadInput(
          fmt::format("{} has shape {}: expected one dimension, [{}]", name, shape_text(vector),
                      std::string_view(name).starts_with("cu_") ? "batch + 1" : "batch"));
    std::vector<std::int64_t> values;
    for (std::int64_t i = 0; i < vector.shape[0]; ++i)
      values.push_back(static_cast<std::int64_t>(load(vector.dtype, vector.at(i))));
    return values;
  }

  std::vector<std::int64_t> differences(const char* name, std::int64_t total) const {
    const std::vector<std::int64_t> sums = integers(name);
    std::vector<std::int64_t> lengths;
    for (std::size_t i = 1; i < sums.size(); ++i) lengths.push_back(sums[i] - sums[i - 1]);
    const bool rising = std::all_of(lengths.begin(), lengths.end(), [](auto n) { return n >= 0; });
    if (sums.size() < 2 || sums.front() != 0 || sums.back() != total || !rising)
      throw BadInput(fmt::format(
          "{} is [{}]: expected prefix sums that rise from 0 to {}, the rows "
          "of {}",
          name, fmt::join(sums, ", "), total, std::string(name).back() == 'q' ? "q" : "k and v"));
    return lengths;
  }

  std::vector<std::int64_t> lengths(const char* name, std::int64_t batch,
                                    std::int64_t seqlen) const {
    if (!has(name)) return {seqlen};
    std::vector<std::int64_t> values = integers(name);
    const bool fit = std::all_of(values.begin(), values.end(),
                                 [&](std::int64_t n) { return n >= 0 && n <= seqlen; });
    if (static_cast<std::int64_t>(values.size()) != batch || !fit)
      throw BadInput(fmt::format("{} is [{}]: expected {} lengths from 0 to {}", name,
                                 fmt::join(values, ", "), batch, seqlen));
    return values;
  }

  /// Which dimensions a bias or a mask has; its view gets all four.
  std::optional<Broadcast> broadcast(const char* name, const Problem& problem) {
    if (!has(name)) return std::nullopt;
    TensorView& four = tensor(name);
    const TensorView given = four;
    four = broadcast_to_four(four, name);
    const std::int64_t full[4] = {
        problem.batch, problem.nheads_q, packed_ ? problem.max_seqlen_q() : tensors_.q.shape[1],
        packed_ || cached_ ? problem.max_seqlen_k() : tensors_.k.shape[1]};
    bool present[4];
    for (int dim = 0; dim < 4; ++dim) {
      present[dim] = four.shape[dim] == full[dim] && full[dim] > 1;
      if (four.shape[dim] != full[dim] && four.shape[dim] != 1)
        throw BadInput(fmt::format(
            "{} has shape {}: expected something that broadcasts to [batch {}, nheads_q {}, "
            "seqlen_q {}, seqlen_k {}]",
            name, shape_text(given), full[0], full[1], full[2], full[3]));
    }
    return Broadcast{present[0], present[1], present[2], present[3]};
  }

  // ---- what the line says

  /// The line's problem, unless it says another thing than the shapes do.
  Problem agreed(Problem said, const Problem& shapes) const {
    const auto expect = [](const std::string& what, const auto& line, const auto& files) {
      if (!(line == files))
        throw BadInput(
            fmt::format("the problem says {} {}, but the files say {}", what, line, files));
    };
    const auto name = [](Layout layout) {
      return layout == Layout::bshd ? "bshd" : layout == Layout::bhsd ? "bhsd" : "packed";
    };
    if (!flat_) expect("layout", std::string(name(said.layout)), std::string(name(shapes.layout)));
    expect("dtype", name_of(said.dtype), name_of(shapes.dtype));
    expect("kv", name_of(said.kv_dtype()), name_of(shapes.kv_dtype()));
    if (said.pass == Pass::backward && !has("dout"))
      throw BadInput(
          "the problem says bwd, but the files hold no dout: expected it beside q, k, v");
    check_presence(said);
    expect("batch", said.batch, shapes.batch);
    expect("nheads_q (hq)", said.nheads_q, shapes.nheads_q);
    expect("nheads_k (hk)", said.nheads_k, shapes.nheads_k);
    expect("head_dim (d)", said.head_dim, shapes.head_dim);
    expect("head_dim_v (dv)", said.head_dim_v, shapes.head_dim_v);
    for (std::int64_t b = 0; b < shapes.batch; ++b) {
      expect(fmt::format("seqlen_q of sequence {}", b), said.seqlen_q(b), shapes.seqlen_q(b));
      expect(fmt::format("seqlen_k of sequence {}", b), said.seqlen_k(b), shapes.seqlen_k(b));
    }
    agree_on("bias", said.bias, shapes.bias, shapes);
    agree_on("mask", said.mask, shapes.mask, shapes);
    expect("page", said.page, shapes.page);
    expect("slots", said.slots, shapes.slots);
    expect("new", said.seqlen_new, shapes.seqlen_new);
    if (said.rotary) expect("rotary", said.rotary->elements, shapes.rotary->elements);
    if (said.leftpad < shapes.leftpad)
      throw BadInput(fmt::format("the problem says leftpad {}, but cache_leftpad holds {}",
                                 said.leftpad, shapes.leftpad));
    said.seqlens_q = shapes.seqlens_q;
    said.seqlens_k = shapes.seqlens_k;
    said.layout = shapes.layout;
    return said;
  }

  /// A dimension of size 1 is present and broadcast alike.
  static void agree_on(const std::string& name, std::optional<Broadcast>& said,
                       const std::optional<Broadcast>& files, const Problem& shapes) {
    if (!said) return;
    const bool same = (said->batch == files->batch || shapes.batch == 1) &&
                      (said->head == files->head || shapes.nheads_q == 1) &&
                      (said->query == files->query || shapes.max_seqlen_q() <= 1) &&
                      (said->key == files->key || shapes.max_seqlen_k() <= 1);
    if (!same)
      throw BadInput(
          fmt::format("the problem and the shape of {} differ on which of batch, head, "
                      "query and key it has",
                      name));
    said = files;
  }

  /// Every input that the problem has is there, and no other.
  void check_presence(const Problem& problem) const {
    if (has("kv_num_blocks") && !problem.blocks)
      throw BadInput(
          "kv_num_blocks is given, and no shape says how large a block is: expected "
          "blocks=BLOCK_Q,BLOCK_K,DENSITY in the problem");
    const AttentionTensors expected = harness::tensor_shapes(problem, harness::Outputs::none());
    for_each_tensor(expected, [&](std::string_view name, const TensorView& wanted) {
      // Lengths may be given where all rows count; what backward needs, agreed() knows.
      if (is_output(name) || name == "dout") return;
      if (among(name, "seqlens_q", "seqlens_k") && !packed_) return;
      const bool optional = among(name, "full_kv_num_blocks", "full_kv_indices") &&
                            has("full_kv_num_blocks") == has("full_kv_indices");
      if (wanted.ndim != 0 && !has(name) && !optional)
        throw BadInput(fmt::format("the problem needs {0}, but the files hold no {0}", name));
      if (wanted.ndim == 0 && has(name))
        throw BadInput(fmt::format("{} is given, but the problem says that there is none", name));
    });
  }

  void take_from_line(const Problem& problem) {
    if (problem.blocks) {
      tensors_.block_mask.block_q = problem.blocks->block_q;
      tensors_.block_mask.block_k = problem.blocks->block_k;
    }
    if (problem.rotary) tensors_.cache.rotary_interleaved = problem.rotary->interleaved;
  }

  /// A forward problem judges no gradients, whatever the files hold.
  void drop_unasked(const Problem& problem) {
    if (problem.pass == Pass::backward) return;
    for (const char* name : {"dout", "dq", "dk", "dv", "dbias", "dsinks"}) tensor(name) = {};
  }

  // ---- whether all of it fits together

  /// The shapes of the problem's tensors, as large as files may have them.
  AttentionTensors expected_shapes(const Problem& problem) const {
    AttentionTensors expected = harness::tensor_shapes(problem, harness::Outputs::all());
    expected.bias = tensors_.bias;  // broadcast() has looked at them
    expected.mask = tensors_.mask;
    expected.dbias = tensors_.bias;
    expected.dbias.dtype = lesser(DType::f32, problem.output_dtype());
    if (problem.blocks)
      for (const char* name :
           {"kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices"})
        for (int dim = 0; dim < 2; ++dim)  // one list may serve all sequences, or all heads
          if (tensors_.block_mask.kv_num_blocks.shape[dim] == 1)
            find(expected, name)->shape[dim] = 1;
    if (!cached_) return expected;
    // Caches and tables have room for more than the problem needs.
    const auto as_given = [&](const char* name, int dim, const TensorView& given) {
      find(expected, name)->shape[dim] = given.shape[dim];
    };
    for (const char* name : {"k", "v", "k_scales", "v_scales"})
      as_given(name, tensors_.cache.paged() ? 0 : 1, tensors_.k);
    as_given("block_table", 1, tensors_.cache.block_table);
    for (const char* name : {"rotary_cos", "rotary_sin"})
      as_given(name, 0, tensors_.cache.rotary_cos);
    return expected;
  }

  static DType lesser(DType a, DType b) {
    return info(a).significand < info(b).significand ? a : b;
  }

  void check_shapes(const Problem& problem) const {
    const AttentionTensors expected = expected_shapes(problem);
    for_each_tensor(tensors_, [&](std::string_view name, const TensorView& given) {
      const TensorView& wanted = *find(expected, name);
      if (!given.exists() || among(name, "seqlens_q", "seqlens_k")) return;
      if (is_output(name) && wanted.ndim == 0)
        throw BadInput(fmt::format("{} is given, but the problem has no {}", name, name.substr(1)));
      if (!same_shape(given, wanted))
        throw BadInput(fmt::format("{} has shape {}: expected {} to go with q {}, k {}, v {}", name,
                                   in_file(name, given), in_file(name, wanted),
                                   in_file("q", tensors_.q), in_file("k", tensors_.k),
                                   in_file("v", tensors_.v)));
      const auto wrong = [&](std::string_view what, const char* as) {
        throw BadInput(fmt::format("{} is {}: expected {}, as {} is {}", name, name_of(given.dtype),
                                   what, as,
                                   name_of(*as == 'k' ? tensors_.k.dtype : problem.dtype)));
      };
      if (among(name, "k", "v", "k_new", "v_new", "dout") && given.dtype != wanted.dtype)
        wrong(name_of(wanted.dtype), name == "v" && problem.kv ? "k" : "q");
      if (among(name, "rotary_cos", "rotary_sin") && !among(given.dtype, DType::f32, problem.dtype))
        wrong(fmt::format("f32 or {}", name_of(problem.dtype)), "q");
      // An output may be more precise than expected, never less.
      if (is_output(name) && info(given.dtype).significand < info(wanted.dtype).significand)
        wrong(fmt::format("{} or more precise", name_of(wanted.dtype)), "q");
    });
  }

  std::string in_file(std::string_view name, const TensorView& view) const {
    if (!has_rows_and_heads(name)) return shape_text(view);
    if (flat_ && view.ndim == 4) return fmt::format("[{}, {}]", view.shape[1], view.shape[3]);
    return shape_text(bhsd_ ? transposed(view, 1, 2) : view);
  }

  /// Counts within their list, and blocks that are there.
  void check_block_lists() const {
    const BlockMask& mask = tensors_.block_mask;
    if (!mask.exists()) return;
    for (const auto& [counts, indices, name] :
         {std::tuple{&mask.kv_num_blocks, &mask.kv_indices, "kv_num_blocks"},
          std::tuple{&mask.full_kv_num_blocks, &mask.full_kv_indices, "full_kv_num_blocks"}}) {
      if (!counts->exists()) continue;
      const std::int64_t columns = indices->shape[3];
      const std::vector<std::int64_t> lengths = whole_numbers(*counts, name, 0, columns);
      for (std::size_t row = 0; row < lengths.size(); ++row)
        for (std::int64_t n = 0; n < lengths[row]; ++n) {
          const auto block = static_cast<std::int64_t>(
              load(indices->dtype, indices->at(static_cast<std::int64_t>(row) * columns + n)));
          if (block < 0 || block >= columns)
            throw BadInput(
                fmt::format("{} counts key block {}: expected 0 to {}", name, block, columns - 1));
        }
    }
  }

  /// Every row of a cache that is read, written or turned by is there.
  void check_places(const Problem& problem) const {
    if (!cached_) return;
    const KvCache& cache = tensors_.cache;
    const std::int64_t blocks = tensors_.k.shape[0], block_rows = tensors_.k.shape[1];
    const std::vector<std::int64_t> held = integers("seqlens_k");
    const auto number = [](const TensorView& list, std::int64_t at) {
      return static_cast<std::int64_t>(load(list.dtype, list.at(at)));
    };
    for (std::int64_t b = 0; b < problem.batch; ++b) {
      const std::int64_t before = held[static_cast<std::size_t>(b)];
      const std::int64_t end = before + problem.seqlen_new;
      const std::int64_t pages = cache.paged() ? cache.block_table.shape[1] : 1;
      if (end > pages * block_rows)
        throw BadInput(
            fmt::format("sequence {} has {} rows in the cache and {} new ones: its cache has "
                        "room for {}",
                        b, before, problem.seqlen_new, pages * block_rows));
      const auto expect_block = [&](std::string_view list, std::int64_t block) {
        if (block < 0 || block >= blocks)
          throw BadInput(fmt::format("{} names {} for sequence {}: expected 0 to {}", list, block,
                                     b, blocks - 1));
      };
      if (cache.cache_batch_idx.exists())
        expect_block("cache_batch_idx", number(cache.cache_batch_idx, b));
      // The table's entries for pages of padding alone, and behind the last row, may be anything.
      const std::int64_t first = end - problem.seqlen_k(b);
      for (std::int64_t page = first / block_rows; cache.paged() && page * block_rows < end; ++page)
        if (end > first) expect_block("block_table", number(cache.block_table, b * pages + page));
      const std::int64_t turned = std::max(problem.seqlen_new, problem.seqlen_q(b));
      if (cache.rotates() && turned > 0 && before + turned > cache.rotary_cos.shape[0])
        throw BadInput(
            fmt::format("rotary_cos has {} positions: expected at least {} for "
                        "sequence {}, its rows in the cache and then the new ones",
                        cache.rotary_cos.shape[0], before + turned, b));
    }
  }

  // ---- the cache after the call

  /// Puts the rows that the outputs have appended into k and v. A sentence on what else differs
  /// there, or empty.
  std::string take_appended(const Problem& problem) {
    std::string changed;
    const oracle::Case rows(problem, tensors_);
    for (const char* name : {"k", "v"}) {
      TensorView& cache = tensor(name);
      TensorView after = *find(updated_, name);
      if (!after.exists())
        throw BadInput(
            fmt::format("{} holds no {}: expected the cache as it is after the call, "
                        "which appends to it",
                        outputs_, name));
      after = logical(name, after);
      if (after.dtype != cache.dtype || !same_shape(after, cache))
        throw BadInput(
            fmt::format("{} in {} has shape {} in {}: expected {} in {}, as before the "
                        "call",
                        name, outputs_, in_file(name, after), name_of(after.dtype),
                        in_file(name, cache), name_of(cache.dtype)));
      const std::size_t size = size_of(cache.dtype);
      for (std::int64_t b = 0; b < problem.batch; ++b)
        for (std::int64_t n = 0; n < problem.seqlen_new; ++n)
          for (std::int64_t h = 0; h < problem.nheads_k; ++h) {
            const std::int64_t j = problem.seqlen_k(b) - problem.seqlen_new + n;
            const std::int64_t at = rows.offset(cache, oracle::Side::key, b, j, h);
            std::memcpy(cache.at(at), after.at(at),
                        static_cast<std::size_t>(cache.shape[3]) * size);
          }
      const auto elements = static_cast<std::size_t>(cache.elements());
      const auto* const expected = static_cast<const std::byte*>(cache.data);
      const auto* const found = static_cast<const std::byte*>(after.data);
      const auto* const differs = std::mismatch(expected, expected + elements * size, found).first;
      if (changed.empty() && differs != expected + elements * size)
        changed = fmt::format("{} changed outside of the rows to append, first at element {}", name,
                              static_cast<std::size_t>(differs - expected) / size);
    }
    return changed;
  }

  AttentionTensors tensors_;
  AttentionTensors updated_;  // of the outputs: k and v, the cache after the call
  std::deque<formats::Array> owned_;
  std::string outputs_;
  bool packed_ = false;
  bool cached_ = false;
  bool flat_ = false;  // 2-D tensors: one head of one sequence
  bool bhsd_ = false;
};
}  // namespace

Given read_given(const std::string& in, const std::string& outputs, std::string line,
                 const std::string& layout) {
  const std::filesystem::path problem_file = std::filesystem::path(in) / "problem.txt";
  if (line.empty() && std::filesystem::is_directory(in) && std::filesystem::exists(problem_file)) {
    line = read_text(problem_file);
    while (!line.empty() && (line.back() == '\n' || line.back() == '\r')) line.pop_back();
  }
  return Reader(in, outputs).read(line, layout);
}

}  // namespace tilewise::tools
