// Hopper's shipped forward kernel under the emulator, before the judge: few blocks and many pieces
// of work, whatever order they are handed out in; and which calls are its.
#include "cuda/emulator/named_memory.hpp"
#include "cuda/kernels/attention.hpp"
#include "cuda/kernels/families.hpp"
#include "cuda/kernels/sm90/forward_work.hpp"
#include "oracle/harness/buffers.hpp"
#include "oracle/harness/gtest.hpp"
#include "oracle/harness/session.hpp"
#include "pairwise.hpp"
#include "stages/cuda_adapter.hpp"
#include "tests/kernels_support.hpp"
#include "tools/device_calls.hpp"
#include "tools/emulated_kernels.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace tilewise {
namespace {

constexpr std::size_t shared_bytes = std::size_t{227} * 1024;

DeviceLimits hopper(int multiprocessors) {
  return {90, 90, multiprocessors, shared_bytes};
}

/// The call of a problem, without memory: of a backward problem the second one.
DeviceCall question(const Problem& problem) {
  harness::Outputs outputs = harness::Outputs::all();
  outputs.dbias = outputs.dsinks = false;
  outputs.dq = outputs.dk = outputs.dv = problem.pass == Pass::backward;
  return tools::device_calls(problem, harness::tensor_shapes(problem, outputs)).back();
}
DeviceCall question(const std::string& text) {
  return question(problem_of(text));
}

/// The family by itself, on a device with a few multiprocessors: each has several pieces of work.
class Kernels final : public harness::Implementation {
 public:
  explicit Kernels(int multiprocessors = 2, const emulator::Options& options = {})
      : options_(options), limits_(hopper(multiprocessors)) {
    options_.device.multiprocessors = multiprocessors;
  }

  std::string_view name() const override { return "forward_sm90"; }
  std::string_view idea() const override { return "On a small Hopper."; }
  harness::Support supports(const Problem& problem) const override {
    const Status status = cuda::forward_sm90::serves(question(problem), limits_);
    return status.ok() ? harness::Support::yes() : harness::Support::no(status.reason);
  }
  std::size_t workspace_bytes(const Problem& problem) const override {
    return cuda::forward_sm90::workspace_bytes(question(problem), limits_);
  }

  Status run(const harness::Call& call) const override {
    emulator::NamedMemory memory;
    for_each_tensor(call.tensors, [&](std::string_view tensor, const TensorView& view) {
      if (!view.exists() || view.elements() == 0) return;
      std::int64_t last = 0;
      for (int n = 0; n < view.ndim; ++n) last += (view.shape[n] - 1) * view.strides[n];
      const std::size_t size = size_of(view.dtype);
      memory.add(std::string(tensor).c_str(), view.data, static_cast<std::size_t>(last + 1) * size,
                 size, tensor != "o" && tensor != "lse");
    });
    memory.add("workspace", call.workspace, call.workspace_bytes, 4, false);
    emulator::Session session(options_);
    const DeviceCall device_call = tools::device_calls(call.problem, call.tensors).front();
    const Status status =
        cuda::emulated::forward_sm90(device_call, limits_, call.workspace, nullptr);
    report = session.report();
    if (!report.clean()) return failure(Code::failed, "%s", report.text().c_str());
    if (status.ok() && call.workspace_bytes > 0) {
      if (static_cast<const WorkspaceHead*>(call.workspace)->error != 0)
        return failure(Code::failed, "the workspace's error is not 0");
      std::memcpy(&asked_for, static_cast<const char*>(call.workspace) + cuda::sm90::counter_at,
                  sizeof asked_for);
    }
    return status;
  }

  mutable emulator::Report report;
  mutable std::uint32_t asked_for = 0;  ///< the counter's last word: as many as there are pieces

