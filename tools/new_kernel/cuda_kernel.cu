// my_kernel: attention by online softmax (Milakov and Gimelshein 2018, arXiv 1805.02867) on a GPU,
// one warp a query row, as plain as it can be written.
//
//   for every key j:   s = scale q.k_j          m' = max(m, s)
//                      O = O e^(m - m') + e^(s - m') v_j,   l = l e^(m - m') + e^(s - m')
//   at the end:        O / l,   LSE = m + log l
//
// f32, f16 and bf16; head_dim up to 256; grouped heads; causal, from either corner; any strides.
// Replace `attend` by your own kernel, have `supports` say what it serves, and `tilewise check`
// says whether it is right.
#include <tilewise/plugin.h>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>

namespace {

// ---- the kernel -------------------------------------------------------------------------------

constexpr int warp = 32, warps_per_block = 4;
constexpr int longest_row = 256, per_lane = longest_row / warp;

__device__ float to_float(float x) {
  return x;
}
__device__ float to_float(__half x) {
  return __half2float(x);
}
__device__ float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
__device__ void from_float(float x, float* to) {
  *to = x;
}
__device__ void from_float(float x, __half* to) {
  *to = __float2half_rn(x);
}
__device__ void from_float(float x, __nv_bfloat16* to) {
  *to = __float2bfloat16_rn(x);
}

/// A [batch, seqlen, nheads, width] tensor of elements T; strides count elements.
template <class T>
struct Tensor {
  T* data;
  std::int64_t batch, seqlen, nheads, width;

  explicit Tensor(const tilewise_tensor& t)
      : data(static_cast<T*>(t.data)),
        batch(t.strides[0]),
        seqlen(t.strides[1]),
        nheads(t.strides[2]),
        width(t.strides[3]) {}
  __device__ T* at(std::int64_t b, std::int64_t i, std::int64_t h, std::int64_t c) const {
    return data + b * batch + i * seqlen + h * nheads + c * width;
  }
};

struct Shape {
  std::int64_t batch, nheads, seqlen_q, seqlen_k;
  int group, head_dim, head_dim_v;
  float scale;
  bool causal;
  std::int64_t shift;  ///< query i stands at key i + shift
  float empty_lse, lse_factor;
};

__device__ float sum_over_warp(float x) {
  for (int other = warp / 2; other > 0; other /= 2) x += __shfl_xor_sync(0xffffffffu, x, other);
  return x;
}

/// Lane n of the warp holds the elements n, n + 32, ... of q and of O.
template <class T>
__global__ void attend(Shape shape, Tensor<T> q, Tensor<T> k, Tensor<T> v, Tensor<T> o, float* lse,
                       std::int64_t lse_batch, std::int64_t lse_head, std::int64_t lse_row) {
  const int lane = static_cast<int>(threadIdx.x) % warp;
  const std::int64_t row =
      static_cast<std::int64_t>(blockIdx.x) * warps_per_block + threadIdx.x / warp;
  if (row >= shape.batch * shape.nheads * shape.seqlen_q) return;  // the whole warp
  const std::int64_t i = row % shape.seqlen_q, h = row / shape.seqlen_q % shape.nheads;
  const std::int64_t b = row / shape.seqlen_q / shape.nheads, kv_head = h / shape.group;

  float query[per_lane], acc[per_lane];
  for (int n = 0; n < per_lane; ++n) {
    const int c = lane + n * warp;
    query[n] = c < shape.head_dim ? to_float(*q.at(b, i, h, c)) : 0.0f;
    acc[n] = 0;
  }
  std::int64_t keys = shape.seqlen_k;
  if (shape.causal && i + shape.shift + 1 < keys) keys = i + shape.shift + 1;
  float m = -INFINITY, l = 0;
  for (std::int64_t j = 0; j < keys; ++j) {
    float s = 0;
    for (int n = 0; n < per_lane; ++n) {
      const int c = lane + n * warp;
      if (c < shape.head_dim) s += query[n] * to_float(*k.at(b, j, kv_head, c));
    }
    s = sum_over_warp(s) * shape.scale;

    const float m_new = fmaxf(m, s);
    const float rescale = expf(m - m_new);  // what came before was summed against another m
    const float p = expf(s - m_new);
    for (int n = 0; n < per_lane; ++n) {
      const int c = lane + n * warp;
      if (c < shape.head_dim_v) acc[n] = acc[n] * rescale + p * to_float(*v.at(b, j, kv_head, c));
    }
    l = l * rescale + p;
    m = m_new;
  }
  for (int n = 0; n < per_lane; ++n) {
    const int c = lane + n * warp;
    if (c < shape.head_dim_v) from_float(l > 0 ? acc[n] / l : 0.0f, o.at(b, i, h, c));
  }
  if (lse != nullptr && lane == 0)
    lse[b * lse_batch + h * lse_head + i * lse_row] =
        l > 0 ? (m + logf(l)) * shape.lse_factor : shape.empty_lse;
}

template <class T>
void launch(const Shape& shape, const tilewise_attention& a, cudaStream_t stream) {
  const std::int64_t rows = shape.batch * shape.nheads * shape.seqlen_q;
  const std::int64_t blocks = (rows + warps_per_block - 1) / warps_per_block;
  if (blocks == 0) return;
  attend<T><<<static_cast<unsigned>(blocks), warp * warps_per_block, 0, stream>>>(
      shape, Tensor<T>(a.q), Tensor<T>(a.k), Tensor<T>(a.v), Tensor<T>(a.o),
      static_cast<float*>(a.lse.data), a.lse.strides[0], a.lse.strides[1], a.lse.strides[2]);
}

// ---- the plug-in ------------------------------------------------------------------------------

/// What CUDA answered, in its own words.
tilewise_status answer(cudaError_t error, char* reason, size_t reason_bytes) {
  if (error == cudaSuccess) return TILEWISE_OK;
  std::snprintf(reason, reason_bytes, "%s", cudaGetErrorString(error));
  return error == cudaErrorMemoryAllocation ? TILEWISE_NO_MEMORY : TILEWISE_FAILED;
}

tilewise_status refuse(char* reason, size_t reason_bytes, const char* what) {
  std::snprintf(reason, reason_bytes, "it does not serve %s", what);
  return TILEWISE_UNSUPPORTED;
}

tilewise_status supports(void*, const tilewise_attention* a, std::int32_t, char* reason,
                         size_t reason_bytes) {
  const std::uint32_t served =
      TILEWISE_FEATURE_GQA | TILEWISE_FEATURE_HEAD_DIM_V | TILEWISE_FEATURE_CAUSAL;
  if (const char* what = tilewise_attention_beyond(a, served))
    return refuse(reason, reason_bytes, what);
  const std::int32_t dtype = a->q.dtype;
  if (dtype != TILEWISE_F32 && dtype != TILEWISE_F16 && dtype != TILEWISE_BF16)
    return refuse(reason, reason_bytes, "a dtype beside f32, f16 and bf16");
  if (a->o.dtype != dtype) return refuse(reason, reason_bytes, "o of another dtype than q");
  if (a->q.shape[3] > longest_row || a->v.shape[3] > longest_row)
    return refuse(reason, reason_bytes, "a head_dim above 256");
  if (a->empty_row_output != TILEWISE_EMPTY_OUTPUT_ZERO)
    return refuse(reason, reason_bytes, "an output beside 0 for rows that see no key");
  return TILEWISE_OK;
}

tilewise_status forward(void*, const tilewise_attention* a, const tilewise_plugin_call* call,
                        char* reason, size_t reason_bytes) {
  Shape shape;
  shape.batch = a->q.shape[0];
  shape.nheads = a->q.shape[2];
  shape.seqlen_q = a->q.shape[1];
  shape.seqlen_k = a->k.shape[1];
  shape.group = static_cast<int>(a->q.shape[2] / a->k.shape[2]);
  shape.head_dim = static_cast<int>(a->q.shape[3]);
  shape.head_dim_v = static_cast<int>(a->v.shape[3]);
  shape.scale = static_cast<float>(a->softmax_scale);
  shape.causal = a->causal != 0;
  shape.shift = a->alignment == TILEWISE_ALIGN_BOTTOM_RIGHT ? shape.seqlen_k - shape.seqlen_q : 0;
  shape.empty_lse = a->empty_row_lse == TILEWISE_EMPTY_LSE_PLUS_INF ? INFINITY : -INFINITY;
  shape.lse_factor = a->lse_base == TILEWISE_LSE_BASE_2 ? 1.44269504f : 1.0f;  // log2(e)
  const auto stream = static_cast<cudaStream_t>(call->stream);
  cudaError_t error = cudaSetDevice(a->q.device_id);
  if (error != cudaSuccess) return answer(error, reason, reason_bytes);
  switch (a->q.dtype) {
    case TILEWISE_F16: launch<__half>(shape, *a, stream); break;
    case TILEWISE_BF16: launch<__nv_bfloat16>(shape, *a, stream); break;
    default: launch<float>(shape, *a, stream);
  }
  return answer(cudaGetLastError(), reason, reason_bytes);
}

// ---- the device's memory ----------------------------------------------------------------------

// [snippet memory]
tilewise_status allocate(std::int32_t device, size_t bytes, void** memory, char* reason,
                         size_t reason_bytes) {
  const cudaError_t error = cudaSetDevice(device);
  return answer(error == cudaSuccess ? cudaMalloc(memory, bytes) : error, reason, reason_bytes);
}

tilewise_status release(std::int32_t, void* memory, char* reason, size_t reason_bytes) {
  return answer(cudaFree(memory), reason, reason_bytes);
}

tilewise_status copy_to_device(std::int32_t, void* to, const void* from, size_t bytes, char* reason,
                               size_t reason_bytes) {
  return answer(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), reason, reason_bytes);
}

