#include "server/report_html.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

#include "kernels/check.h"
#include "server/options.h"
#include "server/svg.h"

namespace headroom {
namespace {

constexpr size_t kColors = 6;           // of svg's series
constexpr int32_t kHeadsShownMax = 16;  // of a layer, in whole groups

constexpr const char* kStyle = R"css(
:root{color-scheme:light dark;--ink:#1f2328;--soft:#59636e;--line:#d0d7de;--page:#fff;--card:#f6f8fa;--good:#1a7f37;--bad:#cf222e}
:root{--hr-0:#0969da;--hr-1:#bc4c00;--hr-2:#1a7f37;--hr-3:#8250df;--hr-4:#bf3989;--hr-5:#57606a}
@media(prefers-color-scheme:dark){
:root{--ink:#e6edf3;--soft:#9198a1;--line:#3d444d;--page:#0d1117;--card:#151b23;--good:#3fb950;--bad:#f85149}
:root{--hr-0:#58a6ff;--hr-1:#f0883e;--hr-2:#56d364;--hr-3:#bc8cff;--hr-4:#f778ba;--hr-5:#8b949e}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:60rem;padding:1rem 1rem 4rem;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,sans-serif}
h1{font-size:1.7rem;line-height:1.25;margin:1rem 0 .25rem}
h2{font-size:1.3rem;margin:3rem 0 .5rem;padding-top:1rem;border-top:1px solid var(--line)}
p{margin:.5rem 0;max-width:46rem}
.soft{color:var(--soft)}
nav ol,.facts{padding:0;margin:1rem 0;display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;list-style-position:inside}
a{color:var(--hr-0)}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(10.5rem,1fr));gap:.75rem;list-style:none}
.facts li{background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:.75rem}
.facts b{display:block;font-size:1.35rem;line-height:1.3}
.wide{overflow-x:auto;margin:1rem 0}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:600;padding:.25rem 0}
caption span{display:inline-block;position:sticky;left:0;max-width:calc(100vw - 2rem)}
th,td{padding:.3rem .7rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--page)}
thead th{color:var(--soft);font-weight:500;vertical-align:bottom;white-space:normal}
tbody th{font-weight:500}
.good{color:var(--good)}.bad{color:var(--bad);font-weight:700}
figure{margin:1rem 0;overflow-x:auto}
figure>svg{min-width:34rem}
.heads{display:grid;grid-template-columns:repeat(auto-fill,minmax(6.2rem,1fr));gap:.75rem}
.heads div{font-size:.8rem;color:var(--soft);overflow-wrap:anywhere}
.heads svg{display:block;width:100%;border:3px solid;border-radius:.25rem;background:var(--card);margin-bottom:.2rem}
summary{cursor:pointer;font-weight:600}
@media print{body{max-width:none}details>*{display:block}}
)css";

// 655360 → 655,360
std::string grouped(int64_t value) {
  std::string text = std::to_string(value);
  for (auto at = static_cast<ptrdiff_t>(text.size()) - 3; at > (value < 0 ? 1 : 0); at -= 3)
    text.insert(static_cast<size_t>(at), ",");
  return text;
}

std::string fixed(double value, int digits) {
  std::array<char, 64> buffer;
  std::snprintf(buffer.data(), buffer.size(), "%.*f", digits, value);
  return buffer.data();
}

std::string scientific(double value) {
  std::array<char, 32> buffer;
  std::snprintf(buffer.data(), buffer.size(), "%.1e", value);
  return buffer.data();
}

std::string percent(double share) { return format_value(share, ChartUnit::kPercent); }
std::string times(double factor) { return fixed(factor, factor == std::round(factor) ? 0 : 2) + "×"; }
std::string milliseconds(double seconds) { return fixed(seconds * 1e3, seconds < 1e-3 ? 3 : 2); }
std::string rate(int64_t flops, double seconds) {
  return seconds > 0 ? fixed(static_cast<double>(flops) / seconds / 1e9, 1) : "–";
}
std::string plural(int64_t count, const std::string& noun) {
  return grouped(count) + " " + noun + (count == 1 ? "" : "s");
}

// What a cell is: text, or the outcome of a comparison.
struct Cell {
  Cell(std::string text) : html(escape_xml(text)) {}
  Cell(const char* text) : Cell(std::string(text)) {}
  Cell(int64_t number) : html(grouped(number)) {}
  static Cell equal(bool is_equal) {
    Cell cell("");
    cell.html = is_equal ? "<span class=\"good\">✓ equal</span>" : "<span class=\"bad\">✗ differs</span>";
    return cell;
  }
  std::string html;
};

class Table {
 public:
  Table(const std::string& caption, const std::vector<std::string>& columns)
      : caption_(caption), columns_(columns.size()) {
    for (const std::string& column : columns) head_ += "<th scope=\"col\">" + escape_xml(column) + "</th>";
  }
  Table& row(const std::vector<Cell>& cells) {
    CHECK_EQ(cells.size(), columns_);
    rows_ += "<tr>";
    for (size_t i = 0; i < cells.size(); ++i) {
      rows_ += i == 0 ? "<th scope=\"row\">" + cells[i].html + "</th>" : "<td>" + cells[i].html + "</td>";
    }
    rows_ += "</tr>\n";
    return *this;
  }
  std::string html() const {
    const std::string name = escape_xml(caption_);
    return "<div class=\"wide\" role=\"region\" tabindex=\"0\" aria-label=\"" + name + "\"><table><caption><span>" +
           name + "</span></caption><thead><tr>" + head_ + "</tr></thead><tbody>\n" + rows_ +
           "</tbody></table></div>\n";
  }

