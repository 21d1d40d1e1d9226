#include "server/json_writer.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>

namespace headroom {
namespace {

std::string json_string(std::string_view text) {
  std::string out;
  append_json_string(text, &out);
  return out;
}

TEST(JsonWriter, EscapesAsRfc8259Asks) {
  EXPECT_EQ(json_string("a\"b\\c/d"), R"("a\"b\\c/d")");
  EXPECT_EQ(json_string("\b\f\n\r\t"), R"("\b\f\n\r\t")");
  EXPECT_EQ(json_string(std::string_view("\0\x01\x1f\x7f", 4)), "\"\\u0000\\u0001\\u001f\x7f\"");
  EXPECT_EQ(json_string("é€😀"), "\"é€😀\"");
}

TEST(JsonWriter, ReplacesIllFormedUtf8) {
  EXPECT_EQ(json_string("a\xff"), "\"a\uFFFD\"");
  EXPECT_EQ(json_string("\xe2\x82"), "\"\uFFFD\"");                  // cut off
  EXPECT_EQ(json_string("\xed\xa0\x80"), "\"\uFFFD\uFFFD\uFFFD\"");  // a surrogate
  EXPECT_EQ(json_string("\xe2\x82z"), "\"\uFFFDz\"");
}

TEST(JsonWriter, RandomBytesReadBackAsAnotherWriterWritesThem) {
  for (uint32_t seed = 0; seed < 5000; ++seed) {
    std::mt19937 random(seed);
    std::string bytes(random() % 40, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random() % 3 == 0 ? 0xE0 + random() % 32 : random());
    const std::string other = nlohmann::json(bytes).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    ASSERT_EQ(nlohmann::json::parse(json_string(bytes)), nlohmann::json::parse(other)) << "seed " << seed;
  }
}

TEST(JsonWriter, PutsCommasWhereTheyBelong) {
  std::string out;
  JsonWriter json(&out);
  json.begin_object().key("a").integer(-1).key("b").begin_array().string("x").null().begin_object().end_object();
  json.boolean(true).begin_array().end_array().end_array().key("c").number(0.5).key("d").raw("[1]").end_object();
  EXPECT_EQ(out, R"({"a":-1,"b":["x",null,{},true,[]],"c":0.5,"d":[1]})");
}

TEST(JsonWriter, NumbersReadBackEqual) {
  const auto write = [](auto value) {
    std::string out;
    JsonWriter(&out).number(value);
    return out;
  };
  EXPECT_EQ(write(0.1f), "0.1");
  EXPECT_EQ(write(0.1), "0.1");
  EXPECT_EQ(write(std::nan("")), "null");
  EXPECT_EQ(write(std::numeric_limits<double>::infinity()), "null");
  EXPECT_EQ(write(-std::numeric_limits<float>::infinity()), "null");
  std::mt19937_64 random(1);
  for (int i = 0; i < 10000; ++i) {
    const auto value = std::bit_cast<double>(random());
    if (!std::isfinite(value)) continue;
    ASSERT_EQ(nlohmann::json::parse(write(value)).get<double>(), value);
  }
  std::string out;
  JsonWriter(&out).begin_array().integer(INT64_MIN).integer(INT64_MAX).end_array();
  EXPECT_EQ(out, "[-9223372036854775808,9223372036854775807]");
}

}  // namespace
}  // namespace headroom
