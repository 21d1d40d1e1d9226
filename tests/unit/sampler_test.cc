#include "engine/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "kernels/philox.h"

namespace headroom {
namespace {

using ::testing::ElementsAre;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The known answers that Random123 publishes for philox4x32-10.
TEST(Philox, KnownAnswers) {
  EXPECT_THAT(philox4x32({0, 0, 0, 0}, {0, 0}), ElementsAre(0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u));
  EXPECT_THAT(philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}), ElementsAre(0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu));
  EXPECT_THAT(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
              ElementsAre(0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u));
}

// The functions that the host and a device share, against the C library.
TEST(SamplingArithmetic, AgreesWithTheLibrary) {
  for (int i = 0; i <= 200000; ++i) {
    const float score = -static_cast<float>(i) * 2e-4f;
    const double expected = std::exp(static_cast<double>(score));
    ASSERT_NEAR(static_cast<double>(score_weight(score)) * 0x1p-44, expected, 0x1p-44 + 3e-10 * expected) << score;
  }
  EXPECT_EQ(score_weight(0.0f), uint64_t{1} << 44);
  EXPECT_EQ(score_weight(-kInfinity), 0u);
  for (double x = 1e-10; x < 1e10; x *= 1.0007) ASSERT_NEAR(natural_log(x), std::log(x), 4e-16 * (1.0 + std::abs(std::log(x)))) << x;
  std::mt19937 random(1);
  for (int i = 0; i < 100000; ++i) {
    const uint32_t bits = i == 0 ? 0u : i == 1 ? ~0u : static_cast<uint32_t>(random()) | (~0u << random() % 32) * (random() % 2);
    ASSERT_NEAR(gumbel(bits), -std::log(-std::log((bits + 0.5) * 0x1p-32)), 1e-14) << bits;
    ASSERT_LE(gumbel(bits), gumbel_bound(bits)) << bits;
  }
}

std::vector<float> random_logits(size_t vocab, uint64_t seed, float spread = 3.0f) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> logits(vocab);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

// Draws at positions 0, 1, 2 … (the context grows by one each time) and counts the tokens.
std::vector<int> draws(const std::vector<float>& logits, SamplingParams params, int count) {
  Sampler sampler(static_cast<int32_t>(logits.size()));
  std::vector<int> histogram(logits.size());
  std::vector<TokenId> context(static_cast<size_t>(count), 0);
  for (int i = 0; i < count; ++i) {
    const auto token = sampler.sample(logits, params, {.tokens = std::span(context).first(static_cast<size_t>(i)), .prompt_tokens = i});
    EXPECT_TRUE(token.has_value());
    ++histogram[static_cast<size_t>(*token)];
  }
  return histogram;
}

TEST(Sampler, TemperatureZeroTakesTheFirstOfTheLargest) {
  Sampler sampler(5);
  const std::vector<float> logits = {1, 7, 3, 7, -2};
  EXPECT_EQ(sampler.sample(logits, {.temperature = 0}, {}), 1);
}

TEST(Sampler, DrawsFollowTheSoftmax) {
  const std::vector<float> logits = {0.0f, std::log(2.0f), std::log(3.0f), std::log(4.0f)};  // probabilities 0.1 0.2 0.3 0.4
  const int count = 40000;
  const auto histogram = draws(logits, {.temperature = 1, .seed = 7}, count);
  double chi_squared = 0;
  for (int i = 0; i < 4; ++i) {
    const double expected = count * 0.1 * (i + 1);
    chi_squared += (histogram[static_cast<size_t>(i)] - expected) * (histogram[static_cast<size_t>(i)] - expected) / expected;
  }
  EXPECT_LT(chi_squared, 16.27);  // 3 degrees of freedom, p = 0.001
}

TEST(Sampler, TemperatureSharpens) {
  const std::vector<float> logits = {0.0f, std::log(2.0f)};  // at temperature 0.5: 1 : 4
  const auto histogram = draws(logits, {.temperature = 0.5f, .seed = 3}, 20000);
  EXPECT_NEAR(histogram[1] / 20000.0, 0.8, 0.012);
}

TEST(Sampler, TopKKeepsTheLikeliest) {
  const auto histogram = draws({5, 1, 4, 2, 3}, {.temperature = 2, .top_k = 2, .seed = 1}, 3000);
  EXPECT_GT(histogram[0], 0);
  EXPECT_GT(histogram[2], 0);
  EXPECT_EQ(histogram[1] + histogram[3] + histogram[4], 0);
}

TEST(Sampler, TopPKeepsTheNucleus) {
  // Probabilities 0.5 0.25 0.15 0.1: 0.7 needs the first two, 0.76 the first three.
  const std::vector<float> logits = {std::log(0.5f), std::log(0.25f), std::log(0.15f), std::log(0.1f)};
  auto histogram = draws(logits, {.temperature = 1, .top_p = 0.7f, .seed = 1}, 4000);
  EXPECT_GT(histogram[1], 0);
  EXPECT_EQ(histogram[2] + histogram[3], 0);
  histogram = draws(logits, {.temperature = 1, .top_p = 0.76f, .seed = 1}, 4000);
  EXPECT_GT(histogram[2], 0);
  EXPECT_EQ(histogram[3], 0);
  histogram = draws(logits, {.temperature = 1, .top_p = 1e-6f, .seed = 1}, 100);
  EXPECT_EQ(histogram[0], 100);
}

