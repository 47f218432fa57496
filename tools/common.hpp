// What every subcommand needs: how it ends, how it reads problems and files, how it prints.
#pragma once

#include "core/status.hpp"
#include "oracle/formats/formats.hpp"
#include "oracle/harness/implementation.hpp"
#include "oracle/problem.hpp"

#include <filesystem>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace tilewise::tools {

/// How the command ends.
enum Exit : int {
  exit_pass = 0,
  exit_fail = 1,  ///< numbers are wrong
  exit_bad = 2,   ///< bad use or bad input, said in one line on stderr
};

/// The one line: what is wrong, what was expected. main() prints it and ends with exit_bad.
struct BadInput : std::runtime_error {
  using std::runtime_error::runtime_error;
};

void require(const Status& status);

/// The value, or the file's error as BadInput.
template <class T>
T value_of(formats::Result<T> result) {
  if (auto* error = std::get_if<formats::FileError>(&result)) throw BadInput(error->message);
  return std::get<T>(std::move(result));
}

Problem parse(const std::string& line);
Problem parse(const std::string& line, const Problem& defaults);

/// Arguments that start with @ replaced by their file's lines; empty lines and # comments skipped.
std::vector<std::string> expand_problems(const std::vector<std::string>& arguments);

std::vector<std::string> split(std::string_view text, char separator);

/// The candidate nearest to `text` in edits, or empty when none is near.
std::string closest(std::string_view text, const std::vector<std::string>& candidates);

std::string read_text(const std::filesystem::path& path);
void write_text(const std::filesystem::path& path, std::string_view text);
void make_directory(const std::filesystem::path& path);

/// "1.50 ms", "12.3 KiB", "1.2e-07": numbers for people.
std::string seconds_text(double seconds);
std::string bytes_text(double bytes);
std::string error_text(double error);
/// Three significant digits.
std::string short_text(double value);

/// Text that stands in HTML as it is.
std::string html_escaped(std::string_view text);

/// To stdout, whole; and flushed.
void print(std::string_view text);

double median(std::vector<double> values);

/// The columns a text takes on a terminal (UTF-8 characters, all taken as one column wide).
std::size_t columns(std::string_view text);

/// Columns of text, aligned: the first row is the heading. Columns named in `right` are numbers.
std::string table_text(const std::vector<std::vector<std::string>>& rows,
                       const std::vector<bool>& right);

}  // namespace tilewise::tools
