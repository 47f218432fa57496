#include "cuda/kernels/serving.hpp"

#include <algorithm>
#include <cstdint>

namespace tilewise::cuda {

Status no(const char* what) {
  return failure(Code::unsupported, "%s: these CUDA kernels do not compute it", what);
}

Status plain(const DeviceCall& call, std::initializer_list<std::string_view> taken,
             bool with_windows_and_caps) {
  const AttentionParams& params = call.params;
  const bool windows_and_caps = !with_windows_and_caps;  // are refused
  const struct {
    bool asked;
    const char* name;
  } all[] = {
      {windows_and_caps && (params.window_left >= 0 || params.window_right >= 0), "a window"},
      {params.attention_chunk > 0, "attention_chunk"},
      {windows_and_caps && params.softcap > 0, "softcap"},
      {params.dropout_p > 0, "dropout"}};
  for (const auto& each : all)
    if (each.asked) return no(each.name);
  Status status;
  for_each_tensor(call.tensors, [&](std::string_view name, const TensorView& tensor) {
    if (status.ok() && is_there(tensor) &&
        std::find(taken.begin(), taken.end(), name) == taken.end())
      status = no(name.data());
  });
  return status;
}

Status one_half_dtype(const AttentionTensors& tensors) {
  const DType dtype = tensors.q.dtype;
  if (dtype != DType::f16 && dtype != DType::bf16) return no("a dtype other than f16 and bf16");
  if (tensors.k.dtype != dtype || tensors.v.dtype != dtype)
    return no("keys or values of another dtype than the queries");
  for (const TensorView* const view :
       {&tensors.o, &tensors.dout, &tensors.dq, &tensors.dk, &tensors.dv})
    if (is_there(*view) && view->dtype != dtype)
      return no("an output of another dtype than the inputs");
  return {};
}

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

Status contiguous_lse(const TensorView& lse) {
  if (is_there(lse) && (lse.strides[2] != 1 || lse.strides[1] != lse.shape[2] ||
                        lse.strides[0] != lse.shape[1] * lse.shape[2]))
    return no("an lse that is not contiguous");
  return {};
}

Status usual_conventions(const DeviceCall& call) {
  const Conventions& conventions = call.params.conventions;
  const bool causal = call.params.causal;
  const std::int64_t seqlen_q = call.tensors.q.shape[1], seqlen_k = call.tensors.k.shape[1];
  if (causal && seqlen_q != seqlen_k && conventions.alignment != Alignment::bottom_right)
    return no("a causal mask from the top left over another number of keys than queries");
  const bool empty_rows = seqlen_k == 0 || (causal && seqlen_q > seqlen_k);
  if (empty_rows && (conventions.empty_row_output != EmptyRowOutput::zero ||
                     conventions.empty_row_lse == EmptyRowLse::plus_inf))
    return no("rows without keys that are not O = 0 and LSE = -inf");
  return {};
}

}  // namespace tilewise::cuda
