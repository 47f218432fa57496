// The tilewise command from end to end, as a person calls it: what it prints, what it writes, how
// it ends. Output files come from the float64 oracle, so that every layout and mask can be judged.
#include "core/tensor.hpp"
#include "oracle/attention.hpp"
#include "oracle/formats/formats.hpp"
#include "oracle/harness/buffers.hpp"
#include "oracle/harness/fill.hpp"
#include "oracle/problem.hpp"

#include <fmt/core.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace tilewise {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

struct Ran {
  int exit = -1;
  std::string out, err;
};

class Tools : public testing::Test {
 protected:
  void SetUp() override {
    std::string path = (fs::temp_directory_path() / "tilewise-tools-XXXXXX").string();
    ASSERT_NE(mkdtemp(path.data()), nullptr);
    directory_ = path;
  }
  void TearDown() override { fs::remove_all(directory_); }

  /// Runs `tilewise ARGUMENTS` in a directory of its own; `before` is put before the command.
  Ran run(const std::string& arguments, const std::string& before = "") const {
    const std::string command =
        fmt::format("cd '{}' && {} '{}' {} >out.txt 2>err.txt", directory_.string(), before,
                    TILEWISE_COMMAND, arguments);
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_file(directory_ / "out.txt"),
            read_file(directory_ / "err.txt")};
  }

  /// Bad use or input: exit 2, nothing on stdout, one line on stderr that says `what`.
  void expect_bad(const std::string& arguments, const std::string& what) const {
    const Ran ran = run(arguments);
    EXPECT_EQ(ran.exit, 2) << arguments << "\n" << ran.out << ran.err;
    EXPECT_EQ(ran.out, "") << arguments;
    EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << arguments << "\n" << ran.err;
    EXPECT_TRUE(ran.err.starts_with("tilewise: ")) << ran.err;
    EXPECT_NE(ran.err.find(what), std::string::npos) << arguments << "\n" << ran.err;
  }

  fs::path directory_;
};

// ------------------------------------------------------------------------------ outputs of an
// oracle

/// [batch][head][row][width], padded to the longest, as rows of a tensor in the problem's layout.
formats::Array array_of(const Problem& problem, const std::vector<double>& dense, bool queries,
                        std::int64_t width) {
  const std::int64_t heads = queries ? problem.nheads_q : problem.nheads_k;
  const std::int64_t longest = queries ? problem.max_seqlen_q() : problem.max_seqlen_k();
  const DType dtype = problem.output_dtype();
  formats::Array array{dtype, {}, {}};
  if (problem.layout == Layout::bshd) array.shape = {problem.batch, longest, heads, width};
  if (problem.layout == Layout::bhsd) array.shape = {problem.batch, heads, longest, width};
  if (problem.layout == Layout::packed)
    array.shape = {queries ? problem.total_q() : problem.total_k(), heads, width};
  array.bytes.resize(static_cast<std::size_t>(array.elements()) * size_of(dtype));
  std::int64_t start = 0;
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    const std::int64_t rows = queries ? problem.seqlen_q(b) : problem.seqlen_k(b);
    for (std::int64_t h = 0; h < heads; ++h)
      for (std::int64_t s = 0; s < rows; ++s)
        for (std::int64_t t = 0; t < width; ++t) {
          const std::int64_t from = ((b * heads + h) * longest + s) * width + t;
          std::int64_t to = ((b * longest + s) * heads + h) * width + t;
          if (problem.layout == Layout::bhsd) to = from;
          if (problem.layout == Layout::packed) to = ((start + s) * heads + h) * width + t;
          store(dtype, array.view().at(to), dense[static_cast<std::size_t>(from)]);
        }
    start += rows;
  }
  return array;
}

