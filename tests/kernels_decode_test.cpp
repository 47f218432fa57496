// The decode kernels under the emulator: before the judge, and called as an app would call them,
// with lengths and tables that are wrong.
#include "cuda/emulator/named_memory.hpp"
#include "cuda/kernels/attention.hpp"
#include "cuda/kernels/families.hpp"
#include "oracle/harness/gtest.hpp"
#include "oracle/harness/session.hpp"
#include "stages/cuda_adapter.hpp"
#include "tools/device_calls.hpp"
#include "tools/emulated_kernels.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace tilewise {
namespace {

constexpr DeviceLimits h100{90, 80, 132, 227 * 1024};

Problem problem_of(const std::string& text) {
  return std::get<Problem>(parse_problem(text));
}

DeviceCall call_of(const std::string& text) {
  const Problem problem = problem_of(text);
  const harness::Outputs outputs{true, true};
  return tools::device_calls(problem, harness::tensor_shapes(problem, outputs)).front();
}

class Decode : public testing::TestWithParam<const char*> {};

TEST_P(Decode, PassesAndIsClean) {
  const Status ours = cuda::decode::serves(call_of(GetParam()), h100);
  ASSERT_TRUE(ours.ok()) << ours.reason;
  const auto kernels = tools::emulated_kernels();
  const harness::Verdict verdict = harness::check(*kernels, GetParam());
  EXPECT_TRUE(verdict.passed()) << to_text(verdict);
  const emulator::Report& report = dynamic_cast<const stages::Emulated&>(*kernels).report();
  EXPECT_TRUE(report.clean()) << report.text();
}
// Lengths that nothing divides, none, or shorter than the queries; groups of 1, 4, 7 and 8 heads.
INSTANTIATE_TEST_SUITE_P(
    Lengths, Decode,
    testing::Values("fwd sq1 sk1 h1 d64 f16", "fwd b3 sq1 sk333 hq8 hk2 d64 bf16",
                    "fwd sq1 sk515 hq4 hk1 d128 f16", "fwd sq1 sk300 hq4 hk1 d256 f16",
                    "fwd sq2 sk100 hq7 hk1 d64 f16", "fwd sq5 sk150 hq8 hk1 d64 bf16 causal",
                    "fwd sq5 sk3 hq4 hk1 d64 f16 causal", "fwd b2 sq3 sk0 hq2 hk1 d64 f16",
                    "fwd sq0 sk40 h1 d64 f16", "fwd sq16 sk70 h2 d64 f16 causal bhsd",
                    "fwd sq1 sk140 hq4 hk2 d128 bf16 bhsd"));
// As many splits as are asked for, with keys for all of them or not.
INSTANTIATE_TEST_SUITE_P(Splits, Decode,
                         testing::Values("fwd b3 sq1 sk333 hq7 hk1 d64 f16 splits=7",
                                         "fwd sq1 sk40 h1 d64 f16 splits=1",
                                         "fwd b2 sq3 sk197 hq8 hk1 d64 bf16 causal splits=3",
                                         "fwd sq4 sk90 hq8 hk2 d64 f16 causal splits=2",
                                         "fwd sq1 sk40 h2 d64 f16 splits=4",
                                         "fwd sq2 sk0 h1 d64 f16 splits=5",
                                         "fwd sq5 sk3 hq4 hk1 d64 f16 causal splits=6",
                                         "fwd sq1 sk1100 h1 d64 f16 splits=70",
                                         "fwd sq1 sk200 hq4 hk1 d128 f16 splits=5",
                                         "fwd sq2 sk130 hq4 hk1 d256 bf16 causal splits=3",
                                         "fwd sq70 sk130 h1 d64 f16 causal splits=2"));
INSTANTIATE_TEST_SUITE_P(Numbers, Decode,
                         testing::Values("fwd sq1 sk300 hq4 hk1 d64 f16 scale=-0.3 splits=2",
                                         "fwd sq3 sk150 h1 d64 bf16 scale=0 causal",
                                         "fwd sq1 sk200 hq2 hk1 d64 f16 lse_base=2 splits=3",
                                         "fwd sq5 sk3 h1 d64 f16 causal conv=fa2",
                                         "fwd sq1 sk300 hq4 hk1 d64 f16 fill=huge splits=3",
                                         "fwd sq1 sk300 hq4 hk1 d64 bf16 fill=ascending splits=3",
                                         "fwd sq3 sk300 h1 d64 f16 fill=peaks causal splits=4",
                                         "fwd sq1 sk200 h1 d64 f16 fill=constant",
                                         "fwd sq1 sk200 h1 d64 f16 fill=onehot",
                                         "fwd sq1 sk200 h1 d64 f16 fill=denormal splits=2",
                                         "fwd sq1 sk200 h1 d64 bf16 fill=mixed splits=2",
                                         "fwd sq1 sk200 h1 d64 f16 fill=outliers"));
// Lengths and places that only the device knows.
INSTANTIATE_TEST_SUITE_P(
    Caches, Decode,
    testing::Values("fwd sq1 sk90,0,257 hq4 hk1 d64 f16", "fwd sq1 sk90,0,257 h1 d64 f16 splits=3",
                    "fwd sq3,0,5 sk90,17,2 hq4 hk1 d64 bf16 causal splits=2",
                    "fwd b3 sq1 sk100 hq2 hk1 d64 f16 slots=5",
                    "fwd sq2 sk100,3,40 h1 d128 bf16 slots=4 causal splits=2 conv=fa2",
                    "fwd b2 sq1 sk150 hq4 hk1 d64 f16 page=16",
                    "fwd sq1 sk0,150,31 hq4 hk1 d64 bf16 page=7 splits=3",
                    "fwd sq5 sk90,2 hq4 hk2 d64 f16 page=1 causal bhsd",
                    "fwd sq1 sk200,130 hq2 hk1 d128 f16 page=128 splits=2",
                    "fwd b2 sq1 sk70 h1 d256 f16 page=32 bhsd"));

// ------------------------------------------------------------------------------- called directly

/// A problem's tensors, and calls on them with changes.
class Direct {
 public:
  explicit Direct(const std::string& text)
      : kernels_(tools::emulated_kernels()), session_(*kernels_, problem_of(text)) {
    EXPECT_TRUE(session_.allocate().ok()) << text;
    EXPECT_TRUE(session_.fill().ok());
    call = tools::device_calls(session_.problem(), session_.tensors()).front();
  }

