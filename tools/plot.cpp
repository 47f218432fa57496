// gnuplot is given a script in a temporary file and read through a pipe: see plot.hpp.
#include "tools/plot.hpp"

#include "tools/common.hpp"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <sstream>

namespace tilewise::tools {

namespace {
/// A file that is gone when this is.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& text) {
    std::string path = (std::filesystem::temp_directory_path() / "tilewise-XXXXXX").string();
    const int descriptor = mkstemp(path.data());
    if (descriptor < 0) throw BadInput(fmt::format("no temporary file can be made in {}", path));
    close(descriptor);
    path_ = path;
    write_text(path_, text);
  }
  ~TemporaryFile() { std::remove(path_.c_str()); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

std::optional<std::string> output_of(const std::string& command) {
  std::FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return std::nullopt;
  std::string text;
  char part[4096];
  for (std::size_t count; (count = std::fread(part, 1, sizeof part, pipe)) > 0;)
    text.append(part, count);
  return pclose(pipe) == 0 && !text.empty() ? std::optional(text) : std::nullopt;
}

std::optional<std::string> gnuplot(const std::string& script) {
  const TemporaryFile file(script);
  return output_of(fmt::format("gnuplot '{}' 2>/dev/null", file.path()));
}

/// A string literal of gnuplot's: single quotes are doubled, and nothing else is special.
std::string quoted(const std::string& text) {
  std::string result = "'";
  for (const char c : text) result += c == '\'' ? std::string("''") : std::string(1, c);
  return result + "'";
}

/// 2^power bytes: "256 B", "4 KiB", "16 MiB".
std::string power_text(int power) {
  constexpr const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  return fmt::format("{} {}", 1 << power % 10, units[std::min(power / 10, 4)]);
}

/// 256, 1 Ki, 32 Ki, 1 Mi, ... between two sizes, every `step`-th power of two.
std::string byte_ticks(double low, double high, int step) {
  std::string ticks;
  int power = 0;
  for (double bytes = 1; bytes <= high * 1.001; bytes *= 2, ++power)
    if (bytes >= low * 0.999 && power % step == 0)
      ticks +=
          fmt::format("{}{} {:.0f}", ticks.empty() ? "" : ", ", quoted(power_text(power)), bytes);
  return ticks;
}

/// Everything but the terminal and the plot command's styles.
std::string preamble(const Plot& plot, int tick_step) {
  std::string script;
  for (std::size_t i = 0; i < plot.series.size(); ++i) {
    script += fmt::format("$series{} << EOD\n", i);
    for (const auto& [x, y] : plot.series[i].points)
      script += fmt::format("{:.17g} {:.17g}\n", x, y);
    script += "EOD\n";
  }
  script +=
      fmt::format("set title {} noenhanced\nset xlabel {} noenhanced\nset ylabel {} noenhanced\n",
                  quoted(plot.title), quoted(plot.x_label), quoted(plot.y_label));
  script += "set logscale xy 2\nunset key\n";
  std::vector<double> xs;
  for (const Series& series : plot.series)
    for (const auto& point : series.points) xs.push_back(point.first);
  std::sort(xs.begin(), xs.end());
  xs.erase(std::unique(xs.begin(), xs.end()), xs.end());
  std::string ticks;
  for (const double x : xs)
    ticks += fmt::format("{}'{:.0f}' {:.0f}", ticks.empty() ? "" : ", ", x, x);
  script += fmt::format("set xtics ({})\n", ticks);
  if (!xs.empty()) script += fmt::format("set xrange [{}:{}]\n", xs.front() * 0.9, xs.back() * 1.1);
  if (plot.y_high > 0)
    script += fmt::format("set yrange [{}:{}]\nset ytics ({})\n", plot.y_low, plot.y_high,
                          byte_ticks(plot.y_low, plot.y_high, tick_step));
  return script;
}

void replace_all(std::string& text, const std::string& from, const std::string& to) {
  for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
    text.replace(at, from.size(), to);
}

/// The colour that stands for series i on its way through gnuplot.
unsigned marker_colour(std::size_t series) {
  return 0xA1B200U + static_cast<unsigned>(series);
}
}  // namespace

bool gnuplot_found() {
  static const bool found = output_of("gnuplot --version 2>/dev/null").has_value();
  return found;
}

std::optional<std::string> plot_text(const Plot& plot, int columns, int rows) {
  if (!gnuplot_found()) return std::nullopt;
  std::string script = fmt::format("set terminal dumb {} {} noenhanced\n", columns, rows) +
                       preamble(plot, 4) + "set tics scale 0.5\nplot ";
  for (std::size_t i = 0; i < plot.series.size(); ++i)
    script += fmt::format("{}$series{} with linespoints lt 1 pt {}", i == 0 ? "" : ", ", i,
                          i % 2 == 0 ? "'*'" : "'o'");
  std::optional<std::string> text = gnuplot(script + "\n");
  if (text) {
    replace_all(*text, "\f", "");
    text->erase(0, text->find_first_not_of('\n'));
  }
  return text;
}

std::optional<std::string> plot_svg(const Plot& plot, int width, int height) {
  if (!gnuplot_found()) return std::nullopt;
  std::string script =
      fmt::format(
          "set terminal svg size {},{} dynamic noenhanced font 'sans-serif,13' linewidth 1\n",
          width, height) +
      preamble(plot, 3) +
      "set border 3\nset tics nomirror scale 0.6\nset grid ytics xtics lt 1 lc rgb '#A1B1FF' lw "
      "0.5\n"
      "plot ";
  for (std::size_t i = 0; i < plot.series.size(); ++i)
    script += fmt::format("{}$series{} with linespoints lt 1 lw 2.2 pt 7 ps 0.55 lc rgb '#{:06X}'",
                          i == 0 ? "" : ", ", i, marker_colour(i));
  std::optional<std::string> text = gnuplot(script + "\n");
  if (!text) return text;
  // The element alone, in the page's colours.
  const std::size_t start = text->find("<svg");
  if (start == std::string::npos) return std::nullopt;
  text->erase(0, start);
  for (std::size_t i = 0; i < plot.series.size(); ++i) {
    const unsigned colour = marker_colour(i);
    const std::string css = fmt::format("var(--series-{})", i);
    replace_all(
        *text,
        fmt::format("rgb({:3}, {:3}, {:3})", colour >> 16, (colour >> 8) & 255, colour & 255), css);
    replace_all(*text, fmt::format("#{:06X}", colour), css);
    replace_all(*text, fmt::format("#{:06x}", colour), css);
  }
  for (const char* grid : {"rgb(161, 177, 255)", "#A1B1FF", "#a1b1ff"})
    replace_all(*text, grid, "var(--grid)");
  for (const char* black : {"rgb(  0,   0,   0)", "black", "#000000"})
    replace_all(*text, black, "currentColor");
  return text;
}

std::string side_by_side(const std::string& left, const std::string& right,
                         const std::string& gap) {
  std::vector<std::string> lines[2];
  std::size_t width = 0;
  for (int side = 0; side < 2; ++side) {
    std::istringstream text(side == 0 ? left : right);
    for (std::string line; std::getline(text, line);) lines[side].push_back(line);
  }
  for (const std::string& line : lines[0]) width = std::max(width, tools::columns(line));
  std::string text;
  for (std::size_t i = 0; i < std::max(lines[0].size(), lines[1].size()); ++i) {
    const std::string first = i < lines[0].size() ? lines[0][i] : "";
    std::string line = first + std::string(width - tools::columns(first), ' ') + gap +
                       (i < lines[1].size() ? lines[1][i] : "");
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

}  // namespace tilewise::tools
