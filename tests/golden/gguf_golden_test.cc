// GGUF files written by the format's own package (gguf/, made by make_gguf_goldens.py): a model gives the logits of the same
// weights in safetensors, or of the values that the package reads in its blocks, to the bit; a vocabulary gives the ids of
// the reference.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>

#include "engine/kv/kv_cache.h"
#include "engine/model/block_type.h"
#include "engine/model/gguf_model.h"
#include "engine/model/transformer.h"
#include "engine/tokenizer/gguf_vocabulary.h"
#include "kernels/quantize.h"

namespace headroom {
namespace {

using ::testing::HasSubstr;

const std::filesystem::path kGoldens = std::filesystem::path(HEADROOM_SOURCE_DIR) / "tests/golden";

std::vector<float> logits_of(const ModelConfig& config, std::shared_ptr<const ModelWeights> weights, Backend& backend) {
  constexpr int32_t kTokens = 90;
  std::vector<int32_t> tokens(kTokens), positions(kTokens), pages(kTokens / 16 + 1);
  std::mt19937_64 random(5);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % static_cast<uint64_t>(config.vocab_size));
  std::iota(positions.begin(), positions.end(), 0);
  std::iota(pages.begin(), pages.end(), 0);
  const int32_t first_row[] = {0, kTokens}, table_begin[] = {0, static_cast<int32_t>(pages.size())};
  const KvCache cache(kv_shape(config, DType::kF32, 16), static_cast<int64_t>(pages.size()), backend);
  Transformer transformer(config, std::move(weights), backend,
                          {.step_tokens_max = kTokens, .logits_rows_max = kTokens, .served_context_tokens = config.context_tokens});
  transformer.forward({kTokens, tokens, positions, first_row, pages, table_begin}, cache.layers());
  const Matrix logits = transformer.logits(positions);
  return {logits.data, logits.data + logits.rows * logits.cols};
}

std::vector<float> logits_of_gguf(const std::string& name, const ModelConfig* config = nullptr, const WeightTypes& types = {}) {
  const GgufFile file(kGoldens / "gguf" / (name + ".gguf"));
  const ModelConfig own = config_of_gguf(file);
  const auto backend = make_cpu_backend({.threads = 1});
  return logits_of(config != nullptr ? *config : own, load_weights(*tensors_of_gguf(file, own), own, *backend, {}, types), *backend);
}

std::vector<float> logits_of_safetensors(const std::string& name) {
  const ModelConfig config = ModelConfig::load(kGoldens / "models" / name);
  const auto backend = make_cpu_backend({.threads = 1});
  return logits_of(config, load_weights(kGoldens / "models" / name, config, *backend), *backend);
}

float largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  float largest = 0.0f;
  EXPECT_EQ(a.size(), b.size());
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const float difference = std::abs(a[i] - b[i]);
    if (!(difference <= largest)) largest = difference;
  }
  return largest;
}

class GgufModel : public ::testing::TestWithParam<const char*> {};

TEST_P(GgufModel, GivesTheLogitsOfTheSameWeightsInSafetensors) {
  EXPECT_EQ(largest_difference(logits_of_gguf(GetParam()), logits_of_safetensors(GetParam())), 0.0f);
}
INSTANTIATE_TEST_SUITE_P(Families, GgufModel,
                         ::testing::Values("llama3_gqa", "llama_bf16", "llama_linear_biases", "smollm2_group3", "mistral_window",
                                           "qwen2_group7", "qwen2_yarn", "qwen3_fp16", "phi3_window"),
                         [](const auto& test) { return std::string(test.param); });

// Angles come from divisors that were rounded to fp32, or with a factor that was: the last bits of the logits differ.
TEST(GgufModelFile, StoredRopeFactorsAreWithinTheirRounding) {
  for (const char* name : {"llama31_rope", "phi3_longrope_partial"}) {
    EXPECT_LT(largest_difference(logits_of_gguf(name), logits_of_safetensors(name)), 1e-4f) << name;
  }
}

