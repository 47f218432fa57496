// Loops that an optimiser would make something else of: memset, memcpy, wide accesses, a read left
// out where a write follows. What it does must not change what is reported and counted.
#include "cuda/device/shared.hpp"
#include "measured.hpp"
#include "on_device.hpp"

namespace tilewise::tests::inline TILEWISE_TARGET {
namespace {

constexpr int threads = 32, columns = 64;

struct Row {
  float values[columns];
};

/// A thread a row, which lies 4 bytes off a multiple of 16 in every other.
template <bool dynamic>
__global__ void rows(const float* __restrict__ in, float* __restrict__ out, int count) {
  struct Tile {
    float values[threads][columns + 1];
  };
  __shared__ Tile fixed;
  Tile& tile = dynamic ? device::shared_memory<Tile>() : fixed;
  const int t = static_cast<int>(threadIdx.x);
  for (int c = 0; c < columns; ++c) tile.values[t][c] = 0;
  for (int c = 0; c < 4; ++c) tile.values[t][c] = 0;
  for (int c = 0; c < count; ++c) tile.values[t][c] = in[t * columns + c];
  __syncthreads();
  const int other = threads - 1 - t;
  float sum = 0;
  for (int c = 0; c < columns; ++c) sum += tile.values[other][c];
  for (int c = 0; c < columns; ++c) out[t * columns + c] = tile.values[other][c];
  for (int c = 0; c < columns; ++c) out[t * columns + c] += sum;
}

template <bool dynamic>
Ran run_rows() {
  const std::vector<float> in = counted(threads * columns);
  std::vector<float> expected(in.size());
  for (int t = 0; t < threads; ++t) {
    const float* const row = &in[static_cast<std::size_t>((threads - 1 - t) * columns)];
    float sum = 0;
    for (int c = 0; c < columns; ++c) sum += row[c];
    for (int c = 0; c < columns; ++c)
      expected[static_cast<std::size_t>(t * columns + c)] = row[c] + sum;
  }
  return run("rows", rows<dynamic>, {{1}, {threads}, sizeof(float) * threads * (columns + 1)}, in,
             expected, columns);
}

/// A struct is copied whole.
__global__ void structs(const float* in, float* out) {
  __shared__ Row row[2];
  const unsigned t = threadIdx.x;
  row[0].values[t] = in[t];
  row[0].values[t + threads] = in[t + threads];
  __syncthreads();
  if (t == 7) row[1] = row[0];
  __syncthreads();
  out[t] = row[1].values[columns - 1 - t];
}

}  // namespace
}  // namespace tilewise::tests::inline TILEWISE_TARGET

namespace tilewise::tests {

Ran loops(bool dynamic) {
  return dynamic ? run_rows<true>() : run_rows<false>();
}

Ran struct_copy() {
  std::vector<float> expected(threads);
  for (int t = 0; t < threads; ++t)
    expected[static_cast<std::size_t>(t)] = static_cast<float>(columns - t);
  return run("structs", structs, {{1}, {threads}}, counted(columns), expected);
}

}  // namespace tilewise::tests
