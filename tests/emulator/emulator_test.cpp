// The emulator judged: every planted bug is reported with its kind and its line, whatever the order
// of the warps and the arrival of copies; the same kernel without the bug is silent, and right.
#include "cuda/emulator/emulator.hpp"
#include "cuda/emulator/warp_instructions.hpp"
#include "measured.hpp"
#include "planted.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <map>
#include <ostream>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace tilewise::tests {

/// For GoogleTest.
static void PrintTo(const Planted& bug, std::ostream* out) {
  *out << bug.file << ", " << bug.name;
}

namespace {

using emulator::Arrival;
using emulator::Banks;
using emulator::Device;
using emulator::Finding;
using emulator::Kind;
using emulator::Options;
using emulator::Report;
using emulator::Session;
using emulator::Traffic;

/// The number of the line that ends in a comment with `mark`; 0: none does.
int line_with(const std::string& file, const std::string& mark) {
  std::ifstream in(std::string(TILEWISE_EMULATOR_TESTS) + "/" + file);
  std::string text;
  for (int number = 1; std::getline(in, text); ++number) {
    const std::size_t comment = text.find("// ");
    // A name may be the beginning of another.
    if (comment != std::string::npos && (text + " ").find(mark + " ", comment) != std::string::npos)
      return number;
  }
  return 0;
}

std::vector<Planted> all_bugs() {
  std::vector<Planted> all;
  for (const auto& list :
       {barrier_bugs(), race_bugs(), reader_bugs(), byte_bugs(), wait_bugs(), bounds_bugs(),
        async_bugs(), warp_bugs(), fragment_bugs(), launch_bugs(), mbarrier_bugs(),
        tensor_copy_bugs(), box_pipeline_bugs(), warpgroup_bugs(), pipeline_bugs()})
    all.insert(all.end(), list.begin(), list.end());
  return all;
}

std::string about(const Options& options) {
  static constexpr const char* arrivals[] = {"early", "late", "seeded"};
  return fmt::format("seed {}, {} threads, copies arrive {}", options.seed, options.threads,
                     arrivals[static_cast<int>(options.arrival)]);
}

class Bug : public testing::TestWithParam<Planted> {};

/// Kind and both lines, in either order: which of two racing accesses is the later one, the seed
/// decides.
bool is_the_bug(const Finding& finding, const Planted& bug, int line, int other) {
  if (finding.kind != bug.kind) return false;
  if (line == 0) return finding.line.line == 0;
  if (finding.line.file != bug.file) return false;
  if (other == 0) return finding.line.line == line;
  return finding.other.file == bug.file &&
         std::minmax(finding.line.line, finding.other.line) == std::minmax(line, other);
}

/// What follows from it: a read that nothing orders after the write may come first, and then finds
/// what nobody has written, or has not been waited for. At the same lines.
bool follows(const Finding& finding, const Planted& bug, int line, int other) {
  if (finding.kind != Kind::uninitialised && finding.kind != Kind::not_waited_for) return false;
  if (bug.kind != Kind::race || finding.line.file != bug.file) return false;
  return finding.line.line == line && (finding.other.line == 0 || finding.other.line == other);
}

TEST_P(Bug, IsReportedWithKindAndLine) {
  const Planted& bug = GetParam();
  int line = line_with(bug.file, std::string("bug: ") + bug.name);
  int other = line_with(bug.file, std::string("meets: ") + bug.name);
  if (bug.line != nullptr) line = line_with(bug.file, std::string("line: ") + bug.line);
  if (bug.other != nullptr) other = line_with(bug.file, std::string("line: ") + bug.other);
  const bool of_a_launch = bug.kind == Kind::bad_launch;
  ASSERT_TRUE(bug.silent || of_a_launch || line > 0) << "no line is marked";
  int runs = 0, named = 0;
  for (std::uint64_t seed = 1; seed <= 6; ++seed)
    for (const Arrival arrival : {Arrival::early, Arrival::late, Arrival::seeded})
      for (const int threads : {1, 2}) {
        Options options;
        options.seed = seed;
        options.arrival = arrival;
        options.threads = threads;
        options.patience = 1000;
        SCOPED_TRACE(about(options));
        Session session(options);
        const Ran ran = bug.run(true);
        const Report& report = session.report();
        EXPECT_FALSE(ran.right);
        if (bug.silent) {
          EXPECT_TRUE(report.clean()) << report.text();
          continue;
        }
        EXPECT_FALSE(ran.status.ok());
        const bool is_named = std::any_of(
            report.findings.begin(), report.findings.end(),
            [&](const Finding& finding) { return is_the_bug(finding, bug, line, other); });
        ++runs;
        named += is_named ? 1 : 0;
        EXPECT_TRUE(is_named || bug.shown == Shown::mostly) << report.text();
        // A reader is led to these lines and no others.
        for (const Finding& finding : report.findings)
          EXPECT_TRUE(bug.shown != Shown::alone || is_the_bug(finding, bug, line, other) ||
                      follows(finding, bug, line, other))
              << "expected " << name_of(bug.kind) << " at " << bug.file << ":" << line
              << (other > 0 ? " and " + std::to_string(other) : "") << ", not\n"
              << name_of(finding.kind) << " at " << finding.line.text() << " and "
              << finding.other.text() << "\n"
              << finding.text;
        if (HasFailure()) return;
      }
  EXPECT_TRUE(bug.silent || 2 * named >= runs) << named << " of " << runs;
}

TEST_P(Bug, IsSilentWithoutIt) {
  const std::uint64_t seeds = GetParam().shares_its_twin ? 3 : 20;
  for (std::uint64_t seed = 1; seed <= seeds; ++seed)
    for (const Arrival arrival : {Arrival::early, Arrival::late, Arrival::seeded}) {
      Options options;
      options.seed = seed;
      options.arrival = arrival;
      SCOPED_TRACE(about(options));
      Session session(options);
      const Ran ran = GetParam().run(false);
      ASSERT_TRUE(session.report().clean()) << session.report().text();
      ASSERT_TRUE(ran.status.ok()) << ran.status.reason;
      ASSERT_TRUE(ran.right);
    }
}

INSTANTIATE_TEST_SUITE_P(Planted, Bug, testing::ValuesIn(all_bugs()),
                         [](const auto& bug) { return std::string(bug.param.name); });

TEST(Bugs, InInlinedFunctionsHaveBothLines) {
#if defined(__clang__)
  GTEST_SKIP() << "elfutils 0.188 does not look into namespaces, where clang puts functions";
#endif
  for (const Planted& bug : bounds_bugs()) {
    if (std::string(bug.name) != "inlined_read") continue;
    Session session;
    EXPECT_FALSE(bug.run(true).status.ok());
    ASSERT_EQ(session.report().findings.size(), 1u);
    const std::string call = fmt::format("bounds.cu:{}", line_with(bug.file, "call: inlined_read"));
    EXPECT_EQ(session.report().findings[0].line.inlined_at, call);
    return;
  }
  FAIL() << "no such bug";
}

TEST(Bugs, AreEnough) {
  std::map<std::string, int> by_kind;
  std::set<std::string> names;
  for (const Planted& bug : all_bugs()) {
    ++by_kind[bug.silent ? "told by the values alone" : name_of(bug.kind)];
    EXPECT_TRUE(names.insert(bug.name).second) << bug.name << " twice";
  }
  for (const auto& [kind, count] : by_kind) fmt::print("{:3} {}\n", count, kind);
  fmt::print("{:3} planted bugs, each with its correct twin\n", names.size());
  EXPECT_GE(names.size(), 80u);
}

// ---------------------------------------------------------------------------------------- launches

Report launch_with_shared(const Device& device, std::size_t bytes, std::size_t consented) {
  emulator::Launch launch;
  launch.name = "nothing";
  launch.block = {32};
  launch.shared_bytes = bytes;
  launch.shared_consented = consented;
  launch.kernel = [](const void*) {};
  Options options;
  options.device = device;
  Report report;
  const bool ran = run(launch, options, report);
  EXPECT_EQ(ran, report.clean());
  return report;
}

TEST(Launch, SharedMemoryIsTheDevices) {
  const std::pair<Device, std::size_t> devices[] = {
      {Device::t4(), 64}, {Device::rtx3090(), 99}, {Device::a100(), 163}, {Device::h100(), 227}};
  for (const auto& [device, kib] : devices) {
    SCOPED_TRACE(device.name);
    const std::size_t most = kib * 1024;
    EXPECT_TRUE(launch_with_shared(device, most, most).clean());
    const Report refused = launch_with_shared(device, most + 4, most + 4);
    ASSERT_EQ(refused.findings.size(), 1u);
    EXPECT_EQ(refused.findings[0].kind, Kind::bad_launch);
    EXPECT_NE(refused.findings[0].text.find(device.name), std::string::npos);
    EXPECT_NE(refused.findings[0].text.find(std::to_string(most)), std::string::npos);
  }
}

TEST(Launch, MoreThan48KiBNeedsConsent) {
  constexpr std::size_t without = 48 * 1024;
  EXPECT_TRUE(launch_with_shared(Device::h100(), without, 0).clean());
  const Report refused = launch_with_shared(Device::h100(), without + 4, 0);
  ASSERT_EQ(refused.findings.size(), 1u);
  EXPECT_EQ(refused.findings[0].kind, Kind::bad_launch);
  EXPECT_NE(refused.findings[0].text.find("cudaFuncSetAttribute"), std::string::npos);
}

// ------------------------------------------------------------------------------------------ counts

Banks banks_at(const Report& report, const std::string& mark) {
  const int line = line_with("banks.cu", "line: " + mark);
  EXPECT_GT(line, 0);
  Banks sum;
  for (const auto& [where, banks] : report.counts.banks_by_line)
    if (where.file == "banks.cu" && where.line == line) sum += banks;
  return sum;
}

TEST(Counts, BankConflictsByLine) {
  const std::pair<Columns, std::int64_t> layouts[] = {
      {Columns::plain, 32}, {Columns::padded, 1}, {Columns::swizzled, 1}};
  for (const auto& [layout, factor] : layouts) {
    Session session;
    const Ran ran = read_columns(layout);
    ASSERT_TRUE(ran.right) << session.report().text();
    const Banks banks = banks_at(session.report(), "column_read");
    EXPECT_EQ(banks.requests, 32);
    EXPECT_EQ(banks.least_passes, 32);
    EXPECT_EQ(banks.passes, 32 * factor);
    EXPECT_EQ(banks.conflict(), static_cast<double>(factor));
  }
}

TEST(Counts, BankConflictsOfMatrices) {
  for (const bool swizzled : {false, true}) {
    Session session;
    const Ran ran = load_rows(swizzled);
    ASSERT_TRUE(ran.right) << session.report().text();
    const Banks banks = banks_at(session.report(), "matrix_rows");
    EXPECT_EQ(banks.requests, 1);
    EXPECT_EQ(banks.least_passes, 4);  // of 8 rows each
    EXPECT_EQ(banks.passes, swizzled ? 4 : 32);
  }
}

void expect_traffic(const Report& report, const std::string& tensor, const Traffic& expected) {
  SCOPED_TRACE(tensor);
  const auto found = report.counts.traffic.find(tensor);
  ASSERT_NE(found, report.counts.traffic.end());
  EXPECT_EQ(found->second.bytes_loaded, expected.bytes_loaded);
  EXPECT_EQ(found->second.bytes_stored, expected.bytes_stored);
  EXPECT_EQ(found->second.sectors_loaded, expected.sectors_loaded);
  EXPECT_EQ(found->second.sectors_stored, expected.sectors_stored);
  EXPECT_EQ(found->second.atomics, expected.atomics);
}

// 2 blocks of 64 threads, 4 warps in all.
TEST(Counts, AreWhatOneWorksOutByHand) {
  Session session;
  const Ran ran = a_little_of_everything();
  const Report& report = session.report();
  ASSERT_TRUE(ran.right) << report.text();
  expect_traffic(report, "near", {4 * 128, 0, 4 * 4, 0, 0});
  // Each lane its own sector; and 128 bytes a block by cp.async.
  expect_traffic(report, "far", {4 * 128 + 2 * 128, 0, 4 * 32 + 2 * 4, 0, 0});
  expect_traffic(report, "one", {4 * 128, 0, 4 * 1, 0, 0});
  expect_traffic(report, "out", {0, 4 * 128, 0, 4 * 4, 0});
  expect_traffic(report, "counter", {0, 0, 0, 0, 128});
  EXPECT_EQ(report.counts.total().bytes_loaded, 3 * 512 + 256);
  EXPECT_EQ(report.counts.barriers, 3 * 2);
  EXPECT_EQ(report.counts.warp_syncs, 4);
  EXPECT_EQ(report.counts.mma, 4);
  EXPECT_EQ(report.counts.mma_flops, 4 * 2 * 16 * 8 * 16);
  EXPECT_EQ(report.counts.special_functions, 128);
  EXPECT_EQ(report.counts.async_bytes, 2 * 128);
  EXPECT_EQ(report.counts.blocks, 2);
  EXPECT_EQ(report.counts.threads, 128);
  EXPECT_EQ(report.counts.launches, 1);
  EXPECT_EQ(report.counts.most_shared_bytes, 4 * (32 + 64));
}

TEST(Counts, AreTheSameForAnyOrderOfWarps) {
  std::string first;
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    Options options;
    options.seed = seed;
    Session session(options);
    ASSERT_TRUE(a_little_of_everything().right);
    const std::string counts = nlohmann::json::parse(to_json(session.report()))["counts"].dump();
    if (first.empty()) first = counts;
    EXPECT_EQ(counts, first) << "seed " << seed;
  }
}

