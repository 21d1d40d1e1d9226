// A device that fails at any one of its calls, under the real engine with a real (tiny) model: what the requests see, and that no
// other request's answer changes by a bit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
#include <vector>

#include "engine/engine.h"
#include "engine/model/safetensors.h"
#include "engine/model/weights.h"
#include "engine/transformer_runner.h"
#include "tests/unit/checkpoint_writer.h"
#include "tests/unit/drawing_backend.h"
#include "tests/unit/faulty_backend.h"
#include "tests/unit/tiny_llama.h"

namespace headroom {
namespace {

using namespace std::chrono_literals;

constexpr int kRequests = 8;
constexpr int32_t kGeneratedTokens = 6;

std::unique_ptr<Engine> engine_of(const ModelConfig& config, std::unique_ptr<Backend> backend, std::unique_ptr<ModelWeights> weights) {
  const KvShape shape = kv_shape(config, DType::kBF16, 16);
  constexpr int64_t kPages = 40;
  auto cache = std::make_unique<KvCache>(shape, kPages, *backend);
  auto transformer = std::make_unique<Transformer>(
      config, std::move(weights), *backend, TransformerOptions{.step_tokens_max = 64, .logits_rows_max = 8, .served_context_tokens = 256});
  EngineOptions options;
  options.scheduler = {.pages_total = kPages, .page_tokens = 16, .step_tokens_max = 64, .running_sequences_max = 8,
                       .queue_requests_max = 8, .context_tokens_max = 256};
  return std::make_unique<Engine>(
      options, shape, std::make_unique<TransformerRunner>(std::move(backend), std::move(cache), std::move(transformer), 8), nullptr);
}

// `draws`: the device draws, and steps are planned ahead.
std::unique_ptr<Engine> engine_with(const std::shared_ptr<FaultPlan>& plan, bool draws) {
  const ModelConfig config = TinyLlama{.head_dim = 8}.config();
  auto inside = make_cpu_backend({.threads = 1});
  if (draws) inside = std::make_unique<DrawingBackend>(std::move(inside), config.vocab_size);
  auto backend = std::make_unique<FaultyBackend>(std::move(inside), plan);
  auto weights = random_weights(config, DType::kBF16, 7, *backend);
  return engine_of(config, std::move(backend), std::move(weights));
}

GenerateRequest request(int i) {
  GenerateRequest request;
  for (int32_t t = 0; t < 17 + i; ++t) request.prompt.push_back((t * (5 + 2 * i) + i) % 64);
  request.generated_tokens_max = kGeneratedTokens;
  request.sampling.temperature = 0;
  request.ignore_eos = true;
  request.top_logprobs = 0;
  return request;
}

struct Answer {
  std::vector<TokenId> tokens;
  std::vector<float> logprobs;
  FinishReason reason = FinishReason::stop;
  int terminal_events = 0;
  // All bits: the tokens and how likely each was.
  bool operator==(const Answer&) const = default;
};

Answer collect(TokenStream& stream) {
  Answer answer;
  while (const std::optional<StreamEvent> event = stream.next(answer.terminal_events > 0 ? 1ms : 30s)) {
    if (const auto* delta = std::get_if<TokenDelta>(&*event)) {
      answer.tokens.push_back(delta->token);
      answer.logprobs.push_back(delta->logprobs.logprob);
    } else if (const auto* finished = std::get_if<Finished>(&*event)) {
      answer.reason = finished->reason;
      ++answer.terminal_events;
    }
  }
  EXPECT_EQ(answer.terminal_events, 1);
  return answer;
}

std::vector<std::shared_ptr<TokenStream>> submit_all(Engine& engine) {
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (int i = 0; i < kRequests; ++i) {
    auto submitted = engine.submit(request(i));
    auto* stream = std::get_if<std::shared_ptr<TokenStream>>(&submitted);
    if (stream != nullptr) streams.push_back(*stream);
  }
  return streams;
}
std::vector<Answer> run_all(Engine& engine) {
  std::vector<Answer> answers;
  for (const auto& stream : submit_all(engine)) answers.push_back(collect(*stream));
  return answers;
}

class BackendFaults : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    const auto plan = std::make_shared<FaultPlan>();
    const auto engine = engine_with(plan, GetParam());
    plan->calls = 0;
    right_ = run_all(*engine);
    calls_ = plan->calls;
    ASSERT_EQ(right_.size(), static_cast<size_t>(kRequests));
    for (const Answer& answer : right_) ASSERT_EQ(answer.tokens.size(), static_cast<size_t>(kGeneratedTokens));
    ASSERT_GT(calls_, 100);
  }
  // An engine whose device fails at call k of the work to come.
  std::unique_ptr<Engine> armed(Fault fault, int64_t k) {
    plan_ = std::make_shared<FaultPlan>();
    auto engine = engine_with(plan_, GetParam());
    plan_->fault = fault;
    plan_->calls = 0;
    plan_->at_call = k;
    return engine;
  }
  // How many failed; the others are right to the bit.
  int failures(const std::vector<Answer>& answers) {
    int failed = 0;
    for (size_t i = 0; i < answers.size(); ++i) {
      if (answers[i].reason == FinishReason::error) {
        ++failed;
      } else {
        EXPECT_EQ(answers[i], right_[i]) << "request " << i << " changed when call " << plan_->at_call << ", " << plan_->op << ", failed";
      }
    }
    return failed;
  }

