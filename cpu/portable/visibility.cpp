#include "cpu/portable/visibility.hpp"

#include <algorithm>
#include <cstring>

namespace tilewise::cpu::portable {
namespace {

bool mask_counts(const Call& call) {
  return call.tensors.mask.exists() &&
         !(call.params.causal &&
           call.params.conventions.mask_and_causal == MaskAndCausal::causal_replaces);
}

/// The keys that a query may look at by position alone: causal, window and chunk.
KeyRange keys_of_row(const Head& head, std::int64_t row) {
  AttentionParams params = head.call.params;
  if (head.call.tensors.mask.exists() &&
      params.conventions.mask_and_causal == MaskAndCausal::mask_replaces)
    params.causal = false;
  return visible_keys(params, row, head.seqlen_q, head.seqlen_k);
}

/// Marks the pairs of `rows` and `keys`, a part of the tile at `origin`, that position and mask
/// leave visible.
void mark(const Head& head, Span rows, Span keys, Span tile_rows, Span tile_keys,
          const Visible& visible) {
  const TensorView& mask = head.call.tensors.mask;
  const bool masked = mask_counts(head.call);
  for (std::int64_t i = rows.first; i < rows.end(); ++i) {
    const KeyRange range = keys_of_row(head, i);
    const std::int64_t begin = std::max(range.begin, keys.first);
    const std::int64_t end = std::min(range.end, keys.end());
    std::uint8_t* pair = visible.row(i - tile_rows.first);
    for (std::int64_t j = begin; j < end; ++j)
      pair[j - tile_keys.first] =
          !masked || load(mask.dtype, mask.at(broadcast_offset(mask, head.b, head.h, i, j))) != 0;
  }
}

Span overlap(Span x, std::int64_t first, std::int64_t size) {
  const std::int64_t begin = std::max(x.first, first), end = std::min(x.end(), first + size);
  return {begin, std::max<std::int64_t>(end - begin, 0)};
}

/// Marks what one list of a block mask lets through.
void mark_blocks(const Head& head, const TensorView& counts, const TensorView& indices, bool full,
                 Span rows, Span keys, const Visible& visible) {
  if (!counts.exists()) return;
  const BlockMask& mask = head.call.tensors.block_mask;
  for (std::int64_t row = rows.first / mask.block_q; row * mask.block_q < rows.end(); ++row) {
    const Span block_rows = overlap(rows, row * mask.block_q, mask.block_q);
    const auto entry = [&](const TensorView& list, std::int64_t n) {
      return static_cast<std::int64_t>(
          load(list.dtype, list.at(broadcast_offset(list, head.b, head.h, row, n))));
    };
    const std::int64_t count = std::min(entry(counts, 0), indices.shape[3]);
    for (std::int64_t n = 0; n < count; ++n) {
      const Span block_keys = overlap(keys, entry(indices, n) * mask.block_k, mask.block_k);
      if (block_keys.count == 0) continue;
      if (!full) {
        mark(head, block_rows, block_keys, rows, keys, visible);
        continue;
      }
      for (std::int64_t i = block_rows.first; i < block_rows.end(); ++i)
        std::memset(visible.row(i - rows.first) + (block_keys.first - keys.first), 1,
                    static_cast<std::size_t>(block_keys.count));
    }
  }
}

Coverage count(Span rows, Span keys, const Visible& visible) {
  std::int64_t pairs = 0;
  for (std::int64_t r = 0; r < rows.count; ++r)
    for (std::int64_t j = 0; j < keys.count; ++j) pairs += visible.row(r)[j];
  return pairs == 0                         ? Coverage::none
         : pairs == rows.count * keys.count ? Coverage::all
                                            : Coverage::some;
}

}  // namespace

// Neither end of keys_of_row ever moves back from one row to the next, so that the first and the
// last row speak for all.
KeyRange reachable_keys(const Head& head, Span rows) {
  // Full blocks know no other mask.
  if (head.call.tensors.block_mask.full_kv_num_blocks.exists()) return {0, head.seqlen_k};
  const std::int64_t begin = keys_of_row(head, rows.first).begin;
  const std::int64_t end = keys_of_row(head, rows.end() - 1).end;
  return {std::min(begin, head.seqlen_k), std::min(end, head.seqlen_k)};
}

Coverage look(const Head& head, Span rows, Span keys, const Visible& visible) {
  const BlockMask& block_mask = head.call.tensors.block_mask;
  if (!block_mask.exists()) {
    const KeyRange first = keys_of_row(head, rows.first);
    const KeyRange last = keys_of_row(head, rows.end() - 1);
    if (first.begin >= keys.end() || last.end <= keys.first) return Coverage::none;
    if (last.begin <= keys.first && first.end >= keys.end() && !mask_counts(head.call))
      return Coverage::all;
  }
  std::memset(visible.pair, 0, static_cast<std::size_t>(rows.count * Bc));
  if (block_mask.exists()) {
    mark_blocks(head, block_mask.kv_num_blocks, block_mask.kv_indices, false, rows, keys, visible);
    mark_blocks(head, block_mask.full_kv_num_blocks, block_mask.full_kv_indices, true, rows, keys,
                visible);
  } else {
    mark(head, rows, keys, rows, keys, visible);
  }
  return count(rows, keys, visible);
}

}  // namespace tilewise::cpu::portable
