/**
 * @file tilewise.h
 * @brief Tilewise's C interface: attention, forward and backward, on the caller's own memory.
 *
 * C99, and C++. A call takes a context (where to compute, with how many threads), one struct that
 * says what to compute, and a workspace; it answers with a status code and, where the caller wants
 * it, a sentence. No call aborts, prints, throws, keeps a thread-local or global state, or
 * allocates, but for those that say that they allocate. docs/api.md has every field and error.
 *
 * Growth: a struct that may grow opens with struct_size, which its `_init` function fills in. The
 * library takes structs of older headers (fields that they lack have their default) and of newer
 * ones (if the fields that it does not know are all zero, that is, off).
 */
#ifndef TILEWISE_TILEWISE_H
#define TILEWISE_TILEWISE_H

#include <stddef.h>
#include <stdint.h>

/** The version of this interface; within one, structs grow at their ends and nothing else changes.
 */
#define TILEWISE_ABI_VERSION 1

/* Visibility. A shared library hides everything but what is marked here. */
#if defined(TILEWISE_API)
/* The build has its own idea. */
#elif defined(_WIN32) && defined(TILEWISE_SHARED)
#if defined(TILEWISE_BUILDING)
#define TILEWISE_API __declspec(dllexport)
#else
#define TILEWISE_API __declspec(dllimport)
#endif
#elif defined(__GNUC__)
#define TILEWISE_API __attribute__((visibility("default")))
#else
#define TILEWISE_API
#endif

/*
 * Renaming. A library and its callers compiled with -DTILEWISE_PREFIX=mylib_ have the symbols
 * mylib_attention_forward, ...: two copies can then live in one process. The source keeps saying
 * tilewise_attention_forward. (docs/embed.md has the library's side.)
 */
#if defined(TILEWISE_PREFIX)
#define TILEWISE_JOIN_(first, second) first##second
#define TILEWISE_JOIN(first, second) TILEWISE_JOIN_(first, second)
#define TILEWISE_NAME(name) TILEWISE_JOIN(TILEWISE_PREFIX, name)
#define tilewise_abi_version TILEWISE_NAME(abi_version)
#define tilewise_status_name TILEWISE_NAME(status_name)
#define tilewise_context_options_init_sized TILEWISE_NAME(context_options_init_sized)
#define tilewise_context_create TILEWISE_NAME(context_create)
#define tilewise_context_destroy TILEWISE_NAME(context_destroy)
#define tilewise_context_device TILEWISE_NAME(context_device)
#define tilewise_allocate TILEWISE_NAME(allocate)
#define tilewise_free TILEWISE_NAME(free)
#define tilewise_attention_init_sized TILEWISE_NAME(attention_init_sized)
#define tilewise_attention_workspace TILEWISE_NAME(attention_workspace)
#define tilewise_attention_forward TILEWISE_NAME(attention_forward)
#define tilewise_attention_backward TILEWISE_NAME(attention_backward)
#define tilewise_merge_states TILEWISE_NAME(merge_states)
#define tilewise_validate TILEWISE_NAME(validate)
#define tilewise_query TILEWISE_NAME(query)
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------ statuses */

/** What a call answers: one of the codes below. */
typedef int32_t tilewise_status;
enum {
  TILEWISE_OK = 0,
  TILEWISE_BAD_ARGUMENT = 1, /**< the caller's mistake: shapes, pointers, values out of range */
  TILEWISE_UNSUPPORTED = 2,  /**< a correct request that this library or device does not serve */
  TILEWISE_NO_MEMORY = 3,    /**< an allocation failed, or the workspace is too small */
  TILEWISE_FAILED = 5        /**< the computation itself went wrong */
};

/**
 * Where a call leaves its status and one sentence on it. Every call takes a pointer to one, or null
 * for callers who do without; it is written at each call, success included. A caller's own memory,
 * so that threads do not share it.
 */
