// What the CUDA kernels serve. Each refusal names what is not served, never only that something is.
#include "cuda/kernels/attention.hpp"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <limits>
#include <string_view>

namespace tilewise::cuda {
namespace {

constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();

Status no(const char* what) {
  return failure(Code::unsupported, "%s: the CUDA kernels do not compute it yet", what);
}

/// A tensor is there if it has a shape: it may not have memory yet.
bool is_there(const TensorView& tensor) {
  return tensor.ndim != 0;
}

/// What a call has beyond scale and causal, and q, k, v, o and lse.
Status plain(const AttentionParams& params, const AttentionTensors& tensors) {
  const struct {
    bool asked;
    const char* name;
  } all[] = {{params.window_left >= 0 || params.window_right >= 0, "a window"},
             {params.attention_chunk > 0, "attention_chunk"},
             {params.softcap > 0, "softcap"},
             {params.dropout_p > 0, "dropout"}};
  for (const auto& each : all)
    if (each.asked) return no(each.name);
  constexpr std::string_view taken[] = {"q", "k", "v", "o", "lse"};
  Status status;
  for_each_tensor(tensors, [&](std::string_view name, const TensorView& tensor) {
    if (status.ok() && is_there(tensor) &&
        std::find(std::begin(taken), std::end(taken), name) == std::end(taken))
      status = no(name.data());
  });
  return status;
}

/// Rows of 16-byte chunks at multiples of 16 bytes: what cp.async copies.
Status in_chunks(const char* name, const TensorView& tensor) {
  if (tensor.strides[3] != 1)
    return failure(Code::unsupported, "%s has a stride of %lld between neighbours of a row, not 1",
                   name, static_cast<long long>(tensor.strides[3]));
  for (int n = 0; n < 3; ++n)
    if (tensor.shape[n] > 1 && tensor.strides[n] % 8 != 0)
      return failure(Code::unsupported, "%s has a stride of %lld, no multiple of 8 (16 bytes)",
                     name, static_cast<long long>(tensor.strides[n]));
  if (reinterpret_cast<std::uintptr_t>(tensor.data) % 16 != 0)
    return failure(Code::unsupported, "%s begins at no multiple of 16 bytes", name);
  return {};
}

Status rows(const AttentionTensors& tensors) {
  const std::int64_t d = tensors.q.shape[3];
  if (d != 64 && d != 128 && d != 256)
    return failure(Code::unsupported, "head_dim is %lld; the CUDA kernels have 64, 128 and 256",
                   static_cast<long long>(d));
  if (tensors.v.shape[3] != d)
    return failure(Code::unsupported, "head_dim_v is %lld, and head_dim %lld; they must be equal",
                   static_cast<long long>(tensors.v.shape[3]), static_cast<long long>(d));
  const struct {
    const char* name;
    const TensorView& view;
  } all[] = {{"q", tensors.q}, {"k", tensors.k}, {"v", tensors.v}, {"o", tensors.o}};
  for (const auto& [name, view] : all)
    if (Status status = in_chunks(name, view); !status.ok()) return status;
  const TensorView& lse = tensors.lse;
  if (is_there(lse) && (lse.strides[2] != 1 || lse.strides[1] != lse.shape[2] ||
                        lse.strides[0] != lse.shape[1] * lse.shape[2]))
    return no("an lse that is not contiguous");
  const std::int64_t n = tensors.q.shape[1], heads = tensors.q.shape[0] * tensors.q.shape[2];
  if (n > most - 256 || tensors.k.shape[1] > most - 256 || heads * (n / 64 + 1) > most)
    return failure(Code::unsupported, "more than 2^31 rows, keys, or blocks of rows");
  return {};
}

}  // namespace

Status serves_forward(const AttentionParams& params, const AttentionTensors& tensors) {
  const DType dtype = tensors.q.dtype;
  if (dtype != DType::f16 && dtype != DType::bf16) return no("a dtype other than f16 and bf16");
  if (tensors.k.dtype != dtype || tensors.v.dtype != dtype)
    return no("keys or values of another dtype than the queries");
  if (tensors.o.dtype != dtype) return no("an output of another dtype than the inputs");
  if (Status status = plain(params, tensors); !status.ok()) return status;
  if (Status status = rows(tensors); !status.ok()) return status;

  const Conventions& conventions = params.conventions;
  const std::int64_t seqlen_q = tensors.q.shape[1], seqlen_k = tensors.k.shape[1];
  if (params.causal && seqlen_q != seqlen_k && conventions.alignment != Alignment::bottom_right)
    return no("a causal mask from the top left over another number of keys than queries");
  const bool empty_rows = seqlen_k == 0 || (params.causal && seqlen_q > seqlen_k);
  if (empty_rows && (conventions.empty_row_output != EmptyRowOutput::zero ||
                     conventions.empty_row_lse == EmptyRowLse::plus_inf))
    return no("rows without keys that are not O = 0 and LSE = -inf");
  return {};
}

}  // namespace tilewise::cuda
