#include "server/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <sstream>
#include <thread>

namespace headroom {
namespace {

using testing::HasSubstr;

ProcessStats fixed_process() {
  return {.start_time_seconds = 1700000000.25, .cpu_seconds = 1.5, .resident_bytes = 1 << 20, .virtual_bytes = 1 << 21, .open_fds = 9, .max_fds = 1024};
}

// 2 layers of 8 query heads and 2 KV heads of 16 in bf16: 2·2·2·16·2 = 256 bytes per token, 1024 with MHA; pages of 16 tokens.
ModelFacts fixed_facts() {
  ModelFacts facts;
  facts.kv_shape = {.layers = 2, .kv_heads = 2, .query_heads = 8, .head_dim = 16, .dtype = DType::kBF16, .page_tokens = 16};
  facts.capacity = {.pages = 10, .tokens = 160, .pool_bytes = 40960, .longest_request_tokens = 100, .full_requests = 1, .mha_tokens = 40, .mha_full_requests = 0};
  facts.weight_bytes_predicted = 1000;
  facts.weight_bytes = 1010;
  facts.pool_bytes = 40960;
  facts.activation_bytes_predicted = 490;
  facts.activation_bytes = 500;
  facts.workspace_bytes_predicted = 700;
  facts.workspace_bytes = 710;
  facts.device_memory = {.free_bytes = 8000, .total_bytes = 90000};
  facts.startup_seconds = {{"config", 0.25}, {"total", 0.5}};
  return facts;
}

EngineStats fixed_stats() {
  EngineStats stats;
  stats.requests_running = 3;
  stats.requests_waiting = 2;
  stats.pages = {.free = 5, .cached = 1, .live = 4};
  stats.page_bytes = 4096;
  stats.mha_page_bytes = 16384;
  stats.live_tokens = 50;
  stats.prompt_tokens = 1000;
  stats.generated_tokens = 200;
  stats.prompt_tokens_cached = 300;
  stats.prompt_tokens_computed = 700;
  stats.prefix_queried_tokens = 990;
  stats.prefix_hit_tokens = 310;
  stats.preemptions = 7;
  stats.recomputed_tokens = 77;
  stats.evicted_pages = 8;
  stats.steps = 123;
  stats.token_gap_seconds_max = 0.375;
  stats.chunk_tokens = 40;
  return stats;
}

Metrics& add_events(Metrics& metrics) {
  metrics.on_step({.sequences = 3, .prefill_tokens = 14, .decode_tokens = 2, .plan_seconds = 0.00005, .run_seconds = 0.03, .commit_seconds = 0.0002});
  metrics.on_token({.first = true, .seconds = 0.05});
  metrics.on_token({.first = false, .seconds = 0.02, .context_tokens = 1025});
  RequestObservation request;
  request.reason = FinishReason::length;
  request.usage.prompt_tokens = 12;
  request.usage.generated_tokens = 3;
  request.generated_tokens_max = 16;
  request.longest_choice_tokens = 3;
  request.queue_seconds = 0.125;
  request.prefill_seconds = 0.25;
  request.decode_seconds = 0.5;
  request.inference_seconds = 0.75;
  request.e2e_seconds = 0.875;
  metrics.on_request_finished(request);
  metrics.observe_http("/v1/completions", "POST", 200, 0.75);
  metrics.observe_http("/metrics", "HEAD", 200, 0.001);
  metrics.observe_http("/made/up/by/a/client", "BREW", 404, 0.002);
  return metrics;
}

std::string fixed_text() {
  Metrics metrics("demo", {{"/metrics", "GET"}, {"/v1/completions", "POST"}}, fixed_process);
  metrics.set_engine(fixed_facts(), fixed_stats);
  return add_events(metrics).text();
}

std::map<std::string, double> samples_of(const std::string& text) {
  std::map<std::string, double> samples;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.empty() || line[0] == '#') continue;
    const size_t space = line.rfind(' ');
    const bool is_new = samples.emplace(line.substr(0, space), std::stod(line.substr(space + 1))).second;
    EXPECT_TRUE(is_new) << line;
  }
  return samples;
}

