// The problem line: any text is refused with a column that lies in it, or parses to a Problem whose
// own text parses back to it.
#include "oracle/problem.hpp"
#include "tests/fuzz/targets.hpp"

#include <algorithm>

namespace tilewise::fuzz {

void fuzz_problem(const std::uint8_t* data, std::size_t size) {
  const std::string line(reinterpret_cast<const char*>(data), size);
  const auto parsed = parse_problem(line);
  if (const auto* error = std::get_if<ParseError>(&parsed)) {
    require(!error->message.empty(), "an error has a message", line.c_str());
    // One behind the end is where something is missing.
    require(error->column >= 1 && error->column <= line.size() + 1,
            "an error's column lies within the line", line.c_str());
    require(!error->explain(line).empty(), "an error can be shown", line.c_str());
    return;
  }
  const Problem& problem = std::get<Problem>(parsed);
  require(inconsistency(problem).empty(), "what parses fits together", line.c_str());
  const std::string text = to_string(problem);
  const auto again = parse_problem(text);
  require(std::holds_alternative<Problem>(again), "a Problem's text parses", text.c_str());
  require(std::get<Problem>(again) == problem, "a Problem's text says all of it", text.c_str());
  require(to_string(std::get<Problem>(again)) == text, "a Problem has one text", text.c_str());
  // What the tools ask of a problem before they run it; the work is proportional to the rows.
  const std::int64_t rows = std::max(problem.total_q(), problem.total_k());
  if (rows >= 0 && rows < 1000) require(problem.flops() >= 0, "work is counted", text.c_str());
}

}  // namespace tilewise::fuzz
