// The kernels that the library chooses by itself on this processor, and whether they, on every
// dtype and a few shapes, compute what the portable ones do. Small, so that an emulated processor
// is through with it in seconds, and made of nothing but the library.
//
//   tilewise_dispatch_test [NAME]    fails where the choice is not NAME: cpu.sse2
#include "core/dtype.hpp"
#include "include/tilewise/tilewise.h"

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <vector>

namespace {

using tilewise::DType;

/// Everything here is a refusal that nobody expects: say it and stop.
void require(bool well, const char* what, const char* why = "") {
  if (well) return;
  std::printf("%s: %s\n", what, why);
  std::exit(1);
}

/// [batch, rows, heads, width] of some dtype.
struct Tensor {
  Tensor(DType dtype_, std::int64_t rows, std::int64_t heads, std::int64_t width)
      : dtype(dtype_), shape{2, rows, heads, width}, bytes(count() * size_of(dtype_)) {}

  std::size_t count() const { return static_cast<std::size_t>(2 * shape[1] * shape[2] * shape[3]); }
  static std::size_t size_of(DType dtype) {
    return static_cast<std::size_t>(tilewise::size_of(dtype));
  }

  double at(std::size_t i) const { return tilewise::load(dtype, &bytes[i * size_of(dtype)]); }

  /// From -2 to 2.
  void fill(std::uint32_t& state) {
    for (std::size_t i = 0; i < count(); ++i) {
      state = state * 1664525u + 1013904223u;
      tilewise::store(dtype, &bytes[i * size_of(dtype)], state / 1073741824.0 - 2);
    }
  }

  tilewise_tensor view() {
    return tilewise_contiguous(bytes.data(), static_cast<std::int32_t>(dtype) + 1, 4, shape);
  }

  DType dtype;
  std::int64_t shape[4];
  std::vector<unsigned char> bytes;
};

struct Case {
  DType dtype;
  std::int64_t seqlen_q, seqlen_k, head_dim, head_dim_v;
  int causal;
  double softcap;
};

tilewise_context* context_of(std::int32_t isa) {
  tilewise_context_options options;
  tilewise_context_options_init(&options);
  options.isa = isa;
  options.threads = 2;
  tilewise_context* context = nullptr;
  tilewise_error error = TILEWISE_ERROR_INIT;
  require(tilewise_context_create(&options, &context, &error) == TILEWISE_OK, "context",
          error.message);
  return context;
}

void run(tilewise_context* context, const tilewise_attention& attention, std::int32_t pass) {
  tilewise_error error = TILEWISE_ERROR_INIT;
  std::size_t bytes = 0;
  require(tilewise_attention_workspace(context, &attention, pass, &bytes, nullptr, &error) ==
              TILEWISE_OK,
          "workspace", error.message);
  void* const workspace = tilewise_allocate(context, bytes);
  const auto compute =
      pass == TILEWISE_FORWARD ? tilewise_attention_forward : tilewise_attention_backward;
  require(compute(context, &attention, workspace, bytes, nullptr, &error) == TILEWISE_OK,
          "attention", error.message);
  tilewise_free(context, workspace);
}

/// O and its gradients: o, dq, dk, dv.
std::vector<Tensor> attend(tilewise_context* context, const Case& c) {
  constexpr std::int64_t hq = 4, hk = 2;
  std::uint32_t state = 1;
  Tensor q(c.dtype, c.seqlen_q, hq, c.head_dim), k(c.dtype, c.seqlen_k, hk, c.head_dim);
  Tensor v(c.dtype, c.seqlen_k, hk, c.head_dim_v), dout(c.dtype, c.seqlen_q, hq, c.head_dim_v);
  for (Tensor* tensor : {&q, &k, &v, &dout}) tensor->fill(state);
  Tensor o = dout, dq = q, dk = k, dv = v;
  std::vector<float> lse(static_cast<std::size_t>(2 * hq * c.seqlen_q));
  const std::int64_t lse_shape[3] = {2, hq, c.seqlen_q};

  tilewise_attention attention;
  tilewise_attention_init(&attention, nullptr);
  attention.causal = c.causal;
  attention.softcap = c.softcap;
  attention.q = q.view();
  attention.k = k.view();
  attention.v = v.view();
  attention.o = o.view();
  attention.lse = tilewise_contiguous(lse.data(), TILEWISE_F32, 3, lse_shape);
  attention.dout = dout.view();
  attention.dq = dq.view();
  attention.dk = dk.view();
  attention.dv = dv.view();
  run(context, attention, TILEWISE_FORWARD);
  run(context, attention, TILEWISE_BACKWARD);
  return {o, dq, dk, dv};
}

/// Both round, in different orders; of 16-bit floats the results once more.
double tolerance(DType dtype) {
  return dtype == DType::bf16 ? 2e-2 : dtype == DType::f16 ? 3e-3 : 3e-5;
}

bool agree(const Case& c, const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  constexpr const char* names[] = {"o", "dq", "dk", "dv"};
  for (std::size_t n = 0; n < a.size(); ++n)
    for (std::size_t i = 0; i < a[n].count(); ++i) {
      const double got = a[n].at(i), expected = b[n].at(i);
      if (!(std::fabs(got - expected) <= tolerance(c.dtype) * (1 + std::fabs(expected)))) {
        std::printf("%s[%zu] of sq%d sk%d d%d: %g, and %g from the portable kernel\n", names[n], i,
                    static_cast<int>(c.seqlen_q), static_cast<int>(c.seqlen_k),
                    static_cast<int>(c.head_dim), got, expected);
        return false;
      }
    }
  return true;
}

const char* chosen_by(tilewise_context* context) {
  static tilewise_answer answer = TILEWISE_ANSWER_INIT;
  Tensor q(DType::f32, 8, 2, 8);
  tilewise_attention attention;
  tilewise_attention_init(&attention, nullptr);
  attention.q = attention.k = attention.v = attention.o = q.view();
  tilewise_error error = TILEWISE_ERROR_INIT;
  require(tilewise_query(context, &attention, TILEWISE_FORWARD, &answer, &error) == TILEWISE_OK,
          "query", error.message);
  return answer.implementation;
}

}  // namespace

int main(int count, char** arguments) {
  tilewise_context* const by_itself = context_of(TILEWISE_ISA_AUTO);
  tilewise_context* const portable = context_of(TILEWISE_ISA_PORTABLE);
  bool well = true;
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16})
    for (const Case& c : {Case{dtype, 18, 70, 33, 17, 1, 0}, Case{dtype, 1, 70, 16, 16, 0, 0},
                          Case{dtype, 5, 9, 16, 16, 0, 5}})
      well = agree(c, attend(by_itself, c), attend(portable, c)) && well;

  const char* const chosen = chosen_by(by_itself);
  std::printf("%s\n", chosen);
  if (count > 1 && std::strcmp(chosen, arguments[1]) != 0) {
    std::printf("expected %s\n", arguments[1]);
    well = false;
  }
  tilewise_context_destroy(by_itself);
  tilewise_context_destroy(portable);
  return well ? 0 : 1;
}
