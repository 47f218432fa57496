// Line plots drawn by gnuplot: as text for a terminal, as SVG for a page.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace tilewise::tools {

struct Series {
  std::string name;
  std::vector<std::pair<double, double>> points;
};

/// Both axes are logarithmic, x in powers of two and y in bytes: what a memory curve wants, where a
/// power law is a straight line and its slope the power.
struct Plot {
  std::string title, x_label, y_label;
  double y_low = 0, y_high = 0;  ///< both 0: gnuplot's own choice
  std::vector<Series> series;
};

/// Whether a gnuplot is on PATH that answers.
bool gnuplot_found();

/// The plot in characters, `rows` lines; absent where there is no gnuplot.
std::optional<std::string> plot_text(const Plot& plot, int columns, int rows);

/// The plot as an <svg> element without a legend: series i is drawn in the CSS colour --series-i,
/// text and axes in the colour of the text around.
std::optional<std::string> plot_svg(const Plot& plot, int width, int height);

/// Blocks of text next to each other, aligned.
std::string side_by_side(const std::string& left, const std::string& right, const std::string& gap);

}  // namespace tilewise::tools