typedef struct tilewise_error {
  uint32_t struct_size; /**< sizeof(tilewise_error), as TILEWISE_ERROR_INIT sets it */
  int32_t code;
  char message[256]; /**< ends in '\0'; empty where the code is TILEWISE_OK */
} tilewise_error;

/** tilewise_error error = TILEWISE_ERROR_INIT; */
#define TILEWISE_ERROR_INIT                \
  {                                        \
    (uint32_t)sizeof(tilewise_error), 0, { \
      0                                    \
    }                                      \
  }

/** "bad argument" for TILEWISE_BAD_ARGUMENT, and so on; "unknown" for a code that is none. */
TILEWISE_API const char* tilewise_status_name(tilewise_status code);

/** TILEWISE_ABI_VERSION of the library that is running. */
TILEWISE_API int32_t tilewise_abi_version(void);

/* ------------------------------------------------------------------------------------- tensors */

/** What the elements of a tensor are. */
enum {
  TILEWISE_F64 = 1,
  TILEWISE_F32 = 2,
  TILEWISE_F16 = 3,
  TILEWISE_BF16 = 4,
  TILEWISE_E4M3 = 5, /**< OCP OFP8 E4M3: no infinity ("e4m3fn") */
  TILEWISE_E5M2 = 6, /**< OCP OFP8 E5M2 */
  TILEWISE_I64 = 7,
  TILEWISE_I32 = 8,
  TILEWISE_BOOL = 9, /**< one byte, 0 or 1 */
  TILEWISE_I8 = 10,  /**< of keys and values, beside k_scales and v_scales */
  /** Of keys and values: ggml's blocks of 32 numbers, 34 bytes, an f16 scale before 32 of i8. Each
   * block counts as one element: the last dimension is head_dim / 32. */
  TILEWISE_Q8_0 = 11
};

/** Where memory is; the numbers are DLPack's. */
enum { TILEWISE_CPU = 1, TILEWISE_CUDA = 2 };

/** Of a context alone: the backend's device if that can run kernels, else the CPU. */
enum { TILEWISE_BEST_DEVICE = 0 };

enum { TILEWISE_MAX_DIMS = 5 };

/**
 * A view of memory as a tensor. All zero: absent. Strides count elements; those of inputs may be
 * zero (a broadcast dimension) or negative. `data` may be null where there are no elements, and in
 * questions (tilewise_query, tilewise_attention_workspace), which look at shapes alone.
 */
typedef struct tilewise_tensor {
  void* data;
  int32_t dtype;       /**< TILEWISE_F32, ... */
  int32_t device_type; /**< TILEWISE_CPU, ... */
  int32_t device_id;
  int32_t ndim;
  int64_t shape[TILEWISE_MAX_DIMS];
  int64_t strides[TILEWISE_MAX_DIMS];
} tilewise_tensor;

/** A view of contiguous host memory, the last dimension fastest. `ndim` is at most 5. */
static inline tilewise_tensor tilewise_contiguous(void* data, int32_t dtype, int32_t ndim,
                                                  const int64_t* shape) {
  tilewise_tensor tensor = {NULL, 0, 0, 0, 0, {0}, {0}};
  uint64_t stride = 1; /* may wrap for sizes that are refused later */
  int32_t dim = ndim < TILEWISE_MAX_DIMS ? ndim : TILEWISE_MAX_DIMS;
  tensor.data = data;
  tensor.dtype = dtype;
  tensor.device_type = TILEWISE_CPU;
  tensor.ndim = ndim;
  while (dim-- > 0) {
    tensor.shape[dim] = shape[dim];
    tensor.strides[dim] = (int64_t)stride;
    stride *= shape[dim] > 0 ? (uint64_t)shape[dim] : 1;
  }
  return tensor;
}

/* ------------------------------------------------------------------------------------- context */

