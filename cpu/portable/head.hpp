// One query head of one sequence, with the key/value head that it reads: what all its tiles share.
#pragma once

#include "core/quantised.hpp"
#include "cpu/call.hpp"
#include "cpu/sequences.hpp"

#include <cstdint>

namespace tilewise::cpu::portable {

inline constexpr std::int64_t Br = 64;  ///< query rows of a tile
inline constexpr std::int64_t Bc = 64;  ///< keys of a tile

constexpr std::int64_t blocks(std::int64_t length, std::int64_t block) {
  return (length + block - 1) / block;
}

/// Some consecutive queries, or keys, of a sequence.
struct Span {
  std::int64_t first = 0, count = 0;

  std::int64_t end() const { return first + count; }
  /// Block n of a sequence cut into blocks; the last may be short. Empty beyond the end.
  static Span block(std::int64_t n, std::int64_t size, std::int64_t length) {
    const std::int64_t rest = length - n * size;
    return {n * size, rest < 0 ? 0 : rest < size ? rest : size};
  }
};

struct Shape {
  explicit Shape(const Call& call)
      : nheads_q(call.tensors.q.shape[call.tensors.q.ndim - 2]),
        nheads_k(call.tensors.k.shape[call.tensors.k.ndim - 2]),
        group(nheads_q / nheads_k),
        head_dim(call.tensors.q.shape[call.tensors.q.ndim - 1]),
        head_dim_v(call.tensors.v.shape[call.tensors.v.ndim - 1] *
                   numbers_in(call.tensors.v.dtype)) {}

  std::int64_t nheads_q, nheads_k, group, head_dim, head_dim_v;
};

struct Head {
  Head(const Call& whole, std::int64_t sequence, std::int64_t query_head)
      : call(whole),
        shape(whole),
        queries(Sequences::of_queries(whole.tensors)),
        keys(Sequences::of_keys(whole.tensors)),
        b(sequence),
        h(query_head),
        kv_head(query_head / shape.group),
        seqlen_q(queries.length(sequence)),
        seqlen_k(keys.length(sequence)) {}

  const Call& call;
  Shape shape;
  Sequences queries, keys;
  std::int64_t b, h, kv_head;
  std::int64_t seqlen_q, seqlen_k;
};

}  // namespace tilewise::cpu::portable
