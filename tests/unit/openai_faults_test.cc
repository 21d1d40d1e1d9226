// What the API answers when something is wrong: with the request, the model, the client, or the load.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <random>
#include <thread>

#include "tests/unit/api_fixture.h"

namespace headroom {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::StartsWith;

TEST(Errors, HaveOneShape) {
  ApiUnderTest api;
  const Reply reply = api.complete(R"("prompt":"a","n":0)");
  EXPECT_EQ(reply.status, 400);
  EXPECT_EQ(
      reply.body,
      R"({"error":{"message":"n must be an integer from 1 to 64","type":"invalid_request_error","param":"n","code":null}})");
}

TEST(Errors, UnknownModel) {
  ApiUnderTest api;
  const std::pair<const char*, const char*> posts[] = {
      {"/v1/completions", R"({"prompt":"a","model":"x"})"},
      {"/v1/chat/completions", R"({"messages":[{"role":"user","content":"a"}],"model":"x"})"},
      {"/tokenize", R"({"prompt":"a","model":"x"})"},
      {"/detokenize", R"({"tokens":[1],"model":"x"})"}};
  for (const auto& [path, body] : posts) {
    const Reply reply = api.post(path, body);
    EXPECT_EQ(reply.status, 404) << path;
    EXPECT_EQ(error_of(reply).at("code"), "model_not_found");
    EXPECT_EQ(error_of(reply).at("param"), "model");
  }
  EXPECT_EQ(api.complete(R"("prompt":"a","model":"alias")").json().at("model"), "demo");
}

TEST(Errors, ContextIsCheckedBeforeAStreamBegins) {
  ApiUnderTest api;
  for (const char* stream : {"false", "true"}) {
    const Reply reply =
        api.complete("\"prompt\":\"" + std::string(511, 'x') + "\",\"max_tokens\":1,\"stream\":" + stream);
    EXPECT_EQ(reply.status, 400);
    EXPECT_EQ(error_of(reply).at("code"), "context_length_exceeded");
    EXPECT_EQ(error_of(reply).at("n_prompt_tokens"), 512);
    EXPECT_EQ(error_of(reply).at("n_ctx"), 512);
  }
  EXPECT_EQ(api.complete("\"prompt\":\"" + std::string(510, 'x') + "\",\"max_tokens\":1").status, 200);
  EXPECT_EQ(api.complete("\"prompt\":\"" + std::string(509, 'x') + "\",\"max_tokens\":3").status, 400);
  // The default of 16 gives way.
  EXPECT_EQ(api.complete("\"prompt\":\"" + std::string(509, 'x') + "\"").json().at("usage").at("completion_tokens"), 2);
}

TEST(Errors, HopelesslyLongTextsAreNotTokenised) {
  ApiUnderTest api;
  // 512 tokens · 8 bytes of "<|turn|>" · 4
  const Reply reply = api.complete("\"prompt\":\"" + std::string(16385, 'x') + "\"");
  EXPECT_EQ(reply.status, 400);
  EXPECT_EQ(error_of(reply).at("n_prompt_bytes"), 16385);
  EXPECT_EQ(error_of(reply).at("n_ctx"), 512);
  EXPECT_EQ(error_of(reply).at("code"), "context_length_exceeded");
  const Reply chat = api.chat(R"("messages":[{"role":"user","content":")" + std::string(16385, 'x') + "\"}]");
  EXPECT_EQ(chat.status, 400);
  EXPECT_EQ(error_of(chat).at("param"), "messages");
}

TEST(Errors, PoolAndEmptyPrompts) {
  ApiSetup setup;
  setup.scheduler.pages_total = 4;
  ApiUnderTest api(setup);
  const Reply reply = api.complete(R"("prompt":"a","max_tokens":100)");
  EXPECT_EQ(reply.status, 400);
  EXPECT_EQ(error_of(reply).at("code"), "kv_pool_exceeded");
  EXPECT_EQ(error_of(api.complete(R"("prompt":"","add_special_tokens":false)")).at("param"), "prompt");
  EXPECT_EQ(api.complete(R"("prompt":"","max_tokens":1)").status, 200);  // <|bos|> alone
}

