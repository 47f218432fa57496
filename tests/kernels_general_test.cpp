// The general forward kernels under the emulator: every semantic before the judge, pairwise; what
// the device's memory says wrongly; refusals by name.
#include "cuda/emulator/named_memory.hpp"
#include "cuda/kernels/attention.hpp"
#include "cuda/kernels/families.hpp"
#include "oracle/harness/gtest.hpp"
#include "oracle/harness/session.hpp"
#include "pairwise.hpp"
#include "tests/kernels_support.hpp"
#include "tools/device_calls.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace tilewise {
namespace {

DeviceCall forward_of(const Problem& problem, const AttentionTensors& tensors) {
  return tools::device_calls(problem, tensors).front();
}

/// Everything that the call's tensors may touch, each by its name.
void name_memory(emulator::NamedMemory& memory, const AttentionTensors& tensors) {
  for_each_tensor(tensors, [&](std::string_view name, const TensorView& view) {
    if (!view.exists() || view.elements() == 0) return;
    std::int64_t last = 0;
    for (int n = 0; n < view.ndim; ++n) last += (view.shape[n] - 1) * view.strides[n];
    const std::size_t size = size_of(view.dtype), element = size == 34 ? 2 : size;
    memory.add(std::string(name).c_str(), view.data, static_cast<std::size_t>(last + 1) * size,
               element, name != "o" && name != "lse");
  });
}

/// The family by itself, so that it computes what others would compute faster, too.
class General final : public harness::Implementation {
 public:
  explicit General(const emulator::Options& options = {}) : options_(options) {}

  std::string_view name() const override { return "general_forward"; }
  std::string_view idea() const override { return "Every semantic, by flags."; }
  harness::Support supports(const Problem& problem) const override {
    const DeviceCall call = forward_of(problem, harness::tensor_shapes(problem, writes(problem)));
    if (problem.pass == Pass::backward) return harness::Support::no("backward");
    const Status status = cuda::general_forward::serves(call, {});
    return status.ok() ? harness::Support::yes() : harness::Support::no(status.reason);
  }
  std::size_t workspace_bytes(const Problem& problem) const override {
    return cuda::general_forward::workspace_bytes(
        forward_of(problem, harness::tensor_shapes(problem, writes(problem))), {});
  }

  Status run(const harness::Call& call) const override {
    emulator::NamedMemory memory;
    name_memory(memory, call.tensors);
    memory.add("workspace", call.workspace, call.workspace_bytes, 4, false);
    emulator::Session session(options_);
    DeviceCall device_call = forward_of(call.problem, call.tensors);
    if (change) change(device_call);
    Status status = cuda::emulated::general_forward(device_call, {}, call.workspace, nullptr);
    report = session.report();
    if (!report.clean()) return failure(Code::failed, "%s", report.text().c_str());
    error = DeviceError::none;
    if (call.workspace_bytes > 0)
      error = static_cast<DeviceError>(static_cast<const WorkspaceHead*>(call.workspace)->error);
    return status;
  }

  std::function<void(DeviceCall&)> change;  ///< what is asked, a moment before it is
  mutable emulator::Report report;
  mutable DeviceError error = DeviceError::none;

