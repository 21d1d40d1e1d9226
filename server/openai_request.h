// Request bodies → structs: the JSON of OpenAI's API, with vLLM's further fields, ends here. Pure functions, no
// threads. An unknown field is ignored, as every peer does; a known one of the wrong type or range is a 400 that names
// it and its range; one that would change the answer but is not implemented is a 400 too, never ignored.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "engine/request.h"
#include "server/api_error.h"
#include "server/json_reader.h"

namespace headroom {

// Sampling of requests that do not say otherwise: from the model's generation_config.json.
struct GenerationDefaults {
  float temperature = 1.0f;
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  int32_t top_k = 0;                              // 0: all
  std::optional<int32_t> generated_tokens_max{};  // of chat requests; absent: the rest of the context
};

struct ApiLimits {
  int32_t context_tokens_max = 0;
  int32_t vocab_size = 0;           // ids below it may be sent
  int64_t prompt_bytes_max = 0;     // longer texts cannot fit the context: refused before they are tokenised
  int32_t choices_max = 64;         // n
  int32_t choices_total_max = 256;  // prompts · n
  int32_t messages_max = 4096;
  int32_t stop_strings_max = 64;
  int32_t stop_string_bytes_max = 1024;
  int32_t stop_token_ids_max = 256;
  int32_t logit_bias_max = 1024;
  int32_t top_logprobs_max = 20;
  JsonLimits json{};
};

// What completions and chat completions share.
struct GenerationFields {
  std::string model;  // empty: the one that is served
  int32_t choices = 1;
  std::optional<int32_t> generated_tokens_max;      // as asked: refused if the context has no room for it
  std::optional<int32_t> generated_tokens_default;  // else this many, or what the context has room for
  int32_t generated_tokens_min = 0;
  SamplingParams sampling;
  bool is_seeded = false;
  std::vector<std::string> stop;
  std::vector<TokenId> stop_token_ids;
  bool include_stop_in_output = false;
  bool skip_special_tokens = true;
  bool ignore_eos = false;
  int32_t top_logprobs = -1;   // as in GenerateRequest
  bool tokens_as_ids = false;  // tokens of logprobs as "token_id:17"
  bool return_token_ids = false;
  std::string cache_salt;
  bool stream = false;
  bool include_usage = false;
  bool continuous_usage = false;
};

using Prompt = std::variant<std::string, std::vector<TokenId>>;

struct CompletionRequest {
  GenerationFields generation;
  std::vector<Prompt> prompts;  // not empty
  bool add_special_tokens = true;
  bool echo = false;
};

// What a chat template is given.
// The check names the destructor that Json brings: nlohmann's allocates a stack for nested values, and ends the process where there is no memory.
// Nothing here can change that; the README says so under Security.
struct ChatInput {  // NOLINT(bugprone-exception-escape)
  Json messages;            // array of objects, each with a string role and a string content
  Json tools;               // array or null
  Json template_arguments;  // object: chat_template_kwargs
  bool add_generation_prompt = true;
  bool continue_final_message = false;  // the reply goes on with the text of the last message
};

// It holds a ChatInput, whose destructor the check names here again.
struct ChatRequest {  // NOLINT(bugprone-exception-escape)
  GenerationFields generation;
  ChatInput chat;
};

struct TokenizeRequest {
  std::string model;
  std::variant<std::string, ChatInput> input;
  bool add_special_tokens = true;  // of a text
  bool return_token_strings = false;
};

struct AttentionRequest {
  TokenizeRequest text{};
  int32_t layer = 0;  // absent in the request: the last one
};

struct DetokenizeRequest {
  std::string model;
  std::vector<TokenId> tokens;
};

template <typename T>
using Parsed = std::variant<T, ApiError>;

Parsed<CompletionRequest> parse_completion_request(std::string_view body, const ApiLimits& limits,
                                                   const GenerationDefaults& defaults);
Parsed<ChatRequest> parse_chat_request(std::string_view body, const ApiLimits& limits,
                                       const GenerationDefaults& defaults);
Parsed<TokenizeRequest> parse_tokenize_request(std::string_view body, const ApiLimits& limits);
Parsed<AttentionRequest> parse_attention_request(std::string_view body, const ApiLimits& limits, int32_t layers);
Parsed<DetokenizeRequest> parse_detokenize_request(std::string_view body, const ApiLimits& limits);

}  // namespace headroom