// ------------------------------------------------------------------------------------ the compiler

TEST(Optimiser, LoopsStayWhatTheyAre) {
  for (const bool dynamic : {false, true}) {
    Session session;
    const Ran ran = loops(dynamic);
    const Report& report = session.report();
    ASSERT_TRUE(ran.right) << report.text();
    constexpr std::int64_t numbers = 32 * 64;
    // Rows 256 bytes apart: each of the 32 lanes asks for a sector of its own, 64 times.
    expect_traffic(report, "in", {4 * numbers, 0, numbers, 0, 0});
    expect_traffic(report, "out", {4 * numbers, 2 * 4 * numbers, numbers, 2 * numbers, 0});
    // Padded by one, no two lanes are in one bank. Requests: 64 zeros, 4 more, loads, and two
    // reads.
    EXPECT_EQ(report.counts.banks.requests, 64 + 4 + 64 + 64 + 64);
    EXPECT_EQ(report.counts.banks.passes, report.counts.banks.requests);
  }
}

TEST(Optimiser, StructsAreSeen) {
  Session session;
  EXPECT_TRUE(struct_copy().right) << session.report().text();
  // 64 numbers into a row, and from row to row; 32 out of it.
  const emulator::Counts& counts = session.report().counts;
  EXPECT_EQ(counts.banks.requests, 2 + 2 * 64 + 1);
  EXPECT_EQ(counts.most_shared_bytes, 2 * 64 * 4);
}