// The whole exposition, read by a person once. To change it: HEADROOM_WRITE_GOLDEN=1, then read the difference.
TEST(Metrics, TextEqualsTheGoldenFile) {
  const std::filesystem::path path = HEADROOM_SOURCE_DIR "/tests/golden/metrics/exposition.txt";
  if (std::getenv("HEADROOM_WRITE_GOLDEN") != nullptr) std::ofstream(path) << fixed_text();
  std::ifstream in(path);
  const std::string golden{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  EXPECT_EQ(fixed_text(), golden);
}

TEST(Metrics, EverySeriesExistsAtZeroBeforeAnythingHappens) {
  Metrics fresh("demo", {{"/metrics", "GET"}, {"/v1/completions", "POST"}}, fixed_process);
  const auto before = samples_of(fresh.text());
  const auto after = samples_of(fixed_text());
  for (const auto& [name, value] : after) {
    if (name.starts_with("headroom_startup_seconds") || name.starts_with("vllm:cache_config_info")) continue;
    ASSERT_TRUE(before.contains(name)) << name;
    if (name.starts_with("process_")) continue;
    EXPECT_EQ(before.at(name), 0) << name;
  }
}

TEST(Metrics, BytesByStateSumToThePool) {
  const auto samples = samples_of(fixed_text());
  const auto bytes = [&](const std::string& state) { return samples.at("headroom_kv_bytes{model_name=\"demo\",state=\"" + state + "\"}"); };
  EXPECT_EQ(bytes("live") + bytes("cached") + bytes("free"), samples.at("headroom_kv_pool_bytes{model_name=\"demo\"}"));
  EXPECT_EQ(bytes("live"), 4 * 4096);
  EXPECT_EQ(samples.at("headroom_kv_written_bytes{model_name=\"demo\"}"), 50 * 256);
  EXPECT_EQ(samples.at("headroom_kv_saving_ratio{model_name=\"demo\"}"), 0.75);
  EXPECT_EQ(samples.at("vllm:kv_cache_usage_perc{model_name=\"demo\",engine=\"0\"}"), 0.4);
}

// 6 of 10 pages are free or cached: 96 tokens. A request of 100 tokens takes 7 pages, so none more fits; one of 48 takes 3.
// 50 tokens are written in 4 live pages, which hold 64.
TEST(Metrics, SayHowMuchMoreFits) {
  const auto of = [](const std::string& text, const std::string& name) { return samples_of(text).at(name + "{model_name=\"demo\"}"); };
  EXPECT_EQ(of(fixed_text(), "headroom_kv_available_tokens"), 96);
  EXPECT_EQ(of(fixed_text(), "headroom_kv_more_full_requests"), 0);
  EXPECT_EQ(of(fixed_text(), "headroom_kv_fragmentation_ratio"), 1 - 50.0 / 64);
  EXPECT_EQ(of(fixed_text(), "headroom_prefix_reused_bytes_total"), 300 * 256);
  Metrics metrics("demo", {}, fixed_process);
  ModelFacts facts = fixed_facts();
  facts.capacity.longest_request_tokens = 48;
  metrics.set_engine(facts, fixed_stats);
  EXPECT_EQ(of(metrics.text(), "headroom_kv_more_full_requests"), 2);
}

TEST(Metrics, OneReasonForNotBeingReady) {
  Metrics metrics("demo", {}, fixed_process);
  std::string reason;
  metrics.set_not_ready_reason([&reason] { return reason; });
  const auto shown = [&metrics] {
    std::string found;
    for (const auto& [name, value] : samples_of(metrics.text())) {
      if (name.starts_with("headroom_not_ready{") && value == 1) found += name.substr(name.find("reason=\"") + 8);
    }
    return found;
  };
  EXPECT_EQ(shown(), "");
  for (const auto& [said, label] : {std::pair{"loading", "loading\"}"}, {"draining", "draining\"}"}, {"faulted: a NaN", "faulted\"}"},
                                    {"stalled: the model does not get on", "stalled\"}"}}) {
    reason = said;
    EXPECT_EQ(shown(), label);
  }
}

TEST(Metrics, TimeOfTokensByTheirContext) {
  Metrics metrics("demo", {}, fixed_process);
  metrics.on_token({.first = true, .seconds = 9, .context_tokens = 500});  // not a decode
  const std::pair<int64_t, std::string> cases[] = {{1, "1024"},       {1024, "1024"},     {1025, "2048"}, {2048, "2048"},
                                                   {32768, "32768"}, {131072, "131072"}, {131073, "more"}, {1 << 30, "more"}};
  std::map<std::string, double> tokens;
  for (const auto& [context, name] : cases) {
    metrics.on_token({.first = false, .seconds = 0.5, .context_tokens = context});
    tokens[name] += 1;
  }
  const auto samples = samples_of(metrics.text());
  for (const std::string name : {"1024", "2048", "4096", "8192", "16384", "32768", "65536", "131072", "more"}) {
    const std::string labels = "{model_name=\"demo\",context_tokens=\"" + name + "\"}";
    EXPECT_EQ(samples.at("headroom_decode_tokens_total" + labels), tokens[name]) << name;
    EXPECT_EQ(samples.at("headroom_decode_token_seconds_total" + labels), tokens[name] * 0.5) << name;
  }
}

TEST(Metrics, BoundsAreWrittenAsDashboardsMatchThem) {
  const std::string text = fixed_text();
  for (const char* bound : {"le=\"0.001\"", "le=\"0.3\"", "le=\"1.0\"", "le=\"2560.0\"", "le=\"2.5\"", "le=\"+Inf\""}) {
    EXPECT_THAT(text, HasSubstr(bound));
  }
  EXPECT_EQ(text.find("le=\"1\""), std::string::npos);
}

// Names that routers and dashboards query, from vLLM's own exposition.
TEST(Metrics, HasTheNamesThatOthersQuery) {
  const std::string text = fixed_text();
  for (const char* name :
       {"vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:num_requests_waiting_by_reason", "vllm:kv_cache_usage_perc",
        "vllm:cache_config_info", "vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:prompt_tokens_cached_total",
        "vllm:prompt_tokens_by_source_total", "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total",
        "vllm:num_preemptions_total", "vllm:request_success_total", "vllm:gpu_cache_usage_perc", "vllm:gpu_prefix_cache_hits_total",
        "vllm:gpu_prefix_cache_queries_total"}) {
    EXPECT_THAT(text, HasSubstr("\n" + std::string(name) + "{model_name=\"demo\",engine=\"0\"")) << name;
  }
  for (const char* name :
       {"vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds", "vllm:request_time_per_output_token_seconds",
        "vllm:e2e_request_latency_seconds", "vllm:request_queue_time_seconds", "vllm:request_inference_time_seconds",
        "vllm:request_prefill_time_seconds", "vllm:request_decode_time_seconds", "vllm:request_prompt_tokens",
        "vllm:request_generation_tokens", "vllm:request_params_max_tokens", "vllm:iteration_tokens_total", "vllm:request_params_n",
        "vllm:time_per_output_token_seconds", "vllm:request_max_num_generation_tokens"}) {
    EXPECT_THAT(text, HasSubstr("\n" + std::string(name) + "_bucket{model_name=\"demo\",engine=\"0\",le=\"")) << name;
  }
}

std::string text_with_tenants() {
  Metrics metrics("demo", {{"/v1/completions", "POST"}}, fixed_process);
  ModelFacts facts = fixed_facts();
  facts.tenant_names = {"alice", "bob"};
  metrics.set_engine(facts, [] {
    EngineStats stats = fixed_stats();
    stats.tenants = {{.requests_running = 1, .requests_waiting = 2, .pages = 3, .prompt_tokens = 4, .cached_tokens = 5, .generated_tokens = 6},
                     {.refused_full = 7, .refused_too_fast = 8}};
    return stats;
  });
  return add_events(metrics).text();
}

TEST(Metrics, EveryFamilyIsDescribedAndNamedByTheRules) {
  std::set<std::string> described;
  for (const MetricDescription& metric : metric_descriptions()) {
    EXPECT_TRUE(described.insert(metric.name).second) << metric.name;
    EXPECT_FALSE(metric.help.empty() || metric.unit.empty()) << metric.name;
    if (!metric.name.starts_with("headroom_")) continue;
    EXPECT_EQ(metric.type == "counter", metric.name.ends_with("_total")) << metric.name;
  }
  std::set<std::string> exposed;
  std::istringstream lines(text_with_tenants());
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("# TYPE ")) exposed.insert(line.substr(7, line.find(' ', 7) - 7));
  }
  EXPECT_EQ(exposed, described);
}

