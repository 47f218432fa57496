#include "oracle/harness/buffers.hpp"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

namespace tilewise::harness {

namespace {

/// A tensor's name and place, for everything that walks over all of them.
struct Member {
  const char* name;
  TensorView& (*view)(AttentionTensors&);
  bool input;
};

template <TensorView AttentionTensors::*member>
TensorView& tensor(AttentionTensors& tensors) {
  return tensors.*member;
}
template <TensorView BlockMask::*member>
TensorView& block_list(AttentionTensors& tensors) {
  return tensors.block_mask.*member;
}

constexpr Member members[] = {
    {"q", tensor<&AttentionTensors::q>, true},
    {"k", tensor<&AttentionTensors::k>, true},
    {"v", tensor<&AttentionTensors::v>, true},
    {"alibi_slopes", tensor<&AttentionTensors::alibi_slopes>, true},
    {"bias", tensor<&AttentionTensors::bias>, true},
    {"mask", tensor<&AttentionTensors::mask>, true},
    {"sinks", tensor<&AttentionTensors::sinks>, true},
    {"kv_num_blocks", block_list<&BlockMask::kv_num_blocks>, true},
    {"kv_indices", block_list<&BlockMask::kv_indices>, true},
    {"full_kv_num_blocks", block_list<&BlockMask::full_kv_num_blocks>, true},
    {"full_kv_indices", block_list<&BlockMask::full_kv_indices>, true},
    {"cu_seqlens_q", tensor<&AttentionTensors::cu_seqlens_q>, true},
    {"cu_seqlens_k", tensor<&AttentionTensors::cu_seqlens_k>, true},
    {"seqlens_q", tensor<&AttentionTensors::seqlens_q>, true},
    {"seqlens_k", tensor<&AttentionTensors::seqlens_k>, true},
    {"dout", tensor<&AttentionTensors::dout>, true},
    {"o", tensor<&AttentionTensors::o>, false},
    {"lse", tensor<&AttentionTensors::lse>, false},
    {"dq", tensor<&AttentionTensors::dq>, false},
    {"dk", tensor<&AttentionTensors::dk>, false},
    {"dv", tensor<&AttentionTensors::dv>, false},
    {"dbias", tensor<&AttentionTensors::dbias>, false},
    {"dsinks", tensor<&AttentionTensors::dsinks>, false},
};

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
    return activation(problem, dtype, problem.max_seqlen_k(), problem.total_k(), problem.nheads_k,
                      width);
  };
  AttentionTensors shapes;
  shapes.q = of_queries(problem.dtype, problem.head_dim);
  shapes.k = of_keys(problem.dtype, problem.head_dim);
  shapes.v = of_keys(problem.dtype, problem.head_dim_v);
  if (problem.alibi) shapes.alibi_slopes = contiguous(nullptr, DType::f32, problem.nheads_q);
  if (problem.bias) shapes.bias = broadcastable(problem, DType::f32, *problem.bias);
  if (problem.mask) shapes.mask = broadcastable(problem, DType::boolean, *problem.mask);
  if (problem.sink) shapes.sinks = contiguous(nullptr, DType::f32, problem.nheads_q);
  if (problem.blocks) shapes.block_mask = block_mask(problem, *problem.blocks);
  if (problem.layout == Layout::packed) {
    shapes.cu_seqlens_q = shapes.cu_seqlens_k = contiguous(nullptr, DType::i32, problem.batch + 1);
  } else if (problem.varlen()) {
    shapes.seqlens_q = shapes.seqlens_k = contiguous(nullptr, DType::i32, problem.batch);
  }
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

Status ProblemBuffers::add(TensorView& view, const char* name, bool input) {
  const std::size_t bytes = static_cast<std::size_t>(view.elements()) * size_of(view.dtype);
  std::optional<GuardedBuffer> buffer = GuardedBuffer::allocate(bytes);
  if (!buffer)
    return failure(Code::no_memory, "%s needs %zu bytes, and they are not there", name, bytes);
  view.data = buffer->data();
  buffers_.push_back({name, input, std::move(*buffer)});
  return {};
}

Status ProblemBuffers::allocate(const Problem& problem, const Outputs& outputs) {
  buffers_.clear();
  tensors_ = tensor_shapes(problem, outputs);
  for (const Member& member : members) {
    TensorView& view = member.view(tensors_);
    if (view.ndim == 0) continue;
    if (Status status = add(view, member.name, member.input); !status.ok()) return status;
  }
  return {};
}

void ProblemBuffers::poison_outputs() {
  for (Named& named : buffers_)
    if (!named.input) named.buffer.poison();
}

void ProblemBuffers::protect_inputs() {
  for (Named& named : buffers_)
    if (named.input) named.buffer.write_protect();
}

void ProblemBuffers::unprotect_inputs() {
  for (Named& named : buffers_)
    if (named.input) named.buffer.unprotect();
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
    if (!named.input)
      copies.push_back(
          {named.name, {named.buffer.data(), named.buffer.data() + named.buffer.size()}});
  return copies;
}

std::string ProblemBuffers::name_of(const void* address) const {
  for (const Named& named : buffers_)
    if (address >= named.buffer.data() && address < named.buffer.data() + named.buffer.size())
      return named.name;
  return {};
}

}  // namespace tilewise::harness
