// The format's rules (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), each broken once, and sweeps over whole files.
#include "engine/model/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>

#include "engine/model/gguf_model.h"
#include "engine/model/weights.h"
#include "engine/tokenizer/gguf_vocabulary.h"
#include "tests/unit/checkpoint_writer.h"

namespace headroom {
namespace {

using ::testing::HasSubstr;

template <class T>
std::string raw(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}
std::string text(const std::string& value) { return raw<uint64_t>(value.size()) + value; }
std::string key_u32(const std::string& key, uint32_t value) { return text(key) + raw<uint32_t>(4) + raw(value); }

struct Tensor {
  std::string name;
  std::vector<uint64_t> dims;  // the fastest first, as the file has them
  uint32_t type = 0;
  uint64_t offset = 0;
};

// A file by its parts, so that each can be wrong.
struct Parts {
  uint32_t version = 3;
  std::vector<std::string> keys = {key_u32("a.b", 7)};
  std::vector<Tensor> tensors = {{"m", {4, 2}, 0, 0}, {"q", {32}, 8, 32}};
  std::string data = std::string(32, 'x') + std::string(34, 'y');
  uint64_t alignment = 32;

  std::string bytes() const {
    std::string file = "GGUF" + raw(version) + raw<uint64_t>(tensors.size()) + raw<uint64_t>(keys.size());
    for (const std::string& key : keys) file += key;
    for (const Tensor& tensor : tensors) {
      file += text(tensor.name) + raw<uint32_t>(static_cast<uint32_t>(tensor.dims.size()));
      for (const uint64_t dim : tensor.dims) file += raw(dim);
      file += raw(tensor.type) + raw(tensor.offset);
    }
    file.resize((file.size() + alignment - 1) / alignment * alignment);
    return file + data;
  }
};

std::string file_error(const std::string& bytes) {
  const TestDirectory dir;
  write_file(dir / "x.gguf", bytes);
  return error_of([&] { GgufFile file(dir / "x.gguf"); });
}
template <class Change>
std::string error_after(const Change& change) {
  Parts parts;
  change(parts);
  return file_error(parts.bytes());
}

TEST(Gguf, ReadsKeysOfEveryTypeAndTensors) {
  const TestDirectory dir;
  Parts parts;
  parts.version = 2;
  parts.keys = {text("u8") + raw<uint32_t>(0) + raw<uint8_t>(200),
                text("i8") + raw<uint32_t>(1) + raw<int8_t>(-3),
                text("u16") + raw<uint32_t>(2) + raw<uint16_t>(65000),
                text("i16") + raw<uint32_t>(3) + raw<int16_t>(-300),
                text("i32") + raw<uint32_t>(5) + raw<int32_t>(-70000),
                text("f32") + raw<uint32_t>(6) + raw(0.5f),
                text("yes") + raw<uint32_t>(7) + raw<uint8_t>(1),
                text("s") + raw<uint32_t>(8) + text("words"),
                text("list") + raw<uint32_t>(9) + raw<uint32_t>(8) + raw<uint64_t>(2) + text("a") + text(""),
                text("u64") + raw<uint32_t>(10) + raw<uint64_t>(1ull << 63),
                text("i64") + raw<uint32_t>(11) + raw<int64_t>(-(1ll << 40)),
                text("f64") + raw<uint32_t>(12) + raw(0.25)};
  write_file(dir / "x.gguf", parts.bytes());
  const GgufFile file(dir / "x.gguf");
  EXPECT_EQ(file.metadata(), nlohmann::json::parse(R"({"u8":200,"i8":-3,"u16":65000,"i16":-300,"i32":-70000,"f32":0.5,"yes":true,
      "s":"words","list":["a",""],"u64":9223372036854775808,"i64":-1099511627776,"f64":0.25})"));
  ASSERT_EQ(file.tensors().size(), 2u);
  EXPECT_EQ(file.find("m")->description(), "F32 [2, 4]");
  EXPECT_EQ(file.find("q")->description(), "Q8_0 [32]");
  EXPECT_EQ(file.find("absent"), nullptr);
  std::string data(34, '\0');
  file.read(*file.find("q"), reinterpret_cast<std::byte*>(data.data()));
  EXPECT_EQ(data, std::string(34, 'y'));
}

TEST(Gguf, AcceptsAnAlignmentOfItsOwnAndPaddingBehindTheLast) {
  EXPECT_EQ(file_error(Parts().bytes()), "");
  EXPECT_EQ(error_after([](Parts& p) { p.data.resize(96); }), "");
  EXPECT_EQ(error_after([](Parts& p) {
              p.alignment = 64;
              p.keys.push_back(key_u32("general.alignment", 64));
              p.tensors[1].offset = 64;
              p.data = std::string(98, 'z');
            }),
            "");
}

TEST(Gguf, RefusesBrokenHeaders) {
  EXPECT_THAT(file_error(""), HasSubstr("x.gguf: not a GGUF file"));
  EXPECT_THAT(file_error("GGML" + Parts().bytes().substr(4)), HasSubstr("not a GGUF file"));
  EXPECT_THAT(error_after([](Parts& p) { p.version = 1; }), HasSubstr("GGUF version 1 is not supported"));
  EXPECT_THAT(error_after([](Parts& p) { p.version = 3u << 24; }), HasSubstr("little endian"));
  EXPECT_THAT(error_after([](Parts& p) { p.keys.push_back(p.keys[0]); }), HasSubstr("the key \"a.b\" twice"));
  EXPECT_THAT(error_after([](Parts& p) { p.keys[0] = text("k") + raw<uint32_t>(13) + raw<uint64_t>(0); }), HasSubstr("unknown type (13)"));
  EXPECT_THAT(error_after([](Parts& p) { p.keys[0] = text("k") + raw<uint32_t>(7) + raw<uint8_t>(2); }), HasSubstr("neither true nor false"));
  EXPECT_THAT(error_after([](Parts& p) { p.keys[0] = text("k") + raw<uint32_t>(9) + raw<uint32_t>(9) + raw<uint64_t>(0); }), HasSubstr("array of arrays"));
  EXPECT_THAT(error_after([](Parts& p) { p.keys[0] = text("k") + raw<uint32_t>(9) + raw<uint32_t>(4) + raw<uint64_t>(1ull << 60); }), HasSubstr("elements"));
  EXPECT_THAT(error_after([](Parts& p) { p.keys[0] = text("k") + raw<uint32_t>(9) + raw<uint32_t>(4) + raw<uint64_t>(1 << 20); }), HasSubstr("past the end"));
  EXPECT_THAT(error_after([](Parts& p) { p.keys[0] = text("k") + raw<uint32_t>(8) + raw<uint64_t>(~0ull); }), HasSubstr("a string of over"));
  EXPECT_THAT(error_after([](Parts& p) { p.keys[0] = raw<uint64_t>(1 << 20); }), HasSubstr("a key of over"));
  EXPECT_THAT(error_after([](Parts& p) { p.keys.push_back(key_u32("split.count", 2)); }), HasSubstr("one of several parts"));
  for (const uint32_t alignment : {0u, 3u, 48u, 1u << 21}) {
    EXPECT_THAT(error_after([&](Parts& p) { p.keys.push_back(key_u32("general.alignment", alignment)); }), HasSubstr("power of two"));
  }
}

TEST(Gguf, RefusesBrokenTensors) {
  EXPECT_THAT(error_after([](Parts& p) { p.tensors[0].type = 10; }), HasSubstr("\"m\" has type Q2_K, which is not supported; supported: F32, F16, BF16, Q8_0"));
  EXPECT_THAT(error_after([](Parts& p) { p.tensors[0].type = 4000; }), HasSubstr("has type number 4000"));
  EXPECT_THAT(error_after([](Parts& p) { p.tensors[0].dims = {}; }), HasSubstr("\"m\" has 0 dimensions"));
  EXPECT_THAT(error_after([](Parts& p) { p.tensors[0].dims = {1, 1, 1, 4, 2}; }), HasSubstr("has 5 dimensions"));
  EXPECT_THAT(error_after([](Parts& p) { p.tensors[0].dims = {8, 0}; }), HasSubstr("a dimension of 0"));
  EXPECT_THAT(error_after([](Parts& p) { p.tensors[0].dims = {1ull << 40, 1ull << 40}; }), HasSubstr("overflows 64 bits"));
  EXPECT_THAT(error_after([](Parts& p) { p.tensors[0].dims = {1ull << 63, 1}; }), HasSubstr("a dimension of"));
  EXPECT_THAT(error_after([](Parts& p) { p.tensors[1].dims = {16}; }), HasSubstr("whole blocks of 32"));
  EXPECT_THAT(error_after([](Parts& p) { p.tensors[1].offset = 33; }), HasSubstr("not aligned to 32"));
  EXPECT_THAT(error_after([](Parts& p) { p.tensors[1].offset = 64; }), HasSubstr("past the end of the file"));
  EXPECT_THAT(error_after([](Parts& p) { p.tensors[1].offset = 0; }), HasSubstr("but the data before it ends at"));
  EXPECT_THAT(error_after([](Parts& p) { p.tensors[0].dims = {4, 1}; p.tensors[0].offset = 0; p.data += std::string(32, 'z'); p.tensors[1].offset = 64; }),
              HasSubstr("\"q\" begins at 64, but the data before it ends at 16"));
  EXPECT_THAT(error_after([](Parts& p) { p.tensors[1].offset = ~0ull - 31; }), HasSubstr("overflows 64 bits"));
  EXPECT_THAT(error_after([](Parts& p) { p.tensors[1].name = "m"; }), HasSubstr("tensor \"m\" twice"));
  EXPECT_THAT(error_after([](Parts& p) { p.data += std::string(40, 'z'); }), HasSubstr("the file holds 106 bytes of data"));
}

// SentencePiece's merges are made from scores and pieces: an order needs numbers, and the work is the square of a piece's length.
TEST(GgufVocabulary, RefusesScoresWithoutOrderAndPiecesWithoutEnd) {
  const auto error_with = [](double score, size_t bytes) {
    const nlohmann::json metadata = {{"tokenizer.ggml.model", "llama"},
                                     {"tokenizer.ggml.tokens", {"<unk>", "a", "b", std::string(bytes, 'a')}},
                                     {"tokenizer.ggml.scores", {0.0, -1.0, score, -3.0}},
                                     {"tokenizer.ggml.token_type", {2, 1, 1, 1}},
                                     {"tokenizer.ggml.add_bos_token", false}};
    return error_of([&] { read_gguf_vocabulary(metadata, "x.gguf"); });
  };
  EXPECT_EQ(error_with(-2, 256), "");
  EXPECT_THAT(error_with(-2, 257), HasSubstr("x.gguf: tokenizer.ggml.tokens has one of over 256 bytes"));
  for (const double score : {std::nan(""), HUGE_VAL}) EXPECT_THAT(error_with(score, 2), HasSubstr("finite"));
}

// ---- Sweeps over a whole model: whatever happens, it is refused by an exception or has tensors that can be read.

const std::filesystem::path kModel = std::filesystem::path(HEADROOM_SOURCE_DIR) / "tests/golden/gguf/llama_bf16.gguf";

std::string read_bytes(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Where the tensors' data begin: the file's size less what they take, each padded to 32 bytes.
size_t header_bytes(const std::string& bytes) {
  const GgufFile file(kModel);
  size_t data = 0;
  for (const TensorInfo& tensor : file.tensors()) data += (tensor.bytes() + 31) / 32 * 32;
  return bytes.size() - data;
}

enum class Outcome { kRefused, kLoaded };
Outcome load(const std::filesystem::path& path, Backend& backend) {
  const std::string error = error_of([&] {
    const GgufFile file(path);
    const ModelConfig config = config_of_gguf(file);
    load_weights(*tensors_of_gguf(file, config), config, backend);
  });
  EXPECT_EQ(error.find('\n'), std::string::npos) << error;
  return error.empty() ? Outcome::kLoaded : Outcome::kRefused;
}

TEST(GgufSweep, CutAnywhereIsRefused) {
  const TestDirectory dir;
  const std::string bytes = read_bytes(kModel);
  const size_t header = header_bytes(bytes);
  const auto backend = make_cpu_backend({.threads = 1});
  write_file(dir / "x.gguf", bytes);
  ASSERT_EQ(load(dir / "x.gguf", *backend), Outcome::kLoaded);
  for (size_t cut = 0; cut < bytes.size() - 32; cut += cut < header + 64 ? 1 : 997) {
    write_file(dir / "x.gguf", std::string_view(bytes).substr(0, cut));
    ASSERT_EQ(load(dir / "x.gguf", *backend), Outcome::kRefused) << "cut at " << cut;
  }
}

TEST(GgufSweep, FlippedHeaderBitsAreRefusedOrLeaveAModel) {
  const TestDirectory dir;
  const std::string bytes = read_bytes(kModel);
  const size_t header = header_bytes(bytes);
  const auto backend = make_cpu_backend({.threads = 1});
  int refused = 0, loaded = 0;
  for (size_t bit = 0; bit < header * 8; ++bit) {
    std::string flipped = bytes;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    write_file(dir / "x.gguf", flipped);
    ++(load(dir / "x.gguf", *backend) == Outcome::kRefused ? refused : loaded);
  }
  EXPECT_GT(refused, loaded);
  EXPECT_GT(loaded, 100);  // the names of keys that nothing asks for, epsilon, theta
}

TEST(GgufSweep, RandomEditsOfAVocabularyNeverCrash) {
  const TestDirectory dir;
  const std::string bytes = read_bytes(kModel.parent_path() / "gpt2.vocabulary.gguf");
  std::mt19937_64 random(3);
  int read = 0;
  for (int i = 0; i < 3000; ++i) {
    std::string edited = bytes;
    for (uint64_t edits = 1 + random() % 3; edits-- > 0;) {
      edited[random() % edited.size()] = static_cast<char>(random());
    }
    write_file(dir / "x.gguf", edited);
    const std::string error = error_of([&] {
      const GgufFile file(dir / "x.gguf");
      const GgufVocabulary vocabulary = read_gguf_vocabulary(file.metadata(), "x.gguf");
      vocabulary.tokenizer.encode("Some text, 123.", true);
      ++read;
    });
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
  }
  EXPECT_GT(read, 10);
}

}  // namespace
}  // namespace headroom
