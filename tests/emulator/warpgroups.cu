// Hopper's products: wgmma's fences, waits, descriptors and registers, and what a warpgroup has to
// do together. All numbers are small integers, so that every sum is exact.
#include "cuda/device/ptx/barrier.hpp"
#include "cuda/device/ptx/elect.hpp"
#include "cuda/device/ptx/register_budget.hpp"
#include "cuda/device/ptx/stmatrix.hpp"
#include "wgmma_tiles.hpp"

namespace tilewise::tests::inline TILEWISE_TARGET {
namespace {

using device::f16;
using device::Major;
using device::MatrixDescriptor;
using device::wgmma_commit;
using device::wgmma_fence;
using device::wgmma_registers;
using device::wgmma_shared;
using device::wgmma_wait;

constexpr unsigned threads = 128;
constexpr int steps = 4;  // of 16 numbers of k

/// S = A B^T, 64 x 64 x 64.
struct Operands {
  Slabs<64, 64> a, b;
};

__device__ Operands& filled(const float* in) {
  Operands& shared = device::shared_memory<Operands>();
  fill<f16>(shared.a, in);
  fill<f16>(shared.b, in + 64 * 64);
  device::fence_proxy_async();
  __syncthreads();
  return shared;
}

/// Where a thread's accumulator n goes.
__device__ float& mine(float* out, int n) {
  const int thread = static_cast<int>(threadIdx.x) % 128, lane = thread % 32;
  const int row = thread / 32 * 16 + lane / 4 + n / 2 % 2 * 8;
  return out[row * 64 + n / 4 * 8 + lane % 4 * 2 + n % 2];
}

using Kernel = void (*)(const float*, float*);

const std::vector<float>& numbers() {
  static const std::vector<float> in = small_integers(2 * 64 * 64, 3);
  return in;
}

const std::vector<float>& scores() {
  static const std::vector<float> s =
      product_of(numbers().data(), numbers().data() + 64 * 64, 64, 64, 64, false);
  return s;
}

/// S, times a factor.
Ran run_scores(const char* name, Kernel kernel, float factor = 1, unsigned of_threads = threads,
               std::size_t shared_bytes = sizeof(Operands)) {
  const std::vector<float>& in = numbers();
  std::vector<float> expected = scores();
  for (float& value : expected) value *= factor;
  return run(name, kernel, {{1}, {of_threads}, shared_bytes}, in, expected);
}

// -------------------------------------------------------------------------- the fence of registers

template <bool buggy>
__global__ void without_fence(const float* in, float* out) {
  const Operands& shared = filled(in);
  const MatrixDescriptor a = device::describe_matrix(&shared.a, 64);
  const MatrixDescriptor b = device::describe_matrix(&shared.b, 64);
  float d[32];
  if (!buggy) wgmma_fence();
  for (int k = 0; k < steps; ++k)
    wgmma_shared<f16>(d, a.advanced(32 * k), b.advanced(32 * k), k > 0);  // bug: no_wgmma_fence
  wgmma_commit();
  wgmma_wait<0>();
  for (int n = 0; n < 32; ++n) mine(out, n) = d[n];
}

Ran run_without_fence(bool buggy) {
  return run_scores("without_fence", buggy ? without_fence<true> : without_fence<false>);
}

template <bool buggy>
__global__ void cleared(const float* in, float* out) {
  const Operands& shared = filled(in);
  const MatrixDescriptor a = device::describe_matrix(&shared.a, 64);
  const MatrixDescriptor b = device::describe_matrix(&shared.b, 64);
  float d[32];
  if (buggy) wgmma_fence();
  for (float& value : d) value = 0;  // meets: cleared_after_fence
  if (!buggy) wgmma_fence();
  for (int k = 0; k < steps; ++k)
    wgmma_shared<f16>(d, a.advanced(32 * k), b.advanced(32 * k), true);  // bug: cleared_after_fence
  wgmma_commit();
  wgmma_wait<0>();
  for (int n = 0; n < 32; ++n) mine(out, n) = d[n];
}

Ran run_cleared(bool buggy) {
  return run_scores("cleared", buggy ? cleared<true> : cleared<false>);
}

// Accumulators rescaled between two products, as O is: S + 3 S.
template <bool buggy>
__global__ void rescaled(const float* in, float* out) {
  const Operands& shared = filled(in);
  const MatrixDescriptor a = device::describe_matrix(&shared.a, 64);
  const MatrixDescriptor b = device::describe_matrix(&shared.b, 64);
  float d[32];
  for (int round = 0; round < 2; ++round) {
    if (round == 0 || !buggy) wgmma_fence();
    for (int k = 0; k < steps; ++k)
      wgmma_shared<f16>(d, a.advanced(32 * k), b.advanced(32 * k),  // bug: rescaled_unfenced
                        round + k > 0);
    wgmma_commit();
    wgmma_wait<0>();
    if (round == 0)
      for (float& value : d) value *= 3;  // meets: rescaled_unfenced
  }
  for (int n = 0; n < 32; ++n) mine(out, n) = d[n];
}

Ran run_rescaled(bool buggy) {
  return run_scores("rescaled", buggy ? rescaled<true> : rescaled<false>, 4);
}

// ------------------------------------------------------------------------------------- the waiting

template <bool buggy>
__global__ void early(const float* in, float* out) {
  const Operands& shared = filled(in);
  const MatrixDescriptor a = device::describe_matrix(&shared.a, 64);
  const MatrixDescriptor b = device::describe_matrix(&shared.b, 64);
  float d[32];
  wgmma_fence();
  for (int k = 0; k < steps; ++k)
    wgmma_shared<f16>(d, a.advanced(32 * k), b.advanced(32 * k), k > 0);  // meets: read_in_flight
  wgmma_commit();
  if (!buggy) wgmma_wait<0>();
  for (int n = 0; n < 32; ++n) mine(out, n) = d[n];  // bug: read_in_flight
  wgmma_wait<0>();
}

Ran run_early(bool buggy) {
  return run_scores("early", buggy ? early<true> : early<false>);
}

template <bool buggy>
__global__ void changed(const float* in, float* out) {
  const Operands& shared = filled(in);
  const MatrixDescriptor a = device::describe_matrix(&shared.a, 64);
  const MatrixDescriptor b = device::describe_matrix(&shared.b, 64);
  float d[32];
  wgmma_fence();
  for (int k = 0; k < steps; ++k)
    wgmma_shared<f16>(d, a.advanced(32 * k), b.advanced(32 * k), k > 0);  // meets: set_in_flight
  wgmma_commit();
  if (!buggy) wgmma_wait<0>();
  d[5] = 0;         // bug: set_in_flight
  wgmma_wait<0>();  // line: waits_after_setting
  for (int n = 0; n < 32; ++n) mine(out, n) = d[n] + (n == 5 ? in[0] : 0);
}

Ran run_changed(bool buggy) {
  const std::vector<float>& in = numbers();
  std::vector<float> expected = scores();
  for (std::size_t row = 8; row < 64; row += 16)
    for (std::size_t n = 0; n < 8; ++n)
      for (std::size_t q = 0; q < 4; ++q) expected[(row - 8 + n) * 64 + 8 + 2 * q + 1] = in[0];
  return run("changed", buggy ? changed<true> : changed<false>, {{1}, {threads}, sizeof(Operands)},
             in, expected);
}

// What has not been made a group no wait waits for.
template <bool buggy>
__global__ void uncommitted(const float* in, float* out) {
  const Operands& shared = filled(in);
  const MatrixDescriptor a = device::describe_matrix(&shared.a, 64);
  const MatrixDescriptor b = device::describe_matrix(&shared.b, 64);
  float d[32];
  wgmma_fence();
  for (int k = 0; k < steps; ++k)
    wgmma_shared<f16>(d, a.advanced(32 * k), b.advanced(32 * k), k > 0);  // meets: no_wgmma_commit
  if (!buggy) wgmma_commit();
  wgmma_wait<0>();
  for (int n = 0; n < 32; ++n) mine(out, n) = d[n];  // bug: no_wgmma_commit
  wgmma_commit();
  wgmma_wait<0>();
}

Ran run_uncommitted(bool buggy) {
  return run_scores("uncommitted", buggy ? uncommitted<true> : uncommitted<false>);
}

// Two products under way: the second one is not over when the first is.
template <bool buggy>
__global__ void two_groups(const float* in, float* out) {
  const Operands& shared = filled(in);
  const MatrixDescriptor a = device::describe_matrix(&shared.a, 64);
  const MatrixDescriptor b = device::describe_matrix(&shared.b, 64);
  float first[32], second[32];
  wgmma_fence();
  for (int k = 0; k < steps; ++k)
    wgmma_shared<f16>(first, a.advanced(32 * k), b.advanced(32 * k), k > 0);
  wgmma_commit();
  for (int k = 0; k < steps; ++k)
    wgmma_shared<f16>(second, a.advanced(32 * k), b.advanced(32 * k),  // meets: waits_for_one
                      k > 0);
  wgmma_commit();
  wgmma_wait<1>();
  for (int n = 0; n < 32; ++n) mine(out, n) = first[n];
  if (!buggy) wgmma_wait<0>();
  for (int n = 0; n < 32; ++n) mine(out, n) += second[n];  // bug: waits_for_one
  wgmma_wait<0>();
}

Ran run_two_groups(bool buggy) {
  return run_scores("two_groups", buggy ? two_groups<true> : two_groups<false>, 2);
}

// The last product's result is not needed, and nobody waits for it.
template <bool buggy>
__global__ void left_alone(const float* in, float* out) {
  const Operands& shared = filled(in);
  const MatrixDescriptor a = device::describe_matrix(&shared.a, 64);
  const MatrixDescriptor b = device::describe_matrix(&shared.b, 64);
  float d[32], ahead[32];
  wgmma_fence();
  for (int k = 0; k < steps; ++k)
    wgmma_shared<f16>(d, a.advanced(32 * k), b.advanced(32 * k), k > 0);
  wgmma_commit();
  wgmma_shared<f16>(ahead, a, b, false);  // bug: ends_in_flight
  wgmma_commit();
  wgmma_wait<1>();
  for (int n = 0; n < 32; ++n) mine(out, n) = d[n];
  if (!buggy) wgmma_wait<0>();
}

Ran run_left_alone(bool buggy) {
  return run_scores("left_alone", buggy ? left_alone<true> : left_alone<false>);
}

// A product on some of the accumulators that another one still has.
template <bool buggy>
__global__ void narrower(const float* in, float* out) {
  const Operands& shared = filled(in);
  const MatrixDescriptor a = device::describe_matrix(&shared.a, 64);
  const MatrixDescriptor b = device::describe_matrix(&shared.b, 64);
  float d[32];
  wgmma_fence();
  for (int k = 0; k < steps; ++k)
    wgmma_shared<f16>(d, a.advanced(32 * k), b.advanced(32 * k), k > 0);  // meets: another_shape
  wgmma_commit();
  if (!buggy) wgmma_wait<0>();
#if TILEWISE_EMULATED
  float(&half)[16] = reinterpret_cast<float(&)[16]>(d);
  wgmma_shared<f16>(half, a, b, true);  // bug: another_shape
#endif
  wgmma_commit();
  wgmma_wait<0>();
  for (int n = 0; n < 32; ++n) mine(out, n) = n < 16 ? in[0] : d[n];
}

Ran run_narrower(bool buggy) {
  const std::vector<float>& in = numbers();
  std::vector<float> expected = scores();
  for (std::size_t n = 0; n < 64 * 64; ++n)
    if (n % 64 < 32) expected[n] = in[0];
  return run("narrower", buggy ? narrower<true> : narrower<false>,
             {{1}, {threads}, sizeof(Operands)}, in, expected);
}

// ----------------------------------------------------------------------------------- shared memory

// A row is written once more, by who has fenced before.
template <bool buggy>
__global__ void unfenced(const float* in, float* out) {
  Operands& shared = filled(in);
  const MatrixDescriptor a = device::describe_matrix(&shared.a, 64);
  const MatrixDescriptor b = device::describe_matrix(&shared.b, 64);
  if (threadIdx.x < 32) shared.a.word[threadIdx.x] = 0;  // meets: no_proxy_fence
  if (!buggy) device::fence_proxy_async();
  __syncthreads();
  float d[32];
  wgmma_fence();
  for (int k = 0; k < steps; ++k)
    wgmma_shared<f16>(d, a.advanced(32 * k), b.advanced(32 * k), k > 0);  // bug: no_proxy_fence
  wgmma_commit();
  wgmma_wait<0>();
  for (int n = 0; n < 32; ++n) mine(out, n) = d[n];
}

Ran run_unfenced(bool buggy) {
  const std::vector<float>& in = numbers();
  std::vector<float> expected = scores();
  std::fill_n(expected.begin(), 64, 0.0f);
  return run("unfenced", buggy ? unfenced<true> : unfenced<false>,
             {{1}, {threads}, sizeof(Operands)}, in, expected);
}

// Fenced by each, and then they do not meet.
template <bool buggy>
__global__ void unordered(const float* in, float* out) {
  Operands& shared = filled(in);
  const MatrixDescriptor a = device::describe_matrix(&shared.a, 64);
  const MatrixDescriptor b = device::describe_matrix(&shared.b, 64);
  if (threadIdx.x < 32) shared.b.word[threadIdx.x] = 0;  // meets: fenced_and_not_met
  device::fence_proxy_async();
  if (!buggy) __syncthreads();
  float d[32];
  wgmma_fence();
  for (int k = 0; k < steps; ++k)
    wgmma_shared<f16>(d, a.advanced(32 * k), b.advanced(32 * k), k > 0);  // bug: fenced_and_not_met
  wgmma_commit();
  wgmma_wait<0>();
  for (int n = 0; n < 32; ++n) mine(out, n) = d[n];
}

Ran run_unordered(bool buggy) {
  const std::vector<float>& in = numbers();
  std::vector<float> expected = scores();
  for (std::size_t row = 0; row < 64; ++row) expected[row * 64] = 0;
  return run("unordered", buggy ? unordered<true> : unordered<false>,
             {{1}, {threads}, sizeof(Operands)}, in, expected);
}

// The tile's place is used for the next one before this one has been read.
template <bool buggy>
__global__ void overwritten(const float* in, float* out) {
  Operands& shared = filled(in);
  const MatrixDescriptor a = device::describe_matrix(&shared.a, 64);
  const MatrixDescriptor b = device::describe_matrix(&shared.b, 64);
  float d[32];
  wgmma_fence();
  for (int k = 0; k < steps; ++k)
    wgmma_shared<f16>(d, a.advanced(32 * k), b.advanced(32 * k), k > 0);  // meets: b_overwritten
  wgmma_commit();
  if (!buggy) wgmma_wait<0>();
  shared.b.word[threadIdx.x] = 0;  // bug: b_overwritten
  wgmma_wait<0>();
  for (int n = 0; n < 32; ++n) mine(out, n) = d[n];
}

Ran run_overwritten(bool buggy) {
  return run_scores("overwritten", buggy ? overwritten<true> : overwritten<false>);
}

// One more warp refills the tile, once the other four have said that it may.
template <bool buggy>
__global__ void released(const float* in, float* out) {
  Operands& shared = filled(in);
  constexpr int full = 128 + 32;
  if (threadIdx.x >= 128) {
    device::barrier_sync(1, full);
    shared.b.word[threadIdx.x] = 0;  // bug: b_released_early
    return;
  }
  const MatrixDescriptor a = device::describe_matrix(&shared.a, 64);
  const MatrixDescriptor b = device::describe_matrix(&shared.b, 64);
  float d[32];
  wgmma_fence();
  for (int k = 0; k < steps; ++k)
    wgmma_shared<f16>(d, a.advanced(32 * k), b.advanced(32 * k), k > 0);  // meets: b_released_early
  wgmma_commit();
  if (buggy) device::barrier_arrive(1, full);
  wgmma_wait<0>();
  if (!buggy) device::barrier_arrive(1, full);
  for (int n = 0; n < 32; ++n) mine(out, n) = d[n];
}

Ran run_released(bool buggy) {
  return run_scores("released", buggy ? released<true> : released<false>, 1, 160);
}

// The same where one warp alone says so: its wait speaks for the warpgroup.
template <bool buggy>
__global__ void released_by_one(const float* in, float* out) {
  Operands& shared = filled(in);
  constexpr int full = 32 + 32;
  if (threadIdx.x >= 128) {
    device::barrier_sync(1, full);
    shared.b.word[threadIdx.x] = 0;  // bug: one_warp_releases_early
    return;
  }
  const MatrixDescriptor a = device::describe_matrix(&shared.a, 64);
  const MatrixDescriptor b = device::describe_matrix(&shared.b, 64);
  float d[32];
  wgmma_fence();
  for (int k = 0; k < steps; ++k)
    wgmma_shared<f16>(d, a.advanced(32 * k), b.advanced(32 * k),  // meets: one_warp_releases_early
                      k > 0);
  wgmma_commit();
  const bool says_so = threadIdx.x / 32 == 2;
  if (buggy && says_so) device::barrier_arrive(1, full);
  wgmma_wait<0>();
  if (!buggy && says_so) device::barrier_arrive(1, full);
  for (int n = 0; n < 32; ++n) mine(out, n) = d[n];
}

Ran run_released_by_one(bool buggy) {
  return run_scores("released_by_one", buggy ? released_by_one<true> : released_by_one<false>, 1,
                    160);
}

// ------------------------------------------------------------------------------------- descriptors

enum class Wrong { nothing, stride, not_advanced, slab, keep, swizzle };

template <Wrong wrong>
__global__ void described(const float* in, float* out) {
  const Operands& shared = filled(in);
  MatrixDescriptor a = device::describe_matrix(&shared.a, 64);
  device::MatrixFields fields = device::decoded(device::describe_matrix(&shared.b, 64));
  if (wrong == Wrong::stride) fields.stride_bytes = 512;
  if (wrong == Wrong::swizzle) fields.swizzle = 2;
  const MatrixDescriptor b = device::encoded(fields);
  float d[32];
  for (float& value : d) value = 1;
  wgmma_fence();
  for (int k = 0; k < steps; ++k) {
    const int advance = wrong == Wrong::not_advanced ? 0 : wrong == Wrong::slab ? 1024 * k : 32 * k;
    const bool keep = k > 0 || wrong == Wrong::keep;
    wgmma_shared<f16>(d, a.advanced(32 * k), b.advanced(advance), keep);  // bug: wrong_swizzle
  }
  wgmma_commit();
  wgmma_wait<0>();
  for (int n = 0; n < 32; ++n) mine(out, n) = d[n];
}

template <Wrong wrong>
Ran run_described(bool buggy) {
  // More shared memory than is used: what is read behind the tiles is there, and not written.
  return run_scores("described", buggy ? described<wrong> : described<Wrong::nothing>);
}

// Along a row the next 16 numbers are 32 bytes further, swizzled or not: this goes to another row.
template <bool buggy>
__global__ void advanced(const float* in, float* out) {
  const Operands& shared = filled(in);
  const MatrixDescriptor a = device::describe_matrix(&shared.a, 64);
  const MatrixDescriptor b = device::describe_matrix(&shared.b, 64);
  float d[32];
  wgmma_fence();
  for (int k = 0; k < steps; ++k)
    wgmma_shared<f16>(d, a.advanced(32 * k), b.advanced(buggy ? 256 * k : 32 * k),  // bug: row_step
                      k > 0);
  wgmma_commit();
  wgmma_wait<0>();
  for (int n = 0; n < 32; ++n) mine(out, n) = d[n];
}

Ran run_advanced(bool buggy) {
  return run_scores("advanced", buggy ? advanced<true> : advanced<false>);
}

struct Shifted {
  alignas(1024) char before[512];
  std::uint32_t word[64 * 32];
};

// The tile begins in the middle of the swizzle's pattern.
template <bool buggy>
__global__ void unaligned(const float* in, float* out) {
  struct Layout {
    Operands good;
    Shifted shifted;
  };
  filled(in);
  Layout& shared = device::shared_memory<Layout>();
  for (unsigned n = threadIdx.x; n < 64 * 32; n += threads)
    shared.shifted.word[n] = shared.good.b.word[n];
  device::fence_proxy_async();
  __syncthreads();
  const MatrixDescriptor a = device::describe_matrix(&shared.good.a, 64);
  const MatrixDescriptor b = buggy ? device::describe_matrix(shared.shifted.word, 64)
                                   : device::describe_matrix(&shared.good.b, 64);
  float d[32];
  wgmma_fence();
  for (int k = 0; k < steps; ++k)
    wgmma_shared<f16>(d, a.advanced(32 * k), b.advanced(32 * k), k > 0);  // bug: operand_unaligned
  wgmma_commit();
  wgmma_wait<0>();
  for (int n = 0; n < 32; ++n) mine(out, n) = d[n];
}

Ran run_unaligned(bool buggy) {
  return run_scores("unaligned", buggy ? unaligned<true> : unaligned<false>, 1, threads,
                    sizeof(Operands) + sizeof(Shifted));
}

// A tile of 64 rows taken for 128.
template <int rows>
__global__ void outside(const float* in, float* out) {
  const Operands& shared = filled(in);
  const MatrixDescriptor a = device::describe_matrix(&shared.a, 64);
  const MatrixDescriptor b = device::describe_matrix(&shared.b, 64);
  float d[rows / 2];
  wgmma_fence();
  for (int k = 0; k < steps; ++k)
    wgmma_shared<f16>(d, a.advanced(32 * k), b.advanced(32 * k), k > 0);  // bug: rows_outside
  wgmma_commit();
  wgmma_wait<0>();
  for (int n = 0; n < 32; ++n) mine(out, n) = d[n];
}

Ran run_outside(bool buggy) {
  return run_scores("outside", buggy ? outside<128> : outside<64>);
}

// ------------------------------------------------------------------------------------- all of them

template <bool buggy>
__global__ void one_warp_absent(const float* in, float* out) {
  const Operands& shared = filled(in);
  const MatrixDescriptor a = device::describe_matrix(&shared.a, 64);
  const MatrixDescriptor b = device::describe_matrix(&shared.b, 64);
  float d[32];
  wgmma_fence();
  // All of its rows are behind the end, it says, and goes.
  if (buggy && threadIdx.x / 32 == 3) return;
  for (int k = 0; k < steps; ++k)
    wgmma_shared<f16>(d, a.advanced(32 * k), b.advanced(32 * k), k > 0);  // bug: warp_absent
  wgmma_commit();
  wgmma_wait<0>();
  for (int n = 0; n < 32; ++n) mine(out, n) = d[n];
}

Ran run_one_warp_absent(bool buggy) {
  return run_scores("one_warp_absent", buggy ? one_warp_absent<true> : one_warp_absent<false>);
}

// Each warp describes its own rows; but the instruction's 64 rows are one matrix.
template <bool buggy>
__global__ void own_rows(const float* in, float* out) {
  const Operands& shared = filled(in);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const MatrixDescriptor a =
      device::describe_matrix(&shared.a, 64).advanced(buggy ? 2048 * warp : 0);
  const MatrixDescriptor b = device::describe_matrix(&shared.b, 64);
  float d[32];
  wgmma_fence();
  for (int k = 0; k < steps; ++k)
    wgmma_shared<f16>(d, a.advanced(32 * k), b.advanced(32 * k), k > 0);  // bug: four_descriptors
  wgmma_commit();
  wgmma_wait<0>();
  for (int n = 0; n < 32; ++n) mine(out, n) = d[n];
}

Ran run_own_rows(bool buggy) {
  return run_scores("own_rows", buggy ? own_rows<true> : own_rows<false>);
}

// ----------------------------------------------------------------------------------- O = (Q K^T) V

struct Attended {
  Slabs<64, 64> q, k;
  Slabs<64, 128> v;
};

/// Numbers of S, up to 256, are exact in f16; O's in float.
template <class T>
__device__ void pack_all(std::uint32_t (&p)[steps][4], const float (&s)[32]) {
  for (int k = 0; k < steps; ++k)
    for (int n = 0; n < 4; ++n) p[k][n] = device::pack<T>(s[8 * k + 2 * n], s[8 * k + 2 * n + 1]);
}

enum class Chain { right, packed_after_fence, operand_changed, leading, major };

template <Chain wrong>
__global__ void chain(const float* in, float* out) {
  Attended& shared = device::shared_memory<Attended>();
  fill<f16>(shared.q, in);
  fill<f16>(shared.k, in + 64 * 64);
  fill<f16>(shared.v, in + 2 * 64 * 64);
  device::fence_proxy_async();
  __syncthreads();
  const MatrixDescriptor q = device::describe_matrix(&shared.q, 64);
  const MatrixDescriptor k = device::describe_matrix(&shared.k, 64);
  const MatrixDescriptor v = device::describe_matrix(&shared.v, wrong == Chain::leading ? 32 : 64);
  float s[32], o[64];
  wgmma_fence();
  for (int n = 0; n < steps; ++n)
    wgmma_shared<f16>(s, q.advanced(32 * n), k.advanced(32 * n), n > 0);
  wgmma_commit();
  wgmma_wait<0>();
  std::uint32_t p[steps][4];
  if (wrong == Chain::packed_after_fence) wgmma_fence();
  for (int n = 0; n < steps * 4; ++n)
    p[n / 4][n % 4] = device::pack<f16>(s[2 * n], s[2 * n + 1]);  // line: packing
  if (wrong != Chain::packed_after_fence) wgmma_fence();
  constexpr Major major = wrong == Chain::major ? Major::k : Major::n;
  for (int n = 0; n < steps; ++n)
    // One line, two bugs: the operand is packed too late, or changed too early.
    wgmma_registers<f16, major>(o, p[n], v.advanced(2048 * n),  // line: product_with_v
                                n > 0);
  wgmma_commit();
  wgmma_wait<0>();
  store_accumulators(o, out);
}

Ran run_attended(const char* name, Kernel kernel) {
  static const std::vector<float> in = small_integers(4 * 64 * 64, 5);
  static const std::vector<float> s = product_of(in.data(), in.data() + 64 * 64, 64, 64, 64, false);
  static const std::vector<float> o =
      product_of(s.data(), in.data() + 2 * 64 * 64, 64, 128, 64, true);
  return run(name, kernel, {{1}, {threads}, sizeof(Attended)}, in, o);
}

template <Chain wrong>
Ran run_chain(bool buggy) {
  return run_attended("chain", buggy ? chain<wrong> : chain<Chain::right>);
}

// P of the next tile is packed into registers that P V still reads.
template <bool buggy>
__global__ void repacked(const float* in, float* out) {
  Attended& shared = device::shared_memory<Attended>();
  fill<f16>(shared.q, in);
  fill<f16>(shared.k, in + 64 * 64);
  fill<f16>(shared.v, in + 2 * 64 * 64);
  device::fence_proxy_async();
  __syncthreads();
  const MatrixDescriptor q = device::describe_matrix(&shared.q, 64);
  const MatrixDescriptor k = device::describe_matrix(&shared.k, 64);
  const MatrixDescriptor v = device::describe_matrix(&shared.v, 64);
  float s[32], o[64];
  wgmma_fence();
  for (int n = 0; n < steps; ++n)
    wgmma_shared<f16>(s, q.advanced(32 * n), k.advanced(32 * n), n > 0);
  wgmma_commit();
  wgmma_wait<0>();
  std::uint32_t p[steps][4];
  pack_all<f16>(p, s);
  wgmma_fence();
  for (int n = 0; n < steps; ++n)
    wgmma_registers<f16, Major::n>(o, p[n], v.advanced(2048 * n), n > 0);  // meets: p_in_flight
  wgmma_commit();
  if (!buggy) wgmma_wait<0>();
  for (int n = 0; n < steps * 4; ++n) p[n / 4][n % 4] = 0;  // bug: p_in_flight
  wgmma_fence();
  if (buggy) wgmma_wait<0>();  // line: waits_after_packing
  // O + 0 V.
  for (int n = 0; n < steps; ++n)
    wgmma_registers<f16, Major::n>(o, p[n], v.advanced(2048 * n), true);
  wgmma_commit();
  wgmma_wait<0>();
  store_accumulators(o, out);
}

Ran run_repacked(bool buggy) {
  return run_attended("repacked", buggy ? repacked<true> : repacked<false>);
}

// ------------------------------------------------------------------------------------ who has what

// 384 threads, launched with 168 registers each: 24 and twice 240 is as much as there is.
template <int consumers>
__global__ void budget(const float* in, float* out) {
  const unsigned t = threadIdx.x;
  if (t < 128)
    device::keep_registers<24>();
  else
    device::ask_for_registers<consumers>();  // bug: too_many_registers
  out[t] = in[t];
}

Ran run_budget(bool buggy) {
  return run("budget", buggy ? budget<248> : budget<240>, {{1}, {384}}, counted(384), counted(384));
}

// The producer is one warp of a warpgroup, and the others never say so.
template <bool buggy>
__global__ void by_one_warp(const float* in, float* out) {
  const unsigned t = threadIdx.x;
  if (t < (buggy ? 32 : 128))
    device::keep_registers<40>();  // bug: one_warp_of_four
  else if (t >= 128)
    device::ask_for_registers<176>();
  out[t] = in[t];
}

Ran run_by_one_warp(bool buggy) {
  return run("by_one_warp", buggy ? by_one_warp<true> : by_one_warp<false>, {{1}, {384}},
             counted(384), counted(384));
}

template <bool buggy>
__global__ void fewer(const float* in, float* out) {
  const unsigned t = threadIdx.x;
  if (t < 128) {
    device::keep_registers<40>();
  } else {
    if (buggy)
      device::keep_registers<216>();  // bug: fewer_than_it_has
    else
      device::ask_for_registers<216>();
  }
  out[t] = in[t];
}

Ran run_fewer(bool buggy) {
  return run("fewer", buggy ? fewer<true> : fewer<false>, {{1}, {384}}, counted(384), counted(384));
}

// Two warpgroups take turns. The first one's first turn has to come from somewhere.
template <bool buggy>
__global__ void turns(const float* in, float* out) {
  __shared__ float sum[128];
  const unsigned t = threadIdx.x % 128;
  const int group = static_cast<int>(threadIdx.x / 128), mine = 1 + group, other = 2 - group;
  if (!buggy && group == 1) device::barrier_arrive(1, 256);
  for (int round = 0; round < 3; ++round) {
    device::barrier_sync(mine, 256);  // bug: nobody_begins
    if (round + group == 0)
      sum[t] = in[t];
    else
      sum[t] += in[t];
    if (group == 0 || round < 2) device::barrier_arrive(other, 256);
  }
  if (group == 1) out[t] = sum[t];
}

Ran run_turns(bool buggy) {
  std::vector<float> expected = counted(128);
  for (float& value : expected) value *= 6;
  return run("turns", buggy ? turns<true> : turns<false>, {{1}, {256}}, counted(128), expected);
}

// The chosen lane need not be the first.
template <bool buggy>
__global__ void chosen(const float* in, float* out) {
  __shared__ float value;
  if (device::elect_one()) value = in[0];  // meets: first_lane_chosen
  if (!buggy) __syncwarp();
  if (threadIdx.x == 0) out[0] = value;  // bug: first_lane_chosen
}

Ran run_chosen(bool buggy) {
  return run("chosen", buggy ? chosen<true> : chosen<false>, {{1}, {32}}, counted(1), counted(1));
}

// ---------------------------------------------------------------------------------------- stmatrix

enum class Stored { right, lanes, unsynced };

/// A warp's 16 x 16 numbers, in the order of mma's operand a, to rows of 16 numbers.
template <Stored wrong>
__global__ void stored(const float* in, float* out) {
  alignas(16) __shared__ std::uint32_t tile[16][8];
  const unsigned lane = threadIdx.x;
  std::uint32_t registers[4];
  for (unsigned n = 0; n < 4; ++n) {
    const unsigned row = lane / 4 + n % 2 * 8, column = lane % 4 * 2 + n / 2 * 8;
    registers[n] = device::pack<f16>(in[row * 16 + column], in[row * 16 + column + 1]);
  }
  const unsigned row = lane % 16, chunk = lane / 16;
  std::uint32_t* const mine =
      wrong == Stored::lanes ? &tile[lane / 2][lane % 2 * 4] : &tile[row][chunk * 4];
  device::stmatrix(mine, registers);  // meets: stmatrix_unsynced
  if (wrong != Stored::unsynced) __syncwarp();
  for (unsigned n = 0; n < 4; ++n) {
    const std::uint32_t two = tile[lane / 2][lane % 2 * 4 + n];  // bug: stmatrix_unsynced
    out[lane * 8 + 2 * n] = device::unpack<f16>(two).x;
    out[lane * 8 + 2 * n + 1] = device::unpack<f16>(two).y;
  }
}

template <Stored wrong>
Ran run_stored(bool buggy) {
  return run("stored", buggy ? stored<wrong> : stored<Stored::right>, {{1}, {32}}, counted(256),
             counted(256));
}

}  // namespace
}  // namespace tilewise::tests::inline TILEWISE_TARGET

