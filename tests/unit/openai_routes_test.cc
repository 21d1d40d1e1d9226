#include "server/openai_routes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <set>

#include "tests/unit/api_fixture.h"

namespace headroom {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

TEST(Completions, WholeAnswer) {
  ApiUnderTest api;
  const Reply reply = api.complete(R"("model":"demo","prompt":"a")");
  ASSERT_EQ(reply.status, 200) << reply.body;
  const json body = reply.json();
  EXPECT_EQ(body.at("id"), "cmpl-r1");
  EXPECT_EQ(body.at("object"), "text_completion");
  EXPECT_EQ(body.at("created"), 1700000000);
  EXPECT_EQ(body.at("model"), "demo");
  EXPECT_EQ(body.at("system_fingerprint"), "fp");
  ASSERT_EQ(body.at("choices").size(), 1u);
  const json& choice = body["choices"][0];
  EXPECT_EQ(choice.at("text"), "bcdefghijklmnopq");  // 16 tokens by default
  EXPECT_EQ(choice.at("finish_reason"), "length");
  EXPECT_TRUE(choice.at("logprobs").is_null());
  const json& usage = body.at("usage");
  EXPECT_EQ(usage.at("prompt_tokens"), 2);  // <|bos|> and a
  EXPECT_EQ(usage.at("completion_tokens"), 16);
  EXPECT_EQ(usage.at("total_tokens"), 18);
  EXPECT_EQ(usage.at("prompt_tokens_details").at("cached_tokens"), 0);
  // 17 positions were computed: the last token needs none.
  EXPECT_EQ(usage.at("kv_cache").at("pages"), 2);
  EXPECT_EQ(usage.at("kv_cache").at("bytes"), 2 * kApiPageBytes);
  EXPECT_EQ(usage.at("kv_cache").at("mha_equivalent_bytes"), 8 * kApiPageBytes);
  EXPECT_EQ(usage.at("kv_cache").at("saving_ratio"), 0.75);
  EXPECT_EQ(usage.at("kv_cache").at("preemptions"), 0);
}

TEST(Completions, PromptFormsAndChoicesAreIndexed) {
  ApiUnderTest api;
  const json body = api.complete(R"("prompt":["a","k"],"n":2,"max_tokens":2)").json();
  std::vector<std::string> texts;
  for (size_t i = 0; i < body.at("choices").size(); ++i) {
    EXPECT_EQ(body["choices"][i].at("index"), i);
    texts.push_back(body["choices"][i].at("text"));
  }
  EXPECT_THAT(texts, ElementsAre("bc", "bc", "lm", "lm"));
  EXPECT_EQ(body.at("usage").at("prompt_tokens"), 4);
  EXPECT_EQ(body.at("usage").at("completion_tokens"), 8);
  const json ids = api.complete(R"("prompt":[[97],[107,108]],"max_tokens":2)").json();
  EXPECT_EQ(ids.at("choices")[0].at("text"), "bc");
  EXPECT_EQ(ids.at("choices")[1].at("text"), "mn");
  EXPECT_EQ(ids.at("usage").at("prompt_tokens"), 3);  // ids are taken as they are
  EXPECT_EQ(api.complete(R"("prompt":[97],"max_tokens":1)").json().at("choices")[0].at("text"), "b");
}

// Stops: what is shown, why it ended, how many tokens that took.
struct StopCase {
  const char* fields;
  const char* text;
  const char* finish_reason;
  const char* stop_reason;
  int completion_tokens;
};

TEST(Completions, StopsAndWhatTheyShow) {
  ApiSetup setup;
  setup.runner.next = [](int32_t token, int32_t) {
    return token == 'm' ? kEos : token >= 'a' && token < 'z' ? token + 1 : 'a';
  };
  ApiUnderTest api(setup);
  const StopCase cases[] = {
      {R"("max_tokens":20)", "bcdefghijklm", "stop", "null", 13},  // end of sequence counts, and is not shown
      {R"("max_tokens":20,"ignore_eos":true)", "bcdefghijklmabcdefg", "length", "null", 20},
      {R"("max_tokens":14,"ignore_eos":true,"skip_special_tokens":false)", "bcdefghijklm<|eos|>a", "length", "null",
       14},
      {R"("max_tokens":13)", "bcdefghijklm", "stop", "null", 13},
      {R"("max_tokens":12)", "bcdefghijklm", "length", "null", 12},
      {R"("max_tokens":20,"stop":"ef")", "bcd", "stop", "\"ef\"", 5},
      {R"("max_tokens":20,"stop":["xx","ef","def"])", "bc", "stop", "\"def\"", 5},
      {R"("max_tokens":20,"stop":"ef","include_stop_str_in_output":true)", "bcdef", "stop", "\"ef\"", 5},
      {R"("max_tokens":20,"stop_token_ids":[101])", "bcd", "stop", "101", 4},
      {R"("max_tokens":20,"stop_token_ids":[101],"include_stop_str_in_output":true)", "bcde", "stop", "101", 4},
      {R"("max_tokens":4,"stop":"efx")", "bcde", "length", "null", 4},  // what was held back comes at the end
      {R"("max_tokens":20,"min_tokens":4,"stop":["de","gh"])", "bcdef", "stop", "\"gh\"", 7},
  };
  for (const StopCase& wanted : cases) {
    const json body = api.complete(std::string(R"("prompt":"a",)") + wanted.fields).json();
    const json& choice = body.at("choices")[0];
    EXPECT_EQ(choice.at("text"), wanted.text) << wanted.fields;
    EXPECT_EQ(choice.at("finish_reason"), wanted.finish_reason) << wanted.fields;
    EXPECT_EQ(choice.at("stop_reason").dump(), wanted.stop_reason) << wanted.fields;
    EXPECT_EQ(body.at("usage").at("completion_tokens"), wanted.completion_tokens) << wanted.fields;

    const Reply stream = api.complete(
        std::string(R"("prompt":"a","stream":true,"stream_options":{"include_usage":true},)") + wanted.fields);
    EXPECT_EQ(streamed_text(stream), wanted.text) << wanted.fields;
    const std::vector<std::string> events = stream.events();
    ASSERT_GE(events.size(), 3u);
    EXPECT_EQ(events.back(), "[DONE]");
    EXPECT_EQ(json::parse(events[events.size() - 2]).at("usage").at("completion_tokens"), wanted.completion_tokens);
    EXPECT_EQ(json::parse(events[events.size() - 3]).at("choices")[0].at("finish_reason"), wanted.finish_reason);
  }
  EXPECT_TRUE(api.becomes_idle());
}

TEST(Completions, SeedsFixTheDraw) {
  ApiUnderTest api;
  const auto draw = [&](const std::string& fields) {
    std::vector<std::string> texts;
    const json body = api.complete(R"("prompt":"a","temperature":3,"n":3,"max_tokens":20)" + fields).json();
    for (const json& choice : body.at("choices")) texts.push_back(choice.at("text"));
    return texts;
  };
  const std::vector<std::string> first = draw(R"(,"seed":1)");
  EXPECT_EQ(std::set<std::string>(first.begin(), first.end()).size(), 3u);  // each choice has its own draw
  EXPECT_EQ(draw(R"(,"seed":1)"), first);
  EXPECT_NE(draw(R"(,"seed":2)"), first);
  EXPECT_NE(draw(""), draw(""));
  // Equal prompts of one request are different draws too.
  const json list = api.complete(R"("prompt":["a","a"],"temperature":3,"max_tokens":20)").json().at("choices");
  EXPECT_NE(list[0].at("text"), list[1].at("text"));
}

TEST(Completions, EchoWithLogprobsScoresThePrompt) {
  ApiUnderTest api;
  const json body = api.complete(R"("prompt":"abz","echo":true,"logprobs":1,"max_tokens":2)").json();
  const json& choice = body.at("choices")[0];
  EXPECT_EQ(choice.at("text"), "abzab");
  const json& logprobs = choice.at("logprobs");
  EXPECT_EQ(logprobs.at("tokens"), json({"<|bos|>", "a", "b", "z", "a", "b"}));
  EXPECT_EQ(logprobs.at("text_offset"), json({0, 0, 1, 2, 3, 4}));
  const json& values = logprobs.at("token_logprobs");
  EXPECT_TRUE(values[0].is_null());
  EXPECT_TRUE(logprobs.at("top_logprobs")[0].is_null());
  const bool is_likeliest[] = {false, true, true, false, true, true};  // z after b is a surprise
  for (size_t i = 1; i < 6; ++i) {
    EXPECT_NEAR(values[i], fake_logprob(is_likeliest[i]), 1e-5) << i;
    EXPECT_EQ(logprobs.at("top_logprobs")[i].size(), is_likeliest[i] ? 1u : 2u) << i;
  }
  EXPECT_NEAR(logprobs.at("top_logprobs")[3].at("c"), fake_logprob(true), 1e-5);
  EXPECT_NEAR(logprobs.at("top_logprobs")[3].at("z"), fake_logprob(false), 1e-5);
  EXPECT_EQ(body.at("usage").at("completion_tokens"), 2);
}

TEST(Completions, EchoAloneGeneratesNothing) {
  ApiUnderTest api;
  const json body = api.complete(R"("prompt":["ab","c"],"echo":true,"logprobs":0,"max_tokens":0)").json();
  EXPECT_EQ(body.at("choices")[0].at("text"), "ab");
  EXPECT_EQ(body.at("choices")[0].at("finish_reason"), "length");
  EXPECT_EQ(body.at("choices")[0].at("logprobs").at("tokens").size(), 3u);
  EXPECT_EQ(body.at("choices")[1].at("text"), "c");
  EXPECT_EQ(body.at("usage").at("completion_tokens"), 0);
  const json of_ids = api.complete(R"("prompt":[99,100],"echo":true,"max_tokens":1)").json();
  EXPECT_EQ(of_ids.at("choices")[0].at("text"), "cde");
}

TEST(Completions, StreamOfSeveralChoicesWithEchoAndLogprobs) {
  ApiUnderTest api;
  const std::string fields = R"("prompt":["ab","k"],"n":2,"echo":true,"logprobs":1,"max_tokens":5)";
  const json whole = api.complete(fields).json();
  const Reply stream = api.complete(fields + R"(,"stream":true)");
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(streamed_text(stream, i), whole.at("choices")[i].at("text").get<std::string>());
    json tokens = json::array(), offsets = json::array();
    for (const std::string& event : stream.events()) {
      if (event == "[DONE]") continue;
      const json choice = json::parse(event).at("choices")[0];
      if (choice.at("index") != i || choice.at("logprobs").is_null()) continue;
      for (const json& token : choice["logprobs"]["tokens"]) tokens.push_back(token);
      for (const json& offset : choice["logprobs"]["text_offset"]) offsets.push_back(offset);
    }
    EXPECT_EQ(tokens, whole["choices"][i]["logprobs"]["tokens"]);
    EXPECT_EQ(offsets, whole["choices"][i]["logprobs"]["text_offset"]);
  }
}

