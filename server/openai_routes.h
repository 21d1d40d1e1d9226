// The routes of the API: hops 1 to 4 and 8 of a token's life. Each handler is thin: body → struct → tokens → Engine, and
// the engine's events → text → JSON. Handlers run on HTTP workers, several at once; all they share is immutable or the
// engine, which takes requests from any thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/tokenizer/chat_template.h"
#include "engine/tokenizer/tokenizer.h"
#include "server/http_server.h"
#include "server/openai_request.h"

namespace headroom {

// A loaded model, ready to generate. What it refers to outlives every request.
struct ServedModel {
  Engine& engine;
  const Tokenizer& tokenizer;
  const ChatTemplate* chat_template = nullptr;  // null: chat requests are refused
  std::string bos_token;                        // as the template prints them; may be empty
  std::string eos_token;
  ApiLimits limits;
  GenerationDefaults defaults;
};

struct ApiOptions {
  std::vector<std::string> model_names;        // the first is the one that answers show; the others are aliases
  std::string version;
  std::string system_fingerprint;              // what the bits of an answer depend on; omitted when empty
  bool metrics_public = true;
  std::chrono::milliseconds ping_after{10'000};        // of silence in a stream
  std::chrono::milliseconds client_poll_period{50};    // how often a waiting handler looks whether the client is there
  // Null while the model is being loaded.
  std::function<std::shared_ptr<const ServedModel>()> served;
  // Why no new request should be sent here (loading, draining, faulted, stalled); empty when ready.
  std::function<std::string()> not_ready_reason;
  std::function<std::string()> metrics_text;   // the exposition, Prometheus text format 0.0.4
  std::function<int64_t()> now_unix_seconds;
};

std::vector<Route> api_routes(ApiOptions options);

// prompt_bytes_max for a model: four bytes of every byte that the longest tokens could hold, because normalisation can
// shorten a text before it becomes tokens.
int64_t prompt_bytes_max(const Tokenizer& tokenizer, int32_t context_tokens_max);

// The engine's part of not_ready_reason; empty when it can take requests.
std::string engine_not_ready_reason(const EngineStats& stats, double stalled_seconds_max);

}  // namespace headroom