namespace tilewise::tests {

std::vector<Planted> warpgroup_bugs() {
  using emulator::Kind;
  const char* const file = "warpgroups.cu";
#if defined(__clang__)
  // clang 14 leaves out the hooks of most accesses to a thread's own arrays: a read in flight is
  // told by the values alone, and a write by the wait.
  constexpr bool seen = false;
#else
  constexpr bool seen = true;
#endif
  std::vector<Planted> all = {
      {"no_wgmma_fence", file, Kind::not_fenced, run_without_fence},
      {"cleared_after_fence", file, Kind::not_fenced, run_cleared},
      {"rescaled_unfenced", file, Kind::not_fenced, run_rescaled},
      {"read_in_flight", file, Kind::not_waited_for, run_early, !seen},
      {"set_in_flight", file, Kind::not_waited_for, run_changed, false,
       seen ? nullptr : "waits_after_setting"},
      {"no_wgmma_commit", file, Kind::not_waited_for, run_uncommitted, !seen},
      {"waits_for_one", file, Kind::not_waited_for, run_two_groups, !seen},
      {"ends_in_flight", file, Kind::not_waited_for, run_left_alone},
      {"another_shape", file, Kind::not_waited_for, run_narrower},
      {"no_proxy_fence", file, Kind::not_fenced, run_unfenced},
      {"fenced_and_not_met", file, Kind::race, run_unordered},
      {"b_overwritten", file, Kind::race, run_overwritten},
      {"b_released_early", file, Kind::race, run_released},
      {"one_warp_releases_early", file, Kind::race, run_released_by_one},
      {"wrong_stride", file, {}, run_described<Wrong::stride>, true},
      {"wrong_swizzle", file, Kind::misaligned, run_described<Wrong::swizzle>},
      {"not_advanced", file, {}, run_described<Wrong::not_advanced>, true},
      {"keeps_what_was_there", file, {}, run_described<Wrong::keep>, true},
      {"row_step", file, Kind::misaligned, run_advanced},
      {"operand_unaligned", file, Kind::misaligned, run_unaligned},
      {"rows_outside", file, Kind::out_of_bounds, run_outside},
      {"warp_absent", file, Kind::deadlock, run_one_warp_absent},
      {"four_descriptors", file, Kind::divergent_warp, run_own_rows},
      {"wrong_leading_distance", file, {}, run_chain<Chain::leading>, true},
      {"wrong_major", file, Kind::out_of_bounds, run_chain<Chain::major>, false, "product_with_v"},
      {"p_in_flight", file, Kind::not_waited_for, run_repacked, false,
       seen ? nullptr : "waits_after_packing"},
      {"too_many_registers", file, Kind::deadlock, run_budget},
      {"one_warp_of_four", file, Kind::bad_instruction, run_by_one_warp},
      {"fewer_than_it_has", file, Kind::bad_instruction, run_fewer},
      {"nobody_begins", file, Kind::deadlock, run_turns},
      {"first_lane_chosen", file, Kind::race, run_chosen},
      {"stmatrix_lanes", file, {}, run_stored<Stored::lanes>, true},
      {"stmatrix_unsynced", file, Kind::race, run_stored<Stored::unsynced>},
  };
  if (seen)
    all.push_back({"packed_after_fence", file, Kind::not_fenced,
                   run_chain<Chain::packed_after_fence>, false, "product_with_v", "packing"});
  return all;
}

}  // namespace tilewise::tests
