// Drawing on the device, run on the CPU: the token and the log-probabilities that the host's sampler gives, to the bit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "engine/engine.h"
#include "engine/sampler.h"
#include "engine/transformer_runner.h"
#include "kernels/cuda/cuda_backend.h"
#include "tests/cuda_on_cpu/block.h"
#include "tests/kernels/backend_floats.h"
#include "tests/unit/tiny_llama.h"

namespace headroom {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Case {
  SamplingParams params;
  int32_t choice = 0;
  size_t position = 0;
  int32_t top_logprobs = -1;
};

class CudaSample : public testing::Test {
 protected:
  // Every case on its own row of `logits` [cases, vocab], all in one call, against the host.
  void expect_as_on_the_host(const std::vector<float>& logits, const std::vector<Case>& cases, const std::string& what) {
    const size_t vocab = logits.size() / cases.size();
    const std::vector<TokenId> context(1000, 0);
    std::vector<SampleRow> rows;
    for (size_t i = 0; i < cases.size(); ++i) {
      rows.push_back(*Sampler::device_row(cases[i].params, context_of(context, cases[i]), cases[i].top_logprobs));
      rows.back().logits_row = static_cast<int32_t>(i);
    }
    std::vector<SampleResult> results(rows.size());
    const BackendFloats on_device(*backend_, logits);
    backend_->sample(results, on_device.matrix(static_cast<int64_t>(cases.size()), static_cast<int64_t>(vocab)), rows);
    Sampler sampler(static_cast<int32_t>(vocab));
    for (size_t i = 0; i < cases.size(); ++i) {
      const std::span<const float> row = std::span(logits).subspan(i * vocab, vocab);
      const auto token = sampler.sample(row, cases[i].params, context_of(context, cases[i]));
      ASSERT_EQ(results[i].token, token.value_or(-1)) << what << ", row " << i;
      if (!token || cases[i].top_logprobs < 0) continue;
      const Logprobs host = sampler.logprobs(row, *token, cases[i].top_logprobs), device = sampler.logprobs(results[i]);
      ASSERT_EQ(device.logprob, host.logprob) << what << ", row " << i;
      ASSERT_EQ(device.rank, host.rank) << what << ", row " << i;
      ASSERT_EQ(device.top.size(), host.top.size()) << what << ", row " << i;
      for (size_t t = 0; t < host.top.size(); ++t) {
        ASSERT_EQ(device.top[t].token, host.top[t].token) << what << ", row " << i << ", place " << t;
        ASSERT_EQ(device.top[t].logprob, host.top[t].logprob) << what << ", row " << i << ", place " << t;
      }
    }
  }
  static SamplerContext context_of(const std::vector<TokenId>& context, const Case& c) {
    return {.tokens = std::span(context).first(c.position), .prompt_tokens = 0, .choice = c.choice};
  }

