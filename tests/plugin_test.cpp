// Plug-ins: loaded, asked and judged like any implementation; every broken rule of plugin.h said in
// a sentence; tensors carried to a device and back; and the command's side of it.
#include "tools/plugin.hpp"

#include "oracle/harness/harness.hpp"
#include "tools/capi_implementation.hpp"
#include "tools/common.hpp"

#include <dlfcn.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <sys/wait.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace tilewise {
namespace {

namespace fs = std::filesystem;
using harness::State;
using harness::Verdict;
using nlohmann::json;

/// An environment variable for as long as this lives: the test plug-ins read them.
class Variable {
 public:
  Variable(const char* name, const std::string& value) : name_(name) {
    setenv(name, value.c_str(), 1);
  }
  ~Variable() { unsetenv(name_); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  const char* name_;
};

const harness::Implementation& find(const harness::Table& table, const std::string& name) {
  for (const auto& implementation : table)
    if (implementation->name() == name) return *implementation;
  throw std::runtime_error("no kernel " + name);
}

Verdict check(const char* library, const std::string& name, const std::string& problem,
              int threads = 1) {
  const harness::Table table = tools::load_plugin(library);
  harness::Options options;
  options.threads = threads;
  return harness::check(find(table, name), std::string_view(problem), options);
}

/// What loading says; empty if it says nothing.
std::string complaint(const std::string& path) {
  try {
    (void)tools::with_plugins({}, {path});
  } catch (const tools::BadInput& bad) {
    return bad.what();
  }
  return {};
}

void expect_reason(const Verdict& verdict, State state, const std::string& reason) {
  EXPECT_EQ(verdict.state, state) << to_text(verdict);
  const auto has = [&](const std::string& text) { return text.find(reason) != std::string::npos; };
  EXPECT_TRUE(std::any_of(verdict.reasons.begin(), verdict.reasons.end(), has))
      << "expected: " << reason << "\n"
      << to_text(verdict);
}

// ------------------------------------------------------------------------------- what a kernel
// does

// A problem of each kind: what the adapter passes on must arrive.
class EverySemantic : public testing::TestWithParam<const char*> {};

TEST_P(EverySemantic, ArrivesOnTheHost) {
  const Verdict verdict = check(TILEWISE_PLUGIN_HOST, "host.right", GetParam());
  EXPECT_EQ(verdict.state, State::pass) << to_text(verdict);
}

TEST_P(EverySemantic, ArrivesOnTheDevice) {
  const Verdict verdict = check(TILEWISE_PLUGIN_DEVICE, "device.right", GetParam());
  EXPECT_EQ(verdict.state, State::pass) << to_text(verdict);
}

INSTANTIATE_TEST_SUITE_P(Plugin, EverySemantic,
                         testing::Values("fwd b2 sq20 sk33 hq4 hk2 d16 dv24 causal",
                                         "fwd b2 s20 h2 d16 bhsd f16",
                                         "bwd b2 s20 hq4 hk2 d16 bf16 bias=1,h,q,k sink",
                                         "bwd b3 sq5,9,1 sk7,12,4 hq4 hk2 d8 packed causal",
                                         "fwd b2 sq5,9 sk12,4 h2 d8 window=3,1 softcap=20 alibi",
                                         "fwd b2 sq40 sk50 h2 d16 blocks=16,16,0.5 mask=b,1,1,k",
                                         "bwd s33 d16 dropout=0.2",
                                         "fwd b2 sq3 sk70 h2 d32 page=16 new=3 rotary=16 causal",
                                         "fwd b2 sq3 sk70 h2 d32 slots=4 leftpad=5 kv=i8",
                                         "fwd b2 sq40 sk70 h2 d32 e4m3 descale splits=2",
                                         "fwd sq4 sk0 d16"));

TEST(Plugin, IsToldWhatThePluginHeaderPromises) {
  const Verdict verdict = check(TILEWISE_PLUGIN_HOST, "host.checks_its_call",
                                "fwd b2 sq30,20 sk70,60 d16 packed splits=2", 3);
  EXPECT_EQ(verdict.state, State::pass) << to_text(verdict);
  const std::string unchecked = fmt::format("{}", fmt::join(verdict.not_checked, ";"));
  EXPECT_NE(unchecked.find("lse"), std::string::npos) << "it writes none: " << unchecked;
}

TEST(Plugin, IsRejectedWhenItsNumbersAreWrong) {
  const Verdict verdict = check(TILEWISE_PLUGIN_HOST, "host.forgets_half", "fwd s64 d16");
  EXPECT_EQ(verdict.state, State::fail) << to_text(verdict);
}

TEST(Plugin, SaysWhyItDoesNotServeOrFailed) {
  const auto host = [](const char* name, const char* problem) {
    return check(TILEWISE_PLUGIN_HOST, name, problem);
  };
  expect_reason(host("host.breaks_down", "fwd s8 d8"), State::fail,
                "run() answered failed: forward: the flux is inverted");
  expect_reason(host("host.says_nothing", "fwd s8 d8"), State::fail,
                "run() answered no memory: forward: it gave no reason");
  expect_reason(host("host.answers_77", "fwd s8 d8"), State::fail,
                "forward answered 77, which is no status: it gave no reason");
  expect_reason(host("host.serves_nothing", "fwd s8 d8"), State::unsupported, "not on Sundays");
  expect_reason(host("host.misunderstands", "fwd s8 d8"), State::unsupported,
                "supports: what is q?");
  expect_reason(host("host.breaks_down", "bwd s8 d8"), State::unsupported,
                "the plug-in's kernel has no backward pass");
}

TEST(Plugin, OfAnotherHeaderSeesWhatBothKnow) {
  {
    const Variable variant("TILEWISE_TEST_PLUGIN", "older attention");
    EXPECT_EQ(check(TILEWISE_PLUGIN_HOST, "host.right", "bwd s20 d16").state, State::pass);
    expect_reason(check(TILEWISE_PLUGIN_HOST, "host.right", "fwd sq3 sk70 d16 page=16"),
                  State::unsupported, "was built with a header that ends at");
  }
  const Variable variant("TILEWISE_TEST_PLUGIN", "newer attention");
  EXPECT_EQ(check(TILEWISE_PLUGIN_HOST, "host.right", "bwd s20 d16").state, State::pass);
}

// ---------------------------------------------------------------------------------------- loading

TEST(Plugin, IsLoadedWithItsNamesAndIdeas) {
  const harness::Table table = tools::load_plugin(TILEWISE_PLUGIN_HOST);
  ASSERT_GT(table.size(), 1u);
  EXPECT_EQ(table[0]->name(), "host.right");
  EXPECT_EQ(table[0]->idea(), "the library's own attention");
}

TEST(Plugin, FilesThatAreNoneAreSaidToBe) {
  EXPECT_NE(complaint("/nowhere/libmine.so").find("/nowhere/libmine.so: there is no such file"),
            std::string::npos);
  EXPECT_NE(complaint("/").find("there is no such file"), std::string::npos);
  EXPECT_NE(complaint(TILEWISE_SOURCE_DIRECTORY "/README.md").find("it cannot be loaded: "),
            std::string::npos);
  EXPECT_NE(complaint(TILEWISE_PLUGIN_NO_PLUGIN)
                .find("it is no plug-in: expected a function tilewise_plugin_get"),
            std::string::npos);
}

TEST(Plugin, EachBrokenRuleIsSaid) {
  const std::pair<const char*, std::string> rules[] = {
      {"no table", "it does not serve version 1 of tilewise/plugin.h"},
      {"table too small", fmt::format("its table has struct_size 8, expected {}: its sizeof",
                                      sizeof(tilewise_plugin))},
      {"table too large", "its table has struct_size 1048576"},
      {"newer table in use", fmt::format("its table sets a field at byte {}, which this tilewise",
                                         sizeof(tilewise_plugin))},
      {"other version", "it was built for version 9 of tilewise/plugin.h, expected 1"},
      {"attention too small", "its attention_size is 16, expected sizeof(tilewise_attention)"},
      {"no kernels", "it holds 0 kernels at its address: expected 1 to 1000"},
      {"null kernels", "kernels at a null pointer"},
      {"kernel null", "kernel 0 is a null pointer"},
      {"kernel too small",
       fmt::format("kernel 0 has struct_size 24, expected {}", sizeof(tilewise_plugin_kernel))},
      {"kernel newer in use", fmt::format("kernel 0 sets a field at byte {}, which this tilewise",
                                          sizeof(tilewise_plugin_kernel) + 4)},
      {"kernel without name", "kernel 0 has no name: expected letters"},
      {"kernel with odd name", "kernel 0 has no name: expected letters"},
      {"kernel without idea", "host.right has no idea: expected a sentence"},
      {"kernel without supports", "host.right has no function `supports`"},
      {"kernel without forward", "host.right has no function `forward`"},
      {"kernel without o", "host.right does not write o"},
      {"kernel with odd outputs", "host.right names outputs"},
      {"kernel on the moon", "host.right has device_type 13: expected TILEWISE_CPU"},
      {"kernel without memory", "the plug-in has no function `allocate`"},
      {"kernel twice",
       fmt::format("a kernel is called \"host.right\", as one of {} is", TILEWISE_PLUGIN_HOST)},
      {"kernel called all", "a kernel is called \"all\", a name that tilewise keeps for itself"},
      {"kernel called bug", "a kernel is called \"bug.mine\", a name that tilewise keeps"},
  };
  for (const auto& [variant, sentence] : rules) {
    const Variable set("TILEWISE_TEST_PLUGIN", variant);
    const std::string said = complaint(TILEWISE_PLUGIN_HOST);
    EXPECT_NE(said.find(sentence), std::string::npos) << variant << ": " << said;
    EXPECT_TRUE(said.starts_with(TILEWISE_PLUGIN_HOST)) << said;
  }
  for (const char* function :
       {"allocate", "release", "copy_to_device", "copy_to_host", "synchronize"}) {
    const Variable set("TILEWISE_TEST_WITHOUT", function);
    const std::string said = complaint(TILEWISE_PLUGIN_DEVICE);
    EXPECT_NE(said.find(fmt::format("device.right computes on a device, and the plug-in has no "
                                    "function `{}`",
                                    function)),
              std::string::npos)
        << said;
  }
}

TEST(Plugin, NewerTablesThatSetNothingNewAreTaken) {
  for (const char* variant : {"newer table", "kernel newer", "kernel as it was"}) {
    const Variable set("TILEWISE_TEST_PLUGIN", variant);
    EXPECT_EQ(complaint(TILEWISE_PLUGIN_HOST), "") << variant;
  }
}

TEST(Plugin, ANameOfOursIsNotTaken) {
  const Variable set("TILEWISE_TEST_PLUGIN", "kernel called portable");
  harness::Table table;
  table.push_back(tools::portable_implementation());
  try {
    (void)tools::with_plugins(std::move(table), {TILEWISE_PLUGIN_HOST});
    FAIL() << "it was taken";
  } catch (const tools::BadInput& bad) {
    EXPECT_NE(std::string(bad.what()).find("\"cpu.portable\", as one of tilewise's own is"),
              std::string::npos)
        << bad.what();
  }
}

TEST(Plugin, TheSameOneTwiceIsSaid) {
  try {
    (void)tools::with_plugins({}, {TILEWISE_PLUGIN_HOST, TILEWISE_PLUGIN_HOST});
    FAIL() << "it was taken";
  } catch (const tools::BadInput& bad) {
    EXPECT_NE(std::string(bad.what()).find("expected another name"), std::string::npos);
  }
}

// --------------------------------------------------------------------------------------- a device

int device_allocations() {
  void* const library = dlopen(TILEWISE_PLUGIN_DEVICE, RTLD_NOW | RTLD_LOCAL);
  const auto count = reinterpret_cast<int (*)()>(dlsym(library, "test_device_allocations"));
  return count();
}

TEST(PluginDevice, SeesWhatAKernelWritesThatItMustNot) {
  const auto device = [](const char* name) {
    return check(TILEWISE_PLUGIN_DEVICE, name, "fwd sq20 sk30 d16");
  };
  expect_reason(device("device.writes_past_o"), State::fail,
                "on the device, it wrote past the end of o: 5 bytes behind its last element");
  expect_reason(device("device.writes_before_o"), State::fail,
                "on the device, it wrote 3 bytes before the start of o");
  expect_reason(device("device.writes_past_workspace"), State::fail,
                "on the device, it wrote past the end of its workspace: 1 bytes behind");
  expect_reason(device("device.writes_to_k"), State::fail,
                "on the device, it wrote to its input k, first at byte ");
  // The poison of the host's outputs travels, so that what is not written shows.
  EXPECT_EQ(device("device.writes_nothing").state, State::fail);
  EXPECT_EQ(device_allocations(), 0);
}

TEST(PluginDevice, ItsTroublesAreSaidAndNothingLeaks) {
  const std::pair<const char*, const char*> troubles[] = {
      {"full", "run() answered no memory: allocate: the device is full"},
      {"nowhere", "allocate answered ok and a null pointer"},
      {"misaligned", "allocate answered an address that is no multiple of 256"},
      {"no way in", "run() answered failed: copy_to_device: there is no way in"},
      {"no way out", "run() answered failed: copy_to_host: there is no way out"},
      {"asleep", "run() answered failed: synchronize: the device does not wake up"},
  };
  for (const auto& [trouble, sentence] : troubles) {
    const Variable set("TILEWISE_TEST_DEVICE", trouble);
    expect_reason(check(TILEWISE_PLUGIN_DEVICE, "device.right", "fwd sq20 sk30 d16"), State::fail,
                  sentence);
    EXPECT_EQ(device_allocations(), 0) << trouble;
  }
}

TEST(PluginDevice, TensorsThatShareMemoryShareItThere) {
  // q, k and v side by side in one tensor, as projections leave them; o over nothing.
  const Problem problem = std::get<Problem>(parse_problem("fwd b1 sq9 sk9 h2 d8"));
  std::vector<float> qkv(9 * 3 * 2 * 8), o(9 * 2 * 8, -1), lse(2 * 9, -1);
  for (std::size_t i = 0; i < qkv.size(); ++i) qkv[i] = static_cast<float>(i % 17) / 17;
  AttentionTensors tensors;
  TensorView view = contiguous(qkv.data(), DType::f32, 1, 9, 2, 8);
  view.strides[0] = 9 * 48;
  view.strides[1] = 48;
  tensors.q = tensors.k = tensors.v = view;
  tensors.k.data = qkv.data() + 16;
  tensors.v.data = qkv.data() + 32;
  tensors.o = contiguous(o.data(), DType::f32, 1, 9, 2, 8);
  tensors.lse = contiguous(lse.data(), DType::f32, 1, 2, 9);
  const harness::Table table = tools::load_plugin(TILEWISE_PLUGIN_DEVICE);
  const harness::Implementation& kernel = find(table, "device.right");
  std::vector<std::uint64_t> workspace(kernel.workspace_bytes(problem) / 8 + 16);
  void* start = workspace.data();
  std::size_t room = workspace.size() * 8;
  ASSERT_NE(std::align(64, room - 64, start, room), nullptr);
  const Status status =
      kernel.run({problem, problem.params(), tensors, start, kernel.workspace_bytes(problem), 1});
  ASSERT_TRUE(status.ok()) << status.reason;
  const Verdict verdict = harness::judge(problem, tensors);
  EXPECT_EQ(verdict.state, State::pass) << to_text(verdict);
}

// ------------------------------------------------------------------------------------ the command

struct Ran {
  int exit = -1;
  std::string out, err;
};

std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

class PluginCommand : public testing::Test {
 protected:
  void SetUp() override {
    std::string path = (fs::temp_directory_path() / "tilewise-plugin-XXXXXX").string();
    ASSERT_NE(mkdtemp(path.data()), nullptr);
    directory_ = path;
  }
  void TearDown() override { fs::remove_all(directory_); }

