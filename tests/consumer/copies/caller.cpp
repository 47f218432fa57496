// Compiled twice, as `one` and as `two`, each for another copy: attention forward and backward,
// through the C++ wrappers, on threads of the copy's own.
#include "caller.hpp"

#include <tilewise/attention.hpp>

#include <cmath>

Answer CALLER() {
  constexpr int seqlen = 150, nheads = 3, head_dim = 32;
  constexpr std::size_t size = seqlen * nheads * head_dim, rows = seqlen * nheads;
  std::vector<float> in(4 * size), out(4 * size + rows);
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = std::sin(0.37f * static_cast<float>(i));
  const auto input = [&](int i) {
    return tilewise::tensor(in.data() + i * size, {1, seqlen, nheads, head_dim});
  };
  const auto output = [&](int i) {
    return tilewise::tensor(out.data() + i * size, {1, seqlen, nheads, head_dim});
  };
  const auto lse = tilewise::tensor(out.data() + 4 * size, {1, nheads, seqlen});

  tilewise::ContextOptions options;
  options.threads = 2;
  tilewise::Context context(options);
  tilewise::FlashAttnArgs args;
  args.causal = true;
  const tilewise::Result forward =
      tilewise::flash_attn_func(context, input(0), input(1), input(2), output(0), lse, args);
  const tilewise::Result backward =
      tilewise::flash_attn_backward(context, input(3), input(0), input(1), input(2), output(0), lse,
                                    output(1), output(2), output(3), args);
  if (!forward || !backward) out.clear();
  return {reinterpret_cast<const void*>(&tilewise_attention_forward), out};
}