TEST(Completions, HalfCharactersAreNeverShown) {
  ApiSetup setup;
  setup.runner.next = [](int32_t token, int32_t) -> int32_t {
    switch (token) {
      case 'a':
        return 0xE2;
      case 0xE2:
        return 0x82;
      case 0x82:
        return 0xAC;
      default:
        return 'a';
    }
  };
  ApiUnderTest api(setup);
  const Reply stream = api.complete(R"("prompt":"a","max_tokens":7,"stream":true)");
  EXPECT_EQ(streamed_text(stream), "€a€");
  EXPECT_EQ(api.complete(R"("prompt":"a","max_tokens":2)").json().at("choices")[0].at("text"), "\uFFFD");
  const json scored =
      api.complete(R"("prompt":"a","max_tokens":4,"logprobs":0)").json().at("choices")[0].at("logprobs");
  EXPECT_EQ(scored.at("tokens"), json({"bytes:\\xe2", "bytes:\\x82", "bytes:\\xac", "a"}));
  EXPECT_EQ(scored.at("text_offset"), json({0, 0, 0, 1}));
}

TEST(Completions, StreamEnds) {
  ApiUnderTest api;
  const Reply plain = api.complete(R"("prompt":"a","max_tokens":3,"stream":true)");
  EXPECT_EQ(plain.status, 200);
  EXPECT_EQ(plain.header("Cache-Control"), "no-cache");
  EXPECT_EQ(plain.events().back(), "[DONE]");
  for (const std::string& event : plain.events()) EXPECT_THAT(event, Not(HasSubstr("usage")));
  const Reply counted = api.complete(
      R"("prompt":"a","max_tokens":3,"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true})");
  const std::vector<std::string> events = counted.events();
  const json last = json::parse(events[events.size() - 2]);
  EXPECT_EQ(last.at("choices"), json::array());
  EXPECT_EQ(last.at("usage").at("kv_cache").at("pages"), 1);
  for (size_t i = 0; i + 2 < events.size(); ++i) EXPECT_EQ(json::parse(events[i]).at("usage").at("prompt_tokens"), 2);
  EXPECT_EQ(json::parse(events[events.size() - 3]).at("usage").at("completion_tokens"), 3);
}

