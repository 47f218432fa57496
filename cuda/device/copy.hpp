// A block's threads copy a tile from global to shared memory: 16 bytes a copy, neighbouring threads
// neighbouring chunks of a row, so that a warp's request is of whole sectors of 32 bytes.
#pragma once

#include "cuda/device/platform.hpp"
#include "cuda/device/ptx/cp_async.hpp"
#include "cuda/device/ptx/vector_access.hpp"
#include "cuda/device/swizzle.hpp"

#include <cstdint>

namespace tilewise::device::inline TILEWISE_TARGET {

namespace detail {

/// Gives `copy` each chunk that is the thread's: where to, where from, and whether it is there.
/// (Where it is not, `from` is not to be read.)
template <int Threads, class Tile, class T, class Copy>
__device__ __forceinline__ void for_chunks(Tile& to, const T* from, std::int64_t row_stride,
                                           int rows, int columns, Copy copy) {
  constexpr int all = Tile::rows * Tile::chunks, pass = Threads / Tile::chunks;  // rows at once
  if constexpr (Threads % Tile::chunks == 0 && all % Threads == 0) {
    // The same chunk of every so many rows: addresses are one, and what is added to it.
    const int row = static_cast<int>(threadIdx.x) / Tile::chunks;
    const int chunk = static_cast<int>(threadIdx.x) % Tile::chunks;
    const T* const mine = from + row * row_stride + chunk * Tile::chunk_size;
    T* const place = to.chunk(row, chunk);
    const int there = chunk * Tile::chunk_size < columns ? rows - row : 0;
    TILEWISE_UNROLL
    for (int first = 0; first < Tile::rows; first += pass) {
      // A swizzle comes round every eight rows: then one place serves them all.
      T* const to_chunk =
          pass % 8 == 0 ? place + first * Tile::columns : to.chunk(row + first, chunk);
      copy(to_chunk, mine + first * row_stride, first < there);
    }
  } else {
    for (int number = static_cast<int>(threadIdx.x); number < all; number += Threads) {
      const int row = number / Tile::chunks, chunk = number % Tile::chunks;
      copy(to.chunk(row, chunk), from + row * row_stride + chunk * Tile::chunk_size,
           row < rows && chunk * Tile::chunk_size < columns);
    }
  }
}

}  // namespace detail

/// From row 0 and column 0 at `from`, rows `row_stride` elements apart, all at multiples of 16
/// bytes. `rows` and `columns` are what is there; the rest of the tile becomes zero. `columns` is
/// whole chunks. `Tile` is a SwizzledTile or a PlainTile. On return the copies run on: the caller
/// commits them to a group of its own, and waits.
template <int Threads, class Tile, class T>
__device__ __forceinline__ void copy_tile_async(Tile& to, const T* from, std::int64_t row_stride,
                                                int rows, int columns,
                                                Site site = Site::current()) {
  detail::for_chunks<Threads>(
      to, from, row_stride, rows, columns,
      [&](T* chunk, const T* source, bool inside) { cp_async<16>(chunk, source, inside, site); });
}

/// The same, done on return: each thread waits for what it loads.
template <int Threads, class Tile, class T>
__device__ __forceinline__ void copy_tile(Tile& to, const T* from, std::int64_t row_stride,
                                          int rows, int columns, Site site = Site::current()) {
  detail::for_chunks<Threads>(
      to, from, row_stride, rows, columns, [&](T* chunk, const T* source, bool inside) {
        store_vector(chunk, load_vector_if<uint4>(inside, source, site), site);
      });
}

/// -X, of the chunks that this thread copied, once they have arrived: a softmax scale below zero is
/// the positive one of -Q. 16-bit numbers.
template <int Threads, class Tile>
__device__ __forceinline__ void negate_copied(Tile& tile) {
  detail::for_chunks<Threads>(tile, tile.element, 0, 0, 0, [](auto* chunk, const auto*, bool) {
    uint4 all = load_vector<uint4>(chunk);
    for (std::uint32_t* both : {&all.x, &all.y, &all.z, &all.w}) *both ^= 0x80008000u;
    store_vector(chunk, all);
  });
}

}  // namespace tilewise::device::inline TILEWISE_TARGET
