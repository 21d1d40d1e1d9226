// The format's rules (https://github.com/huggingface/safetensors#format), each broken once, and sweeps over whole
// files.
#include "engine/model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "engine/model/json_scanner.h"
#include "tests/unit/checkpoint_writer.h"

namespace headroom {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string header_error(std::string_view header, uint64_t data_bytes) {
  return error_of([&] { parse_safetensors_header(header, data_bytes, "file"); });
}

std::string file_error(const std::string& bytes) {
  const TestDirectory dir;
  write_file(dir / "x.safetensors", bytes);
  return error_of([&] { SafetensorsFile file(dir / "x.safetensors"); });
}

TEST(Safetensors, ReadsTensorsAtAnyAlignment) {
  const TestDirectory dir;
  write_file(dir / "x.safetensors", safetensors_bytes({{"odd", "U8", {3}, "abc"},
                                                       {"m", "BF16", {2, 2}, "12345678"},
                                                       {"scalar", "F32", {}, "wxyz"},
                                                       {"none", "F16", {0, 7}, ""}}));
  const SafetensorsFile file(dir / "x.safetensors");
  ASSERT_EQ(file.tensors().size(), 4u);
  const TensorInfo* m = file.find("m");
  ASSERT_NE(m, nullptr);
  EXPECT_EQ(m->description(), "BF16 [2, 2]");
  EXPECT_EQ(m->dtype(), DType::kBF16);
  std::string data(8, '\0');
  file.read(*m, reinterpret_cast<std::byte*>(data.data()));
  EXPECT_EQ(data, "12345678");
  EXPECT_THAT(file.find("scalar")->shape(), ElementsAre());
  EXPECT_EQ(file.find("none")->bytes(), 0u);
  EXPECT_EQ(file.find("odd")->dtype(), std::nullopt);
  EXPECT_EQ(file.find("absent"), nullptr);
}

TEST(Safetensors, AcceptsWhatTheFormatAllows) {
  EXPECT_EQ(header_error("{}", 0), "");
  EXPECT_EQ(header_error(" \n\t{ } \r\n ", 0), "");
  EXPECT_EQ(header_error(R"({"__metadata__":{"format":"pt","a":""}})", 0), "");
  EXPECT_EQ(header_error(R"({"a":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}})", 2), "");
  EXPECT_EQ(
      header_error(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2],"note":[{"x":null},-1.5e+3,true]}})", 2), "");
  EXPECT_EQ(
      header_error(
          R"({"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
          3),
      "");
  EXPECT_EQ(
      parse_safetensors_header(R"({"\u00e9\ud83d\ude00\n":{"dtype":"U8","shape":[],"data_offsets":[0,1]}})", 1, "f")[0]
          .name,
      "\xC3\xA9\xF0\x9F\x98\x80\n");
}

TEST(Safetensors, RefusesBrokenFiles) {
  EXPECT_THAT(file_error(""), HasSubstr("too short"));
  EXPECT_THAT(file_error("1234567"), HasSubstr("too short"));
  EXPECT_THAT(file_error(std::string("\x03\0\0\0\0\0\0\0{}", 10)), HasSubstr("past the end"));
  EXPECT_THAT(file_error(std::string("\x01\xE1\xF5\x05\0\0\0\0", 8)), HasSubstr("100000001 bytes"));
  EXPECT_THAT(file_error(std::string("\x00\xE1\xF5\x05\0\0\0\0", 8)), HasSubstr("past the end"));
  EXPECT_THAT(file_error(std::string(8, '\xFF')), HasSubstr("is this a safetensors file"));
  EXPECT_THAT(file_error(std::string(8, '\0')), HasSubstr("not JSON"));
  EXPECT_THAT(error_of([] { SafetensorsFile("/nonexistent/x"); }), HasSubstr("cannot open: No such file"));
  const TestDirectory dir;
  EXPECT_THAT(error_of([&] { SafetensorsFile(dir.path()); }), HasSubstr("not a regular file"));
}

