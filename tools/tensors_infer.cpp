// What shapes, dtypes and lengths say of a problem.
#include "core/quantised.hpp"
#include "tools/common.hpp"
#include "tools/tensors_copy.hpp"
#include "tools/tensors_files.hpp"
#include "tools/tensors_roles.hpp"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <utility>

namespace tilewise::tools {

namespace {
Layout find_layout(TensorFiles& files, Layout wanted) {
  const TensorView& q = files.tensors.q;
  files.cached = files.tensors.cache.exists();
  files.packed = files.has("cu_seqlens_q") || files.has("cu_seqlens_k");
  if (files.cached && files.has("cu_seqlens_k"))
    throw BadInput(
        "cu_seqlens_k is given beside a cache: expected seqlens_k, how many of its rows count");
  if (files.cached && !files.has("seqlens_k"))
    throw BadInput("seqlens_k is missing: a cache comes with how many of its rows count");
  if (files.packed && !(files.has("cu_seqlens_q") && (files.has("cu_seqlens_k") || files.cached)))
    throw BadInput(fmt::format("{} is missing: packed sequences need cu_seqlens_q and cu_seqlens_k",
                               files.has("cu_seqlens_q") ? "cu_seqlens_k" : "cu_seqlens_q"));
  if (!files.packed && (wanted == Layout::packed || q.ndim == 3))
    throw BadInput(
        fmt::format("q has shape {}, and cu_seqlens_q is absent: packed tensors [total, nheads, "
                    "head_dim] come with cu_seqlens_q and cu_seqlens_k, and one sequence that is "
                    "not packed has the four dimensions [1, seqlen, nheads, head_dim]",
                    shape_text(q)));
  if (files.cached && q.ndim == 2)
    throw BadInput(
        fmt::format("q has shape {}: expected [batch, seqlen_q, nheads_q, head_dim] "
                    "beside a cache",
                    shape_text(q)));
  files.flat = q.ndim == 2;
  const Layout layout = files.packed ? Layout::packed : files.flat ? Layout::bshd : wanted;
  files.bhsd = layout == Layout::bhsd;
  return layout;
}

/// Whole numbers of k or v are those of i8, or with one more dimension the bytes of q8_0's
/// blocks.
void unpack(TensorFiles& files, const char* name) {
  TensorView& stored = files.tensor(name);
  if (!is_whole(stored.dtype)) return;
  const int last = stored.ndim - 1;
  const bool blocks = stored.ndim > (files.cached ? 4 : files.tensors.q.ndim);
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
  files.owned.push_back(std::move(array));
  stored = files.owned.back().view();
}

std::vector<std::int64_t> differences(const TensorFiles& files, const char* name,
                                      std::int64_t total) {
  const std::vector<std::int64_t> sums = files.integers(name);
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

std::vector<std::int64_t> lengths(const TensorFiles& files, const char* name, std::int64_t batch,
                                  std::int64_t seqlen) {
  if (!files.has(name)) return {seqlen};
  std::vector<std::int64_t> values = files.integers(name);
  const bool fit = std::all_of(values.begin(), values.end(),
                               [&](std::int64_t n) { return n >= 0 && n <= seqlen; });
  if (static_cast<std::int64_t>(values.size()) != batch || !fit)
    throw BadInput(fmt::format("{} is [{}]: expected {} lengths from 0 to {}", name,
                               fmt::join(values, ", "), batch, seqlen));
  return values;
}

/// The keys that are attended to, with those that the call appends and without the padding. As
/// one length where all are alike, unless queries have lengths as well.
std::vector<std::int64_t> lengths_in_cache(const TensorFiles& files, std::int64_t batch) {
  const auto per_sequence = [&](const char* name) {
    std::vector<std::int64_t> numbers = files.integers(name);
    if (static_cast<std::int64_t>(numbers.size()) == batch) return numbers;
    throw BadInput(fmt::format("{} has {} elements: expected {}, one for each sequence", name,
                               numbers.size(), batch));
  };
  std::vector<std::int64_t> lengths = per_sequence("seqlens_k");
  if (files.has("cache_leftpad")) {
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
                                 fmt::join(files.integers("seqlens_k"), ", ")));
    length += files.tensors.cache.seqlen_new();
  }
  const bool alike = std::all_of(lengths.begin(), lengths.end(),
                                 [&](std::int64_t length) { return length == lengths.front(); });
  if (alike && !files.has("seqlens_q")) lengths.resize(1);
  return lengths;
}

/// Lengths of one side alone: on the other, every row counts.
void add_missing_lengths(TensorFiles& files, std::int64_t batch) {
  if (files.has("seqlens_q") == files.has("seqlens_k")) return;
  const TensorView& side = files.has("seqlens_q") ? files.tensors.k : files.tensors.q;
  formats::Array array{DType::i32, {batch}, {}};
  array.bytes.resize(static_cast<std::size_t>(batch) * size_of(DType::i32));
  for (std::int64_t b = 0; b < batch; ++b)
    store(DType::i32, array.view().at(b), static_cast<double>(side.shape[1]));
  files.add(files.tensors, files.has("seqlens_q") ? "seqlens_k" : "seqlens_q", std::move(array),
            "memory");
}

void infer_lengths(TensorFiles& files, Problem& problem) {
  const TensorView &q = files.tensors.q, &k = files.tensors.k;
  if (files.packed) {
    problem.seqlens_q = differences(files, "cu_seqlens_q", q.shape[0]);
    problem.batch = static_cast<std::int64_t>(problem.seqlens_q.size());
  } else {
    problem.batch = q.shape[0];
  }
  if (files.cached) {
    problem.seqlens_k = lengths_in_cache(files, problem.batch);
  } else if (files.packed) {
    problem.seqlens_k = differences(files, "cu_seqlens_k", k.shape[0]);
    if (problem.seqlens_k.size() != problem.seqlens_q.size())
      throw BadInput(
          fmt::format("cu_seqlens_q says {} sequences and cu_seqlens_k says {}: "
                      "expected as many",
                      problem.seqlens_q.size(), problem.seqlens_k.size()));
  }
  if (files.packed) return;
  if (!files.cached || problem.seqlens_k.size() > 1) add_missing_lengths(files, problem.batch);
  problem.seqlens_q = lengths(files, "seqlens_q", problem.batch, q.shape[1]);
  if (!files.cached) problem.seqlens_k = lengths(files, "seqlens_k", problem.batch, k.shape[1]);
}

void infer_cache(const TensorFiles& files, Problem& problem) {
  const KvCache& cache = files.tensors.cache;
  if (cache.paged()) problem.page = files.tensors.k.shape[1];
  if (cache.cache_batch_idx.exists()) problem.slots = files.tensors.k.shape[0];
  if (cache.leftpad.exists()) {
    const std::vector<std::int64_t> padding = files.integers("cache_leftpad");
    problem.leftpad = std::max<std::int64_t>(1, *std::max_element(padding.begin(), padding.end()));
  }
  problem.seqlen_new = cache.seqlen_new();
  if (!cache.rotates()) return;
  if (cache.rotary_cos.ndim != 2)
    throw BadInput(fmt::format("rotary_cos has shape {}: expected [positions, pairs]",
                               shape_text(cache.rotary_cos)));
  problem.rotary = Rotary{2 * cache.rotary_cos.shape[1]};
}

/// Rows beyond the longest sequence belong to nobody: the views end before them.
void drop_common_padding(TensorFiles& files, const Problem& problem) {
  const auto cut = [&files](const char* name, int dim, std::int64_t from, std::int64_t to) {
    TensorView& padded = files.tensor(name);
    if (padded.exists() && padded.ndim > dim && padded.shape[dim] == from) padded.shape[dim] = to;
  };
  const std::int64_t rows_q = files.tensors.q.shape[1], rows_k = files.tensors.k.shape[1];
  const std::int64_t longest_q = problem.max_seqlen_q(), longest_k = problem.max_seqlen_k();
  for (const char* name : {"q", "dout", "o", "dq"}) cut(name, 1, rows_q, longest_q);
  cut("lse", 2, rows_q, longest_q);
  for (const char* name : {"bias", "mask", "dbias"})
    if (files.tensor(name).shape[2] > 1) cut(name, 2, rows_q, longest_q);
  if (files.cached) return;  // a cache has room for more, which belongs to it
  for (const char* name : {"k", "v", "dk", "dv", "k_scales", "v_scales"})
    cut(name, 1, rows_k, longest_k);
  for (const char* name : {"bias", "mask", "dbias"})
    if (files.tensor(name).shape[3] > 1) cut(name, 3, rows_k, longest_k);
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

/// Which dimensions a bias or a mask has; its view gets all four.
std::optional<Broadcast> broadcast(TensorFiles& files, const char* name, const Problem& problem) {
  if (!files.has(name)) return std::nullopt;
  TensorView& four = files.tensor(name);
  const TensorView given = four;
  four = broadcast_to_four(four, name);
  const std::int64_t full[4] = {
      problem.batch, problem.nheads_q,
      files.packed ? problem.max_seqlen_q() : files.tensors.q.shape[1],
      files.packed || files.cached ? problem.max_seqlen_k() : files.tensors.k.shape[1]};
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
}  // namespace

Problem infer(TensorFiles& files, Layout wanted) {
  Problem problem;
  problem.layout = find_layout(files, wanted);
  for (const char* name : {"k", "v"}) unpack(files, name);
  for_each_tensor(files.tensors, [&](const char* name, TensorView& view) {
    if (view.exists() && has_rows_and_heads(name)) view = files.logical(name, view);
  });
  if (files.has("lse") && files.flat && files.tensors.lse.ndim == 1) {
    const TensorView lse = files.tensors.lse;
    files.tensors.lse = contiguous(lse.data, lse.dtype, 1, 1, lse.shape[0]);
  }

  const TensorView &q = files.tensors.q, &k = files.tensors.k, &v = files.tensors.v;
  problem.dtype = q.dtype;
  // Of another dtype, but not as a kernel would have it, they are an error of check_shapes().
  if (k.dtype != q.dtype && among(k.dtype, DType::e4m3, DType::e5m2, DType::i8, DType::q8_0))
    problem.kv = k.dtype;
  problem.nheads_q = q.shape[q.ndim - 2];
  problem.nheads_k = k.shape[k.ndim - 2];
  problem.head_dim = q.shape[q.ndim - 1];
  problem.head_dim_v = v.shape[v.ndim - 1] * numbers_in(v.dtype);
  infer_lengths(files, problem);
  problem.pass = files.has("dout") ? Pass::backward : Pass::forward;
  for (const char* gradient : {"dq", "dk", "dv", "dbias", "dsinks"})
    if (files.has(gradient) && !files.has("dout"))
      throw BadInput(
          fmt::format("{} is given, but dout is not: expected dout beside q, k and v", gradient));
  problem.alibi = files.has("alibi_slopes");
  problem.sink = files.has("sinks");
  problem.descale = files.has("q_descale") || files.has("k_descale") || files.has("v_descale");
  problem.bias = broadcast(files, "bias", problem);
  problem.mask = broadcast(files, "mask", problem);
  if (files.has("dbias")) files.tensors.dbias = broadcast_to_four(files.tensors.dbias, "dbias");
  if (files.cached) infer_cache(files, problem);
  if (files.has("seqlens_q") && !files.packed) drop_common_padding(files, problem);
  return problem;
}

}  // namespace tilewise::tools
