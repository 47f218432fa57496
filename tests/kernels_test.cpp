// The shipped CUDA kernels under the emulator, before the judge.
#include "oracle/harness/gtest.hpp"
#include "oracle/harness/session.hpp"
#include "stages/cuda_adapter.hpp"
#include "tests/kernels_support.hpp"
#include "tools/emulated_kernels.hpp"

#include <gtest/gtest.h>

#include <string>
#include <variant>
#include <vector>

namespace tilewise {
namespace {

const emulator::Report& report_of(const harness::Implementation& kernels) {
  return dynamic_cast<const stages::Emulated&>(kernels).report();
}

class Forward : public testing::TestWithParam<const char*> {};

// Lengths that no tile divides, both directions of the diagonal, shared heads, strides, extremes.
TEST_P(Forward, PassesAndIsClean) {
  const auto kernels = tools::emulated_kernels();
  const harness::Verdict verdict = harness::check(*kernels, GetParam());
  EXPECT_TRUE(verdict.passed()) << to_text(verdict);
  EXPECT_TRUE(report_of(*kernels).clean()) << report_of(*kernels).text();
}
INSTANTIATE_TEST_SUITE_P(
    Emulated, Forward,
    testing::Values("fwd sq1 sk1 h1 d64 f16", "fwd sq130 sk197 h2 d64 f16",
                    "fwd b2 sq129 sk150 hq4 hk2 d64 bf16 causal", "fwd sq40 sk0 h1 d64 f16",
                    "fwd sq0 sk40 h1 d64 f16", "fwd sq200 sk70 h1 d64 f16 causal bhsd",
                    "fwd sq65 sk130 h2 d64 bf16 causal lse_base=2",
                    "fwd sq64 sk128 h1 d64 f16 scale=-0.3", "fwd s140 h1 d64 f16 scale=0 causal",
                    "fwd s150 h1 d64 f16 fill=huge", "fwd s150 h1 d64 bf16 fill=ascending",
                    "fwd s150 h1 d64 f16 fill=peaks causal", "fwd s90 h1 d64 f16 fill=constant",
                    "fwd s129 h2 d128 bf16", "fwd sq70 sk200 hq2 hk1 d128 f16 causal",
                    "fwd sq70 sk130 h1 d256 f16", "fwd s70 hq2 hk1 d256 bf16 causal bhsd"));

TEST(ForwardKernel, GivesTheSameBitsHoweverWarpsAndCopiesCome) {
  for (const char* const text : {"fwd sq130 sk150 h1 d64 f16 causal", "fwd s70 h1 d128 bf16"}) {
    expect_same_bits_in_every_order(text, [&](const emulator::Options& options) {
      const auto kernels = tools::emulated_kernels(options);
      auto result = outputs(*kernels, text);
      EXPECT_TRUE(report_of(*kernels).clean()) << report_of(*kernels).text();
      return result;
    });
  }
}

TEST(ForwardKernel, FitsEveryDeviceFromSm80On) {
  for (const auto& device :
       {emulator::Device::a100(), emulator::Device::rtx3090(), emulator::Device::h100()})
    for (const char* const text : {"fwd s70 d64 f16", "fwd s70 d128 f16", "fwd s70 d256 f16"}) {
      emulator::Options options;
      options.device = device;
      const auto kernels = tools::emulated_kernels(options);
      (void)outputs(*kernels, text);
      EXPECT_TRUE(report_of(*kernels).clean()) << report_of(*kernels).text();
    }
}

TEST(ForwardKernel, ReadsKeysOnceARowBlockAndHasNoBankConflicts) {
  struct Row {
    std::int64_t d, Br;
  };
  for (const auto& [d, Br] : {Row{64, 128}, Row{128, 128}, Row{256, 64}}) {
    const auto kernels = tools::emulated_kernels();
    (void)outputs(*kernels, "fwd s256 h1 d" + std::to_string(d) + " f16");
    const emulator::Counts& counts = report_of(*kernels).counts;
    EXPECT_EQ(counts.traffic.at("q").bytes_loaded, 2 * 256 * d);
    EXPECT_EQ(counts.traffic.at("k").bytes_loaded, 256 / Br * 2 * 256 * d);
    EXPECT_EQ(counts.traffic.at("v").bytes_loaded, 256 / Br * 2 * 256 * d);
    EXPECT_EQ(counts.traffic.at("o").bytes_stored, 2 * 256 * d);
    EXPECT_EQ(counts.traffic.at("lse").bytes_stored, 4 * 256);
    for (const auto& [line, banks] : counts.banks_by_line)
      EXPECT_LE(banks.conflict(), 1.0) << d << ", " << line.text();
  }
}

TEST(ForwardKernel, LeavesOutWhatTheMaskHides) {
  const auto kernels = tools::emulated_kernels();
  (void)outputs(*kernels, "fwd s512 h1 d128 f16 causal");
  // Row blocks of 128 see 1, 2, 3 and 4 times as many keys.
  EXPECT_EQ(report_of(*kernels).counts.traffic.at("k").bytes_loaded, 10 * 128 * 2 * 128);
}

TEST(ForwardKernel, RefusesByNameWhatItDoesNotServe) {
  struct Refusal {
    const char *problem, *name;
  };
  const auto kernels = tools::emulated_kernels();
  for (const auto& [problem, name] :
       {Refusal{"fwd s64 d64 f32", "f32"}, Refusal{"fwd s64 d64 e4m3", "e4m3"},
        Refusal{"fwd s64 d300 f16", "head_dim is 300"},
        Refusal{"fwd s64 d64 dv260 f16", "head_dim_v is 260"}, Refusal{"bwd s64 d64 f32", "f32"},
        Refusal{"bwd s64 d300 f16", "head_dim is 300"}}) {
    const harness::Support support = kernels->supports(problem_of(problem));
    EXPECT_FALSE(support.ok) << problem;
    EXPECT_NE(support.reason.find(name), std::string::npos) << problem << ": " << support.reason;
  }
}

// One's own scratch memory is none: what a call takes on the device is O and LSE.
TEST(ForwardKernel, WantsNoWorkspace) {
  EXPECT_EQ(tools::emulated_kernels()->workspace_bytes(problem_of("fwd s16384 h16 d128 f16")), 0u);
}

}  // namespace
}  // namespace tilewise
