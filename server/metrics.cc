#include "server/metrics.h"

#include <prometheus/client_metric.h>
#include <prometheus/histogram.h>
#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <map>
#include <mutex>
#include <optional>
#include <sstream>
#include <tuple>

#include "kernels/check.h"

namespace headroom {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<ClientMetric::Label>;

// All that a scrape is made of, taken at once.
struct Snapshot {
  EngineStats stats;
  ModelFacts facts;
  ProcessStats process;
  std::string not_ready_reason;
};

// ---- the table: values ----

struct Sample {
  const char* label_value;  // of the row's label; nullptr if it has none
  double (*value)(const Snapshot&);
};
struct ValueRow {
  const char* name;
  MetricType type;
  const char* unit;
  const char* help;
  const char* label;
  std::vector<Sample> samples;
};

double usage_share(const Snapshot& s) {
  return s.stats.pages.total() == 0 ? 0 : static_cast<double>(s.stats.pages.live) / static_cast<double>(s.stats.pages.total());
}
int64_t available_pages(const Snapshot& s) { return s.stats.pages.free + s.stats.pages.cached; }
double fragmentation_ratio(const Snapshot& s) {
  const int64_t live_bytes = s.stats.pages.live * s.stats.page_bytes;
  return live_bytes == 0 ? 0 : 1 - static_cast<double>(s.stats.live_tokens * s.facts.kv_shape.token_bytes()) / static_cast<double>(live_bytes);
}
// Requests of the longest length that can still be taken in, cached pages being evicted for them.
double more_full_requests(const Snapshot& s) {
  const int64_t tokens = s.facts.capacity.longest_request_tokens;
  if (tokens == 0) return 0;
  const int64_t whole = available_pages(s) / pages_for_tokens(tokens, s.facts.kv_shape.page_tokens);
  return static_cast<double>(whole);
}
double saving_ratio(const Snapshot& s) {
  const int64_t mha = s.facts.kv_shape.mha_token_bytes();
  return mha == 0 ? 0 : 1 - static_cast<double>(s.facts.kv_shape.token_bytes()) / static_cast<double>(mha);
}

#define VALUE(expression) []([[maybe_unused]] const Snapshot& s) -> double { return static_cast<double>(expression); }

const std::vector<ValueRow>& vllm_rows() {
  constexpr auto kGauge = MetricType::Gauge;
  constexpr auto kCounter = MetricType::Counter;
  static const std::vector<ValueRow> rows = {
      {"vllm:num_requests_running", kGauge, "requests", "Requests that hold KV pages.", nullptr, {{nullptr, VALUE(s.stats.requests_running)}}},
      {"vllm:num_requests_waiting", kGauge, "requests", "Requests that wait for room.", nullptr, {{nullptr, VALUE(s.stats.requests_waiting)}}},
      {"vllm:num_requests_waiting_by_reason", kGauge, "requests", "Requests that wait, by reason.", "reason",
       {{"capacity", VALUE(s.stats.requests_waiting)}, {"deferred", VALUE(0)}}},
      {"vllm:kv_cache_usage_perc", kGauge, "share", "Live pages of all pages, 0 to 1; cached pages are room.", nullptr, {{nullptr, usage_share}}},
      {"vllm:gpu_cache_usage_perc", kGauge, "share", "Former name of vllm:kv_cache_usage_perc.", nullptr, {{nullptr, usage_share}}},
      {"vllm:prompt_tokens_total", kCounter, "tokens", "Tokens of prompts.", nullptr, {{nullptr, VALUE(s.stats.prompt_tokens)}}},
      {"vllm:generation_tokens_total", kCounter, "tokens", "Tokens generated.", nullptr, {{nullptr, VALUE(s.stats.generated_tokens)}}},
      {"vllm:prompt_tokens_cached_total", kCounter, "tokens", "Tokens of prompts found in the prefix cache.", nullptr,
       {{nullptr, VALUE(s.stats.prompt_tokens_cached)}}},
      {"vllm:prompt_tokens_by_source_total", kCounter, "tokens", "Tokens of prompts by where their KV came from.", "source",
       {{"local_compute", VALUE(s.stats.prompt_tokens_computed)},
        {"local_cache_hit", VALUE(s.stats.prompt_tokens_cached)},
        {"external_kv_transfer", VALUE(0)}}},
      {"vllm:prefix_cache_queries_total", kCounter, "tokens", "Tokens looked up in the prefix cache.", nullptr,
       {{nullptr, VALUE(s.stats.prefix_queried_tokens)}}},
      {"vllm:prefix_cache_hits_total", kCounter, "tokens", "Tokens found in the prefix cache.", nullptr,
       {{nullptr, VALUE(s.stats.prefix_hit_tokens)}}},
      {"vllm:gpu_prefix_cache_queries_total", kCounter, "tokens", "Former name of vllm:prefix_cache_queries_total.", nullptr,
       {{nullptr, VALUE(s.stats.prefix_queried_tokens)}}},
      {"vllm:gpu_prefix_cache_hits_total", kCounter, "tokens", "Former name of vllm:prefix_cache_hits_total.", nullptr,
       {{nullptr, VALUE(s.stats.prefix_hit_tokens)}}},
      {"vllm:num_preemptions_total", kCounter, "preemptions", "Sequences that gave their pages back to older ones.", nullptr,
       {{nullptr, VALUE(s.stats.preemptions)}}},
  };
  return rows;
}

const std::vector<ValueRow>& headroom_rows() {
  constexpr auto kGauge = MetricType::Gauge;
  constexpr auto kCounter = MetricType::Counter;
  static const std::vector<ValueRow> rows = {
      {"headroom_kv_pool_bytes", kGauge, "bytes", "The KV pool: the sum of headroom_kv_bytes over its states.", nullptr,
       {{nullptr, VALUE(s.facts.pool_bytes)}}},
      {"headroom_kv_bytes", kGauge, "bytes", "KV pool by state: live is held by requests, cached can be evicted, free is empty.", "state",
       {{"live", VALUE(s.stats.pages.live * s.stats.page_bytes)},
        {"cached", VALUE(s.stats.pages.cached * s.stats.page_bytes)},
        {"free", VALUE(s.stats.pages.free * s.stats.page_bytes)}}},
      {"headroom_kv_pages", kGauge, "pages", "Pages of the KV pool by state.", "state",
       {{"live", VALUE(s.stats.pages.live)}, {"cached", VALUE(s.stats.pages.cached)}, {"free", VALUE(s.stats.pages.free)}}},
      {"headroom_kv_tokens", kGauge, "tokens", "Tokens that the pages of each state have room for.", "state",
       {{"live", VALUE(s.stats.pages.live * s.facts.kv_shape.page_tokens)},
        {"cached", VALUE(s.stats.pages.cached * s.facts.kv_shape.page_tokens)},
        {"free", VALUE(s.stats.pages.free * s.facts.kv_shape.page_tokens)}}},
      {"headroom_kv_written_bytes", kGauge, "bytes", "Bytes written in live pages; the rest of them is internal fragmentation.", nullptr,
       {{nullptr, VALUE(s.stats.live_tokens * s.facts.kv_shape.token_bytes())}}},
      {"headroom_kv_fragmentation_ratio", kGauge, "share", "Share of the bytes of live pages that is not written.", nullptr,
       {{nullptr, fragmentation_ratio}}},
      {"headroom_kv_available_tokens", kGauge, "tokens", "Tokens that the pool can still take in: free pages and cached ones.", nullptr,
       {{nullptr, VALUE(available_pages(s) * s.facts.kv_shape.page_tokens)}}},
      {"headroom_kv_more_full_requests", kGauge, "requests", "Requests of the longest length that the pool can still take in.", nullptr,
       {{nullptr, more_full_requests}}},
      {"headroom_kv_token_bytes", kGauge, "bytes", "KV bytes of one token.", nullptr, {{nullptr, VALUE(s.facts.kv_shape.token_bytes())}}},
      {"headroom_kv_mha_token_bytes", kGauge, "bytes", "KV bytes that a token would take with as many KV heads as query heads.", nullptr,
       {{nullptr, VALUE(s.facts.kv_shape.mha_token_bytes())}}},
      {"headroom_token_gap_max_seconds", kGauge, "seconds", "The longest time between two tokens of a request since the start.", nullptr,
       {{nullptr, VALUE(s.stats.token_gap_seconds_max)}}},
      {"headroom_prefill_chunk_tokens", kGauge, "tokens", "Tokens of prompts that a step may compute beside answers, by --step-slowdown-max.",
       nullptr, {{nullptr, VALUE(s.stats.chunk_tokens)}}},
      {"headroom_kv_mha_equivalent_bytes", kGauge, "bytes", "What the pages in use would take with as many KV heads as query heads.", "state",
       {{"live", VALUE(s.stats.pages.live * s.stats.mha_page_bytes)}, {"cached", VALUE(s.stats.pages.cached * s.stats.mha_page_bytes)}}},
      {"headroom_kv_saving_ratio", kGauge, "share", "Share of the KV bytes of MHA that this model does not need.", nullptr,
       {{nullptr, saving_ratio}}},
      {"headroom_kv_full_requests", kGauge, "requests", "Requests of the whole context that fit in the pool at once.", nullptr,
       {{nullptr, VALUE(s.facts.capacity.full_requests)}}},
      {"headroom_kv_mha_full_requests", kGauge, "requests", "The same with as many KV heads as query heads.", nullptr,
       {{nullptr, VALUE(s.facts.capacity.mha_full_requests)}}},
      {"headroom_kv_longest_request_tokens", kGauge, "tokens", "The longest request, prompt and answer, that can be served.", nullptr,
       {{nullptr, VALUE(s.facts.capacity.longest_request_tokens)}}},
      {"headroom_prefix_reused_bytes_total", kCounter, "bytes", "KV bytes of prompts found in the prefix cache instead of computed again.", nullptr,
       {{nullptr, VALUE(s.stats.prompt_tokens_cached * s.facts.kv_shape.token_bytes())}}},
      {"headroom_memory_predicted_bytes", kGauge, "bytes", "Memory by arithmetic from config.json and the options.", "part",
       {{"weights", VALUE(s.facts.weight_bytes_predicted)},
        {"kv_pool", VALUE(s.facts.capacity.pool_bytes)},
        {"activations", VALUE(s.facts.activation_bytes_predicted)},
        {"workspaces", VALUE(s.facts.workspace_bytes_predicted)}}},
      {"headroom_memory_allocated_bytes", kGauge, "bytes", "Memory as allocated.", "part",
       {{"weights", VALUE(s.facts.weight_bytes)},
        {"kv_pool", VALUE(s.facts.pool_bytes)},
        {"activations", VALUE(s.facts.activation_bytes)},
        {"workspaces", VALUE(s.facts.workspace_bytes)}}},
      {"headroom_device_memory_bytes", kGauge, "bytes", "Memory of the device, and what of it was free after the start; 0 where the CPU computes.", "state",
       {{"total", VALUE(s.facts.device_memory.value_or(DeviceMemoryState{}).total_bytes)},
        {"free", VALUE(s.facts.device_memory.value_or(DeviceMemoryState{}).free_bytes)}}},
      {"headroom_steps_total", kCounter, "steps", "Steps of the engine.", nullptr, {{nullptr, VALUE(s.stats.steps)}}},
      {"headroom_recomputed_tokens_total", kCounter, "tokens", "Tokens computed again after a preemption.", nullptr,
       {{nullptr, VALUE(s.stats.recomputed_tokens)}}},
      {"headroom_evicted_pages_total", kCounter, "pages", "Cached pages that were taken for new content.", nullptr,
       {{nullptr, VALUE(s.stats.evicted_pages)}}},
      {"headroom_not_ready", kGauge, "flag", "1 at the reason for which /readyz says 503; all 0: ready.", "reason",
       {{"loading", VALUE(s.not_ready_reason.starts_with("loading"))},
        {"draining", VALUE(s.not_ready_reason.starts_with("draining"))},
        {"faulted", VALUE(s.not_ready_reason.starts_with("faulted"))},
        {"stalled", VALUE(s.not_ready_reason.starts_with("stalled"))}}},
      {"headroom_engine_faulted", kGauge, "flag", "1 after the model failed for good.", nullptr, {{nullptr, VALUE(s.stats.faulted)}}},
  };
  return rows;
}

// One series for each tenant: as many as the file of API keys names.
struct TenantRow {
  const char* name;
  MetricType type;
  const char* unit;
  const char* help;
  const char* label;
  std::vector<std::pair<const char*, int64_t TenantStats::*>> samples;
};

const std::vector<TenantRow>& tenant_rows() {
  static const std::vector<TenantRow> rows = {
      {"headroom_tenant_requests", MetricType::Gauge, "requests", "Requests of a tenant that were let in, or wait for that.", "state",
       {{"running", &TenantStats::requests_running}, {"waiting", &TenantStats::requests_waiting}}},
      {"headroom_tenant_kv_pages", MetricType::Gauge, "pages", "Pages that the requests of a tenant hold; several may share one.", nullptr,
       {{nullptr, &TenantStats::pages}}},
      {"headroom_tenant_tokens_total", MetricType::Counter, "tokens", "Tokens of a tenant; cached are those of its prompts found in the prefix cache.",
       "kind",
       {{"prompt", &TenantStats::prompt_tokens}, {"cached", &TenantStats::cached_tokens}, {"generated", &TenantStats::generated_tokens}}},
      {"headroom_tenant_refused_total", MetricType::Counter, "requests", "Requests of a tenant that were refused, by what was full.", "reason",
       {{"queue", &TenantStats::refused_full}, {"rate", &TenantStats::refused_too_fast}}},
  };
  return rows;
}

const std::vector<ValueRow>& process_rows() {
  constexpr auto kGauge = MetricType::Gauge;
  static const std::vector<ValueRow> rows = {
      {"process_start_time_seconds", kGauge, "seconds", "Start time of the process since 1970.", nullptr, {{nullptr, VALUE(s.process.start_time_seconds)}}},
      {"process_cpu_seconds_total", MetricType::Counter, "seconds", "User and system CPU time.", nullptr, {{nullptr, VALUE(s.process.cpu_seconds)}}},
      {"process_resident_memory_bytes", kGauge, "bytes", "Resident memory.", nullptr, {{nullptr, VALUE(s.process.resident_bytes)}}},
      {"process_virtual_memory_bytes", kGauge, "bytes", "Virtual memory.", nullptr, {{nullptr, VALUE(s.process.virtual_bytes)}}},
      {"process_open_fds", kGauge, "descriptors", "Open file descriptors.", nullptr, {{nullptr, VALUE(s.process.open_fds)}}},
      {"process_max_fds", kGauge, "descriptors", "Limit of open file descriptors.", nullptr, {{nullptr, VALUE(s.process.max_fds)}}},
  };
  return rows;
}
#undef VALUE

// ---- the table: histograms ----

enum HistogramId : size_t {
  kTimeToFirstToken, kInterTokenLatency, kTimePerOutputTokenOld, kRequestTimePerOutputToken, kE2e, kQueue, kInference, kPrefill, kDecode,
  kPromptTokens, kGenerationTokens, kLongestChoiceTokens, kParamsMaxTokens, kParamsN, kIterationTokens, kStepPlan, kStepRun, kStepCommit, kHistogramCount
};
struct HistogramRow {
  const char* name;
  const char* unit;
  const char* help;
  const char* label;
  const char* label_value;
  std::vector<double> bounds;
};

// 1-2-5 up to the context of any model that is served.
std::vector<double> token_bounds() {
  std::vector<double> bounds;
  for (const double decade : {1e0, 1e1, 1e2, 1e3, 1e4, 1e5}) {
    for (const double factor : {1.0, 2.0, 5.0}) bounds.push_back(decade * factor);
  }
  return bounds;
}

const std::vector<HistogramRow>& histogram_rows() {
  static const std::vector<double> first = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560};
  static const std::vector<double> between = {.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80};
  static const std::vector<double> request = {.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
  static const std::vector<double> step = {1e-5, 1e-4, 5e-4, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10};
  static const std::vector<double> iteration = {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};
  static const char* const step_help = "Time of a step of the engine, by phase.";
  // In the order of HistogramId.
  static const std::vector<HistogramRow> rows = {
      {"vllm:time_to_first_token_seconds", "seconds", "From arrival to the first token.", nullptr, nullptr, first},
      {"vllm:inter_token_latency_seconds", "seconds", "From one token of a request to the next.", nullptr, nullptr, between},
      {"vllm:time_per_output_token_seconds", "seconds", "Former name of vllm:inter_token_latency_seconds.", nullptr, nullptr, between},
      {"vllm:request_time_per_output_token_seconds", "seconds", "Mean time per token after the first, of a request.", nullptr, nullptr, between},
      {"vllm:e2e_request_latency_seconds", "seconds", "From arrival to the end of a request.", nullptr, nullptr, request},
      {"vllm:request_queue_time_seconds", "seconds", "From arrival to the first step of a request.", nullptr, nullptr, request},
      {"vllm:request_inference_time_seconds", "seconds", "From the first step of a request to its last token.", nullptr, nullptr, request},
      {"vllm:request_prefill_time_seconds", "seconds", "From the first step of a request to its first token.", nullptr, nullptr, request},
      {"vllm:request_decode_time_seconds", "seconds", "From the first token of a request to its last.", nullptr, nullptr, request},
      {"vllm:request_prompt_tokens", "tokens", "Tokens of a request's prompt.", nullptr, nullptr, token_bounds()},
      {"vllm:request_generation_tokens", "tokens", "Tokens generated for a request.", nullptr, nullptr, token_bounds()},
      {"vllm:request_max_num_generation_tokens", "tokens", "Tokens generated for the choice of a request that got the most.", nullptr, nullptr,
       token_bounds()},
      {"vllm:request_params_max_tokens", "tokens", "max_tokens of a request.", nullptr, nullptr, token_bounds()},
      {"vllm:request_params_n", "choices", "n of a request.", nullptr, nullptr, {1, 2, 5, 10, 20}},
      {"vllm:iteration_tokens_total", "tokens", "Tokens computed in one step.", nullptr, nullptr, iteration},
      {"headroom_step_seconds", "seconds", step_help, "phase", "plan", step},
      {"headroom_step_seconds", "seconds", step_help, "phase", "run", step},
      {"headroom_step_seconds", "seconds", step_help, "phase", "commit", step},
  };
  return rows;
}

constexpr std::array<std::pair<FinishReason, const char*>, 4> kFinishReasons = {
    {{FinishReason::stop, "stop"}, {FinishReason::length, "length"}, {FinishReason::abort, "abort"}, {FinishReason::error, "error"}}};

const std::vector<double> kHttpBounds = {.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300};
constexpr const char* kHttpRequestsHelp = "Answered requests.";
constexpr const char* kHttpDurationHelp = "From a whole request to the end of its answer.";
constexpr const char* kRequestSuccessHelp = "Ended requests by reason.";
constexpr const char* kCacheConfigHelp = "1, with the configuration of the KV cache in its labels.";
constexpr const char* kDecodeTokensHelp = "Tokens after a request's first, by the context that they attended to (label: at most so many tokens).";
constexpr const char* kDecodeSecondsHelp = "Their time since the token before; divided by headroom_decode_tokens_total it is the time of a token.";
constexpr const char* kStartupHelp = "Time from the start of the process, by phase.";

// Classes of context length: at most 1,024 tokens, 2,048 … 131,072, more.
constexpr int64_t kFirstContextTokens = 1024;
constexpr size_t kContextClasses = 9;
size_t context_class(int64_t tokens) {
  size_t index = 0;
  for (int64_t most = kFirstContextTokens; most < tokens && index + 1 < kContextClasses; most *= 2) ++index;
  return index;
}
std::string context_class_name(size_t index) {
  return index + 1 == kContextClasses ? "more" : std::to_string(kFirstContextTokens << index);
}

bool is_vllm(std::string_view name) { return name.substr(0, 5) == "vllm:"; }

// Dashboards made for Python's client match le="1.0", where the serializer writes le="1".
std::string with_decimal_bounds(const std::string& text) {
  std::string out;
  out.reserve(text.size() + text.size() / 32);
  size_t at = 0;
  constexpr std::string_view kMark = "le=\"";
  for (size_t found; (found = text.find(kMark, at)) != std::string::npos;) {
    const size_t begin = found + kMark.size();
    const size_t end = text.find('"', begin);
    out.append(text, at, end - at);
    if (text.find_first_not_of("0123456789", begin) == end) out += ".0";
    at = end;
  }
  return out.append(text, at, std::string::npos);
}

}  // namespace