  std::vector<Answer> right_;
  int64_t calls_ = 0;  // of a run without a fault, all requests together; batched otherwise, a run may take more or fewer
  std::shared_ptr<FaultPlan> plan_;
};

TEST_P(BackendFaults, OutOfMemoryFailsOneRequestAtMostAndTheEngineServesOn) {
  std::set<std::string> hit;
  for (int64_t k = 0; k < calls_; ++k) {
    const auto engine = armed(Fault::out_of_memory, k);
    const int failed = failures(run_all(*engine));
    EXPECT_EQ(failed, plan_->op.empty() ? 0 : 1) << k;
    hit.insert(plan_->op);
    if (k % 16 == 0) {
      EXPECT_EQ(run_all(*engine), right_) << "after the failure of call " << k;
    }
  }
  for (const char* op : {"begin_step", "embedding", "rope_table", "rmsnorm", "gemm", "rope_kv_write", "paged_attention", "add_rmsnorm",
                         "gemm_silu_mul", "gather_rows"}) {
    EXPECT_TRUE(hit.contains(op)) << op << " was never hit";
  }
  const std::vector<const char*> last = GetParam() ? std::vector{"launch_sample", "send_samples", "wait_samples"} : std::vector{"synchronize"};
  for (const char* op : last) EXPECT_TRUE(hit.contains(op)) << op << " was never hit";
}

TEST_P(BackendFaults, ALostDeviceEndsEveryStreamOnceAndRefusesMore) {
  for (int64_t k = 0; k < calls_; ++k) {
    const auto engine = armed(Fault::sticky, k);
    const std::vector<Answer> answers = run_all(*engine);
    const int failed = failures(answers);
    if (plan_->op.empty()) continue;
    EXPECT_GE(failed, 1) << k;
    EXPECT_TRUE(engine->stats().faulted);
    EXPECT_THAT(engine->stats().fault, testing::HasSubstr(plan_->op));
    auto refused = engine->submit(request(0));
    ASSERT_TRUE(std::holds_alternative<SubmitError>(refused)) << k;
    EXPECT_EQ(std::get<SubmitError>(refused).kind, SubmitError::Kind::faulted);
  }
}

// One row of one call of eight requests: the seven others are right to the bit. The same prompts again are right too, as nothing
// that was computed wrongly is found by its tokens.
TEST_P(BackendFaults, WrongNumbersFailTheRequestThatTheyAreOfAlone) {
  int64_t failed = 0;
  for (int64_t k = 0; k < calls_; ++k) {
    const auto engine = armed(Fault::nan, k);
    const int failed_now = failures(run_all(*engine));
    EXPECT_LE(failed_now, 1) << k << ", " << plan_->op;
    failed += failed_now;
    plan_->fault = Fault::none;
    EXPECT_EQ(run_all(*engine), right_) << "after call " << k << ", " << plan_->op;
  }
  EXPECT_GT(failed, calls_ / 2);
}

