// What compare_cpu.py calls: the library on memory that Python has, and the two ceilings,
// multiply-adds and reading.
//
// The C interface's structs are filled in here, by its own header, rather than copied into ctypes.
#include "include/tilewise/tilewise.h"
#include "tools/ceiling.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <new>
#include <string>

namespace {

/// As the ctypes structure of compare_kernels.py.
struct Shape {
  std::int64_t threads, causal, dtype, heads_first;
  std::int64_t batch, nheads_q, nheads_k, seqlen_q, seqlen_k, head_dim;
};

/// [batch, seqlen, nheads, head_dim] as a view of memory in that order, or with heads first.
tilewise_tensor view(void* data, const Shape& shape, std::int64_t seqlen, std::int64_t nheads) {
  const std::array<std::int64_t, 4> sizes{shape.batch, seqlen, nheads, shape.head_dim};
  tilewise_tensor tensor =
      tilewise_contiguous(data, static_cast<std::int32_t>(shape.dtype), 4, sizes.data());
  if (shape.heads_first != 0) {
    tensor.strides[1] = shape.head_dim;
    tensor.strides[2] = seqlen * shape.head_dim;
  }
  return tensor;
}

}  // namespace

/// One call, ready to be made again and again.
struct Prepared {
  tilewise_context* context = nullptr;
  tilewise_attention attention;
  void* workspace = nullptr;
  std::size_t bytes = 0;
  tilewise_answer answer = TILEWISE_ANSWER_INIT;
  tilewise_error error = TILEWISE_ERROR_INIT;
  bool ready = false;
};

namespace {

bool prepare(Prepared& call, const Shape& shape, void* q, void* k, void* v, void* o) {
  tilewise_context_options options;
  tilewise_context_options_init(&options);
  options.threads = static_cast<std::int32_t>(shape.threads);
  if (tilewise_context_create(&options, &call.context, &call.error) != TILEWISE_OK) return false;
  tilewise_attention& attention = call.attention;
  if (tilewise_attention_init(&attention, nullptr) != TILEWISE_OK) return false;
  attention.causal = static_cast<std::int32_t>(shape.causal);
  attention.q = view(q, shape, shape.seqlen_q, shape.nheads_q);
  attention.k = view(k, shape, shape.seqlen_k, shape.nheads_k);
  attention.v = view(v, shape, shape.seqlen_k, shape.nheads_k);
  attention.o = view(o, shape, shape.seqlen_q, shape.nheads_q);
  if (tilewise_query(call.context, &attention, TILEWISE_FORWARD, &call.answer, &call.error) !=
          TILEWISE_OK ||
      tilewise_attention_workspace(call.context, &attention, TILEWISE_FORWARD, nullptr, &call.bytes,
                                   &call.error) != TILEWISE_OK)
    return false;
  call.workspace = tilewise_allocate(call.context, call.bytes);
  return call.workspace != nullptr || call.bytes == 0;
}

}  // namespace

extern "C" {

Prepared* compare_prepare(const Shape* shape, void* q, void* k, void* v, void* o) {
  auto* const call = new (std::nothrow) Prepared;
  if (call != nullptr) call->ready = prepare(*call, *shape, q, k, v, o);
  return call;
}

/// 0, or the status; also where compare_prepare had no success.
std::int32_t compare_call(Prepared* call) {
  if (!call->ready) return call->error.code != 0 ? call->error.code : TILEWISE_FAILED;
  return tilewise_attention_forward(call->context, &call->attention, call->workspace, call->bytes,
                                    nullptr, &call->error);
}

const char* compare_message(const Prepared* call) {
  return call->error.message;
}

/// "cpu.avx512"
const char* compare_implementation(const Prepared* call) {
  return call->answer.implementation;
}

void compare_release(Prepared* call) {
  if (call->workspace != nullptr) tilewise_free(call->context, call->workspace);
  tilewise_context_destroy(call->context);
  delete call;
}

double compare_peak_gflops(std::int32_t threads, double seconds, const char* implementation) {
  return tilewise::tools::measure_peak_gflops(threads, seconds,
                                              tilewise::tools::isa_of(implementation));
}

double compare_read_gbytes(std::int32_t threads, double seconds, const void* memory,
                           std::int64_t bytes) {
  return tilewise::tools::measure_read_gbytes(threads, seconds, memory,
                                              static_cast<std::size_t>(bytes));
}

void compare_peak_name(const char* implementation, char* name, std::size_t bytes) {
  const std::string text = tilewise::tools::fma_name(tilewise::tools::isa_of(implementation));
  std::snprintf(name, bytes, "%s", text.c_str());
}

}  // extern "C"
