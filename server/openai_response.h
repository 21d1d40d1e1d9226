// What was generated → the JSON of OpenAI's API: whole bodies, and the chunks of a stream. Pure functions, no threads.
// A stream's chunk is built by appending to a string whose beginning never changes, since there is one for every token.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/request.h"
#include "engine/tokenizer/tokenizer.h"
#include "server/json_writer.h"

namespace headroom {

struct TokenOutput {
  TokenId token = 0;
  int64_t text_offset = 0;    // characters of the choice's text before it
  bool has_logprobs = false;  // the first token of a prompt has none: nothing came before it
  Logprobs logprobs;
};

// The prompt in front of each choice's text, for `echo`. The choices of a prompt share it.
struct EchoedPrompt {
  std::string text;
  int64_t characters = 0;
  std::vector<TokenOutput> tokens;  // only with log-probabilities
};

struct ChoiceEnding {
  bool is_length = false;   // else a stop string, a stop token or end-of-sequence
  std::string stop_string;  // that was met
  TokenId stop_token = -1;  // of the request's stop_token_ids, −1: none
};

// What is to be shown of one choice: all of it, or of a stream what is new.
struct ChoiceOutput {
  int32_t index = 0;
  bool is_first = true;  // nothing of it was shown before
  std::string text;
  std::vector<TokenOutput> tokens;  // only if their ids or log-probabilities are shown
  int32_t token_count = 0;
  std::optional<ChoiceEnding> ending;
  const EchoedPrompt* echo = nullptr;                // shown with the first output
  const std::vector<TokenId>* prompt_ids = nullptr;  // shown with the first output

  bool is_empty() const { return token_count == 0 && text.empty() && !ending; }
};

struct UsageTotals {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  // Known at the end.
  int64_t cached_tokens = 0;
  int64_t kv_pages = 0;
  int64_t kv_bytes = 0;
  int64_t kv_shared_bytes = 0;
  int64_t kv_mha_equivalent_bytes = 0;
  int64_t preemptions = 0;

  void add(const RequestUsage& usage);  // what is known at the end, of one prompt
};

struct ResponseStyle {
  bool is_chat = false;
  std::string id;
  int64_t created = 0;
  std::string model;
  std::string system_fingerprint;  // omitted when empty
  int32_t top_logprobs = -1;       // as in GenerateRequest
  bool tokens_as_ids = false;
  bool return_token_ids = false;
  bool include_usage = false;  // streams: each chunk has a "usage", null but in the last one
  bool continuous_usage = false;
};

class ResponseFormat {
 public:
  // The tokenizer outlives it.
  ResponseFormat(const Tokenizer& tokenizer, ResponseStyle style);

  // The body of an answer that is no stream.
  std::string body(std::span<const ChoiceOutput> choices, const UsageTotals& usage) const;

  // Events of a stream, framed. A chat choice's first output is preceded by the chunk with its role.
  void append_chunk(const ChoiceOutput& choice, const UsageTotals& so_far, std::string* out) const;
  void append_usage_chunk(const UsageTotals& usage, std::string* out) const;

 private:
  void begin_response(JsonWriter* json, bool is_chunk) const;
  void write_choice(const ChoiceOutput& choice, bool is_chunk, JsonWriter* json) const;
  void write_text(const ChoiceOutput& choice, bool is_chunk, JsonWriter* json) const;
  void write_token_ids(const ChoiceOutput& choice, JsonWriter* json) const;
  void write_ending(const ChoiceOutput& choice, JsonWriter* json) const;
  void write_completion_logprobs(const ChoiceOutput& choice, JsonWriter* json) const;
  void write_chat_logprobs(const ChoiceOutput& choice, JsonWriter* json) const;
  void write_chat_token(TokenId token, float logprob, JsonWriter* json) const;
  void append_role_chunk(const ChoiceOutput& choice, const UsageTotals& so_far, std::string* out) const;
  void end_chunk(const UsageTotals& so_far, const std::vector<TokenId>* prompt_ids, JsonWriter* json,
                 std::string* out) const;
  std::string token_name(TokenId token) const;

  const Tokenizer& tokenizer_;
  const ResponseStyle style_;
  std::string chunk_begin_;  // "data: {" … "choices":[
};

void write_usage(const UsageTotals& usage, JsonWriter* json);

}  // namespace headroom
