/*
 * The C interface from C99: a causal attention with grouped heads, forward and backward, and the
 * same with the last keys appended to a cache, compared with loops of its own. Exits with 0 when
 * all is well, else with the number of the step that went wrong, after a sentence on it.
 */
#include "include/tilewise/tilewise.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { B = 2, SQ = 5, SK = 7, HQ = 4, HK = 2, D = 8, DV = 6 };

static float q[B][SQ][HQ][D], k[B][SK][HK][D], v[B][SK][HK][DV], dout[B][SQ][HQ][DV];
static float o[B][SQ][HQ][DV], lse[B][HQ][SQ];
static float dq[B][SQ][HQ][D], dk[B][SK][HK][D], dv[B][SK][HK][DV];

static float k_cache[B][SK][HK][D], v_cache[B][SK][HK][DV];

static double expected_o[B][SQ][HQ][DV], expected_lse[B][HQ][SQ];
static double expected_dq[B][SQ][HQ][D], expected_dk[B][SK][HK][D], expected_dv[B][SK][HK][DV];

static unsigned long state = 1;

static void fill(float* data, size_t count) {
  size_t i;
  for (i = 0; i < count; ++i) {
    state = (state * 1103515245ul + 12345ul) & 0x7ffffffful;
    data[i] = (float)((double)state / 0x40000000 - 1);
  }
}

/* One row: query i of head h in sequence b. */
static void attend(int b, int h, int i) {
  const int g = h / (HQ / HK), keys = i + SK - SQ + 1; /* bottom-right */
  const double scale = 1 / sqrt((double)D);
  double p[SK], sum = 0, row_dot = 0;
  int j, x;
  for (j = 0; j < keys; ++j) {
    double s = 0;
    for (x = 0; x < D; ++x) s += (double)q[b][i][h][x] * (double)k[b][j][g][x];
    p[j] = exp(scale * s);
    sum += p[j];
  }
  for (j = 0; j < keys; ++j) {
    p[j] /= sum;
    for (x = 0; x < DV; ++x) expected_o[b][i][h][x] += p[j] * (double)v[b][j][g][x];
  }
  expected_lse[b][h][i] = log(sum);
  for (x = 0; x < DV; ++x) row_dot += (double)dout[b][i][h][x] * expected_o[b][i][h][x];
  for (j = 0; j < keys; ++j) {
    double dp = 0, ds;
    for (x = 0; x < DV; ++x) {
      dp += (double)dout[b][i][h][x] * (double)v[b][j][g][x];
      expected_dv[b][j][g][x] += p[j] * (double)dout[b][i][h][x];
    }
    ds = scale * p[j] * (dp - row_dot);
    for (x = 0; x < D; ++x) {
      expected_dq[b][i][h][x] += ds * (double)k[b][j][g][x];
      expected_dk[b][j][g][x] += ds * (double)q[b][i][h][x];
    }
  }
}

static tilewise_tensor tensor(void* data, int64_t s, int64_t h, int64_t d) {
  int64_t shape[4];
  shape[0] = B;
  shape[1] = s;
  shape[2] = h;
  shape[3] = d;
  return tilewise_contiguous(data, TILEWISE_F32, 4, shape);
}

static int differ(const char* name, const float* got, const double* expected, size_t count) {
  size_t i;
  for (i = 0; i < count; ++i)
    if (!(fabs((double)got[i] - expected[i]) <= 2e-6)) {
      printf("%s[%lu] is %.9g, expected %.9g\n", name, (unsigned long)i, (double)got[i],
             expected[i]);
      return 1;
    }
  return 0;
}

/* Rows from `first` on of each sequence. */
static tilewise_tensor rows_from(tilewise_tensor view, int64_t first) {
  view.data = (float*)view.data + first * view.strides[1];
  view.shape[1] -= first;
  return view;
}

static int wrong(int step, const char* message) {
  printf("step %d: %s\n", step, message);
  return step;
}

