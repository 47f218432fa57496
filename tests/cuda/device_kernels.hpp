// The building blocks of cuda/device at work: host functions that launch small kernels on host
// data. For the emulator, and as well for the GPU where the same tests are compiled with
// TILEWISE_TESTS_ON_GPU and the kernels by nvcc.
#pragma once

#include "core/status.hpp"

#include <cstdint>
#include <vector>

#if defined(__CUDACC__) || defined(TILEWISE_TESTS_ON_GPU)
#define TILEWISE_TESTED gpu
#else
#define TILEWISE_TESTED emulated
#endif

namespace tilewise::tests::inline TILEWISE_TESTED {

using Floats = std::vector<float>;

/// Operands of mma: tf32 has a depth of 8, the others of 16.
enum class Format { f16, bf16, tf32 };

/// Products, each d = a b + c by one mma; row-major, 16 x depth, depth x 8 and 16 x 8.
Status products(Format format, const Floats& a, const Floats& b, const Floats& c, Floats& d);

/// ldmatrix of 1, 2 or 4 matrices of 8 x 8, one below the other; `matrices` numbers a lane.
Status loaded_matrices(int matrices, bool transposed, const std::vector<std::uint16_t>& rows,
                       std::vector<std::uint32_t>& registers);

/// a, 16 x 32, times b, 32 x 16, from swizzled tiles; b comes transposed (as K does) or as it is
/// (V). tf32: transposed only.
Status product_of_tiles(Format format, bool b_transposed, const Floats& a, const Floats& b,
                        Floats& d);

/// 16 rows of scores, of which a row looks at its first keys[row], 32 at a time. o, 16 x 8: column
/// c is the sum of the probabilities of keys c, c + 8, ...
Status softmax(const Floats& scores, const std::vector<int>& keys, float softmax_scale, Floats& o,
               Floats& lse);

/// Forward attention in 2 warps of 16 rows, by all of the building blocks. f16 or bf16; o rounded
/// to that, too, if `rounded`. head_dim: a multiple of 8 up to 96.
struct Attention {
  int batch, nheads_q, nheads_k, seqlen_q, seqlen_k, head_dim;
  bool causal;
  float softmax_scale;
  bool rounded;
};
Status attention(Format format, const Attention& problem, const Floats& q, const Floats& k,
                 const Floats& v, Floats& o, Floats& lse);

/// A tile of 32 x columns (32, 40, 64 or 96) copied by cp.async from a tensor whose rows are
/// `stride` apart and of which rows x there are there; answers what then lies in the tile.
Status copied_tile(int columns, const std::vector<std::uint16_t>& tensor, int stride, int rows,
                   int there, std::vector<std::uint16_t>& tile);

/// Two tiles by cp.async, the first used while the second is under way; wrong if it does not wait.
Status pipelined(bool waits, const Floats& in, Floats& out);

/// 4, 8 and 16 bytes a copy, every third one left zero.
Status copied_words(int bytes, const std::vector<std::uint32_t>& in,
                    std::vector<std::uint32_t>& out);

/// 32 rows of 64, 128 or 192 bytes read by ldmatrix, swizzled or not.
Status read_rows(int row_bytes, bool swizzled);

/// One warp gives numbers to another by a named barrier where the first only arrives.
Status handed_over(const Floats& in, Floats& out);

Status exp2_of(const Floats& in, Floats& out);
/// in[2 n] and in[2 n + 1] packed, or one each of tf32.
Status packed(Format format, const Floats& in, std::vector<std::uint32_t>& out);
/// The inverse; not for tf32.
Status unpacked(Format format, const std::vector<std::uint32_t>& in, Floats& out);

/// 16 bytes a lane from global to shared memory, 8 bytes back, reversed; `offset` floats are left
/// out of `in`.
Status reversed(const Floats& in, int offset, Floats& out);

}  // namespace tilewise::tests::inline TILEWISE_TESTED
