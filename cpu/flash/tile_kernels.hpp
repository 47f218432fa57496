// What the fast backend needs from an instruction set: a table of functions on tiles, compiled once
// for each (isa/) from one source (tile/). Everything else, which tiles there are and where their
// rows lie, is compiled once for all of them.
//
// The lanes of a register are queries. A block is as many queries as a register tile has lanes, and
// all that belongs to it is stored transposed, a row of `queries` numbers each:
//
//   Qt  [head_dim][queries]     S, then P   [keys][queries]     Ot  [head_dim_v][queries]
//
// Then a row's maximum, sum and factor are one lane's, no operation ever goes across lanes, and
// both products are the same: numbers of K, or of V, broadcast one by one against registers of Qt,
// or P. K and V are read as they lie, row by row. (Dao 2023, arXiv 2307.08691, Algorithm 1,
// transposed.)
//
// These functions know pointers and numbers only, no type or inline function that code for another
// instruction set could share.
#pragma once

#include <cstdint>

namespace tilewise::cpu::flash {

/// Rows of floats, `stride` floats apart.
struct Rows {
  const float* data;
  std::int64_t stride;
};

/// Rows of numbers as a tensor has them, `stride` numbers apart.
enum class Element : std::uint8_t { f32, f16, bf16 };
struct Source {
  const void* data;
  std::int64_t stride;
  Element element;
};

/// A block's softmax so far, a number for each lane. Scores are as S has them; `factor`,
/// softmax_scale log2 e, makes powers of two of them.
struct Softmax {
  float* m;      ///< the largest score; -inf before any
  float* l;      ///< the sum of 2^((s - m) factor)
  float* top;    ///< a tile's largest score: from scores() or hide(), to online_softmax()
  float* alpha;  ///< 2^((m before - m now) factor): from online_softmax() to values()
  float factor;
};

/// Lanes below some number do not see keys above: key j is seen by lane >= j - diagonal. What both
/// products may skip, register by register; nothing is hidden by it.
inline constexpr std::int64_t no_diagonal = std::int64_t{1} << 30;

struct TileKernels {
  const char* name;      ///< "cpu.avx512"
  std::int64_t queries;  ///< lanes of a block; divides 64

  /// Qt from `count` rows of queries; lanes beyond are zero.
  void (*pack_queries)(Rows q, std::int64_t count, std::int64_t head_dim, float* Qt);

  /// S = K Qt, and top.
  void (*scores)(const float* Qt, std::int64_t head_dim, Rows k, std::int64_t keys,
                 std::int64_t diagonal, float* S, float* top);

  /// S = -inf where a key is not in a lane's [begin, end), and top once more.
  void (*hide)(float* S, std::int64_t keys, const float* begin, const float* end, float* top);

  /// S from and to rows of queries: [queries][row] <-> [keys][queries]; and top, to S.
  void (*to_rows)(const float* S, std::int64_t keys, float* rows, std::int64_t row);
  void (*from_rows)(const float* rows, std::int64_t row, std::int64_t keys, float* S, float* top);

  /// S becomes P; m, l and alpha are brought up to date.
  void (*online_softmax)(float* S, std::int64_t keys, const Softmax& softmax);

  /// Ot = alpha Ot + V^T P.
  void (*values)(const float* P, std::int64_t keys, std::int64_t diagonal, Rows v,
                 std::int64_t head_dim_v, const float* alpha, float* Ot);

  /// Whether a number times zero is zero, for all of them: none is infinite or NaN.
  bool (*finite)(Rows rows, std::int64_t count, std::int64_t width);

  /// `count` rows of queries from Ot, each lane divided by its l.
  void (*unpack)(const float* Ot, const float* l, std::int64_t count, std::int64_t head_dim_v,
                 float* o, std::int64_t stride);

  // For few queries: rows of them, and of S and O, as they are (tile/decode.hpp). Rows of S have
  // room for 64 keys.

  /// S = q k^T.
  void (*dots)(Rows q, std::int64_t rows, std::int64_t head_dim, Source k, std::int64_t keys,
               float* S, std::int64_t S_row);
  /// S becomes P; m, l and alpha, a number for each row, are brought up to date.
  void (*weigh)(float* S, std::int64_t S_row, std::int64_t rows, std::int64_t keys,
                const Softmax& softmax);
  /// O = alpha O + P v.
  void (*add_values)(const float* P, std::int64_t P_row, std::int64_t rows, std::int64_t keys,
                     Source v, std::int64_t head_dim_v, const float* alpha, float* O,
                     std::int64_t O_row);

  /// Rows as floats. `more`: as many will be read next, behind these.
  void (*read_rows)(Source from, std::int64_t rows, std::int64_t width, bool more, float* to,
                    std::int64_t to_row);
};

/// The tables of this build, and null where the compiler has no such target.
const TileKernels* sse2_kernels();
const TileKernels* avx2_kernels();
const TileKernels* avx512_kernels();
const TileKernels* neon_kernels();

}  // namespace tilewise::cpu::flash
