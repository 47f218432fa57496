// Backward's tile: from a tile of Q, K, V and dO to P and dS, by recomputation from LSE (Dao et al.
// 2022, arXiv 2205.14135, appendix B.2 and Algorithm 4).
//
//   P  = exp(S - LSE)           S: the finished scores
//   dP = Z dO V^T               Z: dropout's factors, 1 without
//   dS = P (dP - D) slope       D_i = dO_i . O_i, slope: the softcap's derivative
//
// dQ, dK and dbias each sum dS in an order of their own, and dV sums P Z: backward.cpp and
// score_gradients.cpp.
#pragma once

#include "cpu/portable/head.hpp"
#include "cpu/portable/operands.hpp"
#include "cpu/portable/rows.hpp"
#include "cpu/portable/workspace.hpp"

#include <cstddef>

namespace tilewise::cpu::portable {

/// Two numbers for every query row and head, kept in the workspace: the linear part of it.
template <class Real>
struct RowFacts {
  RowFacts(Arena& arena, const Call& call)
      : places(Sequences::of_queries(call.tensors).places()),
        lse(arena.take<Real>(places * Shape(call).nheads_q)),
        d(arena.take<Real>(places * Shape(call).nheads_q)) {}

  std::int64_t index(const Head& head, std::int64_t i) const {
    return head.h * places + head.queries.place(head.b, i);
  }

  std::int64_t places;
  Real* lse;  ///< natural logarithm; +inf for a row that saw no key, so that exp(S - LSE) is 0
  Real* d;    ///< D
};

/// What the tasks of the backward pass share.
template <class Real>
struct BackwardCall {
  const Call& call;
  Shape shape;
  RowFacts<Real> facts;
};

template <class Real>
struct BackwardTiles {
  BackwardTiles(Arena& arena, const Shape& shape)
      : Q(arena.take_tile<Real>(Br, shape.head_dim)),
        dO(arena.take_tile<Real>(Br, shape.head_dim_v)),
        K(arena.take_tile<Real>(Bc, shape.head_dim)),
        V(arena.take_tile<Real>(Bc, shape.head_dim_v)),
        Kt(arena.take_tile<Real>(shape.head_dim, Bc)),
        Vt(arena.take_tile<Real>(shape.head_dim_v, Bc)),
        P(arena.take_tile<Real>(Br, Bc)),
        dS(arena.take_tile<Real>(Br, Bc)),
        slope(arena.take_tile<Real>(Br, Bc)),
        Z(arena.take_tile<Real>(Br, Bc)),
        dQ(arena.take_tile<Real>(Br, shape.head_dim)),
        dK(arena.take_tile<Real>(Bc, shape.head_dim)),
        dV(arena.take_tile<Real>(Bc, shape.head_dim_v)),
        dbias(arena.take_tile<Real>(Br, Bc)),
        visible{arena.take<std::uint8_t>(Br * Bc)} {}

  Tile<Real> Q, dO, K, V, Kt, Vt;
  Tile<Real> P;   ///< scores first, then P Z
  Tile<Real> dS;  ///< dP first
  Tile<Real> slope, Z;
  Tile<Real> dQ, dK, dV, dbias;  ///< sums over tiles
  Visible visible;
};

/// Which score dS is the gradient of: the scaled dot product (for dQ, dK), or what the bias was
/// added to (for dbias), which has the softcap behind it or before it.
enum class Of : std::uint8_t { dot_product, bias };

template <class Real>
void read_queries(const Head& head, Span rows, const BackwardTiles<Real>& tiles) {
  read_queries(head, rows, tiles.Q);
  read_tile(head.queries, head.call.tensors.dout, head.b, head.h, rows, tiles.dO);
}

template <class Real>
void read_keys(const Head& head, Span keys, const BackwardTiles<Real>& tiles) {
  read_keys(head, keys, tiles.K);
  read_values(head, keys, tiles.V);
  transpose(tiles.K, keys.count, head.shape.head_dim, tiles.Kt);
  transpose(tiles.V, keys.count, head.shape.head_dim_v, tiles.Vt);
}

/// Fills tiles.P and tiles.dS, zero where a pair is hidden, from tiles that have been read;
/// `coverage` is that of look(), and so is what comes back, less what the bias hides.
template <class Real>
Coverage gradient_tile(const BackwardCall<Real>& backward, const Head& head, Span rows, Span keys,
                       Coverage coverage, Of of, const BackwardTiles<Real>& tiles);

/// C += A B, or with A transposed, over the pairs that may be looked at; A is tiles.P or tiles.dS.
template <class Real>
void add_rows_times(Coverage coverage, Span rows, Span keys, const Tile<Real>& a,
                    const Visible& visible, const Tile<Real>& b, const Tile<Real>& c) {
  if (coverage == Coverage::all)
    add_product(rows.count, b.stride, keys.count, a.data, {Bc, 1}, b, c);
  else
    add_visible_product(rows.count, b.stride, keys.count, a.data, visible, {Bc, 1}, b, c);
}
template <class Real>
void add_columns_times(Coverage coverage, Span rows, Span keys, const Tile<Real>& a,
                       const Visible& visible, const Tile<Real>& b, const Tile<Real>& c) {
  if (coverage == Coverage::all)
    add_product(keys.count, b.stride, rows.count, a.data, {1, Bc}, b, c);
  else
    add_visible_product(keys.count, b.stride, rows.count, a.data, visible, {1, Bc}, b, c);
}

/// dbias and dsinks: score_gradients.cpp.
template <class Real>
void write_dbias(const BackwardCall<Real>& backward, const Workers& workers, void* memory);
template <class Real>
void write_dsinks(const BackwardCall<Real>& backward);

}  // namespace tilewise::cpu::portable