struct Metrics::State {
  using HttpKey = std::tuple<std::string, std::string>;  // handler, method

  std::string model_name;
  std::function<ProcessStats()> process_stats;
  std::vector<std::unique_ptr<prometheus::Histogram>> histograms;  // by HistogramId
  std::array<std::atomic<int64_t>, kFinishReasons.size()> finished{};
  std::array<std::atomic<int64_t>, kContextClasses> decode_tokens{};  // by context_class()
  std::array<std::atomic<double>, kContextClasses> decode_seconds{};
  std::function<std::string()> not_ready_reason = [] { return std::string(); };

  mutable std::mutex engine_mutex;  // held while stats are read, so that the engine cannot go meanwhile
  ModelFacts facts;
  std::function<EngineStats()> engine_stats;

  mutable std::mutex http_mutex;
  std::map<HttpKey, std::array<int64_t, 6>> http_requests;  // by class of status: 1xx … 5xx at 1 … 5
  std::map<HttpKey, std::unique_ptr<prometheus::Histogram>> http_seconds;

  void observe(HistogramId id, double value) { histograms[id]->Observe(value); }
  Labels labels_of(const char* name) const;
  MetricFamily family_of(const ValueRow& row, const Snapshot& snapshot) const;
  void add_histograms(std::vector<MetricFamily>& families) const;
  void add_tenants(std::vector<MetricFamily>& families, const Snapshot& snapshot) const;
  void add_labelled(std::vector<MetricFamily>& families, const Snapshot& snapshot) const;
  void add_decode_by_context(std::vector<MetricFamily>& families) const;
  void add_http(std::vector<MetricFamily>& families) const;
};

