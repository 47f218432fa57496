// wgmma under way: four warps bring an instruction together, and it reads its operands and writes
// its accumulators at any moment from there to the wait that covers it. PTX ISA, "Asynchronous
// Warpgroup Level Matrix Instructions"; sm_90a.
//
// Registers are arrays on a thread's stack here. From the instruction to the wait the accumulators
// hold poison, signalling NaNs, and whoever touches them, or changes a register operand, is a
// finding: every access to the stack is looked at for this (product_registers.cpp).
#pragma once

#include "access_sets.hpp"
#include "async_proxy.hpp"
#include "site.hpp"
#include "warp_instructions.hpp"

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

namespace tilewise::emulator {

constexpr unsigned threads_of_warpgroup = 128;

/// What a thread brings to a wgmma.
struct ProductOperands {
  float* d;
  const std::uint32_t* a;  ///< four registers, or null
  std::uint64_t a_descriptor, b_descriptor;
  int columns;
  bool b_has_rows_of_n, keep;
  Operand operand;
};

/// The accumulators of a warpgroup, 64 rows of them, while one or more wgmma have them.
struct Accumulators {
  std::vector<float> value;
  int columns = 0;
};

/// Registers of a thread that a wgmma under way has.
struct RegistersInUse {
  std::uintptr_t begin = 0, end = 0;
  Where where;                      ///< of the last wgmma
  std::uint64_t last = 0;           ///< its number
  std::shared_ptr<Accumulators> d;  ///< null: of an operand, which may be read
  std::uint32_t copy[4] = {};       ///< of that operand, as it was
  bool told = false;                ///< what was wrong with them
};

/// A thread's part in its warpgroup's products, and its stack watched for them.
struct ProductsOfThread {
  /// The last accesses to four bytes of the stack: behind which fence they were, and where; of a
  /// write behind the newest, where that was.
  struct Mark {
    Where where;
    std::uint32_t touched = 0, written = 0;
  };
  std::uint32_t fences = 0;  ///< so far; none: nothing is watched
  std::vector<Mark> marks;   ///< by the distance from the stack's upper end
  std::vector<RegistersInUse> in_use;
  std::uintptr_t in_use_begin = 0, in_use_end = 0;  ///< around all of them
  std::uint64_t issued = 0, committed = 0;          ///< numbers of wgmma
  Where issued_at;
  std::deque<std::uint64_t> groups;  ///< the last number of each, the oldest first
};

/// One wgmma, from there on where all four warps have come.
struct Product {
  std::uint64_t number = 0;
  Where where;
  ProductOperands operands{};
  std::shared_ptr<Accumulators> d;
  std::vector<double> a;                    ///< 64 x 16, if it was in registers
  std::vector<const char*> a_rows, b_rows;  ///< chunks of 16 bytes in shared memory, row by row
  std::vector<AsyncAccesses::Id> reads;
  Clock knows;  ///< what all who issued it know
  bool done = false;
};

struct Warpgroup {
  // Those who have come to the next wgmma.
  const ProductOperands* operands[threads_of_warpgroup] = {};
  int arrived = 0;
  Where where;

  std::uint64_t issued = 0, waited = 0;  ///< numbers of wgmma, which begin with 1
  std::deque<Product> under_way;         ///< that nobody has waited for
  /// Whose reads of shared memory these are (async_proxy.hpp), so that one thread that has waited
  /// speaks for all. Its time is the number of a wgmma.
  std::uint16_t agent = 0;
  bool has_agent = false;
};

}  // namespace tilewise::emulator