/** Which kernels may run, by what the processor has. */
enum {
  TILEWISE_ISA_AUTO = 0,     /**< the best that this processor and this library have */
  TILEWISE_ISA_PORTABLE = 1, /**< plain C++, the same everywhere */
  TILEWISE_ISA_AVX2 = 2,     /**< with FMA and F16C; refused where it cannot run, as those below */
  TILEWISE_ISA_AVX512 = 3,   /**< F, CD, DQ, BW and VL */
  TILEWISE_ISA_NEON = 4,
  TILEWISE_ISA_SVE = 5, /**< reserved: refused by this version */
  TILEWISE_ISA_SSE2 = 6
};

/** How work is spread. Results do not depend on it, to the bit. */
enum {
  TILEWISE_THREADING_SERIAL = 0,  /**< on the caller's thread */
  TILEWISE_THREADING_THREADS = 1, /**< threads of the context's own, asleep between calls */
  TILEWISE_THREADING_OPENMP = 2,  /**< where the library was built with OpenMP */
  TILEWISE_THREADING_CALLER = 3   /**< options.parallel_for */
};

/** One piece of work: `task` says which, `worker` who does it. */
typedef void (*tilewise_task)(void* arg, int64_t task, int32_t worker);

/**
 * A caller's own threads: calls fn(arg, task, worker) once for each task in [0, n), in any order,
 * and returns when all are done. Workers are numbered from 0, below max_workers, and no number may
 * be used by two tasks at the same time.
 */
typedef void (*tilewise_parallel_for)(void* pool, int32_t max_workers, int64_t n, tilewise_task fn,
                                      void* arg);

/** Memory aligned to 64 bytes, or null. */
typedef void* (*tilewise_allocate_function)(void* user, size_t bytes);
typedef void (*tilewise_free_function)(void* user, void* memory);

/** Kernels for another device than the CPU, from a library of their own: tilewise/cuda.h. */
typedef struct tilewise_backend tilewise_backend;

typedef struct tilewise_context_options {
  uint32_t struct_size;
  int32_t isa;       /**< TILEWISE_ISA_AUTO */
  int32_t threading; /**< TILEWISE_THREADING_THREADS */
  int32_t threads;   /**< workers at once; 0, the default: as many as the machine has */
  tilewise_parallel_for parallel_for;  /**< for TILEWISE_THREADING_CALLER */
  void* pool;                          /**< its first argument */
  tilewise_allocate_function allocate; /**< host memory; null, the default: the C++ library's */
  tilewise_free_function free_memory;  /**< given exactly where `allocate` is */
  void* allocator_user;                /**< the first argument of both */
  int32_t device_type;                 /**< TILEWISE_CPU */
  int32_t device_id;                   /**< 0 */
  const tilewise_backend* backend;     /**< tilewise_cuda_backend(), for TILEWISE_CUDA; or null */
} tilewise_context_options;

/**
 * Where to compute. Any number of threads may use one context at the same time, each with its own
 * workspace.
 */
typedef struct tilewise_context tilewise_context;

/** Fills in the defaults; `struct_size` is the caller's sizeof(tilewise_context_options). */
TILEWISE_API tilewise_status tilewise_context_options_init_sized(tilewise_context_options* options,
                                                                 uint32_t struct_size,
                                                                 tilewise_error* error);

static inline void tilewise_context_options_init(tilewise_context_options* options) {
  (void)tilewise_context_options_init_sized(options, (uint32_t)sizeof *options, NULL);
}

/**
 * Makes a context; `options` may be null for the defaults. Allocates (by the allocator hook), and
 * starts the context's threads if it is to have some.
 */
TILEWISE_API tilewise_status tilewise_context_create(const tilewise_context_options* options,
                                                     tilewise_context** context,
                                                     tilewise_error* error);

/** Ends the threads and frees. No call may be using the context. Null is ignored. */
TILEWISE_API void tilewise_context_destroy(tilewise_context* context);

