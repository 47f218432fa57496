// Whether files, line and outputs fit together.
#include "oracle/attention.hpp"
#include "oracle/harness/buffers.hpp"
#include "tools/common.hpp"
#include "tools/tensors_copy.hpp"
#include "tools/tensors_files.hpp"
#include "tools/tensors_roles.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <optional>
#include <tuple>

namespace tilewise::tools {

// ---- what the line says

void check_presence(const TensorFiles& files, const Problem& problem) {
  if (files.has("kv_num_blocks") && !problem.blocks)
    throw BadInput(
        "kv_num_blocks is given, and no shape says how large a block is: expected "
        "blocks=BLOCK_Q,BLOCK_K,DENSITY in the problem");
  const AttentionTensors expected = harness::tensor_shapes(problem, harness::Outputs::none());
  for_each_tensor(expected, [&](std::string_view name, const TensorView& wanted) {
    // Lengths may be given where all rows count; what backward needs, agreed() knows.
    if (is_output(name) || name == "dout") return;
    if (among(name, "seqlens_q", "seqlens_k") && !files.packed) return;
    const bool optional = among(name, "full_kv_num_blocks", "full_kv_indices") &&
                          files.has("full_kv_num_blocks") == files.has("full_kv_indices");
    if (wanted.ndim != 0 && !files.has(name) && !optional)
      throw BadInput(fmt::format("the problem needs {0}, but the files hold no {0}", name));
    if (wanted.ndim == 0 && files.has(name))
      throw BadInput(fmt::format("{} is given, but the problem says that there is none", name));
  });
}

namespace {
/// A dimension of size 1 is present and broadcast alike.
void agree_on(const std::string& name, std::optional<Broadcast>& said,
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
}  // namespace

Problem agreed(const TensorFiles& files, Problem said, const Problem& shapes) {
  const auto expect = [](const std::string& what, const auto& line, const auto& shape) {
    if (!(line == shape))
      throw BadInput(
          fmt::format("the problem says {} {}, but the files say {}", what, line, shape));
  };
  const auto name = [](Layout layout) {
    return layout == Layout::bshd ? "bshd" : layout == Layout::bhsd ? "bhsd" : "packed";
  };
  if (!files.flat)
    expect("layout", std::string(name(said.layout)), std::string(name(shapes.layout)));
  expect("dtype", name_of(said.dtype), name_of(shapes.dtype));
  expect("kv", name_of(said.kv_dtype()), name_of(shapes.kv_dtype()));
  if (said.pass == Pass::backward && !files.has("dout"))
    throw BadInput("the problem says bwd, but the files hold no dout: expected it beside q, k, v");
  check_presence(files, said);
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

// ---- whether all of it fits together

namespace {
DType lesser(DType a, DType b) {
  return info(a).significand < info(b).significand ? a : b;
}

/// The shapes of the problem's tensors, as large as files may have them.
AttentionTensors expected_shapes(const TensorFiles& files, const Problem& problem) {
  AttentionTensors expected = harness::tensor_shapes(problem, harness::Outputs::all());
  expected.bias = files.tensors.bias;  // broadcast() has looked at them
  expected.mask = files.tensors.mask;
  expected.dbias = files.tensors.bias;
  expected.dbias.dtype = lesser(DType::f32, problem.output_dtype());
  if (problem.blocks)
    for (const char* name :
         {"kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices"})
      for (int dim = 0; dim < 2; ++dim)  // one list may serve all sequences, or all heads
        if (files.tensors.block_mask.kv_num_blocks.shape[dim] == 1)
          find(expected, name)->shape[dim] = 1;
  if (!files.cached) return expected;
  // Caches and tables have room for more than the problem needs.
  const auto as_given = [&](const char* name, int dim, const TensorView& given) {
    find(expected, name)->shape[dim] = given.shape[dim];
  };
  for (const char* name : {"k", "v", "k_scales", "v_scales"})
    as_given(name, files.tensors.cache.paged() ? 0 : 1, files.tensors.k);
  as_given("block_table", 1, files.tensors.cache.block_table);
  for (const char* name : {"rotary_cos", "rotary_sin"})
    as_given(name, 0, files.tensors.cache.rotary_cos);
  return expected;
}

void check_shapes(const TensorFiles& files, const Problem& problem) {
  const AttentionTensors expected = expected_shapes(files, problem);
  for_each_tensor(files.tensors, [&](std::string_view name, const TensorView& given) {
    const TensorView& wanted = *find(expected, name);
    if (!given.exists() || among(name, "seqlens_q", "seqlens_k")) return;
    if (is_output(name) && wanted.ndim == 0)
      throw BadInput(fmt::format("{} is given, but the problem has no {}", name, name.substr(1)));
    if (!same_shape(given, wanted))
      throw BadInput(fmt::format(
          "{} has shape {}: expected {} to go with q {}, k {}, v {}", name,
          files.shape_in_file(name, given), files.shape_in_file(name, wanted),
          files.shape_in_file("q", files.tensors.q), files.shape_in_file("k", files.tensors.k),
          files.shape_in_file("v", files.tensors.v)));
    const auto wrong = [&](std::string_view what, const char* as) {
      throw BadInput(fmt::format("{} is {}: expected {}, as {} is {}", name, name_of(given.dtype),
                                 what, as,
                                 name_of(*as == 'k' ? files.tensors.k.dtype : problem.dtype)));
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

/// Counts within their list, and blocks that are there.
void check_block_lists(const TensorFiles& files) {
  const BlockMask& mask = files.tensors.block_mask;
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
void check_places(const TensorFiles& files, const Problem& problem) {
  if (!files.cached) return;
  const KvCache& cache = files.tensors.cache;
  const std::int64_t blocks = files.tensors.k.shape[0], block_rows = files.tensors.k.shape[1];
  const std::vector<std::int64_t> held = files.integers("seqlens_k");
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
        throw BadInput(fmt::format("{} names {} for sequence {}: expected 0 to {}", list, block, b,
                                   blocks - 1));
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
}  // namespace

void check_fit(const TensorFiles& files, const Problem& problem) {
  check_shapes(files, problem);
  check_block_lists(files);
  check_places(files, problem);
}

// ---- the cache after the call

std::string take_appended(TensorFiles& files, const Problem& problem) {
  std::string changed;
  const oracle::Case rows(problem, files.tensors);
  for (const char* name : {"k", "v"}) {
    TensorView& cache = files.tensor(name);
    TensorView after = *find(files.updated, name);
    if (!after.exists())
      throw BadInput(
          fmt::format("{} holds no {}: expected the cache as it is after the call, "
                      "which appends to it",
                      files.outputs, name));
    after = files.logical(name, after);
    if (after.dtype != cache.dtype || !same_shape(after, cache))
      throw BadInput(
          fmt::format("{} in {} has shape {} in {}: expected {} in {}, as before the "
                      "call",
                      name, files.outputs, files.shape_in_file(name, after), name_of(after.dtype),
                      files.shape_in_file(name, cache), name_of(cache.dtype)));
    const std::size_t size = size_of(cache.dtype);
    for (std::int64_t b = 0; b < problem.batch; ++b)
      for (std::int64_t n = 0; n < problem.seqlen_new; ++n)
        for (std::int64_t h = 0; h < problem.nheads_k; ++h) {
          const std::int64_t j = problem.seqlen_k(b) - problem.seqlen_new + n;
          const std::int64_t at = rows.offset(cache, oracle::Side::key, b, j, h);
          std::memcpy(cache.at(at), after.at(at), static_cast<std::size_t>(cache.shape[3]) * size);
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

}  // namespace tilewise::tools
