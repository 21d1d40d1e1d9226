#include "server/openai_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace headroom {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;

const ApiLimits kLimits = {.context_tokens_max = 4096, .vocab_size = 1000, .prompt_bytes_max = 1 << 20};

Parsed<CompletionRequest> completion(const std::string& body, const GenerationDefaults& defaults = {}) {
  return parse_completion_request(body, kLimits, defaults);
}
Parsed<ChatRequest> chat(const std::string& body, const GenerationDefaults& defaults = {}) {
  return parse_chat_request(body, kLimits, defaults);
}
// A completion with one more field.
Parsed<CompletionRequest> with(const std::string& field) { return completion(R"({"prompt":"x",)" + field + "}"); }
const std::string kMessages = R"("messages":[{"role":"user","content":"hi"}])";
Parsed<ChatRequest> chat_with(const std::string& field) { return chat("{" + kMessages + "," + field + "}"); }

template <typename T>
const T& value(const Parsed<T>& parsed) {
  const auto* error = std::get_if<ApiError>(&parsed);
  if (error != nullptr) throw std::runtime_error("refused: " + error->message);
  return std::get<T>(parsed);
}
template <typename T>
std::string fault(const Parsed<T>& parsed) {
  const auto* error = std::get_if<ApiError>(&parsed);
  if (error == nullptr) return "accepted";
  EXPECT_EQ(error->status, 400);
  EXPECT_EQ(error->type, "invalid_request_error");
  return error->param + ": " + error->message;
}

TEST(CompletionRequest, DefaultsAreThoseOfTheDocuments) {
  const CompletionRequest request = value(completion(R"({"prompt":"Say this"})"));
  const GenerationFields& fields = request.generation;
  EXPECT_THAT(request.prompts, ElementsAre(Prompt("Say this")));
  EXPECT_FALSE(request.echo);
  EXPECT_TRUE(request.add_special_tokens);
  EXPECT_EQ(fields.model, "");
  EXPECT_EQ(fields.choices, 1);
  EXPECT_EQ(fields.generated_tokens_max, std::nullopt);
  EXPECT_EQ(fields.generated_tokens_default, 16);
  EXPECT_EQ(fields.generated_tokens_min, 0);
  EXPECT_EQ(fields.sampling.temperature, 1.0f);
  EXPECT_EQ(fields.sampling.top_p, 1.0f);
  EXPECT_EQ(fields.sampling.top_k, 0);
  EXPECT_EQ(fields.sampling.min_p, 0.0f);
  EXPECT_EQ(fields.sampling.repetition_penalty, 1.0f);
  EXPECT_EQ(fields.sampling.presence_penalty, 0.0f);
  EXPECT_EQ(fields.sampling.frequency_penalty, 0.0f);
  EXPECT_THAT(fields.sampling.logit_bias, IsEmpty());
  EXPECT_FALSE(fields.is_seeded);
  EXPECT_THAT(fields.stop, IsEmpty());
  EXPECT_THAT(fields.stop_token_ids, IsEmpty());
  EXPECT_FALSE(fields.include_stop_in_output);
  EXPECT_TRUE(fields.skip_special_tokens);
  EXPECT_FALSE(fields.ignore_eos);
  EXPECT_EQ(fields.top_logprobs, -1);
  EXPECT_FALSE(fields.stream);
  EXPECT_FALSE(fields.include_usage);
}

