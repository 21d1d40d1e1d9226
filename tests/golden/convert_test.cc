// Converted checkpoints beside the ones they were made from: repeated heads must give the same logits to the bit,
// merged heads must be the mean that this test computes itself.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "engine/model/convert_kv_heads.h"
#include "tests/golden/model_runner.h"
#include "tests/unit/checkpoint_writer.h"

namespace headroom {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

std::string file_text(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

std::vector<float> values_of(const Checkpoint& checkpoint, const std::string& name) {
  const Checkpoint::Tensor* tensor = checkpoint.find(name);
  if (tensor == nullptr) throw std::runtime_error("no tensor " + name);
  std::vector<std::byte> bytes(tensor->info->bytes());
  tensor->read(bytes.data());
  const DType dtype = *tensor->info->dtype();
  std::vector<float> values(bytes.size() / dtype_bytes(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t half = 0;
    std::memcpy(dtype == DType::kF32 ? static_cast<void*>(&values[i]) : &half, &bytes[i * dtype_bytes(dtype)],
                dtype_bytes(dtype));
    if (dtype != DType::kF32) values[i] = dtype == DType::kBF16 ? bf16_to_f32(half) : f16_to_f32(half);
  }
  return values;
}

// Everything but the names of the files: tensors by name, type, shape and bytes.
std::map<std::string, std::string> tensors_of(const std::filesystem::path& dir) {
  const Checkpoint checkpoint(dir);
  std::map<std::string, std::string> all;
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    std::string bytes(tensor.info->bytes(), '\0');
    tensor.read(reinterpret_cast<std::byte*>(bytes.data()));
    all[std::string(name)] = tensor.info->description() + bytes;
  }
  return all;
}

class RepeatedHeads : public ::testing::TestWithParam<const char*> {};

TEST_P(RepeatedHeads, GiveTheSameLogitsToTheBitAndKvBytesByTheRatio) {
  const Golden golden(GetParam());
  const int32_t heads = golden.config.query_heads;
  TestDirectory directory;
  convert_kv_heads(model_dir(GetParam()), directory / "mha", {.kv_heads = heads});
  const ModelConfig config = ModelConfig::load(directory / "mha");
  EXPECT_EQ(config.kv_heads, heads);

  Runner original(GetParam(), golden, {});
  Runner converted(directory / "mha", config, config, golden.served_context_tokens, {});
  const std::vector<float> logits = run_whole(converted, golden);
  EXPECT_TRUE(same_bits(logits, run_whole(original, golden)));
  EXPECT_LE(max_difference(logits, golden.logits), kLogitTolerance);
  const int64_t before = kv_shape(golden.config, DType::kBF16, 16).token_bytes();
  EXPECT_EQ(kv_shape(config, DType::kBF16, 16).token_bytes(), before / golden.config.kv_heads * heads);
}

// A mean of equal heads is that head: back to the very bytes.
TEST_P(RepeatedHeads, BecomeTheOriginalAgainWhenTheyAreMerged) {
  const ModelConfig config = ModelConfig::load(model_dir(GetParam()));
  TestDirectory directory;
  convert_kv_heads(model_dir(GetParam()), directory / "mha", {.kv_heads = config.query_heads});
  EXPECT_NE(tensors_of(directory / "mha"), tensors_of(model_dir(GetParam())));
  convert_kv_heads(directory / "mha", directory / "back", {.kv_heads = config.kv_heads, .force = true});
  EXPECT_EQ(tensors_of(directory / "back"), tensors_of(model_dir(GetParam())));
  EXPECT_EQ(json::parse(file_text(directory / "back" / "config.json"))["num_key_value_heads"], config.kv_heads);
}

INSTANTIATE_TEST_SUITE_P(Families, RepeatedHeads,
                         ::testing::Values("llama31_rope", "llama3_gqa", "tinyllama_mqa_head_dim", "smollm2_group3",
                                           "llama_linear_biases", "llama_bf16", "llama_sharded", "smollm3_nope",
                                           "mistral_window", "mistral_nemo_head_dim", "qwen2_group7", "qwen3_head_dim",
                                           "qwen3_fp16", "phi3_longrope_partial"),
                         [](const auto& test) { return std::string(test.param); });

TEST(Convert, HeadsMayBeRepeatedInSteps) {
  TestDirectory directory;
  const std::filesystem::path in = model_dir("tinyllama_mqa_head_dim");  // 8 query heads on 1
  convert_kv_heads(in, directory / "two", {.kv_heads = 2});
  convert_kv_heads(directory / "two", directory / "eight", {.kv_heads = 8});
  convert_kv_heads(in, directory / "at-once", {.kv_heads = 8});
  EXPECT_EQ(tensors_of(directory / "eight"), tensors_of(directory / "at-once"));
  const Golden golden("tinyllama_mqa_head_dim");
  const ModelConfig config = ModelConfig::load(directory / "two");
  Runner original("tinyllama_mqa_head_dim", golden, {});
  Runner two(directory / "two", config, config, golden.served_context_tokens, {});
  EXPECT_TRUE(same_bits(run_whole(two, golden), run_whole(original, golden)));
}

// Means by this test's own loops, in fp64. `rows_before`: of the query heads, in a fused weight.
void expect_means(const Checkpoint& before, const Checkpoint& after, const std::string& name, size_t rows_before,
                  size_t heads, size_t merged, size_t head_values) {
  SCOPED_TRACE(name);
  const std::vector<float> source = values_of(before, name), got = values_of(after, name);
  const size_t parts = rows_before > 0 ? 2 : 1;  // K and V in one
  ASSERT_EQ(got.size(), rows_before * head_values + parts * heads / merged * head_values);
  EXPECT_TRUE(
      std::equal(got.begin(), got.begin() + static_cast<std::ptrdiff_t>(rows_before * head_values), source.begin()));
  for (size_t head = 0; head < parts * heads / merged; ++head) {
    for (size_t i = 0; i < head_values; ++i) {
      double sum = 0;
      for (size_t m = 0; m < merged; ++m) sum += source[(rows_before + head * merged + m) * head_values + i];
      ASSERT_EQ(got[(rows_before + head) * head_values + i], static_cast<float>(sum / static_cast<double>(merged)))
          << head << " " << i;
    }
  }
}

TEST(Convert, MergedHeadsAreMeans) {
  TestDirectory directory;
  convert_kv_heads(model_dir("llama2_mha"), directory / "llama", {.kv_heads = 2});  // 4 heads of 8, D 32
  expect_means(Checkpoint(model_dir("llama2_mha")), Checkpoint(directory / "llama"),
               "model.layers.1.self_attn.k_proj.weight", 0, 4, 2, 8 * 32);
  expect_means(Checkpoint(model_dir("llama2_mha")), Checkpoint(directory / "llama"),
               "model.layers.0.self_attn.v_proj.weight", 0, 4, 2, 8 * 32);
  EXPECT_EQ(values_of(Checkpoint(directory / "llama"), "model.layers.0.self_attn.q_proj.weight"),
            values_of(Checkpoint(model_dir("llama2_mha")), "model.layers.0.self_attn.q_proj.weight"));

  convert_kv_heads(model_dir("qwen2_window"), directory / "qwen", {.kv_heads = 1});  // 2 heads of 8, with biases
  for (const char* part : {"k_proj", "v_proj"}) {
    const std::string name = std::string("model.layers.0.self_attn.") + part;
    expect_means(Checkpoint(model_dir("qwen2_window")), Checkpoint(directory / "qwen"), name + ".weight", 0, 2, 2,
                 8 * 32);
    expect_means(Checkpoint(model_dir("qwen2_window")), Checkpoint(directory / "qwen"), name + ".bias", 0, 2, 2, 8);
  }
  convert_kv_heads(model_dir("phi3_window"), directory / "phi", {.kv_heads = 2});  // 4 heads of 8, q, k and v in one
  expect_means(Checkpoint(model_dir("phi3_window")), Checkpoint(directory / "phi"),
               "model.layers.0.self_attn.qkv_proj.weight", 4, 4, 2, 8 * 32);
}

// In 16 bits the mean is rounded once, to the nearest.
TEST(Convert, MeansKeepTheElementType) {
  TestDirectory directory;
  convert_kv_heads(model_dir("llama_bf16"), directory / "mqa", {.kv_heads = 1});
  const std::string name = "model.layers.0.self_attn.k_proj.weight";
  const Checkpoint before(model_dir("llama_bf16")), after(directory / "mqa");
  EXPECT_EQ(after.find(name)->info->description(), "BF16 [8, 32]");
  const std::vector<float> source = values_of(before, name), got = values_of(after, name);
  for (size_t i = 0; i < got.size(); ++i) {
    const float exact = (source[i] + source[i + 256]) / 2;  // a sum of two bf16 is exact in fp32 but for far exponents
    EXPECT_LE(std::fabs(got[i] - exact), std::fabs(exact) / 256) << i;
    EXPECT_EQ(bf16_to_f32(f32_to_bf16(got[i])), got[i]);
  }
}

TEST(Convert, FilesStayAsTheyWereAndOthersAreCopied) {
  TestDirectory directory;
  std::filesystem::copy(model_dir("llama_sharded"), directory / "in");
  write_file(directory / "in" / "tokenizer.json", "{\"a\": 1}");
  write_file(directory / "in" / "chat_template.jinja", "{{ x }}");
  write_file(directory / "in" / "pytorch_model.bin", "other weights");
  std::filesystem::create_directory(directory / "out");  // empty: fine
  size_t calls = 0, last = 0, total = 0;
  convert_kv_heads(directory / "in", directory / "out", {.kv_heads = 4}, [&](size_t done, size_t all) {
    ++calls;
    EXPECT_GE(done, last);
    last = done;
    total = all;
  });
  EXPECT_GT(calls, 10u);
  EXPECT_EQ(last, total);
  EXPECT_EQ(file_text(directory / "out" / "tokenizer.json"), "{\"a\": 1}");
  EXPECT_EQ(file_text(directory / "out" / "chat_template.jinja"), "{{ x }}");
  EXPECT_FALSE(std::filesystem::exists(directory / "out" / "pytorch_model.bin"));
  const json before = json::parse(file_text(directory / "in" / "model.safetensors.index.json"));
  const json after = json::parse(file_text(directory / "out" / "model.safetensors.index.json"));
  EXPECT_EQ(after["weight_map"], before["weight_map"]);
  json config = json::parse(file_text(directory / "in" / "config.json"));
  config["num_key_value_heads"] = 4;
  EXPECT_EQ(json::parse(file_text(directory / "out" / "config.json")), config);
  size_t bytes = 0;
  const Checkpoint converted(directory / "out");
  for (const auto& [name, tensor] : converted.tensors()) bytes += tensor.info->bytes();
  EXPECT_EQ(after["metadata"]["total_size"], bytes);
}

TEST(Convert, WhatCannotBeLeavesNothingBehind) {
  TestDirectory directory;
  const auto refusal = [&](const char* name, ConvertOptions options) {
    const std::string line = error_of([&] { convert_kv_heads(model_dir(name), directory / "out", options); });
    EXPECT_TRUE(std::filesystem::is_empty(directory.path())) << name;
    return line;
  };
  EXPECT_THAT(refusal("smollm2_group3", {.kv_heads = 3}),
              HasSubstr("6 query heads on 2 KV heads, which cannot become 3; possible: 1, 6"));
  EXPECT_THAT(refusal("smollm2_group3", {.kv_heads = 2}), HasSubstr("possible: 1, 6"));
  EXPECT_THAT(refusal("smollm2_group3", {.kv_heads = 0}), HasSubstr("possible: 1, 6"));
  EXPECT_THAT(refusal("smollm2_group3", {.kv_heads = 12}), HasSubstr("possible: 1, 6"));
  EXPECT_THAT(refusal("qwen3_head_dim", {.kv_heads = 1}), HasSubstr("--force"));
  EXPECT_THAT(error_of([&] { convert_kv_heads("/nowhere", directory / "out", {.kv_heads = 1}); }),
              HasSubstr("/nowhere"));

  // A tensor that does not have its shape is found before anything is written.
  std::filesystem::copy(model_dir("llama3_gqa"), directory / "in");
  json config = json::parse(file_text(directory / "in" / "config.json"));
  config["intermediate_size"] = 1000;
  write_file(directory / "in" / "config.json", config.dump());
  EXPECT_THAT(error_of([&] { convert_kv_heads(directory / "in", directory / "out", {.kv_heads = 4}); }),
              HasSubstr("expected"));
  EXPECT_FALSE(std::filesystem::exists(directory / "out"));
  write_file(directory / "full", "x");
  EXPECT_THAT(error_of([&] { convert_kv_heads(model_dir("llama3_gqa"), directory / "in", {.kv_heads = 4}); }),
              HasSubstr("not empty"));
  EXPECT_THAT(error_of([&] { convert_kv_heads(model_dir("llama3_gqa"), directory / "full", {.kv_heads = 4}); }),
              HasSubstr("not empty"));
  EXPECT_THAT(error_of([&] { convert_kv_heads(model_dir("llama3_gqa"), directory / "no" / "out", {.kv_heads = 4}); }),
              HasSubstr("not a directory"));
  size_t left = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(directory.path())) ++left;
  EXPECT_EQ(left, 2u) << "in and full alone";
}

// A failure in the middle: a progress call that throws stands for it.
TEST(Convert, ADraftThatFailsGoes) {
  TestDirectory directory;
  EXPECT_THROW(convert_kv_heads(model_dir("llama3_gqa"), directory / "out", {.kv_heads = 4},
                                [](size_t done, size_t total) {
                                  if (done > total / 2) throw std::runtime_error("enough");
                                }),
               std::runtime_error);
  EXPECT_TRUE(std::filesystem::is_empty(directory.path()));
}

}  // namespace
}  // namespace headroom