// --------------------------------------------------------------------------------- loops that wait

TEST(Waiting, ForABlockThatTakesItsTime) {
  Options options;
  options.threads = 2;
  options.patience = 100;
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    options.seed = seed;
    Session session(options);
    EXPECT_TRUE(wait_for_a_slow_block().right) << session.report().text();
  }
}

TEST(Waiting, InVainNamesWhoWaitsForWhat) {
  for (const Planted& bug : wait_bugs()) {
    if (std::string(bug.name) != "flag_behind_barrier") continue;
    Session session;
    EXPECT_FALSE(bug.run(true).status.ok());
    ASSERT_EQ(session.report().findings.size(), 1u);
    const std::string& text = session.report().findings[0].text;
    const std::string loop =
        fmt::format("waits.cu:{}", line_with(bug.file, "bug: flag_behind_barrier"));
    EXPECT_NE(text.find("32 threads (thread 32 first) wait at " + loop +
                        " for shared memory at offset 0 of flag to change, in a loop"),
              std::string::npos)
        << text;
    EXPECT_NE(text.find("32 threads (thread 0 first) wait at"), std::string::npos) << text;
    EXPECT_NE(text.find("for __syncthreads()"), std::string::npos) << text;
    return;
  }
  FAIL() << "no such bug";
}

