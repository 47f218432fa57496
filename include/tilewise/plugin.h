/**
 * @file plugin.h
 * @brief Kernels in a shared library of their own, for `tilewise check --plugin libmine.so`.
 *
 * C99, and C++. A plug-in includes this header and links nothing of Tilewise. It exports one
 * function, tilewise_plugin_get, that returns a table of kernels; the host (the tilewise command)
 * loads the library, asks each kernel what it serves, and judges it against float64.
 * docs/check-your-kernel.md is the guide; `tilewise new-kernel DIR` writes a plug-in that works.
 *
 * What the host promises
 *   - Everything that a plug-in is given has been checked: shapes and strides fit together, heads
 *     divide, softmax_scale is a number, lengths and tables lie within their tensors.
 *   - A tensor is absent where its ndim is 0. (Its data may be null: in questions there is no
 * memory.)
 *   - One call at a time.
 *   - In each call: inputs as the problem says, outputs and workspace with arbitrary contents.
 *   - A struct that may grow opens with its size, and the host takes older and newer ones. Where
 * its own tilewise_attention is newer than the plug-in's, the plug-in sees a call only if the
 * fields that it cannot know are zero, that is, off; where it is older, those fields are zero.
 *
 * What a plug-in promises
 *   - What it returns from tilewise_plugin_get lives, unchanged, until the process ends.
 *   - `supports` answers TILEWISE_OK only for what the kernel computes in full: every tensor that
 * is present, every field that is not off, and the conventions that bear on them
 * (docs/conventions.md; empty_row_output, empty_row_lse and lse_base bear on every call).
 * tilewise_attention_beyond() below does most of that.
 *   - Calls write to outputs and workspace alone (and, where k_new is present, to the cache k and
 * v), let no C++ exception out, and return when they are done; or, on a device, when the work is in
 *     the stream.
 *   - Sentences go to `reason`: at most `reason_bytes` with the final '\0', as snprintf does it.
 */
#ifndef TILEWISE_PLUGIN_H
#define TILEWISE_PLUGIN_H

#include "tilewise.h"

/** The version of this interface; within one, structs grow at their ends and nothing else changes.
 */
#define TILEWISE_PLUGIN_VERSION 1

#if defined(_WIN32)
#define TILEWISE_PLUGIN_EXPORT __declspec(dllexport)
#elif defined(__GNUC__)
#define TILEWISE_PLUGIN_EXPORT __attribute__((visibility("default")))
#else
#define TILEWISE_PLUGIN_EXPORT
#endif

