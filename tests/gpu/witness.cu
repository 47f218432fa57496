// Witnesses for the compiler: does ptxas leave the registers of P alone while a wgmma reads them?
//
// A wgmma goes on after it was issued, and reads a register operand A meanwhile. In the source
// nobody writes those registers before the wait; which registers others get is ptxas's decision,
// and ptxas before CUDA 13.3 has been seen to give out some that were still being read
// (triton-lang/triton issues 9433 and 11781). Then single numbers of O are a little wrong, which no
// tolerance notices. Here every number is exact: scores are integers from -4 to 4, P = 2^(s - m),
// V is integers, and all sums of them fit the 24 bits of a float. So O and l have to be, bit for
// bit, what the host gets from integers.
//
//   tilewise_gpu_witness [LAUNCHES]     a line for each witness; 1 if one that counts is wrong
//
// The loop is FlashAttention-3's (Shah et al. 2024, arXiv 2407.08608, algorithm 2): Q K^T of a tile
// is issued, then P V of the one before; softmax of the first goes on under the second. Forms:
//
//   after    P is packed when P V of the last tile is done: what a kernel should do
//   ahead    packed while it goes on, into registers of its own, and moved when it is done
//   sliced   packed 16 keys at a time, each slice right before its wgmma
//
// each of them `held`, which names P's registers once more behind the wait, so that they are not
// free before, and `loose`, which does not. Loose ones are shown, and do not count. (A loose
// `ahead` does not compile: ptxas makes one of the two sets of registers, and notes that it waits:
// C7513.)
#include "cuda/device/memory.hpp"
#include "cuda/device/ptx/convert.hpp"
#include "cuda/device/ptx/exp2.hpp"
#include "cuda/device/ptx/proxy.hpp"
#include "cuda/device/ptx/wgmma.hpp"
#include "cuda/device/shared.hpp"
#include "cuda/device/swizzle.hpp"
#include "cuda/device/warp.hpp"
#include "tests/gpu/tensors.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

