#include "server/openai_response.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "tests/unit/byte_tokenizer.h"

namespace headroom {
namespace {

using Json = nlohmann::ordered_json;

const Tokenizer& tokenizer() {
  static const Tokenizer instance = Tokenizer::from_json(byte_tokenizer_json());
  return instance;
}

ResponseStyle style(bool is_chat) {
  return {.is_chat = is_chat, .id = is_chat ? "chatcmpl-1" : "cmpl-1", .created = 1700000000, .model = "m\"1"};
}

TokenOutput token(char byte, int64_t offset, float logprob, std::vector<TokenLogprob> top) {
  return {.token = static_cast<unsigned char>(byte),
          .text_offset = offset,
          .has_logprobs = true,
          .logprobs = {.logprob = logprob, .top = std::move(top)}};
}

const UsageTotals kUsage = {.prompt_tokens = 3,
                            .completion_tokens = 2,
                            .cached_tokens = 1,
                            .kv_pages = 2,
                            .kv_bytes = 2048,
                            .kv_shared_bytes = 1024,
                            .kv_mha_equivalent_bytes = 8192,
                            .preemptions = 4};
const char* const kUsageJson =
    R"({"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"prompt_tokens_details":{"cached_tokens":1},)"
    R"("kv_cache":{"pages":2,"bytes":2048,"shared_bytes":1024,"mha_equivalent_bytes":8192,"saving_ratio":0.75,"preemptions":4}})";

// The events of a stream, their frames taken off.
std::vector<std::string> events(const std::string& stream) {
  std::vector<std::string> all;
  for (size_t begin = 0; begin < stream.size();) {
    const size_t end = stream.find("\n\n", begin);
    EXPECT_EQ(stream.substr(begin, 6), "data: ");
    all.push_back(stream.substr(begin + 6, end - begin - 6));
    begin = end + 2;
  }
  return all;
}

TEST(Response, CompletionBody) {
  const ResponseFormat format(tokenizer(), style(false));
  const ChoiceOutput choice = {.index = 0, .text = "a\n", .token_count = 2, .ending = ChoiceEnding{.is_length = true}};
  EXPECT_EQ(
      format.body({&choice, 1}, kUsage),
      R"({"id":"cmpl-1","object":"text_completion","created":1700000000,"model":"m\"1","choices":[{"index":0,"text":"a\n",)"
      R"("logprobs":null,"finish_reason":"length","stop_reason":null}],"usage":)" +
          std::string(kUsageJson) + "}");
}

TEST(Response, ChatBody) {
  ResponseStyle chat = style(true);
  chat.system_fingerprint = "fp";
  const ResponseFormat format(tokenizer(), chat);
  const ChoiceOutput choices[] = {{.index = 0, .text = "a", .ending = ChoiceEnding{.stop_string = "END"}},
                                  {.index = 1, .text = "", .ending = ChoiceEnding{.stop_token = 7}}};
  EXPECT_EQ(
      format.body(choices, kUsage),
      R"({"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"m\"1","system_fingerprint":"fp","choices":[)"
      R"({"index":0,"message":{"role":"assistant","content":"a","refusal":null},"logprobs":null,"finish_reason":"stop",)"
      R"("stop_reason":"END"},{"index":1,"message":{"role":"assistant","content":"","refusal":null},"logprobs":null,)"
      R"("finish_reason":"stop","stop_reason":7}],"usage":)" +
          std::string(kUsageJson) + "}");
}

TEST(Response, CompletionChunks) {
  const ResponseFormat format(tokenizer(), style(false));
  std::string stream;
  format.append_chunk({.index = 1, .text = "he", .token_count = 2}, {}, &stream);
  format.append_chunk({.index = 1, .is_first = false, .text = "y", .token_count = 1, .ending = ChoiceEnding{}}, {},
                      &stream);
  const std::string head =
      R"({"id":"cmpl-1","object":"text_completion","created":1700000000,"model":"m\"1","choices":[)";
  EXPECT_THAT(events(stream),
              testing::ElementsAre(
                  head + R"({"index":1,"text":"he","logprobs":null,"finish_reason":null}]})",
                  head + R"({"index":1,"text":"y","logprobs":null,"finish_reason":"stop","stop_reason":null}]})"));
}

TEST(Response, ChatChunksBeginWithTheRole) {
  const ResponseFormat format(tokenizer(), style(true));
  std::string stream;
  format.append_chunk({.index = 0, .text = "he", .token_count = 1}, {}, &stream);
  format.append_chunk({.index = 0, .is_first = false, .token_count = 1, .ending = ChoiceEnding{.is_length = true}}, {},
                      &stream);
  const std::string head =
      R"({"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"m\"1","choices":[{"index":0,)";
  EXPECT_THAT(events(stream),
              testing::ElementsAre(
                  head + R"("delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]})",
                  head + R"("delta":{"content":"he"},"logprobs":null,"finish_reason":null}]})",
                  head + R"("delta":{},"logprobs":null,"finish_reason":"length","stop_reason":null}]})"));
}