TEST(Metrics, TenantsAreToldApartByTheirNames) {
  const std::string text = text_with_tenants();
  for (const char* line : {"headroom_tenant_requests{model_name=\"demo\",tenant=\"alice\",state=\"running\"} 1\n",
                           "headroom_tenant_requests{model_name=\"demo\",tenant=\"alice\",state=\"waiting\"} 2\n",
                           "headroom_tenant_kv_pages{model_name=\"demo\",tenant=\"alice\"} 3\n",
                           "headroom_tenant_tokens_total{model_name=\"demo\",tenant=\"alice\",kind=\"prompt\"} 4\n",
                           "headroom_tenant_tokens_total{model_name=\"demo\",tenant=\"alice\",kind=\"cached\"} 5\n",
                           "headroom_tenant_tokens_total{model_name=\"demo\",tenant=\"alice\",kind=\"generated\"} 6\n",
                           "headroom_tenant_tokens_total{model_name=\"demo\",tenant=\"bob\",kind=\"prompt\"} 0\n",
                           "headroom_tenant_refused_total{model_name=\"demo\",tenant=\"bob\",reason=\"queue\"} 7\n",
                           "headroom_tenant_refused_total{model_name=\"demo\",tenant=\"bob\",reason=\"rate\"} 8\n"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
  EXPECT_THAT(fixed_text(), testing::Not(HasSubstr("tenant")));
}

TEST(Metrics, EventsAndScrapesMeetFromManyThreads) {
  Metrics metrics("demo", {{"/v1/completions", "POST"}}, fixed_process);
  std::thread engine([&] {
    for (int i = 0; i < 2000; ++i) metrics.on_token({.first = i % 2 == 0, .seconds = 0.01});
  });
  std::thread http([&] {
    for (int i = 0; i < 2000; ++i) metrics.observe_http("/v1/completions", "POST", 200, 0.01);
  });
  std::thread model([&] {
    for (int i = 0; i < 100; ++i) {
      metrics.set_engine(fixed_facts(), fixed_stats);
      metrics.clear_engine();
    }
  });
  for (int i = 0; i < 20; ++i) metrics.text();
  engine.join();
  http.join();
  model.join();
  const auto samples = samples_of(metrics.text());
  EXPECT_EQ(samples.at("vllm:time_to_first_token_seconds_count{model_name=\"demo\",engine=\"0\"}"), 1000);
  EXPECT_EQ(samples.at("http_requests_total{handler=\"/v1/completions\",method=\"POST\",status=\"2xx\"}"), 2000);
}

TEST(ProcessStats, AreThoseOfThisProcess) {
  const ProcessStats stats = read_process_stats();
  EXPECT_GT(stats.resident_bytes, 1 << 20);
  EXPECT_GE(stats.virtual_bytes, stats.resident_bytes);
  EXPECT_GE(stats.open_fds, 3);
  EXPECT_GE(stats.max_fds, stats.open_fds);
  EXPECT_NEAR(stats.start_time_seconds, static_cast<double>(time(nullptr)), 600);
  EXPECT_GT(available_memory_bytes(), 1 << 20);
}

// Prometheus's own reader. It also advises on names; those of vLLM are not ours to change.
TEST(Metrics, PromtoolAcceptsTheText) {
  std::string promtool = HEADROOM_SOURCE_DIR "/build/tools/usr/bin/promtool";
  if (access(promtool.c_str(), X_OK) != 0) promtool = "promtool";
  if (std::system((promtool + " --version >/dev/null 2>&1").c_str()) != 0) {
    GTEST_SKIP() << "SKIPPED: promtool is not installed (Debian's package prometheus), so its check of /metrics did not run";
  }
  const std::filesystem::path path = std::filesystem::temp_directory_path() / ("headroom_metrics_" + std::to_string(getpid()));
  std::ofstream(path) << fixed_text();
  FILE* pipe = popen((promtool + " check metrics < " + path.string() + " 2>&1").c_str(), "r");
  ASSERT_NE(pipe, nullptr);
  std::string out(1 << 16, '\0');
  out.resize(fread(out.data(), 1, out.size(), pipe));
  const int status = pclose(pipe);
  std::filesystem::remove(path);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_TRUE(WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 3) << out;  // 3: advice
  std::istringstream lines(out);
  for (std::string line; std::getline(lines, line);) EXPECT_TRUE(line.starts_with("vllm:")) << line;
}

}  // namespace
}  // namespace headroom