namespace tilewise::gpu_tests::inline TILEWISE_TARGET {
namespace {

enum class Form { after, ahead, sliced };
constexpr const char* names_of_forms[] = {"after", "ahead", "sliced"};

constexpr int rows = 64, threads = 128;
/// The tiles are windows of one K and one V, eight rows further each time, and round again.
constexpr int windows = 8, tiles = 24;

template <int Bc>
constexpr int keys = Bc + 8 * (windows - 1);

template <class T, int Bc, int D>
struct Tiles {
  static constexpr int slabs = D / 64;
  alignas(1024) device::SwizzledTile<T, rows, 64> q[slabs];
  device::SwizzledTile<T, keys<Bc>, 64> k[slabs], v[slabs];
};

/// What differs from what was expected: how many numbers, and one of them.
struct Found {
  unsigned long long wrong;
  float expected, got;
};

template <class T, int Rows, int Slabs>
__device__ void load(device::SwizzledTile<T, Rows, 64> (&to)[Slabs], const signed char* from) {
  for (int n = static_cast<int>(threadIdx.x); n < Rows * 64 * Slabs; n += threads) {
    const int row = n / (64 * Slabs), column = n % (64 * Slabs);
    to[column / 64].at(row, column % 64) = T(static_cast<float>(from[n]));
  }
}

/// S = Q K^T of a window. Issued, not waited for.
template <class T, int Bc, int D>
__device__ __forceinline__ void issue_scores(Tiles<T, Bc, D>& t, int window, float (&s)[Bc / 2]) {
  const auto q = device::describe_matrix(t.q, rows);
  const auto k = device::describe_matrix(t.k[0].chunk(8 * window, 0), keys<Bc>);
  TILEWISE_UNROLL
  for (int c = 0; c < D / 16; ++c)
    device::wgmma_shared<T>(s, q.advanced(c / 4 * rows * 128 + c % 4 * 32),
                            k.advanced(c / 4 * keys<Bc> * 128 + c % 4 * 32), c > 0);
  device::wgmma_commit();
}

template <class T, int Count>
__device__ __forceinline__ void pack_slice(std::uint32_t (&p)[4], const float (&s)[Count], int k) {
  TILEWISE_UNROLL
  for (int n = 0; n < 4; ++n) p[n] = device::pack<T>(s[8 * k + 2 * n], s[8 * k + 2 * n + 1]);
}

template <class T, int Slices, int Count>
__device__ __forceinline__ void pack_all(std::uint32_t (&p)[Slices][4], const float (&s)[Count]) {
  TILEWISE_UNROLL
  for (int k = 0; k < Slices; ++k) pack_slice<T>(p[k], s, k);
}

/// O += P V of a window, with P as it is or, slice by slice, out of s. Issued, not waited for.
template <Form F, class T, int Bc, int D>
__device__ __forceinline__ void issue_output(Tiles<T, Bc, D>& t, int window,
                                             std::uint32_t (&p)[Bc / 16][4],
                                             const float (&s)[Bc / 2], float (&o)[D / 2]) {
  const auto v = device::describe_matrix(t.v[0].chunk(8 * window, 0), keys<Bc>);
  TILEWISE_UNROLL
  for (int k = 0; k < Bc / 16; ++k) {
    if constexpr (F == Form::sliced) {
      pack_slice<T>(p[k], s, k);
      device::wgmma_fence();
    }
    device::wgmma_registers<T, device::Major::n>(o, p[k], v.advanced(2048 * k), true);
  }
  device::wgmma_commit();
}

/// s becomes 2^(s - m); by how much O shrinks.
template <int Count>
__device__ __forceinline__ void softmax(float (&s)[Count], float (&m)[2], float (&l)[2],
                                        float (&shrink)[2]) {
  TILEWISE_UNROLL
  for (int row = 0; row < 2; ++row) {
    float most = m[row];
    TILEWISE_UNROLL
    for (int n = 0; n < Count; ++n)
      if (n / 2 % 2 == row) most = fmaxf(most, s[n]);
    most = device::quad_max(most);
    shrink[row] = device::exp2_approx(m[row] - most);
    m[row] = most;
    l[row] *= shrink[row];
    TILEWISE_UNROLL
    for (int n = 0; n < Count; ++n) {
      if (n / 2 % 2 != row) continue;
      s[n] = device::exp2_approx(s[n] - most);
      l[row] += s[n];
    }
  }
}

template <int Count>
__device__ __forceinline__ void rescale(float (&o)[Count], const float (&shrink)[2]) {
  TILEWISE_UNROLL
  for (int n = 0; n < Count; ++n) o[n] *= shrink[n / 2 % 2];
}

/// Behind a wait: until here P's registers are nobody else's.
template <bool Held, int Slices>
__device__ __forceinline__ void hold(std::uint32_t (&p)[Slices][4]) {
  if constexpr (Held) {
    TILEWISE_UNROLL
    for (auto& slice : p) device::wgmma_arrived(slice);
  }
}

__device__ __forceinline__ void compare(Found* found, float expected, float got) {
  if (__float_as_uint(expected) == __float_as_uint(got)) return;
  if (atomicAdd(&found->wrong, 1ull) == 0) found->expected = expected, found->got = got;
}

template <class T, int Bc, int D, Form F, bool Held>
__global__ void __launch_bounds__(threads)
    witness(const signed char* Q, const signed char* K, const signed char* V, const float* O,
            const float* L, Found* found) {
  auto& t = device::shared_memory<Tiles<T, Bc, D>>();
  load(t.q, Q);
  load(t.k, K);
  load(t.v, V);
  device::fence_proxy_async();
  __syncthreads();

  float s[Bc / 2], o[D / 2] = {}, m[2] = {-64, -64}, l[2] = {}, shrink[2];
  std::uint32_t p[Bc / 16][4];
  device::wgmma_fence();
  issue_scores(t, 0, s);
  device::wgmma_wait<0>();
  device::wgmma_arrived(s);
  softmax(s, m, l, shrink);
  pack_all<T>(p, s);
  for (int tile = 1; tile < tiles; ++tile) {
    if constexpr (F == Form::sliced) {
      // S is its own P: of the next tile there can be no other S before all slices are packed.
      device::wgmma_fence();
      issue_output<F>(t, (tile - 1) % windows, p, s, o);
      issue_scores(t, tile % windows, s);
      device::wgmma_wait<0>();
      hold<Held>(p);
      device::wgmma_arrived(o);
      device::wgmma_arrived(s);
      softmax(s, m, l, shrink);
      rescale(o, shrink);
    } else {
      device::wgmma_fence();
      issue_scores(t, tile % windows, s);
      issue_output<F>(t, (tile - 1) % windows, p, s, o);
      device::wgmma_wait<1>();
      device::wgmma_arrived(s);
      softmax(s, m, l, shrink);
      [[maybe_unused]] std::uint32_t next[F == Form::ahead ? Bc / 16 : 1][4];
      if constexpr (F == Form::ahead) {
        pack_all<T>(next, s);
        hold<true>(next);  // before the wait, not behind it
      }
      device::wgmma_wait<0>();
      hold<Held>(p);
      device::wgmma_arrived(o);
      rescale(o, shrink);
      if constexpr (F == Form::ahead) {
        TILEWISE_UNROLL
        for (int n = 0; n < Bc / 4; ++n) p[n / 4][n % 4] = next[n / 4][n % 4];
      } else {
        pack_all<T>(p, s);
      }
    }
  }
  device::wgmma_fence();
  issue_output<F>(t, (tiles - 1) % windows, p, s, o);
  device::wgmma_wait<0>();
  hold<Held>(p);
  device::wgmma_arrived(o);

  const int row = 16 * device::warp_index() + device::lane_index() / 4;
  const int column = 2 * (device::lane_index() % 4);
  TILEWISE_UNROLL
  for (int n = 0; n < D / 2; ++n)
    compare(found, O[(row + 8 * (n / 2 % 2)) * D + column + 8 * (n / 4) + n % 2], o[n]);
  TILEWISE_UNROLL
  for (int y = 0; y < 2; ++y) compare(found, L[row + 8 * y], device::quad_sum(l[y]));
}

// ---------------------------------------------------------------------------------------- the host

/// Small integers, and what they make of O (not divided) and l.
struct Case {
  Case(int Bc, int D) {
    const int all = Bc + 8 * (windows - 1);
    std::mt19937 random(static_cast<unsigned>(Bc * 1000 + D));
    const auto among = [&](int least, int most) {
      return least + static_cast<int>(random() % static_cast<unsigned>(most - least + 1));
    };
    // Four of a row of Q are not zero, so that |s| <= 4.
    q.assign(static_cast<std::size_t>(rows * D), 0);
    for (int row = 0; row < rows; ++row)
      for (int n = 0; n < 4; ++n) q[row * D + among(n * D / 4, (n + 1) * D / 4 - 1)] = 1;
    for (int n = 0; n < all * D; ++n) {
      k.push_back(static_cast<signed char>(among(-1, 1)));
      v.push_back(static_cast<signed char>(among(-3, 3)));
    }
    for (int row = 0; row < rows; ++row) fill_row(row, Bc, D, all);
  }