formats::Array lse_of(const Problem& problem, const std::vector<double>& dense) {
  const bool packed = problem.layout == Layout::packed;
  const std::int64_t longest = problem.max_seqlen_q();
  formats::Array array{problem.lse_dtype(), {problem.batch, problem.nheads_q, longest}, {}};
  if (packed) array.shape = {problem.nheads_q, problem.total_q()};
  array.bytes.resize(static_cast<std::size_t>(array.elements()) * size_of(array.dtype));
  std::int64_t start = 0;
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    for (std::int64_t h = 0; h < problem.nheads_q; ++h)
      for (std::int64_t s = 0; s < problem.seqlen_q(b); ++s) {
        const std::int64_t from = (b * problem.nheads_q + h) * longest + s;
        store(array.dtype, array.view().at(packed ? h * problem.total_q() + start + s : from),
              dense[static_cast<std::size_t>(from)]);
      }
    start += problem.seqlen_q(b);
  }
  return array;
}

/// What a perfect kernel answers on the problem's generated inputs.
formats::Arrays perfect_outputs(const std::string& line) {
  const Problem problem = std::get<Problem>(parse_problem(line));
  harness::ProblemBuffers buffers;
  EXPECT_TRUE(buffers.allocate(problem, harness::Outputs::none()).ok());
  EXPECT_TRUE(harness::fill_inputs(problem, buffers.tensors()).ok());
  const oracle::Everything all = oracle::attention(oracle::Case(problem, buffers.tensors()));
  formats::Arrays arrays;
  arrays["o"] = array_of(problem, all.o, true, problem.head_dim_v);
  arrays["lse"] = lse_of(problem, all.lse);
  if (problem.pass == Pass::backward) {
    arrays["dq"] = array_of(problem, all.dq, true, problem.head_dim);
    arrays["dk"] = array_of(problem, all.dk, false, problem.head_dim);
    arrays["dv"] = array_of(problem, all.dv, false, problem.head_dim_v);
  }
  return arrays;
}

void write(const fs::path& path, const formats::Arrays& arrays) {
  const auto written = formats::write_safetensors(path, arrays);
  ASSERT_TRUE(std::holds_alternative<std::monostate>(written));
}

// ------------------------------------------------------------------------------------------- the
// tests

TEST_F(Tools, ListNamesEveryImplementationWithItsIdea) {
  const Ran ran = run("list --json");
  ASSERT_EQ(ran.exit, 0) << ran.err;
  const json listed = json::parse(ran.out)["implementations"];
  EXPECT_GE(listed.size(), 10u);
  EXPECT_EQ(listed[0]["name"], "stage.1a_textbook");
  bool mine = false;
  for (const json& row : listed) {
    EXPECT_FALSE(row["idea"].get<std::string>().empty()) << row["name"];
    mine = mine || row["name"] == "stage.mine";
  }
  EXPECT_TRUE(mine);
  EXPECT_NE(run("list").out.find("stage.2c_simd"), std::string::npos);
}

/// A problem in full, and the part of it that shapes cannot say.
struct FileCase {
  const char* line;
  const char* unsaid;
};

class Files : public Tools, public testing::WithParamInterface<FileCase> {};

