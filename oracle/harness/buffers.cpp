#include "oracle/harness/buffers.hpp"

#include "core/quantised.hpp"
#include "oracle/attention.hpp"

#include <algorithm>
#include <iterator>
#include <string_view>

#include <fmt/format.h>

namespace tilewise::harness {

namespace {

bool is_output(std::string_view name) {
  constexpr std::string_view outputs[] = {"o", "lse", "dq", "dk", "dv", "dbias", "dsinks"};
  return std::find(std::begin(outputs), std::end(outputs), name) != std::end(outputs);
}

/// [batch, seqlen, nheads, width], or [total, nheads, width] packed, in the problem's layout.
TensorView activation(const Problem& problem, DType dtype, std::int64_t seqlen, std::int64_t total,
                      std::int64_t nheads, std::int64_t width) {
  switch (problem.layout) {
    case Layout::bshd: return contiguous(nullptr, dtype, problem.batch, seqlen, nheads, width);
    case Layout::bhsd:
      return transposed(contiguous(nullptr, dtype, problem.batch, nheads, seqlen, width), 1, 2);
    case Layout::packed: return contiguous(nullptr, dtype, total, nheads, width);
  }
  return {};
}

/// A block mask that differs from sequence to sequence and from head to head.
BlockMask block_mask(const Problem& problem, const BlockSparsity& blocks) {
  const auto count = [](std::int64_t length, std::int64_t block) {
    return (length + block - 1) / block;
  };
  const std::int64_t rows = count(problem.max_seqlen_q(), blocks.block_q);
  const std::int64_t columns = count(problem.max_seqlen_k(), blocks.block_k);
  BlockMask mask{blocks.block_q, blocks.block_k, {}, {}, {}, {}};
  mask.kv_num_blocks = mask.full_kv_num_blocks =
      contiguous(nullptr, DType::i32, problem.batch, problem.nheads_q, rows);
  mask.kv_indices = mask.full_kv_indices =
      contiguous(nullptr, DType::i32, problem.batch, problem.nheads_q, rows, columns);
  return mask;
}

std::int64_t pages_for(const Problem& problem, std::int64_t keys) {
  return (problem.leftpad + keys + problem.page - 1) / problem.page;
}

/// A cache of keys or values: pages (two more than are used), or rows of room for the longest
/// sequence and one more.
TensorView cache(const Problem& problem, DType dtype, std::int64_t width) {
  const bool heads_first = problem.layout == Layout::bhsd;
  std::int64_t blocks = std::max(problem.batch, problem.slots);
  std::int64_t rows = problem.leftpad + problem.max_seqlen_k() + 1;
  if (problem.page > 0) {
    blocks = 2;
    for (std::int64_t b = 0; b < problem.batch; ++b)
      blocks += pages_for(problem, problem.seqlen_k(b));
    rows = problem.page;
  }
  if (heads_first)
    return transposed(contiguous(nullptr, dtype, blocks, problem.nheads_k, rows, width), 1, 2);
  return contiguous(nullptr, dtype, blocks, rows, problem.nheads_k, width);
}

KvCache cache_lists(const Problem& problem) {
  const std::int64_t heads = problem.nheads_k;
  KvCache lists;
  if (problem.page > 0)
    lists.block_table =
        contiguous(nullptr, DType::i32, problem.batch,
                   std::max<std::int64_t>(1, pages_for(problem, problem.max_seqlen_k())));
  if (problem.slots > 0) lists.cache_batch_idx = contiguous(nullptr, DType::i32, problem.batch);
  if (problem.leftpad > 0) lists.leftpad = contiguous(nullptr, DType::i32, problem.batch);
  if (problem.seqlen_new > 0) {
    lists.k_new = contiguous(nullptr, problem.dtype, problem.batch, problem.seqlen_new, heads,
                             problem.head_dim);
    lists.v_new = contiguous(nullptr, problem.dtype, problem.batch, problem.seqlen_new, heads,
                             problem.head_dim_v);
  }
  if (problem.rotary) {
    const std::int64_t positions =
        problem.leftpad + problem.max_seqlen_k() + problem.max_seqlen_q();
    const bool half_precision = problem.dtype == DType::f16 || problem.dtype == DType::bf16;
    lists.rotary_cos = lists.rotary_sin =
        contiguous(nullptr, half_precision ? problem.dtype : DType::f32, positions,
                   problem.rotary->elements / 2);
    lists.rotary_interleaved = problem.rotary->interleaved;
  }
  return lists;
}

/// One scale for each row of k or v.
TensorView scales_of(const TensorView& rows) {
  TensorView scales = rows;
  scales.dtype = DType::f32;
  --scales.ndim;
  for (int dim = 0; dim < scales.ndim; ++dim) scales.strides[dim] /= rows.shape[scales.ndim];
  return scales;
}

TensorView broadcastable(const Problem& problem, DType dtype, const Broadcast& present) {
  return contiguous(nullptr, dtype, present.batch ? problem.batch : 1,
                    present.head ? problem.nheads_q : 1, present.query ? problem.max_seqlen_q() : 1,
                    present.key ? problem.max_seqlen_k() : 1);
}

}  // namespace

AttentionTensors tensor_shapes(const Problem& problem, const Outputs& outputs) {
  const DType stored = problem.output_dtype();
  const auto of_queries = [&](DType dtype, std::int64_t width) {
    return activation(problem, dtype, problem.max_seqlen_q(), problem.total_q(), problem.nheads_q,
                      width);
  };
  const auto of_keys = [&](DType dtype, std::int64_t width) {
    if (problem.cached()) return cache(problem, dtype, width);
    return activation(problem, dtype, problem.max_seqlen_k(), problem.total_k(), problem.nheads_k,
                      width);
  };
  AttentionTensors shapes;
  shapes.q = of_queries(problem.dtype, problem.head_dim);
  const DType kv = problem.kv_dtype();
  shapes.k = of_keys(kv, problem.head_dim / numbers_in(kv));
  shapes.v = of_keys(kv, problem.head_dim_v / numbers_in(kv));
  if (kv == DType::i8) {
    shapes.scales.k_scales = scales_of(shapes.k);
    shapes.scales.v_scales = scales_of(shapes.v);
  }
  if (problem.descale)
    shapes.scales.q_descale = shapes.scales.k_descale = shapes.scales.v_descale =
        contiguous(nullptr, DType::f32, problem.batch, problem.nheads_k);
  if (problem.cached()) shapes.cache = cache_lists(problem);
  if (problem.alibi) shapes.alibi_slopes = contiguous(nullptr, DType::f32, problem.nheads_q);
  if (problem.bias) shapes.bias = broadcastable(problem, DType::f32, *problem.bias);
  if (problem.mask) shapes.mask = broadcastable(problem, DType::boolean, *problem.mask);
  if (problem.sink) shapes.sinks = contiguous(nullptr, DType::f32, problem.nheads_q);
  if (problem.blocks) shapes.block_mask = block_mask(problem, *problem.blocks);
  const TensorView starts = contiguous(nullptr, DType::i32, problem.batch + 1);
  const TensorView lengths = contiguous(nullptr, DType::i32, problem.batch);
  const bool packed = problem.layout == Layout::packed;
  if (packed)
    shapes.cu_seqlens_q = starts;
  else if (problem.varlen())
    shapes.seqlens_q = lengths;
  if (packed && !problem.cached())
    shapes.cu_seqlens_k = starts;
  else if (problem.cached() || problem.varlen())
    shapes.seqlens_k = lengths;
  if (problem.pass == Pass::backward) shapes.dout = of_queries(stored, problem.head_dim_v);
  if (outputs.o) shapes.o = of_queries(stored, problem.head_dim_v);
  if (outputs.lse)
    shapes.lse = problem.layout == Layout::packed
                     ? contiguous(nullptr, problem.lse_dtype(), problem.nheads_q, problem.total_q())
                     : contiguous(nullptr, problem.lse_dtype(), problem.batch, problem.nheads_q,
                                  problem.max_seqlen_q());
  if (outputs.dq) shapes.dq = of_queries(stored, problem.head_dim);
  if (outputs.dk) shapes.dk = of_keys(stored, problem.head_dim);
  if (outputs.dv) shapes.dv = of_keys(stored, problem.head_dim_v);
  if (outputs.dbias && problem.bias) shapes.dbias = shapes.bias;
  if (outputs.dsinks && problem.sink)
    shapes.dsinks = contiguous(nullptr, DType::f32, problem.nheads_q);
  return shapes;
}

Status ProblemBuffers::add(TensorView& view, const char* name, Use use) {
  const std::size_t bytes = static_cast<std::size_t>(view.elements()) * size_of(view.dtype);
  std::optional<GuardedBuffer> buffer = GuardedBuffer::allocate(bytes);
  if (!buffer)
    return failure(Code::no_memory, "%s needs %zu bytes, and they are not there", name, bytes);
  view.data = buffer->data();
  buffers_.push_back({name, use, std::move(*buffer), {}});
  return {};
}

Status ProblemBuffers::allocate(const Problem& problem, const Outputs& outputs) {
  buffers_.clear();
  tensors_ = tensor_shapes(problem, outputs);
  Status status;
  for_each_tensor(tensors_, [&](std::string_view name, TensorView& view) {
    if (view.ndim == 0 || !status.ok()) return;
    const bool updated = problem.seqlen_new > 0 && (name == "k" || name == "v");
    status = add(view, name.data(),
                 is_output(name) ? Use::output
                 : updated       ? Use::updated
                                 : Use::input);
  });
  return status;
}

void ProblemBuffers::remember_updated() {
  for (Named& named : buffers_)
    if (named.use == Use::updated)
      named.original.assign(named.buffer.data(), named.buffer.data() + named.buffer.size());
}

void ProblemBuffers::poison_outputs() {
  for (Named& named : buffers_) {
    if (named.use == Use::output) named.buffer.poison();
    if (named.use != Use::updated) continue;
    named.buffer.poison();  // its guards, too
    std::copy(named.original.begin(), named.original.end(), named.buffer.data());
  }
}

void ProblemBuffers::protect_inputs() {
  for (Named& named : buffers_)
    if (named.use == Use::input) named.buffer.write_protect();
}

void ProblemBuffers::unprotect_inputs() {
  for (Named& named : buffers_)
    if (named.use == Use::input) named.buffer.unprotect();
}

std::string ProblemBuffers::broken_guard() const {
  for (const Named& named : buffers_) {
    const std::optional<std::ptrdiff_t> where = named.buffer.first_broken();
    if (!where) continue;
    if (*where < 0)
      return fmt::format("wrote {} bytes before the start of {}", -*where, named.name);
    return fmt::format("wrote past the end of {}: {} bytes behind its last element", named.name,
                       *where - static_cast<std::ptrdiff_t>(named.buffer.size()) + 1);
  }
  return {};
}

std::vector<ProblemBuffers::Snapshot> ProblemBuffers::snapshot() const {
  std::vector<Snapshot> copies;
  for (const Named& named : buffers_)
    if (named.use != Use::input)
      copies.push_back(
          {named.name, {named.buffer.data(), named.buffer.data() + named.buffer.size()}});
  return copies;
}

// The rows that were appended are put back first; what then differs should not have been written.
std::string ProblemBuffers::changed_cache(const Problem& problem) const {
  const oracle::Case rows(problem, tensors_);
  for (const Named& named : buffers_) {
    if (named.use != Use::updated) continue;
    const TensorView& view = named.name == "k" ? tensors_.k : tensors_.v;
    std::vector<std::byte> now(named.buffer.data(), named.buffer.data() + named.buffer.size());
    const std::size_t size = size_of(view.dtype);
    for (std::int64_t b = 0; b < problem.batch; ++b)
      for (std::int64_t j = problem.seqlen_k(b) - problem.seqlen_new; j < problem.seqlen_k(b); ++j)
        for (std::int64_t h = 0; h < problem.nheads_k; ++h)
          for (std::int64_t t = 0; t < view.shape[3]; ++t) {
            const auto at = static_cast<std::size_t>(rows.offset(view, oracle::Side::key, b, j, h) +
                                                     t * view.strides[3]) *
                            size;
            std::copy_n(named.original.begin() + static_cast<std::ptrdiff_t>(at), size,
                        now.begin() + static_cast<std::ptrdiff_t>(at));
          }
    const auto differs = std::mismatch(now.begin(), now.end(), named.original.begin()).first;
    if (differs != now.end())
      return fmt::format("wrote to {} outside of the rows to append, first at element {}",
                         named.name, static_cast<std::size_t>(differs - now.begin()) / size);
  }
  return {};
}

std::string ProblemBuffers::name_of(const void* address) const {
  for (const Named& named : buffers_)
    if (address >= named.buffer.data() && address < named.buffer.data() + named.buffer.size())
      return named.name;
  return {};
}

}  // namespace tilewise::harness
