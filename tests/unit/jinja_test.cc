// The template language: what Jinja2 prints for small templates (tests/golden/templates/snippets.json), and the bounds.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pthread.h>

#include <algorithm>
#include <ctime>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <variant>

#include "engine/tokenizer/chat_template.h"
#include "tests/unit/sanitizer_slowdown.h"

namespace headroom {
namespace {

using Json = nlohmann::ordered_json;
using ::testing::HasSubstr;

constexpr int64_t kNow = 1721990400;  // as in tests/golden/template_reference.py

// The text, or "error: …" whether the template cannot be read or refuses.
std::string render(const std::string& source, const Json& variables = Json(), const JinjaLimits& limits = {}) {
  ChatTemplateInput input;
  input.messages = Json::array();
  input.extra = variables;
  input.now_unix_seconds = kNow;
  try {
    const auto result = ChatTemplate::parse(source).render(input, limits);
    if (const auto* error = std::get_if<ChatTemplateError>(&result)) return "error: " + error->message;
    return std::get<RenderedPrompt>(result).text;
  } catch (const std::runtime_error& error) {
    return std::string("error: ") + error.what();
  }
}

std::string repeat(const std::string& text, size_t times) {
  std::string result;
  for (size_t i = 0; i < times; ++i) result += text;
  return result;
}

TEST(Jinja, PrintsWhatJinja2Prints) {
  std::ifstream file(HEADROOM_SOURCE_DIR "/tests/golden/templates/snippets.json");
  const Json golden = Json::parse(file);
  size_t count = 0;
  for (const Json& snippet : golden["snippets"]) {
    const std::string source = snippet["source"];
    const std::string actual = render(source, golden["variables"]);
    ++count;
    if (snippet["text"].is_string()) {
      EXPECT_EQ(actual, snippet["text"].get<std::string>()) << source;
    } else {
      EXPECT_THAT(actual, ::testing::StartsWith("error: ")) << source;
    }
  }
  EXPECT_GT(count, 800u);
}

TEST(Jinja, SyntaxErrorsNameTheLine) {
  EXPECT_THAT(render("a\nb\n{{ 1 + }}"), HasSubstr("line 3: "));
  EXPECT_THAT(render("\n{% if true %}\n"), HasSubstr("'endif' is missing"));
  EXPECT_THAT(render("{{ 'a\n\nb' | nope }}"), HasSubstr("no filter named 'nope'"));
  EXPECT_THAT(render("{% frobnicate %}"), HasSubstr("line 1: unknown tag 'frobnicate'"));
  EXPECT_THAT(render("\n\n{{ missing.x }}"), HasSubstr("line 3: 'missing' is undefined"));
  EXPECT_THAT(render(std::string("\xFF", 1)), HasSubstr("UTF-8"));
}

TEST(Jinja, ExceptionsOfTheTemplateAreGivenAsTheyAre) {
  EXPECT_EQ(render("{{ raise_exception('Roles must alternate: ' ~ 1) }}"), "error: Roles must alternate: 1");
}

TEST(Jinja, IntegersThatDoNotFitAreErrors) {
  for (const char* source : {"{{ 9223372036854775807 + 1 }}", "{{ -9223372036854775807 - 2 }}", "{{ 2 ** 63 }}",
                             "{{ 4611686018427387904 * 2 }}", "{{ -(-9223372036854775807 - 1) }}",
                             "{{ (-9223372036854775807 - 1) // -1 }}", "{{ (-9223372036854775807 - 1) | abs }}",
                             "{{ 9223372036854775808 }}", "{{ 1e300 | int }}", "{{ '99999999999999999999' | int }}"}) {
    EXPECT_THAT(render(source), ::testing::StartsWith("error: ")) << source;
  }
  EXPECT_THAT(render("{{ x }}", Json{{"x", 18446744073709551615u}}), HasSubstr("out of range"));
}

TEST(Jinja, ClockIsAnArgument) {
  EXPECT_EQ(render("{{ strftime_now('%d %b %Y') }}"), "26 Jul 2024");
  ChatTemplateInput without_time;
  without_time.messages = Json::array();
  const auto result = ChatTemplate::parse("{{ strftime_now('%Y') }}").render(without_time);
  EXPECT_TRUE(std::holds_alternative<ChatTemplateError>(result));
}

// ---- bounds ----

constexpr double kSecondsMax = std::max(2.0, kSanitizerSlowdown);  // of the thread's own
constexpr size_t kStackBytes = (kSanitizerSlowdown > 1 ? 8 : 1) << 20;

// Runs on a stack of kStackBytes, so that recursion that is not bounded is seen.
void on_small_stack(std::function<void()> body) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, kStackBytes);
  pthread_t thread;
  const auto run = [](void* argument) -> void* {
    (*static_cast<std::function<void()>*>(argument))();
    return nullptr;
  };
  ASSERT_EQ(pthread_create(&thread, &attributes, run, &body), 0);
  pthread_join(thread, nullptr);
  pthread_attr_destroy(&attributes);
}

