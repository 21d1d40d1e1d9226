#include "server/model_loader.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "engine/files/checked_file.h"
#include "engine/kv/kv_cache.h"
#include "engine/model/open_model.h"
#include "engine/model/transformer.h"
#include "engine/model/weights.h"
#include "engine/tokenizer/gguf_vocabulary.h"
#include "engine/transformer_runner.h"
#include "kernels/backend.h"
#include "server/process_stats.h"

namespace headroom {
namespace {

using Clock = std::chrono::steady_clock;
constexpr double kDeviceShare = 0.9;      // of what is free on a device, for the pool
// A device hands out memory in whole pages, so that the parts beside the pool take more than was predicted, by this part at most.
constexpr int64_t kRoundingPart = 32;
constexpr int32_t kLogitsRowsMax = 64;    // rows of logits at once; more sequences take turns

int64_t pool_budget(const KvShape& shape, const ServeOptions& options, int64_t context_tokens, const PoolMemory& memory) {
  const int64_t available_bytes = memory.available_bytes;
  if (!options.kv_memory) {
    const auto share = static_cast<int64_t>(static_cast<double>(available_bytes) * memory.default_share);
    const int64_t one = shape.request_bytes(context_tokens);
    return one > share / options.running_sequences_max ? share : one * options.running_sequences_max;  // the product could overflow
  }
  if (options.kv_memory->share > 0) return static_cast<int64_t>(static_cast<double>(available_bytes) * options.kv_memory->share);
  if (options.kv_memory->bytes > available_bytes) {
    throw std::runtime_error("a KV pool of " + format_bytes(options.kv_memory->bytes) + " does not fit into the " +
                             format_bytes(available_bytes) + " of free memory: set --kv-memory to at most " + std::to_string(available_bytes));
  }
  return options.kv_memory->bytes;
}

nlohmann::json read_json_if_there(const std::filesystem::path& path) {
  constexpr size_t kBytesMax = 16 << 20;
  const std::optional<std::string> text = read_text_file_if_there(path, kBytesMax);
  if (!text) return nlohmann::json::object();
  nlohmann::json json = nlohmann::json::parse(*text, nullptr, false);
  if (!json.is_object()) throw std::runtime_error(path.string() + ": is not a JSON object");
  return json;
}

// How tokenizer_config.json spells a token: a string, or an object that holds it.
std::string token_text(const nlohmann::json& config, const char* key) {
  const auto found = config.find(key);
  if (found == config.end()) return "";
  if (found->is_string()) return found->get<std::string>();
  const auto content = found->is_object() ? found->find("content") : found->end();
  return content != found->end() && content->is_string() ? content->get<std::string>() : "";
}

// What requests of this model do when they do not say. A value that no request could have is refused here.
GenerationDefaults load_defaults(const std::filesystem::path& model_dir) {
  const std::filesystem::path path = model_dir / "generation_config.json";
  const nlohmann::json config = read_json_if_there(path);
  GenerationDefaults defaults;
  const auto number = [&](const char* key, double min, double max) -> std::optional<double> {
    const auto found = config.find(key);
    if (found == config.end() || found->is_null()) return std::nullopt;
    const double value = found->is_number() ? found->get<double>() : NAN;
    if (!(value >= min && value <= max)) throw std::runtime_error(path.string() + ": " + key + " is out of range");
    return value;
  };
  if (const auto value = number("temperature", 0, 100)) defaults.temperature = static_cast<float>(*value);
  if (const auto value = number("top_p", 0, 1); value && *value > 0) defaults.top_p = static_cast<float>(*value);
  if (const auto value = number("min_p", 0, 1)) defaults.min_p = static_cast<float>(*value);
  if (const auto value = number("repetition_penalty", 1e-3, 1e3)) defaults.repetition_penalty = static_cast<float>(*value);
  if (const auto value = number("top_k", -1, 1e9)) defaults.top_k = std::max(0, static_cast<int32_t>(*value));
  if (const auto value = number("max_new_tokens", 1, 1e9)) defaults.generated_tokens_max = static_cast<int32_t>(*value);
  return defaults;
}

// All that turns text into tokens and back, and what requests do when they do not say.
struct TextParts {
  Tokenizer tokenizer;
  std::optional<ChatTemplate> chat_template;
  std::string bos_token, eos_token;
  GenerationDefaults defaults;
};

// `gguf`, unless null, has it all but the defaults of requests, which are the server's then.
TextParts load_text_parts(const std::filesystem::path& path, const GgufFile* gguf) {
  if (gguf != nullptr) {
    GgufVocabulary vocabulary = read_gguf_vocabulary(gguf->metadata(), path.string());
    return {.tokenizer = std::move(vocabulary.tokenizer),
            .chat_template = std::move(vocabulary.chat_template),
            .bos_token = std::move(vocabulary.bos_token),
            .eos_token = std::move(vocabulary.eos_token),
            .defaults = {}};
  }
  const nlohmann::json tokenizer_config = read_json_if_there(path / "tokenizer_config.json");
  return {.tokenizer = Tokenizer::load(path),
          .chat_template = ChatTemplate::load(path),
          .bos_token = token_text(tokenizer_config, "bos_token"),
          .eos_token = token_text(tokenizer_config, "eos_token"),
          .defaults = load_defaults(path)};
}

// Measures the phases of a start.
class Phases {
 public:
  void end(const char* name) {
    const Clock::time_point now = Clock::now();
    seconds_.emplace_back(name, std::chrono::duration<double>(now - begin_).count());
    begin_ = now;
  }
  std::vector<std::pair<std::string, double>> take() { return std::move(seconds_); }

