#include "server/svg.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdint>

#include "engine/tokenizer/utf8.h"
#include "kernels/check.h"
#include "server/options.h"

namespace headroom {
namespace {

constexpr double kWidth = 720;
constexpr double kGlyph = 6.6;  // width of a character of 12 px, about
constexpr size_t kSeriesColors = 6;

constexpr const char* kStyle =
    "<style>.hr{font:12px system-ui,sans-serif;--hr-ink:#1f2328;--hr-faint:#d0d7de;"
    "--hr-0:#0969da;--hr-1:#bc4c00;--hr-2:#1a7f37;--hr-3:#8250df;--hr-4:#bf3989;--hr-5:#57606a}"
    "@media(prefers-color-scheme:dark){.hr{--hr-ink:#e6edf3;--hr-faint:#373e47;"
    "--hr-0:#58a6ff;--hr-1:#f0883e;--hr-2:#56d364;--hr-3:#bc8cff;--hr-4:#f778ba;--hr-5:#8b949e}}"
    ".hr text{fill:var(--hr-ink)}.hr .t{font-size:15px;font-weight:600}.hr .g{stroke:var(--hr-faint)}"
    ".hr rect{shape-rendering:crispEdges}.hr .m{text-anchor:middle}.hr .e{text-anchor:end}.hr "
    ".l{fill:none;stroke-width:2}</style>";

// With at most `digits` behind the point, and no zeros at the end.
std::string short_number(double value, int digits) {
  std::array<char, 400> buffer;
  const auto result =
      std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, std::chars_format::fixed, digits);
  CHECK(result.ec == std::errc());
  std::string text(buffer.data(), result.ptr);
  if (text.find('.') != std::string::npos) {
    while (text.back() == '0') text.pop_back();
    if (text.back() == '.') text.pop_back();
  }
  return text == "-0" ? "0" : text;
}

std::string px(double value) { return short_number(value, 1); }

std::string color(size_t series) { return "var(--hr-" + std::to_string(series % kSeriesColors) + ")"; }

std::string text_at(double x, double y, const char* classes, std::string_view text) {
  if (text.empty()) return "";
  return "<text x=\"" + px(x) + "\" y=\"" + px(y) + "\" class=\"" + classes + "\">" + escape_xml(text) + "</text>";
}

std::string vertical_text(double x, double y, std::string_view text) {
  if (text.empty()) return "";
  return "<text class=\"m\" transform=\"translate(" + px(x) + " " + px(y) + ") rotate(-90)\">" + escape_xml(text) +
         "</text>";
}

std::string tooltip(const std::string& text) { return "<title>" + escape_xml(text) + "</title>"; }

std::string grid_line(double x1, double y1, double x2, double y2) {
  return "<path class=\"g\" d=\"M" + px(x1) + " " + px(y1) + "L" + px(x2) + " " + px(y2) + "\"/>";
}

std::string picture(const std::string& title, double height, const std::string& content) {
  const std::string name = escape_xml(title);
  return "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"hr\" role=\"img\" aria-label=\"" + name +
         "\" viewBox=\"0 0 " + px(kWidth) + " " + px(height) + "\" width=\"100%\" style=\"max-width:" + px(kWidth) +
         "px\"><title>" + name + "</title>" + kStyle + text_at(12, 22, "t", title) + content + "</svg>\n";
}

bool is_shown(double value, ChartScale scale) {
  return std::isfinite(value) && (scale == ChartScale::kLinear || value > 0);
}

// From values to places on an axis: ticks at round values, ends at ticks.
class Ruler {
 public:
  Ruler(const ChartAxis& axis, std::vector<double> values) : axis_(axis) {
    std::erase_if(values, [&](double value) { return !is_shown(value, axis.scale); });
    if (values.empty()) values = {1};
    const auto [low, high] = std::ranges::minmax(values);
    axis.scale == ChartScale::kLinear ? make_linear(low, high) : make_log(low, high);
  }