/** What tilewise_context_device answers. */
typedef struct tilewise_device_choice {
  uint32_t struct_size;       /**< as TILEWISE_DEVICE_CHOICE_INIT sets it */
  int32_t device_type;        /**< TILEWISE_CPU or TILEWISE_CUDA: where tensors have to be */
  int32_t device_id;          /**< and which of those devices */
  int32_t compute_capability; /**< of CUDA: 80, 90; else 0 */
  char reason[256];           /**< why this device and no other */
} tilewise_device_choice;

/** tilewise_device_choice choice = TILEWISE_DEVICE_CHOICE_INIT; */
#define TILEWISE_DEVICE_CHOICE_INIT                      \
  {                                                      \
    (uint32_t)sizeof(tilewise_device_choice), 0, 0, 0, { \
      0                                                  \
    }                                                    \
  }

/** Where a context computes: of TILEWISE_BEST_DEVICE, what it came to. */
TILEWISE_API tilewise_status tilewise_context_device(const tilewise_context* context,
                                                     tilewise_device_choice* choice,
                                                     tilewise_error* error);

/**
 * Memory for callers who have none of their own; null on failure. On the CPU it is the context's
 * allocator's; on another device it is memory there, and tilewise_free first waits for the device.
 */
TILEWISE_API void* tilewise_allocate(tilewise_context* context, size_t bytes);
TILEWISE_API void tilewise_free(tilewise_context* context, void* memory);

/* ----------------------------------------------------------------------------------- attention */

/* Where attention systems disagree: docs/conventions.md has each field and who chose what. */
enum { TILEWISE_ALIGN_BOTTOM_RIGHT = 0, TILEWISE_ALIGN_TOP_LEFT = 1 };
enum {
  TILEWISE_EMPTY_OUTPUT_ZERO = 0,
  TILEWISE_EMPTY_OUTPUT_NAN = 1,
  TILEWISE_EMPTY_OUTPUT_MEAN_V = 2
};
enum {
  TILEWISE_EMPTY_LSE_MINUS_INF = 0,
  TILEWISE_EMPTY_LSE_PLUS_INF = 1,
  TILEWISE_EMPTY_LSE_UNSPECIFIED = 2
};
enum { TILEWISE_LSE_BASE_E = 0, TILEWISE_LSE_BASE_2 = 1 };
enum { TILEWISE_WINDOW_KEYS_BEFORE = 0, TILEWISE_WINDOW_KEYS_INCLUDING_SELF = 1 };
enum {
  TILEWISE_SCALE_INVERSE_SQRT_HEAD_DIM = 0,
  TILEWISE_SCALE_ONE = 1,
  TILEWISE_SCALE_REQUIRED = 2
};
enum { TILEWISE_ORDER_SOFTCAP_BIAS_MASK = 0, TILEWISE_ORDER_BIAS_SOFTCAP_MASK = 1 };
enum {
  TILEWISE_ALIBI_MINUS_DISTANCE = 0,
  TILEWISE_ALIBI_FA2 = 1,
  TILEWISE_ALIBI_SIGNED_DISTANCE = 2
};
enum {
  TILEWISE_MASK_AND_CAUSAL_INTERSECT = 0,
  TILEWISE_MASK_AND_CAUSAL_MASK_REPLACES = 1,
  TILEWISE_MASK_AND_CAUSAL_CAUSAL_REPLACES = 2,
  TILEWISE_MASK_AND_CAUSAL_REFUSE = 3
};
enum { TILEWISE_SOFTCAP_AND_DROPOUT_COMBINE = 0, TILEWISE_SOFTCAP_AND_DROPOUT_REFUSE = 1 };

/**
 * One attention problem: S = softmax_scale Q K^T; softcap, bias, ALiBi and masks; P = softmax(S);
 * O = dropout(P) V; LSE_i = log sum_j exp S_ij. Query head h reads key/value head
 * h / (nheads_q / nheads_k).
 *
 * Dense:   q, o, dout, dq [batch, seqlen_q, nheads_q, head_dim or head_dim_v],
 *          k, v, dk, dv   [batch, seqlen_k, nheads_k, head_dim or head_dim_v],
 *          lse            [batch, nheads_q, seqlen_q]
 * Packed:  (cu_seqlens_q and cu_seqlens_k given) batch and seqlen are one dimension,
 *          [total, nheads, head_dim]; lse [nheads_q, total_q]
 * Any strides: [batch, nheads, seqlen, head_dim] in memory is a matter of strides.
 */