 private:
  Clock::time_point begin_ = Clock::now();
  std::vector<std::pair<std::string, double>> seconds_;
};

TransformerOptions transformer_options(const ModelConfig& config, const ServeOptions& options) {
  return {.step_tokens_max = options.step_tokens_max,
          .logits_rows_max = std::min(kLogitsRowsMax, options.running_sequences_max),
          .served_context_tokens = options.context_tokens > 0 ? options.context_tokens : config.context_tokens};
}

StepLimits limits_of_steps(const ModelConfig& config, const ServeOptions& options) {
  const TransformerOptions sizes = transformer_options(config, options);
  const int64_t pages = pages_for_tokens(sizes.served_context_tokens, options.page_tokens);
  return step_limits(config, sizes, options.running_sequences_max, static_cast<int32_t>(pages));
}

void check_context_tokens(const ModelConfig& config, const ServeOptions& options) {
  if (options.context_tokens > config.context_tokens) {
    throw std::runtime_error("--context-tokens " + std::to_string(options.context_tokens) + " is more than the model's " +
                             std::to_string(config.context_tokens));
  }
}

// What a run takes beside the pool, by arithmetic.
ModelFacts predicted_memory(const Backend& backend, const OpenModel& opened, const WeightTypes& types, const ServeOptions& options) {
  ModelFacts facts;
  facts.weight_bytes_predicted = static_cast<int64_t>(predicted_weight_bytes(*opened.tensors, opened.config, types));
  facts.activation_bytes_predicted =
      static_cast<int64_t>(Transformer::predicted_activation_bytes(opened.config, transformer_options(opened.config, options)));
  facts.workspace_bytes_predicted = static_cast<int64_t>(backend.workspace_bytes(limits_of_steps(opened.config, options)));
  return facts;
}

// Of a device everything is taken at start, so that most of what is left can be pool. A host has other uses for its memory.
PoolMemory memory_of_pool(const Backend& backend, const ModelFacts& facts, const ServeOptions& options) {
  const std::optional<DeviceMemoryState> device = backend.device_memory();
  const int64_t available_bytes = device ? device->free_bytes : available_memory_bytes();
  check_weight_bytes(facts.weight_bytes_predicted, options.model, available_bytes);
  const int64_t beside_weights = available_bytes - facts.weight_bytes_predicted;
  if (!device) return {.available_bytes = beside_weights};
  const int64_t taken = facts.activation_bytes_predicted + facts.workspace_bytes_predicted;
  if (taken >= beside_weights) {
    throw std::runtime_error("activations and workspaces need " + format_bytes(taken) + ", and " + format_bytes(beside_weights) +
                             " of the device's memory are free beside the weights: set --step-tokens-max or --running-sequences-max lower");
  }
  const int64_t rounding = (facts.weight_bytes_predicted + taken) / kRoundingPart;
  return {.available_bytes = std::max<int64_t>(beside_weights - taken - rounding, 0), .default_share = kDeviceShare};
}

// Runs what takes memory of a device; where there is not enough, says what could be done.
template <typename Take>
auto take_memory(const std::string& what, const std::string& remedy, const Take& take) {
  try {
    return take();
  } catch (const BackendError& error) {
    if (error.kind != BackendError::Kind::out_of_memory) throw;
    throw std::runtime_error(what + ": " + error.what() + ": " + remedy);
  }
}

// Takes all memory of a run: activations, workspaces, and the pool last, so that it can be said what it may be.
std::unique_ptr<TransformerRunner> make_runner(const ServeOptions& options, std::unique_ptr<Backend> backend,
                                               std::shared_ptr<const ModelWeights> weights, LoadedModel& model) {
  const KvPlan& plan = model.plan;
  const TransformerOptions sizes = transformer_options(model.config, options);
  const std::string fewer = "set --step-tokens-max or --running-sequences-max lower";
  auto transformer = take_memory("activations", fewer, [&] {
    return std::make_unique<Transformer>(model.config, std::move(weights), *backend, sizes);
  });
  const StepLimits limits = limits_of_steps(model.config, options);
  const std::optional<DeviceMemoryState> before = backend->device_memory();
  take_memory("workspaces", fewer, [&] { backend->reserve(limits); });
  const std::optional<DeviceMemoryState> left = backend->device_memory();
  if (left) model.facts.workspace_bytes = before->free_bytes - left->free_bytes;
  const std::string fits = left ? "to at most " + std::to_string(left->free_bytes) : "lower";
  auto cache = take_memory("KV pool", "set --kv-memory " + fits, [&] {
    return std::make_unique<KvCache>(plan.shape, plan.capacity.pages, *backend);
  });
  model.facts.pool_bytes = cache->pool_bytes();
  model.facts.activation_bytes = static_cast<int64_t>(transformer->activation_bytes());
  auto runner = std::make_unique<TransformerRunner>(std::move(backend), std::move(cache), std::move(transformer), sizes.logits_rows_max);
  model.facts.device_memory = runner->backend().device_memory();
  return runner;
}

void start_engine(const ServeOptions& options, EngineObserver* observer, std::unique_ptr<TransformerRunner> runner, LoadedModel& model) {
  const KvPlan& plan = model.plan;
  EngineOptions engine_options;
  engine_options.scheduler.pages_total = plan.capacity.pages;
  engine_options.scheduler.page_tokens = options.page_tokens;
  engine_options.scheduler.step_tokens_max = options.step_tokens_max;
  engine_options.step_slowdown_max = options.step_slowdown_max;
  engine_options.scheduler.running_sequences_max = options.running_sequences_max;
  engine_options.scheduler.queue_requests_max = options.queue_requests_max;
  engine_options.scheduler.queue_tokens_max = options.queue_tokens_max;
  engine_options.scheduler.context_tokens_max = plan.context_tokens;
  engine_options.scheduler.window_tokens = model.config.window_tokens;
  engine_options.scheduler.prefix_cache = options.prefix_cache;
  if (!options.tenants.empty()) engine_options.scheduler.tenants.clear();
  for (const Tenant& tenant : options.tenants) engine_options.scheduler.tenants.push_back(tenant.limits);
  engine_options.async_scheduling = options.async_scheduling;
  engine_options.eos_token_ids = model.config.eos_token_ids;
  model.engine = std::make_unique<Engine>(engine_options, plan.shape, std::move(runner), observer);
}

}  // namespace

KvPlan plan_kv(const ModelConfig& config, const ServeOptions& options, const PoolMemory& memory) {
  KvPlan plan;
  plan.shape = kv_shape(config, options.kv.value_or(config.dtype), options.page_tokens, options.step_tokens_max);
  const int64_t context = options.context_tokens > 0 ? options.context_tokens : config.context_tokens;
  plan.rope_context_tokens = static_cast<int32_t>(context);
  const int64_t budget = pool_budget(plan.shape, options, context, memory);
  plan.capacity = plan_capacity(plan.shape, budget, context);
  // A context that was asked for must fit; otherwise it shrinks to the pool, down to one page.
  const int64_t needed_tokens = options.context_tokens > 0 ? context : std::min<int64_t>(context, plan.shape.page_tokens);
  const int64_t longest = plan.capacity.longest_request_tokens;
  if (longest < needed_tokens) {
    const int64_t needed_bytes = plan.shape.request_bytes(needed_tokens);
    std::string line = "the KV pool of " + format_bytes(budget) + " holds " + std::to_string(longest) +
                       " tokens, but one request of " + std::to_string(needed_tokens) + " tokens needs " + format_bytes(needed_bytes) +
                       ": set --kv-memory to at least " + std::to_string(needed_bytes);
    if (longest > 0) line += ", or --context-tokens to at most " + std::to_string(longest);
    throw std::runtime_error(line);
  }
  plan.context_tokens = static_cast<int32_t>(longest);
  return plan;
}

std::string kv_table(const KvPlan& plan) {
  const KvShape& shape = plan.shape;
  const Capacity& capacity = plan.capacity;
  const auto text = [](int64_t value) { return std::to_string(value); };
  return "KV cache            " + std::string(dtype_name(shape.dtype)) + ", pages of " + text(shape.page_tokens) + " tokens, " +
         text(shape.kv_heads) + " of " + text(shape.query_heads) + " heads" +                                                       //
         "\n  bytes per token   " + text(shape.token_bytes()) + "  (MHA: " + text(shape.mha_token_bytes()) + ")" +                  //
         "\n  pool              " + format_bytes(capacity.pool_bytes) + ", " + text(capacity.pages) + " pages" +                    //
         "\n  tokens            " + text(capacity.tokens) + "  (MHA: " + text(capacity.mha_tokens) + ")" +                          //
         "\n  full requests     " + text(capacity.full_requests) + "  (MHA: " + text(capacity.mha_full_requests) + ")" +            //
         "\n  longest request   " + text(plan.context_tokens) + " tokens";
}

void check_weight_bytes(int64_t weight_bytes, const std::string& model, int64_t available_bytes) {
  if (weight_bytes > available_bytes) {
    throw std::runtime_error(model + ": the weights need " + format_bytes(weight_bytes) + ", and " + format_bytes(available_bytes) +
                             " of memory are free: use a smaller model, or a machine with more memory");
  }
}

void check_vocabulary(const Tokenizer& tokenizer, const ModelConfig& config, const std::string& model) {
  if (tokenizer.vocab_size() > config.vocab_size) {
    throw std::runtime_error(model + ": the tokenizer has token ids up to " + std::to_string(tokenizer.vocab_size() - 1) +
                             ", but the model's vocabulary ends at " + std::to_string(config.vocab_size - 1));
  }
}

std::shared_ptr<LoadedModel> load_model(const ServeOptions& options, const BackendChooser& choose, EngineObserver* observer,
                                        const std::function<void(size_t done, size_t total)>& progress) {
  const std::filesystem::path path = options.model;
  if (!std::filesystem::is_directory(path) && !is_gguf_path(path)) {
    throw std::runtime_error(options.model + " is not a directory, nor named FILE.gguf: set --model to a GGUF file, or to a directory with config.json, "
                             "tokenizer.json and model.safetensors");
  }
  Phases phases;
  OpenModel opened = open_model(path);
  ModelConfig& config = opened.config;
  check_context_tokens(config, options);
  const WeightTypes weight_types = WeightTypes::of(options.weights);
  ChosenBackend chosen = choose({.device = options.device,
                                 .threads = options.threads,
                                 .activations = options.activations,
                                 .cuda_graphs = options.cuda_graphs,
                                 .weights = loaded_weight_types(*opened.tensors, config, weight_types),
                                 .kv = options.kv.value_or(config.dtype),
                                 .head_dim = config.head_dim});
  ModelFacts facts = predicted_memory(*chosen.backend, opened, weight_types, options);
  const KvPlan plan = plan_kv(config, options, memory_of_pool(*chosen.backend, facts, options));
  phases.end("config");
  TextParts text = load_text_parts(path, opened.gguf.get());
  check_vocabulary(text.tokenizer, config, options.model);
  const auto model = std::make_shared<LoadedModel>(
      LoadedModel{.config = config, .plan = plan, .tokenizer = std::move(text.tokenizer), .chat_template = std::move(text.chat_template)});
  phases.end("tokenizer");

  model->facts = std::move(facts);
  model->backend = chosen.backend->description();
  model->backend_reason = chosen.reason;
  std::shared_ptr<const ModelWeights> weights = take_memory("weights", "use a smaller model, or a device with more memory", [&] {
    return load_weights(*opened.tensors, config, *chosen.backend, progress, weight_types);
  });
  model->facts.weight_bytes = static_cast<int64_t>(weights->bytes);
  phases.end("weights");
  start_engine(options, observer, make_runner(options, std::move(chosen.backend), weights, *model), *model);
  if (options.introspection) {
    // Of the kind that the weights are of. One thread: the others are the engine's.
    model->attention.emplace(model->config, std::move(weights),
                             AttentionProbe::Options{.served_context_tokens = plan.rope_context_tokens,
                                                     .kv_dtype = plan.shape.dtype,
                                                     .page_tokens = options.page_tokens,
                                                     .make_backend = [choose, device = chosen.device, activations = options.activations, kv = plan.shape.dtype] {
                                                       return choose({.device = device, .threads = 1, .activations = activations, .kv = kv}).backend;
                                                     }});
  }
  phases.end("engine");

  model->facts.kv_shape = plan.shape;
  model->facts.capacity = plan.capacity;
  model->facts.prefix_cache = options.prefix_cache;
  for (const Tenant& tenant : options.tenants) model->facts.tenant_names.push_back(tenant.name);
  model->facts.startup_seconds = phases.take();
  model->served.emplace(ServedModel{.engine = *model->engine,
                                    .tokenizer = model->tokenizer,
                                    .chat_template = model->chat_template ? &*model->chat_template : nullptr,
                                    .bos_token = text.bos_token,
                                    .eos_token = text.eos_token,
                                    .attention = model->attention ? &*model->attention : nullptr,
                                    .limits = {},
                                    .defaults = text.defaults,
                                    .device = chosen.device});
  model->served->limits.context_tokens_max = plan.context_tokens;
  model->served->capacity = {.config = model->config,
                             .weight_dtype = options.weights.value_or(model->config.dtype),
                             .kv_dtype = plan.shape.dtype,
                             .page_tokens = plan.shape.page_tokens,
                             .step_tokens = plan.shape.step_tokens,
                             .context_tokens = plan.context_tokens,
                             .budgets = {{.memory_bytes = 0, .pool_bytes_max = plan.capacity.pool_bytes}}};
  model->served->limits.vocab_size = model->engine->vocab_size();
  model->served->limits.prompt_bytes_max = prompt_bytes_max(model->tokenizer, plan.context_tokens);
  return model;
}

}  // namespace headroom
