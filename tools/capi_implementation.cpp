#include "tools/capi_implementation.hpp"

#include "oracle/harness/buffers.hpp"

#include <algorithm>
#include <map>
#include <mutex>
#include <string>

namespace tilewise::tools {
namespace {

using harness::Implementation;
using harness::Support;

/// Two's dtypes, devices and conventions have the same order; the C ones of dtypes count from 1.
tilewise_tensor c_tensor(const TensorView& view) {
  tilewise_tensor tensor{};
  if (view.ndim == 0) return tensor;
  tensor.data = view.data;
  tensor.dtype = static_cast<std::int32_t>(view.dtype) + 1;
  tensor.device_type = static_cast<std::int32_t>(view.device.type);
  tensor.device_id = view.device.id;
  tensor.ndim = view.ndim;
  std::copy(std::begin(view.shape), std::end(view.shape), tensor.shape);
  std::copy(std::begin(view.strides), std::end(view.strides), tensor.strides);
  return tensor;
}

/// From the C interface's error to ours.
Status status_of(const tilewise_error& error) {
  if (error.code == TILEWISE_OK) return {};
  return failure(static_cast<Code>(error.code), "%.240s", error.message);
}

std::vector<std::int32_t> passes(const Problem& problem) {
  if (problem.pass == Pass::backward) return {TILEWISE_FORWARD, TILEWISE_BACKWARD};
  return {TILEWISE_FORWARD};
}

}  // namespace

tilewise_attention c_attention(const AttentionParams& params, const AttentionTensors& tensors) {
  tilewise_attention attention;
  (void)tilewise_attention_init(&attention, nullptr);
  attention.softmax_scale = params.softmax_scale;
  attention.causal = params.causal;
  attention.window_left = params.window_left;
  attention.window_right = params.window_right;
  attention.attention_chunk = params.attention_chunk;
  attention.softcap = params.softcap;
  attention.dropout_p = params.dropout_p;
  attention.philox_seed = params.philox_seed;
  attention.philox_offset = params.philox_offset;

  const Conventions& conventions = params.conventions;
  attention.alignment = static_cast<std::int32_t>(conventions.alignment);
  attention.empty_row_output = static_cast<std::int32_t>(conventions.empty_row_output);
  attention.empty_row_lse = static_cast<std::int32_t>(conventions.empty_row_lse);
  attention.lse_base = static_cast<std::int32_t>(conventions.lse_base);
  attention.window_left_counts = static_cast<std::int32_t>(conventions.window_left);
  attention.default_scale = static_cast<std::int32_t>(conventions.default_scale);
  attention.score_order = static_cast<std::int32_t>(conventions.score_order);
  attention.alibi = static_cast<std::int32_t>(conventions.alibi);
  attention.mask_and_causal = static_cast<std::int32_t>(conventions.mask_and_causal);

  attention.q = c_tensor(tensors.q);
  attention.k = c_tensor(tensors.k);
  attention.v = c_tensor(tensors.v);
  attention.o = c_tensor(tensors.o);
  attention.lse = c_tensor(tensors.lse);
  attention.dout = c_tensor(tensors.dout);
  attention.dq = c_tensor(tensors.dq);
  attention.dk = c_tensor(tensors.dk);
  attention.dv = c_tensor(tensors.dv);
  attention.dbias = c_tensor(tensors.dbias);
  attention.dsinks = c_tensor(tensors.dsinks);
  attention.bias = c_tensor(tensors.bias);
  attention.mask = c_tensor(tensors.mask);
  attention.sinks = c_tensor(tensors.sinks);
  attention.alibi_slopes = c_tensor(tensors.alibi_slopes);
  attention.cu_seqlens_q = c_tensor(tensors.cu_seqlens_q);
  attention.cu_seqlens_k = c_tensor(tensors.cu_seqlens_k);
  attention.seqlens_q = c_tensor(tensors.seqlens_q);
  attention.seqlens_k = c_tensor(tensors.seqlens_k);
  attention.block_q = tensors.block_mask.block_q;
  attention.block_k = tensors.block_mask.block_k;
  attention.kv_num_blocks = c_tensor(tensors.block_mask.kv_num_blocks);
  attention.kv_indices = c_tensor(tensors.block_mask.kv_indices);
  attention.full_kv_num_blocks = c_tensor(tensors.block_mask.full_kv_num_blocks);
  attention.full_kv_indices = c_tensor(tensors.block_mask.full_kv_indices);

  const KvCache& cache = tensors.cache;
  attention.block_table = c_tensor(cache.block_table);
  attention.cache_batch_idx = c_tensor(cache.cache_batch_idx);
  attention.cache_leftpad = c_tensor(cache.leftpad);
  attention.k_new = c_tensor(cache.k_new);
  attention.v_new = c_tensor(cache.v_new);
  attention.rotary_cos = c_tensor(cache.rotary_cos);
  attention.rotary_sin = c_tensor(cache.rotary_sin);
  // Off where nothing is turned: for a callee who does not know the field.
  attention.rotary_interleaved = cache.rotary_cos.ndim != 0 && cache.rotary_interleaved ? 1 : 0;

  const Scales& scales = tensors.scales;
  attention.q_descale = c_tensor(scales.q_descale);
  attention.k_descale = c_tensor(scales.k_descale);
  attention.v_descale = c_tensor(scales.v_descale);
  attention.k_scales = c_tensor(scales.k_scales);
  attention.v_scales = c_tensor(scales.v_scales);
  return attention;
}

tilewise_attention c_attention(const Problem& problem, const AttentionTensors& tensors) {
  tilewise_attention attention = c_attention(problem.params(), tensors);
  attention.num_splits = static_cast<std::int32_t>(problem.splits);
  if (tensors.cu_seqlens_q.ndim != 0) attention.max_seqlen_q = problem.max_seqlen_q();
  if (tensors.cu_seqlens_k.ndim != 0) attention.max_seqlen_k = problem.max_seqlen_k();
  return attention;
}

// -------------------------------------------------------------------------------- implementations

Support LibraryImplementation::supports(const Problem& problem) const {
  const auto [status, context] = context_for(1);
  if (!status.ok()) return Support::no(status.reason);
  for (const std::int32_t pass : passes(problem)) {
    const tilewise_attention attention =
        attention_of(problem, harness::tensor_shapes(problem, writes(problem)));
    tilewise_answer answer = TILEWISE_ANSWER_INIT;
    tilewise_error error = TILEWISE_ERROR_INIT;
    if (tilewise_query(context, &attention, pass, &answer, &error) != TILEWISE_OK)
      return Support::no(error.message);
    if (answer.code != TILEWISE_OK) return Support::no(answer.reason);
    if (std::string_view(answer.implementation) != row_.served_by)
      return Support::no(std::string("served by ") + answer.implementation);
  }
  return Support::yes();
}

std::size_t LibraryImplementation::workspace_bytes(const Problem& problem) const {
  const auto [status, context] = context_for(0);
  if (!status.ok()) return 0;
  const tilewise_attention attention =
      attention_of(problem, harness::tensor_shapes(problem, writes(problem)));
  std::size_t most = 0;
  for (const std::int32_t pass : passes(problem)) {
    std::size_t bytes = 0;
    (void)tilewise_attention_workspace(context, &attention, pass, &bytes, nullptr, nullptr);
    most = std::max(most, bytes);
  }
  return most;
}

Status LibraryImplementation::run(const harness::Call& call) const {
  return compute(call, call.tensors, call.workspace, nullptr);
}

Status LibraryImplementation::compute(const harness::Call& call, const AttentionTensors& tensors,
                                      void* workspace, void* stream) const {
  const auto [status, context] = context_for(call.threads);
  if (!status.ok()) return status;
  const tilewise_attention attention = attention_of(call.problem, tensors);
  for (const std::int32_t pass : passes(call.problem)) {
    tilewise_error error = TILEWISE_ERROR_INIT;
    const auto compute_pass =
        pass == TILEWISE_BACKWARD ? tilewise_attention_backward : tilewise_attention_forward;
    if (compute_pass(context, &attention, workspace, call.workspace_bytes, stream, &error) !=
        TILEWISE_OK)
      return status_of(error);
  }
  return {};
}

Status LibraryImplementation::validate(const harness::Call& call, const void* workspace,
                                       void* stream) const {
  const auto [status, context] = context_for(call.threads);
  if (!status.ok()) return status;
  tilewise_error error = TILEWISE_ERROR_INIT;
  (void)tilewise_validate(context, call.workspace_bytes == 0 ? nullptr : workspace, stream, &error);
  return status_of(error);
}

tilewise_attention LibraryImplementation::attention_of(const Problem& problem,
                                                       AttentionTensors tensors) const {
  if (row_.device_type != TILEWISE_CPU)
    for_each_tensor(tensors, [&](std::string_view, TensorView& view) {
      view.device = {static_cast<DeviceType>(row_.device_type), row_.device_id};
    });
  tilewise_attention attention = c_attention(problem, tensors);
  // The judge expects the same bits of an implementation that declares them repeatable.
  attention.deterministic = 1;
  return attention;
}

/// Contexts are kept: their threads sleep between calls, and a call then allocates nothing.
std::pair<Status, tilewise_context*> LibraryImplementation::context_for(int threads) const {
  if (row_.device_type != TILEWISE_CPU) threads = 0;  // there it is one context for any number
  const std::lock_guard lock(mutex_);
  const auto found = contexts_.find(threads);
  if (found != contexts_.end()) return {{}, found->second.get()};
  tilewise_context_options options;
  tilewise_context_options_init(&options);
  options.isa = row_.isa;
  options.threads = threads;
  options.device_type = row_.device_type;
  options.device_id = row_.device_id;
  options.backend = row_.backend;
  tilewise_context* made = nullptr;
  tilewise_error error = TILEWISE_ERROR_INIT;
  if (tilewise_context_create(&options, &made, &error) != TILEWISE_OK)
    return {status_of(error), nullptr};
  contexts_.emplace(threads, Context(made, &tilewise_context_destroy));
  return {{}, made};
}

std::unique_ptr<Implementation> portable_implementation() {
  return std::make_unique<LibraryImplementation>(LibraryImplementation::Row{
      "cpu.portable",
      "the library's portable kernel through its C interface: tiles in plain C++, every semantic, "
      "the same bits for any number of threads",
      "cpu.portable", TILEWISE_ISA_PORTABLE});
}

harness::Table library_implementations() {
  harness::Table table;
  table.push_back(portable_implementation());
  [[maybe_unused]] const auto add = [&](const char* name, const char* idea, std::int32_t isa) {
    table.push_back(
        std::make_unique<LibraryImplementation>(LibraryImplementation::Row{name, idea, name, isa}));
  };
#if defined(__x86_64__) || defined(__i386__)
  add("cpu.sse2", "the library's tile kernels with SSE2: 12 queries a block", TILEWISE_ISA_SSE2);
  add("cpu.avx2", "the library's tile kernels with AVX2 and FMA: 24 queries a block",
      TILEWISE_ISA_AVX2);
  add("cpu.avx512", "the library's tile kernels with AVX-512: 64 queries a block",
      TILEWISE_ISA_AVX512);
#elif defined(__aarch64__) || defined(__arm__)
  add("cpu.neon", "the library's tile kernels with NEON", TILEWISE_ISA_NEON);
#endif
  return table;
}

LibraryImplementation::Row cuda_row(const char* name) {
  LibraryImplementation::Row row{
      name, "The kernels that are shipped for sm_80 and later, where chapter 4 ends.", "cuda.sm80"};
  row.device_type = TILEWISE_CUDA;
  return row;
}

LibraryImplementation::Row cuda_row_sm90(const char* name) {
  LibraryImplementation::Row row{
      name, "Hopper's forward kernel as it is shipped, where chapter 5 ends.", "cuda.sm90"};
  row.device_type = TILEWISE_CUDA;
  return row;
}

}  // namespace tilewise::tools