double thread_cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

void expect_stopped(const std::string& source, const Json& variables = Json()) {
  on_small_stack([&] {
    const double begin = thread_cpu_seconds();
    const std::string actual = render(source, variables);
    const double seconds = thread_cpu_seconds() - begin;
    EXPECT_THAT(actual.substr(0, 200), ::testing::StartsWith("error: ")) << source.substr(0, 200);
    EXPECT_LT(seconds, kSecondsMax) << source.substr(0, 200);
  });
}

TEST(JinjaBounds, Operations) {
  expect_stopped("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}");
  expect_stopped("{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}");
  expect_stopped("{% for a in range(99999) %}{% set x = range(99999) | sort(reverse=true) %}{% endfor %}");
  expect_stopped("{% for a in range(9999) %}{{ range(99999) | sum }}{% endfor %}");
  expect_stopped("{% set l = range(99999) | list %}{% for a in l %}{{ a in l }}{% endfor %}");
  expect_stopped("{% set s = 'ab' * 4000000 %}{% for a in range(99999) %}{{ s | length }}{% endfor %}");
  expect_stopped("{% set s = 'ab' * 4000000 %}{% for a in range(99999) %}{% set t = s | upper %}{% endfor %}");
  expect_stopped("{% set s = 'ab' * 4000000 %}{% for a in range(99999) %}{% set t = s == s ~ '' %}{% endfor %}");
  expect_stopped("{% set s = ' ' * 8000000 %}{% for a in range(99999) %}{% set t = s.strip() %}{% endfor %}");
  expect_stopped(
      "{% set s = 'a' * 4000000 %}{% set t = 'a' * 2000000 ~ 'b' %}"
      "{% for a in range(99999) %}{% set f = t in s %}{% set f = s.rfind(t) %}{% endfor %}");
  expect_stopped(
      "{% set ns = namespace(l=[1]) %}{% for a in range(9999) %}{% set ns.l = [ns.l, ns.l][0:1] %}{% endfor %}");
}

TEST(JinjaBounds, SizeOfTexts) {
  expect_stopped("{{ 'a' * 1000000000 }}");
  expect_stopped("{{ 1000000000 * 'a' }}");
  expect_stopped("{{ '' * 1000000000000 }}{{ 'a' * 8388609 }}");
  expect_stopped("{{ 'a'.center(1000000000) }}");
  expect_stopped("{{ 'a'.ljust(9223372036854775807) }}");
  expect_stopped("{{ 'a'.zfill(1000000000) }}");
  expect_stopped("{{ '%1000000000d' % 1 }}");
  expect_stopped("{{ '%*d' % (1000000000, 1) }}{{ '%999999s' % 1 * 100 }}");
  expect_stopped("{{ ('a' * 100000).replace('a', 'b' * 100000) }}");
  expect_stopped("{{ ('a' * 100000).replace('', 'b' * 100000) }}");
  expect_stopped("{{ ('b' * 100000).join('a' * 100000) }}");
  expect_stopped("{% for i in range(99999) %}{{ 'aaaaaaaaaa' * 100 }}{% endfor %}");
  expect_stopped("{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}");
  expect_stopped("{{ ('\\n' * 4000000) | indent(1000000, blank=true) }}");
  expect_stopped("{{ [[[[1]]]] | tojson(indent=100000000) }}{{ 'a' * 9000000 }}");
  expect_stopped("{{ strftime_now('%c' * 100000) }}");
}

