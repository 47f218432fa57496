// tilewise count: CUDA steps under the emulator, on one problem after the other.
#include "tools/commands.hpp"
#include "tools/common.hpp"
#include "tools/table.hpp"
#include "tools/tour_emulated.hpp"

#include "cuda/emulator/emulator.hpp"
#include "oracle/harness/harness.hpp"
#include "stages/cuda_adapter.hpp"

#include <fmt/core.h>
#include <map>

namespace tilewise::tools {
namespace {

emulator::Options emulator_options(const CountOptions& options) {
  const std::map<std::string, emulator::Device> devices = {{"h100", emulator::Device::h100()},
                                                           {"a100", emulator::Device::a100()},
                                                           {"rtx3090", emulator::Device::rtx3090()},
                                                           {"t4", emulator::Device::t4()}};
  const std::map<std::string, emulator::Arrival> arrivals = {{"early", emulator::Arrival::early},
                                                             {"late", emulator::Arrival::late},
                                                             {"seeded", emulator::Arrival::seeded}};
  emulator::Options result;
  result.device = devices.at(options.device);
  result.arrival = arrivals.at(options.arrival);
  result.seed = options.seed;
  result.trace = options.json;
  return result;
}

std::string counts_text(const emulator::Counts& counts) {
  std::vector<std::vector<std::string>> rows{
      {"  tensor", "loaded", "stored", "sectors loaded", "sectors stored", "atomics"}};
  for (const auto& [name, traffic] : counts.traffic)
    rows.push_back({"  " + name, bytes_text(static_cast<double>(traffic.bytes_loaded)),
                    bytes_text(static_cast<double>(traffic.bytes_stored)),
                    fmt::format("{}", traffic.sectors_loaded),
                    fmt::format("{}", traffic.sectors_stored), fmt::format("{}", traffic.atomics)});
  std::string text = table_text(rows, {false, true, true, true, true, true});
  text += fmt::format(
      "  {} blocks of {} threads in {} launches; {} barriers, {} __syncwarp, {} mma, "
      "{} special functions\n",
      counts.blocks, counts.blocks > 0 ? counts.threads / counts.blocks : 0, counts.launches,
      counts.barriers, counts.warp_syncs, counts.mma, counts.special_functions);
  text += fmt::format("  shared memory: {} requests in {} passes over the banks; {} would do\n",
                      counts.banks.requests, counts.banks.passes, counts.banks.least_passes);
  for (const auto& [line, banks] : counts.banks_by_line)
    if (banks.conflict() > 1.05)
      text += fmt::format("    {}: {:.1f} times the passes that its bytes need\n", line.text(),
                          banks.conflict());
  return text;
}

}  // namespace

int count_command(const CountOptions& options) {
  const harness::Table table = emulated_implementations(emulator_options(options));
  const auto chosen = select(table, options.implementations);
  std::string all;
  bool fine = true, any = false;
  for (const std::string& line : expand_problems(options.problems)) {
    const Problem problem = parse(line);
    for (const harness::Implementation* implementation : chosen) {
      harness::Options judge;
      judge.repeats = 0;
      judge.data_directory = options.data;
      const harness::Verdict verdict = harness::check(*implementation, problem, judge);
      const emulator::Report& report =
          dynamic_cast<const stages::Emulated&>(*implementation).report();
      if (verdict.state != harness::State::unsupported) {
        fine = fine && verdict.passed();
        any = true;
      }
      if (options.json) {
        // Names, problems and states need no escapes.
        all += fmt::format(
            "{}{{\"implementation\": \"{}\", \"problem\": \"{}\", \"state\": \"{}\", "
            "\"formula_bytes\": {:.0f}, \"report\": {}}}",
            all.empty() ? "" : ",\n", implementation->name(), to_string(problem),
            harness::name_of(verdict.state), verdict.bytes_moved.value_or(0),
            emulator::to_json(report));
        continue;
      }
      print(harness::to_text(verdict) + "\n");
      if (verdict.state != harness::State::unsupported) print(counts_text(report.counts) + "\n");
    }
  }
  if (options.json) print("[" + all + "]\n");
  if (!any) throw BadInput("none of these steps serves any of these problems");
  return fine ? exit_pass : exit_fail;
}

}  // namespace tilewise::tools
