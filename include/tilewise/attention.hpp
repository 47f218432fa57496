// Attention under the names that people know: flash-attn's, PyTorch's and xformers' functions, each
// with its own argument names, defaults and conventions, over the C interface of tilewise.h.
//
//   tilewise::Context context;
//   tilewise::Result done =
//       tilewise::flash_attn_func(context, q, k, v, out, lse, {.causal = true});
//   if (!done) std::puts(done.message());
//
// Headers alone, C++17 (the braces with names are C++20), no exceptions, no RTTI. Outputs are the
// caller's tensors; scratch memory comes from the context's allocator for the time of a call.
// Whoever brings their own uses what `describe::` returns with the C calls.
#pragma once

#include "attention/call.hpp"
#include "attention/flash_attn.hpp"
#include "attention/flash_attn_3.hpp"
#include "attention/memory_efficient_attention.hpp"
#include "attention/merge_states.hpp"
#include "attention/scaled_dot_product_attention.hpp"
