// Files of tensors turned into a problem: what the shapes say is inferred, what they cannot say is
// read from the line, and what the two say differently is refused.
#include "tools/tensors.hpp"

#include "oracle/harness/buffers.hpp"
#include "tools/common.hpp"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>

namespace tilewise::tools {

namespace {
std::string shape_text(const TensorView& view) {
  return fmt::format("[{}]", fmt::join(view.shape, view.shape + view.ndim, ", "));
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

void copy_elements(const TensorView& from, const TensorView& to) {
  const bool convertible = is_floating(from.dtype) && is_floating(to.dtype);
  if (from.ndim != to.ndim || (from.dtype != to.dtype && !convertible) ||
      !std::equal(from.shape, from.shape + from.ndim, to.shape))
    throw BadInput(fmt::format("a tensor of shape {} in {} was given where {} in {} is expected",
                               shape_text(from), name_of(from.dtype), shape_text(to),
                               name_of(to.dtype)));
  copy_dimension(from, to, 0, 0, 0);
}

void copy_inputs(const AttentionTensors& from, const AttentionTensors& to) {
  for (const TensorName& row : tensor_names)
    if (row.input && (from.*row.view).exists() && (to.*row.view).exists())
      copy_elements(from.*row.view, to.*row.view);
}

formats::Arrays to_arrays(const Problem& problem, const AttentionTensors& tensors, bool inputs) {
  formats::Arrays arrays;
  for (const TensorName& row : tensor_names) {
    TensorView view = tensors.*row.view;
    if (row.input != inputs || !view.exists()) continue;
    if (row.sequence && problem.layout == Layout::bhsd) view = transposed(view, 1, 2);
    formats::Array array{view.dtype, {view.shape, view.shape + view.ndim}, {}};
    array.bytes.resize(static_cast<std::size_t>(view.elements()) * size_of(view.dtype));
    if (!array.bytes.empty()) copy_elements(view, array.view());
    arrays.emplace(row.name, std::move(array));
  }
  return arrays;
}

// ------------------------------------------------------------------------------- files to problem

namespace {
const TensorName* find_name(const std::string& name) {
  const auto* row =
      std::find_if(std::begin(tensor_names), std::end(tensor_names),
                   [&](const TensorName& candidate) { return candidate.name == name; });
  return row == std::end(tensor_names) ? nullptr : row;
}

/// Turns an integer array into i32, or slopes into f32: the types that they have in a call.
formats::Array as_type(formats::Array array, DType dtype) {
  if (array.dtype == dtype) return array;
  formats::Array result{dtype, array.shape, {}};
  const auto count = static_cast<std::size_t>(array.elements());
  result.bytes.resize(count * size_of(dtype));
  for (std::size_t i = 0; i < count; ++i)
    store(dtype, result.bytes.data() + i * size_of(dtype),
          load(array.dtype, array.bytes.data() + i * size_of(array.dtype)));
  return result;
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
            fmt::format("{} holds no {}: expected q, k, v [dout bias mask alibi_slopes "
                        "cu_seqlens_q cu_seqlens_k seqlens_q seqlens_k]",
                        in, name));
    if (!outputs.empty() && !has("o"))
      throw BadInput(fmt::format("{} holds no o: expected o [lse dq dk dv]", outputs));
  }

  Given read(const std::string& line, const std::string& layout) {
    Given given;
    const Problem inferred = infer(chosen_layout(line, layout));
    given.problem = line.empty() ? inferred : agreed(parse(line, inferred), inferred);
    if (const std::string why = inconsistency(given.problem); !why.empty()) throw BadInput(why);
    given.tensors = tensors_;
    drop_unasked(given);
    check_shapes(given);
    given.owned = std::move(owned_);
    return given;
  }

 private:
  void take(const std::string& path, bool input) {
    formats::Arrays arrays = value_of(formats::read_arrays(path));
    // A file with a single array needs no name for it when it can only be o.
    if (!input && arrays.size() == 1 && find_name(arrays.begin()->first) == nullptr) {
      auto only = arrays.extract(arrays.begin());
      only.key() = std::string("o");
      arrays.insert(std::move(only));
    }
    for (auto& [name, array] : arrays) {
      const TensorName* row = find_name(name);
      if (row == nullptr) {
        std::vector<std::string> known;
        for (const TensorName& candidate : tensor_names)
          if (candidate.input == input) known.emplace_back(candidate.name);
        const std::string guess = closest(name, known);
        throw BadInput(fmt::format("{} holds \"{}\": expected {}{}", path, name,
                                   fmt::join(known, " "),
                                   guess.empty() ? "" : fmt::format("; did you mean {}?", guess)));
      }
      if (row->input == input) add(*row, std::move(array), path);
    }
  }

  void add(const TensorName& row, formats::Array array, const std::string& path) {
    const std::string name = row.name;
    const bool lengths = name.find("seqlens") != std::string::npos;
    if (lengths) {
      if (array.dtype != DType::i32 && array.dtype != DType::i64)
        throw BadInput(
            fmt::format("{} in {} is {}: expected i32 or i64", name, path, name_of(array.dtype)));
      array = as_type(std::move(array), DType::i32);
    } else if (name == "mask" ? array.dtype != DType::boolean : !is_floating(array.dtype)) {
      throw BadInput(fmt::format("{} in {} is {}: expected {}", name, path, name_of(array.dtype),
                                 name == "mask" ? "bool" : "a floating-point format"));
    }
    if (name == "alibi_slopes") array = as_type(std::move(array), DType::f32);
    if (array.shape.size() > TensorView::max_dims)
      throw BadInput(fmt::format("{} in {} has {} dimensions: expected [{}]", name, path,
                                 array.shape.size(), row.shape));
    if (array.elements() == 0)
      throw BadInput(fmt::format("{} in {} has no elements: expected [{}]", name, path, row.shape));
    owned_.push_back(std::move(array));
    tensors_.*row.view = owned_.back().view();
  }

  bool has(const std::string& name) const { return (tensors_.*find_name(name)->view).exists(); }

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

  /// Everything that shapes and dtypes say.
  Problem infer(Layout wanted) {
    Problem problem;
    const TensorView& q = tensors_.q;
    const bool packed = has("cu_seqlens_q") || has("cu_seqlens_k");
    if (packed && !(has("cu_seqlens_q") && has("cu_seqlens_k")))
      throw BadInput(
          fmt::format("{} is missing: packed sequences need cu_seqlens_q and cu_seqlens_k",
                      has("cu_seqlens_q") ? "cu_seqlens_k" : "cu_seqlens_q"));
    if (!packed && (wanted == Layout::packed || q.ndim == 3))
      throw BadInput(
          fmt::format("q has shape {}, and cu_seqlens_q is absent: packed tensors [total, nheads, "
                      "head_dim] come with cu_seqlens_q and cu_seqlens_k, and one sequence that is "
                      "not packed has the four dimensions [1, seqlen, nheads, head_dim]",
                      shape_text(q)));
    problem.layout = packed ? Layout::packed : q.ndim == 2 ? Layout::bshd : wanted;
    flat_ = q.ndim == 2;
    bhsd_ = problem.layout == Layout::bhsd;
    for (const TensorName& row : tensor_names)
      if (row.sequence && has(row.name)) tensors_.*row.view = logical(row, packed);
    if (has("lse") && flat_ && tensors_.lse.ndim == 1) {
      const TensorView lse = tensors_.lse;
      tensors_.lse = contiguous(lse.data, lse.dtype, 1, 1, lse.shape[0]);
    }

    problem.dtype = q.dtype;
    const int heads = packed ? 1 : 2;
    problem.nheads_q = tensors_.q.shape[heads];
    problem.nheads_k = tensors_.k.shape[heads];
    problem.head_dim = tensors_.q.shape[heads + 1];
    problem.head_dim_v = tensors_.v.shape[heads + 1];
    if (packed) {
      problem.seqlens_q = differences("cu_seqlens_q", tensors_.q.shape[0]);
      problem.seqlens_k = differences("cu_seqlens_k", tensors_.k.shape[0]);
      problem.batch = static_cast<std::int64_t>(problem.seqlens_q.size());
      if (problem.seqlens_k.size() != problem.seqlens_q.size())
        throw BadInput(
            fmt::format("cu_seqlens_q says {} sequences and cu_seqlens_k says {}: "
                        "expected as many",
                        problem.seqlens_q.size(), problem.seqlens_k.size()));
    } else {
      problem.batch = tensors_.q.shape[0];
      add_missing_lengths(problem.batch);
      problem.seqlens_q = lengths("seqlens_q", problem.batch, tensors_.q.shape[1]);
      problem.seqlens_k = lengths("seqlens_k", problem.batch, tensors_.k.shape[1]);
    }
    problem.pass = has("dout") ? Pass::backward : Pass::forward;
    for (const char* gradient : {"dq", "dk", "dv"})
      if (has(gradient) && !has("dout"))
        throw BadInput(
            fmt::format("{} is given, but dout is not: expected dout beside q, k and v", gradient));
    problem.alibi = has("alibi_slopes");
    problem.bias = broadcast("bias", problem);
    problem.mask = broadcast("mask", problem);
    if (has("seqlens_q")) drop_common_padding(problem);
    return problem;
  }

  /// Lengths of one side alone: on the other, every row counts.
  void add_missing_lengths(std::int64_t batch) {
    if (has("seqlens_q") == has("seqlens_k")) return;
    const TensorView& side = has("seqlens_q") ? tensors_.k : tensors_.q;
    formats::Array array{DType::i32, {batch}, {}};
    array.bytes.resize(static_cast<std::size_t>(batch) * size_of(DType::i32));
    for (std::int64_t b = 0; b < batch; ++b)
      store(DType::i32, array.view().at(b), static_cast<double>(side.shape[1]));
    add(*find_name(has("seqlens_q") ? "seqlens_k" : "seqlens_q"), std::move(array), "memory");
  }

  /// Rows beyond the longest sequence belong to nobody: the views end before them.
  void drop_common_padding(const Problem& problem) {
    const auto cut = [this](const char* name, int dim, std::int64_t from, std::int64_t to) {
      TensorView& view = tensors_.*find_name(name)->view;
      if (view.exists() && view.ndim > dim && view.shape[dim] == from) view.shape[dim] = to;
    };
    const std::int64_t rows_q = tensors_.q.shape[1], rows_k = tensors_.k.shape[1];
    const std::int64_t longest_q = problem.max_seqlen_q(), longest_k = problem.max_seqlen_k();
    for (const char* name : {"q", "dout", "o", "dq"}) cut(name, 1, rows_q, longest_q);
    for (const char* name : {"k", "v", "dk", "dv"}) cut(name, 1, rows_k, longest_k);
    cut("lse", 2, rows_q, longest_q);
    for (const char* name : {"bias", "mask"})
      if (has(name)) {
        if ((tensors_.*find_name(name)->view).shape[2] > 1) cut(name, 2, rows_q, longest_q);
        if ((tensors_.*find_name(name)->view).shape[3] > 1) cut(name, 3, rows_k, longest_k);
      }
  }

  /// The tensor as [batch, seqlen, nheads, width], or [total, nheads, width] when packed.
  TensorView logical(const TensorName& row, bool packed) const {
    const TensorView view = tensors_.*row.view;
    const int wanted = packed ? 3 : flat_ ? 2 : 4;
    if (view.ndim != wanted)
      throw BadInput(fmt::format("{} has shape {}: expected {} dimensions, as {}", row.name,
                                 shape_text(view), wanted,
                                 packed  ? "cu_seqlens_q says that sequences are packed"
                                 : flat_ ? "q has [seqlen, head_dim]"
                                         : "q has [batch, seqlen, nheads, head_dim]"));
    if (flat_) return contiguous(view.data, view.dtype, 1, view.shape[0], 1, view.shape[1]);
    return bhsd_ ? transposed(view, 1, 2) : view;
  }

  std::vector<std::int64_t> integers(const char* name) const {
    const TensorView& view = tensors_.*find_name(name)->view;
    if (view.ndim != 1)
      throw BadInput(fmt::format("{} has shape {}: expected one dimension, [{}]", name,
                                 shape_text(view), find_name(name)->shape));
    std::vector<std::int64_t> values;
    for (std::int64_t i = 0; i < view.shape[0]; ++i)
      values.push_back(static_cast<std::int64_t>(load(view.dtype, view.at(i))));
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
    TensorView& view = tensors_.*find_name(name)->view;
    const TensorView given = view;
    view = broadcast_to_four(view, name);
    const std::int64_t full[4] = {problem.batch, problem.nheads_q, tensors_.q.shape[1],
                                  tensors_.k.shape[1]};
    const bool packed = problem.layout == Layout::packed;
    bool present[4];
    for (int dim = 0; dim < 4; ++dim) {
      const std::int64_t size = dim == 2 && packed   ? problem.max_seqlen_q()
                                : dim == 3 && packed ? problem.max_seqlen_k()
                                                     : full[dim];
      present[dim] = view.shape[dim] == size && size > 1;
      if (view.shape[dim] != size && view.shape[dim] != 1)
        throw BadInput(fmt::format(
            "{} has shape {}: expected something that broadcasts to [batch {}, nheads_q {}, "
            "seqlen_q {}, seqlen_k {}]",
            name, shape_text(given), full[0], full[1], packed ? problem.max_seqlen_q() : full[2],
            packed ? problem.max_seqlen_k() : full[3]));
    }
    return Broadcast{present[0], present[1], present[2], present[3]};
  }

  /// The line's problem, unless it says another thing than the shapes do.
  Problem agreed(Problem said, const Problem& shapes) const {
    const auto expect = [](const std::string& what, const auto& line, const auto& files) {
      if (!(line == files))
        throw BadInput(
            fmt::format("the problem says {} {}, but the files say {}", what, line, files));
    };
    expect("dtype", name_of(said.dtype), name_of(shapes.dtype));
    expect("batch", said.batch, shapes.batch);
    expect("nheads_q (hq)", said.nheads_q, shapes.nheads_q);
    expect("nheads_k (hk)", said.nheads_k, shapes.nheads_k);
    expect("head_dim (d)", said.head_dim, shapes.head_dim);
    expect("head_dim_v (dv)", said.head_dim_v, shapes.head_dim_v);
    for (std::int64_t b = 0; b < shapes.batch; ++b) {
      expect(fmt::format("seqlen_q of sequence {}", b), said.seqlen_q(b), shapes.seqlen_q(b));
      expect(fmt::format("seqlen_k of sequence {}", b), said.seqlen_k(b), shapes.seqlen_k(b));
    }
    const auto name = [](Layout layout) {
      return layout == Layout::bshd ? "bshd" : layout == Layout::bhsd ? "bhsd" : "packed";
    };
    if (!flat_) expect("layout", std::string(name(said.layout)), std::string(name(shapes.layout)));
    expect("ALiBi", said.alibi, shapes.alibi);
    if (said.pass == Pass::backward && !has("dout"))
      throw BadInput(
          "the problem says bwd, but the files hold no dout: expected it beside q, k, v");
    agree_on("bias", said.bias, shapes.bias, shapes);
    agree_on("mask", said.mask, shapes.mask, shapes);
    said.seqlens_q = shapes.seqlens_q;
    said.seqlens_k = shapes.seqlens_k;
    said.layout = shapes.layout;
    return said;
  }

  /// A dimension of size 1 is present and broadcast alike.
  static void agree_on(const std::string& name, std::optional<Broadcast>& said,
                       const std::optional<Broadcast>& files, const Problem& shapes) {
    if (said.has_value() != files.has_value())
      throw BadInput(files
                         ? fmt::format("{} is given, but the problem says that there is none", name)
                         : fmt::format("the problem says {0}, but the files hold no {0}", name));
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

  /// A forward problem judges no gradients, whatever the files hold.
  static void drop_unasked(Given& given) {
    if (given.problem.pass == Pass::backward) return;
    AttentionTensors& tensors = given.tensors;
    tensors.dout = tensors.dq = tensors.dk = tensors.dv = TensorView{};
  }

  void check_shapes(const Given& given) const {
    const AttentionTensors expected =
        harness::tensor_shapes(given.problem, harness::Outputs::all());
    for (const TensorName& row : tensor_names) {
      const TensorView& view = given.tensors.*row.view;
      const TensorView& wanted = expected.*row.view;
      const std::string name = row.name;
      if (!view.exists() || name == "bias" || name == "mask" || name == "seqlens_q" ||
          name == "seqlens_k")
        continue;
      if (view.ndim != wanted.ndim || !std::equal(view.shape, view.shape + view.ndim, wanted.shape))
        throw BadInput(fmt::format(
            "{} has shape {}: expected {} to go with q {}, k {}, v {}", name, in_file(row, view),
            in_file(row, wanted), in_file(tensor_names[0], given.tensors.q),
            in_file(tensor_names[1], given.tensors.k), in_file(tensor_names[2], given.tensors.v)));
      const bool like_q = name == "k" || name == "v" || name == "dout";
      if (like_q && view.dtype != wanted.dtype)
        throw BadInput(fmt::format("{} is {}: expected {}, as q is {}", name, name_of(view.dtype),
                                   name_of(wanted.dtype), name_of(given.problem.dtype)));
      // An output may be more precise than expected, never less.
      const DType least = name == "lse" ? given.problem.lse_dtype() : given.problem.output_dtype();
      if (!row.input && info(view.dtype).significand < info(least).significand)
        throw BadInput(fmt::format("{} is {}: expected {} or more precise, as q is {}", name,
                                   name_of(view.dtype), name_of(least),
                                   name_of(given.problem.dtype)));
    }
  }

  std::string in_file(const TensorName& row, TensorView view) const {
    if (!row.sequence || view.ndim != 4) return shape_text(view);
    if (flat_) return fmt::format("[{}, {}]", view.shape[1], view.shape[3]);
    return shape_text(bhsd_ ? transposed(view, 1, 2) : view);
  }

  AttentionTensors tensors_;
  std::deque<formats::Array> owned_;
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