// ------------------------------------------------------------------------------------------- trace

TEST(Trace, IsJsonInOrder) {
  for (std::uint64_t seed = 1; seed <= 5; ++seed) {
    Options options;
    options.seed = seed;
    options.trace = true;
    Session session(options);
    ASSERT_TRUE(traced_tiles().right) << session.report().text();
    const nlohmann::json all = nlohmann::json::parse(to_json(session.report()));
    ASSERT_EQ(all.at("findings").size(), 0u);
    const nlohmann::json& trace = all.at("trace");
    ASSERT_EQ(trace.size(), 2u * 4 * 2);  // warps, tiles, load and sum
    std::map<int, std::int64_t> end_of_warp;
    std::map<int, int> next;
    std::int64_t last_load_ends[4] = {};
    for (const nlohmann::json& event : trace) {
      const int warp = event.at("warp");
      EXPECT_EQ(event.at("block"), 0);
      // A warp's own events: one after the other, load and sum in turn.
      EXPECT_GE(event.at("begin"), end_of_warp[warp]);
      EXPECT_GT(event.at("end"), event.at("begin"));
      end_of_warp[warp] = event.at("end");
      const int number = next[warp]++;
      EXPECT_EQ(event.at("tile"), number / 2);
      EXPECT_EQ(event.at("name"), number % 2 == 0 ? "load" : "sum");
      if (number % 2 == 0)
        last_load_ends[number / 2] =
            std::max(last_load_ends[number / 2], event.at("end").get<std::int64_t>());
    }
    // The barrier between: nobody sums before all have loaded, by any warp's clock.
    for (const nlohmann::json& event : trace)
      if (event.at("name") == "sum") {
        EXPECT_GE(event.at("begin"), last_load_ends[event.at("tile").get<int>()]);
      }
  }
}

