// The whole API without sockets: the routes of openai_routes over a real engine, with a fake model in place of the real
// one. The fake model writes the alphabet: after "a" comes "b", after "z" or anything else "a".
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "server/openai_routes.h"
#include "tests/unit/byte_tokenizer.h"
#include "tests/unit/fake_runner.h"

namespace headroom {

inline constexpr int32_t kModelVocab = 260;  // one id more than the tokenizer has: models pad their embeddings
inline constexpr KvShape kApiShape = {
    .layers = 2, .kv_heads = 2, .query_heads = 8, .head_dim = 16, .dtype = DType::kBF16, .page_tokens = 16};
inline constexpr int64_t kApiPageBytes = 2 * 2 * 2 * 16 * 2 * 16;  // K and V, layers, heads, head_dim, bytes, tokens

// Every message is "<|turn|>role:content"; then the assistant's turn is opened.
inline constexpr const char* kApiTemplate =
    "{% for m in messages %}<|turn|>{{ m.role }}:{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant:{% endif %}";

struct ApiSetup {
  FakeRunner::Options runner{};
  SchedulerOptions scheduler{.pages_total = 64,
                             .page_tokens = 16,
                             .step_tokens_max = 64,
                             .running_sequences_max = 16,
                             .queue_requests_max = 64,
                             .context_tokens_max = 512};
  std::vector<std::string> tenants;  // names; scheduler.tenants has their limits, or none
  std::vector<TokenId> eos = {kEos};
  bool has_template = true;
  const AttentionProbe* attention = nullptr;
  EngineObserver* observer = nullptr;
  std::chrono::milliseconds ping_after{10'000};
  std::chrono::milliseconds client_poll_period{5};
};

// A stream's receiver: keeps what was written; may go away after some writes.
class RecordingStream : public HttpStream {
 public:
  bool write(std::string_view bytes) override {
    if (writes_left == 0) return false;
    --writes_left;
    text += bytes;
    return true;
  }
  std::string text;
  int writes_left = INT32_MAX;
};

struct Reply {
  int status = 0;
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;
  nlohmann::json json() const { return nlohmann::json::parse(body); }
  std::string header(const std::string& name) const {
    for (const auto& [key, value] : headers) {
      if (key == name) return value;
    }
    return "";
  }
  // The data of a stream's events. Anything else in it is a fault.
  std::vector<std::string> events() const {
    std::vector<std::string> all;
    for (size_t begin = 0; begin < body.size();) {
      const size_t end = body.find("\n\n", begin);
      EXPECT_NE(end, std::string::npos);
      if (body.compare(begin, 6, "data: ") == 0) {
        all.push_back(body.substr(begin + 6, end - begin - 6));
      } else {
        EXPECT_EQ(body.substr(begin, end - begin), ": ping");
      }
      begin = end + 2;
    }
    return all;
  }
};

inline std::unique_ptr<Engine> make_api_engine(const ApiSetup& setup) {
  FakeRunner::Options runner = setup.runner;
  runner.vocab_size = kModelVocab;
  if (!runner.next) {
    runner.next = [](int32_t token, int32_t) { return token >= 'a' && token < 'z' ? token + 1 : 'a'; };
  }
  EngineOptions options;
  options.scheduler = setup.scheduler;
  options.scheduler.tenants.resize(std::max<size_t>(setup.tenants.size(), 1));
  options.eos_token_ids = setup.eos;
  return std::make_unique<Engine>(std::move(options), kApiShape, std::make_unique<FakeRunner>(std::move(runner)),
                                  setup.observer);
}

class ApiUnderTest {
 public:
  explicit ApiUnderTest(const ApiSetup& setup = {})
      : tokenizer_(Tokenizer::from_json(byte_tokenizer_json())),
        template_(ChatTemplate::parse(kApiTemplate)),
        engine(make_api_engine(setup)) {
    const int32_t context = setup.scheduler.context_tokens_max;
    served = std::make_shared<const ServedModel>(
        ServedModel{.engine = *engine,
                    .tokenizer = tokenizer_,
                    .chat_template = setup.has_template ? &template_ : nullptr,
                    .bos_token = "<|bos|>",
                    .eos_token = "<|eos|>",
                    .attention = setup.attention,
                    .limits = {.context_tokens_max = context,
                               .vocab_size = kModelVocab,
                               .prompt_bytes_max = prompt_bytes_max(tokenizer_, context)},
                    .defaults = {.temperature = 0.0f},
                    .capacity = {.config = {.architecture = "Fake",
                                            .layers = kApiShape.layers,
                                            .query_heads = kApiShape.query_heads,
                                            .kv_heads = kApiShape.kv_heads,
                                            .head_dim = kApiShape.head_dim,
                                            .context_tokens = context},
                                 .context_tokens = context,
                                 .budgets = {{.pool_bytes_max = setup.scheduler.pages_total * kApiPageBytes}}}});
    routes_ = api_routes({.model_names = {"demo", "alias"},
                          .version = "1.2.3",
                          .system_fingerprint = "fp",
                          .tenant_names = setup.tenants,
                          .ping_after = setup.ping_after,
                          .client_poll_period = setup.client_poll_period,
                          .served = [this] { return served; },
                          .not_ready_reason = [this] { return not_ready; },
                          .metrics_text = [] { return std::string("# metrics\n"); },
                          .now_unix_seconds = [] { return int64_t{1700000000}; }});
  }

