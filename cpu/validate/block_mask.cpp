// PyTorch's BlockMask lists: counts, indices that ascend, no block twice.
#include "cpu/validate/check.hpp"
#include "cpu/validate/words.hpp"

#include <algorithm>
#include <cinttypes>

namespace tilewise::cpu {
namespace {

std::int64_t blocks_in(std::int64_t length, std::int64_t block) {
  return (length + block - 1) / block;
}

/// Element (b, h, row[, n]) of a list, b and h broadcast.
std::int64_t entry(const TensorView& list, std::int64_t b, std::int64_t h, std::int64_t row,
                   std::int64_t n) {
  const std::int64_t index[] = {list.shape[0] == 1 ? 0 : b, list.shape[1] == 1 ? 0 : h, row, n};
  std::int64_t offset = 0;
  for (int dim = 0; dim < list.ndim; ++dim) offset += index[dim] * list.strides[dim];
  return index_at(list, offset);
}

Status check_list_shape(const Check& check, const TensorView& list, int ndim, std::int64_t rows) {
  const char* const name = check.name_of(list);
  if (Status status = check_dtype(name, list, DType::i32); !status.ok()) return status;
  const bool fits = list.ndim == ndim && fits_or_one(list.shape[0], check.batch, false) &&
                    fits_or_one(list.shape[1], check.nheads_q, false) &&
                    (check.packed_q ? list.shape[2] >= rows : list.shape[2] == rows);
  if (fits) return {};
  return bad("%s has shape %s; expected [%" PRId64 " or 1, %" PRId64 " or 1, %" PRId64
             "%s], for %" PRId64 " rows of blocks",
             name, ShapeText(list).text, check.batch, check.nheads_q, rows,
             ndim == 4 ? ", key blocks" : "", rows);
}

Status check_list(const Check& check, const TensorView& counts, const TensorView& indices,
                  std::int64_t rows) {
  Status status = check_list_shape(check, counts, 3, rows);
  if (status.ok()) status = check_list_shape(check, indices, 4, rows);
  if (!status.ok() || check.scope.depth != Depth::memory) return status;
  const std::int64_t key_blocks = blocks_in(check.longest_k, check.call.tensors.block_mask.block_k);
  // A list of batch size 1 beside one of batch size 0 serves no sequence.
  const std::int64_t batch = std::min(check.batch, std::max(counts.shape[0], indices.shape[0]));
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::int64_t h = 0; h < std::max(counts.shape[1], indices.shape[1]); ++h)
      for (std::int64_t row = 0; row < rows; ++row) {
        const std::int64_t count = entry(counts, b, h, row, 0);
        if (count < 0 || count > indices.shape[3])
          return bad("%s says %" PRId64 " in row %" PRId64 "; expected 0 to %" PRId64
                     ", the length of its list",
                     check.name_of(counts), count, row, indices.shape[3]);
        std::int64_t before = -1;
        for (std::int64_t n = 0; n < count; ++n) {
          const std::int64_t index = entry(indices, b, h, row, n);
          if (index < 0 || index >= key_blocks)
            return bad("%s names key block %" PRId64 " in row %" PRId64 "; there are %" PRId64,
                       check.name_of(indices), index, row, key_blocks);
          if (index <= before)
            return bad("%s has key block %" PRId64 " after %" PRId64 " in row %" PRId64
                       "; expected that each list ascends",
                       check.name_of(indices), index, before, row);
          before = index;
        }
      }
  return {};
}

Status check_lists_are_disjoint(const Check& check, std::int64_t rows) {
  const BlockMask& blocks = check.call.tensors.block_mask;
  const TensorView* const all[] = {&blocks.kv_num_blocks, &blocks.kv_indices,
                                   &blocks.full_kv_num_blocks, &blocks.full_kv_indices};
  std::int64_t batch = 0, heads = 0;
  for (const TensorView* view : all) {
    batch = std::max(batch, view->shape[0]);
    heads = std::max(heads, view->shape[1]);
  }
  batch = std::min(batch, check.batch);
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::int64_t h = 0; h < heads; ++h)
      for (std::int64_t row = 0; row < rows; ++row) {
        const std::int64_t some = entry(blocks.kv_num_blocks, b, h, row, 0);
        const std::int64_t full = entry(blocks.full_kv_num_blocks, b, h, row, 0);
        for (std::int64_t m = 0, n = 0; m < some && n < full;) {
          const std::int64_t first = entry(blocks.kv_indices, b, h, row, m);
          const std::int64_t second = entry(blocks.full_kv_indices, b, h, row, n);
          if (first == second)
            return bad("key block %" PRId64 " of row %" PRId64
                       " is in kv_indices and full_kv_indices; expected one of them",
                       first, row);
          first < second ? ++m : ++n;
        }
      }
  return {};
}

}  // namespace

Status check_block_mask(Check& check) {
  const tilewise_attention& given = check.given;
  BlockMask& blocks = check.call.tensors.block_mask;
  if (!blocks.exists()) {
    for (const TensorView* view :
         {&blocks.kv_indices, &blocks.full_kv_num_blocks, &blocks.full_kv_indices})
      if (view->exists()) return bad("%s is given without kv_num_blocks", check.name_of(*view));
    if (given.block_q != 0 || given.block_k != 0)
      return bad("block_%s is set without kv_num_blocks", given.block_q != 0 ? "q" : "k");
    return {};
  }
  if (given.block_q < 1 || given.block_k < 1 || given.block_q > largest_dimension ||
      given.block_k > largest_dimension)
    return bad("blocks are %" PRId64 " queries by %" PRId64 " keys; expected at least 1 of each",
               given.block_q, given.block_k);
  if (!blocks.kv_indices.exists()) return bad("kv_num_blocks is given without kv_indices");
  if (blocks.full_kv_num_blocks.exists() != blocks.full_kv_indices.exists())
    return bad("of full_kv_num_blocks and full_kv_indices one is given; expected both or none");
  blocks.block_q = given.block_q;
  blocks.block_k = given.block_k;
  const std::int64_t rows = blocks_in(check.longest_q, blocks.block_q);
  const bool two_lists = blocks.full_kv_num_blocks.exists();
  Status status = check_list(check, blocks.kv_num_blocks, blocks.kv_indices, rows);
  if (status.ok() && two_lists)
    status = check_list(check, blocks.full_kv_num_blocks, blocks.full_kv_indices, rows);
  if (status.ok() && two_lists && check.scope.depth == Depth::memory)
    status = check_lists_are_disjoint(check, rows);
  return status;
}

}  // namespace tilewise::cpu
