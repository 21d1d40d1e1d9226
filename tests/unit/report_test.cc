// The report: its numbers against the table of the design, and its file: well-formed, complete in itself, readable
// without seeing it.
#include "server/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/command_report.h"
#include "server/report_html.h"

namespace headroom {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

const Report& report() {
  static const Report made = make_report({.model = HEADROOM_SOURCE_DIR "/configs/models/demo-gqa",
                                          .context_tokens = 2048,
                                          .prompt = "The password for Anna is <walnut>."},
                                         [](int step, int steps, const std::string&) { EXPECT_LE(step, steps); });
  return made;
}
const std::string& html() {
  static const std::string made = report_html(report());
  return made;
}

size_t count(const std::string& text, const std::string& part) {
  size_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) ++found;
  return found;
}

// The names of tags that are not closed where they should be.
std::string first_unclosed(const std::string& text) {
  std::vector<std::string> open;
  for (size_t at = text.find('<'); at != std::string::npos; at = text.find('<', at + 1)) {
    const size_t end = text.find('>', at);
    if (end == std::string::npos) return "<";
    const std::string tag = text.substr(at + 1, end - at - 1), name = tag.substr(0, tag.find_first_of(" \n/", 1));
    if (std::count(tag.begin(), tag.end(), '"') % 2 != 0 || tag.find('<') != std::string::npos) return tag;
    if (name == "!doctype" || name == "meta" || tag.back() == '/') continue;
    if (name == "style") at = text.find("</style", at) - 1;
    if (name[0] != '/') {
      open.push_back(name);
    } else if (open.empty() || "/" + open.back() != name) {
      return tag;
    } else {
      open.pop_back();
    }
  }
  return open.empty() ? "" : open.back();
}

TEST(Report, HasTheNumbersOfTheDesign) {
  constexpr int64_t kMiB = 1 << 20;
  const ConfigurationReport &llama = report().configurations[0], &mistral = report().configurations[1];
  EXPECT_EQ(llama.name, "llama-2-70b");
  EXPECT_EQ(llama.context_tokens, 4096);
  EXPECT_EQ(llama.request_bytes, 1280 * kMiB);
  EXPECT_EQ(llama.mha_bytes, 10240 * kMiB);
  EXPECT_EQ(llama.allocated_bytes, 1280 * kMiB);
  EXPECT_EQ(mistral.context_tokens, 8192);
  EXPECT_EQ(mistral.request_bytes, 1024 * kMiB);
  EXPECT_EQ(mistral.mha_bytes, 4096 * kMiB);
  EXPECT_EQ(mistral.allocated_bytes, 1024 * kMiB);
  for (const char* shown : {"16,384", "10,240", "37.5%", "75%", "43.75%", "87.5%", "1.25 GiB", "10 GiB", "655,360",
                            "163,840", "5,242,880"}) {
    EXPECT_THAT(html(), HasSubstr(">" + std::string(shown) + "<"));
  }
}

TEST(Report, WhatWasPredictedWasMeasured) {
  std::vector<int32_t> heads;
  for (const VariantReport& variant : report().variants) {
    heads.push_back(variant.kv_heads);
    EXPECT_TRUE(variant.cache.is_as_predicted());
    EXPECT_EQ(variant.cache.written_bytes,
              500 * 384 * variant.kv_heads);  // 2 · 3 layers · 32 · 2 bytes for each KV head
    EXPECT_EQ(variant.flops.counted, variant.flops.closed_form);
    EXPECT_EQ(variant.flops.counted.attention, report().variants[0].flops.counted.attention);
    ASSERT_EQ(variant.decode.size(), 2u);
    EXPECT_EQ(variant.decode[1].kv_bytes, 2048 * 384 * variant.kv_heads);
  }
  EXPECT_THAT(heads, ElementsAre(8, 2, 1));
  EXPECT_EQ(report().loaded.count, 672256);
  EXPECT_EQ(count(html(), "✗ differs"), 0u);
  EXPECT_EQ(count(html(), "✓ equal"), 4u + 3 + 3 * 5);
  for (const auto& [group, check] : report().gradients.checks)
    EXPECT_LT(std::max({check.q, check.k, check.v}), 1e-6) << group;
  ASSERT_EQ(report().gradients.independent.size(), 8u);
  EXPECT_EQ(report().gradients.of_model.size(), 4u);
  EXPECT_EQ(report().patterns.size(), 3u);
  for (const AttentionPatterns& patterns : report().patterns) EXPECT_LT(patterns.row_sum_error, 1e-5);
}