Metrics::Metrics(std::string model_name, std::vector<std::pair<std::string, std::string>> handlers,
                 std::function<ProcessStats()> process_stats)
    : state_(std::make_unique<State>()) {
  state_->model_name = std::move(model_name);
  state_->process_stats = std::move(process_stats);
  CHECK_EQ(histogram_rows().size(), static_cast<size_t>(kHistogramCount));
  for (const HistogramRow& row : histogram_rows()) state_->histograms.push_back(std::make_unique<prometheus::Histogram>(row.bounds));
  handlers.emplace_back("other", "other");
  for (auto& [path, method] : handlers) {
    const State::HttpKey key{path, method};
    state_->http_requests[key] = {};
    state_->http_seconds[key] = std::make_unique<prometheus::Histogram>(kHttpBounds);
  }
}
Metrics::~Metrics() = default;

void Metrics::set_not_ready_reason(std::function<std::string()> reason) { state_->not_ready_reason = std::move(reason); }

void Metrics::set_engine(ModelFacts facts, std::function<EngineStats()> stats) {
  const std::lock_guard lock(state_->engine_mutex);
  state_->facts = std::move(facts);
  state_->engine_stats = std::move(stats);
}

void Metrics::clear_engine() {
  const std::lock_guard lock(state_->engine_mutex);
  state_->engine_stats = nullptr;
}

