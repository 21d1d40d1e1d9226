// Pictures of numbers as SVG: line charts, grouped bars, heatmaps. Pure functions of plain values, any thread.
//
// Each result is one <svg> element: a file of its own, or a part of an HTML page. Colours are CSS variables (--hr-ink,
// --hr-faint,
// --hr-0 … --hr-5), dark when the reader's system is; a page may set them itself. Every mark has a <title> with its
// exact value. Texts are escaped, whatever bytes they hold. Values that are not finite leave a gap.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace headroom {

enum class ChartUnit {
  kNumber,
  kBytes,
  kTokens,
  kPercent
};                                                 // kTokens counts in units of 1,024; kPercent takes shares of 1
enum class ChartScale { kLinear, kLog2, kLog10 };  // on a log scale, only positive values are shown

struct ChartAxis {
  std::string label;
  ChartUnit unit = ChartUnit::kNumber;
  ChartScale scale = ChartScale::kLinear;
};

struct LineSeries {
  std::string name;
  std::vector<std::pair<double, double>> points;  // (x, y), ascending in x
  bool dashed = false;                            // a bound or a prediction beside what was measured
};
struct LineChart {
  std::string title;
  ChartAxis x, y;  // a linear y begins at 0
  std::vector<LineSeries> series;
};

struct BarSeries {
  std::string name;
  std::vector<double> values;  // one for each group
};
struct BarChart {
  std::string title;
  ChartAxis y;
  std::vector<std::string> groups;
  std::vector<BarSeries> series;
};

// A line between the cells of at most `value` and those above it.
struct HeatmapLine {
  std::string name;
  double value = 0;
};
struct Heatmap {
  std::string title;
  std::string x_label, y_label;
  std::vector<std::string> columns, rows;  // names; an empty one is not written
  std::vector<double> values;              // [rows, columns]
  ChartUnit unit = ChartUnit::kNumber;
  ChartScale scale = ChartScale::kLinear;  // of the colours
  std::vector<HeatmapLine> lines;
  bool shows_values = true;  // in the cells
  int frame = -1;            // ≥ 0: framed in the colour of that series
};

std::string to_svg(const LineChart& chart);
std::string to_svg(const BarChart& chart);
std::string to_svg(const Heatmap& map);

// How people read a value: "1.25 GiB", "32K", "2.5M", "37.5%".
std::string format_value(double value, ChartUnit unit);
// For the text and the attributes of XML and HTML. Ill-formed UTF-8 and characters that XML forbids become U+FFFD.
std::string escape_xml(std::string_view text);

}  // namespace headroom