  Ran run(const std::string& arguments) const {
    const int status = std::system(fmt::format("cd '{}' && '{}' {} >out.txt 2>err.txt",
                                               directory_.string(), TILEWISE_COMMAND, arguments)
                                       .c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_file(directory_ / "out.txt"),
            read_file(directory_ / "err.txt")};
  }
  void expect_bad(const std::string& arguments, const std::string& what) const {
    const Ran ran = run(arguments);
    EXPECT_EQ(ran.exit, 2) << arguments << "\n" << ran.out << ran.err;
    EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << arguments << "\n" << ran.err;
    EXPECT_NE(ran.err.find(what), std::string::npos) << arguments << "\n" << ran.err;
  }

  const std::string host_ = fmt::format("--plugin '{}'", TILEWISE_PLUGIN_HOST);
  const std::string device_ = fmt::format("--plugin '{}'", TILEWISE_PLUGIN_DEVICE);
  fs::path directory_;
};

TEST_F(PluginCommand, ChecksOneKernelOrAll) {
  const Ran one = run("check 'fwd s20 d16' 'bwd s9 d8' " + host_ + " --impl host.right --json");
  ASSERT_EQ(one.exit, 0) << one.out << one.err;
  EXPECT_EQ(json::parse(one.out)["passed"], 2);
  const Ran all = run("check 'fwd s20 d16' --json " + host_);
  EXPECT_EQ(all.exit, 1) << all.err;
  EXPECT_EQ(json::parse(all.out)["verdicts"].size(), 8u);
  const Ran both = run("check 'fwd s20 d16' --json --impl portable,device.right " + device_);
  ASSERT_EQ(both.exit, 0) << both.out << both.err;
  EXPECT_EQ(json::parse(both.out)["passed"], 2);
}

TEST_F(PluginCommand, AFailureIsReproducedWithThePlugin) {
  const Ran ran = run("check 'fwd s64 d16' --impl host.forgets_half --json " + host_);
  ASSERT_EQ(ran.exit, 1) << ran.err;
  const std::string line = json::parse(ran.out)["verdicts"][0]["reproduce"];
  EXPECT_NE(line.find(" --impl host.forgets_half --plugin "), std::string::npos) << line;
  ASSERT_TRUE(line.starts_with("tilewise "));
  EXPECT_EQ(run(line.substr(9)).exit, 1) << line;
}

TEST_F(PluginCommand, WithoutAProblemThereIsAList) {
  const Ran ran = run("check --json --impl host.right " + host_);
  ASSERT_EQ(ran.exit, 0) << ran.out << ran.err;
  EXPECT_GE(json::parse(ran.out)["passed"], 20);
  expect_bad("check --impl host.serves_nothing " + host_, "not on Sundays");
}

TEST_F(PluginCommand, RunsListsAndTimes) {
  EXPECT_NE(run("list " + host_).out.find("host.right\n    the library's own attention\n"),
            std::string::npos);
  ASSERT_EQ(run("run 'fwd s20 d16' --impl device.right --out out " + device_).exit, 0);
  EXPECT_TRUE(fs::exists(directory_ / "out/outputs.safetensors"));
  const Ran timed = run("bench 'fwd s64 d16' --seconds 0.01 --json --impl 2b,host.right " + host_);
  ASSERT_EQ(timed.exit, 0) << timed.err;
  EXPECT_EQ(json::parse(timed.out)["runs"].size(), 2u);
  expect_bad("bench 'fwd s64 d16' " + device_, "device.right computes on a device");
  expect_bad("bench 'fwd s64 d16'", "--impl");
  expect_bad("tour --only device " + device_, "device.right computes on a device");
}

TEST_F(PluginCommand, BadUseIsOneLineThatHelps) {
  expect_bad("check 'fwd s8 d8' --plugin gone.so", "gone.so: there is no such file");
  expect_bad("check 'fwd s8 d8' --impl host.rigth " + host_, "did you mean host.right?");
  expect_bad("check 'fwd s8 d8' " + host_ + " " + host_, "expected another name");
  expect_bad("check 'fwd s8 d8' --in in --outputs out " + host_, "--plugin");
  expect_bad("list --plugin", "--plugin");
}

TEST_F(PluginCommand, NewKernelWritesAProjectOnceAndOnlyThere) {
  const Ran ran = run("new-kernel mine --name flash_mine --json");
  ASSERT_EQ(ran.exit, 0) << ran.err;
  EXPECT_EQ(json::parse(ran.out)["files"].size(), 3u);
  const std::string kernel = read_file(directory_ / "mine/kernel.cpp");
  EXPECT_NE(kernel.find("\"flash_mine\""), std::string::npos);
  EXPECT_EQ(kernel.find("my_kernel"), std::string::npos);
  EXPECT_EQ(kernel.find("snippet"), std::string::npos);
  EXPECT_NE(read_file(directory_ / "mine/README.md").find("build/libflash_mine.so"),
            std::string::npos);
  EXPECT_NE(read_file(directory_ / "mine/CMakeLists.txt").find("add_library(flash_mine MODULE"),
            std::string::npos);
  expect_bad("new-kernel mine", "mine is not empty");
  std::ofstream(directory_ / "a_file") << "1";
  expect_bad("new-kernel a_file", "a_file is a file");
  expect_bad("new-kernel other --name 'two words'", "\"two words\" is no name");
  expect_bad("new-kernel other --name 2fast", "\"2fast\" is no name");
  EXPECT_FALSE(fs::exists(directory_ / "other"));
  expect_bad("new-kernel", "DIR");
  fs::create_directory(directory_ / "empty");
  EXPECT_EQ(run("new-kernel empty --cuda").exit, 0);
  EXPECT_NE(read_file(directory_ / "empty/kernel.cu").find("cudaMalloc"), std::string::npos);
  EXPECT_NE(read_file(directory_ / "empty/CMakeLists.txt").find("kernel.cu"), std::string::npos);
}

}  // namespace
}  // namespace tilewise
