#include "cuda/emulator/warp_instructions.hpp"

#include "cuda/emulator/block.hpp"
#include "cuda/emulator/hopper.hpp"
#include "cuda/emulator/services.hpp"

#include "core/minifloat.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <memory>

namespace tilewise::emulator {

// ------------------------------------------------------------------------------ shuffles and votes

namespace {

struct Shuffled {
  void* value;
  std::size_t bytes;
  Shuffle how;
  unsigned argument;
  unsigned width;
  bool from_nobody;
};

/// Within its part of `width` lanes; out of it, a lane keeps its own.
unsigned source(const Shuffled& operand, unsigned lane) {
  const unsigned first = lane / operand.width * operand.width;
  const unsigned last = first + operand.width - 1;
  switch (operand.how) {
    case Shuffle::index: return first + operand.argument % operand.width;
    case Shuffle::up: return lane >= first + operand.argument ? lane - operand.argument : lane;
    case Shuffle::down: return lane + operand.argument <= last ? lane + operand.argument : lane;
    case Shuffle::exclusive_or: {
      const unsigned other = lane ^ operand.argument;
      return other <= last ? other : lane;
    }
  }
  return lane;
}

void shuffle_all(void* const operands[32], unsigned mask) {
  std::array<std::uint64_t, 32> values{};
  for (unsigned left = mask; left != 0; left &= left - 1) {
    const auto lane = static_cast<unsigned>(std::countr_zero(left));
    const auto& operand = *static_cast<const Shuffled*>(operands[lane]);
    std::memcpy(&values[lane], operand.value, operand.bytes);
  }
  for (unsigned left = mask; left != 0; left &= left - 1) {
    const auto lane = static_cast<unsigned>(std::countr_zero(left));
    auto& operand = *static_cast<Shuffled*>(operands[lane]);
    const unsigned from = source(operand, lane);
    operand.from_nobody = (mask >> from & 1) == 0;
    if (!operand.from_nobody) std::memcpy(operand.value, &values[from], operand.bytes);
  }
}

struct Vote {
  bool predicate;
  unsigned result;
};

void vote_all(void* const operands[32], unsigned mask) {
  unsigned result = 0;
  for (unsigned left = mask; left != 0; left &= left - 1) {
    const auto lane = static_cast<unsigned>(std::countr_zero(left));
    if (static_cast<const Vote*>(operands[lane])->predicate) result |= 1u << lane;
  }
  for (unsigned left = mask; left != 0; left &= left - 1)
    static_cast<Vote*>(operands[std::countr_zero(left)])->result = result;
}

}  // namespace

void shuffle(Shuffle how, unsigned mask, void* value, std::size_t bytes, unsigned argument,
             int width, Site site) {
  if (width < 1 || width > 32 || !std::has_single_bit(static_cast<unsigned>(width)))
    refuse("a shuffle's width is a power of two up to 32", site);
  Shuffled operand{value, bytes, how, argument, static_cast<unsigned>(width), false};
  static constexpr const char* names[] = {"__shfl_sync", "__shfl_up_sync", "__shfl_down_sync",
                                          "__shfl_xor_sync"};
  together(names[static_cast<int>(how)], mask, &operand, shuffle_all, site);
  if (operand.from_nobody) {
    Block& block = *Block::current();
    block.find(Kind::divergent_warp, Where(site), Where(),
               fmt::format("lane {} takes the value of a lane that is not in mask {:#010x}",
                           block.thread().lane(), mask));
    block.give_up();
  }
}

unsigned ballot(unsigned mask, bool predicate, Site site) {
  Vote vote{predicate, 0};
  together("a vote", mask, &vote, vote_all, site);
  return vote.result;
}

/// Any lane may be the one, and it is always the same: which, the seed says.
bool elect_one(Site site) {
  const NotTheKernel meanwhile;
  Block& block = *Block::current();
  if (block.options().device.compute_capability < 90)
    refuse("elect.sync wants compute capability 9.0", site);
  together(
      "elect.sync", ~0u, nullptr, [](void* const[32], unsigned) {}, site);
  const std::int64_t lanes = std::min<std::int64_t>(block.size() - block.thread().warp() * 32, 32);
  const std::uint64_t lane = (block.options().seed * 0x9e3779b97f4a7c15u >> 59) % lanes;
  return block.thread().lane() == lane;
}

// ---------------------------------------------------------------------------------------- matrices

namespace {

struct Rows {
  const void* row;
  std::uint32_t* registers;
  int matrices;
  bool transposed;
};

void load_all(void* const operands[32], unsigned) {
  std::uint16_t matrix[8][8];
  const auto& form = *static_cast<const Rows*>(operands[0]);
  for (int n = 0; n < form.matrices; ++n) {
    for (int row = 0; row < 8; ++row)
      std::memcpy(matrix[row], static_cast<const Rows*>(operands[8 * n + row])->row, 16);
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      const std::uint32_t low = form.transposed ? matrix[2 * t][g] : matrix[g][2 * t];
      const std::uint32_t high = form.transposed ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1];
      static_cast<const Rows*>(operands[lane])->registers[n] = low | high << 16;
    }
  }
}

