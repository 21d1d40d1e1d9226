// Requests that were never let in, and whose turn it is.
//
// Each tenant's wait in the order in which they came. The next one is of the tenant that had the least service for its
// weight, counted in tokens computed (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024: a virtual
// counter for each tenant). Who comes after a pause takes over the count at which the last request was let in, and so
// does who may not run when another one is let in: neither saves up a claim that would shut the others out. Equal counts
// go by arrival, so that one tenant alone is served first come, first served.
//
// Owned by the scheduler, engine thread alone. next() and let_in() are linear in the tenants that wait, all else is O(1).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "engine/ids.h"
#include "engine/sequence.h"

namespace headroom {

class FairQueue {
 public:
  static constexpr int32_t kWeightMax = 1000;

  // A weight for each tenant, 1 … kWeightMax.
  explicit FairQueue(const std::vector<int32_t>& weights);

  int64_t size() const { return size_; }
  void push_back(Sequence& sequence);
  void remove(Sequence& sequence);

  // The first of the tenant whose turn it is, among those whose first one may run; null if there is none.
  template <typename MayRun>
  Sequence* next(const MayRun& may_run) const {
    const Tenant* chosen = nullptr;
    for (const int32_t index : waiting_tenants_) {
      const Tenant& tenant = tenants_[static_cast<size_t>(index)];
      // In this order, because whether it may run is seen far away in memory.
      if ((chosen == nullptr || comes_before(tenant, *chosen)) && may_run(*tenant.waiting.first())) chosen = &tenant;
    }
    return chosen == nullptr ? nullptr : chosen->waiting.first();
  }
  // What next() returned leaves the queue, for its turn has come.
  template <typename MayRun>
  void let_in(Sequence& sequence, const MayRun& may_run) {
    floor_ = std::max(floor_, tenants_[index_of(sequence.tenant)].service);
    for (const int32_t index : waiting_tenants_) {
      Tenant& tenant = tenants_[static_cast<size_t>(index)];
      if (!may_run(*tenant.waiting.first())) tenant.service = std::max(tenant.service, floor_);
    }
    remove(sequence);
  }
  // Tokens were computed for a tenant.
  void charge(TenantId tenant, int64_t tokens) {
    Tenant& charged = tenants_[index_of(tenant)];
    charged.service += tokens * charged.token_price;
  }

  const Sequence* first_of(TenantId tenant) const { return tenants_[index_of(tenant)].waiting.first(); }

 private:
  struct Tenant {
    WaitingList waiting;
    int64_t service = 0;        // in token prices
    int64_t token_price = 0;    // the smaller, the larger its weight
    int64_t first_arrival = 0;  // of waiting.first()
    size_t place = 0;           // in waiting_tenants_
  };
  static bool comes_before(const Tenant& a, const Tenant& b);

  std::vector<Tenant> tenants_;           // by TenantId
  std::vector<int32_t> waiting_tenants_;  // those with a request here, in no order
  int64_t floor_ = 0;                     // the count at which the last request was let in; never falls
  int64_t size_ = 0;
};

}  // namespace headroom
