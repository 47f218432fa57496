// The decode kernels' host side: which calls are theirs, how the keys are divided, and how much
// memory that takes.
#include "cuda/kernels/families.hpp"
#include "cuda/kernels/serving.hpp"
#include "cuda/kernels/sm80/decode_plan.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>

namespace tilewise::cuda::decode {
namespace {

constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();

/// What only the device knows of lengths and places.
bool has_numbers(const AttentionTensors& t) {
  return is_there(t.seqlens_q) || is_there(t.seqlens_k) || is_there(t.cache.block_table) ||
         is_there(t.cache.cache_batch_idx);
}

/// Which calls want keys divided or heads packed. One query is 1 of the 64 or 128 rows of a tile of
/// `forward`, in which each query head also reads K and V for itself. Here a tile has 16 packed
/// rows: with up to 16 queries no row is computed and no key read that forward would have left out,
/// and where these are few blocks the keys make more of them. From there on forward fills its tiles
/// better with every query, and needs no memory but O and LSE; it does not divide keys, so a call
/// that asks for that comes here whatever its length.
constexpr std::int64_t most_queries = 16;

Status few_rows(const DeviceCall& call) {
  if (call.tensors.q.shape[1] <= most_queries || call.num_splits > 1) return {};
  return failure(Code::unsupported,
                 "%lld queries in a sequence; the decode kernels are for %lld at most, unless "
                 "num_splits asks for them",
                 static_cast<long long>(call.tensors.q.shape[1]),
                 static_cast<long long>(most_queries));
}

Status head_dims(const AttentionTensors& t) {
  const std::int64_t d = t.q.shape[3];
  if (d != 64 && d != 128 && d != 256)
    return failure(Code::unsupported, "head_dim is %lld; the decode kernels have 64, 128 and 256",
                   static_cast<long long>(d));
  if (t.v.shape[3] != d)
    return failure(Code::unsupported, "head_dim_v is %lld, and head_dim %lld; they must be equal",
                   static_cast<long long>(t.v.shape[3]), static_cast<long long>(d));
  return {};
}

/// The mask's corner is bottom right, or does not matter; O of a row without keys is 0.
Status conventions(const DeviceCall& call) {
  const Conventions& named = call.params.conventions;
  const AttentionTensors& t = call.tensors;
  const bool known = !has_numbers(t), causal = call.params.causal;
  const std::int64_t queries = t.q.shape[1], keys = capacity_of(t);
  if (causal && !(known && queries == keys) && named.alignment != Alignment::bottom_right)
    return no("a causal mask from the top left over another number of keys than queries");
  const bool empty_rows = !known || keys == 0 || (causal && queries > keys);
  if (empty_rows && named.empty_row_output != EmptyRowOutput::zero)
    return no("rows without keys whose O is not 0");
  return {};
}

Status size(const AttentionTensors& t) {
  const std::int64_t heads = t.q.shape[0] * t.q.shape[2];
  if (t.q.shape[1] > most - 256 || capacity_of(t) > most - 4096 || t.k.shape[0] > most ||
      heads * std::max<std::int64_t>(t.q.shape[1], 1) > most - 256)
    return failure(Code::unsupported, "more than 2^31 rows, keys, or blocks of rows");
  return {};
}

std::int64_t ceiling(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace

std::int64_t capacity_of(const AttentionTensors& t) {
  if (t.k.shape[0] == 0) return 0;  // no row of the cache, or no page, for any sequence
  const std::int64_t rows = t.k.shape[1], pages = t.cache.block_table.shape[1];
  if (!is_there(t.cache.block_table)) return rows;
  return rows != 0 && pages > most / rows ? most : pages * rows;
}

Plan plan_of(const DeviceCall& call, const DeviceLimits& limits) {
  const TensorView& q = call.tensors.q;
  const std::int64_t heads = std::max<std::int64_t>(call.tensors.k.shape[2], 1);
  const std::int64_t group = q.shape[2] / heads, row_tiles = ceiling(group * q.shape[1], tile_rows);
  const std::int64_t blocks = std::max<std::int64_t>(q.shape[0] * heads * row_tiles, 1);
  std::int64_t keys = capacity_of(call.tensors);
  if (is_there(call.tensors.seqlens_k) && call.max_seqlen_k > 0)
    keys = std::min(keys, call.max_seqlen_k);

  // Where a block for each multiprocessor is there anyway, each with 64 KiB under way, the memory
  // is busy, and to put parts together would be time lost. Else two blocks, all at once: of more
  // the last ones would run alone. And a split is not less than a block has under way, since with
  // less it would do nothing but begin and end.
  const std::int64_t processors = std::max(limits.multiprocessors, 1);
  std::int64_t splits = 10 * blocks >= 9 * processors ? 1 : 2 * processors / blocks;
  std::int64_t fewest = keys_under_way(static_cast<int>(q.shape[3]));
  if (call.num_splits > 0) {
    splits = call.num_splits;
    fewest = slice_keys;
  }
  splits = std::clamp<std::int64_t>(std::min(splits, ceiling(keys, fewest)), 1, most_splits);
  // Splits are whole slices; what this makes of the last ones, if anything, is not launched.
  const std::int64_t each =
      std::max(fewest, ceiling(ceiling(keys, splits), slice_keys) * slice_keys);
  splits = std::max<std::int64_t>(ceiling(keys, each), 1);
  return {.group = static_cast<int>(group),
          .row_tiles = static_cast<int>(row_tiles),
          .splits = static_cast<int>(splits),
          .fewest = static_cast<int>(fewest),
          .each = static_cast<int>(each),
          .combined = splits > 1 || is_there(call.tensors.cache.block_table)};
}

std::int64_t findings_of(const AttentionTensors& t, const Plan& plan) {
  if (!is_there(t.cache.block_table)) return 0;
  return t.q.shape[0] * plan.row_tiles * plan.splits;
}

Status serves(const DeviceCall& call, const DeviceLimits&) {
  const AttentionTensors& t = call.tensors;
  if (call.backward) return no("backward");
  Status status = plain(call, {"q", "k", "v", "o", "lse", "seqlens_q", "seqlens_k", "block_table",
                               "cache_batch_idx"});
  if (status.ok()) status = one_half_dtype(t);
  if (status.ok()) status = head_dims(t);
  const struct {
    const char* name;
    const TensorView& view;
  } all[] = {{"q", t.q}, {"k", t.k}, {"v", t.v}, {"o", t.o}};
  for (const auto& [name, view] : all)
    if (status.ok()) status = in_chunks(name, view);
  if (status.ok() && is_there(t.cache.block_table) && is_there(t.cache.cache_batch_idx))
    status = no("block_table beside cache_batch_idx");
  if (status.ok() && is_there(t.cache.block_table) && !is_there(t.seqlens_k))
    status = no("block_table without seqlens_k");
  if (status.ok()) status = size(t);
  if (status.ok()) status = conventions(call);
  if (status.ok()) status = few_rows(call);
  return status;
}

std::size_t workspace_bytes(const DeviceCall& call, const DeviceLimits& limits) {
  const TensorView& q = call.tensors.q;
  const Plan plan = plan_of(call, limits);
  if (q.elements() == 0) return 0;
  if (!plan.combined) return has_numbers(call.tensors) ? workspace_head_bytes : 0;
  const std::int64_t rows = q.shape[0] * q.shape[1] * q.shape[2];
  const std::int64_t floats = plan.splits * rows * (q.shape[3] + 2);  // O, m and l
  return workspace_head_bytes +
         4 * static_cast<std::size_t>(floats + findings_of(call.tensors, plan));
}

}  // namespace tilewise::cuda::decode
