#include "server/json_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ctime>
#include <random>

namespace headroom {
namespace {

using ::testing::HasSubstr;

std::string message_of(const std::variant<Json, ApiError>& result) {
  const auto* error = std::get_if<ApiError>(&result);
  return error == nullptr ? "" : error->message;
}

TEST(JsonReader, ReadsWhatAnotherReaderReads) {
  for (const std::string text :
       {R"({"a":[1,-2,3.5,true,false,null,"x"],"b":{"c":{}},"a b":[]})", "3", "\"\\u20ac\\ud83d\\ude00\"", "[[[]]]",
        " {\"z\":1,\"a\":2} ", "-0", "1e3", "9223372036854775807", "18446744073709551615"}) {
    const auto result = read_json(text);
    ASSERT_TRUE(std::holds_alternative<Json>(result)) << text;
    EXPECT_EQ(std::get<Json>(result), Json::parse(text));
    EXPECT_EQ(std::get<Json>(result).dump(), Json::parse(text).dump());  // the order of keys too
  }
}

TEST(JsonReader, RefusesWhatIsNoJson) {
  for (const std::string& text : std::initializer_list<std::string>{"",
                                 " ",
                                 "{",
                                 "[1,]",
                                 "{\"a\":1,}",
                                 "{'a':1}",
                                 "nul",
                                 "NaN",
                                 "Infinity",
                                 "-Infinity",
                                 "+1",
                                 "01",
                                 "1.",
                                 ".5",
                                 "0x10",
                                 "[1] 2",
                                 "{\"a\" 1}",
                                 "\"a",
                                 "\"\n\"",
                                 "\"\\x41\"",
                                 "// c\n1",
                                 "\"\\ud800\"",
                                 "\"\\udc00\"",
                                 "\"\\ud800\\u0041\"",
                                 "\"\xff\"",
                                 "\"\xc0\x80\"",
                                 "\"\xed\xa0\x80\"",
                                 "\"\xf4\x90\x80\x80\"",
                                 "\"\xe2\x82\"",
                                 "1e400",
                                 "-1e400",
                                 std::string("\0", 1),
                                 std::string("{}\0", 3),
                                 std::string("{}\0{\"a\":1}", 10),
                                 std::string("{\"a\":1\0}", 8)}) {
    const auto result = read_json(text);
    ASSERT_TRUE(std::holds_alternative<ApiError>(result)) << text;
    const ApiError& error = std::get<ApiError>(result);
    EXPECT_EQ(error.status, 400);
    EXPECT_THAT(error.message, HasSubstr(text.empty() ? "the body is empty" : "not valid JSON in UTF-8: it breaks at byte"));
    EXPECT_THAT(error.message, Not(HasSubstr("json.exception")));
  }
}

TEST(JsonReader, BoundsTheDepth) {
  const auto nested = [](size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_EQ(message_of(read_json(nested(64))), "");
  EXPECT_THAT(message_of(read_json(nested(65))), HasSubstr("deeper than 64"));
  std::string objects;
  for (int i = 0; i < 65; ++i) objects += "{\"a\":";
  EXPECT_THAT(message_of(read_json(objects)), HasSubstr("deeper than 64"));
}

// 50 ms for each MiB at most, of the processor's time: other tests run beside this one.
TEST(JsonReader, AnswersHostileNestingAtOnce) {
  const std::string hostile(200'000, '[');
  const std::clock_t begin = std::clock();
  EXPECT_THAT(message_of(read_json(hostile)), HasSubstr("deeper than 64"));
  EXPECT_LT(static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC, 0.01);
}

TEST(JsonReader, BoundsTheValues) {
  EXPECT_EQ(message_of(read_json("[1,2,3]", {.values_max = 4})), "");
  EXPECT_THAT(message_of(read_json("[1,2,3]", {.values_max = 3})), HasSubstr("more than 3 JSON values"));
  EXPECT_THAT(message_of(read_json("{\"a\":{},\"b\":[]}", {.values_max = 2})), HasSubstr("more than 2 JSON values"));
}

TEST(JsonReader, BoundsTheMembersOfAnObject) {
  EXPECT_EQ(message_of(read_json("[{\"a\":1,\"b\":2},{\"a\":1}]", {.members_max = 2})), "");
  EXPECT_THAT(message_of(read_json("{\"a\":1,\"b\":2,\"c\":3}", {.members_max = 2})), HasSubstr("more than 2 members"));
}

TEST(JsonReader, RefusesAKeyThatStandsTwice) {
  EXPECT_THAT(message_of(read_json(R"({"a":1,"b":2,"a":1})")), HasSubstr("same key twice"));
  EXPECT_THAT(message_of(read_json(R"([{"x":{"a":1,"\u0061":2}}])")), HasSubstr("same key twice"));
  EXPECT_EQ(message_of(read_json(R"([{"a":1},{"a":{"a":2}}])")), "");
}

TEST(JsonReader, RandomDamageIsReadAsAnotherReaderReadsItOrRefused) {
  const std::string sound =
      R"({"model":"m","prompt":[[1,2],[3]],"stop":["a\n","\u20ac"],"n":2,"top_p":0.5,"x":{"y":[null,true]}})";
  int refused = 0;
  for (uint32_t seed = 0; seed < 20000; ++seed) {
    std::mt19937 random(seed);
    std::string text = sound;
    for (uint32_t i = 1 + random() % 4; i > 0; --i) {
      const size_t at = random() % text.size();
      switch (random() % 3) {
        case 0:
          text[at] = static_cast<char>(random());
          break;
        case 1:
          text.erase(at, 1 + random() % 3);
          break;
        default:
          text.insert(at, 1, "{}[]\",:\\0"[random() % 9]);
      }
    }
    const auto result = read_json(text);
    const Json other = Json::parse(text, nullptr, false);
    if (const Json* json = std::get_if<Json>(&result)) {
      ASSERT_EQ(*json, other) << "seed " << seed << ": " << text;
    } else {
      ++refused;
      const bool by_our_rule = message_of(result).find("same key twice") != std::string::npos;
      ASSERT_TRUE(other.is_discarded() || by_our_rule) << "seed " << seed << ": " << text;
    }
  }
  EXPECT_GT(refused, 1000);
}

TEST(JsonReader, ExactIntegers) {
  const auto read = [](const std::string& text) { return exact_integer(Json::parse(text)); };
  EXPECT_EQ(read("0"), 0);
  EXPECT_EQ(read("-1"), -1);
  EXPECT_EQ(read("4294967297"), 4294967297);
  EXPECT_EQ(read("9223372036854775807"), INT64_MAX);
  EXPECT_EQ(read("-9223372036854775808"), INT64_MIN);
  EXPECT_EQ(read("3.0"), 3);
  EXPECT_EQ(read("1e3"), 1000);
  for (const char* text : {"9223372036854775808", "18446744073709551615", "1e20", "-1e20", "9.3e18", "-9223372036854775809", "9007199254740993.0", "1.5", "1e-3",
                           "true", "null", "\"3\"", "[3]", "{}"}) {
    EXPECT_EQ(read(text), std::nullopt) << text;
  }
}

struct Target {
  int32_t number = 7;
  std::optional<int64_t> maybe;
  bool flag = true;
  float real = 0.25f;
  std::string text = "unset";
};

// Reads the fields of Target out of `json`; the error's message, or nothing.
std::string read_target(const std::string& text, Target* target) {
  const Json json = Json::parse(text);
  FieldReader fields(json, "outer.");
  fields.integer("number", -5, 10, &target->number);
  fields.integer("maybe", INT64_MIN, INT64_MAX, &target->maybe);
  fields.boolean("flag", &target->flag);
  fields.real("real", {.min = 0, .max = 1, .min_excluded = true}, &target->real);
  fields.string("text", 3, &target->text);
  return fields.error() ? fields.error()->param + ": " + fields.error()->message : "";
}

TEST(FieldReader, AbsentAndNullLeaveTheDefault) {
  for (const char* text : {"{}", R"({"number":null,"maybe":null,"flag":null,"real":null,"text":null})"}) {
    Target target;
    EXPECT_EQ(read_target(text, &target), "");
    EXPECT_EQ(target.number, 7);
    EXPECT_EQ(target.maybe, std::nullopt);
    EXPECT_TRUE(target.flag);
    EXPECT_EQ(target.real, 0.25f);
    EXPECT_EQ(target.text, "unset");
  }
}

TEST(FieldReader, ReadsWhatIsInRange) {
  Target target;
  EXPECT_EQ(read_target(R"({"number":-5,"maybe":-9223372036854775808,"flag":false,"real":1,"text":"abc"})", &target),
            "");
  EXPECT_EQ(target.number, -5);
  EXPECT_EQ(target.maybe, INT64_MIN);
  EXPECT_FALSE(target.flag);
  EXPECT_EQ(target.real, 1.0f);
  EXPECT_EQ(target.text, "abc");
}

TEST(FieldReader, NamesTheFieldAndItsRange) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"number":11})", "outer.number: outer.number must be an integer from -5 to 10"},
      {R"({"number":-6})", "outer.number: outer.number must be an integer from -5 to 10"},
      {R"({"number":4294967297})", "outer.number: outer.number must be an integer from -5 to 10"},
      {R"({"number":true})", "outer.number: outer.number must be an integer from -5 to 10"},
      {R"({"number":"3"})", "outer.number: outer.number must be an integer from -5 to 10"},
      {R"({"flag":1})", "outer.flag: outer.flag must be true or false"},
      {R"({"real":0})", "outer.real: outer.real must be a number in (0, 1]"},
      {R"({"real":1e-60})", "outer.real: outer.real must be a number in (0, 1]"},  // 0 once it is a float
      {R"({"real":1.001})", "outer.real: outer.real must be a number in (0, 1]"},
      {R"({"real":"0.5"})", "outer.real: outer.real must be a number in (0, 1]"},
      {R"({"text":"abcd"})", "outer.text: outer.text must have at most 3 bytes"},
      {R"({"text":3})", "outer.text: outer.text must be a string"},
      {R"({"text":3,"number":11})", "outer.number: outer.number must be an integer from -5 to 10"},  // the first read
  };
  for (const auto& [text, expected] : cases) {
    Target target;
    EXPECT_EQ(read_target(text, &target), expected) << text;
    EXPECT_EQ(target.number, 7) << text;
  }
}

}  // namespace
}  // namespace headroom
