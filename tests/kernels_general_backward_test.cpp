// The general backward kernels under the emulator: every semantic before the judge, pairwise; what
// the device's memory says wrongly; refusals by name. O and LSE are the oracle's, rounded.
#include "core/device_backend.hpp"
#include "cuda/emulator/named_memory.hpp"
#include "cuda/kernels/families.hpp"
#include "oracle/attention.hpp"
#include "oracle/harness/gtest.hpp"
#include "oracle/harness/session.hpp"
#include "pairwise.hpp"
#include "tests/kernels_support.hpp"
#include "tools/device_calls.hpp"
#include "tools/emulated_kernels.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace tilewise {
namespace {

DeviceCall backward_of(const Problem& problem, const AttentionTensors& tensors) {
  return tools::device_calls(problem, tensors).back();
}

/// Everything that the call's tensors may touch, each by its name.
void name_memory(emulator::NamedMemory& memory, const AttentionTensors& tensors) {
  for_each_tensor(tensors, [&](std::string_view name, const TensorView& view) {
    if (!view.exists() || view.elements() == 0) return;
    std::int64_t last = 0;
    for (int n = 0; n < view.ndim; ++n) last += (view.shape[n] - 1) * view.strides[n];
    memory.add(std::string(name).c_str(), view.data,
               static_cast<std::size_t>(last + 1) * size_of(view.dtype), size_of(view.dtype),
               name[0] != 'd' || name == "dout");
  });
}

/// O and LSE of rows that there are.
void write_forward(const harness::Call& call) {
  const oracle::Case exact(call.problem, call.tensors);
  const Problem& problem = call.problem;
  const AttentionTensors& t = call.tensors;
  for (std::int64_t b = 0; b < problem.batch; ++b)
    for (std::int64_t h = 0; h < problem.nheads_q; ++h) {
      const oracle::KeyValueHead head = oracle::read_key_value_head(exact, b, h / problem.group());
      for (std::int64_t i = 0; i < problem.seqlen_q(b); ++i) {
        const oracle::Row row = oracle::forward_row(exact, head, h, i);
        const std::int64_t o = exact.offset(t.o, oracle::Side::query, b, i, h);
        for (std::int64_t c = 0; c < problem.head_dim_v; ++c)
          store(t.o.dtype, t.o.at(o + c * t.o.strides[t.o.ndim - 1]),
                row.o[static_cast<std::size_t>(c)]);
        store(t.lse.dtype, t.lse.at(exact.lse_offset(t.lse, b, h, i)),
              oracle::expected_lse(exact.params().conventions, row));
      }
    }
}

/// The family by itself, so that it computes what others would compute faster, too.
class General final : public harness::Implementation {
 public:
  explicit General(const emulator::Options& options = {}) : options_(options) {}

  std::string_view name() const override { return "general_backward"; }
  std::string_view idea() const override { return "Every gradient, by flags."; }
  harness::Support supports(const Problem& problem) const override {
    const Status status = cuda::general_backward::serves(call_of(problem), {});
    return status.ok() ? harness::Support::yes() : harness::Support::no(status.reason);
  }
  std::size_t workspace_bytes(const Problem& problem) const override {
    return cuda::general_backward::workspace_bytes(call_of(problem), {});
  }

  Status run(const harness::Call& call) const override {
    write_forward(call);
    emulator::NamedMemory memory;
    name_memory(memory, call.tensors);
    memory.add("workspace", call.workspace, call.workspace_bytes, 4, false);
    emulator::Session session(options_);
    DeviceCall device_call = backward_of(call.problem, call.tensors);
    if (change) change(device_call);
    const Status status =
        cuda::emulated::general_backward(device_call, {}, call.workspace, nullptr);
    report = session.report();
    if (!report.clean()) return failure(Code::failed, "%s", report.text().c_str());
    error = static_cast<DeviceError>(static_cast<const WorkspaceHead*>(call.workspace)->error);
    return status;
  }

  std::function<void(DeviceCall&)> change;  ///< what is asked, a moment before it is
  mutable emulator::Report report;
  mutable DeviceError error = DeviceError::none;

 private:
  DeviceCall call_of(const Problem& problem) const {
    return backward_of(problem, harness::tensor_shapes(problem, writes(problem)));
  }