TEST(Errors, AnsweredWhileLoadingAndDraining) {
  ApiUnderTest api;
  const auto model = std::exchange(api.served, nullptr);
  for (const char* path : {"/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"}) {
    const Reply reply = api.post(path, "{}");
    EXPECT_EQ(reply.status, 503);
    EXPECT_EQ(reply.header("Retry-After"), "1");
  }
  EXPECT_EQ(api.get("/v1/models").status, 503);
  api.served = model;
  EXPECT_TRUE(api.engine->drain(std::chrono::seconds(1)));
  const Reply reply = api.complete(R"("prompt":"a")");
  EXPECT_EQ(reply.status, 503);
  EXPECT_EQ(error_of(reply).at("code"), "draining");
  EXPECT_EQ(reply.header("Retry-After"), "1");
}

TEST(Errors, AFullQueueIs429) {
  ApiSetup setup;
  setup.scheduler.queue_requests_max = 3;
  ApiUnderTest api(setup);
  const auto held = api.engine->reserve({}, 2);
  const Reply reply = api.complete(R"("prompt":["a","b"],"max_tokens":100)");  // two places or none
  EXPECT_EQ(reply.status, 429);
  EXPECT_EQ(error_of(reply).at("type"), "rate_limit_error");
  EXPECT_EQ(error_of(reply).at("code"), "queue_full");
  EXPECT_GE(std::stoi(reply.header("Retry-After")), 1);
  EXPECT_EQ(api.complete(R"("prompt":"a","max_tokens":1)").status, 200);
  const Reply never = api.complete(R"("prompt":["a","b","c","d"],"max_tokens":1)");
  EXPECT_EQ(never.status, 400);
  EXPECT_THAT(never.body, testing::HasSubstr("more than the queue has places"));
}

// What an answer may hold is bounded over all of its prompts; text alone takes less.
TEST(Errors, AnswersAreBoundedOverAllPrompts) {
  ApiSetup setup;
  setup.scheduler.context_tokens_max = 1 << 20;
  setup.scheduler.pages_total = 1 << 17;
  ApiUnderTest api(setup);
  const auto ask = [&](const std::string& prompts, int tokens, const std::string& more = "") {
    return api.complete("\"prompt\":[" + prompts + "],\"max_tokens\":" + std::to_string(tokens) + ",\"stop\":[\"b\"]" + more);
  };
  const std::string eight = R"("a","a","a","a","a","a","a","a")";
  EXPECT_EQ(ask(eight, 65536, R"(,"logprobs":1)").status, 200);
  const Reply listed = ask(eight, 65537, R"(,"logprobs":1)");
  EXPECT_EQ(listed.status, 400);
  EXPECT_THAT(listed.body, testing::HasSubstr("max_tokens times prompts times n times (logprobs + 1) must not exceed 1048576"));
  EXPECT_EQ(ask(eight, 500000).status, 200);
}

// What no waiting helps is no 429.
TEST(Errors, WhatTheQueueNeverHasRoomForIs400) {
  ApiSetup setup;
  setup.scheduler.queue_tokens_max = 30;
  setup.scheduler.tenants = {{.queue_requests_max = 2}};
  ApiUnderTest api(setup);
  const std::string ten(10, 'a');
  const auto ask = [&](int prompts) {
    std::string body = R"("max_tokens":1,"prompt":[")" + ten + '"';
    for (int i = 1; i < prompts; ++i) body += ",\"" + ten + '"';
    return api.complete(body + "]");
  };
  EXPECT_EQ(ask(2).status, 200);
  const Reply places = ask(3);
  EXPECT_EQ(places.status, 400);
  EXPECT_THAT(places.body, testing::HasSubstr("more than the queue has places for this API key, 2"));
  const Reply tokens = api.complete(R"("max_tokens":1,"prompt":[")" + std::string(25, 'a') + R"(",")" + ten + "\"]");
  EXPECT_EQ(tokens.status, 400) << tokens.body;
  EXPECT_THAT(tokens.body, testing::HasSubstr("no room even when it is empty"));
  EXPECT_TRUE(api.becomes_idle());
}

