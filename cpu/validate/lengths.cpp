// How long the sequences are: dense, dense with lengths, or packed with prefix sums. Lengths of a
// cache: cache.cpp.
#include "cpu/validate/check.hpp"
#include "cpu/validate/words.hpp"

#include <algorithm>
#include <cinttypes>

namespace tilewise::cpu {
namespace {

/// The queries, or the keys.
struct Rows {
  const TensorView& view;
  const char* name;
  bool packed;
  const TensorView &cu_seqlens, &seqlens;
  std::int64_t max_seqlen;  ///< as the caller promises, 0: not known
};

Status check_vectors(const Check& check, const Rows& rows) {
  for (const TensorView* view : {&rows.cu_seqlens, &rows.seqlens})
    if (view->exists())
      if (Status status = check_dtype(check.name_of(*view), *view, DType::i32); !status.ok())
        return status;
  if (!rows.seqlens.exists()) return {};
  return check_shape(check.name_of(rows.seqlens), rows.seqlens, {1, {check.batch}}, "[batch]");
}

/// The rows that packed sequence b has.
Status read_stretch(const Rows& rows, std::int64_t b, std::int64_t& room) {
  const TensorView& cu = rows.cu_seqlens;
  const std::int64_t begin = index_at(cu, b * cu.strides[0]);
  const std::int64_t end = index_at(cu, (b + 1) * cu.strides[0]);
  room = end - begin;
  if (end < begin)
    return bad("cu_seqlens_%s falls from %" PRId64 " to %" PRId64 " at sequence %" PRId64
               "; expected that it never falls",
               rows.name, begin, end, b);
  if (end > rows.view.shape[0])
    return bad("cu_seqlens_%s ends sequence %" PRId64 " at row %" PRId64 "; %s has %" PRId64
               " rows",
               rows.name, b, end, rows.name, rows.view.shape[0]);
  if (rows.max_seqlen != 0 && room > rows.max_seqlen)
    return bad("sequence %" PRId64 " of %s has length %" PRId64
               "; max_seqlen_%s promised at most %" PRId64,
               b, rows.name, room, rows.name, rows.max_seqlen);
  return {};
}

/// `longest`: what a sequence's length cannot exceed, as far as that is known.
Status lengths_of(const Check& check, const Rows& rows, std::int64_t& longest) {
  if (!rows.packed && rows.max_seqlen != 0 && rows.max_seqlen != rows.view.shape[1])
    return bad("max_seqlen_%s is %" PRId64 " and %s has seqlen %" PRId64
               "; expected the same, or 0",
               rows.name, rows.max_seqlen, rows.name, rows.view.shape[1]);
  longest = rows.packed ? rows.max_seqlen : rows.view.shape[1];
  if (Status status = check_vectors(check, rows); !status.ok()) return status;
  if (check.scope.depth != Depth::memory || (!rows.packed && !rows.seqlens.exists())) return {};

  if (rows.packed && index_at(rows.cu_seqlens, 0) != 0)
    return bad("cu_seqlens_%s starts with %" PRId64 "; expected 0", rows.name,
               index_at(rows.cu_seqlens, 0));
  for (std::int64_t b = 0; b < check.batch; ++b) {
    std::int64_t room = rows.view.shape[1];
    if (rows.packed) {
      if (Status status = read_stretch(rows, b, room); !status.ok()) return status;
      longest = std::max(longest, room);
    }
    if (!rows.seqlens.exists()) continue;
    const std::int64_t length = index_at(rows.seqlens, b * rows.seqlens.strides[0]);
    if (length < 0 || length > room)
      return bad("seqlens_%s says %" PRId64 " for sequence %" PRId64 "; expected 0 to %" PRId64,
                 rows.name, length, b, room);
  }
  return {};
}

}  // namespace

Status check_lengths(Check& check) {
  const AttentionTensors& all = check.call.tensors;
  const Rows queries{
      all.q, "q", check.packed_q, all.cu_seqlens_q, all.seqlens_q, check.given.max_seqlen_q};
  const Rows keys{
      all.k, "k", check.packed_k, all.cu_seqlens_k, all.seqlens_k, check.given.max_seqlen_k};
  Status status = lengths_of(check, queries, check.longest_q);
  if (!status.ok()) return status;
  return all.cache.exists() ? check_vectors(check, keys) : lengths_of(check, keys, check.longest_k);
}

}  // namespace tilewise::cpu
