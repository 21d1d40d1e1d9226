// The engine: takes requests from any thread, runs them in steps on its own thread, and delivers their tokens.
//
//   plan → run → sample → commit, for as long as there is work
//
// Asynchronous where the runner draws by itself, without being waited for: the next step is planned, built and launched while the device is
// at work on the one before, and tokens that are not known yet are filled in there (Scheduler, "Planning ahead"). Then the results of the
// step before are waited for and delivered, while the device is at work again. Not so for a step in which any request needs the host:
// logits that change before a token is drawn (bias, penalties, tokens that are not allowed yet), log-probabilities of its prompt, or
// more than kTopLogprobsMax of them. Its results are waited for before anything is planned behind it. Neither order changes a bit.
//
// Threads: submit(), drain(), stats(), live_view() from any thread; everything else belongs to the engine thread, which owns all mutable state.
// Invariants: I1–I7 of the README; every accepted request ends in exactly one Finished event, also when the model fails.
#pragma once

#include <chrono>
#include <condition_variable>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <unordered_map>
#include <variant>
#include <vector>

#include "engine/batch.h"
#include "engine/model/capacity.h"
#include "engine/model_runner.h"
#include "engine/observer.h"
#include "engine/request.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"
#include "engine/step_pace.h"
#include "engine/token_stream.h"

namespace headroom {

struct EngineOptions {
  SchedulerOptions scheduler;
  std::vector<TokenId> eos_token_ids;
  int32_t step_slowdown_max = 0;  // of a step that generates, by tokens of prompts beside (StepPace); 0: no bound
  int64_t idle_check_pages_max = 1 << 16;  // when idle, pools of up to this many pages are checked for I1
  bool async_scheduling = true;            // false: no step is planned before the one before is over
};

// What is known of one tenant. Totals count since the start.
struct TenantStats {
  int64_t requests_running = 0, requests_waiting = 0;
  int64_t pages = 0;  // distinct ones of each request
  int64_t prompt_tokens = 0, cached_tokens = 0, generated_tokens = 0;
  int64_t refused_full = 0, refused_too_fast = 0;  // requests
};

// A consistent picture of the engine after its latest step. Totals count since the start.
struct EngineStats {
  int64_t requests_running = 0, requests_waiting = 0;
  PageCounts pages{};
  int64_t page_bytes = 0;      // of one page, all layers
  int64_t mha_page_bytes = 0;  // the same with as many KV heads as query heads
  int64_t live_tokens = 0;     // slots written in live pages
  int64_t prompt_tokens = 0, generated_tokens = 0;
  int64_t prompt_tokens_cached = 0, prompt_tokens_computed = 0;
  int64_t prefix_queried_tokens = 0, prefix_hit_tokens = 0;
  int64_t preemptions = 0, recomputed_tokens = 0, evicted_pages = 0;
  std::vector<TenantStats> tenants;  // by TenantId; empty with one tenant
  int64_t steps = 0;
  int64_t prefill_tokens = 0;  // computed, beside one for each sequence that writes
  int64_t first_tokens = 0, next_tokens = 0;               // as EngineObserver::on_token counts them
  double first_token_seconds = 0, next_token_seconds = 0;  // their sums
  double token_gap_seconds_max = 0;  // the longest between two tokens of a request with one choice
  int32_t chunk_tokens = 0;          // of prompts in a step that generates too, at most
  bool draining = false, faulted = false;
  std::string fault;             // what the model failed at
  bool work_pending = false;
  double seconds_since_progress = 0;  // of the model, or since work is pending; with work pending, a long time means that it hangs
};

// What the engine holds between two steps, for people to watch.
struct LiveView {
  struct Times {
    int32_t generated_tokens = 0;  // all choices
    double seconds = 0;            // since arrival
    double decode_seconds = 0;     // since the first token; 0 before
  };
  EngineStats stats;
  SchedulerView scheduler;
  std::vector<Times> times;  // beside scheduler.requests
  int64_t asked = 0;         // which live_view() it answers
};

class Engine {
 public:
  // Starts the engine thread. `shape` prices the pages for the usage of requests; `observer` may be null.
  Engine(EngineOptions options, KvShape shape, std::unique_ptr<ModelRunner> runner, EngineObserver* observer);
  ~Engine();  // aborts what runs and joins the thread

  // Places in the bounded queue for requests that are still to be tokenised. Those not used are given back at its end. It may outlive the
  // engine.
  class Reservation;
  using ReserveResult = std::variant<Reservation, SubmitError>;
  ReserveResult reserve(TenantId tenant, int32_t requests);
  // Whether the queue, empty, has room for prompts of so many tokens at once. If not, it is of no use to try again.
  bool may_wait_together(TenantId tenant, std::span<const int64_t> prompt_tokens) const;

  using SubmitResult = std::variant<std::shared_ptr<TokenStream>, SubmitError>;
  // REQUIRES a place of the request's tenant left in `places`, which is used up unless the request is refused.
  SubmitResult submit(GenerateRequest request, Reservation& places);
  SubmitResult submit(GenerateRequest request);  // takes a place for it
  // The greatest generated_tokens_max with which such a request could run, were it alone; 0 if there is none.
  int32_t generated_tokens_possible(int64_t prompt_tokens, int32_t choices, TenantId tenant) const;

  // No new requests from now on. True when all accepted ones ended within `grace`; else the rest is aborted, which takes a step; after
  // five seconds more it gives up, and stats().work_pending says that the model hangs. It gives up at once when the model has not got on
  // for `stalled_seconds_max`.
  bool drain(std::chrono::milliseconds grace, double stalled_seconds_max = std::numeric_limits<double>::infinity());

