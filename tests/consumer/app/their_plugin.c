/* A shared library that has Tilewise inside, or beside it, and says nothing of that. */
#include <tilewise/tilewise.h>

__attribute__((visibility("default"))) int their_function(void);

int their_function(void) {
  tilewise_context* context = NULL;
  const tilewise_status status = tilewise_context_create(NULL, &context, NULL);
  tilewise_context_destroy(context);
  return status == TILEWISE_OK;
}
