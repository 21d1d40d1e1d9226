// The engine: takes requests from any thread, runs them in steps on its own thread, and delivers their tokens.
//
//   plan → run → commit, until drained.
//
// Threads: submit(), drain(), stats() from any thread; everything else belongs to the engine thread, which owns all mutable state.
// Invariants: I1–I7 of the README; every accepted request ends in exactly one Finished event, also when the model fails.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <variant>
#include <vector>

#include "engine/model/capacity.h"
#include "engine/model_runner.h"
#include "engine/observer.h"
#include "engine/request.h"
#include "engine/scheduler.h"
#include "engine/token_stream.h"

namespace headroom {

struct EngineOptions {
  SchedulerOptions scheduler;
  std::vector<TokenId> eos_token_ids;
};

// A consistent picture of the engine after its latest step.
struct EngineStats {
  int64_t requests_running = 0, requests_waiting = 0;
  PageCounts pages{};
  int64_t page_bytes = 0;           // of one page, all layers
  int64_t mha_page_bytes = 0;
  int64_t live_tokens = 0;          // slots written in live pages
  int64_t prompt_tokens = 0, generated_tokens = 0;                 // totals since the start
  int64_t prompt_tokens_cached = 0, prompt_tokens_computed = 0;
  int64_t prefix_queried_tokens = 0, prefix_hit_tokens = 0;
  int64_t preemptions = 0, recomputed_tokens = 0;
  int64_t steps = 0;
  bool draining = false, faulted = false;
  std::string fault;
  double seconds_since_step = 0;    // work pending without a step for long means stalled
  bool work_pending = false;
};

class Engine {
 public:
  // `shape` gives bytes to the usage of requests; `observer` (may be null) and `runner` outlive nothing: the engine owns the runner.
  Engine(EngineOptions options, KvShape shape, std::unique_ptr<ModelRunner> runner, EngineObserver* observer);
  ~Engine();  // cancels what runs, joins the thread

  using SubmitResult = std::variant<std::shared_ptr<TokenStream>, SubmitError>;
  SubmitResult submit(GenerateRequest request);

  // No new requests from now on; true when all running ones ended within `grace`, else they are cancelled.
  bool drain(std::chrono::milliseconds grace);
  EngineStats stats() const;
  const EngineOptions& options() const { return options_; }
  int32_t vocab_size() const { return vocab_size_; }

 private:
  struct Live;  // a request in the engine

  void thread_main();
  EngineOptions options_;
  KvShape shape_;
  std::unique_ptr<ModelRunner> runner_;
  EngineObserver* observer_;
  int32_t vocab_size_;
};

}  // namespace headroom
