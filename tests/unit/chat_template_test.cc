// Whole templates against Jinja2 (tests/golden/templates/cases.json), the origin of each byte, files, hostile input.
#include "engine/tokenizer/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <variant>
#include <vector>

namespace headroom {
namespace {

using Json = nlohmann::ordered_json;
using ::testing::HasSubstr;

constexpr char kMark[] = "<|im_end|>";

std::filesystem::path golden_folder() { return std::filesystem::path(HEADROOM_SOURCE_DIR) / "tests/golden/templates"; }

std::string read(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

const Json& golden() {
  static const Json kGolden = Json::parse(read(golden_folder() / "cases.json"));
  return kGolden;
}

ChatTemplateInput make_input(const Json& request) {
  ChatTemplateInput input;
  input.messages = request["messages"];
  input.tools = request.value("tools", Json());
  input.add_generation_prompt = request.value("add_generation_prompt", true);
  input.extra = request.value("extra", Json());
  input.bos_token = request.value("bos_token", "");
  input.eos_token = request.value("eos_token", "");
  input.now_unix_seconds = request["now"].get<int64_t>();
  return input;
}

void expect_spans_cover(const RenderedPrompt& prompt) {
  size_t position = 0;
  for (size_t i = 0; i < prompt.spans.size(); ++i) {
    const RenderedPrompt::Span& span = prompt.spans[i];
    EXPECT_EQ(span.begin, position);
    EXPECT_LT(span.begin, span.end);
    EXPECT_TRUE(i == 0 || span.is_control != prompt.spans[i - 1].is_control);
    position = span.end;
  }
  EXPECT_EQ(position, prompt.text.size());
}

std::string control_text(const RenderedPrompt& prompt) {
  std::string text;
  for (const auto& span : prompt.spans) {
    if (span.is_control) text += prompt.text.substr(span.begin, span.end - span.begin);
  }
  return text;
}

TEST(ChatTemplate, RendersWhatJinja2Renders) {
  size_t texts = 0, refusals = 0;
  for (const Json& golden_case : golden()["cases"]) {
    const std::string file = golden_case["template"];
    const std::string conversation = golden_case["conversation"];
    SCOPED_TRACE(file + " [" + conversation + "]");
    const auto result =
        ChatTemplate::parse(read(golden_folder() / file)).render(make_input(golden()["conversations"][conversation]));
    const auto* prompt = std::get_if<RenderedPrompt>(&result);
    ASSERT_EQ(prompt != nullptr, golden_case["text"].is_string())
        << (prompt ? prompt->text : std::get<ChatTemplateError>(result).message);
    if (!prompt) {
      ++refusals;
      continue;
    }
    ++texts;
    EXPECT_EQ(prompt->text, golden_case["text"].get<std::string>());
    expect_spans_cover(*prompt);
  }
  EXPECT_GT(texts, 150u);
  EXPECT_GT(refusals, 20u);
}

// ---- origin ----

// Puts the mark into every string of the request, keys included.
Json marked(const Json& value, bool is_message = false) {
  if (value.is_string()) return value.get<std::string>() + kMark;
  if (value.is_array()) {
    Json result = Json::array();
    for (const Json& item : value) result.push_back(marked(item));
    return result;
  }
  if (!value.is_object()) return value;
  Json result = Json::object();
  for (const auto& [key, item] : value.items()) {
    const bool keeps = key == "role" || key == "type" || key == "name";
    result[key] = is_message && keeps ? item : keeps && item.is_string() ? item : marked(item);
  }
  result[std::string("extra") + kMark] = kMark;
  return result;
}

TEST(ChatTemplateOrigin, NoTextOfTheRequestIsControl) {
  size_t marks = 0;
  for (const Json& golden_case : golden()["cases"]) {
    const std::string file = golden_case["template"];
    SCOPED_TRACE(file);
    Json request = golden()["conversations"][golden_case["conversation"].get<std::string>()];
    for (Json& message : request["messages"]) message = marked(message, true);
    if (request.contains("tools")) request["tools"] = marked(request["tools"]);
    const auto result = ChatTemplate::parse(read(golden_folder() / file)).render(make_input(request));
    const auto* prompt = std::get_if<RenderedPrompt>(&result);
    if (!prompt) continue;
    expect_spans_cover(*prompt);
    EXPECT_THAT(control_text(*prompt), ::testing::Not(HasSubstr("im_end")));
    for (size_t at = prompt->text.find(kMark); at != std::string::npos; at = prompt->text.find(kMark, at + 1)) {
      ++marks;
      for (const auto& span : prompt->spans) {
        EXPECT_TRUE(span.end <= at || span.begin >= at + sizeof(kMark) - 1 || !span.is_control) << prompt->text;
      }
    }
  }
  EXPECT_GT(marks, 500u);
}

TEST(ChatTemplateOrigin, SurvivesEveryOperation) {
  // None of '<', '|', '>', '_' or a digit is in what these templates write, so each one in the output is the client's.
  const Json variables = {
      {"x", "a <|im_end|> B"}, {"list", {"<|a|>", "b<|c|>"}}, {"n", 42}, {"dict", {{"<|k|>", "<|v|>"}}}, {"f", 2.5},
      {"other", "zz"}};
  // clang-format off
  static constexpr const char* kExpressions[] = {
      "x", "x ~ other", "other ~ x", "x + x", "x * 2", "x[2:]", "x[:-3]", "x[::-1]", "x[3]", "x | upper",
      "x | lower", "x | title", "x | capitalize", "x | trim", "x.strip('a')", "x.lstrip()", "x.rstrip()",
      "x.swapcase()", "x.title()", "x | replace('a', 'q')", "'q a q' | replace('a', x)", "'q a q'.replace('a', x)",
      "x.replace('', '-')", "x | tojson", "x | string", "x | safe", "x | urlencode", "x | indent",
      "x | indent(first=true)", "'q' | indent(x, first=true)", "x | truncate(5)", "x | truncate(5, true)",
      "x | center", "x.ljust(n)", "x.zfill(n)", "x.split(' ') | join('q')", "x.split('|')", "x.rsplit('|', 1)",
      "x.partition('|')", "x.splitlines()", "x | list", "x | first", "x | last", "x | reverse", "list",
      "list | join(' ')", "'q' | join(x)", "x.join(['q', 'r'])", "list | first", "list | map('upper') | list",
      "list | sort", "list | unique | list", "list | batch(1) | list", "list + list", "dict", "dict | tojson",
      "dict | tojson(indent=1)", "dict.keys() | list", "dict.items() | list", "dict | dictsort",
      "dict | items | list", "dict | first", "[x, (x, {'q': x})]", "{x: x} | tojson", "'%s' % x",
      "'%r q %s' % (x, n)", "'%(a)s' % {'a': x}", "'%s q' | format(x)", "x % ()", "'{} {!r}'.format(x, x)",
      "'{a}'.format(a=x)", "x.format()", "n", "n ~ ''", "n + n", "-n", "n | string", "n | tojson", "f", "f * n",
      "f | round", "f | int", "'%d' % n", "'%f' % f", "x if x", "x or other", "namespace(a=x).a", "kw(**dict)", "'%s' | format(**dict)", "dict | string",
      "x | default('q')", "nope | default(x)", "list | max", "x.removeprefix('a')", "range(n, n + n)[0] ~ x",
      "x.center(n, x[3])", "[['q']] | tojson(indent=x)", "['q', 'r'] | tojson(separators=(x, x))", "list | map(attribute='q', default=x) | list", "x | e"};
  // clang-format on
  for (const char* expression : kExpressions) {
    const std::string source =
        "{% macro kw() %}{{ kwargs }}{% endmacro %}{% macro m(v) %}{{ v }}{% endmacro %}{% set t %}{{ " +
        std::string(expression) + " }}{% endset %}{{ m(t) }}{% filter trim %}{{ t }}{% endfilter %}";
    ChatTemplateInput input;
    input.messages = Json::array();
    input.extra = variables;
    const auto result = ChatTemplate::parse(source).render(input);
    const auto* prompt = std::get_if<RenderedPrompt>(&result);
    if (!prompt) {
      EXPECT_THAT(expression, ::testing::AnyOf(::testing::StrEq("x % ()"), ::testing::StrEq("x.format()")))
          << std::get<ChatTemplateError>(result).message;
      continue;
    }
    expect_spans_cover(*prompt);
    EXPECT_EQ(control_text(*prompt).find_first_of("<|>_0123456789"), std::string::npos)
        << expression << ": " << prompt->text;
  }
}

TEST(ChatTemplateOrigin, OnlyKnownRolesAreWordsOfTheTemplate) {
  const ChatTemplate role_tokens = ChatTemplate::parse("{% for m in messages %}{{ '<|' + m.role + '|>' }}{% endfor %}");
  ChatTemplateInput input;
  input.messages = Json::parse(R"([{"role": "user"}, {"role": "assistant"}])");
  auto prompt = std::get<RenderedPrompt>(role_tokens.render(input));
  EXPECT_EQ(control_text(prompt), "<|user|><|assistant|>");
  input.messages = Json::parse(R"([{"role": "im_end"}, {"role": "user|><|im_end"}, {"role": "User"}])");
  prompt = std::get<RenderedPrompt>(role_tokens.render(input));
  EXPECT_EQ(control_text(prompt), "<||><||><||>");
}

TEST(ChatTemplateOrigin, TokensOfTheModelAreControl) {
  ChatTemplateInput input;
  input.messages = Json::parse(R"([{"role": "user", "content": "</s>"}])");
  input.bos_token = "<s>";
  input.eos_token = "</s>";
  const auto prompt =
      std::get<RenderedPrompt>(ChatTemplate::parse("{{ bos_token + messages[0].content + eos_token }}").render(input));
  EXPECT_EQ(prompt.text, "<s></s></s>");
  EXPECT_EQ(control_text(prompt), "<s></s>");
  ASSERT_EQ(prompt.spans.size(), 3u);
  EXPECT_FALSE(prompt.spans[1].is_control);
}

// ---- requests ----

std::string error_of(const ChatTemplateInput& input, const std::string& source = "{{ messages }}") {
  const auto result = ChatTemplate::parse(source).render(input);
  const auto* error = std::get_if<ChatTemplateError>(&result);
  return error ? error->message : "";
}

TEST(ChatTemplate, RefusesRequestsOfTheWrongShape) {
  ChatTemplateInput input;
  EXPECT_THAT(error_of(input), HasSubstr("messages must be a list"));
  input.messages = Json::array({1});
  EXPECT_THAT(error_of(input), HasSubstr("each message must be an object"));
  input.messages = Json::array();
  input.tools = 1;
  EXPECT_THAT(error_of(input), HasSubstr("tools must be a list"));
  input.tools = nullptr;
  input.extra = Json::array();
  EXPECT_THAT(error_of(input), HasSubstr("chat_template_kwargs must be an object"));
  input.extra = {{"messages", 1}};
  EXPECT_THAT(error_of(input), HasSubstr("must not set 'messages'"));
  input.extra = {{"x", "\xFF"}};
  EXPECT_THAT(error_of(input, "{{ x }}"), HasSubstr("not valid UTF-8"));
  input.extra = {{"range", 5}};
  EXPECT_EQ(error_of(input, "{{ range }}"), "");
}

TEST(ChatTemplate, UnsetTokensAreUndefined) {
  ChatTemplateInput input;
  input.messages = Json::array();
  EXPECT_EQ(
      std::get<RenderedPrompt>(ChatTemplate::parse("{{ bos_token is defined }}{{ bos_token }}").render(input)).text,
      "False");
  const auto empty = std::get<RenderedPrompt>(ChatTemplate::parse("").render(input));
  EXPECT_TRUE(empty.text.empty() && empty.spans.empty());
}

TEST(ChatTemplate, OneTemplateServesManyThreads) {
  const ChatTemplate shared = ChatTemplate::parse(read(golden_folder() / "turns_with_tools.jinja"));
  const ChatTemplateInput input = make_input(golden()["conversations"]["two calls"]);
  const std::string expected = std::get<RenderedPrompt>(shared.render(input)).text;
  std::vector<std::thread> threads;
  std::vector<int> equal(4, 0);
  for (size_t t = 0; t < equal.size(); ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) equal[t] += std::get<RenderedPrompt>(shared.render(input)).text == expected;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(equal, ::testing::Each(50));
}

// ---- files ----

class ChatTemplateFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "chat_template_XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  void write(const char* name, const std::string& content) {
    std::ofstream(folder_ / name, std::ios::binary) << content;
  }
  std::string render_loaded() {
    const auto loaded = ChatTemplate::load(folder_);
    if (!loaded) return "none";
    ChatTemplateInput input;
    input.messages = Json::array();
    return std::get<RenderedPrompt>(loaded->render(input)).text;
  }
  std::string load_error() {
    try {
      ChatTemplate::load(folder_);
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    return "";
  }
  std::filesystem::path folder_;
};

TEST_F(ChatTemplateFiles, AreFoundInTheirOrder) {
  EXPECT_EQ(render_loaded(), "none");
  write("tokenizer_config.json", R"({"bos_token": "<s>"})");
  EXPECT_EQ(render_loaded(), "none");
  write("chat_template.json", R"({"chat_template": "from chat_template.json"})");
  EXPECT_EQ(render_loaded(), "from chat_template.json");
  write("tokenizer_config.json",
        R"({"chat_template": [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "listed"}]})");
  EXPECT_EQ(render_loaded(), "listed");
  write("tokenizer_config.json", R"({"chat_template": "from config"})");
  EXPECT_EQ(render_loaded(), "from config");
  write("chat_template.jinja", "{{ 'from' }} jinja\n");
  EXPECT_EQ(render_loaded(), "from jinja");
}

TEST_F(ChatTemplateFiles, BrokenOnesAreNamed) {
  for (const char* content :
       {"", "{", "[]", "1", R"({"chat_template": 1})", R"({"chat_template": []})",
        R"({"chat_template": [{"name": "other", "template": "x"}, 3, {"name": 1, "template": 2}]})",
        R"({"chat_template": "{% if %}"})"}) {
    write("tokenizer_config.json", content);
    EXPECT_THAT(load_error(), HasSubstr("tokenizer_config.json: ")) << content;
  }
  write("chat_template.jinja", "a\n{{ x");
  EXPECT_THAT(load_error(), HasSubstr("chat_template.jinja: the chat template cannot be read: line 2: "));
  EXPECT_EQ(load_error().find('\n'), std::string::npos);
}

// ---- hostile templates ----

// More rounds: HEADROOM_TEMPLATE_MUTATIONS=100000.
int mutation_rounds() {
  const char* text = std::getenv("HEADROOM_TEMPLATE_MUTATIONS");
  return text ? std::stoi(text) : 1500;
}

// Any answer will do, but it must come, with spans that fit.
void render_anyhow(const std::string& source, const ChatTemplateInput& input) {
  constexpr JinjaLimits kLimits{.operations_max = 200'000, .output_bytes_max = 1 << 20, .live_bytes_max = 16 << 20};
  try {
    const auto result = ChatTemplate::parse(source).render(input, kLimits);
    if (const auto* prompt = std::get_if<RenderedPrompt>(&result)) {
      expect_spans_cover(*prompt);
    } else {
      EXPECT_NE(std::get<ChatTemplateError>(result).message, "");
    }
  } catch (const std::runtime_error& error) {
    EXPECT_STRNE(error.what(), "");
  }
}

std::vector<std::string> golden_sources() {
  std::vector<std::string> sources;
  for (const auto& entry : std::filesystem::directory_iterator(golden_folder())) {
    if (entry.path().extension() == ".jinja") sources.push_back(read(entry.path()));
  }
  return sources;
}

std::vector<ChatTemplateInput> golden_inputs() {
  std::vector<ChatTemplateInput> inputs;
  for (const auto& [name, request] : golden()["conversations"].items()) inputs.push_back(make_input(request));
  return inputs;
}

TEST(ChatTemplateHostile, MutatedTemplates) {
  const std::vector<std::string> sources = golden_sources();
  const std::vector<ChatTemplateInput> inputs = golden_inputs();
  ASSERT_FALSE(sources.empty());
  for (int round = 0; round < mutation_rounds(); ++round) {
    std::mt19937 random(static_cast<unsigned>(round));
    SCOPED_TRACE("round " + std::to_string(round));
    std::string source = sources[random() % sources.size()];
    for (size_t edits = 1 + random() % 4; edits > 0 && !source.empty(); --edits) {
      const size_t at = random() % source.size();
      const size_t size = 1 + random() % 12;
      switch (random() % 4) {
        case 0:
          source[at] = static_cast<char>(source[at] ^ (1 << random() % 7));
          break;
        case 1:
          source.erase(at, size);
          break;
        case 2:
          source.insert(at, source.substr(random() % source.size(), size));
          break;
        case 3:
          source.insert(at, sources[random() % sources.size()].substr(0, size));
          break;
      }
    }
    render_anyhow(source, inputs[random() % inputs.size()]);
  }
}

// Of the file that a template is in as well: its escapes and its structure are JSON's.
TEST(ChatTemplateHostile, EveryBitAndEveryCut) {
  const std::vector<ChatTemplateInput> inputs = golden_inputs();
  const auto corpus = std::filesystem::path(HEADROOM_SOURCE_DIR) / "tests/fuzz/corpus/chat_template";
  for (const char* name : {"bound_2", "brackets", "role_tokens", "turns_with_tools"}) {
    const std::string source = read(corpus / name);
    ASSERT_FALSE(source.empty()) << name;
    for (size_t cut = 0; cut < source.size(); ++cut) render_anyhow(source.substr(0, cut), inputs[cut % inputs.size()]);
    for (size_t bit = 0; bit < source.size() * 8; ++bit) {
      std::string flipped = source;
      flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
      render_anyhow(flipped, inputs[bit % inputs.size()]);
    }
  }
}

TEST_F(ChatTemplateFiles, EveryBitAndEveryCutOfTheFile) {
  const std::string file = R"({"bos_token": "<s>", "chat_template": [{"name": "default", "template": "{{ bos_token }}\n\u00e9\ud83d\ude00"}]})";
  const auto survives = [&](const std::string& content) {
    write("tokenizer_config.json", content);
    const std::string error = load_error();
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
    return error.empty();
  };
  ASSERT_TRUE(survives(file));
  for (size_t cut = 0; cut < file.size(); ++cut) EXPECT_FALSE(survives(file.substr(0, cut))) << "cut at " << cut;
  for (size_t bit = 0; bit < file.size() * 8; ++bit) {
    std::string flipped = file;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    survives(flipped);
  }
}

TEST(ChatTemplateHostile, TokenSoup) {
  // clang-format off
  static constexpr const char* kTokens[] = {
      "{{ ", " }}", "{% ", " %}", "{%- ", " -%}", "{# ", " #}", "if ", "elif ", "else", "endif", "for ", " in ",
      "endfor", "set ", "endset", "macro ", "endmacro", "call ", "endcall", "filter ", "endfilter", "with ",
      "endwith", "generation", "endgeneration", "break", "continue", "recursive", "raw", "endraw", "x", "y", "m",
      "loop", "loop.index", "loop.last", "loop.length", "loop.previtem", "loop.changed(x)", "loop(x)", "caller()",
      "varargs", "kwargs", "ns", "ns.x", "messages", "tools", "(", ")", "[", "]", "{", "}", ",", ":", ".", "|", "~",
      "+", "-", "*", "/", "//", "%", "**", "=", "==", "<", ">=", "not ", " and ", " or ", " is ", "1", "0", "-1",
      "2.5", "9223372036854775807", "'a'", "'%s'", "'{}'", "\"b\"", "none", "true", "false", "|upper", "|tojson",
      "|list", "|join", "|map('upper')", "|select('odd')", "|sort", "|first", "|last", "|int", "|round", "|batch(2)",
      "|indent", "|default(1)", "|groupby('role')", "|sum", "|unique", "|tojson(indent=2)", "|map(attribute='role')",
      ".split()", ".items()", ".get('x')", ".format(x)", ".replace('a', x)", ".strip()", "[::-1]", "[1:]", "[:x]",
      "['role']", "namespace(x=1)", "range(5)", "range(x)", "dict(x=1)", "defined", "string", "sameas", " if ",
      " else ", "\n", " "};
  // clang-format on
  const std::vector<ChatTemplateInput> inputs = golden_inputs();
  for (int round = 0; round < 4 * mutation_rounds(); ++round) {
    std::mt19937 random(static_cast<unsigned>(round));
    SCOPED_TRACE("round " + std::to_string(round));
    std::string soup;
    for (size_t tokens = random() % 12; tokens > 0; --tokens) soup += kTokens[random() % std::size(kTokens)];
    const std::string source =
        round % 3 == 0   ? soup
        : round % 3 == 1 ? "{% set x = messages %}{{ " + soup + " }}"
                         : "{% set ns = namespace(x=2) %}{% for x in messages %}{{ " + soup + " }}{% endfor %}";
    render_anyhow(source, inputs[random() % inputs.size()]);
  }
}

}  // namespace
}  // namespace headroom
