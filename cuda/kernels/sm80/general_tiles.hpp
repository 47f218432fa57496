// Rows of any dtype and strides into a tile of shared memory, as operands of the tensor cores; and
// rotary embedding of rows, in a tile or on their way into the cache.
#pragma once

#include "cuda/device/ptx/convert.hpp"
#include "cuda/device/ptx/cp_async.hpp"
#include "cuda/device/ptx/vector_access.hpp"
#include "cuda/device/swizzle.hpp"
#include "cuda/kernels/sm80/general_scores.hpp"

#include <cstdint>
#include <limits>
#include <type_traits>

namespace tilewise::cuda::sm80::inline TILEWISE_TARGET {
namespace general {

template <class T>
__device__ constexpr DType dtype_of() {
  return std::is_same_v<T, device::f16> ? DType::f16 : DType::bf16;
}

/// The offset of a row that is not to be looked at, where strides may be negative.
constexpr std::int64_t nowhere = std::numeric_limits<std::int64_t>::min();

/// `rows` rows, row r from element offset_of(r) on; one below `least` is not to be looked at. What
/// is not there, down and to the right, becomes zero. Numbers of T in whole chunks at multiples of
/// 16 bytes are copied by cp.async: the caller commits and waits. Others are converted on the way,
/// times factor_of(r).
template <int Threads, class T, int Rows, int Columns, class OffsetOf, class FactorOf>
__device__ __forceinline__ void load_rows(device::SwizzledTile<T, Rows, Columns>& to,
                                          const Tensor& from, int width, OffsetOf offset_of,
                                          FactorOf factor_of, std::int64_t least = 0) {
  constexpr int chunks = Columns / 8;
  const bool plain = from.dtype == dtype_of<T>();
  const bool whole =
      plain && from.column == 1 && reinterpret_cast<std::uintptr_t>(from.data) % 16 == 0;
  for (int number = static_cast<int>(threadIdx.x); number < Rows * chunks; number += Threads) {
    const int row = number / chunks, first = number % chunks * 8;
    T* const chunk = to.chunk(row, number % chunks);
    const std::int64_t offset = offset_of(row);
    const bool inside = offset >= least && first < width;
    if (inside && whole && first + 8 <= width && offset % 8 == 0) {
      device::cp_async<16>(chunk, static_cast<const T*>(from.data) + offset + first);
      continue;
    }
    std::uint32_t pairs[4] = {};
    if (inside) {
      const float factor = factor_of(row);
      TILEWISE_UNROLL
      for (int n = 0; n < 4; ++n) {
        const int column = first + 2 * n;
        const float low = column < width ? factor * read_column(from, offset, column) : 0.0f;
        const float high =
            column + 1 < width ? factor * read_column(from, offset, column + 1) : 0.0f;
        pairs[n] = device::pack<T>(low, high);
      }
    }
    device::store_vector(chunk, make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]));
  }
}

/// Pair number p of a row that stands at `position`, turned: core/attention.hpp, KvCache.
struct Turn {
  int first, second;  ///< columns
  float cosine, sine;

  __device__ Turn(const Problem& problem, int position, int p)
      : first(problem.rotary_interleaved ? 2 * p : p),
        second(problem.rotary_interleaved ? 2 * p + 1 : p + problem.rotary_pairs),
        cosine(read_number(problem.rotary_cos.data, problem.rotary_cos.dtype,
                           position * problem.rotary_cos.row + p * problem.rotary_cos.column)),
        sine(read_number(problem.rotary_sin.data, problem.rotary_sin.dtype,
                         position * problem.rotary_sin.row + p * problem.rotary_sin.column)) {}

  __device__ float2 of(float x1, float x2) const {
    return make_float2(x1 * cosine - x2 * sine, x1 * sine + x2 * cosine);
  }
};

/// Rows of queries in a tile, the first of which is row `first` of the sequence, turned in place.
/// Barriers before and after are the caller's.
template <int Threads, class T, int Rows, int Columns>
__device__ inline void rotate_queries(device::SwizzledTile<T, Rows, Columns>& tile,
                                      const Problem& problem, const Sequence& sequence, int first) {
  if (problem.rotary_pairs == 0) return;
  const int rest = sequence.seqlen_q - first, rows = rest < Rows ? rest : Rows;
  for (int number = static_cast<int>(threadIdx.x); number < rows * problem.rotary_pairs;
       number += Threads) {
    const int row = number / problem.rotary_pairs;
    const int position = checked(problem, sequence.held + (problem.ordered ? first + row : 0), 0,
                                 problem.positions - 1, DeviceError::length);
    if (position < 0) continue;  // a table without rows
    const Turn turn(problem, position, number % problem.rotary_pairs);
    T &x1 = tile.at(row, turn.first), &x2 = tile.at(row, turn.second);
    const float2 turned = turn.of(static_cast<float>(x1), static_cast<float>(x2));
    x1 = T(turned.x);
    x2 = T(turned.y);
  }
}

}  // namespace general
}  // namespace tilewise::cuda::sm80::inline TILEWISE_TARGET