typedef struct tilewise_attention {
  uint32_t struct_size;

  int32_t causal; /**< 0 or 1 */
  int32_t
      deterministic;  /**< 0 or 1: gradients have the same bits at each call (the CPU's always) */
  int32_t num_splits; /**< parts that the keys are cut into, computed apart and merged; 0: the
                         library's choice */

  double softmax_scale;    /**< NaN, the default: what `default_scale` says */
  int64_t window_left;     /**< -1: unbounded; what W counts: `window_left_counts` */
  int64_t window_right;    /**< -1: unbounded; else so many keys after the query's own position */
  int64_t attention_chunk; /**< 0: none; else a query sees its own chunk of so many keys */
  double softcap;          /**< 0: none; else S becomes softcap tanh(S / softcap) */
  double dropout_p;        /**< probability that an element of P is dropped, in [0, 1) */
  uint64_t philox_seed;    /**< of dropout's random bits, which are flash-attn 2's */
  uint64_t philox_offset;
  const uint64_t* philox_seed_pointer;   /**< unless null: where the seed is, on the device */
  const uint64_t* philox_offset_pointer; /**< the same for the offset */
  int64_t max_seqlen_q; /**< packed: no sequence is longer; 0: not known. Dense: 0 or seqlen_q */
  int64_t max_seqlen_k;

  /* Conventions, in the order of docs/conventions.md. */
  int32_t alignment;           /**< TILEWISE_ALIGN_... */
  int32_t empty_row_output;    /**< TILEWISE_EMPTY_OUTPUT_... */
  int32_t empty_row_lse;       /**< TILEWISE_EMPTY_LSE_... */
  int32_t lse_base;            /**< TILEWISE_LSE_BASE_... */
  int32_t window_left_counts;  /**< TILEWISE_WINDOW_... */
  int32_t default_scale;       /**< TILEWISE_SCALE_... */
  int32_t score_order;         /**< TILEWISE_ORDER_... */
  int32_t alibi;               /**< TILEWISE_ALIBI_... */
  int32_t mask_and_causal;     /**< TILEWISE_MASK_AND_CAUSAL_... */
  int32_t softcap_and_dropout; /**< TILEWISE_SOFTCAP_AND_DROPOUT_... */

  /* Forward: q, k, v give o and, where it is present, lse. */
  tilewise_tensor q, k, v;
  tilewise_tensor o;   /**< the inputs' dtype, or f32; bf16 or f32 for fp8 inputs */
  tilewise_tensor lse; /**< f32; f64 for f64 inputs */

  /* Backward: q, k, v, o, lse, dout give dq, dk, dv and, where they are present, dbias, dsinks. */
  tilewise_tensor dout;
  tilewise_tensor dq, dk, dv; /**< dtypes as o's */
  tilewise_tensor dbias;      /**< bias's shape, summed where bias is broadcast */
  tilewise_tensor dsinks;     /**< f32 [nheads_q] */

  /* What may be absent. */
  tilewise_tensor
      bias; /**< [batch or 1, nheads_q or 1, seqlen_q or 1, seqlen_k or 1], added to S */
  tilewise_tensor mask;         /**< bool, the same shapes; 1: may look */
  tilewise_tensor sinks;        /**< f32 [nheads_q]: one more score, in the sums of P and LSE */
  tilewise_tensor alibi_slopes; /**< f32 [nheads_q] */
  tilewise_tensor cu_seqlens_q; /**< i32 [batch + 1]: where packed sequences start */
  tilewise_tensor cu_seqlens_k;
  tilewise_tensor seqlens_q; /**< i32 [batch]: how many rows of a dense tensor's sequences count */
  tilewise_tensor seqlens_k;

  /* PyTorch's BlockMask: which blocks of block_q queries by block_k keys are looked at. Inside a
   * block of the full lists no other mask holds; both full lists may be absent. Indices ascend. */
  int64_t block_q, block_k;
  tilewise_tensor kv_num_blocks; /**< i32 [batch or 1, nheads_q or 1, query blocks] */
  tilewise_tensor kv_indices;    /**< i32 [batch or 1, nheads_q or 1, query blocks, key blocks] */
  tilewise_tensor full_kv_num_blocks;
  tilewise_tensor full_kv_indices;

  /* Keys and values that are kept between calls (flash-attn's flash_attn_with_kvcache): k and v are
   * the cache, [cache rows, capacity, nheads_k, width], and seqlens_k [batch] says how many rows of
   * a sequence's cache count before this call, padding included. Forward alone. */
  tilewise_tensor block_table;     /**< i32 [batch, pages]: k and v are pages,
                                      [pages, page size, nheads_k, width] */
  tilewise_tensor cache_batch_idx; /**< i32 [batch]: the cache row of each sequence */
  tilewise_tensor cache_leftpad; /**< i32 [batch]: so many rows at the cache's start are padding */
  tilewise_tensor k_new;         /**< [batch, seqlen_new, nheads_k, width]: written into k and v */
  tilewise_tensor v_new;         /**< behind the rows that count, and then attended to */
  tilewise_tensor rotary_cos;    /**< [positions, pairs], q's dtype or f32: turns q and k_new by */
  tilewise_tensor rotary_sin;    /**< their positions in the cache, padding included */
  int32_t rotary_interleaved;    /**< 1, the default: pairs (2i, 2i + 1); 0: (i, i + pairs) */
  int32_t reserved;              /**< 0 */

  /* k and v may each be of another dtype than q: fp8, I8 or Q8_0. */
  tilewise_tensor q_descale; /**< f32 [batch, nheads_k]: what q's numbers are multiplied by */
  tilewise_tensor k_descale;
  tilewise_tensor v_descale;
  tilewise_tensor k_scales; /**< f32, of an I8 k: its shape without the last dimension */
  tilewise_tensor v_scales;
} tilewise_attention;