TEST(CompletionRequest, ReadsEveryField) {
  const CompletionRequest request = value(completion(R"({
    "model":"m","prompt":"x","echo":true,"n":3,"best_of":3,"max_tokens":5,"min_tokens":2,"temperature":0.5,"top_k":7,"top_p":0.25,
    "min_p":0.125,"repetition_penalty":1.5,"presence_penalty":-2,"frequency_penalty":2,"logit_bias":{"17":-100,"3":0.5},
    "seed":-1,"stop":["a","bb"],"stop_token_ids":[4,5],"include_stop_str_in_output":true,"skip_special_tokens":false,
    "ignore_eos":true,"logprobs":0,"return_tokens_as_token_ids":true,"return_token_ids":true,"cache_salt":"s","stream":true,
    "stream_options":{"include_usage":true,"continuous_usage_stats":true},"add_special_tokens":false,"user":"u","priority":-3})"));
  const GenerationFields& fields = request.generation;
  EXPECT_EQ(fields.model, "m");
  EXPECT_TRUE(request.echo);
  EXPECT_FALSE(request.add_special_tokens);
  EXPECT_EQ(fields.choices, 3);
  EXPECT_EQ(fields.generated_tokens_max, 5);
  EXPECT_EQ(fields.generated_tokens_min, 2);
  EXPECT_EQ(fields.sampling.temperature, 0.5f);
  EXPECT_EQ(fields.sampling.top_k, 7);
  EXPECT_EQ(fields.sampling.top_p, 0.25f);
  EXPECT_EQ(fields.sampling.min_p, 0.125f);
  EXPECT_EQ(fields.sampling.repetition_penalty, 1.5f);
  EXPECT_EQ(fields.sampling.presence_penalty, -2.0f);
  EXPECT_EQ(fields.sampling.frequency_penalty, 2.0f);
  EXPECT_THAT(fields.sampling.logit_bias, ElementsAre(Pair(3, 0.5f), Pair(17, -100.0f)));
  EXPECT_TRUE(fields.is_seeded);
  EXPECT_EQ(fields.sampling.seed, UINT64_MAX);
  EXPECT_THAT(fields.stop, ElementsAre("a", "bb"));
  EXPECT_THAT(fields.stop_token_ids, ElementsAre(4, 5));
  EXPECT_TRUE(fields.include_stop_in_output);
  EXPECT_FALSE(fields.skip_special_tokens);
  EXPECT_TRUE(fields.ignore_eos);
  EXPECT_EQ(fields.top_logprobs, 0);
  EXPECT_TRUE(fields.tokens_as_ids);
  EXPECT_TRUE(fields.return_token_ids);
  EXPECT_EQ(fields.cache_salt, "s");
  EXPECT_TRUE(fields.stream);
  EXPECT_TRUE(fields.include_usage);
  EXPECT_TRUE(fields.continuous_usage);
}

TEST(CompletionRequest, PromptsOfAllFourForms) {
  using Ids = std::vector<TokenId>;
  EXPECT_THAT(value(completion(R"({"prompt":""})")).prompts, ElementsAre(Prompt("")));
  EXPECT_THAT(value(completion(R"({"prompt":["a","b"]})")).prompts, ElementsAre(Prompt("a"), Prompt("b")));
  EXPECT_THAT(value(completion(R"({"prompt":[0,999.0]})")).prompts, ElementsAre(Prompt(Ids{0, 999})));
  EXPECT_THAT(value(completion(R"({"prompt":[[1],[2,3]]})")).prompts, ElementsAre(Prompt(Ids{1}), Prompt(Ids{2, 3})));
}

TEST(CompletionRequest, RefusesOtherPrompts) {
  for (const char* prompt :
       {"3", "true", "{}", "[]", "[[]]", "[[1],[]]", "[\"a\",1]", "[\"a\",[1]]", "[[1],\"a\"]", "[null]", "[true]"}) {
    EXPECT_THAT(fault(completion(std::string(R"({"prompt":)") + prompt + "}")),
                HasSubstr("prompt: prompt must be a string, an array"))
        << prompt;
  }
  EXPECT_EQ(fault(completion("{}")), "prompt: prompt is missing");
  EXPECT_EQ(fault(completion(R"({"prompt":null})")), "prompt: prompt is missing");
  for (const char* id :
       {"-1", "1000", "4294967296", "2147483648", "1.5", "1e20", "\"1\"", "null", "true", "[]", "[[1]]"}) {
    EXPECT_EQ(fault(completion(std::string(R"({"prompt":[1,)") + id + "]}")),
              "prompt: prompt must hold token ids, integers from 0 to 999");
    EXPECT_EQ(fault(completion(std::string(R"({"prompt":[[1],[2,)") + id + "]]}")),
              "prompt: prompt must hold token ids, integers from 0 to 999");
  }
}