  const Route& route(const std::string& method, const std::string& path) const {
    for (const Route& route : routes_) {
      if (route.method == method && route.path == path) return route;
    }
    throw std::runtime_error("no route " + method + " " + path);
  }
  const std::vector<Route>& routes() const { return routes_; }

  Reply get(const std::string& path) { return call("GET", path, {}); }
  Reply post(const std::string& path, const std::string& body) { return call("POST", path, {.body = body}); }
  Reply complete(const std::string& fields) { return post("/v1/completions", "{" + fields + "}"); }
  Reply chat(const std::string& fields) { return post("/v1/chat/completions", "{" + fields + "}"); }

  Reply call(const std::string& method, const std::string& path, HttpRequest request) {
    RecordingStream stream;
    return call(method, path, std::move(request), &stream);
  }
  Reply call(const std::string& method, const std::string& path, HttpRequest request, RecordingStream* stream) {
    request.request_id = "r1";
    HttpResponse response;
    route(method, path).handle(request, response);
    if (response.stream) {
      EXPECT_EQ(response.content_type, "text/event-stream; charset=utf-8");
      response.stream(*stream);
      response.body = stream->text;
    }
    return {response.status, response.body, response.headers};
  }

  // Waits until the engine has nothing left to do. False if that took more than `steps_max` steps, which a loaded
  // machine does not change, or ten seconds.
  bool becomes_idle(int64_t steps_max = INT64_MAX) const {
    return comes_true(steps_max, [](const EngineStats& stats) { return !stats.work_pending && stats.pages.live == 0; });
  }
  bool queue_becomes_empty(int64_t steps_max) const {
    return comes_true(steps_max, [](const EngineStats& stats) { return stats.requests_waiting == 0; });
  }

 private:
  template <typename Condition>
  bool comes_true(int64_t steps_max, const Condition& condition) const {
    const int64_t first_step = engine->stats().steps;
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (std::chrono::steady_clock::now() < deadline) {
      const EngineStats stats = engine->stats();
      if (condition(stats)) return stats.steps - first_step <= steps_max;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return false;
  }

  Tokenizer tokenizer_;
  ChatTemplate template_;
  std::vector<Route> routes_;

 public:
  std::unique_ptr<Engine> engine;
  std::shared_ptr<const ServedModel> served;
  std::string not_ready;
};

// The text of one choice of a stream, whichever API.
inline std::string streamed_text(const Reply& reply, int choice = 0) {
  std::string text;
  for (const std::string& event : reply.events()) {
    if (event == "[DONE]") continue;
    const nlohmann::json choices = nlohmann::json::parse(event).at("choices");
    for (const nlohmann::json& part : choices) {
      if (part.at("index") != choice) continue;
      text += part.contains("text") ? part.at("text").get<std::string>() : part.at("delta").value("content", "");
    }
  }
  return text;
}

inline nlohmann::json error_of(const Reply& reply) { return reply.json().at("error"); }

// The log-probability that the fake model gives its likeliest token (logit 5), and any other (logit 0).
inline double fake_logprob(bool is_likeliest) {
  return (is_likeliest ? 5.0 : 0.0) - std::log(std::exp(5.0) + kModelVocab - 1);
}

}  // namespace headroom
