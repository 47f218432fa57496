// `tilewise list`: every implementation, its idea, and what it supports.
#include "tools/commands.hpp"
#include "tools/common.hpp"
#include "tools/json.hpp"
#include "tools/plugin.hpp"
#include "tools/table.hpp"

#include <fmt/core.h>

namespace tilewise::tools {

namespace {

/// The features' problems are f32 where they say nothing; what has 16-bit tensor cores alone is
/// asked for f16.
bool wants_f16(const harness::Implementation& implementation) {
  Problem problem = parse("fwd s70 h2 d64");
  if (implementation.supports(problem).ok) return false;
  problem.dtype = DType::f16;
  return implementation.supports(problem).ok;
}

}  // namespace

int list_command(const ListOptions& options) {
  const harness::Table table = with_plugins(implementations_for("emulated, cuda"), options.plugins);
  std::vector<Listed> listed;
  for (const auto& implementation : table) {
    Listed row{std::string(implementation->name()), std::string(implementation->idea()), {}, false};
    const bool in_f16 = wants_f16(*implementation);
    for (const Feature& feature : features()) {
      Problem problem = parse(std::string(feature.problem));
      if (in_f16 && problem.dtype == DType::f32) problem.dtype = DType::f16;
      const harness::Support support = implementation->supports(problem);
      row.features.push_back({std::string(feature.name), support.ok, support.reason});
      if (support.ok && implementation->writes(problem).lse) row.writes_lse = true;
    }
    listed.push_back(std::move(row));
  }
  if (options.json) {
    print(list_json(listed));
    return exit_pass;
  }
  std::string text;
  for (const Listed& row : listed) {
    std::string can, why;
    bool any = false;
    for (const Listed::Feature& feature : row.features) {
      if (feature.supported) can += (any ? ", " : "") + feature.name;
      any = any || feature.supported;
      if (!feature.supported && why.empty()) why = feature.why;
    }
    if (row.writes_lse) can += ", LSE";
    text += fmt::format("{}\n    {}\n    {}\n", row.name, row.idea,
                        any ? "supports: " + can : "cannot run here: " + why);
  }
  print(text);
  return exit_pass;
}

}  // namespace tilewise::tools