  struct Result {
    std::vector<std::uint8_t> o, lse;
    std::uint32_t error;
    emulator::Counts counts;
  };
  Result run(const emulator::Options& options = {}) {
    emulator::NamedMemory memory;
    for_each_tensor(call.tensors, [&](std::string_view name, const TensorView& view) {
      if (!view.exists()) return;
      const std::size_t bytes = bytes_of(view);
      const bool output = name == "o" || name == "lse";
      memory.add(name.data(), view.data, bytes, size_of(view.dtype), !output);
      if (output) std::memset(view.data, 0xff, bytes);
    });
    // As an app may have it: of any contents, and of 64 bytes where the call wants none.
    std::vector<std::uint32_t> workspace(
        64 + cuda::workspace_bytes(call, h100) / sizeof(std::uint32_t), 0xabababab);
    auto* const aligned = reinterpret_cast<std::uint32_t*>(
        (reinterpret_cast<std::uintptr_t>(workspace.data()) + 63) / 64 * 64);
    memory.add("workspace", aligned, cuda::workspace_bytes(call, h100), 4, false);
    emulator::Session session(options);
    const Status status = cuda::emulated::compute(call, h100, aligned, nullptr);
    EXPECT_TRUE(status.ok()) << status.reason;
    EXPECT_TRUE(session.report().clean()) << session.report().text();
    return {copy_of(call.tensors.o), copy_of(call.tensors.lse), aligned[0],
            session.report().counts};
  }

  /// The call's list `view` becomes `numbers`, which must live as long.
  static void replace(TensorView& view, std::vector<std::int32_t>& numbers) {
    ASSERT_EQ(view.elements(), static_cast<std::int64_t>(numbers.size()));
    view.data = numbers.data();
  }
  std::vector<std::int32_t> numbers_of(const TensorView& view) const {
    const auto* const first = static_cast<const std::int32_t*>(view.data);
    return {first, first + view.elements()};
  }

  DeviceCall call;

 private:
  static std::size_t bytes_of(const TensorView& view) {
    return static_cast<std::size_t>(view.elements()) * size_of(view.dtype);
  }
  static std::vector<std::uint8_t> copy_of(const TensorView& view) {
    if (!view.exists()) return {};
    const auto* const first = static_cast<const std::uint8_t*>(view.data);
    return {first, first + bytes_of(view)};
  }

