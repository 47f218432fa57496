// `tilewise check`: one of our implementations, or somebody else's output files, judged.
#include "tools/commands.hpp"
#include "tools/common.hpp"
#include "tools/json.hpp"
#include "tools/plugin.hpp"
#include "tools/progress.hpp"
#include "tools/table.hpp"
#include "tools/tensors.hpp"

#include <fmt/core.h>

#include <filesystem>

namespace tilewise::tools {

namespace {
using harness::State;
using harness::Verdict;

/// Prints the verdicts' views and says how the command ends.
int conclude(const std::vector<Verdict>& verdicts, bool json) {
  int passed = 0, failed = 0, unsupported = 0, errors = 0;
  const Verdict* first_error = nullptr;
  for (const Verdict& verdict : verdicts) {
    if (verdict.state == State::pass) ++passed;
    if (verdict.state == State::fail) ++failed;
    if (verdict.state == State::unsupported) ++unsupported;
    if (verdict.state == State::error) ++errors;
    const bool bad = verdict.state == State::error || verdict.state == State::unsupported;
    if (first_error == nullptr && bad) first_error = &verdict;
  }
  if (json) {
    print(check_json(verdicts));
  } else if (verdicts.size() > 1) {
    print(fmt::format("{} passed, {} failed{}{}\n", passed, failed,
                      unsupported == 0 ? "" : fmt::format(", {} not supported", unsupported),
                      errors == 0 ? "" : fmt::format(", {} could not be judged", errors)));
  }
  if (failed > 0) return exit_fail;
  if (passed > 0 && errors == 0) return exit_pass;
  throw BadInput(first_error == nullptr ? "nothing was judged" : harness::to_text(*first_error));
}

int check_files(const CheckOptions& options) {
  if (options.outputs.empty())
    throw BadInput(
        "--in needs --outputs: expected the o [lse dq dk dv ...] that somebody computed");
  if (options.problems.size() > 1)
    throw BadInput("one set of files is one problem: expected one PROBLEM, or none");
  const std::string line = expand_problems(options.problems).empty()
                               ? std::string()
                               : expand_problems(options.problems).front();
  const Given given = read_given(options.in, options.outputs, line, options.layout);
  harness::Options judge = options.judge.harness_options();
  Progress progress(1);
  progress.begin("judging " + options.outputs);
  judge.progress = [&](double fraction) { progress.within(fraction); };
  Verdict verdict = harness::judge(given.problem, given.tensors, judge);
  if (!given.changed_cache.empty()) {
    verdict.reasons.push_back("cache: " + given.changed_cache);
    if (verdict.state == State::pass) verdict.state = State::fail;
  }
  verdict.implementation = options.outputs;
  verdict.reproduce =
      fmt::format("tilewise check \"{}\" --in {} --outputs {}{}", to_string(given.problem),
                  options.in, options.outputs, options.judge.every_row ? " --every-row" : "");
  if (!options.json && (verdict.state == State::pass || verdict.state == State::fail))
    print(harness::to_text(verdict) + "\n");
  return conclude({verdict}, options.json);
}

/// What a plug-in is judged on if nobody says: one problem of each kind that there is, and then
/// lengths that no tile divides, dtypes, decoding, long rows, rows without keys, hostile numbers.
std::vector<std::string> problems_for_plugins() {
  std::vector<std::string> lines;
  for (const Feature& feature : features()) lines.emplace_back(feature.problem);
  for (const char* line :
       {"fwd s1 d8", "fwd b2 s128 h2 d64", "fwd b2 s257 h3 d64 bhsd f16 causal",
        "fwd b2 sq250 sk1024 hq8 hk2 d64 bf16 causal", "fwd b2 sq1 sk1000 hq8 hk1 d128 f16",
        "fwd sq65 sk33 d64 causal", "fwd sq65 sk33 d64 causal conv=torch_sdpa",
        "fwd b1 s300 h2 d128 fill=peaks", "fwd s300 d64 fill=ascending", "fwd s300 d64 fill=huge",
        "fwd s300 d64 bf16 fill=outliers", "bwd b2 s130 hq4 hk2 d64 bf16 causal"})
    lines.emplace_back(line);
  return lines;
}

/// How a verdict on a plug-in's kernel is had again.
std::string with_plugin(const std::string& command, const harness::Implementation& kernel) {
  const PluginImplementation* const plugin = plugin_of(kernel);
  if (plugin == nullptr) return command;
  const bool quoted = plugin->path().find(' ') != std::string::npos;
  return fmt::format("{} --plugin {}{}{}", command, quoted ? "\"" : "", plugin->path(),
                     quoted ? "\"" : "");
}

int check_implementations(const CheckOptions& options) {
  const harness::Table table =
      with_plugins(implementations_for(options.implementation), options.plugins);
  const auto chosen =
      select(table, options.implementation.empty() ? plugin_names(table) : options.implementation);
  std::vector<std::string> lines = expand_problems(options.problems);
  if (lines.empty() && !options.plugins.empty()) lines = problems_for_plugins();
  if (lines.empty())
    throw BadInput("nothing says what to compute: expected a PROBLEM, like \"fwd s512 h4 d64\"");
  std::vector<Problem> problems;
  for (const std::string& line : lines) problems.push_back(parse(line));

  const bool named = chosen.size() == 1;  // then "not supported" is an answer, not noise
  std::vector<Verdict> verdicts;
  for (const Problem& problem : problems)
    for (const harness::Implementation* implementation : chosen) {
      Progress progress(1);
      progress.begin(fmt::format("{}  {}", implementation->name(), to_string(problem)));
      harness::Options judge = options.judge.harness_options();
      judge.progress = [&](double fraction) { progress.within(fraction); };
      verdicts.push_back(harness::check(*implementation, problem, judge));
      Verdict& verdict = verdicts.back();
      verdict.reproduce = with_plugin(verdict.reproduce, *implementation);
      const bool judged = verdict.state == State::pass || verdict.state == State::fail;
      const bool last_word = named && problems.size() == 1;  // conclude() says it
      if (!options.json && (judged || !last_word)) print(harness::to_text(verdict) + "\n");
    }
  return conclude(verdicts, options.json);
}
}  // namespace

int check_command(const CheckOptions& options) {
  if (!options.in.empty()) return check_files(options);
  if (options.implementation.empty() && options.plugins.empty())
    throw BadInput(
        "nobody is named to be judged: expected --impl NAME, --plugin LIBRARY, or --in and "
        "--outputs");
  return check_implementations(options);
}

}  // namespace tilewise::tools
