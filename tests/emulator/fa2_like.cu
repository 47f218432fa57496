// A kernel of the kind of FlashAttention-2: tensor cores, asynchronous copies into two buffers,
// fragments in registers. What the emulator must run fast enough to be used.
//
// A block: 64 queries of a head, 4 warps of 16 rows each; tiles of 64 keys, head dimension 64.
#include "cuda/device/ptx/convert.hpp"
#include "cuda/device/ptx/cp_async.hpp"
#include "cuda/device/ptx/ldmatrix.hpp"
#include "cuda/device/ptx/mma.hpp"
#include "cuda/device/ptx/vector_access.hpp"
#include "cuda/device/shared.hpp"
#include "measured.hpp"
#include "on_device.hpp"

#include <cmath>

namespace tilewise::tests::inline TILEWISE_TARGET {
namespace {

using device::f16;

constexpr unsigned Br = 64, Bc = 64, d = 64, threads = 128;
constexpr unsigned chunks = d / 8;  // of 16 bytes, in a row

struct Tiles {
  alignas(128) std::uint16_t q[Br * d];
  alignas(128) std::uint16_t k[2][Bc * d];
  alignas(128) std::uint16_t v[2][Bc * d];
};

/// Rows are 128 bytes, all 32 banks: the chunk is moved by the row, so that the 8 rows of a matrix
/// lie in different banks.
__device__ inline unsigned place(unsigned row, unsigned chunk) {
  return row * d + (chunk ^ row % 8) * 8;
}

__device__ inline void load_tile(std::uint16_t* tile, const std::uint16_t* rows, unsigned pitch) {
  for (unsigned n = threadIdx.x; n < Bc * chunks; n += threads)
    device::cp_async<16>(&tile[place(n / chunks, n % chunks)],
                         rows + n / chunks * pitch + n % chunks * 8);
}

/// 16 columns: two times 8.
__device__ inline void multiply(float (&left)[4], float (&right)[4], const std::uint32_t (&a)[4],
                                const std::uint32_t (&b)[4]) {
  const std::uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
  device::mma_m16n8k16<f16>(left, a, first);
  device::mma_m16n8k16<f16>(right, a, second);
}

__global__ void attend(const std::uint16_t* Q, const std::uint16_t* K, const std::uint16_t* V,
                       float* O, float* LSE, int seqlen, float scale) {
  Tiles& shared = device::shared_memory<Tiles>();
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const unsigned g = lane / 4, t = lane % 4;
  const unsigned heads = gridDim.y, head = blockIdx.y, batch = blockIdx.z;
  const unsigned pitch = heads * d, N = static_cast<unsigned>(seqlen);
  const unsigned first = (batch * N * heads + head) * d;  // of the head's row 0

  load_tile(shared.q, Q + first + blockIdx.x * Br * pitch, pitch);
  load_tile(shared.k[0], K + first, pitch);
  load_tile(shared.v[0], V + first, pitch);
  device::cp_async_commit();

  float o[d / 8][4] = {};
  float m[2] = {-INFINITY, -INFINITY}, l[2] = {};
  for (unsigned j = 0; j < N / Bc; ++j) {
    if (j + 1 < N / Bc) {
      load_tile(shared.k[(j + 1) % 2], K + first + (j + 1) * Bc * pitch, pitch);
      load_tile(shared.v[(j + 1) % 2], V + first + (j + 1) * Bc * pitch, pitch);
      device::cp_async_commit();
      device::cp_async_wait<1>();
    } else {
      device::cp_async_wait<0>();
    }
    __syncthreads();
    const std::uint16_t* const k = shared.k[j % 2];
    const std::uint16_t* const v = shared.v[j % 2];

    // S = Q K^T, 16 x 64.
    float s[Bc / 8][4] = {};
    for (unsigned kk = 0; kk < d / 16; ++kk) {
      std::uint32_t a[4];
      device::ldmatrix(a, &shared.q[place(warp * 16 + lane % 16, kk * 2 + lane / 16)]);
      for (unsigned n = 0; n < Bc / 8; n += 2) {
        std::uint32_t b[4];  // of keys 8 n.., and of the next 8
        device::ldmatrix(b, &k[place(n * 8 + lane / 16 * 8 + lane % 8, kk * 2 + lane / 8 % 2)]);
        multiply(s[n], s[n + 1], a, b);
      }
    }

    // Rows g and g + 8: four lanes have one together.
    for (unsigned half = 0; half < 2; ++half) {
      float m_new = m[half];
      for (unsigned n = 0; n < Bc / 8; ++n)
        m_new = fmaxf(m_new, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
      m_new = fmaxf(m_new, __shfl_xor_sync(~0u, m_new, 1));
      m_new = fmaxf(m_new, __shfl_xor_sync(~0u, m_new, 2));
      const float alpha = __expf(scale * (m[half] - m_new));
      m[half] = m_new;
      float sum = 0;
      for (unsigned n = 0; n < Bc / 8; ++n)
        for (unsigned c = 2 * half; c < 2 * half + 2; ++c) {
          s[n][c] = __expf(scale * (s[n][c] - m_new));
          sum += s[n][c];
        }
      l[half] = alpha * l[half] + sum;  // of this lane's columns: gathered at the end
      for (unsigned n = 0; n < d / 8; ++n)
        for (unsigned c = 2 * half; c < 2 * half + 2; ++c) o[n][c] *= alpha;
    }

    // O += P V: what a lane has of S is what it must have of the left operand.
    for (unsigned kk = 0; kk < Bc / 16; ++kk) {
      std::uint32_t a[4];
      for (unsigned n = 0; n < 4; ++n)
        a[n] = device::pack<f16>(s[2 * kk + n / 2][n % 2 * 2], s[2 * kk + n / 2][n % 2 * 2 + 1]);
      for (unsigned n = 0; n < d / 8; n += 2) {
        std::uint32_t b[4];  // of columns 8 n.., and of the next 8
        device::ldmatrix_transposed(b, &v[place(kk * 16 + lane % 16, n + lane / 16)]);
        multiply(o[n], o[n + 1], a, b);
      }
    }
    __syncthreads();
  }

  for (unsigned half = 0; half < 2; ++half) {
    float sum = l[half] + __shfl_xor_sync(~0u, l[half], 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    const unsigned row = blockIdx.x * Br + warp * 16 + g + half * 8;
    for (unsigned n = 0; n < d / 8; ++n)
      device::store_vector(O + first + row * pitch + n * 8 + 2 * t,
                           make_float2(o[n][2 * half] / sum, o[n][2 * half + 1] / sum));
    if (t == 0) LSE[(batch * heads + head) * N + row] = scale * m[half] + __logf(sum);
  }
}

}  // namespace
}  // namespace tilewise::tests::inline TILEWISE_TARGET

namespace tilewise::tests {

Status fa2_like(Attention& attention) {
  Memory<std::uint16_t> q, k, v;
  Memory<float> o, lse;
  Status status = uploaded(q, attention.q, "Q");
  if (status.ok()) status = uploaded(k, attention.k, "K");
  if (status.ok()) status = uploaded(v, attention.v, "V");
  if (status.ok()) status = o.allocate(attention.q.size(), "O");
  if (status.ok()) status = lse.allocate(attention.q.size() / d, "LSE");
  if (!status.ok()) return status;
  const Grid grid{{static_cast<unsigned>(attention.seqlen) / Br,
                   static_cast<unsigned>(attention.heads), static_cast<unsigned>(attention.batch)},
                  {threads},
                  sizeof(Tiles)};
  status = device::launch("attend", attend, grid, q.data(), k.data(), v.data(), o.data(),
                          lse.data(), attention.seqlen, 1 / std::sqrt(static_cast<float>(d)));
  if (status.ok()) {
    attention.o = downloaded(o);
    attention.lse = downloaded(lse);
  }
  return status;
}

}  // namespace tilewise::tests