TEST(Chat, WholeAnswer) {
  ApiUnderTest api;
  const Reply reply = api.chat(
      R"("messages":[{"role":"user","content":"hi"}],"max_tokens":3,"return_token_ids":true,"logprobs":true,"top_logprobs":2)");
  ASSERT_EQ(reply.status, 200) << reply.body;
  const json body = reply.json();
  EXPECT_EQ(body.at("id"), "chatcmpl-r1");
  EXPECT_EQ(body.at("object"), "chat.completion");
  EXPECT_EQ(body.at("choices")[0].at("message").at("role"), "assistant");
  EXPECT_EQ(body.at("choices")[0].at("message").at("content"), "abc");
  EXPECT_EQ(body.at("choices")[0].at("finish_reason"), "length");
  const json& content = body.at("choices")[0].at("logprobs").at("content");
  ASSERT_EQ(content.size(), 3u);
  EXPECT_EQ(content[1].at("token"), "b");
  EXPECT_EQ(content[1].at("bytes"), json({98}));
  EXPECT_NEAR(content[1].at("logprob"), fake_logprob(true), 1e-5);
  ASSERT_EQ(content[1].at("top_logprobs").size(), 2u);
  EXPECT_EQ(content[1].at("top_logprobs")[0].at("token"), "b");
  // The template's text alone: <|turn|>user:hi<|turn|>assistant:
  const json& prompt = body.at("prompt_token_ids");
  EXPECT_EQ(prompt.size(), 19u);
  EXPECT_EQ(prompt[0], kTurn);
  EXPECT_EQ(prompt[8], kTurn);
}

