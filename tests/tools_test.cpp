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

void write(const fs::path& path, const formats::Arrays& arrays) {
  const auto written = formats::write_safetensors(path, arrays);
  ASSERT_TRUE(std::holds_alternative<std::monostate>(written));
}

double get(formats::Array& array, std::int64_t element) {
  return load(array.dtype, array.view().at(element));
}

void set(formats::Array& array, std::int64_t element, double value) {
  store(array.dtype, array.view().at(element), value);
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

  formats::Arrays arrays(const fs::path& name) const {
    return std::get<formats::Arrays>(formats::read_arrays(directory_ / name));
  }

  /// `judge` and a file of outputs, each of them wrong in turn: exit 1 every time.
  void expect_each_is_judged(formats::Arrays outputs, const std::string& judge) const {
    for (const auto& [name, right] : formats::Arrays(outputs)) {
      formats::Array& array = outputs[name];
      for (std::int64_t i = 0; i < array.elements(); ++i) set(array, i, get(array, i) * 1.1 + 0.1);
      write(directory_ / "bad.safetensors", outputs);
      const Ran bad = run(judge + " bad.safetensors");
      EXPECT_EQ(bad.exit, 1) << name << "\n" << bad.out << bad.err;
      EXPECT_NE(bad.out.find(name + ": "), std::string::npos) << bad.out;
      EXPECT_NE(bad.out.find("expected"), std::string::npos) << bad.out;
      array = right;
    }
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

  expect_each_is_judged(outputs, fmt::format("check '{}' {}", given.unsaid, in));
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

/// As FileCase, computed by cpu.portable from files, which the inputs alone are in.
class RoundTrip : public Tools, public testing::WithParamInterface<FileCase> {};

TEST_P(RoundTrip, IsComputedFromFilesAndJudged) {
  const FileCase& given = GetParam();
  ASSERT_EQ(run(fmt::format("gen '{}' --out in", given.line)).exit, 0);
  const Ran computed = run("run --in in --impl cpu.portable --out out");
  ASSERT_EQ(computed.exit, 0) << computed.err;
  // Without --in, run makes the same inputs itself.
  ASSERT_EQ(run(fmt::format("run '{}' --impl cpu.portable --out again", given.line)).exit, 0);
  formats::Arrays outputs = arrays("out/outputs.safetensors");
  EXPECT_EQ(outputs.size(), arrays("again/outputs.safetensors").size());
  for (auto& [name, again] : arrays("again/outputs.safetensors"))
    EXPECT_EQ(outputs[name].bytes, again.bytes) << name;

  const Ran whole_line = run("check --in in --outputs out --json");
  ASSERT_EQ(whole_line.exit, 0) << whole_line.out << whole_line.err;
  const json verdict = json::parse(whole_line.out)["verdicts"][0];
  EXPECT_EQ(verdict["not_checked"], json::array());
  EXPECT_EQ(verdict["outputs"].size(), outputs.size());
  const std::string judge =
      fmt::format("check '{}' --in in/inputs.safetensors --outputs", given.unsaid);
  const Ran short_line = run(judge + " out");
  EXPECT_EQ(short_line.exit, 0) << short_line.out << short_line.err;
  expect_each_is_judged(outputs, judge);
}

INSTANTIATE_TEST_SUITE_P(
    Tools, RoundTrip,
    testing::Values(
        FileCase{"fwd b2 s20 hq4 hk2 d16 sink", ""},
        FileCase{"bwd b2 s20 hq4 hk2 d16 sink causal", "causal"},
        FileCase{"bwd b2 sq20,13 sk18,25 hq4 hk2 d16 bias=1,h,q,k sink", ""},
        FileCase{"bwd b2 s20 hq4 hk2 d16 bhsd bf16 bias=b,1,1,k", "bhsd"},
        FileCase{"bwd b2 sq20,13 sk18,25 hq4 hk2 d16 f64 packed bias=1,1,q,k", ""},
        FileCase{"fwd b2 sq40 sk70 h2 d16 blocks=16,32,0.5 causal", "causal blocks=16,32,1"},
        FileCase{"fwd b2 sq40,7 sk70,30 h2 d16 packed blocks=16,32,0.5", "blocks=16,32,1"},
        // Caches: pages, cache rows in another order, padding, appended and turned rows.
        FileCase{"fwd b2 sq3 sk70 hq4 hk2 d32 page=16 causal new=3 rotary=16", "causal"},
        FileCase{"fwd b2 sq3 sk70,31 hq4 hk2 d32 bhsd f16 page=16 leftpad=5 new=2 rotary=16,half",
                 "bhsd rotary=16,half"},
        FileCase{"fwd b3 sq3,1,2 sk70,31,9 hq4 hk2 d32 packed causal page=16 new=1 rotary=16",
                 "causal"},
        FileCase{"fwd b2 sq3 sk70 hq4 hk2 d32 slots=5 leftpad=4 new=2 mask=b,1,q,k", ""},
        FileCase{"fwd b2 sq1 sk70 hq4 hk2 d32 rotary=32 splits=3 alibi", ""},
        // Keys and values in fewer bits.
        FileCase{"fwd b2 sq3 sk70 hq4 hk2 d32 kv=i8", ""},
        FileCase{"fwd b2 sq3 sk70,31 hq4 hk2 d32 bhsd bf16 page=16 kv=i8", "bhsd"},
        FileCase{"fwd b2 sq3,9 sk70,31 hq4 hk2 d64 dv32 packed kv=q8_0", ""},
        FileCase{"fwd b2 sq3 sk70 hq4 hk2 d64 f16 page=16 kv=q8_0", ""},
        FileCase{"fwd sq3 sk70 d34 kv=i8", ""},
        FileCase{"fwd b2 sq3 sk70 hq4 hk2 d32 bf16 page=16 kv=e4m3 descale", ""},
        FileCase{"fwd b2 sq4 sk40 hq4 hk2 d32 e4m3 descale page=8 new=1", ""},
        FileCase{"bwd b2 s20 hq4 hk2 d16 bf16 descale", ""}));

TEST_F(Tools, FilesOfNumpyHoldQuantisedKeysToo) {
  for (const char* line : {"fwd sq3 sk70 h2 d32 kv=i8 page=16", "fwd sq3 sk70 h2 d32 kv=q8_0"}) {
    ASSERT_EQ(run(fmt::format("gen '{}' --out in --npy", line)).exit, 0);
    EXPECT_EQ(run("run --in in --impl cpu.portable --out out").exit, 0);
    const Ran judged = run("check --in in --outputs out");
    EXPECT_EQ(judged.exit, 0) << judged.out << judged.err;
    fs::remove_all(directory_ / "in");
  }
}

TEST_F(Tools, OneHeadOfQuantisedKeysMayComeInTwoDimensions) {
  for (const char* kv : {"i8", "q8_0"}) {
    ASSERT_EQ(run(fmt::format("gen 'fwd sq3 sk70 d64 kv={}' --out in", kv)).exit, 0);
    ASSERT_EQ(run("run --in in --impl cpu.portable --out out").exit, 0);
    formats::Arrays inputs = arrays("in/inputs.safetensors"), o;
    for (auto& [name, array] : inputs) {  // [1, rows, 1, ...]
      array.shape.erase(array.shape.begin());
      array.shape.erase(array.shape.begin() + 1);
    }
    o["o"] = arrays("out/outputs.safetensors")["o"];
    o["o"].shape = {3, 64};
    write(directory_ / "flat.safetensors", inputs);
    write(directory_ / "o.safetensors", o);
    const Ran judged = run("check --in flat.safetensors --outputs o.safetensors");
    EXPECT_EQ(judged.exit, 0) << judged.out << judged.err;
  }
}

TEST_F(Tools, ACacheMayHaveMoreRoomThanItNeeds) {
  ASSERT_EQ(run("gen 'fwd b2 sq3 sk70 h2 d16 page=16 new=1' --out in").exit, 0);
  ASSERT_EQ(run("run --in in --impl cpu.portable --out out").exit, 0);
  formats::Arrays inputs = arrays("in/inputs.safetensors"),
                  outputs = arrays("out/outputs.safetensors");
  const auto add_page = [](formats::Array& cache) {
    cache.bytes.resize(cache.bytes.size() +
                       cache.bytes.size() / static_cast<std::size_t>(cache.shape[0]));
    ++cache.shape[0];
  };
  for (formats::Arrays* side : {&inputs, &outputs})
    for (const char* name : {"k", "v"}) add_page((*side)[name]);
  write(directory_ / "larger.safetensors", inputs);
  write(directory_ / "o.safetensors", outputs);
  const Ran judged = run("check --in larger.safetensors --outputs o.safetensors");
  EXPECT_EQ(judged.exit, 0) << judged.out << judged.err;
  expect_bad("run --in larger.safetensors --impl cpu.portable --out out", "as gen writes it");
}

TEST_F(Tools, AppendedRowsAndTheRestOfACacheAreJudged) {
  ASSERT_EQ(run("gen 'fwd b2 sq3 sk70 h2 d16 page=16 new=2' --out in").exit, 0);
  ASSERT_EQ(run("run --in in --impl cpu.portable --out out").exit, 0);
  const formats::Arrays outputs = arrays("out/outputs.safetensors");
  for (const char* name : {"k", "v"}) {
    formats::Array before = arrays("in/inputs.safetensors")[name];
    formats::Array after = outputs.at(name);
    std::int64_t appended = -1, kept = -1;  // the last element of each kind
    for (std::int64_t i = 0; i < after.elements(); ++i) {
      if (get(before, i) == get(after, i)) kept = i;
      if (!(get(before, i) == get(after, i)) && get(after, i) < 1e9) appended = i;
    }
    ASSERT_GE(std::min(appended, kept), 0);
    const auto changed = [&](std::int64_t element) {
      formats::Arrays wrong = outputs;
      set(wrong[name], element, get(after, element) + 0.125);
      write(directory_ / "wrong.safetensors", wrong);
      return run("check --in in --outputs wrong.safetensors");
    };
    const Ran wrong_row = changed(appended), other_row = changed(kept);
    EXPECT_EQ(wrong_row.exit, 1);
    EXPECT_NE(wrong_row.out.find(fmt::format("{}: ", name)), std::string::npos) << wrong_row.out;
    EXPECT_EQ(wrong_row.out.find("cache: "), std::string::npos) << wrong_row.out;
    EXPECT_EQ(other_row.exit, 1);
    EXPECT_NE(other_row.out.find(fmt::format("cache: {} changed outside of the rows to append, "
                                             "first at element {}",
                                             name, kept)),
              std::string::npos)
        << other_row.out;
  }
}

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

/// Files that `gen` wrote for a problem, `run` computed, and somebody then changed.
class Changed : public Tools {
 protected:
  void start(const std::string& line) {
    fs::remove_all(directory_ / "in");
    ASSERT_EQ(run(fmt::format("gen '{}' --out in", line)).exit, 0);
    ASSERT_EQ(run("run --in in --impl cpu.portable --out out").exit, 0);
    right_ = arrays("in/inputs.safetensors");
    outputs_ = arrays("out/outputs.safetensors");
  }

  template <class Change>
  void expect_bad_inputs(const Change& change, const std::string& what,
                         const std::string& line = "") {
    formats::Arrays inputs = right_;
    change(inputs);
    write(directory_ / "changed.safetensors", inputs);
    expect_bad(fmt::format("check '{}' --in changed.safetensors --outputs out", line), what);
  }

  template <class Change>
  void expect_bad_outputs(const Change& change, const std::string& what) {
    formats::Arrays outputs = outputs_;
    change(outputs);
    write(directory_ / "changed.safetensors", outputs);
    expect_bad("check --in in --outputs changed.safetensors", what);
  }

  formats::Arrays right_, outputs_;
};

TEST_F(Changed, SinksAndGradientsMustFit) {
  start("bwd s20 hq4 hk2 d16 sink bias=1,h,q,k");
  const std::string files = "--in in/inputs.safetensors --outputs out";
  EXPECT_EQ(run("check " + files).exit, 0);  // sinks say that there are sinks
  expect_bad("check sink=0 " + files, "sinks is given, but the problem says that there is none");
  expect_bad_inputs([](auto& inputs) { inputs.erase("sinks"); },
                    "dsinks is given, but the problem");
  expect_bad_inputs([](auto& inputs) { inputs.erase("sinks"); },
                    "the problem needs sinks, but the files hold no sinks", "sink");
  expect_bad_inputs(
      [](auto& inputs) {
        inputs["sinks"].shape = {2, 2};
      },
      "sinks has shape [2, 2]: expected [4]");
  expect_bad_inputs([](auto& inputs) { inputs["sinks"].dtype = DType::i32; },
                    "expected a floating-point format");
  expect_bad_inputs([](auto& inputs) { inputs.erase("dout"); }, "but dout is not");
  expect_bad_inputs([](auto& inputs) { inputs["sink"] = inputs["sinks"]; }, "did you mean sinks?");
  expect_bad_outputs(
      [](auto& outputs) {
        outputs["dbias"].shape = {4, 1, 20, 20};
      },
      "dbias has shape [4, 1, 20, 20]: expected [1, 4, 20, 20]");
  expect_bad_outputs(
      [](auto& outputs) {
        outputs["dsinks"].shape = {2, 2};
      },
      "dsinks has shape [2, 2]: expected [4]");
  // A forward problem judges no gradients, and what is absent is said to be unchecked.
  EXPECT_EQ(run("check fwd " + files).exit, 0);
  outputs_.erase("dsinks");
  outputs_.erase("dbias");
  write(directory_ / "fewer.safetensors", outputs_);
  const Ran fewer = run("check --in in --outputs fewer.safetensors --json");
  ASSERT_EQ(fewer.exit, 0) << fewer.out << fewer.err;
  const std::string missing = json::parse(fewer.out)["verdicts"][0]["not_checked"].dump();
  EXPECT_NE(missing.find("dbias"), std::string::npos) << missing;
  EXPECT_NE(missing.find("dsinks"), std::string::npos) << missing;
}

TEST_F(Changed, BlockListsMustFit) {
  start("fwd b2 sq40 sk70 h2 d16 blocks=16,32,0.5");
  const auto nothing = [](auto&) {};
  expect_bad_inputs(nothing, "expected blocks=BLOCK_Q,BLOCK_K,DENSITY in the problem");
  expect_bad_inputs(nothing, "kv_num_blocks has shape [2, 2, 3]: expected [2, 2, 5]",
                    "blocks=8,32,1");
  const std::string line = "blocks=16,32,1";
  expect_bad_inputs([](auto& inputs) { inputs.erase("kv_indices"); }, "hold no kv_indices", line);
  expect_bad_inputs([](auto& inputs) { inputs.erase("full_kv_indices"); },
                    "hold no full_kv_indices", line);
  expect_bad_inputs([](auto& inputs) { set(inputs["kv_num_blocks"], 0, 4); },
                    "kv_num_blocks holds 4: expected whole numbers from 0 to 3", line);
  expect_bad_inputs(
      [](auto& inputs) {
        set(inputs["full_kv_num_blocks"], 0, 1);
        set(inputs["full_kv_indices"], 0, 3);
      },
      "full_kv_num_blocks counts key block 3: expected 0 to 2", line);
  // Lists that let everything through may be left out; then there is one answer less to agree with.
  formats::Arrays inputs = right_;
  inputs.erase("full_kv_num_blocks");
  inputs.erase("full_kv_indices");
  write(directory_ / "partial.safetensors", inputs);
  EXPECT_EQ(run("check blocks=16,32,1 --in partial.safetensors --outputs out").exit, 1);
  expect_bad("run blocks=16,32,1 --in partial.safetensors --impl cpu.portable --out again",
             "full_kv_num_blocks is missing");
}

TEST_F(Changed, CachesMustFit) {
  start("fwd b2 sq3 sk70 hq4 hk2 d32 causal page=16 leftpad=4 new=2 rotary=16");
  const auto nothing = [](auto&) {};
  expect_bad_inputs(nothing, "the problem says page 8, but the files say 16", "page=8");
  expect_bad_inputs(nothing, "the problem says new 1, but the files say 2", "new=1");
  expect_bad_inputs(nothing, "the problem says rotary 8, but the files say 16", "rotary=8");
  expect_bad_inputs(nothing, "the problem says seqlen_k of sequence 0 71", "sk71");
  expect_bad_inputs(nothing, "block_table is given, but the problem says", "page=0");
  expect_bad_inputs(nothing, "no backward pass", "bwd");
  for (const char* name : {"v_new", "rotary_sin"})
    expect_bad_inputs([&](auto& inputs) { inputs.erase(name); }, fmt::format("hold no {}", name));
  expect_bad_inputs([](auto& inputs) { inputs.erase("block_table"); }, "hold no block_table",
                    "page=16");
  expect_bad_inputs([](auto& inputs) { inputs.erase("seqlens_k"); }, "seqlens_k is missing");
  expect_bad_inputs([](auto& inputs) { inputs["cu_seqlens_k"] = inputs["seqlens_k"]; },
                    "cu_seqlens_k is given beside a cache");
  expect_bad_inputs([](auto& inputs) { inputs["seqlens_k"].shape = {1, 2}; }, "one dimension");
  expect_bad_inputs(
      [](auto& inputs) {
        inputs["seqlens_k"].shape = {1};
        inputs["seqlens_k"].bytes.resize(4);
      },
      "expected 2, one for each sequence");
  expect_bad_inputs([](auto& inputs) { set(inputs["seqlens_k"], 1, 90); }, "has room for 80");
  expect_bad_inputs([](auto& inputs) { set(inputs["cache_leftpad"], 1, -1); },
                    "cache_leftpad says");
  expect_bad_inputs([](auto& inputs) { set(inputs["cache_leftpad"], 1, 99); },
                    "cache_leftpad says 99 for sequence 1: expected 0 to");
  expect_bad_inputs([](auto& inputs) { set(inputs["block_table"], 1, 100); },
                    "block_table names 100 for sequence 0");
  expect_bad_inputs([](auto& inputs) { set(inputs["block_table"], 6, -1); },
                    "block_table names -1 for sequence 1");
  expect_bad_inputs([](auto& inputs) { inputs["block_table"].dtype = DType::f32; },
                    "block_table in changed.safetensors is f32: expected i32 or i64");
  expect_bad_inputs(
      [](auto& inputs) {
        for (const char* name : {"rotary_cos", "rotary_sin"}) {
          formats::Array& table = inputs[name];
          table.shape[0] = 70;
          table.bytes.resize(70 * 8 * sizeof(float));
        }
      },
      "rotary_cos has 70 positions: expected at least 7");
  expect_bad_inputs([](auto& inputs) { inputs["rotary_sin"].shape = {8, 77}; }, "rotary_sin has");
  expect_bad_inputs(
      [](auto& inputs) { std::swap(inputs["k_new"].shape[1], inputs["k_new"].shape[3]); },
      "k_new has shape [2, 32, 2, 2]: expected [2, 32, 2, 32]");
  expect_bad_inputs(
      [](auto& inputs) {
        inputs["q"].shape = {6, 128};
      },
      "expected [batch, seqlen_q, nheads_q, head_dim] beside a cache");

  expect_bad_outputs([](auto& outputs) { outputs.erase("v"); },
                     "holds no v: expected the cache as it is after the call");
  expect_bad_outputs([](auto& outputs) { outputs["k"].shape = {24, 8, 2, 32}; }, "as before the");
  expect_bad_outputs([](auto& outputs) { outputs["v"].dtype = DType::i32; }, "as before the call");
}

TEST_F(Changed, CacheRowsMustFit) {
  start("fwd b2 sq3 sk70 h2 d16 slots=4");
  expect_bad_inputs([](auto& inputs) { set(inputs["cache_batch_idx"], 1, 4); },
                    "cache_batch_idx names 4 for sequence 1: expected 0 to 3");
  expect_bad_inputs([](auto& inputs) { inputs.erase("cache_batch_idx"); },
                    "the problem needs cache_batch_idx, but the files hold no cache_batch_idx",
                    "slots=4");
  expect_bad_inputs([](auto&) {}, "the problem says slots 5, but the files say 4", "slots=5");
  expect_bad_inputs([](auto& inputs) { set(inputs["seqlens_k"], 0, 72); }, "has room for 71");
}

TEST_F(Changed, QuantisedKeysMustFit) {
  start("fwd sq3 sk70 h2 d32 kv=i8");
  expect_bad_inputs([](auto&) {}, "the problem says kv q8_0, but the files say i8", "kv=q8_0");
  expect_bad_inputs([](auto& inputs) { set(inputs["k"], 5, 128); },
                    "k holds 128: expected whole numbers from -128 to 127");
  expect_bad_inputs([](auto& inputs) { inputs.erase("v_scales"); },
                    "the problem needs v_scales, but the files hold no v_scales");
  expect_bad_inputs([](auto& inputs) { inputs["v"] = inputs["q"]; }, "v has shape");
  expect_bad_inputs(
      [](auto& inputs) {
        inputs["k_scales"].shape = {70, 1, 2};
      },
      "k_scales has shape [70, 1, 2]: expected [1, 70, 2]");
  expect_bad_inputs([](auto& inputs) { inputs["q"].dtype = DType::i32; },
                    "q in changed.safetensors is i32: expected a floating-point format");

  start("fwd sq3 sk70 h2 d32 kv=q8_0");
  expect_bad_inputs(
      [](auto& inputs) {
        inputs["k"].shape = {1, 70, 2, 34, 1};
      },
      "expected 34 bytes, a block of q8_0, in its last dimension");
  expect_bad_inputs([](auto& inputs) { set(inputs["k"], 5, 256); },
                    "k holds 256: expected whole numbers from -128 to 255");

  start("fwd b2 sq3 sk70 h2 d32 bf16 kv=e4m3 descale");
  expect_bad_inputs([](auto& inputs) { inputs.erase("q_descale"); },
                    "the problem needs q_descale, but the files hold no q_descale");
  expect_bad_inputs([](auto&) {}, "is given, but the problem says that there is none", "descale=0");
  expect_bad_inputs([](auto& inputs) { inputs["v"].dtype = DType::e5m2; },
                    "v is e5m2: expected e4m3, as k is e4m3");
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