// The nucleus of a large vocabulary, against a plain full sort.
TEST(Sampler, TopPAgreesWithAFullSort) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const auto logits = random_logits(3000, seed, 2.0f);
    const float top_p = 0.05f + 0.045f * static_cast<float>(seed);
    std::vector<int> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
    double total = 0, sum = 0;
    for (float l : logits) total += std::exp(static_cast<double>(l));
    std::vector<bool> allowed(logits.size());
    for (int token : order) {
      allowed[static_cast<size_t>(token)] = true;
      if ((sum += std::exp(static_cast<double>(logits[static_cast<size_t>(token)]))) >= top_p * total) break;
    }
    const auto histogram = draws(logits, {.temperature = 1, .top_p = top_p, .seed = seed}, 300);
    for (size_t t = 0; t < logits.size(); ++t) EXPECT_TRUE(histogram[t] == 0 || allowed[t]) << "seed " << seed << " token " << t;
  }
}

TEST(Sampler, MinPIsRelativeToTheLikeliest) {
  const std::vector<float> logits = {std::log(0.6f), std::log(0.3f), std::log(0.1f)};
  const auto histogram = draws(logits, {.temperature = 1, .min_p = 0.4f, .seed = 1}, 3000);  // keeps p ≥ 0.24
  EXPECT_GT(histogram[1], 0);
  EXPECT_EQ(histogram[2], 0);
}

TEST(Sampler, RandomnessIsKeyedBySeedChoiceAndPosition) {
  const auto logits = random_logits(1000, 5, 0.5f);  // nearly flat: two independent draws agree about once in 800
  const std::vector<TokenId> context(64, 1);
  const auto run = [&](uint64_t seed, int32_t choice, size_t position) {
    Sampler fresh(1000);
    return *fresh.sample(logits, {.temperature = 1, .seed = seed},
                         {.tokens = std::span(context).first(position), .prompt_tokens = 1, .choice = choice});
  };
  int same = 0;
  for (size_t position = 1; position < 64; ++position) {
    EXPECT_EQ(run(9, 0, position), run(9, 0, position));
    same += (run(9, 0, position) == run(10, 0, position)) + (run(9, 0, position) == run(9, 1, position));
  }
  EXPECT_LT(same, 5);
}

// Formulas of the vLLM documentation: repetition divides a positive logit and multiplies a negative one, over prompt and output;
// frequency and presence subtract, over the output alone.
TEST(Sampler, Penalties) {
  Sampler sampler(4);
  const std::vector<TokenId> context = {0, 1, 2, 2};  // prompt 0 1, output 2 2
  const SamplerContext sequence = {.tokens = context, .prompt_tokens = 2};
  EXPECT_EQ(sampler.sample(std::vector<float>{4, 1, 3, 2.1f}, {.temperature = 0, .repetition_penalty = 2}, sequence), 3);
  EXPECT_EQ(sampler.sample(std::vector<float>{-1, -3, -1.4f, -1.5f}, {.temperature = 0, .repetition_penalty = 2}, sequence), 3);
  EXPECT_EQ(sampler.sample(std::vector<float>{1, 1, 3, 2}, {.temperature = 0, .frequency_penalty = 0.4f}, sequence), 2);   // 3 − 0.8
  EXPECT_EQ(sampler.sample(std::vector<float>{1, 1, 3, 2.3f}, {.temperature = 0, .frequency_penalty = 0.4f}, sequence), 3);
  EXPECT_EQ(sampler.sample(std::vector<float>{1, 1, 3, 2.3f}, {.temperature = 0, .presence_penalty = 0.4f}, sequence), 2);  // 3 − 0.4
  EXPECT_EQ(sampler.sample(std::vector<float>{9, 1, 3, 2}, {.temperature = 0, .presence_penalty = 2}, sequence), 0);  // the prompt is free
  // Nothing of one call is left for the next.
  EXPECT_EQ(sampler.sample(std::vector<float>{1, 1, 3, 2.9f}, {.temperature = 0}, sequence), 2);
}

TEST(Sampler, BiasAndForbiddenTokens) {
  Sampler sampler(3);
  SamplingParams params = {.temperature = 0};
  params.logit_bias = {{2, 5.0f}, {0, -100.0f}};
  EXPECT_EQ(sampler.sample(std::vector<float>{9, 4, 0}, params, {}), 2);
  const std::vector<TokenId> forbidden = {0, 2};
  EXPECT_EQ(sampler.sample(std::vector<float>{9, 4, 8}, {.temperature = 0}, {.forbidden = forbidden}), 1);
}

TEST(Sampler, BrokenLogitsAreRefused) {
  Sampler sampler(3);
  EXPECT_EQ(sampler.sample(std::vector<float>{1, std::nanf(""), 2}, {.temperature = 0}, {}), std::nullopt);
  EXPECT_EQ(sampler.sample(std::vector<float>{-kInfinity, -kInfinity, -kInfinity}, {.temperature = 1}, {}), std::nullopt);
  EXPECT_EQ(sampler.sample(std::vector<float>{1, kInfinity, 2}, {.temperature = 1}, {}), std::nullopt);
  EXPECT_EQ(sampler.sample(std::vector<float>{1, -kInfinity, 2}, {.temperature = 0}, {}), 2);  // a masked token is fine
}

TEST(Sampler, Logprobs) {
  Sampler sampler(4);
  const std::vector<float> logits = {std::log(0.1f), std::log(0.2f), std::log(0.3f), std::log(0.4f)};
  const Logprobs result = sampler.logprobs(logits, 1, 2);
  EXPECT_NEAR(result.logprob, std::log(0.2f), 1e-6);
  EXPECT_EQ(result.rank, 3);
  ASSERT_EQ(result.top.size(), 2u);
  EXPECT_EQ(result.top[0].token, 3);
  EXPECT_NEAR(result.top[0].logprob, std::log(0.4f), 1e-6);
  EXPECT_EQ(result.top[1].token, 2);
}

}  // namespace
}  // namespace headroom
