// The observations of a Simulation: what the scheduler did, against what the clients know.
#include <algorithm>

#include "tests/sim/simulation.h"

namespace headroom::sim {

Simulation::Client& Simulation::client_of(RequestId id) {
  const auto it = clients_.find(static_cast<int64_t>(id));
  require(it != clients_.end(), "request ", static_cast<int64_t>(id), " has ended and is still served");
  return it->second;
}

bool Simulation::is_published(PageId page) const {
  return options_.prefix_cache && scheduler_->prefix_cache()->is_published(page);
}

void Simulation::observe_plan(const StepPlan& plan) {
  observe_cancelled(plan);
  observe_preempted(plan);
  int32_t tokens = 0;
  for (const ScheduledSequence& scheduled : plan.sequences) {
    observe_scheduled(plan, scheduled);
    tokens += scheduled.tokens;
  }
  require(tokens == plan.tokens, "the plan counts ", plan.tokens, " tokens and holds ", tokens);
  require(tokens <= options_.step_tokens_max, "a step of ", tokens, " tokens");
  check_progress(plan);
}

void Simulation::observe_cancelled(const StepPlan& plan) {
  for (const RequestId id : plan.cancelled) {
    require(client_of(id).cancelled, "request ", static_cast<int64_t>(id), " was dropped and not cancelled");
    end_client(static_cast<int64_t>(id));
    ++coverage_.cancelled;
  }
  for (const auto& [id, client] : clients_) {
    require(!client.cancelled, "request ", static_cast<int64_t>(client.id), " was cancelled and not dropped");
  }
}

void Simulation::observe_preempted(const StepPlan& plan) {
  for (const SequenceId preempted : plan.preempted) {
    bool found = false;
    for (auto& [id, client] : clients_) {
      for (Choice& choice : client.choices) {
        if (!choice.seen || choice.ended || choice.id != preempted) continue;
        found = true;
        require(choice.running, "a sequence that does not run was preempted");
        choice.running = false;
        choice.computed = 0;
        require(&choice != oldest_, "the oldest sequence was preempted");
      }
    }
    require(found, "an unknown sequence was preempted");
    ++coverage_.preempted;
  }
}

void Simulation::observe_scheduled(const StepPlan& plan, const ScheduledSequence& scheduled) {
  Client& client = client_of(scheduled.request);
  Choice& choice = client.choices[static_cast<size_t>(scheduled.choice)];
  require(!choice.ended, "an ended choice is scheduled");
  require(choice.scheduled_step != coverage_.steps, "a sequence is scheduled twice in a step");
  require(std::ranges::find(plan.preempted, scheduled.id) == plan.preempted.end(), "preempted and scheduled in a step");
  choice.scheduled_step = coverage_.steps;
  see(choice, scheduled.id);
  const auto length = static_cast<int32_t>(choice.tokens.size());
  if (choice.running) {
    require(scheduled.first_position == choice.computed, "position ", choice.computed, " is next, ",
            scheduled.first_position, " is scheduled");
  } else {
    if (!client.started) client.cached_prompt_tokens = scheduled.first_position;
    client.started = true;
    require(scheduled.first_position % options_.page_tokens == 0, "a prefix that does not end with a page");
    require(!client.all_prompt_logits || scheduled.first_position <= choice.computed_max, "logits are skipped");
    coverage_.hit_tokens += scheduled.first_position;
    choice.running = true;
    choice.computed = scheduled.first_position;
  }
  require(scheduled.tokens >= 1 && scheduled.first_position + scheduled.tokens <= length, "an impossible chunk");
  require(scheduled.recomputed_tokens == std::clamp(choice.computed_max - choice.computed, 0, scheduled.tokens),
          "recomputed tokens are miscounted");

  const bool at_end = scheduled.first_position + scheduled.tokens == length;
  const bool forks = at_end && length == client.prompt_tokens && client.choices.size() > 1 && !client.forked;
  const auto samples = forks ? static_cast<int32_t>(client.choices.size()) : at_end ? 1 : 0;
  require(scheduled.samples == samples, scheduled.samples, " tokens are sampled instead of ", samples);
  for (int32_t k = 0; k < samples; ++k) {
    const SequenceId id = plan.sampled.at(static_cast<size_t>(scheduled.sampled_begin + k));
    if (forks) see(client.choices[static_cast<size_t>(k)], id);
    require(forks || id == scheduled.id, "a token is sampled for another sequence");
  }
}

void Simulation::see(Choice& choice, SequenceId id) {
  require(!choice.seen || choice.id == id, "a choice changes its sequence");
  choice.seen = true;
  choice.id = id;
}

void Simulation::check_progress(const StepPlan& plan) {
  oldest_ = nullptr;
  require(plan.empty() == clients_.empty(), plan.empty() ? "nothing is scheduled" : "nobody is scheduled");
  if (clients_.empty()) return;
  Client& client = clients_.begin()->second;
  oldest_ = &*std::ranges::find_if(client.choices, [](const Choice& choice) { return !choice.ended; });
  require(oldest_->scheduled_step == coverage_.steps, "the oldest sequence does not advance");
  bool somebody_waits = false;
  for (const auto& [id, one] : clients_) {
    require(coverage_.steps <= one.deadline_step, "request ", static_cast<int64_t>(one.id), " waits too long");
    require(!one.started || !somebody_waits, "request ", static_cast<int64_t>(one.id), " overtakes an older one");
    somebody_waits = !one.started;
  }
}

// Counts every reference anew out of the page tables, and takes note of the pages that are new in one.
void Simulation::observe_tables() {
  std::ranges::fill(references_, 0);
  for (auto& [id, client] : clients_) {
    int64_t distinct = 0;
    ++seen_stamp_;
    for (Choice& choice : client.choices) {
      if (choice.seen && !choice.ended) distinct += observe_table(choice);
    }
    client.peak_pages = std::max(client.peak_pages, distinct);
  }
  PageCounts counts;
  for (int32_t i = 0; i < static_cast<int32_t>(references_.size()); ++i) {
    const int32_t references = references_[static_cast<size_t>(i)];
    require(references == scheduler_->pages().references(PageId{i}), "page ", i, " has ", references, " holders and ",
            scheduler_->pages().references(PageId{i}), " references");
    ++(references > 0 ? counts.live : is_published(PageId{i}) ? counts.cached : counts.free);
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
      coverage_.window_drops += before != kNoPage ? 1 : 0;
      continue;
    }
    const auto page = static_cast<size_t>(index_of(pages[i]));
    if (pages[i] != before && !is_published(pages[i])) new_pages_.push_back(pages[i]);
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
  for (const auto& [id, client] : clients_) {
    if (!client.started) continue;
    const PageUsage& usage = scheduler_->usage(client.id);
    require(usage.peak_pages == client.peak_pages, "request ", static_cast<int64_t>(client.id), " held ",
            client.peak_pages, " pages and is told ", usage.peak_pages);
    require(usage.shared_pages_at_peak <= usage.peak_pages, "more pages are shared than held");
    require(usage.cached_prompt_tokens == client.cached_prompt_tokens, "cached prompt tokens are miscounted");
  }
}

void Simulation::observe_commit(const StepPlan& plan) {
  for (const ScheduledSequence& scheduled : plan.sequences) {
    Client& client = client_of(scheduled.request);
    Choice& leader = client.choices[static_cast<size_t>(scheduled.choice)];
    leader.computed += scheduled.tokens;
    leader.computed_max = std::max(leader.computed_max, leader.computed);
    for (int32_t k = 0; k < scheduled.samples; ++k) {
      const SampledToken& sampled = sampled_[static_cast<size_t>(scheduled.sampled_begin + k)];
      Choice& choice = scheduled.samples > 1 ? client.choices[static_cast<size_t>(k)] : leader;
      choice.computed = leader.computed;
      choice.computed_max = leader.computed_max;
      choice.running = true;
      append(client, choice, sampled.token);
      if (sampled.finished) observe_finished(client, choice);
    }
    if (scheduled.samples > 1) {
      client.forked = true;
      ++coverage_.forks;
    }
    if (std::ranges::all_of(client.choices, &Choice::ended)) end_client(static_cast<int64_t>(client.id));
  }
}

void Simulation::observe_finished(const Client& client, Choice& choice) {
  choice.ended = true;
  const auto index = static_cast<int32_t>(&choice - client.choices.data());
  const std::span<const TokenId> tokens(choice.tokens);
  const auto prompt_tokens = static_cast<size_t>(client.prompt_tokens);
  const std::vector<TokenId> alone =
      solo_run(tokens.first(prompt_tokens), client.salt, client.sampler, index, client.generated_tokens_max);
  require(std::ranges::equal(tokens.subspan(prompt_tokens), alone), "request ", static_cast<int64_t>(client.id),
          " choice ", index, " was answered otherwise than alone");
  last_answer_ = choice.tokens;
  ++coverage_.finished_choices;
}

// All is lost, nothing was sampled; and what was promised about waiting counts from here.
void Simulation::observe_abandon() {
  ++coverage_.abandoned;
  for (auto& [id, client] : clients_) {
    client.deadline_step = coverage_.steps + steps_owed_;
    for (Choice& choice : client.choices) {
      choice.running = false;
      choice.computed = 0;
    }
  }
}

}  // namespace headroom::sim
