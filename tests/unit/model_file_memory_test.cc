// What a model file can make the loader hold, whatever it says. A safetensors header and config.json: twice their size and 16 MiB. What
// becomes a tree, at most as many times its size as its smallest pieces take: of tokenizer.json, an empty string of three bytes is 16 in a
// list, three times that while the list grows, and a block of 48 of the heap: 32 times. Of a template, `{{a}}` is five bytes, and up to 100
// times the whole. GGUF counts the elements of all arrays: 4 Mi of at most 64 bytes each.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "engine/model/config.h"
#include "engine/model/gguf.h"
#include "engine/model/safetensors.h"
#include "engine/model/weights.h"
#include "engine/tokenizer/chat_template.h"
#include "engine/tokenizer/tokenizer.h"
#include "kernels/backend.h"
#include "tests/unit/checkpoint_writer.h"
#include "tests/unit/heap_peak.h"
#include "tests/unit/tiny_llama.h"

namespace headroom {
namespace {

constexpr size_t kAllowance = 16 << 20;
constexpr size_t kTreeFactor = 32;
constexpr size_t kTemplateFactor = 100;

std::string repeated(const std::string& open, const std::function<std::string(size_t)>& piece, const std::string& close, size_t bytes) {
  std::string text = open;
  for (size_t i = 0; text.size() + close.size() < bytes; ++i) text += (i == 0 ? "" : ",") + piece(i);
  return text + close;
}
std::string repeated(const std::string& open, const std::string& piece, const std::string& close, size_t bytes) {
  return repeated(open, [&](size_t) { return piece; }, close, bytes);
}

TEST(SafetensorsMemory, PeakIsBounded) {
  constexpr size_t kHeaderBytes = 24 << 20;
  const std::string empty = R"({"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  const auto name = [](size_t i, const std::string& more) { return "\"" + std::to_string(i) + more + "\":"; };
  const std::string kilobyte(1000, 'n'), long_string(kHeaderBytes, 's');
  const std::string headers[] = {repeated("{", [&](size_t i) { return name(i, "") + empty; }, "}", kHeaderBytes),
                                 repeated("{", [&](size_t i) { return name(i, kilobyte) + empty; }, "}", kHeaderBytes),
                                 repeated("{\"__metadata__\":{", [&](size_t i) { return name(i, kilobyte) + "\"\""; }, "}}", kHeaderBytes),
                                 "{\"" + long_string + "\":1}",
                                 "{\"__metadata__\":{\"a\":\"" + long_string + "\"}}",
                                 "{\"a\":{\"x\":{\"" + long_string + "\":1}}}",
                                 std::string(kHeaderBytes, ' ') + "{}"};
  const TestDirectory dir;
  for (const std::string& header : headers) {
    write_file(dir / "x.safetensors", safetensors_bytes(header, ""));
    const size_t growth = heap_growth([&] { error_of([&] { SafetensorsFile file(dir / "x.safetensors"); }); });
    EXPECT_LE(growth, 2 * header.size() + kAllowance) << header.substr(0, 40);
    EXPECT_GE(growth, header.size()) << "the measure itself does not work";
  }
}

TEST(ConfigMemory, PeakIsBounded) {
  constexpr size_t kBytes = 512 << 10;  // the most that is taken
  const std::string texts[] = {repeated("{\"x\":[", "[]", "]}", kBytes), repeated("{\"eos_token_id\":[", "1", "]}", kBytes),
                               repeated("{", [](size_t i) { return "\"" + std::to_string(i) + "\":0"; }, "}", kBytes),
                               "{\"architectures\":[\"" + std::string(kBytes - 100, 'a') + "\"]}"};
  for (const std::string& text : texts) {
    EXPECT_LE(heap_growth([&] { error_of([&] { ModelConfig::from_json(text); }); }), 2 * text.size() + kAllowance) << text.substr(0, 40);
  }
}

TEST(TokenizerMemory, PeakIsBounded) {
  constexpr size_t kBytes = 4 << 20;
  const std::string vocabulary = "{\"model\":{\"type\":\"BPE\",\"vocab\":{";
  const auto token = [](size_t i) { return "\"" + std::to_string(i) + "\":" + std::to_string(i); };
  const std::string texts[] = {repeated("{\"x\":[", "[]", "]}", kBytes),
                               repeated("{\"x\":[", "\"\"", "]}", kBytes),
                               repeated(vocabulary, token, "},\"merges\":[]}}", kBytes),
                               repeated(vocabulary + "\"a\":0},\"merges\":[", "[\"\",\"\"]", "]}}", kBytes),
                               repeated(vocabulary + "\"a\":0},\"merges\":[]},\"added_tokens\":[",
                                        [](size_t i) { return "{\"id\":" + std::to_string(i + 1) + ",\"content\":\"" + std::to_string(i) + "\"}"; }, "]}",
                                        kBytes)};
  for (const std::string& text : texts) {
    const size_t growth = heap_growth([&] { error_of([&] { Tokenizer::from_json(text); }); });
    EXPECT_LE(growth, kTreeFactor * text.size() + kAllowance) << text.substr(0, 60);
  }
}

// Ids far beyond the number of tokens would make a table that has nothing to do with the size of the file.
TEST(TokenizerMemory, IdsFarBeyondTheVocabularyAreRefused) {
  const auto with_id = [](const std::string& id) {
    return R"({"model":{"type":"BPE","vocab":{"a":)" + id + R"(},"merges":[]},"added_tokens":[{"id":)" + id + R"(,"content":"a"}]})";
  };
  EXPECT_EQ(error_of([&] { Tokenizer::from_json(with_id("65535")); }), "");
  std::string error;
  const size_t growth = heap_growth([&] { error = error_of([&] { Tokenizer::from_json(with_id("2097151")); }); });
  EXPECT_NE(error.find("the id 2097151"), std::string::npos) << error;
  EXPECT_LE(growth, kAllowance);
}

TEST(ChatTemplateMemory, PeakIsBounded) {
  constexpr size_t kBytes = 1 << 20;
  for (const std::string piece : {"{{a}}", "{{-0}}", "{%if a%}{%endif%}", "{{[]}}", "a{#b#}"}) {
    std::string source;
    while (source.size() + piece.size() <= kBytes) source += piece;
    const size_t growth = heap_growth([&] { error_of([&] { ChatTemplate::parse(source); }); });
    EXPECT_LE(growth, kTemplateFactor * source.size()) << piece;
  }
}

TEST(GgufMemory, PeakIsBounded) {
  const auto number = [](uint64_t value, size_t bytes) {
    std::string raw;
    for (size_t i = 0; i < bytes; ++i) raw.push_back(static_cast<char>(value >> (8 * i)));
    return raw;
  };
  const TestDirectory dir;
  // Sixteen keys, each an array of half a million bytes, or of empty strings: nine are one too many.
  constexpr size_t kElements = 1 << 19;
  for (const uint32_t type : {0u, 8u}) {
    const size_t element_bytes = type == 0 ? 1 : 8;
    std::string file = "GGUF" + number(3, 4) + number(0, 8) + number(16, 8);
    for (char key = 'a'; key < 'a' + 16; ++key) {
      file += number(1, 8) + key + number(9, 4) + number(type, 4) + number(kElements, 8);
      file.append(kElements * element_bytes, '\0');
    }
    write_file(dir / "x.gguf", file);
    std::string error;
    const size_t growth = heap_growth([&] { error = error_of([&] { GgufFile gguf(dir / "x.gguf"); }); });
    EXPECT_NE(error.find("\"i\" brings the arrays to over 4194304 elements"), std::string::npos) << error;
    EXPECT_LE(growth, kGgufArrayElementsMax * 64 + kAllowance);
  }
}

// While weights are loaded there is the host's copy beside what the backend has so far: together at most 1.15 times the weights, though
// embedding and output are a quarter of them each.
TEST(LoadingMemory, PeakIsLittleMoreThanTheWeights) {
  TinyLlama shape{.layers = 16, .model_dim = 128, .query_heads = 2, .kv_heads = 2, .head_dim = 64, .ffn_dim = 512, .vocab_size = 16384};
  ModelConfig config = shape.config();
  config.tied_embeddings = false;
  std::vector<TestTensor> tensors;
  const auto add = [&](const std::string& name, int64_t rows, int64_t cols) {
    const int64_t count = rows * std::max<int64_t>(cols, 1);
    std::vector<int64_t> dims = cols == 0 ? std::vector{rows} : std::vector{rows, cols};
    tensors.push_back({.name = name, .type = "BF16", .shape = std::move(dims), .data = std::string(static_cast<size_t>(2 * count), '\x3c')});
  };
  add("model.embed_tokens.weight", shape.vocab_size, shape.model_dim);
  add("lm_head.weight", shape.vocab_size, shape.model_dim);
  add("model.norm.weight", shape.model_dim, 0);
  for (int32_t i = 0; i < shape.layers; ++i) {
    const std::string prefix = "model.layers." + std::to_string(i) + ".";
    for (const char* norm : {"input_layernorm.weight", "post_attention_layernorm.weight"}) add(prefix + norm, shape.model_dim, 0);
    for (const char* part : {"q", "k", "v", "o"}) add(prefix + "self_attn." + part + "_proj.weight", 128, shape.model_dim);
    for (const char* part : {"gate", "up"}) add(prefix + "mlp." + part + "_proj.weight", shape.ffn_dim, shape.model_dim);
    add(prefix + "mlp.down_proj.weight", shape.model_dim, shape.ffn_dim);
  }
  const TestDirectory dir;
  write_file(dir / "model.safetensors", safetensors_bytes(tensors));
  tensors.clear();

  const auto backend = make_cpu_backend({.threads = 2});
  const size_t before = live_bytes;
  size_t most = 0, calls = 0, all = 0;
  peak_bytes = before;
  const auto weights = load_weights(dir.path(), config, *backend, [&](size_t done, size_t total) {
    most = std::max(most, done + peak_bytes - before);  // packed memory is none of the heap's
    peak_bytes = live_bytes.load();
    all = total;
    ++calls;
  });
  EXPECT_EQ(all, size_t{2} * (2 * 16384 * 128 + 16 * (4 * 128 * 128 + 3 * 512 * 128) + 33 * 128));
  EXPECT_EQ(weights->bytes, all + size_t{2} * 33 * 128) << "norms are kept in fp32";
  EXPECT_GE(calls, 16u * 6);
  EXPECT_GT(most, all) << "the measure itself does not work";
  EXPECT_LE(static_cast<double>(most), 1.15 * static_cast<double>(all));
}

}  // namespace
}  // namespace headroom