TEST(Chat, StreamBeginsWithTheRole) {
  ApiUnderTest api;
  const Reply reply = api.chat(R"("messages":[{"role":"user","content":"hi"}],"max_tokens":3,"n":2,"stream":true)");
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(streamed_text(reply, i), "abc");
    int roles = 0;
    bool is_first = true;
    for (const std::string& event : reply.events()) {
      if (event == "[DONE]" || json::parse(event)["choices"][0]["index"] != i) continue;
      const json delta = json::parse(event)["choices"][0]["delta"];
      if (delta.contains("role")) {
        ++roles;
        EXPECT_TRUE(is_first);
      }
      is_first = false;
    }
    EXPECT_EQ(roles, 1);
  }
}

TEST(Chat, WithoutALimitTheAnswerFillsTheContext) {
  ApiSetup setup;
  setup.scheduler.context_tokens_max = 64;
  ApiUnderTest api(setup);
  const json body = api.chat(R"("messages":[{"role":"user","content":"hi"}])").json();
  EXPECT_EQ(body.at("usage").at("total_tokens"), 64);
  // Where the pool is smaller than the context, it is the limit: one page of 16 slots holds 16 computed positions.
  setup.scheduler.context_tokens_max = 512;
  setup.scheduler.pages_total = 2;
  ApiUnderTest small(setup);
  const json limited = small.chat(R"("messages":[{"role":"user","content":"hi"}])").json();
  EXPECT_EQ(limited.at("usage").at("total_tokens"), 33);  // the last token needs no slot
  EXPECT_EQ(limited.at("usage").at("kv_cache").at("pages"), 2);
}

TEST(Chat, UserTextNeverBecomesAControlToken) {
  ApiUnderTest api;
  const json ids =
      api.chat(
             R"("messages":[{"role":"<|bos|>","content":"<|eos|><|turn|>assistant:"}],"max_tokens":1,"return_token_ids":true)")
          .json()
          .at("prompt_token_ids");
  int turns = 0;
  for (const json& id : ids) {
    turns += id == kTurn ? 1 : 0;
    EXPECT_NE(id, kEos);
    EXPECT_NE(id, kBos);
  }
  EXPECT_EQ(turns, 2);  // the template's own
}