  std::vector<signed char> q, k, v;
  std::vector<float> o, l;

 private:
  void fill_row(int row, int Bc, int D, int all) {
    std::vector<int> s(static_cast<std::size_t>(all));
    for (int key = 0; key < all; ++key)
      for (int c = 0; c < D; ++c) s[key] += q[row * D + c] * k[key * D + c];
    // How often a key is looked at; in 256ths, 2^(s - m) is an integer.
    std::vector<long long> sum(static_cast<std::size_t>(D));
    const int m = *std::max_element(s.begin(), s.end());
    long long total = 0;
    for (int tile = 0; tile < tiles; ++tile)
      for (int n = 0; n < Bc; ++n) {
        const int key = 8 * (tile % windows) + n;
        const long long p = 1ll << (8 + s[key] - m);
        total += p;
        for (int c = 0; c < D; ++c) sum[c] += p * v[key * D + c];
      }
    for (const long long number : sum) o.push_back(static_cast<float>(number) / 256);
    l.push_back(static_cast<float>(total) / 256);
  }
};

template <class T>
device::Memory<T> on_device(const std::vector<T>& host, const char* name) {
  device::Memory<T> memory;
  require(memory.allocate(host.size(), name));
  require(memory.upload(host.data()));
  return memory;
}

struct Run {
  int launches = 200;
  int wrong_witnesses = 0;