TEST(Response, UsageInStreams) {
  ResponseStyle with_usage = style(true);
  with_usage.include_usage = true;
  std::string stream;
  const ResponseFormat format(tokenizer(), with_usage);
  format.append_chunk({.index = 0, .text = "a", .token_count = 1}, kUsage, &stream);
  format.append_usage_chunk(kUsage, &stream);
  auto all = events(stream);
  ASSERT_EQ(all.size(), 3u);
  EXPECT_TRUE(Json::parse(all[0]).at("usage").is_null());
  EXPECT_TRUE(Json::parse(all[1]).at("usage").is_null());
  EXPECT_EQ(Json::parse(all[2]).at("choices"), Json::array());
  EXPECT_EQ(Json::parse(all[2]).at("usage").dump(), kUsageJson);

  with_usage.continuous_usage = true;
  stream.clear();
  ResponseFormat(tokenizer(), with_usage)
      .append_chunk({.index = 0, .is_first = false, .text = "a", .token_count = 1}, kUsage, &stream);
  EXPECT_EQ(Json::parse(events(stream)[0]).at("usage").dump(),
            R"({"prompt_tokens":3,"completion_tokens":2,"total_tokens":5})");
}

TEST(Response, SavingRatioOfNothingIsZero) {
  std::string out;
  JsonWriter json(&out);
  write_usage({}, &json);
  EXPECT_EQ(Json::parse(out)["kv_cache"]["saving_ratio"], 0.0);
}

TEST(Response, CompletionLogprobs) {
  ResponseStyle scored = style(false);
  scored.top_logprobs = 2;
  const ResponseFormat format(tokenizer(), scored);
  const float infinity = std::numeric_limits<float>::infinity();
  const ChoiceOutput choice = {.index = 0,
                               .text = "ab",
                               .tokens = {token('a', 0, -0.5f, {{'a', -0.5f}, {'b', -1.5f}}),
                                          // Not among the likeliest: it is shown too. No JSON number is infinite.
                                          token('b', 1, -infinity, {{'c', -0.25f}, {0xE2, -2.5f}})},
                               .token_count = 2};
  EXPECT_EQ(Json::parse(format.body({&choice, 1}, kUsage))["choices"][0]["logprobs"].dump(),
            R"({"text_offset":[0,1],"token_logprobs":[-0.5,-9999],"tokens":["a","b"],)"
            R"("top_logprobs":[{"a":-0.5,"b":-1.5},{"c":-0.25,"bytes:\\xe2":-2.5,"b":-9999}]})");
}

