// The `tilewise` command: reads the command line and hands over to one subcommand.
#include "tools/commands.hpp"
#include "tools/common.hpp"

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <functional>
#include <string>

namespace tilewise::tools {

namespace {
constexpr const char* about =
    "Tilewise: attention kernels, built step by step and judged against float64.\n"
    "A PROBLEM is one line, like \"fwd b2 s512 hq8 hk2 d64 causal\" (docs/problem.md).\n"
    "Ends with 0: pass, 1: numbers are wrong, 2: bad use or input.";

struct Commands {
  CLI::App app{about, "tilewise"};
  std::function<int()> chosen;

  ListOptions list;
  GenOptions gen;
  RunOptions run;
  CheckOptions check;
  BenchOptions bench;
  CountOptions count;
  BugsOptions bugs;
  TourOptions tour;
  NewKernelOptions new_kernel;

  Commands();

 private:
  CLI::App* add(const char* name, const char* what, bool& json, std::function<int()> command) {
    CLI::App* sub = app.add_subcommand(name, what);
    sub->add_flag("--json", json, "Print JSON instead of text");
    sub->callback([this, command = std::move(command)] { chosen = command; });
    return sub;
  }
  static void add_data(CLI::App* sub, std::string& data) {
    sub->add_option("--data", data, "Directory of the real tensors (fill=real)")->type_name("DIR");
  }
  static void add_threads(CLI::App* sub, int& threads) {
    sub->add_option("--threads", threads, "Threads for the kernel; 0: all of the machine's")
        ->check(CLI::Range(0, 4096))
        ->type_name("N");
  }
  static CLI::Option* add_plugins(CLI::App* sub, std::vector<std::string>& plugins) {
    return sub
        ->add_option("--plugin", plugins, "A shared library with kernels; may be given repeatedly")
        ->type_name("LIBRARY")
        ->allow_extra_args(false);
  }
  static void add_layout(CLI::App* sub, std::string& layout) {
    sub->add_option("--layout", layout,
                    "How 4-D tensors in files lie: bshd (the default) or bhsd; 3-D ones are packed")
        ->check(CLI::IsMember({"bshd", "bhsd", "packed"}))
        ->type_name("LAYOUT");
  }
  static void add_judge(CLI::App* sub, JudgeOptions& judge) {
    sub->add_flag("--every-row", judge.every_row, "Judge every row, however long it takes");
    sub->add_option("--repeats", judge.repeats, "Further runs, compared with the first")
        ->check(CLI::Range(0, 1000000))
        ->type_name("N")
        ->capture_default_str();
    add_threads(sub, judge.threads);
    add_data(sub, judge.data);
  }
};

Commands::Commands() {
  app.require_subcommand(1);
  app.set_help_all_flag("--help-all", "Help on every subcommand");

  CLI::App* sub = add("list", "Name every implementation, its idea and what it supports", list.json,
                      [this] { return list_command(list); });
  add_plugins(sub, list.plugins);

  sub = add("tour", "Run and judge everything on this machine, and write a report", tour.json,
            [this] { return tour_command(tour); });
  sub->add_flag("--quick", tour.quick, "Smaller problems: about 20 seconds");
  sub->add_option("--only", tour.only, "Only these implementations: NAME or A,B")
      ->type_name("NAME");
  sub->add_option("--out", tour.out, "Where report.html and tour.json go")
      ->type_name("DIR")
      ->capture_default_str();
  add_plugins(sub, tour.plugins);
  add_data(sub, tour.data);

  sub = add("gen", "Write a problem's input tensors to files", gen.json,
            [this] { return gen_command(gen); });
  sub->add_option("PROBLEM", gen.problem, "What to compute")->required();
  sub->add_option("--out", gen.out, "Directory to write")->required()->type_name("DIR");
  sub->add_flag("--npy", gen.npy, "One .npy file a tensor instead of inputs.safetensors");
  add_data(sub, gen.data);

  sub = add("run", "Compute a problem's outputs with one of our implementations", run.json,
            [this] { return run_command(run); });
  sub->add_option("PROBLEM", run.problem, "What to compute; may be left out with --in");
  sub->add_option("--impl", run.implementation, "Who computes")->required()->type_name("NAME");
  add_plugins(sub, run.plugins);
  sub->add_option("--in", run.in, "Input tensors, instead of generated ones")
      ->type_name("DIR|FILE");
  sub->add_option("--out", run.out, "Directory for outputs.safetensors")
      ->required()
      ->type_name("DIR");
  add_layout(sub, run.layout);
  add_threads(sub, run.threads);
  add_data(sub, run.data);

  sub = add("check", "Judge one of our implementations, a plug-in, or somebody's output files",
            check.json, [this] { return check_command(check); });
  sub->add_option("PROBLEM", check.problems, "What to compute; @FILE: one problem a line");
  auto* implementation =
      sub->add_option("--impl", check.implementation, "Whom to judge: NAME, A,B or all")
          ->type_name("NAME");
  auto* plugin = add_plugins(sub, check.plugins);
  auto* in = sub->add_option("--in", check.in, "q, k, v [dout bias mask alibi_slopes cu_seqlens_*]")
                 ->type_name("DIR|FILE")
                 ->excludes(implementation)
                 ->excludes(plugin);
  sub->add_option("--outputs", check.outputs, "o [lse dq dk dv], computed by somebody else")
      ->type_name("DIR|FILE")
      ->excludes(implementation)
      ->needs(in);
  add_layout(sub, check.layout);
  add_judge(sub, check.judge);

  sub = add("bench", "Time implementations, in turns, beside this machine's ceiling", bench.json,
            [this] { return bench_command(bench); });
  sub->add_option("PROBLEM", bench.problems, "What to compute; @FILE: one problem a line")
      ->required();
  sub->add_option("--impl", bench.implementations, "Whom to time: NAME, A,B or all")
      ->type_name("NAMES");
  add_plugins(sub, bench.plugins);
  sub->add_option("--seconds", bench.seconds, "Time spent on each implementation and problem")
      ->check(CLI::Range(0.001, 3600.0))
      ->type_name("S")
      ->capture_default_str();
  add_threads(sub, bench.threads);
  add_data(sub, bench.data);

#if defined(TILEWISE_HAVE_EMULATOR)
  sub = add("count", "Run CUDA steps under the emulator: what is wrong, and what is moved",
            count.json, [this] { return count_command(count); });
  sub->add_option("PROBLEM", count.problems, "What to compute; @FILE: one problem a line")
      ->required();
  sub->add_option("--impl", count.implementations, "Which steps: NAME, A,B or emulated")
      ->type_name("NAMES")
      ->capture_default_str();
  sub->add_option("--device", count.device, "What a block may use")
      ->check(CLI::IsMember({"h100", "a100", "rtx3090", "t4"}))
      ->capture_default_str();
  sub->add_option("--seed", count.seed, "Of the order of warps and the arrival of copies")
      ->capture_default_str();
  sub->add_option("--arrival", count.arrival, "When asynchronous copies arrive")
      ->check(CLI::IsMember({"early", "late", "seeded"}))
      ->capture_default_str();
  add_data(sub, count.data);
#endif

  sub = add("bugs", "Run the planted bugs under the judge: each must be rejected", bugs.json,
            [this] { return bugs_command(bugs); });
  sub->add_option("NAME", bugs.names, "Only these bugs");
  sub->add_flag("--list", bugs.list, "Name them and say what is wrong, without running any");
  sub->add_option("--dtype", bugs.dtype, "The precision to run them in")
      ->check(CLI::IsMember({"f64", "f32", "f16", "bf16"}))
      ->type_name("DTYPE")
      ->capture_default_str();
  add_judge(sub, bugs.judge);

  sub = add("new-kernel", "Write a project with a kernel for --plugin, to be made into yours",
            new_kernel.json, [this] { return new_kernel_command(new_kernel); });
  sub->add_option("DIR", new_kernel.directory, "Where to write it: new, or empty")->required();
  sub->add_option("--name", new_kernel.name, "Of the kernel and its library")
      ->type_name("NAME")
      ->capture_default_str();
  sub->add_flag("--cuda", new_kernel.cuda, "A kernel for NVIDIA GPUs");
}

std::string one_line(std::string text) {
  while (!text.empty() && text.back() == '\n') text.pop_back();
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

int complain(const std::string& what) {
  std::fprintf(stderr, "tilewise: %s\n", one_line(what).c_str());
  return exit_bad;
}

/// A first word that is no subcommand deserves a better answer than "not expected".
std::string unknown_subcommand(const CLI::App& app, int count, char** words) {
  if (count < 2 || words[1][0] == '-') return {};
  std::vector<std::string> names;
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(sub->get_name());
  const std::string word = words[1];
  if (std::find(names.begin(), names.end(), word) != names.end()) return {};
  const std::string guess = closest(word, names);
  return "there is no subcommand \"" + word + "\"; " +
         (guess.empty() ? "`tilewise --help` names them" : "did you mean " + guess + "?");
}
}  // namespace

}  // namespace tilewise::tools

int main(int count, char** words) {
  using tilewise::tools::Commands, tilewise::tools::complain, tilewise::tools::unknown_subcommand;
  try {
    Commands commands;
    if (const std::string wrong = unknown_subcommand(commands.app, count, words); !wrong.empty())
      return complain(wrong);
    try {
      commands.app.parse(count, words);
    } catch (const CLI::ParseError& error) {
      if (error.get_exit_code() == 0) return commands.app.exit(error);  // --help
      return complain(std::string(error.what()) + " (`tilewise --help` shows the use)");
    }
    return commands.chosen();
  } catch (const std::bad_alloc&) {
    return complain("there is not enough memory for this problem");
  } catch (const std::exception& error) {
    return complain(error.what());
  }
}