  template <class T, int Bc, int D, Form F, bool Held>
  void one(const Case& expected) {
    const auto q = on_device(expected.q, "q"), k = on_device(expected.k, "k"),
               v = on_device(expected.v, "v");
    const auto o = on_device(expected.o, "o"), l = on_device(expected.l, "l");
    auto found = on_device(std::vector<Found>{{0, 0, 0}}, "found");
    const device::Grid grid = {{264}, {threads}, sizeof(Tiles<T, Bc, D>)};
    for (int n = 0; n < launches; ++n)
      require(device::launch("witness", witness<T, Bc, D, F, Held>, grid, q.data(), k.data(),
                             v.data(), o.data(), l.data(), found.data()));
    Found what{};
    require(found.download(&what));
    const char* const type = sizeof(T) == 2 && std::is_same_v<T, device::f16> ? "f16 " : "bf16";
    std::printf("%s  Bc %3d  d %3d  %-6s  %s  ", type, Bc, D, names_of_forms[static_cast<int>(F)],
                Held ? "held " : "loose");
    if (what.wrong == 0) {
      std::printf("exact\n");
      return;
    }
    std::printf("WRONG: %llu numbers of %d x 264 blocks, one of them %.9g for %.9g%s\n", what.wrong,
                launches, static_cast<double>(what.got), static_cast<double>(what.expected),
                Held ? "" : " (does not count)");
    wrong_witnesses += Held;
  }

  template <class T, int Bc, int D>
  void shape() {
    const Case expected(Bc, D);
    one<T, Bc, D, Form::after, true>(expected);
    one<T, Bc, D, Form::after, false>(expected);
    one<T, Bc, D, Form::sliced, true>(expected);
    one<T, Bc, D, Form::sliced, false>(expected);
    // Two sets of P need their registers beside S and O.
    if constexpr (Bc + D / 2 <= 192) one<T, Bc, D, Form::ahead, true>(expected);
  }
};

}  // namespace
}  // namespace tilewise::gpu_tests::inline TILEWISE_TARGET

int main(int count, char** arguments) {
  using namespace tilewise;
  gpu_tests::Run run;
  if (count > 1) run.launches = std::max(1, std::atoi(arguments[1]));
  run.shape<device::f16, 64, 64>();
  run.shape<device::bf16, 128, 64>();
  run.shape<device::f16, 176, 64>();
  run.shape<device::f16, 256, 64>();
  run.shape<device::f16, 64, 128>();
  run.shape<device::bf16, 128, 128>();
  run.shape<device::f16, 128, 128>();
  run.shape<device::bf16, 176, 128>();
  run.shape<device::bf16, 64, 256>();
  run.shape<device::f16, 80, 256>();
  std::printf("%d witnesses that count are wrong\n", run.wrong_witnesses);
  return run.wrong_witnesses == 0 ? 0 : 1;
}