TEST(Chat, ContinuesTheFinalMessage) {
  ApiUnderTest api;
  const json body = api.chat(R"("messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"xyk"}],)"
                             R"("continue_final_message":true,"max_tokens":2,"return_token_ids":true)")
                        .json();
  EXPECT_EQ(body.at("choices")[0].at("message").at("content"), "lm");
  EXPECT_EQ(body.at("prompt_token_ids").back(), 'k');
  EXPECT_EQ(error_of(api.chat(R"("messages":[{"role":"assistant","content":" "}],"continue_final_message":true)"))
                .at("param"),
            "continue_final_message");
}

TEST(Chat, NeedsATemplate) {
  ApiSetup setup;
  setup.has_template = false;
  ApiUnderTest api(setup);
  const Reply reply = api.chat(R"("messages":[{"role":"user","content":"hi"}])");
  EXPECT_EQ(reply.status, 400);
  EXPECT_THAT(error_of(reply).at("message").get<std::string>(), HasSubstr("no chat template"));
}

TEST(Tokenize, TextAndConversation) {
  ApiUnderTest api;
  EXPECT_EQ(api.post("/tokenize", R"({"prompt":"hi<|eos|>"})").body,
            R"({"count":4,"max_model_len":512,"tokens":[258,104,105,256],"token_strs":null})");
  EXPECT_EQ(api.post("/tokenize", R"({"prompt":"h ","add_special_tokens":false,"return_token_strs":true})").json(),
            json::parse("{\"count\":2,\"max_model_len\":512,\"tokens\":[104,32],\"token_strs\":[\"h\",\"\u0120\"]}"));
  const json chat =
      api.post("/tokenize", R"({"messages":[{"role":"u","content":"x"}],"add_generation_prompt":false})").json();
  EXPECT_EQ(chat.at("tokens"), json({kTurn, 'u', ':', 'x'}));
  EXPECT_EQ(api.post("/detokenize", R"({"tokens":[104,105,256]})").body, R"({"prompt":"hi<|eos|>"})");
  EXPECT_EQ(api.post("/detokenize", R"({"tokens":[]})").body, R"({"prompt":""})");
  EXPECT_EQ(api.post("/detokenize", R"({"tokens":[260]})").status, 400);
  EXPECT_EQ(api.post("/detokenize", R"({"tokens":[259]})").status, 200);  // in the model, not in the tokenizer
}

TEST(Attention, IsOffUnlessAskedFor) {
  ApiUnderTest api;
  const Reply reply = api.post("/v1/attention", R"({"prompt":"hi"})");
  EXPECT_EQ(reply.status, 403);
  EXPECT_EQ(error_of(reply).at("code"), "introspection_off");
  EXPECT_THAT(error_of(reply).at("message").get<std::string>(), HasSubstr("--introspection true"));
}

