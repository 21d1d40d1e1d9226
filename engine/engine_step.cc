// One step of the engine: plan, run, draw, settle, commit; or plan, launch, and finish the step before. Engine thread.
#include <algorithm>
#include <new>
#include <utility>

#include "engine/engine.h"
#include "engine/engine_state.h"
#include "kernels/check.h"

namespace headroom {

template <class Work>
std::optional<Engine::Failure> Engine::attempt(const Work& work) {
  try {
    work();
  } catch (const BackendError& error) {
    return Failure{error.what(), error.kind == BackendError::Kind::sticky};
  } catch (const std::bad_alloc&) {
    return Failure{"no memory for the step", false};
  } catch (const std::exception& error) {
    return Failure{error.what(), true};
  }
  return std::nullopt;
}

// One plan, and the results of the step before where these are still under way.
void Engine::step() {
  Step next{.started = Clock::now()};
  totals_.chunk_tokens = chunk_tokens();
  scheduler_.set_chunk_tokens_max(totals_.chunk_tokens);
  const StepPlan& plan = scheduler_.plan();
  next.plan = &plan;
  next.planned = Clock::now();
  leave_queue(plan);
  std::optional<Failure> failure;
  if (!plan.empty()) {
    note_scheduled(next);
    publish_stats(false);  // a step may take long, and who watches should see what it works on
    failure = attempt([&] { launch(next); });
  }
  const bool idle = plan.empty() && !under_way_;
  if (under_way_ && !(failure && failure->is_sticky)) {
    if (std::optional<Failure> lost = finish_under_way()) failure = std::move(lost);
  }
  if (!failure && !plan.empty() && !next.is_ahead) {
    failure = attempt([&] {
      score_prompts(plan);
      draw(plan);
    });
  }
  if (failure) return on_failure(plan.empty() ? *under_way_->plan : plan, *failure);
  if (!plan.empty()) {
    scheduler_.advance(plan);
    if (next.is_ahead) {
      under_way_ = std::move(next);
    } else {
      finish(next);
    }
  }
  if (idle) publish_stats(false);
  deliver_ended();
}

// For the next step. Who was given a token by the last one writes in it, as far as is known; all others wait for their first.
int32_t Engine::chunk_tokens() const {
  const SchedulerStats now = scheduler_.stats();
  const int64_t all = std::min<int64_t>(now.running_sequences + now.waiting_sequences, options_.scheduler.running_sequences_max);
  const auto writing = static_cast<int64_t>(scheduler_.current_plan().sampled.size());
  return pace_.chunk_tokens(std::max<int64_t>(std::min(writing, all), 1), all);
}

// Waits for the step under way. If that fails, nothing of it or of what was launched behind it can be trusted.
std::optional<Engine::Failure> Engine::finish_under_way() {
  std::optional<Failure> lost = attempt([&] {
    const std::span<const SampleResult> results = runner_->wait_samples(under_way_->place);
    CHECK_EQ(results.size(), under_way_->samples.size());
    draws_.assign(results.size(), {});
    for (size_t i = 0; i < results.size(); ++i) take_draw(i, under_way_->samples[i], results[i]);
  });
  if (lost) return lost;
  const Step step = *std::exchange(under_way_, std::nullopt);
  finish(step);
  return std::nullopt;
}

// What was drawn, in draws_, goes to the streams and to the scheduler.
void Engine::finish(const Step& step) {
  const auto ran = Clock::now();
  // Behind another step, it began when that one's results were there, as far as the host can tell.
  const double run_seconds = seconds_between(std::max(step.planned, std::exchange(last_ran_, ran)), ran);
  settle(*step.plan);
  scheduler_.resolve(*step.plan, sampled_);
  totals_.prefill_tokens += step.prefill_tokens;
  pace_.note(step.decode_tokens, step.prefill_tokens, run_seconds);
  if (observer_ != nullptr) {
    observer_->on_step({.sequences = static_cast<int32_t>(step.plan->sequences.size()),
                        .prefill_tokens = step.prefill_tokens,
                        .decode_tokens = step.decode_tokens,
                        .plan_seconds = seconds_between(step.started, step.planned),
                        .run_seconds = run_seconds,
                        .commit_seconds = seconds_between(ran, Clock::now())});
  }
  publish_stats(true);
}

void Engine::leave_queue(const StepPlan& plan) {
  if (plan.left_queue.empty()) return;
  const std::lock_guard lock(inbox_->mutex);
  for (const LeftQueue& left : plan.left_queue) inbox_->gate.leave(left.tenant, left.prompt_tokens);
}

void Engine::note_scheduled(Step& step) {
  const auto now = Clock::now();
  for (const ScheduledSequence& scheduled : step.plan->sequences) {
    Live* live = find(scheduled.request);
    CHECK(live != nullptr);
    if (!live->first_scheduled) live->first_scheduled = now;
    const bool decodes = scheduled.tokens == 1 && scheduled.first_position >= static_cast<int32_t>(live->request.prompt.size());
    step.decode_tokens += decodes ? 1 : 0;
  }
  step.prefill_tokens = step.plan->tokens - step.decode_tokens;
}

// Runs the step, and launches its draws where nothing of it needs the host before a token is drawn.
void Engine::launch(Step& step) {
  for (const PageCopy& copy : step.plan->copies) runner_->copy_page(copy.from, copy.to);
  batch_.build(*step.plan, scheduler_);
  runner_->run(batch_.view());
  if (options_.async_scheduling && runner_->samples_ahead()) launch_draws(step);
}

void Engine::launch_draws(Step& step) {
  std::vector<int32_t> rows;
  for (size_t i = 0; i < step.plan->sequences.size(); ++i) {
    const ScheduledSequence& scheduled = step.plan->sequences[i];
    if (to_score(scheduled) || !add_samples(scheduled, static_cast<int32_t>(rows.size()), step.samples)) return;
    if (scheduled.samples > 0) rows.push_back(batch_.last_row(i));
  }
  step.place = under_way_ ? 1 - under_way_->place : 0;
  runner_->launch_samples(step.place, rows, step.samples);
  step.is_ahead = true;
}

bool Engine::to_score(const ScheduledSequence& scheduled) const {
  const Live& live = *find(scheduled.request);
  return !live.ended && live.request.prompt_logprobs && !live.scored_delivered && scheduled.choice == 0;
}

// Log-probabilities of prompt tokens, for requests that echo their prompt with them: row p tells how likely token p+1 was.
void Engine::score_prompts(const StepPlan& plan) {
  std::vector<int32_t> rows;
  for (size_t i = 0; i < plan.sequences.size(); ++i) {
    const ScheduledSequence& scheduled = plan.sequences[i];
    if (!to_score(scheduled)) continue;
    Live* live = find(scheduled.request);
    if (live->scored.tokens.empty()) live->scored.tokens.emplace_back();
    const int32_t first_row = batch_.last_row(i) - scheduled.tokens + 1;
    const auto prompt_tokens = static_cast<int32_t>(live->request.prompt.size());
    const int32_t end = std::min(scheduled.tokens, prompt_tokens - 1 - scheduled.first_position);
    for (int32_t begin = 0; begin < end; begin += runner_->logits_rows_max()) {
      rows.clear();
      for (int32_t r = begin; r < std::min(end, begin + runner_->logits_rows_max()); ++r) rows.push_back(first_row + r);
      const Matrix logits = runner_->logits(rows);
      for (size_t r = 0; r < rows.size(); ++r) {
        score_row(*live, scheduled.first_position + begin + static_cast<int32_t>(r),
                  {logits.row(static_cast<int64_t>(r)), static_cast<size_t>(vocab_size_)});
      }
    }
  }
}

void Engine::score_row(Live& live, int32_t position, std::span<const float> logits) {
  const size_t next = static_cast<size_t>(position) + 1;
  if (next < live.scored.tokens.size()) return;  // computed again after a preemption
  CHECK_EQ(next, live.scored.tokens.size());
  live.scored.tokens.push_back(sampler_.logprobs(logits, live.request.prompt[next], live.request.top_logprobs));
}

// Draws the tokens of the step and changes nothing else: if a block of logits fails, the step can be computed again.
void Engine::draw(const StepPlan& plan) {
  draws_.assign(plan.sampled.size(), {});
  std::vector<size_t> block;
  std::vector<int32_t> rows;
  const auto flush = [&] {
    if (rows.empty()) return;
    if (!draw_on_device(plan, block, rows)) draw_on_host(plan, block, rows);
    block.clear();
    rows.clear();
  };
  for (size_t i = 0; i < plan.sequences.size(); ++i) {
    if (plan.sequences[i].samples == 0 || scheduler_.has_ended(plan.sequences[i].id)) continue;
    block.push_back(i);
    rows.push_back(batch_.last_row(i));
    if (static_cast<int32_t>(rows.size()) == runner_->logits_rows_max()) flush();
  }
  flush();
}

SamplerContext Engine::sampler_context(const ScheduledSequence& scheduled, int32_t choice) const {
  const Live& live = *find(scheduled.request);
  const std::span<const TokenId> tokens = scheduler_.tokens(scheduled.id);
  const auto prompt_tokens = static_cast<int32_t>(live.request.prompt.size());
  const bool early = static_cast<int32_t>(tokens.size()) - prompt_tokens < live.request.generated_tokens_min;
  return {.tokens = tokens,
          .prompt_tokens = prompt_tokens,
          .choice = choice,
          .forbidden = early ? live.forbidden_early : std::span<const TokenId>()};
}

// How a backend draws for a sequence, of that row of the logits; false where one of its choices changes its logits first.
bool Engine::add_samples(const ScheduledSequence& scheduled, int32_t logits_row, std::vector<SampleRow>& samples) const {
  const GenerateRequest& request = find(scheduled.request)->request;
  for (int32_t s = 0; s < scheduled.samples; ++s) {
    auto row = Sampler::device_row(request.sampling, sampler_context(scheduled, scheduled.choice + s), request.top_logprobs);
    if (!row) return false;
    row->logits_row = logits_row;
    samples.push_back(*row);
  }
  return true;
}

void Engine::take_draw(size_t index, const SampleRow& row, const SampleResult& result) {
  if (result.token < 0) return;
  draws_[index].token = result.token;
  if (row.top_logprobs >= 0) draws_[index].logprobs = sampler_.logprobs(result);
}

// The block of sequences, row r of the logits for block[r]. Draws all or, where one of them changes its logits first, none.
bool Engine::draw_on_device(const StepPlan& plan, std::span<const size_t> block, std::span<const int32_t> rows) {
  if (!runner_->samples()) return false;
  std::vector<SampleRow> samples;
  std::vector<size_t> draw_of;
  for (size_t r = 0; r < rows.size(); ++r) {
    const ScheduledSequence& scheduled = plan.sequences[block[r]];
    if (!add_samples(scheduled, static_cast<int32_t>(r), samples)) return false;
    for (int32_t s = 0; s < scheduled.samples; ++s) draw_of.push_back(static_cast<size_t>(scheduled.sampled_begin + s));
  }
  std::vector<SampleResult> results(samples.size());
  runner_->sample(rows, samples, results);
  for (size_t i = 0; i < results.size(); ++i) take_draw(draw_of[i], samples[i], results[i]);
  return true;
}

void Engine::draw_on_host(const StepPlan& plan, std::span<const size_t> block, std::span<const int32_t> rows) {
  const Matrix logits = runner_->logits(rows);
  for (size_t r = 0; r < rows.size(); ++r) {
    const ScheduledSequence& scheduled = plan.sequences[block[r]];
    const GenerateRequest& request = find(scheduled.request)->request;
    const std::span<const float> row(logits.row(static_cast<int64_t>(r)), static_cast<size_t>(vocab_size_));
    for (int32_t s = 0; s < scheduled.samples; ++s) {
      Draw& draw = draws_[static_cast<size_t>(scheduled.sampled_begin + s)];
      draw.token = sampler_.sample(row, request.sampling, sampler_context(scheduled, scheduled.choice + s));
      if (draw.token && request.top_logprobs >= 0) draw.logprobs = sampler_.logprobs(row, *draw.token, request.top_logprobs);
    }
  }
}

// Delivers what was drawn, and says to the scheduler which sequences go on.
void Engine::settle(const StepPlan& plan) {
  sampled_.clear();
  for (const ScheduledSequence& scheduled : plan.sequences) {
    Live* live = find(scheduled.request);  // null: it ended while its step was under way
    for (int32_t s = 0; s < scheduled.samples; ++s) {
      const size_t index = static_cast<size_t>(scheduled.sampled_begin + s);
      const bool is_wanted = live != nullptr && !live->ended && !live->choices[static_cast<size_t>(scheduled.choice + s)].finished;
      const bool goes_on = is_wanted && settle_choice(*live, scheduled.choice + s, draws_[index]);
      sampled_.push_back({.sequence = plan.sampled[index],
                          .token = draws_[index].token.value_or(0),
                          .finished = !goes_on,
                          .invalid = !draws_[index].token});
    }
  }
}

// True if the choice goes on.
bool Engine::settle_choice(Live& live, int32_t choice, Draw& draw) {
  Live::Choice& state = live.choices[static_cast<size_t>(choice)];
  const GenerateRequest& request = live.request;
  const auto finish_choice = [&](FinishReason reason, TokenId stop_token) {
    state.finished = true;
    live.stream->push(ChoiceFinished{choice, reason, stop_token});
    if (--live.choices_left == 0) end(live, reason, {});
    return false;
  };
  if (!draw.token) {
    end(live, FinishReason::error, "the model gave values that are not numbers for this request");
    scheduler_.cancel(live.id);
    return false;
  }
  note_progress(live);
  if (request.prompt_logprobs && !live.scored_delivered) {
    live.stream->push(std::move(live.scored));
    live.scored_delivered = true;
  }
  if (live.stream->choice_stopped(choice)) return finish_choice(FinishReason::stop, -1);
  if (request.generated_tokens_max == 0) return finish_choice(FinishReason::length, -1);

  ++state.generated;
  ++totals_.generated_tokens;
  ++live.finished.usage.generated_tokens;
  if (!totals_.tenants.empty()) ++totals_.tenants[index_of(request.tenant)].generated_tokens;
  const TokenId token = *draw.token;
  live.stream->push(
      TokenDelta{.choice = choice, .token = token, .has_logprobs = request.top_logprobs >= 0, .logprobs = std::move(draw.logprobs)});
  const std::optional<FinishReason> reason = finish_reason(live, choice, token);
  if (!reason) return true;
  return finish_choice(*reason, *reason == FinishReason::stop ? token : -1);
}

// Times of tokens; with its first token, a request's prompt counts as done.
void Engine::note_progress(Live& live) {
  const auto now = Clock::now();
  const bool first = !live.first_token;
  if (first || live.request.choices == 1) {
    const double seconds = seconds_between(first ? live.arrival : live.last_token, now);
    ++(first ? totals_.first_tokens : totals_.next_tokens);
    (first ? totals_.first_token_seconds : totals_.next_token_seconds) += seconds;
    if (!first) totals_.token_gap_seconds_max = std::max(totals_.token_gap_seconds_max, seconds);
    if (observer_ != nullptr) {
      observer_->on_token({.first = first,
                           .seconds = seconds,
                           .context_tokens = static_cast<int64_t>(live.request.prompt.size()) + live.finished.usage.generated_tokens});
    }
  }
  live.last_token = now;
  if (!first) return;
  live.first_token = now;
  const auto prompt_tokens = static_cast<int64_t>(live.request.prompt.size());
  const int64_t cached = scheduler_.usage(live.id).cached_prompt_tokens;
  totals_.prompt_tokens += prompt_tokens;
  totals_.prompt_tokens_cached += cached;
  totals_.prompt_tokens_computed += prompt_tokens - cached;
  if (totals_.tenants.empty()) return;
  totals_.tenants[index_of(live.request.tenant)].prompt_tokens += prompt_tokens;
  totals_.tenants[index_of(live.request.tenant)].cached_tokens += cached;
}

// Why `token` ends the choice; nullopt while it goes on.
std::optional<FinishReason> Engine::finish_reason(const Live& live, int32_t choice, TokenId token) const {
  const GenerateRequest& request = live.request;
  const auto contains = [token](const std::vector<TokenId>& ids) { return std::find(ids.begin(), ids.end(), token) != ids.end(); };
  if (contains(request.stop_token_ids) || (!request.ignore_eos && contains(options_.eos_token_ids))) return FinishReason::stop;
  if (live.choices[static_cast<size_t>(choice)].generated >= request.generated_tokens_max) return FinishReason::length;
  return std::nullopt;
}

// The request is over: settles its account. Its last event goes out, and it leaves live_, in deliver_ended().
void Engine::end(Live& live, FinishReason reason, const std::string& message) {
  CHECK(!live.ended);
  live.ended = true;
  live.finished.reason = reason;
  live.finished.message = message;
  const PageUsage& pages = scheduler_.usage(live.id);
  RequestUsage& usage = live.finished.usage;
  usage.cached_tokens = static_cast<int32_t>(pages.cached_prompt_tokens);
  usage.kv_pages = pages.peak_pages;
  usage.kv_bytes = pages.peak_pages * shape_.page_bytes();
  usage.kv_shared_bytes = pages.shared_pages_at_peak * shape_.page_bytes();
  usage.kv_mha_equivalent_bytes = pages.peak_pages * shape_.page_tokens * shape_.mha_token_bytes();
  usage.preemptions = pages.preemptions;

  ended_.push_back(live.id);
}

void Engine::abort(RequestId id, FinishReason reason, const std::string& message) {
  Live* live = find(id);
  if (live == nullptr || live->ended) return;  // it had ended before the word came
  end(*live, reason, message);
  scheduler_.cancel(id);
}

void Engine::abort_all(FinishReason reason, const std::string& message) {
  std::vector<RequestId> ids;
  for (const auto& [id, live] : live_) ids.push_back(id);
  for (RequestId id : ids) abort(id, reason, message);
}

void Engine::deliver_ended() {
  if (ended_.empty()) return;
  const auto now = Clock::now();
  for (RequestId id : ended_) {
    Live* live = find(id);
    if (observer_ != nullptr) {
      const auto first_scheduled = live->first_scheduled.value_or(now);
      const auto first_token = live->first_token.value_or(now);
      const auto last_token = live->first_token ? live->last_token : now;
      int32_t longest_choice_tokens = 0;
      for (const Live::Choice& choice : live->choices) longest_choice_tokens = std::max(longest_choice_tokens, choice.generated);
      observer_->on_request_finished({.reason = live->finished.reason,
                                      .usage = live->finished.usage,
                                      .choices = live->request.choices,
                                      .generated_tokens_max = live->request.generated_tokens_max,
                                      .longest_choice_tokens = longest_choice_tokens,
                                      .queue_seconds = seconds_between(live->arrival, first_scheduled),
                                      .prefill_seconds = seconds_between(first_scheduled, first_token),
                                      .decode_seconds = seconds_between(first_token, last_token),
                                      .inference_seconds = seconds_between(first_scheduled, last_token),
                                      .e2e_seconds = seconds_between(live->arrival, now)});
    }
    live->stream->push(live->finished);
  }
  {
    std::lock_guard lock(inbox_->mutex);
    for (RequestId id : ended_) {
      const Live& live = *find(id);
      inbox_->gate.charge(live.request.tenant, live.finished.usage.generated_tokens, now);
    }
    inbox_->accepted -= static_cast<int64_t>(ended_.size());
    if (inbox_->last_end) {
      const double each = seconds_between(*inbox_->last_end, now) / static_cast<double>(ended_.size());
      inbox_->seconds_per_request += 0.1 * (each - inbox_->seconds_per_request);
    }
    inbox_->last_end = now;
    if (inbox_->accepted == 0) {
      inbox_->last_end.reset();  // a pause says nothing of how fast requests end
      inbox_->idle.notify_all();
    }
  }
  for (RequestId id : ended_) live_.erase(id);
  ended_.clear();
}

// The step is lost, and what is under way; not the requests: all are computed again, but for the youngest, whose memory was too much.
void Engine::on_failure(const StepPlan& plan, const Failure& failure) {
  const std::string& message = failure.message;
  const RequestId youngest = plan.sequences.back().request;
  scheduler_.abandon(plan);
  under_way_.reset();
  if (failure.is_sticky) {
    {
      std::lock_guard lock(inbox_->mutex);
      inbox_->faulted = true;
    }
    totals_.faulted = true;
    totals_.fault = message;
    abort_all(FinishReason::error, "the model has failed: " + message);
  } else {
    abort(youngest, FinishReason::error, "out of memory: " + message);
  }
  publish_stats(false);
  deliver_ended();
}

void Engine::publish_stats(bool stepped) {
  const SchedulerStats scheduler = scheduler_.stats();
  totals_.steps += stepped ? 1 : 0;
  totals_.requests_running = scheduler.running_requests;
  totals_.requests_waiting = scheduler.unfinished_requests - scheduler.running_requests;
  totals_.pages = scheduler.pages;
  totals_.page_bytes = shape_.page_bytes();
  totals_.mha_page_bytes = shape_.page_tokens * shape_.mha_token_bytes();
  totals_.live_tokens = scheduler.live_written_tokens;
  totals_.prefix_queried_tokens = scheduler.prefix_query_tokens_total;
  totals_.prefix_hit_tokens = scheduler.prefix_hit_tokens_total;
  totals_.preemptions = scheduler.preemptions_total;
  totals_.recomputed_tokens = scheduler.recomputed_tokens_total;
  totals_.evicted_pages = scheduler.evictions_total;
  publish_tenants();
  std::lock_guard lock(stats_mutex_);
  stats_ = totals_;
  if (stepped) last_progress_time_ = Clock::now();
}

void Engine::publish_tenants() {
  if (totals_.tenants.empty()) return;
  scheduler_.use_by_tenant(tenant_use_);
  for (size_t i = 0; i < tenant_use_.size(); ++i) {
    totals_.tenants[i].requests_running = tenant_use_[i].requests_started;
    totals_.tenants[i].pages = tenant_use_[i].pages;
  }
}

void Engine::publish_view(int64_t asked) {
  publish_stats(false);
  const auto now = Clock::now();
  auto view = std::make_shared<LiveView>(LiveView{.stats = totals_, .scheduler = scheduler_.view(), .asked = asked});
  for (const SchedulerView::Request& request : view->scheduler.requests) {
    LiveView::Times& times = view->times.emplace_back();
    const Live* live = find(request.id);
    if (live == nullptr) continue;  // ended with an error; its pages are back at the next plan
    times.generated_tokens = live->finished.usage.generated_tokens;
    times.seconds = seconds_between(live->arrival, now);
    if (live->first_token) times.decode_seconds = seconds_between(*live->first_token, now);
  }
  views_answered_ = asked;
  {
    std::lock_guard lock(inbox_->mutex);
    view->stats.draining = inbox_->draining;
    view->stats.work_pending = inbox_->accepted > 0;
  }
  {
    std::lock_guard lock(view_mutex_);
    view_ = std::move(view);
  }
  view_made_.notify_all();
}

}  // namespace headroom