  emulator::Options options_;
};

harness::Options quick() {
  harness::Options options;
  options.repeats = 0;
  return options;
}

void expect_pass(const General& kernels, const Problem& problem) {
  const harness::Verdict verdict = harness::check(kernels, problem, quick());
  EXPECT_TRUE(verdict.passed()) << to_text(verdict);
  EXPECT_EQ(kernels.error, DeviceError::none) << to_string(problem);
}

// --------------------------------------------------------------------------------- every semantic

std::vector<tests::Factor> semantics() {
  return {
      {"bwd"},
      {"b2 sq17 sk33", "b2 sq1 sk65", "b3 sq5,0,20 sk64,7,0", "sq70 sk64", "b2 sq3 sk129,4"},
      {"hq1 hk1", "hq2 hk2", "hq2 hk1"},
      {"d16", "d64", "d33 dv17", "d1 dv1", "d160 dv3"},
      {"f16", "bf16"},
      {"", "bhsd", "packed"},
      {"", "causal"},
      {"", "window=9,0", "window=-1,3", "window=2,2"},
      {"", "chunk=13"},
      {"", "scale=-0.2"},
      {"", "softcap=2"},
      {"", "alibi"},
      {"", "bias=b,h,q,k", "bias=1,h,1,k", "bias=b,1,q,1", "bias=1,1,1,1"},
      {"", "mask=b,1,q,k", "mask=1,h,1,k"},
      {"", "blocks=16,16,0.5", "blocks=5,7,0.3"},
      {"", "sink"},
      {"", "dropout=0.3"},
      {"", "descale"},
      {"", "conv=fa2", "conv=torch_sdpa", "conv=flashinfer", "conv=vllm", "conv=cudnn scale=0.1",
       "conv=jax", "conv=hf_eager", "empty_o=nan", "mask_and_causal=causal_replaces"},
      {"fill=normal", "fill=huge", "fill=mixed", "fill=outliers"},
  };
}

TEST(GeneralBackward, PassesOnEveryPairOfSemantics) {
  const General kernels;
  tests::PairwiseProblems generator(
      semantics(), 1, [&](const Problem& problem) { return kernels.supports(problem).ok; });
  const tests::Covering covering = generator.cover();
  for (const Problem& problem : covering.problems) expect_pass(kernels, problem);
  std::printf("%zu problems in which %zu pairs of semantics meet\n", covering.problems.size(),
              covering.pairs);
  EXPECT_GE(covering.pairs, 1700u);
}

// Several tiles of rows and of keys, of each width that is compiled.
class GeneralBackwardOn : public testing::TestWithParam<const char*> {};

TEST_P(GeneralBackwardOn, PassesAndIsClean) {
  expect_pass(General{}, problem_of(GetParam()));
}
INSTANTIATE_TEST_SUITE_P(
    Emulated, GeneralBackwardOn,
    testing::Values(
        "bwd sq130 sk197 h1 d64 f16", "bwd s40 hq4 hk2 d128 bf16 bias=1,h,q,k",
        "bwd b2 sq17,30 sk33 h2 d80 dv72 f16 packed mask=b,1,q,k dropout=0.3",
        "bwd b2 sq129 sk70 hq2 hk1 d64 bf16 causal", "bwd s100 h1 d64 f16 fill=ascending scale=0.3",
        "bwd s100 h1 d32 dv64 bf16 fill=constant",
        "bwd s130 h1 d128 f16 causal window=70,0 softcap=3 sink",
        "bwd s70 h1 d256 bf16 dropout=0.4", "bwd s70 h1 d200 f16 causal alibi bias=1,1,q,k",
        "bwd sq40 sk0 h1 d64 f16 bias=1,1,q,1 sink", "bwd sq0 sk40 h1 d64 f16 bias=1,1,1,k sink",
        "bwd sq200 sk70 h1 d64 f16 causal conv=jax", "bwd s130 h1 d64 f16 blocks=64,64,0.4",
        "bwd s130 h1 d64 f16 blocks=1,1,0.3 conv=jax",
        "bwd s130 h1 d40 f16 blocks=100,90,0.7 causal",
        "bwd b3 sq100,1,80 sk150,90,0 h1 d64 f16 packed causal dropout=0.2 bias=1,1,1,k",
        "bwd b2 sq100,30 sk70,130 hq2 hk1 d64 bf16 bias=b,h,1,1 softcap=2 "
        "score_order=bias_softcap_mask"),
    [](const auto& each) { return "Problem" + std::to_string(each.index); });

/// The gradients.
TEST(GeneralBackward, GivesTheSameBitsHoweverWarpsAndCopiesCome) {
  for (const char* const text :
       {"bwd b2 sq130,9 sk90,40 hq2 hk1 d64 f16 packed causal blocks=16,16,0.5 dropout=0.2",
        "bwd b2 sq70 sk40 h2 d40 bf16 bias=1,1,1,k sink", "bwd s40 h1 d256 f16 bias=1,1,q,1"}) {
    expect_same_bits_in_every_order(
        text, [&](const emulator::Options& options) { return outputs(General(options), text); });
  }
}

TEST(GeneralBackward, FitsEveryDeviceFromSm80On) {
  for (const auto& device :
       {emulator::Device::a100(), emulator::Device::rtx3090(), emulator::Device::h100()})
    for (const char* const text : {"bwd s20 d64 f16 bias=1,1,q,k", "bwd s20 d128 f16 bias=1,1,q,k",
                                   "bwd s20 d256 f16 bias=1,1,q,k"}) {
      emulator::Options options;
      options.device = device;
      (void)outputs(General(options), text);
    }
}

TEST(GeneralBackward, ReadsTilesThatARowSeesAndNoOthers) {
  const auto bytes_of = [](const char* tensor, const std::string& text) {
    const General kernels;
    (void)outputs(kernels, text);
    return kernels.report.counts.traffic.at(tensor).bytes_loaded;
  };
  // K once by whoever has it, and once for each tile of rows that looks into it; Q likewise.
  constexpr std::int64_t tile = 64 * 2 * 64;
  EXPECT_EQ(bytes_of("k", "bwd s256 h1 d64 f16"), (4 + 16) * tile);
  EXPECT_EQ(bytes_of("k", "bwd s256 h1 d64 f16 causal"), (4 + 10) * tile);
  EXPECT_EQ(bytes_of("q", "bwd s256 h1 d64 f16 causal"), (4 + 10) * tile);
  EXPECT_EQ(bytes_of("q", "bwd s256 h1 d64 f16 chunk=64"), (4 + 4) * tile);
  EXPECT_EQ(bytes_of("q", "bwd s256 h1 d64 f16 window=1,0"), (4 + 7) * tile);
  EXPECT_LT(bytes_of("q", "bwd s256 h1 d64 f16 blocks=64,64,0.3"), (4 + 10) * tile);
}

TEST(GeneralBackward, ReadsAndWritesFloatsAndAnyStrides) {
  const std::string text = "bwd sq70 sk40 h1 d40 dv33 f16 causal";
  const General kernels;
  harness::Session session(kernels, problem_of(text));
  ASSERT_TRUE(session.allocate().ok() && session.fill().ok() && session.call_on_poison().ok());
  const AttentionTensors& t = session.tensors();
  // Columns three apart, rows from the last to the first; dO the same numbers as floats.
  const auto floats_like = [](const TensorView& view, std::vector<float>& memory) {
    const std::int64_t rows = view.shape[1], width = view.shape[3];
    memory.assign(static_cast<std::size_t>(rows * width * 3), -1);
    TensorView floats = view;
    floats.dtype = DType::f32;
    floats.strides[0] = floats.strides[2] = 7;
    floats.strides[1] = -3 * width;
    floats.strides[3] = 3;
    floats.data = memory.data() + (rows - 1) * 3 * width;
    return floats;
  };
  std::vector<float> numbers[4];
  const TensorView* const from[] = {&t.dq, &t.dk, &t.dv, &t.dout};
  TensorView to[4];
  emulator::NamedMemory memory;
  for (int n = 0; n < 4; ++n) {
    to[n] = floats_like(*from[n], numbers[n]);
    memory.add("floats", numbers[n].data(), numbers[n].size() * 4, 4, n == 3);
  }
  const auto offset = [](const TensorView& view, std::int64_t i, std::int64_t c) {
    return i * view.strides[1] + c * view.strides[3];
  };
  for (std::int64_t i = 0; i < 70; ++i)
    for (std::int64_t c = 0; c < 33; ++c)
      store(DType::f32, to[3].at(offset(to[3], i, c)),
            load(t.dout.dtype, t.dout.at(offset(t.dout, i, c))));
  General other;
  other.change = [&](DeviceCall& call) {
    call.tensors.dq = to[0];
    call.tensors.dk = to[1];
    call.tensors.dv = to[2];
    call.tensors.dout = to[3];
  };
  std::vector<std::byte> workspace(other.workspace_bytes(session.problem()) + 64);
  void* aligned = workspace.data() + (64 - reinterpret_cast<std::uintptr_t>(workspace.data()) % 64);
  const harness::Call call{session.problem(), session.problem().params(), t, aligned,
                           workspace.size() - 64};
  const Status status = other.run(call);
  ASSERT_TRUE(status.ok()) << status.reason;
  for (int n = 0; n < 3; ++n)
    for (std::int64_t i = 0; i < to[n].shape[1]; ++i)
      for (std::int64_t c = 0; c < to[n].shape[3]; ++c)
        EXPECT_EQ(rounded_to(DType::f16, load(DType::f32, to[n].at(offset(to[n], i, c)))),
                  load(DType::f16, from[n]->at(offset(*from[n], i, c))))
            << n << ": " << i << ", " << c;
}

// From the O and LSE of the kernels themselves, chosen as a caller's would be.
TEST(GeneralBackward, FollowsTheForwardKernels) {
  const auto kernels = tools::emulated_kernels();
  for (const char* const text :
       {"bwd s70 h2 d64 f16 window=20,3", "bwd b2 sq20,40 sk30 hq2 hk1 d40 bf16 packed causal sink",
        "bwd sq30 sk40 h1 d64 f16 causal conv=flashinfer softcap=3 bias=1,h,q,k dropout=0.2"})
    EXPECT_TRUE(harness::passes(*kernels, text, quick()));
}

TEST(GeneralBackward, ComputesWhatIsAskedForAlone) {
  for (const int asked : {0, 1, 2}) {
    General kernels;
    kernels.change = [&](DeviceCall& call) {
      AttentionTensors& t = call.tensors;
      if (asked != 0) t.dq = {};
      if (asked != 1) t.dk = {};
      if (asked != 2) t.dv = {};
      t.dbias = t.dsinks = {};
    };
    (void)outputs(kernels, "bwd s70 h1 d64 f16 bias=1,1,q,k sink");
    const char* const names[] = {"dq", "dk", "dv"};
    for (int n = 0; n < 3; ++n)
      EXPECT_EQ(kernels.report.counts.traffic[names[n]].bytes_stored, n == asked ? 70 * 128 : 0);
    EXPECT_EQ(kernels.report.counts.traffic["dbias"].bytes_stored, 0);
    EXPECT_EQ(kernels.report.counts.traffic["dsinks"].bytes_stored, 0);
  }
}

TEST(GeneralBackward, TakesSeedAndOffsetFromTheDevice) {
  std::uint64_t there[2] = {};
  emulator::NamedMemory memory;
  memory.add("seed and offset", there, sizeof there, 8, true);
  General kernels;
  kernels.change = [&](DeviceCall& call) {
    there[0] = std::exchange(call.params.philox_seed, 1);
    there[1] = std::exchange(call.params.philox_offset, 2);
    call.philox_seed = there;
    call.philox_offset = there + 1;
  };
  expect_pass(kernels, problem_of("bwd b2 sq40 sk70 h2 d64 f16 dropout=0.5 seed=77"));
}

// ---------------------------------------------------------------------- what only the device sees

struct Corruption {
  const char* problem;
  TensorView& (*tensor)(AttentionTensors& tensors);
  std::int64_t index;
  std::int32_t value;
  DeviceError error;
};

// Each access outside of a tensor would be a finding, and run() would fail.
TEST(GeneralBackward, ClampsWhatLiesOutsideAndSaysSo) {
  using T = AttentionTensors;
  constexpr std::int32_t least = std::numeric_limits<std::int32_t>::min();
  constexpr std::int32_t most = std::numeric_limits<std::int32_t>::max();
  constexpr auto cu_q = [](T& t) -> TensorView& { return t.cu_seqlens_q; };
  constexpr auto cu_k = [](T& t) -> TensorView& { return t.cu_seqlens_k; };
  constexpr auto seqlens_q = [](T& t) -> TensorView& { return t.seqlens_q; };
  constexpr auto seqlens_k = [](T& t) -> TensorView& { return t.seqlens_k; };
  constexpr auto counts = [](T& t) -> TensorView& { return t.block_mask.kv_num_blocks; };
  constexpr auto full_counts = [](T& t) -> TensorView& { return t.block_mask.full_kv_num_blocks; };
  constexpr auto indices = [](T& t) -> TensorView& { return t.block_mask.kv_indices; };
  constexpr const char* packed = "bwd b2 sq20,30 sk40,50 h1 d64 f16 packed causal alibi sink";
  constexpr const char* biased = "bwd b2 sq20,30 sk40,50 h1 d64 f16 packed bias=b,h,q,k";
  constexpr const char* padded = "bwd b2 sq20,30 sk40,50 h1 d64 f16 mask=b,1,q,k bias=1,1,1,1";
  constexpr const char* blocks = "bwd sq40 sk70 h1 d64 f16 blocks=16,16,1";
  for (const Corruption& each : {Corruption{packed, cu_q, 2, 1000, DeviceError::length},
                                 Corruption{packed, cu_q, 0, -5, DeviceError::length},
                                 Corruption{packed, cu_k, 2, most, DeviceError::length},
                                 Corruption{biased, cu_q, 2, least, DeviceError::length},
                                 Corruption{biased, cu_k, 1, 80, DeviceError::length},
                                 Corruption{padded, seqlens_q, 1, least, DeviceError::length},
                                 Corruption{padded, seqlens_k, 0, most, DeviceError::length},
                                 Corruption{padded, seqlens_k, 1, -1, DeviceError::length},
                                 Corruption{blocks, counts, 0, most, DeviceError::block_list},
                                 Corruption{blocks, full_counts, 0, 6, DeviceError::block_list},
                                 Corruption{blocks, indices, 0, 5, DeviceError::block_list},
                                 Corruption{blocks, indices, 0, least, DeviceError::block_list},
                                 Corruption{blocks, indices, 0, most, DeviceError::block_list}}) {
    General kernels;
    std::vector<std::int32_t> numbers;
    emulator::NamedMemory memory;
    kernels.change = [&](DeviceCall& call) {
      TensorView& view = each.tensor(call.tensors);
      const auto* const from = static_cast<const std::int32_t*>(view.data);
      numbers.assign(from, from + view.elements());
      numbers[static_cast<std::size_t>(each.index)] = each.value;
      memory.add("corrupted", numbers.data(), numbers.size() * 4, 4, true);
      view.data = numbers.data();
    };
    (void)outputs(kernels, each.problem);
    EXPECT_EQ(static_cast<int>(kernels.error), static_cast<int>(each.error))
        << each.problem << ": " << each.index << " is " << each.value;
  }
}

// ---------------------------------------------------------------------------------------- refusals

TEST(GeneralBackward, RefusesByNameWhatItDoesNotServe) {
  struct Refusal {
    const char *problem, *name;
  };
  const General kernels;
  for (const auto& [problem, name] :
       {Refusal{"bwd s64 d64 f32", "dtype f32"}, Refusal{"bwd s64 d64 e4m3", "dtype e4m3"},
        Refusal{"bwd s64 d257 f16", "head_dim is 257"},
        Refusal{"bwd s64 d64 dv512 f16", "head_dim_v is 512"},
        Refusal{"fwd s64 d64 f16", "forward"}}) {
    const harness::Support support = kernels.supports(problem_of(problem));
    EXPECT_FALSE(support.ok) << problem;
    EXPECT_NE(support.reason.find(name), std::string::npos) << problem << ": " << support.reason;
  }
}

// A float for each row and head, whatever the keys and the width.
TEST(GeneralBackward, WantsAWorkspaceThatGrowsWithTheRows) {
  const General kernels;
  for (const char* const text :
       {"bwd b2 sq100 sk70 hq4 hk2 d64 f16", "bwd b2 sq100 sk7000 h4 d256 f16"})
    EXPECT_EQ(kernels.workspace_bytes(problem_of(text)), workspace_head_bytes + 4u * 2 * 100 * 4)
        << text;
}

}  // namespace
}  // namespace tilewise
