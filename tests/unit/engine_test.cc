#include "engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>
#include <utility>

#include "tests/unit/fake_runner.h"

namespace headroom {
namespace {

using namespace std::chrono_literals;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr KvShape kShape = {.layers = 2, .kv_heads = 2, .query_heads = 8, .head_dim = 16, .dtype = DType::kBF16, .page_tokens = 16};

EngineOptions small_options() {
  EngineOptions options;
  options.scheduler = {.pages_total = 64, .page_tokens = 16, .step_tokens_max = 32, .running_sequences_max = 16,
                       .queue_requests_max = 8, .context_tokens_max = 512};
  return options;
}

std::unique_ptr<Engine> make_engine(FakeRunner::Options runner = {}, EngineOptions options = small_options(),
                                    EngineObserver* observer = nullptr) {
  return std::make_unique<Engine>(std::move(options), kShape, std::make_unique<FakeRunner>(std::move(runner)), observer);
}

GenerateRequest greedy(std::vector<TokenId> prompt, int32_t tokens) {
  GenerateRequest request;
  request.prompt = std::move(prompt);
  request.generated_tokens_max = tokens;
  request.sampling.temperature = 0;
  return request;
}

// What the fake model continues a prompt with.
std::vector<TokenId> expected_tokens(const std::vector<TokenId>& prompt, int32_t count, int32_t vocab = 64) {
  std::vector<TokenId> tokens = prompt;
  for (int32_t i = 0; i < count; ++i) tokens.push_back((31 * tokens.back() + static_cast<int32_t>(tokens.size()) - 1 + 7) % vocab);
  return {tokens.begin() + static_cast<long>(prompt.size()), tokens.end()};
}

struct Result {
  std::map<int32_t, std::vector<TokenId>> tokens;
  std::map<int32_t, ChoiceFinished> choices;
  std::vector<Logprobs> logprobs, prompt_logprobs;
  Finished finished;
  int terminal_events = 0;
};

// Reads a stream to its end, and a little further: nothing may follow.
Result collect(TokenStream& stream) {
  Result result;
  while (true) {
    const std::optional<StreamEvent> event = stream.next(result.terminal_events > 0 ? 20ms : 10s);
    if (!event) break;
    if (const auto* delta = std::get_if<TokenDelta>(&*event)) {
      result.tokens[delta->choice].push_back(delta->token);
      if (delta->has_logprobs) result.logprobs.push_back(delta->logprobs);
    } else if (const auto* scored = std::get_if<PromptScored>(&*event)) {
      result.prompt_logprobs = scored->tokens;
    } else if (const auto* choice = std::get_if<ChoiceFinished>(&*event)) {
      result.choices[choice->choice] = *choice;
    } else {
      result.finished = std::get<Finished>(*event);
      ++result.terminal_events;
    }
  }
  EXPECT_EQ(result.terminal_events, 1);
  return result;
}

std::shared_ptr<TokenStream> accept(Engine& engine, GenerateRequest request) {
  auto submitted = engine.submit(std::move(request));
  auto* stream = std::get_if<std::shared_ptr<TokenStream>>(&submitted);
  if (stream == nullptr) {
    ADD_FAILURE() << std::get<SubmitError>(submitted).message;
    return nullptr;
  }
  return *stream;
}
Result run(Engine& engine, GenerateRequest request) { return collect(*accept(engine, std::move(request))); }
SubmitError refused(Engine& engine, GenerateRequest request) {
  auto submitted = engine.submit(std::move(request));
  if (const auto* error = std::get_if<SubmitError>(&submitted)) return *error;
  ADD_FAILURE() << "was accepted";
  return {};
}

// The engine is idle and holds no page.
void expect_no_live_page(const Engine& engine) {
  for (int i = 0; i < 1000 && engine.stats().pages.live > 0; ++i) std::this_thread::sleep_for(2ms);
  EXPECT_EQ(engine.stats().pages.live, 0);
  EXPECT_EQ(engine.stats().pages.total(), engine.options().scheduler.pages_total);
}

TEST(Engine, GeneratesTheModelsTokensUntilTheLength) {
  auto engine = make_engine();
  const Result result = run(*engine, greedy({1, 2, 3}, 40));
  EXPECT_EQ(result.tokens.at(0), expected_tokens({1, 2, 3}, 40));
  EXPECT_EQ(result.choices.at(0).reason, FinishReason::length);
  EXPECT_EQ(result.finished.reason, FinishReason::length);
  EXPECT_EQ(result.finished.usage.prompt_tokens, 3);
  EXPECT_EQ(result.finished.usage.generated_tokens, 40);
  // 3 + 39 tokens have K and V (the last sampled one is never computed): 3 pages of 16 tokens. Bytes: 2·2 layers·2 heads·16·2 = 256
  // a token; MHA 4 times that.
  EXPECT_EQ(result.finished.usage.kv_pages, 3);
  EXPECT_EQ(result.finished.usage.kv_bytes, 3 * 16 * 256);
  EXPECT_EQ(result.finished.usage.kv_mha_equivalent_bytes, 4 * 3 * 16 * 256);
  expect_no_live_page(*engine);
}

TEST(Engine, StopsAtEndOfSequenceAndStopIds) {
  const auto tokens = expected_tokens({5}, 30);
  EngineOptions options = small_options();
  options.eos_token_ids = {tokens[6]};
  auto engine = make_engine({}, options);
  Result result = run(*engine, greedy({5}, 30));
  EXPECT_EQ(result.tokens.at(0).size(), 7u);
  EXPECT_EQ(result.choices.at(0).reason, FinishReason::stop);
  EXPECT_EQ(result.choices.at(0).stop_token, tokens[6]);

  GenerateRequest request = greedy({5}, 30);
  request.ignore_eos = true;
  EXPECT_EQ(run(*engine, request).tokens.at(0).size(), 30u);

  request = greedy({5}, 30);
  request.stop_token_ids = {tokens[2]};
  EXPECT_EQ(run(*engine, request).tokens.at(0).size(), 3u);

  request.generated_tokens_min = 5;  // the stop id may not even be sampled before
  result = run(*engine, request);
  EXPECT_GE(result.tokens.at(0).size(), 5u);
  EXPECT_NE(result.tokens.at(0)[2], tokens[2]);
}

TEST(Engine, ChoicesShareThePromptAndDifferInTheirRandomness) {
  auto engine = make_engine();
  GenerateRequest request = greedy(std::vector<TokenId>(48, 9), 20);
  request.choices = 4;
  request.sampling.temperature = 5.0f;
  request.sampling.seed = 77;
  const Result result = run(*engine, request);
  ASSERT_EQ(result.tokens.size(), 4u);
  EXPECT_NE(result.tokens.at(0), result.tokens.at(1));
  // Three shared pages of prompt and two of its own for each choice: 48 + 19 tokens.
  EXPECT_EQ(result.finished.usage.kv_pages, 3 + 4 * 2);
  EXPECT_EQ(result.finished.usage.generated_tokens, 80);
  // Each choice alone is what it was in company.
  EXPECT_EQ(run(*engine, request).tokens, result.tokens);
  request.choices = 1;
  EXPECT_EQ(run(*engine, request).tokens.at(0), result.tokens.at(0));
}

TEST(Engine, PrefixIsFoundAgainUnlessTheSaltDiffers) {
  auto engine = make_engine();
  const GenerateRequest request = greedy(std::vector<TokenId>(40, 3), 4);
  EXPECT_EQ(run(*engine, request).finished.usage.cached_tokens, 0);
  const Result again = run(*engine, request);
  EXPECT_EQ(again.finished.usage.cached_tokens, 32);
  EXPECT_EQ(again.finished.usage.kv_shared_bytes, 2 * kShape.page_bytes());
  GenerateRequest other = request;
  other.cache_salt = "tenant 2";
  EXPECT_EQ(run(*engine, other).finished.usage.cached_tokens, 0);
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.prompt_tokens, 120);
  EXPECT_EQ(stats.prompt_tokens_cached, 32);
  EXPECT_EQ(stats.prefix_hit_tokens, 32);
}

TEST(Engine, Logprobs) {
  auto engine = make_engine();
  GenerateRequest request = greedy({1, 2, 3}, 2);
  request.top_logprobs = 2;
  request.prompt_logprobs = true;
  const Result result = run(*engine, request);
  // One logit of 5, 63 of 0.
  const double log_sum = std::log(std::exp(5.0) + 63.0);
  ASSERT_EQ(result.logprobs.size(), 2u);
  EXPECT_NEAR(result.logprobs[0].logprob, 5.0 - log_sum, 1e-5);
  EXPECT_EQ(result.logprobs[0].rank, 1);
  EXPECT_EQ(result.logprobs[0].top.size(), 2u);
  ASSERT_EQ(result.prompt_logprobs.size(), 3u);
  const bool predicted = (31 * 1 + 0 + 7) % 64 == 2;
  EXPECT_NEAR(result.prompt_logprobs[1].logprob, (predicted ? 5.0 : 0.0) - log_sum, 1e-5);
}

TEST(Engine, ScoresAPromptWithoutGenerating) {
  auto engine = make_engine();
  GenerateRequest request = greedy(std::vector<TokenId>(100, 4), 0);
  request.prompt_logprobs = true;
  request.top_logprobs = 0;
  const Result result = run(*engine, request);
  EXPECT_TRUE(result.tokens.empty());
  EXPECT_EQ(result.prompt_logprobs.size(), 100u);
  EXPECT_EQ(result.finished.reason, FinishReason::length);
}

TEST(Engine, RefusesWhatCanNeverRun) {
  auto engine = make_engine();
  EXPECT_EQ(refused(*engine, greedy({}, 4)).kind, SubmitError::Kind::invalid);
  EXPECT_EQ(refused(*engine, greedy({64}, 4)).kind, SubmitError::Kind::invalid);
  EXPECT_EQ(refused(*engine, greedy({-1}, 4)).kind, SubmitError::Kind::invalid);
  const SubmitError context = refused(*engine, greedy(std::vector<TokenId>(500, 1), 13));
  EXPECT_EQ(context.kind, SubmitError::Kind::context_exceeded);
  EXPECT_THAT(context.message, HasSubstr("500"));
  EXPECT_THAT(context.message, HasSubstr("512"));
  GenerateRequest wide = greedy(std::vector<TokenId>(100, 1), 400);
  wide.choices = 10;
  EXPECT_EQ(refused(*engine, wide).kind, SubmitError::Kind::pool_exceeded);
}

TEST(Engine, CancelGivesThePagesBack) {
  auto engine = make_engine({.step_time = 500us});
  auto stream = accept(*engine, greedy({1}, 500));
  while (true) {
    const auto event = stream->next(5s);
    ASSERT_TRUE(event.has_value());
    if (std::holds_alternative<TokenDelta>(*event)) break;
  }
  stream->cancel();
  const Result result = collect(*stream);
  EXPECT_EQ(result.finished.reason, FinishReason::abort);
  expect_no_live_page(*engine);
}

TEST(Engine, AStoppedChoiceEndsAndTheOthersGoOn) {
  auto engine = make_engine({.step_time = 200us});
  GenerateRequest request = greedy({1, 2}, 200);
  request.choices = 2;
  auto stream = accept(*engine, request);
  ASSERT_TRUE(stream->next(5s).has_value());
  stream->stop_choice(0);
  const Result result = collect(*stream);
  EXPECT_EQ(result.choices.at(0).reason, FinishReason::stop);
  EXPECT_LT(result.tokens.count(0) ? result.tokens.at(0).size() : 0, 199u);
  EXPECT_EQ(result.tokens.at(1).back(), expected_tokens({1, 2}, 200).back());
}

TEST(Engine, ARequestWhoseChoicesAllStoppedEndsWithoutItsTurn) {
  auto engine = make_engine({.step_time = 20ms});
  GenerateRequest request = greedy({1, 2}, 200);
  request.choices = 2;
  auto stream = accept(*engine, request);
  ASSERT_TRUE(stream->next(5s).has_value());
  stream->stop_choice(0);
  stream->stop_choice(1);
  const Result result = collect(*stream);
  EXPECT_EQ(result.finished.reason, FinishReason::stop);
  EXPECT_EQ(result.choices.size(), 2u);
  EXPECT_LE(result.finished.usage.generated_tokens, 6);
  expect_no_live_page(*engine);
}

TEST(Engine, AFullQueueIsAnAnswer) {
  EngineOptions options = small_options();
  options.scheduler.running_sequences_max = 1;
  options.scheduler.queue_requests_max = 2;
  auto engine = make_engine({.step_time = 1ms}, options);
  std::vector<std::shared_ptr<TokenStream>> streams;
  int queue_full = 0;
  for (int i = 0; i < 20; ++i) {
    auto submitted = engine->submit(greedy({1}, 50));
    if (auto* stream = std::get_if<std::shared_ptr<TokenStream>>(&submitted)) {
      streams.push_back(*stream);
    } else {
      EXPECT_EQ(std::get<SubmitError>(submitted).kind, SubmitError::Kind::queue_full);
      EXPECT_GE(std::get<SubmitError>(submitted).retry_after_seconds, 1.0);
      ++queue_full;
    }
  }
  EXPECT_GE(queue_full, 16);
  for (const auto& stream : streams) EXPECT_EQ(collect(*stream).tokens.at(0).size(), 50u);
}

TEST(Engine, DrainLetsWorkFinishAndRefusesMore) {
  auto engine = make_engine({.step_time = 1ms});
  auto stream = accept(*engine, greedy({1}, 50));
  EXPECT_TRUE(engine->drain(10s));
  EXPECT_EQ(collect(*stream).tokens.at(0).size(), 50u);
  EXPECT_EQ(refused(*engine, greedy({1}, 1)).kind, SubmitError::Kind::draining);
}

TEST(Engine, DrainAbortsWhatDoesNotFinishInTime) {
  auto engine = make_engine({.step_time = 5ms});
  auto stream = accept(*engine, greedy({1}, 500));
  EXPECT_FALSE(engine->drain(50ms));
  EXPECT_EQ(collect(*stream).finished.reason, FinishReason::abort);
}

TEST(Engine, StreamsOutliveTheEngine) {
  auto engine = make_engine({.step_time = 1ms});
  auto stream = accept(*engine, greedy({1}, 500));
  engine.reset();
  stream->cancel();
  EXPECT_EQ(collect(*stream).finished.reason, FinishReason::abort);
}

TEST(Engine, OneBrokenRowFailsItsRequestAlone) {
  auto engine = make_engine({.nan_after_token = 63});
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (TokenId i = 0; i < 8; ++i) streams.push_back(accept(*engine, greedy({i == 3 ? 63 : i + 32}, 1)));
  for (TokenId i = 0; i < 8; ++i) {
    const Result result = collect(*streams[static_cast<size_t>(i)]);
    if (i == 3) {
      EXPECT_EQ(result.finished.reason, FinishReason::error);
      EXPECT_THAT(result.finished.message, HasSubstr("not numbers"));
    } else {
      EXPECT_EQ(result.tokens.at(0), expected_tokens({i + 32}, 1));
    }
  }
  expect_no_live_page(*engine);
}

// Out of memory in the k-th step, for each k: the youngest request fails, the others give the tokens that they give alone.
TEST(Engine, OutOfMemoryFailsOneRequest) {
  for (int64_t k = 0; k < 12; ++k) {
    auto engine = make_engine({.step_time = 200us, .before_run = [k](int64_t call) {
                                 if (call == k) throw BackendError(BackendError::Kind::out_of_memory, "injected");
                               }});
    std::vector<std::shared_ptr<TokenStream>> streams;
    for (TokenId i = 0; i < 3; ++i) streams.push_back(accept(*engine, greedy({i, i, i}, 12)));
    int failed = 0;
    for (TokenId i = 0; i < 3; ++i) {
      const Result result = collect(*streams[static_cast<size_t>(i)]);
      if (result.finished.reason == FinishReason::error) {
        ++failed;
      } else {
        EXPECT_EQ(result.tokens.at(0), expected_tokens({i, i, i}, 12)) << "k " << k;
      }
    }
    EXPECT_EQ(failed, 1) << "k " << k;
    expect_no_live_page(*engine);
  }
}

TEST(Engine, AStickyErrorEndsAllAndRefusesMore) {
  auto engine = make_engine({.before_run = [](int64_t call) {
    if (call == 5) throw BackendError(BackendError::Kind::sticky, "device lost");
  }});
  auto first = accept(*engine, greedy({1}, 100));
  auto second = accept(*engine, greedy({2}, 100));
  EXPECT_EQ(collect(*first).finished.reason, FinishReason::error);
  EXPECT_EQ(collect(*second).finished.reason, FinishReason::error);
  EXPECT_TRUE(engine->stats().faulted);
  EXPECT_THAT(engine->stats().fault, HasSubstr("device lost"));
  EXPECT_EQ(refused(*engine, greedy({1}, 1)).kind, SubmitError::Kind::faulted);
  expect_no_live_page(*engine);
}

// Preempted after its prompt was scored, a request comes back with a hit on its own pages: nothing is scored twice.
TEST(Engine, EchoedLogprobsSurviveAPreemption) {
  EngineOptions options = small_options();
  options.scheduler.pages_total = 14;
  auto engine = make_engine({.step_time = 300us}, options);
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (TokenId i = 0; i < 2; ++i) streams.push_back(accept(*engine, greedy(std::vector<TokenId>(79, i), 60)));
  GenerateRequest scored = greedy(std::vector<TokenId>(40, 7), 100);
  scored.top_logprobs = 1;
  scored.prompt_logprobs = true;
  streams.push_back(accept(*engine, scored));
  int32_t preemptions = 0;
  for (TokenId i = 0; i < 2; ++i) {
    const Result other = collect(*streams[static_cast<size_t>(i)]);
    EXPECT_EQ(other.tokens.at(0), expected_tokens(std::vector<TokenId>(79, i), 60));
    preemptions += other.finished.usage.preemptions;
  }
  const Result result = collect(*streams[2]);
  preemptions += result.finished.usage.preemptions;
  EXPECT_EQ(result.prompt_logprobs.size(), 40u);
  EXPECT_EQ(result.tokens.at(0), expected_tokens(scored.prompt, 100));
  EXPECT_GT(engine->stats().preemptions, 0);
  EXPECT_EQ(preemptions, engine->stats().preemptions);
}

TEST(Engine, ShowsARequestWhileItsFirstStepRuns) {
  auto engine = make_engine({.step_time = 100ms});
  auto stream = accept(*engine, greedy(std::vector<TokenId>(20, 1), 1));
  EngineStats during;
  for (int i = 0; i < 60 && during.requests_running == 0; ++i) {
    std::this_thread::sleep_for(1ms);
    during = engine->stats();
  }
  EXPECT_EQ(during.requests_running, 1);
  EXPECT_EQ(during.pages.live, 2);
  EXPECT_EQ(during.steps, 0);
  collect(*stream);
}

// A pool for a tenth of what is asked: preemption and waiting change no answer.
TEST(Engine, ACrowdInASmallPoolGetsTheSameAnswers) {
  EngineOptions options = small_options();
  options.scheduler.pages_total = 12;
  options.scheduler.queue_requests_max = 100;
  auto engine = make_engine({}, options);
  std::vector<std::thread> clients;
  for (TokenId c = 0; c < 4; ++c) {
    clients.emplace_back([&engine, c] {
      for (TokenId i = 0; i < 10; ++i) {
        const std::vector<TokenId> prompt(static_cast<size_t>(1 + 3 * i), c);
        EXPECT_EQ(run(*engine, greedy(prompt, 60)).tokens.at(0), expected_tokens(prompt, 60));
      }
    });
  }
  for (std::thread& client : clients) client.join();
  expect_no_live_page(*engine);
}

class CountingObserver : public EngineObserver {
 public:
  void on_step(const StepObservation& step) override { prefill += step.prefill_tokens, decode += step.decode_tokens; }
  void on_token(const TokenObservation& token) override {
    (token.first ? first : later) += 1;
    contexts.push_back(token.context_tokens);
  }
  void on_request_finished(const RequestObservation& request) override { requests.push_back(request); }
  int64_t prefill = 0, decode = 0, first = 0, later = 0;
  std::vector<int64_t> contexts;
  std::vector<RequestObservation> requests;
};

TEST(Engine, TellsItsObserverWhatHappened) {
  CountingObserver observer;
  {
    auto engine = make_engine({}, small_options(), &observer);
    run(*engine, greedy(std::vector<TokenId>(70, 1), 10));
    run(*engine, greedy({2}, 5));
  }
  EXPECT_EQ(observer.prefill, 71);
  EXPECT_EQ(observer.decode, 9 + 4);
  EXPECT_EQ(observer.first, 2);
  EXPECT_EQ(observer.later, 9 + 4);
  ASSERT_EQ(observer.requests.size(), 2u);
  EXPECT_EQ(observer.requests[0].usage.prompt_tokens, 70);
  EXPECT_EQ(observer.requests[0].longest_choice_tokens, 10);
  EXPECT_EQ(observer.contexts, (std::vector<int64_t>{70, 71, 72, 73, 74, 75, 76, 77, 78, 79, 1, 2, 3, 4, 5}));
  EXPECT_GE(observer.requests[0].e2e_seconds, observer.requests[0].inference_seconds);
}

// Tokens of prompts in each step that also wrote.
struct ChunkObserver : EngineObserver {
  void on_step(const StepObservation& step) override {
    const std::lock_guard lock(mutex);
    if (step.decode_tokens > 0 && step.prefill_tokens > 1) chunks.push_back(step.prefill_tokens);
  }
  int32_t median() {  // of the first ten
    const std::lock_guard lock(mutex);
    chunks.resize(std::min<size_t>(chunks.size(), 10));
    std::sort(chunks.begin(), chunks.end());
    const int32_t middle = chunks.empty() ? 0 : chunks[chunks.size() / 2];
    chunks.clear();
    return middle;
  }
  std::mutex mutex;
  std::vector<int32_t> chunks;
};

// One answer is written, by a model of 4 ms and 0.2 ms a token, with a slowdown of at most 4. Beside one prompt, a step may take 1.75 · 4.4 ms,
// of which the answer's own 4.2 leave 17 tokens; beside 15 prompts, 1.75 · 7.2 ms: 42. Returns what there was.
std::pair<int32_t, int32_t> chunks_beside_one_and_15() {
  ChunkObserver observer;
  EngineOptions options = small_options();
  options.step_slowdown_max = 4;
  options.scheduler.pages_total = 256;
  options.scheduler.step_tokens_max = 512;
  options.scheduler.queue_requests_max = 64;
  auto engine = make_engine({.step_time = 4000us, .row_time = 200us}, options, &observer);
  run(*engine, greedy(std::vector<TokenId>(100, 1), 1));
  const auto writer = accept(*engine, greedy({1}, 500));
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(writer->next(10s));
  run(*engine, greedy(std::vector<TokenId>(180, 2), 1));
  const int32_t beside_one = observer.median();
  std::vector<std::shared_ptr<TokenStream>> crowd;
  for (TokenId token = 10; token < 25; ++token) crowd.push_back(accept(*engine, greedy(std::vector<TokenId>(60, token), 1)));
  for (const auto& stream : crowd) collect(*stream);
  writer->cancel();
  return {beside_one, observer.median()};
}

// On a machine that is busy with other work the engine may see other times: it is asked a few times.
TEST(Engine, PromptsGetMoreOfAStepWhenMoreOfThemWait) {
  std::pair<int32_t, int32_t> chunks;
  for (int attempt = 0; attempt < 5 && (attempt == 0 || chunks.second < chunks.first * 3 / 2); ++attempt) chunks = chunks_beside_one_and_15();
  EXPECT_GE(chunks.first, 8);
  EXPECT_GE(chunks.second, chunks.first * 3 / 2) << chunks.first;
}

}  // namespace
}  // namespace headroom
