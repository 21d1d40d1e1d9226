// Inside of the engine, for engine.cc and engine_step.cc alone.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "engine/engine.h"
#include "engine/queue_gate.h"

namespace headroom {

// A request in the engine. Engine thread.
struct Engine::Live {
  struct Choice {
    int32_t generated = 0;
    bool finished = false;
  };

  RequestId id{};
  GenerateRequest request;
  std::shared_ptr<TokenStream> stream;
  std::vector<Choice> choices;
  int32_t choices_left = 0;
  std::vector<TokenId> forbidden_early;  // may not be sampled before generated_tokens_min
  PromptScored scored;
  bool scored_delivered = false;
  bool ended = false;
  Clock::time_point arrival, last_token;
  std::optional<Clock::time_point> first_scheduled, first_token;
  Finished finished;
};

// What other threads hand over, all under its mutex.
struct Engine::Inbox {
  explicit Inbox(const SchedulerOptions& options)
      : gate(options, Clock::now()), refused_full(options.tenants.size()), refused_too_fast(options.tenants.size()) {}

  std::mutex mutex;
  std::condition_variable work;
  std::condition_variable idle;
  std::vector<std::unique_ptr<Live>> submitted;
  std::vector<RequestId> signalled;  // cancelled, or a choice of it was stopped
  bool signal_lost = false;          // there was no memory for one: it may be any
  bool stop = false;
  bool draining = false;
  bool abort_running = false;
  bool faulted = false;
  int64_t accepted = 0;  // not ended yet, the submitted ones included
  Clock::time_point pending_since;  // when it was last 0, and then was not
  QueueGate gate;                   // counts the scheduler's queue and what is on its way there
  std::vector<int64_t> refused_full, refused_too_fast;  // by TenantId
  int64_t ids = 0;
  int64_t views_asked = 0;
  double seconds_per_request = 0.1;  // between ends of requests, smoothed
  std::optional<Clock::time_point> last_end;
};

inline double seconds_between(std::chrono::steady_clock::time_point from, std::chrono::steady_clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace headroom