 private:
  emulator::Options options_;
  DeviceLimits limits_;
};

/// Judged once: orders have a test of their own.
void expect_pass(const Kernels& kernels, const Problem& problem) {
  ASSERT_TRUE(kernels.supports(problem).ok) << kernels.supports(problem).reason;
  harness::Options options;
  options.repeats = 0;
  const harness::Verdict verdict = harness::check(kernels, problem, options);
  EXPECT_TRUE(verdict.passed()) << to_text(verdict);
}

class ForwardSm90 : public testing::TestWithParam<const char*> {};

// Lengths that no tile divides, both directions of the diagonal, shared heads, strides, extremes.
TEST_P(ForwardSm90, PassesAndIsClean) {
  expect_pass(Kernels(), problem_of(GetParam()));
}
INSTANTIATE_TEST_SUITE_P(
    Emulated, ForwardSm90,
    testing::Values(
        "fwd sq1 sk1 h1 d64 f16", "fwd sq1 sk1 h1 d128 bf16 causal", "fwd sq1 sk1 h1 d256 f16",
        "fwd sq40 sk0 h1 d64 f16", "fwd sq40 sk0 h3 d128 f16 causal", "fwd sq200 sk0 h1 d256 bf16",
        "fwd sq0 sk40 h1 d64 f16", "fwd sq0 sk40 h1 d128 f16 causal", "fwd sq193 sk257 h2 d64 f16",
        "fwd b2 sq129 sk150 hq4 hk2 d64 bf16 causal", "fwd sq200 sk70 h1 d64 f16 causal bhsd",
        "fwd sq300 sk40 h2 d128 bf16 causal", "fwd sq300 sk40 hq2 hk1 d256 f16 causal",
        "fwd sq65 sk130 h2 d64 bf16 causal lse_base=2", "fwd s140 h1 d64 f16 scale=0 causal",
        "fwd s140 h1 d128 bf16 scale=0", "fwd s150 h1 d64 f16 fill=huge",
        "fwd s150 h1 d64 bf16 fill=ascending", "fwd s150 h1 d128 f16 fill=peaks causal",
        "fwd s90 h1 d64 f16 fill=constant", "fwd s170 h1 d256 bf16 fill=huge causal",
        "fwd s129 h2 d128 bf16", "fwd sq70 sk400 hq2 hk1 d128 f16 causal",
        "fwd sq130 sk161 h1 d256 f16", "fwd s70 hq2 hk1 d256 bf16 causal bhsd",
        // From 1537 rows on the causal tile of width 64 is the wide one. Most rows have no keys.
        "fwd sq1540 sk450 h1 d64 f16 causal", "fwd sq1537 sk193 h1 d64 bf16 causal",
        // Queries wider than values. Windows: narrow, wide, beside all keys, around the diagonal of
        // fewer and of more keys, of no key but one. Softcap and sinks, alone and with others.
        "fwd sq130 sk300 h2 d192 dv128 f16", "fwd s200 hq4 hk2 d192 dv128 bf16 causal",
        "fwd s300 h1 d64 f16 window=40,0", "fwd s400 h1 d128 bf16 window=10,100",
        "fwd sq200 sk70 h1 d64 f16 window=20,5", "fwd sq70 sk400 h1 d256 f16 window=100,-1",
        "fwd s140 h1 d128 f16 window=0,0", "fwd sq300 sk500 h1 d192 dv128 f16 window=130,3 causal",
        "fwd s150 h2 d64 f16 softcap=4", "fwd s150 h2 d128 bf16 softcap=30 causal fill=huge",
        "fwd s200 h2 d256 f16 softcap=8 window=50,50", "fwd s150 h2 d64 f16 sink",
        "fwd sq200 sk70 h2 d128 f16 sink causal", "fwd sq20 sk0 h2 d64 bf16 sink"),
    [](const auto& each) { return "Problem" + std::to_string(each.index); });

std::vector<tests::Factor> semantics() {
  return {
      {"fwd"},
      {"sq130 sk150", "sq1 sk300", "sq193 sk129", "b2 sq64 sk128", "b3 sq70 sk1", "sq129 sk0"},
      {"h1", "h2", "hq3 hk1", "hq4 hk2"},
      {"d64", "d128", "d256", "d192 dv128"},
      {"f16", "bf16"},
      {"", "bhsd"},
      {"", "causal"},
      {"", "window=60,0", "window=5,90", "window=200,200"},
      {"", "softcap=5"},
      {"", "sink"},
      {"", "scale=0.3", "scale=0"},
      {"", "lse_base=2"},
      {"fill=normal", "fill=huge", "fill=ascending", "fill=peaks", "fill=constant"},
  };
}

TEST(ForwardSm90Kernel, PassesOnEveryPairOfSemantics) {
  const Kernels kernels;
  tests::PairwiseProblems generator(
      semantics(), 1, [&](const Problem& problem) { return kernels.supports(problem).ok; });
  const tests::Covering covering = generator.cover();
  int number = 0;
  for (const Problem& problem : covering.problems) expect_pass(Kernels(1 + number++ % 3), problem);
  for (const Problem& problem : generator.more(12)) expect_pass(Kernels(1 + number++ % 3), problem);
  std::printf("%zu problems in which %zu pairs of semantics meet\n", covering.problems.size(),
              covering.pairs);
  EXPECT_GE(covering.pairs, 300u);
  EXPECT_EQ(covering.impossible, 0u);
}

// ------------------------------------------------------------------------- many pieces for a block

// Sequences, heads and row blocks follow each other in one block; of those without keys some lie
// between others. Where blocks ask for causal work, each piece is asked for once.
TEST(ForwardSm90Kernel, GoesThroughAllItsWork) {
  struct Row {
    const char* problem;
    int multiprocessors;
    std::uint32_t pieces;
  };
  for (const auto& [problem, multiprocessors, pieces] :
       {Row{"fwd b2 sq130 sk70 h2 d128 f16", 1, 8}, Row{"fwd b3 sq130 sk70 h2 d128 f16", 3, 12},
        Row{"fwd b2 sq200 sk200 hq4 hk2 d64 bf16", 3, 16}, Row{"fwd sq100 sk90 h5 d256 f16", 2, 5},
        // Six heads of two row blocks: a section each, and the last three together.
        Row{"fwd b2 sq150 sk180 h3 d64 f16 causal", 1, 12},
        Row{"fwd b2 sq150 sk180 h3 d64 bf16 causal", 2, 12},
        Row{"fwd b2 sq150 sk180 h3 d128 f16 causal", 3, 12},
        Row{"fwd b2 sq150 sk180 hq2 hk1 d256 bf16 causal", 2, 8},
        // Of five row blocks the first three or four have no keys.
        Row{"fwd b2 sq600 sk150 h1 d128 bf16 causal", 1, 10},
        Row{"fwd b2 sq600 sk100 h2 d64 f16 causal", 2, 20},
        Row{"fwd sq600 sk100 h1 d256 f16 causal", 3, 5}}) {
    const Kernels kernels(multiprocessors);
    expect_pass(kernels, problem_of(problem));
    EXPECT_EQ(kernels.asked_for, problem_of(problem).params().causal ? pieces : 0) << problem;
  }
}

// A block's pieces, how many blocks there are, and who gets which: none of it may show.
TEST(ForwardSm90Kernel, GivesTheSameBitsHoweverWorkAndCopiesCome) {
  for (const char* const text :
       {"fwd sq200 sk300 h2 d64 f16 causal", "fwd sq130 sk300 hq2 hk1 d64 bf16",
        "fwd b2 sq130 sk150 h1 d128 f16 causal", "fwd s140 h1 d256 bf16"}) {
    expect_same_bits_in_every_order(text, [&](const emulator::Options& options) {
      return outputs(Kernels(options.threads, options), text);
    });
  }
}

// As in one tensor of q, k and v; an output with gaps, and no LSE. Of a dimension with one element
// the stride may be anything.
TEST(ForwardSm90Kernel, TakesRowsThatLieApart) {
  constexpr std::uint16_t nan = 0x7e00;
  for (const char* const text : {"fwd b2 sq130 sk70 h2 d64 f16 causal", "fwd s70 h1 d128 f16",
                                 "fwd b2 s70 h1 d256 f16 causal"}) {
    const Kernels kernels;
    harness::Session session(kernels, problem_of(text));
    ASSERT_TRUE(session.allocate().ok() && session.fill().ok() && session.call_on_poison().ok());
    const AttentionTensors expected = session.tensors();
    AttentionTensors apart = expected;
    apart.lse = {};
    std::vector<std::uint16_t> copies[4];
    std::size_t n = 0;
    for (TensorView* const view : {&apart.q, &apart.k, &apart.v, &apart.o}) {
      const TensorView from = *view;
      const std::int64_t rows = from.shape[1], heads = from.shape[2], d = from.shape[3];
      const std::int64_t row = (heads + 2) * d, sequence = rows * row;
      copies[n].assign(static_cast<std::size_t>(from.shape[0] * sequence), nan);
      view->data = copies[n++].data();
      for (std::int64_t b = 0; b < from.shape[0]; ++b)
        for (std::int64_t i = 0; i < rows && view != &apart.o; ++i)
          for (std::int64_t h = 0; h < heads; ++h)
            std::memcpy(view->at(b * sequence + i * row + h * d),
                        from.at(b * from.strides[0] + i * from.strides[1] + h * from.strides[2]),
                        static_cast<std::size_t>(2 * d));
      view->strides[0] = from.shape[0] > 1 ? sequence : 0;
      view->strides[1] = row;
      view->strides[2] = heads > 1 ? d : -1;
    }
    alignas(64) unsigned char workspace[2 * workspace_head_bytes];
    std::memset(workspace, 0xab, sizeof workspace);
    harness::Call call{session.problem(), session.problem().params(), apart};
    call.workspace = workspace;
    call.workspace_bytes = kernels.workspace_bytes(session.problem());
    ASSERT_TRUE(kernels.run(call).ok()) << kernels.report.text();
    const TensorView &o = expected.o, &got = apart.o;
    for (std::int64_t b = 0; b < o.shape[0]; ++b)
      for (std::int64_t i = 0; i < o.shape[1]; ++i)
        for (std::int64_t h = 0; h < o.shape[2]; ++h)
          EXPECT_EQ(
              std::memcmp(got.at(b * got.strides[0] + i * got.strides[1] + h * got.strides[2]),
                          o.at(b * o.strides[0] + i * o.strides[1] + h * o.strides[2]),
                          static_cast<std::size_t>(2 * o.shape[3])),
              0)
              << text << ": " << b << ", " << i << ", " << h;
    const auto written = copies[3].size() - static_cast<std::size_t>(std::count(
                                                copies[3].begin(), copies[3].end(), nan));
    EXPECT_EQ(written, static_cast<std::size_t>(o.elements())) << text;
  }
}

// -------------------------------------------------------------------------------- what it may cost

TEST(ForwardSm90Kernel, ReadsKeysOnceARowBlockAndHasNoBankConflicts) {
  struct Row {
    std::int64_t d, Br;
  };
  for (const auto& [d, Br] : {Row{64, 192}, Row{128, 128}, Row{256, 128}}) {
    for (const char* const lengths : {"sq384 sk240", "sq300 sk201"}) {
      const std::string text = std::string("fwd ") + lengths + " h1 d" + std::to_string(d) + " f16";
      const Problem problem = problem_of(text);
      const std::int64_t rows = problem.seqlen_q(0), keys = problem.seqlen_k(0);
      const std::int64_t row_blocks = (rows + Br - 1) / Br;
      const Kernels kernels;
      (void)outputs(kernels, text);
      const emulator::Counts& counts = kernels.report.counts;
      EXPECT_EQ(counts.traffic.at("q").bytes_loaded, 2 * rows * d) << text;
      EXPECT_EQ(counts.traffic.at("k").bytes_loaded, row_blocks * 2 * keys * d) << text;
      EXPECT_EQ(counts.traffic.at("v").bytes_loaded, row_blocks * 2 * keys * d) << text;
      EXPECT_EQ(counts.traffic.at("o").bytes_stored, 2 * rows * d) << text;
      EXPECT_EQ(counts.traffic.at("lse").bytes_stored, 4 * rows) << text;
      EXPECT_EQ(counts.launches, 1);
      for (const auto& [line, banks] : counts.banks_by_line)
        EXPECT_LE(banks.conflict(), 1.0) << d << ", " << line.text();
    }
  }
}

TEST(ForwardSm90Kernel, LeavesOutWhatTheMaskHides) {
  const Kernels kernels;
  (void)outputs(kernels, "fwd s512 h1 d128 f16 causal");
  // Row blocks of 128 see 1, 2, 3 and 4 times as many keys.
  EXPECT_EQ(kernels.report.counts.traffic.at("k").bytes_loaded, 10 * 128 * 2 * 128);
  EXPECT_EQ(kernels.report.counts.launches, 2);  // the first clears the counter
  (void)outputs(kernels, "fwd sq512 sk128 h1 d128 f16 causal");
  EXPECT_EQ(kernels.report.counts.traffic.at("q").bytes_loaded, 128 * 2 * 128);
  EXPECT_EQ(kernels.report.counts.traffic.at("k").bytes_loaded, 128 * 2 * 128);
}

// A counter, where blocks ask for work; and what is to be said of a call.
TEST(ForwardSm90Kernel, WantsAWorkspaceOnlyToHandOutWork) {
  const Kernels h100(132);
  constexpr std::size_t counter = 2 * workspace_head_bytes;
  EXPECT_EQ(h100.workspace_bytes(problem_of("fwd s16384 h16 d128 f16")), 0u);
  EXPECT_EQ(h100.workspace_bytes(problem_of("fwd s16384 h16 d128 f16 causal")), counter);
  EXPECT_EQ(h100.workspace_bytes(problem_of("fwd s128 h132 d128 f16 causal")), 0u);
  EXPECT_EQ(h100.workspace_bytes(problem_of("fwd s128 h133 d128 f16 causal")), counter);
  EXPECT_EQ(h100.workspace_bytes(problem_of("fwd s1536 h11 d64 f16 causal")), 0u);
  EXPECT_EQ(h100.workspace_bytes(problem_of("fwd s1536 h12 d64 f16 causal")), counter);
  EXPECT_EQ(h100.workspace_bytes(problem_of("fwd s1537 h14 d64 f16 causal")), 0u);
  EXPECT_EQ(h100.workspace_bytes(problem_of("fwd s1537 h15 d64 f16 causal")), counter);
}

// ------------------------------------------------------------------------------------- whose it is

DeviceLimits limits_of(const emulator::Device& device, int kernels) {
  return {device.compute_capability, kernels, device.multiprocessors, device.shared_bytes_a_block};
}

TEST(ForwardSm90Kernel, IsChosenOnHopperForPlainCalls) {
  const DeviceLimits h100 = limits_of(emulator::Device::h100(), 90);
  for (const char* const text : {"fwd s4096 h16 d64 f16", "fwd s4096 h16 d128 bf16 causal",
                                 "fwd s100 hq4 hk2 d256 f16", "fwd s100 h2 d128 f16 scale=0",
                                 "fwd sq17 sk64 d64 f16 bhsd", "fwd s4096 d64 f16 splits=1"}) {
    const DeviceChoice choice = cuda::choose(question(text), h100);
    ASSERT_TRUE(choice.status.ok()) << text << ": " << choice.status.reason;
    EXPECT_STREQ(choice.implementation, "cuda.sm90") << text;
    EXPECT_TRUE(choice.fast) << text;
    EXPECT_TRUE(choice.slow.ok()) << text << ": " << choice.slow.reason;
  }
}

TEST(ForwardSm90Kernel, LeavesOtherCallsToThoseOfSm80) {
  struct Row {
    const char *problem, *why;
    bool fast;
  };
  const DeviceLimits h100 = limits_of(emulator::Device::h100(), 90);
  for (const auto& [problem, why, fast] :
       {Row{"fwd s100 d64 f16 scale=-0.3", "negative softmax_scale", true},
        Row{"fwd s100 d64 f16 chunk=32", "attention_chunk", false},
        Row{"fwd s100 d64 f16 dropout=0.2", "dropout", false},
        Row{"fwd s100 d64 f16 alibi", "alibi_slopes", false},
        Row{"fwd s100 d96 f16", "head_dim is 96", false},
        Row{"fwd s100 d64 dv128 f16", "head_dim_v", false},
        Row{"fwd b2 s100 d64 f16 packed", "cu_seqlens_q", false},
        Row{"fwd s100 d64 f16 splits=2", "num_splits", true},
        Row{"bwd s100 d64 f16", "backward", true}}) {
    const DeviceCall call = question(problem);
    const Status status = cuda::forward_sm90::serves(call, h100);
    EXPECT_FALSE(status.ok()) << problem;
    EXPECT_NE(std::string(status.reason).find(why), std::string::npos)
        << problem << ": " << status.reason;
    const DeviceChoice choice = cuda::choose(call, h100);
    ASSERT_TRUE(choice.status.ok()) << problem << ": " << choice.status.reason;
    EXPECT_STREQ(choice.implementation, "cuda.sm80") << problem;
    EXPECT_EQ(choice.fast, fast) << problem << ": " << choice.slow.reason;
    if (!fast) {
      EXPECT_NE(std::string(choice.slow.reason).find(why), std::string::npos)
          << problem << ": " << choice.slow.reason;
    }
  }
}

// The copy engine knows no stride of 0 (keys that were expanded over heads), and none above 2^40
// bytes; of a dimension with one element it does not matter.
TEST(ForwardSm90Kernel, LeavesStridesThatTheCopyEngineLacks) {
  const DeviceLimits h100 = limits_of(emulator::Device::h100(), 90);
  for (const std::int64_t stride : {std::int64_t{0}, std::int64_t{-64}, std::int64_t{1} << 39}) {
    for (TensorView AttentionTensors::*const tensor :
         {&AttentionTensors::q, &AttentionTensors::k, &AttentionTensors::v, &AttentionTensors::o})
      for (int n = 0; n < 3; ++n) {
        DeviceCall call = question("fwd b2 s100 h2 d64 f16");
        (call.tensors.*tensor).strides[n] = stride;
        const Status status = cuda::forward_sm90::serves(call, h100);
        EXPECT_FALSE(status.ok());
        EXPECT_NE(std::string(status.reason).find("a stride of " + std::to_string(stride)),
                  std::string::npos)
            << status.reason;
        EXPECT_STREQ(cuda::choose(call, h100).implementation, "cuda.sm80");
      }
    DeviceCall call = question("fwd s100 h1 d64 f16");
    for (TensorView* const view :
         {&call.tensors.q, &call.tensors.k, &call.tensors.v, &call.tensors.o})
      view->strides[0] = view->strides[2] = stride;
    EXPECT_STREQ(cuda::choose(call, h100).implementation, "cuda.sm90") << stride;
  }
}

TEST(ForwardSm90Kernel, IsHoppersAlone) {
  const DeviceCall call = question("fwd s4096 h16 d128 f16");
  for (const DeviceLimits& limits :
       {limits_of(emulator::Device::a100(), 80), limits_of(emulator::Device::rtx3090(), 80),
        limits_of(emulator::Device::h100(), 80)}) {
    EXPECT_NE(std::string(cuda::forward_sm90::serves(call, limits).reason)
                  .find("another compute capability than 9.0"),
              std::string::npos);
    EXPECT_STREQ(cuda::choose(call, limits).implementation, "cuda.sm80");
  }
}

// As users meet it: through the C interface on an H100. Blocks ask for the last of these pieces.
TEST(ForwardSm90Kernel, PassesThroughTheCInterface) {
  const auto kernels = tools::emulated_kernels(tools::Kernels::sm90);
  harness::Options options;
  options.repeats = 0;
  for (const char* const text : {"fwd b2 sq129 sk150 hq4 hk2 d64 bf16 causal",
                                 "fwd s17 h133 d64 f16 causal", "fwd sq130 sk100 h2 d128 f16"}) {
    const harness::Verdict verdict = harness::check(*kernels, text, options);
    EXPECT_TRUE(verdict.passed()) << to_text(verdict);
  }
  const harness::Support few = kernels->supports(problem_of("fwd sq3 sk100 h2 d128 f16"));
  EXPECT_FALSE(few.ok);
  EXPECT_NE(few.reason.find("cuda.sm80"), std::string::npos) << few.reason;
}

}  // namespace
}  // namespace tilewise
