// How extra memory grows, measured: the online softmax needs the same scratch at any length, whole
// matrices need the product of the lengths. The formula is never asked.
#include "oracle/harness/function_implementation.hpp"
#include "oracle/harness/memory_meter.hpp"
#include "oracle/harness/scaling.hpp"
#include "stages/adapter.hpp"
#include "tools/capi_implementation.hpp"

#include <gtest/gtest.h>

#include <cstdio>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tilewise {
namespace {

using harness::MemoryCurve;

constexpr std::int64_t lengths[] = {512, 1024, 2048, 4096};

Problem base(const char* pass) {
  return std::get<Problem>(parse_problem(std::string(pass) + " s512 h1 d32 f32"));
}

/// What a step of the course, or a kernel of the library, promises of its extra memory.
struct Promise {
  const char* name;
  const char* pass;
  enum { constant, linear, quadratic } growth;

  friend void PrintTo(const Promise& promise, std::ostream* out) { *out << promise.name; }
};

constexpr Promise promises[] = {
    {"stage.1a_textbook", "fwd", Promise::quadratic},
    {"stage.1b_safe_softmax", "fwd", Promise::quadratic},
    {"stage.1c_causal_gqa_lse", "fwd", Promise::quadratic},
    {"stage.1d_backward", "bwd", Promise::quadratic},
    {"stage.2a_online_row", "fwd", Promise::constant},
    {"stage.2b_tiles", "fwd", Promise::constant},
    {"stage.2c_simd", "fwd", Promise::constant},
    {"stage.2d_threads", "fwd", Promise::constant},
    {"stage.2e_backward", "bwd", Promise::linear},
    {"cpu.portable", "fwd", Promise::constant},
    {"cpu.portable", "bwd", Promise::linear},
    {"cpu.sse2", "fwd", Promise::constant},
    {"cpu.avx2", "fwd", Promise::constant},
    {"cpu.avx512", "fwd", Promise::constant},
    {"cpu.neon", "fwd", Promise::constant},
};

harness::Table everybody() {
  harness::Table table = stages::implementations();
  for (auto& implementation : tools::library_implementations())
    table.push_back(std::move(implementation));
  return table;
}

class MemoryScaling : public testing::TestWithParam<Promise> {};

TEST_P(MemoryScaling, IsAsPromised) {
  if (const char* why = harness::memory_meter_unavailable()) GTEST_SKIP() << why;
  const Promise& promise = GetParam();
  for (const auto& implementation : everybody()) {
    if (implementation->name() != promise.name) continue;
    if (!implementation->supports(base(promise.pass)).ok)
      GTEST_SKIP() << implementation->supports(base(promise.pass)).reason;
    const MemoryCurve curve =
        harness::measure_scaling(*implementation, base(promise.pass), lengths);
    ASSERT_TRUE(curve.why.empty()) << curve.why;
    for (const harness::MemoryPoint& point : curve.points)
      std::printf("  %s %5ld: %9ld bytes\n", std::string(name_of(point.vary)).c_str(),
                  static_cast<long>(point.n), static_cast<long>(point.bytes));
    switch (promise.growth) {
      case Promise::constant:
        EXPECT_LE(curve.slope_q, 0.1);
        EXPECT_LE(curve.slope_k, 0.1);
        EXPECT_LE(curve.slope_both, 0.1);
        break;
      case Promise::linear:
        EXPECT_LE(curve.slope_q, 1.05);
        EXPECT_LE(curve.slope_k, 1.05);
        EXPECT_LE(curve.slope_both, 1.05);
        break;
      case Promise::quadratic:
        EXPECT_NEAR(curve.slope_both, 2, 0.1);
        EXPECT_LE(curve.slope_q, 1.05);
        EXPECT_LE(curve.slope_k, 1.05);
        break;
    }
    return;
  }
  // Which instruction sets there are depends on the machine and on the build.
  if (std::string_view(promise.name).starts_with("cpu.")) GTEST_SKIP() << "not on this machine";
  FAIL() << "no step is called " << promise.name;
}

INSTANTIATE_TEST_SUITE_P(Of, MemoryScaling, testing::ValuesIn(promises), [](const auto& parameter) {
  std::string name = parameter.param.name;
  name = name.substr(name.find('.') + 1) + '_' + parameter.param.pass;
  return name;
});

TEST(MemoryScalingOfAKnownFunction, IsFound) {
  if (const char* why = harness::memory_meter_unavailable()) GTEST_SKIP() << why;
  // sq + 3 sk^2 bytes: linear in one length, quadratic in the other.
  const auto known = harness::make_implementation("known", [](const harness::Call& call) -> Status {
    const auto q = static_cast<std::size_t>(call.problem.seqlen_q(0));
    const auto k = static_cast<std::size_t>(call.problem.seqlen_k(0));
    std::vector<char> bytes(1000 * q);
    std::vector<char> more(3 * k * k);
    // Through volatile: an allocation that nobody looks at, a compiler may leave out.
    volatile char* const looked_at[] = {&bytes[q], &more[k]};
    *looked_at[0] = 1;
    *looked_at[1] = 1;
    return {};
  });
  const MemoryCurve curve = harness::measure_scaling(known, base("fwd"), lengths);
  EXPECT_LT(curve.slope_q, 0.95) << "3 k^2 bytes stay";
  EXPECT_GT(curve.slope_k, 1.7);
  EXPECT_LT(curve.slope_k, 2.01);
  const std::vector<harness::MemoryPoint> exact{
      {100, harness::Vary::q, 1000}, {200, harness::Vary::q, 2000}, {400, harness::Vary::q, 4000}};
  EXPECT_NEAR(log_slope(exact, harness::Vary::q), 1, 1e-12);
  EXPECT_EQ(log_slope(exact, harness::Vary::k), 0);
}

}  // namespace
}  // namespace tilewise