void Metrics::on_step(const StepObservation& step) {
  state_->observe(kIterationTokens, step.prefill_tokens + step.decode_tokens);
  state_->observe(kStepPlan, step.plan_seconds);
  state_->observe(kStepRun, step.run_seconds);
  state_->observe(kStepCommit, step.commit_seconds);
}

void Metrics::on_token(const TokenObservation& token) {
  if (token.first) return state_->observe(kTimeToFirstToken, token.seconds);
  state_->observe(kInterTokenLatency, token.seconds);
  state_->observe(kTimePerOutputTokenOld, token.seconds);
  const size_t index = context_class(token.context_tokens);
  state_->decode_tokens[index].fetch_add(1, std::memory_order_relaxed);
  state_->decode_seconds[index].fetch_add(token.seconds, std::memory_order_relaxed);
}

void Metrics::on_request_finished(const RequestObservation& request) {
  for (size_t i = 0; i < kFinishReasons.size(); ++i) {
    if (kFinishReasons[i].first == request.reason) state_->finished[i].fetch_add(1, std::memory_order_relaxed);
  }
  state_->observe(kE2e, request.e2e_seconds);
  state_->observe(kQueue, request.queue_seconds);
  state_->observe(kInference, request.inference_seconds);
  state_->observe(kPrefill, request.prefill_seconds);
  state_->observe(kDecode, request.decode_seconds);
  state_->observe(kPromptTokens, request.usage.prompt_tokens);
  state_->observe(kGenerationTokens, request.usage.generated_tokens);
  state_->observe(kLongestChoiceTokens, request.longest_choice_tokens);
  state_->observe(kParamsMaxTokens, request.generated_tokens_max);
  state_->observe(kParamsN, request.choices);
  const int32_t after_first = request.usage.generated_tokens / std::max(1, request.choices) - 1;
  if (after_first > 0) state_->observe(kRequestTimePerOutputToken, request.decode_seconds / after_first);
}

