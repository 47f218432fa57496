// A kernel that knows nothing of Tilewise: softmax(scale Q K^T) V on float arrays, two passes over
// the keys of each row. All arrays are [batch, seqlen, nheads, head_dim], as flash-attn's are.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

struct Shape {
  int batch, seqlen_q, seqlen_k, nheads, head_dim;
};

/// `first_future_key` is how far beyond its own position a row looks: 1 for causal attention, which
/// stops before that key. Anything else is a bug to be found.
inline void their_attention(const float* q, const float* k, const float* v, float* o, float* lse,
                            Shape shape, float scale, bool causal, int first_future_key = 1) {
  const int seqlen_q = shape.seqlen_q, seqlen_k = shape.seqlen_k;
  const int nheads = shape.nheads, head_dim = shape.head_dim;
  const auto row = [&](auto* data, int seqlen, int b, int i, int h) {
    return data + ((static_cast<std::ptrdiff_t>(b) * seqlen + i) * nheads + h) * head_dim;
  };
  std::vector<float> scores(static_cast<std::size_t>(seqlen_k));
  for (int b = 0; b < shape.batch; ++b) {
    for (int h = 0; h < nheads; ++h) {
      for (int i = 0; i < seqlen_q; ++i) {
        const int past_last = i + seqlen_k - seqlen_q + first_future_key;
        const int keys = causal ? std::clamp(past_last, 0, seqlen_k) : seqlen_k;
        const float* query = row(q, seqlen_q, b, i, h);
        float largest = -std::numeric_limits<float>::infinity();
        for (int j = 0; j < keys; ++j) {
          const float* key = row(k, seqlen_k, b, j, h);
          float dot = 0;
          for (int c = 0; c < head_dim; ++c) dot += query[c] * key[c];
          scores[static_cast<std::size_t>(j)] = scale * dot;
          largest = std::max(largest, scale * dot);
        }

        float* out = row(o, seqlen_q, b, i, h);
        std::fill_n(out, head_dim, 0.0f);
        float sum = 0;
        for (int j = 0; j < keys; ++j) {
          const float weight = std::exp(scores[static_cast<std::size_t>(j)] - largest);
          const float* value = row(v, seqlen_k, b, j, h);
          sum += weight;
          for (int c = 0; c < head_dim; ++c) out[c] += weight * value[c];
        }
        for (int c = 0; c < head_dim && keys > 0; ++c) out[c] /= sum;
        lse[(static_cast<std::ptrdiff_t>(b) * nheads + h) * seqlen_q + i] =
            keys > 0 ? largest + std::log(sum) : -std::numeric_limits<float>::infinity();
      }
    }
  }
}
