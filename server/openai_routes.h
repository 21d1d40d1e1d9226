// The routes of the API: hops 1 to 4 and 8 of a token's life. Each handler is thin: body → struct → tokens → Engine,
// and the engine's events → text → JSON. Handlers run on HTTP workers, several at once; all they share is immutable, or
// made for it.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "server/http_server.h"
#include "server/served_model.h"

namespace headroom {

struct ApiOptions {
  std::vector<std::string> model_names;  // the first is the one that answers show; the others are aliases. Not empty
  std::string version;
  std::string system_fingerprint;  // what the bits of an answer depend on; omitted when empty
  std::vector<std::string> tenant_names;   // by TenantId; empty without API keys
  bool metrics_public = false;
  std::chrono::milliseconds ping_after{10'000};      // of silence in a stream
  std::chrono::milliseconds client_poll_period{50};  // how often a waiting handler looks whether the client is there
  int64_t parsed_bytes_max = 256 << 20;  // of all bodies that are being parsed (ParseRoom)
  uint64_t seed_key = 0;  // of the seeds of requests that bring none: random for each process

  // Called on HTTP workers. Null while the model is being loaded.
  std::function<std::shared_ptr<const ServedModel>()> served;
  // Why no new request should be sent here (loading, draining, faulted, stalled); empty when ready.
  std::function<std::string()> not_ready_reason;
  std::function<std::string()> metrics_text;  // Prometheus text format 0.0.4
  std::function<int64_t()> now_unix_seconds;
};

std::vector<Route> api_routes(ApiOptions options);

// The engine's part of not_ready_reason; empty when it can take requests.
std::string engine_not_ready_reason(const EngineStats& stats, double stalled_seconds_max);

}  // namespace headroom