  bool shows(double value) const { return is_shown(value, axis_.scale); }
  // 0 at the low end, 1 at the high one. REQUIRES: shows(value).
  double place(double value) const {
    return (position(value) - position(ticks_.front())) / (position(ticks_.back()) - position(ticks_.front()));
  }
  const std::vector<double>& ticks() const { return ticks_; }
  std::string text(double value) const { return format_value(value, axis_.unit); }

 private:
  double position(double value) const { return axis_.scale == ChartScale::kLinear ? value : std::log2(value); }

  // Steps of 1, 2 or 5 times a power of ten of the unit that the values are written in.
  void make_linear(double low, double high) {
    if (high == low) high = low + 1;
    const double base = axis_.unit == ChartUnit::kBytes || axis_.unit == ChartUnit::kTokens ? 1024 : 1000;
    const double size = std::max(std::fabs(low), std::fabs(high));
    const double unit = axis_.unit == ChartUnit::kPercent
                            ? 1
                            : std::pow(base, std::max(0.0, std::floor(std::log2(size) / std::log2(base))));
    const double raw = (high - low) / unit / 5;
    const double power = std::pow(10, std::floor(std::log10(raw)));
    const double digit = raw / power <= 1 ? 1 : raw / power <= 2 ? 2 : raw / power <= 5 ? 5 : 10;
    const double step = digit * power * unit;
    const auto last = static_cast<int64_t>(std::ceil(high / step));
    for (auto i = static_cast<int64_t>(std::floor(low / step)); i <= last; ++i) ticks_.push_back(static_cast<double>(i) * step);
  }

  void make_log(double low, double high) {
    const double base = axis_.scale == ChartScale::kLog2 ? 2 : 10;
    const auto power_of = [base](double value) { return std::log2(value) / std::log2(base); };
    const double first = std::floor(power_of(low) + 1e-9);
    const double last = std::max(first + 1, std::ceil(power_of(high) - 1e-9));
    const double step = std::ceil((last - first) / 8);
    const auto steps = static_cast<int64_t>(std::ceil((last - first) / step));
    for (int64_t i = 0; i <= steps; ++i) ticks_.push_back(std::pow(base, first + static_cast<double>(i) * step));
  }

  ChartAxis axis_;
  std::vector<double> ticks_;
};

// The names of the series, in rows under the title; `bottom` is where the plot may begin.
std::string legend(const std::vector<std::pair<std::string, bool>>& names, double* bottom) {
  std::string out;
  double x = 12, y = 44;
  for (size_t i = 0; i < names.size(); ++i) {
    const auto& [name, dashed] = names[i];
    const double width = 34 + kGlyph * static_cast<double>(name.size());
    if (x > 12 && x + width > kWidth) x = 12, y += 18;
    out += "<path class=\"l\" stroke=\"" + color(i) + "\"" + (dashed ? " stroke-dasharray=\"5 3\"" : "") + " d=\"M" +
           px(x) + " " + px(y - 4) + "h16\"/>" + text_at(x + 20, y, "", name);
    x += width;
  }
  *bottom = y + 18;
  return out;
}

// The area of a plot with its y axis.
struct Frame {
  double left = 78, right = kWidth - 16, top = 62, bottom = 0;

  double x(double share) const { return left + share * (right - left); }
  double y(double share) const { return bottom - share * (bottom - top); }
  std::string y_axis(const Ruler& ruler, const ChartAxis& axis) const {
    std::string out = vertical_text(16, (top + bottom) / 2, axis.label);
    for (const double tick : ruler.ticks()) {
      const double at = y(ruler.place(tick));
      out += grid_line(left, at, right, at) + text_at(left - 6, at + 4, "e", ruler.text(tick));
    }
    return out;
  }
};

// Viridis (Smith and van der Walt, 2015), at five places: even to the eye, in print and for the colour-blind.
std::array<double, 3> heat_color(double share) {
  constexpr double kStops[5][3] = {{68, 1, 84}, {59, 82, 139}, {33, 145, 140}, {94, 201, 98}, {253, 231, 37}};
  const double at = std::clamp(share, 0.0, 1.0) * 4;
  const auto i = static_cast<size_t>(std::min(at, 3.0));
  std::array<double, 3> rgb;
  for (size_t c = 0; c < 3; ++c)
    rgb[c] = std::round(kStops[i][c] + (at - static_cast<double>(i)) * (kStops[i + 1][c] - kStops[i][c]));
  return rgb;
}

std::string css_color(const std::array<double, 3>& rgb) {
  return "rgb(" + px(rgb[0]) + "," + px(rgb[1]) + "," + px(rgb[2]) + ")";
}

// Where the cells of a heatmap lie, and what is drawn on them.
struct HeatmapGrid {
  const Heatmap& map;
  double left, top, cell_width, cell_height;