  std::unique_ptr<Backend> backend_ = make_cuda_backend({.multiprocessors = 4});
};

// Rows as models make them, and worse: flat, peaked, with many equal values, with tokens that cannot be, far from 0.
std::vector<float> random_row(size_t vocab, int kind, std::mt19937& random) {
  std::normal_distribution<float> normal(kind == 4 ? 300.0f : -1.0f, kind == 0 ? 0.01f : kind == 1 ? 12.0f : 2.5f);
  std::vector<float> row(vocab);
  for (float& logit : row) {
    logit = normal(random);
    if (kind == 2) logit = std::round(logit * 2.0f) / 2.0f;
    if (kind == 3 && random() % 3 == 0) logit = -kInfinity;
    if (kind == 5) logit = random() % 2 == 0 ? 0.0f : -0.0f;
  }
  if (kind == 3) row[random() % vocab] = 3e38f;
  return row;
}

TEST_F(CudaSample, DrawsTheHostsToken) {
  std::mt19937 random(3);
  const auto one_of = [&](const auto& values) { return values[random() % std::size(values)]; };
  constexpr float kTemperatures[] = {0.0f, 0.3f, 1.0f, 1.0f, 2.0f}, kTopP[] = {1.0f, 1.0f, 0.95f, 0.5f, 0.999999f, 1e-6f};
  constexpr float kMinP[] = {0.0f, 0.0f, 0.05f, 0.7f, 1.0f};
  constexpr int32_t kTopK[] = {0, 0, 1, 2, 20, 600, 100000}, kTop[] = {-1, -1, 0, 1, 5, 20};
  for (const size_t vocab : {1, 2, 31, 700, 3001}) {
    std::vector<float> logits;
    std::vector<Case> cases;
    for (int i = 0; i < 60; ++i) {
      const std::vector<float> row = random_row(vocab, i % 6, random);
      logits.insert(logits.end(), row.begin(), row.end());
      Case c;
      c.params = {.temperature = one_of(kTemperatures), .top_k = one_of(kTopK), .top_p = one_of(kTopP), .min_p = one_of(kMinP)};
      c.params.seed = random() | uint64_t{random()} << 32;
      c.choice = static_cast<int32_t>(random() % 3);
      c.position = random() % 1000;
      c.top_logprobs = one_of(kTop);
      cases.push_back(c);
    }
    expect_as_on_the_host(logits, cases, std::to_string(vocab) + " tokens");
  }
}

TEST_F(CudaSample, RefusesBrokenRowsAndOnlyThose) {
  const float nan = std::nanf("");
  const std::vector<float> logits = {1, nan, 2, -kInfinity, -kInfinity, -kInfinity, 1, kInfinity, 2, 1, -kInfinity, 2, nan, nan, nan};
  expect_as_on_the_host(logits, std::vector<Case>(5, Case{.params = {.temperature = 0}, .top_logprobs = 2}), "greedy");
  expect_as_on_the_host(logits, std::vector<Case>(5, Case{.params = {.temperature = 1, .top_k = 2, .top_p = 0.9f}}), "drawn");
}

TEST_F(CudaSample, OrderOfThreadsChangesNothing) {
  std::mt19937 random(8);
  std::vector<float> logits;
  std::vector<Case> cases;
  for (int i = 0; i < 12; ++i) {
    const std::vector<float> row = random_row(900, i % 6, random);
    logits.insert(logits.end(), row.begin(), row.end());
    cases.push_back({.params = {.temperature = 1, .top_k = 300, .top_p = 0.8f, .seed = random()}, .top_logprobs = 7});
  }
  for (const auto order : {cuda_on_cpu::Order::descending, cuda_on_cpu::Order::shuffled}) {
    cuda_on_cpu::set_order(order, order);
    expect_as_on_the_host(logits, cases, "another order");
  }
  cuda_on_cpu::set_order(cuda_on_cpu::Order::ascending, cuda_on_cpu::Order::ascending);
}

TEST_F(CudaSample, WhatChangesLogitsFirstIsLeftToTheHost) {
  const std::vector<TokenId> forbidden{1};
  EXPECT_TRUE(Sampler::device_row({}, {}, 20));
  EXPECT_FALSE(Sampler::device_row({}, {}, 21));
  EXPECT_FALSE(Sampler::device_row({.repetition_penalty = 1.1f}, {}, -1));
  EXPECT_FALSE(Sampler::device_row({.presence_penalty = 0.1f}, {}, -1));
  EXPECT_FALSE(Sampler::device_row({.frequency_penalty = 0.1f}, {}, -1));
  EXPECT_FALSE(Sampler::device_row({.logit_bias = {{1, 1.0f}}}, {}, -1));
  EXPECT_FALSE(Sampler::device_row({}, {.forbidden = forbidden}, -1));
}

// ---- The engine, which leaves the drawing to the backend where it can.

class CountingRunner final : public TransformerRunner {
 public:
  using TransformerRunner::TransformerRunner;
  void sample(std::span<const int32_t> rows, std::span<const SampleRow> samples, std::span<SampleResult> results) override {
    if (samples.size() > rows.size()) ++choices_together;
    drawn += static_cast<int>(samples.size());
    TransformerRunner::sample(rows, samples, results);
  }
  bool samples() const override { return on_device; }