TEST(CompletionRequest, BoundsTheChoicesOfAllPrompts) {
  std::string prompts;
  for (int i = 0; i < 128; ++i) prompts += "\"x\",";
  prompts.pop_back();
  EXPECT_EQ(fault(completion(R"({"n":2,"prompt":[)" + prompts + "]}")), "accepted");
  EXPECT_THAT(fault(completion(R"({"n":3,"prompt":[)" + prompts + "]}")), HasSubstr("more than 256 choices"));
}

TEST(CompletionRequest, RefusesEachFieldOutsideItsTypeAndRange) {
  const std::pair<const char*, std::vector<const char*>> cases[] = {
      {"model", {"3", "[]", "{}", "true"}},
      {"n", {"0", "-1", "65", "4294967297", "1.5", "true", "\"1\"", "1e20", "[1]"}},
      {"best_of", {"2", "0", "true"}},
      {"max_tokens", {"0", "-1", "2147483648", "4294967297", "1e20", "0.5", "true", "\"16\""}},
      {"min_tokens", {"-1", "4097", "1.5", "true"}},
      {"temperature", {"-0.1", "101", "1e300", "\"0\"", "true", "[]"}},
      {"top_k", {"-2", "2147483648", "1.5", "true"}},
      {"top_p", {"0", "-1", "1.01", "\"1\"", "true"}},
      {"min_p", {"-0.1", "1.01", "true"}},
      {"repetition_penalty", {"0", "-1", "101", "\"1\""}},
      {"presence_penalty", {"-2.1", "2.1", "true"}},
      {"frequency_penalty", {"-2.1", "2.1", "true"}},
      {"seed", {"1.5", "true", "\"1\"", "1e20", "9223372036854775808"}},
      {"logit_bias",
       {"[]", "3", "{\"x\":1}", "{\"-1\":1}", "{\"1000\":1}", "{\"4294967297\":1}", "{\"1\":101}", "{\"1\":-101}",
        "{\"1\":true}", "{\"1\":\"1\"}", "{\"1\":null}", "{\"\":1}", "{\" 1\":1}", "{\"1 \":1}", "{\"7\":1,\"07\":1}",
        "{\"1e1\":1}"}},
      {"stop", {"3", "true", "{}", "\"\"", "[\"\"]", "[3]", "[null]", "[[\"a\"]]"}},
      {"stop_token_ids", {"3", "\"a\"", "{}", "[-1]", "[1000]", "[1.5]", "[true]", "[4294967297]"}},
      {"include_stop_str_in_output", {"1", "\"true\""}},
      {"skip_special_tokens", {"0"}},
      {"ignore_eos", {"\"yes\""}},
      {"echo", {"1"}},
      {"add_special_tokens", {"1"}},
      {"logprobs", {"-1", "21", "true", "1.5", "\"1\""}},
      {"stream", {"1", "\"true\""}},
      {"stream_options", {"{}", "true"}},  // without stream
      {"cache_salt", {"3"}},
      {"priority", {"\"high\"", "0.5"}},
      {"return_token_ids", {"1"}},
      {"return_tokens_as_token_ids", {"1"}},
      {"response_format",
       {"{\"type\":\"json_object\"}", "{\"type\":\"json_schema\",\"json_schema\":{}}", "{}", "\"text\"", "3"}},
  };
  for (const auto& [name, values] : cases) {
    for (const char* wrong : values) {
      const std::string said = fault(with(std::string("\"") + name + "\":" + wrong));
      EXPECT_EQ(said.substr(0, said.find(':')), name) << wrong << ": " << said;
      EXPECT_THAT(said, HasSubstr(std::string(": ") + name + " ")) << wrong;
    }
    EXPECT_EQ(fault(with(std::string("\"") + name + "\":null")), "accepted") << name;
  }
}