TEST_P(Files, AreJudgedFromTheirShapes) {
  const FileCase& given = GetParam();
  ASSERT_EQ(run(fmt::format("gen '{}' --out in", given.line)).exit, 0);
  formats::Arrays outputs = perfect_outputs(given.line);
  write(directory_ / "good.safetensors", outputs);

  const std::string in = "--in in/inputs.safetensors --outputs";
  const Ran good = run(fmt::format("check '{}' {} good.safetensors --json", given.unsaid, in));
  EXPECT_EQ(good.exit, 0) << good.out << good.err;
  if (good.exit != 0) return;
  const json verdict = json::parse(good.out)["verdicts"][0];
  EXPECT_EQ(verdict["state"], "pass");
  // in/problem.txt says the same as the shapes and the rest of the line.
  EXPECT_EQ(run("check --in in --outputs good.safetensors").exit, 0);

  for (const auto& [name, perfect] : formats::Arrays(outputs)) {
    formats::Array& array = outputs[name];
    for (std::int64_t i = 0; i < array.elements(); ++i) {
      const double value = load(array.dtype, array.view().at(i));
      store(array.dtype, array.view().at(i), value * 1.1 + 0.1);
    }
    write(directory_ / "bad.safetensors", outputs);
    const Ran bad = run(fmt::format("check '{}' {} bad.safetensors", given.unsaid, in));
    EXPECT_EQ(bad.exit, 1) << name << "\n" << bad.out << bad.err;
    EXPECT_NE(bad.out.find("expected"), std::string::npos) << bad.out;
    array = perfect;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Tools, Files,
    testing::Values(FileCase{"fwd sq20 sk33 d16", ""},
                    FileCase{"fwd b2 sq20 sk33 hq4 hk2 d16 dv24 causal", "causal"},
                    FileCase{"fwd b2 s20 h3 d16 bhsd f16", "bhsd"},
                    FileCase{"bwd b2 s20 hq4 hk2 d16 f64 causal scale=0.3", "causal scale=0.3"},
                    FileCase{"bwd b3 sq5,9,1 sk7,12,4 hq4 hk2 d8 packed causal", "causal"},
                    FileCase{"fwd b2 sq5,9 sk12,4 h2 d8", ""},
                    FileCase{"fwd b2 s20 h4 d16 bf16 alibi softcap=20", "softcap=20"},
                    FileCase{"fwd b2 s20 h4 d16 bias=1,h,q,k mask=b,1,1,k", ""},
                    FileCase{"fwd sq30 sk20 d16 causal window=5,0 conv=torch_sdpa",
                             "causal window=5,0 conv=torch_sdpa"}));

TEST_F(Tools, OneHeadMayComeInTwoDimensions) {
  ASSERT_EQ(run("gen 'fwd sq20 sk33 d16 causal' --out in").exit, 0);
  auto inputs =
      std::get<formats::Arrays>(formats::read_arrays(directory_ / "in/inputs.safetensors"));
  formats::Arrays outputs = perfect_outputs("fwd sq20 sk33 d16 causal");
  const auto flatten = [](formats::Arrays& arrays) {
    for (auto& [name, array] : arrays)
      if (name == "lse")
        array.shape = {array.shape[2]};
      else
        array.shape = {array.shape[1], array.shape[3]};
  };
  flatten(inputs);
  flatten(outputs);
  write(directory_ / "inputs.safetensors", inputs);
  write(directory_ / "outputs.safetensors", outputs);
  const Ran ran = run("check causal --in inputs.safetensors --outputs outputs.safetensors");
  EXPECT_EQ(ran.exit, 0) << ran.out << ran.err;
}

TEST_F(Tools, WhatIsAbsentIsSaidToBeUnchecked) {
  ASSERT_EQ(run("gen 'bwd s20 h2 d16' --out in --npy").exit, 0);
  EXPECT_TRUE(fs::exists(directory_ / "in/dout.npy"));
  const formats::Arrays outputs = perfect_outputs("bwd s20 h2 d16");
  const auto written = formats::write_npy(directory_ / "mine.npy", outputs.at("o"));
  ASSERT_TRUE(std::holds_alternative<std::monostate>(written));
  const Ran ran = run("check --in in --outputs mine.npy --json");  // a lone array is o
  ASSERT_EQ(ran.exit, 0) << ran.out << ran.err;
  const std::string missing = json::parse(ran.out)["verdicts"][0]["not_checked"].dump();
  for (const char* name : {"lse", "dq", "dk", "dv"})
    EXPECT_NE(missing.find(name), std::string::npos) << missing;
}

TEST_F(Tools, RunComputesWhatCheckAccepts) {
  for (const char* problem : {"fwd b2 s50 hq4 hk2 d32 causal", "bwd s40 h2 d16"}) {
    const Ran made = run(fmt::format("gen '{}' --out in", problem));
    ASSERT_EQ(made.exit, 0) << made.err;
    const Ran computed = run("run --in in --impl 2e --out out");
    ASSERT_EQ(computed.exit, 0) << computed.err;
    const Ran judged = run("check --in in --outputs out");
    EXPECT_EQ(judged.exit, 0) << judged.out << judged.err;
    // Without --in, run makes the same inputs itself.
    const std::string first = read_file(directory_ / "out/outputs.safetensors");
    ASSERT_EQ(run(fmt::format("run '{}' --impl 2e --out out", problem)).exit, 0);
    EXPECT_EQ(read_file(directory_ / "out/outputs.safetensors"), first);
  }
}

TEST_F(Tools, ContradictionsAreBadInput) {
  ASSERT_EQ(run("gen 'fwd b2 s20 hq4 hk2 d16' --out in").exit, 0);
  formats::Arrays outputs = perfect_outputs("fwd b2 s20 hq4 hk2 d16");
  write(directory_ / "out.safetensors", outputs);
  const std::string files = "--in in --outputs out.safetensors";
  expect_bad("check d32 " + files, "head_dim (d) 32, but the files say 16");
  expect_bad("check sk21 " + files, "seqlen_k");
  expect_bad("check f16 " + files, "dtype f16, but the files say f32");
  expect_bad("check bwd " + files, "dout");
  expect_bad("check bias=1,1,q,k " + files, "bias");
  expect_bad("check packed " + files, "cu_seqlens_q");
  expect_bad("check bshd --layout bhsd " + files, "contradicts");
  expect_bad("check --in in", "--outputs");
  expect_bad("check --in nowhere --outputs out.safetensors", "nowhere");
  write(directory_ / "lse.safetensors", {{"lse", outputs.at("lse")}});
  expect_bad("check --in in --outputs in", "holds no o");
  outputs["o"].shape[1] = 10;
  outputs["o"].shape[3] = 32;
  write(directory_ / "odd.safetensors", outputs);
  expect_bad("check --in in --outputs odd.safetensors",
             "o has shape [2, 10, 4, 32]: expected "
             "[2, 20, 4, 16]");
}

TEST_F(Tools, BadUseIsOneLineThatHelps) {
  expect_bad("chekc", "did you mean check?");
  expect_bad("check 'fwd s64' --impl 2b_tile_s", "did you mean 2b_tiles?");
  expect_bad("check 'fwd s64 causl' --impl 2b", "column 9");
  expect_bad("check 'fwd s64'", "--impl");
  expect_bad("check --impl 2b", "PROBLEM");
  expect_bad("check @missing.txt --impl 2b", "missing.txt");
  expect_bad("check 'fwd s64 f16' --impl 1a", "f32 only");
  expect_bad("run 'fwd s64' --impl 2 --out out", "expected one");
  expect_bad("gen 'fwd s64'", "--out");
  expect_bad("bugs no_such_thing_at_all", "no implementation");
  expect_bad("bench 'fwd s64' --impl mine", "not written yet");
  expect_bad("tour --only nothing", "no implementation");
  EXPECT_EQ(run("--help").exit, 0);
  EXPECT_EQ(run("check --help").exit, 0);
}

TEST_F(Tools, ChecksSeveralProblemsFromAFile) {
  std::ofstream(directory_ / "problems.txt")
      << "# two\nfwd s40 d16\n\nfwd s40 d16 causal  # and one\n";
  const Ran ran = run("check @problems.txt 'fwd s9 d16' --impl 1b,2b --json --repeats 1");
  ASSERT_EQ(ran.exit, 0) << ran.out << ran.err;
  const json report = json::parse(ran.out);
  EXPECT_EQ(report["passed"], 5);
  EXPECT_EQ(report["unsupported"], 1);  // 1b has no causal mask
  EXPECT_EQ(report["verdicts"].size(), 6u);
}

TEST_F(Tools, BenchComparesInTurns) {
  const Ran ran = run("bench 'fwd s128 d32' --impl 1b,2b,mine --seconds 0.02 --json");
  ASSERT_EQ(ran.exit, 0) << ran.err;
  const json runs = json::parse(ran.out)["runs"];
  ASSERT_EQ(runs.size(), 3u);
  for (int i = 0; i < 2; ++i) {
    EXPECT_GE(runs[i]["time"]["repetitions"], 3);
    EXPECT_GT(runs[i]["fraction_of_peak"], 0);
    EXPECT_LT(runs[i]["fraction_of_peak"], 1);
  }
  EXPECT_GT(runs[1]["times_as_fast_as_first"]["median"], 0);
  EXPECT_TRUE(runs[2].contains("not_run"));
}

TEST_F(Tools, BugsAreRejectedForAReason) {
  const Ran listed = run("bugs --list --json");
  ASSERT_EQ(listed.exit, 0);
  EXPECT_GE(json::parse(listed.out)["bugs"].size(), 40u);
  const Ran ran = run("bugs rescale_missing bug.kv_head_modulo --json --dtype bf16");
  ASSERT_EQ(ran.exit, 0) << ran.out << ran.err;
  const json report = json::parse(ran.out);
  EXPECT_EQ(report["rejected"], 2);
  for (const json& bug : report["bugs"]) EXPECT_FALSE(bug["reason"].get<std::string>().empty());
}

TEST_F(Tools, TourWritesAReportThatNeedsNothingElse) {
  const Ran ran = run("tour --quick --only 1b,2a,mine --out made/here");
  ASSERT_EQ(ran.exit, 0) << ran.out << ran.err;
  EXPECT_NE(ran.out.find("made/here/report.html"), std::string::npos);
  EXPECT_NE(ran.out.find("not written yet"), std::string::npos);
  EXPECT_EQ(ran.err.find('\r'), std::string::npos);  // no progress bar where nobody looks

  const json tour = json::parse(read_file(directory_ / "made/here/tour.json"));
  EXPECT_GT(tour["machine"]["peak_gflops"], 0);
  ASSERT_EQ(tour["runs"].size(), 4u);
  ASSERT_EQ(tour["not_run"].size(), 1u);
  EXPECT_EQ(tour["not_run"][0]["implementation"], "stage.mine");
  for (const json& row : tour["runs"]) {
    EXPECT_EQ(row["verdict"]["state"], "pass");
    EXPECT_GT(row["gflops"], 0);
  }
  EXPECT_EQ(tour["runs"][0]["tensors"], "normal");
  EXPECT_EQ(tour["runs"][1]["tensors"], "real");
  if (!tour["runs"][0]["memory_curve"].empty()) {  // sanitizers hide malloc
    EXPECT_NEAR(tour["runs"][0]["slope_both"], 2, 0.1);
    EXPECT_NEAR(tour["runs"][0]["slope_q"], 1, 0.1);
    EXPECT_NEAR(tour["runs"][2]["slope_both"], 0, 0.1);
  }

  const std::string page = read_file(directory_ / "made/here/report.html");
  EXPECT_EQ(page.find("{{"), std::string::npos);
  for (const char* outside : {"<script src", "<link", "<img", "href=\"http", "url(", "@import"})
    EXPECT_EQ(page.find(outside), std::string::npos) << outside;
}

TEST_F(Tools, TourSaysWhenThereIsNoGnuplot) {
#ifdef TILEWISE_SANITIZED
  GTEST_SKIP() << "sanitizers hide malloc: no memory curve, no plot of it";
#endif
  const Ran ran = run("tour --quick --only 1a,2b --out made", "PATH=/nowhere");
  ASSERT_EQ(ran.exit, 0) << ran.out << ran.err;
  EXPECT_NE(read_file(directory_ / "made/report.html").find("gnuplot was not found"),
            std::string::npos);
}

}  // namespace
}  // namespace tilewise
