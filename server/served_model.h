// A loaded model, ready to generate: what the handlers need of it. Immutable but for the engine, which takes requests
// from any thread; what it refers to outlives every request.
#pragma once

#include <cstdint>
#include <string>

#include "engine/analysis/attention_patterns.h"
#include "engine/engine.h"
#include "engine/tokenizer/chat_template.h"
#include "engine/tokenizer/tokenizer.h"
#include "server/capacity_plan.h"
#include "server/openai_request.h"

namespace headroom {

struct ServedModel {
  Engine& engine;
  const Tokenizer& tokenizer;
  const ChatTemplate* chat_template = nullptr;  // null: chat requests are refused
  std::string bos_token;                        // as the template prints them; may be empty
  std::string eos_token;
  const AttentionProbe* attention = nullptr;    // null: /v1/attention is off
  ApiLimits limits;
  GenerationDefaults defaults;
  std::string device;         // that computes, "cpu" or "cuda": other bits, so a part of the fingerprint
  CapacityQuestion capacity;  // one request of the whole context, in the pool that there is
};

// What no prompt of a model can exceed in bytes: four times what the longest tokens could hold, because normalisation
// can shorten a text before it becomes tokens.
int64_t prompt_bytes_max(const Tokenizer& tokenizer, int32_t context_tokens_max);

}  // namespace headroom