// An unknown pair is "other": clients must not be able to make new series.
void Metrics::observe_http(std::string_view path, std::string_view method, int status, double seconds) {
  const std::lock_guard lock(state_->http_mutex);
  State::HttpKey key{path, method == "HEAD" ? "GET" : method};
  if (!state_->http_requests.contains(key)) key = {"other", "other"};
  state_->http_requests[key][static_cast<size_t>(std::clamp(status / 100, 1, 5))] += 1;
  state_->http_seconds[key]->Observe(seconds);
}

Labels Metrics::State::labels_of(const char* name) const {
  const std::string_view view = name;
  if (is_vllm(view)) return {{"model_name", model_name}, {"engine", "0"}};
  if (view.substr(0, 9) == "headroom_") return {{"model_name", model_name}};
  return {};
}

MetricFamily Metrics::State::family_of(const ValueRow& row, const Snapshot& snapshot) const {
  MetricFamily family{row.name, row.help, row.type, {}};
  for (const Sample& sample : row.samples) {
    ClientMetric metric;
    metric.label = labels_of(row.name);
    if (row.label != nullptr) metric.label.push_back({row.label, sample.label_value});
    (row.type == MetricType::Counter ? metric.counter.value : metric.gauge.value) = sample.value(snapshot);
    family.metric.push_back(std::move(metric));
  }
  return family;
}

