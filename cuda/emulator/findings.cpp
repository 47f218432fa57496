#include "cuda/emulator/block.hpp"

namespace tilewise::emulator {

/// Once for each pair of lines: a loop would say it a thousand times.
void Block::find(Kind kind, Where where, Where other, const std::string& text) {
  const Line line = line_of(where), earlier = line_of(other);
  for (std::size_t n = 0; n < report.findings.size(); ++n) {
    Finding& finding = report.findings[n];
    if (finding.kind != kind || finding.line != line || finding.other != earlier) continue;
    ++finding.times;
    found_.push_back({kind, where, other, n});
    return;
  }
  found_.push_back({kind, where, other, report.findings.size()});
  const std::string place = where.known() ? line.text() + ": " : "";
  report.findings.push_back({kind, launch().name, place + text, line, earlier, 1});
  if (!given_up_ && static_cast<int>(report.findings.size()) >= options().most_findings) give_up();
}

bool Block::found_again(Kind kind, Where where, Where other) {
  for (const Found& found : found_)
    if (found.kind == kind && found.where == where && found.other == other) {
      ++report.findings[found.finding].times;
      return true;
    }
  return false;
}

}  // namespace tilewise::emulator
