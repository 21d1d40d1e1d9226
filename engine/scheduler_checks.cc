// What can be seen of a Scheduler from outside, and what must always hold.
#include <algorithm>

#include "engine/scheduler.h"
#include "kernels/check.h"

namespace headroom {

const PageUsage& Scheduler::usage(RequestId id) const {
  const auto it = requests_.find(id);
  CHECK(it != requests_.end()) << "request " << static_cast<int64_t>(id) << " has ended";
  return it->second.usage;
}

SchedulerStats Scheduler::stats() const {
  SchedulerStats stats;
  stats.running_sequences = static_cast<int64_t>(running_.size());
  const Request* previous = nullptr;  // sequences of a request are neighbours: running_ is by age
  for (const Sequence* sequence : running_) {
    stats.running_requests += sequence->request != previous ? 1 : 0;
    previous = sequence->request;
  }
  stats.waiting_sequences = preempted_.size() + queue_.size();
  stats.queue_requests = queue_requests_;
  stats.queue_tokens = queue_tokens_;
  stats.unfinished_requests = static_cast<int64_t>(requests_.size());
  stats.preemptions_total = preemptions_total_;
  stats.recomputed_tokens_total = recomputed_tokens_total_;
  stats.prefix_query_tokens_total = prefix_query_tokens_total_;
  stats.prefix_hit_tokens_total = prefix_hit_tokens_total_;
  stats.evictions_total = allocator_.evictions_total();
  stats.pages = allocator_.counts();
  stats.live_written_tokens = allocator_.live_written_tokens();
  return stats;
}

void Scheduler::use_by_tenant(std::vector<TenantUse>& use) const {
  use = tenant_use_;
  const Request* previous = nullptr;
  for (const Sequence* sequence : running_) {
    if (sequence->request != previous) use[index_of(sequence->tenant)].pages += sequence->request->pages.held();
    previous = sequence->request;
  }
}

void Scheduler::check_conserved() const {
  allocator_.check_conserved();
  if (prefix_cache_) prefix_cache_->check_conserved();

  std::vector<int32_t> references(static_cast<size_t>(allocator_.total()), 0);
  int64_t running = 0;
  int64_t waiting = 0;
  int64_t slots = 0;
  int64_t queued = 0;
  std::vector<TenantUse> use(tenant_use_.size());
  for (const auto& [id, request] : requests_) {
    queued += request.started ? 0 : 1;
    CHECK_LE(request.pages.held(), request.pages_max) << "more pages than its worst case";
    if (request.started) {
      ++use[index_of(request.tenant)].requests_started;
      use[index_of(request.tenant)].pages_promised += request.pages_max;
    }
    int32_t unfinished = 0;
    std::vector<PageId> distinct;
    for (const Sequence* sequence : request.sequences) {
      if (sequence == nullptr) continue;
      ++unfinished;
      const bool is_running = sequence->state == SequenceState::running;
      CHECK(is_running || sequence->pages.empty()) << "a sequence without room holds pages";
      running += is_running ? 1 : 0;
      slots += is_running ? sequence->slots : 0;
      waiting += sequence->state == SequenceState::waiting ? 1 : 0;
      for (size_t i = 0; i < sequence->pages.size(); ++i) {
        const PageId page = sequence->pages[i];
        CHECK_EQ(page == kNoPage, i < static_cast<size_t>(sequence->dropped_pages));
        if (page == kNoPage) continue;
        ++references[static_cast<size_t>(index_of(page))];
        distinct.push_back(page);
      }
    }
    CHECK_EQ(unfinished, request.unfinished);
    std::ranges::sort(distinct);
    const auto repeated = std::unique(distinct.begin(), distinct.end());
    CHECK_EQ(static_cast<int64_t>(repeated - distinct.begin()), request.pages.held());
  }
  for (size_t page = 0; page < references.size(); ++page) {
    CHECK_EQ(references[page], allocator_.references(PageId{static_cast<int32_t>(page)})) << "page " << page;
  }
  CHECK_EQ(running, static_cast<int64_t>(running_.size()));
  CHECK_EQ(waiting, preempted_.size() + queue_.size());
  CHECK_EQ(slots, running_slots_);
  CHECK_LE(slots, options_.running_sequences_max);
  CHECK_EQ(queued, queue_requests_);
  CHECK_EQ(queued, queue_.size());
  for (size_t i = 0; i < use.size(); ++i) {
    CHECK_EQ(use[i].requests_started, tenant_use_[i].requests_started);
    CHECK_EQ(use[i].pages_promised, tenant_use_[i].pages_promised);
    CHECK_LE(use[i].requests_started, options_.tenants[i].running_requests_max);
    CHECK_LE(use[i].pages_promised, pages_of_tenant_max(TenantId{static_cast<int32_t>(i)}));
  }
  check_order();
}

// By age: the running sequences, then the preempted ones; and only the youngest running one has a prompt in progress. Each tenant's queue is by
// arrival.
void Scheduler::check_order() const {
  const Sequence* previous = nullptr;
  for (const Sequence* sequence : running_) {
    CHECK(previous == nullptr || is_older(*previous, *sequence)) << "running sequences out of order";
    CHECK(plan_open_ || previous == nullptr || previous->uncomputed() <= 1) << "two prompts in progress";
    previous = sequence;
  }
  for (const Sequence* sequence = preempted_.first(); sequence != nullptr; sequence = sequence->waiting_next) {
    CHECK(sequence->request->started && (previous == nullptr || is_older(*previous, *sequence))) << "preempted sequences out of order";
    previous = sequence;
  }
  for (size_t tenant = 0; tenant < tenant_use_.size(); ++tenant) {
    const Sequence* first = queue_.first_of(TenantId{static_cast<int32_t>(tenant)});
    for (const Sequence* sequence = first; sequence != nullptr; sequence = sequence->waiting_next) {
      CHECK(index_of(sequence->tenant) == tenant && !sequence->request->started) << "in the wrong queue";
      const Sequence* next = sequence->waiting_next;
      CHECK(next == nullptr || sequence->request->arrival < next->request->arrival) << "a queue out of order";
    }
  }
}

}  // namespace headroom