// The format has no list of layers without RoPE, but the interval of the published model; this checkpoint has a list of its own.
TEST(GgufModelFile, SmolLm3IsPermutedAsLlamaIs) {
  const ModelConfig published = config_of_gguf(GgufFile(kGoldens / "gguf/smollm3_nope.gguf"));
  EXPECT_EQ(published.layer_has_rope, (std::vector<bool>{true, true, true}));
  ModelConfig config = published;
  config.layer_has_rope = ModelConfig::load(kGoldens / "models/smollm3_nope").layer_has_rope;
  EXPECT_EQ(largest_difference(logits_of_gguf("smollm3_nope", &config), logits_of_safetensors("smollm3_nope")), 0.0f);
}

TEST(GgufModelFile, ConfigIsThatOfTheCheckpoint) {
  for (const char* name : {"llama3_gqa", "mistral_window", "qwen2_group7", "qwen3_fp16", "phi3_longrope_partial"}) {
    const ModelConfig gguf = config_of_gguf(GgufFile(kGoldens / "gguf" / (std::string(name) + ".gguf")));
    const ModelConfig original = ModelConfig::load(kGoldens / "models" / name);
    EXPECT_EQ(gguf.architecture, original.architecture) << name;
    EXPECT_EQ(gguf.parameters(), original.parameters()) << name;
    EXPECT_EQ(gguf.window_tokens, original.window_tokens) << name;
    EXPECT_EQ(gguf.rope.rotary_dim, original.rope.rotary_dim) << name;
    EXPECT_EQ(gguf.norm_eps, original.norm_eps) << name;
    EXPECT_EQ(gguf.eos_token_ids, original.eos_token_ids) << name;
    EXPECT_EQ(gguf.dtype, original.dtype) << name;
  }
}

// Q8_0 and Q4_0 stand for the values that the package reads, to the bit.
TEST(GgufQuantized, BlocksAreTheValuesThatThePackageReads) {
  for (const char* name : {"q8_0", "q4_0", "mixed"}) {
    const std::vector<float> values = logits_of_gguf(std::string(name) + ".values");
    EXPECT_EQ(largest_difference(logits_of_gguf(std::string(name) + ".quantized"), values), 0.0f) << name;
    EXPECT_GT(largest_difference(values, std::vector<float>(values.size())), 0.5f) << name << ": logits of a size that shows";
  }
}

// Q4_K and Q6_K are rounded to int8 groups; as fp32 they too are the package's values.
TEST(GgufQuantized, KTypesAreTheirValuesInFp32AndNearThemInInt8) {
  const std::vector<float> values = logits_of_gguf("k.values");
  EXPECT_EQ(largest_difference(logits_of_gguf("k.quantized", nullptr, WeightTypes::of(DType::kF32)), values), 0.0f);
  const float difference = largest_difference(logits_of_gguf("k.quantized"), values);
  const float difference_of_int4 = largest_difference(logits_of_gguf("k.quantized", nullptr, WeightTypes::of(DType::kI4)), values);
  EXPECT_GT(difference, 0.0f);
  EXPECT_LT(difference, 0.2f * difference_of_int4);  // 254 steps to the range of a group, not 16
}

// Each weight is within half a step of its group of 32, and of what fp16 may round off its scale.
TEST(GgufQuantized, KTypesAreRoundedToTheNearestInt8) {
  const GgufFile values(kGoldens / "gguf/k.values.gguf"), blocks(kGoldens / "gguf/k.quantized.gguf");
  for (const char* name : {"blk.0.attn_q.weight", "token_embd.weight"}) {
    const TensorInfo& tensor = *blocks.find(name);
    const int64_t rows = tensor.dims[0], cols = tensor.dims[1];
    std::vector<std::byte> stored(tensor.bytes()), int8(static_cast<size_t>(rows) * weight_row_bytes(DType::kI8, cols));
    blocks.read(tensor, stored.data());
    convert_rows(*find_block_type(tensor.type), DType::kI8, stored.data(), rows, cols, int8.data());
    std::vector<float> expected(static_cast<size_t>(rows * cols));
    values.read(*values.find(name), reinterpret_cast<std::byte*>(expected.data()));
    for (int64_t first = 0; first < rows * cols; first += kQuantGroup) {
      float largest = 0.0f;
      for (int64_t i = first; i < first + kQuantGroup; ++i) largest = std::max(largest, std::abs(expected[static_cast<size_t>(i)]));
      for (int64_t i = first; i < first + kQuantGroup; ++i) {
        const float value = quantized_row_element(int8.data(), DType::kI8, i);  // whole groups: rows follow each other
        ASSERT_LE(std::abs(value - expected[static_cast<size_t>(i)]), largest / 127 * (0.501f + 127.0f / 2048)) << name << " " << i;
      }
    }
  }
}

