#include "server/report.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <set>
#include <stdexcept>

#include "engine/kv/kv_cache.h"
#include "engine/tokenizer/tokenizer.h"
#include "kernels/device.h"
#include "server/model_loader.h"
#include "server/model_shapes.h"
#include "server/process_stats.h"

namespace headroom {
namespace {

constexpr int32_t kPageTokens = 16;
constexpr int32_t kMeasuredTokens = 500;  // of the request whose cache is measured: its last page is not full
constexpr int32_t kPrefillTokens = 512;
constexpr int64_t kDecodePoolBytesMax = int64_t{1} << 30;  // of the variant with the most KV heads
constexpr int32_t kPromptTokensMax = 40;                   // more could not be told apart in a picture
constexpr int64_t kGiB = int64_t{1} << 30;

// A table's row of the design, which names its context; then every shape at the context that its model has.
std::vector<ConfigurationReport> real_configurations(const BackendMaker& make_backend) {
  std::vector<std::pair<std::string, int64_t>> rows = {{"llama-2-70b", 4096}, {"mistral-7b-v0.3", 8192}};
  for (const std::string& name : shape_names()) rows.emplace_back(name, 0);
  const auto backend = make_backend();
  std::vector<ConfigurationReport> configurations;
  for (const auto& [name, tokens] : rows) {
    const ModelConfig config = load_model_shape(name);
    ConfigurationReport row{.name = name, .shape = kv_shape(config, config.dtype, kPageTokens)};
    row.context_tokens = tokens > 0 ? tokens : config.context_tokens;
    row.request_bytes = row.shape.request_bytes(row.context_tokens);
    row.mha_bytes = row.shape.with_kv_heads(config.query_heads).request_bytes(row.context_tokens);
    row.mqa_bytes = row.shape.with_kv_heads(1).request_bytes(row.context_tokens);
    if (row.shape.window_layers == 0) {
      try {  // address space alone: nothing of it is touched
        row.allocated_bytes =
            KvCache(row.shape, pages_for_tokens(row.context_tokens, kPageTokens), *backend).pool_bytes();
      } catch (const BackendError&) {
      }
    }
    configurations.push_back(std::move(row));
  }
  return configurations;
}

// From 1K on, twice as many each time.
std::vector<int32_t> decode_contexts(const ModelConfig& config, DType kv_dtype, int32_t tokens_max) {
  const KvShape mha = kv_shape(config, kv_dtype, kPageTokens).with_kv_heads(config.query_heads);
  const int64_t longest =
      std::min<int64_t>({tokens_max, config.context_tokens, kDecodePoolBytesMax / mha.token_bytes()});
  std::vector<int32_t> contexts;
  for (int32_t tokens = 1024; tokens <= longest; tokens *= 2) contexts.push_back(tokens);
  if (contexts.empty()) contexts.push_back(static_cast<int32_t>(longest));
  return contexts;
}

VariantReport measure_variant(const ModelConfig& config, int32_t kv_heads, DType kv_dtype, int32_t context_tokens,
                              const BackendMaker& make_backend) {
  VariantModel model = random_variant(config, kv_heads, make_backend);
  VariantReport report{
      .kv_heads = kv_heads, .config = model.config, .parameters = loaded_parameters(model.config, *model.weights)};
  report.flops =
      measure_flops(model, make_backend, kv_dtype, std::min(kPrefillTokens, config.context_tokens), kPrefillRuns);
  // A window would hide what is compared: how the bytes of a context grow.
  model.config.window_tokens = model.config.window_layers = 0;
  report.cache =
      measure_cache(model, make_backend, kv_dtype, kPageTokens, std::min(kMeasuredTokens, config.context_tokens - 1));
  report.decode =
      measure_decode(model, make_backend, kv_dtype, decode_contexts(model.config, kv_dtype, context_tokens));
  return report;
}

std::vector<TokenId> read_prompt(const ReportOptions& options, const ModelConfig& config, Report& report) {
  const Tokenizer tokenizer = Tokenizer::load(options.model);
  check_vocabulary(tokenizer, config, options.model);
  std::vector<TokenId> tokens = tokenizer.encode(options.prompt, true);
  if (tokens.empty()) throw std::runtime_error("--prompt must have at least one token");
  tokens.resize(std::min<size_t>({tokens.size(), kPromptTokensMax, static_cast<size_t>(config.context_tokens)}));
  for (const TokenId token : tokens) report.tokens.emplace_back(tokenizer.token_bytes(token));
  return tokens;
}

void read_attention(std::span<const TokenId> tokens, const VariantModel& model, const BackendMaker& make_backend,
                    Report& report) {
  const AttentionProbe probe(model.config, model.weights,
                             {.served_context_tokens = model.config.context_tokens,
                              .kv_dtype = report.kv_dtype,
                              .page_tokens = kPageTokens,
                              .make_backend = make_backend});
  const int32_t last = model.config.layers - 1;
  for (const int32_t layer : std::set<int32_t>{0, last / 2, last})
    report.patterns.push_back(probe.read(tokens, layer, true));
}

GradientReport measure_gradients(const AttentionPatterns& patterns) {
  GradientReport report;
  for (const int32_t kv_heads : {8, 4, 2, 1}) {
    report.checks.emplace_back(8 / kv_heads, check_gradients(random_attention_problem(12, 8, kv_heads, 8, 1)));
  }
  for (int32_t group = 1; group <= 8; ++group) report.independent.push_back(kv_gradient_norms(group, kNormProblems));
  // The model's own q, K and V, as they stood in the step and in the pages, under a random gradient of the output.
  AttentionProblem problem =
      random_attention_problem(patterns.tokens, patterns.query_heads, patterns.kv_heads, patterns.head_dim, 1);
  problem.q.assign(patterns.queries.begin(), patterns.queries.end());
  problem.k.assign(patterns.keys.begin(), patterns.keys.end());
  problem.v.assign(patterns.values.begin(), patterns.values.end());
  report.of_model = kv_gradient_norms_of_group(problem, 0);
  return report;
}

}  // namespace

Report make_report(const ReportOptions& options, const ReportProgress& progress) {
  const auto start = std::chrono::steady_clock::now();
  Report report{.model = std::filesystem::weakly_canonical(options.model).filename().string(),
                .config = ModelConfig::load(options.model)};
  report.kv_dtype = options.kv.value_or(report.config.dtype);
  DeviceOptions device{.device = options.device, .threads = options.threads, .weights = {report.config.dtype}, .kv = report.kv_dtype, .head_dim = report.config.head_dim};
  VariantModel model{.config = report.config};
  {
    ChosenBackend chosen = choose_backend(device);
    device.device = chosen.device;  // all others are of the same kind
    model.backend = std::move(chosen.backend);
  }
  const BackendMaker make_backend = [&device] { return choose_backend(device).backend; };
  report.example = {.layers = 32,
                    .kv_heads = 8,
                    .query_heads = 32,
                    .head_dim = 128,
                    .dtype = DType::kF16,
                    .page_tokens = kPageTokens};
  report.example_pool_bytes = 80 * kGiB;
  const std::vector<int32_t> compared = compared_kv_heads(report.config);
  const int steps = static_cast<int>(compared.size()) + 4;
  int step = 0;
  const auto next = [&](const std::string& what) { progress(++step, steps, what); };

  next("loading " + options.model);
  const std::vector<TokenId> tokens = read_prompt(options, report.config, report);
  const std::optional<DeviceMemoryState> device_memory = model.backend->device_memory();
  check_weight_bytes(report.config.parameters() * static_cast<int64_t>(dtype_bytes(report.config.dtype)), options.model,
                     device_memory ? device_memory->free_bytes : available_memory_bytes());
  model.weights = load_weights(options.model, model.config, *model.backend);
  report.backend = model.backend->description();
  report.loaded = loaded_parameters(model.config, *model.weights);
  next("published shapes");
  report.configurations = real_configurations(make_backend);
  for (const int32_t kv_heads : compared) {
    next("cache, operations and decoding with " + std::to_string(kv_heads) +
         (kv_heads == 1 ? " KV head" : " KV heads"));
    report.variants.push_back(
        measure_variant(model.config, kv_heads, report.kv_dtype, options.context_tokens, make_backend));
  }
  next("attention patterns");
  read_attention(tokens, model, make_backend, report);
  next("gradients");
  report.gradients = measure_gradients(report.patterns.back());
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace headroom