void Metrics::State::add_histograms(std::vector<MetricFamily>& families) const {
  for (size_t id = 0; id < kHistogramCount; ++id) {
    const HistogramRow& row = histogram_rows()[id];
    if (families.empty() || families.back().name != row.name) {
      families.push_back({row.name, row.help, MetricType::Histogram, {}});
    }
    ClientMetric metric = histograms[id]->Collect();
    metric.label = labels_of(row.name);
    if (row.label != nullptr) metric.label.push_back({row.label, row.label_value});
    families.back().metric.push_back(std::move(metric));
  }
}

void Metrics::State::add_tenants(std::vector<MetricFamily>& families, const Snapshot& snapshot) const {
  const std::vector<TenantStats>& tenants = snapshot.stats.tenants;
  if (tenants.empty()) return;
  for (const TenantRow& row : tenant_rows()) {
    MetricFamily family{row.name, row.help, row.type, {}};
    for (size_t i = 0; i < tenants.size(); ++i) {
      for (const auto& [label_value, field] : row.samples) {
        ClientMetric metric;
        metric.label = labels_of(row.name);
        metric.label.push_back({"tenant", snapshot.facts.tenant_names.at(i)});
        if (row.label != nullptr) metric.label.push_back({row.label, label_value});
        (row.type == MetricType::Counter ? metric.counter.value : metric.gauge.value) = static_cast<double>(tenants[i].*field);
        family.metric.push_back(std::move(metric));
      }
    }
    families.push_back(std::move(family));
  }
}

