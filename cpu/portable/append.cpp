// One (sequence, key/value head) a task. Its rows lie behind those that the cache had, where no
// other task writes: no two sequences may share the page or cache row that they grow into.
#include "cpu/portable/append.hpp"

#include "cpu/portable/head.hpp"
#include "cpu/portable/rotary.hpp"
#include "cpu/portable/rows.hpp"
#include "cpu/portable/workspace.hpp"

#include <algorithm>

namespace tilewise::cpu::portable {
namespace {

template <class Real>
struct OneRow {
  OneRow(Arena& arena, const Shape& shape)
      : numbers(arena.take<Real>(std::max(shape.head_dim, shape.head_dim_v))) {}

  Real* numbers;
};

/// Row n of what is appended to sequence b becomes row s of the sequence.
template <class Real>
void append_row(const Call& call, const Sequences& keys, const TensorView& from,
                const TensorView& to, std::int64_t b, std::int64_t n, std::int64_t kv_head,
                bool rotates, Real* numbers) {
  const std::int64_t s = keys.length_before(b) + n, width = from.shape[3];
  read_numbers(from, b * from.strides[0] + n * from.strides[1] + kv_head * from.strides[2],
               from.strides[3], width, numbers);
  if (rotates) rotate(call.tensors.cache, keys.cache_row(b, s), numbers);
  write_numbers(to, keys.offset(to, b, s, kv_head), to.strides[3], width, numbers);
}

}  // namespace

template <class Real>
void append(const Call& call, const Workers& workers, void* workspace) {
  const AttentionTensors& tensors = call.tensors;
  const KvCache& cache = tensors.cache;
  const Sequences keys = Sequences::of_keys(tensors);
  const Shape shape(call);
  for_each_task<OneRow<Real>>(
      workers, workspace, shape, cache.k_new.shape[0] * shape.nheads_k,
      [&](std::int64_t task, const OneRow<Real>& row) {
        const std::int64_t b = task / shape.nheads_k, kv_head = task % shape.nheads_k;
        for (std::int64_t n = 0; n < cache.seqlen_new(); ++n) {
          append_row(call, keys, cache.k_new, tensors.k, b, n, kv_head, cache.rotates(),
                     row.numbers);
          append_row(call, keys, cache.v_new, tensors.v, b, n, kv_head, false, row.numbers);
        }
      });
}

template void append<float>(const Call&, const Workers&, void*);
template void append<double>(const Call&, const Workers&, void*);

}  // namespace tilewise::cpu::portable
