// The smallest program with attention in it, in C99 (docs/embed.md).
// [snippet attend]
#include <tilewise/tilewise.h>

#include <stdio.h>

enum { SEQLEN_Q = 2, SEQLEN_K = 100, NHEADS_Q = 8, NHEADS_K = 2, HEAD_DIM = 64 };
static float q[SEQLEN_Q * NHEADS_Q * HEAD_DIM], o[SEQLEN_Q * NHEADS_Q * HEAD_DIM];
static float k[SEQLEN_K * NHEADS_K * HEAD_DIM], v[SEQLEN_K * NHEADS_K * HEAD_DIM];

int main(void) {
  const int64_t q_shape[] = {1, SEQLEN_Q, NHEADS_Q, HEAD_DIM};
  const int64_t k_shape[] = {1, SEQLEN_K, NHEADS_K, HEAD_DIM};
  tilewise_error error = TILEWISE_ERROR_INIT;
  tilewise_context* context = NULL;
  tilewise_attention attention;
  void* workspace = NULL;
  size_t bytes = 0, i;
  for (i = 0; i < sizeof v / sizeof *v; ++i) v[i] = 3;

  tilewise_attention_init(&attention, NULL);
  attention.causal = 1;
  attention.q = tilewise_contiguous(q, TILEWISE_F32, 4, q_shape);
  attention.k = tilewise_contiguous(k, TILEWISE_F32, 4, k_shape);
  attention.v = tilewise_contiguous(v, TILEWISE_F32, 4, k_shape);
  attention.o = tilewise_contiguous(o, TILEWISE_F32, 4, q_shape);

  // Each step only if the one before went well; `error` keeps the last one's sentence.
  if (tilewise_context_create(NULL, &context, &error) == TILEWISE_OK &&
      tilewise_attention_workspace(context, &attention, TILEWISE_FORWARD, &bytes, NULL, &error) ==
          TILEWISE_OK) {
    workspace = tilewise_allocate(context, bytes);
    tilewise_attention_forward(context, &attention, workspace, bytes, NULL, &error);
    tilewise_free(context, workspace);
  }
  tilewise_context_destroy(context);
  printf("%s %g\n", error.code == TILEWISE_OK ? "ok" : error.message, (double)o[0]);
  return error.code == TILEWISE_OK ? 0 : 1;
}
// [end attend]