TEST(Trace, SpansMayOverlap) {
  Options options;
  options.trace = true;
  Session session(options);
  ASSERT_TRUE(traced_spans().right) << session.report().text();
  const auto& trace = session.report().trace;
  ASSERT_EQ(trace.size(), 4u);  // in the order in which they ended
  const auto &meanwhile = trace[0], &first = trace[1], &second = trace[2];
  EXPECT_EQ(meanwhile.name, "meanwhile");
  EXPECT_EQ(first.tile, 0);
  EXPECT_EQ(second.tile, 1);
  EXPECT_LT(first.begin, second.begin);
  EXPECT_LE(second.begin, meanwhile.begin);
  EXPECT_LE(meanwhile.end, first.end);
  EXPECT_LT(first.end, second.end);
  EXPECT_EQ(trace[3].name, "done");
  EXPECT_EQ(trace[3].begin, trace[3].end);
}

TEST(Trace, IsEmptyUnlessAskedFor) {
  Session session;
  ASSERT_TRUE(traced_tiles().right);
  EXPECT_TRUE(session.report().trace.empty());
}

// ------------------------------------------------------------------------------------------- order

TEST(Order, OfThreadsAndBlocksIsCudas) {
  std::vector<int> numbers;
  Session session;
  ASSERT_TRUE(numbers_of_threads(numbers).ok()) << session.report().text();
  for (int n = 0; n < static_cast<int>(numbers.size()); ++n)
    ASSERT_EQ(numbers[static_cast<std::size_t>(n)], n / 64 * 1000 + n % 64 / 32 * 32 + 5) << n;
}

TEST(Order, SessionsOfTwoThreadsOfTheHost) {
  std::vector<Report> reports(4);
  std::vector<std::thread> hosts;
  for (std::size_t n = 0; n < reports.size(); ++n)
    hosts.emplace_back([&reports, n] {
      Session session;
      for (int times = 0; times < 5; ++times)
        if (!a_little_of_everything().right) return;
      reports[n] = session.report();
    });
  for (std::thread& host : hosts) host.join();
  for (const Report& report : reports) {
    EXPECT_TRUE(report.clean());
    EXPECT_EQ(report.counts.launches, 5);
    EXPECT_EQ(report.counts.total().bytes_loaded, 5 * (3 * 512 + 256));
  }
}

TEST(Order, OfWarpsIsTheSeeds) {
  std::set<std::vector<int>> orders;
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    std::vector<int> order, again;
    Options options;
    options.seed = seed;
    Session session(options);
    ASSERT_TRUE(order_of_warps(order).ok()) << session.report().text();
    ASSERT_TRUE(order_of_warps(again).ok());
    EXPECT_EQ(order, again) << "seed " << seed;
    orders.insert(order);
  }
  fmt::print("20 seeds: {} orders of 4 warps\n", orders.size());
  EXPECT_GE(orders.size(), 8u);
}

// --------------------------------------------------------------------------------------- attention

Attention random_attention(int batch, int heads, int seqlen) {
  Attention attention{batch, heads, seqlen, {}, {}, {}, {}, {}};
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  for (auto* const tensor : {&attention.q, &attention.k, &attention.v}) {
    tensor->resize(static_cast<std::size_t>(batch) * heads * seqlen * 64);
    for (std::uint16_t& bits : *tensor) bits = emulator::f16_of_float(normal(random));
  }
  return attention;
}