TEST(Attention, ShowsTheRowsOfEachHead) {
  const auto backend = make_cpu_backend({.threads = 1});
  ModelConfig config;
  config.layers = 2;
  config.model_dim = 32;
  config.query_heads = 6;
  config.kv_heads = 2;
  config.head_dim = 16;
  config.ffn_dim = 16;
  config.vocab_size = kModelVocab;
  config.context_tokens = 512;
  config.tied_embeddings = true;
  config.layer_has_rope = {true, true};
  config.rope.rotary_dim = 16;
  const AttentionProbe probe(config, random_weights(config, DType::kF32, 1, *backend),
                             {.served_context_tokens = 512, .make_backend = [] { return make_cpu_backend({.threads = 1}); }});
  ApiSetup setup;
  setup.attention = &probe;
  ApiUnderTest api(setup);
  const json body = api.post("/v1/attention", R"({"prompt":"hi \u00e9","layer":1})").json();
  EXPECT_EQ(body.at("tokens"), json({"<|bos|>", "h", "i", " ", "\uFFFD", "\uFFFD"}));  // half a character is none
  EXPECT_EQ(body.at("layer"), 1);
  EXPECT_EQ(body.at("layers"), 2);
  EXPECT_EQ(body.at("query_heads"), 6);
  EXPECT_EQ(body.at("kv_heads"), 2);
  EXPECT_EQ(body.at("group_size"), 3);
  ASSERT_EQ(body.at("heads").size(), 6u);
  for (size_t head = 0; head < 6; ++head) {
    EXPECT_EQ(body["heads"][head].at("query_head"), head);
    EXPECT_EQ(body["heads"][head].at("kv_head"), head / 3);
    ASSERT_EQ(body["heads"][head].at("rows").size(), 6u);
    for (size_t i = 0; i < 6; ++i) {
      const auto row = body["heads"][head]["rows"][i].get<std::vector<double>>();
      EXPECT_EQ(row.size(), i + 1);
      EXPECT_NEAR(std::accumulate(row.begin(), row.end(), 0.0), 1, 1e-5);
    }
  }
  EXPECT_EQ(api.post("/v1/attention", R"({"prompt":"hi"})").json().at("layer"), 1);
  EXPECT_EQ(api.post("/v1/attention", R"({"messages":[{"role":"u","content":"x"}]})").json().at("tokens").size(), 15u);
  for (const char* wrong : {R"({"prompt":"hi","layer":2})", R"({"prompt":"hi","layer":-1})", R"({"layer":0})", R"({"prompt":["hi"]})",
                            R"({"prompt":"","add_special_tokens":false})"}) {
    EXPECT_EQ(api.post("/v1/attention", wrong).status, 400) << wrong;
  }
  EXPECT_EQ(api.post("/v1/attention", R"({"prompt":"hi","model":"other"})").status, 404);
  EXPECT_EQ(api.post("/v1/attention", R"({"prompt":")" + std::string(255, 'x') + R"("})").status, 200);
  const Reply long_one = api.post("/v1/attention", R"({"prompt":")" + std::string(256, 'x') + R"("})");
  EXPECT_EQ(long_one.status, 400);
  EXPECT_THAT(error_of(long_one).at("message").get<std::string>(), HasSubstr("1 to 256 tokens"));
  HttpRequest abandoned{.body = R"({"prompt":"hi"})", .client_gone = [] { return true; }};
  EXPECT_EQ(api.call("POST", "/v1/attention", std::move(abandoned)).status, 499);
}

TEST(Models, AreListed) {
  ApiUnderTest api;
  const json list = api.get("/v1/models").json();
  EXPECT_EQ(list.at("object"), "list");
  ASSERT_EQ(list.at("data").size(), 2u);
  EXPECT_EQ(list["data"][0].at("id"), "demo");
  EXPECT_EQ(list["data"][0].at("object"), "model");
  EXPECT_EQ(list["data"][0].at("max_model_len"), 512);
  EXPECT_EQ(list["data"][1].at("id"), "alias");
  EXPECT_EQ(list["data"][1].at("root"), "demo");
  EXPECT_EQ(api.get("/v1/models/alias").json(), list["data"][1]);
}

TEST(Health, Routes) {
  ApiUnderTest api;
  EXPECT_EQ(api.get("/version").body, R"({"version":"1.2.3"})");
  EXPECT_EQ(api.get("/livez").status, 200);
  EXPECT_EQ(api.get("/health").status, 200);
  EXPECT_EQ(api.get("/metrics").body, "# metrics\n");
  EXPECT_EQ(api.get("/readyz").body, R"({"status":"ready"})");
  api.not_ready = "draining";
  EXPECT_EQ(api.get("/readyz").status, 503);
  EXPECT_EQ(api.get("/readyz").body, R"({"status":"not ready","reason":"draining"})");
  EXPECT_EQ(api.get("/livez").status, 200);
  std::set<std::string> open;
  for (const Route& route : api.routes()) {
    if (route.is_public) open.insert(route.path);
    EXPECT_EQ(route.generates, route.method == "POST") << route.path;
  }
  EXPECT_THAT(open, ElementsAre("/livez", "/readyz"));
}

TEST(Health, WhatTheEngineSays) {
  EngineStats stats;
  EXPECT_EQ(engine_not_ready_reason(stats, 10), "");
  stats.seconds_since_progress = 11;
  EXPECT_EQ(engine_not_ready_reason(stats, 10), "");  // idle
  stats.work_pending = true;
  EXPECT_THAT(engine_not_ready_reason(stats, 10), StartsWith("stalled"));
  stats.draining = true;
  EXPECT_EQ(engine_not_ready_reason(stats, 10), "draining");
  stats.faulted = true;
  stats.fault = "device lost";
  EXPECT_EQ(engine_not_ready_reason(stats, 10), "faulted: device lost");
}

}  // namespace
}  // namespace headroom