TEST(Errors, AModelThatGivesNoNumbers) {
  ApiSetup setup;
  setup.runner.nan_after_token = 'm';
  ApiUnderTest api(setup);
  const Reply whole = api.complete(R"("prompt":"a","max_tokens":40)");
  EXPECT_EQ(whole.status, 500);
  EXPECT_EQ(error_of(whole).at("type"), "internal_server_error");
  const Reply stream = api.complete(R"("prompt":"a","max_tokens":40,"stream":true)");
  EXPECT_EQ(stream.status, 200);
  const std::vector<std::string> events = stream.events();
  ASSERT_GE(events.size(), 2u);
  EXPECT_EQ(events.back(), "[DONE]");
  EXPECT_EQ(json::parse(events[events.size() - 2]).at("error").at("code"), "generation_failed");
  std::string text;
  for (size_t i = 0; i + 2 < events.size(); ++i) text += json::parse(events[i])["choices"][0]["text"];
  EXPECT_EQ(text, "bcdefghijklm");
  EXPECT_EQ(api.complete(R"("prompt":"n","max_tokens":3)").status, 200);  // others go on
}

TEST(Errors, AModelThatFailsForGood) {
  ApiSetup setup;
  setup.runner.before_run = [](int64_t call) {
    if (call == 5) throw BackendError(BackendError::Kind::sticky, "device lost");
  };
  ApiUnderTest api(setup);
  const Reply stream = api.complete(R"("prompt":"a","max_tokens":40,"stream":true)");
  const std::vector<std::string> events = stream.events();
  ASSERT_GE(events.size(), 2u);
  EXPECT_EQ(events.back(), "[DONE]");
  EXPECT_TRUE(json::parse(events[events.size() - 2]).contains("error"));
  EXPECT_EQ(api.complete(R"("prompt":"a")").status, 503);
  EXPECT_THAT(engine_not_ready_reason(api.engine->stats(), 10), StartsWith("faulted"));
}

// The step that runs when the word comes, and the one that was planned meanwhile.
constexpr int64_t kStepsToNotice = 2;

// A client that goes away frees what it held, whichever way it was answered.
TEST(ClientGone, WhileWaitingForAWholeAnswer) {
  ApiSetup setup;
  setup.runner.step_time = std::chrono::milliseconds(5);
  ApiUnderTest api(setup);
  std::atomic<int> looks{0};
  const Reply reply =
      api.call("POST", "/v1/completions",
               {.body = R"({"prompt":["a","b"],"n":2,"max_tokens":300})", .client_gone = [&] { return ++looks > 3; }});
  EXPECT_EQ(reply.status, 499);
  EXPECT_TRUE(api.becomes_idle(kStepsToNotice));
}

TEST(ClientGone, WhenAWriteFails) {
  ApiSetup setup;
  setup.runner.step_time = std::chrono::milliseconds(5);
  ApiUnderTest api(setup);
  RecordingStream stream;
  stream.writes_left = 3;
  const Reply reply =
      api.call("POST", "/v1/completions", {.body = R"({"prompt":"a","max_tokens":400,"stream":true})"}, &stream);
  EXPECT_THAT(reply.body, Not(HasSubstr("[DONE]")));
  EXPECT_TRUE(api.becomes_idle(kStepsToNotice));
}

TEST(ClientGone, DuringTheSilenceBeforeTheFirstToken) {
  ApiSetup setup;
  setup.scheduler.running_sequences_max = 1;
  setup.runner.step_time = std::chrono::milliseconds(5);
  ApiUnderTest api(setup);
  // One request runs; another waits behind it.
  HttpRequest first{.body = R"({"prompt":"a","max_tokens":400,"stream":true})"};
  HttpResponse running;
  api.route("POST", "/v1/completions").handle(first, running);
  const Reply gone =
      api.call("POST", "/v1/completions",
               {.body = R"({"prompt":"b","max_tokens":400,"stream":true})", .client_gone = [] { return true; }});
  EXPECT_EQ(gone.body, "");
  EXPECT_TRUE(api.queue_becomes_empty(kStepsToNotice));
  // A stream that is never written (the connection broke before its head) frees what it held.
  running.stream = nullptr;
  EXPECT_TRUE(api.becomes_idle(kStepsToNotice));
}