  double value(size_t row, size_t column) const { return map.values[row * map.columns.size() + column]; }
  double x(size_t column) const { return left + static_cast<double>(column) * cell_width; }
  double y(size_t row) const { return top + static_cast<double>(row) * cell_height; }

  std::string cell(size_t row, size_t column, const Ruler& ruler) const {
    const double v = value(row, column);
    if (!ruler.shows(v)) return "";
    const auto [low, high] = color_range(ruler);
    const double share = high > low ? (ruler.place(v) - low) / (high - low) : 0.5;
    const auto rgb = heat_color(share);
    const std::string text = ruler.text(v);
    std::string out = "<rect x=\"" + px(x(column)) + "\" y=\"" + px(y(row)) + "\" width=\"" + px(cell_width) +
                      "\" height=\"" + px(cell_height) + "\" fill=\"" + css_color(rgb) + "\">" +
                      tooltip(map.rows[row] + ", " + map.columns[column] + ": " + text) + "</rect>";
    if (map.shows_values) {
      const bool is_light = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 130;
      out += "<text x=\"" + px(x(column) + cell_width / 2) + "\" y=\"" + px(y(row) + cell_height / 2 + 4) +
             "\" class=\"m\" style=\"fill:" + (is_light ? "#000" : "#fff") + "\">" + escape_xml(text) + "</text>";
    }
    return out;
  }

  // Along every edge that has a neighbour on either side of the value.
  std::string threshold(const HeatmapLine& line, size_t index) const {
    std::string path;
    const auto differ = [&](double a, double b) { return (a <= line.value) != (b <= line.value); };
    for (size_t r = 0; r < map.rows.size(); ++r) {
      for (size_t c = 0; c < map.columns.size(); ++c) {
        if (c + 1 < map.columns.size() && differ(value(r, c), value(r, c + 1)))
          path += "M" + px(x(c + 1)) + " " + px(y(r)) + "v" + px(cell_height);
        if (r + 1 < map.rows.size() && differ(value(r, c), value(r + 1, c)))
          path += "M" + px(x(c)) + " " + px(y(r + 1)) + "h" + px(cell_width);
      }
    }
    if (path.empty()) return "";
    // A light edge below: the colours of a line are made for paper, not for cells.
    const std::string shape = "<path class=\"l\" stroke-linecap=\"square\" d=\"" + path + "\" ";
    return shape + "stroke=\"#fff\" style=\"stroke-width:6\"/>" + shape + "stroke=\"" + color(index) +
           "\" style=\"stroke-width:3\">" + tooltip(line.name) + "</path>";
  }

 private:
  std::pair<double, double> color_range(const Ruler& ruler) const {
    double low = 1, high = 0;
    for (const double v : map.values) {
      if (!ruler.shows(v)) continue;
      low = std::min(low, ruler.place(v));
      high = std::max(high, ruler.place(v));
    }
    return {low, high};
  }
};

}  // namespace

std::string escape_xml(std::string_view text) {
  std::string out;
  for (const char byte : replace_invalid_utf8(text)) {
    switch (byte) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default: {
        const bool is_control = static_cast<unsigned char>(byte) < 0x20 && byte != '\n' && byte != '\t';
        is_control ? out += kReplacementCharacter : out += byte;
      }
    }
  }
  // U+FFFE and U+FFFF are no characters of XML.
  for (const std::string_view forbidden : {"\xEF\xBF\xBE", "\xEF\xBF\xBF"})
    out = replace_all(out, forbidden, kReplacementCharacter);
  return out;
}