#define COUNT(array) (sizeof(array) / sizeof(float))
#define DIFFER(got, expected) \
  differ(#got, (const float*)(got), (const double*)(expected), COUNT(got))

int main(void) {
  tilewise_context_options options;
  tilewise_context* context = NULL;
  tilewise_error error = TILEWISE_ERROR_INIT;
  tilewise_attention attention, decoding;
  tilewise_answer answer = TILEWISE_ANSWER_INIT;
  int64_t lse_shape[3] = {B, HQ, SQ};
  int64_t batch_shape[1] = {B};
  int32_t cached[B];
  size_t forward_bytes, backward_bytes, bytes;
  void* workspace;
  int b, h, i;

  fill((float*)q, COUNT(q));
  fill((float*)k, COUNT(k));
  fill((float*)v, COUNT(v));
  fill((float*)dout, COUNT(dout));
  for (b = 0; b < B; ++b)
    for (h = 0; h < HQ; ++h)
      for (i = 0; i < SQ; ++i) attend(b, h, i);

  if (tilewise_abi_version() != TILEWISE_ABI_VERSION) return wrong(1, "another ABI version");
  tilewise_context_options_init(&options);
  options.threads = 2;
  if (tilewise_context_create(&options, &context, &error) != TILEWISE_OK)
    return wrong(2, error.message);

  tilewise_attention_init(&attention, "fa3");
  attention.causal = 1;
  attention.q = tensor(q, SQ, HQ, D);
  attention.k = tensor(k, SK, HK, D);
  attention.v = tensor(v, SK, HK, DV);
  attention.o = tensor(o, SQ, HQ, DV);
  attention.lse = tilewise_contiguous(lse, TILEWISE_F32, 3, lse_shape);
  attention.dout = tensor(dout, SQ, HQ, DV);
  attention.dq = tensor(dq, SQ, HQ, D);
  attention.dk = tensor(dk, SK, HK, D);
  attention.dv = tensor(dv, SK, HK, DV);

  if (tilewise_query(context, &attention, TILEWISE_FORWARD, &answer, &error) != TILEWISE_OK)
    return wrong(3, error.message);
  if (strncmp(answer.implementation, "cpu.", 4) != 0) return wrong(4, answer.reason);
  if (tilewise_attention_workspace(context, &attention, TILEWISE_FORWARD, &forward_bytes, NULL,
                                   &error) != TILEWISE_OK ||
      tilewise_attention_workspace(context, &attention, TILEWISE_BACKWARD, &backward_bytes, NULL,
                                   &error) != TILEWISE_OK)
    return wrong(5, error.message);
  bytes = forward_bytes > backward_bytes ? forward_bytes : backward_bytes;
  workspace = tilewise_allocate(context, bytes);
  if (workspace == NULL) return wrong(6, "no memory");
  if (tilewise_attention_forward(context, &attention, workspace, bytes, NULL, &error) !=
      TILEWISE_OK)
    return wrong(7, error.message);
  if (tilewise_attention_backward(context, &attention, workspace, bytes, NULL, &error) !=
      TILEWISE_OK)
    return wrong(8, error.message);
  if (tilewise_validate(context, workspace, NULL, &error) != TILEWISE_OK)
    return wrong(9, error.message);
  if (DIFFER(o, expected_o) || DIFFER(lse, expected_lse)) return 10;
  if (DIFFER(dq, expected_dq) || DIFFER(dk, expected_dk) || DIFFER(dv, expected_dv)) return 11;

  /* All but the last two keys are in the cache. */
  decoding = attention;
  decoding.k = tensor(k_cache, SK, HK, D);
  decoding.v = tensor(v_cache, SK, HK, DV);
  for (b = 0; b < B; ++b) {
    cached[b] = SK - 2;
    memcpy(k_cache[b], k[b], (SK - 2) * sizeof k[b][0]);
    memcpy(v_cache[b], v[b], (SK - 2) * sizeof v[b][0]);
  }
  decoding.seqlens_k = tilewise_contiguous(cached, TILEWISE_I32, 1, batch_shape);
  decoding.k_new = rows_from(attention.k, SK - 2);
  decoding.v_new = rows_from(attention.v, SK - 2);
  memset(o, 0, sizeof o);
  if (tilewise_attention_forward(context, &decoding, workspace, bytes, NULL, &error) != TILEWISE_OK)
    return wrong(12, error.message);
  if (DIFFER(o, expected_o) || DIFFER(lse, expected_lse)) return 13;
  if (memcmp(k_cache, k, sizeof k) != 0 || memcmp(v_cache, v, sizeof v) != 0)
    return wrong(14, "the cache is not what was appended to it");
  tilewise_free(context, workspace);

  attention.q.shape[0] = 1;
  if (tilewise_attention_forward(context, &attention, NULL, 0, NULL, &error) !=
          TILEWISE_BAD_ARGUMENT ||
      error.code != TILEWISE_BAD_ARGUMENT || strlen(error.message) == 0)
    return wrong(15, "a wrong shape was taken");
  tilewise_context_destroy(context);
  return 0;
}
