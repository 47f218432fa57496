// Every product that ptx/wgmma.hpp has, right: each width, both formats, both ways in which B may
// lie, A in shared memory and in registers. And a chain of them as attention has it, two tiles
// long, the second S under way together with the first P V.
#include "measured.hpp"
#include "wgmma_tiles.hpp"

namespace tilewise::tests::inline TILEWISE_TARGET {
namespace {

using device::bf16;
using device::f16;
using device::Major;
using device::MatrixDescriptor;
using device::wgmma_commit;
using device::wgmma_fence;
using device::wgmma_registers;
using device::wgmma_shared;
using device::wgmma_wait;

constexpr int depth = 64, steps = depth / 16;

template <int N, Major B>
struct Operands {
  Slabs<64, depth> a;
  Slabs<B == Major::k ? N : depth, B == Major::k ? depth : N> b;
};

/// Registers 0 to 3 of a thread for a step of 16, of rows of floats.
template <class T>
__device__ void load_operand(std::uint32_t (&a)[4], const float* rows, int step) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  for (int n = 0; n < 4; ++n) {
    const int row = thread / 32 * 16 + lane / 4 + n % 2 * 8;
    const float* const two = rows + row * depth + step * 16 + lane % 4 * 2 + n / 2 * 8;
    a[n] = device::pack<T>(two[0], two[1]);
  }
}

template <class T, int N, Major B, bool registers>
__global__ void multiply(const float* in, float* out) {
  auto& shared = device::shared_memory<Operands<N, B>>();
  fill<T>(shared.a, in);
  fill<T>(shared.b, in + 64 * depth);
  device::fence_proxy_async();
  __syncthreads();
  const MatrixDescriptor a = device::describe_matrix(&shared.a, 64);
  const MatrixDescriptor b = device::describe_matrix(&shared.b, shared.b.rows);
  constexpr int advance = B == Major::k ? 32 : 2048;
  float d[N / 2];
  std::uint32_t of_a[steps][4];
  if (registers)
    for (int k = 0; k < steps; ++k) load_operand<T>(of_a[k], in, k);
  wgmma_fence();
  for (int k = 0; k < steps; ++k)
    if (registers)
      wgmma_registers<T, B>(d, of_a[k], b.advanced(advance * k), k > 0);
    else
      wgmma_shared<T, B>(d, a.advanced(32 * k), b.advanced(advance * k), k > 0);
  wgmma_commit();
  wgmma_wait<0>();
  store_accumulators(d, out);
}

template <class T, int N, Major B, bool registers>
Ran run_multiply() {
  const std::vector<float> in = small_integers((64 + N) * depth, N);
  return run("multiply", multiply<T, N, B, registers>, {{1}, {128}, sizeof(Operands<N, B>)}, in,
             product_of(in.data(), in.data() + 64 * depth, 64, N, depth, B == Major::n));
}

template <int... N>
void add_widths(std::vector<Product>& all) {
  const auto add = [&](int columns, const char* name, Ran (*of)()) {
    all.push_back({columns, name, of});
  };
  (add(N, "f16, rows of k, shared", run_multiply<f16, N, Major::k, false>), ...);
  (add(N, "f16, rows of n, shared", run_multiply<f16, N, Major::n, false>), ...);
  (add(N, "f16, rows of k, registers", run_multiply<f16, N, Major::k, true>), ...);
  (add(N, "f16, rows of n, registers", run_multiply<f16, N, Major::n, true>), ...);
  (add(N, "bf16, rows of k, shared", run_multiply<bf16, N, Major::k, false>), ...);
  (add(N, "bf16, rows of n, shared", run_multiply<bf16, N, Major::n, false>), ...);
  (add(N, "bf16, rows of k, registers", run_multiply<bf16, N, Major::k, true>), ...);
  (add(N, "bf16, rows of n, registers", run_multiply<bf16, N, Major::n, true>), ...);
}

// ------------------------------------------------------------------------------------------------

struct Tiles {
  Slabs<64, 128> q;
  Slabs<64, 128> k[2], v[2];
};

__device__ void scores(float (&s)[32], const Slabs<64, 128>& q, const Slabs<64, 128>& k) {
  const MatrixDescriptor of_q = device::describe_matrix(&q, 64);
  const MatrixDescriptor of_k = device::describe_matrix(&k, 64);
  for (int n = 0; n < 8; ++n) {
    const int advance = n / 4 * 64 * 128 + n % 4 * 32;  // the fifth step is in the next slab
    wgmma_shared<bf16>(s, of_q.advanced(advance), of_k.advanced(advance), n > 0);
  }
  wgmma_commit();
}

/// Numbers of S, modulo something small, as P: so that all of O is exact.
__device__ void pack_small(std::uint32_t (&p)[steps][4], const float (&s)[32]) {
  const auto small = [](float value) { return static_cast<float>(static_cast<int>(value) % 8); };
  for (int n = 0; n < steps * 4; ++n)
    p[n / 4][n % 4] = device::pack<bf16>(small(s[2 * n]), small(s[2 * n + 1]));
}

__device__ void add_product(float (&o)[64], const std::uint32_t (&p)[steps][4],
                            const Slabs<64, 128>& v, bool keep) {
  const MatrixDescriptor of_v = device::describe_matrix(&v, 64);
  for (int n = 0; n < steps; ++n)
    wgmma_registers<bf16, Major::n>(o, p[n], of_v.advanced(2048 * n), keep || n > 0);
  wgmma_commit();
}

__global__ void two_tiles(const float* in, float* out) {
  Tiles& shared = device::shared_memory<Tiles>();
  constexpr int tile = 64 * 128;
  fill<bf16>(shared.q, in);
  for (int n = 0; n < 2; ++n) {
    fill<bf16>(shared.k[n], in + tile * (1 + n));
    fill<bf16>(shared.v[n], in + tile * (3 + n));
  }
  device::fence_proxy_async();
  __syncthreads();

  float s[2][32], o[64];
  std::uint32_t p[2][steps][4];
  wgmma_fence();
  scores(s[0], shared.q, shared.k[0]);
  wgmma_wait<0>();
  pack_small(p[0], s[0]);
  wgmma_fence();
  scores(s[1], shared.q, shared.k[1]);
  add_product(o, p[0], shared.v[0], false);
  wgmma_wait<1>();  // the second S, while P V goes on
  pack_small(p[1], s[1]);
  wgmma_wait<0>();
  for (float& value : o) value *= 2;
  wgmma_fence();
  add_product(o, p[1], shared.v[1], true);
  wgmma_wait<0>();
  store_accumulators(o, out);
}

}  // namespace
}  // namespace tilewise::tests::inline TILEWISE_TARGET

namespace tilewise::tests {

std::vector<Product> products() {
  std::vector<Product> all;
  add_widths<64, 80, 96, 112, 128, 160, 176, 192, 256>(all);
  return all;
}

Ran chained_products() {
  constexpr int tile = 64 * 128;
  const std::vector<float> in = small_integers(5 * tile, 17);
  std::vector<float> expected(tile);
  for (int n = 0; n < 2; ++n) {
    std::vector<float> p = product_of(in.data(), in.data() + tile * (1 + n), 64, 64, 128, false);
    for (float& value : p) value = static_cast<float>(static_cast<int>(value) % 8);
    const std::vector<float> o =
        product_of(p.data(), in.data() + tile * (3 + n), 64, 128, 64, true);
    for (std::size_t i = 0; i < expected.size(); ++i) expected[i] = 2 * expected[i] + o[i];
  }
  return run("two_tiles", two_tiles, {{1}, {128}, sizeof(Tiles)}, in, expected);
}

}  // namespace tilewise::tests
