// Every supported family against the reference implementation: models/ holds tiny random checkpoints with the
// reference's logits (made by make_model_goldens.py).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <random>

#include "tests/golden/model_runner.h"

namespace headroom {
namespace {

std::vector<int32_t> random_cuts(int32_t tokens, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> cuts;
  for (int32_t at = 0; at < tokens;) {
    at = std::min(tokens, at + 1 + static_cast<int32_t>(random() % 33));
    cuts.push_back(at);
  }
  return cuts;
}

class ModelGolden : public ::testing::TestWithParam<const char*> {};

TEST_P(ModelGolden, LogitsEqualTheReferenceAtEveryPosition) {
  const Golden golden(GetParam());
  ASSERT_EQ(golden.text_tokens(), 96);
  ASSERT_EQ(golden.logits.size(), golden.tokens.size() * static_cast<size_t>(golden.config.vocab_size));
  Runner runner(GetParam(), golden, {});
  const float difference = max_difference(run_whole(runner, golden), golden.logits);
  std::printf("%-24s max |logit - reference| = %.2e\n", GetParam(), static_cast<double>(difference));
  EXPECT_LE(difference, kLogitTolerance);
}

TEST_P(ModelGolden, ThirtyTwoGreedyTokensEqualTheReference) {
  const Golden golden(GetParam());
  ASSERT_EQ(golden.greedy.size(), 32u);
  Runner runner(GetParam(), golden, {.page_seed = 2});
  const auto vocab = static_cast<std::ptrdiff_t>(golden.config.vocab_size);
  std::vector<float> logits = run_whole(runner, golden);
  std::vector<int32_t> tokens;
  while (tokens.size() < golden.greedy.size()) {
    tokens.push_back(
        static_cast<int32_t>(std::max_element(logits.end() - vocab, logits.end()) - (logits.end() - vocab)));
    logits = runner.step({&tokens.back(), 1});
  }
  EXPECT_EQ(tokens, golden.greedy);
}

TEST_P(ModelGolden, ChunksPagesThreadsAndBatchMatesDoNotChangeOneBit) {
  const Golden golden(GetParam());
  Runner plain(GetParam(), golden, {});
  const std::vector<float> expected = run_whole(plain, golden);

  std::vector<int32_t> token_by_token(golden.tokens.size());
  std::iota(token_by_token.begin(), token_by_token.end(), 1);
  const RunOptions variants[] = {{.page_tokens = 16, .page_seed = 3},
                                 {.page_tokens = 32, .page_seed = 4},
                                 {.page_tokens = 64, .page_seed = 5},
                                 {.page_tokens = 16, .threads = 2, .page_seed = 6},
                                 {.page_tokens = 32, .page_seed = 7, .batch_mate = true}};
  for (const RunOptions& options : variants) {
    SCOPED_TRACE(testing::Message() << "page_tokens " << options.page_tokens << " threads " << options.threads
                                    << " batch_mate " << options.batch_mate << " seed " << options.page_seed);
    Runner whole(GetParam(), golden, options);
    EXPECT_TRUE(same_bits(run_whole(whole, golden), expected)) << "whole prefill";
    Runner decode(GetParam(), golden, options);
    EXPECT_TRUE(same_bits(run_text(decode, golden, token_by_token), expected)) << "token by token";
    for (uint64_t seed = 0; seed < 4; ++seed) {
      Runner chunked(GetParam(), golden, options);
      EXPECT_TRUE(same_bits(run_text(chunked, golden, random_cuts(golden.text_tokens(), seed)), expected))
          << "chunks of seed " << seed;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, ModelGolden, ::testing::ValuesIn(kModels),
                         [](const auto& test) { return std::string(test.param); });

// What a plausible mistake in each switch would do must be far outside the tolerance, or the goldens would not test
// that switch.
struct Mistake {
  const char* name;
  const char* model;
  std::function<void(ModelConfig&)> make;
};

void PrintTo(const Mistake& mistake, std::ostream* out) { *out << mistake.name << " in " << mistake.model; }

const Mistake kMistakes[] = {
    {"llama3_rope_factor", "llama31_rope", [](ModelConfig& c) { c.rope.factor = 7.0; }},
    {"llama3_rope_low_bound", "llama31_rope", [](ModelConfig& c) { c.rope.low_freq_factor = 1.5; }},
    {"llama3_rope_high_bound", "llama31_rope", [](ModelConfig& c) { c.rope.high_freq_factor = 5.0; }},
    {"llama3_rope_original_context", "llama31_rope", [](ModelConfig& c) { c.rope.original_context_tokens = 40; }},
    {"linear_rope_factor", "llama_linear_biases", [](ModelConfig& c) { c.rope.factor = 4.5; }},
    {"yarn_factor", "qwen2_yarn", [](ModelConfig& c) { c.rope.factor = 3.5; }},
    {"yarn_attention_factor", "qwen2_yarn", [](ModelConfig& c) { c.rope.attention_factor = 1.0; }},
    {"yarn_ramp_truncated", "llama_yarn_mscale", [](ModelConfig& c) { c.rope.truncate = true; }},
    {"yarn_mscale", "llama_yarn_mscale", [](ModelConfig& c) { c.rope.mscale.reset(); }},
    {"yarn_beta_fast", "llama_yarn_mscale", [](ModelConfig& c) { c.rope.beta_fast = 8.0; }},
    {"longrope_short_for_long", "phi3_longrope_partial",
     [](ModelConfig& c) { c.rope.long_factor = c.rope.short_factor; }},
    {"longrope_long_for_short", "phi3_longrope_short",
     [](ModelConfig& c) { c.rope.short_factor = c.rope.long_factor; }},
    {"longrope_attention_factor", "phi3_longrope_short", [](ModelConfig& c) { c.rope.attention_factor = 1.0; }},
    {"partial_rotary_ignored", "phi3_longrope_partial",
     [](ModelConfig& c) {
       c.rope.rotary_dim = c.head_dim;
       c.rope.long_factor.resize(static_cast<size_t>(c.head_dim / 2), 8.0);
     }},
    {"theta", "llama2_mha", [](ModelConfig& c) { c.rope.theta = 11000.0; }},
    {"window_one_wider", "mistral_window", [](ModelConfig& c) { ++c.window_tokens; }},
    {"window_one_narrower", "mistral_window", [](ModelConfig& c) { --c.window_tokens; }},
    {"window_ignored", "phi3_window", [](ModelConfig& c) { c.window_tokens = 0; }},
    {"window_not_ignored", "qwen2_group7", [](ModelConfig& c) { c.window_tokens = 8; }},
    {"window_of_qwen2", "qwen2_window", [](ModelConfig& c) { ++c.window_tokens; }},
    {"rope_on_every_layer", "smollm3_nope", [](ModelConfig& c) { c.layer_has_rope[1] = true; }},
    {"rope_on_the_wrong_layers", "smollm3_nope", [](ModelConfig& c) { c.layer_has_rope.flip(); }},
    {"norm_eps", "llama3_gqa", [](ModelConfig& c) { c.norm_eps = 1e-3f; }},
};

class ModelGoldenControl : public ::testing::TestWithParam<Mistake> {};

TEST_P(ModelGoldenControl, MistakeIsFarOutsideTheTolerance) {
  const Golden golden(GetParam().model);
  ModelConfig wrong = golden.config;
  GetParam().make(wrong);
  Runner runner(GetParam().model, golden, wrong, {});
  const float difference = max_difference(run_whole(runner, golden), golden.logits);
  EXPECT_GE(difference, 10 * kLogitTolerance);
  EXPECT_LT(difference, std::numeric_limits<float>::infinity());
}

INSTANTIATE_TEST_SUITE_P(Mistakes, ModelGoldenControl, ::testing::ValuesIn(kMistakes),
                         [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace headroom
