/**
 * @file cuda.h
 * @brief The CUDA kernels behind Tilewise's C interface: a library beside the one of tilewise.h.
 *
 * C99, and C++. The calls are those of tilewise.h, on a context that was made with
 *
 *   options.backend = tilewise_cuda_backend();
 *   options.device_type = TILEWISE_CUDA;   (or TILEWISE_BEST_DEVICE, and look what it came to)
 *
 * and on tensors whose device_type is TILEWISE_CUDA. docs/embed.md has a program. Both libraries
 * are of one version of Tilewise; a context says so where they are not.
 */
#ifndef TILEWISE_CUDA_H
#define TILEWISE_CUDA_H

#include "tilewise.h"

#if defined(TILEWISE_PREFIX)
#define tilewise_cuda_backend TILEWISE_NAME(cuda_backend)
#endif

#ifdef __cplusplus
extern "C" {
#endif

/** GPUs from compute capability 8.0 on. Asks nothing of them yet: a context does. Never null. */
TILEWISE_API const tilewise_backend* tilewise_cuda_backend(void);

/** The same view of memory on a GPU. */
static inline tilewise_tensor tilewise_on_cuda(tilewise_tensor tensor, int32_t device_id) {
  tensor.device_type = TILEWISE_CUDA;
  tensor.device_id = device_id;
  return tensor;
}

#ifdef __cplusplus
}
#endif

#endif
