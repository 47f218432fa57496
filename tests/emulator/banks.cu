// Shared memory has 32 banks of 4 bytes: what lanes want of one bank at once, they get in turn.
// Three layouts of a tile that is written by rows and read by columns.
#include "cuda/device/ptx/convert.hpp"
#include "cuda/device/ptx/ldmatrix.hpp"
#include "cuda/device/shared.hpp"
#include "measured.hpp"
#include "on_device.hpp"

namespace tilewise::tests::inline TILEWISE_TARGET {
namespace {

using device::f16;

constexpr unsigned side = 32;

template <Columns how>
__device__ unsigned place(unsigned row, unsigned column) {
  switch (how) {
    case Columns::plain: return row * side + column;
    case Columns::padded: return row * (side + 1) + column;
    case Columns::swizzled: return row * side + (column ^ row);
  }
  return 0;
}

template <Columns how>
__global__ void column_sums(const float* in, float* out) {
  __shared__ float tile[side * (side + 1)];
  const unsigned lane = threadIdx.x;
  for (unsigned row = 0; row < side; ++row) tile[place<how>(row, lane)] = in[row * side + lane];
  __syncwarp();
  float sum = 0;
  for (unsigned n = 0; n < side; ++n) sum += tile[place<how>(lane, n)];  // line: column_read
  out[lane] = sum;
}

struct Rows {
  alignas(128) std::uint32_t words[side * 32];
};

template <bool with_swizzle>
__global__ void sixteen_bytes_of_rows(const float* in, float* out) {
  Rows& rows = device::shared_memory<Rows>();
  const unsigned lane = threadIdx.x;
  for (unsigned row = 0; row < side; ++row)
    rows.words[row * 32 + lane] = device::pack<f16>(in[row], in[row]);
  __syncwarp();
  // Chunk 5 of each row; swizzled, 5 exclusive-or the row: the values here are all alike.
  const unsigned chunk = with_swizzle ? 5 ^ (lane % 8) : 5;
  std::uint32_t registers[4];
  device::ldmatrix(registers, &rows.words[lane * 32 + chunk * 4]);  // line: matrix_rows
  for (unsigned n = 0; n < 4; ++n) {
    const float value = in[8 * n + lane / 4];
    out[n * 32 + lane] = registers[n] == device::pack<f16>(value, value) ? 1 : 0;
  }
}

}  // namespace
}  // namespace tilewise::tests::inline TILEWISE_TARGET

namespace tilewise::tests {

Ran read_columns(Columns how) {
  std::vector<float> expected(side);
  for (unsigned n = 0; n < side * side; ++n) expected[n / side] += static_cast<float>(n + 1);
  const auto kernel = how == Columns::plain    ? column_sums<Columns::plain>
                      : how == Columns::padded ? column_sums<Columns::padded>
                                               : column_sums<Columns::swizzled>;
  return run("column_sums", kernel, {{1}, {side}}, counted(side * side), expected);
}

Ran load_rows(bool swizzled) {
  return run("sixteen_bytes_of_rows",
             swizzled ? sixteen_bytes_of_rows<true> : sixteen_bytes_of_rows<false>,
             {{1}, {32}, sizeof(Rows)}, counted(side), std::vector<float>(128, 1));
}

}  // namespace tilewise::tests
