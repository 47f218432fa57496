// What the emulator has to say of the building blocks: that nothing is wrong with them, whatever
// the order of things; how their requests lie in banks and sectors; and whose line it names.
#include "device_kernels.hpp"

#include "cuda/emulator/emulator.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

namespace tilewise::tests {
namespace {

using emulator::Arrival;
using emulator::Kind;
using emulator::Options;
using emulator::Session;

constexpr Arrival arrivals[] = {Arrival::early, Arrival::late, Arrival::seeded};

Options with(Arrival arrival, std::uint64_t seed = 1) {
  Options options;
  options.arrival = arrival;
  options.seed = seed;
  return options;
}

Floats counted(std::size_t count) {
  Floats values(count);
  std::iota(values.begin(), values.end(), 1.0f);
  return values;
}

TEST(EmulatedDevice, CopiesMayArriveEarlyOrLate) {
  const Floats in = counted(2 * 32 * 32);
  for (const Arrival arrival : arrivals)
    for (const std::uint64_t seed : {1, 2, 3}) {
      const Session session(with(arrival, seed));
      Floats out;
      const Status status = pipelined(true, in, out);
      EXPECT_TRUE(status.ok()) << status.reason;
      EXPECT_EQ(out, in);
    }
}

// Without the wait it is wrong, also where the bytes happen to be there; and the line is the
// kernel's that called, not the building block's.
TEST(EmulatedDevice, AMissingWaitIsSeen) {
  const Floats in = counted(2 * 32 * 32);
  for (const Arrival arrival : arrivals) {
    Session session(with(arrival));
    Floats out;
    EXPECT_FALSE(pipelined(false, in, out).ok());
    ASSERT_FALSE(session.report().clean());
    EXPECT_EQ(session.report().findings[0].kind, Kind::not_waited_for);
    EXPECT_EQ(session.report().findings[0].other.file, "device_kernels.cu");
  }
}

TEST(EmulatedDevice, AttentionIsCleanInAnyOrder) {
  const Attention problem{1, 2, 1, 70, 90, 64, true, 0.125f, false};
  const Floats q = counted(70 * 2 * 64), k = counted(90 * 64);
  Floats first;
  for (const Arrival arrival : arrivals)
    for (const std::uint64_t seed : {1, 2, 3}) {
      Session session(with(arrival, seed));
      Floats o, lse;
      ASSERT_TRUE(attention(Format::bf16, problem, q, k, k, o, lse).ok())
          << session.report().text();
      if (first.empty()) first = o;
      EXPECT_EQ(o, first);
    }
}

// Each byte of Q once, of K and V once for each block of rows that looks there, and whole sectors.
TEST(EmulatedDevice, AttentionMovesWhatTheTilesAre) {
  const Attention problem{1, 2, 1, 64, 96, 64, false, 0.125f, false};
  const Floats q = counted(64 * 2 * 64), k = counted(96 * 64);
  Session session;
  Floats o, lse;
  ASSERT_TRUE(attention(Format::f16, problem, q, k, k, o, lse).ok());
  const auto& traffic = session.report().counts.traffic;
  EXPECT_EQ(traffic.at("Q").bytes_loaded, 64 * 2 * 64 * 2);
  EXPECT_EQ(traffic.at("K").bytes_loaded, 2 * 2 * 96 * 64 * 2);
  EXPECT_EQ(traffic.at("V").bytes_loaded, 2 * 2 * 96 * 64 * 2);
  EXPECT_EQ(traffic.at("O").bytes_stored, 64 * 2 * 64 * 4);
  EXPECT_EQ(traffic.at("LSE").bytes_stored, 64 * 2 * 4);
  for (const char* name : {"Q", "K", "V"})
    EXPECT_EQ(traffic.at(name).sectors_loaded * 32, traffic.at(name).bytes_loaded) << name;
  EXPECT_EQ(traffic.at("O").sectors_stored * 32, traffic.at("O").bytes_stored);
  EXPECT_EQ(session.report().counts.banks.conflict(), 1);
  // S and O: 16 x 8 results by 16 deep, of 96 columns in tiles of 32 (and 64 padded to 96).
  EXPECT_EQ(session.report().counts.mma, 2 * 2 * 2 * 3 * (4 * 6 + 12 * 2));
}

TEST(EmulatedDevice, SwizzledRowsHaveNoBankConflicts) {
  for (const int row_bytes : {64, 128, 192}) {
    Session session;
    ASSERT_TRUE(read_rows(row_bytes, true).ok()) << session.report().text();
    EXPECT_EQ(session.report().counts.banks.conflict(), 1) << row_bytes;
  }
}

TEST(EmulatedDevice, RowsThatAreNotSwizzledHave) {
  for (const auto& [row_bytes, conflict] : {std::pair(64, 4), {128, 8}, {192, 4}}) {
    Session session;
    ASSERT_TRUE(read_rows(row_bytes, false).ok()) << session.report().text();
    double most = 1;
    for (const auto& [line, banks] : session.report().counts.banks_by_line)
      most = std::max(most, banks.conflict());
    EXPECT_EQ(most, conflict) << row_bytes;
  }
}

TEST(EmulatedDevice, VectorsAreWholeRequests) {
  const Floats in = counted(124);
  Floats out;
  Session session;
  ASSERT_TRUE(reversed(in, 0, out).ok()) << session.report().text();
  const emulator::Counts& counts = session.report().counts;
  EXPECT_EQ(counts.traffic.at("in").bytes_loaded, 124 * 4);
  EXPECT_EQ(counts.traffic.at("in").sectors_loaded, 16);
  EXPECT_EQ(counts.traffic.at("out").bytes_stored, 128 * 4);
  EXPECT_EQ(counts.banks.conflict(), 1);
}

TEST(EmulatedDevice, MisalignedVectorsAreNamedByTheCallersLine) {
  const Floats in = counted(128);
  Floats out;
  Session session;
  EXPECT_FALSE(reversed(in, 1, out).ok());
  ASSERT_FALSE(session.report().clean());
  EXPECT_EQ(session.report().findings[0].kind, Kind::misaligned);
  EXPECT_EQ(session.report().findings[0].line.file, "device_kernels.cu");
}

TEST(EmulatedDevice, ReadsBehindTheEndAreSeen) {
  const Floats in = counted(120);
  Floats out;
  Session session;
  EXPECT_FALSE(reversed(in, 0, out).ok());
  ASSERT_FALSE(session.report().clean());
  EXPECT_EQ(session.report().findings[0].kind, Kind::out_of_bounds);
}

TEST(EmulatedDevice, ExponentialsAreCounted) {
  Session session;
  Floats out;
  ASSERT_TRUE(exp2_of(counted(100), out).ok());
  EXPECT_EQ(session.report().counts.special_functions, 100);
}

}  // namespace
}  // namespace tilewise::tests
