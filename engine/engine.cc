#include "engine/engine.h"

#include <algorithm>
#include <atomic>
#include <new>
#include <utility>

#include "engine/engine_state.h"
#include "kernels/check.h"

namespace headroom {
namespace {

constexpr double kRetryAfterMaxSeconds = 60.0;
constexpr std::chrono::seconds kAbortSecondsMax{5};
constexpr std::chrono::milliseconds kStalledPoll{100};

}  // namespace

Engine::Engine(EngineOptions options, KvShape shape, std::unique_ptr<ModelRunner> runner, EngineObserver* observer)
    : options_(std::move(options)),
      shape_(shape),
      runner_(std::move(runner)),
      observer_(observer),
      vocab_size_(runner_->vocab_size()),
      inbox_(std::make_shared<Inbox>(options_.scheduler)),
      scheduler_(options_.scheduler),
      pace_(options_.step_slowdown_max, options_.scheduler.step_tokens_max),
      sampler_(vocab_size_),
      last_progress_time_(Clock::now()) {
  if (options_.scheduler.tenants.size() > 1) totals_.tenants.resize(options_.scheduler.tenants.size());
  publish_view(0);
  thread_ = std::thread([this] { thread_main(); });
}

Engine::~Engine() {
  {
    std::lock_guard lock(inbox_->mutex);
    inbox_->stop = true;
  }
  inbox_->work.notify_all();
  thread_.join();
}

// Any thread.

// What can be said of a request without knowing the load.
std::optional<SubmitError> Engine::refusal(const GenerateRequest& request) const {
  const auto invalid = [](std::string message) { return SubmitError{SubmitError::Kind::invalid, std::move(message)}; };
  if (request.prompt.empty()) return invalid("the prompt is empty: send at least one token");
  if (request.choices < 1) return invalid("n must be at least 1");
  if (request.generated_tokens_max < 0) return invalid("max_tokens must not be negative");
  for (TokenId token : request.prompt) {
    if (token < 0 || token >= vocab_size_) {
      return invalid("token id " + std::to_string(token) + " of the prompt is outside the vocabulary of " + std::to_string(vocab_size_));
    }
  }
  const Admission admission = scheduler_.can_ever_run(static_cast<int64_t>(request.prompt.size()), request.choices,
                                                      request.generated_tokens_max, request.tenant);
  switch (admission.status) {
    case AdmissionStatus::exceeds_context:
      return SubmitError{SubmitError::Kind::context_exceeded,
                         "the prompt has " + std::to_string(request.prompt.size()) + " tokens and max_tokens asks for " +
                             std::to_string(request.generated_tokens_max) + " more; the context is " +
                             std::to_string(admission.tokens_max) + " tokens"};
    case AdmissionStatus::exceeds_pool:
      return SubmitError{SubmitError::Kind::pool_exceeded,
                         "the request may need " + std::to_string(admission.pages_needed) + " KV pages; the pool has " +
                             std::to_string(admission.pages_total) + " in all: ask for fewer tokens or choices"};
    case AdmissionStatus::exceeds_share:
      return SubmitError{SubmitError::Kind::share_exceeded,
                         "the request may need " + std::to_string(admission.pages_needed) + " KV pages; the share of this API key is " +
                             std::to_string(admission.pages_total) + ": ask for fewer tokens or choices"};
    case AdmissionStatus::exceeds_running:
      return invalid("n is larger than the number of sequences that this server runs at once");
    case AdmissionStatus::accepted:
    case AdmissionStatus::queue_full: return std::nullopt;
  }
  return std::nullopt;
}

int32_t Engine::generated_tokens_possible(int64_t prompt_tokens, int32_t choices, TenantId tenant) const {
  int32_t possible = 0, impossible = options_.scheduler.context_tokens_max + 1;
  while (possible + 1 < impossible) {
    const int32_t middle = possible + (impossible - possible) / 2;
    (scheduler_.can_ever_run(prompt_tokens, choices, middle, tenant).accepted() ? possible : impossible) = middle;
  }
  return possible;
}

// Why nothing is accepted any more.
std::optional<SubmitError> Engine::closed() const {
  if (inbox_->faulted) return SubmitError{SubmitError::Kind::faulted, "the model has failed; the server is about to exit", 1};
  if (inbox_->draining || inbox_->stop) {
    return SubmitError{SubmitError::Kind::draining, "the server is shutting down; send the request to another replica", 1};
  }
  return std::nullopt;
}

SubmitError Engine::queue_full(TenantId tenant) const {
  ++inbox_->refused_full[index_of(tenant)];
  const QueueGate& gate = inbox_->gate;
  const bool alone = options_.scheduler.tenants.size() == 1;
  return {SubmitError::Kind::queue_full,
          std::to_string(gate.requests_of(tenant)) + " requests" + (alone ? "" : " of this API key") + " with " +
              std::to_string(gate.tokens_of(tenant)) + " prompt tokens are waiting already; try again later",
          std::clamp(static_cast<double>(gate.requests()) * inbox_->seconds_per_request, 1.0, kRetryAfterMaxSeconds)};
}

Engine::ReserveResult Engine::reserve(TenantId tenant, int32_t requests) {
  const SchedulerOptions& scheduler = options_.scheduler;
  if (const int32_t own = scheduler.tenants[index_of(tenant)].queue_requests_max; requests > std::min(own, scheduler.queue_requests_max)) {
    return SubmitError{SubmitError::Kind::invalid, std::to_string(requests) + " prompts are more than the queue has places" +
                                                       (own < scheduler.queue_requests_max ? " for this API key, " : ", ") +
                                                       std::to_string(std::min(own, scheduler.queue_requests_max))};
  }
  const auto now = Clock::now();
  const std::lock_guard lock(inbox_->mutex);
  if (std::optional<SubmitError> error = closed()) return *std::move(error);
  switch (inbox_->gate.take_places(tenant, requests, now)) {
    case QueueGate::Refusal::none: return Reservation(inbox_, tenant, requests);
    case QueueGate::Refusal::queue_full: return queue_full(tenant);
    case QueueGate::Refusal::too_fast: break;
  }
  ++inbox_->refused_too_fast[index_of(tenant)];
  return SubmitError{SubmitError::Kind::too_fast, "this API key has used up its requests or tokens per minute; try again later",
                     inbox_->gate.seconds_until_allowed(tenant, now)};
}

bool Engine::may_wait_together(TenantId tenant, std::span<const int64_t> prompt_tokens) const {
  const std::lock_guard lock(inbox_->mutex);
  return inbox_->gate.has_room_when_empty(tenant, prompt_tokens);
}

Engine::Reservation::Reservation(Reservation&& other) noexcept
    : inbox_(std::move(other.inbox_)), tenant_(other.tenant_), places_(std::exchange(other.places_, 0)) {}

Engine::Reservation::~Reservation() {
  if (places_ == 0) return;
  const std::lock_guard lock(inbox_->mutex);
  inbox_->gate.give_back(tenant_, places_);
}

Engine::SubmitResult Engine::submit(GenerateRequest request) {
  if (std::optional<SubmitError> error = refusal(request)) return *std::move(error);
  auto places = reserve(request.tenant, 1);
  if (auto* error = std::get_if<SubmitError>(&places)) return std::move(*error);
  return submit(std::move(request), std::get<Reservation>(places));
}

Engine::SubmitResult Engine::submit(GenerateRequest request, Reservation& places) {
  if (std::optional<SubmitError> error = refusal(request)) return *std::move(error);
  CHECK(places.inbox_ == inbox_ && places.tenant_ == request.tenant && places.places_ > 0) << "no place is reserved";
  auto live = std::make_unique<Live>();
  live->arrival = Clock::now();
  const auto tokens = static_cast<int64_t>(request.prompt.size());
  const TenantId tenant = request.tenant;

  std::unique_lock lock(inbox_->mutex);
  if (std::optional<SubmitError> error = closed()) return *std::move(error);
  const RequestId id{++inbox_->ids};
  live->id = id;
  // The stream may outlive the engine, so it holds the inbox and nothing else.
  live->stream = std::make_shared<TokenStream>(request.choices, [inbox = inbox_, id] {
    {
      std::lock_guard cancel_lock(inbox->mutex);
      try {
        inbox->signalled.push_back(id);
      } catch (const std::bad_alloc&) {
        inbox->signal_lost = true;
      }
    }
    inbox->work.notify_one();
  });
  live->request = std::move(request);
  std::shared_ptr<TokenStream> stream = live->stream;
  inbox_->submitted.push_back(std::move(live));
  if (!inbox_->gate.add_prompt(tenant, tokens, Clock::now())) {
    inbox_->submitted.pop_back();
    return queue_full(tenant);
  }
  --places.places_;
  if (inbox_->accepted++ == 0) inbox_->pending_since = Clock::now();
  lock.unlock();
  inbox_->work.notify_one();
  return stream;
}

bool Engine::drain(std::chrono::milliseconds grace, double stalled_seconds_max) {
  std::unique_lock lock(inbox_->mutex);
  inbox_->draining = true;
  // True when nothing is left to do.
  const auto wait_until = [&](Clock::time_point deadline) {
    const auto idle = [this] { return inbox_->accepted == 0; };
    while (!inbox_->idle.wait_until(lock, std::min(deadline, Clock::now() + kStalledPoll), idle)) {
      lock.unlock();
      const bool stalled = stats().seconds_since_progress > stalled_seconds_max;
      lock.lock();
      if (stalled || Clock::now() >= deadline) return idle();
    }
    return true;
  };
  if (wait_until(Clock::now() + grace)) return true;
  inbox_->abort_running = true;
  inbox_->work.notify_one();
  wait_until(Clock::now() + kAbortSecondsMax);  // longer only if a step hangs
  return false;
}

EngineStats Engine::stats() const {
  EngineStats result;
  Clock::time_point pending_since;
  {
    std::lock_guard lock(inbox_->mutex);
    result.draining = inbox_->draining;
    result.work_pending = inbox_->accepted > 0;
    result.requests_waiting = static_cast<int64_t>(inbox_->submitted.size());
    pending_since = inbox_->pending_since;
    if (inbox_->refused_full.size() > 1) result.tenants.resize(inbox_->refused_full.size());
    for (size_t i = 0; i < result.tenants.size(); ++i) {
      result.tenants[i].requests_waiting = inbox_->gate.requests_of(TenantId{static_cast<int32_t>(i)});
      result.tenants[i].refused_full = inbox_->refused_full[i];
      result.tenants[i].refused_too_fast = inbox_->refused_too_fast[i];
    }
  }
  const EngineStats now_known = std::move(result);
  std::lock_guard lock(stats_mutex_);
  result = stats_;
  result.draining = now_known.draining;
  result.work_pending = now_known.work_pending;
  result.requests_waiting += now_known.requests_waiting;
  for (size_t i = 0; i < result.tenants.size(); ++i) {
    result.tenants[i].requests_waiting = now_known.tenants[i].requests_waiting;
    result.tenants[i].refused_full = now_known.tenants[i].refused_full;
    result.tenants[i].refused_too_fast = now_known.tenants[i].refused_too_fast;
  }
  const auto now = Clock::now();
  if (const uint64_t progress = runner_->progress(); progress != last_progress_) {
    last_progress_ = progress;
    last_progress_time_ = now;
  }
  result.seconds_since_progress = seconds_between(std::max(last_progress_time_, pending_since), now);
  return result;
}

std::shared_ptr<const LiveView> Engine::live_view(std::chrono::milliseconds wait_max) {
  int64_t asked = 0;
  {
    std::lock_guard lock(inbox_->mutex);
    asked = ++inbox_->views_asked;
  }
  inbox_->work.notify_one();
  {
    std::unique_lock lock(view_mutex_);
    if (view_made_.wait_for(lock, wait_max, [&] { return view_->asked >= asked; })) return view_;
  }
  EngineStats now = stats();
  const std::lock_guard lock(view_mutex_);
  if (!now.faulted) return view_;
  auto last = std::make_shared<LiveView>(*view_);  // no thread may be left that makes another
  last->stats = std::move(now);
  return last;
}

// The engine thread; its step is in engine_step.cc.

void Engine::thread_main() {
  try {
    while (take_inbox()) step();
    abort_all(FinishReason::abort, "the server is stopping");
    deliver_ended();
  } catch (const std::exception& error) {
    fail_for_good(dynamic_cast<const std::bad_alloc*>(&error) != nullptr ? "the server has no memory left" : "internal error");
  }
}

// Something gave way between two consistent states, most likely for want of memory, so nothing more is computed. Every request is told, new
// ones are refused, and who runs the server sees a fault and ends the process. Takes no memory itself.
void Engine::fail_for_good(const char* message) noexcept {
  {
    std::lock_guard lock(stats_mutex_);
    stats_.faulted = true;
    try {
      stats_.fault = message;
    } catch (const std::bad_alloc&) {
      stats_.fault = "no memory";  // short enough to be held in place
    }
  }
  for (const auto& [id, live] : live_) live->stream->fail(message);
  std::lock_guard lock(inbox_->mutex);
  inbox_->faulted = true;
  for (const auto* group : {&admitting_, &inbox_->submitted}) {
    for (const auto& live : *group) {
      if (live != nullptr) live->stream->fail(message);
    }
  }
  inbox_->submitted.clear();  // they hold the inbox
  inbox_->accepted = 0;
  inbox_->idle.notify_all();
}

bool Engine::take_inbox() {
  std::vector<RequestId> signalled;
  bool abort_running = false;
  bool stop = false;
  int64_t views_asked = 0;
  if (unchecked_ && !scheduler_.has_work() && !under_way_ && options_.scheduler.pages_total <= options_.idle_check_pages_max) {
    scheduler_.check_conserved();
    unchecked_ = false;
  }
  {
    std::unique_lock lock(inbox_->mutex);
    const auto has_news = [this] {
      return inbox_->stop || inbox_->abort_running || !inbox_->submitted.empty() || !inbox_->signalled.empty() ||
             inbox_->views_asked > views_answered_ || inbox_->signal_lost;
    };
    if (!scheduler_.has_work() && !under_way_ && !has_news()) {
      inbox_->work.wait(lock, has_news);
      // The pause was not the model's.
      std::lock_guard stats_lock(stats_mutex_);
      last_progress_time_ = Clock::now();
    }
    admitting_.swap(inbox_->submitted);
    signalled.swap(inbox_->signalled);
    if (std::exchange(inbox_->signal_lost, false)) {
      for (const auto& [id, live] : live_) signalled.push_back(id);
      for (const auto& live : admitting_) signalled.push_back(live->id);
    }
    abort_running = std::exchange(inbox_->abort_running, false);
    stop = inbox_->stop;
    views_asked = inbox_->views_asked;
  }
  for (auto& live : admitting_) admit(live);
  admitting_.clear();
  for (RequestId id : signalled) heed_signal(id);
  if (abort_running) abort_all(FinishReason::abort, "the server is shutting down");
  unchecked_ = unchecked_ || scheduler_.has_work();
  if (views_asked > views_answered_) publish_view(views_asked);
  return !stop;
}

void Engine::admit(std::unique_ptr<Live>& live) {
  GenerateRequest& request = live->request;
  live->choices.resize(static_cast<size_t>(request.choices));
  live->choices_left = request.choices;
  live->forbidden_early = request.stop_token_ids;
  live->forbidden_early.insert(live->forbidden_early.end(), options_.eos_token_ids.begin(), options_.eos_token_ids.end());
  live->finished.usage.prompt_tokens = static_cast<int32_t>(request.prompt.size());

  const Admission admission = scheduler_.submit({.id = live->id,
                                                 .prompt = request.prompt,
                                                 .choices = request.choices,
                                                 .generated_tokens_max = request.generated_tokens_max,
                                                 .cache_salt = request.cache_salt,
                                                 .tenant = request.tenant,
                                                 .all_prompt_logits = request.prompt_logprobs});
  // The gate has checked narrower bounds for all that is in the queue and on its way there.
  CHECK(admission.accepted());
  live_.try_emplace(live->id).first->second = std::move(live);  // it is lost to neither if there is no memory
}

// The consumer wants no more of a request, or of some choices of it. A choice that goes on ends those that were stopped as they come up;
// when none goes on, all end here, without waiting for their turn.
void Engine::heed_signal(RequestId id) {
  Live* live = find(id);
  if (live == nullptr || live->ended) return;  // it had ended before the word came
  if (live->stream->cancelled()) return abort(id, FinishReason::abort, "cancelled by the client");
  for (int32_t choice = 0; choice < live->request.choices; ++choice) {
    if (!live->choices[static_cast<size_t>(choice)].finished && !live->stream->choice_stopped(choice)) return;
  }
  for (int32_t choice = 0; choice < live->request.choices; ++choice) {
    if (!live->choices[static_cast<size_t>(choice)].finished) live->stream->push(ChoiceFinished{choice, FinishReason::stop, -1});
  }
  abort(id, FinishReason::stop, {});
}

Engine::Live* Engine::find(RequestId id) const {
  const auto it = live_.find(id);
  return it == live_.end() ? nullptr : it->second.get();
}

}  // namespace headroom
