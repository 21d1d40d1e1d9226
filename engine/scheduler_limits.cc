// What a Scheduler can be told, and what it could ever run.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "engine/scheduler.h"
#include "kernels/check.h"

namespace headroom {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

void require(bool possible, const char* what) {
  if (!possible) throw std::runtime_error(std::string("scheduler option ") + what);
}

const SchedulerOptions& checked(const SchedulerOptions& options) {
  require(options.pages_total >= 1, "pages_total must be at least 1: give the KV pool more memory");
  require(options.pages_total < (int64_t{1} << 31) - 1, "pages_total must be below 2^31 - 1: use larger pages");
  require(options.page_tokens >= 1, "page_tokens must be at least 1");
  require(options.step_tokens_max >= 1, "step_tokens_max must be at least 1");
  require(options.running_sequences_max >= 1, "running_sequences_max must be at least 1");
  require(options.queue_requests_max >= 1, "queue_requests_max must be at least 1");
  require(options.queue_tokens_max >= 1, "queue_tokens_max must be at least 1");
  require(options.context_tokens_max >= 1, "context_tokens_max must be at least 1");
  require(options.window_tokens >= 0, "window_tokens must be 0 (no window) or positive");
  require(!options.tenants.empty(), "tenants must name one tenant at least");
  for (const TenantLimits& tenant : options.tenants) {
    require(tenant.weight >= 1 && tenant.weight <= FairQueue::kWeightMax, "weight of a tenant must be from 1 to 1000");
    require(tenant.running_requests_max >= 1, "running_requests_max of a tenant must be at least 1");
    require(tenant.kv_percent_max >= 1 && tenant.kv_percent_max <= 100, "kv_percent_max of a tenant must be from 1 to 100");
  }
  return options;
}

// Positions that one sequence computes: its last token is never computed, for nothing follows it.
int64_t positions_max(int64_t prompt_tokens, int64_t generated_tokens_max) {
  return prompt_tokens + std::max<int64_t>(generated_tokens_max, 1) - 1;
}

std::vector<int32_t> weights_of(const std::vector<TenantLimits>& tenants) {
  std::vector<int32_t> weights;
  for (const TenantLimits& tenant : tenants) weights.push_back(tenant.weight);
  return weights;
}

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options)
    : options_(checked(options)),
      allocator_(options.pages_total, options.page_order_seed),
      queue_(weights_of(options.tenants)),
      tenant_use_(options.tenants.size()) {
  if (options_.prefix_cache) {
    prefix_cache_.emplace(allocator_, options_.page_tokens,
                          options_.prefix_cache_key.value_or(PrefixCache::random_key()));
  }
  requests_.reserve(static_cast<size_t>(options_.queue_requests_max) +
                    static_cast<size_t>(options_.running_sequences_max));
}

// The most pages that one sequence can need for `tokens` positions. With a window it only ever holds those that the
// rows of one step can see: an interval of window - 1 + step positions, wherever it starts within a page.
int64_t Scheduler::pages_of_one_max(int64_t tokens) const {
  const int64_t all = ceil_div(tokens, options_.page_tokens);
  if (options_.window_tokens == 0) return all;
  const int64_t seen = int64_t{options_.window_tokens} - 1 + options_.step_tokens_max;
  return std::min(all, ceil_div(seen - 1, options_.page_tokens) + 1);
}

int64_t Scheduler::pages_of_request_max(int64_t prompt_tokens, int64_t choices, int64_t generated_tokens_max) const {
  const int64_t positions = positions_max(prompt_tokens, generated_tokens_max);
  const int64_t one = pages_of_one_max(positions);
  if (choices == 1 || generated_tokens_max <= 1) return one;
  const int64_t all = ceil_div(positions, options_.page_tokens);
  const int64_t shared = prompt_tokens / options_.page_tokens;
  return std::min(shared + choices * (all - shared), choices * one);
}

// Choices share the pages of their prompt, until one of them is preempted and computes it again.
int64_t Scheduler::pages_unshared_max(int64_t prompt_tokens, int64_t choices, int64_t generated_tokens_max) const {
  return choices * pages_of_one_max(positions_max(prompt_tokens, generated_tokens_max));
}

int64_t Scheduler::pages_of_tenant_max(TenantId tenant) const {
  const int32_t percent = options_.tenants.at(index_of(tenant)).kv_percent_max;
  return percent == 100 ? INT64_MAX : options_.pages_total * percent / 100;
}

Admission Scheduler::can_ever_run(int64_t prompt_tokens, int64_t choices, int64_t generated_tokens_max,
                                  TenantId tenant) const {
  CHECK_GE(prompt_tokens, 1);
  CHECK_GE(choices, 1);
  CHECK_GE(generated_tokens_max, 0);
  Admission admission;
  admission.tokens_needed = prompt_tokens + generated_tokens_max;
  admission.tokens_max = options_.context_tokens_max;
  admission.pages_needed = pages_of_request_max(prompt_tokens, choices, generated_tokens_max);
  admission.pages_total = options_.pages_total;
  if (admission.tokens_needed > admission.tokens_max) {
    admission.status = AdmissionStatus::exceeds_context;
  } else if (choices > options_.running_sequences_max) {
    admission.status = AdmissionStatus::exceeds_running;
  } else if (admission.pages_needed > admission.pages_total) {
    admission.status = AdmissionStatus::exceeds_pool;
  } else if (const int64_t pages = pages_unshared_max(prompt_tokens, choices, generated_tokens_max); pages > pages_of_tenant_max(tenant)) {
    admission.status = AdmissionStatus::exceeds_share;
    admission.pages_needed = pages;
    admission.pages_total = pages_of_tenant_max(tenant);
  }
  return admission;
}

}  // namespace headroom