// What does not fit the table: values counted here, and labels that hold values.
void Metrics::State::add_labelled(std::vector<MetricFamily>& families, const Snapshot& snapshot) const {
  MetricFamily success{"vllm:request_success_total", kRequestSuccessHelp, MetricType::Counter, {}};
  for (size_t i = 0; i < kFinishReasons.size(); ++i) {
    ClientMetric metric;
    metric.label = labels_of("vllm:");
    metric.label.push_back({"finished_reason", kFinishReasons[i].second});
    metric.counter.value = static_cast<double>(finished[i].load(std::memory_order_relaxed));
    success.metric.push_back(std::move(metric));
  }
  families.push_back(std::move(success));

  const KvShape& shape = snapshot.facts.kv_shape;
  ClientMetric config;
  config.label = labels_of("vllm:");
  config.label.push_back({"block_size", std::to_string(shape.page_tokens)});
  config.label.push_back({"num_gpu_blocks", std::to_string(snapshot.facts.capacity.pages)});
  config.label.push_back({"cache_dtype", std::string(dtype_name(shape.dtype))});
  config.label.push_back({"enable_prefix_caching", snapshot.facts.prefix_cache ? "True" : "False"});
  config.gauge.value = 1;
  families.push_back({"vllm:cache_config_info", kCacheConfigHelp, MetricType::Gauge, {config}});

  MetricFamily startup{"headroom_startup_seconds", kStartupHelp, MetricType::Gauge, {}};
  for (const auto& [phase, seconds] : snapshot.facts.startup_seconds) {
    ClientMetric metric;
    metric.label = labels_of("headroom_");
    metric.label.push_back({"phase", phase});
    metric.gauge.value = seconds;
    startup.metric.push_back(std::move(metric));
  }
  if (!startup.metric.empty()) families.push_back(std::move(startup));
}

