// Correct kernels of this folder's .cu files, whose counts, traces or values are looked at.
#pragma once

#include "core/status.hpp"
#include "planted.hpp"

#include <cstdint>
#include <vector>

namespace tilewise::tests {

/// banks.cu. Lanes read down columns of 32 x 32 floats: in line "// line: column_read".
enum class Columns : std::uint8_t { plain, padded, swizzled };
Ran read_columns(Columns how);
/// ldmatrix from rows of 128 bytes: in line "// line: matrix_rows".
Ran load_rows(bool swizzled);

/// loops.cu. Correct; 32 threads, a row of 64 floats each.
Ran loops(bool dynamic);
Ran struct_copy();

/// counts.cu. Two blocks of 64 threads that do a little of everything.
Ran a_little_of_everything();
/// One block of 64 threads loads and sums four tiles, and says so.
Ran traced_tiles();
Ran traced_spans();
/// 12 blocks of 64 threads, in three dimensions each: 1000 times the block's number, plus that of
/// the sixth thread of the warp.
Status numbers_of_threads(std::vector<int>& numbers);
/// Which warp of four came first, second ...: any order is right.
Status order_of_warps(std::vector<int>& order);

/// waits.cu. One of two blocks waits in a loop until the other is done with 1.3 million reads.
Ran wait_for_a_slow_block();

/// tensor_copies.cu. A box of a tensor of floats, as it lies in shared memory.
struct Box {
  int dimensions = 2;
  std::uint64_t size[5] = {1, 1, 1, 1, 1}, stride[4] = {};
  std::uint32_t box[5] = {1, 1, 1, 1, 1};
  int at[5] = {};
  int swizzle = 0;  ///< a device::Swizzle
};
Status load_box(const Box& box, const std::vector<float>& tensor, std::vector<float>& shared);

/// wgmma_shapes.cu. One of each kind, 64 x columns, of depth 64.
struct Product {
  int columns;
  const char* name;
  Ran (*run)();
};
std::vector<Product> products();
/// Two tiles of something like attention, one's products under way with the other's.
Ran chained_products();
/// wgmma_pipeline.cu: a producer, two consumers.
Ran correct_pipeline();

/// online_row.cu. A thread a row, one key after the other; head dimension 4. `lse` of each row.
constexpr int online_row_dim = 4;
Status online_rows(const std::vector<float>& q, const std::vector<float>& k,
                   std::vector<float>& lse);

/// fa2_like.cu. Tensors [batch, seqlen, heads, 64] of f16 bits; seqlen a multiple of 64.
struct Attention {
  int batch = 1, heads = 1, seqlen = 64;
  std::vector<std::uint16_t> q, k, v;
  std::vector<float> o, lse;  ///< lse [batch, heads, seqlen]
};
Status fa2_like(Attention& attention);

}  // namespace tilewise::tests
