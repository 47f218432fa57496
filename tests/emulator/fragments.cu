// Tensor cores: which lane has which element (warp_instructions.hpp draws it). A wrong index is no
// crime in the emulator's eyes: the values tell.
//
// All kernels: d = a b of 16 x 16 times 16 x 8 small integers, so that every sum is exact.
#include "cuda/device/ptx/convert.hpp"
#include "cuda/device/ptx/ldmatrix.hpp"
#include "cuda/device/ptx/mma.hpp"
#include "cuda/device/shared.hpp"
#include "on_device.hpp"

namespace tilewise::tests::inline TILEWISE_TARGET {
namespace {

using device::f16;

enum class Wrong { nothing, a_registers, d_columns, swizzle, transposed, row_pitch, half_a_warp };

/// Rows of 16 bytes-chunks whose place in the row depends on the row, so that a column of chunks
/// lies in different banks.
__device__ inline unsigned swizzled(unsigned row, unsigned chunk) {
  return chunk ^ (row / 4 % 2);
}

struct Tiles {
  alignas(16) std::uint32_t a[16 * 9];  // two halves an element; rows of 16 halves, or two more
  alignas(16) std::uint32_t b[16 * 4];  // b as it lies in memory: 16 rows of 8 halves
};

template <Wrong wrong>
__global__ void multiply(const float* in, float* out) {
  Tiles& shared = device::shared_memory<Tiles>();
  const unsigned lane = threadIdx.x;
  const float* const a = in;
  const float* const b = in + 16 * 16;
  const unsigned pitch = wrong == Wrong::row_pitch ? 9 : 8;  // 36 bytes, or 32
  for (unsigned n = lane; n < 16 * 8; n += 32) {
    const unsigned row = n / 8, pair = n % 8;
    const unsigned chunk = swizzled(row, pair / 4);
    shared.a[row * pitch + chunk * 4 + pair % 4] =
        device::pack<f16>(a[row * 16 + 2 * pair], a[row * 16 + 2 * pair + 1]);
  }
  for (unsigned n = lane; n < 16 * 4; n += 32)
    shared.b[n] = device::pack<f16>(b[2 * n], b[2 * n + 1]);
  __syncwarp();

  const unsigned row = lane % 16;
  const unsigned chunk = wrong == Wrong::swizzle ? lane / 16 : swizzled(row, lane / 16);
  std::uint32_t of_a[4];
  if (wrong == Wrong::half_a_warp && lane >= 16) return;
  const std::uint32_t* const mine = &shared.a[row * pitch + chunk * 4];
  device::ldmatrix(of_a, mine);  // bug: misaligned_row bug: lanes_gone
  std::uint32_t of_b[2];
  if (wrong == Wrong::transposed)
    device::ldmatrix(of_b, &shared.b[row * 4]);
  else
    device::ldmatrix_transposed(of_b, &shared.b[row * 4]);

  if (wrong == Wrong::a_registers) {
    const std::uint32_t second = of_a[1];
    of_a[1] = of_a[2];
    of_a[2] = second;
  }
  float d[4] = {};
  device::mma_m16n8k16<f16>(d, of_a, of_b);

  const unsigned g = lane / 4, t = lane % 4;
  for (unsigned n = 0; n < 4; ++n) {
    const unsigned r = g + n / 2 * 8;
    const unsigned column = wrong == Wrong::d_columns ? t + 4 * (n % 2) : 2 * t + n % 2;
    out[r * 8 + column] = d[n];
  }
}

std::vector<float> small_integers() {
  std::vector<float> values(16 * 16 + 16 * 8);
  unsigned state = 1;
  for (float& value : values) {
    state = state * 1664525 + 1013904223;
    value = static_cast<float>(static_cast<int>(state >> 24) % 9 - 4);
  }
  return values;
}

std::vector<float> product(const std::vector<float>& in) {
  std::vector<float> d(16 * 8);
  for (unsigned i = 0; i < 16; ++i)
    for (unsigned j = 0; j < 8; ++j)
      for (unsigned k = 0; k < 16; ++k) d[i * 8 + j] += in[i * 16 + k] * in[256 + k * 8 + j];
  return d;
}

template <Wrong wrong>
Ran run_multiply(bool buggy) {
  const std::vector<float> in = small_integers();
  return run("multiply", buggy ? multiply<wrong> : multiply<Wrong::nothing>,
             {{1}, {32}, sizeof(Tiles)}, in, product(in));
}

// ------------------------------------------------------------------------------------------------

// A row of d lies in the four lanes that have the same g: 1 and 2 apart, not 4 and 8.
template <bool buggy>
__global__ void row_sums(const float* in, float* out) {
  const unsigned lane = threadIdx.x, g = lane / 4, t = lane % 4;
  float sum = in[g * 8 + 2 * t] + in[g * 8 + 2 * t + 1];
  for (int with = buggy ? 4 : 1; with < (buggy ? 16 : 4); with *= 2)
    sum += __shfl_xor_sync(~0u, sum, with);
  if (t == 0) out[g] = sum;
}

Ran run_row_sums(bool buggy) {
  std::vector<float> expected(8);
  for (unsigned n = 0; n < 64; ++n) expected[n / 8] += static_cast<float>(n + 1);
  return run("row_sums", buggy ? row_sums<true> : row_sums<false>, {{1}, {32}}, counted(64),
             expected);
}

}  // namespace
}  // namespace tilewise::tests::inline TILEWISE_TARGET

namespace tilewise::tests {

std::vector<Planted> fragment_bugs() {
  using emulator::Kind;
  const char* const file = "fragments.cu";
  return {
      {"fragment_registers", file, {}, run_multiply<Wrong::a_registers>, true},
      {"fragment_columns", file, {}, run_multiply<Wrong::d_columns>, true},
      {"swizzle_on_one_side", file, {}, run_multiply<Wrong::swizzle>, true},
      {"not_transposed", file, {}, run_multiply<Wrong::transposed>, true},
      {"row_in_wrong_lanes", file, {}, run_row_sums, true},
      {"misaligned_row", file, Kind::misaligned, run_multiply<Wrong::row_pitch>},
      {"lanes_gone", file, Kind::deadlock, run_multiply<Wrong::half_a_warp>},
  };
}

}  // namespace tilewise::tests