std::string format_value(double value, ChartUnit unit) {
  if (!std::isfinite(value)) return "–";
  const double size = std::fabs(value);
  if (unit == ChartUnit::kPercent) return short_number(value * 100, 2) + "%";
  if (unit == ChartUnit::kBytes && size < 0x1p60) return (value < 0 ? "-" : "") + format_bytes(std::llround(size));
  const double base = unit == ChartUnit::kTokens ? 1024 : 1000;
  // 2,000 tokens are "2000": only whole units are worth their letter.
  if (unit == ChartUnit::kTokens && size < base * base && std::fmod(size, base) != 0) return short_number(value, 2);
  constexpr std::array<const char*, 6> kLetters = {"", "K", "M", "G", "T", "P"};
  size_t letter = 0;
  double scaled = value;
  while (std::fabs(scaled) >= base && letter + 1 < kLetters.size()) scaled /= base, ++letter;
  const double least = std::fabs(scaled);
  const int digits =
      least >= 0.01 || least == 0 ? 2 : std::min(12, 2 - static_cast<int>(std::floor(std::log10(least))));
  return short_number(scaled, digits) + kLetters[letter];
}

std::string to_svg(const LineChart& chart) {
  std::vector<double> xs, ys;
  if (chart.y.scale == ChartScale::kLinear) ys.push_back(0);
  std::vector<std::pair<std::string, bool>> names;
  for (const LineSeries& series : chart.series) {
    names.emplace_back(series.name, series.dashed);
    for (const auto& [x, y] : series.points) xs.push_back(x), ys.push_back(y);
  }
  const Ruler x_ruler(chart.x, xs), y_ruler(chart.y, ys);
  Frame frame;
  std::string out = legend(names, &frame.top);
  frame.bottom = frame.top + 290;
  out += frame.y_axis(y_ruler, chart.y);
  for (const double tick : x_ruler.ticks()) {
    const double at = frame.x(x_ruler.place(tick));
    out += grid_line(at, frame.top, at, frame.bottom) + text_at(at, frame.bottom + 18, "m", x_ruler.text(tick));
  }
  out += text_at(frame.x(0.5), frame.bottom + 38, "m", chart.x.label);
  for (size_t i = 0; i < chart.series.size(); ++i) {
    const LineSeries& series = chart.series[i];
    std::string path, marks;
    for (const auto& [x, y] : series.points) {
      if (!x_ruler.shows(x) || !y_ruler.shows(y)) {
        if (!path.empty() && path.back() != 'M') path += 'M';
        continue;
      }
      const std::string at_x = px(frame.x(x_ruler.place(x))), at_y = px(frame.y(y_ruler.place(y)));
      path += (path.empty() ? "M" : path.back() == 'M' ? "" : "L") + at_x + " " + at_y;
      marks += "<circle cx=\"" + at_x + "\" cy=\"" + at_y + "\" r=\"3\" fill=\"" + color(i) + "\">" +
               tooltip(series.name + ", " + x_ruler.text(x) + ": " + y_ruler.text(y)) + "</circle>";
    }
    while (!path.empty() && path.back() == 'M') path.pop_back();
    out += "<path class=\"l\" stroke=\"" + color(i) + "\"" + (series.dashed ? " stroke-dasharray=\"5 3\"" : "") +
           " d=\"" + path + "\"/>" + marks;
  }
  return picture(chart.title, frame.bottom + 50, out);
}