/** Which way: the forward pass, or the backward pass alone. */
enum { TILEWISE_FORWARD = 0, TILEWISE_BACKWARD = 1 };

/**
 * Clears every field and sets the conventions of a preset of docs/conventions.md: "fa3" (null means
 * that, Tilewise's own default), "fa2", "torch_sdpa", "xformers", "flashinfer", "vllm", "onnx",
 * "cudnn", "ggml", "mlx", "jax", "triton_tutorial", "hf_eager". `struct_size` is the caller's
 * sizeof(tilewise_attention).
 */
TILEWISE_API tilewise_status tilewise_attention_init_sized(tilewise_attention* attention,
                                                           uint32_t struct_size, const char* preset,
                                                           tilewise_error* error);

static inline tilewise_status tilewise_attention_init(tilewise_attention* attention,
                                                      const char* preset) {
  return tilewise_attention_init_sized(attention, (uint32_t)sizeof *attention, preset, NULL);
}

/**
 * How large a workspace has to be, and how large it may usefully be. Looks at shapes and fields
 * alone, never at memory: tensors may have null data, lengths need not be there yet. On the CPU
 * the forward pass's `min_bytes` depends on neither sequence length. On CUDA it depends also on
 * where tensors begin, if they have data. Either pointer may be null.
 */
TILEWISE_API tilewise_status tilewise_attention_workspace(const tilewise_context* context,
                                                          const tilewise_attention* attention,
                                                          int32_t pass, size_t* min_bytes,
                                                          size_t* fast_bytes,
                                                          tilewise_error* error);

