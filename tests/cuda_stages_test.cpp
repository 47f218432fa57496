// The CUDA steps of the course under the emulator, before the judge: right on odd sizes, masks,
// shared heads, empty rows and extreme numbers, nothing for the emulator to report, and exactly as
// many bytes moved as the formula beside each kernel says.
#include "oracle/harness/gtest.hpp"
#include "oracle/harness/scaling.hpp"
#include "oracle/harness/session.hpp"
#include "stages/cuda_adapter.hpp"

#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

namespace tilewise {
namespace {

using harness::State;
using harness::Verdict;
using stages::EmulatedImplementation;

Problem problem_of(const std::string& text) {
  return std::get<Problem>(parse_problem(text));
}

std::unique_ptr<EmulatedImplementation> step(const std::string& name,
                                             const emulator::Options& options = {}) {
  for (const stages::CudaStep& each : stages::emulated_steps())
    if (each.name == name) return stages::emulated_implementation_of(each, options);
  ADD_FAILURE() << "no CUDA step is called " << name;
  return stages::emulated_implementation_of(stages::emulated_steps().front(), options);
}

/// In a dtype that the step serves: a problem in f32 is given to chapters 4 and 5 in 16 bits. And
/// in widths that it serves, which are multiples of 8 there.
std::string for_step(const std::string& name, std::string problem) {
  if (name[0] == '3' || name == "4a_swapped_loops") return problem;
  const bool bf16 = name == "4c_split_queries" || name[0] == '5';
  problem.replace(problem.find(" f32"), 4, bf16 ? " bf16" : " f16");
  const std::size_t d = problem.find(" d") + 2;
  const std::size_t end = problem.find(' ', d);
  const int width = (std::stoi(problem.substr(d, end - d)) + 7) / 8 * 8;
  return problem.replace(d, end - d, std::to_string(width));
}

std::vector<std::string> names() {
  std::vector<std::string> all;
  for (const stages::CudaStep& each : stages::emulated_steps()) all.emplace_back(each.name);
  return all;
}

/// One call on poisoned outputs; the report of it.
emulator::Report run(const EmulatedImplementation& kernel, const std::string& text) {
  harness::Session session(kernel, problem_of(text));
  EXPECT_TRUE(session.allocate().ok()) << text;
  EXPECT_TRUE(session.fill().ok());
  const Status status = session.call_on_poison();
  EXPECT_TRUE(status.ok()) << text << ": " << status.reason;
  return kernel.report();
}

std::int64_t bytes_of(const emulator::Traffic& traffic) {
  return traffic.bytes_loaded + traffic.bytes_stored;
}

class EveryCudaStep : public testing::TestWithParam<std::string> {};

TEST_P(EveryCudaStep, PassesAndIsClean) {
  const auto kernel = step(GetParam());
  const char* const problems[] = {
      "fwd sq1 sk1 d1 f32",
      "fwd sq1 sk70 h2 d64 f32",
      "fwd sq33 sk65 h2 d40 f32 scale=0.7",
      "fwd sq130 sk50 hq6 hk2 d33 f32",
      "fwd b2 sq70 sk67 hq4 hk2 d24 f32 causal",
      "fwd sq20 sk90 h1 d32 f32 causal",
      "fwd sq90 sk20 h1 d32 f32 causal",
      "fwd sq40 sk0 h1 d16 f32",
      "fwd sq0 sk5 h1 d8 f32",
      "fwd sq50 sk40 h1 d128 f32 causal",
      "fwd sq40 sk72 h1 d32 f32 fill=ascending",
      "fwd sq40 sk72 h1 d32 f32 fill=peaks",
      "fwd sq40 sk72 h1 d32 f32 fill=mixed",
      "fwd sq40 sk72 h1 d32 f32 fill=denormal",
      "fwd sq40 sk72 h1 d32 f32 fill=outliers",
      "fwd sq40 sk72 h1 d32 f32 fill=constant",
      "fwd sq40 sk72 h1 d64 f32 fill=huge",
      "bwd sq1 sk1 d1 f32",
      "bwd sq0 sk5 h1 d8 f32",
      "bwd sq5 sk0 h2 d8 f32",
      "bwd b2 sq41 sk53 hq4 hk2 d40 f32",
      "bwd sq70 sk70 hq2 hk1 d64 f32 causal",
      "bwd sq50 sk20 h1 d32 f32 causal",
      "bwd sq30 sk37 h1 d128 f32",
      "bwd sq40 sk40 h1 d32 f32 fill=ascending",
      "bwd sq40 sk40 h1 d32 f32 fill=peaks",
  };
  int passed = 0;
  for (const char* problem : problems) {
    const Verdict verdict = harness::check(*kernel, for_step(GetParam(), problem).c_str());
    if (verdict.state == State::unsupported) {
      EXPECT_TRUE(problem_of(problem).pass == Pass::backward) << to_text(verdict);
      continue;
    }
    EXPECT_TRUE(verdict.passed()) << to_text(verdict);
    EXPECT_TRUE(kernel->report().clean()) << kernel->report().text();
    ++passed;
  }
  EXPECT_GE(passed, 16);
}

// The order in which warps run is the emulator's to choose: no bit may depend on it.
TEST_P(EveryCudaStep, GivesTheSameBitsInWhateverOrderWarpsRun) {
  std::vector<std::vector<harness::ProblemBuffers::Snapshot>> results;
  for (const std::uint64_t seed : {1u, 2u, 3u}) {
    emulator::Options options;
    options.seed = seed;
    const auto kernel = step(GetParam(), options);
    const bool backward = kernel->supports(problem_of(for_step(GetParam(), "bwd s8 d8 f32"))).ok;
    harness::Session session(*kernel,
                             problem_of(for_step(GetParam(), std::string(backward ? "bwd" : "fwd") +
                                                                 " sq70 sk50 hq2 hk1 d40 f32")));
    ASSERT_TRUE(session.allocate().ok());
    ASSERT_TRUE(session.fill().ok());
    ASSERT_TRUE(session.call_on_poison().ok()) << kernel->report().text();
    results.push_back(session.buffers().snapshot());
  }
  const bool dq = step(GetParam())->repeatable().dq;
  for (const auto& result : results)
    for (std::size_t n = 0; n < result.size(); ++n) {
      if (result[n].name == "dq" && !dq) continue;
      EXPECT_EQ(result[n].bytes, results[0][n].bytes) << result[n].name;
    }
}

TEST_P(EveryCudaStep, FitsTheSmallestDeviceThatItIsFor) {
  // What has been copied asynchronously since sm_80; and 4f's tiles of 128 columns want an A100's
  // 163 KiB. Chapter 5 is for Hopper.
  const bool turing = step(GetParam())->supports(problem_of("fwd s8 d8 f32")).ok;
  emulator::Options options;
  options.device = turing                        ? emulator::Device::t4()
                   : GetParam()[0] == '5'        ? emulator::Device::h100()
                   : GetParam() == "4f_backward" ? emulator::Device::a100()
                                                 : emulator::Device::rtx3090();
  const auto kernel = step(GetParam(), options);
  for (const char* problem :
       {"fwd sq20 sk20 h1 d32 f32", "fwd sq20 sk20 h1 d64 f32", "fwd sq20 sk20 h1 d128 f32"})
    EXPECT_TRUE(run(*kernel, for_step(GetParam(), problem)).clean()) << kernel->report().text();
}

// The formula beside each kernel, to the byte.
TEST_P(EveryCudaStep, MovesAsManyBytesAsItsFormulaSays) {
  const auto kernel = step(GetParam());
  for (const char* problem :
       {"fwd sq1 sk1 h1 d1 f32", "fwd sq64 sk96 h1 d64 f32", "fwd sq130 sk100 hq4 hk2 d40 f32",
        "fwd b2 sq100 sk130 h1 d32 f32 causal", "fwd sq90 sk30 h1 d128 f32 causal",
        "fwd sq20 sk0 h1 d32 f32", "bwd sq70 sk50 hq4 hk2 d40 f32",
        "bwd sq80 sk80 h1 d64 f32 causal", "bwd sq50 sk20 h1 d128 f32 causal"}) {
    const std::string text = for_step(GetParam(), problem);
    if (!kernel->supports(problem_of(text)).ok) continue;
    const emulator::Report report = run(*kernel, text);
    EXPECT_EQ(static_cast<double>(bytes_of(report.counts.total())),
              kernel->bytes_moved(problem_of(text)))
        << text;
  }
}

TEST_P(EveryCudaStep, RefusesWithAReasonWhatItDoesNotDo) {
  const auto kernel = step(GetParam());
  for (const char* problem :
       {"fwd s32 d32 f64", "fwd s32 d32 f32 bhsd", "fwd s32 d32 f32 softcap=5",
        "fwd s32 d32 f32 window=4,0", "fwd s32 d129 f32", "fwd s32 d32 dv16 f32",
        "fwd sq32 sk40 d32 f32 causal align=top_left", "fwd s32 d32 f32 lse_base=2"}) {
    const harness::Support support = kernel->supports(problem_of(problem));
    EXPECT_FALSE(support.ok) << problem;
    EXPECT_FALSE(support.reason.empty()) << problem;
  }
}

// Rows in shared memory are padded or swizzled so that no warp's request needs more passes than its
// bytes. But for 4b's, which 4c mends.
TEST_P(EveryCudaStep, HasNoBankConflicts) {
  const auto kernel = step(GetParam());
  for (const char* problem : {"fwd s64 h1 d32 f32", "fwd s64 h1 d64 f32", "fwd s64 h1 d128 f32",
                              "bwd s64 h1 d32 f32", "bwd s64 h1 d64 f32", "bwd s32 h1 d128 f32"}) {
    const std::string text = for_step(GetParam(), problem);
    if (!kernel->supports(problem_of(text)).ok) continue;
    // There S has 16 columns and one more: the two rows to which a warp writes meet once.
    const bool meets = GetParam() == "3b_paper_loops" || GetParam() == "4a_swapped_loops";
    if (meets && problem_of(text).head_dim == 128) continue;
    const emulator::Report report = run(*kernel, text);
    if (GetParam() == "4b_tensor_cores") {
      EXPECT_GT(report.counts.banks.conflict(), 3.0) << text;
      continue;
    }
    for (const auto& [line, banks] : report.counts.banks_by_line)
      EXPECT_LE(banks.conflict(), 1.0) << text << ", " << line.text();
  }
}

INSTANTIATE_TEST_SUITE_P(Emulated, EveryCudaStep, testing::ValuesIn(names()),
                         [](const auto& parameter) { return parameter.param; });

// FlashAttention's Theorem 2: N^2 d^2 / M bytes, beside a term in N d. Here with the constants, for
// lengths that tiles divide, and tensor by tensor.
TEST(PaperLoops, MoveWhatTheoremTwoCounts) {
  constexpr std::int64_t M = 8192, d = 64, Bc = M / (4 * d);
  const auto kernel = step("3b_paper_loops");
  for (const std::int64_t N : {64, 128, 256}) {
    const std::string text = "fwd s" + std::to_string(N) + " h1 d64 f32";
    const emulator::Report report = run(*kernel, text);
    const std::int64_t passes = N / Bc;
    const auto& traffic = report.counts.traffic;
    EXPECT_EQ(bytes_of(traffic.at("q")), 4 * passes * N * d);
    EXPECT_EQ(bytes_of(traffic.at("k")) + bytes_of(traffic.at("v")), 4 * 2 * N * d);
    EXPECT_EQ(bytes_of(traffic.at("o")), 4 * (2 * passes + 1) * N * d);
    EXPECT_EQ(bytes_of(traffic.at("workspace")), 4 * (4 * passes + 4) * N);
    EXPECT_EQ(bytes_of(traffic.at("lse")), 4 * N);
    // The leading term, 12 N^2 d^2 / M floats, is what remains when N grows.
    const double leading = 4.0 * 12 * static_cast<double>(N * N * d * d) / M;
    const double all = static_cast<double>(bytes_of(report.counts.total()));
    EXPECT_GT(all, leading);
    EXPECT_LT(all, leading * (1 + 1.6 * static_cast<double>(Bc) / static_cast<double>(N)));
    // Three barriers for a pair of tiles, one for a tile of keys, one before LSE.
    EXPECT_EQ(report.counts.barriers, 3 * passes * passes + passes + 1);
  }
}

// What the other order of loops saves: O, m and l never leave the chip.
TEST(WarpTiles, MoveLessThanThePapersLoops) {
  const Problem problem = problem_of("fwd s1024 h1 d64 f32");
  const double paper = step("3b_paper_loops")->bytes_moved(problem).value();
  const double tiles = step("3c_warp_tiles")->bytes_moved(problem).value();
  EXPECT_GT(paper / tiles, 2.5);
}

TEST(ExtraMemory, IsConstantButForWhatStepsSay) {
  struct Promise {
    const char *name, *pass;
    double slope_q;
  };
  for (const Promise& promise :
       {Promise{"3a_thread_a_row", "fwd", 0}, Promise{"3b_paper_loops", "fwd", 1},
        Promise{"3c_warp_tiles", "fwd", 0}, Promise{"3d_backward", "fwd", 0},
        Promise{"3d_backward", "bwd", 1}}) {
    const auto kernel = step(promise.name);
    std::vector<harness::MemoryPoint> points;
    for (const std::int64_t n : {512, 1024, 2048, 4096})
      for (const harness::Vary vary : {harness::Vary::q, harness::Vary::k}) {
        Problem problem = problem_of(std::string(promise.pass) + " s512 h2 d64 f32");
        (vary == harness::Vary::q ? problem.seqlens_q : problem.seqlens_k) = {n};
        points.push_back({n, vary, static_cast<std::int64_t>(kernel->workspace_bytes(problem))});
      }
    EXPECT_NEAR(log_slope(points, harness::Vary::q), promise.slope_q, 1e-9) << promise.name;
    EXPECT_NEAR(log_slope(points, harness::Vary::k), 0, 1e-9) << promise.name;
  }
}

TEST(CudaCourse, KeepsOneIdeaToAFile) {
  for (const std::string& name : names()) {
    const char* const chapter = name[0] == '3'   ? "/stages/3_fa1_cuda/"
                                : name[0] == '4' ? "/stages/4_fa2_cuda/"
                                                 : "/stages/5_fa3_hopper/";
    std::ifstream file(std::string(TILEWISE_SOURCE_DIRECTORY) + chapter + name + ".cu");
    EXPECT_TRUE(file) << name;
    int lines = 0;
    for (std::string line; std::getline(file, line);) ++lines;
    // Forward and backward in one file; four warps that talk; two kernels, and two levels of
    // merging.
    const int most = name == "3d_backward"       ? 300
                     : name == "4f_backward"     ? 350
                     : name == "4b_tensor_cores" ? 250
                     : name == "4e_split_keys"   ? 280
                                                 : 225;
    EXPECT_LE(lines, most) << name << ": about 200 lines";
  }
}

}  // namespace
}  // namespace tilewise