#ifdef __cplusplus
extern "C" {
#endif

/** Sets of outputs: the sum of these. */
enum {
  TILEWISE_OUTPUT_O = 1,
  TILEWISE_OUTPUT_LSE = 2,
  TILEWISE_OUTPUT_DQ = 4,
  TILEWISE_OUTPUT_DK = 8,
  TILEWISE_OUTPUT_DV = 16,
  TILEWISE_OUTPUT_DBIAS = 32,
  TILEWISE_OUTPUT_DSINKS = 64,
  TILEWISE_OUTPUT_ALL = 127
};

/** Where and with what a kernel runs, beside the problem. */
typedef struct tilewise_plugin_call {
  uint32_t struct_size;
  int32_t threads; /**< how many to use on the CPU; 0: as many as the machine has */
  void* workspace; /**< on the kernel's device, aligned to 64 bytes, with arbitrary contents */
  size_t workspace_bytes; /**< as many as workspace_bytes() asked for */
  void* stream;           /**< of the device: a cudaStream_t; null: the default one */
} tilewise_plugin_call;

/**
 * Computes one pass: `forward` o, and lse where it is present; `backward` dq, dk and dv, and dbias
 * and dsinks where they are present, from q, k, v, o, lse and dout, o and lse being what `forward`
 * has written (an output that the kernel does not write is absent).
 * All tensors are in memory of the kernel's device.
 * @param self the kernel's `self`
 * @return TILEWISE_OK, or another status with a sentence in `reason`
 */
typedef tilewise_status (*tilewise_plugin_run)(void* self, const tilewise_attention* attention,
                                               const tilewise_plugin_call* call, char* reason,
                                               size_t reason_bytes);

/** One kernel. Fields that may be null or zero say so. */
typedef struct tilewise_plugin_kernel {
  uint32_t struct_size; /**< sizeof(tilewise_plugin_kernel) */
  int32_t device_type;  /**< where its tensors are: TILEWISE_CPU or TILEWISE_CUDA */
  int32_t device_id;    /**< 0: the first */
  uint32_t writes;     /**< the outputs that it writes, where the pass has them; O is one of them */
  uint32_t repeatable; /**< the outputs that have the same bits at each call on the same inputs */
  uint32_t reserved;   /**< 0 */
  const char* name;    /**< letters, digits, '.', '_' and '-'; unlike that of any other kernel */
  const char* idea;    /**< what it does, in one sentence */
  void* self;          /**< first argument of the functions below; may be null */

  /**
   * Whether the kernel serves a problem. Asked with shapes and fields alone: every `data` is null.
   * @param pass TILEWISE_FORWARD or TILEWISE_BACKWARD
   * @return TILEWISE_OK, or TILEWISE_UNSUPPORTED with what it is that is not served
   */
  tilewise_status (*supports)(void* self, const tilewise_attention* attention, int32_t pass,
                              char* reason, size_t reason_bytes);
  /** Scratch memory in bytes, for any number of threads. Asked as `supports`. May be null: none. */
  size_t (*workspace_bytes)(void* self, const tilewise_attention* attention, int32_t pass);
  tilewise_plugin_run forward;
  tilewise_plugin_run backward; /**< may be null: forward alone */
} tilewise_plugin_kernel;

/**
 * The plug-in. The memory functions are those of the device that its kernels run on, and may be
 * null if all of them run on the CPU: the host itself knows no device. Each answers TILEWISE_OK, or
 * another status with a sentence. Copies are done when they return.
 */
typedef struct tilewise_plugin {
  uint32_t struct_size;    /**< sizeof(tilewise_plugin) */
  uint32_t version;        /**< TILEWISE_PLUGIN_VERSION */
  uint32_t attention_size; /**< sizeof(tilewise_attention), of the header that it was built with */
  int32_t count;           /**< how many kernels there are */
  const tilewise_plugin_kernel* const* kernels;

  /** Device memory, aligned to 256 bytes as cudaMalloc's is; its address goes to *memory. */
  tilewise_status (*allocate)(int32_t device_id, size_t bytes, void** memory, char* reason,
                              size_t reason_bytes);
  tilewise_status (*release)(int32_t device_id, void* memory, char* reason, size_t reason_bytes);
  tilewise_status (*copy_to_device)(int32_t device_id, void* to, const void* from, size_t bytes,
                                    char* reason, size_t reason_bytes);
  tilewise_status (*copy_to_host)(int32_t device_id, void* to, const void* from, size_t bytes,
                                  char* reason, size_t reason_bytes);
  /** Waits for the stream, and answers for what went wrong in it. */
  tilewise_status (*synchronize)(int32_t device_id, void* stream, char* reason,
                                 size_t reason_bytes);
} tilewise_plugin;

/**
 * What a plug-in exports, and the only symbol that it needs to.
 * @param version the host's TILEWISE_PLUGIN_VERSION
 * @return the table; null if the plug-in cannot serve that version
 */
TILEWISE_PLUGIN_EXPORT const tilewise_plugin* tilewise_plugin_get(uint32_t version);

/** What a call can ask for beyond full attention with one dtype, one head_dim and one length a
 * side. */
enum {
  TILEWISE_FEATURE_GQA = 1 << 0,        /**< fewer key/value heads than query heads */
  TILEWISE_FEATURE_HEAD_DIM_V = 1 << 1, /**< v of another width than q and k */
  TILEWISE_FEATURE_CAUSAL = 1 << 2,     /**< with: alignment */
  TILEWISE_FEATURE_WINDOW = 1 << 3,     /**< with: alignment, window_left_counts */
  TILEWISE_FEATURE_CHUNK = 1 << 4,      /**< attention_chunk; with: alignment */
  TILEWISE_FEATURE_SOFTCAP = 1 << 5,    /**< with: score_order, where there is a bias or ALiBi */
  TILEWISE_FEATURE_DROPOUT = 1 << 6,
  TILEWISE_FEATURE_BIAS = 1 << 7,
  TILEWISE_FEATURE_MASK = 1 << 8, /**< with: mask_and_causal */
  TILEWISE_FEATURE_SINKS = 1 << 9,
  TILEWISE_FEATURE_ALIBI = 1 << 10,   /**< with: alibi, alignment */
  TILEWISE_FEATURE_PACKED = 1 << 11,  /**< cu_seqlens_q and cu_seqlens_k */
  TILEWISE_FEATURE_SEQLENS = 1 << 12, /**< seqlens_q and seqlens_k */
  TILEWISE_FEATURE_BLOCK_MASK = 1 << 13,
  TILEWISE_FEATURE_PAGES = 1 << 14,      /**< block_table */
  TILEWISE_FEATURE_CACHE_ROWS = 1 << 15, /**< cache_batch_idx */
  TILEWISE_FEATURE_LEFTPAD = 1 << 16,
  TILEWISE_FEATURE_APPEND = 1 << 17, /**< k_new and v_new */
  TILEWISE_FEATURE_ROTARY = 1 << 18,
  TILEWISE_FEATURE_SCALES = 1 << 19, /**< q_descale, k_descale, v_descale, k_scales, v_scales */
  TILEWISE_FEATURE_DTYPES = 1 << 20, /**< k or v of another dtype than q */
  TILEWISE_FEATURE_SPLITS = 1 << 21  /**< num_splits > 1: the host wants the keys cut so */
};

/**
 * The first thing that a call asks for and `features` (the sum of what a kernel serves) lack, in
 * words for "it does not serve ..."; null if there is none. What concerns dtypes, sizes and
 * conventions is the kernel's own to check.
 */
static inline const char* tilewise_attention_beyond(const tilewise_attention* attention,
                                                    uint32_t features) {
  const tilewise_attention* const a = attention;
  const int32_t heads = a->q.ndim - 2, width = a->q.ndim - 1; /* k may have other dimensions */
  const struct {
    uint32_t feature;
    int used;
    const char* words;
  } asked[] = {
      {TILEWISE_FEATURE_GQA,
       a->q.ndim >= 3 && a->k.ndim >= 3 && a->q.shape[heads] != a->k.shape[a->k.ndim - 2],
       "grouped-query attention"},
      {TILEWISE_FEATURE_HEAD_DIM_V,
       a->q.ndim >= 3 && a->o.ndim >= 3 && a->q.shape[width] != a->o.shape[a->o.ndim - 1],
       "a head_dim_v unlike head_dim"},
      {TILEWISE_FEATURE_CAUSAL, a->causal != 0, "causal"},
      {TILEWISE_FEATURE_WINDOW, a->window_left >= 0 || a->window_right >= 0, "a window"},
      {TILEWISE_FEATURE_CHUNK, a->attention_chunk != 0, "attention_chunk"},
      {TILEWISE_FEATURE_SOFTCAP, a->softcap < 0 || a->softcap > 0, "softcap"},
      {TILEWISE_FEATURE_DROPOUT, a->dropout_p < 0 || a->dropout_p > 0, "dropout"},
      {TILEWISE_FEATURE_BIAS, a->bias.ndim != 0, "a bias"},
      {TILEWISE_FEATURE_MASK, a->mask.ndim != 0, "a mask"},
      {TILEWISE_FEATURE_SINKS, a->sinks.ndim != 0, "an attention sink"},
      {TILEWISE_FEATURE_ALIBI, a->alibi_slopes.ndim != 0, "ALiBi"},
      {TILEWISE_FEATURE_PACKED, a->cu_seqlens_q.ndim != 0 || a->cu_seqlens_k.ndim != 0,
       "packed sequences (cu_seqlens)"},
      {TILEWISE_FEATURE_SEQLENS, a->seqlens_q.ndim != 0 || a->seqlens_k.ndim != 0,
       "lengths of padded sequences (seqlens)"},
      {TILEWISE_FEATURE_BLOCK_MASK, a->kv_num_blocks.ndim != 0, "a block mask"},
      {TILEWISE_FEATURE_PAGES, a->block_table.ndim != 0, "a paged cache (block_table)"},
      {TILEWISE_FEATURE_CACHE_ROWS, a->cache_batch_idx.ndim != 0, "cache_batch_idx"},
      {TILEWISE_FEATURE_LEFTPAD, a->cache_leftpad.ndim != 0, "cache_leftpad"},
      {TILEWISE_FEATURE_APPEND, a->k_new.ndim != 0 || a->v_new.ndim != 0,
       "appending to a cache (k_new)"},
      {TILEWISE_FEATURE_ROTARY, a->rotary_cos.ndim != 0, "rotary embedding"},
      {TILEWISE_FEATURE_SCALES,
       a->q_descale.ndim != 0 || a->k_descale.ndim != 0 || a->v_descale.ndim != 0 ||
           a->k_scales.ndim != 0 || a->v_scales.ndim != 0,
       "a scale beside a tensor"},
      {TILEWISE_FEATURE_DTYPES, a->k.dtype != a->q.dtype || a->v.dtype != a->q.dtype,
       "k or v of another dtype than q"},
      {TILEWISE_FEATURE_SPLITS, a->num_splits > 1, "num_splits"},
  };
  size_t i;
  for (i = 0; i < sizeof asked / sizeof asked[0]; ++i)
    if (asked[i].used && !(asked[i].feature & features)) return asked[i].words;
  return NULL;
}

#ifdef __cplusplus
}
#endif

#endif