TEST(Streams, PingWhileThereIsNothingToSay) {
  ApiSetup setup;
  setup.ping_after = std::chrono::milliseconds(20);
  setup.runner.before_run = [](int64_t call) {
    if (call == 0) std::this_thread::sleep_for(std::chrono::milliseconds(150));
  };
  ApiUnderTest api(setup);
  const Reply reply = api.complete(R"("prompt":"a","max_tokens":2,"stream":true)");
  EXPECT_THAT(reply.body, StartsWith(": ping\n\n: ping\n\n"));
  EXPECT_EQ(streamed_text(reply), "bc");
}

// Prefixes are shared within a key and a salt, never across.
TEST(Tenants, DoNotShareCachedPrefixes) {
  ApiSetup setup;
  setup.tenants = {"1", "12", "2"};
  ApiUnderTest api(setup);
  const std::string prompt(100, 'q');
  const auto cached = [&](int32_t tenant, const std::string& salt) {
    const std::string body = R"({"prompt":")" + prompt + R"(","max_tokens":1)" +
                             (salt.empty() ? "" : R"(,"cache_salt":")" + salt + "\"") + "}";
    return api.call("POST", "/v1/completions", {.body = body, .tenant = TenantId{tenant}})
        .json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        .get<int>();
  };
  EXPECT_EQ(cached(0, "23"), 0);
  EXPECT_EQ(cached(0, "23"), 96);  // whole pages
  EXPECT_EQ(cached(1, "3"), 0);    // "12" and "3": the same characters, divided otherwise
  EXPECT_EQ(cached(0, ""), 0);
  EXPECT_EQ(cached(2, "23"), 0);
  EXPECT_EQ(cached(2, "23"), 96);
  EXPECT_EQ(cached(2, "1:1"), 0);
  const EngineStats stats = api.engine->stats();
  EXPECT_EQ(stats.tenants.at(0).cached_tokens, 96);
  EXPECT_EQ(stats.tenants.at(1).cached_tokens, 0);
  EXPECT_EQ(stats.tenants.at(2).cached_tokens, 96);
  EXPECT_EQ(stats.tenants.at(2).prompt_tokens, 303);  // with <|bos|>
  EXPECT_EQ(stats.tenants.at(0).generated_tokens, 3);
}

// One key floods; what another one asks for is answered as if nearly nobody were there, and each limit is its own.
TEST(Tenants, AFloodOfOneDelaysAnotherByLittle) {
  ApiSetup setup;
  setup.tenants = {"flood", "steady"};
  setup.runner.step_time = std::chrono::milliseconds(2);
  setup.scheduler.running_sequences_max = 4;
  setup.scheduler.queue_requests_max = 40;
  ApiUnderTest api(setup);
  const auto ask = [](int32_t tenant) {
    GenerateRequest request;
    request.prompt.assign(8, 'q');
    request.generated_tokens_max = 16;
    request.ignore_eos = true;
    request.tenant = TenantId{tenant};
    return request;
  };
  std::vector<std::shared_ptr<TokenStream>> flood;
  int refused = 0;
  for (int i = 0; i < 400; ++i) {
    Engine::SubmitResult result = api.engine->submit(ask(0));
    if (auto* stream = std::get_if<std::shared_ptr<TokenStream>>(&result)) {
      flood.push_back(std::move(*stream));
    } else {
      ++refused;
      EXPECT_EQ(std::get<SubmitError>(result).kind, SubmitError::Kind::queue_full);
    }
  }
  EXPECT_GT(refused, 300);
  EXPECT_EQ(api.engine->stats().tenants.at(0).refused_full, refused);
  for (int i = 0; i < 5; ++i) {
    const int64_t first_step = api.engine->stats().steps;
    Engine::SubmitResult result = api.engine->submit(ask(1));
    ASSERT_TRUE(std::holds_alternative<std::shared_ptr<TokenStream>>(result)) << "no room was left for it";
    auto& stream = std::get<std::shared_ptr<TokenStream>>(result);
    while (const auto event = stream->next(std::chrono::seconds(10))) {
      if (std::holds_alternative<Finished>(*event)) break;
    }
    // At most the rest of one of those that run, then its own 16 steps; a step or two until it is seen.
    EXPECT_LE(api.engine->stats().steps - first_step, 16 + 16 + 4);
  }
  EXPECT_EQ(api.engine->stats().tenants.at(1).refused_full, 0);
  for (const auto& stream : flood) stream->cancel();
  EXPECT_TRUE(api.becomes_idle());
}

