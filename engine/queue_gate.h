// Who may wait: the bounds of the queue in requests, in tokens and in time, and their division among tenants.
//
// A place is taken before a prompt is tokenised, so that what a full queue refuses costs next to nothing; the prompt's tokens are added
// when they are known. With several tenants, none may have more places, or tokens, than are still free (dynamic thresholds: Choudhury and
// Hahne, IEEE/ACM Transactions on Networking 6(2), 1998): one that floods stops at half of the queue, two at a third each, and there is
// room for who comes next. A tenant's rates are those of a bucket that holds what a minute allows; tokens are counted when they are known,
// so the bucket may go below zero, and who owes waits.
//
// Not thread-safe: the engine keeps it under its inbox's mutex. Time is an argument.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/ids.h"
#include "engine/scheduler.h"

namespace headroom {

class QueueGate {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;
  enum class Refusal : uint8_t { none, queue_full, too_fast };

  QueueGate(const SchedulerOptions& options, TimePoint now);

  // A place for each request, or for none. Each is left by give_back() or, once its prompt was added, by leave().
  Refusal take_places(TenantId tenant, int32_t requests, TimePoint now);
  void give_back(TenantId tenant, int32_t requests);
  // False: there is no room for them now. One prompt may exceed the bound where nobody waits, or it would be refused for ever.
  bool add_prompt(TenantId tenant, int64_t tokens, TimePoint now);
  // Whether prompts of so many tokens, each at least 1, can wait together when nobody else does. If not, they never can.
  bool has_room_when_empty(TenantId tenant, std::span<const int64_t> prompts) const;
  // A request was let in, or ended before.
  void leave(TenantId tenant, int64_t prompt_tokens);
  // Tokens were generated.
  void charge(TenantId tenant, int64_t tokens, TimePoint now);

  // Until take_places() may say other than too_fast.
  double seconds_until_allowed(TenantId tenant, TimePoint now) const;

  int64_t requests() const { return requests_; }
  int64_t requests_of(TenantId tenant) const { return tenants_[index_of(tenant)].requests; }
  int64_t tokens_of(TenantId tenant) const { return tenants_[index_of(tenant)].tokens; }

 private:
  // Refills at its rate, up to what a minute allows.
  struct Bucket {
    double per_minute = 0;  // 0: no limit
    double level = 0;
    TimePoint filled{};

    double level_at(TimePoint now) const;
    void take(double amount, TimePoint now);
    double seconds_until(double wanted, TimePoint now) const;
  };
  struct Tenant {
    int64_t requests_max = 0;
    int64_t tokens_max = 0;
    int64_t requests = 0;         // places taken
    int64_t prompts = 0;          // of those, the ones whose prompt was added
    int64_t tokens = 0;           // of those
    Bucket request_rate, token_rate;
  };

  // Of what a tenant may have, with so much free.
  int64_t allowed(int64_t own_max, int64_t free) const;

  const int64_t requests_max_;
  const int64_t tokens_max_;
  std::vector<Tenant> tenants_;  // by TenantId
  int64_t requests_ = 0;         // of all tenants
  int64_t prompts_ = 0;
  int64_t tokens_ = 0;
};

}  // namespace headroom
