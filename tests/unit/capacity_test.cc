// Expected values: the GQA analysis of the design (exact arithmetic by hand) and the KV bytes per token of published
// shapes.
#include "engine/model/capacity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <set>

namespace headroom {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

KvShape shape(int32_t layers, int32_t query_heads, int32_t kv_heads, int32_t head_dim, DType dtype,
              int32_t page_tokens = 16) {
  return {.layers = layers,
          .kv_heads = kv_heads,
          .query_heads = query_heads,
          .head_dim = head_dim,
          .dtype = dtype,
          .page_tokens = page_tokens};
}

TEST(Capacity, Llama2Of70BTakesAnEighthOfMha) {
  const KvShape gqa = shape(80, 64, 8, 128, DType::kF16);
  EXPECT_EQ(gqa.token_bytes() * 4096, kGiB + kGiB / 4);
  EXPECT_EQ(gqa.mha_token_bytes() * 4096, 10 * kGiB);
}

TEST(Capacity, Mistral7BAt8K) {
  const KvShape gqa = shape(32, 32, 8, 128, DType::kBF16);
  EXPECT_EQ(gqa.token_bytes() * 8192, kGiB);
  EXPECT_EQ(gqa.mha_token_bytes() * 8192, 4 * kGiB);
}

TEST(Capacity, EightyGiBHold) {
  const Capacity gqa = plan_capacity(shape(32, 32, 8, 128, DType::kF16), 80 * kGiB, 4096);
  EXPECT_EQ(gqa.tokens, 655'360);
  EXPECT_EQ(gqa.mha_tokens, 163'840);
  EXPECT_EQ(gqa.full_requests, 160);
  EXPECT_EQ(gqa.mha_full_requests, 40);
  EXPECT_EQ(gqa.pool_bytes, 80 * kGiB);
  const Capacity mqa = plan_capacity(shape(32, 32, 1, 128, DType::kF16), 80 * kGiB, 4096);
  EXPECT_EQ(mqa.tokens, 5'242'880);
}

// d 64, 8 heads of 8: the projections of one layer, from all parameters of models that differ in their KV heads alone.
TEST(Capacity, KvHeadsSaveProjectionsAsTheAnalysisSays) {
  const auto parameters = [](int32_t kv_heads) {
    return ModelConfig{.layers = 1, .model_dim = 64, .query_heads = 8, .kv_heads = kv_heads, .head_dim = 8}.parameters();
  };
  const int64_t q_and_o = 2 * 64 * 64, k_and_v = 2 * 64 * 64;
  const int64_t attention = q_and_o + k_and_v;
  EXPECT_EQ(attention, 16'384);
  EXPECT_EQ(attention - (parameters(8) - parameters(2)), 10'240);
  EXPECT_DOUBLE_EQ(static_cast<double>(parameters(8) - parameters(2)) / static_cast<double>(attention), 0.375);
  EXPECT_DOUBLE_EQ(static_cast<double>(parameters(8) - parameters(2)) / static_cast<double>(k_and_v), 0.75);
  EXPECT_DOUBLE_EQ(static_cast<double>(parameters(8) - parameters(1)) / static_cast<double>(k_and_v), 7.0 / 8);
  EXPECT_DOUBLE_EQ(static_cast<double>(parameters(8) - parameters(1)) / static_cast<double>(attention), 0.4375);
  const KvShape mha = shape(1, 8, 8, 8, DType::kF16);
  EXPECT_EQ(mha.token_bytes(), 4 * mha.with_kv_heads(2).token_bytes());
  EXPECT_EQ(mha.token_bytes(), 8 * mha.with_kv_heads(1).token_bytes());
}

// Gemma 3 1B: 26 layers of which 22 see 512 tokens; 1 KV head of 256.
TEST(Capacity, LayersWithAWindowHoldWhatOneStepSees) {
  KvShape kv = shape(26, 4, 1, 256, DType::kBF16);
  kv.window_layers = 22;
  kv.window_tokens = 512;
  kv.step_tokens = 1;
  const int64_t layer_page = 2 * 256 * 2 * 16;
  // 512 positions that begin anywhere in a page of 16 touch at most 33 pages.
  EXPECT_EQ(kv.window_request_pages(32'768), 33);
  EXPECT_EQ(kv.request_pages(32'768), 2048);
  EXPECT_EQ(kv.request_bytes(32'768), (4 * 2048 + 22 * 33) * layer_page);
  EXPECT_EQ(kv.request_bytes(100), 26 * 7 * layer_page);
  const Capacity capacity = plan_capacity(kv, kGiB, 32'768);
  EXPECT_EQ(capacity.full_requests, kGiB / ((4 * 2048 + 22 * 33) * layer_page));
  EXPECT_EQ(capacity.longest_request_tokens, 32'768);
  // The pool that holds 1,000 pages of the full layers and the windows, and not one page more.
  const int64_t bytes = (4 * 1000 + 22 * 33) * layer_page;
  const Capacity small = plan_capacity(kv, bytes + kv.page_bytes() - 1, 32'768);
  EXPECT_LE(kv.request_bytes(small.longest_request_tokens), small.pool_bytes);
  EXPECT_GT(kv.request_bytes(small.longest_request_tokens + 1), small.pool_bytes);
}

TEST(Capacity, ElementTypeScalesEveryByte) {
  EXPECT_EQ(shape(2, 4, 2, 16, DType::kF32).token_bytes(), 2 * 2 * 2 * 16 * 4);
  EXPECT_EQ(shape(2, 4, 2, 16, DType::kBF16).token_bytes(), 2 * 2 * 2 * 16 * 2);
  EXPECT_EQ(shape(2, 4, 2, 16, DType::kF16).token_bytes(), 2 * 2 * 2 * 16 * 2);
  EXPECT_EQ(shape(2, 4, 2, 16, DType::kI8).token_bytes(), 2 * 2 * 2 * (16 + 4));  // with a scale for each head
  EXPECT_EQ(shape(2, 4, 2, 16, DType::kI8).mha_token_bytes(), 2 * 2 * 4 * (16 + 4));
  EXPECT_EQ(shape(2, 4, 2, 16, DType::kF16, 32).page_bytes(), 32 * 256);
  EXPECT_EQ(shape(2, 4, 2, 16, DType::kF16, 32).layer_page_bytes(), 32 * 128);
}

TEST(Capacity, PagesAreWholeAndTheRestStaysUnused) {
  const KvShape small = shape(2, 4, 2, 16, DType::kF16);  // 256 bytes a token, 4096 a page
  const Capacity capacity = plan_capacity(small, 3 * 4096 + 4095, 20);
  EXPECT_EQ(capacity.pages, 3);
  EXPECT_EQ(capacity.tokens, 48);
  EXPECT_EQ(capacity.pool_bytes, 3 * 4096);
  EXPECT_EQ(capacity.longest_request_tokens, 20);
  EXPECT_EQ(capacity.full_requests, 1);  // 20 tokens take two pages
  EXPECT_EQ(capacity.mha_tokens, 16);
  EXPECT_EQ(capacity.mha_full_requests, 0);
  EXPECT_EQ(plan_capacity(small, 4096, 20).longest_request_tokens, 16);
  EXPECT_EQ(plan_capacity(small, 4095, 20).pages, 0);
}

TEST(Capacity, PagesForTokensRoundsUp) {
  EXPECT_EQ(pages_for_tokens(0, 16), 0);
  EXPECT_EQ(pages_for_tokens(1, 16), 1);
  EXPECT_EQ(pages_for_tokens(16, 16), 1);
  EXPECT_EQ(pages_for_tokens(17, 16), 2);
  EXPECT_EQ(pages_for_tokens(INT64_MAX, 16), INT64_MAX / 16 + 1);
}

// KV bytes per token in 16 bit, as published shapes give them: in units of half a KiB.
const std::map<std::string, int> kPublishedHalfKiB = {
    {"qwen3-0.6b", 224},       {"qwen3-1.7b", 224},    {"qwen3-4b", 288},        {"qwen3-8b", 288},
    {"qwen2.5-0.5b", 24},      {"qwen2.5-1.5b", 56},   {"qwen2.5-3b", 72},       {"qwen2.5-7b", 112},
    {"llama-3.2-1b", 64},      {"llama-3.2-3b", 224},  {"llama-3.1-8b", 256},    {"llama-3-8b", 256},
    {"llama-3-70b", 640},      {"smollm2-135m", 45},   {"smollm2-360m", 80},     {"smollm2-1.7b", 384},
    {"smollm3-3b", 144},       {"tinyllama-1.1b", 44}, {"llama-2-7b", 1024},     {"llama-2-70b", 640},
    {"phi-4-mini", 256},       {"phi-3-mini-4k", 768}, {"mistral-7b-v0.1", 256}, {"mistral-7b-v0.3", 256},
    {"mistral-nemo-12b", 320}, {"phi-4", 400},         {"llama-2-13b", 1600},    {"llama-3.1-70b", 640},
    {"llama-3.1-405b", 1008},  {"qwen2.5-14b", 384},   {"qwen2.5-32b", 512},     {"qwen2.5-72b", 640},
    {"qwen3-14b", 320},        {"qwen3-32b", 512},     {"gemma-3-270m", 36},     {"gemma-3-1b", 52},
    {"gemma-3-4b", 272},       {"gemma-3-12b", 768},   {"gemma-3-27b", 992},
};

TEST(Capacity, EveryPublishedShapeHasItsBytesPerToken) {
  std::set<std::string> seen;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::filesystem::path(HEADROOM_SOURCE_DIR) / "configs/models")) {
    if (entry.path().extension() != ".json") continue;
    const std::string name = entry.path().stem().string();
    SCOPED_TRACE(name);
    ASSERT_TRUE(kPublishedHalfKiB.contains(name)) << "add its published KV bytes per token here";
    const KvShape kv = kv_shape(ModelConfig::shape(entry.path()), DType::kBF16, 16);
    EXPECT_EQ(kv.token_bytes(), kPublishedHalfKiB.at(name) * 512);
    EXPECT_EQ(kv.mha_token_bytes(), kv.token_bytes() * kv.query_heads / kv.kv_heads);
    EXPECT_EQ(kv.page_bytes(), kv.layer_page_bytes() * kv.layers);
    seen.insert(name);
  }
  EXPECT_EQ(seen.size(), kPublishedHalfKiB.size());
}

}  // namespace
}  // namespace headroom