TEST(JinjaBounds, Memory) {
  expect_stopped("{{ [1] * 1000000000 }}");
  expect_stopped("{{ [1, 2] * 9223372036854775807 }}");
  expect_stopped("{{ range(1000000000) }}");
  expect_stopped("{{ range(-9223372036854775807, 9223372036854775807) }}");
  expect_stopped("{{ ('a' * 8000000) | list | length }}");
  expect_stopped("{{ ('a,' * 4000000).split(',') | length }}");
  expect_stopped("{{ [1] | batch(1000000000, 0) | list }}");
  expect_stopped("{{ [1] | slice(1000000000) | list }}");
  expect_stopped("{% set ns = namespace(l=[]) %}{% for i in range(99999) %}{% set ns.l = ns.l + [i] %}{% endfor %}");
  expect_stopped("{% set ns = namespace(l=[0]) %}{% for i in range(99) %}{% set ns.l = ns.l + ns.l %}{% endfor %}");
  expect_stopped(
      "{% set ns = namespace(n=0) %}{% for i in range(99999) %}{% for j in range(99999) %}"
      "{% set ns.n = namespace(n=ns.n) %}{% endfor %}{% endfor %}");
  expect_stopped("{% macro m(n) %}{% set x = 'a' * 8000000 %}{{ x }}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}");
  expect_stopped(
      "{% set ns = namespace() %}{% for i in range(99999) %}{% for j in range(99) %}{% set p = ns.m %}"
      "{% macro m() %}{{ p }}{% endmacro %}{% set ns.m = m %}{% endfor %}{% endfor %}");
}

TEST(JinjaBounds, Depth) {
  expect_stopped("{{ " + repeat("(", 100000) + "1" + repeat(")", 100000) + " }}");
  expect_stopped("{{ " + repeat("[", 100000) + repeat("]", 100000) + " }}");
  expect_stopped("{{ " + repeat("{1:", 100000) + "1" + repeat("}", 100000) + " }}");
  expect_stopped("{{ " + repeat("-", 100000) + "1 }}");
  expect_stopped("{{ " + repeat("not ", 100000) + "1 }}");
  expect_stopped("{{ 1" + repeat(" + 1", 100000) + " }}");
  expect_stopped("{{ 1" + repeat(" ** 1", 100000) + " }}");
  expect_stopped("{{ 1" + repeat(" and 1", 100000) + " }}");
  expect_stopped("{{ 1" + repeat(" if 1 else 1", 50000) + " }}");
  expect_stopped("{{ x" + repeat(".a", 100000) + " }}");
  expect_stopped("{{ x" + repeat("[0]", 100000) + " }}");
  expect_stopped("{{ x" + repeat("()", 100000) + " }}");
  expect_stopped("{{ x" + repeat("|trim", 100000) + " }}");
  expect_stopped("{{ x" + repeat(" is none", 100000) + " }}");
  expect_stopped(repeat("{% if 1 %}", 100000));
  expect_stopped(repeat("{% for i in x %}", 50000));
  expect_stopped(repeat("{% macro m() %}", 50000));
  expect_stopped("{% set " + repeat("(", 100000) + "x = 1 %}");
  expect_stopped("{% for " + repeat("(", 100000) + "x in y %}");
  expect_stopped("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}");
  expect_stopped(
      "{% macro m(n) %}{% if n %}{% for i in [1] %}{% if i %}{{ (((m(n + 1)))) ~ '' }}{% endif %}{% endfor %}"
      "{% endif %}{% endmacro %}{{ m(1) }}");
  expect_stopped("{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}");
  expect_stopped("{% macro m() %}{% call m() %}{{ caller() }}{% endcall %}{% endmacro %}{{ m() }}");
  expect_stopped("{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}");
  expect_stopped("{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}");
  expect_stopped("{% set ns = namespace(x=1) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}");
  expect_stopped("{% set ns = namespace(x=1) %}{% for i in range(99999) %}{% set ns.x = {'a': ns.x} %}{% endfor %}");
  expect_stopped(
      "{% set ns = namespace(x={}) %}{% for i in range(99999) %}{% set ns.x = {'a': ns.x.get} %}{% endfor %}");
  expect_stopped("{% set x = ['x'] %}{{ x | map('map', 'map', 'map', 'map', 'map') | map('list') | list }}" +
                 repeat("{% if 1 %}", 99));
  Json deep = 1;  // nlohmann copies by recursion: what is deeper still must be refused by who reads the request
  for (int i = 0; i < 300; ++i) deep = Json::array({std::move(deep)});
  expect_stopped("{{ x }}", Json{{"x", std::move(deep)}});
}