// The two numbers whose ratio shows what a token costs at 1K, 2K … of context: with MHA it grows with the bytes that MHA reads.
void Metrics::State::add_decode_by_context(std::vector<MetricFamily>& families) const {
  MetricFamily tokens{"headroom_decode_tokens_total", kDecodeTokensHelp, MetricType::Counter, {}};
  MetricFamily seconds{"headroom_decode_token_seconds_total", kDecodeSecondsHelp, MetricType::Counter, {}};
  for (size_t i = 0; i < kContextClasses; ++i) {
    ClientMetric metric;
    metric.label = labels_of("headroom_");
    metric.label.push_back({"context_tokens", context_class_name(i)});
    metric.counter.value = static_cast<double>(decode_tokens[i].load(std::memory_order_relaxed));
    tokens.metric.push_back(metric);
    metric.counter.value = decode_seconds[i].load(std::memory_order_relaxed);
    seconds.metric.push_back(std::move(metric));
  }
  families.push_back(std::move(tokens));
  families.push_back(std::move(seconds));
}

void Metrics::State::add_http(std::vector<MetricFamily>& families) const {
  MetricFamily requests{"http_requests_total", kHttpRequestsHelp, MetricType::Counter, {}};
  MetricFamily seconds{"http_request_duration_seconds", kHttpDurationHelp, MetricType::Histogram, {}};
  const std::lock_guard lock(http_mutex);
  for (const auto& [key, by_class] : http_requests) {
    const auto& [handler, method] = key;
    for (size_t status = 2; status <= 5; ++status) {
      if (status == 3 && by_class[status] == 0) continue;  // nothing redirects
      ClientMetric metric;
      metric.label = {{"handler", handler}, {"method", method}, {"status", std::to_string(status) + "xx"}};
      metric.counter.value = static_cast<double>(by_class[status]);
      requests.metric.push_back(std::move(metric));
    }
    ClientMetric metric = http_seconds.at(key)->Collect();
    metric.label = {{"handler", handler}, {"method", method}};
    seconds.metric.push_back(std::move(metric));
  }
  families.push_back(std::move(requests));
  families.push_back(std::move(seconds));
}

std::string Metrics::text() const {
  Snapshot snapshot;
  snapshot.process = state_->process_stats();
  snapshot.not_ready_reason = state_->not_ready_reason();
  {
    const std::lock_guard lock(state_->engine_mutex);
    snapshot.facts = state_->facts;
    if (state_->engine_stats) snapshot.stats = state_->engine_stats();
  }
  std::vector<MetricFamily> families;
  for (const auto* rows : {&vllm_rows(), &headroom_rows(), &process_rows()}) {
    for (const ValueRow& row : *rows) families.push_back(state_->family_of(row, snapshot));
  }
  state_->add_tenants(families, snapshot);
  state_->add_labelled(families, snapshot);
  state_->add_decode_by_context(families);
  state_->add_histograms(families);
  state_->add_http(families);
  return with_decimal_bounds(prometheus::TextSerializer().Serialize(families));
}

std::vector<MetricDescription> metric_descriptions() {
  std::vector<MetricDescription> all;
  for (const auto* rows : {&vllm_rows(), &headroom_rows(), &process_rows()}) {
    for (const ValueRow& row : *rows) {
      all.push_back({row.name, row.type == MetricType::Counter ? "counter" : "gauge", row.unit, row.help});
    }
  }
  for (const TenantRow& row : tenant_rows()) {
    all.push_back({row.name, row.type == MetricType::Counter ? "counter" : "gauge", row.unit, row.help});
  }
  all.push_back({"vllm:request_success_total", "counter", "requests", kRequestSuccessHelp});
  all.push_back({"vllm:cache_config_info", "gauge", "flag", kCacheConfigHelp});
  all.push_back({"headroom_startup_seconds", "gauge", "seconds", kStartupHelp});
  all.push_back({"headroom_decode_tokens_total", "counter", "tokens", kDecodeTokensHelp});
  all.push_back({"headroom_decode_token_seconds_total", "counter", "seconds", kDecodeSecondsHelp});
  for (const HistogramRow& row : histogram_rows()) {
    if (all.back().name != row.name) all.push_back({row.name, "histogram", row.unit, row.help});
  }
  all.push_back({"http_requests_total", "counter", "requests", kHttpRequestsHelp});
  all.push_back({"http_request_duration_seconds", "histogram", "seconds", kHttpDurationHelp});
  return all;
}

}  // namespace headroom