struct Errors {
  double o = 0, lse = 0;
};

/// The largest differences from attention in double.
Errors errors_of(const Attention& attention) {
  constexpr std::size_t d = 64;
  const auto batch = static_cast<std::size_t>(attention.batch);
  const auto heads = static_cast<std::size_t>(attention.heads);
  const auto N = static_cast<std::size_t>(attention.seqlen);
  Errors errors;
  std::vector<double> p(N);
  for (std::size_t head = 0; head < batch * heads; ++head) {
    const auto index = [&](std::size_t n, std::size_t c) {
      return ((head / heads * N + n) * heads + head % heads) * d + c;
    };
    const auto at = [&](const std::vector<std::uint16_t>& tensor, std::size_t n, std::size_t c) {
      return static_cast<double>(emulator::float_of_f16(tensor[index(n, c)]));
    };
    for (std::size_t i = 0; i < N; ++i) {
      double sum = 0;
      for (std::size_t j = 0; j < N; ++j) {
        double score = 0;
        for (std::size_t c = 0; c < d; ++c) score += at(attention.q, i, c) * at(attention.k, j, c);
        sum += p[j] = std::exp(score / 8);
      }
      errors.lse = std::max(errors.lse, std::abs(attention.lse[head * N + i] - std::log(sum)));
      for (std::size_t c = 0; c < d; ++c) {
        double o = 0;
        for (std::size_t j = 0; j < N; ++j) o += p[j] * at(attention.v, j, c);
        errors.o = std::max(errors.o, std::abs(attention.o[index(i, c)] - o / sum));
      }
    }
  }
  return errors;
}

// P is rounded to f16, 11 bits, and |V| is below 5: sums of P are off by less than 5 * 2^-11.
constexpr double o_bound = 5.0 / 2048, lse_bound = 1e-5;

TEST(Attention, OfTensorCoresAgreesWithDouble) {
  Attention attention = random_attention(1, 2, 512);
  Options options;
  options.threads = 2;
  Session session(options);
  const auto begin = std::chrono::steady_clock::now();
  const Status status = fa2_like(attention);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  ASSERT_TRUE(status.ok()) << session.report().text();
  const Errors errors = errors_of(attention);
  EXPECT_LT(errors.o, o_bound);
  EXPECT_LT(errors.lse, lse_bound);

  const emulator::Counts& counts = session.report().counts;
  // Q K^T and P V: 4 N^2 d a head.
  EXPECT_EQ(counts.mma_flops, 2 * 4LL * 512 * 512 * 64);
  // Q once; K and V for each of 8 blocks of queries.
  EXPECT_EQ(counts.async_bytes, 2 * (1 + 2 * 8) * 512 * 64 * 2LL);
  EXPECT_EQ(counts.traffic.at("O").bytes_stored, 2 * 512 * 64 * 4);
  EXPECT_EQ(counts.traffic.at("O").sectors_stored, 2 * 512 * 64 * 4 / 32);
  EXPECT_EQ(counts.banks.passes, counts.banks.least_passes);  // swizzled
  fmt::print("b1 h2 n512 d64 f16 forward: {:.2f} s on 2 threads; errors of O {:.1e}, LSE {:.1e}\n",
             seconds.count(), errors.o, errors.lse);
}

TEST(Attention, HasTheSameBitsForAnyOrder) {
  std::vector<float> o, lse;
  for (std::uint64_t seed = 1; seed <= 8; ++seed)
    for (const Arrival arrival : {Arrival::early, Arrival::late, Arrival::seeded}) {
      Options options;
      options.seed = seed;
      options.arrival = arrival;
      SCOPED_TRACE(about(options));
      Session session(options);
      Attention attention = random_attention(2, 1, 128);
      ASSERT_TRUE(fa2_like(attention).ok()) << session.report().text();
      if (o.empty()) {
        o = attention.o;
        lse = attention.lse;
        const Errors errors = errors_of(attention);
        EXPECT_LT(errors.o, o_bound);
        EXPECT_LT(errors.lse, lse_bound);
      }
      EXPECT_EQ(attention.o, o);
      EXPECT_EQ(attention.lse, lse);
    }
}

}  // namespace
}  // namespace tilewise::tests
