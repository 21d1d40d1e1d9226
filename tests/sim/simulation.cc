#include "tests/sim/simulation.h"

#include <algorithm>

#include "engine/kv/siphash.h"

namespace headroom::sim {

void Coverage::add(const Coverage& other) {
  steps += other.steps;
  accepted += other.accepted;
  refused_for_ever += other.refused_for_ever;
  refused_full += other.refused_full;
  finished_choices += other.finished_choices;
  cancelled += other.cancelled;
  preempted += other.preempted;
  abandoned += other.abandoned;
  forks += other.forks;
  copies += other.copies;
  hit_tokens += other.hit_tokens;
  recomputed_tokens += other.recomputed_tokens;
  evictions += other.evictions;
  window_drops += other.window_drops;
  slots_verified += other.slots_verified;
}

Simulation::Simulation(uint64_t seed) : random_(seed) {
  draw_options();
  draw_stems();
  scheduler_.emplace(options_);
  pool_.emplace(options_.pages_total, options_.page_tokens);
  references_.assign(static_cast<size_t>(options_.pages_total), 0);
  is_poisoned_.assign(static_cast<size_t>(options_.pages_total), 1);
  seen_by_.assign(static_cast<size_t>(options_.pages_total), 0);
}

void Simulation::draw_options() {
  constexpr int32_t kPageTokens[] = {1, 2, 3, 4, 4, 5, 8, 16};
  options_.page_tokens = kPageTokens[random_.below(8)];
  options_.context_tokens_max = random_.between(8, 48);
  const int32_t pages_of_context = options_.context_tokens_max / options_.page_tokens + 1;
  // From less than one full request to room for many: small pools preempt all the time.
  options_.pages_total =
      std::max(1, random_.between(pages_of_context / 2, pages_of_context * (random_.chance(0.5) ? 2 : 5)));
  options_.step_tokens_max = random_.chance(0.3) ? random_.between(1, 8) : random_.between(8, 48);
  options_.running_sequences_max = random_.between(1, 12);
  options_.queue_requests_max = random_.between(1, 12);
  options_.queue_tokens_max = random_.chance(0.3) ? random_.between(1, 200) : 1 << 20;
  options_.window_tokens = random_.chance(0.35) ? random_.between(1, 24) : 0;
  options_.prefix_cache = random_.chance(0.8);
  options_.prefix_cache_key = HashKey{random_.next(), random_.next()};
  options_.page_order_seed = random_.below(2) == 0 ? 0 : random_.next();
  submit_chance_ = random_.chance(0.5) ? 0.1 : 0.6;
  cancel_chance_ = random_.chance(0.5) ? 0.005 : 0.06;
  abandon_chance_ = random_.chance(0.2) ? 0.01 : 0;
  choices_max_ = random_.chance(0.5) ? 1 : random_.between(2, 5);
  salts_ = random_.between(1, 3);
  vocabulary_ = random_.between(1, 6);
  end_one_in_ = random_.between(4, 100);
  // Short prompts with long answers are what runs out of pages late.
  prompt_tokens_max_ = random_.chance(0.5) ? random_.between(2, 10) : options_.context_tokens_max;
  prompt_tokens_max_ = std::min(prompt_tokens_max_, options_.context_tokens_max);
}

void Simulation::draw_stems() {
  stems_.resize(static_cast<size_t>(random_.between(1, 3)));
  for (std::vector<TokenId>& stem : stems_) {
    stem.resize(static_cast<size_t>(options_.context_tokens_max));
    for (TokenId& token : stem) token = random_.below(vocabulary_);
  }
}

void Simulation::run(int64_t steps) {
  while (coverage_.steps < steps) {
    if (random_.chance(submit_chance_)) submit();
    if (random_.chance(cancel_chance_)) cancel_somebody();
    step();
  }
  while (!clients_.empty()) step();
  step();
  require(!scheduler_->has_work(), "the scheduler has work left and no clients");
  const SchedulerStats stats = scheduler_->stats();
  require(stats.pages.live == 0, stats.pages.live, " pages are live in the end");
  require(stats.pages.total() == options_.pages_total, "pages are lost in the end");
  require(stats.live_written_tokens == 0, "tokens are counted as written in pages that nobody holds");
  coverage_.recomputed_tokens += stats.recomputed_tokens_total;
  coverage_.evictions += stats.evictions_total;
}

// ---------------------------------------------------------------------------------------------------------------------
// Clients

std::vector<TokenId> Simulation::draw_prompt() {
  // Now and then longer than the context, to be refused.
  const int32_t length =
      random_.chance(0.02) ? options_.context_tokens_max + 1 : random_.between(1, prompt_tokens_max_);
  std::vector<TokenId> prompt;
  if (!last_answer_.empty() && random_.chance(0.3)) {
    prompt = last_answer_;  // the next turn of a conversation
  } else {
    prompt = stems_[static_cast<size_t>(random_.below(static_cast<int32_t>(stems_.size())))];
    prompt.resize(static_cast<size_t>(random_.between(0, std::min(length, options_.context_tokens_max))));
  }
  if (prompt.size() > static_cast<size_t>(length)) prompt.resize(static_cast<size_t>(length));
  const int32_t tail = random_.chance(0.3) ? 0 : length - static_cast<int32_t>(prompt.size());
  for (int32_t i = 0; i < tail; ++i) prompt.push_back(random_.below(vocabulary_));
  if (prompt.empty()) prompt.push_back(0);
  return prompt;
}

void Simulation::submit() {
  NewRequest request;
  request.id = RequestId{next_id_};
  request.prompt = draw_prompt();
  request.choices = random_.between(1, choices_max_);
  const int32_t room = options_.context_tokens_max - static_cast<int32_t>(request.prompt.size());
  request.generated_tokens_max = random_.between(0, std::max(room, 0) + (random_.chance(0.05) ? 1 : 0));
  request.all_prompt_logits = random_.chance(0.1);
  const int32_t salt = random_.below(salts_);
  request.cache_salt = salt == 0 ? "" : "tenant " + std::to_string(salt);

  Client client;
  client.id = request.id;
  client.salt = salt;
  client.prompt_tokens = static_cast<int32_t>(request.prompt.size());
  client.generated_tokens_max = request.generated_tokens_max;
  client.all_prompt_logits = request.all_prompt_logits;
  client.sampler = {random_.below(3) == 0 ? 0 : random_.next(), vocabulary_, end_one_in_};
  client.choices.resize(static_cast<size_t>(request.choices));
  for (Choice& choice : client.choices) {
    for (TokenId token : request.prompt) append(client, choice, token);
  }
  if (!check_admission(client, scheduler_->submit(std::move(request)))) return;

  ++next_id_;
  ++coverage_.accepted;
  steps_owed_ += steps_bound(client);
  client.deadline_step = coverage_.steps + steps_owed_;
  clients_.emplace(static_cast<int64_t>(client.id), std::move(client));
}

// Once a sequence is the oldest, it advances by a token in every step: it is done after this many, whatever happens.
int64_t Simulation::steps_bound(const Client& client) const {
  return static_cast<int64_t>(client.choices.size()) * (client.prompt_tokens + client.generated_tokens_max + 1);
}

bool Simulation::check_admission(const Client& client, const Admission& admission) {
  int64_t queue_requests = 0;
  int64_t queue_tokens = 0;
  for (const auto& [id, other] : clients_) {
    if (other.started) continue;
    ++queue_requests;
    queue_tokens += other.prompt_tokens;
  }
  const bool fits_context = client.prompt_tokens + client.generated_tokens_max <= options_.context_tokens_max;
  const bool fits_running = static_cast<int32_t>(client.choices.size()) <= options_.running_sequences_max;
  const bool tokens_full = queue_requests > 0 && queue_tokens + client.prompt_tokens > options_.queue_tokens_max;
  const bool queue_full = queue_requests >= options_.queue_requests_max || tokens_full;
  switch (admission.status) {
    case AdmissionStatus::accepted:
      require(fits_context && fits_running && !queue_full, "accepted what should be refused");
      require(admission.pages_needed <= options_.pages_total, "accepted more pages than there are");
      return true;
    case AdmissionStatus::exceeds_context:
      require(!fits_context, "refused for its context");
      break;
    case AdmissionStatus::exceeds_running:
      require(!fits_running, "refused for its choices");
      break;
    case AdmissionStatus::exceeds_pool:
      require(admission.pages_needed > options_.pages_total, "refused for its pages");
      break;
    case AdmissionStatus::queue_full:
      require(queue_full, "refused by a queue that is not full");
      ++coverage_.refused_full;
      return false;
  }
  ++coverage_.refused_for_ever;
  return false;
}

void Simulation::cancel_somebody() {
  if (next_id_ == 1) return;
  // Anybody of late: some have ended, some were cancelled before.
  const int64_t id = std::max<int64_t>(1, next_id_ - 1 - random_.below(20));
  scheduler_->cancel(RequestId{id});
  const auto it = clients_.find(id);
  if (it != clients_.end()) it->second.cancelled = true;
}

void Simulation::append(const Client& client, Choice& choice, TokenId token) {
  const Content before = choice.contents.empty() ? content_of_root(client.salt) : choice.contents.back();
  choice.tokens.push_back(token);
  choice.contents.push_back(content_after(before, token));
}

void Simulation::end_client(int64_t id) {
  const auto it = clients_.find(id);
  steps_owed_ -= steps_bound(it->second);
  clients_.erase(it);
}

// ---------------------------------------------------------------------------------------------------------------------
// One step

void Simulation::step() {
  ++coverage_.steps;
  const StepPlan& plan = scheduler_->plan();
  observe_plan(plan);
  new_pages_.clear();
  observe_tables();
  check_new_pages(plan);
  for (const PageCopy& copy : plan.copies) copy_page(copy);
  for (const PageId page : new_pages_) poison(page);
  poison_free_pages();
  for (const ScheduledSequence& scheduled : plan.sequences) compute(scheduled);
  scheduler_->check_conserved();

  if (random_.chance(cancel_chance_)) cancel_somebody();
  if (plan.empty()) return;
  if (random_.chance(abandon_chance_)) {
    scheduler_->abandon(plan);
    observe_abandon();
  } else {
    sample(plan);
    scheduler_->commit(plan, sampled_);
    observe_commit(plan);
  }
  observe_tables();
  poison_free_pages();
  scheduler_->check_conserved();
}

void Simulation::copy_page(const PageCopy& copy) {
  require(copy.from != copy.to, "a page is copied onto itself");
  require(scheduler_->pages().references(copy.to) == 1, "a page that others hold is the target of a copy");
  pool_->copy(copy.from, copy.to);
  is_poisoned_[static_cast<size_t>(index_of(copy.to))] = 0;
  ++coverage_.copies;
}

void Simulation::poison(PageId page) {
  pool_->poison(page);
  is_poisoned_[static_cast<size_t>(index_of(page))] = 1;
}

void Simulation::poison_free_pages() {
  for (int32_t i = 0; i < static_cast<int32_t>(references_.size()); ++i) {
    const PageId page{i};
    if (references_[static_cast<size_t>(i)] > 0 || is_poisoned_[static_cast<size_t>(i)] || is_published(page)) continue;
    poison(page);
  }
}

// What the model does with one scheduled sequence: it reads all that its first row can see, then writes its rows, each
// of which sees those before it.
void Simulation::compute(const ScheduledSequence& scheduled) {
  Client& client = client_of(scheduled.request);
  const Choice& choice = client.choices[static_cast<size_t>(scheduled.choice)];
  const std::span<const PageId> pages = scheduler_->page_table(scheduled.id);
  const std::span<const TokenId> tokens = scheduler_->tokens(scheduled.id);
  require(std::ranges::equal(tokens, choice.tokens), "the tokens of a sequence are not those of its client");
  const int32_t page_tokens = options_.page_tokens;
  const int32_t window = options_.window_tokens;
  const int32_t first = scheduled.first_position;
  const int32_t end = first + scheduled.tokens;
  require(static_cast<int32_t>(pages.size()) * page_tokens >= end, "a page table is too short for its step");
  const int32_t readable = window == 0 ? 0 : std::max(0, first - window + 1);
  for (int32_t position = readable; position < first; ++position) {
    const PageId page = pages[static_cast<size_t>(position / page_tokens)];
    require(page != kNoPage, "position ", position, " is readable and its page is gone");
    const Content content = pool_->slot(page, position % page_tokens);
    require(content != kPoison, "position ", position, " is read before it is written");
    require(content == choice.contents[static_cast<size_t>(position)], "position ", position, " holds a foreign token");
  }
  coverage_.slots_verified += first - readable;
  for (int32_t position = first; position < end; ++position) {
    const PageId page = pages[static_cast<size_t>(position / page_tokens)];
    require(page != kNoPage, "position ", position, " is written and its page is gone");
    require(references_[static_cast<size_t>(index_of(page))] == 1, "position ", position,
            " is in a page of others too");
    require(!is_published(page), "position ", position, " is written to a page that can be found");
    pool_->slot(page, position % page_tokens) = choice.contents[static_cast<size_t>(position)];
    is_poisoned_[static_cast<size_t>(index_of(page))] = 0;
  }
}

// The next tokens come out of the slots in the pool, not out of what the client knows.
void Simulation::sample(const StepPlan& plan) {
  sampled_.clear();
  for (const ScheduledSequence& scheduled : plan.sequences) {
    const Client& client = client_of(scheduled.request);
    const int32_t last = scheduled.first_position + scheduled.tokens - 1;
    for (int32_t k = 0; k < scheduled.samples; ++k) {
      const int32_t choice = scheduled.samples > 1 ? k : scheduled.choice;
      const PageId page = scheduler_->page_table(scheduled.id)[static_cast<size_t>(last / options_.page_tokens)];
      const Content content = pool_->slot(page, last % options_.page_tokens);
      const int32_t generated = last + 1 - client.prompt_tokens + 1;
      SampledToken sampled;
      sampled.sequence = plan.sampled[static_cast<size_t>(scheduled.sampled_begin + k)];
      sampled.token = client.sampler.token(content, choice);
      sampled.finished = client.sampler.ends(content, choice) || generated >= client.generated_tokens_max;
      sampled_.push_back(sampled);
    }
  }
  require(sampled_.size() == plan.sampled.size(), "the plan wants ", plan.sampled.size(),
          " tokens, its sequences give ", sampled_.size());
}

}  // namespace headroom::sim