  EngineStats stats() const;
  // Asks the engine thread, which answers between two steps, and waits for that for at most `wait_max`; then what it answered last, with the
  // latest stats if the engine has failed since.
  // Nothing is done for it while nobody asks.
  std::shared_ptr<const LiveView> live_view(std::chrono::milliseconds wait_max);
  const KvShape& kv_shape() const { return shape_; }
  const EngineOptions& options() const { return options_; }
  int32_t vocab_size() const { return vocab_size_; }

 private:
  using Clock = std::chrono::steady_clock;
  struct Live;   // a request in the engine
  struct Inbox;  // what other threads hand over; shared with the streams, which may outlive the engine
  struct Draw {
    std::optional<TokenId> token;  // none: the logits are broken
    Logprobs logprobs;
  };
  struct Step {
    const StepPlan* plan = nullptr;
    int32_t prefill_tokens = 0, decode_tokens = 0;
    Clock::time_point started, planned;
    bool is_ahead = false;           // its draws were launched, to `place`
    int place = 0;
    std::vector<SampleRow> samples;  // [plan.sampled]
  };
  struct Failure {
    std::string message;
    bool is_sticky = false;
  };

  std::optional<SubmitError> refusal(const GenerateRequest& request) const;
  SubmitError queue_full(TenantId tenant) const;          // REQUIRES the inbox's mutex
  std::optional<SubmitError> closed() const;              // the same

  // Engine thread.
  void thread_main();
  bool take_inbox();  // waits while there is no work; false: stop
  void admit(std::unique_ptr<Live>& live);
  void heed_signal(RequestId id);
  void step();
  int32_t chunk_tokens() const;
  template <class Work>
  static std::optional<Failure> attempt(const Work& work);
  void launch(Step& step);
  void launch_draws(Step& step);
  std::optional<Failure> finish_under_way();
  void finish(const Step& step);
  void score_prompts(const StepPlan& plan);
  bool to_score(const ScheduledSequence& scheduled) const;
  void score_row(Live& live, int32_t position, std::span<const float> logits);
  void draw(const StepPlan& plan);
  SamplerContext sampler_context(const ScheduledSequence& scheduled, int32_t choice) const;
  bool add_samples(const ScheduledSequence& scheduled, int32_t logits_row, std::vector<SampleRow>& samples) const;
  void take_draw(size_t index, const SampleRow& row, const SampleResult& result);
  bool draw_on_device(const StepPlan& plan, std::span<const size_t> block, std::span<const int32_t> rows);
  void draw_on_host(const StepPlan& plan, std::span<const size_t> block, std::span<const int32_t> rows);
  void settle(const StepPlan& plan);
  bool settle_choice(Live& live, int32_t choice, Draw& draw);
  void note_progress(Live& live);
  std::optional<FinishReason> finish_reason(const Live& live, int32_t choice, TokenId token) const;
  void end(Live& live, FinishReason reason, const std::string& message);
  void abort(RequestId id, FinishReason reason, const std::string& message);
  void abort_all(FinishReason reason, const std::string& message);
  void fail_for_good(const char* message) noexcept;
  void deliver_ended();
  void note_scheduled(Step& step);
  void leave_queue(const StepPlan& plan);
  void on_failure(const StepPlan& plan, const Failure& failure);
  void publish_stats(bool stepped);
  void publish_view(int64_t asked);
  Live* find(RequestId id) const;

  void publish_tenants();

  const EngineOptions options_;
  const KvShape shape_;
  const std::unique_ptr<ModelRunner> runner_;
  EngineObserver* const observer_;
  const int32_t vocab_size_;
  const std::shared_ptr<Inbox> inbox_;

  // Engine thread only.
  Scheduler scheduler_;
  StepPace pace_;
  Sampler sampler_;
  Batch batch_;
  std::vector<std::unique_ptr<Live>> admitting_;  // out of the inbox, not all in live_ yet
  std::unordered_map<RequestId, std::unique_ptr<Live>> live_;
  std::optional<Step> under_way_;      // launched, its results not waited for
  Clock::time_point last_ran_;         // when the results of a step were there last
  std::vector<RequestId> ended_;       // since the last step: their last event follows the commit
  std::vector<Draw> draws_;            // [plan.sampled]
  std::vector<SampledToken> sampled_;  // [plan.sampled]
  std::vector<TenantUse> tenant_use_;
  EngineStats totals_;                        // the counted part of stats_
  bool unchecked_ = true;                     // something ran since I1 was last checked
  int64_t views_answered_ = 0;

  mutable std::mutex stats_mutex_;
  EngineStats stats_;
  mutable Clock::time_point last_progress_time_;  // a step's end, or when stats() last saw the runner get on
  mutable uint64_t last_progress_ = 0;

  std::mutex view_mutex_;
  std::condition_variable view_made_;
  std::shared_ptr<const LiveView> view_;
  std::thread thread_;
};

class Engine::Reservation {
 public:
  Reservation(Reservation&& other) noexcept;
  Reservation& operator=(Reservation&&) = delete;
  ~Reservation();

 private:
  friend class Engine;
  Reservation(std::shared_ptr<Inbox> inbox, TenantId tenant, int32_t places) : inbox_(std::move(inbox)), tenant_(tenant), places_(places) {}

  std::shared_ptr<Inbox> inbox_;
  TenantId tenant_;
  int32_t places_;  // left
};

}  // namespace headroom