/**
 * Computes o, and lse where it is present. Everything is checked before anything is written; of
 * tensors on a device, everything but what their memory holds (tilewise_validate).
 * @param workspace on the context's device, aligned to 64 bytes, with arbitrary contents; null
 * where min_bytes is 0
 * @param stream    on CUDA a cudaStream_t, or null for the default one: the call returns when the
 * work is in it. Null on the CPU, where the call returns when it is done
 */
TILEWISE_API tilewise_status tilewise_attention_forward(tilewise_context* context,
                                                        const tilewise_attention* attention,
                                                        void* workspace, size_t workspace_bytes,
                                                        void* stream, tilewise_error* error);

/** Computes dq, dk and dv, and dbias and dsinks where they are present, from o, lse and dout. */
TILEWISE_API tilewise_status tilewise_attention_backward(tilewise_context* context,
                                                         const tilewise_attention* attention,
                                                         void* workspace, size_t workspace_bytes,
                                                         void* stream, tilewise_error* error);

/**
 * Joins attention over n disjoint sets of keys into attention over them all:
 *   lse = log sum_i exp lse_i,   o = sum_i exp(lse_i - lse) o_i
 * A part whose lse is -inf or +inf has seen no key and counts nothing, whatever its o. `o` and
 * `lse` may each be one of the parts themselves, and else overlap none.
 * @param o_parts   n tensors [batch, seqlen, nheads, head_dim_v], or packed [total, nheads,
 * head_dim_v]
 * @param lse_parts n tensors [batch, nheads, seqlen], or packed [nheads, total]; f32 or f64
 * @param lse       as a part's; null or absent where it is not wanted
 * @param lse_base  TILEWISE_LSE_BASE_..., of all of them
 * @param empty_row_lse TILEWISE_EMPTY_LSE_...: lse of a row that no part has seen a key for; o is 0
 */
TILEWISE_API tilewise_status tilewise_merge_states(
    tilewise_context* context, int64_t n, const tilewise_tensor* o_parts,
    const tilewise_tensor* lse_parts, const tilewise_tensor* o, const tilewise_tensor* lse,
    int32_t lse_base, int32_t empty_row_lse, void* stream, tilewise_error* error);

/**
 * Whether the last call on this workspace found what can only be found on the device (lengths, page
 * tables) to be in order; where not, it has clamped it, and touched nothing outside. Waits for the
 * stream. On the CPU all that is checked before a call begins, and this answers TILEWISE_OK.
 * @param workspace as the call had it; null, of calls without one, which have nothing to find
 */
TILEWISE_API tilewise_status tilewise_validate(tilewise_context* context, const void* workspace,
                                               void* stream, tilewise_error* error);

/** What tilewise_query answers. */
typedef struct tilewise_answer {
  uint32_t struct_size;    /**< sizeof(tilewise_answer), as TILEWISE_ANSWER_INIT sets it */
  int32_t code;            /**< the status that the call would have, or TILEWISE_OK */
  int32_t fast;            /**< 1: by a kernel made for this processor, or for such calls */
  char implementation[60]; /**< "cpu.portable", "cuda.sm80"; empty if none serves the problem */
  char reason[256];        /**< why none, or why not a fast one; else empty */
} tilewise_answer;

/** tilewise_answer answer = TILEWISE_ANSWER_INIT; */
#define TILEWISE_ANSWER_INIT                        \
  {                                                 \
    (uint32_t)sizeof(tilewise_answer), 0, 0, {0}, { \
      0                                             \
    }                                               \
  }

/**
 * Which implementation would run this here, and if none, or not a fast one, why. As the workspace's
 * question it looks at shapes and fields alone. TILEWISE_OK if there is an answer, be it "none".
 */
TILEWISE_API tilewise_status tilewise_query(const tilewise_context* context,
                                            const tilewise_attention* attention, int32_t pass,
                                            tilewise_answer* answer, tilewise_error* error);

#ifdef __cplusplus
}
#endif

#endif
