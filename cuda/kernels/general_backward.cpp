// The general backward kernels' host side: which calls are theirs, and their workspace.
#include "cuda/kernels/families.hpp"
#include "cuda/kernels/serving.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>

namespace tilewise::cuda::general_backward {
namespace {

constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max() - 256;

/// The inputs' dtype, or float32.
Status dtype_beside(const char* name, const TensorView& tensor, DType dtype) {
  if (!is_there(tensor) || tensor.dtype == dtype || tensor.dtype == DType::f32) return {};
  return failure(Code::unsupported, "%s has dtype %s; these CUDA kernels have f32 and q's", name,
                 name_of(tensor.dtype).data());
}

Status dtypes(const AttentionTensors& t) {
  const DType dtype = t.q.dtype;
  if (dtype != DType::f16 && dtype != DType::bf16)
    return failure(Code::unsupported,
                   "q has dtype %s; these CUDA kernels compute with f16 and bf16",
                   name_of(dtype).data());
  if (t.k.dtype != dtype || t.v.dtype != dtype)
    return no("backward over keys or values of another dtype than the queries");
  const struct {
    const char* name;
    const TensorView& view;
  } all[] = {{"o", t.o},   {"dout", t.dout}, {"dq", t.dq},      {"dk", t.dk},
             {"dv", t.dv}, {"bias", t.bias}, {"dbias", t.dbias}};
  for (const auto& [name, view] : all)
    if (Status status = dtype_beside(name, view, dtype); !status.ok()) return status;
  return {};
}

Status width(const char* name, std::int64_t columns) {
  if (columns >= 1 && columns <= 256) return {};
  return failure(Code::unsupported, "%s is %lld; these CUDA kernels have 1 to 256", name,
                 static_cast<long long>(columns));
}

/// The rows that q has memory for, of all sequences.
std::int64_t places(const TensorView& q) {
  return q.ndim == 3 ? q.shape[0] : q.shape[0] * q.shape[1];
}

/// a * b, or more than the most of anything.
std::int64_t product(std::int64_t a, std::int64_t b) {
  return b != 0 && a > (most + 1) / b ? most + 1 : a * b;
}

/// Rows and keys are counted in 32 bits, blocks of a grid in 31.
Status sizes(const AttentionTensors& t) {
  constexpr std::int64_t rows_a_block = 16, tile = 32;  // the smallest ones
  const bool packed = is_there(t.cu_seqlens_q);
  const std::int64_t batch = packed ? t.cu_seqlens_q.shape[0] - 1 : t.q.shape[0];
  const auto blocks = [&](const TensorView& tensor, std::int64_t of) {
    const std::int64_t heads =
        product(std::max<std::int64_t>(batch, 0), tensor.shape[tensor.ndim - 2]);
    const std::int64_t rows = tensor.shape[tensor.ndim - 3];
    return rows > most ? rows : product(heads, rows / of + 1);
  };
  bool fits = blocks(t.q, rows_a_block) <= most && blocks(t.k, tile) <= most;
  if (is_there(t.dbias)) {
    const std::int64_t* const shape = t.dbias.shape;
    const std::int64_t tiles = product(shape[2] / tile + 1, shape[3] / tile + 1);
    fits = fits && product(product(shape[0], shape[1]), tiles) <= most;
  }
  if (fits) return {};
  return failure(Code::unsupported, "more than 2^31 rows, keys, or blocks of them");
}

}  // namespace

Status serves(const DeviceCall& call, const DeviceLimits&) {
  const AttentionTensors& t = call.tensors;
  if (!call.backward) return no("forward");
  if (is_there(t.cache.block_table) || is_there(t.cache.cache_batch_idx) ||
      is_there(t.cache.leftpad) || is_there(t.cache.k_new) || is_there(t.cache.rotary_cos))
    return no("backward over a cache");
  if (is_there(t.scales.k_scales) || is_there(t.scales.v_scales))
    return no("backward over quantised keys or values");
  if (Status status = dtypes(t); !status.ok()) return status;
  if (!is_there(t.lse)) return no("backward without lse");
  if (Status status = width("head_dim", t.q.shape[t.q.ndim - 1]); !status.ok()) return status;
  if (Status status = width("head_dim_v", t.v.shape[t.v.ndim - 1]); !status.ok()) return status;
  return sizes(t);
}

std::size_t workspace_bytes(const DeviceCall& call, const DeviceLimits&) {
  const TensorView& q = call.tensors.q;
  const auto rows = static_cast<std::size_t>(places(q) * q.shape[q.ndim - 2]);
  return workspace_head_bytes + (rows * sizeof(float) + 63) / 64 * 64;
}

}  // namespace tilewise::cuda::general_backward