std::string to_svg(const BarChart& chart) {
  std::vector<double> values;
  if (chart.y.scale == ChartScale::kLinear) values.push_back(0);
  std::vector<std::pair<std::string, bool>> names;
  for (const BarSeries& series : chart.series) {
    CHECK_EQ(series.values.size(), chart.groups.size());
    names.emplace_back(series.name, false);
    values.insert(values.end(), series.values.begin(), series.values.end());
  }
  const Ruler ruler(chart.y, values);
  Frame frame;
  std::string out = legend(names, &frame.top);
  frame.bottom = frame.top + 250;
  out += frame.y_axis(ruler, chart.y);
  const double zero = frame.y(chart.y.scale == ChartScale::kLinear ? ruler.place(0) : 0);
  const double group_width = (frame.right - frame.left) / static_cast<double>(std::max<size_t>(1, chart.groups.size()));
  const double bar_width =
      std::min(60.0, group_width * 0.8 / static_cast<double>(std::max<size_t>(1, chart.series.size())));
  for (size_t g = 0; g < chart.groups.size(); ++g) {
    const double middle = frame.left + (static_cast<double>(g) + 0.5) * group_width;
    out += text_at(middle, frame.bottom + 18, "m", chart.groups[g]);
    for (size_t s = 0; s < chart.series.size(); ++s) {
      const double value = chart.series[s].values[g];
      if (!ruler.shows(value)) continue;
      const double x = middle + (static_cast<double>(s) - static_cast<double>(chart.series.size()) / 2) * bar_width;
      const double y = frame.y(ruler.place(value));
      out += "<rect x=\"" + px(x + 1) + "\" y=\"" + px(std::min(y, zero)) + "\" width=\"" + px(bar_width - 2) +
             "\" height=\"" + px(std::fabs(zero - y)) + "\" fill=\"" + color(s) + "\">" +
             tooltip(chart.series[s].name + ", " + chart.groups[g] + ": " + ruler.text(value)) + "</rect>";
      if (bar_width >= 30) out += text_at(x + bar_width / 2, std::min(y, zero) - 4, "m", ruler.text(value));
    }
  }
  return picture(chart.title, frame.bottom + 34, out);
}

std::string to_svg(const Heatmap& map) {
  CHECK_EQ(map.values.size(), map.rows.size() * map.columns.size());
  CHECK(!map.values.empty());
  size_t row_name = 0;
  for (const std::string& row : map.rows) row_name = std::max(row_name, row.size());
  double top = 44;
  std::string out;
  const double left = 36 + kGlyph * static_cast<double>(row_name);
  for (size_t i = 0; i < map.lines.size(); ++i) {
    out += "<path class=\"l\" stroke=\"" + color(i) + "\" style=\"stroke-width:3\" d=\"M12 " + px(top - 4) + "h16\"/>" +
           text_at(32, top, "", map.lines[i].name);
    top += 18;
  }
  top += 20;
  const double cell_width = (kWidth - 16 - left) / static_cast<double>(map.columns.size());
  const HeatmapGrid grid{map, left, top, cell_width, map.shows_values ? 26 : std::min(26.0, cell_width)};
  const Ruler ruler({.label = "", .unit = map.unit, .scale = map.scale}, map.values);
  for (size_t c = 0; c < map.columns.size(); ++c)
    out += text_at(grid.x(c) + cell_width / 2, top - 6, "m", map.columns[c]);
  for (size_t r = 0; r < map.rows.size(); ++r) {
    out += text_at(left - 6, grid.y(r) + grid.cell_height / 2 + 4, "e", map.rows[r]);
    for (size_t c = 0; c < map.columns.size(); ++c) out += grid.cell(r, c, ruler);
  }
  for (size_t i = 0; i < map.lines.size(); ++i) out += grid.threshold(map.lines[i], i);
  const double bottom = grid.y(map.rows.size());
  if (map.frame >= 0) {
    out += "<rect x=\"" + px(left) + "\" y=\"" + px(top) + "\" width=\"" + px(kWidth - 16 - left) + "\" height=\"" +
           px(bottom - top) + "\" class=\"l\" style=\"stroke-width:6\" stroke=\"" +
           color(static_cast<size_t>(map.frame)) + "\"/>";
  }
  out += vertical_text(16, (top + bottom) / 2, map.y_label) +
         text_at((left + kWidth - 16) / 2, bottom + 20, "m", map.x_label);
  return picture(map.title, bottom + 32, out);
}

}  // namespace headroom
