// Reading problems and files, and formatting numbers: see common.hpp.
#include "tools/common.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <sstream>

namespace tilewise::tools {

void require(const Status& status) {
  if (!status.ok()) throw BadInput(status.reason);
}

namespace {
Problem value_of_parse(std::variant<Problem, ParseError> parsed, const std::string& line) {
  if (const auto* error = std::get_if<ParseError>(&parsed))
    throw BadInput(fmt::format("{} (column {} of \"{}\")", error->message, error->column, line));
  return std::get<Problem>(std::move(parsed));
}
}  // namespace

Problem parse(const std::string& line) {
  return value_of_parse(parse_problem(line), line);
}

Problem parse(const std::string& line, const Problem& defaults) {
  return value_of_parse(parse_problem(line, defaults), line);
}

std::vector<std::string> expand_problems(const std::vector<std::string>& arguments) {
  std::vector<std::string> lines;
  for (const std::string& argument : arguments) {
    if (!argument.starts_with('@')) {
      lines.push_back(argument);
      continue;
    }
    const std::size_t before = lines.size();
    std::istringstream text(read_text(argument.substr(1)));
    for (std::string line; std::getline(text, line);) {
      line = line.substr(0, line.find('#'));
      if (line.find_first_not_of(" \t\r") != std::string::npos) lines.push_back(line);
    }
    if (lines.size() == before)
      throw BadInput(fmt::format("{} holds no problem: expected one a line", argument.substr(1)));
  }
  return lines;
}

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find(separator), text.size());
    if (end > 0) parts.emplace_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return parts;
}

std::string closest(std::string_view text, const std::vector<std::string>& candidates) {
  std::string best;
  std::size_t best_distance = std::max<std::size_t>(2, text.size() / 2) + 1;
  for (const std::string& candidate : candidates) {
    // Levenshtein's distance, one row of its table at a time.
    std::vector<std::size_t> row(candidate.size() + 1);
    for (std::size_t j = 0; j < row.size(); ++j) row[j] = j;
    for (std::size_t i = 1; i <= text.size(); ++i) {
      std::size_t diagonal = row[0];
      row[0] = i;
      for (std::size_t j = 1; j < row.size(); ++j) {
        const std::size_t substituted = diagonal + (text[i - 1] == candidate[j - 1] ? 0 : 1);
        diagonal = row[j];
        row[j] = std::min({substituted, row[j] + 1, row[j - 1] + 1});
      }
    }
    if (row.back() < best_distance) {
      best_distance = row.back();
      best = candidate;
    }
  }
  return best;
}

std::string read_text(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file || std::filesystem::is_directory(path))
    throw BadInput(fmt::format("{} cannot be read: expected a text file", path.string()));
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_text(const std::filesystem::path& path, std::string_view text) {
  std::ofstream file(path, std::ios::binary);
  file.write(text.data(), static_cast<std::streamsize>(text.size()));
  file.close();
  if (!file) throw BadInput(fmt::format("{} cannot be written", path.string()));
}

void make_directory(const std::filesystem::path& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error)
    throw BadInput(
        fmt::format("the directory {} cannot be made: {}", path.string(), error.message()));
}

std::string seconds_text(double seconds) {
  if (seconds < 1e-3) return fmt::format("{} us", short_text(seconds * 1e6));
  if (seconds < 1) return fmt::format("{} ms", short_text(seconds * 1e3));
  return fmt::format("{} s", short_text(seconds));
}

std::string bytes_text(double bytes) {
  if (bytes < 1024) return fmt::format("{:.0f} B", bytes);
  if (bytes < 1024.0 * 1024) return fmt::format("{} KiB", short_text(bytes / 1024));
  if (bytes < 1024.0 * 1024 * 1024) return fmt::format("{} MiB", short_text(bytes / 1024 / 1024));
  return fmt::format("{} GiB", short_text(bytes / 1024 / 1024 / 1024));
}

std::string error_text(double error) {
  return error == 0 ? "0" : fmt::format("{:.1e}", error);
}

std::string short_text(double value) {
  const double magnitude = std::abs(value);
  if (!(magnitude < 1e6) || (magnitude > 0 && magnitude < 1e-3))
    return fmt::format("{:.2e}", value);
  const int decimals = magnitude >= 99.95 ? 0 : magnitude >= 9.995 ? 1 : 2;
  return fmt::format("{:.{}f}", value, decimals);
}

void print(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 != 0 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

std::size_t columns(std::string_view text) {
  return static_cast<std::size_t>(std::count_if(
      text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) >> 6) != 2; }));
}

std::string table_text(const std::vector<std::vector<std::string>>& rows,
                       const std::vector<bool>& right) {
  std::vector<std::size_t> widths;
  for (const auto& row : rows)
    for (std::size_t c = 0; c < row.size(); ++c) {
      if (c == widths.size()) widths.push_back(0);
      widths[c] = std::max(widths[c], columns(row[c]));
    }
  std::string text;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    std::string line;
    for (std::size_t c = 0; c < rows[r].size(); ++c) {
      const std::string pad(widths[c] - columns(rows[r][c]), ' ');
      const bool number = c < right.size() && right[c];
      line += (c == 0 ? "" : "  ") + (number ? pad + rows[r][c] : rows[r][c] + pad);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
    if (r > 0) continue;
    for (std::size_t c = 0; c < widths.size(); ++c)
      text += (c == 0 ? "" : "  ") + std::string(widths[c], '-');
    text += "\n";
  }
  return text;
}

std::string html_escaped(std::string_view text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '&': result += "&amp;"; break;
      case '<': result += "&lt;"; break;
      case '>': result += "&gt;"; break;
      case '"': result += "&quot;"; break;
      default: result += c;
    }
  }
  return result;
}

}  // namespace tilewise::tools
