// The smallest program with attention in it (docs/embed.md).
// [snippet attend]
#include <tilewise/attention.hpp>

#include <cstdio>
#include <vector>

int main() {
  std::vector<float> q(2 * 8 * 64, 1), k(100 * 2 * 64, 1), v(100 * 2 * 64, 3), o(2 * 8 * 64);
  tilewise::Context context;
  const tilewise::Result done = tilewise::flash_attn_func(
      context, tilewise::tensor(q.data(), {1, 2, 8, 64}),
      tilewise::tensor(k.data(), {1, 100, 2, 64}), tilewise::tensor(v.data(), {1, 100, 2, 64}),
      tilewise::tensor(o.data(), {1, 2, 8, 64}), {}, {.causal = true});
  std::printf("%s %g\n", done ? "ok" : done.message(), static_cast<double>(o[0]));
  return done ? 0 : 1;
}
// [end attend]
