// What a client asks of the engine, and what comes back: plain values that cross from the HTTP workers to the engine thread.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "engine/ids.h"
#include "engine/tokenizer/token_id.h"

namespace headroom {

// How the next token is chosen. The randomness of a token depends on (seed, choice, position) alone.
struct SamplingParams {
  float temperature = 1.0f;         // 0: greedy
  int32_t top_k = 0;                // 0: all
  float top_p = 1.0f;               // (0, 1]
  float min_p = 0.0f;               // [0, 1]
  float repetition_penalty = 1.0f;  // > 0; over prompt and output
  float presence_penalty = 0.0f;    // over output
  float frequency_penalty = 0.0f;   // over output
  std::vector<std::pair<TokenId, float>> logit_bias;
  uint64_t seed = 0;
};

struct GenerateRequest {
  std::vector<TokenId> prompt;      // 1 … context_tokens_max − 1 ids, each in the vocabulary
  int32_t choices = 1;              // n: sequences that share the prompt's pages
  int32_t generated_tokens_max = 16;
  int32_t generated_tokens_min = 0; // before this many, neither end-of-sequence nor a stop id is sampled
  SamplingParams sampling;
  std::vector<TokenId> stop_token_ids;
  bool ignore_eos = false;
  int32_t top_logprobs = -1;        // −1: no log-probabilities; k ≥ 0: the token's own and the k likeliest
  bool prompt_logprobs = false;     // also of every prompt token (echo with logprobs)
  std::string cache_salt;           // prefix-cache hits happen only among equal salts
  TenantId tenant{};                // whose it is: its share and its limits
};

struct TokenLogprob {
  TokenId token = 0;
  float logprob = 0.0f;
};
struct Logprobs {
  float logprob = 0.0f;           // of the token itself
  int32_t rank = 1;               // 1: the likeliest
  std::vector<TokenLogprob> top;  // likeliest first
};

enum class FinishReason : uint8_t { stop, length, abort, error };

// What a request took, at its end.
struct RequestUsage {
  int32_t prompt_tokens = 0;
  int32_t cached_tokens = 0;           // of the prompt, found in the prefix cache
  int32_t generated_tokens = 0;        // all choices
  int64_t kv_pages = 0;                // at the peak, pages shared with others included
  int64_t kv_bytes = 0;                // kv_pages in bytes
  int64_t kv_shared_bytes = 0;         // of these, what other requests held too
  int64_t kv_mha_equivalent_bytes = 0; // what the same pages would take with as many KV heads as query heads
  int32_t preemptions = 0;
};

// One token of one choice.
struct TokenDelta {
  int32_t choice = 0;
  TokenId token = 0;
  bool has_logprobs = false;
  Logprobs logprobs;
};
struct PromptScored {
  std::vector<Logprobs> tokens;  // [prompt]; the first has no context and holds logprob 0, no top
};
// A choice has ended. stop_token: the id that ended it (it was delivered as a TokenDelta before), −1 if none.
struct ChoiceFinished {
  int32_t choice = 0;
  FinishReason reason = FinishReason::stop;
  TokenId stop_token = -1;
};
// The last event of every accepted request, exactly once (I4).
struct Finished {
  FinishReason reason = FinishReason::stop;  // abort: cancelled; error: `message` says why
  std::string message;
  RequestUsage usage;
};
using StreamEvent = std::variant<TokenDelta, PromptScored, ChoiceFinished, Finished>;

// Why submit() refused, with numbers for the message.
struct SubmitError {
  enum class Kind : uint8_t { invalid, context_exceeded, pool_exceeded, share_exceeded, queue_full, too_fast, draining, faulted };
  Kind kind = Kind::invalid;
  std::string message;            // safe to show to the client
  double retry_after_seconds = 0; // queue_full, too_fast, draining
};

}  // namespace headroom