TEST(Report, ADifferenceShows) {
  Report wrong = report();
  wrong.variants[1].cache.written_bytes += 2;
  wrong.variants[2].flops.counted.attention += 1;
  EXPECT_EQ(count(report_html(wrong), "✗ differs"), 3u);  // the whole step has the attention in it
}

TEST(ReportHtml, IsWellFormedAndAloneInTheWorld) {
  EXPECT_EQ(first_unclosed(html()), "");
  EXPECT_NE(first_unclosed(html() + "<p>"), "");
  EXPECT_EQ(count(html(), "http"), count(html(), "xmlns=\"http://www.w3.org/2000/svg\""));  // a name, not an address
  for (const char* outside :
       {"<script", "<link", "<img", "<iframe", "<object", "src=", "url(", "@import", "//www", "href=\"/"}) {
    EXPECT_EQ(count(html(), outside), count(html(), outside == std::string("//www") ? "xmlns=\"http://www" : "\x01"))
        << outside;
  }
  EXPECT_EQ(count(html(), "href="), count(html(), "href=\"#a"));
  EXPECT_THAT(html(), HasSubstr("&lt;walnut&gt;"));
  EXPECT_THAT(html(), Not(HasSubstr("<walnut")));
  EXPECT_THAT(html(), Not(HasSubstr("nan")));
}

TEST(ReportHtml, CanBeReadWithoutSeeingIt) {
  EXPECT_EQ(count(html(), "<svg"),
            count(html(), "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"hr\" role=\"img\" aria-label=") +
                count(html(), "<svg role=\"img\" aria-label="));
  EXPECT_EQ(count(html(), "<table>"), count(html(), "<table><caption><span>"));
  EXPECT_EQ(count(html(), "<th"), count(html(), "<th scope=") + count(html(), "<thead"));
  EXPECT_EQ(count(html(), "<h2 id="), 6u);
  EXPECT_THAT(html(), HasSubstr("<html lang=\"en\">"));
  EXPECT_THAT(html(), HasSubstr("name=\"viewport\""));
  EXPECT_THAT(html(), HasSubstr("prefers-color-scheme:dark"));
}

TEST(ReportCommand, SaysWhatWouldDo) {
  const auto error_of = [](const std::vector<std::string>& arguments) -> std::string {
    try {
      return "exit " + std::to_string(run_report(arguments));
    } catch (const std::exception& error) {
      return error.what();
    }
  };
  EXPECT_THAT(error_of({"--model", "/nowhere"}), HasSubstr("/nowhere is not a directory"));
  const std::string demo = HEADROOM_SOURCE_DIR "/configs/models/demo-gqa";
  EXPECT_THAT(error_of({"--model", demo, "--output", "/nowhere/report.html"}),
              HasSubstr("/nowhere/report.html cannot be written"));
  EXPECT_THAT(error_of({"--model", demo, "--output", "/dev/null", "--prompt", ""}), HasSubstr("at least one token"));
  EXPECT_THAT(error_of({"--model", demo, "--kv", "int3"}), HasSubstr("fp32,bf16,fp16,int8"));
  EXPECT_THAT(error_of({}), HasSubstr("--model is required"));
}

}  // namespace
}  // namespace headroom
