#include "server/command_serve.h"

#include <malloc.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "engine/model/open_model.h"
#include "engine/tokenizer/utf8.h"
#include "kernels/check.h"
#include "server/dashboard.h"
#include "server/http_server.h"
#include "server/logging.h"
#include "server/metrics.h"
#include "server/model_loader.h"
#include "server/openai_routes.h"
#include "server/options.h"
#include "server/sha256.h"

namespace headroom {
namespace {

using Clock = std::chrono::steady_clock;

// Takes SIGTERM, SIGINT and SIGHUP on a thread of its own: the first one asks for the end, the second one is the end.
// Made before any other thread, which all inherit that these signals are blocked.
class EndSignal {
 public:
  EndSignal() {
    signal(SIGPIPE, SIG_IGN);  // a client that has gone is an error of write(), not the end of the server
    sigemptyset(&signals_);
    sigaddset(&signals_, SIGTERM);
    sigaddset(&signals_, SIGINT);
    struct sigaction hangup {};
    if (sigaction(SIGHUP, nullptr, &hangup) == 0 && hangup.sa_handler != SIG_IGN) sigaddset(&signals_, SIGHUP);  // nohup ignores it
    CHECK_EQ(pthread_sigmask(SIG_BLOCK, &signals_, nullptr), 0);
    thread_ = std::thread([this] { thread_main(); });
  }
  ~EndSignal() {
    ending_ = true;
    thread_.join();
  }
  bool came() const { return came_.load(); }
  bool wait_for(std::chrono::milliseconds wait_max) {
    std::unique_lock lock(mutex_);
    return arrived_.wait_for(lock, wait_max, [this] { return came(); });
  }

 private:
  void thread_main() {
    const timespec tick{.tv_sec = 0, .tv_nsec = 50'000'000};
    while (!ending_) {
      if (sigtimedwait(&signals_, nullptr, &tick) < 0) continue;
      if (came()) _exit(1);
      const std::lock_guard lock(mutex_);
      came_ = true;
      arrived_.notify_all();
    }
  }

  sigset_t signals_{};
  std::atomic<bool> came_{false}, ending_{false};
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::thread thread_;
};

// After a fault probes and clients are told for so long, rather than find a closed port.
constexpr std::chrono::milliseconds kFaultShown{500};

class Interrupted : public std::exception {};

uint64_t random_key() {
  uint64_t key = 0;
  CHECK_EQ(getrandom(&key, sizeof key, 0), static_cast<ssize_t>(sizeof key));
  return key;
}

// Each connection is a descriptor, and shells hand out as few as 1,024 by default; what the system allows is taken.
void raise_descriptor_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = std::min<rlim_t>(limit.rlim_max, 1 << 20);
  if (setrlimit(RLIMIT_NOFILE, &limit) != 0) spdlog::warn("cannot raise the number of file descriptors; see ulimit -n");
}

// Each stream is a connection, and each connection a descriptor. Where fewer of these are to be had, streams are refused before probes are.
HttpServerOptions with_room_for_probes(HttpServerOptions http) {
  constexpr int64_t kOtherDescriptors = 32;
  constexpr int32_t kProbes = 16;
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
    const auto possible = static_cast<int32_t>(std::clamp<int64_t>(static_cast<int64_t>(limit.rlim_cur) - kOtherDescriptors, 1, INT32_MAX));
    if (possible < http.connections_max) {
      spdlog::warn("--connections-max is {} and not {}: the system allows {} file descriptors; raise `ulimit -n`", possible, http.connections_max, limit.rlim_cur);
      http.connections_max = possible;
    }
  }
  const int32_t streams = http.connections_max - std::min(http.reserve_workers + kProbes, (http.connections_max + 3) / 4);
  if (std::max(streams, 1) < http.streams_max) {
    spdlog::warn("--streams-max is {} and not {}: of {} connections some are kept for probes; raise --connections-max", std::max(streams, 1), http.streams_max,
                 http.connections_max);
    http.streams_max = std::max(streams, 1);
  }
  return http;
}

// The C library keeps freed blocks below a threshold, which rises to the largest block that was ever freed: left to itself, memory that a
// flood of large bodies took would stay with the process.
void give_large_blocks_back() { mallopt(M_MMAP_THRESHOLD, 256 << 10); }