tilewise_status copy_to_host(std::int32_t, void* to, const void* from, size_t bytes, char* reason,
                             size_t reason_bytes) {
  return answer(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), reason, reason_bytes);
}

tilewise_status synchronize(std::int32_t, void* stream, char* reason, size_t reason_bytes) {
  return answer(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), reason, reason_bytes);
}
// [end memory]

const tilewise_plugin_kernel kernel = {
    sizeof(tilewise_plugin_kernel),
    TILEWISE_CUDA,
    0,                                        // device_id
    TILEWISE_OUTPUT_O | TILEWISE_OUTPUT_LSE,  // writes
    TILEWISE_OUTPUT_O | TILEWISE_OUTPUT_LSE,  // repeatable
    0,                                        // reserved
    "my_kernel",                              // name
    "online softmax, one warp a query row",   // idea
    nullptr,                                  // self
    supports,
    nullptr,  // workspace_bytes: none
    forward,
    nullptr,  // backward
};
const tilewise_plugin_kernel* const kernels[] = {&kernel};
const tilewise_plugin plugin = {sizeof(tilewise_plugin),
                                TILEWISE_PLUGIN_VERSION,
                                sizeof(tilewise_attention),
                                1,
                                kernels,
                                allocate,
                                release,
                                copy_to_device,
                                copy_to_host,
                                synchronize};

}  // namespace

const tilewise_plugin* tilewise_plugin_get(std::uint32_t version) {
  return version == TILEWISE_PLUGIN_VERSION ? &plugin : nullptr;
}