TEST(Tenants, LimitsOfAKeyAreItsOwn) {
  ApiSetup setup;
  setup.tenants = {"limited", "free"};
  setup.scheduler.tenants = {{.kv_percent_max = 10, .requests_per_minute = 2}, {}};  // 6 of 64 pages
  ApiUnderTest api(setup);
  const auto ask = [&](int32_t tenant, int tokens) {
    return api.call("POST", "/v1/completions", {.body = R"({"prompt":"a","max_tokens":)" + std::to_string(tokens) + "}", .tenant = TenantId{tenant}});
  };
  const Reply large = ask(0, 200);
  EXPECT_EQ(large.status, 400);
  EXPECT_EQ(error_of(large)["code"].get<std::string>(), "kv_share_exceeded");
  EXPECT_EQ(ask(1, 200).status, 200);
  EXPECT_EQ(ask(0, 5).status, 200);
  const Reply fast = ask(0, 5);
  EXPECT_EQ(fast.status, 429);
  EXPECT_EQ(error_of(fast)["code"].get<std::string>(), "rate_limit_exceeded");
  EXPECT_GE(std::stoi(fast.header("Retry-After")), 25);
  EXPECT_LE(std::stoi(fast.header("Retry-After")), 30);
  EXPECT_EQ(ask(1, 5).status, 200);
}

// A place is taken before the text becomes tokens, and given back whatever comes of it.
TEST(Tenants, PlacesAreGivenBack) {
  ApiSetup setup;
  setup.scheduler.queue_requests_max = 2;
  ApiUnderTest api(setup);
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(api.complete(R"("prompt":["a","b"],"max_tokens":1)").status, 200);
    EXPECT_EQ(api.complete(R"("prompt":"a","max_tokens":5000)").status, 400);
    const std::string long_text(3000, 'x');
    EXPECT_EQ(api.chat("\"messages\":[{\"role\":\"user\",\"content\":\"" + long_text + "\"}]").status, 400);
    EXPECT_EQ(api.complete(R"("prompt":["a","b","c"],"max_tokens":1)").status, 400);  // never enough places
  }
  auto held = api.engine->reserve({}, 2);
  ASSERT_TRUE(std::holds_alternative<Engine::Reservation>(held));
  const Reply full = api.complete(R"("prompt":")" + std::string(400, 'x') + R"(","max_tokens":1)");
  EXPECT_EQ(full.status, 429);
  EXPECT_EQ(error_of(full)["code"].get<std::string>(), "queue_full");
}

