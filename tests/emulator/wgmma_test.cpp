// wgmma judged: where descriptors lead, held against tiles laid out otherwise; every product that
// there is; what is counted. Its planted bugs are among emulator_test.cpp's.
#include "cuda/device/ptx/matrix_descriptor.hpp"
#include "cuda/device/swizzle.hpp"
#include "cuda/device/tensor_map.hpp"
#include "cuda/emulator/emulator.hpp"
#include "cuda/emulator/matrix_operands.hpp"
#include "measured.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <set>
#include <vector>

namespace tilewise::tests {
namespace {

using device::MatrixFields;
using emulator::Arrival;
using emulator::chunk_address;
using emulator::MatrixPlace;
using emulator::Options;
using emulator::place_of;
using emulator::Session;

// ------------------------------------------------------------------------------------- descriptors

TEST(MatrixDescriptor, IsWhatItsFieldsAre) {
  for (int swizzle = 0; swizzle < 4; ++swizzle)
    for (const std::uint32_t address : {0u, 16u, 1024u, 0x3fff0u})
      for (const std::uint32_t leading : {0u, 16u, 8192u, 0x3fff0u})
        for (const std::uint32_t stride : {16u, 256u, 1024u, 0x3fff0u}) {
          const MatrixFields fields{address, leading, stride, swizzle};
          const device::MatrixDescriptor it = device::encoded(fields);
          EXPECT_EQ(device::decoded(it), fields);
          const MatrixPlace place = place_of(it.bits);
          EXPECT_EQ(place.address, address);
          EXPECT_EQ(place.leading, leading);
          EXPECT_EQ(place.stride, stride);
          EXPECT_EQ(place.base_offset, 0);
          EXPECT_EQ(place.chunks, swizzle == 0 ? 1 : 16 >> swizzle);
        }
}

TEST(MatrixDescriptor, GoesOnByBytes) {
  const device::MatrixDescriptor it = device::encoded({2048, 8192, 1024, 1});
  for (const int bytes : {0, 16, 32, 96, 2048, 16384}) {
    const MatrixFields fields = device::decoded(it.advanced(bytes));
    EXPECT_EQ(fields.address, 2048u + static_cast<std::uint32_t>(bytes));
    EXPECT_EQ(fields.leading_bytes, 8192u);
    EXPECT_EQ(fields.stride_bytes, 1024u);
    EXPECT_EQ(fields.swizzle, 1);
  }
}

/// Where the copy engine puts a chunk of a box with so many chunks a row (PTX ISA, "Swizzling
/// Modes"), by the table of cuda/device/swizzle.hpp.
std::uint32_t place_in_box(int chunks, int row, int chunk) {
  const int place = chunks == 8   ? device::swizzled<8>(row, chunk)
                    : chunks == 4 ? device::swizzled<4>(row, chunk)
                    : chunks == 2 ? device::swizzled<2>(row, chunk)
                                  : chunk;
  return static_cast<std::uint32_t>((row * chunks + place) * 16);
}

constexpr std::uint32_t begin = 4096;

/// The swizzles, by the chunks of a row.
constexpr int widths[] = {8, 4, 2};

int code_of(int chunks) {
  return chunks == 8 ? 1 : chunks == 4 ? 2 : 3;
}

// K or Q: rows of k, in boxes of one swizzle's width side by side. Every step of 16 numbers of k is
// where the box has it.
TEST(MatrixDescriptor, OfRowsOfKFindsTheBox) {
  constexpr int rows = 256;
  for (const int chunks : widths) {
    const MatrixFields fields{begin, 0, static_cast<std::uint32_t>(8 * chunks * 16),
                              code_of(chunks)};
    for (int step = 0; step < chunks / 2; ++step) {
      const MatrixPlace place = place_of(device::encoded(fields).advanced(32 * step).bits);
      EXPECT_TRUE(emulator::is_aligned(place));
      for (int row = 0; row < rows; ++row)
        for (int chunk = 0; chunk < 2; ++chunk)
          ASSERT_EQ(chunk_address(place, false, row, chunk),
                    begin + place_in_box(chunks, row, 2 * step + chunk))
              << chunks << " chunks, row " << row << ", chunk " << 2 * step + chunk;
    }
  }
}

// V: rows of n, 64 k high, in boxes of one swizzle's width behind each other.
TEST(MatrixDescriptor, OfRowsOfNFindsTheBoxes) {
  constexpr int height = 64, columns = 256;
  for (const int chunks : widths) {
    const auto box = static_cast<std::uint32_t>(height * chunks * 16);
    const MatrixFields fields{begin, box, static_cast<std::uint32_t>(8 * chunks * 16),
                              code_of(chunks)};
    for (int step = 0; step < height / 16; ++step) {
      const MatrixPlace place =
          place_of(device::encoded(fields).advanced(16 * chunks * 16 * step).bits);
      EXPECT_TRUE(emulator::is_aligned(place));
      for (int k = 0; k < 16; ++k)
        for (int chunk = 0; chunk < columns / 8; ++chunk)
          ASSERT_EQ(chunk_address(place, true, k, chunk),
                    begin + static_cast<std::uint32_t>(chunk / chunks) * box +
                        place_in_box(chunks, 16 * step + k, chunk % chunks))
              << chunks << " chunks, k " << 16 * step + k << ", chunk " << chunk;
    }
  }
}

// Without a swizzle: eight rows of a chunk each, 128 bytes, are a core matrix, and both distances
// count (PTX ISA, "Strides").
TEST(MatrixDescriptor, WithoutASwizzleIsOfCoreMatrices) {
  const MatrixPlace place = place_of(device::encoded({begin, 2048, 256, 0}).bits);
  EXPECT_EQ(chunk_address(place, false, 0, 0), begin);
  EXPECT_EQ(chunk_address(place, false, 7, 0), begin + 7 * 16);
  EXPECT_EQ(chunk_address(place, false, 8, 0), begin + 256);
  EXPECT_EQ(chunk_address(place, false, 19, 1), begin + 2 * 256 + 3 * 16 + 2048);
  EXPECT_EQ(chunk_address(place, true, 0, 1), begin + 256);
  EXPECT_EQ(chunk_address(place, true, 8, 0), begin + 2048);
  EXPECT_EQ(chunk_address(place, true, 11, 3), begin + 2048 + 3 * 16 + 3 * 256);
}

// No two chunks are in one place, and none is out of the tile.
TEST(MatrixDescriptor, IsABijection) {
  for (const int chunks : widths)
    for (const bool rows_of_n : {false, true}) {
      const int rows = rows_of_n ? 16 : 64, across = rows_of_n ? 32 : 2;
      const int boxes = rows_of_n ? across / chunks : 1;
      const auto box = static_cast<std::uint32_t>(rows * chunks * 16);
      const MatrixPlace place = place_of(
          device::encoded({begin, box, static_cast<std::uint32_t>(128 * chunks), code_of(chunks)})
              .bits);
      std::set<std::uint32_t> seen;
      for (int row = 0; row < rows; ++row)
        for (int chunk = 0; chunk < across; ++chunk) {
          const std::uint32_t at = chunk_address(place, rows_of_n, row, chunk);
          EXPECT_EQ(at % 16, 0u);
          EXPECT_GE(at, begin);
          EXPECT_LT(at, begin + box * static_cast<std::uint32_t>(boxes));
          EXPECT_TRUE(seen.insert(at).second);
        }
    }
}

TEST(MatrixDescriptor, BeginsWhereThePatternDoes) {
  for (const int chunks : widths) {
    const auto width = static_cast<std::uint32_t>(16 * chunks);
    for (std::uint32_t address = 0; address < 4096; address += 16) {
      const MatrixPlace place =
          place_of(device::encoded({address, 0, 8 * width, code_of(chunks)}).bits);
      EXPECT_EQ(emulator::is_aligned(place), address % (8 * width) < width) << address;
    }
  }
  EXPECT_TRUE(emulator::is_aligned(place_of(device::encoded({16, 128, 256, 0}).bits)));
}

// ---------------------------------------------------------------------------------------- products

constexpr Arrival arrivals[] = {Arrival::early, Arrival::late, Arrival::seeded};

TEST(Products, OfEveryShapeAreRight) {
  int count = 0;
  for (const Arrival arrival : arrivals)
    for (std::uint64_t seed = 1; seed <= 2; ++seed) {
      Options options;
      options.seed = seed;
      options.arrival = arrival;
      Session session(options);
      for (const Product& product : products()) {
        const Ran ran = product.run();
        ASSERT_TRUE(ran.right) << product.columns << " columns, " << product.name << "\n"
                               << session.report().text();
        ++count;
      }
    }
  EXPECT_EQ(count, 6 * 9 * 8);
}

TEST(Products, OfAChainAreRight) {
  for (const Arrival arrival : arrivals)
    for (std::uint64_t seed = 1; seed <= 12; ++seed) {
      Options options;
      options.seed = seed;
      options.arrival = arrival;
      Session session(options);
      ASSERT_TRUE(chained_products().right) << session.report().text();
    }
}

TEST(Products, OfAPipelineAreRightAndCounted) {
  const auto start = std::chrono::steady_clock::now();
  for (const Arrival arrival : arrivals)
    for (std::uint64_t seed = 1; seed <= 12; ++seed) {
      Options options;
      options.seed = seed;
      options.arrival = arrival;
      Session session(options);
      ASSERT_TRUE(correct_pipeline().right) << session.report().text();
      const emulator::Counts& counts = session.report().counts;
      // Two warpgroups, four tiles: eight steps of 16 for S, four for O.
      EXPECT_EQ(counts.wgmma, 2 * 4 * (8 + 4));
      EXPECT_EQ(counts.mma_flops, 4LL * 128 * 256 * 128);
      EXPECT_EQ(counts.banks.passes, counts.banks.least_passes);  // stmatrix, swizzled
    }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  fmt::print("a pipeline of 128 queries, 256 keys, d 128: {:.3f} s\n", seconds.count() / 36);
}

}  // namespace
}  // namespace tilewise::tests
