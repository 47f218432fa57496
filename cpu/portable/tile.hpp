// Tiles and the one matrix product that everything here is made of.
//
// A tile is a small matrix in the worker's part of the workspace, in the type computed in. Its rows
// are padded with zeros to whole panels, so that no loop below has a remainder of columns:
//
//                   panel_width columns of B              R rows of A times one panel of B:
//                     |  |######|  |  |                   R x panel_width sums, which the compiler
//   A                 B  |######|  |  |                   keeps in vector registers since both
//   r ->  [ . . . ]      |######|  |  |   t = 0 .. n - 1  numbers are constants
//         [ . . . ]
//
// The sums start at zero and are added to C once, at the end. So a long sum, over all keys for O or
// all queries for dK, has two levels, each tile's own and that of the tiles: its rounding error
// grows with Bc + N / Bc rather than with N.
#pragma once

#include "cpu/portable/visibility.hpp"

#include <cstdint>
#include <cstring>

namespace tilewise::cpu::portable {

template <class Real>
inline constexpr int panel_width = static_cast<int>(32 / sizeof(Real));

template <class Real>
constexpr std::int64_t padded(std::int64_t columns) {
  return (columns + panel_width<Real> - 1) / panel_width<Real> * panel_width<Real>;
}

/// Row-major memory; `stride` is a row's length, padded.
template <class Real>
struct Tile {
  Real* data = nullptr;
  std::int64_t stride = 0;

  Real* row(std::int64_t r) const { return data + r * stride; }
  void clear(std::int64_t rows) const {
    std::memset(data, 0, static_cast<std::size_t>(rows * stride) * sizeof(Real));
  }
};

/// Where element (r, t) of the left matrix lies: at r * row + t * step. A tile, or one transposed.
struct Strides {
  std::int64_t row = 0, step = 0;
};

template <class Real, int R>
inline void add_panel(std::int64_t n, const Real* a, Strides at, const Real* b,
                      std::int64_t b_stride, Real* c, std::int64_t c_stride) {
  constexpr int X = panel_width<Real>;
  Real sum[R][X] = {};
  for (std::int64_t t = 0; t < n; ++t, a += at.step, b += b_stride)
    for (int r = 0; r < R; ++r) {
      const Real art = a[r * at.row];
      for (int x = 0; x < X; ++x) sum[r][x] += art * b[x];
    }
  for (int r = 0; r < R; ++r)
    for (int x = 0; x < X; ++x) c[r * c_stride + x] += sum[r][x];
}

/// C[r][x] += sum over t < n of A(r, t) B[t][x], for r < rows and x < columns (padded).
template <class Real>
void add_product(std::int64_t rows, std::int64_t columns, std::int64_t n, const Real* a, Strides at,
                 const Tile<Real>& b, const Tile<Real>& c) {
  constexpr int R = 4;
  for (std::int64_t x = 0; x < columns; x += panel_width<Real>) {
    std::int64_t r = 0;
    for (; r + R <= rows; r += R)
      add_panel<Real, R>(n, a + r * at.row, at, b.data + x, b.stride, c.row(r) + x, c.stride);
    for (; r < rows; ++r)
      add_panel<Real, 1>(n, a + r * at.row, at, b.data + x, b.stride, c.row(r) + x, c.stride);
  }
}

/// The same where some pairs (r, t) are hidden: they are skipped. Their A is zero, but B may hold
/// anything there, and 0 NaN is NaN. What is visible is added in the same order as above.
template <class Real>
void add_visible_product(std::int64_t rows, std::int64_t columns, std::int64_t n, const Real* a,
                         const Visible& visible, Strides at, const Tile<Real>& b,
                         const Tile<Real>& c) {
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t x = 0; x < columns; x += panel_width<Real>) {
      Real sum[panel_width<Real>] = {};
      for (std::int64_t t = 0; t < n; ++t) {
        if (!visible.pair[r * at.row + t * at.step]) continue;
        const Real art = a[r * at.row + t * at.step];
        for (int y = 0; y < panel_width<Real>; ++y) sum[y] += art * b.row(t)[x + y];
      }
      for (int y = 0; y < panel_width<Real>; ++y) c.row(r)[x + y] += sum[y];
    }
}

/// to = from transposed, with zeros up to a whole panel behind its `rows` columns.
template <class Real>
void transpose(const Tile<Real>& from, std::int64_t rows, std::int64_t columns,
               const Tile<Real>& to) {
  for (std::int64_t c = 0; c < columns; ++c) {
    for (std::int64_t r = 0; r < rows; ++r) to.row(c)[r] = from.row(r)[c];
    for (std::int64_t r = rows; r < padded<Real>(rows); ++r) to.row(c)[r] = 0;
  }
}

}  // namespace tilewise::cpu::portable
