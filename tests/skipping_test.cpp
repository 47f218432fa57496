// What a mask hides is not computed: the tiles that the drivers hand to the tile kernels, counted.
// That what remains is right is judged in conformance_test.cpp.
#include "core/dtype.hpp"
#include "cpu/flash/detect.hpp"
#include "cpu/flash/flash.hpp"
#include "tests/capi_support.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

namespace tilewise::tests {
namespace {

using cpu::flash::Rows;
using cpu::flash::TileKernels;

constexpr std::int64_t Bc = 64;  ///< keys of a tile
constexpr std::int64_t width = 16;

/// A table of tile kernels with a counter in front of both products. One at a time.
class Counted {
 public:
  explicit Counted(const TileKernels& kernels) : table_(kernels) {
    real = &kernels;
    scored = valued = 0;
    table_.scores = [](const float* Qt, std::int64_t head_dim, Rows k, std::int64_t keys,
                       std::int64_t diagonal, float* S, float* top) {
      ++scored;
      real->scores(Qt, head_dim, k, keys, diagonal, S, top);
    };
    table_.values = [](const float* P, std::int64_t keys, std::int64_t diagonal, Rows v,
                       std::int64_t head_dim_v, const float* alpha, float* Ot) {
      ++valued;
      real->values(P, keys, diagonal, v, head_dim_v, alpha, Ot);
    };
  }

  const TileKernels& table() const { return table_; }
  static std::int64_t scored, valued;

 private:
  TileKernels table_;
  static const TileKernels* real;
};
const TileKernels* Counted::real = nullptr;
std::int64_t Counted::scored = 0;
std::int64_t Counted::valued = 0;

/// One head of so many queries and keys, in memory that numbers fill.
struct OneHead {
  OneHead(std::int64_t rows, std::int64_t keys)
      : seqlen_q(rows),
        seqlen_k(keys),
        q(static_cast<std::size_t>(rows * width), 0.5f),
        k(static_cast<std::size_t>(keys * width), 0.25f),
        v(k),
        o(q) {
    call.params.softmax_scale = 0.25;
    call.tensors.q = contiguous(q.data(), DType::f32, 1, rows, 1, width);
    call.tensors.k = contiguous(k.data(), DType::f32, 1, keys, 1, width);
    call.tensors.v = contiguous(v.data(), DType::f32, 1, keys, 1, width);
    call.tensors.o = contiguous(o.data(), DType::f32, 1, rows, 1, width);
  }

  /// The drivers' count, and that of the tiles in which some row of a block sees some key.
  void expect_only_visible_tiles(
      const std::function<bool(std::int64_t row, std::int64_t key)>& sees) const {
    for (const std::int32_t isa :
         {TILEWISE_ISA_SSE2, TILEWISE_ISA_AVX2, TILEWISE_ISA_AVX512, TILEWISE_ISA_NEON}) {
      const TileKernels* const kernels = cpu::flash::kernels_of(isa);
      if (kernels == nullptr) continue;
      const Counted counted(*kernels);
      Workspace workspace(cpu::flash::forward_workspace(counted.table(), call, 1));
      cpu::flash::forward(counted.table(), call, {cpu::serial_for, nullptr, 1}, workspace.data,
                          workspace.bytes);
      std::int64_t visible = 0;
      for (std::int64_t row = 0; row < seqlen_q; row += kernels->queries)
        for (std::int64_t key = 0; key < seqlen_k; key += Bc)
          visible += any_seen(sees, row, std::min(row + kernels->queries, seqlen_q), key,
                              std::min(key + Bc, seqlen_k));
      EXPECT_EQ(Counted::scored, visible) << kernels->name;
      EXPECT_EQ(Counted::valued, visible) << kernels->name;
      EXPECT_GT(visible, 0);
    }
  }

  static bool any_seen(const std::function<bool(std::int64_t row, std::int64_t key)>& sees,
                       std::int64_t row_begin, std::int64_t row_end, std::int64_t key_begin,
                       std::int64_t key_end) {
    for (std::int64_t row = row_begin; row < row_end; ++row)
      for (std::int64_t key = key_begin; key < key_end; ++key)
        if (sees(row, key)) return true;
    return false;
  }

  std::int64_t seqlen_q, seqlen_k;
  std::vector<float> q, k, v, o;
  cpu::Call call;
};

TEST(Skipping, NothingWithoutAMask) {
  OneHead(300, 333).expect_only_visible_tiles([](std::int64_t, std::int64_t) { return true; });
}

TEST(Skipping, KeysAfterTheDiagonal) {
  OneHead head(500, 500);
  head.call.params.causal = true;
  head.expect_only_visible_tiles([](std::int64_t row, std::int64_t key) { return key <= row; });
}

TEST(Skipping, KeysAfterADiagonalThatEndsWithTheLastKey) {
  OneHead head(200, 700);
  head.call.params.causal = true;
  head.expect_only_visible_tiles(
      [](std::int64_t row, std::int64_t key) { return key <= row + 500; });
}

TEST(Skipping, KeysOutsideOfAWindow) {
  OneHead head(700, 700);
  head.call.params.window_left = 100;
  head.call.params.window_right = 30;
  head.expect_only_visible_tiles(
      [](std::int64_t row, std::int64_t key) { return key >= row - 100 && key <= row + 30; });
}

TEST(Skipping, KeysOfOtherChunks) {
  OneHead head(512, 512);
  head.call.params.attention_chunk = 128;
  head.expect_only_visible_tiles(
      [](std::int64_t row, std::int64_t key) { return row / 128 == key / 128; });
}

TEST(Skipping, BlocksThatAListLeavesOut) {
  // Blocks of 192 queries, which every instruction set's own divide, by 64 keys; each row of them
  // sees every third block of keys, another third in each.
  constexpr std::int64_t block_q = 192, rows = 2 * block_q, keys = 9 * Bc;
  OneHead head(rows, keys);
  std::vector<std::int32_t> count{3, 3};
  std::vector<std::int32_t> index{0, 3, 6, 0, 0, 0, 0, 0, 0, /**/ 1, 4, 7, 0, 0, 0, 0, 0, 0};
  head.call.tensors.block_mask.block_q = block_q;
  head.call.tensors.block_mask.block_k = Bc;
  head.call.tensors.block_mask.kv_num_blocks = contiguous(count.data(), DType::i32, 1, 1, 2);
  head.call.tensors.block_mask.kv_indices = contiguous(index.data(), DType::i32, 1, 1, 2, 9);
  head.expect_only_visible_tiles(
      [](std::int64_t row, std::int64_t key) { return key / Bc % 3 == row / block_q; });
}

}  // namespace
}  // namespace tilewise::tests
