// The general forward kernel's host side: which calls are its.
#include "cuda/kernels/families.hpp"
#include "cuda/kernels/serving.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>

namespace tilewise::cuda::general_forward {
namespace {

constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max() - 256;

Status dtype_of_queries(const AttentionTensors& t) {
  if (t.q.dtype == DType::f16 || t.q.dtype == DType::bf16) return {};
  return failure(Code::unsupported, "q has dtype %s; these CUDA kernels compute with f16 and bf16",
                 name_of(t.q.dtype).data());
}

Status dtype_of_keys(const char* name, const TensorView& view, const AttentionTensors& t) {
  const DType dtype = view.dtype;
  if (dtype == t.q.dtype) return {};
  const bool known =
      dtype == DType::e4m3 || dtype == DType::e5m2 || dtype == DType::i8 || dtype == DType::q8_0;
  if (known && !is_there(t.cache.k_new)) return {};
  return failure(Code::unsupported, "%s has dtype %s beside %s of q%s", name, name_of(dtype).data(),
                 name_of(t.q.dtype).data(),
                 known ? ", and rows are to be appended to it; these CUDA kernels append numbers "
                         "of q's dtype"
                       : "; these CUDA kernels read q's, e4m3, e5m2, i8 and q8_0");
}

/// f32 or q's, as far as it is there.
Status dtype_beside(const char* name, const TensorView& view, DType dtype) {
  if (!is_there(view) || view.dtype == dtype || view.dtype == DType::f32) return {};
  return failure(Code::unsupported, "%s has dtype %s; these CUDA kernels have f32 and q's", name,
                 name_of(view.dtype).data());
}

Status dtypes(const AttentionTensors& t) {
  if (Status status = dtype_of_queries(t); !status.ok()) return status;
  if (Status status = dtype_of_keys("k", t.k, t); !status.ok()) return status;
  if (Status status = dtype_of_keys("v", t.v, t); !status.ok()) return status;
  const struct {
    const char* name;
    const TensorView& view;
  } all[] = {{"o", t.o},
             {"bias", t.bias},
             {"rotary_cos", t.cache.rotary_cos},
             {"rotary_sin", t.cache.rotary_sin}};
  for (const auto& [name, view] : all)
    if (Status status = dtype_beside(name, view, t.q.dtype); !status.ok()) return status;
  if (is_there(t.lse) && t.lse.dtype != DType::f32) return no("an lse that is not f32");
  return {};
}

Status width(const char* name, std::int64_t numbers) {
  if (numbers >= 1 && numbers <= 256) return {};
  return failure(Code::unsupported, "%s is %lld; these CUDA kernels serve 1 to 256", name,
                 static_cast<long long>(numbers));
}

/// a * b, or more than the most of anything.
std::int64_t product(std::int64_t a, std::int64_t b) {
  return b != 0 && a > (most + 1) / b ? most + 1 : a * b;
}

/// Rows and keys are counted in 32 bits, blocks of a grid in 31.
Status sizes(const AttentionTensors& t) {
  const bool packed = is_there(t.cu_seqlens_q);
  const std::int64_t rows = t.q.shape[packed ? 0 : 1], heads = t.q.shape[t.q.ndim - 2];
  const std::int64_t batch =
      packed ? std::max<std::int64_t>(t.cu_seqlens_q.shape[0] - 1, 0) : t.q.shape[0];
  // Packed, each sequence may begin a row block that it does not fill.
  const std::int64_t row_blocks = packed ? rows / 64 + batch : product(batch, rows / 64 + 1);
  std::int64_t keys = t.k.shape[is_there(t.cu_seqlens_k) ? 0 : 1];
  if (is_there(t.cache.block_table)) keys = product(keys, t.cache.block_table.shape[1]);
  const std::int64_t added = is_there(t.cache.k_new) ? t.cache.k_new.shape[1] : 0;
  const bool fits = rows <= most && keys <= most && t.k.shape[0] <= most &&
                    product(heads, row_blocks) <= most &&
                    product(product(heads, batch), added) <= most;
  if (fits) return {};
  return failure(Code::unsupported, "more than 2^31 rows, keys, or blocks of rows");
}

/// Something that only the device's memory says.
bool has_contents(const AttentionTensors& t) {
  const TensorView* const all[] = {
      &t.cu_seqlens_q,      &t.cu_seqlens_k,          &t.seqlens_q,     &t.seqlens_k,
      &t.cache.block_table, &t.cache.cache_batch_idx, &t.cache.leftpad, &t.block_mask.kv_num_blocks,
      &t.cache.k_new,       &t.cache.rotary_cos};
  return std::any_of(std::begin(all), std::end(all),
                     [](const TensorView* view) { return is_there(*view); });
}

}  // namespace

Status serves(const DeviceCall& call, const DeviceLimits&) {
  const AttentionTensors& t = call.tensors;
  if (call.backward) return no("backward");
  if (Status status = dtypes(t); !status.ok()) return status;
  if (Status status = width("head_dim", t.q.shape[t.q.ndim - 1]); !status.ok()) return status;
  const std::int64_t numbers = t.v.dtype == DType::q8_0 ? 32 : 1;
  if (Status status = width("head_dim_v", t.v.shape[t.v.ndim - 1] * numbers); !status.ok())
    return status;
  return sizes(t);
}

std::size_t workspace_bytes(const DeviceCall& call, const DeviceLimits&) {
  return has_contents(call.tensors) ? workspace_head_bytes : 0;
}

}  // namespace tilewise::cuda::general_forward
