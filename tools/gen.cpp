// `tilewise gen` and `tilewise run`: a problem's inputs, and our outputs on them, as files.
#include "tools/commands.hpp"
#include "tools/common.hpp"
#include "tools/json.hpp"
#include "tools/plugin.hpp"
#include "tools/table.hpp"
#include "tools/tensors.hpp"

#include "oracle/harness/fill.hpp"
#include "oracle/harness/session.hpp"

#include <fmt/core.h>

#include <filesystem>
#include <optional>

namespace tilewise::tools {

namespace {
std::string describe(const formats::Arrays& arrays) {
  std::string text;
  for (const auto& [name, array] : arrays) {
    text += fmt::format("  {:<18} {:<5} [", name, name_of(array.dtype));
    for (std::size_t dim = 0; dim < array.shape.size(); ++dim)
      text += fmt::format("{}{}", dim == 0 ? "" : ", ", array.shape[dim]);
    text += "]\n";
  }
  return text;
}

void write_arrays(const std::filesystem::path& directory, const std::string& stem,
                  const formats::Arrays& arrays, const Problem& problem, bool npy) {
  make_directory(directory);
  if (!npy) {
    value_of(formats::write_safetensors(directory / (stem + ".safetensors"), arrays,
                                        {{"problem", to_string(problem)}}));
    return;
  }
  for (const auto& [name, array] : arrays)
    value_of(formats::write_npy(directory / (name + ".npy"), array));
}
}  // namespace

int gen_command(const GenOptions& options) {
  const Problem problem = parse(options.problem);
  harness::ProblemBuffers buffers;
  require(buffers.allocate(problem, harness::Outputs::none()));
  require(harness::fill_inputs(problem, buffers.tensors(), options.data));
  const formats::Arrays arrays = to_arrays(problem, buffers.tensors(), true);
  write_arrays(options.out, "inputs", arrays, problem, options.npy);
  write_text(std::filesystem::path(options.out) / "problem.txt", to_string(problem) + "\n");
  if (options.json)
    print(written_json(problem, options.out, arrays, {}));
  else
    print(fmt::format("{}: {}\n{}", options.out, to_string(problem), describe(arrays)));
  return exit_pass;
}

int run_command(const RunOptions& options) {
  const harness::Table table =
      with_plugins(implementations_for(options.implementation), options.plugins);
  const harness::Implementation& implementation = select_one(table, options.implementation);
  if (options.in.empty() && options.problem.empty())
    throw BadInput("nothing says what to compute: expected a PROBLEM, or --in with tensors");
  std::optional<Given> given;
  if (!options.in.empty()) given = read_given(options.in, "", options.problem, options.layout);
  const Problem problem = given ? given->problem : parse(options.problem);
  harness::Session session(implementation, problem, options.threads);
  require(session.allocate());
  if (given)
    copy_inputs(given->tensors, session.tensors());
  else
    require(session.fill(options.data));
  require(session.call());
  const formats::Arrays arrays = to_arrays(problem, session.tensors(), false);
  write_arrays(options.out, "outputs", arrays, problem, false);
  if (options.json)
    print(written_json(problem, options.out, arrays, implementation.name()));
  else
    print(fmt::format("{}: {} by {}\n{}", options.out, to_string(problem), implementation.name(),
                      describe(arrays)));
  return exit_pass;
}

}  // namespace tilewise::tools
