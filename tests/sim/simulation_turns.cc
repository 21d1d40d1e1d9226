// Fair shares in the simulation: a naive model of who is let in next, and of what a tenant may have.
#include <algorithm>

#include "tests/sim/simulation.h"

namespace headroom::sim {

void Simulation::draw_tenants() {
  options_.tenants.resize(static_cast<size_t>(random_.chance(0.5) ? 1 : random_.between(2, 4)));
  for (TenantLimits& tenant : options_.tenants) {
    tenant.weight = 1 << random_.below(4);  // powers of two, so that the naive model divides without a rest
    if (random_.chance(0.3)) tenant.running_requests_max = random_.between(1, 4);
    if (random_.chance(0.3)) tenant.kv_percent_max = random_.between(20, 99);
  }
  tenants_.resize(options_.tenants.size());
}

int64_t Simulation::pages_max_of(TenantId tenant) const {
  const int32_t percent = options_.tenants[index_of(tenant)].kv_percent_max;
  return percent == 100 ? INT64_MAX : options_.pages_total * percent / 100;
}

// The most that its choices can hold, each for itself: all their positions but the last, or, of those, what a step can
// see through a window.
int64_t Simulation::pages_needed(const NewRequest& request) const {
  const int32_t page_tokens = options_.page_tokens;
  const int32_t positions = static_cast<int32_t>(request.prompt.size()) + std::max(request.generated_tokens_max - 1, 0);
  int32_t pages = (positions + page_tokens - 1) / page_tokens;
  if (options_.window_tokens > 0) {
    const int32_t seen = options_.window_tokens - 1 + options_.step_tokens_max;
    const int32_t begun = page_tokens - 1;  // where it takes the most pages: it begins with the last slot of one
    pages = std::min(pages, (begun + seen + page_tokens - 1) / page_tokens);
  }
  return int64_t{pages} * request.choices;
}

// Who comes after a pause begins where the one who was let in last stood.
void Simulation::begin_waiting(const Client& client) {
  Tenant& tenant = tenants_[index_of(client.tenant)];
  if (first_waiting(client.tenant) == nullptr) tenant.service = std::max(tenant.service, floor_service_);
}

void Simulation::charge(TenantId tenant, int32_t tokens) {
  tenants_[index_of(tenant)].service += static_cast<double>(tokens) / options_.tenants[index_of(tenant)].weight;
}

// Who left the queue: the cancelled ones, which have gone already, then those that were let in, one after the other.
void Simulation::check_turns(const StepPlan& plan) {
  turns_before_ = turns_;
  for (const LeftQueue& left : plan.left_queue) {
    if (std::ranges::find(plan.cancelled, left.request) != plan.cancelled.end()) {
      require(turns_ == turns_before_, "a request is dropped after another one was let in");
      continue;
    }
    Client& client = client_of(left.request);
    require(!client.started && client.tenant == left.tenant && client.prompt_tokens == left.prompt_tokens,
            "a request that does not queue is let in");
    observe_let_in(client);
    const auto scheduled = std::ranges::find(plan.sequences, left.request, &ScheduledSequence::request);
    require(scheduled != plan.sequences.end(), "request ", static_cast<int64_t>(client.id),
            " is let in and not scheduled");
    client.cached_prompt_tokens = scheduled->first_position;
    charge(client.tenant, client.prompt_tokens - scheduled->first_position);
    if (coverage_.steps - client.arrival_step >= 100) coverage_.add(Event::served_after_long_wait);
  }
}

Simulation::Client* Simulation::first_waiting(TenantId tenant) {
  for (const auto& client : clients_) {
    if (client->tenant == tenant && !client->started) return client.get();
  }
  return nullptr;
}

bool Simulation::within_limits(const Client& client) const {
  int64_t requests = 1;
  int64_t pages = client.pages_needed;
  for (const auto& other : clients_) {
    if (other->tenant != client.tenant || !other->started) continue;
    ++requests;
    pages += other->pages_needed;
  }
  return requests <= options_.tenants[index_of(client.tenant)].running_requests_max &&
         pages <= pages_max_of(client.tenant);
}

// It must be the first of the tenant that had the least service, among those within their limits.
void Simulation::observe_let_in(Client& client) {
  const Client* expected = nullptr;
  std::vector<Tenant*> held_back;
  for (size_t i = 0; i < tenants_.size(); ++i) {
    const Client* first = first_waiting(TenantId{static_cast<int32_t>(i)});
    if (first == nullptr) continue;
    if (!within_limits(*first)) {
      held_back.push_back(&tenants_[i]);
      continue;
    }
    const double service = tenants_[i].service;
    const double least = expected == nullptr ? 0 : tenants_[index_of(expected->tenant)].service;
    if (expected == nullptr || service < least || (service == least && first->id < expected->id)) expected = first;
  }
  require(expected == &client, "request ", static_cast<int64_t>(client.id), " was let in and it is not its turn");
  floor_service_ = std::max(floor_service_, tenants_[index_of(client.tenant)].service);
  for (Tenant* tenant : held_back) tenant->service = std::max(tenant->service, floor_service_);
  coverage_.add(Event::tenant_held_back, static_cast<int64_t>(held_back.size()));
  const bool overtakes = std::ranges::any_of(clients_, [&](const auto& one) { return !one->started && one->id < client.id; });
  if (overtakes) coverage_.add(Event::turn_of_later_one);
  client.started = true;
  client.turn = ++turns_;
}

// While somebody who was let in has lost his room, nobody is let in.
void Simulation::check_nobody_overtakes() const {
  if (turns_ == turns_before_) return;
  for (const auto& client : clients_) {
    for (const Choice& choice : client->choices) {
      const bool is_preempted = !choice.running && !choice.ended && (choice.scheduled_step > 0 || choice.computed_max > 0);
      require(!is_preempted, "request ", static_cast<int64_t>(client->id), " waits again while another one is let in");
    }
  }
}

void Simulation::check_shares() {
  scheduler_->use_by_tenant(tenant_use_);
  for (size_t i = 0; i < tenants_.size(); ++i) {
    const int64_t pages = tenants_[i].pages;
    require(pages <= pages_max_of(TenantId{static_cast<int32_t>(i)}), "tenant ", i, " holds ", pages,
            " pages, beyond its share");
    require(tenant_use_[i].pages == pages, "the pages of tenant ", i, " are miscounted");
  }
}

}  // namespace headroom::sim