// Requests put together at random from sound and unsound values: each gets one answer, whole and well-formed, and
// leaves nothing behind.
TEST(AnyRequest, GetsOneWellFormedAnswer) {
  ApiUnderTest api;
  const std::vector<std::pair<std::string, std::vector<std::string>>> fields = {
      {"prompt", {"\"a\"", "\"\"", "[97,98]", "[[97],[98,259]]", "[\"x\",\"€\"]", "[260]", "[-1]", "3", "[]"}},
      {"messages", {R"([{"role":"user","content":"<|eos|>"}])", R"([{"role":"assistant","content":"ab"}])", "[]", "3"}},
      {"max_tokens", {"1", "7", "30", "0", "600", "4294967297"}},
      {"min_tokens", {"0", "3", "8"}},
      {"n", {"1", "2", "5", "64", "65"}},
      {"stream", {"true", "false"}},
      {"stream_options", {"{\"include_usage\":true}", "{\"continuous_usage_stats\":true}", "{}"}},
      {"echo", {"true", "false"}},
      {"logprobs", {"0", "3", "20", "true", "false", "21"}},
      {"top_logprobs", {"0", "2"}},
      {"temperature", {"0", "1", "100", "-1"}},
      {"top_p", {"1", "0.1", "1e-9"}},
      {"top_k", {"-1", "1", "50"}},
      {"min_p", {"0", "1"}},
      {"seed", {"0", "-1", "9223372036854775807"}},
      {"repetition_penalty", {"1", "1.5", "0.01", "100"}},
      {"frequency_penalty", {"-2", "2"}},
      {"logit_bias", {"{}", "{\"97\":100}", "{\"256\":100}", "{\"259\":100}", "{\"260\":1}"}},
      {"stop", {"\"c\"", "[\"bc\",\"\u00e9\"]", "[]", "\"\""}},
      {"stop_token_ids", {"[]", "[99,256]", "[260]"}},
      {"include_stop_str_in_output", {"true", "false"}},
      {"skip_special_tokens", {"true", "false"}},
      {"ignore_eos", {"true", "false"}},
      {"return_token_ids", {"true", "false"}},
      {"return_tokens_as_token_ids", {"true", "false"}},
      {"cache_salt", {"\"s\"", "\"\""}},
      {"continue_final_message", {"true", "false"}},
      {"tools", {"[{\"type\":\"function\"}]", "[3]"}},
  };
  std::map<int, int> answers;
  for (uint32_t seed = 0; seed < 3000; ++seed) {
    std::mt19937 random(seed);
    const bool is_chat = random() % 2 == 0;
    std::string body;
    for (const auto& [name, values] : fields) {
      const bool is_needed = name == (is_chat ? "messages" : "prompt");
      if (!is_needed && random() % 4 != 0) continue;
      // Unsound values stand at the end of the lists; most requests should do without.
      const size_t from = random() % 8 == 0 ? values.size() : std::min<size_t>(values.size(), 2);
      body += (body.empty() ? "\"" : ",\"") + name + "\":" + values[random() % from];
    }
    const Reply reply = is_chat ? api.chat(body) : api.complete(body);
    ++answers[reply.status];
    SCOPED_TRACE("seed " + std::to_string(seed) + ": {" + body + "}\n" + reply.body);
    ASSERT_TRUE(reply.status == 200 || reply.status == 400);
    if (!reply.body.starts_with("data: ")) {
      const json answer = json::parse(reply.body, nullptr, false);
      ASSERT_FALSE(answer.is_discarded());
      ASSERT_EQ(answer.contains("choices"), reply.status == 200);
      continue;
    }
    const std::vector<std::string> events = reply.events();
    ASSERT_EQ(events.back(), "[DONE]");
    std::map<int, int> endings;
    for (size_t e = 0; e + 1 < events.size(); ++e) {
      const json event = json::parse(events[e], nullptr, false);
      ASSERT_FALSE(event.is_discarded());
      for (const json& choice : event.at("choices")) {
        const int index = choice.at("index");
        ASSERT_EQ(endings[index], 0);  // nothing follows a choice's end
        endings[index] += choice.at("finish_reason").is_null() ? 0 : 1;
      }
    }
    for (const auto& [index, ended] : endings) ASSERT_EQ(ended, 1) << index;
  }
  EXPECT_GT(answers[200], 500);
  EXPECT_GT(answers[400], 300);
  EXPECT_TRUE(api.becomes_idle());
}

TEST(Concurrency, AnswersDoNotMix) {
  ApiUnderTest api;
  std::vector<std::thread> clients;
  std::atomic<int> wrong{0};
  for (int c = 0; c < 8; ++c) {
    clients.emplace_back([&, c] {
      for (int i = 0; i < 20; ++i) {
        const char first = static_cast<char>('a' + (c + i) % 20);
        std::string expected;
        for (int k = 1; k <= 5; ++k) expected += static_cast<char>(first + k);
        const std::string fields =
            "\"prompt\":\"" + std::string(1, first) + "\",\"max_tokens\":5" + (i % 2 == 0 ? ",\"stream\":true" : "");
        const Reply reply = api.complete(fields);
        const std::string text =
            i % 2 == 0 ? streamed_text(reply) : reply.json()["choices"][0]["text"].get<std::string>();
        if (text != expected) ++wrong;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_TRUE(api.becomes_idle());
}

}  // namespace
}  // namespace headroom