TEST(CompletionRequest, MessagesNameTheAllowedRange) {
  EXPECT_EQ(fault(with(R"("n":65)")), "n: n must be an integer from 1 to 64");
  EXPECT_EQ(fault(with(R"("temperature":-1)")), "temperature: temperature must be a number in [0, 100]");
  EXPECT_EQ(fault(with(R"("logprobs":21)")), "logprobs: logprobs must be an integer from 0 to 20");
  EXPECT_EQ(fault(with(R"("stream":true,"stream_options":{"include_usage":1})")),
            "stream_options.include_usage: stream_options.include_usage must be true or false");
}

TEST(CompletionRequest, BoundsStopsAndBiases) {
  const auto list = [](int count, const std::string& element) {
    std::string text;
    for (int i = 0; i < count; ++i) text += (i > 0 ? "," : "") + element;
    return text;
  };
  const std::string kibibyte(1024, 'a');
  EXPECT_EQ(fault(with("\"stop\":[" + list(64, "\"" + kibibyte + "\"") + "]")), "accepted");
  EXPECT_THAT(fault(with("\"stop\":[" + list(65, "\"a\"") + "]")),
              HasSubstr("at most 64 strings, each of 1 to 1024 bytes"));
  EXPECT_THAT(fault(with("\"stop\":\"" + kibibyte + "a\"")), HasSubstr("at most 64 strings, each of 1 to 1024 bytes"));
  EXPECT_THAT(fault(with("\"stop\":[" + list(100'000, "\"a\"") + "]")), HasSubstr("at most 64 strings"));
  EXPECT_EQ(fault(with("\"stop_token_ids\":[" + list(256, "1") + "]")), "accepted");
  EXPECT_THAT(fault(with("\"stop_token_ids\":[" + list(257, "1") + "]")), HasSubstr("at most 256 token ids"));
  std::string biases;
  for (int i = 0; i < 1025; ++i) biases += (i > 0 ? ",\"" : "\"") + std::to_string(i) + "\":1";
  EXPECT_THAT(fault(with("\"logit_bias\":{" + biases + "}")), HasSubstr("at most 1024 entries"));
}

TEST(CompletionRequest, RefusesWhatItWouldHaveToIgnore) {
  const std::pair<const char*, const char*> cases[] = {
      {"suffix", "\"end\""},        {"use_beam_search", "true"},     {"prompt_logprobs", "3"},
      {"guided_regex", "\"a+\""},   {"bad_words", "[\"a\"]"},        {"truncate_prompt_tokens", "5"},
      {"guided_json", "{\"a\":1}"}, {"guided_choice", "[\"a\"]"},    {"structured_outputs", "{\"regex\":\"a\"}"},
      {"allowed_token_ids", "[1]"}, {"chat_template", "\"{{ 1 }}\""}};
  for (const auto& [name, wanted] : cases) {
    EXPECT_EQ(fault(with(std::string("\"") + name + "\":" + wanted)),
              std::string(name) + ": " + name + " is not supported by this server");
    for (const char* nothing : {"null", "false", "\"\"", "[]", "{}"}) {
      EXPECT_EQ(fault(with(std::string("\"") + name + "\":" + nothing)), "accepted");
    }
  }
}

TEST(CompletionRequest, IgnoresUnknownFields) {
  EXPECT_EQ(fault(with(R"("user":3,"metadata":{"a":[1,{"b":null}]},"x-y":"z","store":true)")), "accepted");
}

TEST(CompletionRequest, ReadsSpecialValuesAsThePeersDo) {
  EXPECT_EQ(value(with(R"("top_k":-1)")).generation.sampling.top_k, 0);
  EXPECT_EQ(value(with(R"("top_k":5000)")).generation.sampling.top_k, 1000);  // all there are
  EXPECT_EQ(value(with(R"("temperature":1e-6)")).generation.sampling.temperature, 0.0f);
  EXPECT_EQ(value(with(R"("max_tokens":3.0)")).generation.generated_tokens_max, 3);
  EXPECT_THAT(value(with(R"("stop":"x")")).generation.stop, ElementsAre("x"));
  EXPECT_EQ(fault(with(R"("response_format":{"type":"text"})")), "accepted");
  EXPECT_EQ(value(with(R"("echo":true,"max_tokens":0)")).generation.generated_tokens_max, 0);  // to score a prompt
  EXPECT_EQ(fault(with(R"("min_tokens":6,"max_tokens":5)")),
            "min_tokens: min_tokens must not be greater than the limit of generated tokens, 5");
}

TEST(CompletionRequest, DefaultsComeFromTheModel) {
  const GenerationDefaults defaults = {.temperature = 0.5f,
                                       .top_p = 0.75f,
                                       .min_p = 0.25f,
                                       .repetition_penalty = 1.25f,
                                       .top_k = 20,
                                       .generated_tokens_max = 99};
  const GenerationFields of_model = value(completion(R"({"prompt":"x"})", defaults)).generation;
  EXPECT_EQ(of_model.sampling.temperature, 0.5f);
  EXPECT_EQ(of_model.sampling.top_p, 0.75f);
  EXPECT_EQ(of_model.sampling.min_p, 0.25f);
  EXPECT_EQ(of_model.sampling.repetition_penalty, 1.25f);
  EXPECT_EQ(of_model.sampling.top_k, 20);
  EXPECT_EQ(of_model.generated_tokens_default, 16);
  const std::string all = R"({"prompt":"x","temperature":0,"top_p":1,"min_p":0,"repetition_penalty":1,"top_k":0})";
  EXPECT_EQ(value(completion(all, defaults)).generation.sampling.temperature, 0.0f);
  EXPECT_EQ(value(completion(all, defaults)).generation.sampling.top_k, 0);
  EXPECT_EQ(value(chat("{" + kMessages + "}", defaults)).generation.generated_tokens_default, 99);
}

TEST(AnyRequest, TheBodyIsAnObject) {
  for (const char* body : {"[]", "3", "\"x\"", "null"}) {
    EXPECT_EQ(fault(completion(body)), ": the body must be a JSON object");
    EXPECT_EQ(fault(chat(body)), ": the body must be a JSON object");
    EXPECT_EQ(fault(parse_tokenize_request(body, kLimits)), ": the body must be a JSON object");
    EXPECT_EQ(fault(parse_detokenize_request(body, kLimits)), ": the body must be a JSON object");
  }
  EXPECT_EQ(fault(completion("")), ": the body is empty: it must be a JSON object");
}

TEST(ChatRequest, Defaults) {
  const ChatRequest request = value(chat("{" + kMessages + "}"));
  EXPECT_EQ(request.generation.generated_tokens_max, std::nullopt);
  EXPECT_EQ(request.generation.generated_tokens_default, std::nullopt);  // the rest of the context
  EXPECT_EQ(request.generation.top_logprobs, -1);
  EXPECT_TRUE(request.chat.add_generation_prompt);
  EXPECT_FALSE(request.chat.continue_final_message);
  EXPECT_TRUE(request.chat.tools.is_null());
  EXPECT_EQ(request.chat.template_arguments, Json::object());
}

std::string normalized(const std::string& messages) {
  return value(chat(R"({"messages":)" + messages + "}")).chat.messages.dump();
}

TEST(ChatRequest, ContentsBecomeStrings) {
  EXPECT_EQ(normalized(R"([{"role":"user","content":"hi","name":"n"}])"),
            R"([{"role":"user","content":"hi","name":"n"}])");
  EXPECT_EQ(normalized(R"([{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}])"),
            R"([{"role":"user","content":"a\nb"}])");
  EXPECT_EQ(normalized(R"([{"role":"user","content":[]}])"), R"([{"role":"user","content":""}])");
  EXPECT_EQ(normalized(R"([{"role":"assistant","content":null}])"), R"([{"role":"assistant","content":""}])");
}

TEST(ChatRequest, ArgumentsOfToolCallsBecomeObjects) {
  const auto with_arguments = [](const std::string& arguments) {
    return R"([{"role":"assistant","content":"","tool_calls":[{"id":"1","type":"function","function":{"name":"f")" +
           arguments + "}}]}]";
  };
  EXPECT_EQ(normalized(with_arguments(R"(,"arguments":"{\"a\": 1}")")), with_arguments(R"(,"arguments":{"a":1})"));
  EXPECT_EQ(normalized(with_arguments(R"(,"arguments":"")")), with_arguments(R"(,"arguments":{})"));
  EXPECT_EQ(normalized(with_arguments("")), with_arguments(R"(,"arguments":{})"));
  for (const char* wrong : {R"(,"arguments":"[1]")", R"(,"arguments":"{")", R"(,"arguments":3)"}) {
    EXPECT_THAT(fault(chat(R"({"messages":)" + with_arguments(wrong) + "}")),
                HasSubstr("messages: messages [0] the arguments of tool_calls must be a JSON object in a string"));
  }
}

// The bound on the values of a body is for what its strings hold as well, all together.
TEST(ChatRequest, TheArgumentsOfAllToolCallsAreBoundedTogether) {
  ApiLimits limits = kLimits;
  limits.json.values_max = 100;
  const auto ask = [&](int calls) {
    std::string all;
    for (int i = 0; i < calls; ++i) {
      all += std::string(i == 0 ? "" : ",") + R"({"function":{"name":"f","arguments":"{\"a\":[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]}"}})";  // 20 values
    }
    return parse_chat_request(R"({"messages":[{"role":"assistant","tool_calls":[)" + all + "]}]}", limits, {});
  };
  value(ask(5));
  EXPECT_THAT(fault(ask(6)), HasSubstr("the arguments of tool_calls hold more than 100 values in all"));
}

TEST(ChatRequest, RefusesOtherMessages) {
  const std::pair<const char*, const char*> cases[] = {
      {"[]", "must be an array of 1 to 4096 messages"},
      {"{}", "must be an array of 1 to 4096 messages"},
      {"\"hi\"", "must be an array of 1 to 4096 messages"},
      {"[3]", "[0] must be an object"},
      {"[{\"content\":\"x\"}]", "[0] must have a role, a string"},
      {"[{\"role\":3,\"content\":\"x\"}]", "[0] must have a role, a string"},
      {"[{\"role\":\"user\"}]", "[0] must have a content"},
      {"[{\"role\":\"user\",\"content\":null}]", "[0] must have a content"},
      {"[{\"role\":\"user\",\"content\":3}]", "[0] must have a content"},
      {"[{\"role\":\"user\",\"content\":\"x\"},{\"role\":\"user\",\"content\":[\"x\"]}]", "[1] must have a content"},
      {"[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{}}]}]", "{\"type\": \"text\"} parts"},
      {"[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":3}]}]", "{\"type\": \"text\"} parts"},
      {"[{\"role\":\"assistant\",\"tool_calls\":{}}]", "tool_calls must be an array"},
      {"[{\"role\":\"assistant\",\"tool_calls\":[{}]}]", "each of tool_calls must hold a function with a name"},
  };
  for (const auto& [messages, expected] : cases) {
    EXPECT_THAT(fault(chat(std::string(R"({"messages":)") + messages + "}")), HasSubstr(expected)) << messages;
  }
  EXPECT_EQ(fault(chat("{}")), "messages: messages is missing");
}

TEST(ChatRequest, Logprobs) {
  EXPECT_EQ(value(chat_with(R"("logprobs":true)")).generation.top_logprobs, 0);
  EXPECT_EQ(value(chat_with(R"("logprobs":true,"top_logprobs":20)")).generation.top_logprobs, 20);
  EXPECT_EQ(value(chat_with(R"("logprobs":false,"top_logprobs":0)")).generation.top_logprobs, -1);
  EXPECT_EQ(fault(chat_with(R"("top_logprobs":2)")), "top_logprobs: top_logprobs needs logprobs to be true");
  EXPECT_EQ(fault(chat_with(R"("logprobs":true,"top_logprobs":21)")),
            "top_logprobs: top_logprobs must be an integer from 0 to 20");
  EXPECT_EQ(fault(chat_with(R"("logprobs":1)")), "logprobs: logprobs must be true or false");
}

TEST(ChatRequest, LimitsOfTokens) {
  EXPECT_EQ(value(chat_with(R"("max_tokens":5)")).generation.generated_tokens_max, 5);
  EXPECT_EQ(value(chat_with(R"("max_tokens":5,"max_completion_tokens":6)")).generation.generated_tokens_max, 6);
  EXPECT_THAT(fault(chat_with(R"("max_completion_tokens":0)")), HasSubstr("must be an integer from 1"));
}

TEST(ChatRequest, Tools) {
  EXPECT_EQ(value(chat_with(R"("tools":[{"type":"function"}])")).chat.tools.dump(), R"([{"type":"function"}])");
  EXPECT_EQ(value(chat_with(R"("tools":[{"type":"function"}],"tool_choice":"auto")")).chat.tools.size(), 1u);
  EXPECT_TRUE(value(chat_with(R"("tools":[{"type":"function"}],"tool_choice":"none")")).chat.tools.is_null());
  EXPECT_TRUE(value(chat_with(R"("tools":[])")).chat.tools.is_null());
  EXPECT_THAT(fault(chat_with(R"("tools":[1])")), HasSubstr("tools must be an array of objects"));
  EXPECT_THAT(fault(chat_with(R"("tools":[{}],"tool_choice":"required")")), HasSubstr("a call cannot be enforced"));
  EXPECT_THAT(fault(chat_with(R"("functions":[{}])")), HasSubstr("functions is not supported"));
}

TEST(ChatRequest, TemplateArguments) {
  const ChatRequest request =
      value(chat_with(R"("chat_template_kwargs":{"enable_thinking":false},"continue_final_message":true)"));
  EXPECT_EQ(request.chat.template_arguments.dump(), R"({"enable_thinking":false})");
  EXPECT_TRUE(request.chat.continue_final_message);
  EXPECT_FALSE(request.chat.add_generation_prompt);
  EXPECT_THAT(fault(chat_with(R"("chat_template_kwargs":{"messages":[]})")), HasSubstr("must not set messages"));
  EXPECT_THAT(fault(chat_with(R"("chat_template_kwargs":[])")), HasSubstr("must be an object"));
  EXPECT_THAT(fault(chat_with(R"("continue_final_message":true,"add_generation_prompt":true)")),
              HasSubstr("exclude each other"));
  EXPECT_THAT(fault(chat_with(R"("add_special_tokens":true)")),
              HasSubstr("add_special_tokens is not supported with messages"));
}

TEST(TokenizeRequest, TextOrConversation) {
  const TokenizeRequest text = value(parse_tokenize_request(R"({"prompt":"x"})", kLimits));
  EXPECT_EQ(std::get<std::string>(text.input), "x");
  EXPECT_TRUE(text.add_special_tokens);
  EXPECT_FALSE(text.return_token_strings);
  const TokenizeRequest conversation =
      value(parse_tokenize_request("{" + kMessages + R"(,"return_token_strs":true})", kLimits));
  EXPECT_EQ(std::get<ChatInput>(conversation.input).messages.size(), 1u);
  EXPECT_TRUE(conversation.return_token_strings);
  EXPECT_EQ(fault(parse_tokenize_request("{}", kLimits)), "prompt: prompt or messages is missing");
  EXPECT_EQ(fault(parse_tokenize_request(R"({"prompt":[1]})", kLimits)), "prompt: prompt must be a string");
}

TEST(DetokenizeRequest, TakesIds) {
  EXPECT_THAT(value(parse_detokenize_request(R"({"tokens":[1,999]})", kLimits)).tokens, ElementsAre(1, 999));
  EXPECT_THAT(value(parse_detokenize_request(R"({"tokens":[]})", kLimits)).tokens, IsEmpty());
  EXPECT_THAT(fault(parse_detokenize_request(R"({"tokens":[1000]})", kLimits)), HasSubstr("integers from 0 to 999"));
  EXPECT_THAT(fault(parse_detokenize_request("{}", kLimits)), HasSubstr("tokens must be an array"));
  std::string many = "1";
  for (int i = 1; i < 4096; ++i) many += ",1";
  EXPECT_EQ(value(parse_detokenize_request("{\"tokens\":[" + many + "]}", kLimits)).tokens.size(), 4096u);
  EXPECT_THAT(fault(parse_detokenize_request("{\"tokens\":[" + many + ",1]}", kLimits)), HasSubstr("tokens must have at most 4096 token ids"));
}

// Whatever a client sends, the answer is a value: a request within its bounds, or a 400 that names a library nowhere.
TEST(AnyRequest, RandomDamageIsAnswered) {
  const std::string sound =
      R"({"model":"m","prompt":[[1,2],[3]],"messages":[{"role":"user","content":[{"type":"text","text":"a"}]},{"role":"assistant",)"
      R"("tool_calls":[{"function":{"name":"f","arguments":"{}"}}]}],"tools":[{"a":1}],"stop":["a"],"n":2,"logit_bias":{"1":2},)"
      R"("stream":true,"stream_options":{"include_usage":true},"tokens":[1],"top_p":0.5,"seed":1,"response_format":{"type":"text"}})";
  int accepted = 0;
  for (uint32_t seed = 0; seed < 20000; ++seed) {
    std::mt19937 random(seed);
    std::string text = sound;
    const std::vector<std::string> inserts = {"null", "-1",    "1e20",       "true", "[]",
                                              "{}",   "\"x\"", "4294967297", "[[[[", "\"\\ud800\""};
    for (uint32_t i = random() % 3; i > 0; --i) {
      const size_t colon = text.find(':', random() % text.size());
      if (colon == std::string::npos) continue;
      const size_t end = text.find_first_of(",}]", colon);
      text.replace(colon + 1, (random() % 2 == 0 ? 0 : end - colon - 1), inserts[random() % inserts.size()]);
    }
    const auto first = completion(text);
    const auto second = chat(text);
    if (const auto* request = std::get_if<CompletionRequest>(&first)) {
      ++accepted;
      ASSERT_LE(request->prompts.size() * static_cast<size_t>(request->generation.choices), 256u);
      for (const Prompt& prompt : request->prompts) {
        const auto* ids = std::get_if<std::vector<TokenId>>(&prompt);
        for (size_t i = 0; ids != nullptr && i < ids->size(); ++i) ASSERT_TRUE((*ids)[i] >= 0 && (*ids)[i] < 1000);
      }
    } else {
      ASSERT_EQ(std::get<ApiError>(first).status, 400);
      ASSERT_THAT(std::get<ApiError>(first).message, Not(HasSubstr("exception")));
    }
    if (const auto* request = std::get_if<ChatRequest>(&second)) {
      for (const Json& message : request->chat.messages)
        ASSERT_TRUE(message["content"].is_string() && message["role"].is_string());
    } else {
      ASSERT_EQ(std::get<ApiError>(second).status, 400);
    }
    parse_tokenize_request(text, kLimits);
    parse_detokenize_request(text, kLimits);
  }
  EXPECT_GT(accepted, 100);
}

}  // namespace
}  // namespace headroom
