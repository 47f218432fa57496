// The kernels behind general_append.hpp, and their launch: for one file alone.
#pragma once

#include "cuda/device/launch.hpp"
#include "cuda/kernels/sm80/general_append.hpp"
#include "cuda/kernels/sm80/general_tiles.hpp"

#include <cstdint>

namespace tilewise::cuda::sm80::inline TILEWISE_TARGET {
namespace general {

__global__ void clear_error_kernel(std::uint32_t* error) {
  *error = static_cast<std::uint32_t>(DeviceError::none);
}

/// A warp for each new row of each head: row n of k_new and v_new becomes row held + n of the
/// cache, padding included, which is also the position that a key is turned to. No two sequences
/// share the page or the row of the cache that they grow into.
__global__ void __launch_bounds__(128) append_kernel(const TILEWISE_GRID_CONSTANT Problem problem) {
  const std::int64_t number = static_cast<std::int64_t>(blockIdx.x) * 4 + device::warp_index();
  const auto head = static_cast<int>(number % problem.nheads_k);
  const auto n = static_cast<int>(number / problem.nheads_k % problem.new_rows);
  const std::int64_t b = number / problem.nheads_k / problem.new_rows;
  if (b >= problem.batch) return;
  const Sequence sequence = sequence_of(problem, static_cast<int>(b));
  const int row = sequence.held + n;
  if (row >= problem.capacity) return;  // sequence_of() has told

  const std::int64_t key = stored_offset(problem, problem.k, sequence, row, head);
  const std::int64_t value = stored_offset(problem, problem.v, sequence, row, head);
  const auto offset_in = [&](const Tensor& tensor) {
    return b * tensor.block + n * tensor.row + head * tensor.head;
  };
  const std::int64_t new_key = offset_in(problem.k_new), new_value = offset_in(problem.v_new);
  const int position = problem.rotary_pairs == 0
                           ? -1
                           : checked(problem, row, 0, problem.positions - 1, DeviceError::length);
  const int turned = position < 0 ? 0 : problem.rotary_pairs;  // pairs
  const int lane = device::lane_index();
  for (int p = lane; p < turned; p += 32) {
    const Turn turn(problem, position, p);
    const float2 both = turn.of(read_column(problem.k_new, new_key, turn.first),
                                read_column(problem.k_new, new_key, turn.second));
    write_number(problem.k.data, problem.k.dtype, key + turn.first * problem.k.column, both.x);
    write_number(problem.k.data, problem.k.dtype, key + turn.second * problem.k.column, both.y);
  }
  for (int column = 2 * turned + lane; column < problem.head_dim; column += 32)
    write_number(problem.k.data, problem.k.dtype, key + column * problem.k.column,
                 read_column(problem.k_new, new_key, column));
  for (int column = lane; column < problem.head_dim_v; column += 32)
    write_number(problem.v.data, problem.v.dtype, value + column * problem.v.column,
                 read_column(problem.v_new, new_value, column));
}

Status launch_before(const Problem& problem, device::StreamHandle stream) {
  if (problem.error != nullptr) {
    const device::Grid one = {{1}, {1}, 0, stream};
    const Status status =
        device::launch("cuda.sm80 general clear", clear_error_kernel, one, problem.error);
    if (!status.ok()) return status;
  }
  const std::int64_t rows = std::int64_t{1} * problem.batch * problem.new_rows * problem.nheads_k;
  if (rows == 0) return {};
  const device::Grid grid = {{static_cast<unsigned>((rows + 3) / 4)}, {128}, 0, stream};
  return device::launch("cuda.sm80 general append", append_kernel, grid, problem);
}

}  // namespace general
}  // namespace tilewise::cuda::sm80::inline TILEWISE_TARGET