struct StoredRows {
  void* row;
  const std::uint32_t* registers;
  int matrices;
};

struct WarpProduct {
  float* d;
  const std::uint32_t* a;
  const std::uint32_t* b;
  const float* c;
  Operand operand;
};

double element(std::uint32_t bits, int which, Operand operand) {
  const auto half = static_cast<std::uint16_t>(which == 0 ? bits : bits >> 16);
  if (operand == Operand::f16) return float_of_f16(half);
  if (operand == Operand::bf16) return float_of_bf16(half);
  // Of a float's bits the tensor core takes the upper 19.
  return std::bit_cast<float>(bits & 0xffffe000u);
}

void multiply_all(void* const operands[32], unsigned) {
  const Operand operand = static_cast<const WarpProduct*>(operands[0])->operand;
  const int each = operand == Operand::tf32 ? 1 : 2;  // numbers of a register
  const int k = 8 * each;
  double a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& mine = *static_cast<const WarpProduct*>(operands[lane]);
    const int g = lane / 4, t = lane % 4 * each;
    for (int n = 0; n < each; ++n) {
      a[g][t + n] = element(mine.a[0], n, operand);
      a[g + 8][t + n] = element(mine.a[1], n, operand);
      a[g][t + 4 * each + n] = element(mine.a[2], n, operand);
      a[g + 8][t + 4 * each + n] = element(mine.a[3], n, operand);
      b[t + n][g] = element(mine.b[0], n, operand);
      b[t + 4 * each + n][g] = element(mine.b[1], n, operand);
    }
  }
  double sum[16][8] = {};
  for (int i = 0; i < 16; ++i)
    for (int l = 0; l < k; ++l)
      for (int j = 0; j < 8; ++j) sum[i][j] += a[i][l] * b[l][j];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& mine = *static_cast<const WarpProduct*>(operands[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int n = 0; n < 4; ++n)
      mine.d[n] =
          static_cast<float>(sum[g + n / 2 * 8][2 * t + n % 2] + static_cast<double>(mine.c[n]));
  }
}

/// The way back: each lane has the address of a row, and two numbers of each matrix.
void store_all(void* const operands[32], unsigned) {
  const auto& form = *static_cast<const StoredRows*>(operands[0]);
  for (int n = 0; n < form.matrices; ++n)
    for (int row = 0; row < 8; ++row) {
      std::uint32_t four[4];
      for (int t = 0; t < 4; ++t)
        four[t] = static_cast<const StoredRows*>(operands[4 * row + t])->registers[n];
      std::memcpy(static_cast<const StoredRows*>(operands[8 * n + row])->row, four, sizeof four);
    }
}

}  // namespace

void load_matrices(std::uint32_t* registers, int matrices, bool transposed, const void* row,
                   Site site) {
  Block& block = *Block::current();
  if (static_cast<int>(block.thread().lane()) < 8 * matrices)
    block.access(row, 16, Block::Access::read, Where(site));
  Rows operand{row, registers, matrices, transposed};
  together("ldmatrix", ~0u, &operand, load_all, site);
}

void store_matrices(void* row, const std::uint32_t* registers, int matrices, Site site) {
  const NotTheKernel meanwhile;
  Block& block = *Block::current();
  if (block.options().device.compute_capability < 90)
    refuse("stmatrix wants compute capability 9.0", site);
  if (static_cast<int>(block.thread().lane()) < 8 * matrices)
    block.access(row, 16, Block::Access::write, Where(site));
  StoredRows operand{row, registers, matrices};
  together("stmatrix", ~0u, &operand, store_all, site);
}

void multiply_accumulate(float* d, const std::uint32_t* a, const std::uint32_t* b, const float* c,
                         Operand operand, Site site) {
  if (operand != Operand::f16 && Block::current()->options().device.compute_capability < 80)
    refuse("mma.sync of bf16 or tf32 wants compute capability 8.0", site);
  WarpProduct product{d, a, b, c, operand};
  together("mma.sync", ~0u, &product, multiply_all, site);
  if (Block::current()->thread().lane() == 0)
    count_mma(2 * 16 * 8 * (operand == Operand::tf32 ? 8 : 16));
}

// ----------------------------------------------------------------------------------------- formats

float float_of_f16(std::uint16_t bits) {
  // Decoded once: kernels read millions.
  static const auto table = [] {
    auto all = std::make_unique<float[]>(1 << 16);
    for (std::uint32_t code = 0; code < 1 << 16; ++code)
      all[code] = static_cast<float>(Minifloat<5, 10>::decode(code));
    return all;
  }();
  return table[bits];
}

float float_of_bf16(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

std::uint16_t f16_of_float(float value) {
  return static_cast<std::uint16_t>(Minifloat<5, 10>::encode(static_cast<double>(value)));
}

std::uint16_t bf16_of_float(float value) {
  return static_cast<std::uint16_t>(Minifloat<8, 7>::encode(static_cast<double>(value)));
}

std::uint32_t tf32_of_float(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits;
  return (bits + 0x1000u) & 0xffffe000u;
}

}  // namespace tilewise::emulator
