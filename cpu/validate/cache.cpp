// Keys and values in a cache: which fields go together, and that every row which the call reads,
// writes or turns by is there.
#include "cpu/sequences.hpp"
#include "cpu/validate/check.hpp"
#include "cpu/validate/words.hpp"

#include <algorithm>
#include <cinttypes>
#include <utility>

namespace tilewise::cpu {
namespace {

/// The rows of a sequence's cache: [first, held) count before the call, [held, end) are appended.
struct CacheRows {
  std::int64_t first = 0, held = 0, end = 0;
};

CacheRows rows_of(const Check& check, std::int64_t b) {
  const AttentionTensors& all = check.call.tensors;
  const TensorView& leftpad = all.cache.leftpad;
  CacheRows rows;
  rows.first = leftpad.exists() ? index_at(leftpad, b * leftpad.strides[0]) : 0;
  rows.held = all.seqlens_k.exists() ? index_at(all.seqlens_k, b * all.seqlens_k.strides[0])
                                     : check.capacity;
  rows.end = rows.held + all.cache.seqlen_new();
  return rows;
}

/// The page that row r of sequence b lies in; of a cache without pages, its row of the cache.
std::int64_t block_of(const Check& check, std::int64_t b, std::int64_t r) {
  const KvCache& cache = check.call.tensors.cache;
  if (cache.paged()) {
    const std::int64_t page = r / check.call.tensors.k.shape[1];
    return index_at(cache.block_table,
                    b * cache.block_table.strides[0] + page * cache.block_table.strides[1]);
  }
  if (!cache.cache_batch_idx.exists()) return b;
  return index_at(cache.cache_batch_idx, b * cache.cache_batch_idx.strides[0]);
}

/// Rows of a sequence that lie one behind the other.
std::int64_t block_size(const Check& check) {
  return check.call.tensors.cache.paged() ? check.call.tensors.k.shape[1] : check.capacity;
}

/// a * b, or the bound of all offsets where that is more.
std::int64_t bounded_product(std::int64_t a, std::int64_t b) {
  constexpr std::int64_t bound = std::int64_t{1} << 56;
  return b != 0 && a > bound / b ? bound : a * b;
}

// ------------------------------------------------------------------------------------- shapes

Status check_tables(Check& check) {
  const AttentionTensors& all = check.call.tensors;
  const KvCache& cache = all.cache;
  for (const TensorView* view : {&cache.block_table, &cache.cache_batch_idx, &cache.leftpad})
    if (view->exists())
      if (Status status = check_dtype(check.name_of(*view), *view, DType::i32); !status.ok())
        return status;
  for (const TensorView* view : {&cache.cache_batch_idx, &cache.leftpad})
    if (view->exists())
      if (Status status = check_shape(check.name_of(*view), *view, {1, {check.batch}}, "[batch]");
          !status.ok())
        return status;
  if (!cache.paged()) return {};
  const TensorView& table = cache.block_table;
  if (table.ndim != 2 || table.shape[0] != check.batch)
    return bad("block_table has shape %s; expected [%" PRId64 ", pages of a sequence]",
               ShapeText(table).text, check.batch);
  if (all.k.shape[1] < 1) return bad("k has pages of 0 rows; expected at least 1");
  check.capacity = bounded_product(table.shape[1], all.k.shape[1]);
  return {};
}

Status check_appended(const Check& check) {
  const AttentionTensors& all = check.call.tensors;
  struct Pair {
    const TensorView &cache, &appended;
    std::int64_t width;
  };
  for (const auto& [cache, appended, width] : {Pair{all.k, all.cache.k_new, check.head_dim},
                                               Pair{all.v, all.cache.v_new, check.head_dim_v}}) {
    const char *const of = check.name_of(cache), *const name = check.name_of(appended);
    if (cache.dtype != all.q.dtype)
      return failure(Code::unsupported,
                     "%s is given and %s has dtype %s; rows are appended to a cache of q's dtype "
                     "alone, %s",
                     name, of, text(cache.dtype), text(all.q.dtype));
    Status status = check_dtype(name, appended, cache.dtype);
    if (status.ok() && appended.ndim != 4)
      status = bad("%s has %d dimensions; expected 4, [batch, seqlen_new, nheads_k, width]", name,
                   static_cast<int>(appended.ndim));
    if (status.ok())
      status = check_shape(name, appended,
                           {4, {check.batch, all.cache.seqlen_new(), check.nheads_k, width}},
                           "[batch, seqlen_new, nheads_k, width]");
    // The cache is an output as well.
    if (status.ok()) status = check_output(of, cache);
    if (!status.ok()) return status;
  }
  return {};
}

Status check_rotary_tables(const Check& check) {
  const AttentionTensors& all = check.call.tensors;
  const TensorView &cos = all.cache.rotary_cos, &sin = all.cache.rotary_sin;
  for (const TensorView* view : {&cos, &sin}) {
    const char* const name = check.name_of(*view);
    if (view->dtype != DType::f32 && view->dtype != all.q.dtype)
      return bad("%s has dtype %s; expected f32 or q's, %s", name, text(view->dtype),
                 text(all.q.dtype));
    if (view->ndim != 2)
      return bad("%s has shape %s; expected [positions, pairs]", name, ShapeText(*view).text);
  }
  if (cos.shape[1] > check.head_dim / 2)
    return bad("rotary_cos turns %" PRId64 " pairs; expected at most %" PRId64
               ", half of head_dim %" PRId64,
               cos.shape[1], check.head_dim / 2, check.head_dim);
  return check_shape("rotary_sin", sin, {2, {cos.shape[0], cos.shape[1]}}, "rotary_cos's");
}

// ------------------------------------------------------------------------------------ contents

Status check_rows(Check& check) {
  const KvCache& cache = check.call.tensors.cache;
  for (std::int64_t b = 0; b < check.batch; ++b) {
    const auto [first, held, end] = rows_of(check, b);
    if (held < 0 || held > check.capacity)
      return bad("seqlens_k says %" PRId64 " for sequence %" PRId64
                 "; its cache has room for %" PRId64,
                 held, b, check.capacity);
    if (first < 0 || first > held)
      return bad("cache_leftpad says %" PRId64 " for sequence %" PRId64 "; expected 0 to %" PRId64
                 ", the rows of its cache",
                 first, b, held);
    if (end > check.capacity)
      return bad("sequence %" PRId64 " has %" PRId64 " rows and %" PRId64
                 " new ones; its cache has room for %" PRId64,
                 b, held, cache.seqlen_new(), check.capacity);
    if (check.given.max_seqlen_k != 0 && end - first > check.given.max_seqlen_k)
      return bad("sequence %" PRId64 " of k has length %" PRId64
                 "; max_seqlen_k promised at most %" PRId64,
                 b, end - first, check.given.max_seqlen_k);
    check.longest_k = std::max(check.longest_k, end - first);
  }
  return {};
}

/// Entries for pages that the call does not touch may hold anything.
Status check_blocks(Check& check) {
  const AttentionTensors& all = check.call.tensors;
  const bool paged = all.cache.paged();
  if (!paged && !all.cache.cache_batch_idx.exists()) return {};
  const std::int64_t size = block_size(check);
  for (std::int64_t b = 0; b < check.batch; ++b) {
    const auto [first, held, end] = rows_of(check, b);
    for (std::int64_t r = first; r < end; r += size - r % size) {
      const std::int64_t block = block_of(check, b, r);
      if (block >= 0 && block < all.k.shape[0]) continue;
      if (paged)
        return bad("block_table names page %" PRId64 " for rows from %" PRId64
                   " of sequence %" PRId64 "; there are %" PRId64,
                   block, r, b, all.k.shape[0]);
      return bad("cache_batch_idx names cache row %" PRId64 " for sequence %" PRId64
                 "; there are %" PRId64,
                 block, b, all.k.shape[0]);
    }
  }
  return {};
}

/// Calls visit(b, block) for each page (or cache row) that rows are appended to.
template <class Visit>
void for_each_appended(const Check& check, const Visit& visit) {
  const std::int64_t size = block_size(check);
  for (std::int64_t b = 0; b < check.batch; ++b) {
    const CacheRows rows = rows_of(check, b);
    for (std::int64_t r = rows.held; r < rows.end; r += size - r % size)
      visit(b, block_of(check, b, r));
  }
}

/// No page, or cache row, is appended to twice: what it held in the end would be chance. Nothing
/// can be allocated here, so the blocks are ticked off on a small sheet, one stretch of them after
/// the other.
Status check_appended_places(Check& check) {
  const KvCache& cache = check.call.tensors.cache;
  if (!cache.appends() || cache.seqlen_new() == 0) return {};
  constexpr std::int64_t stretch = 1 << 15;
  constexpr std::int64_t none = -1;
  for (std::int64_t first = 0, next = 0; next != none; first = next) {
    std::uint64_t ticked[stretch / 64] = {};
    std::int64_t twice = none;
    next = none;
    for_each_appended(check, [&](std::int64_t, std::int64_t block) {
      const std::int64_t place = block - first;
      if (place >= stretch && (next == none || block < next)) next = block;
      if (place < 0 || place >= stretch) return;
      std::uint64_t& word = ticked[place / 64];
      const std::uint64_t bit = std::uint64_t{1} << (place % 64);
      if ((word & bit) != 0) twice = block;
      word |= bit;
    });
    if (twice == none) continue;
    std::int64_t one = none, other = none;
    for_each_appended(check, [&](std::int64_t b, std::int64_t block) {
      if (block == twice) (one == none ? one : other) = b;
    });
    return bad("sequences %" PRId64 " and %" PRId64 " both append to %s %" PRId64
               "; expected that each has its own",
               one, other, cache.paged() ? "page" : "cache row", twice);
  }
  return {};
}

/// A key is turned by the row that it is stored in, a query by a row from where the appended begin.
Status check_positions(Check& check) {
  const AttentionTensors& all = check.call.tensors;
  if (!all.cache.rotates()) return {};
  const Sequences queries = Sequences::of_queries(all);
  const std::int64_t positions = all.cache.rotary_cos.shape[0];
  for (std::int64_t b = 0; b < check.batch; ++b) {
    const std::int64_t held = rows_of(check, b).held;
    const std::int64_t needed = held + std::max(all.cache.seqlen_new(), queries.length(b));
    if (needed > held && needed > positions)
      return bad("rotary_cos has %" PRId64 " positions; sequence %" PRId64 " needs %" PRId64
                 ", its %" PRId64 " rows and then the new keys or the queries",
                 positions, b, needed, held);
  }
  return {};
}

}  // namespace

/// Which fields may stand beside which.
Status check_cache_forms(Check& check) {
  const AttentionTensors& all = check.call.tensors;
  const KvCache& cache = all.cache;
  for (const auto& [first, second] :
       {std::pair{&cache.k_new, &cache.v_new}, std::pair{&cache.rotary_cos, &cache.rotary_sin}})
    if (first->exists() != second->exists())
      return bad("of %s and %s one is given; expected both or none", check.name_of(*first),
                 check.name_of(*second));
  for (const TensorView* form : {&cache.block_table, &cache.cache_batch_idx, &cache.leftpad,
                                 &cache.k_new, &cache.rotary_cos}) {
    if (!form->exists()) continue;
    const char* const name = check.name_of(*form);
    if (check.backward)
      return failure(Code::unsupported, "%s is given; attention over a cache has no backward pass",
                     name);
    if (all.cu_seqlens_k.exists())
      return bad(
          "%s is given beside cu_seqlens_k; a cache is not packed, its lengths are seqlens_k",
          name);
    const bool without_lengths = form == &cache.cache_batch_idx || form == &cache.leftpad;
    if (!without_lengths && !all.seqlens_k.exists())
      return bad("%s is given without seqlens_k, which says how many rows of the cache count",
                 name);
  }
  if (cache.paged() && cache.cache_batch_idx.exists())
    return bad("block_table and cache_batch_idx are both given; expected one of them");
  return {};
}

Status check_cache(Check& check) {
  const KvCache& cache = check.call.tensors.cache;
  if (!cache.exists()) return {};
  check.longest_k = check.given.max_seqlen_k;
  Status status = check_tables(check);
  if (status.ok() && cache.appends()) status = check_appended(check);
  if (status.ok() && cache.rotates()) status = check_rotary_tables(check);
  if (!status.ok() || check.scope.depth != Depth::memory) return status;
  for (const auto step : {check_rows, check_blocks, check_appended_places, check_positions}) {
    status = step(check);
    if (!status.ok()) return status;
  }
  return {};
}

}  // namespace tilewise::cpu