  bool on_device = true;
  std::atomic<int> drawn{0}, choices_together{0};
};

struct Answers {
  std::vector<std::vector<TokenDelta>> choices;
  int drawn_on_device = 0, choices_together = 0;
};

Answers answers(bool on_device) {
  const ModelConfig config = TinyLlama{.layers = 1, .vocab_size = 90}.config();
  auto backend = make_cuda_backend({.multiprocessors = 2, .attention_blocks = 2});
  const KvShape shape = kv_shape(config, DType::kI8, 16);
  auto weights = random_weights(config, DType::kBF16, 7, *backend);
  auto cache = std::make_unique<KvCache>(shape, 40, *backend);
  auto transformer = std::make_unique<Transformer>(
      config, std::move(weights), *backend, TransformerOptions{.step_tokens_max = 64, .logits_rows_max = 2, .served_context_tokens = 256});
  auto runner = std::make_unique<CountingRunner>(std::move(backend), std::move(cache), std::move(transformer), 2);
  CountingRunner& counts = *runner;
  counts.on_device = on_device;
  EngineOptions options;
  options.scheduler = {.pages_total = 40, .page_tokens = 16, .step_tokens_max = 64, .running_sequences_max = 8,
                       .queue_requests_max = 8, .context_tokens_max = 256};
  Engine engine(options, shape, std::move(runner), nullptr);
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (int i = 0; i < 5; ++i) {
    GenerateRequest request;
    for (int32_t t = 0; t < 5 + i; ++t) request.prompt.push_back((7 * t + i) % 90);
    request.generated_tokens_max = 8;
    request.ignore_eos = true;
    request.choices = i == 1 ? 3 : 1;
    request.top_logprobs = i - 1;
    request.sampling = {.temperature = i == 0 ? 0.0f : 1.0f, .top_k = i == 2 ? 30 : 0, .top_p = i == 3 ? 0.9f : 1.0f, .seed = 5};
    if (i == 4) request.sampling.presence_penalty = 1.5f;  // its blocks are drawn on the host
    auto submitted = engine.submit(request);
    streams.push_back(std::get<std::shared_ptr<TokenStream>>(submitted));
  }
  Answers result;
  for (const auto& stream : streams) {
    const size_t first = result.choices.size();
    result.choices.resize(first + 3);
    while (const std::optional<StreamEvent> event = stream->next(std::chrono::seconds(30))) {
      if (const auto* delta = std::get_if<TokenDelta>(&*event)) result.choices[first + static_cast<size_t>(delta->choice)].push_back(*delta);
      if (std::holds_alternative<Finished>(*event)) break;
    }
  }
  result.drawn_on_device = counts.drawn;
  result.choices_together = counts.choices_together;
  return result;
}

TEST(CudaSampleEngine, TheAnswersAreThoseOfTheHost) {
  const Answers device = answers(true), host = answers(false);
  EXPECT_GT(device.drawn_on_device, 20);
  EXPECT_GT(device.choices_together, 0) << "choices that share a prompt draw their first tokens from one row of logits";
  EXPECT_EQ(host.drawn_on_device, 0);
  size_t tokens = 0;
  for (size_t c = 0; c < host.choices.size(); ++c) {
    ASSERT_EQ(device.choices[c].size(), host.choices[c].size()) << c;
    for (size_t t = 0; t < host.choices[c].size(); ++t, ++tokens) {
      const TokenDelta &a = device.choices[c][t], &b = host.choices[c][t];
      ASSERT_EQ(a.token, b.token) << c << ", token " << t;
      ASSERT_EQ(a.has_logprobs, b.has_logprobs);
      ASSERT_EQ(a.logprobs.logprob, b.logprobs.logprob) << c << ", token " << t;
      ASSERT_EQ(a.logprobs.top.size(), b.logprobs.top.size());
    }
  }
  EXPECT_EQ(tokens, 7u * 8u);
}

}  // namespace
}  // namespace headroom
