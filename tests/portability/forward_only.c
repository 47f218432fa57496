/* A build without backward pass and float64 computes what it has, and says what it lacks. */
#include <tilewise/tilewise.h>

#include <stdio.h>
#include <string.h>

static float q[2 * 8], k[3 * 8], v[3 * 8], o[2 * 8];
static double wide[2 * 8];
static unsigned char memory[1 << 20];

static int refused(tilewise_context* context, tilewise_attention* attention, int pass,
                   const char* says) {
  tilewise_error error = TILEWISE_ERROR_INIT;
  size_t bytes = 0;
  if (tilewise_attention_workspace(context, attention, pass, &bytes, NULL, &error) !=
          TILEWISE_UNSUPPORTED ||
      strstr(error.message, says) == NULL) {
    printf("expected a refusal that says \"%s\", got %d: %s\n", says, (int)error.code,
           error.message);
    return 0;
  }
  return 1;
}

int main(void) {
  const int64_t q_shape[4] = {1, 2, 1, 8}, k_shape[4] = {1, 3, 1, 8};
  void* const workspace = memory + (64 - (uintptr_t)memory % 64) % 64;
  tilewise_context* context = NULL;
  tilewise_attention attention;
  tilewise_error error = TILEWISE_ERROR_INIT;
  size_t bytes = 0;
  int n;
  for (n = 0; n < 3 * 8; ++n) v[n] = 3;
  if (tilewise_context_create(NULL, &context, &error) != TILEWISE_OK) return 1;
  tilewise_attention_init(&attention, NULL);
  attention.q = tilewise_contiguous(q, TILEWISE_F32, 4, q_shape);
  attention.k = tilewise_contiguous(k, TILEWISE_F32, 4, k_shape);
  attention.v = tilewise_contiguous(v, TILEWISE_F32, 4, k_shape);
  attention.o = tilewise_contiguous(o, TILEWISE_F32, 4, q_shape);
  if (tilewise_attention_workspace(context, &attention, TILEWISE_FORWARD, &bytes, NULL, &error) !=
          TILEWISE_OK ||
      bytes > sizeof memory - 64 ||
      tilewise_attention_forward(context, &attention, workspace, bytes, NULL, &error) !=
          TILEWISE_OK ||
      o[0] != 3) {
    printf("forward: %s, o is %g\n", error.message, (double)o[0]);
    return 1;
  }
  if (!refused(context, &attention, TILEWISE_BACKWARD, "no backward pass")) return 1;
  attention.q = attention.k = attention.v = attention.o =
      tilewise_contiguous(wide, TILEWISE_F64, 4, q_shape);
  if (!refused(context, &attention, TILEWISE_FORWARD, "does not compute in float64")) return 1;
  tilewise_context_destroy(context);
  puts("ok");
  return 0;
}