 private:
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

// ----------------------------------------------------------------------------------- every
// semantic

std::vector<tests::Factor> semantics() {
  return {
      {"fwd"},
      {"b2 sq17 sk33", "b2 sq1 sk65", "b3 sq5,0,20 sk64,7,0", "sq70 sk64", "b2 sq3 sk129,4"},
      {"hq1 hk1", "hq4 hk2", "hq3 hk1"},
      {"d16", "d64", "d33 dv17", "d1 dv1", "d32 dv64", "d80 dv72", "d160 dv3"},
      {"f16", "bf16"},
      {"", "bhsd", "packed"},
      {"", "causal"},
      {"", "window=9,0", "window=-1,3", "window=2,2"},
      {"", "chunk=13"},
      {"", "scale=0.3"},
      {"", "softcap=2"},
      {"", "alibi"},
      {"", "bias=b,h,q,k", "bias=1,h,1,k", "bias=b,1,q,1"},
      {"", "mask=b,1,q,k", "mask=1,h,1,k"},
      {"", "blocks=16,16,0.5", "blocks=5,7,0.3"},
      {"", "sink"},
      {"", "dropout=0.3"},
      {"", "page=16", "page=5", "slots=5"},
      {"", "leftpad=4"},
      {"", "new=3"},
      {"", "rotary=16", "rotary=8,half"},
      {"", "kv=i8", "kv=q8_0", "kv=e4m3", "kv=e5m2"},
      {"", "descale"},
      {"", "splits=3"},
      {"", "conv=fa2", "conv=torch_sdpa", "conv=xformers", "conv=flashinfer", "conv=vllm",
       "conv=onnx", "conv=cudnn scale=0.1", "conv=ggml scale=0.2", "conv=jax",
       "conv=triton_tutorial scale=0.2", "conv=hf_eager"},
      {"fill=normal", "fill=huge", "fill=ascending", "fill=mixed", "fill=outliers",
       "fill=constant"},
  };
}

TEST(GeneralForward, PassesOnEveryPairOfSemantics) {
  const General kernels;
  tests::PairwiseProblems generator(
      semantics(), 1, [&](const Problem& problem) { return kernels.supports(problem).ok; });
  const tests::Covering covering = generator.cover();
  for (const Problem& problem : covering.problems) expect_pass(kernels, problem);
  for (const Problem& problem : generator.more(60)) expect_pass(kernels, problem);
  std::printf("%zu problems in which %zu pairs of semantics meet\n", covering.problems.size(),
              covering.pairs);
  EXPECT_GE(covering.pairs, 2500u);
}

// Several row blocks and tiles of keys, of each width that is compiled, and what pairs are too
// small for.
class GeneralForwardOn : public testing::TestWithParam<const char*> {};

TEST_P(GeneralForwardOn, PassesAndIsClean) {
  expect_pass(General{}, problem_of(GetParam()));
}
INSTANTIATE_TEST_SUITE_P(
    Emulated, GeneralForwardOn,
    testing::Values(
        "fwd sq130 sk197 h1 d64 f16", "fwd b2 sq129 sk150 hq2 hk1 d64 bf16 causal",
        "fwd s130 h1 d128 f16 causal window=70,0 softcap=3 sink",
        "fwd s100 h1 d256 bf16 dropout=0.4", "fwd s100 h1 d200 f16 causal alibi",
        "fwd sq40 sk0 h1 d64 f16", "fwd sq0 sk40 h1 d64 f16", "fwd s70 d64 f16 scale=-0.3",
        "fwd sq200 sk70 h1 d64 f16 causal conv=jax", "fwd s200 h1 d64 f16 blocks=64,64,0.4",
        "fwd s200 h1 d64 f16 blocks=1,1,0.3", "fwd s200 h1 d64 f16 blocks=128,128,0.7 causal",
        "fwd b3 sq100,1,80 sk150,90,0 h1 d64 f16 packed causal dropout=0.2",
        "fwd b2 sq3 sk300,70 hq4 hk2 d128 bf16 page=16 leftpad=3 new=2 causal rotary=32",
        "fwd b2 sq70 sk300,70 h1 d64 f16 page=7 kv=e5m2 descale",
        "fwd b40 sq3 sk5 hq2 hk1 d16 f16 packed",
        "fwd b35 sq70,1,0,9,64,65,2,3,4,0,0,1,5,128,7,1,1,2,0,3,1,1,1,1,1,1,1,1,1,1,1,"
        "130,0,66,2 sk9 h1 d16 f16 packed causal",
        "fwd b2 sq1 sk130,70 h1 d256 bf16 page=16 kv=q8_0"),
    [](const auto& each) { return "Problem" + std::to_string(each.index); });

/// O and LSE, and a cache that grew.
TEST(GeneralForward, GivesTheSameBitsHoweverWarpsAndCopiesCome) {
  for (const char* const text :
       {"fwd b2 sq130,9 sk150,40 h1 d64 f16 packed causal blocks=16,16,0.5 dropout=0.2",
        "fwd b2 sq5 sk70,30 hq2 hk1 d40 bf16 page=5 new=2 rotary=16"}) {
    expect_same_bits_in_every_order(
        text, [&](const emulator::Options& options) { return outputs(General(options), text); });
  }
}

TEST(GeneralForward, FitsEveryDeviceFromSm80On) {
  for (const auto& device :
       {emulator::Device::a100(), emulator::Device::rtx3090(), emulator::Device::h100()})
    for (const char* const text : {"fwd s30 d64 f16", "fwd s30 d128 f16", "fwd s30 d256 f16"}) {
      emulator::Options options;
      options.device = device;
      (void)outputs(General(options), text);
    }
}

TEST(GeneralForward, ReadsTilesThatARowSeesAndNoOthers) {
  const General kernels;
  const auto bytes_of_k = [&](const std::string& text) {
    (void)outputs(kernels, text);
    const auto& traffic = kernels.report.counts.traffic;
    const auto k = traffic.find("k");
    return k == traffic.end() ? 0 : k->second.bytes_loaded;
  };
  constexpr std::int64_t tile = 64 * 2 * 64;
  EXPECT_EQ(bytes_of_k("fwd s256 h1 d64 f16"), 16 * tile);
  EXPECT_EQ(bytes_of_k("fwd s256 h1 d64 f16 causal"), 10 * tile);
  EXPECT_EQ(bytes_of_k("fwd s256 h1 d64 f16 chunk=64"), 4 * tile);
  // The second to fourth row block look at one key before their own.
  EXPECT_EQ(bytes_of_k("fwd s256 h1 d64 f16 window=1,0"), 4 * tile + 3 * 2 * 64);
  EXPECT_LT(bytes_of_k("fwd s256 h1 d64 f16 blocks=64,64,0.3"), 10 * tile);
  EXPECT_EQ(bytes_of_k("fwd s256 h1 d64 f16 blocks=64,64,1"), 16 * tile);
  EXPECT_EQ(bytes_of_k("fwd s256 h1 d64 f16 blocks=64,64,0"), 0);
  // Of the four row blocks each has looked at one tile's lists, and knew that it was done.
  EXPECT_LE(kernels.report.counts.barriers, 4 * 2);
}

TEST(GeneralForward, WritesFloatsAndAnyStrides) {
  const std::string text = "fwd sq70 sk40 h1 d40 dv33 f16 causal";
  const General kernels;
  harness::Session session(kernels, problem_of(text));
  ASSERT_TRUE(session.allocate().ok() && session.fill().ok() && session.call_on_poison().ok());
  const TensorView o = session.tensors().o, lse = session.tensors().lse;
  // Columns three apart, rows from the last to the first.
  std::vector<float> floats(70 * 33 * 3, -1), lses(70 * 2, -1);
  emulator::NamedMemory memory;
  memory.add("floats", floats.data(), floats.size() * 4, 4, false);
  memory.add("lses", lses.data(), lses.size() * 4, 4, false);
  General other;
  other.change = [&](DeviceCall& call) {
    TensorView& view = call.tensors.o;
    view.data = floats.data() + 69 * 99;
    view.dtype = DType::f32;
    view.strides[0] = view.strides[2] = 7;
    view.strides[1] = -99;
    view.strides[3] = 3;
    call.tensors.lse.data = lses.data();
    call.tensors.lse.strides[2] = 2;
  };
  const harness::Call call{session.problem(), session.problem().params(), session.tensors()};
  ASSERT_TRUE(other.run(call).ok());
  for (std::int64_t i = 0; i < 70; ++i) {
    for (std::int64_t c = 0; c < 33; ++c) {
      const auto value = static_cast<double>(floats[(69 - i) * 99 + 3 * c]);
      EXPECT_EQ(rounded_to(DType::f16, value),
                load(o.dtype, o.at(i * o.strides[1] + c * o.strides[3])))
          << i << ", " << c;
    }
    EXPECT_EQ(lses[2 * i], static_cast<float>(load(lse.dtype, lse.at(i * lse.strides[2]))));
  }
}

// q, k and v with columns some numbers apart and rows from the last to the first.
TEST(GeneralForward, ReadsAnyStrides) {
  const std::string text = "fwd sq70 sk90 h1 d40 f16 causal";
  const General kernels;
  harness::Session session(kernels, problem_of(text));
  ASSERT_TRUE(session.allocate().ok() && session.fill().ok() && session.call_on_poison().ok());
  const auto expected = session.buffers().snapshot();
  for (const std::int64_t step : {1, 3}) {
    std::vector<std::uint16_t> copies[3];
    emulator::NamedMemory memory;
    General other;
    other.change = [&](DeviceCall& call) {
      std::size_t n = 0;
      for (TensorView* const view : {&call.tensors.q, &call.tensors.k, &call.tensors.v}) {
        const TensorView from = *view;
        const std::int64_t rows = from.shape[1], columns = from.shape[3];
        copies[n].assign(static_cast<std::size_t>(rows * columns * step), 0x7e00);  // NaN
        memory.add("copies", copies[n].data(), copies[n].size() * 2, 2, true);
        view->data = copies[n].data() + (rows - 1) * columns * step;
        view->strides[1] = -columns * step;
        view->strides[3] = step;
        for (std::int64_t i = 0; i < rows; ++i)
          for (std::int64_t c = 0; c < columns; ++c)
            std::memcpy(view->at(i * view->strides[1] + c * step),
                        from.at(i * from.strides[1] + c * from.strides[3]), 2);
        ++n;
      }
    };
    const harness::Call call{session.problem(), session.problem().params(), session.tensors()};
    ASSERT_TRUE(other.run(call).ok()) << other.report.text();
    const auto got = session.buffers().snapshot();
    for (std::size_t n = 0; n < got.size(); ++n) EXPECT_EQ(got[n].bytes, expected[n].bytes) << step;
  }
}

TEST(GeneralForward, TakesSeedAndOffsetFromTheDevice) {
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
  expect_pass(kernels, problem_of("fwd b2 sq40 sk70 h2 d64 f16 dropout=0.5 seed=77"));
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
TEST(GeneralForward, ClampsWhatLiesOutsideAndSaysSo) {
  using T = AttentionTensors;
  constexpr std::int32_t least = std::numeric_limits<std::int32_t>::min();
  constexpr std::int32_t most = std::numeric_limits<std::int32_t>::max();
  constexpr auto cu_q = [](T& t) -> TensorView& { return t.cu_seqlens_q; };
  constexpr auto cu_k = [](T& t) -> TensorView& { return t.cu_seqlens_k; };
  constexpr auto seqlens_q = [](T& t) -> TensorView& { return t.seqlens_q; };
  constexpr auto seqlens_k = [](T& t) -> TensorView& { return t.seqlens_k; };
  constexpr auto table = [](T& t) -> TensorView& { return t.cache.block_table; };
  constexpr auto row = [](T& t) -> TensorView& { return t.cache.cache_batch_idx; };
  constexpr auto leftpad = [](T& t) -> TensorView& { return t.cache.leftpad; };
  constexpr auto counts = [](T& t) -> TensorView& { return t.block_mask.kv_num_blocks; };
  constexpr auto full_counts = [](T& t) -> TensorView& { return t.block_mask.full_kv_num_blocks; };
  constexpr auto indices = [](T& t) -> TensorView& { return t.block_mask.kv_indices; };
  constexpr const char* packed = "fwd b2 sq20,30 sk40,50 h1 d64 f16 packed causal alibi";
  constexpr const char* biased = "fwd b2 sq20,30 sk40,50 h1 d64 f16 packed bias=b,h,q,k";
  constexpr const char* padded = "fwd b2 sq20,30 sk40,50 h1 d64 f16 mask=b,1,q,k";
  constexpr const char* paged = "fwd b2 sq2 sk40,50 h1 d64 f16 page=16 new=2 rotary=16";
  constexpr const char* cached = "fwd b2 sq2 sk40,50 h1 d64 f16 slots=5 leftpad=4";
  constexpr const char* blocks = "fwd sq40 sk70 h1 d64 f16 blocks=16,16,1";
  for (const Corruption& each : {Corruption{packed, cu_q, 1, 1000, DeviceError::length},
                                 Corruption{packed, cu_q, 0, -5, DeviceError::length},
                                 Corruption{packed, cu_q, 2, most, DeviceError::length},
                                 Corruption{packed, cu_k, 1, least, DeviceError::length},
                                 Corruption{packed, cu_k, 2, most, DeviceError::length},
                                 Corruption{biased, cu_q, 1, 45, DeviceError::length},
                                 Corruption{biased, cu_k, 1, 80, DeviceError::length},
                                 Corruption{padded, seqlens_q, 0, 31, DeviceError::length},
                                 Corruption{padded, seqlens_q, 1, least, DeviceError::length},
                                 Corruption{padded, seqlens_k, 0, most, DeviceError::length},
                                 Corruption{padded, seqlens_k, 1, -1, DeviceError::length},
                                 Corruption{paged, table, 0, 1'000'000, DeviceError::page},
                                 Corruption{paged, table, 1, -1, DeviceError::page},
                                 Corruption{paged, table, 0, most, DeviceError::page},
                                 Corruption{paged, seqlens_k, 0, most, DeviceError::capacity},
                                 Corruption{paged, seqlens_k, 1, 63, DeviceError::capacity},
                                 Corruption{paged, seqlens_k, 1, -9, DeviceError::length},
                                 Corruption{cached, seqlens_k, 1, 1000, DeviceError::length},
                                 Corruption{cached, row, 0, 77, DeviceError::cache_row},
                                 Corruption{cached, row, 1, least, DeviceError::cache_row},
                                 Corruption{cached, leftpad, 0, 1000, DeviceError::cache_row},
                                 Corruption{cached, leftpad, 1, -1, DeviceError::cache_row},
                                 Corruption{blocks, counts, 0, most, DeviceError::block_list},
                                 Corruption{blocks, counts, 1, -1, DeviceError::block_list},
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

TEST(GeneralForward, RefusesByNameWhatItDoesNotServe) {
  struct Refusal {
    const char *problem, *name;
  };
  const General kernels;
  for (const auto& [problem, name] :
       {Refusal{"fwd s64 d64 f32", "f32"}, Refusal{"fwd s64 d64 f64", "f64"},
        Refusal{"fwd s64 d64 e4m3", "e4m3"}, Refusal{"fwd s64 d257 f16", "head_dim is 257"},
        Refusal{"fwd s64 d64 dv512 f16", "head_dim_v is 512"},
        Refusal{"bwd s64 d64 f16", "backward"}}) {
    const harness::Support support = kernels.supports(problem_of(problem));
    EXPECT_FALSE(support.ok) << problem;
    EXPECT_NE(support.reason.find(name), std::string::npos) << problem << ": " << support.reason;
  }
}

TEST(GeneralForward, WantsAWorkspaceOnlyWhereTheDeviceMayBeWrong) {
  const General kernels;
  EXPECT_EQ(kernels.workspace_bytes(problem_of("fwd s64 d40 f16 causal bias=1,1,q,k")), 0u);
  for (const char* const text :
       {"fwd s64 d40 f16 packed", "fwd b2 sq3,4 sk5 d40 f16", "fwd s64 d40 f16 blocks=16,16,0.5",
        "fwd b2 sq3 sk70 d40 f16 page=16"})
    EXPECT_EQ(kernels.workspace_bytes(problem_of(text)), workspace_head_bytes) << text;
}

}  // namespace
}  // namespace tilewise
