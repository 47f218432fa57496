// See json.hpp.
#include "tools/json.hpp"

#include "tools/tour.hpp"

#include <nlohmann/json.hpp>

#include <cmath>

namespace tilewise::tools {

namespace {
using Json = nlohmann::ordered_json;

/// JSON has no NaN and no infinities: null.
Json number(double value) {
  return std::isfinite(value) ? Json(value) : Json(nullptr);
}

std::string finish(const Json& json) {
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

Json of(const harness::Verdict& verdict) {
  return Json::parse(harness::to_json(verdict));
}

Json of(const harness::TimeReport& time) {
  return {{"repetitions", time.repetitions},
          {"median", number(time.median)},
          {"fastest", number(time.fastest)},
          {"slowest", number(time.slowest)},
          {"gflops", number(time.gflops())}};
}
}  // namespace

std::string list_json(const std::vector<Listed>& listed) {
  Json rows = Json::array();
  for (const Listed& row : listed) {
    Json supports = Json::array(), lacks = Json::object();
    for (const Listed::Feature& feature : row.features) {
      if (feature.supported)
        supports.push_back(feature.name);
      else
        lacks[feature.name] = feature.why;
    }
    if (row.writes_lse) supports.push_back("LSE");
    rows.push_back(
        {{"name", row.name}, {"idea", row.idea}, {"supports", supports}, {"lacks", lacks}});
  }
  return finish({{"implementations", rows}});
}

std::string written_json(const Problem& problem, const std::string& directory,
                         const formats::Arrays& arrays, std::string_view implementation) {
  Json tensors = Json::object();
  for (const auto& [name, array] : arrays)
    tensors[name] = {{"dtype", std::string(name_of(array.dtype))}, {"shape", array.shape}};
  Json json = {{"problem", to_string(problem)}, {"directory", directory}, {"tensors", tensors}};
  if (!implementation.empty()) json["implementation"] = std::string(implementation);
  return finish(json);
}

std::string new_kernel_json(std::string_view name, const std::vector<std::string>& files) {
  return finish({{"name", std::string(name)}, {"files", files}});
}

std::string check_json(const std::vector<harness::Verdict>& verdicts) {
  Json list = Json::array();
  int counts[4] = {};
  for (const harness::Verdict& verdict : verdicts) {
    list.push_back(of(verdict));
    ++counts[static_cast<int>(verdict.state)];
  }
  return finish({{"passed", counts[static_cast<int>(harness::State::pass)]},
                 {"failed", counts[static_cast<int>(harness::State::fail)]},
                 {"unsupported", counts[static_cast<int>(harness::State::unsupported)]},
                 {"errors", counts[static_cast<int>(harness::State::error)]},
                 {"verdicts", list}});
}

std::string bench_json(const std::vector<BenchRow>& rows) {
  Json list = Json::array();
  for (const BenchRow& row : rows) {
    Json json = {{"problem", row.problem}, {"implementation", row.implementation}};
    if (!row.why_not.empty()) {
      json["not_run"] = row.why_not;
    } else {
      json["time"] = of(row.time);
      json["fraction_of_peak"] = number(row.fraction_of_peak);
      json["peak_gflops"] = number(row.peak_gflops);
      json["fma"] = row.fma;
      if (row.ratio)
        json["times_as_fast_as_first"] = {{"median", number(row.ratio->median)},
                                          {"quartile_low", number(row.ratio->low)},
                                          {"quartile_high", number(row.ratio->high)}};
    }
    list.push_back(json);
  }
  return finish({{"runs", list}});
}

std::string bugs_json(const std::vector<BugRow>& rows) {
  Json list = Json::array();
  int ran = 0, rejected = 0;
  for (const BugRow& row : rows) {
    Json json = {{"name", row.name},
                 {"what_is_wrong", row.sentence},
                 {"expected", row.expected},
                 {"problems", row.problems}};
    if (row.ran) {
      json["rejected"] = row.rejected;
      json["problem"] = row.problem;
      json["reason"] = row.reason;
      ++ran;
      rejected += row.rejected ? 1 : 0;
    }
    list.push_back(json);
  }
  return finish({{"ran", ran}, {"rejected", rejected}, {"bugs", list}});
}

std::string tour_json(const Tour& tour) {
  const Machine& machine = tour.machine;
  Json runs = Json::array(), not_run = Json::array();
  for (const TourRun& run : tour.runs) {
    Json curve = Json::array(), features = Json::array();
    for (const harness::MemoryPoint& point : run.memory.points)
      curve.push_back({{"n", point.n},
                       {"vary", std::string(harness::name_of(point.vary))},
                       {"bytes", point.bytes}});
    for (const TourFeature& feature : run.features)
      features.push_back({{"name", feature.name},
                          {"problem", feature.problem},
                          {"state", std::string(harness::name_of(feature.state))},
                          {"why", feature.why}});
    runs.push_back({{"implementation", run.implementation},
                    {"idea", run.idea},
                    {"tensors", run.tensors},
                    {"verdict", of(run.verdict)},
                    {"memory_curve", curve},
                    {"slope_q", number(run.memory.slope_q)},
                    {"slope_k", number(run.memory.slope_k)},
                    {"slope_both", number(run.memory.slope_both)},
                    {"gflops", number(run.verdict.time.gflops())},
                    {"fraction_of_peak", number(run.fraction_of_peak)},
                    {"peak_gflops", number(run.peak_gflops)},
                    {"features", features}});
  }
  Json emulated = Json::array();
  for (const EmulatedRun& run : tour.emulated)
    emulated.push_back({{"implementation", run.implementation},
                        {"idea", run.idea},
                        {"verdict", of(run.verdict)},
                        {"report", Json::parse(emulated_json(run))}});
  for (const NotRun& row : tour.not_run)
    not_run.push_back(
        {{"implementation", row.implementation}, {"idea", row.idea}, {"why", row.why}});
  return finish({{"machine",
                  {{"cpu", machine.cpu},
                   {"cores", machine.cores},
                   {"memory_bytes", machine.memory_bytes},
                   {"caches", machine.caches},
                   {"system", machine.system},
                   {"compiler", machine.compiler},
                   {"build_type", machine.build_type},
                   {"fma", machine.fma},
                   {"peak_gflops", number(machine.peak_gflops)},
                   {"peak_gflops_one_core", number(machine.peak_gflops_one)},
                   {"bandwidth_gbytes", number(machine.bandwidth_gbytes)},
                   {"date", machine.date}}},
                 {"quick", tour.quick},
                 {"seconds", number(tour.seconds)},
                 {"memory_problem", tour.memory_problem},
                 {"runs", runs},
                 {"emulated", emulated},
                 {"not_run", not_run}});
}

}  // namespace tilewise::tools
