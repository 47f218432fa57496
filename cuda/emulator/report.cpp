#include "cuda/emulator/report.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <iterator>
#include <utility>

namespace tilewise::emulator {

const char* name_of(Kind kind) {
  switch (kind) {
    case Kind::race: return "race";
    case Kind::uninitialised: return "uninitialised read";
    case Kind::out_of_bounds: return "out of bounds";
    case Kind::misaligned: return "misaligned";
    case Kind::not_waited_for: return "not waited for";
    case Kind::divergent_barrier: return "divergent barrier";
    case Kind::deadlock: return "deadlock";
    case Kind::divergent_warp: return "divergent warp";
    case Kind::bad_launch: return "bad launch";
    case Kind::bad_instruction: return "bad instruction";
    case Kind::not_fenced: return "not fenced";
    case Kind::bad_mbarrier: return "bad mbarrier";
  }
  return "";
}

std::string Line::text() const {
  if (line == 0) return file.empty() ? "?" : file;
  return inlined_at.empty() ? fmt::format("{}:{}", file, line)
                            : fmt::format("{}:{} (inlined at {})", file, line, inlined_at);
}

Traffic& Traffic::operator+=(const Traffic& more) {
  bytes_loaded += more.bytes_loaded;
  bytes_stored += more.bytes_stored;
  sectors_loaded += more.sectors_loaded;
  sectors_stored += more.sectors_stored;
  atomics += more.atomics;
  return *this;
}

Banks& Banks::operator+=(const Banks& more) {
  requests += more.requests;
  passes += more.passes;
  least_passes += more.least_passes;
  return *this;
}

Counts& Counts::operator+=(const Counts& more) {
  for (const auto& [name, part] : more.traffic) traffic[name] += part;
  banks += more.banks;
  for (const auto& [line, part] : more.banks_by_line) banks_by_line[line] += part;
  barriers += more.barriers;
  warp_syncs += more.warp_syncs;
  mma += more.mma;
  wgmma += more.wgmma;
  mma_flops += more.mma_flops;
  special_functions += more.special_functions;
  async_bytes += more.async_bytes;
  blocks += more.blocks;
  threads += more.threads;
  launches += more.launches;
  most_shared_bytes = std::max(most_shared_bytes, more.most_shared_bytes);
  return *this;
}

Traffic Counts::total() const {
  Traffic sum;
  for (const auto& [name, part] : traffic) sum += part;
  return sum;
}

Report& Report::operator+=(Report more) {
  for (Finding& finding : more.findings) {
    const auto same = std::find_if(findings.begin(), findings.end(), [&](const Finding& known) {
      return known.kind == finding.kind && known.kernel == finding.kernel &&
             known.line == finding.line && known.other == finding.other;
    });
    if (same != findings.end())
      same->times += finding.times;
    else
      findings.push_back(std::move(finding));
  }
  counts += more.counts;
  trace.insert(trace.end(), std::make_move_iterator(more.trace.begin()),
               std::make_move_iterator(more.trace.end()));
  return *this;
}

std::string Report::text() const {
  std::string all;
  for (const Finding& finding : findings) {
    all += fmt::format("{} in {}: {}", name_of(finding.kind), finding.kernel, finding.text);
    if (finding.times > 1) all += fmt::format(" ({} times)", finding.times);
    all += '\n';
  }
  return all;
}

std::string to_json(const Report& report) {
  using Json = nlohmann::ordered_json;
  const auto of_line = [](const Line& line) -> Json {
    return {{"file", line.file}, {"line", line.line}, {"inlined_at", line.inlined_at}};
  };
  Json findings = Json::array();
  for (const Finding& finding : report.findings)
    findings.push_back({{"kind", name_of(finding.kind)},
                        {"kernel", finding.kernel},
                        {"text", finding.text},
                        {"line", of_line(finding.line)},
                        {"other", of_line(finding.other)},
                        {"times", finding.times}});
  const Counts& counts = report.counts;
  Json traffic = Json::object();
  for (const auto& [name, part] : counts.traffic)
    traffic[name] = {{"bytes_loaded", part.bytes_loaded},
                     {"bytes_stored", part.bytes_stored},
                     {"sectors_loaded", part.sectors_loaded},
                     {"sectors_stored", part.sectors_stored},
                     {"atomics", part.atomics}};
  const auto of_banks = [](const Banks& banks) -> Json {
    return {{"requests", banks.requests},
            {"passes", banks.passes},
            {"least_passes", banks.least_passes}};
  };
  Json lines = Json::array();
  for (const auto& [line, banks] : counts.banks_by_line) {
    Json entry = of_line(line);
    entry.update(of_banks(banks));
    lines.push_back(std::move(entry));
  }
  Json trace = Json::array();
  for (const TraceEvent& event : report.trace)
    trace.push_back({{"block", event.block},
                     {"warp", event.warp},
                     {"name", event.name},
                     {"tile", event.tile},
                     {"begin", event.begin},
                     {"end", event.end}});
  const Json all = {{"findings", findings},
                    {"counts",
                     {{"traffic", traffic},
                      {"shared", of_banks(counts.banks)},
                      {"shared_by_line", lines},
                      {"barriers", counts.barriers},
                      {"warp_syncs", counts.warp_syncs},
                      {"mma", counts.mma},
                      {"wgmma", counts.wgmma},
                      {"mma_flops", counts.mma_flops},
                      {"special_functions", counts.special_functions},
                      {"async_bytes", counts.async_bytes},
                      {"blocks", counts.blocks},
                      {"threads", counts.threads},
                      {"launches", counts.launches},
                      {"most_shared_bytes", counts.most_shared_bytes}}},
                    {"trace", trace}};
  return all.dump(2);
}

}  // namespace tilewise::emulator
