// Every metric in one table (metrics.cc), and their text for Prometheus. vLLM's names, so that routers and dashboards work unmodified;
// headroom_* for what nobody else shows: KV bytes by state (their sum is the pool), what the same tokens would take with MHA, memory
// as predicted and as allocated, the time of a token by the length of its context.
//
// Threads: on_* are called by the engine thread, observe_http() by HTTP workers, text() by whoever scrapes; the histograms are shared.
// Every series exists from the start, at 0, so that a rate over a restart or a first event is right.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "engine/model/capacity.h"
#include "engine/observer.h"
#include "kernels/backend.h"
#include "server/process_stats.h"

namespace headroom {

// What is known once the model is loaded. Plain values; set once.
struct ModelFacts {
  KvShape kv_shape;
  Capacity capacity;
  int64_t weight_bytes_predicted = 0, weight_bytes = 0;  // by arithmetic from config.json; as allocated
  int64_t pool_bytes = 0;                                // as allocated; predicted is capacity.pool_bytes
  int64_t activation_bytes_predicted = 0, activation_bytes = 0;
  int64_t workspace_bytes_predicted = 0, workspace_bytes = 0;  // what the backend's ops take for themselves
  std::optional<DeviceMemoryState> device_memory;              // after the start; none: the CPU computes
  bool prefix_cache = true;
  std::vector<std::string> tenant_names;  // by TenantId; metrics tell several apart
  std::vector<std::pair<std::string, double>> startup_seconds;  // by phase
};

class Metrics : public EngineObserver {
 public:
  // `handlers` are the (path, method) pairs of the routes.
  Metrics(std::string model_name, std::vector<std::pair<std::string, std::string>> handlers,
          std::function<ProcessStats()> process_stats = read_process_stats);
  ~Metrics() override;

  // Why /readyz says 503, or nothing. REQUIRES that no other thread knows this object yet.
  void set_not_ready_reason(std::function<std::string()> reason);
  // From here on text() shows the engine; `stats` must stay callable until clear_engine().
  void set_engine(ModelFacts facts, std::function<EngineStats()> stats);
  void clear_engine();

  void on_step(const StepObservation& step) override;
  void on_token(const TokenObservation& token) override;
  void on_request_finished(const RequestObservation& request) override;
  void observe_http(std::string_view path, std::string_view method, int status, double seconds);

  // Prometheus text format 0.0.4.
  std::string text() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The same families, for tests and documents: name, type, unit, help.
struct MetricDescription {
  std::string name, type, unit, help;
};
std::vector<MetricDescription> metric_descriptions();

}  // namespace headroom
