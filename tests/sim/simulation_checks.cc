// The observations of a Simulation: what the scheduler did, against what the clients know.
#include <algorithm>
#include <utility>

#include "tests/sim/simulation.h"

namespace headroom::sim {

void Simulation::observe_plan(const StepPlan& plan) {
  observe_cancelled(plan);
  observe_preempted(plan);
  check_turns(plan);
  if (under_way_.plan != nullptr) {
    require(plan.preempted.empty(), "somebody is preempted who may have ended");
    coverage_.add(plan.empty() ? Event::plan_waits_for_tokens : Event::planned_ahead);
  }
  int32_t tokens = 0, chunk_tokens = 0;
  bool writes = false;  // somebody who runs had just one token to compute
  for (const ScheduledSequence& scheduled : plan.sequences) {
    const Choice& choice = client_of(scheduled.request).choices[static_cast<size_t>(scheduled.choice)];
    const bool one = scheduled.tokens == 1 && scheduled.first_position + 1 == static_cast<int32_t>(choice.tokens.size());
    writes |= one && choice.running;
    chunk_tokens += one ? 0 : scheduled.tokens;
    observe_scheduled(plan, scheduled);
    tokens += scheduled.tokens;
  }
  require(tokens == plan.tokens, "the plan counts ", plan.tokens, " tokens and holds ", tokens);
  require(tokens <= options_.step_tokens_max, "a step of ", tokens, " tokens");
  require(!writes || chunk_tokens <= chunk_tokens_max_, "chunks of ", chunk_tokens, " tokens instead of ", chunk_tokens_max_);
  if (writes && chunk_tokens > 0 && chunk_tokens == chunk_tokens_max_) coverage_.add(Event::chunks_held_back);
  check_progress(plan);
}

void Simulation::observe_cancelled(const StepPlan& plan) {
  for (const RequestId id : plan.cancelled) {
    const Client& client = client_of(id);
    require(client.cancelled, "request ", static_cast<int64_t>(id), " was dropped and not cancelled");
    end_client(client);
  }
}

void Simulation::observe_preempted(const StepPlan& plan) {
  for (const SequenceId preempted : plan.preempted) {
    bool found = false;
    for (const auto& client : clients_) {
      for (Choice& choice : client->choices) {
        if (!choice.seen || choice.ended || choice.id != preempted) continue;
        found = true;
        require(choice.running, "a sequence that does not run was preempted");
        require(choice.id != oldest_, "the oldest sequence was preempted");
        const bool in_prefill = choice.computed < client->prompt_tokens;
        coverage_.add(in_prefill ? Event::preempted_in_prefill : Event::preempted_in_decode);
        if (client->forked) coverage_.add(Event::preempted_after_fork);
        choice.running = false;
        choice.computed = 0;
        choice.pages.clear();
      }
    }
    require(found, "an unknown sequence was preempted");
  }
}

void Simulation::observe_scheduled(const StepPlan& plan, const ScheduledSequence& scheduled) {
  Client& client = client_of(scheduled.request);
  Choice& choice = client.choices[static_cast<size_t>(scheduled.choice)];
  require(!choice.ended, "an ended choice is scheduled");
  require(choice.scheduled_step != coverage_.steps, "a sequence is scheduled twice in a step");
  require(plan.preempted.empty() || std::ranges::find(plan.preempted, scheduled.id) == plan.preempted.end(),
          "preempted and scheduled in a step");
  choice.scheduled_step = coverage_.steps;
  see(choice, scheduled.id);
  const auto length = static_cast<int32_t>(choice.tokens.size());
  if (choice.running) {
    require(scheduled.first_position == choice.computed, "position ", choice.computed, " is next, ",
            scheduled.first_position, " is scheduled");
  } else {
    observe_admitted(client, choice, scheduled);
  }
  const int32_t end = scheduled.first_position + scheduled.tokens;
  require(scheduled.tokens >= 1 && end <= length, "an impossible chunk");
  require(scheduled.recomputed_tokens == std::clamp(choice.computed_max - choice.computed, 0, scheduled.tokens),
          "recomputed tokens are miscounted");
  if (end < client.prompt_tokens) coverage_.add(Event::chunk_of_prompt);

  const bool at_end = end == length;
  const bool forks = at_end && length == client.prompt_tokens && client.choices.size() > 1 && !client.forked;
  const auto samples = forks ? static_cast<int32_t>(client.choices.size()) : at_end ? 1 : 0;
  require(scheduled.samples == samples, scheduled.samples, " tokens are sampled instead of ", samples);
  for (int32_t k = 0; k < samples; ++k) {
    const SequenceId id = plan.sampled.at(static_cast<size_t>(scheduled.sampled_begin + k));
    if (forks) see(client.choices[static_cast<size_t>(k)], id);
    require(forks || id == scheduled.id, "a token is sampled for another sequence");
  }
}

// It was given room, at first or again.
void Simulation::observe_admitted(Client& client, Choice& choice, const ScheduledSequence& scheduled) {
  const int32_t found = scheduled.first_position;
  require(client.started, "a sequence runs that was never let in");
  require(found % options_.page_tokens == 0, "a prefix that does not end with a page");
  require(!client.all_prompt_logits || found <= choice.computed_max, "logits are skipped");
  coverage_.add(Event::prefix_hit_token, found);
  if (client.salt != 0) coverage_.add(Event::prefix_hit_token_salted, found);
  const bool below = options_.window_tokens > 0 && found - options_.window_tokens + 1 >= options_.page_tokens;
  if (below) coverage_.add(Event::prefix_hit_below_window);
  choice.running = true;
  choice.computed = found;
  choice.admitted_step = coverage_.steps;
  choice.held.clear();
}

void Simulation::see(Choice& choice, SequenceId id) {
  require(!choice.seen || choice.id == id, "a choice changes its sequence");
  choice.seen = true;
  choice.id = id;
}

// Of those that run, or of those that have something to be computed; null: there is none.
Simulation::Choice* Simulation::oldest_choice(bool to_advance) {
  Choice* oldest = nullptr;
  int64_t turn = 0;
  for (const auto& client : clients_) {
    if (!client->started || (oldest != nullptr && client->turn > turn)) continue;
    const auto found = std::ranges::find_if(client->choices, [&](const Choice& choice) {
      const bool has_more = choice.computed < static_cast<int32_t>(choice.tokens.size());
      const bool is_there = client->forked || &choice == client->choices.data();
      return is_there && !choice.ended && (has_more || !to_advance);
    });
    if (found == client->choices.end()) continue;
    oldest = &*found;
    turn = client->turn;
  }
  return oldest;
}

void Simulation::check_progress(const StepPlan& plan) {
  oldest_.reset();
  const bool may_be_empty = clients_.empty() || under_way_.plan != nullptr;
  require(plan.empty() ? may_be_empty : !clients_.empty(), plan.empty() ? "nothing is scheduled" : "nobody is scheduled");
  if (clients_.empty()) return;
  if (const Choice* oldest = oldest_choice(false)) oldest_ = oldest->id;
  const Choice* oldest = oldest_choice(true);
  require(plan.empty() || (oldest != nullptr && oldest->scheduled_step == coverage_.steps), "the oldest sequence does not advance");
  if (oldest_ && !plan.empty() && oldest->id != *oldest_) coverage_.add(Event::sat_out);
  check_nobody_overtakes();
  for (const auto& client : clients_) {
    const auto id = static_cast<int64_t>(client->id);
    require(!client->cancelled, "request ", id, " was cancelled and not dropped");
    require(tenants_.size() > 1 || coverage_.steps <= client->deadline_step, "request ", id, " waits too long");
  }
}

// Counts every reference anew out of the page tables, and takes note of the pages that are new in one.
void Simulation::observe_tables() {
  new_pages_.clear();
  unheld_pages_.clear();
  std::ranges::fill(references_, 0);
  for (Tenant& tenant : tenants_) tenant.pages = 0;
  for (const auto& client : clients_) {
    if (!client->started) continue;
    int64_t distinct = 0;
    ++seen_stamp_;
    for (Choice& choice : client->choices) {
      if (choice.seen && !choice.ended) distinct += observe_table(choice);
    }
    client->held_pages = distinct;
    require(distinct <= client->pages_needed, "request ", static_cast<int64_t>(client->id), " holds more pages than its worst case");
    tenants_[index_of(client->tenant)].pages += distinct;
  }
  check_shares();
  PageCounts counts;
  for (int32_t i = 0; i < static_cast<int32_t>(references_.size()); ++i) {
    const PageId page{i};
    const int32_t references = references_[static_cast<size_t>(i)];
    require(references == scheduler_->pages().references(page), "page ", i, " has ", references, " holders and ",
            scheduler_->pages().references(page), " references");
    if (references > 0) {
      ++counts.live;
    } else if (is_published(page)) {
      ++counts.cached;
    } else {
      ++counts.free;
      if (is_poisoned_[static_cast<size_t>(i)] == 0) unheld_pages_.push_back(page);
    }
  }
  const PageCounts reported = scheduler_->pages().counts();
  require(counts.free == reported.free && counts.cached == reported.cached && counts.live == reported.live,
          "pages by state are miscounted");
}

// Returns how many pages of the table no earlier choice of its client holds.
int64_t Simulation::observe_table(Choice& choice) {
  const std::span<const PageId> pages = scheduler_->page_table(choice.id);
  int64_t distinct = 0;
  for (size_t i = 0; i < pages.size(); ++i) {
    const PageId before = i < choice.pages.size() ? choice.pages[i] : kNoPage;
    if (pages[i] == kNoPage) {
      if (before != kNoPage) coverage_.add(Event::page_dropped_below_window);
      continue;
    }
    const auto page = static_cast<size_t>(index_of(pages[i]));
    if (pages[i] != before) {
      if (!is_published(pages[i])) {
        new_pages_.push_back(pages[i]);
        ++use_[page];
      } else if (before != kNoPage) {
        coverage_.add(Event::page_merged);
      }
      if (spoil_chance_ > 0) choice.held.emplace_back(pages[i], use_[page]);
    }
    ++references_[page];
    if (seen_by_[page] != seen_stamp_) ++distinct;
    seen_by_[page] = seen_stamp_;
  }
  choice.pages.assign(pages.begin(), pages.end());
  return distinct;
}

// A page that is new in a table is either in the prefix cache, or the target of a copy, or announced as taken.
void Simulation::check_new_pages(const StepPlan& plan) {
  for (const PageCopy& copy : plan.copies) {
    const auto target = std::ranges::find(new_pages_, copy.to);
    require(target != new_pages_.end(), "a page is copied to where nobody is");
    new_pages_.erase(target);
  }
  require(new_pages_.size() == plan.taken.size(), plan.taken.size(), " pages are announced as taken, there are ",
          new_pages_.size());
  for (const PageId page : new_pages_) {
    require(std::ranges::find(plan.taken, page) != plan.taken.end(), "page ", index_of(page), " is not announced");
  }
}

// The step is on its way. Who gets a token that is not the last is known with it to the device, though not to anybody else.
void Simulation::observe_advance(const StepPlan& plan) {
  for (const auto& client : clients_) client->peak_pages = std::max(client->peak_pages, client->held_pages);
  for (const ScheduledSequence& scheduled : plan.sequences) {
    Client* client = find_client(static_cast<int64_t>(scheduled.request));
    if (client == nullptr) continue;
    Choice& choice = client->choices[static_cast<size_t>(scheduled.choice)];
    if (choice.ended) {
      coverage_.add(Event::ended_after_planned);
      continue;
    }
    const PageUsage& usage = scheduler_->usage(client->id);
    require(usage.peak_pages == client->peak_pages, "request ", static_cast<int64_t>(client->id), " held ", client->peak_pages,
            " pages and is told ", usage.peak_pages);
    require(usage.shared_pages_at_peak <= usage.peak_pages, "more pages are shared than held");
    require(usage.cached_prompt_tokens == client->cached_prompt_tokens, "cached prompt tokens are miscounted");
    choice.computed += scheduled.tokens;
    const auto tokens_max = client->prompt_tokens + client->generated_tokens_max;
    if (scheduled.samples != 1 || static_cast<int32_t>(choice.tokens.size()) + 1 >= tokens_max) continue;
    choice.guessed = true;
    choice.tokens.push_back(under_way_.drawn[static_cast<size_t>(scheduled.sampled_begin)].token);
    choice.contents.push_back(content_after(choice.contents.back(), choice.tokens.back()));
  }
}

void Simulation::observe_resolve(const StepPlan& plan) {
  for (const ScheduledSequence& scheduled : plan.sequences) {
    if (find_client(static_cast<int64_t>(scheduled.request)) == nullptr) continue;
    Client& client = client_of(scheduled.request);
    Choice& leader = client.choices[static_cast<size_t>(scheduled.choice)];
    if (leader.ended) continue;
    leader.computed_max = std::max(leader.computed_max, scheduled.first_position + scheduled.tokens);
    const bool forks = scheduled.samples > 1;
    for (int32_t k = 0; k < scheduled.samples; ++k) {
      Choice& choice = forks ? client.choices[static_cast<size_t>(k)] : leader;
      if (&choice != &leader) {
        choice.computed = leader.computed;
        choice.computed_max = leader.computed_max;
        choice.spoiled_itself = leader.spoiled_itself;
        choice.pages = leader.pages;
        choice.held = leader.held;
        choice.running = true;
      }
      observe_sampled(client, choice, sampled_[static_cast<size_t>(scheduled.sampled_begin + k)]);
    }
    if (forks) {
      client.forked = true;
      coverage_.add(Event::fork);
    }
    if (client.choices_unfinished > 0) continue;
    if (client.cancelled && !client.failed) coverage_.add(Event::cancelled_with_last_token);
    end_client(client);
  }
}

void Simulation::observe_sampled(Client& client, Choice& choice, const SampledToken& sampled) {
  charge(client.tenant, 1);
  if (!std::exchange(choice.guessed, false)) {
    choice.tokens.push_back(sampled.token);
    choice.contents.push_back(content_after(choice.contents.back(), sampled.token));
  }
  if (sampled.invalid) observe_invalid(choice);
  if (!sampled.finished) return;
  choice.ended = true;
  --client.choices_unfinished;
  if (!client.failed) observe_finished(client, choice);
}

void Simulation::observe_finished(const Client& client, Choice& choice) {
  const auto index = static_cast<int32_t>(&choice - client.choices.data());
  const std::span<const TokenId> tokens(choice.tokens);
  const auto prompt_tokens = static_cast<size_t>(client.prompt_tokens);
  solo_run(tokens.first(prompt_tokens), client.salt, client.sampler, index, client.generated_tokens_max, alone_);
  require(std::ranges::equal(tokens.subspan(prompt_tokens), alone_), "request ", static_cast<int64_t>(client.id),
          " choice ", index, " was answered otherwise than alone");
  last_answer_ = choice.tokens;
  last_answer_salt_ = client.salt;
  coverage_.add(Event::finished_choice);
}

// From here on, nobody who comes may be given what this one computed or read.
void Simulation::observe_invalid(const Choice& choice) {
  coverage_.add(Event::invalid_sample);
  if (!choice.spoiled_itself) coverage_.add(Event::invalid_sample_of_sharer);
  for (const auto& [page, use] : choice.held) reported_[static_cast<size_t>(index_of(page))] = use;
}

// All is lost, nothing was sampled; and what was promised about waiting counts from here.
void Simulation::observe_abandon() {
  for (const auto& client : clients_) {
    client->deadline_step = coverage_.steps + steps_owed_;
    for (Choice& choice : client->choices) {
      choice.running = false;
      choice.computed = 0;
      choice.pages.clear();
      if (!std::exchange(choice.guessed, false)) continue;
      choice.tokens.pop_back();
      choice.contents.pop_back();
    }
  }
}

void Simulation::check_all_back() {
  require(clients_.empty() && !scheduler_->has_work(), "the scheduler has work left and no clients");
  const SchedulerStats stats = scheduler_->stats();
  require(stats.pages.live == 0, stats.pages.live, " pages are live in the end");
  require(stats.pages.total() == options_.pages_total, "pages are lost in the end");
  require(stats.live_written_tokens == 0, "tokens are counted as written in pages that nobody holds");
  require(stats.queue_requests == 0 && stats.queue_tokens == 0, "somebody is counted in the queue in the end");
}

}  // namespace headroom::sim