std::vector<std::string> served_names(const ServeOptions& options) {
  if (!options.served_model_names.empty()) return options.served_model_names;
  std::filesystem::path path = std::filesystem::absolute(options.model).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  return {replace_invalid_utf8((is_gguf_path(path) ? path.stem() : path.filename()).string())};
}

// The server from its first socket to its last answer. The model comes later than the listener, so that probes see why it is not ready.
class Serving {
 public:
  Serving(const ServeOptions& options, const BackendChooser& choose, const EndSignal& end)
      : options_(options), choose_(choose), end_(end), names_(served_names(options)), routes_(all_routes()), metrics_(names_.front(), handlers()) {
    http_ = std::make_unique<HttpServer>(with_room_for_probes(options_.http), routes_, [this](auto path, auto method, int status, double seconds) {
      metrics_.observe_http(path, method, status, seconds);
    });
    metrics_.set_not_ready_reason([this] { return not_ready_reason(); });
    http_->bind();
    http_thread_ = std::thread([this] { http_->serve(); });
  }

  ~Serving() {
    http_->stop();
    http_thread_.join();
    metrics_.clear_engine();
    model_ = nullptr;  // its engine reports to the metrics: it goes first
  }

  void load() {
    const auto bar = make_progress("loading weights");
    auto model = load_model(options_, choose_, &metrics_, [this, &bar](size_t done, size_t total) {
      if (end_.came()) throw Interrupted();
      bar(done, total);
    });
    std::vector<std::pair<std::string, double>>& phases = model->facts.startup_seconds;
    phases.emplace_back("total", std::chrono::duration<double>(Clock::now() - begin_).count());
    metrics_.set_engine(model->facts, [engine = model->engine.get()] { return engine->stats(); });
    log_start(*model);
    const std::lock_guard lock(model_mutex_);
    model_ = std::move(model);
  }

  // What the model failed at; empty while it works.
  std::string fault() const { return model()->engine->stats().fault; }

  // Finishes what runs. True when all of it ended in time.
  bool drain() {
    const auto grace = std::chrono::milliseconds(static_cast<int64_t>(options_.drain_seconds_max * 1000));
    const bool all_ended = model()->engine->drain(grace, options_.stalled_seconds_max);
    if (model()->engine->stats().work_pending) {
      spdlog::error("the model hangs: the process ends without it");
      std::_Exit(1);
    }
    http_->stop();  // waits, in the destructor, until the last bytes are written
    return all_ended;
  }

 private:
  ApiOptions api_options() {
    ApiOptions api;
    api.model_names = names_;
    api.version = HEADROOM_VERSION;
    // What the bits of an answer depend on besides the request.
    const std::string kv = options_.kv ? std::string(dtype_name(*options_.kv)) : "auto";
    const std::string weights = options_.weights ? std::string(dtype_name(*options_.weights)) : "stored";
    const std::string configuration = names_.front() + " " + kv + " " + weights;
    api.system_fingerprint = "fp_" + sha256_hex(HEADROOM_VERSION " " + configuration).substr(0, 12);
    for (const Tenant& tenant : options_.tenants) api.tenant_names.push_back(tenant.name);
    api.metrics_public = options_.http.metrics_public;
    api.seed_key = random_key();
    api.parsed_bytes_max = options_.http.buffered_bytes_max;
    api.served = [this]() -> std::shared_ptr<const ServedModel> {
      const auto loaded = model();
      return loaded == nullptr ? nullptr : std::shared_ptr<const ServedModel>(loaded, &*loaded->served);
    };
    api.not_ready_reason = [this] { return not_ready_reason(); };
    api.metrics_text = [this] { return metrics_.text(); };
    api.now_unix_seconds = [] { return static_cast<int64_t>(time(nullptr)); };
    return api;
  }

  std::vector<Route> all_routes() {
    ApiOptions api = api_options();
    DashboardOptions page;
    page.feed.model_name = names_.front();
    page.feed.version = HEADROOM_VERSION;
    page.feed.show_requests = options_.live_requests == "all" || (options_.live_requests == "auto" && options_.http.api_keys.empty());
    page.watchers_max = options_.live_watchers_max;
    page.peers = options_.peers;
    page.served = api.served;
    std::vector<Route> routes = api_routes(std::move(api));
    std::ranges::move(dashboard_routes(std::move(page)), std::back_inserter(routes));
    return routes;
  }

