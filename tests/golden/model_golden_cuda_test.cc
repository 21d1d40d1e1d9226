// Every supported family on the CUDA backend, in bf16 and fp16, against the reference implementation's fp32 logits; and to the bit,
// however the text is cut and whatever runs beside it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <numeric>

#include "kernels/cuda/cuda_backend.h"
#include "tests/golden/model_runner.h"
#include "tests/gpu/where.h"
#include "tests/kernels/reference.h"

namespace headroom {
namespace {

RunOptions on_cuda(DType type, RunOptions options = {}) {
  options.kv = type;
  options.weights = type;
  options.make_backend = [] { return make_cuda_backend({}); };
  return options;
}

// Weights, KV and what a gemm reads are rounded to the type; through two or three layers that adds up to eight tenths of this at most.
double bound(DType type) { return 16 * std::ldexp(1.0, type == DType::kBF16 ? -9 : -12); }

std::string test_name(const testing::TestParamInfo<std::tuple<const char*, DType>>& info) {
  return std::string(std::get<0>(info.param)) + "_" + std::string(dtype_name(std::get<1>(info.param)));
}

class CudaModelGolden : public testing::TestWithParam<std::tuple<const char*, DType>> {};

TEST_P(CudaModelGolden, LogitsAreTheReferencesUpToTheTypesRounding) {
  const auto [name, type] = GetParam();
  const Golden golden(name);
  Runner cuda(name, golden, on_cuda(type));
  const double error = reference::relative_error(run_whole(cuda, golden), golden.logits);
  std::printf("%-24s %s |logits - reference| / |reference| = %.2e\n", name, std::string(dtype_name(type)).c_str(), error);
  EXPECT_LE(error, bound(type));
}
INSTANTIATE_TEST_SUITE_P(Families, CudaModelGolden,
                         testing::Combine(testing::ValuesIn(kModels), testing::Values(DType::kBF16, DType::kF16)), test_name);

TEST(CudaModelGoldenBound, CatchesAWrongModel) {
  const std::pair<const char*, std::function<void(ModelConfig&)>> mistakes[] = {
      {"llama3_gqa", [](ModelConfig& c) { c.rope.theta = 500.0; }},
      {"mistral_window", [](ModelConfig& c) { c.window_tokens /= 2; }},
      {"smollm3_nope", [](ModelConfig& c) { c.layer_has_rope.flip(); }}};
  for (const auto& [name, make] : mistakes) {
    const Golden golden(name);
    ModelConfig wrong = golden.config;
    make(wrong);
    Runner cuda(name, golden, wrong, on_cuda(DType::kBF16));
    EXPECT_GT(reference::relative_error(run_whole(cuda, golden), golden.logits), 2 * bound(DType::kBF16)) << name;
  }
}

std::vector<const char*> cut_models() {
  if (on_device()) return {std::begin(kModels), std::end(kModels)};
  return {"qwen2_group7", "mistral_window"};  // the layer is slow
}

class CudaModelBits : public testing::TestWithParam<std::tuple<const char*, DType>> {};

TEST_P(CudaModelBits, ChunksPagesAndBatchMatesDoNotChangeOneBit) {
  const auto [name, type] = GetParam();
  const Golden golden(name);
  Runner plain(name, golden, on_cuda(type));
  const std::vector<float> expected = run_whole(plain, golden);
  std::vector<int32_t> token_by_token(golden.tokens.size()), uneven;
  std::iota(token_by_token.begin(), token_by_token.end(), 1);
  for (int32_t at = 0; at < golden.text_tokens();) uneven.push_back(at = std::min(golden.text_tokens(), at + 1 + (at * 7) % 33));
  for (const RunOptions& options : {RunOptions{.page_tokens = 16, .page_seed = 3}, RunOptions{.page_tokens = 64, .page_seed = 5},
                                    RunOptions{.page_tokens = 32, .page_seed = 7, .batch_mate = true}}) {
    const std::string what = std::to_string(options.page_tokens) + (options.batch_mate ? " tokens a page, with a mate" : " tokens a page");
    Runner chunked(name, golden, on_cuda(type, options));
    EXPECT_TRUE(same_bits(run_text(chunked, golden, uneven), expected)) << what << ", in chunks";
    if (!on_device() && options.page_tokens != 16) continue;
    Runner decoded(name, golden, on_cuda(type, options));
    EXPECT_TRUE(same_bits(run_text(decoded, golden, token_by_token), expected)) << what << ", token by token";
  }
}
INSTANTIATE_TEST_SUITE_P(Families, CudaModelBits,
                         testing::Combine(testing::ValuesIn(cut_models()), testing::Values(DType::kBF16, DType::kF16)), test_name);

}  // namespace
}  // namespace headroom
