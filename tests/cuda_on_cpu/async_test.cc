// The engine that plans a step while the one before is under way, on the CUDA backend: recorded steps and others, on a stream that does
// nothing before somebody waits for it, give the bits of steps that are waited for. And what a step hands to the next one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "engine/engine.h"
#include "engine/transformer_runner.h"
#include "kernels/cuda/cuda_backend.h"
#include "tests/gpu/where.h"
#include "tests/kernels/backend_floats.h"
#include "tests/unit/tiny_llama.h"

namespace headroom {
namespace {

using Tokens = std::vector<std::pair<TokenId, float>>;  // and how likely each was

struct Answers {
  std::map<std::pair<size_t, int32_t>, Tokens> of;  // (request, choice)
  std::vector<FinishReason> reasons;
  int replayed = 0;
};

GenerateRequest request_of(int i) {
  GenerateRequest request;
  for (int32_t t = 0; t < 5 + 9 * (i % 3); ++t) request.prompt.push_back((7 * t + i) % 90);
  request.generated_tokens_max = 9;
  request.ignore_eos = true;
  request.choices = i == 1 ? 3 : 1;
  request.top_logprobs = 0;
  request.sampling = {.temperature = i == 0 ? 0.0f : 1.0f, .top_k = i == 2 ? 30 : 0, .top_p = i == 3 ? 0.9f : 1.0f, .seed = 5};
  if (i == 3) request.stop_token_ids = {3, 11, 25, 40, 41, 42, 60, 77, 80, 81};
  if (i == 5) request.sampling.presence_penalty = 1.5f;  // its steps need the host
  return request;
}

Answers answers(bool async, bool graphs, int requests) {
  const ModelConfig config = TinyLlama{.layers = 1, .vocab_size = 90}.config();
  auto backend = make_cuda_backend({.graphs = graphs, .multiprocessors = 2, .attention_blocks = 2});
  const TransformerOptions sizes{.step_tokens_max = 40, .logits_rows_max = 2, .served_context_tokens = 256};
  const KvShape shape = kv_shape(config, DType::kBF16, 16);
  auto weights = random_weights(config, DType::kBF16, 7, *backend);
  backend->reserve(step_limits(config, sizes, 8, 16));
  auto cache = std::make_unique<KvCache>(shape, 14, *backend);
  auto transformer = std::make_unique<Transformer>(config, std::move(weights), *backend, sizes);
  EngineOptions options;
  options.async_scheduling = async;
  options.scheduler = {.pages_total = 14, .page_tokens = 16, .step_tokens_max = 40, .running_sequences_max = 8,
                       .queue_requests_max = 8, .context_tokens_max = 256};
  const int replayed_before = replayed_steps();
  Engine engine(options, shape, std::make_unique<TransformerRunner>(std::move(backend), std::move(cache), std::move(transformer), 2), nullptr);
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (int i = 0; i < requests; ++i) streams.push_back(std::get<std::shared_ptr<TokenStream>>(engine.submit(request_of(i))));
  Answers result;
  for (size_t i = 0; i < streams.size(); ++i) {
    while (const std::optional<StreamEvent> event = streams[i]->next(std::chrono::seconds(60))) {
      if (const auto* delta = std::get_if<TokenDelta>(&*event)) result.of[{i, delta->choice}].emplace_back(delta->token, delta->logprobs.logprob);
      if (const auto* finished = std::get_if<Finished>(&*event)) {
        result.reasons.push_back(finished->reason);
        break;
      }
    }
  }
  result.replayed = replayed_steps() - replayed_before;
  return result;
}

class CudaAsync : public testing::TestWithParam<bool> {
 protected:
  ~CudaAsync() override { set_late(false); }
};

TEST_P(CudaAsync, GivesTheBitsOfStepsThatAreWaitedFor) {
  for (const int requests : {5, 6}) {
    set_late(false);
    const Answers right = answers(false, false, requests);
    set_late(true);
    const Answers async = answers(true, GetParam(), requests);
    EXPECT_EQ(async.of, right.of);
    EXPECT_EQ(async.reasons, right.reasons);
    EXPECT_EQ(right.of.size(), static_cast<size_t>(requests) + 2);
    if (!on_device()) {
      EXPECT_EQ(async.replayed > 0, GetParam());
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Steps, CudaAsync, testing::Bool(), [](const auto& info) { return info.param ? "Recorded" : "NotRecorded"; });

// Two rows are drawn, and are the tokens of the next batch before anybody has seen them; one that is no number is any token.
TEST(CudaTokens, OfTheStepBeforeAreTakenOnTheDevice) {
  set_late(true);
  const auto backend = make_cuda_backend({.multiprocessors = 2});
  const ModelConfig config = TinyLlama{.model_dim = 64, .vocab_size = 40}.config();
  const auto weights = random_weights(config, DType::kBF16, 3, *backend);
  std::vector<float> logits(3 * 40, 0.0f);
  logits[17] = 4.0f;
  logits[40 + 29] = 4.0f;
  logits[80 + 5] = std::numeric_limits<float>::quiet_NaN();
  const BackendFloats rows(*backend, logits);
  std::vector<SampleRow> samples(3);
  for (int32_t i = 0; i < 3; ++i) samples[static_cast<size_t>(i)].logits_row = i;
  const auto expect = [&](const std::vector<int32_t>& tokens, const std::vector<int32_t>& known) {
    std::vector<float> out[2];
    for (int i = 0; i < 2; ++i) {
      const std::vector<int32_t>& given = i == 0 ? tokens : known;
      const BackendFloats to(*backend, std::vector<float>(given.size() * 64, 7.0f));
      backend->begin_step({.rows = static_cast<int32_t>(given.size()), .tokens = given});
      backend->embedding(to.matrix(static_cast<int64_t>(given.size()), 64), *weights->embedding, given);
      out[i] = to.read();
    }
    EXPECT_EQ(out[0], out[1]);
  };
  backend->launch_sample(0, 3, rows.matrix(3, 40), samples);
  backend->send_samples(1, 3);
  expect({-2, 8, -1, -3}, {29, 8, 17, 0});
  const std::span<const SampleResult> results = backend->wait_samples(1);
  ASSERT_EQ(results.size(), 3u);
  EXPECT_EQ(results[0].token, 17);
  EXPECT_EQ(results[1].token, 29);
  EXPECT_EQ(results[2].token, -1);
  set_late(false);
}

}  // namespace
}  // namespace headroom