  std::vector<std::pair<std::string, std::string>> handlers() const {
    std::vector<std::pair<std::string, std::string>> pairs;
    for (const Route& route : routes_) pairs.emplace_back(route.path, route.method);
    return pairs;
  }

  std::shared_ptr<const LoadedModel> model() const {
    const std::lock_guard lock(model_mutex_);
    return model_;
  }

  std::string not_ready_reason() const {
    if (end_.came()) return "draining";
    const auto loaded = model();
    return loaded == nullptr ? "loading" : engine_not_ready_reason(loaded->engine->stats(), options_.stalled_seconds_max);
  }

  void log_start(const LoadedModel& model) const {
    const ModelConfig& config = model.config;
    spdlog::info("model {}: {}, {} layers, {} parameters, weights {}", names_.front(), config.architecture, config.layers,
                 config.parameters(), format_bytes(model.facts.weight_bytes));
    spdlog::info("backend {}{}{}", model.backend, model.backend_reason.empty() ? "" : "; not CUDA: ", model.backend_reason);
    log_device_memory(model.facts);
    spdlog::info("{}", kv_table(model.plan));
    std::string phases;
    for (const auto& [phase, seconds] : model.facts.startup_seconds) {
      phases += (phases.empty() ? "" : ", ") + phase + " " + fmt::format("{:.3f}", seconds);
    }
    const bool is_v6 = options_.http.host.find(':') != std::string::npos;
    spdlog::info("ready at http://{}{}{}:{} (seconds: {})", is_v6 ? "[" : "", options_.http.host, is_v6 ? "]" : "", http_->port(), phases);
  }

  static void log_device_memory(const ModelFacts& facts) {
    if (!facts.device_memory) return;
    const auto part = [](int64_t predicted, int64_t bytes) { return format_bytes(bytes) + " (predicted " + format_bytes(predicted) + ")"; };
    spdlog::info("memory of the device: {} weights, {} activations, {} workspaces, {} KV pool; free {} of {}",
                 part(facts.weight_bytes_predicted, facts.weight_bytes), part(facts.activation_bytes_predicted, facts.activation_bytes),
                 part(facts.workspace_bytes_predicted, facts.workspace_bytes), part(facts.capacity.pool_bytes, facts.pool_bytes),
                 format_bytes(facts.device_memory->free_bytes), format_bytes(facts.device_memory->total_bytes));
  }

  const Clock::time_point begin_ = Clock::now();
  const ServeOptions& options_;
  const BackendChooser& choose_;
  const EndSignal& end_;
  const std::vector<std::string> names_;
  mutable std::mutex model_mutex_;
  std::shared_ptr<const LoadedModel> model_;
  const std::vector<Route> routes_;
  Metrics metrics_;
  std::unique_ptr<HttpServer> http_;
  std::thread http_thread_;
};

}  // namespace

int run_serve(const std::vector<std::string>& arguments, const BackendChooser& choose) {
  const ParsedOptions parsed = parse_serve_options(arguments);
  if (parsed.help) {
    std::fputs(options_help().c_str(), stdout);
    return 0;
  }
  set_up_logging(parsed.options.log_level, parsed.options.log_format);
  raise_descriptor_limit();
  give_large_blocks_back();
  EndSignal end;
  Serving serving(parsed.options, choose, end);
  try {
    serving.load();
  } catch (const Interrupted&) {
    return 0;
  }
  while (!end.wait_for(std::chrono::milliseconds(100))) {
    const std::string fault = serving.fault();
    if (fault.empty()) continue;
    spdlog::error("the model has failed: {}; open requests were told, the process ends so that it can be started again", fault);
    end.wait_for(kFaultShown);
    serving.drain();
    return 1;
  }
  spdlog::info("draining: no new requests; those that run have {} s", parsed.options.drain_seconds_max);
  const bool all_ended = serving.drain();
  spdlog::info("{}", all_ended ? "drained" : "the time to drain is over: what still ran was ended");
  return all_ended ? 0 : 1;
}

}  // namespace headroom
