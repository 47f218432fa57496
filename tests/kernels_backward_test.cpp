// The shipped fast backward kernels under the emulator, before the judge.
#include "cuda/emulator/named_memory.hpp"
#include "cuda/kernels/attention.hpp"
#include "cuda/kernels/families.hpp"
#include "cuda/kernels/sm80/backward_tile.hpp"
#include "oracle/harness/buffers.hpp"
#include "oracle/harness/gtest.hpp"
#include "oracle/harness/session.hpp"
#include "tests/kernels_support.hpp"
#include "tools/device_calls.hpp"

#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace tilewise {
namespace {

DeviceLimits limits_of(const emulator::Device& device) {
  return {device.compute_capability, 80, device.multiprocessors, device.shared_bytes_a_block};
}

/// The backward call of a problem, without memory.
DeviceCall question(const std::string& text) {
  const Problem problem = problem_of(text);
  harness::Outputs outputs = harness::Outputs::all();
  outputs.dbias = outputs.dsinks = false;
  outputs.dq = outputs.dk = outputs.dv = problem.pass == Pass::backward;
  return tools::device_calls(problem, harness::tensor_shapes(problem, outputs)).back();
}

/// The shipped kernels, asked directly, for the same bits in every run or not.
class Kernels final : public harness::Implementation {
 public:
  explicit Kernels(const emulator::Options& options = {}, bool deterministic = true)
      : options_(options), limits_(limits_of(options.device)), deterministic_(deterministic) {}

  std::string_view name() const override { return "emulated.backward"; }
  std::string_view idea() const override { return "In turn or not."; }
  harness::Support supports(const Problem& problem) const override {
    for (const DeviceCall& call : calls(problem))
      if (const DeviceChoice choice = cuda::choose(call, limits_); !choice.status.ok())
        return harness::Support::no(choice.status.reason);
    return harness::Support::yes();
  }
  std::size_t workspace_bytes(const Problem& problem) const override {
    return cuda::workspace_bytes(calls(problem).back(), limits_);
  }
  harness::Outputs repeatable() const override {
    harness::Outputs outputs = harness::Outputs::all();
    outputs.dq = deterministic_;
    return outputs;
  }
  Status run(const harness::Call& call) const override {
    emulator::NamedMemory memory;
    for_each_tensor(call.tensors, [&](std::string_view tensor, const TensorView& view) {
      if (!view.exists() || view.elements() == 0) return;
      const bool output =
          tensor == "o" || tensor == "lse" || (tensor[0] == 'd' && tensor != "dout");
      memory.add(std::string(tensor).c_str(), view.data,
                 static_cast<std::size_t>(view.elements()) * size_of(view.dtype),
                 size_of(view.dtype), !output);
    });
    memory.add("workspace", call.workspace, call.workspace_bytes, 4, false);
    emulator::Session session(options_);
    for (DeviceCall each : tools::device_calls(call.problem, call.tensors)) {
      session.report().counts = {};  // of backward alone, in the end
      each.deterministic = deterministic_;
      const Status status = cuda::emulated::compute(each, limits_, call.workspace, nullptr);
      if (!status.ok()) return status;
    }
    if (error_of(call) != 0) return failure(Code::failed, "the workspace's error is not 0");
    counts = session.report().counts;
    const std::string text = session.report().text();
    return session.report().clean() ? Status{} : failure(Code::failed, "%s", text.c_str());
  }

  mutable emulator::Counts counts;

 private:
  std::vector<DeviceCall> calls(const Problem& problem) const {
    return tools::device_calls(problem, harness::tensor_shapes(problem, writes(problem)));
  }
  static std::uint32_t error_of(const harness::Call& call) {
    return call.workspace_bytes == 0 ? 0 : static_cast<const WorkspaceHead*>(call.workspace)->error;
  }