TEST(Safetensors, RefusesBrokenHeaders) {
  const auto one = [](const std::string& info) { return "{\"a\":" + info + "}"; };
  const std::string good = R"({"dtype":"U8","shape":[2],"data_offsets":[0,2]})";
  EXPECT_EQ(header_error(one(good), 2), "");
  EXPECT_THAT(header_error("", 0), HasSubstr("not JSON"));
  EXPECT_THAT(header_error("[]", 0), HasSubstr("not JSON"));
  EXPECT_THAT(header_error("{}x", 0), HasSubstr("text after the end"));
  EXPECT_THAT(header_error("{\"a\xFF\":1}", 0), HasSubstr("not UTF-8"));
  EXPECT_THAT(header_error("{\"\xED\xA0\x80\":1}", 0), HasSubstr("not UTF-8"));
  EXPECT_THAT(header_error("{\"\xC0\xAF\":1}", 0), HasSubstr("not UTF-8"));
  EXPECT_THAT(header_error(R"({"\ud800":1})", 0), HasSubstr("surrogate"));
  EXPECT_THAT(header_error("{\"a\nb\":1}", 0), HasSubstr("control character"));
  EXPECT_THAT(header_error("{\"a\":" + good + ",}", 2), HasSubstr("not JSON"));
  EXPECT_THAT(header_error("{\"a\":" + good + ",\"a\":" + good + "}", 4), HasSubstr("\"a\" twice"));
  EXPECT_THAT(header_error(R"({"__metadata__":{"a":1}})", 0), HasSubstr("not JSON: expected '\"'"));
  EXPECT_THAT(header_error(R"({"__metadata__":{"a":"","a":""}})", 0), HasSubstr("twice"));
  EXPECT_THAT(header_error(R"({"__metadata__":{},"__metadata__":{}})", 0), HasSubstr("twice"));
  EXPECT_THAT(header_error(one(R"({"dtype":"U8","shape":[2]})"), 2), HasSubstr("lacks"));
  EXPECT_THAT(header_error(one(R"({"dtype":"U8","dtype":"U8","shape":[2],"data_offsets":[0,2]})"), 2),
              HasSubstr("twice"));
  EXPECT_THAT(header_error(one(R"({"dtype":"F7","shape":[2],"data_offsets":[0,2]})"), 2),
              HasSubstr("unknown dtype \"F7\""));
  EXPECT_THAT(header_error(one(R"({"dtype":"U8","shape":[-2],"data_offsets":[0,2]})"), 2), HasSubstr("whole number"));
  EXPECT_THAT(header_error(one(R"({"dtype":"U8","shape":[2.0],"data_offsets":[0,2]})"), 2), HasSubstr("whole number"));
  EXPECT_THAT(header_error(one(R"({"dtype":"U8","shape":[02],"data_offsets":[0,2]})"), 2), HasSubstr("leading 0"));
  EXPECT_THAT(header_error(one(R"({"dtype":"U8","shape":[2],"data_offsets":[0]})"), 2), HasSubstr("fewer than two"));
  EXPECT_THAT(header_error(one(R"({"dtype":"U8","shape":[2],"data_offsets":[0,2,2]})"), 2), HasSubstr("more than two"));
  EXPECT_THAT(header_error(one(R"({"dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,2]})"), 2),
              HasSubstr("64 bits"));
  EXPECT_THAT(header_error(one(R"({"dtype":"U8","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,2]})"), 2),
              HasSubstr("dimensions"));
  EXPECT_THAT(header_error(one("{\"x\":" + std::string(200'000, '[')), 2), HasSubstr("deeper than 64"));
}

TEST(Safetensors, RefusesWrongLayouts) {
  const auto tensors = [](const char* a, const char* b) {
    return std::string("{\"a\":{\"dtype\":\"U8\",") + a + "},\"b\":{\"dtype\":\"F16\"," + b + "}}";
  };
  EXPECT_EQ(header_error(tensors(R"("shape":[2],"data_offsets":[0,2])", R"("shape":[3],"data_offsets":[2,8])"), 8), "");
  EXPECT_THAT(header_error(tensors(R"("shape":[2],"data_offsets":[1,3])", R"("shape":[3],"data_offsets":[3,9])"), 9),
              HasSubstr("begins at 1"));
  EXPECT_THAT(header_error(tensors(R"("shape":[2],"data_offsets":[0,2])", R"("shape":[3],"data_offsets":[3,9])"), 9),
              HasSubstr("begins at 3"));
  EXPECT_THAT(header_error(tensors(R"("shape":[2],"data_offsets":[0,2])", R"("shape":[3],"data_offsets":[1,7])"), 7),
              HasSubstr("begins at 1"));
  EXPECT_THAT(header_error(tensors(R"("shape":[2],"data_offsets":[0,2])", R"("shape":[3],"data_offsets":[2,8])"), 9),
              HasSubstr("9 bytes of data"));
  EXPECT_THAT(header_error(tensors(R"("shape":[2],"data_offsets":[0,2])", R"("shape":[3],"data_offsets":[2,8])"), 7),
              HasSubstr("7 bytes of data"));
  EXPECT_THAT(header_error(tensors(R"("shape":[2],"data_offsets":[0,2])", R"("shape":[4],"data_offsets":[2,8])"), 8),
              HasSubstr("does not fill"));
  EXPECT_THAT(header_error(tensors(R"("shape":[2],"data_offsets":[2,0])", R"("shape":[4],"data_offsets":[2,8])"), 8),
              HasSubstr("does not fill"));
  EXPECT_THAT(
      header_error(
          tensors(R"("shape":[4294967296,4294967296],"data_offsets":[0,0])", R"("shape":[0],"data_offsets":[0,0])"), 0),
      HasSubstr("overflows"));
  EXPECT_THAT(header_error(R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}})", 1), HasSubstr("does not fill"));
}

TEST(Safetensors, AFileThatShrinksIsAnError) {
  const TestDirectory dir;
  const std::string bytes = safetensors_bytes({{"a", "U8", {4}, "abcd"}});
  write_file(dir / "x.safetensors", bytes);
  const SafetensorsFile file(dir / "x.safetensors");
  std::filesystem::resize_file(dir / "x.safetensors", bytes.size() - 1);
  std::byte data[4];
  EXPECT_THAT(error_of([&] { file.read(file.tensors()[0], data); }), HasSubstr("truncated while it was being read"));
}

// What a header declares, or nothing when it was refused.
std::optional<std::vector<TensorInfo>> declared(const TestDirectory& dir, const std::string& bytes) {
  write_file(dir / "x.safetensors", bytes);
  std::optional<std::vector<TensorInfo>> tensors;
  const std::string error = error_of([&] { tensors = SafetensorsFile(dir / "x.safetensors").tensors(); });
  EXPECT_EQ(error.find('\n'), std::string::npos) << error;
  return tensors;
}

const std::vector<TestTensor>& swept_tensors() {
  static const std::vector<TestTensor> tensors = {{"layers.0.weight", "F32", {3, 2}, std::string(24, 'a')},
                                                  {"norm", "BF16", {5}, std::string(10, 'b')},
                                                  {"e", "F16", {2, 2}, std::string(8, 'c')}};
  return tensors;
}

TEST(SafetensorsSweep, CutAtEveryByteIsRefused) {
  const TestDirectory dir;
  const std::string bytes = safetensors_bytes(swept_tensors());
  ASSERT_TRUE(declared(dir, bytes).has_value());
  for (size_t cut = 0; cut < bytes.size(); ++cut)
    EXPECT_FALSE(declared(dir, bytes.substr(0, cut)).has_value()) << "cut at " << cut;
}

// A flipped bit is refused, or leaves the same tensors, except that a name may have become another name.
TEST(SafetensorsSweep, EveryFlippedHeaderBitIsRefusedOrLeavesTheTensors) {
  const TestDirectory dir;
  const std::string bytes = safetensors_bytes(swept_tensors());
  const std::vector<TensorInfo> original = *declared(dir, bytes);
  const size_t header_end = bytes.size() - 42;
  int refused = 0, renamed = 0, same = 0;
  for (size_t bit = 0; bit < header_end * 8; ++bit) {
    std::string flipped = bytes;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    auto tensors = declared(dir, flipped);
    if (!tensors) {
      ++refused;
      continue;
    }
    ASSERT_EQ(tensors->size(), original.size()) << "bit " << bit;
    int names_changed = 0;
    for (TensorInfo& tensor : *tensors) {
      const auto twin = std::ranges::find_if(
          original, [&](const TensorInfo& t) { return t.begin == tensor.begin && t.end == tensor.end; });
      ASSERT_NE(twin, original.end()) << "bit " << bit;
      names_changed += tensor.name != twin->name;
      tensor.name = twin->name;
      EXPECT_EQ(tensor, *twin) << "bit " << bit;
    }
    EXPECT_LE(names_changed, 1) << "bit " << bit;
    ++(names_changed == 1 ? renamed : same);
  }
  EXPECT_GT(refused, 1000);
  EXPECT_LE(renamed, 8 * 20);  // only bits of the 20 characters of the names
}

TEST(SafetensorsSweep, EveryLengthIsRefusedButTheRightOne) {
  const TestDirectory dir;
  const std::string bytes = safetensors_bytes(swept_tensors());
  const uint64_t right = bytes.size() - 8 - 42;
  const auto with_length = [&](uint64_t length) {
    std::string changed = bytes;
    for (size_t i = 0; i < 8; ++i) changed[i] = static_cast<char>(length >> (8 * i) & 0xFF);
    return declared(dir, changed).has_value();
  };
  for (uint64_t length = 0; length < bytes.size() + 64; ++length)
    EXPECT_EQ(with_length(length), length == right) << length;
  std::mt19937_64 random(1);
  for (int i = 0; i < 2000; ++i) EXPECT_FALSE(with_length(random() >> (random() % 64) | uint64_t{1} << 32));
}

TEST(SafetensorsSweep, RandomEditsNeverCrash) {
  const TestDirectory dir;
  const std::string bytes = safetensors_bytes(swept_tensors());
  const std::string header = bytes.substr(8, bytes.size() - 8 - 42);
  std::mt19937_64 random(2);
  for (int i = 0; i < 20'000; ++i) {
    std::string edited = header;
    for (uint64_t edits = random() % 4; edits-- > 0;) {
      const size_t at = random() % (edited.size() + 1);
      const std::string piece = header.substr(random() % header.size(), random() % 12);
      switch (random() % 3) {
        case 0:
          edited.insert(at, piece);
          break;
        case 1:
          edited.erase(at, random() % 12);
          break;
        default:
          edited.replace(at, piece.size(), piece);
          break;
      }
    }
    const std::string error = header_error(edited, 42);
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
  }
}

TEST(CheckpointShards, ReadsTensorsFromTheirShards) {
  const TestDirectory dir;
  write_file(dir / "one.safetensors", safetensors_bytes({{"a", "U8", {2}, "aa"}}));
  write_file(dir / "two.safetensors", safetensors_bytes({{"b", "U8", {2}, "bb"}, {"c", "U8", {2}, "cc"}}));
  write_file(
      dir / "model.safetensors.index.json",
      R"({"metadata":{"total_size":6},"weight_map":{"a":"one.safetensors","b":"two.safetensors","c":"two.safetensors"}})");
  const Checkpoint checkpoint(dir.path());
  ASSERT_EQ(checkpoint.tensors().size(), 3u);
  std::string data(2, '\0');
  checkpoint.find("c")->read(reinterpret_cast<std::byte*>(data.data()));
  EXPECT_EQ(data, "cc");
  EXPECT_EQ(checkpoint.find("d"), nullptr);
}

TEST(CheckpointShards, RefusesBrokenIndexes) {
  const TestDirectory dir;
  EXPECT_THAT(error_of([&] { Checkpoint checkpoint(dir.path()); }), HasSubstr("no model.safetensors"));
  write_file(dir / "one.safetensors", safetensors_bytes({{"a", "U8", {2}, "aa"}}));
  write_file(dir / "two.safetensors", safetensors_bytes({{"a", "U8", {2}, "aa"}, {"b", "U8", {2}, "bb"}}));
  const auto index_error = [&](const std::string& index) {
    write_file(dir / "model.safetensors.index.json", index);
    return error_of([&] { Checkpoint checkpoint(dir.path()); });
  };
  for (const char* shard :
       {"../one.safetensors", "/etc/passwd", "sub/one.safetensors", "..", ".", "", "a\\\\b", "a\\u0000b"}) {
    EXPECT_THAT(index_error(std::string(R"({"weight_map":{"a":")") + shard + "\"}}"),
                HasSubstr("not a plain file name"))
        << shard;
  }
  EXPECT_EQ(index_error(R"({"weight_map":{"a":"one.safetensors"}})"), "");
  EXPECT_THAT(index_error(R"({"weight_map":{"a":"three.safetensors"}})"), HasSubstr("three.safetensors: cannot open"));
  EXPECT_THAT(index_error(R"({"weight_map":{"b":"one.safetensors"}})"), HasSubstr("\"b\" is not in one.safetensors"));
  EXPECT_THAT(index_error(R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})"),
              HasSubstr("\"a\" is in one.safetensors too"));
  EXPECT_THAT(index_error(R"({"weight_map":{"a":"one.safetensors","a":"one.safetensors"}})"), HasSubstr("twice"));
  EXPECT_THAT(index_error(R"({"weight_map":{"a":1}})"), HasSubstr("not JSON"));
  EXPECT_THAT(index_error(R"({"weight_map":{},"weight_map":{}})"), HasSubstr("weight_map twice"));
  EXPECT_THAT(index_error(R"({})"), HasSubstr("no weight_map"));
  EXPECT_THAT(index_error(std::string(200'000, '[')), HasSubstr("not JSON"));
  EXPECT_THAT(index_error("{\"metadata\":" + std::string(200'000, '[')), HasSubstr("deeper than 64"));
}

TEST(JsonScanner, Utf8Prefix) {
  EXPECT_EQ(valid_utf8_prefix("a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80"), 10u);
  EXPECT_EQ(valid_utf8_prefix("\xF4\x8F\xBF\xBF"), 4u);
  for (const char* broken : {"\x80", "\xC1\x81", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80",
                             "\xF8\x88\x80\x80", "\xE2\x82", "\xC3"}) {
    EXPECT_EQ(valid_utf8_prefix(std::string("ok") + broken), 2u);
  }
}

}  // namespace
}  // namespace headroom
