// From a model directory and the options to an engine that runs: the one place that puts model, KV pool, backend and engine together.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "engine/engine.h"
#include "engine/model/config.h"
#include "engine/tokenizer/chat_template.h"
#include "engine/tokenizer/tokenizer.h"
#include "kernels/device.h"
#include "server/metrics.h"
#include "server/options.h"
#include "server/served_model.h"

namespace headroom {

// How the KV pool is cut, from the shape of the model and the memory that is there. Plain arithmetic, before any weight is read.
struct KvPlan {
  KvShape shape;
  Capacity capacity;
  int32_t context_tokens = 0;       // that one request may have
  int32_t rope_context_tokens = 0;  // that longrope chooses its factors by: the model's or as asked for, whatever the memory
};

// Where the pool comes from.
struct PoolMemory {
  int64_t available_bytes = 0;  // beside the weights, and what else is taken
  double default_share = 0.25;  // of that, where --kv-memory says nothing
};

// Throws std::runtime_error, one line with the numbers and what to set, when not even one request fits.
KvPlan plan_kv(const ModelConfig& config, const ServeOptions& options, const PoolMemory& memory);

// What the server prints of it at start: several lines.
std::string kv_table(const KvPlan& plan);

// Both throw std::runtime_error, one line that begins with `model`: where the weights do not fit into the memory that is free, and where
// the tokenizer has ids that the model does not know.
void check_weight_bytes(int64_t weight_bytes, const std::string& model, int64_t available_bytes);
void check_vocabulary(const Tokenizer& tokenizer, const ModelConfig& config, const std::string& model);

struct LoadedModel {
  ModelConfig config;
  KvPlan plan;
  Tokenizer tokenizer;
  std::optional<ChatTemplate> chat_template;
  std::unique_ptr<Engine> engine;
  std::optional<AttentionProbe> attention;  // reads the weights of the engine, which it must not outlive
  std::optional<ServedModel> served;        // refers to all of the above
  ModelFacts facts;
  std::string backend;
  std::string backend_reason;  // why this one, where it was left to the server; may be empty
};

// Throws std::runtime_error, one line. `observer` and what it needs must outlive the model; `progress` is told of bytes of weights.
std::shared_ptr<LoadedModel> load_model(const ServeOptions& options, const BackendChooser& choose, EngineObserver* observer,
                                        const std::function<void(size_t done, size_t total)>& progress);

}  // namespace headroom
