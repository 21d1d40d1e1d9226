#include "tests/sim/simulation.h"

#include <algorithm>

#include "engine/kv/siphash.h"

namespace headroom::sim {

Simulation::Simulation(uint64_t seed) : random_(seed) {
  draw_options();
  draw_tenants();
  draw_stems();
  scheduler_.emplace(options_);
  prefix_cache_ = scheduler_->prefix_cache();
  pool_.emplace(options_.pages_total, options_.page_tokens);
  references_.assign(static_cast<size_t>(options_.pages_total), 0);
  is_poisoned_.assign(static_cast<size_t>(options_.pages_total), 1);
  seen_by_.assign(static_cast<size_t>(options_.pages_total), 0);
  use_.assign(static_cast<size_t>(options_.pages_total), 0);
  reported_.assign(static_cast<size_t>(options_.pages_total), -1);
}

void Simulation::draw_options() {
  // Rows that are no numbers: most of all with small windows and chunks, where a row is out of sight before it is sampled.
  const bool spoils = random_.chance(0.4);
  constexpr int32_t kPageTokens[] = {1, 2, 3, 4, 4, 5, 8, 16};
  options_.page_tokens = kPageTokens[random_.below(8)];
  options_.context_tokens_max = random_.between(8, 48);
  const int32_t pages_of_context = options_.context_tokens_max / options_.page_tokens + 1;
  // From less than one full request to room for many: small pools preempt all the time.
  options_.pages_total =
      std::max(1, random_.between(pages_of_context / 2, pages_of_context * (random_.chance(0.5) ? 2 : 5)));
  options_.step_tokens_max = random_.chance(spoils ? 0.7 : 0.3) ? random_.between(1, 8) : random_.between(8, 48);
  options_.running_sequences_max = random_.between(1, 12);
  // Overload: more come than can be served, and wait in a long queue.
  const bool overload = random_.chance(0.2);
  options_.queue_requests_max = random_.between(1, overload ? 40 : 12);
  options_.queue_tokens_max = random_.chance(0.3) ? random_.between(1, 200) : 1 << 20;
  options_.window_tokens = random_.chance(spoils ? 0.6 : 0.4) ? random_.between(1, spoils ? 8 : 24) : 0;
  options_.prefix_cache = spoils || random_.chance(0.75);
  options_.prefix_cache_key = HashKey{random_.next(), random_.next()};
  options_.page_order_seed = random_.below(2) == 0 ? 0 : random_.next();
  submit_chance_ = overload ? 0.9 : random_.chance(0.5) ? 0.1 : 0.6;
  burst_chance_ = overload ? 0.1 : 0.005;
  cancel_chance_ = random_.chance(0.5) ? 0.005 : 0.06;
  fault_chance_ = random_.chance(0.2) ? 0.01 : 0;
  spoil_chance_ = spoils ? 0.05 : 0;
  drain_chance_ = 0.002;
  ahead_chance_ = random_.chance(0.3) ? 0 : random_.chance(0.7) ? 1 : 0.7;
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

// ---------------------------------------------------------------------------------------------------------------------
// Time

void Simulation::run(int64_t steps) {
  while (coverage_.steps < steps) {
    if (random_.chance(burst_chance_)) {
      for (int32_t i = random_.between(2, 8); i-- > 0;) submit(true);
    } else if (random_.chance(submit_chance_)) {
      submit(false);
    }
    if (random_.chance(cancel_chance_)) cancel_somebody();
    step();
    if (random_.chance(drain_chance_)) drain();
  }
  drain();
  const SchedulerStats stats = scheduler_->stats();
  coverage_.add(Event::recomputed_token, stats.recomputed_tokens_total);
  coverage_.add(Event::page_evicted, stats.evictions_total);
}

void Simulation::step() {
  ++coverage_.steps;
  sample_failed_ = false;
  if (random_.chance(0.1)) {
    chunk_tokens_max_ = random_.chance(0.5) ? random_.between(1, 8) : options_.step_tokens_max;
    scheduler_->set_chunk_tokens_max(chunk_tokens_max_);
  }
  const StepPlan& plan = scheduler_->plan();
  observe_plan(plan);
  observe_tables();
  check_new_pages(plan);
  for (const PageCopy& copy : plan.copies) copy_page(copy);
  for (const PageId page : new_pages_) poison(page);
  for (const PageId page : unheld_pages_) poison(page);
  launched_.written.clear();
  for (const ScheduledSequence& scheduled : plan.sequences) compute(scheduled);
  draw(plan);
  // In every step, reference counts and the state of every page were recounted above. The scheduler's own check of its
  // lists comes less often, as what is wrong in a list stays so; and so does a look at what a commit leaves to a plan.
  const bool thorough = random_.below(8) == 0;
  if (thorough) scheduler_->check_conserved();

  step_open_ = true;
  if (random_.chance(cancel_chance_)) cancel_somebody();
  step_open_ = false;
  if (!fail_step(plan)) {
    if (under_way_.plan != nullptr) resolve();
    if (!plan.empty()) advance(plan);
    if (!plan.empty() && !random_.chance(ahead_chance_)) resolve();
  }
  if (!thorough && !sample_failed_) return;
  scheduler_->check_conserved();
  observe_tables();
  for (const PageId page : unheld_pages_) poison(page);
}

void Simulation::advance(const StepPlan& plan) {
  observe_tables();  // what a step before gave back is not counted
  scheduler_->advance(plan);
  std::swap(under_way_, launched_);
  under_way_.plan = &plan;
  observe_advance(plan);
}

// What the step under way gave is told.
void Simulation::resolve() {
  const StepPlan& plan = *under_way_.plan;
  for (const PageId page : under_way_.written) require(!is_published(page), "a page can be found before its step is known to have come right");
  settle(plan);
  scheduler_->resolve(plan, sampled_);
  observe_resolve(plan);
  under_way_.plan = nullptr;
}

// True if the device failed in this step, as the engine would hear of it: when it was launched, or when what is under way before it is
// waited for.
bool Simulation::fail_step(const StepPlan& plan) {
  if (fault_chance_ == 0 || !random_.chance(fault_chance_)) return false;
  if (plan.empty() && under_way_.plan == nullptr) return false;
  if (under_way_.plan != nullptr) {
    const bool at_launch = !plan.empty() && random_.chance(0.5);
    coverage_.add(at_launch ? Event::abandoned_behind : Event::abandoned_under_way);
    if (at_launch) resolve();
  }
  const StepPlan& lost = plan.empty() ? *under_way_.plan : plan;
  const RequestId youngest = lost.sequences.back().request;
  scheduler_->abandon(lost);
  for (const PageId page : launched_.written) require(!is_published(page), "what a failed step wrote can be found");
  if (under_way_.plan != nullptr) {
    for (const PageId page : under_way_.written) require(!is_published(page), "what a failed step wrote can be found");
  }
  under_way_.plan = nullptr;
  observe_abandon();
  switch (random_.below(8)) {
    case 0:
      coverage_.add(Event::device_lost);
      for (const auto& client : clients_) cancel(*client);
      observe_plan(scheduler_->plan());
      check_all_back();
      break;
    case 1:
    case 2:
    case 3:
      coverage_.add(Event::out_of_memory);
      if (Client* client = find_client(static_cast<int64_t>(youngest))) cancel(*client);
      break;
    default:
      coverage_.add(Event::step_abandoned);
  }
  return true;
}

// Nobody comes any more. Those who are there are served to their end, or cut short when that takes too long.
void Simulation::drain() {
  if (!clients_.empty()) {
    const bool in_haste = random_.chance(0.3);
    for (int32_t patience = random_.below(60); !clients_.empty() && (!in_haste || patience > 0); --patience) step();
    coverage_.add(clients_.empty() ? Event::drain_completed : Event::drain_cut_short);
    for (const auto& client : clients_) cancel(*client);
  }
  step();
  check_all_back();
}

// ---------------------------------------------------------------------------------------------------------------------
// Clients

void Simulation::draw_prompt(int32_t salt, std::vector<TokenId>& prompt) {
  // Now and then longer than the context, to be refused.
  const int32_t length =
      random_.chance(0.02) ? options_.context_tokens_max + 1 : random_.between(1, prompt_tokens_max_);
  if (!last_answer_.empty() && random_.chance(0.3)) {
    prompt = last_answer_;  // the next turn of a conversation
    const bool is_long = std::min(last_answer_.size(), static_cast<size_t>(length)) > static_cast<size_t>(options_.page_tokens);
    if (options_.prefix_cache && is_long && salt != last_answer_salt_) coverage_.add(Event::prefix_of_other_salt);
  } else {
    prompt = stems_[static_cast<size_t>(random_.below(static_cast<int32_t>(stems_.size())))];
    prompt.resize(static_cast<size_t>(random_.between(0, std::min(length, options_.context_tokens_max))));
  }
  if (prompt.size() > static_cast<size_t>(length)) prompt.resize(static_cast<size_t>(length));
  const int32_t tail = random_.chance(0.3) ? 0 : length - static_cast<int32_t>(prompt.size());
  for (int32_t i = 0; i < tail; ++i) prompt.push_back(random_.below(vocabulary_));
  if (prompt.empty()) prompt.push_back(0);
}

void Simulation::Choice::reset() {
  Choice fresh;
  fresh.tokens.swap(tokens);
  fresh.contents.swap(contents);
  fresh.pages.swap(pages);
  fresh.held.swap(held);
  fresh.tokens.clear();
  fresh.contents.clear();
  fresh.pages.clear();
  fresh.held.clear();
  *this = std::move(fresh);
}

void Simulation::Client::reset(int32_t choice_count) {
  Client fresh;
  fresh.choices.swap(choices);
  fresh.choices.resize(static_cast<size_t>(choice_count));
  for (Choice& choice : fresh.choices) choice.reset();
  fresh.choices_unfinished = choice_count;
  *this = std::move(fresh);
}

void Simulation::submit(bool in_burst) {
  if (spare_.empty()) spare_.push_back(std::make_unique<Client>());
  Client& client = *spare_.back();
  NewRequest request;
  request.id = RequestId{next_id_};
  const int32_t salt = random_.below(salts_);
  if (salt > 0) request.cache_salt = salt == 1 ? "tenant 1" : "tenant 2";
  draw_prompt(salt, request.prompt);
  request.choices = random_.between(1, choices_max_);
  // Now and then one tenant floods the others.
  request.tenant = TenantId{random_.chance(0.3) ? 0 : random_.below(static_cast<int32_t>(tenants_.size()))};
  const int32_t room = options_.context_tokens_max - static_cast<int32_t>(request.prompt.size());
  request.generated_tokens_max = random_.between(0, std::max(room, 0) + (random_.chance(0.05) ? 1 : 0));
  request.all_prompt_logits = random_.chance(0.1);

  client.reset(request.choices);
  client.id = request.id;
  client.tenant = request.tenant;
  client.pages_needed = pages_needed(request);
  client.salt = salt;
  client.prompt_tokens = static_cast<int32_t>(request.prompt.size());
  client.generated_tokens_max = request.generated_tokens_max;
  client.all_prompt_logits = request.all_prompt_logits;
  client.sampler = {random_.below(3) == 0 ? 0 : random_.next(), vocabulary_, end_one_in_};
  client.arrival_step = coverage_.steps;
  Choice& first = client.choices[0];
  first.tokens = request.prompt;
  if (!check_admission(client, scheduler_->submit(std::move(request)))) return;

  begin_waiting(client);
  ++next_id_;
  Content content = content_of_root(salt);
  for (TokenId token : first.tokens) first.contents.push_back(content = content_after(content, token));
  for (size_t i = 1; i < client.choices.size(); ++i) {
    client.choices[i].tokens = first.tokens;
    client.choices[i].contents = first.contents;
  }
  coverage_.add(Event::accepted);
  if (in_burst) coverage_.add(Event::accepted_after_burst);
  if (client.all_prompt_logits) coverage_.add(Event::scored_prompt);
  steps_owed_ += steps_bound(client);
  client.deadline_step = coverage_.steps + steps_owed_;
  clients_.push_back(std::move(spare_.back()));
  spare_.pop_back();
}

// Once a sequence is the oldest, it advances by a token in every step: it is done after this many, whatever happens.
// Behind a step under way, every other plan may be empty, and a choice sits a step out when it is forked and when it ends.
int64_t Simulation::steps_bound(const Client& client) const {
  const int64_t tokens = client.prompt_tokens + client.generated_tokens_max + 1;
  return static_cast<int64_t>(client.choices.size()) * (ahead_chance_ > 0 ? 2 * tokens + 4 : tokens);
}

bool Simulation::check_admission(const Client& client, const Admission& admission) {
  int64_t queue_requests = 0;
  int64_t queue_tokens = 0;
  for (const auto& other : clients_) {
    if (other->started) continue;
    ++queue_requests;
    queue_tokens += other->prompt_tokens;
  }
  const bool fits_context = client.prompt_tokens + client.generated_tokens_max <= options_.context_tokens_max;
  const bool fits_running = static_cast<int32_t>(client.choices.size()) <= options_.running_sequences_max;
  const bool requests_full = queue_requests >= options_.queue_requests_max;
  const bool tokens_full = queue_requests > 0 && queue_tokens + client.prompt_tokens > options_.queue_tokens_max;
  switch (admission.status) {
    case AdmissionStatus::accepted:
      require(fits_context && fits_running && !requests_full && !tokens_full, "accepted what should be refused");
      require(admission.pages_needed <= options_.pages_total, "accepted more pages than there are");
      require(client.pages_needed <= pages_max_of(client.tenant), "accepted more pages than its tenant may have");
      return true;
    case AdmissionStatus::exceeds_context:
      require(!fits_context, "refused for its context");
      coverage_.add(Event::refused_context);
      return false;
    case AdmissionStatus::exceeds_running:
      require(!fits_running, "refused for its choices");
      coverage_.add(Event::refused_running);
      return false;
    case AdmissionStatus::exceeds_pool:
      require(admission.pages_needed > options_.pages_total, "refused for its pages");
      coverage_.add(Event::refused_pool);
      return false;
    case AdmissionStatus::exceeds_share:
      require(client.pages_needed > pages_max_of(client.tenant), "refused for its share");
      coverage_.add(Event::refused_share);
      return false;
    case AdmissionStatus::queue_full:
      require(requests_full || tokens_full, "refused by a queue that is not full");
      coverage_.add(requests_full ? Event::refused_queue_requests : Event::refused_queue_tokens);
      return false;
  }
  return false;
}

void Simulation::cancel_somebody() {
  if (next_id_ == 1) return;
  // Anybody of late: some have ended, some were cancelled before.
  const int64_t id = std::max<int64_t>(1, next_id_ - 1 - random_.below(20));
  Client* client = find_client(id);
  if (client != nullptr) return cancel(*client);
  scheduler_->cancel(RequestId{id});
  coverage_.add(Event::cancelled_after_end);
}

void Simulation::cancel(Client& client) {
  scheduler_->cancel(client.id);
  if (client.cancelled) {
    coverage_.add(Event::cancelled_twice);
  } else {
    note_cancelled(client);
  }
  client.cancelled = true;
}

void Simulation::note_cancelled(const Client& client) {
  if (step_open_) coverage_.add(Event::cancelled_within_step);
  if (!client.started) return coverage_.add(Event::cancelled_in_queue);
  if (client.choices.size() > 1) {
    coverage_.add(client.forked ? Event::cancelled_after_fork : Event::cancelled_before_fork);
  }
  const Choice& choice = *std::ranges::find(client.choices, false, &Choice::ended);
  coverage_.add(!choice.running                           ? Event::cancelled_while_preempted
                : choice.computed < client.prompt_tokens ? Event::cancelled_in_prefill
                                                          : Event::cancelled_in_decode);
}

void Simulation::end_client(const Client& client) {
  steps_owed_ -= steps_bound(client);
  const auto place = std::ranges::find_if(clients_, [&client](const auto& one) { return one.get() == &client; });
  spare_.push_back(std::move(*place));
  clients_.erase(place);
}

Simulation::Client* Simulation::find_client(int64_t id) {
  const auto place = std::ranges::lower_bound(clients_, RequestId{id}, {}, [](const auto& one) { return one->id; });
  return place != clients_.end() && (*place)->id == RequestId{id} ? place->get() : nullptr;
}

Simulation::Client& Simulation::client_of(RequestId id) {
  Client* client = find_client(static_cast<int64_t>(id));
  require(client != nullptr, "request ", static_cast<int64_t>(id), " has ended and is still served");
  return *client;
}

// ---------------------------------------------------------------------------------------------------------------------
// The model

void Simulation::copy_page(const PageCopy& copy) {
  require(copy.from != copy.to, "a page is copied onto itself");
  require(scheduler_->pages().references(copy.to) == 1, "a page that others hold is the target of a copy");
  pool_->copy(copy.from, copy.to);
  is_poisoned_[static_cast<size_t>(index_of(copy.to))] = 0;
  coverage_.add(Event::copy_on_write);
}

void Simulation::poison(PageId page) {
  pool_->poison(page);
  is_poisoned_[static_cast<size_t>(index_of(page))] = 1;
}

// What the model does with one scheduled sequence: it reads all that its first row can see, then writes its rows, each
// of which sees those before it.
void Simulation::compute(const ScheduledSequence& scheduled) {
  Choice& choice = client_of(scheduled.request).choices[static_cast<size_t>(scheduled.choice)];
  const std::span<const PageId> pages = scheduler_->page_table(scheduled.id);
  const std::span<const TokenId> tokens = scheduler_->tokens(scheduled.id);
  const int32_t page_tokens = options_.page_tokens;
  const int32_t first = scheduled.first_position;
  const int32_t end = first + scheduled.tokens;
  require(tokens.size() == choice.tokens.size(), "a sequence has more or fewer tokens than its client");
  check_token(scheduled, choice, tokens);
  require(static_cast<int32_t>(pages.size()) * page_tokens >= end, "a page table is too short for its step");
  bool is_bad = read_slots(choice, pages, first);
  const bool spoils = spoil_chance_ > 0 && random_.chance(spoil_chance_);
  const int32_t spoiled_position = spoils ? random_.between(first, end - 1) : -1;
  for (int32_t position = first; position < end; ++position) {
    const PageId page = pages[static_cast<size_t>(position / page_tokens)];
    require(page != kNoPage, "position ", position, " is written and its page is gone");
    require(references_[static_cast<size_t>(index_of(page))] == 1, "position ", position, " is in a page of others too");
    require(!is_published(page), "position ", position, " is written to a page that can be found");
    is_poisoned_[static_cast<size_t>(index_of(page))] = 0;
    if (launched_.written.empty() || launched_.written.back() != page) launched_.written.push_back(page);
    Content content = choice.contents[static_cast<size_t>(position)];
    if (options_.window_tokens == 1) is_bad = false;  // a row sees itself alone
    if (position == spoiled_position) is_bad = choice.spoiled_itself = true;
    if (is_bad) {
      coverage_.add(Event::spoiled_row);
      content = spoiled(content);
    }
    pool_->page(page)[position % page_tokens] = content;
  }
}

// What the row of position `first` sees of those before it. True if some of that is spoiled.
bool Simulation::read_slots(const Choice& choice, std::span<const PageId> pages, int32_t first) {
  const int32_t page_tokens = options_.page_tokens;
  const int32_t readable = options_.window_tokens == 0 ? 0 : std::max(0, first - options_.window_tokens + 1);
  coverage_.add(Event::slot_verified, first - readable);
  bool is_bad = false;
  for (int32_t position = readable; position < first;) {
    const PageId page = pages[static_cast<size_t>(position / page_tokens)];
    require(page != kNoPage, "position ", position, " is readable and its page is gone");
    const int32_t offset = position % page_tokens;
    const int32_t count = std::min(page_tokens - offset, first - position);
    const Content* slots = pool_->page(page) + offset;
    const Content* expected = choice.contents.data() + position;
    for (int32_t i = 0; i < count; ++i) {
      if (slots[i] == expected[i]) [[likely]]
        continue;
      require(slots[i] != kPoison, "position ", position + i, " is read before it is written");
      require(sound(slots[i]) == expected[i], "position ", position + i, " holds a foreign token");
      const auto index = static_cast<size_t>(index_of(page));
      require(choice.admitted_step != coverage_.steps || reported_[index] != use_[index], "position ", position + i,
              " was no number in a request that was told so, and is found again");
      is_bad = true;
    }
    position += count;
  }
  return is_bad;
}

// Its last token may be one that the step under way gives, and which its device knows: that one of its own.
void Simulation::check_token(const ScheduledSequence& scheduled, const Choice& choice, std::span<const TokenId> tokens) {
  if (!choice.guessed) return require(std::ranges::equal(tokens, choice.tokens), "the tokens of a sequence are not those of its client");
  require(std::ranges::equal(tokens.first(tokens.size() - 1), std::span(choice.tokens).first(choice.tokens.size() - 1)),
          "the tokens of a sequence are not those of its client");
  require(under_way_.plan != nullptr && is_unknown(tokens.back()), "a token is known before it is told");
  const std::vector<SequenceId>& sampled = under_way_.plan->sampled;
  const auto place = std::ranges::find_if(sampled, [&](const SequenceId& id) { return unknown_token(static_cast<int32_t>(&id - sampled.data())) == tokens.back(); });
  require(place != sampled.end() && *place == scheduled.id, "a token is taken from another sequence");
  coverage_.add(Event::unknown_token_computed);
}

// The next tokens come out of the slots in the pool, not out of what the client knows.
void Simulation::draw(const StepPlan& plan) {
  launched_.drawn.clear();
  for (const ScheduledSequence& scheduled : plan.sequences) {
    if (scheduled.samples == 0) continue;
    const Client& client = client_of(scheduled.request);
    const int32_t last = scheduled.first_position + scheduled.tokens - 1;
    const PageId page = scheduler_->page_table(scheduled.id)[static_cast<size_t>(last / options_.page_tokens)];
    const Content content = pool_->page(page)[last % options_.page_tokens];
    for (int32_t k = 0; k < scheduled.samples; ++k) {
      const int32_t choice = scheduled.samples > 1 ? k : scheduled.choice;
      const bool invalid = is_spoiled(content);
      launched_.drawn.push_back({invalid ? 0 : client.sampler.token(content, choice), invalid, client.sampler.ends(content, choice)});
    }
  }
  require(launched_.drawn.size() == plan.sampled.size(), "the plan wants ", plan.sampled.size(), " tokens, its sequences give ",
          launched_.drawn.size());
}

// What the engine makes of what was drawn. Who has ended since is told of nothing.
void Simulation::settle(const StepPlan& plan) {
  sampled_.clear();
  for (const ScheduledSequence& scheduled : plan.sequences) {
    Client* client = find_client(static_cast<int64_t>(scheduled.request));
    if (client == nullptr) coverage_.add(Event::dropped_under_way);
    for (int32_t k = 0; k < scheduled.samples; ++k) {
      const size_t index = static_cast<size_t>(scheduled.sampled_begin + k);
      const Drawn& drawn = under_way_.drawn[index];
      SampledToken sampled{.sequence = plan.sampled[index], .token = drawn.token, .finished = true, .invalid = drawn.invalid};
      if (client != nullptr && !client->choices[static_cast<size_t>(scheduled.choice + k)].ended) {
        if (sampled.invalid && !client->failed) {  // the request ends with an error, all choices of it
          client->failed = client->cancelled = sample_failed_ = true;
          scheduler_->cancel(client->id);
        }
        const int32_t generated = scheduled.first_position + scheduled.tokens - client->prompt_tokens + 1;
        sampled.finished = client->failed || drawn.ends || generated >= client->generated_tokens_max;
      }
      sampled_.push_back(sampled);
    }
  }
}

}  // namespace headroom::sim
