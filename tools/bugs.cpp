// `tilewise bugs`: the planted bugs under the judge. Each is rejected, or the judge is wrong.
#include "tests/bugs/table.hpp"

#include "tools/commands.hpp"
#include "tools/common.hpp"
#include "tools/json.hpp"
#include "tools/progress.hpp"
#include "tools/table.hpp"

#include <fmt/core.h>

#include <algorithm>

namespace tilewise::tools {

namespace {
/// Runs one bug on its problems, in `dtype`, until one of them shows it.
void judge_bug(const harness::Implementation& bug, DType dtype, const JudgeOptions& options,
               BugRow& row) {
  row.ran = true;
  for (const std::string& line : row.problems) {
    const harness::Verdict verdict =
        harness::check(bug, bugs::at_precision(line, dtype), options.harness_options());
    row.problem = verdict.problem;
    if (!verdict.reasons.empty()) row.reason = verdict.reasons.front();
    row.rejected = verdict.state == harness::State::fail;
    if (row.rejected) return;
  }
}

std::string text_of(const BugRow& row) {
  if (!row.ran) return fmt::format("{}\n    {}\n", row.name, row.sentence);
  if (row.rejected)
    return fmt::format("rejected  {}\n    wrong:    {}\n    problem:  {}\n    reason:   {}\n",
                       row.name, row.sentence, row.problem, row.reason);
  return fmt::format(
      "ACCEPTED  {}\n    wrong:    {}\n    problem:  {}\n    expected: a complaint "
      "about {}\n{}",
      row.name, row.sentence, row.problem, row.expected,
      row.reason.empty() ? "" : fmt::format("    got:      {}\n", row.reason));
}
}  // namespace

int bugs_command(const BugsOptions& options) {
  const harness::Table table = bugs::planted_bugs();
  std::string wanted;
  for (const std::string& name : options.names) wanted += name + ",";
  const auto chosen = select(table, wanted.empty() ? "all" : wanted);
  const auto dtype = dtype_from_name(options.dtype);
  if (!dtype || !is_floating(*dtype))
    throw BadInput(
        fmt::format("there is no dtype \"{}\": expected f32, f16 or bf16", options.dtype));

  std::vector<BugRow> rows;
  for (const bugs::BugInfo& info : bugs::bug_list()) {
    const auto bug = std::find_if(chosen.begin(), chosen.end(), [&](const auto* candidate) {
      return candidate->name() == info.name;
    });
    if (bug == chosen.end()) continue;
    BugRow row{std::string(info.name),
               std::string(info.sentence),
               std::string(info.expected),
               {info.problems.begin(), info.problems.end()},
               false,
               false,
               {},
               {}};
    if (!options.list) {
      Progress progress(1);
      progress.begin(row.name);
      judge_bug(**bug, *dtype, options.judge, row);
    }
    if (!options.json) print(text_of(row));
    rows.push_back(std::move(row));
  }
  const auto rejected =
      std::count_if(rows.begin(), rows.end(), [](const BugRow& row) { return row.rejected; });
  if (options.json)
    print(bugs_json(rows));
  else if (options.list)
    print(fmt::format("{} planted bugs\n", rows.size()));
  else
    print(fmt::format("{} of {} planted bugs rejected\n", rejected, rows.size()));
  return options.list || static_cast<std::size_t>(rejected) == rows.size() ? exit_pass : exit_fail;
}

}  // namespace tilewise::tools