  emulator::Options options_;
  DeviceLimits limits_;
  bool deterministic_;
};

/// With one repeat: orders have a test of their own.
harness::Verdict judged(const Kernels& kernels, const std::string& text) {
  harness::Options options;
  options.repeats = 1;
  return harness::check(kernels, text, options);
}

emulator::Counts counts_of(const std::string& text, bool deterministic = false) {
  const Kernels kernels({}, deterministic);
  harness::Session session(kernels, problem_of(text));
  EXPECT_TRUE(session.allocate().ok()) << text;
  EXPECT_TRUE(session.fill().ok());
  const Status status = session.call_on_poison();
  EXPECT_TRUE(status.ok()) << text << ": " << status.reason;
  return kernels.counts;
}

class Backward : public testing::TestWithParam<const char*> {};

// Lengths that no tile divides, both directions of the diagonal, shared heads, strides, extremes.
TEST_P(Backward, PassesAndIsClean) {
  ASSERT_TRUE(cuda::backward::serves(question(GetParam()), limits_of({})).ok()) << GetParam();
  const harness::Verdict verdict = judged(Kernels(), GetParam());
  EXPECT_TRUE(verdict.passed()) << to_text(verdict);
}
INSTANTIATE_TEST_SUITE_P(
    Emulated, Backward,
    testing::Values("bwd sq1 sk1 h1 d64 f16", "bwd sq130 sk197 h2 d64 f16",
                    "bwd b2 sq129 sk70 hq2 hk1 d64 bf16 causal", "bwd sq40 sk0 h1 d64 f16",
                    "bwd sq0 sk40 h1 d64 f16", "bwd sq0 sk140 h1 d128 f16 causal",
                    "bwd sq200 sk70 h1 d64 f16 causal bhsd", "bwd sq200 sk70 h1 d128 bf16 causal",
                    "bwd sq65 sk130 h2 d64 bf16 causal lse_base=2",
                    "bwd sq64 sk128 h1 d64 f16 scale=-0.3", "bwd s140 h1 d64 f16 scale=0 causal",
                    "bwd s150 h1 d64 f16 fill=huge", "bwd s150 h1 d64 bf16 fill=ascending",
                    "bwd s150 h1 d128 f16 fill=peaks causal", "bwd s90 h1 d64 f16 fill=constant",
                    "bwd s129 h1 d128 bf16", "bwd sq70 sk150 hq2 hk1 d128 f16 causal",
                    "bwd sq130 sk64 h1 d128 f16 scale=-0.2 bhsd lse_base=2",
                    "bwd b2 s70 h1 d128 bf16 causal fill=huge", "bwd s129 h1 d256 bf16 causal",
                    "bwd sq70 sk100 hq2 hk1 d256 f16"));

TEST(BackwardKernel, PassesOutOfTurnToo) {
  for (const char* const text :
       {"bwd s150 hq2 hk1 d64 f16 causal", "bwd sq70 sk200 h1 d128 bf16"}) {
    const harness::Verdict verdict = judged(Kernels({}, false), text);
    EXPECT_TRUE(verdict.passed()) << to_text(verdict);
  }
}

// The tile is the device's.
TEST(BackwardKernel, FitsEveryDeviceFromSm80On) {
  for (const auto& device :
       {emulator::Device::a100(), emulator::Device::rtx3090(), emulator::Device::h100()})
    for (const char* const text :
         {"bwd s70 d64 f16", "bwd s70 h1 d128 f16 causal", "bwd s70 h1 d256 f16"}) {
      emulator::Options options;
      options.device = device;
      const harness::Verdict verdict = judged(Kernels(options), text);
      EXPECT_TRUE(verdict.passed()) << device.name << ": " << to_text(verdict);
    }
}

TEST(BackwardKernel, GivesTheSameBitsInTurnHoweverBlocksAndCopiesCome) {
  for (const char* const text :
       {"bwd sq140 sk270 hq2 hk1 d64 f16 causal", "bwd sq70 sk270 h1 d128 bf16"}) {
    expect_same_bits_in_every_order(
        text, [&](const emulator::Options& options) { return outputs(Kernels(options), text); });
  }
}

TEST(BackwardKernel, ReadsQueriesOnceAKeyBlockAndHasNoBankConflicts) {
  for (const std::int64_t d : {64, 128, 256}) {
    const std::int64_t key_blocks = d == 256 ? 4 : 2;
    const emulator::Counts counts = counts_of("bwd s256 h1 d" + std::to_string(d) + " f16");
    const std::int64_t tensor = 2 * 256 * d;
    EXPECT_EQ(counts.traffic.at("q").bytes_loaded, key_blocks * tensor);
    EXPECT_EQ(counts.traffic.at("dout").bytes_loaded, (key_blocks + 1) * tensor);  // once for D
    for (const char* const once : {"k", "v", "o"})
      EXPECT_EQ(counts.traffic.at(once).bytes_loaded, tensor) << once;
    for (const char* const once : {"dq", "dk", "dv"})
      EXPECT_EQ(counts.traffic.at(once).bytes_stored, tensor) << once;
    EXPECT_EQ(counts.traffic.at("workspace").atomics, key_blocks * 256 * d);
    EXPECT_EQ(counts.launches, 3);
    for (const auto& [line, banks] : counts.banks_by_line)
      EXPECT_LE(banks.conflict(), 1.0) << d << ", " << line.text();
  }
}

TEST(BackwardKernel, LeavesOutWhatTheMaskHides) {
  // Blocks of 128 keys are passed by 8, 6, 4 and 2 tiles of 64 queries.
  const emulator::Counts counts = counts_of("bwd s512 h1 d64 f16 causal");
  EXPECT_EQ(counts.traffic.at("q").bytes_loaded, 20 * 64 * 2 * 64);
}

// What a tile is chosen by: loads from shared memory for each mma.
TEST(BackwardKernel, LoadsAsOftenAsItsTileSays) {
  using Tile = cuda::sm80::Backward128;
  const emulator::Counts counts = counts_of("bwd s128 h1 d128 f16");
  EXPECT_EQ(counts.mma, 2 * Tile::warps * Tile::mma_a_warp());
  std::int64_t requests = 0;
  for (const auto& [line, banks] : counts.banks_by_line)
    if (line.file == "backward_kernel.hpp" || line.inlined_at.find("backward_kernel.hpp") == 0)
      requests += banks.requests;
  // Two tiles of queries: ldmatrix; P and dS, 4 registers each; LSE and D; copies are others'.
  const std::int64_t stores = 2 * Tile::heights * (Tile::slice / 16) * 4;
  const std::int64_t rows = 2 * Tile::heights * Tile::slice / 8;
  EXPECT_GE(requests, 2 * Tile::warps * (Tile::ldmatrix_a_warp() + stores + rows));
}

TEST(BackwardKernel, RefusesByNameWhatItDoesNotServe) {
  struct Refusal {
    const char *problem, *name;
  };
  for (const auto& [problem, name] :
       {Refusal{"bwd s64 d64 f32", "dtype"}, Refusal{"bwd s64 d96 f16", "head_dim is 96"},
        Refusal{"bwd s64 d64 dv128 f16", "head_dim_v is 128"},
        Refusal{"bwd s64 d64 f16 window=3,0", "window"},
        Refusal{"bwd s64 d64 f16 softcap=5", "softcap"},
        Refusal{"bwd s64 d64 f16 dropout=0.1", "dropout"},
        Refusal{"bwd s64 d64 f16 bias=1,1,q,k", "bias"}, Refusal{"bwd s64 d64 f16 sink", "sinks"},
        Refusal{"bwd s64 d64 f16 packed", "cu_seqlens_q"},
        Refusal{"bwd sq32 sk64 d64 f16 causal align=top_left", "top left"},
        Refusal{"fwd s64 d64 f16", "forward"}}) {
    const Status status = cuda::backward::serves(question(problem), limits_of({}));
    EXPECT_FALSE(status.ok()) << problem;
    EXPECT_NE(std::string(status.reason).find(name), std::string::npos)
        << problem << ": " << status.reason;
  }
  DeviceCall call = question("bwd s64 d128 f16");
  DeviceLimits small = limits_of({});
  small.shared_bytes_a_block = 64 * 1024;
  EXPECT_NE(std::string(cuda::backward::serves(call, small).reason).find("shared memory"),
            std::string::npos);
  call.tensors.dq = {};
  EXPECT_NE(std::string(cuda::backward::serves(call, limits_of({})).reason).find("dq is absent"),
            std::string::npos);
}

// D + 2 floats a query, and a line of 128 bytes for 64 of them.
TEST(BackwardKernel, WantsAWorkspaceLinearInTheQueries) {
  const auto bytes = [](const char* text) {
    return cuda::backward::workspace_bytes(question(text), limits_of({}));
  };
  EXPECT_EQ(bytes("bwd s1024 h16 d128 f16"), 128u + 16u * 1024u * 4u * 130u + 16u * 16u * 128u);
  EXPECT_EQ(bytes("bwd s1024 h16 d128 f16"), bytes("bwd sq1024 sk64 h16 d128 f16"));
  EXPECT_EQ(bytes("bwd s2048 h16 d64 f16") - 128, 2 * (bytes("bwd s1024 h16 d64 f16") - 128));
}

}  // namespace
}  // namespace tilewise