TEST(GgufQuantized, KTypesDecodeToTheValuesOfThePackage) {
  const GgufFile blocks(kGoldens / "gguf/k.quantized.gguf"), values(kGoldens / "gguf/k.values.gguf");
  int compared = 0;
  for (const TensorInfo& tensor : blocks.tensors()) {
    const BlockType* type = find_block_type(tensor.type);
    ASSERT_NE(type, nullptr);
    const TensorInfo* expected_tensor = values.find(tensor.name);
    ASSERT_NE(expected_tensor, nullptr) << tensor.name;
    std::vector<std::byte> stored(tensor.bytes());
    blocks.read(tensor, stored.data());
    std::vector<float> expected(expected_tensor->bytes() / sizeof(float)), decoded(expected.size());
    values.read(*expected_tensor, reinterpret_cast<std::byte*>(expected.data()));
    type->decode(stored.data(), static_cast<int64_t>(decoded.size()), decoded.data());
    EXPECT_EQ(std::memcmp(decoded.data(), expected.data(), expected_tensor->bytes()), 0) << tensor.name << " " << tensor.type;
    ++compared;
  }
  EXPECT_EQ(compared, 11);
}

// ---- Vocabularies

nlohmann::json read_json(const std::filesystem::path& path) {
  std::ifstream file(path);
  return nlohmann::json::parse(std::string(std::istreambuf_iterator<char>(file), {}));
}

class GgufTokenizer : public ::testing::TestWithParam<const char*> {};

TEST_P(GgufTokenizer, GivesTheIdsOfTheReference) {
  const GgufFile file(kGoldens / "gguf" / (std::string(GetParam()) + ".vocabulary.gguf"));
  const GgufVocabulary vocabulary = read_gguf_vocabulary(file.metadata(), "file");
  const nlohmann::json strings = read_json(kGoldens / "gguf/strings.json"), golden = read_json(kGoldens / "gguf/tokenizers.golden.json");
  ASSERT_GT(strings.size(), 300u);
  for (size_t i = 0; i < strings.size(); ++i) {
    const auto text = strings[i].get<std::string>();
    ASSERT_EQ(vocabulary.tokenizer.encode(text, true), golden.at(GetParam())[i].get<std::vector<TokenId>>()) << text;
  }
}
INSTANTIATE_TEST_SUITE_P(Styles, GgufTokenizer, ::testing::Values("gpt2", "llama3", "qwen2", "smollm2", "tekken", "llama2"),
                         [](const auto& test) { return std::string(test.param); });

TEST(GgufVocabulary, RefusesByName) {
  const GgufFile file(kGoldens / "gguf/gpt2.vocabulary.gguf");
  const auto error_with = [&](const char* key, const nlohmann::json& value) -> std::string {
    nlohmann::json metadata = file.metadata();
    metadata[key] = value;
    try {
      read_gguf_vocabulary(metadata, "x.gguf");
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(error_with("tokenizer.ggml.pre", "gpt-2"), "");
  EXPECT_THAT(error_with("tokenizer.ggml.pre", "command-r"), HasSubstr("x.gguf: tokenizer.ggml.pre \"command-r\" is not supported; supported: gpt-2, llama-bpe"));
  EXPECT_THAT(error_with("tokenizer.ggml.model", "t5"), HasSubstr("tokenizer.ggml.model \"t5\" is not supported; supported: gpt2, llama"));
  EXPECT_THAT(error_with("tokenizer.ggml.bos_token_id", 1 << 20), HasSubstr("tokenizer.ggml.bos_token_id is no token"));
  EXPECT_THAT(error_with("tokenizer.ggml.token_type", nlohmann::json::array({1})), HasSubstr("a type for each token"));
  EXPECT_THAT(error_with("tokenizer.ggml.merges", nlohmann::json::array({"no such"})), HasSubstr("x.gguf: "));
  EXPECT_THAT(error_with("tokenizer.ggml.tokens", nlohmann::json::array()), HasSubstr("tokenizer.ggml.tokens is missing"));
  EXPECT_THAT(error_with("tokenizer.chat_template", "{% if %}"), HasSubstr("x.gguf: the chat template cannot be read"));
}

}  // namespace
}  // namespace headroom
