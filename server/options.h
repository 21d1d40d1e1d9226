// What `headroom serve` can be told: one plain struct, filled from defaults, then a JSON file (--config), then flags. A key of the file
// is a flag's name with underscores. The table behind it (options.cc) is also the help text and the README's table.
// An unknown name or an impossible value is a std::runtime_error of one line, with the nearest known name.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/model/capacity.h"
#include "kernels/dtype.h"
#include "server/http_server.h"
#include "server/peer.h"

namespace headroom {

// Bytes, or a share of what is free.
struct MemoryAmount {
  int64_t bytes = 0;
  double share = 0;  // of the free memory, (0, 1]; 0: `bytes` counts
};

struct ServeOptions {
  // Model
  std::string model;                            // directory in Hugging Face layout, or a GGUF file. Must be set
  std::optional<DType> weights;                 // what matrices are kept as; unset: as stored
  std::vector<std::string> served_model_names;  // what clients call it; empty: the directory's name
  std::string device = "auto";                  // auto, cpu, cuda
  std::string activations = "auto";             // auto, fp32, bf16
  bool cuda_graphs = true;                      // decode steps on a device are recorded once and replayed
  int32_t threads = 0;                          // of the CPU backend; 0: one per physical core

  // KV cache
  std::optional<MemoryAmount> kv_memory;  // size of the pool; absent: what all sequences need, at most a quarter of the free memory, 90 % of a device's
  std::optional<DType> kv;                // element type; absent: as config.json's
  int32_t page_tokens = 16;               // tokens of a page
  int32_t context_tokens = 0;             // prompt and answer of one request; 0: the model's, or what the pool holds if that is less
  bool prefix_cache = true;               // prompts reuse the pages of earlier ones with the same beginning

  // Scheduling
  bool async_scheduling = true;  // where a device draws the tokens, the next step is planned and launched while it is at work on the last
  int32_t step_tokens_max = kStepTokensDefault;  // tokens of one step: more is faster, fewer makes others wait less
  int32_t step_slowdown_max = 4;        // of a step that generates, by tokens of prompts beside (StepPace); 0: no bound
  int32_t running_sequences_max = 256;  // sequences that run at the same time
  int32_t queue_requests_max = 1024;    // requests that wait; one more is answered 429
  int64_t queue_tokens_max = 1 << 24;   // tokens of their prompts; likewise
  double stalled_seconds_max = 10;      // of work without progress, then /readyz says 503

  // HTTP; `http` holds the limits of the front, with their defaults
  HttpServerOptions http;
  std::string api_keys_file;     // names, digests of keys and limits (api_keys.h); empty: no keys needed
  std::vector<Tenant> tenants;   // of that file; empty without
  bool introspection = false;     // /v1/attention answers: one forward pass on a thread of its own
  double drain_seconds_max = 45;  // after SIGTERM, for what runs

  // Page
  int32_t live_watchers_max = 16;      // that watch the engine at the same time; 0: nobody may
  std::string live_requests = "auto";  // all, none; auto: all unless there are API keys
  std::vector<Peer> peers;             // servers that the page compares with this one; their pages may watch this one

  // Logs
  std::string log_level = "info";
  std::string log_format = "text";
};

struct ParsedOptions {
  ServeOptions options;
  bool help = false;  // asked for: print options_help(), nothing else is valid
};

// Of the arguments behind `serve`.
ParsedOptions parse_serve_options(const std::vector<std::string>& arguments);

// A file that whoever runs the server names, a pipe included: at most 1 MiB of text. `what` begins the error.
std::string read_own_file(const std::string& path, const std::string& what);

// Sets from a JSON object as --config does; `source` names it in errors.
void apply_json_options(std::string_view json, const std::string& source, ServeOptions& options);

std::string options_help();
std::string options_markdown();

// "1536", "512 MiB", "1.5GiB", "50%". Throws std::runtime_error.
MemoryAmount parse_memory_amount(std::string_view text);
// How people read bytes: "1.50 GiB".
std::string format_bytes(int64_t bytes);

// The nearest of `known` to a mistyped word; empty when none is near.
std::string nearest_name(std::string_view word, const std::vector<std::string>& known);

}  // namespace headroom