 private:
  std::string caption_;
  size_t columns_;
  std::string head_, rows_;
};

std::string paragraph(const std::string& text) { return "<p>" + escape_xml(text) + "</p>\n"; }
std::string figure(const std::string& svg) { return "<figure>" + svg + "</figure>\n"; }
std::string section(int number, const std::string& title, const std::string& body) {
  const std::string id = "a" + std::to_string(number);
  return "<section aria-labelledby=\"" + id + "\"><h2 id=\"" + id + "\">" + std::to_string(number) + ". " +
         escape_xml(title) + "</h2>\n" + body + "</section>\n";
}

std::string heads_name(int32_t kv_heads, int32_t query_heads) {
  const std::string kind = kv_heads == query_heads ? "MHA" : kv_heads == 1 ? "MQA" : "GQA";
  return kind + ", " + plural(kv_heads, "KV head");
}

// Analysis 1.

std::string parameters_example() {
  Table table("The example: model width 64, 8 query heads of 8, one layer",
              {"", "parameters of all attention projections", "saved of all", "of K and V", "saved of K, V and cache",
               "cache smaller by"});
  const AttentionParameters mha = attention_parameters(64, 8, 8, 8);
  for (const int32_t kv_heads : {8, 4, 2, 1}) {
    const AttentionParameters own = attention_parameters(64, 8, kv_heads, 8);
    const ParameterSaving saving = parameter_saving(mha, own);
    table.row({heads_name(kv_heads, 8), own.all(), percent(saving.of_all_projections), own.kv(),
               percent(saving.of_kv_projections), times(saving.cache_factor)});
  }
  return table.html();
}

std::string parameters_section(const Report& report) {
  const auto row = [](Table& table, const std::string& name, const ModelConfig& config,
                      const LoadedParameters& loaded) {
    const AttentionParameters own =
        attention_parameters(config.model_dim, config.query_heads, config.kv_heads, config.head_dim);
    const int64_t predicted_bytes = config.parameters() * static_cast<int64_t>(dtype_bytes(config.dtype));
    const bool is_equal = config.parameters() == loaded.count && own.kv() * config.layers == loaded.attention_kv &&
                          own.all() * config.layers == loaded.attention;
    table.row({name, own.kv() * config.layers, loaded.attention_kv, config.parameters(), loaded.count,
               Cell::equal(is_equal), predicted_bytes, loaded.bytes});
  };
  Table measured("Predicted from the shape, and counted in the weights that were loaded",
                 {"", "K and V projections, predicted", "loaded", "all parameters, predicted", "loaded", "",
                  "bytes as stored", "bytes in memory"});
  row(measured, report.model + " (its own weights)", report.config, report.loaded);
  BarChart chart{.title = "What is left of multi-head attention's parameters",
                 .y = {.label = "share of MHA", .unit = ChartUnit::kPercent},
                 .series = {{"all attention projections", {}}, {"K and V projections, and the cache", {}}}};
  const ModelConfig& config = report.config;
  const AttentionParameters mha =
      attention_parameters(config.model_dim, config.query_heads, config.query_heads, config.head_dim);
  for (const VariantReport& variant : report.variants) {
    row(measured, heads_name(variant.kv_heads, config.query_heads) + " (random weights)", variant.config,
        variant.parameters);
    const ParameterSaving saving = parameter_saving(
        mha, attention_parameters(config.model_dim, config.query_heads, variant.kv_heads, config.head_dim));
    chart.groups.push_back(heads_name(variant.kv_heads, config.query_heads));
    chart.series[0].values.push_back(1 - saving.of_all_projections);
    chart.series[1].values.push_back(1 - saving.of_kv_projections);
  }
  return section(
      1, "Parameters and cache",
      paragraph("Fewer KV heads make the projections to K and V smaller, and the cache by the same share. The "
                "projections of the "
                "queries and of the output stay as they are, so that of all attention parameters less is saved.") +
          figure(to_svg(chart)) + parameters_example() + measured.html() +
          "<p class=\"soft\">In memory, norms are widened to fp32 and matrices are padded to whole panels of rows, so "
          "that the bytes "
          "there are a little more than as stored.</p>\n");
}

// Analysis 2.

std::string configurations_tables(const Report& report) {
  const std::vector<std::string> columns = {"model",  "KV of query heads", "bytes per token",
                                            "tokens", "one request",       "as MHA",
                                            "as MQA", "bytes, predicted",  "bytes allocated here"};
  Table design("One request of a published model", columns),
      all("Every published shape that the program knows, at its longest context", columns);
  for (size_t i = 0; i < report.configurations.size(); ++i) {
    const ConfigurationReport& row = report.configurations[i];
    (i < 2 ? design : all)
        .row({row.name, std::to_string(row.shape.kv_heads) + " of " + std::to_string(row.shape.query_heads),
              row.shape.token_bytes(), row.context_tokens, format_bytes(row.request_bytes), format_bytes(row.mha_bytes),
              format_bytes(row.mqa_bytes), row.request_bytes,
              row.allocated_bytes ? Cell(*row.allocated_bytes) : Cell("–")});
  }
  Table example("80 GiB of cache: 32 layers, 32 query heads, head_dim 128, fp16",
                {"", "bytes per token", "tokens that fit"});
  for (const int32_t kv_heads : {32, 8, 1}) {
    const KvShape shape = report.example.with_kv_heads(kv_heads);
    example.row(
        {heads_name(kv_heads, 32), shape.token_bytes(), plan_capacity(shape, report.example_pool_bytes, 1).tokens});
  }
  return design.html() + example.html() + "<details><summary>All shapes</summary>" + all.html() +
         "<p class=\"soft\">Where layers have a sliding window, a request holds no more of them than the window: such "
         "a request is not "
         "allocated in advance (–), nor is one that this machine has no room for.</p></details>\n";
}

std::string memory_section(const Report& report) {
  Table measured("Predicted, and found in an engine that ran one request (" +
                     plural(report.variants.front().cache.tokens, "token") + ")",
                 {"", "bytes per token", "pool bytes, predicted", "allocated", "pages, predicted",
                  "held by the request", "bytes written, predicted", "found", ""});
  for (const VariantReport& variant : report.variants) {
    const CacheMeasurement& cache = variant.cache;
    measured.row({heads_name(variant.kv_heads, report.config.query_heads), cache.token_bytes, cache.pool_bytes,
                  cache.pool_bytes_allocated, cache.request_pages, cache.request_pages_held,
                  cache.written_bytes_predicted, cache.written_bytes, Cell::equal(cache.is_as_predicted())});
  }
  BarChart chart{.title = "KV cache of one request, as published and as MHA",
                 .y = {.label = "bytes", .unit = ChartUnit::kBytes, .scale = ChartScale::kLog2},
                 .series = {{"as published", {}}, {"with a KV head for every query head (MHA)", {}}}};
  constexpr const char* kShown[] = {"llama-3-70b", "llama-3-8b", "qwen2.5-7b", "smollm3-3b"};
  for (const char* name : kShown) {
    const auto row = std::find_if(report.configurations.begin() + 2, report.configurations.end(),
                                  [&](const auto& c) { return c.name == name; });
    if (row == report.configurations.end()) continue;
    chart.groups.push_back(row->name);
    chart.series[0].values.push_back(static_cast<double>(row->shape.request_bytes(8192)));
    chart.series[1].values.push_back(
        static_cast<double>(row->shape.with_kv_heads(row->shape.query_heads).request_bytes(8192)));
  }
  chart.title += ", 8,192 tokens";
  return section(
      2, "Memory of real configurations",
      paragraph("A token costs 2 · layers · KV heads · head_dim · bytes per element (int8: and a scale for each head). "
                "That number is arithmetic: what a "
                "request takes is "
                "known before a model is loaded, and what the engine allocates, holds and writes is that number.") +
          figure(to_svg(chart)) + measured.html() +
          "<p class=\"soft\">Written bytes are found by filling the pool with a pattern first and counting what no "
          "longer has it.</p>\n" +
          configurations_tables(report));
}

// Analysis 3.

// A square per head: rows are the tokens that look, columns those looked at; the darker, the more. Cells of one shade
// share a path.
std::string head_svg(const AttentionPatterns& patterns, int32_t head) {
  constexpr int kShades = 12;
  std::array<std::string, kShades + 1> paths;
  for (int32_t i = 0; i < patterns.tokens; ++i) {
    for (int32_t j = 0; j <= i; ++j) {
      const auto shade =
          static_cast<size_t>(std::lround(std::sqrt(patterns.row(head, i)[static_cast<size_t>(j)]) * kShades));
      if (shade > 0) paths[shade] += "M" + std::to_string(j) + " " + std::to_string(i) + "h1v1h-1z";
    }
  }
  const std::string color = "var(--hr-" + std::to_string(static_cast<size_t>(head / patterns.group()) % kColors) + ")";
  const std::string size = std::to_string(patterns.tokens), name = "query head " + std::to_string(head);
  std::string out = "<svg role=\"img\" aria-label=\"" + name + "\" viewBox=\"0 0 " + size + " " + size +
                    "\" style=\"border-color:" + color + ";fill:" + color + "\" shape-rendering=\"crispEdges\">";
  for (size_t shade = 1; shade <= kShades; ++shade) {
    if (!paths[shade].empty())
      out +=
          "<path fill-opacity=\"" + fixed(static_cast<double>(shade) / kShades, 2) + "\" d=\"" + paths[shade] + "\"/>";
  }
  return out + "</svg>";
}

std::string trimmed(const std::string& token) {
  const size_t begin = token.find_first_not_of(" \n\t"), end = token.find_last_not_of(" \n\t");
  return begin == std::string::npos ? token : token.substr(begin, end + 1 - begin);
}

std::string heads_of_layer(const Report& report, const AttentionPatterns& patterns) {
  const int32_t shown =
      std::min(patterns.query_heads, std::max(patterns.group(), kHeadsShownMax / patterns.group() * patterns.group()));
  std::string out = "<h3>Layer " + std::to_string(patterns.layer) + "</h3><div class=\"heads\">";
  for (int32_t head = 0; head < shown; ++head) {
    const auto row = patterns.row(head, patterns.tokens - 1);
    const auto most = static_cast<size_t>(std::max_element(row.begin(), row.end()) - row.begin());
    out += "<div>" + head_svg(patterns, head) + "Q" + std::to_string(head) + " reads KV" +
           std::to_string(head / patterns.group()) + "; the last token looks most at “" +
           escape_xml(trimmed(report.tokens[most])) + "” (" + fixed(static_cast<double>(row[most]), 2) + ")</div>\n";
  }
  out += "</div>\n";
  if (shown < patterns.query_heads)
    out += paragraph("The first " + std::to_string(shown) + " of " + plural(patterns.query_heads, "head") + ".");
  return out;
}

// Returns the smallest difference between two heads of one group; 2 where groups are of one.
double add_group_rows(const AttentionPatterns& patterns, Table& table) {
  double least_of_all = 2;
  for (int32_t g = 0; g < patterns.kv_heads; ++g) {
    double most = 0, least = 2, own = 0, others = 0;
    for (int32_t head = 0; head < patterns.query_heads; ++head) {
      const double share = patterns.kv_head_share[static_cast<size_t>(g * patterns.query_heads + head)];
      if (head / patterns.group() != g) {
        others = std::max(others, share);
        continue;
      }
      own += share / patterns.group();
      for (int32_t b = g * patterns.group(); b < head; ++b) {
        most = std::max(most, patterns.head_difference(head, b));
        least = std::min(least, patterns.head_difference(head, b));
      }
    }
    least_of_all = std::min(least_of_all, least);
    const bool has_pairs = patterns.group() > 1;
    table.row({std::to_string(patterns.layer), std::to_string(g),
               std::to_string(g * patterns.group()) + " … " + std::to_string((g + 1) * patterns.group() - 1),
               fixed(own, 6), fixed(others, 6), has_pairs ? fixed(most, 3) : "–", has_pairs ? fixed(least, 3) : "–"});
  }
  return least_of_all;
}

std::string patterns_section(const Report& report) {
  Table table("Heads of a group differ while their K and V are one",
              {"layer", "KV head", "read by query heads", "share of it in what they give", "in what others give",
               "two of them differ by at most", "at least"});
  double row_error = 0, least = 2;
  std::string heads, prompt;
  for (const std::string& token : report.tokens) prompt += token;
  for (const AttentionPatterns& patterns : report.patterns) {
    row_error = std::max(row_error, patterns.row_sum_error);
    heads += heads_of_layer(report, patterns);
    least = std::min(least, add_group_rows(patterns, table));
  }
  return section(
      3, "What the heads look at",
      paragraph("Each square is a query head over this prompt: a row is a token, its cells the tokens that it looks "
                "at, up to itself. Heads in one "
                "colour read the same K and V from the paged cache, and still look at different things: that is why "
                "sharing costs so little.") +
          "<p class=\"soft\">Prompt: “" + escape_xml(prompt) + "”</p>\n" + heads + table.html() +
          paragraph("Rows sum to 1 within " + scientific(row_error) +
                    ". The numbers are the kernel's own: it ran again with unit vectors in place of the values, so "
                    "that its output is the "
                    "probabilities; and with 1 in one KV head and 0 in the others, which shows who reads it." +
                    (least == 0 ? " Two heads that differ by 0 were left alike by their training." : "")));
}

// Analysis 4.

std::string flops_section(const Report& report) {
  const int32_t tokens = report.variants.front().flops.tokens;
  Table table("Operations of a prompt of " + plural(tokens, "token") + " in one step",
              {"", "part", "closed form", "counted", "", "ms", "GFLOP/s"});
  BarChart chart{.title = "Operations of a prompt of " + plural(tokens, "token"),
                 .y = {.label = "floating-point operations"},
                 .series = {{"attention projections", {}}, {"attention core", {}}, {"feed-forward", {}}}};
  for (const VariantReport& variant : report.variants) {
    const FlopMeasurement& m = variant.flops;
    const std::string name = heads_name(variant.kv_heads, report.config.query_heads);
    const auto add = [&](const char* part, int64_t predicted, int64_t counted, double seconds) {
      table.row({name, part, predicted, counted, Cell::equal(predicted == counted), milliseconds(seconds),
                 rate(counted, seconds)});
    };
    add("attention projections", m.closed_form.projections, m.counted.projections, m.projection_seconds);
    add("attention core", m.closed_form.attention, m.counted.attention, m.attention_seconds);
    add("feed-forward", m.closed_form.ffn, m.counted.ffn, m.ffn_seconds);
    add("output", m.closed_form.output, m.counted.output, m.output_seconds);
    add("whole step", m.closed_form.total(), m.counted.total(), m.step_seconds);
    chart.groups.push_back(name);
    chart.series[0].values.push_back(static_cast<double>(m.counted.projections));
    chart.series[1].values.push_back(static_cast<double>(m.counted.attention));
    chart.series[2].values.push_back(static_cast<double>(m.counted.ffn));
  }
  return section(4, "Operations",
                 paragraph("The attention core computes the same for MHA, GQA and MQA: every query head still meets "
                           "every key. Only the projections "
                           "to K and V get cheaper. What GQA saves is memory, and the time to read it.") +
                     figure(to_svg(chart)) + table.html() +
                     "<p class=\"soft\">Counted at the door of the backend, from the shapes of every call; a "
                     "multiply-add is two operations. "
                     "The whole step has norms, RoPE, softmax and SiLU in its time, not in its count. Times are those "
                     "of the fastest of " +
                     std::to_string(kPrefillRuns) + " runs.</p>\n");
}

// Analysis 5.

std::string gradients_section(const Report& report) {
  const GradientReport& gradients = report.gradients;
  Table check("Backward pass against central differences, the largest relative difference",
              {"group", "dq", "dk", "dv", "numbers compared", "within 1e-6"});
  for (const auto& [group, c] : gradients.checks) {
    check.row({std::to_string(group), scientific(c.q), scientific(c.k), scientific(c.v), c.elements,
               std::max({c.q, c.k, c.v}) < 1e-6 ? "yes" : "no"});
  }
  Table norms("Norm of the gradient of one KV head against the size of its group",
              {"heads in the group", "√g", "dK", "relative", "dV", "relative"});
  LineChart chart{
      .title = "Gradient of a KV head, relative to a group of one",
      .x = {.label = "query heads that read it"},
      .y = {.label = "norm / norm at 1"},
      .series = {
          {"√g", {}, true}, {"dK, independent heads", {}}, {"dV, independent heads", {}}, {"dK, " + report.model, {}}}};
  const GradientNorms& one = gradients.independent.front();
  for (const GradientNorms& n : gradients.independent) {
    const double root = std::sqrt(n.group);
    norms.row({std::to_string(n.group), fixed(root, 3), fixed(n.k, 3), fixed(n.k / one.k, 3), fixed(n.v, 3),
               fixed(n.v / one.v, 3)});
    chart.series[0].points.emplace_back(n.group, root);
    chart.series[1].points.emplace_back(n.group, n.k / one.k);
    chart.series[2].points.emplace_back(n.group, n.v / one.v);
  }
  Table own("The same with the q, K and V of " + report.model + ": layer " +
                std::to_string(report.patterns.back().layer) + ", KV head 0",
            {"heads that read it", "√g", "dK", "relative", "dV", "relative"});
  const GradientNorms& first = gradients.of_model.front();
  for (const GradientNorms& n : gradients.of_model) {
    own.row({std::to_string(n.group), fixed(std::sqrt(n.group), 3), fixed(n.k, 3), fixed(n.k / first.k, 3),
             fixed(n.v, 3), fixed(n.v / first.v, 3)});
    if (n.group <= 8) chart.series[3].points.emplace_back(n.group, n.k / first.k);
  }
  return section(
      5, "Gradients",
      paragraph("In training, the gradient of a KV head is the sum over the query heads that read it. Where they are "
                "independent its norm "
                "grows with the square root of the group, √g; where they agree, faster. A trained group is neither.") +
          figure(to_svg(chart)) + norms.html() + own.html() + check.html() +
          "<p class=\"soft\">Backward pass in float64. Independent heads: 24 tokens, 4 KV heads of 16, the mean of " +
          std::to_string(kNormProblems) +
          " random problems. The "
          "model's own are read from the pages of analysis 3, under a random gradient of the output.</p>\n");
}

// Analysis 6.

std::string capacity_map(const Report& report) {
  Heatmap map{.title = "One sequence: 32 layers, 32 query heads, head_dim 128, fp16",
              .x_label = "tokens",
              .y_label = "KV heads",
              .unit = ChartUnit::kBytes,
              .scale = ChartScale::kLog2,
              .lines = {{"24 GiB", 24.0 * (1 << 30)}, {"80 GiB", 80.0 * (1 << 30)}}};
  for (int64_t tokens = 4096; tokens <= int64_t{8} << 20; tokens *= 4)
    map.columns.push_back(format_value(static_cast<double>(tokens), ChartUnit::kTokens));
  for (const int32_t kv_heads : {32, 16, 8, 4, 2, 1}) {
    map.rows.push_back(std::to_string(kv_heads));
    int64_t tokens = 4096;
    for (size_t c = 0; c < map.columns.size(); ++c, tokens *= 4) {
      map.values.push_back(static_cast<double>(report.example.with_kv_heads(kv_heads).request_bytes(tokens)));
    }
  }
  return to_svg(map);
}

std::string scaling_section(const Report& report) {
  const std::vector<DecodePoint>& mha = report.variants.front().decode;
  Table table("A step of decoding, measured",
              {"tokens in the cache", "", "KV bytes read", "bytes against MHA", "ms per step", "of it attention",
               "step, times faster", "attention, times faster"});
  LineChart chart{.title = "Time of a decode step against context",
                  .x = {.label = "tokens in the cache", .unit = ChartUnit::kTokens, .scale = ChartScale::kLog2},
                  .y = {.label = "ms per step", .scale = ChartScale::kLog2}};
  for (const VariantReport& variant : report.variants)
    chart.series.push_back({heads_name(variant.kv_heads, report.config.query_heads), {}});
  for (size_t c = 0; c < mha.size(); ++c) {
    for (size_t v = 0; v < report.variants.size(); ++v) {
      const DecodePoint& point = report.variants[v].decode[c];
      chart.series[v].points.emplace_back(point.context_tokens, point.step_seconds * 1e3);
      table.row({int64_t{point.context_tokens}, chart.series[v].name, point.kv_bytes,
                 "1/" + fixed(static_cast<double>(mha[c].kv_bytes) / static_cast<double>(point.kv_bytes), 0),
                 milliseconds(point.step_seconds), milliseconds(point.attention_seconds),
                 times(mha[c].step_seconds / point.step_seconds),
                 times(mha[c].attention_seconds / point.attention_seconds)});
    }
  }
  const ModelConfig& shape = report.variants.front().config;
  return section(
      6, "Scaling with the context",
      paragraph("Every token that is generated reads the whole cache of its sequence. So the bytes decide twice: how "
                "much fits, and how "
                "long a step takes. Right of a line of the map, a memory of that size does not hold the sequence.") +
          figure(capacity_map(report)) + figure(to_svg(chart)) + table.html() + "<p class=\"soft\">Measured with " +
          plural(shape.layers, "layer") +
          " of this model's shape, random weights and pages filled with random numbers, one sequence, KV " +
          std::string(dtype_name(report.kv_dtype)) + "; the fastest of up to " + std::to_string(kDecodeSteps) +
          " steps. Where the cache of a sequence fits into the "
          "processor's own caches, or where the step is mostly weights, less of the saving in bytes shows as "
          "time.</p>\n");
}

// The whole.

std::string summary(const Report& report) {
  const auto fact = [](const std::string& number, const std::string& text) {
    return "<li><b>" + escape_xml(number) + "</b>" + escape_xml(text) + "</li>\n";
  };
  const KvShape shape = kv_shape(report.config, report.kv_dtype, 16);
  const auto& variants = report.variants;
  const auto as_predicted =
      std::count_if(variants.begin(), variants.end(), [](const auto& v) { return v.cache.is_as_predicted(); });
  const auto flops_equal = std::count_if(variants.begin(), variants.end(),
                                         [](const auto& v) { return v.flops.closed_form == v.flops.counted; });
  const auto of_all = [&](int64_t count) { return std::to_string(count) + " of " + std::to_string(variants.size()); };
  const auto own = std::find_if(variants.begin(), variants.end(),
                                [&](const auto& v) { return v.kv_heads == report.config.kv_heads; });
  const VariantReport& fewer = own == variants.end() || own == variants.begin() ? variants.back() : *own;
  const DecodePoint &longest = fewer.decode.back(), &mha = variants.front().decode.back();
  double worst = 0;
  for (const auto& [group, check] : report.gradients.checks) worst = std::max({worst, check.q, check.k, check.v});
  const std::string faster =
      fact(times(mha.step_seconds / longest.step_seconds),
           "faster decoding with " + plural(fewer.kv_heads, "KV head") + " than with " +
               std::to_string(variants.front().kv_heads) + " at " + grouped(longest.context_tokens) +
               " tokens, for 1/" + std::to_string(mha.kv_bytes / longest.kv_bytes) + " of the KV bytes");
  return "<ul class=\"facts\">\n" +
         fact(grouped(shape.token_bytes()) + " bytes",
              "of KV cache per token; multi-head attention would take " + grouped(shape.mha_token_bytes())) +
         fact(of_all(as_predicted),
              "head counts whose KV bytes were found in the running engine as predicted, to the byte") +
         fact(of_all(flops_equal), "head counts whose counted operations equal the closed form") +
         (variants.size() == 1 ? "" : faster) +
         fact(scientific(worst), "largest difference of the backward pass from numerical gradients") + "</ul>\n";
}

}  // namespace

std::string report_html(const Report& report) {
  const ModelConfig& config = report.config;
  const std::string title = "Headroom report: " + escape_xml(report.model);
  return "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
         "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>" +
         title + "</title>\n<style>" + kStyle + "</style>\n</head>\n<body>\n<header>\n<h1>" + title +
         "</h1>\n<p class=\"soft\">" + escape_xml(config.architecture) + ", " + plural(config.layers, "layer") +
         ", width " + std::to_string(config.model_dim) + ", " + std::to_string(config.query_heads) +
         " query heads in groups of " + std::to_string(config.group()) + " (" + plural(config.kv_heads, "KV head") +
         " of " + std::to_string(config.head_dim) + "), KV " + std::string(dtype_name(report.kv_dtype)) +
         ". Measured in " + fixed(report.seconds, 1) + " s on " + escape_xml(report.backend) +
         ", headroom " HEADROOM_VERSION ".</p>\n" +
         paragraph(
             "What grouped-query attention saves, and what it does not: each number that is predicted stands beside "
             "the one that was "
             "measured on this engine in this run.") +
         summary(report) +
         "<nav aria-label=\"Analyses\"><ol><li><a href=\"#a1\">Parameters</a></li><li><a "
         "href=\"#a2\">Memory</a></li><li><a "
         "href=\"#a3\">Patterns</a></li><li><a href=\"#a4\">Operations</a></li><li><a "
         "href=\"#a5\">Gradients</a></li><li><a "
         "href=\"#a6\">Scaling</a></li></ol></nav>\n</header>\n<main>\n" +
         parameters_section(report) + memory_section(report) + patterns_section(report) + flops_section(report) +
         gradients_section(report) + scaling_section(report) + "</main>\n</body>\n</html>\n";
}

}  // namespace headroom
