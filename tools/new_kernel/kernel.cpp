// my_kernel: attention by online softmax (Milakov and Gimelshein 2018, arXiv 1805.02867), one query
// row at a time, as plain as it can be written.
//
//   for every key j:   s = scale q.k_j          m' = max(m, s)
//                      O = O e^(m - m') + e^(s - m') v_j,   l = l e^(m - m') + e^(s - m')
//   at the end:        O / l,   LSE = m + log l
//
// f32, f16 and bf16; grouped heads; causal, from either corner; any strides. Replace `attend` by
// your own kernel, have `supports` say what it serves, and `tilewise check` says whether it is
// right.
#include <tilewise/core/dtype.hpp>
#include <tilewise/plugin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>

namespace {

// ---- tensors ----------------------------------------------------------------------------------

/// Where the row [batch b, position i, head h] of a [batch, seqlen, nheads, width] tensor starts.
std::int64_t row_offset(const tilewise_tensor& t, std::int64_t b, std::int64_t i, std::int64_t h) {
  return b * t.strides[0] + i * t.strides[1] + h * t.strides[2];
}

void read_row(const tilewise_tensor& t, std::int64_t offset, float* row) {
  for (std::int64_t c = 0; c < t.shape[3]; ++c, offset += t.strides[3]) {
    const void* const data = t.data;
    switch (t.dtype) {
      case TILEWISE_F16:
        row[c] = static_cast<float>(
            tilewise::F16::decode(static_cast<const std::uint16_t*>(data)[offset]));
        break;
      case TILEWISE_BF16:
        row[c] = static_cast<float>(
            tilewise::BF16::decode(static_cast<const std::uint16_t*>(data)[offset]));
        break;
      default: row[c] = static_cast<const float*>(data)[offset];
    }
  }
}

void write_row(const tilewise_tensor& t, std::int64_t offset, const float* row) {
  for (std::int64_t c = 0; c < t.shape[3]; ++c, offset += t.strides[3]) {
    const auto value = static_cast<double>(row[c]);
    switch (t.dtype) {
      case TILEWISE_F16:
        static_cast<std::uint16_t*>(t.data)[offset] =
            static_cast<std::uint16_t>(tilewise::F16::encode(value));
        break;
      case TILEWISE_BF16:
        static_cast<std::uint16_t*>(t.data)[offset] =
            static_cast<std::uint16_t>(tilewise::BF16::encode(value));
        break;
      default: static_cast<float*>(t.data)[offset] = row[c];
    }
  }
}

/// How many keys row i sees: all of them, or under causal those up to its own position.
std::int64_t keys_of_row(const tilewise_attention& a, std::int64_t i) {
  const std::int64_t seqlen_q = a.q.shape[1], seqlen_k = a.k.shape[1];
  if (!a.causal) return seqlen_k;
  const bool bottom_right = a.alignment == TILEWISE_ALIGN_BOTTOM_RIGHT;
  const std::int64_t position = i + (bottom_right ? seqlen_k - seqlen_q : 0);
  return std::clamp<std::int64_t>(position + 1, 0, seqlen_k);
}

// ---- the kernel -------------------------------------------------------------------------------

/// Rows of floats in the workspace: one each of q, k, v and O.
struct Rows {
  float *q, *k, *v, *acc;
};

/// One row of O; answers its LSE.
// [snippet attend]
float attend(const tilewise_attention& a, std::int64_t b, std::int64_t h, std::int64_t i,
             const Rows& rows) {
  const std::int64_t head_dim = a.q.shape[3], head_dim_v = a.v.shape[3];
  const std::int64_t kv_head = h / (a.q.shape[2] / a.k.shape[2]);
  const auto scale = static_cast<float>(a.softmax_scale);
  read_row(a.q, row_offset(a.q, b, i, h), rows.q);
  std::fill_n(rows.acc, head_dim_v, 0.0f);
  float m = -std::numeric_limits<float>::infinity(), l = 0;
  for (std::int64_t j = 0; j < keys_of_row(a, i); ++j) {
    read_row(a.k, row_offset(a.k, b, j, kv_head), rows.k);
    read_row(a.v, row_offset(a.v, b, j, kv_head), rows.v);
    float s = 0;
    for (std::int64_t c = 0; c < head_dim; ++c) s += rows.q[c] * rows.k[c];
    s *= scale;

    const float m_new = std::max(m, s);
    const float rescale = std::exp(m - m_new);  // what came before was summed against another m
    const float p = std::exp(s - m_new);
    for (std::int64_t c = 0; c < head_dim_v; ++c)
      rows.acc[c] = rows.acc[c] * rescale + p * rows.v[c];
    l = l * rescale + p;
    m = m_new;
  }
  if (l > 0)  // else the row sees no key: O is 0
    for (std::int64_t c = 0; c < head_dim_v; ++c) rows.acc[c] /= l;
  write_row(a.o, row_offset(a.o, b, i, h), rows.acc);
  return m + std::log(l);  // -inf for a row that sees no key
}
// [end attend]

// ---- the plug-in ------------------------------------------------------------------------------

tilewise_status refuse(char* reason, std::size_t reason_bytes, const char* what) {
  std::snprintf(reason, reason_bytes, "it does not serve %s", what);
  return TILEWISE_UNSUPPORTED;
}

// [snippet supports]
tilewise_status supports(void*, const tilewise_attention* a, std::int32_t, char* reason,
                         std::size_t reason_bytes) {
  const std::uint32_t served =
      TILEWISE_FEATURE_GQA | TILEWISE_FEATURE_HEAD_DIM_V | TILEWISE_FEATURE_CAUSAL;
  if (const char* what = tilewise_attention_beyond(a, served))
    return refuse(reason, reason_bytes, what);
  const auto is_served = [](std::int32_t dtype) {
    return dtype == TILEWISE_F32 || dtype == TILEWISE_F16 || dtype == TILEWISE_BF16;
  };
  if (!is_served(a->q.dtype) || !is_served(a->o.dtype))
    return refuse(reason, reason_bytes, "a dtype beside f32, f16 and bf16");
  if (a->empty_row_output != TILEWISE_EMPTY_OUTPUT_ZERO)
    return refuse(reason, reason_bytes, "an output beside 0 for rows that see no key");
  return TILEWISE_OK;
}
// [end supports]

std::size_t workspace_bytes(void*, const tilewise_attention* a, std::int32_t) {
  return static_cast<std::size_t>(2 * (a->q.shape[3] + a->v.shape[3])) * sizeof(float);
}

tilewise_status forward(void*, const tilewise_attention* a, const tilewise_plugin_call* call, char*,
                        std::size_t) {
  const std::int64_t head_dim = a->q.shape[3], head_dim_v = a->v.shape[3];
  auto* const q = static_cast<float*>(call->workspace);
  const Rows rows{q, q + head_dim, q + 2 * head_dim, q + 2 * head_dim + head_dim_v};
  const bool base_2 = a->lse_base == TILEWISE_LSE_BASE_2;
  const bool empty_is_plus_inf = a->empty_row_lse == TILEWISE_EMPTY_LSE_PLUS_INF;
  for (std::int64_t b = 0; b < a->q.shape[0]; ++b)
    for (std::int64_t h = 0; h < a->q.shape[2]; ++h)
      for (std::int64_t i = 0; i < a->q.shape[1]; ++i) {
        float lse = attend(*a, b, h, i, rows);
        if (a->lse.ndim == 0) continue;
        if (base_2) lse *= 1.44269504f;  // log2(e)
        if (empty_is_plus_inf && keys_of_row(*a, i) == 0) lse = -lse;
        const tilewise_tensor& to = a->lse;  // [batch, nheads_q, seqlen_q]
        static_cast<float*>(to.data)[b * to.strides[0] + h * to.strides[1] + i * to.strides[2]] =
            lse;
      }
  return TILEWISE_OK;
}

// [snippet table]
const tilewise_plugin_kernel kernel = {
    sizeof(tilewise_plugin_kernel),
    TILEWISE_CPU,
    0,                                          // device_id
    TILEWISE_OUTPUT_O | TILEWISE_OUTPUT_LSE,    // writes
    TILEWISE_OUTPUT_O | TILEWISE_OUTPUT_LSE,    // repeatable
    0,                                          // reserved
    "my_kernel",                                // name
    "online softmax, one query row at a time",  // idea
    nullptr,                                    // self
    supports,
    workspace_bytes,
    forward,
    nullptr,  // backward
};
const tilewise_plugin_kernel* const kernels[] = {&kernel};
const tilewise_plugin plugin = {sizeof(tilewise_plugin), TILEWISE_PLUGIN_VERSION,
                                sizeof(tilewise_attention), 1, kernels,
                                // A plug-in whose memory is not the host's has five functions here.
                                nullptr, nullptr, nullptr, nullptr, nullptr};
// [end table]

}  // namespace

const tilewise_plugin* tilewise_plugin_get(std::uint32_t version) {
  return version == TILEWISE_PLUGIN_VERSION ? &plugin : nullptr;
}