TEST(JinjaBounds, SharedListsDoNotExplode) {
  const std::string build =
      "{% set ns = namespace(x=[1]) %}{% for i in range(90) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}";
  expect_stopped(build + "{{ ns.x }}");
  expect_stopped(build + "{{ ns.x | tojson }}");
  expect_stopped(build +
                 "{% set y = namespace(x=[2]) %}{% for i in range(90) %}{% set y.x = [y.x, y.x] %}{% endfor %}"
                 "{{ ns.x == y.x }}{{ ns.x < y.x }}{{ ns.x | tojson }}");
}

TEST(JinjaBounds, HugeSources) {
  expect_stopped(std::string(2 << 20, 'a'));
  expect_stopped("{{ '" + std::string(1000000, 'a') + " }}");
  expect_stopped("{{ " + std::string(1000000, '9') + " }}");
  expect_stopped("{{ " + std::string(1000000, 'x') + ".y }}");
  expect_stopped("{#" + std::string(1000000, '#'));
  expect_stopped("{% raw %}" + repeat("{% endra %}", 90000));
  EXPECT_EQ(render(std::string(1000000, '{')).substr(0, 6), "error:");
}

TEST(JinjaBounds, ChainsOfReferencesAreFreedWithoutRecursion) {
  on_small_stack([] {
    EXPECT_EQ(
        render(
            "{% set ns = namespace(n=0) %}{% for i in range(50000) %}{% set ns.n = namespace(n=ns.n) %}{% endfor %}x"),
        "x");
    EXPECT_EQ(render("{% set ns = namespace() %}{% for i in range(50000) %}{% set p = ns.m %}{% macro m() %}{{ p }}"
                     "{% endmacro %}{% set ns.m = m %}{% endfor %}x"),
              "x");
    EXPECT_EQ(
        render("{% set ns = namespace() %}{% for i in range(50000) %}{% for j in [1] %}{% set c = loop.changed(ns.l) %}"
               "{% set ns.l = loop %}{% endfor %}{% endfor %}x"),
        "x");
    EXPECT_EQ(render("{% set ns = namespace() %}{% set ns.a = ns %}{% set ns.b = [ns] %}{% macro m() %}{% endmacro %}"
                     "{% set ns.m = m %}{% for i in [1] recursive %}{% set ns.l = loop %}{% endfor %}x"),
              "x");
  });
}

TEST(JinjaBounds, LimitsAreThoseOfTheCall) {
  EXPECT_EQ(render("{{ 'abc' }}", Json(), {.output_bytes_max = 3}), "abc");
  EXPECT_THAT(render("{{ 'abcd' }}", Json(), {.output_bytes_max = 3}), HasSubstr("more than 3 bytes"));
  EXPECT_THAT(render("{{ 1 + 1 }}", Json(), {.operations_max = 3}), HasSubstr("more than 3 operations"));
  EXPECT_THAT(render("{{ [[1]] }}", Json(), {.depth_max = 1}), HasSubstr("deeper than 1 levels"));
  EXPECT_THAT(render("{{ 'abc' * 100 }}", Json(), {.live_bytes_max = 200}), HasSubstr("bytes of memory"));
  EXPECT_EQ(render("{% macro m(n) %}{{ n }}{% if n %}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) | length }}"),
            "112");
}

TEST(JinjaBounds, LongMessagesAreWithinThem) {
  const std::string text(1 << 20, 'x');
  const std::string source =
      "{% for i in range(10) %}{% set t = x | trim | replace('a', 'b') %}{{ t.split('</think>')[-1][0:1] }}"
      "{{ 'q' in t }}{{ t.startswith('x') }}{% endfor %}{{ x | tojson | length }}";
  EXPECT_THAT(render(source, Json{{"x", text}}), HasSubstr("1048578"));
}

}  // namespace
}  // namespace headroom
