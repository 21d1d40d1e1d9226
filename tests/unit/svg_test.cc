// Every picture must be well-formed XML (a scanner of the test's own) and place its marks where hand-made arithmetic
// says.
#include "server/svg.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

namespace headroom {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// What is wrong with `xml` as a tree of elements; empty when nothing is.
std::string xml_fault(const std::string& xml) {
  std::vector<std::string> open;
  for (size_t at = 0; at < xml.size();) {
    if (xml[at] == '&') {
      const std::string entity = xml.substr(at, xml.find(';', at) + 1 - at);
      if (entity != "&amp;" && entity != "&lt;" && entity != "&gt;" && entity != "&quot;" && entity != "&#39;")
        return "entity " + entity;
    }
    if (xml[at] != '<') {
      ++at;
      continue;
    }
    const size_t end = xml.find('>', at);
    if (end == std::string::npos) return "an open tag at the end";
    std::string tag = xml.substr(at + 1, end - at - 1);
    at = end + 1;
    if (tag[0] == '/') {
      if (open.empty() || open.back() != tag.substr(1)) return "</" + tag.substr(1) + "> closes nothing";
      open.pop_back();
      continue;
    }
    bool quoted = false;
    for (const char c : tag) {
      if (c == '"') quoted = !quoted;
      if (c == '<') return "< in tag " + tag;
    }
    if (quoted) return "an open quote in " + tag;
    if (tag.back() != '/') open.push_back(tag.substr(0, tag.find(' ')));
  }
  return open.empty() ? "" : "<" + open.back() + "> is not closed";
}

size_t count(const std::string& text, const std::string& part) {
  size_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) ++found;
  return found;
}

TEST(Svg, TheScannerOfThisTestFindsFaults) {
  EXPECT_EQ(xml_fault("<a b=\"1\"><c/>x &amp; y</a>"), "");
  EXPECT_NE(xml_fault("<a><c></a>"), "");
  EXPECT_NE(xml_fault("<a>x & y;</a>"), "");
  EXPECT_NE(xml_fault("<a b=\"1></a>"), "");
}

TEST(Svg, TextsAreEscaped) {
  EXPECT_EQ(escape_xml("a<b> & \"c\" 'd'"), "a&lt;b&gt; &amp; &quot;c&quot; &#39;d&#39;");
  EXPECT_EQ(escape_xml("KV·heads"), "KV·heads");
  EXPECT_EQ(escape_xml(std::string("\x01\x80\0\xEF\xBF\xBF", 6)), "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
}

TEST(Svg, ValuesReadAsPeopleWriteThem) {
  EXPECT_EQ(format_value(1.25 * 0x1p30, ChartUnit::kBytes), "1.25 GiB");
  EXPECT_EQ(format_value(32768, ChartUnit::kTokens), "32K");
  EXPECT_EQ(format_value(2000, ChartUnit::kTokens), "2000");
  EXPECT_EQ(format_value(1 << 20, ChartUnit::kTokens), "1M");
  EXPECT_EQ(format_value(2'500'000, ChartUnit::kNumber), "2.5M");
  EXPECT_EQ(format_value(0.000123, ChartUnit::kNumber), "0.000123");
  EXPECT_EQ(format_value(-3, ChartUnit::kNumber), "-3");
  EXPECT_EQ(format_value(0.375, ChartUnit::kPercent), "37.5%");
  EXPECT_EQ(format_value(kNaN, ChartUnit::kNumber), "–");
}

TEST(Svg, ALineGoesThroughItsPoints) {
  const LineChart chart{.title = "t", .x = {"x"}, .y = {"y"}, .series = {{"a", {{0, 0}, {5, 5}, {10, 10}}}}};
  const std::string svg = to_svg(chart);
  EXPECT_EQ(xml_fault(svg), "");
  // The plot is [78, 704] × [62, 352], and both axes go from 0 to 10.
  EXPECT_NE(svg.find("d=\"M78 352L391 207L704 62\""), std::string::npos) << svg;
  EXPECT_EQ(count(svg, "<circle"), 3u);
  EXPECT_NE(svg.find("<title>a, 5: 5</title>"), std::string::npos);
}

TEST(Svg, ALogAxisPlacesPowersEvenly) {
  const LineChart chart{.title = "t",
                        .x = {"x", ChartUnit::kTokens, ChartScale::kLog2},
                        .y = {"y", ChartUnit::kBytes, ChartScale::kLog2},
                        .series = {{"a", {{1024, 1}, {2048, 2}, {4096, 4}}}}};
  EXPECT_NE(to_svg(chart).find("d=\"M78 352L391 207L704 62\""), std::string::npos);
}

TEST(Svg, WhatIsNotFiniteLeavesAGap) {
  LineChart chart{
      .title = "t", .x = {"x"}, .y = {"y"}, .series = {{"a", {{0, kNaN}, {0, 0}, {5, kNaN}, {10, 10}, {10, kNaN}}}}};
  EXPECT_NE(to_svg(chart).find("d=\"M78 352M704 62\""), std::string::npos) << to_svg(chart);
  chart.series = {{"none", {}}, {"nan", {{kNaN, 1}}}};
  EXPECT_EQ(xml_fault(to_svg(chart)), "");
  EXPECT_EQ(count(to_svg(chart), "<circle"), 0u);
}

TEST(Svg, BarsStandInGroups) {
  const BarChart chart{.title = "predicted & measured",
                       .y = {"bytes", ChartUnit::kBytes},
                       .groups = {"<MHA>", "GQA"},
                       .series = {{"predicted", {8192, 2048}}, {"measured", {8192, kNaN}}}};
  const std::string svg = to_svg(chart);
  EXPECT_EQ(xml_fault(svg), "");
  EXPECT_EQ(count(svg, "<rect"), 3u);
  EXPECT_NE(svg.find("<title>predicted, GQA: 2 KiB</title>"), std::string::npos);
  EXPECT_NE(svg.find("&lt;MHA&gt;"), std::string::npos);
  EXPECT_NE(svg.find("height=\"250\""), std::string::npos) << "8 KiB reach the top of the axis\n" << svg;
  EXPECT_NE(svg.find("height=\"62.5\""), std::string::npos) << "2 KiB a quarter of it";
}

TEST(Svg, AHeatmapDrawsItsLineBetweenTheCellsThatItSeparates) {
  const Heatmap map{.title = "t",
                    .columns = {"1K", "2K"},
                    .rows = {"1", "2"},
                    .values = {1, 2, 2, 4},
                    .scale = ChartScale::kLog2,
                    .lines = {{"2 at most", 2}, {"all within", 9}},
                    .frame = 3};
  const std::string svg = to_svg(map);
  EXPECT_EQ(xml_fault(svg), "");
  EXPECT_EQ(count(svg, "<rect"), 5u);
  // Only the last cell is above 2: a vertical edge to its left, a horizontal one above it; drawn twice, light and dark.
  const double left = 36 + 6.6, width = (720 - 16 - left) / 2, top = 44 + 2 * 18 + 20;
  const auto near = [&](const std::string& command) { return count(svg, command); };
  EXPECT_EQ(near("v26"), 2u);
  EXPECT_EQ(count(svg, "M373.3 126v26"), 2u) << left + width << " " << top + 26;
  EXPECT_NE(svg.find("rgb(68,1,84)"), std::string::npos);
  EXPECT_NE(svg.find("rgb(253,231,37)"), std::string::npos);
  EXPECT_NE(svg.find("stroke=\"var(--hr-3)\"/></svg>"), std::string::npos) << svg;
}

}  // namespace
}  // namespace headroom