TEST_P(BackendFaults, ADeviceThatDoesNotAnswerStandsStillAndThenNothingHasChanged) {
  int64_t hung = 0;
  for (int64_t k = 0; k < calls_; ++k) {
    const auto engine = armed(Fault::hang, k);
    const auto streams = submit_all(*engine);
    while (!plan_->hanging && engine->stats().work_pending) std::this_thread::yield();  // batched otherwise, a run may be shorter
    if (plan_->hanging) {
      ++hung;
      const auto before = engine->stats().steps;
      std::this_thread::sleep_for(1ms);
      EXPECT_EQ(engine->stats().steps, before);
      EXPECT_TRUE(engine->stats().work_pending);
      plan_->released = true;
      plan_->released.notify_all();
    }
    std::vector<Answer> answers;
    for (const auto& stream : streams) answers.push_back(collect(*stream));
    EXPECT_EQ(answers, right_) << k;
  }
  EXPECT_GT(hung, calls_ / 2);
}

INSTANTIATE_TEST_SUITE_P(Draws, BackendFaults, testing::Bool(), [](const auto& info) { return info.param ? "OnTheDevice" : "OnTheHost"; });

// A model file in which the embedding of one token is no number: who sends that token gets an error, and nobody else sees it.
TEST(BrokenWeights, FailTheRequestsThatTouchThemAlone) {
  constexpr TokenId kBroken = 95;  // in no prompt of request()
  constexpr size_t kFails = 3;
  const std::filesystem::path source = std::string(HEADROOM_SOURCE_DIR) + "/tests/golden/models/llama3_gqa";
  const auto engine_from = [](const std::filesystem::path& dir) {
    const ModelConfig config = ModelConfig::load(dir);
    auto backend = make_cpu_backend({.threads = 1});
    auto weights = load_weights(dir, config, *backend);
    return engine_of(config, std::move(backend), std::move(weights));
  };
  const auto run = [](Engine& engine, bool with_broken) {
    std::vector<std::shared_ptr<TokenStream>> streams;
    for (int i = 0; i < kRequests; ++i) {
      GenerateRequest one = request(i);
      if (with_broken && i == kFails) one.prompt[16] = kBroken;  // behind a whole page that stays as it was
      auto submitted = engine.submit(std::move(one));
      streams.push_back(std::get<std::shared_ptr<TokenStream>>(submitted));
    }
    std::vector<Answer> answers;
    for (const auto& stream : streams) answers.push_back(collect(*stream));
    return answers;
  };
  const std::vector<Answer> right = run(*engine_from(source), false);
  for (const Answer& answer : right) ASSERT_EQ(std::ranges::count(answer.tokens, kBroken), 0);

  const TestDirectory dir;
  std::filesystem::copy(source, dir.path(), std::filesystem::copy_options::recursive);
  const std::filesystem::path file = dir / "model.safetensors";
  std::string bytes(std::filesystem::file_size(file), '\0');
  std::ifstream(file, std::ios::binary).read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  const SafetensorsFile tensors(file);
  const TensorInfo* embedding = tensors.find("model.embed_tokens.weight");
  ASSERT_NE(embedding, nullptr);
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), sizeof header_bytes);
  const uint64_t row_bytes = embedding->bytes() / 96;
  // All bits set: no number in any type.
  bytes.replace(8 + header_bytes + embedding->begin + kBroken * row_bytes, row_bytes, row_bytes, '\xff');
  write_file(file, bytes);

  const auto engine = engine_from(dir.path());
  for (int round = 0; round < 3; ++round) {  // what one round leaves in the cache is there for the next
    const std::vector<Answer> answers = run(*engine, true);
    for (size_t i = 0; i < answers.size(); ++i) {
      if (i == kFails) {
        EXPECT_EQ(answers[i].reason, FinishReason::error);
      } else {
        EXPECT_EQ(answers[i], right[i]) << "request " << i;
      }
    }
    EXPECT_EQ(run(*engine, false), right);
  }
}

}  // namespace
}  // namespace headroom
