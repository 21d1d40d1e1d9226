#include "engine/queue_gate.h"

#include <algorithm>

#include "kernels/check.h"

namespace headroom {

double QueueGate::Bucket::level_at(TimePoint now) const {
  const double seconds = std::chrono::duration<double>(now - filled).count();
  return std::min(per_minute, level + seconds * per_minute / 60);
}

void QueueGate::Bucket::take(double amount, TimePoint now) {
  if (per_minute == 0) return;
  level = level_at(now) - amount;
  filled = now;
}

double QueueGate::Bucket::seconds_until(double wanted, TimePoint now) const {
  if (per_minute == 0) return 0;
  return std::max(0.0, (wanted - level_at(now)) * 60 / per_minute);
}

QueueGate::QueueGate(const SchedulerOptions& options, TimePoint now)
    : requests_max_(options.queue_requests_max), tokens_max_(options.queue_tokens_max) {
  for (const TenantLimits& limits : options.tenants) {
    const auto bucket = [now](int64_t per_minute) {
      return Bucket{.per_minute = static_cast<double>(per_minute), .level = static_cast<double>(per_minute), .filled = now};
    };
    tenants_.push_back({.requests_max = limits.queue_requests_max,
                        .tokens_max = limits.queue_tokens_max,
                        .request_rate = bucket(limits.requests_per_minute),
                        .token_rate = bucket(limits.tokens_per_minute)});
  }
}

int64_t QueueGate::allowed(int64_t own_max, int64_t free) const { return tenants_.size() == 1 ? own_max : std::min(free, own_max); }

QueueGate::Refusal QueueGate::take_places(TenantId tenant, int32_t requests, TimePoint now) {
  CHECK_GE(requests, 1);
  Tenant& t = tenants_[index_of(tenant)];
  if (seconds_until_allowed(tenant, now) > 0) return Refusal::too_fast;
  const int64_t free = requests_max_ - requests_;
  if (requests > free || t.requests + requests > allowed(t.requests_max, free)) return Refusal::queue_full;
  t.request_rate.take(requests, now);
  t.requests += requests;
  requests_ += requests;
  return Refusal::none;
}

void QueueGate::give_back(TenantId tenant, int32_t requests) {
  Tenant& t = tenants_[index_of(tenant)];
  t.requests -= requests;
  requests_ -= requests;
  CHECK_GE(t.requests, t.prompts);
}

bool QueueGate::add_prompt(TenantId tenant, int64_t tokens, TimePoint now) {
  Tenant& t = tenants_[index_of(tenant)];
  CHECK_LT(t.prompts, t.requests);
  const int64_t free = std::max<int64_t>(tokens_max_ - tokens_, 0);
  if (prompts_ > 0 && tokens > free) return false;
  if (t.prompts > 0 && t.tokens + tokens > allowed(t.tokens_max, free)) return false;
  t.token_rate.take(static_cast<double>(tokens), now);
  ++t.prompts;
  ++prompts_;
  t.tokens += tokens;
  tokens_ += tokens;
  return true;
}

bool QueueGate::has_room_when_empty(TenantId tenant, std::span<const int64_t> prompts) const {
  const Tenant& t = tenants_[index_of(tenant)];
  int64_t waiting = 0;
  for (const int64_t tokens : prompts) {
    const int64_t free = std::max<int64_t>(tokens_max_ - waiting, 0);
    if (waiting > 0 && (tokens > free || waiting + tokens > allowed(t.tokens_max, free))) return false;
    waiting += tokens;
  }
  return true;
}

void QueueGate::leave(TenantId tenant, int64_t prompt_tokens) {
  Tenant& t = tenants_[index_of(tenant)];
  --t.prompts;
  --prompts_;
  t.tokens -= prompt_tokens;
  tokens_ -= prompt_tokens;
  CHECK_GE(t.prompts, 0);
  CHECK_GE(t.tokens, 0);
  give_back(tenant, 1);
}

void QueueGate::charge(TenantId tenant, int64_t tokens, TimePoint now) {
  tenants_[index_of(tenant)].token_rate.take(static_cast<double>(tokens), now);
}

double QueueGate::seconds_until_allowed(TenantId tenant, TimePoint now) const {
  const Tenant& t = tenants_[index_of(tenant)];
  return std::max(t.request_rate.seconds_until(1, now), t.token_rate.seconds_until(1, now));
}

}  // namespace headroom