  std::unique_ptr<harness::Implementation> kernels_;
  harness::Session session_;
};

std::uint32_t number(DeviceError error) {
  return static_cast<std::uint32_t>(error);
}

TEST(DecodeKernel, GivesTheSameBitsHoweverWarpsAndCopiesCome) {
  for (const char* const text :
       {"fwd b2 sq1 sk500 hq4 hk1 d64 f16 splits=5", "fwd sq1 sk260 h1 d128 bf16 page=16"}) {
    Direct direct(text);
    std::vector<Direct::Result> results;
    for (const auto arrival :
         {emulator::Arrival::early, emulator::Arrival::late, emulator::Arrival::seeded}) {
      emulator::Options options;
      options.arrival = arrival;
      options.seed = results.size() + 1;
      results.push_back(direct.run(options));
      EXPECT_EQ(results.back().o, results.front().o) << text;
      EXPECT_EQ(results.back().lse, results.front().lse) << text;
    }
  }
}

TEST(DecodeKernel, FitsEveryDeviceFromSm80On) {
  for (const auto& device :
       {emulator::Device::a100(), emulator::Device::rtx3090(), emulator::Device::h100()})
    for (const char* const text :
         {"fwd sq1 sk70 d64 f16", "fwd sq1 sk70 d128 f16", "fwd sq1 sk70 d256 f16 splits=2"}) {
      emulator::Options options;
      options.device = device;
      (void)Direct(text).run(options);
    }
}

// The heads of a group are rows of one tile: what takes the time is read once.
TEST(DecodeKernel, ReadsKeysOnceAGroupAndHasNoBankConflicts) {
  for (const std::int64_t d : {64, 128, 256}) {
    Direct direct("fwd sq1 sk600 hq16 hk2 d" + std::to_string(d) + " f16");
    const emulator::Counts counts = direct.run().counts;
    EXPECT_EQ(counts.traffic.at("k").bytes_loaded, 2 * 600 * 2 * d);
    EXPECT_EQ(counts.traffic.at("v").bytes_loaded, 2 * 600 * 2 * d);
    EXPECT_EQ(counts.traffic.at("o").bytes_stored, 2 * 16 * d);
    EXPECT_EQ(counts.traffic.at("lse").bytes_stored, 4 * 16);
    for (const auto& [line, banks] : counts.banks_by_line)
      EXPECT_LE(banks.conflict(), 1.0) << d << ", " << line.text();
  }
}

TEST(DecodeKernel, ReadsNoMoreKeysThanCount) {
  Direct direct("fwd b2 sq1 sk300,70 h1 d64 f16");
  EXPECT_EQ(direct.run().counts.traffic.at("k").bytes_loaded, (300 + 70) * 2 * 64);
}

TEST(DecodeKernel, NeedsNoLse) {
  for (const char* const text : {"fwd sq1 sk90 h1 d64 f16", "fwd sq1 sk90 h1 d64 f16 splits=2"}) {
    Direct direct(text);
    const Direct::Result whole = direct.run();
    direct.call.tensors.lse = {};
    EXPECT_EQ(direct.run().o, whole.o);
  }
}

TEST(DecodeKernel, TakesAnyStridesOfLse) {
  Direct direct("fwd b2 sq3 sk90 hq2 hk1 d64 f16 splits=2");
  const Direct::Result whole = direct.run();
  std::vector<float> other(2 * 3 * 2);
  TensorView& lse = direct.call.tensors.lse;  // [batch, nheads, seqlen] of [batch, seqlen, nheads]
  lse = transposed(contiguous(other.data(), DType::f32, 2, 3, 2), 1, 2);
  (void)direct.run();
  for (std::size_t b = 0; b < 2; ++b)
    for (std::size_t h = 0; h < 2; ++h)
      for (std::size_t i = 0; i < 3; ++i) {
        float expected = 0;
        std::memcpy(&expected, whole.lse.data() + 4 * ((b * 2 + h) * 3 + i), 4);
        EXPECT_EQ(other[(b * 3 + i) * 2 + h], expected);
      }
}

// One number for all sequences, as the wrappers of flash-attn's functions have it.
TEST(DecodeKernel, TakesLengthsWithAStrideOfZero) {
  Direct direct("fwd b3 sq1 sk100 hq2 hk1 d64 f16 slots=3");
  const Direct::Result whole = direct.run();
  std::int32_t length = 100;
  TensorView& lengths = direct.call.tensors.seqlens_k;
  lengths.data = &length;
  lengths.strides[0] = 0;
  lengths.shape[0] = 1;  // of memory that the emulator is told of
  EXPECT_EQ(direct.run().o, whole.o);
}

TEST(DecodeKernel, ClampsLengthsAndTells) {
  for (const char* const text : {"fwd b3 sq1 sk100 hq2 hk1 d64 f16 slots=3",
                                 "fwd b3 sq1 sk100 hq2 hk1 d64 f16 slots=3 splits=2",
                                 "fwd b3 sq1 sk100 hq2 hk1 d64 f16 page=16 splits=2"}) {
    Direct direct(text);
    TensorView& lengths = direct.call.tensors.seqlens_k;
    const bool paged = direct.call.tensors.cache.paged();
    const std::int32_t capacity = paged ? 112 : 101;
    if (!paged) {  // rows behind a sequence's end are NaN: then lengths may say so and count them
      std::vector<std::int32_t> right{100, 0, 50}, wrong{100, -7, 50};
      Direct::replace(lengths, right);
      const Direct::Result expected = direct.run();
      EXPECT_EQ(expected.error, number(DeviceError::none));
      Direct::replace(lengths, wrong);
      const Direct::Result result = direct.run();
      EXPECT_EQ(result.error, number(DeviceError::length)) << text;
      EXPECT_EQ(result.o, expected.o);
      EXPECT_EQ(result.lse, expected.lse);
    }
    std::vector<std::int32_t> right{capacity, 20, 0}, wrong{2000000000, 20, -2147483647};
    Direct::replace(lengths, right);
    const Direct::Result expected = direct.run();
    EXPECT_EQ(expected.error, number(DeviceError::none)) << text;
    Direct::replace(lengths, wrong);
    const Direct::Result result = direct.run();
    EXPECT_EQ(result.error, number(DeviceError::length)) << text;
    EXPECT_EQ(result.o, expected.o) << text;
    EXPECT_EQ(result.lse, expected.lse) << text;
  }
}

TEST(DecodeKernel, ClampsRowsOfTheCacheAndTells) {
  Direct direct("fwd b3 sq1 sk100 hq2 hk1 d64 f16 slots=5");
  TensorView& rows = direct.call.tensors.cache.cache_batch_idx;
  std::vector<std::int32_t> right{4, 0, 2}, wrong{77, -1, 2}, lengths{60, 60, 60};
  Direct::replace(direct.call.tensors.seqlens_k, lengths);
  Direct::replace(rows, right);
  const Direct::Result expected = direct.run();
  EXPECT_EQ(expected.error, number(DeviceError::none));
  Direct::replace(rows, wrong);
  const Direct::Result result = direct.run();
  EXPECT_EQ(result.error, number(DeviceError::cache_row));
  EXPECT_EQ(result.o, expected.o);
  // Of a sequence without keys nobody reads a row.
  lengths = {0, 0, 60};
  EXPECT_EQ(direct.run().error, number(DeviceError::none));
}

TEST(DecodeKernel, ClampsPagesAndTells) {
  for (const char* const text : {"fwd b2 sq1 sk100 hq2 hk1 d64 f16 page=16",
                                 "fwd b2 sq1 sk100 hq2 hk1 d64 f16 page=16 splits=3"}) {
    Direct direct(text);
    TensorView& table = direct.call.tensors.cache.block_table;
    const auto pages = static_cast<std::int32_t>(direct.call.tensors.k.shape[0]);
    std::vector<std::int32_t> right = direct.numbers_of(table);  // [2, 7]
    std::vector<std::int32_t> wrong = right, lengths{90, 30};
    Direct::replace(direct.call.tensors.seqlens_k, lengths);
    right[5] = pages - 1;  // keys 80 to 89 of sequence 0
    wrong[5] = pages + 7;
    right[7] = 0;  // keys 0 to 15 of sequence 1
    wrong[7] = -3;
    Direct::replace(table, right);
    const Direct::Result expected = direct.run();
    EXPECT_EQ(expected.error, number(DeviceError::none)) << text;
    Direct::replace(table, wrong);
    const Direct::Result result = direct.run();
    EXPECT_EQ(result.error, number(DeviceError::page)) << text;
    EXPECT_EQ(result.o, expected.o) << text;
    // What no key lies in may hold anything.
    right[6] = right[9] = -1;
    right[13] = 1 << 30;
    Direct::replace(table, right);
    EXPECT_EQ(direct.run().error, number(DeviceError::none)) << text;
  }
}

// ----------------------------------------------------------------------------- what the host says

TEST(DecodeKernel, RefusesByNameWhatItDoesNotServe) {
  struct Refusal {
    const char *problem, *name;
  };
  for (const auto& [problem, name] :
       {Refusal{"fwd sq17 sk64 d64 f16", "17 queries"},
        Refusal{"fwd sq1 sk64 d64 f32", "dtype"},
        Refusal{"fwd sq1 sk64 d96 f16", "head_dim is 96"},
        Refusal{"fwd sq1 sk64 d64 dv128 f16", "head_dim_v is 128"},
        Refusal{"fwd sq1 sk64 d64 f16 window=3,0", "window"},
        Refusal{"fwd sq1 sk64 d64 f16 softcap=5", "softcap"},
        Refusal{"fwd sq1 sk64 d64 f16 dropout=0.1", "dropout"},
        Refusal{"fwd sq1 sk64 d64 f16 chunk=16", "attention_chunk"},
        Refusal{"fwd sq1 sk64 d64 f16 bias=1,1,q,k", "bias"},
        Refusal{"fwd sq1 sk64 d64 f16 mask=1,1,q,k", "mask"},
        Refusal{"fwd sq1 sk64 d64 f16 alibi", "alibi_slopes"},
        Refusal{"fwd sq1 sk64 d64 f16 sink", "sinks"},
        Refusal{"fwd sq1 sk64 d64 f16 packed", "cu_seqlens_q"},
        Refusal{"fwd sq1 sk64 d64 f16 new=1", "k_new"},
        Refusal{"fwd sq1 sk64 d64 f16 rotary=32", "rotary_cos"},
        Refusal{"fwd sq1 sk64 d64 f16 leftpad=3", "cache_leftpad"},
        Refusal{"fwd sq1 sk64 d64 f16 kv=i8", "k_scales"},
        Refusal{"fwd sq1 sk64 d64 f16 descale", "q_descale"},
        Refusal{"fwd sq1 sk64 d64 f16 blocks=16,16,0.5", "kv_num_blocks"},
        Refusal{"fwd sq1 sk64 d64 f16 causal align=top_left", "top left"},
        Refusal{"fwd sq1 sk0 d64 f16 conv=jax", "rows without keys"}}) {
    const Status status = cuda::decode::serves(call_of(problem), h100);
    EXPECT_FALSE(status.ok()) << problem;
    EXPECT_NE(std::string(status.reason).find(name), std::string::npos)
        << problem << ": " << status.reason;
  }
  DeviceCall backward = call_of("fwd sq1 sk64 d64 f16");
  backward.backward = true;
  EXPECT_STREQ(cuda::decode::serves(backward, h100).reason,
               "backward: these CUDA kernels do not compute it");
}

// Splits make two blocks for each multiprocessor, or are none where there is nearly one anyway.
TEST(DecodeKernel, WantsAWorkspaceWhereItSplits) {
  const auto bytes = [](const char* problem, const DeviceLimits& limits) {
    return cuda::decode::workspace_bytes(call_of(problem), limits);
  };
  const auto parts = [](std::size_t splits, std::size_t rows, std::size_t d) {
    return 64 + splits * rows * (d + 2) * 4;
  };
  EXPECT_EQ(bytes("fwd sq1 sk4096 hq32 hk8 d128 f16", h100), parts(32, 32, 128));
  EXPECT_EQ(bytes("fwd sq1 sk65536 hq32 hk8 d128 f16", h100), parts(33, 32, 128));
  EXPECT_EQ(bytes("fwd b4 sq1 sk4096 hq32 hk8 d128 f16", h100), parts(8, 128, 128));
  EXPECT_EQ(bytes("fwd b16 sq1 sk65536 hq32 hk8 d128 f16", h100), 0u);
  EXPECT_EQ(bytes("fwd b64 sq1 sk65536 hq32 hk8 d128 f16", h100), 0u);
  EXPECT_EQ(bytes("fwd b64 sq1 sk4096 hq32 hk8 d128 f16 slots=64", h100), 64u);
  EXPECT_EQ(bytes("fwd sq1 sk100 h1 d64 f16", h100), 0u);
  EXPECT_EQ(bytes("fwd sq1 sk4096 h1 d64 f16", {86, 80, 6, 99 * 1024}), parts(12, 1, 64));
  EXPECT_EQ(bytes("fwd sq1 sk4096 h1 d64 f16 splits=1", h100), 0u);
  EXPECT_EQ(bytes("fwd sq1 sk4096 h1 d64 f16 splits=9", h100), parts(9, 1, 64));
}

}  // namespace
}  // namespace tilewise