TEST(Response, EchoPutsThePromptInFront) {
  ResponseStyle scored = style(false);
  scored.top_logprobs = 0;
  const ResponseFormat format(tokenizer(), scored);
  EchoedPrompt prompt{.text = "xy", .characters = 2, .tokens = {{.token = 'x'}, token('y', 1, -1.0f, {})}};
  ChoiceOutput choice = {
      .index = 0, .text = "a", .tokens = {token('a', 2, -2.0f, {})}, .token_count = 1, .echo = &prompt};
  const Json shown = Json::parse(format.body({&choice, 1}, kUsage))["choices"][0];
  EXPECT_EQ(shown["text"], "xya");
  EXPECT_EQ(shown["logprobs"].dump(), R"({"text_offset":[0,1,2],"token_logprobs":[null,-1,-2],"tokens":["x","y","a"],)"
                                      R"("top_logprobs":[null,{"y":-1},{"a":-2}]})");
  choice.is_first = false;  // later pieces of a stream do not repeat it
  std::string stream;
  format.append_chunk(choice, {}, &stream);
  EXPECT_EQ(Json::parse(events(stream)[0])["choices"][0]["text"], "a");
}

TEST(Response, ChatLogprobs) {
  ResponseStyle scored = style(true);
  scored.top_logprobs = 1;
  const ResponseFormat format(tokenizer(), scored);
  const ChoiceOutput choice = {
      .index = 0, .text = "a", .tokens = {token('a', 0, -0.5f, {{0xE2, -0.25f}})}, .token_count = 1};
  EXPECT_EQ(Json::parse(format.body({&choice, 1}, kUsage))["choices"][0]["logprobs"].dump(),
            "{\"content\":[{\"token\":\"a\",\"logprob\":-0.5,\"bytes\":[97],\"top_logprobs\":"
            "[{\"token\":\"\uFFFD\",\"logprob\":-0.25,\"bytes\":[226]}]}],\"refusal\":null}");
}

TEST(Response, TokensAsIds) {
  ResponseStyle scored = style(false);
  scored.top_logprobs = 0;
  scored.tokens_as_ids = true;
  const ChoiceOutput choice = {.index = 0, .text = "a", .tokens = {token('a', 0, -0.5f, {})}, .token_count = 1};
  const Json logprobs =
      Json::parse(ResponseFormat(tokenizer(), scored).body({&choice, 1}, kUsage))["choices"][0]["logprobs"];
  EXPECT_EQ(logprobs["tokens"].dump(), R"(["token_id:97"])");
  EXPECT_EQ(logprobs["top_logprobs"].dump(), R"([{"token_id:97":-0.5}])");
}

TEST(Response, TokenIds) {
  const std::vector<TokenId> prompt = {1, 2};
  const ChoiceOutput choice = {
      .index = 0, .text = "a", .tokens = {token('a', 0, 0, {})}, .token_count = 1, .prompt_ids = &prompt};
  ResponseStyle completion = style(false);
  completion.return_token_ids = true;
  const Json body = Json::parse(ResponseFormat(tokenizer(), completion).body({&choice, 1}, kUsage));
  EXPECT_EQ(body["choices"][0]["token_ids"].dump(), "[97]");
  EXPECT_EQ(body["choices"][0]["prompt_token_ids"].dump(), "[1,2]");
  ResponseStyle chat = style(true);
  chat.return_token_ids = true;
  const ResponseFormat chat_format(tokenizer(), chat);
  EXPECT_EQ(Json::parse(chat_format.body({&choice, 1}, kUsage))["prompt_token_ids"].dump(), "[1,2]");
  std::string stream;
  chat_format.append_chunk(choice, {}, &stream);
  EXPECT_EQ(Json::parse(events(stream)[0])["prompt_token_ids"].dump(), "[1,2]");
  EXPECT_EQ(Json::parse(events(stream)[1])["choices"][0]["token_ids"].dump(), "[97]");
}

TEST(Response, TextOfAnyBytesStaysJson) {
  const ResponseFormat format(tokenizer(), style(false));
  const ChoiceOutput choice = {.index = 0, .text = "\xE2\x82\n\0x", .token_count = 1};
  EXPECT_FALSE(Json::parse(format.body({&choice, 1}, kUsage), nullptr, false).is_discarded());
  std::string stream;
  format.append_chunk(choice, {}, &stream);
  EXPECT_EQ(events(stream).size(), 1u);
}

}  // namespace
}  // namespace headroom
