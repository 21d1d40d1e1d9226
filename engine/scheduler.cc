#include "engine/scheduler.h"

#include <algorithm>
#include <utility>

#include "kernels/check.h"

namespace headroom {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Submission and the queue

Admission Scheduler::submit(NewRequest request) {
  const auto prompt_tokens = static_cast<int64_t>(request.prompt.size());
  Admission admission = can_ever_run(prompt_tokens, request.choices, request.generated_tokens_max, request.tenant);
  if (!admission.accepted()) return admission;
  // A prompt beyond the limit of tokens is still taken when nobody queues: it must not be refused for ever.
  const bool tokens_full = queue_requests_ > 0 && queue_tokens_ + prompt_tokens > options_.queue_tokens_max;
  if (queue_requests_ >= options_.queue_requests_max || tokens_full) {
    admission.status = AdmissionStatus::queue_full;
    return admission;
  }
  const auto [place, is_new] = requests_.try_emplace(request.id);
  CHECK(is_new) << "request " << static_cast<int64_t>(request.id) << " was submitted twice";
  Request& r = place->second;
  r.id = request.id;
  r.tenant = request.tenant;
  r.arrival = arrivals_++;
  r.choices = request.choices;
  r.prompt_tokens = static_cast<int32_t>(prompt_tokens);
  r.pages_max = pages_unshared_max(prompt_tokens, r.choices, request.generated_tokens_max);
  r.cache_salt = std::move(request.cache_salt);
  r.all_prompt_logits = request.all_prompt_logits;
  r.pages = RequestPages(request.choices);
  Sequence& leader = sequences_.create();
  leader.request = &r;
  leader.request_id = r.id;
  leader.tenant = r.tenant;
  leader.slots = r.choices;
  leader.tokens_max = static_cast<int32_t>(admission.tokens_needed);
  leader.state = SequenceState::waiting;
  leader.tokens = std::move(request.prompt);
  r.sequences.push_back(&leader);
  r.unfinished = 1;
  queue_.push_back(leader);
  ++queue_requests_;
  queue_tokens_ += prompt_tokens;
  return admission;
}

void Scheduler::cancel(RequestId id) {
  const auto it = requests_.find(id);
  if (it == requests_.end() || it->second.cancelled) return;
  it->second.cancelled = true;
  cancelled_.push_back(id);
}

void Scheduler::leave_queue(const Request& request) {
  --queue_requests_;
  queue_tokens_ -= request.prompt_tokens;
  latest().plan.left_queue.push_back({request.id, request.tenant, request.prompt_tokens});
}

void Scheduler::stop_waiting(Sequence& sequence) {
  if (sequence.request->started) {
    preempted_.remove(sequence);
  } else {
    queue_.remove(sequence);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Planning

const StepPlan& Scheduler::plan() {
  CHECK(!plan_open_) << "the last plan was neither advanced nor abandoned";
  latest_ = under_way_ == &steps_[0] ? 1 : 0;
  StepPlan& plan = latest().plan;
  plan.sequences.clear();
  plan.sampled.clear();
  plan.copies.clear();
  plan.taken.clear();
  plan.preempted.clear();
  plan.cancelled.clear();
  plan.left_queue.clear();
  plan.tokens = 0;
  latest().planned.clear();
  planned_chunks_.clear();
  chunks_.clear();
  drop_cancelled();
  if (!must_resolve_first()) plan_step();
  CHECK(!plan.empty() || requests_.empty() || under_way_ != nullptr) << "nothing can advance";
  plan_open_ = !plan.empty();
  return plan;
}

// Whether what comes of the step under way decides about the next one.
bool Scheduler::must_resolve_first() const {
  if (under_way_ == nullptr) return false;
  int64_t lacking = 0;
  for (const Sequence* sequence : running_) {
    if (sequence->dropped_pages < first_page_in_window(sequence->computed)) return true;
    const int32_t tokens = std::min(options_.step_tokens_max, sequence->uncomputed());
    if (tokens > 0) lacking += pages_lacking(*sequence, tokens);
  }
  return lacking > allocator_.available();
}

void Scheduler::plan_step() {
  // Sequences with one token to compute (decode) come before chunks of prompts in the budget, but pages go by age
  // alone: then a victim of preemption, always younger, can never have been planned already.
  int32_t single_budget = options_.step_tokens_max;
  const auto singles = std::ranges::count_if(running_, [](const Sequence* s) { return s->uncomputed() == 1; });
  auto chunk_budget = static_cast<int32_t>(std::max<int64_t>(single_budget - singles, 0));
  if (singles > 0) chunk_budget = std::min(chunk_budget, chunk_tokens_max_);
  bool stalled = false;
  for (size_t i = 0; i < running_.size(); ++i) {  // preemption shortens it
    const int32_t uncomputed = running_[i]->uncomputed();
    int32_t& budget = uncomputed == 1 ? single_budget : chunk_budget;
    const int32_t tokens = std::min(budget, uncomputed);
    if (tokens == 0) continue;
    if (schedule_running(i, tokens)) {
      budget -= tokens;
    } else {
      stalled = true;
    }
  }
  // Nobody is let in while somebody older lacks pages; and who has just been preempted would only take them back.
  if (latest().plan.preempted.empty() && !stalled) {
    while (chunk_budget > 0 && running_slots_ < options_.running_sequences_max) {
      Sequence* next = next_waiting();
      const int32_t tokens = next == nullptr ? 0 : try_admit(*next, chunk_budget);
      if (tokens == 0) break;
      chunk_budget -= tokens;
    }
  }
  assemble_plan();
}

void Scheduler::set_chunk_tokens_max(int32_t tokens) {
  CHECK_GE(tokens, 1) << "or the oldest sequence might not advance";
  chunk_tokens_max_ = tokens;
}

void Scheduler::drop_cancelled() {
  if (cancelled_.empty()) return;
  for (const RequestId id : cancelled_) {
    const auto it = requests_.find(id);
    // It may have ended by itself meanwhile, and its id may even be in use again.
    if (it == requests_.end() || !it->second.cancelled) continue;
    Request& request = it->second;
    if (!request.started) leave_queue(request);
    const std::vector<Sequence*> sequences = request.sequences;
    for (Sequence* sequence : sequences) {
      if (sequence == nullptr) continue;
      if (sequence->state == SequenceState::waiting) stop_waiting(*sequence);
      end_sequence(*sequence);
    }
    latest().plan.cancelled.push_back(id);
  }
  cancelled_.clear();
  rebuild_running();
}

// False if it lacks pages that only older sequences could give.
bool Scheduler::schedule_running(size_t index, int32_t tokens) {
  Sequence& sequence = *running_[index];
  while (pages_lacking(sequence, tokens) > allocator_.available()) {
    if (index + 1 == running_.size()) return false;
    preempt_youngest();
  }
  add_to_plan(sequence, tokens, take_pages(sequence, tokens));
  return true;
}

// Who was preempted is older than anybody in the queue.
Sequence* Scheduler::next_waiting() const {
  if (!preempted_.empty()) return preempted_.first();
  return queue_.next([this](const Sequence& sequence) { return within_share(sequence); });
}

bool Scheduler::within_share(const Sequence& sequence) const {
  const TenantUse& use = tenant_use_[index_of(sequence.tenant)];
  return use.requests_started < options_.tenants[index_of(sequence.tenant)].running_requests_max &&
         use.pages_promised + sequence.request->pages_max <= pages_of_tenant_max(sequence.tenant);
}

// Lets a waiting sequence in if there is room for all the tokens it has, and plans at most `budget` of them.
// Returns how many: 0 if it has to wait.
int32_t Scheduler::try_admit(Sequence& sequence, int32_t budget) {
  Request& request = *sequence.request;
  if (running_slots_ + sequence.slots > options_.running_sequences_max) return 0;
  // Room is left for a quarter of the running sequences to take their next page: with less, the newcomer would soon be
  // preempted and computed again; with more, small requests would leave the pool idle.
  const int64_t reserve = ceil_div(static_cast<int64_t>(running_.size()), 4);
  const int64_t available = allocator_.available();
  // While nothing has changed for the better, a refusal costs no lookup.
  if (reserve > 0 && available < sequence.pages_wanted + reserve) return 0;

  match_prefix(sequence);
  const auto matched_pages = static_cast<int32_t>(matched_.size());
  const int32_t matched_tokens = matched_pages * options_.page_tokens;
  const int32_t dropped_pages = first_page_in_window(matched_tokens);
  CHECK_LE(dropped_pages, matched_pages);
  for (int32_t i = dropped_pages; i-- > 0;) allocator_.release(matched_[static_cast<size_t>(i)]);
  const int64_t lacking =
      pages_of_one_max(static_cast<int64_t>(sequence.tokens.size())) - (matched_pages - dropped_pages);
  if (allocator_.available() < lacking + reserve) {
    CHECK_GT(reserve, 0) << "an accepted request does not fit the empty pool";
    sequence.pages_wanted = lacking + (available - allocator_.available());
    for (int32_t i = matched_pages; i-- > dropped_pages;) allocator_.release(matched_[static_cast<size_t>(i)]);
    return 0;
  }

  if (request.started) {
    preempted_.remove(sequence);
  } else {
    start(request);
  }
  sequence.state = SequenceState::running;
  running_.push_back(&sequence);
  running_slots_ += sequence.slots;
  sequence.computed = matched_tokens;
  sequence.matched_pages = sequence.published_pages = matched_pages;
  sequence.dropped_pages = dropped_pages;
  sequence.pages.assign(static_cast<size_t>(dropped_pages), kNoPage);
  for (int32_t i = dropped_pages; i < matched_pages; ++i) hold(sequence, matched_[static_cast<size_t>(i)]);
  const int32_t tokens = std::min(budget, sequence.uncomputed());
  add_to_plan(sequence, tokens, take_pages(sequence, tokens));
  return tokens;
}

// Pins into matched_ what the prefix cache has of the sequence's tokens, and moves its chain behind that.
void Scheduler::match_prefix(Sequence& sequence) {
  matched_.clear();
  if (!prefix_cache_) return;
  const Request& request = *sequence.request;
  sequence.chain = prefix_cache_->root(request.cache_salt);
  // At least the last token is computed, for its logits; and every one whose logits the client still has to see. A
  // match ends with a page, so what is computed next is written to a page of the sequence's own.
  int32_t limit = static_cast<int32_t>(sequence.tokens.size()) - 1;
  if (request.all_prompt_logits) limit = std::min(limit, sequence.computed_max);
  prefix_cache_->match_and_pin(std::span(sequence.tokens).first(static_cast<size_t>(limit)), sequence.chain, matched_);
}

// The first time that a request is given room: it leaves the queue, and its other choices come into being.
void Scheduler::start(Request& request) {
  Sequence& leader = *request.sequences[0];
  queue_.let_in(leader, [this](const Sequence& sequence) { return within_share(sequence); });
  leave_queue(request);
  request.started = true;
  request.turn = turns_++;
  TenantUse& use = tenant_use_[index_of(request.tenant)];
  ++use.requests_started;
  use.pages_promised += request.pages_max;
  const int64_t matched_tokens = static_cast<int64_t>(matched_.size()) * options_.page_tokens;
  queue_.charge(request.tenant, request.prompt_tokens - matched_tokens);
  reserve_room(leader);
  for (int32_t choice = 1; choice < request.choices; ++choice) {
    Sequence& sequence = sequences_.create();
    sequence.request = &request;
    sequence.request_id = request.id;
    sequence.tenant = request.tenant;
    sequence.tokens_max = leader.tokens_max;
    sequence.choice = choice;
    sequence.state = SequenceState::awaiting_fork;
    request.sequences.push_back(&sequence);
  }
  request.unfinished = request.choices;
  if (!prefix_cache_ || request.all_prompt_logits) return;
  request.usage.cached_prompt_tokens = matched_tokens;
  prefix_query_tokens_total_ += request.prompt_tokens;
  prefix_hit_tokens_total_ += request.usage.cached_prompt_tokens;
}

// Its vectors never grow, which would copy a long sequence in the middle of a step. Memory that is not written to yet
// costs addresses alone.
void Scheduler::reserve_room(Sequence& sequence) const {
  sequence.tokens.reserve(static_cast<size_t>(sequence.tokens_max));
  sequence.pages.reserve(static_cast<size_t>(ceil_div(sequence.tokens_max, options_.page_tokens)));
}

// In the pages that it holds alone: most often so, and cheap to see.
bool Scheduler::has_room(const Sequence& sequence, int32_t tokens) const {
  const auto room = static_cast<int64_t>(sequence.pages.size()) * options_.page_tokens;
  return !sequence.forked && sequence.computed + tokens <= room;
}

// A partial page that others hold too is never written to, but copied first.
int64_t Scheduler::pages_lacking(const Sequence& sequence, int32_t tokens) const {
  if (has_room(sequence, tokens)) return 0;
  const int32_t page_tokens = options_.page_tokens;
  const int64_t lacking =
      ceil_div(sequence.computed + tokens, page_tokens) - static_cast<int64_t>(sequence.pages.size());
  if (sequence.computed % page_tokens == 0) return lacking;
  const PageId partial = sequence.pages[static_cast<size_t>(sequence.computed / page_tokens)];
  return lacking + (allocator_.references(partial) > 1 ? 1 : 0);
}

// REQUIRES that they are available. False: it has them.
bool Scheduler::take_pages(Sequence& sequence, int32_t tokens) {
  if (has_room(sequence, tokens)) return false;
  StepPlan& plan = latest().plan;
  const int32_t page_tokens = options_.page_tokens;
  const int32_t partial_tokens = sequence.computed % page_tokens;
  if (partial_tokens > 0) {
    const auto index = static_cast<size_t>(sequence.computed / page_tokens);
    const PageId from = sequence.pages[index];
    if (allocator_.references(from) > 1) {
      const PageId to = allocator_.take().value();
      give_back(sequence, index);
      sequence.pages[index] = to;
      sequence.request->pages.add(to, false);
      allocator_.record_written(to, partial_tokens);
      plan.copies.push_back({from, to});
    }
  }
  const auto pages = static_cast<size_t>(ceil_div(sequence.computed + tokens, page_tokens));
  while (sequence.pages.size() < pages) {
    const PageId page = allocator_.take().value();
    hold(sequence, page);
    plan.taken.push_back(page);
  }
  return true;
}

void Scheduler::preempt_youngest() {
  Sequence& sequence = *running_.back();
  running_.pop_back();
  running_slots_ -= sequence.slots;
  give_back_all(sequence);
  sequence.computed = 0;
  sequence.matched_pages = sequence.dropped_pages = sequence.published_pages = 0;
  sequence.pages_wanted = 0;
  sequence.state = SequenceState::waiting;
  preempted_.push_front(sequence);
  latest().plan.preempted.push_back(sequence.id);
  ++sequence.request->usage.preemptions;
  ++preemptions_total_;
}

void Scheduler::add_to_plan(Sequence& sequence, int32_t tokens, bool grew) {
  Step& step = latest();
  ScheduledSequence scheduled;
  scheduled.id = sequence.id;
  scheduled.request = sequence.request_id;
  scheduled.choice = sequence.choice;
  scheduled.first_position = sequence.computed;
  scheduled.tokens = tokens;
  scheduled.recomputed_tokens = std::clamp(sequence.computed_max - sequence.computed, 0, tokens);
  if (tokens == sequence.uncomputed()) scheduled.samples = sequence.slots;
  step.plan.tokens += tokens;
  const bool is_single = sequence.uncomputed() == 1;
  (is_single ? step.plan.sequences : chunks_).push_back(scheduled);
  (is_single ? step.planned : planned_chunks_).push_back({&sequence, grew});
}

void Scheduler::assemble_plan() {
  auto& [plan, planned] = latest();
  plan.sequences.insert(plan.sequences.end(), chunks_.begin(), chunks_.end());
  planned.insert(planned.end(), planned_chunks_.begin(), planned_chunks_.end());
  for (size_t i = 0; i < planned.size(); ++i) {
    ScheduledSequence& scheduled = plan.sequences[i];
    scheduled.sampled_begin = static_cast<int32_t>(plan.sampled.size());
    if (scheduled.samples == 0) continue;
    plan.sampled.push_back(scheduled.id);
    for (int32_t choice = 1; choice < scheduled.samples; ++choice) {
      plan.sampled.push_back(planned[i].sequence->request->sequences[static_cast<size_t>(choice)]->id);
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Committing

void Scheduler::advance(const StepPlan& plan) {
  CHECK(plan_open_ && &plan == &latest().plan) << "this is not the plan in progress";
  CHECK(under_way_ == nullptr) << "the step before is not resolved";
  plan_open_ = false;
  under_way_ = &latest();
  for (size_t i = 0; i < under_way_->planned.size(); ++i) {
    const auto& [sequence, grew] = under_way_->planned[i];
    const ScheduledSequence& scheduled = plan.sequences[i];
    if (under_way_->planned[i].has_ended(scheduled)) continue;
    CHECK(sequence->state == SequenceState::running) << "a sequence without room is computed";
    if (grew) sequence->request->pages.note_peak(sequence->request->usage);
    advance(*sequence, scheduled);
    if (goes_on(*sequence, scheduled)) sequence->tokens.push_back(unknown_token(scheduled.sampled_begin));
  }
}

// What is known of it before its next token is: it will have one more, and it is not the last.
bool Scheduler::goes_on(const Sequence& sequence, const ScheduledSequence& scheduled) const {
  return scheduled.samples == 1 && static_cast<int32_t>(sequence.tokens.size()) + 1 < sequence.tokens_max;
}

void Scheduler::resolve(const StepPlan& plan, std::span<const SampledToken> sampled) {
  CHECK(is_under_way(plan)) << "this step is not under way";
  CHECK_EQ(sampled.size(), plan.sampled.size());
  for (size_t i = 0; i < sampled.size(); ++i) CHECK(sampled[i].sequence == plan.sampled[i]) << "sampled token " << i;
  const Step& step = *std::exchange(under_way_, nullptr);
  for (size_t i = 0; i < step.planned.size(); ++i) {
    const ScheduledSequence& scheduled = plan.sequences[i];
    if (step.planned[i].has_ended(scheduled)) continue;
    Sequence& sequence = *step.planned[i].sequence;
    CHECK(sequence.state == SequenceState::running) << "a sequence without room was computed";
    if (is_unknown(sequence.tokens.back())) sequence.tokens.pop_back();
    sequence.computed_max = std::max(sequence.computed_max, scheduled.first_position + scheduled.tokens);
    recomputed_tokens_total_ += scheduled.recomputed_tokens;
    if (prefix_cache_) publish_full_pages(sequence);
    drop_below_window(sequence);
    if (scheduled.samples == 0) continue;
    const auto tokens = sampled.subspan(static_cast<size_t>(scheduled.sampled_begin));
    if (scheduled.samples > 1) fork(sequence);
    for (int32_t k = scheduled.samples; k-- > 1;) {  // choice 0 last: with the last choice the request goes
      append(*sequence.request->sequences[static_cast<size_t>(k)], tokens[static_cast<size_t>(k)]);
    }
    append(sequence, tokens[0]);
  }
  rebuild_running();
}

void Scheduler::abandon(const StepPlan& plan) {
  CHECK(plan_open_ ? &plan == &latest().plan : is_under_way(plan)) << "this is not the plan in progress";
  plan_open_ = false;
  if (const Step* step = std::exchange(under_way_, nullptr)) {
    for (size_t i = 0; i < step->planned.size(); ++i) {
      if (step->planned[i].has_ended(step->plan.sequences[i])) continue;
      std::vector<TokenId>& tokens = step->planned[i].sequence->tokens;
      if (is_unknown(tokens.back())) tokens.pop_back();
    }
  }
  while (!running_.empty()) preempt_youngest();
}

void Scheduler::advance(Sequence& sequence, const ScheduledSequence& scheduled) {
  const int32_t page_tokens = options_.page_tokens;
  const int32_t end = sequence.computed + scheduled.tokens;
  for (int32_t position = sequence.computed; position < end;) {
    const int32_t page = position / page_tokens;
    const int32_t page_end = std::min(end, (page + 1) * page_tokens);
    allocator_.record_written(sequence.pages[static_cast<size_t>(page)], page_end - position);
    position = page_end;
  }
  sequence.computed = end;
  drop_below_window(sequence);
}

void Scheduler::publish_full_pages(Sequence& sequence) {
  const auto page_tokens = static_cast<size_t>(options_.page_tokens);
  while ((static_cast<size_t>(sequence.published_pages) + 1) * page_tokens <= static_cast<size_t>(sequence.computed)) {
    const auto index = static_cast<size_t>(sequence.published_pages++);
    const PageId page = sequence.pages[index];
    const auto tokens = std::span(sequence.tokens).subspan(index * page_tokens, page_tokens);
    const PageId kept = prefix_cache_->publish(page, tokens, sequence.chain);
    if (kept == page) continue;
    sequence.pages[index] = kept;  // the same bits were there already
    sequence.request->pages.remove(page, false);
    sequence.request->pages.add(kept, false);
  }
}

int32_t Scheduler::first_page_in_window(int32_t position) const {
  if (options_.window_tokens == 0) return 0;
  return std::max(position - options_.window_tokens + 1, 0) / options_.page_tokens;
}

// But for those that are still to be published, which is done when their step is known to have come right.
void Scheduler::drop_below_window(Sequence& sequence) {
  int32_t first = first_page_in_window(sequence.computed);
  if (prefix_cache_) first = std::min(first, sequence.published_pages);
  while (sequence.dropped_pages < first) give_back(sequence, static_cast<size_t>(sequence.dropped_pages++));
}

// The prompt is computed: the other choices share its pages.
void Scheduler::fork(Sequence& leader) {
  Request& request = *leader.request;
  leader.slots = 1;  // those that it kept for the others are theirs now
  leader.forked = true;
  for (int32_t choice = 1; choice < request.choices; ++choice) {
    Sequence& sequence = *request.sequences[static_cast<size_t>(choice)];
    reserve_room(sequence);
    sequence.tokens = leader.tokens;
    sequence.computed = leader.computed;
    sequence.computed_max = leader.computed_max;
    sequence.matched_pages = leader.matched_pages;
    sequence.dropped_pages = leader.dropped_pages;
    sequence.published_pages = leader.published_pages;
    sequence.chain = leader.chain;
    sequence.forked = true;
    sequence.state = SequenceState::running;
    for (const PageId page : leader.pages) {
      if (page != kNoPage) allocator_.add_reference(page);
      hold(sequence, page);
    }
  }
  const auto place = std::ranges::find(running_, &leader);
  running_.insert(place + 1, request.sequences.begin() + 1, request.sequences.end());
}

void Scheduler::append(Sequence& sequence, const SampledToken& sampled) {
  sequence.tokens.push_back(sampled.token);
  queue_.charge(sequence.tenant, 1);
  if (sampled.finished) {
    if (sampled.invalid) forget_pages(sequence);
    end_sequence(sequence);
    return;
  }
  CHECK(!sampled.invalid) << "a sequence must finish with an invalid token";
  CHECK_LT(static_cast<int32_t>(sequence.tokens.size()), sequence.tokens_max)
      << "a sequence must finish with its last token";
}

// All that is found by its tokens, whoever computed it: any page may be the one that holds what is no number, even one
// that the sequence has read and a window has dropped. What lies behind a forgotten page is not found either.
void Scheduler::forget_pages(const Sequence& sequence) {
  if (!prefix_cache_) return;
  PrefixCache::ChainEnd chain = prefix_cache_->root(sequence.request->cache_salt);
  matched_.clear();
  prefix_cache_->match_and_pin(sequence.tokens, chain, matched_);
  for (const PageId page : matched_) {
    prefix_cache_->forget(page);
    allocator_.release(page);
  }
}

void Scheduler::rebuild_running() {
  std::erase_if(running_, [](const Sequence* s) { return s->state != SequenceState::running; });
}

// ---------------------------------------------------------------------------------------------------------------------
// Holding pages

void Scheduler::hold(Sequence& sequence, PageId page) {
  const bool shared = static_cast<int32_t>(sequence.pages.size()) < sequence.matched_pages;
  sequence.pages.push_back(page);
  if (page != kNoPage) sequence.request->pages.add(page, shared);
}

void Scheduler::give_back(Sequence& sequence, size_t index) {
  CHECK_LT(index, sequence.pages.size());
  const PageId page = std::exchange(sequence.pages[index], kNoPage);
  sequence.request->pages.remove(page, static_cast<int32_t>(index) < sequence.matched_pages);
  allocator_.release(page);
}

// From the end of the chain, so that the prefix cache evicts leaves before their parents.
void Scheduler::give_back_all(Sequence& sequence) {
  for (size_t i = sequence.pages.size(); i-- > static_cast<size_t>(sequence.dropped_pages);) give_back(sequence, i);
  sequence.pages.clear();
}

// The sequence leaves; running_ is cleaned by the caller. With the last one goes the request.
void Scheduler::end_sequence(Sequence& sequence) {
  Request& request = *sequence.request;
  if (sequence.state == SequenceState::running) running_slots_ -= sequence.slots;
  give_back_all(sequence);
  request.sequences[static_cast<size_t>(sequence.choice)] = nullptr;
  sequences_.destroy(sequence);
  if (--request.unfinished > 0) return;
  CHECK_EQ(request.pages.held(), 0);
  if (request.started) {
    TenantUse& use = tenant_use_[index_of(request.tenant)];
    --use.requests_started;
    use.pages_promised -= request.pages_max;
  }
  requests_.erase(request.id);
}

}  // namespace headroom
